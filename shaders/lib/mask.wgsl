
// A mask word holds one bit a value, for four channels of eight consecutive pixels: bit 4·pixel + channel says whether
// the gradient passes. Word `tile · quads + quad` belongs to pixels 8·tile … 8·tile + 7.

// `x` where the pixel's bits are set, else 0.
fn masked(x: vec4<f32>, word: u32, pixel: u32) -> vec4<f32> {
    let bits = (vec4<u32>(word >> (4u * pixel)) & vec4<u32>(1u, 2u, 4u, 8u));
    return select(vec4<f32>(), x, bits != vec4<u32>());
}
