
// The channels of an invocation of a depthwise convolution: one, for GPUs and windows of 7×7.
alias Lanes = f32;
const PER_QUAD: u32 = 4u;

fn widened(y: Lanes) -> vec4<f32> {
    return vec4<f32>(y);
}

fn narrowed(y: vec4<f32>) -> Lanes {
    return y.x;
}
