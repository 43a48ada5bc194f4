// Stochastic gradient descent with momentum. One invocation: four values.

struct Params {
    first: u32,
    quads: u32,
    lr: f32,
    momentum: f32,
    nesterov: u32,
    weight_decay: f32,
    decoupled: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> step: array<f32>;
@group(0) @binding(3) var<storage, read_write> param: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> momentum: array<vec4<f32>>;

@compute @workgroup_size(64)
fn sgd_step(
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
    var value = param[at];
    var change = grad[at];
    if p.decoupled != 0u {
        value *= 1.0 - lr * p.weight_decay;
    } else {
        change += p.weight_decay * value;
    }
    if p.momentum != 0.0 {
        let velocity = p.momentum * momentum[at] + change;
        momentum[at] = velocity;
        change = select(velocity, change + p.momentum * velocity, p.nesterov != 0u);
    }
    // Subtracting 0 would turn a −0 into 0.
    if lr != 0.0 {
        param[at] = value - lr * change;
    }
}
