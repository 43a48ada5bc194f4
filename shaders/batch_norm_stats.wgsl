// Mean and sum of squared differences of each chunk of a domain's pixels.

struct Params {
    domain: u32,
    domains: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(invocations)
fn batch_norm_stats(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(group, groups, local, p.chunks * p.domains, p.quads);
    let start = place.part % p.domains * p.domain;
    let chunk = start + place.part / p.domains * p.chunk;
    let end = min(chunk + p.chunk, start + p.domain);
    // What is added up are differences from the first pixel, which are small.
    let offset = x[chunk * p.quads + place.quad];
    let first = chunk + place.lane;
    let count = f32((max(end, first) - first + lanes - 1u) / lanes);
    // A lane may have no pixels.
    let divisor = max(count, 1.0);
    var sum = vec4<f32>();
    for (var pixel = first; pixel < end; pixel += lanes) {
        sum += x[pixel * p.quads + place.quad] - offset;
    }
    let mean = sum / divisor;
    // The differences from the rounded mean do not quite add up to 0: what is left corrects both moments.
    var rest = vec4<f32>();
    var squares = vec4<f32>();
    for (var again = first; again < end; again += lanes) {
        let difference = x[again * p.quads + place.quad] - offset - mean;
        rest += difference;
        squares += difference * difference;
    }
    let corrected = squares - rest * rest / divisor;
    // `max` would be free to drop a NaN.
    let positive = select(max(corrected, vec4<f32>()), corrected, are_nan(corrected));
    let all = moments_of_lanes(local, Moments(count, mean + rest / divisor, positive));
    if place.inside && place.lane == 0u {
        let at = place.part * 2u * p.quads + place.quad;
        partials[at] = offset + all.mean;
        partials[at + p.quads] = all.squares;
    }
}
