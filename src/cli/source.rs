//! Where weights come from: a file, or a hub by name.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use thawline::formats::{self, Format, ModelFile};
use thawline::models;
use thawline::weights::StateDict;

/// `--offline`, `--weights-set`.
#[derive(clap::Args, Clone, Default, Debug)]
pub struct SourceArgs {
    /// Use only cached hf:… weights; download nothing
    #[arg(long)]
    pub offline: bool,
    /// Which of a file's sets of weights: the entry of a checkpoint, such as state_dict, or what the names of tensors begin
    /// with, such as encoder_k [default: averaged (EMA) weights if the file has them, else the final weights]
    #[arg(long, value_name = "NAME")]
    pub weights_set: Option<String>,
}

/// The tensors of the file that [`open`] opens.
pub fn load(name: &Path, source: &SourceArgs) -> Result<StateDict> {
    Ok(open(name, source)?.tensors)
}

/// Opens weights by the name of their file, or by hf:owner/name[@revision][:file]. A file may have a name that begins like
/// this; `./hf:…` is always a file.
pub fn open(name: &Path, source: &SourceArgs) -> Result<ModelFile> {
    let set = source.weights_set.as_deref();
    match reference(name) {
        Some(reference) => Ok(formats::open(&fetched(reference, source.offline)?, set)?),
        None => match hint(name) {
            Some(hint) => bail!("cannot read {}: there is no such file; {hint}", name.display()),
            None => Ok(formats::open(name, set)?),
        },
    }
}

/// What else the name of a file that does not exist may mean.
fn hint(name: &Path) -> Option<String> {
    let text = name.to_str().filter(|_| !name.exists())?;
    if models::spec(text).is_ok() {
        return Some(format!(
            "{text} is the name of a model, which --model {text} takes; its weights come from a file, or from a Hugging Face \
             hub as hf:OWNER/NAME"
        ));
    }
    let is_plain =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let (owner, rest) = text.split_once('/')?;
    let is_file = Format::of_name(name).is_some();
    let is_name =
        is_plain(owner) && is_plain(rest) && !owner.starts_with('.') && !Path::new(owner).is_dir() && !is_file;
    is_name.then(|| format!("weights of a Hugging Face hub have hf: before their name: hf:{text}"))
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
    use super::{output, progress};
    use indicatif::ProgressBar;
    use thawline::hub::{Hub, Progress};
    use thawline::text::printable;

    let hub = Hub::from_env()?.offline(offline);
    let bar =
        progress::bars().add(ProgressBar::no_length().with_style(progress::style("{spinner} {wide_msg} {elapsed}")));
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
            bar.set_style(progress::style("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}"));
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
    bail!("{reference}: this thawline was built without the feature `hub`; download the file, and name it")
}
