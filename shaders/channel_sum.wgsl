// Σ dy over each chunk of pixels.

struct Params {
    pixels: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(invocations)
fn channel_sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(group, groups, local, p.chunks, p.quads);
    let end = min(place.part * p.chunk + p.chunk, p.pixels);
    var sum = vec4<f32>();
    for (var pixel = place.part * p.chunk + place.lane; pixel < end; pixel += lanes) {
        sum += dy[pixel * p.quads + place.quad];
    }
    let all = sum_of_lanes(local, sum);
    if place.inside && place.lane == 0u {
        partials[place.part * p.quads + place.quad] = all;
    }
}
