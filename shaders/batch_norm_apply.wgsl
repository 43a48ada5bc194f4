// z = act(γ(x − μ)/√(v + ε) + β + residual). One invocation: four channels of eight consecutive pixels.

struct Params {
    pixels: u32,
    domain: u32,
    quads: u32,
    eps: f32,
    act: u32,
    residual: u32,
    mask: u32,
}

// Whether the batch is cut into several domains, one of which may end within a tile.
override cut: bool;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> z: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> mask: array<u32>;

@compute @workgroup_size(64)
fn batch_norm_apply(
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
    let end = min(first + 8u, p.pixels);
    let gamma = affine[quad];
    let beta = affine[p.quads + quad];
    var bits = 0u;
    var pixel = first;
    loop {
        var stop = end;
        var row = quad;
        if cut {
            let domain = pixel / p.domain;
            stop = min(end, (domain + 1u) * p.domain);
            row = domain * 2u * p.quads + quad;
        }
        let mean = moments[row];
        let scale = gamma * (1.0 / sqrt(moments[row + p.quads] + p.eps));
        for (; pixel < stop; pixel++) {
            let at = pixel * p.quads + quad;
            var y = (x[at] - mean) * scale + beta;
            if p.residual != 0u {
                y += residual[at];
            }
            bits |= pass_bits(y, p.act, pixel - first);
            z[at] = activate(y, p.act);
        }
        if !cut || pixel == end {
            break;
        }
    }
    if p.mask != 0u {
        mask[index] = bits;
    }
}
