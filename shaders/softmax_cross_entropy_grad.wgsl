// (softmax(logits) − smoothed label) · inv_count, or the same with a weight a class. One workgroup: one sample.

struct Params {
    samples: u32,
    classes: u32,
    stride: u32,
    smoothing: f32,
    weighted: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read> step: array<f32>;
@group(0) @binding(5) var<storage, read_write> dlogits: array<f32>;

@compute @workgroup_size(64)
fn softmax_cross_entropy_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let sample = group.y * groups.x + group.x;
    if sample >= p.samples {
        return;
    }
    let row = sample * p.stride;
    let label = labels[sample];
    if label >= p.classes {
        for (var c = lane; c < p.stride; c += 64u) {
            dlogits[row + c] = 0.0;
        }
        return;
    }
    var greatest = logits[row];
    for (var c = lane; c < p.classes; c += 64u) {
        greatest = max(greatest, logits[row + c]);
    }
    greatest = workgroup_max(lane, greatest);
    // Σ exp, Σ weight.
    var sums = vec4<f32>();
    for (var c = lane; c < p.classes; c += 64u) {
        var weight = 1.0;
        if p.weighted == 1u {
            weight = weights[c];
        }
        sums += vec4<f32>(exp_of(logits[row + c] - greatest), weight, 0.0, 0.0);
    }
    sums = workgroup_sum(lane, sums);
    let rest = p.smoothing / f32(p.classes);
    for (var c = lane; c < p.stride; c += 64u) {
        var gradient = 0.0;
        if c < p.classes {
            let softmax = exp_of(logits[row + c] - greatest) / sums.x;
            let wanted = rest + select(0.0, 1.0 - p.smoothing, c == label);
            gradient = softmax - wanted;
            if p.weighted == 1u {
                let own = (1.0 - p.smoothing) * weights[label];
                gradient = own * (softmax - select(0.0, 1.0, c == label)) + rest * (sums.y * softmax - weights[c]);
            }
            gradient *= step[3];
        }
        dlogits[row + c] = gradient;
    }
}
