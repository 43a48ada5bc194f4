// Mean and biased variance of all pixels from those of the chunks. One invocation: four channels.

struct Params {
    pixels: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> moments: array<vec4<f32>>;

fn pixels_of(chunk: u32) -> f32 {
    return f32(min(p.chunk, p.pixels - chunk * p.chunk));
}

@compute @workgroup_size(64)
fn batch_norm_stats_merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    if index >= p.quads {
        return;
    }
    let offset = partials[index];
    var sum = vec4<f32>();
    for (var chunk = 0u; chunk < p.chunks; chunk++) {
        sum += (partials[chunk * 2u * p.quads + index] - offset) * pixels_of(chunk);
    }
    let mean = offset + sum / f32(p.pixels);
    var squares = vec4<f32>();
    for (var chunk = 0u; chunk < p.chunks; chunk++) {
        let at = chunk * 2u * p.quads + index;
        let difference = partials[at] - mean;
        squares += partials[at + p.quads] + difference * difference * pixels_of(chunk);
    }
    moments[index] = mean;
    moments[p.quads + index] = squares / f32(p.pixels);
}
