// Joins the moments of a group's channels. One invocation: four channels of one image.

struct Params {
    images: u32,
    quads: u32,
    channels: u32,
    groups: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> z: array<f32>;

@compute @workgroup_size(64)
fn group_moments(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let image = index / p.quads;
    if image >= p.images {
        return;
    }
    let means = image * 8u * p.quads;
    let variances = means + 4u * p.quads;
    let each = p.channels / p.groups;
    for (var lane = 0u; lane < 4u; lane++) {
        let channel = index % p.quads * 4u + lane;
        var mean = 0.0;
        var variance = 0.0;
        if channel < p.channels {
            let first = channel / each * each;
            for (var c = first; c < first + each; c++) {
                mean += x[means + c];
            }
            mean /= f32(each);
            for (var c = first; c < first + each; c++) {
                let difference = x[means + c] - mean;
                variance += x[variances + c] + difference * difference;
            }
            variance /= f32(each);
        }
        z[means + channel] = mean;
        z[variances + channel] = variance;
    }
}
