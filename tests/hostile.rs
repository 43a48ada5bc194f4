//! Files that mean harm, and files that were damaged: an error, in bounded memory. The targets and the corpus are those
//! of the fuzzers; see fuzz/README.md.

use image::ImageFormat;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use targets::{TARGETS, Target};
use thawline::rng::Rng;

#[path = "../fuzz/targets.rs"]
mod targets;

/// What reading a file of so many bytes may take at most. A tensor may be a view that repeats its storage, so a small file
/// may honestly unfold to 64 MiB; the readers hold it twice meanwhile, as stored and as converted, and have budgets of
/// their own beside it.
struct Limits {
    /// Bytes in one allocation.
    largest: usize,
    /// Bytes at a time.
    held: usize,
    /// Bytes in all allocations together: a measure of the work, that does not depend on the machine.
    total: usize,
}

fn limits(file: usize) -> Limits {
    const MIB: usize = 1 << 20;
    let own = 64 * file;
    Limits { largest: 64 * MIB + own, held: 192 * MIB + own, total: 512 * MIB + 16 * own }
}

/// Counts what the current thread allocates.
struct Counting;

#[derive(Clone, Copy)]
struct Counts {
    held: isize,
    most_held: isize,
    largest: usize,
    total: usize,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { held: 0, most_held: 0, largest: 0, total: 0 }) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note(change: impl Fn(Counts) -> Counts) {
    // A thread that is ending has no counters any more, and nobody asks for them.
    let _ = COUNTS.try_with(|counts| counts.set(change(counts.get())));
}

fn allocated(size: usize) {
    note(|Counts { held, most_held, largest, total }| {
        let held = held + size as isize;
        Counts { held, most_held: most_held.max(held), largest: largest.max(size), total: total + size }
    });
}

// SAFETY: everything is passed on to the system's allocator as it is.
#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(|counts| Counts { held: counts.held - layout.size() as isize, ..counts });
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `work` allocated, and its result.
fn counted<T>(work: impl FnOnce() -> T) -> (Counts, T) {
    let before = COUNTS.get().held;
    COUNTS.set(Counts { held: before, most_held: before, largest: 0, total: 0 });
    let result = work();
    let counts = COUNTS.get();
    (Counts { most_held: counts.most_held - before, ..counts }, result)
}

/// What the target makes of the bytes, within limits; `name` says in a failure which bytes they are.
#[track_caller]
fn read(target: Target, bytes: &[u8], name: &dyn Fn() -> String) -> Result<(), String> {
    let (counts, result) = counted(|| catch_unwind(AssertUnwindSafe(|| target(bytes))));
    let Limits { largest, held, total } = limits(bytes.len());
    assert!(counts.largest <= largest, "{}: an allocation of {} bytes", name(), counts.largest);
    assert!(counts.most_held <= held as isize, "{}: {} bytes held at a time", name(), counts.most_held);
    assert!(counts.total <= total, "{}: {} bytes allocated in all", name(), counts.total);
    result.unwrap_or_else(|_| panic!("{}: the reader panicked", name()))
}

/// The names and contents of a target's corpus.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let file = |path: &Path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap());
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| file(&entry.unwrap().path())).collect();
    files.sort();
    assert!(files.len() > 15, "the corpus of {target} is gone");
    files
}

#[test]
fn memory_is_counted() {
    let (counts, ()) = counted(|| (0..2).for_each(|_| drop(Vec::<u8>::with_capacity(1 << 20))));
    assert_eq!((counts.largest, counts.most_held, counts.total), (1 << 20, 1 << 20, 2 << 20));
}

#[test]
fn hostile_files_are_errors_and_sound_ones_are_not() {
    let mut wrong = Vec::new();
    for &(name, target) in TARGETS {
        for (file, bytes) in corpus(name) {
            let path = format!("{name}/{file}");
            match (read(target, &bytes, &|| path.clone()), file.starts_with("good-")) {
                (Err(error), true) => wrong.push(format!("{path} is sound, but: {error}")),
                (Ok(()), false) => wrong.push(format!("{path} is taken for a sound file")),
                (Err(error), false) if error.lines().count() != 1 => wrong.push(format!("{path}: {error}")),
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Too large for the corpus.
#[test]
fn large_hostile_pickles_are_errors() {
    let filled = |start: &[u8], pieces: &[(u8, usize)]| {
        let pieces = pieces.iter().flat_map(|&(byte, count)| std::iter::repeat_n(byte, count));
        start.iter().copied().chain(pieces).chain(*b".").collect::<Vec<u8>>()
    };
    for (pickle, part) in [
        (filled(b"\x80\x02", &[(b'N', 2 << 20)]), "larger than any network"),
        (filled(b"\x80\x02", &[(b'N', 1_000_000)]), "holds no tensor"),
        (filled(b"\x80\x02", &[(b']', 100_000), (b'a', 99_999)]), "nesting"),
        (filled(b"\x80\x02)", &[(0x85, 1_000_000)]), "nesting"),
    ] {
        let error = read(targets::pickle, &pickle, &|| part.into()).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

/// A field of a protobuf message: a message, a text or bytes within it.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [varint(u64::from(number) << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn number(number: u8, value: u64) -> Vec<u8> {
    [varint(u64::from(number) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A thousand layers that share a tensor, and one that nobody uses and that claims 4 TiB of another file.
#[test]
fn claims_of_other_files_make_no_room() {
    const CHANNELS: u64 = 1 << 16;
    // ONNX's field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
    let node = |op: &str, inputs: &[&str], output: &str| {
        let inputs: Vec<u8> = inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
        field(1, &[inputs, field(2, output.as_bytes()), field(4, op.as_bytes())].concat())
    };
    let tensor = |name: &str, dims: &[u64]| {
        let dims: Vec<u8> = dims.iter().flat_map(|&size| number(1, size)).collect();
        [dims, number(2, 1), field(8, name.as_bytes())].concat()
    };
    let zeros = |name: &str, dims: &[u64]| {
        let bytes = vec![0; 4 * dims.iter().product::<u64>() as usize];
        field(5, &[tensor(name, dims), field(9, &bytes)].concat())
    };
    let value = |name: &str, dims: &[u64]| {
        let dims: Vec<u8> = dims.iter().flat_map(|&size| field(1, &number(1, size))).collect();
        [field(1, name.as_bytes()), field(2, &field(1, &[number(1, 1), field(2, &dims)].concat()))].concat()
    };
    let mut graph = node("Conv", &["x", "w"], "0");
    for layer in 0..1000 {
        let (input, output) = (layer.to_string(), (layer + 1).to_string());
        graph.extend(node("BatchNormalization", &[&input, "s", "s", "s", "s"], &output));
    }
    graph.extend([zeros("w", &[CHANNELS, 3, 1, 1]), zeros("s", &[CHANNELS])].concat());
    graph.extend(field(5, &[tensor("unused", &[1 << 40]), number(14, 1)].concat()));
    graph.extend([field(11, &value("x", &[1, 3, 1, 1])), field(12, &value("1000", &[1, CHANNELS]))].concat());
    let file = [number(1, 8), field(7, &graph), field(8, &number(2, 17))].concat();
    let error = read(targets::onnx, &file, &|| "shared".into()).unwrap_err();
    assert!(error.contains("layers share tensors until their weights take more than 8 times"), "{error}");
}

/// The bytes with a few changes of the kinds that lead readers astray: bytes overwritten, the end cut off, a piece
/// repeated, a number made huge.
fn changed(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len().max(1)).min(bytes.len());
        match rng.below(12) {
            0 => bytes.truncate(at),
            1 => {
                let piece: Vec<u8> = bytes[at..].iter().copied().take(1 + rng.below(40)).collect();
                bytes.splice(at..at, piece);
            }
            2 => bytes[at..].iter_mut().take(4).for_each(|byte| *byte = 0xff),
            kind => {
                let any = rng.next_u64() as u8;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = if kind < 7 { [0, 0xff, 0x80, 0x7f][kind - 3] } else { any };
                }
            }
        }
    }
    bytes
}

/// So many copies of each file in the corpus.
const COPIES: u64 = 100;

/// Feeds changed copies of a target's corpus; either answer will do.
#[track_caller]
fn survives_changes(name: &str) {
    let &(_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    for (index, (file, bytes)) in corpus(name).into_iter().enumerate() {
        for copy in 0..COPIES {
            let bytes = changed(&bytes, &mut Rng::keyed(0, &[index as u64, copy]));
            let _ = read(target, &bytes, &|| format!("copy {copy} of {name}/{file}"));
        }
    }
}

#[test]
fn changed_graphs_are_survived() {
    survives_changes("graph");
}

#[test]
fn changed_hdf5_is_survived() {
    survives_changes("hdf5");
}

#[test]
fn changed_images_are_survived() {
    survives_changes("image");
}

/// Too large for the corpus: a colour profile that no pixel needs.
#[test]
fn unused_metadata_is_not_unfolded() {
    use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    encoder.set_icc_profile(vec![0; 100 << 20]).unwrap();
    encoder.write_image(&[7; 48], 4, 4, ExtendedColorType::Rgb8).unwrap();
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    let (counts, result) = counted(|| targets::image(&bytes));
    result.unwrap();
    assert!(counts.most_held < 4 << 20, "{} bytes held at a time", counts.most_held);
}

/// Decoding takes memory by the pixels that the image has, whatever else the file claims.
#[test]
fn memory_follows_the_pixels() {
    use thawline::data::{DecodeOptions, decode::decode};
    let side = 1000;
    let photograph: Vec<u8> = (0..side * side * 3).map(|i: u32| (i % 251) as u8).collect();
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Gif] {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = image::RgbImage::from_raw(side, side, photograph.clone()).unwrap();
        image::DynamicImage::ImageRgb8(image).write_to(&mut bytes, format).unwrap();
        let bytes = bytes.into_inner();
        let (counts, result) = counted(|| decode(&bytes, Path::new("file"), &DecodeOptions::default()));
        result.unwrap();
        let most = 16 * (side * side) as usize + 2 * bytes.len() + (4 << 20);
        assert!(counts.most_held < most as isize, "{format:?}: {} bytes held, over {most}", counts.most_held);
    }
}

#[test]
fn changed_keras_archives_are_survived() {
    survives_changes("keras");
}

#[test]
fn changed_onnx_is_survived() {
    survives_changes("onnx");
}

#[test]
fn changed_pickles_are_survived() {
    survives_changes("pickle");
}

#[test]
fn changed_safetensors_are_survived() {
    survives_changes("safetensors");
}

#[test]
fn changed_tensorflow_js_models_are_survived() {
    survives_changes("tfjs");
}

#[test]
fn changed_zips_are_survived() {
    survives_changes("zip");
}
