// Mean and biased variance of a domain's pixels from those of its chunks.

struct Params {
    domain: u32,
    domains: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> moments: array<vec4<f32>>;

@compute @workgroup_size(invocations)
fn batch_norm_stats_merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(group, groups, local, p.domains, p.quads);
    let first = place.part * 2u * p.quads + place.quad;
    let stride = p.domains * 2u * p.quads;
    // What is added up are differences from the first chunk's mean, which are small.
    let offset = partials[first];
    var count = 0.0;
    var sum = vec4<f32>();
    for (var chunk = place.lane; chunk < p.chunks; chunk += lanes) {
        let pixels = pixels_of(chunk);
        count += pixels;
        sum += (partials[chunk * stride + first] - offset) * pixels;
    }
    // A lane may have no chunk.
    let mean = sum / max(count, 1.0);
    var squares = vec4<f32>();
    for (var again = place.lane; again < p.chunks; again += lanes) {
        let at = again * stride + first;
        let difference = partials[at] - offset - mean;
        squares += partials[at + p.quads] + difference * difference * pixels_of(again);
    }
    let all = moments_of_lanes(local, Moments(count, mean, squares));
    if place.inside && place.lane == 0u {
        moments[first] = offset + all.mean;
        moments[first + p.quads] = all.squares / f32(p.domain);
    }
}

fn pixels_of(chunk: u32) -> f32 {
    return f32(min(p.chunk, p.domain - chunk * p.chunk));
}
