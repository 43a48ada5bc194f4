//! Images of every layout against the pixels that Pillow gives (tests/golden/make_images.py), and what decoding hostile
//! ones takes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use thawline::data::decode::decode;
use thawline::data::{DecodeOptions, Exif, Image};

/// Levels out of 255 that decoders may differ by in the rounding of a conversion.
const TOLERANCE: u8 = 4;

fn files() -> BTreeMap<String, Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images.zip");
    let mut archive = zip::ZipArchive::new(File::open(path).expect("the goldens")).expect("a zip");
    let mut files = BTreeMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).expect("an entry");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("its content");
        files.insert(entry.name().expect("a name").into_owned(), content);
    }
    files
}

fn read(name: &str, bytes: &[u8], exif: Exif) -> Result<Image, String> {
    let options = DecodeOptions { exif, ..DecodeOptions::default() };
    decode(bytes, Path::new(name), &options).map_err(|error| error.to_string())
}

fn rgb(image: &Image) -> impl Iterator<Item = u8> {
    image.pixels.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, _]| [r, g, b])
}

/// What is wrong with `found`, given the file of the right pixels.
fn compare(found: &Image, reference: &[u8]) -> Option<String> {
    let right = image::load_from_memory(reference).expect("a PNG").into_rgb8();
    if (found.width, found.height) != right.dimensions() {
        return Some(format!("{}×{} pixels, expected {:?}", found.width, found.height, right.dimensions()));
    }
    let most = rgb(found).zip(right.as_raw()).map(|(a, &b)| a.abs_diff(b)).max().unwrap_or(0);
    (most > TOLERANCE).then(|| format!("up to {most} levels off"))
}

#[test]
fn every_layout_gives_pillows_pixels_or_an_error() {
    let files = files();
    let is_reference =
        |name: &str| name.strip_suffix(".png").is_some_and(|image| files.contains_key(image)) || name.ends_with(".txt");
    let (mut wrong, mut right, mut refused) = (Vec::new(), 0, 0);
    for (name, bytes) in files.iter().filter(|(name, _)| !is_reference(name)) {
        let reference = files.get(&format!("{name}.png"));
        match (read(name, bytes, Exif::Apply), reference) {
            (Ok(image), Some(reference)) => match compare(&image, reference) {
                Some(fault) => wrong.push(format!("{name}: {fault}")),
                None => right += 1,
            },
            // All are said in docs/images.md.
            (Err(error), Some(_))
                if error.contains("under 5 pixels wide")
                    || error.contains("TIFF with a palette")
                    || name.starts_with("damaged-") =>
            {
                refused += 1;
            }
            (Err(error), Some(_)) => wrong.push(error),
            (Ok(_), None) => wrong.push(format!("{name} is read, though Pillow refuses it")),
            (Err(error), None) if error.lines().count() != 1 || !error.contains(name) || error.contains("panicked") => {
                wrong.push(error);
            }
            (Err(_), None) => refused += 1,
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), wrong.len() + right + refused, wrong.join("\n"));
    assert!(right > 300 && refused > 5, "{right} images read, {refused} refused");
}

#[test]
fn exif_is_applied_or_ignored() {
    let files = files();
    for ending in ["jpg", "png", "webp", "tif"] {
        let as_stored: Vec<u8> =
            rgb(&read("1", &files[&format!("orientation-1.{ending}")], Exif::Apply).unwrap()).collect();
        for orientation in 2..=8 {
            let name = format!("orientation-{orientation}.{ending}");
            let turned = read(&name, &files[&name], Exif::Apply).unwrap();
            let stored = read(&name, &files[&name], Exif::Ignore).unwrap();
            assert_eq!(rgb(&stored).collect::<Vec<_>>(), as_stored, "{name}");
            assert_ne!(rgb(&turned).collect::<Vec<_>>(), as_stored, "{name}");
            assert_eq!((turned.width > turned.height), orientation < 5, "{name}");
        }
    }
}

#[test]
fn a_scan_that_ends_early_costs_its_last_blocks_only() {
    let name = "ycbcr-444-interleaved-restart0.jpg";
    let whole = files().remove(name).expect("the file");
    let intact = read(name, &whole, Exif::Apply).unwrap();
    let mut short = whole[..whole.len() - 4].to_vec();
    short.extend([0xff, 0xd9]);
    assert!(whole.ends_with(&[0xff, 0xd9]));
    let found = read(name, &short, Exif::Apply).unwrap();
    assert_eq!((found.width, found.height), (intact.width, intact.height));
    let differing = found.pixels.as_chunks::<4>().0.iter().zip(intact.pixels.as_chunks::<4>().0);
    let differing: Vec<usize> = differing.enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
    let width = found.width as usize;
    let last_blocks = (found.height as usize - 1) / 8 * 8 * width;
    assert!(differing.iter().all(|&i| i >= last_blocks), "pixels above the last row of blocks differ");

    // Without an end marker the rest of the file is missing, too.
    let error = read(name, &whole[..whole.len() - 4], Exif::Apply).unwrap_err();
    assert!(error.contains("truncated"), "{error}");
}
