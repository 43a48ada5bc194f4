// dz becomes the gradient before the activation: by the mask, or for a smooth one by the value before it. One invocation:
// four channels of eight consecutive pixels.

struct Params {
    pixels: u32,
    quads: u32,
    act: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> mask: array<u32>;
@group(0) @binding(2) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dz: array<vec4<f32>>;

@compute @workgroup_size(64)
fn activation_grad(
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
    if is_smooth {
        for (var i = 0u; i < count; i++) {
            let at = (first + i) * p.quads + quad;
            dz[at] *= slope(y[at], p.act);
        }
        return;
    }
    let word = mask[index];
    for (var i = 0u; i < count; i++) {
        let at = (first + i) * p.quads + quad;
        dz[at] = masked(dz[at], word, i);
    }
}
