//! Which images there are, and what class each belongs to.

use super::DataError;
use crate::rng::Rng;
use crate::text::printable;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// An image file and the class that its folder stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub path: PathBuf,
    /// Index into [`ImageFolder::classes`].
    pub label: u32,
}

/// A tree of images with one folder a class, in two splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFolder {
    /// Class names in the order of their labels: sorted by bytes.
    pub classes: Vec<String>,
    /// Sorted by label, then path.
    pub train: Vec<Sample>,
    /// Sorted by label, then path.
    pub val: Vec<Sample>,
}

/// The extensions of images, in lower case. What a file is its content says.
const EXTENSIONS: [&str; 11] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "gif"];

/// Files and folders among the images that are not read, counted by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    kinds: BTreeMap<String, usize>,
    first: Option<PathBuf>,
}

impl Unread {
    fn add(&mut self, kind: impl Into<String>, path: &Path) {
        *self.kinds.entry(kind.into()).or_default() += 1;
        self.first.get_or_insert_with(|| path.into());
    }

    fn merge(&mut self, other: Self) {
        for (kind, count) in other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        self.first = self.first.take().or(other.first);
    }

    fn add_file(&mut self, path: &Path) {
        let kind = match path.extension() {
            Some(extension) => format!(".{}", printable(&extension.to_string_lossy().to_lowercase())),
            None => "without an extension".into(),
        };
        self.add(kind, path);
    }

    /// What to tell the user of it, the commonest kind first; nothing if all is read.
    fn describe(&self) -> Option<String> {
        const MOST: usize = 8;
        let first = self.first.as_ref()?;
        let mut kinds: Vec<_> = self.kinds.iter().collect();
        kinds.sort_by_key(|&(_, count)| std::cmp::Reverse(*count));
        let mut words: Vec<_> = kinds.iter().take(MOST).map(|(kind, count)| format!("{count} {kind}")).collect();
        let others: usize = kinds.iter().skip(MOST).map(|&(_, count)| count).sum();
        if others > 0 {
            words.push(format!("{others} of other kinds"));
        }
        Some(format!("{} (the first is {})", words.join(", "), printable(&first.to_string_lossy())))
    }

    fn warn(&self, dir: &Path) {
        if let Some(found) = self.describe() {
            log::warn!("{}: not read: {found}", dir.display());
        }
    }
}

impl fmt::Display for Unread {
    /// To follow what is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe().map_or(Ok(()), |found| write!(f, ", but {found}"))
    }
}

/// Names that people give to splits. A tree with only these has no classes at its top, whatever it looks like.
const SPLIT_NAMES: [&str; 9] = ["train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"];

impl ImageFolder {
    /// Finds the images below `dir`, by extension (that of JPEG, PNG, WebP, BMP, TIFF or GIF, in any case); no image is
    /// opened.
    ///
    /// With `train/` and `val/` in `dir`, these are the splits, the classes are those of `train/`, and `val_fraction`
    /// and `seed` are not used. Otherwise `dir` holds the class folders, and `val_fraction` of each class, at least one
    /// image of it and never all, is set aside by `seed`; a fraction of 0 leaves `val` empty. Class folders are
    /// searched to any depth, and symbolic links are followed once. Hidden files and folders, files of other kinds, and
    /// images outside the class folders are not read; a warning counts them.
    ///
    /// # Errors
    /// A folder that is missing, unreadable, empty or without class folders; a single class; a class without images; a
    /// class in `val/` that `train/` lacks; a `val/` without images; `val_fraction` outside `[0, 1)`.
    pub fn open(dir: &Path, val_fraction: f64, seed: u64) -> Result<Self, DataError> {
        Self::find(dir, val_fraction, seed, Purpose::Training)
    }

    /// As [`open`](Self::open), for images that nothing learns from: one class is enough, and a class folder without images
    /// is a class without images, of which a warning tells.
    ///
    /// # Errors
    /// As [`open`](Self::open); there are no images at all.
    pub fn open_for_inference(dir: &Path, val_fraction: f64, seed: u64) -> Result<Self, DataError> {
        Self::find(dir, val_fraction, seed, Purpose::Inference)
    }

    fn find(dir: &Path, val_fraction: f64, seed: u64, purpose: Purpose) -> Result<Self, DataError> {
        let mut unread = Unread::default();
        let folders = subfolders(dir, &mut unread)?;
        let is_there = |split| folders.iter().any(|name| name == split);
        if is_there("train") && is_there("val") {
            Self::open_splits(dir, purpose)
        } else {
            Self::open_and_split(dir, folders, unread, val_fraction, seed, purpose)
        }
    }

    /// Training images of each class, by label.
    pub fn train_counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.classes.len()];
        for sample in &self.train {
            counts[sample.label as usize] += 1;
        }
        counts
    }

    /// Keeps `count` of the training images, chosen by `seed`, evenly over the classes: where a class has too few, the
    /// others fill up.
    ///
    /// # Errors
    /// There are fewer images, or more classes than `count`.
    pub fn keep_train(&mut self, count: usize, seed: u64) -> Result<(), DataError> {
        const KEEP_STREAM: u64 = 0x6b65_6570;
        if count < self.classes.len() || count > self.train.len() {
            let expected = "from one a class up to as many as there are";
            return Err(DataError::Option { option: "number of training images", value: count.to_string(), expected });
        }
        let mut classes: Vec<Vec<Sample>> = vec![Vec::new(); self.classes.len()];
        for sample in self.train.drain(..) {
            classes[sample.label as usize].push(sample);
        }
        for (label, samples) in classes.iter_mut().enumerate() {
            Rng::keyed(seed, &[KEEP_STREAM, label as u64]).shuffle(samples);
        }
        let most = classes.iter().map(Vec::len).max().unwrap_or(0);
        let in_turn = (0..most).flat_map(|i| classes.iter().filter_map(move |samples| samples.get(i)));
        self.train = in_turn.take(count).cloned().collect();
        self.train.sort_by(|a, b| (a.label, &a.path).cmp(&(b.label, &b.path)));
        Ok(())
    }

    /// The training images alone, split anew: `fraction` of each class, at least one image of it and never all, is set aside
    /// by `seed` as the validation images of a search that must not look at the real ones.
    pub fn hold_out(&self, fraction: f64, seed: u64) -> Self {
        let (mut train, mut val) = (Vec::new(), Vec::new());
        for samples in self.train.chunk_by(|a, b| a.label == b.label) {
            let is_val = choose_val(samples.len(), fraction, seed, samples[0].label as usize);
            for (sample, is_val) in samples.iter().cloned().zip(is_val) {
                if is_val { val.push(sample) } else { train.push(sample) }
            }
        }
        Self { classes: self.classes.clone(), train, val }
    }

    fn open_splits(dir: &Path, purpose: Purpose) -> Result<Self, DataError> {
        let (train_dir, val_dir) = (dir.join("train"), dir.join("val"));
        let mut unread = Unread::default();
        let classes = check_classes(&train_dir, subfolders(&train_dir, &mut unread)?, purpose)?;
        let train = class_images(&train_dir, &classes, purpose, &mut unread)?.into_iter().flatten().collect();

        let mut val = Vec::new();
        for class in subfolders(&val_dir, &mut unread)? {
            let Ok(label) = classes.binary_search(&class) else {
                return Err(DataError::UnknownClass { dir: val_dir, class });
            };
            val.extend(labelled(images_below(&val_dir.join(class), &mut unread)?, label));
        }
        if val.is_empty() {
            return Err(DataError::NoImages { dir: val_dir, unread });
        }
        unread.warn(dir);
        Ok(Self { classes, train, val })
    }

    fn open_and_split(
        dir: &Path,
        folders: Vec<String>,
        mut unread: Unread,
        val_fraction: f64,
        seed: u64,
        purpose: Purpose,
    ) -> Result<Self, DataError> {
        if !(0.0..1.0).contains(&val_fraction) {
            let expected = "a fraction from 0 up to, but not including, 1";
            return Err(DataError::Option { option: "val fraction", value: val_fraction.to_string(), expected });
        }
        let is_split = |name: &String| SPLIT_NAMES.contains(&name.to_lowercase().as_str());
        if !folders.is_empty() && folders.iter().all(is_split) {
            return Err(DataError::SplitsNotClasses { dir: dir.into(), found: folders.join("/, ") + "/" });
        }
        let classes = check_classes(dir, folders, purpose)?;
        let (mut train, mut val) = (Vec::new(), Vec::new());
        for (label, samples) in class_images(dir, &classes, purpose, &mut unread)?.into_iter().enumerate() {
            if samples.len() == 1 && val_fraction > 0.0 {
                log::warn!("class `{}` has one image: it is trained on, and not validated", classes[label]);
            }
            let is_val = choose_val(samples.len(), val_fraction, seed, label);
            for (sample, is_val) in samples.into_iter().zip(is_val) {
                if is_val { val.push(sample) } else { train.push(sample) }
            }
        }
        if train.is_empty() && val.is_empty() {
            return Err(DataError::NoImages { dir: dir.into(), unread });
        }
        unread.warn(dir);
        Ok(Self { classes, train, val })
    }
}

/// The images at `path`, sorted: the file itself, or all images below a folder, found as [`ImageFolder::open`] does but
/// without classes.
///
/// # Errors
/// A path that is missing or unreadable, or a folder without images.
pub fn list_images(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    if fs::metadata(path).map_err(DataError::read(path))?.is_file() {
        return Ok(vec![path.into()]);
    }
    let mut unread = Unread::default();
    let images = images_below(path, &mut unread)?;
    if images.is_empty() {
        return Err(DataError::NoImages { dir: path.into(), unread });
    }
    unread.warn(path);
    Ok(images)
}

/// The samples in an order that follows from `seed`, so that batches in [`Mode::Eval`](super::Mode::Eval) mix the
/// classes.
pub fn shuffled(mut samples: Vec<Sample>, seed: u64) -> Vec<Sample> {
    const SHUFFLE_STREAM: u64 = 0x7368_7566;
    Rng::keyed(seed, &[SHUFFLE_STREAM]).shuffle(&mut samples);
    samples
}

/// Which of `count` samples of a class are for validation: `fraction` of them, rounded, but at least one and not all.
pub(super) fn choose_val(count: usize, fraction: f64, seed: u64, label: usize) -> Vec<bool> {
    const SPLIT_STREAM: u64 = 0x7370_6c69;
    let most = count.saturating_sub(1);
    let least = usize::from(fraction > 0.0).min(most);
    let chosen = ((count as f64 * fraction).round() as usize).clamp(least, most);
    let mut is_val: Vec<bool> = (0..count).map(|i| i < chosen).collect();
    Rng::keyed(seed, &[SPLIT_STREAM, label as u64]).shuffle(&mut is_val);
    is_val
}

/// What the images are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Training,
    Inference,
}

fn check_classes(dir: &Path, classes: Vec<String>, purpose: Purpose) -> Result<Vec<String>, DataError> {
    match classes.as_slice() {
        [] => Err(DataError::NoClasses { dir: dir.into() }),
        [class] if purpose == Purpose::Training => Err(DataError::OneClass { dir: dir.into(), class: class.clone() }),
        _ => Ok(classes),
    }
}

/// The samples of each class.
fn class_images(
    dir: &Path,
    classes: &[String],
    purpose: Purpose,
    unread: &mut Unread,
) -> Result<Vec<Vec<Sample>>, DataError> {
    let of_class = |(label, class)| {
        let class_dir = dir.join::<&String>(class);
        let mut unread_here = Unread::default();
        let images = images_below(&class_dir, &mut unread_here)?;
        match (images.is_empty(), purpose) {
            (true, Purpose::Training) => return Err(DataError::EmptyClass { dir: class_dir, unread: unread_here }),
            (true, Purpose::Inference) => log::warn!("class folder {} holds no images", class_dir.display()),
            (false, _) => {}
        }
        unread.merge(unread_here);
        Ok(labelled(images, label).collect())
    };
    classes.iter().enumerate().map(of_class).collect()
}

fn labelled(images: Vec<PathBuf>, label: usize) -> impl Iterator<Item = Sample> {
    images.into_iter().map(move |path| Sample { path, label: label as u32 })
}

/// The names of the folders in `dir`, sorted, without hidden ones. Images beside them are in no class.
fn subfolders(dir: &Path, unread: &mut Unread) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(DataError::read(dir))? {
        let entry = entry.map_err(DataError::read(dir))?;
        let path = entry.path();
        match (path.is_dir(), is_hidden(&entry.file_name())) {
            (true, true) => unread.add(HIDDEN_FOLDER, &path),
            (true, false) => {
                names.push(entry.file_name().into_string().map_err(|_| DataError::NotUtf8 { path })?);
            }
            (false, false) if has_image_extension(&path) => unread.add("outside the class folders", &path),
            (false, _) => {}
        }
    }
    names.sort_unstable();
    Ok(names)
}

const HIDDEN_FILE: &str = "hidden (a file whose name begins with a dot)";
const HIDDEN_FOLDER: &str = "hidden (a folder whose name begins with a dot)";

/// Every image file below `root`, sorted.
fn images_below(root: &Path, unread: &mut Unread) -> Result<Vec<PathBuf>, DataError> {
    let mut images = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    // A link may lead back to a folder above it: each folder is entered once, by its real path.
    let mut entered = HashSet::new();
    while let Some(dir) = pending.pop() {
        if !entered.insert(fs::canonicalize(&dir).map_err(DataError::read(&dir))?) {
            continue;
        }
        let mut folders = Vec::new();
        for entry in fs::read_dir(&dir).map_err(DataError::read(&dir))? {
            let entry = entry.map_err(DataError::read(&dir))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(DataError::read(&path))?;
            let is_link = kind.is_symlink();
            let is_folder = kind.is_dir() || is_link && path.is_dir();
            if is_hidden(&entry.file_name()) {
                unread.add(if is_folder { HIDDEN_FOLDER } else { HIDDEN_FILE }, &path);
            } else if is_folder {
                folders.push(path);
            } else if !(kind.is_file() || is_link && !is_special(&path)) {
                unread.add("no regular file", &path);
            } else if has_image_extension(&path) {
                images.push(path);
            } else {
                unread.add_file(&path);
            }
        }
        // The order in which folders are entered decides which of two links to one folder counts.
        folders.sort_unstable();
        pending.extend(folders);
    }
    images.sort_unstable();
    Ok(images)
}

/// Whether a link ends at a device, pipe or socket, which could block a reader for ever. A dangling link does not: it is
/// listed, so that reading it names it.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| !data.is_file())
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn has_image_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// Empty files suffice: nothing is decoded here.
    fn tree(files: &[&str]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        dir
    }

    fn names(dir: &TempDir, samples: &[Sample]) -> Vec<String> {
        let name = |s: &Sample| s.path.strip_prefix(dir.path()).unwrap().to_str().unwrap().replace('\\', "/");
        samples.iter().map(|s| format!("{}:{}", s.label, name(s))).collect()
    }

    fn error(dir: &TempDir) -> String {
        let message = ImageFolder::open(dir.path(), 0.25, 0).unwrap_err().to_string();
        assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
        message
    }

    #[test]
    fn splits_from_folders() {
        let dir = tree(&[
            "train/dog/2.JPG",
            "train/dog/1.png",
            "train/cat/deep/er/x.WebP",
            "train/ant/a.jpeg",
            "train/notes.txt",
            "train/.cache/c.png",
            "val/dog/9.png",
            "val/cat/notes.txt",
            "val/dog/.hidden.png",
            "test/dog/1.png",
        ]);
        let folder = ImageFolder::open(dir.path(), 0.25, 0).unwrap();
        assert_eq!(folder.classes, ["ant", "cat", "dog"]);
        let train = ["0:train/ant/a.jpeg", "1:train/cat/deep/er/x.WebP", "2:train/dog/1.png", "2:train/dog/2.JPG"];
        assert_eq!(names(&dir, &folder.train), train);
        assert_eq!(names(&dir, &folder.val), ["2:val/dog/9.png"]);
    }

    #[test]
    fn seeded_split_is_stratified_and_repeatable() {
        let files: Vec<String> = (0..40).flat_map(|i| [format!("a/{i}.png"), format!("b/{i}.png")]).collect();
        let mut files: Vec<&str> = files.iter().map(String::as_str).collect();
        files.push("c/only.png");
        let dir = tree(&files);
        let open = |fraction, seed| ImageFolder::open(dir.path(), fraction, seed).unwrap();
        let folder = open(0.25, 7);
        let count = |label| folder.val.iter().filter(|s| s.label == label).count();
        assert_eq!([count(0), count(1), count(2)], [10, 10, 0]);
        let mut all = [folder.train.clone(), folder.val.clone()].concat();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        assert_eq!(all, open(0.0, 7).train, "every image is in exactly one split");
        assert_eq!(folder, open(0.25, 7));
        assert_ne!(folder.val, open(0.25, 8).val);
        assert_eq!(open(0.001, 7).val.len(), 2, "at least one of each class that has two");
        assert_eq!(open(0.999, 7).train.len(), 3, "never all");
    }

    #[test]
    fn bad_trees_are_named() {
        let dir = TempDir::new().unwrap();
        assert!(error(&dir).contains("no class folders"));
        assert!(ImageFolder::open(&dir.path().join("gone"), 0.25, 0).unwrap_err().to_string().contains("cannot read"));
        assert!(error(&tree(&["1.png", "2.png"])).contains("no class folders"));
        assert!(error(&tree(&["cat/1.png"])).contains("one class only, `cat`"));
        let message = error(&tree(&["cat/1.png", "dog/1.txt"]));
        assert!(message.contains("dog holds no"), "{message}");
        assert!(error(&tree(&["train/a/1.png", "train/b/1.png"])).contains("only train/"));
        assert!(error(&tree(&["train/a/1.png", "test/b/1.png"])).contains("only test/, train/"));
        let with_splits = ["train/a/1.png", "train/b/1.png"];
        assert!(error(&tree(&[&with_splits[..], &["val/c/1.png"]].concat())).contains("`c` that train/ does not have"));
        assert!(error(&tree(&[&with_splits[..], &["val/a/1.txt"]].concat())).contains("no JPEG"));
        assert!(error(&tree(&["train/a/1.png", "val/a/1.png"])).contains("one class only"));
        let dir = tree(&["a/1.png", "b/1.png"]);
        for fraction in [-0.1, 1.0, f64::NAN] {
            let message = ImageFolder::open(dir.path(), fraction, 0).unwrap_err().to_string();
            assert!(message.contains("val fraction"), "{message}");
        }
        let file = dir.path().join("a/1.png");
        assert!(ImageFolder::open(&file, 0.25, 0).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn inference_takes_one_class_and_empty_ones() {
        let open = |files: &[&str]| ImageFolder::open_for_inference(tree(files).path(), 0.0, 0);
        let one = open(&["cat/1.png", "cat/2.png"]).unwrap();
        assert_eq!((one.classes, one.train.len()), (vec!["cat".to_owned()], 2));
        let with_empty = open(&["ant/notes.txt", "cat/1.png"]).unwrap();
        assert_eq!(with_empty.classes, ["ant", "cat"]);
        assert_eq!(with_empty.train[0].label, 1);
        let split = open(&["train/ant/1.txt", "train/cat/1.txt", "val/cat/1.png"]).unwrap();
        assert_eq!((split.classes.len(), split.val.len()), (2, 1));
        assert!(matches!(open(&["ant/1.txt", "cat/1.txt"]), Err(DataError::NoImages { .. })));
        assert!(matches!(open(&["1.png"]), Err(DataError::NoClasses { .. })));
    }

    #[test]
    fn a_class_may_be_called_train() {
        let dir = tree(&["train/1.png", "bus/1.png"]);
        assert_eq!(ImageFolder::open(dir.path(), 0.0, 0).unwrap().classes, ["bus", "train"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once() {
        use std::os::unix::fs::symlink;
        let dir = tree(&["a/1.png", "b/1.png", "elsewhere.d/x/2.png"]);
        symlink(dir.path().join("a"), dir.path().join("a/loop")).unwrap();
        symlink("self.png", dir.path().join("a/self.png")).unwrap();
        symlink(dir.path().join("elsewhere.d/x"), dir.path().join("b/linked")).unwrap();
        symlink("/dev/zero", dir.path().join("b/endless.png")).unwrap();
        let folder = ImageFolder::open(dir.path(), 0.0, 0).unwrap();
        let expected = ["0:a/1.png", "0:a/self.png", "1:b/1.png", "1:b/linked/2.png", "2:elsewhere.d/x/2.png"];
        assert_eq!(names(&dir, &folder.train), expected);
    }

    #[test]
    fn every_extension_of_an_image_is_read() {
        let files: Vec<String> =
            EXTENSIONS.iter().map(|extension| format!("a/1.{}", extension.to_uppercase())).collect();
        let files: Vec<&str> = files.iter().map(String::as_str).chain(["b/1.png"]).collect();
        assert_eq!(ImageFolder::open(tree(&files).path(), 0.0, 0).unwrap().train.len(), EXTENSIONS.len() + 1);
    }

    #[test]
    fn everything_else_is_counted() {
        let dir = tree(&[
            "a/1.png",
            "a/2.AVIF",
            "a/deep/3.avif",
            "a/notes.txt",
            "a/README",
            "a/.DS_Store",
            "a/.cache/x.png",
            "b/1.png",
            "b/x.\u{1b}[31m",
            "b/4.avif",
            ".git/x.png",
            "loose.jpg",
            "labels.csv",
        ]);
        let mut unread = Unread::default();
        let classes = subfolders(dir.path(), &mut unread).unwrap();
        class_images(dir.path(), &classes, Purpose::Training, &mut unread).unwrap();
        let found = unread.describe().unwrap();
        for part in [
            "3 .avif",
            "1 .txt",
            "1 without an extension",
            "1 .\\u{1b}[31m",
            "1 hidden (a file",
            "2 hidden (a folder",
            "1 outside the class folders",
        ] {
            assert!(found.contains(part), "{part}: {found}");
        }
        assert!(found.starts_with("3 .avif"), "{found}");
        assert!(!found.contains("csv"), "{found}");
        assert_eq!(Unread::default().describe(), None);
        let message = error(&tree(&["a/1.png", "b/1.heic", "b/2.heic"]));
        assert!(message.contains("b holds no JPEG") && message.contains(", but 2 .heic (the first is "), "{message}");
        let many: Vec<String> = (0..12).map(|i| format!("x.{i}")).collect();
        let mut unread = Unread::default();
        many.iter().for_each(|name| unread.add_file(Path::new(name)));
        assert!(unread.describe().unwrap().contains("4 of other kinds"));
    }

    #[test]
    fn lists_without_classes() {
        let dir = tree(&["b.png", "a/c.jpg", "a/notes.txt", "plain"]);
        let found = list_images(dir.path()).unwrap();
        assert_eq!(found, [dir.path().join("a/c.jpg"), dir.path().join("b.png")]);
        let plain = dir.path().join("plain");
        assert_eq!(list_images(&plain).unwrap(), [plain], "a named file needs no extension");
        assert!(list_images(&dir.path().join("gone")).unwrap_err().to_string().contains("gone"));
        assert!(list_images(TempDir::new().unwrap().path()).unwrap_err().to_string().contains("no JPEG"));
    }
}
