
// The channels of an invocation of a depthwise convolution: two, for GPUs, whose registers cannot hold a window of four channels.
alias Lanes = vec2<f32>;
const PER_QUAD: u32 = 2u;

fn widened(y: Lanes) -> vec4<f32> {
    return vec4<f32>(y, y);
}

fn narrowed(y: vec4<f32>) -> Lanes {
    return y.xy;
}
