// The running moments, held within a factor of the batch's deviation and a distance of its mean: the moments under
// which plain normalising is batch renormalisation. One invocation: four channels of one domain.

struct Params {
    domains: u32,
    quads: u32,
    eps: f32,
    r_max: f32,
    d_max: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> batch: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> running: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> moments: array<vec4<f32>>;

@compute @workgroup_size(64)
fn batch_norm_renorm(
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
    let square = batch[variance] + p.eps;
    let limit = p.r_max * p.r_max;
    let v = held(running[p.quads + quad], square / limit - p.eps, square * limit - p.eps);
    let d = (batch[mean] - running[quad]) / sqrt(running[p.quads + quad] + p.eps);
    let most = vec4<f32>(p.d_max);
    moments[mean] = batch[mean] - held(d, -most, most) * sqrt(v + p.eps);
    moments[variance] = v;
}
