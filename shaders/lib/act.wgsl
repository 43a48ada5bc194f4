
// Activations, by the codes of src/act.rs. Most networks need no smooth one; without them no exponential is computed.
override is_smooth: bool = false;

// A NaN stays one, so that it reaches the loss and stops the run; `clamp` would be free to drop it.
fn clip(y: vec4<f32>, limit: f32) -> vec4<f32> {
    let positive = select(y, vec4<f32>(), y <= vec4<f32>());
    return select(positive, vec4<f32>(limit), y >= vec4<f32>(limit));
}

fn sigmoid(y: vec4<f32>) -> vec4<f32> {
    // Bounded, since an infinite exponential would be undefined; and that of a NaN is what the device likes.
    let s = 1.0 / (1.0 + exp(select(-y, vec4<f32>(87.0), y < vec4<f32>(-87.0))));
    let nan = (bitcast<vec4<u32>>(y) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return select(s, y, nan);
}

fn activate(y: vec4<f32>, act: u32) -> vec4<f32> {
    if is_smooth {
        switch act {
            case 3u: { return y * sigmoid(y); }
            case 4u: { return y * clip(y + 3.0, 6.0) / 6.0; }
            case 5u: { return clip(y + 3.0, 6.0) / 6.0; }
            case 6u: { return sigmoid(y); }
            default: {}
        }
    }
    let positive = select(y, vec4<f32>(), y <= vec4<f32>());
    let clipped = select(positive, vec4<f32>(6.0), y >= vec4<f32>(6.0) & vec4<bool>(act == 2u));
    return select(y, clipped, act != 0u);
}

// The derivative of a smooth activation.
fn slope(y: vec4<f32>, act: u32) -> vec4<f32> {
    let s = sigmoid(y);
    switch act {
        case 3u: { return s * (1.0 + y * (1.0 - s)); }
        case 4u: {
            let line = y / 3.0 + 0.5;
            return select(select(line, vec4<f32>(1.0), y > vec4<f32>(3.0)), vec4<f32>(), y <= vec4<f32>(-3.0));
        }
        case 5u: {
            return select(vec4<f32>(), vec4<f32>(1.0 / 6.0), y > vec4<f32>(-3.0) & y < vec4<f32>(3.0));
        }
        default: { return s * (1.0 - s); }
    }
}

// One bit a value, at its pixel's place in a mask's word: whether the gradient passes an activation that is not smooth.
fn pass_bits(y: vec4<f32>, act: u32, pixel: u32) -> u32 {
    let passes = y > vec4<f32>() & (y < vec4<f32>(6.0) | vec4<bool>(act != 2u));
    let bits = select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), passes);
    return (bits.x | bits.y | bits.z | bits.w) << (4u * pixel);
}
