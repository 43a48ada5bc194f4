// Σ dy over each chunk of pixels. One invocation: four channels of one chunk.

struct Params {
    pixels: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(64)
fn channel_sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let chunk = index / p.quads;
    let quad = index % p.quads;
    if chunk >= p.chunks {
        return;
    }
    let first = chunk * p.chunk;
    let end = min(first + p.chunk, p.pixels);
    var sum = vec4<f32>();
    for (var pixel = first; pixel < end; pixel++) {
        sum += dy[pixel * p.quads + quad];
    }
    partials[index] = sum;
}
