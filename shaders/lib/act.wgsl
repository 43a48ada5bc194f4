
// Activations, by the codes of src/act.rs. Most networks need no smooth one; without them no exponential is computed.
override is_smooth: bool = false;

// A NaN stays one, so that it reaches the loss and stops the run. A driver may assume that there is none: comparing
// values, `clamp` and `max` may drop it. So bits are compared. Floats of one sign are ordered as their bits are, and NaNs
// come behind infinity.
const MINUS_ZERO = 0x80000000u;
const THREE = 0x40400000u;
const MINUS_THREE = 0xc0400000u;
const SIX = 0x40c00000u;
const LARGEST = 0x7f800000u;

// Whether each value is the limit, given by its bits, or lies further from zero on the same side, and is no NaN.
fn is_beyond(y: vec4<f32>, limit: u32) -> vec4<bool> {
    return bitcast<vec4<u32>>(y) - vec4<u32>(limit) <= vec4<u32>(LARGEST - (limit & 0x7fffffffu));
}

fn relu(y: vec4<f32>) -> vec4<f32> {
    return select(y, vec4<f32>(), is_beyond(y, MINUS_ZERO));
}

fn relu6(y: vec4<f32>) -> vec4<f32> {
    return select(relu(y), vec4<f32>(6.0), is_beyond(y, SIX));
}

fn sigmoid(y: vec4<f32>) -> vec4<f32> {
    // Bounded, since an infinite exponential would be undefined; and that of a NaN is what the device likes.
    let s = 1.0 / (1.0 + exp(select(-y, vec4<f32>(87.0), y < vec4<f32>(-87.0))));
    return select(s, y, (bitcast<vec4<u32>>(y) & vec4<u32>(0x7fffffffu)) > vec4<u32>(LARGEST));
}

fn activate(y: vec4<f32>, act: u32) -> vec4<f32> {
    if is_smooth {
        switch act {
            case 3u: { return y * sigmoid(y); }
            case 4u: { return y * relu6(y + 3.0) / 6.0; }
            case 5u: { return relu6(y + 3.0) / 6.0; }
            case 6u: { return sigmoid(y); }
            default: {}
        }
    }
    let clipped = select(relu(y), vec4<f32>(6.0), is_beyond(y, SIX) & vec4<bool>(act == 2u));
    return select(y, clipped, act != 0u);
}

// The derivative of a smooth activation.
fn slope(y: vec4<f32>, act: u32) -> vec4<f32> {
    let s = sigmoid(y);
    switch act {
        case 3u: { return s * (1.0 + y * (1.0 - s)); }
        case 4u: {
            let line = y / 3.0 + 0.5;
            let rising = select(line, vec4<f32>(1.0), is_beyond(y, THREE + 1u));
            return select(rising, vec4<f32>(), is_beyond(y, MINUS_THREE));
        }
        case 5u: {
            let size = bitcast<vec4<u32>>(y) & vec4<u32>(0x7fffffffu);
            return select(vec4<f32>(), vec4<f32>(1.0 / 6.0), size < vec4<u32>(THREE));
        }
        default: { return s * (1.0 - s); }
    }
}

// One bit a value, at its pixel's place in a mask's word: whether the gradient passes an activation that is not smooth.
fn pass_bits(y: vec4<f32>, act: u32, pixel: u32) -> u32 {
    // From the smallest positive value to infinity, or to the last below six.
    let passes = bitcast<vec4<u32>>(y) - vec4<u32>(1u) < vec4<u32>(select(LARGEST, SIX - 1u, act == 2u));
    let bits = select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), passes);
    return (bits.x | bits.y | bits.z | bits.w) << (4u * pixel);
}
