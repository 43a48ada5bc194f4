// The gradient of the weights before a batch norm was folded into them. One invocation: four output channels of eight
// weight rows.

struct Params {
    rows: u32,
    quads: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> d_folded: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dw: array<vec4<f32>>;

@compute @workgroup_size(64)
fn fold_weight_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let tile = index / p.quads;
    let quad = index % p.quads;
    let first = tile * 8u;
    if first >= p.rows {
        return;
    }
    let end = min(first + 8u, p.rows);
    let scale = affine[quad] * (1.0 / sqrt(moments[p.quads + quad] + p.eps));
    for (var row = first; row < end; row++) {
        dw[row * p.quads + quad] = d_folded[row * p.quads + quad] * scale;
    }
}
