
var<workgroup> scratch: array<vec4<f32>, 64>;

// The sum of the workgroup's values, as a tree of fixed shape.
fn workgroup_sum(lane: u32, value: vec4<f32>) -> vec4<f32> {
    scratch[lane] = value;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if lane < half {
            scratch[lane] += scratch[lane + half];
        }
        workgroupBarrier();
    }
    let sum = scratch[0];
    workgroupBarrier();
    return sum;
}

// The greatest of the workgroup's values.
fn workgroup_max(lane: u32, value: f32) -> f32 {
    scratch[lane].x = value;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if lane < half {
            scratch[lane].x = max(scratch[lane].x, scratch[lane + half].x);
        }
        workgroupBarrier();
    }
    let greatest = scratch[0].x;
    workgroupBarrier();
    return greatest;
}

// `exp`, that hands a NaN on: drivers need not.
fn exp_of(x: f32) -> f32 {
    return select(exp(x), x, is_nan(x));
}
