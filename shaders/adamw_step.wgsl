// AdamW, of many parameters. One workgroup: a tile of one parameter.

struct Params {
    segments: u32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    eps: f32,
}

struct Segment {
    tile: u32,
    quads: u32,
    // The first quads in the buffers.
    param: u32,
    grad: u32,
    first: u32,
    second: u32,
    lr: f32,
    weight_decay: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> step: array<f32>;
@group(0) @binding(3) var<storage, read> segments: array<Segment>;
@group(0) @binding(4) var<storage, read_write> param: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> first: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> second: array<vec4<f32>>;

@compute @workgroup_size(64)
fn adamw_step(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = group.y * groups.x + group.x;
    let segment = segments[segment_of(tile)];
    let begin = (tile - segment.tile) * TILE;
    let lr = step[0] * segment.lr;
    for (var index = begin + local; index < min(begin + TILE, segment.quads); index += 64u) {
        let g = grad[segment.grad + index];
        let m = p.beta1 * first[segment.first + index] + p.one_minus_beta1 * g;
        let v = p.beta2 * second[segment.second + index] + p.one_minus_beta2 * g * g;
        first[segment.first + index] = m;
        second[segment.second + index] = v;
        // Subtracting 0 would turn a −0 into 0.
        if lr != 0.0 {
            let at = segment.param + index;
            let size = sqrt(v) / sqrt(step[2]) + p.eps;
            param[at] = param[at] * (1.0 - lr * segment.weight_decay) - lr / step[1] * (m / size);
        }
    }
}
