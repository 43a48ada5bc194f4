// Mean and biased variance of a domain's pixels from those of its chunks. One invocation: four channels of one domain.

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

fn pixels_of(chunk: u32) -> f32 {
    return f32(min(p.chunk, p.domain - chunk * p.chunk));
}

@compute @workgroup_size(64)
fn batch_norm_stats_merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let domain = index / p.quads;
    if domain >= p.domains {
        return;
    }
    let first = domain * 2u * p.quads + index % p.quads;
    let offset = partials[first];
    var sum = vec4<f32>();
    for (var chunk = 0u; chunk < p.chunks; chunk++) {
        sum += (partials[chunk * p.domains * 2u * p.quads + first] - offset) * pixels_of(chunk);
    }
    let mean = offset + sum / f32(p.domain);
    var squares = vec4<f32>();
    for (var chunk = 0u; chunk < p.chunks; chunk++) {
        let at = chunk * p.domains * 2u * p.quads + first;
        let difference = partials[at] - mean;
        squares += partials[at + p.quads] + difference * difference * pixels_of(chunk);
    }
    moments[first] = mean;
    moments[first + p.quads] = squares / f32(p.domain);
}
