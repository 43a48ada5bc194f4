// Moves the running moments towards those of a batch and counts the update. One invocation: four channels.

struct Params {
    quads: u32,
    keep: f32,
    cumulative: u32,
    mean_factor: f32,
    var_factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> batch: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> running: array<vec4<f32>>;

@compute @workgroup_size(64)
fn batch_norm_update(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    if index >= p.quads {
        return;
    }
    let variance = p.quads + index;
    let updates = 2u * p.quads + index;
    let count = running[updates] + 1.0;
    let keep = select(vec4<f32>(p.keep), 1.0 - 1.0 / count, p.cumulative != 0u);
    running[index] = keep * running[index] + (1.0 - keep) * (batch[index] * p.mean_factor);
    running[variance] = keep * running[variance] + (1.0 - keep) * (batch[variance] * p.var_factor);
    running[updates] = count;
}
