// Σ dy·x̂ and Σ dy over each chunk of pixels.

struct Params {
    pixels: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> moments: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(invocations)
fn layer_norm_grad_reduce(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(group, groups, local, p.chunks, p.quads);
    let end = min(place.part * p.chunk + p.chunk, p.pixels);
    var products = vec4<f32>();
    var sum = vec4<f32>();
    for (var pixel = place.part * p.chunk + place.lane; pixel < end; pixel += lanes) {
        let at = pixel * p.quads + place.quad;
        let of_pixel = moments[pixel];
        products += dy[at] * ((x[at] - of_pixel.x) * of_pixel.y);
        sum += dy[at];
    }
    let all_products = sum_of_lanes(local, products);
    let all = sum_of_lanes(local, sum);
    if place.inside && place.lane == 0u {
        let at = place.part * 2u * p.quads + place.quad;
        partials[at] = all_products;
        partials[at + p.quads] = all;
    }
}
