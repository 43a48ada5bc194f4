// Σ g·x̂ and Σ g over each chunk of pixels, g being dz behind the mask. One invocation: four channels of one chunk.

struct Params {
    pixels: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
    eps: f32,
    mask: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dz: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(64)
fn batch_norm_grad_reduce(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let chunk = index / p.quads;
    let quad = index % p.quads;
    if chunk >= p.chunks {
        return;
    }
    let first = chunk * p.chunk;
    let end = min(first + p.chunk, p.pixels);
    let mean = moments[quad];
    let r = 1.0 / sqrt(moments[p.quads + quad] + p.eps);
    var products = vec4<f32>();
    var sum = vec4<f32>();
    for (var tile = first; tile < end; tile += 8u) {
        var word = 0xffffffffu;
        if p.mask != 0u {
            word = mask[tile / 8u * p.quads + quad];
        }
        let count = min(8u, end - tile);
        for (var i = 0u; i < count; i++) {
            let at = (tile + i) * p.quads + quad;
            let g = masked(dz[at], word, i);
            products += g * (x[at] - mean);
            sum += g;
        }
    }
    let at = chunk * 2u * p.quads + quad;
    partials[at] = products * r;
    partials[at + p.quads] = sum;
}
