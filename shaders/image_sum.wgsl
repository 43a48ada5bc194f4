// Σ x, or Σ x·y, over each chunk of an image's pixels, times a factor. One invocation: four channels of one chunk.

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

@compute @workgroup_size(64)
fn image_sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let partial = index / p.quads;
    let quad = index % p.quads;
    if partial >= p.chunks * p.images {
        return;
    }
    let start = partial % p.images * p.pixels;
    let first = start + partial / p.images * p.chunk;
    let end = min(first + p.chunk, start + p.pixels);
    var sum = vec4<f32>();
    for (var pixel = first; pixel < end; pixel++) {
        let at = pixel * p.quads + quad;
        if p.product != 0u {
            sum += x[at] * y[at];
        } else {
            sum += x[at];
        }
    }
    partials[index] = sum * p.factor;
}
