// The weights and bias of a convolution with its batch norm folded in. One invocation: four output channels of eight
// weight rows.

struct Params {
    rows: u32,
    quads: u32,
    eps: f32,
    bias: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> folded: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> folded_bias: array<vec4<f32>>;

@compute @workgroup_size(64)
fn fold_batch_norm(
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
        folded[row * p.quads + quad] = weight[row * p.quads + quad] * scale;
    }
    if tile == 0u {
        var centred = -moments[quad];
        if p.bias != 0u {
            centred += bias[quad];
        }
        folded_bias[quad] = affine[p.quads + quad] + centred * scale;
    }
}
