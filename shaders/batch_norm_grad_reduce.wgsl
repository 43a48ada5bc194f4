// Σ g·x̂ and Σ g over each chunk of a domain's pixels, g being dz behind the activation. One invocation: four channels of one
// chunk.

struct Params {
    domain: u32,
    domains: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
    eps: f32,
    act: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dz: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> mask: array<u32>;
@group(0) @binding(6) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(64)
fn batch_norm_grad_reduce(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let partial = index / p.quads;
    let quad = index % p.quads;
    if partial >= p.chunks * p.domains {
        return;
    }
    let domain = partial % p.domains;
    let start = domain * p.domain;
    let first = start + partial / p.domains * p.chunk;
    let end = min(first + p.chunk, start + p.domain);
    let row = domain * 2u * p.quads + quad;
    let mean = moments[row];
    let r = 1.0 / sqrt(moments[row + p.quads] + p.eps);
    var scale = vec4<f32>();
    var beta = vec4<f32>();
    if is_smooth {
        scale = affine[quad] * r;
        beta = affine[p.quads + quad];
    }
    var products = vec4<f32>();
    var sum = vec4<f32>();
    var pixel = first;
    while pixel < end {
        let tile = pixel / 8u;
        let stop = min(end, (tile + 1u) * 8u);
        var word = 0xffffffffu;
        if p.act != 0u && !is_smooth {
            word = mask[tile * p.quads + quad];
        }
        for (; pixel < stop; pixel++) {
            let at = pixel * p.quads + quad;
            let centred = x[at] - mean;
            var g = masked(dz[at], word, pixel % 8u);
            if is_smooth {
                g *= slope(centred * scale + beta, p.act);
            }
            products += g * centred;
            sum += g;
        }
    }
    let at = partial * 2u * p.quads + quad;
    partials[at] = products * r;
    partials[at + p.quads] = sum;
}
