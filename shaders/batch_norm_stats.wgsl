// Mean and sum of squared differences of each chunk of a domain's pixels. One invocation: four channels of one chunk.

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

@compute @workgroup_size(64)
fn batch_norm_stats(
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
    let start = partial % p.domains * p.domain;
    let first = start + partial / p.domains * p.chunk;
    let end = min(first + p.chunk, start + p.domain);
    let count = f32(end - first);
    let offset = x[first * p.quads + quad];
    var sum = vec4<f32>();
    for (var pixel = first; pixel < end; pixel++) {
        sum += x[pixel * p.quads + quad] - offset;
    }
    let mean = offset + sum / count;
    // The differences from the rounded mean do not quite add up to 0: what is left corrects both moments.
    var rest = vec4<f32>();
    var squares = vec4<f32>();
    for (var pixel = first; pixel < end; pixel++) {
        let difference = x[pixel * p.quads + quad] - mean;
        rest += difference;
        squares += difference * difference;
    }
    let at = partial * 2u * p.quads + quad;
    partials[at] = mean + rest / count;
    // `max` would be free to drop a NaN.
    let corrected = squares - rest * rest / count;
    partials[at + p.quads] = select(max(corrected, vec4<f32>()), corrected, are_nan(corrected));
}
