
// Activations, by the codes of src/act.rs. Most networks need no smooth one; without them no exponential is computed.
override is_smooth: bool = false;
// Whether it is one of those that few networks have; only a smooth one is.
override is_rare: bool = false;

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

// `y` where that is NaN.
fn or_nan(y: vec4<f32>, otherwise: vec4<f32>) -> vec4<f32> {
    return select(otherwise, y, (bitcast<vec4<u32>>(y) & vec4<u32>(0x7fffffffu)) > vec4<u32>(LARGEST));
}

fn sigmoid(y: vec4<f32>) -> vec4<f32> {
    // Bounded, since an infinite exponential would be undefined; and that of a NaN is what the device likes.
    let s = 1.0 / (1.0 + exp(select(-y, vec4<f32>(87.0), y < vec4<f32>(-87.0))));
    return or_nan(y, s);
}

// Bounded, since a driver may divide one exponential by another.
fn tanh_of(y: vec4<f32>) -> vec4<f32> {
    return or_nan(y, tanh(clamp(y, vec4<f32>(-10.0), vec4<f32>(10.0))));
}

// ln(1 + eʸ)
fn softplus(y: vec4<f32>) -> vec4<f32> {
    return or_nan(y, max(y, vec4<f32>()) + log(1.0 + exp(-abs(y))));
}

// The normal distribution function: the error function as a quotient of polynomials, right to 4·10⁻⁷.
fn normal(y: vec4<f32>) -> vec4<f32> {
    let x = clamp(y * 0.70710678, vec4<f32>(-4.0), vec4<f32>(4.0));
    let s = x * x;
    var p = s * -2.72614225801306e-10 + 2.77068142495902e-8;
    p = p * s - 2.10102402082508e-6;
    p = p * s - 5.69250639462346e-5;
    p = p * s - 7.34990630326855e-4;
    p = p * s - 2.95459980854025e-3;
    p = p * s - 1.60960333262415e-2;
    var q = s * -1.45660718464996e-5 - 2.13374055278905e-4;
    q = q * s - 1.68282697438203e-3;
    q = q * s - 7.37332916720468e-3;
    q = q * s - 1.42647390514189e-2;
    return or_nan(y, 0.5 + 0.5 * x * p / q);
}

// What the approximation of GELU takes the hyperbolic tangent of.
fn bend(y: vec4<f32>) -> vec4<f32> {
    return 0.7978845608 * (y + 0.044715 * y * y * y);
}

fn activate_rarely(y: vec4<f32>, act: u32) -> vec4<f32> {
    switch act {
        case 7u: { return select(exp(min(y, vec4<f32>())) - 1.0, y, y > vec4<f32>()); }
        case 8u: { return y * normal(y); }
        case 9u: { return 0.5 * y * (1.0 + tanh_of(bend(y))); }
        case 10u: { return y * tanh_of(softplus(y)); }
        case 11u: { return tanh_of(y); }
        case 12u: { return softplus(y); }
        default: {
            // The bits of a factor: of all values, or of those below zero.
            let scaled = y * bitcast<f32>(act & 0x7fffffffu);
            return select(scaled, y, (y > vec4<f32>()) & vec4<bool>(act < 0x80000000u));
        }
    }
}

fn activate(y: vec4<f32>, act: u32) -> vec4<f32> {
    if is_rare {
        return or_nan(y, activate_rarely(y, act));
    }
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

fn rare_slope(y: vec4<f32>, act: u32) -> vec4<f32> {
    switch act {
        case 7u: { return exp(min(y, vec4<f32>())); }
        case 8u: { return normal(y) + 0.3989422804 * y * exp(-0.5 * min(y * y, vec4<f32>(170.0))); }
        case 9u: {
            let t = tanh_of(bend(y));
            // Far from zero the tangent is 1, and the cube would overflow.
            let near = clamp(y, vec4<f32>(-16.0), vec4<f32>(16.0));
            let rise = 0.7978845608 * (1.0 + 0.134145 * near * near);
            return 0.5 * (1.0 + t + near * (1.0 - t * t) * rise);
        }
        case 10u: {
            let t = tanh_of(softplus(y));
            // Far above zero the tangent is 1.
            return t + clamp(y, vec4<f32>(-100.0), vec4<f32>(100.0)) * (1.0 - t * t) * sigmoid(y);
        }
        // 1 − tanh², without the difference.
        case 11u: { return 4.0 * sigmoid(2.0 * y) * sigmoid(-2.0 * y); }
        case 12u: { return sigmoid(y); }
        default: {
            let factor = vec4<f32>(bitcast<f32>(act & 0x7fffffffu));
            return select(factor, vec4<f32>(1.0), (y > vec4<f32>()) & vec4<bool>(act < 0x80000000u));
        }
    }
}

// The derivative of a smooth activation.
fn slope(y: vec4<f32>, act: u32) -> vec4<f32> {
    if is_rare {
        return or_nan(y, rare_slope(y, act));
    }
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
