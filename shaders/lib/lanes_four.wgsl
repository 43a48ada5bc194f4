
// The channels of an invocation of a depthwise convolution: four, for CPU drivers, whose loads are of a quad.
alias Lanes = vec4<f32>;
const PER_QUAD: u32 = 1u;

fn widened(y: Lanes) -> vec4<f32> {
    return y;
}

fn narrowed(y: vec4<f32>) -> Lanes {
    return y;
}
