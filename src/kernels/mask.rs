//! Sign bits on the host: one bit a value, a word for each four channels of each eight consecutive pixels.

use super::TILE;

fn position(channels: usize, pixel: usize, c: usize) -> (usize, u32) {
    (pixel / TILE * (channels / 4) + c / 4, (pixel % TILE * 4 + c % 4) as u32)
}

/// Zeroes the words of `pixels` × `channels` values.
pub(super) fn clear(mask: &mut [f32], pixels: usize, channels: usize) {
    mask[..pixels.div_ceil(TILE) * (channels / 4)].fill(0.0);
}

/// Writes one value's bit.
pub(super) fn set(mask: &mut [f32], channels: usize, pixel: usize, c: usize, bit: bool) {
    let (word, shift) = position(channels, pixel, c);
    let bits = mask[word].to_bits();
    mask[word] = f32::from_bits(bits & !(1 << shift) | u32::from(bit) << shift);
}

/// Reads one value's bit.
pub(super) fn get(mask: &[f32], channels: usize, pixel: usize, c: usize) -> bool {
    let (word, shift) = position(channels, pixel, c);
    mask[word].to_bits() >> shift & 1 == 1
}
