//! Where weights come from: a file, or a hub by name.

use super::args;
use anyhow::Result;
use std::path::{Path, PathBuf};
use thawline::weights::StateDict;

/// `--offline`, `--weights-set`.
#[derive(clap::Args, Clone, Default, Debug)]
pub struct SourceArgs {
    /// Take what the cache has of hf:… weights, and download nothing
    #[arg(long)]
    pub offline: bool,
    /// Which of a file's sets of weights: the entry of a checkpoint, such as state_dict, or what the names of tensors begin
    /// with, such as encoder_k [default: an average over the steps of training before the last values]
    #[arg(long, value_name = "NAME")]
    pub weights_set: Option<String>,
}

/// Reads weights by the name of their file, or by hf:owner/name[@revision][:file]. A file may have a name that begins like
/// this; `./hf:…` is always a file.
pub fn load(name: &Path, source: &SourceArgs) -> Result<StateDict> {
    let set = source.weights_set.as_deref();
    match reference(name) {
        Some(reference) => args::read_weights(&fetched(reference, source.offline)?, set),
        None => args::read_weights(name, set),
    }
}

/// Whether it names weights of a hub, of which it need not name the file.
pub fn is_reference(name: &Path) -> bool {
    reference(name).is_some()
}

fn reference(name: &Path) -> Option<&str> {
    name.to_str().filter(|text| text.starts_with("hf:"))
}

/// The file in the cache.
#[cfg(feature = "hub")]
fn fetched(reference: &str, offline: bool) -> Result<PathBuf> {
    use super::output;
    use indicatif::{ProgressBar, ProgressStyle};
    use thawline::hub::{Hub, Progress};
    use thawline::text::printable;

    let hub = Hub::from_env()?.offline(offline);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")?;
    let bar = ProgressBar::new(0).with_style(style);
    bar.set_message(format!("looking for {}", printable(reference)));
    bar.tick();
    // Without a terminal there is no bar: then a line for each tenth.
    let mut tenths = 0;
    let fetched = hub.fetch(&reference.parse()?, &mut |Progress { file, done, total }| {
        let now = done.saturating_mul(10) / total.max(1);
        if bar.is_hidden() && (bar.message() != file || now > tenths) {
            output::note(format_args!("{file}: {} of {}", output::bytes(done), output::bytes(total)));
            tenths = now;
        }
        if bar.message() != file {
            bar.set_length(total);
            bar.set_message(file.to_owned());
            // What was there before is no sign of speed.
            bar.set_position(done);
            bar.reset_eta();
        }
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let fetched = fetched?;
    log::info!("{reference} is {}", fetched.reference);
    Ok(fetched.path)
}

#[cfg(not(feature = "hub"))]
fn fetched(reference: &str, _: bool) -> Result<PathBuf> {
    anyhow::bail!("{reference}: this thawline was built without the feature `hub`; download the file, and name it")
}
