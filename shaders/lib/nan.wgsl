
// By the bits: a compiler may assume that a value equals itself.
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn are_nan(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

// `clamp`, that hands a NaN on, be it the value's or a bound's.
fn held(x: vec4<f32>, low: vec4<f32>, high: vec4<f32>) -> vec4<f32> {
    return select(clamp(x, low, high), x + low + high, are_nan(x) | are_nan(low) | are_nan(high));
}
