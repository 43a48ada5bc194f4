// x_grad = γr·g, g being dz behind the activation. One invocation: four channels of eight consecutive pixels.

struct Params {
    pixels: u32,
    quads: u32,
    eps: f32,
    act: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dz: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> mask: array<u32>;
@group(0) @binding(6) var<storage, read_write> x_grad: array<vec4<f32>>;

@compute @workgroup_size(64)
fn batch_norm_grad_running(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let tile = index / p.quads;
    let quad = index % p.quads;
    let first = tile * 8u;
    if first >= p.pixels {
        return;
    }
    let count = min(8u, p.pixels - first);
    let scale = affine[quad] * (1.0 / sqrt(moments[p.quads + quad] + p.eps));
    var word = 0xffffffffu;
    if p.act != 0u && !is_smooth {
        word = mask[index];
    }
    for (var i = 0u; i < count; i++) {
        let at = (first + i) * p.quads + quad;
        var g = masked(dz[at], word, i);
        if is_smooth {
            g *= slope((x[at] - moments[quad]) * scale + affine[p.quads + quad], p.act);
        }
        x_grad[at] = scale * g;
    }
}
