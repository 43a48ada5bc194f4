// Σ x, or Σ x·y, over each chunk of an image's pixels, times a factor.

struct Params {
    images: u32,
    pixels: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
    product: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(invocations)
fn image_sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(group, groups, local, p.chunks * p.images, p.quads);
    let start = place.part % p.images * p.pixels;
    let first = start + place.part / p.images * p.chunk;
    let end = min(first + p.chunk, start + p.pixels);
    var sum = vec4<f32>();
    for (var pixel = first + place.lane; pixel < end; pixel += lanes) {
        let at = pixel * p.quads + place.quad;
        if p.product != 0u {
            sum += x[at] * y[at];
        } else {
            sum += x[at];
        }
    }
    let all = sum_of_lanes(local, sum);
    if place.inside && place.lane == 0u {
        partials[place.part * p.quads + place.quad] = all * p.factor;
    }
}
