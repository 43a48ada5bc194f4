// (1 − α)·running + α·batch, for mean and variance of every domain. One invocation: four channels of one domain.

struct Params {
    domains: u32,
    quads: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> batch: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> running: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> moments: array<vec4<f32>>;

@compute @workgroup_size(64)
fn batch_norm_blend(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let domain = index / p.quads;
    let quad = index % p.quads;
    if domain >= p.domains {
        return;
    }
    let mean = domain * 2u * p.quads + quad;
    let variance = mean + p.quads;
    moments[mean] = (1.0 - p.alpha) * running[quad] + p.alpha * batch[mean];
    moments[variance] = (1.0 - p.alpha) * running[p.quads + quad] + p.alpha * batch[variance];
}
