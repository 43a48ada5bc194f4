//! Between the layout of files and that of the device.
//!
//! | tensor | file | device |
//! |---|---|---|
//! | convolution | `[O, I, KH, KW]` | `[KH][KW][I₄][O₄]` |
//! | depthwise convolution | `[C, 1, KH, KW]` | `[KH][KW][C₄]` |
//! | linear | `[O, I]` | `[1][1][I₄][O₄]` |
//! | vector | `[C]` | `[C₄]` |
//! | images | `[N, C, H, W]` | `[N][H][W][C₄]` |
//!
//! `X₄` is `X` rounded up to a multiple of four; what that adds is zero on the device and absent in the file. A
//! function panics when the slice it is given has not the length that the dimensions ask for.

use crate::tensor::pad4;

/// A convolution's weights for the device. `dims` is `[O, I, KH, KW]`.
pub fn conv_to_device(file: &[f32], dims: [usize; 4]) -> Vec<f32> {
    let mut device = vec![0.0; conv_device_len(dims)];
    assert_eq!(file.len(), dims.iter().product::<usize>(), "a convolution of {dims:?}");
    for_each_conv_weight(dims, |at_file, at_device| device[at_device] = file[at_file]);
    device
}

/// A convolution's weights for a file. `dims` is `[O, I, KH, KW]`.
pub fn conv_to_file(device: &[f32], dims: [usize; 4]) -> Vec<f32> {
    let mut file = vec![0.0; dims.iter().product()];
    assert_eq!(device.len(), conv_device_len(dims), "a convolution of {dims:?}");
    for_each_conv_weight(dims, |at_file, at_device| file[at_file] = device[at_device]);
    file
}

/// A depthwise convolution's weights for the device. `dims` is `[C, KH, KW]`.
pub fn depthwise_to_device(file: &[f32], [c, kh, kw]: [usize; 3]) -> Vec<f32> {
    images_to_device(file, [1, c, kh, kw])
}

/// A depthwise convolution's weights for a file. `dims` is `[C, KH, KW]`.
pub fn depthwise_to_file(device: &[f32], [c, kh, kw]: [usize; 3]) -> Vec<f32> {
    images_to_file(device, [1, c, kh, kw])
}

/// A linear layer's weights for the device. `dims` is `[O, I]`.
pub fn linear_to_device(file: &[f32], [o, i]: [usize; 2]) -> Vec<f32> {
    conv_to_device(file, [o, i, 1, 1])
}

/// A linear layer's weights for a file. `dims` is `[O, I]`.
pub fn linear_to_file(device: &[f32], [o, i]: [usize; 2]) -> Vec<f32> {
    conv_to_file(device, [o, i, 1, 1])
}

/// A vector for the device.
pub fn vector_to_device(file: &[f32]) -> Vec<f32> {
    let mut device = file.to_vec();
    device.resize(pad4(file.len()), 0.0);
    device
}

/// A vector of `c` values for a file.
pub fn vector_to_file(device: &[f32], c: usize) -> Vec<f32> {
    assert_eq!(device.len(), pad4(c), "a vector of {c}");
    device[..c].to_vec()
}

/// Images for the device. `dims` is `[N, C, H, W]`.
pub fn images_to_device(file: &[f32], dims: [usize; 4]) -> Vec<f32> {
    let mut device = vec![0.0; images_device_len(dims)];
    assert_eq!(file.len(), dims.iter().product::<usize>(), "images of {dims:?}");
    for_each_image_value(dims, |at_file, at_device| device[at_device] = file[at_file]);
    device
}

/// Images for a file. `dims` is `[N, C, H, W]`.
pub fn images_to_file(device: &[f32], dims: [usize; 4]) -> Vec<f32> {
    let mut file = vec![0.0; dims.iter().product()];
    assert_eq!(device.len(), images_device_len(dims), "images of {dims:?}");
    for_each_image_value(dims, |at_file, at_device| file[at_file] = device[at_device]);
    file
}

fn conv_device_len([o, i, kh, kw]: [usize; 4]) -> usize {
    kh * kw * pad4(i) * pad4(o)
}

fn images_device_len([n, c, h, w]: [usize; 4]) -> usize {
    n * h * w * pad4(c)
}

/// Calls `visit(index in the file, index on the device)` for each weight, in the file's order.
fn for_each_conv_weight([o, i, kh, kw]: [usize; 4], mut visit: impl FnMut(usize, usize)) {
    let taps = kh * kw;
    for out in 0..o {
        for input in 0..i {
            for tap in 0..taps {
                visit((out * i + input) * taps + tap, (tap * pad4(i) + input) * pad4(o) + out);
            }
        }
    }
}

/// Calls `visit(index in the file, index on the device)` for each value, in the file's order.
fn for_each_image_value([n, c, h, w]: [usize; 4], mut visit: impl FnMut(usize, usize)) {
    let pixels = h * w;
    for image in 0..n {
        for channel in 0..c {
            for pixel in 0..pixels {
                visit((image * c + channel) * pixels + pixel, (image * pixels + pixel) * pad4(c) + channel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Values that are all different and none zero, so that a lost or misplaced one shows.
    fn ramp(count: usize) -> Vec<f32> {
        (1..=count).map(|value| value as f32).collect()
    }

    #[test]
    fn a_convolution_by_hand() {
        // O = 2, I = 1, one row of two taps.
        let device = conv_to_device(&[1.0, 2.0, 3.0, 4.0], [2, 1, 1, 2]);
        let mut expected = [0.0; 32];
        (expected[0], expected[1]) = (1.0, 3.0);
        (expected[16], expected[17]) = (2.0, 4.0);
        assert_eq!(device, expected);
    }

    #[test]
    fn images_by_hand() {
        // One image of two channels and two pixels.
        let device = images_to_device(&[1.0, 2.0, 3.0, 4.0], [1, 2, 1, 2]);
        assert_eq!(device, [1.0, 3.0, 0.0, 0.0, 2.0, 4.0, 0.0, 0.0]);
    }

    #[test]
    fn linear_and_vector_by_hand() {
        let device = linear_to_device(&[1.0, 2.0, 3.0, 4.0], [2, 2]);
        assert_eq!(device[..8], [1.0, 3.0, 0.0, 0.0, 2.0, 4.0, 0.0, 0.0]);
        assert_eq!(device[8..], [0.0; 8]);
        assert_eq!(vector_to_device(&[1.0, 2.0, 3.0, 4.0, 5.0]), [1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0, 0.0]);
    }

    proptest! {
        #[test]
        fn convolutions_round_trip(dims in [1usize..10, 1usize..10, 1usize..5, 1usize..5]) {
            let [o, i, kh, kw] = dims;
            let file = ramp(dims.iter().product());
            let device = conv_to_device(&file, dims);
            prop_assert_eq!(device.len(), kh * kw * pad4(i) * pad4(o));
            for (index, &value) in device.iter().enumerate() {
                let (out, input) = (index % pad4(o), index / pad4(o) % pad4(i));
                let (x, y) = (index / pad4(o) / pad4(i) % kw, index / pad4(o) / pad4(i) / kw);
                let inside = out < o && input < i;
                let expected = if inside { file[((out * i + input) * kh + y) * kw + x] } else { 0.0 };
                prop_assert_eq!(value, expected);
            }
            prop_assert_eq!(conv_to_file(&device, dims), file);
        }

        #[test]
        fn images_round_trip(dims in [1usize..4, 1usize..10, 1usize..7, 1usize..7]) {
            let [n, c, h, w] = dims;
            let file = ramp(dims.iter().product());
            let device = images_to_device(&file, dims);
            prop_assert_eq!(device.len(), n * h * w * pad4(c));
            for (index, &value) in device.iter().enumerate() {
                let (channel, x) = (index % pad4(c), index / pad4(c) % w);
                let (y, image) = (index / pad4(c) / w % h, index / pad4(c) / w / h);
                let expected = if channel < c { file[((image * c + channel) * h + y) * w + x] } else { 0.0 };
                prop_assert_eq!(value, expected);
            }
            prop_assert_eq!(images_to_file(&device, dims), file);
        }

        #[test]
        fn linears_and_vectors_round_trip(o in 1usize..20, i in 1usize..20) {
            let file = ramp(o * i);
            let device = linear_to_device(&file, [o, i]);
            prop_assert_eq!(device.len(), pad4(i) * pad4(o));
            prop_assert_eq!(linear_to_file(&device, [o, i]), file.clone());
            let device = vector_to_device(&file);
            prop_assert_eq!(device.len(), pad4(o * i));
            prop_assert!(device[o * i..].iter().all(|&padding| padding == 0.0));
            prop_assert_eq!(vector_to_file(&device, o * i), file);
        }
    }
}
