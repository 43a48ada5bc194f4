// Stochastic gradient descent with momentum, of many parameters. One workgroup: a tile of one parameter.

struct Params {
    segments: u32,
    momentum: f32,
    nesterov: u32,
    decoupled: u32,
}

struct Segment {
    tile: u32,
    quads: u32,
    // The first quads in the buffers.
    param: u32,
    grad: u32,
    momentum: u32,
    unused: u32,
    lr: f32,
    weight_decay: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> step: array<f32>;
@group(0) @binding(3) var<storage, read> segments: array<Segment>;
@group(0) @binding(4) var<storage, read_write> param: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> momentum: array<vec4<f32>>;

@compute @workgroup_size(64)
fn sgd_step(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = group.y * groups.x + group.x;
    let segment = segments[segment_of(tile)];
    let first = (tile - segment.tile) * TILE;
    let lr = step[0] * segment.lr;
    for (var index = first + local; index < min(first + TILE, segment.quads); index += 64u) {
        let at = segment.param + index;
        var value = param[at];
        var change = grad[segment.grad + index];
        if p.decoupled != 0u {
            value *= 1.0 - lr * segment.weight_decay;
        } else {
            change += segment.weight_decay * value;
        }
        if p.momentum != 0.0 {
            let velocity = p.momentum * momentum[segment.momentum + index] + change;
            momentum[segment.momentum + index] = velocity;
            change = select(velocity, change + p.momentum * velocity, p.nesterov != 0u);
        }
        // Subtracting 0 would turn a −0 into 0.
        if lr != 0.0 {
            param[at] = value - lr * change;
        }
    }
}
