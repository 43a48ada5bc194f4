//! Samples → batches, decoded and transformed on threads ahead of the consumer.

use super::{Augment, DataError, DecodeOptions, Image, Resizer, Sample, Transform, decode, threads};
use crate::rng::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

/// What the batches are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Shuffled anew in each epoch, and augmented.
    Train,
    /// In the samples' order, the same each time.
    Eval,
}

/// Which images an epoch of training shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// Each once.
    #[default]
    Shuffled,
    /// As many, but of each class equally often: rounds of one image a class, the classes in another order in each. A class
    /// shows its images in a shuffled order, and once all were shown, in another one; so each image of a class is shown
    /// equally often, but for one time more or less, and every batch has its share of each class. (PyTorch's
    /// `WeightedRandomSampler` draws with replacement, which leaves both to chance.)
    Balanced,
}

#[derive(Clone, Debug)]
pub struct LoaderOptions {
    pub mode: Mode,
    /// Of [`Mode::Train`].
    pub sampler: Sampler,
    /// Images per batch.
    pub batch: usize,
    /// Order and augmentation follow from it, the epoch and the sample.
    pub seed: u64,
    /// Leaves out a last batch that is not full. It is padded otherwise.
    pub drop_last: bool,
    /// Goes on past images that cannot be read or decoded. In training the next image of the epoch's order stands in
    /// for a broken one, since statistics over a batch need it full; in evaluation the batch holds one fewer, since a
    /// stand-in would count twice. Both follow from the files and the order alone, so a resumed epoch equals an
    /// uninterrupted one, and no pass over all files has to come first.
    pub skip_broken: bool,
    pub decode: DecodeOptions,
    /// Batches that may be ready before they are asked for, at least 1.
    pub prefetch: usize,
}

impl LoaderOptions {
    /// Drops a partial batch in training and pads it in evaluation, stops at a broken image, prefetches two batches.
    pub fn new(mode: Mode, batch: usize, seed: u64) -> Self {
        let (drop_last, decode) = (mode == Mode::Train, DecodeOptions::default());
        let sampler = Sampler::default();
        Self { mode, sampler, batch, seed, drop_last, skip_broken: false, decode, prefetch: 2 }
    }
}

/// Network input, always of the full batch size N, of which the first [`Batch::valid`] images count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[N, H, W, 4]`: red, green, blue and 0; all zero from image `valid` on. Empty if it was left out.
    pub pixels: Vec<u8>,
    /// `[N]`, zero from `valid` on.
    pub labels: Vec<u32>,
    /// `[valid]`: which of the loader's samples each image is.
    pub samples: Vec<usize>,
    /// Broken images that had a place in this batch and were skipped.
    pub skipped: usize,
}

impl Batch {
    /// How many images count: N, unless the batch is the last or lost broken images in evaluation. May be 0 then.
    pub fn valid(&self) -> usize {
        self.samples.len()
    }
}

/// A data set with a way to show it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Loader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    samples: Vec<Sample>,
    transform: Transform,
    options: LoaderOptions,
}

/// No batch may take more memory than this.
const MAX_BATCH_BYTES: usize = 1 << 31;

const ORDER_STREAM: u64 = 0x6f72_6465;
const AUGMENT_STREAM: u64 = 0x6175_676d;
const CLASS_STREAM: u64 = 0x636c_6173;

impl Loader {
    /// # Errors
    /// A transform or an option out of range, no samples, or, where partial batches are dropped, fewer samples than one
    /// batch takes.
    pub fn new(samples: Vec<Sample>, transform: Transform, options: LoaderOptions) -> Result<Self, DataError> {
        transform.check()?;
        let at_least_one = |option, value: usize| match value {
            0 => Err(DataError::Option { option, value: "0".into(), expected: "at least 1" }),
            _ => Ok(()),
        };
        at_least_one("batch size", options.batch)?;
        at_least_one("prefetch", options.prefetch)?;
        at_least_one("number of images", samples.len())?;
        if transform.bytes().checked_mul(options.batch).is_none_or(|bytes| bytes > MAX_BATCH_BYTES) {
            let expected = "a batch of at most 2 GiB of pixels: a smaller batch or image size";
            return Err(DataError::Option { option: "batch size", value: options.batch.to_string(), expected });
        }
        if options.drop_last && samples.len() < options.batch {
            return Err(DataError::SmallerThanBatch { samples: samples.len(), batch: options.batch });
        }
        Ok(Self { shared: Arc::new(Shared { samples, transform, options }) })
    }

    pub fn samples(&self) -> &[Sample] {
        &self.shared.samples
    }

    pub fn transform(&self) -> &Transform {
        &self.shared.transform
    }

    /// Whether every epoch shows the same of every image: nothing is augmented, and no broken image left out.
    pub fn is_steady(&self) -> bool {
        let augmented = self.shared.options.mode == Mode::Train && self.shared.transform.augment != Augment::None;
        !augmented && !self.shared.options.skip_broken
    }

    /// The batches of `epoch` from `start_batch` on without their pixels, as they are if no image is broken: nothing is
    /// read.
    pub fn without_pixels(&self, epoch: u64, start_batch: usize) -> impl Iterator<Item = Batch> + use<> {
        let shared = Arc::clone(&self.shared);
        let order = self.shared.order(epoch);
        (start_batch..self.batches()).map(move |number| {
            let size = shared.options.batch;
            let places = number * size..order.len().min((number + 1) * size);
            let chosen = order[places].to_vec();
            let mut labels: Vec<u32> = chosen.iter().map(|&sample| shared.samples[sample].label).collect();
            labels.resize(size, 0);
            Batch { pixels: Vec::new(), labels, samples: chosen, skipped: 0 }
        })
    }

    /// The same images in another order and in batches of another size, as [`Mode::Eval`] shows them. `order` holds
    /// positions in [`samples`](Self::samples); one may come more than once, or not at all.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Panics
    /// `order` holds a position that there is not.
    pub fn rearranged(&self, order: &[usize], batch: usize) -> Result<Self, DataError> {
        let Shared { samples, transform, options } = &*self.shared;
        let samples = order.iter().map(|&position| samples[position].clone()).collect();
        let options = LoaderOptions { mode: Mode::Eval, drop_last: false, batch, ..options.clone() };
        Self::new(samples, transform.clone(), options)
    }

    /// Batches in an epoch.
    pub fn batches(&self) -> usize {
        let (samples, batch) = (self.shared.samples.len(), self.shared.options.batch);
        if self.shared.options.drop_last { samples / batch } else { samples.div_ceil(batch) }
    }

    /// The batches of `epoch` from `start_batch` on. Decoding starts at once, on as many threads as there are cores, and
    /// stops when the iterator is dropped.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn epoch(&self, epoch: u64, start_batch: usize) -> Result<Batches, DataError> {
        threads()?;
        let (shared, numbers) = (Arc::clone(&self.shared), start_batch..self.batches());
        let (sender, receiver) = sync_channel(shared.options.prefetch - 1);
        let cancelled = Arc::new(AtomicBool::new(false));
        let cancel = Arc::clone(&cancelled);
        let produce = move || {
            shared.produce(epoch, numbers, &cancelled, |batch| sender.send(batch).is_ok());
        };
        let thread = thread::Builder::new().name("image loader".into()).spawn(produce);
        let thread = thread.map_err(|error| DataError::Thread(error.to_string()))?;
        Ok(Batches { receiver: Some(receiver), cancel, thread: Some(thread) })
    }
}

/// The batches of one epoch, in order. Ends after the first error.
#[derive(Debug)]
pub struct Batches {
    receiver: Option<Receiver<Result<Batch, DataError>>>,
    cancel: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(batch) = self.receiver.as_ref()?.recv() {
            return Some(batch);
        }
        // The producer has finished, or died: an epoch must not end early without a word.
        self.receiver = None;
        let died = self.thread.take()?.join().is_err();
        died.then(|| Err(DataError::Thread("it panicked".into())))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        // Frees a producer that waits for room.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, belongs to batches that nobody asked for.
            let _ = thread.join();
        }
    }
}

/// What became of one place in a batch.
struct Row {
    /// The sample that fills it; none if it was broken and nothing may stand in.
    sample: Option<usize>,
    skipped: bool,
}

impl Shared {
    fn produce(
        &self,
        epoch: u64,
        numbers: Range<usize>,
        cancelled: &AtomicBool,
        send: impl Fn(Result<Batch, DataError>) -> bool,
    ) {
        let order = self.order(epoch);
        let whole_epoch = numbers.start == 0;
        let mut valid = 0;
        for number in numbers {
            let batch = self.batch(epoch, &order, number, cancelled);
            if cancelled.load(Ordering::Relaxed) {
                return;
            }
            valid += batch.as_ref().map_or(0, Batch::valid);
            let failed = batch.is_err();
            if !send(batch) || failed {
                return;
            }
        }
        if whole_epoch && valid == 0 {
            send(Err(DataError::AllBroken { samples: order.len() }));
        }
    }

    /// The samples in the order that `epoch` shows them.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.samples.len()).collect();
        match (self.options.mode, self.options.sampler) {
            (Mode::Eval, _) => {}
            (Mode::Train, Sampler::Shuffled) => {
                Rng::keyed(self.options.seed, &[ORDER_STREAM, epoch]).shuffle(&mut order);
            }
            (Mode::Train, Sampler::Balanced) => order = self.balanced_order(epoch),
        }
        order
    }

    /// As many samples as there are, each class equally often; see [`Sampler::Balanced`].
    fn balanced_order(&self, epoch: u64) -> Vec<usize> {
        let seed = self.options.seed;
        let mut by_class: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, sample) in self.samples.iter().enumerate() {
            by_class.entry(sample.label).or_default().push(index);
        }
        // An endless deck a class.
        let mut decks: Vec<_> = by_class
            .into_iter()
            .map(|(label, samples)| {
                (0_u64..).flat_map(move |pass| {
                    let mut samples = samples.clone();
                    Rng::keyed(seed, &[CLASS_STREAM, epoch, label.into(), pass]).shuffle(&mut samples);
                    samples
                })
            })
            .collect();
        let mut rng = Rng::keyed(seed, &[ORDER_STREAM, epoch]);
        let mut round: Vec<usize> = (0..decks.len()).collect();
        let mut order = Vec::with_capacity(self.samples.len());
        while order.len() < self.samples.len() {
            rng.shuffle(&mut round);
            order.extend(round.iter().filter_map(|&class| decks[class].next()));
        }
        order.truncate(self.samples.len());
        order
    }

    /// Batch `number` of the epoch; incomplete, and not to be used, if cancelled meanwhile.
    fn batch(&self, epoch: u64, order: &[usize], number: usize, cancelled: &AtomicBool) -> Result<Batch, DataError> {
        let (size, bytes) = (self.options.batch, self.transform.bytes());
        let places = number * size..order.len().min((number + 1) * size);
        let mut pixels = vec![0; size * bytes];
        let fill = |(out, place): (&mut [u8], usize)| self.fill(epoch, order, place, cancelled, out);
        let rows: Vec<_> = threads()?.install(|| pixels.par_chunks_exact_mut(bytes).zip(places).map(fill).collect());

        let mut labels = vec![0; size];
        let mut samples = Vec::with_capacity(rows.len());
        let mut skipped = 0;
        for (from, row) in rows.into_iter().enumerate() {
            let row = row?;
            skipped += usize::from(row.skipped);
            let Some(sample) = row.sample else { continue };
            let to = samples.len();
            if to != from {
                pixels.copy_within(from * bytes..(from + 1) * bytes, to * bytes);
            }
            labels[to] = self.samples[sample].label;
            samples.push(sample);
        }
        if skipped > 0 {
            // What broken images left behind the valid ones.
            pixels[samples.len() * bytes..].fill(0);
        }
        Ok(Batch { pixels, labels, samples, skipped })
    }

    /// Writes the image at `place` of the epoch's order to `out`, or what stands in for it.
    fn fill(
        &self,
        epoch: u64,
        order: &[usize],
        place: usize,
        cancelled: &AtomicBool,
        out: &mut [u8],
    ) -> Result<Row, DataError> {
        let candidates = if self.options.mode == Mode::Train { order.len() } else { 1 };
        for attempt in 0..candidates {
            if cancelled.load(Ordering::Relaxed) {
                break;
            }
            let sample = order[(place + attempt) % order.len()];
            match decode::decode_file(&self.samples[sample].path, &self.options.decode) {
                Ok(image) => {
                    let mut stream = vec![AUGMENT_STREAM, epoch, sample as u64, attempt as u64];
                    if self.options.sampler == Sampler::Balanced {
                        // An epoch may show it more than once, and should not show the same.
                        stream.push(place as u64);
                    }
                    self.show(&image, &stream, out);
                    return Ok(Row { sample: Some(sample), skipped: attempt > 0 });
                }
                Err(error) if !self.options.skip_broken => return Err(error),
                // Only at its own place, so that each broken image is named and counted once an epoch.
                Err(error) if attempt == 0 => log::warn!("skipped: {error}"),
                Err(_) => {}
            }
        }
        match self.options.mode {
            Mode::Train if !cancelled.load(Ordering::Relaxed) => Err(DataError::AllBroken { samples: order.len() }),
            _ => Ok(Row { sample: None, skipped: true }),
        }
    }

    fn show(&self, image: &Image, stream: &[u64], out: &mut [u8]) {
        thread_local! {
            /// Keeps its scratch memory between images.
            static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
        }
        RESIZER.with_borrow_mut(|resizer| match self.options.mode {
            Mode::Train => self.transform.train(image, &mut Rng::keyed(self.options.seed, stream), resizer, out),
            Mode::Eval => self.transform.eval(image, resizer, out),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Augment;
    use crate::preprocessing::Preprocessing;
    use std::fs;
    use std::path::Path;
    use tempfile::TempDir;

    /// `count` grey 8×8 images, each of its own brightness and class; those in `broken` are text.
    fn set(count: usize, broken: &[usize]) -> (TempDir, Vec<Sample>) {
        let dir = TempDir::new().unwrap();
        let sample = |i: usize| {
            let path = dir.path().join(format!("{i:03}.png"));
            if broken.contains(&i) {
                fs::write(&path, "no image").unwrap();
            } else {
                let pixels: Vec<u8> =
                    (0..64).map(|p| if p % 8 < 4 { (i + 1) as u8 } else { (i + 101) as u8 }).collect();
                image::save_buffer(&path, &pixels, 8, 8, image::ColorType::L8).unwrap();
            }
            Sample { path, label: i as u32 }
        };
        let samples = (0..count).map(sample).collect();
        (dir, samples)
    }

    fn loader(samples: &[Sample], mode: Mode, batch: usize, change: impl Fn(&mut LoaderOptions)) -> Loader {
        let mut options = LoaderOptions::new(mode, batch, 11);
        change(&mut options);
        let augment = Augment::CropFlip;
        Loader::new(samples.to_vec(), Transform::new(8, 8, augment, Preprocessing::default()), options).unwrap()
    }

    fn collect(loader: &Loader, epoch: u64, start: usize) -> Vec<Batch> {
        loader.epoch(epoch, start).unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn seen(batches: &[Batch]) -> Vec<usize> {
        batches.iter().flat_map(|batch| batch.samples.clone()).collect()
    }

    #[test]
    fn evaluation_keeps_order_and_pads() {
        let (_dir, samples) = set(10, &[]);
        let loader = loader(&samples, Mode::Eval, 4, |_| ());
        let batches = collect(&loader, 0, 0);
        assert_eq!((batches.len(), loader.batches()), (3, 3));
        assert_eq!(seen(&batches), (0..10).collect::<Vec<_>>());
        let last = &batches[2];
        assert_eq!((last.valid(), &last.labels[..]), (2, &[8, 9, 0, 0][..]));
        assert_eq!(last.pixels.len(), 4 * 8 * 8 * 4);
        assert_eq!(last.pixels[..4], [9, 9, 9, 0]);
        assert_eq!(last.pixels[8 * 8 * 4 + 16..][..4], [110, 110, 110, 0]);
        assert!(last.pixels[2 * 8 * 8 * 4..].iter().all(|&byte| byte == 0));
        assert_eq!(collect(&loader, 5, 0), batches, "evaluation knows no epochs");
    }

    #[test]
    fn training_shuffles_drops_the_rest_and_repeats_itself() {
        let (_dir, samples) = set(10, &[]);
        let train = loader(&samples, Mode::Train, 4, |_| ());
        let batches = collect(&train, 3, 0);
        assert_eq!((batches.len(), train.batches()), (2, 2));
        assert!(
            batches.iter().all(|b| b.valid() == 4 && b.labels.iter().zip(&b.samples).all(|(&l, &s)| l as usize == s))
        );
        assert_eq!(collect(&train, 3, 0), batches);
        assert_ne!(seen(&collect(&train, 4, 0)), seen(&batches));
        let other_seed = loader(&samples, Mode::Train, 4, |options| options.seed = 12);
        assert_ne!(seen(&collect(&other_seed, 3, 0)), seen(&batches));
        let keeping = loader(&samples, Mode::Train, 4, |options| options.drop_last = false);
        let mut all = seen(&collect(&keeping, 3, 0));
        assert_eq!(all[..8], seen(&batches)[..]);
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>(), "each image once");
    }

    #[test]
    fn augmentation_differs_by_epoch_and_sample() {
        let (_dir, mut samples) = set(1, &[]);
        samples.resize(64, samples[0].clone());
        let loader = loader(&samples, Mode::Train, 64, |_| ());
        let [a, b] = [0, 1].map(|epoch| collect(&loader, epoch, 0).remove(0));
        let distinct = |batch: &Batch| {
            let mut images: Vec<_> = batch.pixels.chunks(8 * 8 * 4).collect();
            images.sort_unstable();
            images.dedup();
            images.len()
        };
        assert!(distinct(&a) > 8, "{}", distinct(&a));
        assert_ne!(a.pixels, b.pixels);
    }

    #[test]
    fn resuming_equals_never_stopping() {
        let (_dir, samples) = set(23, &[4, 5, 17]);
        for mode in [Mode::Train, Mode::Eval] {
            let loader = loader(&samples, mode, 4, |options| options.skip_broken = true);
            let whole = collect(&loader, 2, 0);
            for start in 0..=whole.len() + 1 {
                assert_eq!(collect(&loader, 2, start), whole[start.min(whole.len())..], "from batch {start}");
            }
        }
    }

    /// `counts` images of each class.
    fn uneven(counts: &[usize]) -> (TempDir, Vec<Sample>) {
        let (dir, mut samples) = set(counts.iter().sum(), &[]);
        let labels = counts.iter().enumerate().flat_map(|(label, &count)| vec![label as u32; count]);
        samples.iter_mut().zip(labels).for_each(|(sample, label)| sample.label = label);
        (dir, samples)
    }

    #[test]
    fn a_balanced_epoch_shows_each_class_and_each_of_its_images_equally_often() {
        let (_dir, samples) = uneven(&[30, 7, 2]);
        let balanced = loader(&samples, Mode::Train, 6, |options| {
            (options.sampler, options.drop_last) = (Sampler::Balanced, false);
        });
        let mut orders = Vec::new();
        for epoch in 0..4 {
            let batches = collect(&balanced, epoch, 0);
            let order = seen(&batches);
            assert_eq!(order.len(), samples.len(), "as long an epoch as any other");
            let times = |sample: usize| order.iter().filter(|seen| **seen == sample).count();
            for images in [0..30, 30..37, 37..39] {
                let times: Vec<usize> = images.clone().map(times).collect();
                assert_eq!(times.iter().sum::<usize>(), 13, "a third of 39");
                assert!(times.iter().max().unwrap() - times.iter().min().unwrap() <= 1, "{images:?}: {times:?}");
            }
            for batch in &batches[..6] {
                assert_eq!(
                    (0..3).map(|l| batch.labels.iter().filter(|x| **x == l).count()).collect::<Vec<_>>(),
                    [2; 3]
                );
            }
            let labels = |batches: &[Batch]| batches.iter().map(|b| b.labels.clone()).collect::<Vec<_>>();
            let unread: Vec<Batch> = balanced.without_pixels(epoch, 0).collect();
            assert_eq!((seen(&unread), labels(&unread)), (order.clone(), labels(&batches)));
            for start in 0..batches.len() {
                assert_eq!(collect(&balanced, epoch, start), batches[start..], "resumed at {start}");
            }
            orders.push(order);
        }
        orders.sort_unstable();
        orders.dedup();
        assert_eq!(orders.len(), 4, "another order in each epoch");
    }

    #[test]
    fn an_image_that_comes_again_is_augmented_anew() {
        let (_dir, samples) = uneven(&[20, 1]);
        let balanced = loader(&samples, Mode::Train, 21, |options| options.sampler = Sampler::Balanced);
        let batch = collect(&balanced, 0, 0).remove(0);
        let image = 8 * 8 * 4;
        let mut shown: Vec<&[u8]> =
            batch.samples.iter().zip(batch.pixels.chunks(image)).filter(|(s, _)| **s == 20).map(|(_, p)| p).collect();
        assert!(shown.len() >= 10);
        shown.sort_unstable();
        shown.dedup();
        assert!(shown.len() > 5, "{} of them differ", shown.len());
    }

    #[test]
    fn a_broken_image_stops_the_epoch_and_is_named() {
        let (_dir, samples) = set(9, &[5]);
        let mut batches = loader(&samples, Mode::Eval, 3, |_| ()).epoch(0, 0).unwrap();
        assert!(batches.next().unwrap().is_ok());
        let message = batches.next().unwrap().unwrap_err().to_string();
        assert!(message.contains("005.png") && message.contains("not a JPEG"), "{message}");
        assert!(batches.next().is_none() && batches.next().is_none());
    }

    #[test]
    fn skipping_leaves_out_in_evaluation() {
        let (_dir, samples) = set(7, &[1, 2, 6]);
        let batches = collect(&loader(&samples, Mode::Eval, 3, |options| options.skip_broken = true), 0, 0);
        assert_eq!(batches.iter().map(|b| b.samples.clone()).collect::<Vec<_>>(), [vec![0], vec![3, 4, 5], vec![]]);
        assert_eq!(batches.iter().map(|b| b.skipped).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(batches[1].labels, [3, 4, 5]);
        assert!(batches[0].pixels[8 * 8 * 4..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn another_order_shows_the_same_images_unshuffled() {
        let (_dir, samples) = set(4, &[]);
        let loader = loader(&samples, Mode::Train, 4, |options| options.seed = 5);
        let other = loader.rearranged(&[2, 0, 3, 1, 2], 3).unwrap();
        let batches = collect(&other, 7, 0);
        assert_eq!([&batches[0].labels[..], &batches[1].labels[..]], [[2, 0, 3], [1, 2, 0]]);
        assert_eq!(batches[1].samples, [3, 4], "positions in the new order");
        let plain = collect(&loader.rearranged(&[0, 1, 2, 3], 4).unwrap(), 0, 0).remove(0);
        let image = plain.pixels.len() / 4;
        assert_eq!(batches[0].pixels[..image], plain.pixels[2 * image..3 * image]);
        assert!(loader.rearranged(&[], 1).is_err() && loader.rearranged(&[0], 0).is_err());
    }

    #[test]
    fn gaps_are_closed_in_evaluation() {
        let (_dir, samples) = set(3, &[0]);
        let batch = collect(&loader(&samples, Mode::Eval, 3, |options| options.skip_broken = true), 0, 0).remove(0);
        assert_eq!((&batch.samples[..], &batch.labels[..]), (&[1, 2][..], &[1, 2, 0][..]));
        assert_eq!([batch.pixels[0], batch.pixels[8 * 8 * 4]], [2, 3]);
        assert!(batch.pixels[2 * 8 * 8 * 4..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn skipping_fills_up_in_training() {
        let broken = [0, 3, 4, 9];
        let (_dir, samples) = set(12, &broken);
        let batches = collect(&loader(&samples, Mode::Train, 4, |options| options.skip_broken = true), 0, 0);
        assert_eq!(batches.len(), 3);
        assert!(batches.iter().all(|batch| batch.valid() == 4));
        assert_eq!(batches.iter().map(|batch| batch.skipped).sum::<usize>(), 4, "each is counted once");
        let mut seen = seen(&batches);
        seen.sort_unstable();
        assert!(broken.iter().all(|sample| !seen.contains(sample)));
        seen.dedup();
        assert_eq!(seen.len(), 8, "every sound image is seen");
    }

    #[test]
    fn nothing_but_broken_images_is_an_error() {
        let (_dir, samples) = set(4, &[0, 1, 2, 3]);
        for mode in [Mode::Train, Mode::Eval] {
            let loader = loader(&samples, mode, 2, |options| options.skip_broken = true);
            let last = loader.epoch(0, 0).unwrap().last().unwrap();
            assert!(last.unwrap_err().to_string().contains("of 4 images, none can be decoded"));
        }
    }

    #[test]
    fn dropping_early_stops_the_work() {
        let (dir, samples) = set(200, &[]);
        let loader = loader(&samples, Mode::Eval, 1, |options| options.prefetch = 3);
        let mut batches = loader.epoch(0, 0).unwrap();
        batches.next().unwrap().unwrap();
        let shared = Arc::downgrade(&loader.shared);
        drop((batches, loader));
        assert_eq!(shared.strong_count(), 0, "the producer has gone");
        drop(dir);
    }

    #[test]
    fn prefetching_is_bounded() {
        let (_dir, samples) = set(20, &[]);
        let batches = loader(&samples, Mode::Eval, 1, |options| options.prefetch = 3).epoch(0, 0).unwrap();
        // Nothing is taken, so three batches are made and no more, however long it waits: the other files can go.
        thread::sleep(std::time::Duration::from_millis(300));
        samples[3..].iter().for_each(|sample| fs::remove_file(&sample.path).unwrap());
        let results: Vec<_> = batches.collect();
        assert_eq!(results.iter().filter(|batch| batch.is_ok()).count(), 3);
        assert!(results.last().unwrap().is_err());
    }

    #[test]
    fn bad_options_are_named() {
        let sample = Sample { path: Path::new("x.png").into(), label: 0 };
        let error = |count: usize, size, batch, prefetch| {
            let options = LoaderOptions { prefetch, ..LoaderOptions::new(Mode::Train, batch, 0) };
            let transform = Transform::new(size, size, Augment::None, Preprocessing::default());
            Loader::new(vec![sample.clone(); count], transform, options).unwrap_err().to_string()
        };
        assert!(error(3, 8, 4, 1).contains("one batch of 4 is more than 3 training images"));
        assert!(error(3, 8, 0, 1).contains("batch size is 0"));
        assert!(error(3, 8, 1, 0).contains("prefetch is 0"));
        assert!(error(0, 8, 1, 1).contains("number of images is 0"));
        assert!(error(3, 0, 1, 1).contains("image size is 0x0"));
        assert!(error(3, 8192, 100, 1).contains("2 GiB"));
        assert!(error(3, 8, usize::MAX, 1).contains("2 GiB"));
    }
}
