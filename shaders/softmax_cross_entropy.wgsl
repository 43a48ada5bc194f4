// Cross-entropy of softmax(logits) and the label, where classes may have weights, and whether the label is among the
// greatest logits. One workgroup: one sample.

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
@group(0) @binding(4) var<storage, read_write> rows: array<vec4<f32>>;

@compute @workgroup_size(64)
fn softmax_cross_entropy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let sample = group.y * groups.x + group.x;
    if sample >= p.samples {
        return;
    }
    let label = labels[sample];
    if label >= p.classes {
        if lane == 0u {
            rows[sample] = vec4<f32>();
        }
        return;
    }
    let row = sample * p.stride;
    var greatest = logits[row];
    for (var c = lane; c < p.classes; c += 64u) {
        greatest = max(greatest, logits[row + c]);
    }
    greatest = workgroup_max(lane, greatest);
    let own = logits[row + label];
    // Σ exp, Σ weight · (logit − the greatest), how many classes stand before the label, and Σ weight.
    var sums = vec4<f32>();
    for (var c = lane; c < p.classes; c += 64u) {
        let logit = logits[row + c];
        let before = logit > own || (logit == own && c < label);
        var weight = 1.0;
        if p.weighted == 1u {
            weight = weights[c];
        }
        sums += vec4<f32>(exp_of(logit - greatest), weight * (logit - greatest), select(0.0, 1.0, before), weight);
    }
    sums = workgroup_sum(lane, sums);
    if lane == 0u {
        if is_nan(sums.x) {
            rows[sample] = vec4<f32>(sums.x, 0.0, 0.0, 0.0);
            return;
        }
        let log_sum = log(sums.x);
        var loss = log_sum - (own - greatest);
        var spread = log_sum - sums.y / f32(p.classes);
        if p.weighted == 1u {
            loss *= weights[label];
            spread = (sums.w * log_sum - sums.y) / f32(p.classes);
        }
        if p.smoothing > 0.0 {
            loss = (1.0 - p.smoothing) * loss + p.smoothing * spread;
        }
        rows[sample] = vec4<f32>(loss, select(0.0, 1.0, sums.z < 1.0), select(0.0, 1.0, sums.z < 5.0), 0.0);
    }
}
