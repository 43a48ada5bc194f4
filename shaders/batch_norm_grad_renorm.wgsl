// The sums under renormalised moments as `batch_norm_grad_batch` takes them: S' = (S − dΣg)(v + ε)/(v_B + ε) and
// Σg − dS', where S = Σ g·x̂ and d = (μ_B − μ)r. One invocation: four channels of one domain.

struct Params {
    domains: u32,
    quads: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> batch: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> through: array<vec4<f32>>;

@compute @workgroup_size(64)
fn batch_norm_grad_renorm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let domain = index / p.quads;
    if domain >= p.domains {
        return;
    }
    let first = domain * 2u * p.quads + index % p.quads;
    let second = first + p.quads;
    let square = moments[second] + p.eps;
    let d = (batch[first] - moments[first]) * (1.0 / sqrt(square));
    let product = (sums[first] - d * sums[second]) * (square / (batch[second] + p.eps));
    through[first] = product;
    through[second] = sums[second] - d * product;
}
