//! Small data sets to try things on, written as PNG trees that [`super::ImageFolder`] reads.

use super::folder::choose_val;
use super::{DataError, threads};
use crate::files::FolderLock;
use crate::rng::Rng;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use rayon::prelude::*;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Which data set to write; ten classes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleSet {
    /// Drawn here: colour shapes and textures on plain grounds, with noise.
    Shapes,
    /// As [`Shapes`](Self::Shapes), under far more noise: of the same domain, and harder to tell apart.
    ShapesNoisy,
    /// Handwritten digits, bright on black: value v of 0..=16 is grey 255·v/16.
    Digits,
    /// The same digits, far from any usual domain: bright on almost as bright, grey 255·(0.80 + 0.12·v/16).
    DigitsFar,
}

impl SampleSet {
    pub const NAMES: [&str; 4] = ["shapes", "shapes-noisy", "digits", "digits-far"];
}

impl FromStr for SampleSet {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "shapes" => Ok(Self::Shapes),
            "shapes-noisy" => Ok(Self::ShapesNoisy),
            "digits" => Ok(Self::Digits),
            "digits-far" => Ok(Self::DigitsFar),
            _ => {
                let expected = "`shapes`, `shapes-noisy`, `digits` or `digits-far`";
                Err(DataError::Option { option: "sample data set", value: format!("`{name}`"), expected })
            }
        }
    }
}

/// How to write a data set; the same options give the same bytes.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Pixels a side, 8 to 1024. Digits are 8 pixels wide by nature, and enlarged bilinearly.
    pub size: u32,
    /// Images of each class of [`SampleSet::Shapes`] and [`SampleSet::ShapesNoisy`], 2 to 99,999. There are about 180 of each digit.
    pub per_class: usize,
    /// Decides what is drawn, and which fifth of each class goes to `val/`.
    pub seed: u64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { size: 16, per_class: 200, seed: 0 }
    }
}

/// How many images were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub train: usize,
    pub val: usize,
}

const VAL_FRACTION: f64 = 0.2;

/// Writes `dir/train/CLASS/NUMBER.png` and `dir/val/CLASS/NUMBER.png`, and `dir/ATTRIBUTION.txt` for the digits.
///
/// All is written to `DIR.partial` first, which becomes `dir` when it is complete. One that a killed process left is
/// removed.
///
/// # Errors
/// `dir` exists and is not an empty folder, `DIR.partial` exists and is somebody else's, an option is out of range, or the
/// disk refuses.
pub fn write_sample_data(set: SampleSet, dir: &Path, options: &SampleOptions) -> Result<Written, DataError> {
    let bad = |option, value: usize, expected| Err(DataError::Option { option, value: value.to_string(), expected });
    if !(8..=1024).contains(&options.size) {
        return bad("image size", options.size as usize, "8 to 1024 pixels");
    }
    if !(2..=99_999).contains(&options.per_class) {
        return bad("images per class", options.per_class, "2 to 99999");
    }
    let (partial, lock) = claim(dir)?;
    let written = write_tree(set, &partial, options).and_then(|written| {
        lock.release().map_err(DataError::write(&partial))?;
        // An empty folder may stand in the way; a full one was refused, and is not removed by this.
        let _ = fs::remove_dir(dir);
        fs::rename(&partial, dir).map_err(DataError::write(dir))?;
        Ok(written)
    });
    if written.is_err() {
        // Made by this call, so nobody else's; the first error is the one to report.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

/// Makes the folder to write to, beside `dir`, so that it can be renamed.
fn claim(dir: &Path) -> Result<(PathBuf, FolderLock), DataError> {
    let occupied = || DataError::Occupied { dir: dir.into() };
    let name = dir.file_name().ok_or_else(occupied)?;
    let may_be_used = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => fs::symlink_metadata(dir).is_err(),
    };
    if !may_be_used {
        return Err(occupied());
    }
    let mut partial_name = OsString::from(name);
    partial_name.push(".partial");
    let partial = dir.with_file_name(partial_name);
    if fs::symlink_metadata(&partial).is_ok() {
        if !FolderLock::was_here(&partial) {
            return Err(DataError::NotOurs { partial });
        }
        // Locked, so that it is not removed while another process works in it.
        let _lock = FolderLock::acquire(&partial)?;
        fs::remove_dir_all(&partial).map_err(DataError::write(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(DataError::write(&partial))?;
    let lock = FolderLock::acquire(&partial)?;
    Ok((partial, lock))
}

fn write_tree(set: SampleSet, dir: &Path, options: &SampleOptions) -> Result<Written, DataError> {
    match set {
        SampleSet::Shapes | SampleSet::ShapesNoisy => {
            let noise = if set == SampleSet::Shapes { (0.02, 0.10) } else { (0.12, 0.30) };
            let of_class =
                |label| (0..options.per_class).map(move |i| Rng::keyed(options.seed, &[label as u64, i as u64]));
            let classes = Shape::ALL.iter().enumerate();
            let classes = classes.map(|(label, shape)| (shape.name().to_string(), of_class(label).collect())).collect();
            let draw = |label: usize, rng: &Rng| draw_shape(Shape::ALL[label], options.size, noise, rng.clone());
            write_classes(dir, classes, options, ExtendedColorType::Rgb8, draw)
        }
        SampleSet::Digits | SampleSet::DigitsFar => {
            let attribution = dir.join("ATTRIBUTION.txt");
            fs::write(&attribution, ATTRIBUTION).map_err(DataError::write(&attribution))?;
            let of_digit = |digit| digits().filter(|&(_, label)| label == digit).map(|(pixels, _)| pixels).collect();
            let classes = (0..10).map(|digit| (digit.to_string(), of_digit(digit))).collect();
            let (dark, range) = if set == SampleSet::Digits { (0.0, 1.0) } else { (0.80, 0.12) };
            let draw = |_, pixels: &&[u8; 64]| draw_digit(pixels, options.size, |ink| dark + range * ink);
            write_classes(dir, classes, options, ExtendedColorType::L8, draw)
        }
    }
}

/// Writes what `draw` makes of each class's items.
fn write_classes<T: Sync>(
    dir: &Path,
    classes: Vec<(String, Vec<T>)>,
    options: &SampleOptions,
    color: ExtendedColorType,
    draw: impl Fn(usize, &T) -> Vec<u8> + Sync,
) -> Result<Written, DataError> {
    let mut written = Written { train: 0, val: 0 };
    for (label, (class, items)) in classes.iter().enumerate() {
        let is_val = choose_val(items.len(), VAL_FRACTION, options.seed, label);
        let folders = ["train", "val"].map(|split| dir.join(split).join(class));
        for folder in &folders {
            fs::create_dir_all(folder).map_err(DataError::write(folder))?;
        }
        let write = |(i, item)| {
            let path = folders[usize::from(is_val[i])].join(format!("{i:05}.png"));
            write_png(&path, &draw(label, item), options.size, color)
        };
        threads()?.install(|| items.par_iter().enumerate().try_for_each(write))?;
        let val = is_val.iter().filter(|&&is_val| is_val).count();
        written = Written { train: written.train + items.len() - val, val: written.val + val };
    }
    Ok(written)
}

fn write_png(path: &Path, pixels: &[u8], size: u32, color: ExtendedColorType) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    let encoded = PngEncoder::new(&mut bytes).write_image(pixels, size, size, color);
    encoded.expect("memory takes any image");
    fs::write(path, bytes).map_err(DataError::write(path))
}

/// 8×8 intensities of 0..=16 and the digit, 65 bytes each; `assets/README.md` tells more.
static DIGITS: &[u8] = include_bytes!("../../assets/digits.bin");

const ATTRIBUTION: &str = "\
Handwritten digits from \"Optical Recognition of Handwritten Digits\" by E. Alpaydin and C. Kaynak,
UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49,
licensed under CC BY 4.0, https://creativecommons.org/licenses/by/4.0/.
Changes: the 8x8 intensities of 0 to 16 were mapped to grey levels, enlarged, and saved as PNG.
";

/// Each digit's pixels, and which digit it is.
fn digits() -> impl Iterator<Item = (&'static [u8; 64], u8)> {
    let (records, _) = DIGITS.as_chunks::<65>();
    records.iter().map(|record| (record.first_chunk().expect("64 of 65 bytes"), record[64]))
}

/// Grey pixels: the digit enlarged bilinearly, with `shade` from ink in `0..=1` to brightness in `0..=1`.
fn draw_digit(pixels: &[u8; 64], size: u32, shade: impl Fn(f64) -> f64) -> Vec<u8> {
    // Pixel centres of both grids are aligned; beyond the outermost the edge continues.
    let position = |i: u32| ((f64::from(i) + 0.5) * 8.0 / f64::from(size) - 0.5).clamp(0.0, 7.0);
    let at = |y: usize, x: usize| f64::from(pixels[y.min(7) * 8 + x.min(7)]) / 16.0;
    let pixel = |i: u32| {
        let (y, x) = (position(i / size), position(i % size));
        let (top, left) = (y as usize, x as usize);
        let (dy, dx) = (y.fract(), x.fract());
        let row = |y| at(y, left) * (1.0 - dx) + at(y, left + 1) * dx;
        (255.0 * shade(row(top) * (1.0 - dy) + row(top + 1) * dy)).round() as u8
    };
    (0..size * size).map(pixel).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Checker,
    Cross,
    Disk,
    Dots,
    Gradient,
    HorizontalStripes,
    Ring,
    Square,
    Triangle,
    VerticalStripes,
}

impl Shape {
    /// In the order of their names.
    const ALL: [Self; 10] = [
        Self::Checker,
        Self::Cross,
        Self::Disk,
        Self::Dots,
        Self::Gradient,
        Self::HorizontalStripes,
        Self::Ring,
        Self::Square,
        Self::Triangle,
        Self::VerticalStripes,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Checker => "checker",
            Self::Cross => "cross",
            Self::Disk => "disk",
            Self::Dots => "dots",
            Self::Gradient => "gradient",
            Self::HorizontalStripes => "horizontal-stripes",
            Self::Ring => "ring",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::VerticalStripes => "vertical-stripes",
        }
    }
}

/// Where a shape lies in the unit square, y downwards, or how fine a texture is.
struct Pose {
    x: f64,
    y: f64,
    /// Half of a shape's extent.
    radius: f64,
    /// Repeats of a texture across the image, and where it starts.
    repeats: f64,
    phase: [f64; 2],
    /// Of unit length: where a gradient goes.
    direction: [f64; 2],
}

impl Pose {
    fn random(rng: &mut Rng) -> Self {
        let radius = rng.range(0.22, 0.42);
        let centre = |rng: &mut Rng| rng.range(radius, 1.0 - radius);
        let (x, y) = (centre(rng), centre(rng));
        let repeats = rng.range(2.0, 4.0);
        let phase = [rng.uniform(), rng.uniform()];
        // By rejection, not by sine: only operations that are exact everywhere, so that the files' bytes are too.
        let direction = loop {
            let [x, y] = [rng.range(-1.0, 1.0), rng.range(-1.0, 1.0)];
            let length = (x * x + y * y).sqrt();
            if (0.1..=1.0).contains(&length) {
                break [x / length, y / length];
            }
        };
        Self { x, y, radius, repeats, phase, direction }
    }

    /// How much of the foreground is at (x, y), from 0 to 1.
    fn foreground(&self, shape: Shape, x: f64, y: f64) -> f64 {
        let (dx, dy, r) = ((x - self.x) / self.radius, (y - self.y) / self.radius, 1.0);
        let distance = (dx * dx + dy * dy).sqrt();
        let repeat = |value: f64, phase: f64| (value * self.repeats + phase).fract();
        let (u, v) = (repeat(x, self.phase[0]), repeat(y, self.phase[1]));
        let inside = match shape {
            Shape::Disk => distance < r,
            Shape::Ring => (0.55..1.0).contains(&distance),
            Shape::Square => dx.abs().max(dy.abs()) < 0.85,
            Shape::Triangle => dy < 0.9 && dx.abs() < (dy + 1.0) * 0.55,
            Shape::Cross => dx.abs().min(dy.abs()) < 0.3 && dx.abs().max(dy.abs()) < r,
            Shape::HorizontalStripes => v < 0.5,
            Shape::VerticalStripes => u < 0.5,
            Shape::Checker => (u < 0.5) != (v < 0.5),
            Shape::Dots => (u - 0.5) * (u - 0.5) + (v - 0.5) * (v - 0.5) < 0.1,
            Shape::Gradient => {
                let along = (x - 0.5) * self.direction[0] + (y - 0.5) * self.direction[1];
                return (along + 0.5).clamp(0.0, 1.0);
            }
        };
        f64::from(u8::from(inside))
    }
}

/// Pixels `[size, size, 3]` of one random instance of a shape, under noise whose amplitude is from the least to the most.
fn draw_shape(shape: Shape, size: u32, (least, most): (f64, f64), mut rng: Rng) -> Vec<u8> {
    /// Points a pixel, in each direction, that edges are smoothed over.
    const POINTS: u32 = 4;
    let (front, back) = colours(&mut rng);
    let pose = Pose::random(&mut rng);
    let noise = rng.range(least, most);

    let mut pixels = Vec::with_capacity((size * size * 3) as usize);
    for i in 0..size * size {
        let coordinate = |pixel: u32, point: u32| (f64::from(pixel * POINTS + point) + 0.5) / f64::from(size * POINTS);
        let (mut share, points) = (0.0, POINTS * POINTS);
        for point in 0..points {
            let (x, y) = (coordinate(i % size, point % POINTS), coordinate(i / size, point / POINTS));
            share += pose.foreground(shape, x, y) / f64::from(points);
        }
        for channel in 0..3 {
            let clean = back[channel] + (front[channel] - back[channel]) * share;
            let value = clean + noise * rng.range(-1.0, 1.0);
            pixels.push((255.0 * value).round().clamp(0.0, 255.0) as u8);
        }
    }
    pixels
}

/// Two colours that can be told apart.
fn colours(rng: &mut Rng) -> ([f64; 3], [f64; 3]) {
    loop {
        let [front, back] = [(); 2].map(|()| [(); 3].map(|()| rng.uniform()));
        let difference: f64 = front.iter().zip(&back).map(|(a, b)| (a - b).abs()).sum();
        if difference > 0.9 {
            return (front, back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ImageFolder, decode};
    use tempfile::TempDir;

    fn write(set: SampleSet, options: &SampleOptions) -> (TempDir, PathBuf, Written) {
        let parent = TempDir::new().unwrap();
        let dir = parent.path().join("data");
        let written = write_sample_data(set, &dir, options).unwrap();
        (parent, dir, written)
    }

    /// Every file below `dir` with its bytes, sorted.
    fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = ImageFolder::open(dir, 0.0, 0).unwrap();
        let samples = folder.train.into_iter().chain(folder.val);
        samples.map(|s| (s.path.strip_prefix(dir).unwrap().into(), fs::read(&s.path).unwrap())).collect()
    }

    #[test]
    fn shapes_are_ten_classes_of_the_asked_size_and_count() {
        let options = SampleOptions { size: 24, per_class: 5, seed: 3 };
        let (_parent, dir, written) = write(SampleSet::Shapes, &options);
        assert_eq!(written, Written { train: 40, val: 10 });
        let folder = ImageFolder::open(&dir, 0.0, 0).unwrap();
        assert_eq!((folder.train.len(), folder.val.len()), (40, 10));
        assert_eq!(folder.classes, Shape::ALL.map(Shape::name));
        for sample in folder.train.iter().chain(&folder.val) {
            let image = decode::decode_file(&sample.path, &Default::default()).unwrap();
            assert_eq!((image.width, image.height), (24, 24));
        }
        assert!(!dir.with_file_name("data.partial").exists());
    }

    #[test]
    fn same_seed_same_bytes() {
        let options = SampleOptions { per_class: 3, ..SampleOptions::default() };
        let (_a, first, _) = write(SampleSet::Shapes, &options);
        let (_b, second, _) = write(SampleSet::Shapes, &options);
        let (_c, other, _) = write(SampleSet::Shapes, &SampleOptions { seed: 1, ..options });
        assert_eq!(contents(&first), contents(&second));
        assert_ne!(contents(&first), contents(&other));
    }

    #[test]
    fn shapes_keep_their_pixels() {
        // Guards the promise of equal bytes across versions and platforms: FNV-1a over one of each class.
        let pixels =
            Shape::ALL.iter().flat_map(|&shape| draw_shape(shape, 16, (0.02, 0.10), Rng::keyed(0, &[shape as u64])));
        let hash =
            pixels.fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        assert_eq!(hash, 16_541_559_544_199_084_378);
    }

    #[test]
    fn digits_are_complete_and_split_in_strata() {
        let (_parent, dir, written) = write(SampleSet::Digits, &SampleOptions::default());
        assert_eq!(written.train + written.val, 1797);
        let folder = ImageFolder::open(&dir, 0.0, 0).unwrap();
        let count = |samples: &[crate::data::Sample], digit| samples.iter().filter(|s| s.label == digit).count();
        let totals = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180];
        for digit in 0..10 {
            let (train, val) = (count(&folder.train, digit), count(&folder.val, digit));
            assert_eq!(train + val, totals[digit as usize]);
            assert!((34..=38).contains(&val), "{val} of digit {digit}");
        }
        assert!(fs::read_to_string(dir.join("ATTRIBUTION.txt")).unwrap().contains("CC BY 4.0"));
    }

    #[test]
    fn digits_have_their_grey_levels() {
        let (pixels, label) = digits().next().unwrap();
        assert_eq!((label, &pixels[..8]), (0, &[0, 0, 5, 13, 9, 1, 0, 0][..]));
        let plain = draw_digit(pixels, 8, |ink| ink);
        assert_eq!(plain[..8], [0, 0, 80, 207, 143, 16, 0, 0]);
        let far = draw_digit(pixels, 8, |ink| 0.80 + 0.12 * ink);
        assert_eq!(far[..5], [204, 204, 214, 229, 221]);
        // Twice the size, bilinear: a quarter of the way between neighbours.
        let mut step = [0; 64];
        step.chunks_mut(8).for_each(|row| row[4..].fill(16));
        assert_eq!(draw_digit(&step, 16, |ink| ink)[16 * 5 + 6..16 * 5 + 10], [0, 64, 191, 255]);
    }

    #[test]
    fn far_digits_are_bright() {
        let (_parent, dir, _) = write(SampleSet::DigitsFar, &SampleOptions::default());
        let folder = ImageFolder::open(&dir, 0.0, 0).unwrap();
        for sample in &folder.val {
            let image = decode::decode_file(&sample.path, &Default::default()).unwrap();
            assert!(image.pixels.as_chunks::<4>().0.iter().all(|p| (204..=235).contains(&p[0]) && p[0] == p[2]));
        }
    }

    #[test]
    fn refuses_what_is_there() {
        let parent = TempDir::new().unwrap();
        let dir = parent.path().join("data");
        let options = SampleOptions { per_class: 2, ..SampleOptions::default() };
        let write = |dir: &Path| write_sample_data(SampleSet::Shapes, dir, &options).map_err(|error| error.to_string());

        fs::create_dir(&dir).unwrap();
        write(&dir).unwrap();
        let before = contents(&dir);
        assert!(write(&dir).unwrap_err().contains("not an empty folder"));
        assert_eq!(contents(&dir), before);

        let file = parent.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(write(&file).unwrap_err().contains("not an empty folder"));
        assert!(write(&file.join("below")).unwrap_err().contains("cannot write"));
        assert!(write(&parent.path().join("..")).unwrap_err().contains("name a new one"));

        let partial = parent.path().join("new.partial");
        fs::create_dir(&partial).unwrap();
        assert!(write(&parent.path().join("new")).unwrap_err().contains("in the way"));
        assert!(partial.exists() && !parent.path().join("new").exists());
        // As a process that was killed leaves it.
        fs::write(partial.join(".thawline.lock"), "1").unwrap();
        fs::write(partial.join("half"), "").unwrap();
        write(&parent.path().join("new")).unwrap();
        let names = fs::read_dir(parent.path().join("new")).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.filter(|name| name != "train" && name != "val").count(), 0);
        assert!(!partial.exists());
    }

    #[test]
    fn bad_options_are_named() {
        let dir = TempDir::new().unwrap();
        for (options, word) in [
            (SampleOptions { size: 7, ..SampleOptions::default() }, "image size is 7"),
            (SampleOptions { size: 4096, ..SampleOptions::default() }, "image size is 4096"),
            (SampleOptions { per_class: 1, ..SampleOptions::default() }, "images per class is 1"),
        ] {
            let message = write_sample_data(SampleSet::Shapes, dir.path(), &options).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        assert!("shape".parse::<SampleSet>().unwrap_err().to_string().contains("`digits-far`"));
        for name in SampleSet::NAMES {
            name.parse::<SampleSet>().unwrap();
        }
    }
}
