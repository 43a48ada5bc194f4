// The gradient of what a layer norm normalises.

struct Params {
    pixels: u32,
    quads: u32,
    channels: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> moments: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> x_grad: array<vec4<f32>>;

@compute @workgroup_size(invocations)
fn layer_norm_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = row_of(group, groups, local);
    // Beyond the last one an invocation computes along, since barriers need all.
    let pixel = min(row.x, p.pixels - 1u);
    let first = pixel * p.quads;
    let mean = moments[pixel].x;
    let r = moments[pixel].y;
    var sum = vec4<f32>();
    var products = vec4<f32>();
    for (var quad = row.y; quad < p.quads; quad += lanes) {
        // γ is 0 in the padding.
        let g = dy[first + quad] * affine[quad];
        sum += g;
        products += g * ((x[first + quad] - mean) * r);
    }
    let channels = f32(p.channels);
    let of_sum = dot(total_of_lanes(local, sum), vec4<f32>(1.0)) / channels;
    let of_products = dot(total_of_lanes(local, products), vec4<f32>(1.0)) / channels;
    if row.x >= p.pixels {
        return;
    }
    for (var quad = row.y; quad < p.quads; quad += lanes) {
        let normalised = (x[first + quad] - mean) * r;
        let gradient = r * (dy[first + quad] * affine[quad] - of_sum - normalised * of_products);
        let padding = vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad >= vec4<u32>(p.channels);
        x_grad[first + quad] = select(gradient, vec4<f32>(), padding);
    }
}
