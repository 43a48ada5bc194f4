//! Encoded bytes → pixels.

use super::DataError;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbaImage};
use libjpeg_turbo_rs::{ColorSpace, ComponentInfo, DecodeLimits, DecodeWarning, Decoder, PixelFormat};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The formats that are read, as messages name them.
pub const FORMATS: &str = "JPEG, PNG, WebP, BMP, TIFF or GIF";
/// The longest side that is decoded, in pixels: JPEG's.
pub const MAX_SIDE: u32 = 65_535;
/// The default of [`DecodeOptions::max_pixels`]: 200 megapixels.
pub const MAX_PIXELS: u64 = 200_000_000;
/// What a file may have beside its pixels.
const METADATA_BYTES: u64 = 1 << 28;
/// Bytes a pixel that an uncompressed file takes: four channels of 16 bits.
const FILE_BYTES_PER_PIXEL: u64 = 8;
/// More scans than any encoder writes; each costs a pass over all pixels.
const MAX_SCANS: usize = 256;
/// Memory of a decoder beside the pixels and a copy of the file.
const WORKING_BYTES: u64 = 1 << 25;

/// What the EXIF orientation of an image is taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exif {
    /// The image is turned upright, as viewers show it.
    #[default]
    Apply,
    /// The pixels stay as they are stored, which is what torchvision and Keras train on.
    Ignore,
}

/// How image files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DecodeOptions {
    pub exif: Exif,
    /// The most pixels that an image may declare. A file of a few kilobytes can declare billions, and decoding takes up to
    /// 16 bytes for each.
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { exif: Exif::Apply, max_pixels: MAX_PIXELS }
    }
}

impl DecodeOptions {
    /// The longest file that is read, in bytes.
    fn max_file_bytes(&self) -> u64 {
        METADATA_BYTES.saturating_add(self.max_pixels.saturating_mul(FILE_BYTES_PER_PIXEL))
    }
}

/// A decoded image.
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
/// As [`decode`], or a file that cannot be read or is longer than an image of so many pixels can be.
pub fn decode_file(path: &Path, options: &DecodeOptions) -> Result<Image, DataError> {
    let limit = options.max_file_bytes();
    let file = File::open(path).map_err(DataError::read(path))?;
    let length = file.metadata().map_err(DataError::read(path))?.len();
    let mut bytes = Vec::new();
    if length <= limit {
        // Its length may be untrue, as that of a pipe, or change meanwhile.
        bytes.reserve(length as usize);
        file.take(limit + 1).read_to_end(&mut bytes).map_err(DataError::read(path))?;
    }
    let length = length.max(bytes.len() as u64);
    if length > limit {
        let reason = format!("the file has {length} bytes, over the limit of {limit}; --max-pixels raises it");
        return Err(broken(path, reason));
    }
    decode(&bytes, path, options)
}

/// Decodes an image of one of the [`FORMATS`], told apart by content. Grey becomes equal red, green and blue, CMYK is
/// converted, 16 bits become 8, alpha is dropped (not composited: that is what torchvision's loader does), the first frame
/// of an animation is taken, and the EXIF orientation is applied if `options` say so. `path` is for messages only.
///
/// # Errors
/// Another format, a damaged or truncated file, or one that declares more pixels than `options` or [`MAX_SIDE`] allow.
pub fn decode(bytes: &[u8], path: &Path, options: &DecodeOptions) -> Result<Image, DataError> {
    // A decoder's bug must cost this image, not the run.
    let decoded = catch_unwind(AssertUnwindSafe(|| match format(bytes) {
        Some(ImageFormat::Jpeg) => decode_jpeg(bytes, path, options),
        Some(format) => decode_other(bytes, format, path, options),
        None => Err(broken(path, unknown(bytes))),
    }));
    decoded.unwrap_or_else(|_| Err(broken(path, "the decoder panicked".into())))
}

fn format(bytes: &[u8]) -> Option<ImageFormat> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some(ImageFormat::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(ImageFormat::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(ImageFormat::WebP),
        [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..] => Some(ImageFormat::Bmp),
        // The second of each is BigTIFF.
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(ImageFormat::Tiff),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(ImageFormat::Gif),
        _ => None,
    }
}

/// What is wrong with a file of none of the formats that are read.
fn unknown(bytes: &[u8]) -> String {
    let text = bytes.trim_ascii_start();
    let is_text = |start: &[u8]| text.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start));
    let brand = if bytes.get(4..8) == Some(b"ftyp") { bytes.get(8..12) } else { None };
    let found = match (bytes, brand) {
        ([], _) => return "the file is empty".into(),
        (_, Some(b"avif" | b"avis")) => "an AVIF image",
        (_, Some(b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1")) => "a HEIF image",
        ([0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..], _) => "a JPEG XL image",
        ([0, 0, 0, 12, b'j', b'P', ..] | [0xff, 0x4f, 0xff, 0x51, ..], _) => "a JPEG 2000 image",
        ([b'8', b'B', b'P', b'S', ..], _) => "a Photoshop file",
        ([0, 0, 1, 0, ..], _) => "an icon",
        ([b'P', b'1'..=b'7', b'\n' | b' ' | b'\r' | b'\t', ..], _) => "a Netpbm image",
        ([b'%', b'P', b'D', b'F', ..], _) => "a PDF document",
        _ if text.starts_with(b"version https://git-lfs") => {
            return "it is a Git LFS pointer, not the image: fetch that by `git lfs pull`".into();
        }
        _ if is_text(b"<!doctype html") || is_text(b"<html") => {
            return "it is a web page, not an image: a download that failed?".into();
        }
        _ if is_text(b"<svg") || is_text(b"<?xml") => "an SVG image or another XML file",
        _ => return format!("not a {FORMATS} image"),
    };
    format!("it is {found}, which is not read: convert it to PNG or JPEG")
}

fn decode_jpeg(bytes: &[u8], path: &Path, options: &DecodeOptions) -> Result<Image, DataError> {
    let refused = |reason: String| broken(path, reason);
    let scans = Scans::of(bytes);
    // A decoder takes a file that ends within its last rows, and fills in the rest with grey.
    if !scans.ended {
        return Err(refused("the file is truncated".into()));
    }
    let failed = |error: libjpeg_turbo_rs::JpegError| broken(path, error.to_string());
    let limits = DecodeLimits { max_scans: MAX_SCANS, max_pixels: u64::MAX, ..DecodeLimits::default() };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(failed)?;
    let header = decoder.header();
    let (width, height) = check_size(header.width.into(), header.height.into(), path, options)?;
    if header.precision != 8 || header.is_lossless {
        let kind = if header.is_lossless { "lossless coding" } else { "samples that have not 8 bits" };
        return Err(refused(format!("a JPEG with {kind}, which is not read: convert it to PNG")));
    }
    let components = header.components.clone();
    if !matches!(components.len(), 1 | 3 | 4) {
        return Err(refused(format!("a JPEG of {} components: expected 1, 3 or 4", components.len())));
    }
    let blocks = |c: &ComponentInfo| usize::from(c.horizontal_sampling) * usize::from(c.vertical_sampling);
    let unit: usize = components.iter().map(blocks).sum();
    if scans.first == components.len() && components.len() > 1 && unit > 10 {
        return Err(refused(format!("its minimum coded unit has {unit} blocks, and JPEG allows 10")));
    }
    let exif = decoder.exif_data().and_then(Orientation::from_exif_chunk);
    let space = decoder.jpeg_color_space();
    let pixels = if scans.partly_interleaved || is_sampled_oddly(&components) {
        decode_rare_jpeg(bytes, space, &components, path)?
    } else {
        let inks = components.len() == 4;
        decoder.set_output_format(if inks { PixelFormat::Cmyk } else { PixelFormat::Rgba });
        // Otherwise a scan whose bits end early, as one with a changed byte may, would be an error.
        decoder.set_lenient(true);
        let decoded = decoder.decode_image().map_err(failed)?;
        for warning in &decoded.warnings {
            match warning {
                // Stray bytes between headers cost no pixel.
                DecodeWarning::ExtraneousData { .. } => {}
                // The end marker is there. As in libjpeg, the blocks that are missing are grey.
                DecodeWarning::TruncatedData { .. } => log::warn!("{}: damaged: {warning}", path.display()),
                // Behind a code that does not exist, libjpeg would go on otherwise.
                damage => return Err(refused(damage.to_string())),
            }
        }
        let mut pixels = decoded.data;
        if inks {
            pixels.as_chunks_mut().0.iter_mut().for_each(|pixel| *pixel = rgbx_from_inks(*pixel));
        }
        pixels
    };
    if pixels.len() != width as usize * height as usize * 4 {
        return Err(refused("fewer pixels than declared".into()));
    }
    upright(Image { width, height, pixels }, exif, path, options)
}

/// What of a JPEG's scans decides who decodes it.
struct Scans {
    /// The end marker follows the first scan. Marker bytes do not occur within a scan, but may before it, in an embedded
    /// preview.
    ended: bool,
    /// Components in the first scan.
    first: usize,
    /// Some scan of a sequential image holds several components, but not all.
    partly_interleaved: bool,
}

impl Scans {
    fn of(bytes: &[u8]) -> Self {
        let mut scans = Self { ended: false, first: 0, partly_interleaved: false };
        let (mut rest, mut components, mut sequential) = (&bytes[2..], 0, false);
        loop {
            match *rest {
                [0xff, 0xda, _, _, count, ref scan @ ..] => {
                    let count = usize::from(count);
                    if scans.first == 0 {
                        scans.first = count;
                        scans.ended = scan.windows(2).rev().any(|marker| marker == [0xff, 0xd9]);
                        if !sequential || count == components {
                            return scans;
                        }
                    }
                    scans.partly_interleaved |= count > 1 && count < components;
                    rest = scan;
                }
                [0xff, 0xd9, ..] if scans.first > 0 => return scans,
                [0xff, marker @ 0xc0..=0xcf, high, low, ref frame @ ..] if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                    sequential = matches!(marker, 0xc0 | 0xc1);
                    components = frame.get(5).map_or(0, |&count| usize::from(count));
                    rest = skip(rest, high, low);
                }
                // Fill, a stuffed zero, or a restart within a scan.
                [0xff, 0xff, ..] => rest = &rest[1..],
                [0xff, 0 | 0x01 | 0xd0..=0xd9, ..] => rest = &rest[2..],
                [0xff, _, high, low, ..] => rest = skip(rest, high, low),
                // Coded data, or stray bytes before a marker.
                [_, ref tail @ ..] => {
                    let next = tail.iter().position(|&byte| byte == 0xff).unwrap_or(tail.len());
                    rest = &tail[next..];
                }
                [] => return scans,
            }
        }
    }
}

/// What follows a segment of this length.
fn skip(segment: &[u8], high: u8, low: u8) -> &[u8] {
    segment.get(2 + usize::from(u16::from_be_bytes([high, low]))..).unwrap_or_default()
}

/// Sampling that libjpeg-turbo-rs 0.9.0 refuses, or upsamples otherwise than libjpeg: components finer than the first, and
/// inks of different sampling.
fn is_sampled_oddly(components: &[ComponentInfo]) -> bool {
    let factors = |c: &ComponentInfo| (c.horizontal_sampling, c.vertical_sampling);
    let Some(first) = components.first().map(factors) else { return false };
    let finer = components.iter().map(factors).any(|(h, v)| h > first.0 || v > first.1);
    finer || components.len() == 4 && components.iter().any(|c| factors(c) != first)
}

/// A layout of few files, by a slower decoder: RGBX, whatever the `space`.
fn decode_rare_jpeg(
    bytes: &[u8],
    space: ColorSpace,
    components: &[ComponentInfo],
    path: &Path,
) -> Result<Vec<u8>, DataError> {
    use jpeg_decoder::ColorTransform;
    let failed = |error: jpeg_decoder::Error| broken(path, error.to_string());
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.read_info().map_err(failed)?;
    let narrow = decoder.info().is_some_and(|info| info.width <= 4);
    if narrow && components.iter().any(|c| c.horizontal_sampling != components[0].horizontal_sampling) {
        // It interpolates between two columns, where libjpeg takes the nearer.
        let reason = "a JPEG of a rare layout and under 5 pixels wide, which is not read: convert it to PNG";
        return Err(broken(path, reason.into()));
    }
    // Neither converts: RGB takes the components as they are, and CMYK inverts them.
    decoder.set_color_transform(if components.len() == 4 { ColorTransform::CMYK } else { ColorTransform::RGB });
    let samples = decoder.decode().map_err(failed)?;
    let pixels = match (components.len(), space) {
        (3, ColorSpace::Rgb) => samples.as_chunks::<3>().0.iter().map(|&[r, g, b]| [r, g, b, 255]).collect(),
        (3, _) => samples.as_chunks::<3>().0.iter().map(|&samples| rgbx_from_ycbcr(samples)).collect(),
        (4, _) => {
            let inks = samples.as_chunks::<4>().0.iter().map(|samples| samples.map(|ink| 255 - ink));
            let converted = inks.map(|[a, b, c, black]| match space {
                ColorSpace::Ycck => {
                    let [red, green, blue, _] = rgbx_from_ycbcr([a, b, c]);
                    [255 - red, 255 - green, 255 - blue, black]
                }
                _ => [a, b, c, black],
            });
            converted.map(rgbx_from_inks).collect()
        }
        _ => Vec::new(),
    };
    Ok(pixels.into_flattened())
}

fn rgbx_from_ycbcr([luma, blue, red]: [u8; 3]) -> [u8; 4] {
    let (luma, blue, red) = (f32::from(luma), f32::from(blue) - 128.0, f32::from(red) - 128.0);
    let [r, g, b] = [luma + 1.402 * red, luma - 0.344_136 * blue - 0.714_136 * red, luma + 1.772 * blue]
        .map(|value| value.round() as u8);
    [r, g, b, 255]
}

/// From cyan, magenta, yellow and black, stored inverted (255 is no ink) as all of Adobe's software does.
fn rgbx_from_inks([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 4] {
    let [red, green, blue] = [cyan, magenta, yellow].map(|ink| ((u32::from(ink) * u32::from(black) + 127) / 255) as u8);
    [red, green, blue, 255]
}

fn decode_other(bytes: &[u8], format: ImageFormat, path: &Path, options: &DecodeOptions) -> Result<Image, DataError> {
    let failed = |error: image::ImageError| match error.to_string() {
        reason if reason.contains("RGBPalette") => {
            broken(path, "a TIFF with a palette, which is not read: convert it to PNG".into())
        }
        reason => broken(path, reason),
    };
    let (bytes, exif) = match format {
        ImageFormat::Png => without_metadata(bytes),
        ImageFormat::WebP => (bytes.into(), check_webp(bytes).map_err(|reason| broken(path, reason))?),
        ImageFormat::Tiff => {
            check_tiff(bytes).map_err(|reason| broken(path, reason))?;
            (bytes.into(), None)
        }
        _ => (bytes.into(), None),
    };
    let exif = exif.and_then(Orientation::from_exif_chunk);
    let limits = |pixels: u64| {
        let mut limits = Limits::default();
        limits.max_alloc = Some(WORKING_BYTES + 2 * bytes.len() as u64 + pixels);
        limits
    };
    let mut reader = ImageReader::with_format(Cursor::new(&bytes), format);
    reader.limits(limits(0));
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = check_size(width.into(), height.into(), path, options)?;
    if matches!(decoder.color_type(), ColorType::Rgb32F | ColorType::Rgba32F) {
        return Err(broken(
            path,
            "floating-point pixels, which have no agreed range: convert it to 8 or 16 bits".into(),
        ));
    }
    decoder.set_limits(limits(decoder.total_bytes())).map_err(failed)?;
    // A TIFF's is a tag of its own. One that cannot be read is no reason to refuse pixels that can.
    let exif = if format == ImageFormat::Tiff { decoder.orientation().ok() } else { exif };
    let pixels = DynamicImage::from_decoder(decoder).map_err(failed)?.into_rgba8().into_raw();
    upright(Image { width, height, pixels }, exif, path, options)
}

/// A PNG without the chunks that unfold to any size and that no pixel depends on, and its EXIF.
fn without_metadata(bytes: &[u8]) -> (Cow<'_, [u8]>, Option<&[u8]>) {
    const DROPPED: [&[u8; 4]; 4] = [b"iCCP", b"iTXt", b"tEXt", b"zTXt"];
    let (mut kept, mut exif) = (Cow::Borrowed(bytes), None);
    let mut at = 8;
    // Whatever is no whole chunk is left to the decoder.
    while let Some(header) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(chunk) = bytes.get(at..at.saturating_add(length).saturating_add(12)) else { break };
        let name = &header[4..];
        let drops = DROPPED.iter().any(|dropped| name == *dropped);
        if drops && let Cow::Borrowed(_) = kept {
            kept = Cow::Owned(bytes[..at].to_vec());
        } else if !drops && let Cow::Owned(kept) = &mut kept {
            kept.extend_from_slice(chunk);
        }
        if name == b"eXIf" && exif.is_none() {
            exif = Some(&chunk[8..8 + length]);
        }
        at += chunk.len();
    }
    if let Cow::Owned(kept) = &mut kept {
        kept.extend_from_slice(&bytes[at.min(bytes.len())..]);
    }
    (kept, exif)
}

/// The EXIF of a WebP whose chunks, and those in its frames, all lie within the file: its decoder believes the lengths.
fn check_webp(bytes: &[u8]) -> Result<Option<&[u8]>, String> {
    let truncated = || "the file is truncated".to_owned();
    let length = |at: usize| {
        let length = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize)
    };
    // The last byte may be mere padding.
    let end = length(4).and_then(|length| length.checked_add(8)).filter(|&end| end <= bytes.len() + 1);
    let end = end.ok_or_else(truncated)?.min(bytes.len());
    let mut exif = None;
    let mut pending = vec![(12, end)];
    while let Some((mut at, end)) = pending.pop() {
        while at + 8 <= end {
            let name = &bytes[at..at + 4];
            let start = at + 8;
            let stop = length(at + 4).and_then(|length| start.checked_add(length));
            let stop = stop.filter(|&stop| stop <= end);
            let stop = stop.ok_or_else(|| format!("a chunk `{}` is longer than the file", name.escape_ascii()))?;
            match name {
                b"EXIF" if exif.is_none() => exif = Some(&bytes[start..stop]),
                // 16 bytes of its own, then chunks.
                b"ANMF" => pending.push((start + 16, stop)),
                _ => {}
            }
            // Padded to an even length.
            at = stop + stop % 2;
        }
    }
    // Some programs write what precedes EXIF in a JPEG.
    Ok(exif.map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif)))
}

/// That the values of a TIFF's tags lie within the file: its decoder makes room for as many as are declared.
fn check_tiff(bytes: &[u8]) -> Result<(), String> {
    let little = bytes[0] == b'I';
    let is_big = bytes[2..4].contains(&43);
    // Bytes of an offset, of the number of entries, and of an entry.
    let (word, counter, entry) = if is_big { (8, 8, 20) } else { (4, 2, 12) };
    let number = |at: usize, size: usize| {
        let digits = bytes.get(at..at.checked_add(size)?)?;
        let join = |value: u64, &digit: &u8| value << 8 | u64::from(digit);
        Some(if little { digits.iter().rev().fold(0, join) } else { digits.iter().fold(0, join) })
    };
    let truncated = || "the file is truncated".to_owned();
    let directory = usize::try_from(number(word, word).ok_or_else(truncated)?).map_err(|_| truncated())?;
    let entries = number(directory, counter).ok_or_else(truncated)?;
    let mut at = directory + counter;
    for _ in 0..entries {
        let (kind, count) = (number(at + 2, 2), number(at + 4, word).ok_or_else(truncated)?);
        let size: u64 = match kind {
            Some(1 | 2 | 6 | 7) => 1,
            Some(3 | 8) => 2,
            Some(4 | 9 | 11 | 13) => 4,
            Some(5 | 10 | 12 | 16..=18) => 8,
            // Passed over by the decoder.
            _ => 0,
        };
        let length = count.saturating_mul(size);
        let start = number(at + 4 + word, word).ok_or_else(truncated)?;
        if length > word as u64 && start.saturating_add(length) > bytes.len() as u64 {
            let tag = number(at, 2).unwrap_or_default();
            return Err(format!("the values of its tag {tag} are not within the file"));
        }
        at += entry;
    }
    Ok(())
}

fn check_size(width: u64, height: u64, path: &Path, options: &DecodeOptions) -> Result<(u32, u32), DataError> {
    if width == 0 || height == 0 {
        return Err(broken(path, format!("it declares {width}×{height} pixels")));
    }
    if width.max(height) > MAX_SIDE.into() || width.saturating_mul(height) > options.max_pixels {
        return Err(DataError::TooLarge { path: path.into(), width, height, max_pixels: options.max_pixels });
    }
    Ok((width as u32, height as u32))
}

fn upright(image: Image, exif: Option<Orientation>, path: &Path, options: &DecodeOptions) -> Result<Image, DataError> {
    let Some(orientation) = exif.filter(|exif| *exif != Orientation::NoTransforms && options.exif == Exif::Apply)
    else {
        return Ok(image);
    };
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
        decode(bytes, Path::new("some/name"), &DecodeOptions::default()).map_err(|error| error.to_string())
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
    fn other_content_is_refused_by_its_name() {
        for (bytes, reason) in [
            (&b""[..], "the file is empty"),
            (b"hello", "not a JPEG, PNG, WebP, BMP, TIFF or GIF image"),
            (b"\x89PNG", "not a JPEG, PNG, WebP, BMP, TIFF or GIF image"),
            (b"RIFF\0\0\0\0WAVE", "not a JPEG, PNG, WebP, BMP, TIFF or GIF image"),
            (b"\0\0\0\x1cftypavif\0\0\0\0", "it is an AVIF image, which is not read: convert it to PNG or JPEG"),
            (b"\n <!DOCTYPE HTML>", "it is a web page, not an image: a download that failed?"),
        ] {
            assert_eq!(read(bytes).unwrap_err(), format!("cannot decode some/name: {reason}"));
        }
    }

    #[test]
    fn huge_declared_sizes_are_refused_before_memory_is_taken() {
        let mut bomb = png(&[0; 3], 1, 1, ExtendedColorType::Rgb8);
        for (width, height) in [(30_000_u32, 30_000_u32), (70_000, 1), (u32::MAX >> 1, u32::MAX >> 1)] {
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
            "some/name declares 65535×65535 pixels; the limit is 65535 a side and 200 megapixels in all, which --max-pixels \
             raises"
        );
    }

    /// PNG's checksum, which the bomb needs to get as far as its size.
    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
    }

    #[test]
    fn the_limit_is_an_option() {
        let png = png(&[7; 30], 5, 2, ExtendedColorType::Rgb8);
        let read =
            |max_pixels| decode(&png, Path::new("name"), &DecodeOptions { max_pixels, ..DecodeOptions::default() });
        assert_eq!(read(10).unwrap().width, 5);
        let message = read(9).unwrap_err().to_string();
        assert!(message.contains("5×2") && message.contains("--max-pixels"), "{message}");
    }

    #[test]
    fn unreadable_files_are_named() {
        let dir = tempfile::TempDir::new().unwrap();
        let error = |path: &Path| decode_file(path, &DecodeOptions::default()).unwrap_err().to_string();
        let gone = dir.path().join("gone.png");
        assert!(error(&gone).contains("gone.png"));
        assert!(error(dir.path()).contains("cannot read"));
        let large = dir.path().join("large.png");
        File::create(&large).unwrap().set_len(DecodeOptions::default().max_file_bytes() + 1).unwrap();
        assert!(error(&large).contains("--max-pixels"));
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
