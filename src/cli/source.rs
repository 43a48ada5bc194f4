//! Where weights come from: a file, or a hub by name.

use super::args;
use anyhow::Result;
use std::path::{Path, PathBuf};
use thawline::weights::StateDict;

/// `--offline`.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct HubArgs {
    /// Take what the cache has of hf:… weights, and download nothing
    #[arg(long)]
    pub offline: bool,
}

/// Reads weights by the name of their file, or by hf:owner/name[@revision][:file]. A file may have a name that begins like
/// this; `./hf:…` is always a file.
pub fn load(name: &Path, hub: HubArgs) -> Result<StateDict> {
    match reference(name) {
        Some(reference) => args::read_weights(&fetched(reference, hub.offline)?),
        None => args::read_weights(name),
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
