// AdamW. One invocation: four values.

struct Params {
    first: u32,
    quads: u32,
    lr: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    eps: f32,
    weight_decay: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> step: array<f32>;
@group(0) @binding(3) var<storage, read_write> param: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> first: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> second: array<vec4<f32>>;

@compute @workgroup_size(64)
fn adamw_step(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    if index >= p.quads {
        return;
    }
    let at = p.first + index;
    let lr = step[0] * p.lr;
    let g = grad[at];
    let m = p.beta1 * first[at] + p.one_minus_beta1 * g;
    let v = p.beta2 * second[at] + p.one_minus_beta2 * g * g;
    first[at] = m;
    second[at] = v;
    // Subtracting 0 would turn a −0 into 0.
    if lr != 0.0 {
        let size = sqrt(v) / sqrt(step[2]) + p.eps;
        param[at] = param[at] * (1.0 - lr * p.weight_decay) - lr / step[1] * (m / size);
    }
}
