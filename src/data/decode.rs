//! Encoded bytes → pixels.

use super::DataError;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbaImage};
use std::fs;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// The longest side that is decoded, in pixels.
pub const MAX_SIDE: u32 = 32_768;
/// The most pixels that are decoded: 256 MiB of them. A file of a few kilobytes can declare far more.
pub const MAX_PIXELS: u64 = 1 << 26;
const MAX_FILE_BYTES: u64 = 1 << 28;

/// A decoded image, upright.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub width: u32,
    pub height: u32,
    /// `[height, width, 4]`: red, green, blue in sRGB as the file has them, and a fourth byte without meaning.
    pub pixels: Vec<u8>,
}

/// Reads and decodes the file at `path`; see [`decode`].
///
/// # Errors
/// As [`decode`], or a file that cannot be read or is over 256 MiB.
pub fn decode_file(path: &Path) -> Result<Image, DataError> {
    let length = fs::metadata(path).map_err(DataError::read(path))?.len();
    if length > MAX_FILE_BYTES {
        return Err(broken(path, format!("the file has {length} bytes, over the limit of {MAX_FILE_BYTES}")));
    }
    decode(&fs::read(path).map_err(DataError::read(path))?, path)
}

/// Decodes a JPEG, PNG or WebP image, told apart by content. Grey becomes equal red, green and blue, CMYK is converted,
/// 16 bits become 8, alpha is dropped (not composited: that is what torchvision's loader does), the first frame of an
/// animation is taken, and the EXIF orientation is applied. `path` is for messages only.
///
/// # Errors
/// Another format, a damaged or truncated file, or one that declares more than [`MAX_SIDE`] or [`MAX_PIXELS`].
pub fn decode(bytes: &[u8], path: &Path) -> Result<Image, DataError> {
    // A decoder's bug must cost this image, not the run.
    let decoded = catch_unwind(AssertUnwindSafe(|| match format(bytes) {
        Some(ImageFormat::Jpeg) => decode_jpeg(bytes, path),
        Some(format) => decode_other(bytes, format, path),
        None => Err(broken(path, "not a JPEG, PNG or WebP image".into())),
    }));
    decoded.unwrap_or_else(|_| Err(broken(path, "the decoder panicked".into())))
}

fn format(bytes: &[u8]) -> Option<ImageFormat> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some(ImageFormat::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(ImageFormat::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(ImageFormat::WebP),
        _ => None,
    }
}

fn decode_jpeg(bytes: &[u8], path: &Path) -> Result<Image, DataError> {
    // Even the strict mode takes a file that ends within its last rows; the lenient one fills what is missing with grey.
    if !reaches_end_marker(bytes) {
        return Err(broken(path, "the file is truncated".into()));
    }
    let options = DecoderOptions::new_fast()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGBA);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let failed = |error: zune_jpeg::errors::DecodeErrors| broken(path, error.to_string());
    decoder.decode_headers().map_err(failed)?;
    let (width, height) = decoder.dimensions().ok_or_else(|| broken(path, "no dimensions".into()))?;
    let (width, height) = check_size(width as u64, height as u64, path)?;

    // The decoder's own conversion of four components to four is wrong in 0.5.15: take them as they are.
    let inks = decoder.input_colorspace().filter(|space| matches!(space, ColorSpace::CMYK | ColorSpace::YCCK));
    if let Some(space) = inks {
        decoder.set_options(options.jpeg_set_out_colorspace(space));
    }
    let mut pixels = decoder.decode().map_err(failed)?;
    if let Some(space) = inks {
        pixels.as_chunks_mut().0.iter_mut().for_each(|pixel| *pixel = rgbx_from_inks(*pixel, space));
    }
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    upright(Image { width, height, pixels }, orientation.unwrap_or(Orientation::NoTransforms), path)
}

/// Whether a JPEG's end marker follows its first scan. Marker bytes do not occur within a scan, but may before it, in an
/// embedded preview.
fn reaches_end_marker(bytes: &[u8]) -> bool {
    let mut rest = &bytes[2..];
    loop {
        match *rest {
            [0xff, 0xda, ref scan @ ..] => return scan.windows(2).rev().any(|marker| marker == [0xff, 0xd9]),
            [0xff, 0xff, ..] => rest = &rest[1..],
            [0xff, _, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest = rest.get(2 + length..).unwrap_or_default();
            }
            // Stray bytes before a marker: the decoder judges them.
            [_, _, ..] => rest = &rest[1..],
            _ => return false,
        }
    }
}

/// From cyan, magenta, yellow and black, stored inverted (255 is no ink) as all of Adobe's software does, whether
/// directly or as luma and chroma of the inks.
fn rgbx_from_inks([a, b, c, black]: [u8; 4], space: ColorSpace) -> [u8; 4] {
    let inverted_inks = if space == ColorSpace::YCCK {
        let (luma, blue, red) = (f32::from(a), f32::from(b) - 128.0, f32::from(c) - 128.0);
        [luma + 1.402 * red, luma - 0.344_136 * blue - 0.714_136 * red, luma + 1.772 * blue]
            .map(|value| 255 - value.round() as u8)
    } else {
        [a, b, c]
    };
    let [red, green, blue] = inverted_inks.map(|ink| ((u32::from(ink) * u32::from(black) + 127) / 255) as u8);
    [red, green, blue, 255]
}

fn decode_other(bytes: &[u8], format: ImageFormat, path: &Path) -> Result<Image, DataError> {
    // A WebP states its length, which its decoder does not hold against the file's; the last byte may be mere padding.
    if let ([_, _, _, _, a, b, c, d, ..], ImageFormat::WebP) = (bytes, format)
        && bytes.len() as u64 + 1 < 8 + u64::from(u32::from_le_bytes([*a, *b, *c, *d]))
    {
        return Err(broken(path, "the file is truncated".into()));
    }
    let failed = |error: image::ImageError| broken(path, error.to_string());
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = check_size(width.into(), height.into(), path)?;
    // EXIF that cannot be read is no reason to refuse pixels that can.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let pixels = DynamicImage::from_decoder(decoder).map_err(failed)?.into_rgba8().into_raw();
    upright(Image { width, height, pixels }, orientation, path)
}

fn check_size(width: u64, height: u64, path: &Path) -> Result<(u32, u32), DataError> {
    if width.max(height) > MAX_SIDE.into() || width * height > MAX_PIXELS {
        return Err(DataError::TooLarge { path: path.into(), width, height });
    }
    Ok((width as u32, height as u32))
}

fn upright(image: Image, orientation: Orientation, path: &Path) -> Result<Image, DataError> {
    if orientation == Orientation::NoTransforms {
        return Ok(image);
    }
    let buffer = RgbaImage::from_raw(image.width, image.height, image.pixels);
    let buffer = buffer.ok_or_else(|| broken(path, "fewer pixels than declared".into()))?;
    let mut turned = DynamicImage::ImageRgba8(buffer);
    turned.apply_orientation(orientation);
    Ok(Image { width: turned.width(), height: turned.height(), pixels: turned.into_rgba8().into_raw() })
}

fn broken(path: &Path, reason: String) -> DataError {
    DataError::Decode { path: path.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::{png::PngEncoder, webp::WebPEncoder};
    use image::{ExtendedColorType, ImageEncoder};
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert_eq, proptest};

    const COLOUR: &[u8] = include_bytes!("testdata/colour.jpg");
    const PROGRESSIVE: &[u8] = include_bytes!("testdata/progressive.jpg");
    const GREY: &[u8] = include_bytes!("testdata/grey.jpg");
    const CMYK: &[u8] = include_bytes!("testdata/cmyk.jpg");
    const YCCK: &[u8] = include_bytes!("testdata/ycck.jpg");
    const ROTATED: &[u8] = include_bytes!("testdata/rotated.jpg");
    const LOSSY_WEBP: &[u8] = include_bytes!("testdata/lossy.webp");

    fn read(bytes: &[u8]) -> Result<Image, String> {
        decode(bytes, Path::new("some/name")).map_err(|error| error.to_string())
    }

    fn png(pixels: &[u8], width: u32, height: u32, color: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(pixels, width, height, color).unwrap();
        bytes
    }

    fn rgb(image: &Image) -> Vec<[u8; 3]> {
        image.pixels.as_chunks::<4>().0.iter().map(|p| [p[0], p[1], p[2]]).collect()
    }

    fn near(image: &Image, x: u32, y: u32, expected: [u8; 3], tolerance: u8) {
        let found = rgb(image)[(y * image.width + x) as usize];
        let close = found.iter().zip(expected).all(|(&a, b)| a.abs_diff(b) <= tolerance);
        assert!(close, "({x}, {y}): {found:?}, expected {expected:?}");
    }

    #[test]
    fn jpeg_and_webp_of_each_kind() {
        for bytes in [COLOUR, PROGRESSIVE, CMYK, YCCK, ROTATED, LOSSY_WEBP] {
            let image = read(bytes).unwrap();
            assert_eq!((image.width, image.height, image.pixels.len()), (16, 12, 16 * 12 * 4));
            for x in [1, 14] {
                near(&image, x, 1, [230, 230, 230], 20);
            }
            near(&image, 2, 9, [200, 40, 40], 20);
            near(&image, 13, 9, [40, 60, 200], 20);
        }
        let grey = read(GREY).unwrap();
        assert!(rgb(&grey).iter().all(|p| p[0] == p[1] && p[1] == p[2]));
        near(&grey, 2, 9, [88, 88, 88], 12);
    }

    #[test]
    fn png_of_each_depth() {
        let colour = [10, 20, 30, 200, 210, 220];
        assert_eq!(rgb(&read(&png(&colour, 2, 1, ExtendedColorType::Rgb8)).unwrap()), [[10, 20, 30], [200, 210, 220]]);
        let transparent = [10, 20, 30, 0, 200, 210, 220, 128];
        let image = read(&png(&transparent, 2, 1, ExtendedColorType::Rgba8)).unwrap();
        assert_eq!(rgb(&image), [[10, 20, 30], [200, 210, 220]], "alpha is dropped");
        assert_eq!(rgb(&read(&png(&[7, 9], 2, 1, ExtendedColorType::L8)).unwrap()), [[7; 3], [9; 3]]);
        assert_eq!(rgb(&read(&png(&[7, 0, 9, 255], 2, 1, ExtendedColorType::La8)).unwrap()), [[7; 3], [9; 3]]);
        let deep: Vec<u8> = [0_u16, 65535, 257 * 99].iter().flat_map(|v| v.to_ne_bytes()).collect();
        assert_eq!(rgb(&read(&png(&deep, 1, 1, ExtendedColorType::Rgb16)).unwrap()), [[0, 255, 99]]);
        assert_eq!(rgb(&read(&png(&deep, 3, 1, ExtendedColorType::L16)).unwrap()), [[0; 3], [255; 3], [99; 3]]);
    }

    #[test]
    fn webp_without_loss() {
        let mut bytes = Vec::new();
        let pixels = [10, 20, 30, 200, 210, 220];
        WebPEncoder::new_lossless(&mut bytes).write_image(&pixels, 2, 1, ExtendedColorType::Rgb8).unwrap();
        assert_eq!(rgb(&read(&bytes).unwrap()), [[10, 20, 30], [200, 210, 220]]);
    }

    #[test]
    fn truncated_files_are_refused() {
        let noise: Vec<u8> = (0..64 * 64 * 3_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let png = png(&noise, 64, 64, ExtendedColorType::Rgb8);
        // The last bytes of a JPEG are its end marker, those of a PNG an empty chunk, that of a WebP may be
        // padding: no pixel is lost with them.
        for (bytes, idle) in
            [(COLOUR, 2), (PROGRESSIVE, 2), (GREY, 2), (CMYK, 2), (YCCK, 2), (LOSSY_WEBP, 1), (&png[..], 16)]
        {
            read(bytes).unwrap();
            for length in (0..bytes.len() - idle).step_by(1 + bytes.len() / 300) {
                let Err(message) = read(&bytes[..length]) else {
                    panic!("{length} of {} bytes {:?} were accepted", bytes.len(), &bytes[..4]);
                };
                assert!(message.contains("some/name"), "{message}");
            }
        }
    }

    #[test]
    fn other_content_is_refused() {
        for bytes in [&b""[..], b"hello", b"GIF89a\x01\0\x01\0", b"\x89PNG", b"RIFF\0\0\0\0WAVE"] {
            assert_eq!(read(bytes).unwrap_err(), "cannot decode some/name: not a JPEG, PNG or WebP image");
        }
    }

    #[test]
    fn huge_declared_sizes_are_refused_before_memory_is_taken() {
        let mut bomb = png(&[0; 3], 1, 1, ExtendedColorType::Rgb8);
        for (width, height) in [(30_000_u32, 30_000_u32), (40_000, 1), (u32::MAX >> 1, u32::MAX >> 1)] {
            bomb[16..20].copy_from_slice(&width.to_be_bytes());
            bomb[20..24].copy_from_slice(&height.to_be_bytes());
            let crc = crc32(&bomb[12..29]);
            bomb[29..33].copy_from_slice(&crc.to_be_bytes());
            let message = read(&bomb).unwrap_err();
            assert!(message.contains("some/name") && message.contains("limit"), "{message}");
        }

        let mut bomb = COLOUR.to_vec();
        let frame = bomb.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        bomb[frame + 5..frame + 9].fill(0xff);
        assert_eq!(
            read(&bomb).unwrap_err(),
            "some/name declares 65535×65535 pixels; the limit is 32768 a side and 64 million in all"
        );
    }

    /// PNG's checksum, which the bomb needs to get as far as its size.
    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
    }

    #[test]
    fn unreadable_files_are_named() {
        let dir = tempfile::TempDir::new().unwrap();
        let gone = dir.path().join("gone.png");
        assert!(decode_file(&gone).unwrap_err().to_string().contains("gone.png"));
        assert!(decode_file(dir.path()).unwrap_err().to_string().contains("cannot read"));
        let large = dir.path().join("large.png");
        fs::File::create(&large).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(decode_file(&large).unwrap_err().to_string().contains("over the limit"));
    }

    proptest! {
        #[test]
        fn png_round_trip(width in 1_u32..20, height in 1_u32..20, seed: u8) {
            let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect();
            let image = read(&png(&pixels, width, height, ExtendedColorType::Rgb8)).unwrap();
            prop_assert_eq!((image.width, image.height), (width, height));
            prop_assert_eq!(rgb(&image).concat(), pixels);
        }

        #[test]
        fn damage_never_panics(which in 0_usize..7, damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut bytes = [COLOUR, PROGRESSIVE, GREY, CMYK, YCCK, ROTATED, LOSSY_WEBP][which].to_vec();
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(image) = read(&bytes) {
                prop_assert_eq!(image.pixels.len(), image.width as usize * image.height as usize * 4);
            }
        }
    }
}
