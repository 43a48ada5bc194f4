//! Where weights come from: a file, or a hub by name.

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

/// Reads weights by the name of their file, or by hf:owner/name[@revision][:file].
pub fn load(name: &Path, hub: HubArgs) -> Result<StateDict> {
    match reference(name) {
        Some(reference) => fetched(reference, hub.offline),
        None => Ok(StateDict::load(name)?),
    }
}

/// The name by which these weights are found again from any folder and at any time; none if they are from no file.
pub fn name(state: &StateDict) -> Result<Option<PathBuf>> {
    let name = state.origin.as_deref().map(|name| match reference(name) {
        Some(_) => Ok(name.into()),
        None => std::path::absolute(name),
    });
    Ok(name.transpose()?)
}

/// A file may have a name that begins like this; `./hf:…` is always a file.
fn reference(name: &Path) -> Option<&str> {
    name.to_str().filter(|text| text.starts_with("hf:"))
}

#[cfg(feature = "hub")]
fn fetched(reference: &str, offline: bool) -> Result<StateDict> {
    use indicatif::{ProgressBar, ProgressStyle};
    use thawline::hub::{Hub, Progress};

    let hub = Hub::from_env()?.offline(offline);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")?;
    let bar = ProgressBar::new(0).with_style(style);
    let fetched = hub.fetch(&reference.parse()?, &mut |Progress { file, done, total }| {
        if bar.message() != file {
            // What is there already is no sign of speed.
            bar.reset();
            bar.set_length(total);
            bar.set_message(file.to_owned());
        }
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let fetched = fetched?;
    let mut state = StateDict::load(&fetched.path)?;
    state.origin = Some(fetched.reference.to_string().into());
    let config = fetched.config.unwrap_or_default();
    let size = config.size.map(|(height, width)| format!("{height}x{width}"));
    for (key, value) in [("architecture", config.architecture), ("size", size)] {
        // What the file itself tells comes first.
        if let Some(value) = value {
            state.metadata.entry(key.into()).or_insert(value);
        }
    }
    Ok(state)
}

#[cfg(not(feature = "hub"))]
fn fetched(reference: &str, _: bool) -> Result<StateDict> {
    anyhow::bail!("{reference}: this thawline was built without the feature `hub`; download the file, and name it")
}
