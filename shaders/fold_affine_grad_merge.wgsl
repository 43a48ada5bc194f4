// dγ = r(Σ w·d_folded − μ·db) and dβ = db of a folded batch norm. One invocation: four channels.

struct Params {
    quads: u32,
    chunks: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> d_folded_bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> sums: array<vec4<f32>>;

@compute @workgroup_size(64)
fn fold_affine_grad_merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    if index >= p.quads {
        return;
    }
    var sum = vec4<f32>();
    for (var chunk = 0u; chunk < p.chunks; chunk++) {
        sum += partials[chunk * p.quads + index];
    }
    let r = 1.0 / sqrt(moments[p.quads + index] + p.eps);
    let db = d_folded_bias[index];
    sums[index] = r * (sum - moments[index] * db);
    sums[p.quads + index] = db;
}
