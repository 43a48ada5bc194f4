// Normalises each pixel's channels.

struct Params {
    pixels: u32,
    quads: u32,
    channels: u32,
    eps: f32,
    keep: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> z: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> moments: array<vec2<f32>>;

@compute @workgroup_size(invocations)
fn layer_norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = row_of(group, groups, local);
    // Beyond the last one an invocation computes along, since barriers need all.
    let pixel = min(row.x, p.pixels - 1u);
    let first = pixel * p.quads;
    var sum = vec4<f32>();
    for (var quad = row.y; quad < p.quads; quad += lanes) {
        sum += x[first + quad];
    }
    let channels = f32(p.channels);
    let mean = dot(total_of_lanes(local, sum), vec4<f32>(1.0)) / channels;
    var squares = vec4<f32>();
    for (var quad = row.y; quad < p.quads; quad += lanes) {
        let difference = select(x[first + quad] - mean, vec4<f32>(), is_padding(quad));
        squares += difference * difference;
    }
    let r = 1.0 / sqrt(dot(total_of_lanes(local, squares), vec4<f32>(1.0)) / channels + p.eps);
    if row.x >= p.pixels {
        return;
    }
    for (var quad = row.y; quad < p.quads; quad += lanes) {
        let normalised = affine[quad] * ((x[first + quad] - mean) * r) + affine[p.quads + quad];
        z[first + quad] = select(normalised, vec4<f32>(), is_padding(quad));
    }
    if p.keep != 0u && row.y == 0u {
        moments[pixel] = vec2<f32>(mean, r);
    }
}

fn is_padding(quad: u32) -> vec4<bool> {
    return vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad >= vec4<u32>(p.channels);
}
