// Means of γ·x over a group's channels. One invocation: four channels of one row.

struct Params {
    images: u32,
    quads: u32,
    channels: u32,
    groups: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> affine: array<f32>;
@group(0) @binding(3) var<storage, read_write> z: array<f32>;

@compute @workgroup_size(64)
fn group_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let row = index / p.quads;
    if row >= 2u * p.images {
        return;
    }
    let start = row * 4u * p.quads;
    let each = p.channels / p.groups;
    for (var lane = 0u; lane < 4u; lane++) {
        let channel = index % p.quads * 4u + lane;
        var sum = 0.0;
        if channel < p.channels {
            let first = channel / each * each;
            for (var c = first; c < first + each; c++) {
                sum += affine[c] * x[start + c];
            }
            sum /= f32(each);
        }
        z[start + channel] = sum;
    }
}
