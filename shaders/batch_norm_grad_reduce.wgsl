// Σ g·x̂ and Σ g over each chunk of a domain's pixels, g being dz behind the activation.

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

@compute @workgroup_size(invocations)
fn batch_norm_grad_reduce(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(group, groups, local, p.chunks * p.domains, p.quads);
    let quad = place.quad;
    let domain = place.part % p.domains;
    let start = domain * p.domain;
    let first = start + place.part / p.domains * p.chunk;
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
    // By words of the mask, each of which is of eight pixels.
    for (var tile = first / 8u + place.lane; tile * 8u < end; tile += lanes) {
        var word = 0xffffffffu;
        if p.act != 0u && !is_smooth {
            word = mask[tile * p.quads + quad];
        }
        for (var pixel = max(tile * 8u, first); pixel < min(tile * 8u + 8u, end); pixel++) {
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
    let all_products = sum_of_lanes(local, products);
    let all = sum_of_lanes(local, sum);
    if place.inside && place.lane == 0u {
        let at = place.part * 2u * p.quads + quad;
        partials[at] = all_products * r;
        partials[at + p.quads] = all;
    }
}
