//! How fast photographs are decoded: synthetic ones of the usual layouts, and the files in the folder `THAWLINE_IMAGES`. JPEGs
//! are also decoded by a peer.
//!
//!     cargo bench --bench decode

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use libjpeg_turbo_rs::{Encoder, PixelFormat, Subsampling};
use std::env;
use std::fs;
use std::path::Path;
use thawline::data::decode::decode;
use thawline::data::{DecodeOptions, list_images};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

criterion_group!(benches, decoding);
criterion_main!(benches);

struct Photograph {
    name: String,
    bytes: Vec<u8>,
}

/// Two megapixels of slopes, edges and noise, at the quality of a camera.
fn synthetic(name: &str, subsampling: Subsampling, progressive: bool) -> Photograph {
    const WIDTH: usize = 1920;
    const HEIGHT: usize = 1080;
    let pixel = |i: usize| {
        let (x, y) = (i % WIDTH, i / WIDTH);
        let noise = (i as u32).wrapping_mul(2_654_435_761) >> 28;
        let edge = if (x / 97 + y / 61) % 2 == 0 { 60 } else { 0 };
        [x * 150 / WIDTH + edge, y * 150 / HEIGHT + edge, 80 + edge].map(|value| value as u8 + noise as u8)
    };
    let pixels: Vec<u8> = (0..WIDTH * HEIGHT).flat_map(pixel).collect();
    let encoder = Encoder::new(&pixels, WIDTH, HEIGHT, PixelFormat::Rgb);
    let bytes = encoder.quality(90).subsampling(subsampling).progressive(progressive).encode();
    Photograph { name: name.into(), bytes: bytes.expect("a JPEG") }
}

fn photographs() -> Vec<Photograph> {
    let mut photographs = vec![
        synthetic("4:2:0", Subsampling::S420, false),
        synthetic("4:4:4", Subsampling::S444, false),
        synthetic("4:2:0 progressive", Subsampling::S420, true),
    ];
    if let Some(folder) = env::var_os("THAWLINE_IMAGES") {
        for path in list_images(Path::new(&folder)).expect("a folder of images") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            photographs.push(Photograph { name, bytes: fs::read(path).expect("an image") });
        }
    }
    photographs
}

fn decoding(criterion: &mut Criterion) {
    for Photograph { name, bytes } in photographs() {
        let read = || decode(&bytes, Path::new(&name), &DecodeOptions::default()).expect("an image");
        let pixels = u64::from(read().width) * u64::from(read().height);
        let mut group = criterion.benchmark_group(format!("decode/{name}"));
        // An element is a pixel.
        group.throughput(Throughput::Elements(pixels)).sample_size(20);
        group.bench_function("thawline", |bencher| bencher.iter(read));
        if bytes.starts_with(&[0xff, 0xd8]) {
            let options = DecoderOptions::new_fast().jpeg_set_out_colorspace(ColorSpace::RGBA);
            let read = || JpegDecoder::new_with_options(ZCursor::new(&bytes[..]), options).decode().expect("an image");
            group.bench_function("zune-jpeg", |bencher| bencher.iter(read));
        }
        group.finish();
    }
}
