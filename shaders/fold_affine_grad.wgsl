// Σ w·d_folded over each chunk of weight rows. One invocation: four output channels of one chunk.

struct Params {
    rows: u32,
    quads: u32,
    chunk: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> d_folded: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(64)
fn fold_affine_grad(
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
    let end = min(first + p.chunk, p.rows);
    var sum = vec4<f32>();
    for (var row = first; row < end; row++) {
        let at = row * p.quads + quad;
        sum += weight[at] * d_folded[at];
    }
    partials[index] = sum;
}
