use crate::text::printable;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a weights file could not be read, written, or used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot read {path}: it is a folder or a device; give a weights file", path = path.display())]
    NotAFile { path: PathBuf },
    #[error("{path} is not a weights file: {reason}", path = path.display())]
    UnknownFormat { path: PathBuf, reason: String },
    #[error("{path} is damaged or not a real {format} file: {reason}", path = path.display())]
    Malformed { path: PathBuf, format: &'static str, reason: String },
    #[error("{path} is refused: {reason}", path = path.display())]
    Refused { path: PathBuf, reason: String },
    #[error("cannot write a copy of {path} with these weights: {reason}", path = path.display())]
    NotCopied { path: PathBuf, reason: String },
    #[error("{path} holds no tensor; write it with torch.save(model.state_dict(), …) or as safetensors", path = path.display())]
    Empty { path: PathBuf },
    #[error(
        "{} holds no set of weights called `{set}`; {}",
        path.display(),
        if found.is_empty() { "it holds one set, without a name".to_owned() } else { format!("there are: {}", found.join(", ")) }
    )]
    NoSet { path: PathBuf, set: String, found: Vec<String> },
    #[error("--weights-set: {path} is of {format}, which holds one set of weights; leave it out", path = path.display())]
    OneSet { path: PathBuf, format: &'static str },
    #[error(
        "{path} is quantised ({how}), and such weights cannot be trained or turned back exactly: give the file of floats that it \
         was made from",
        path = path.display()
    )]
    Quantised { path: PathBuf, how: String },
    #[error("tensor `{tensor}` in {path}: {reason}", path = path.display())]
    Tensor { path: PathBuf, tensor: String, reason: String },
    #[error("cannot write {path}: {source}; a file that was there before is unchanged", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Mismatch(Box<Mismatch>),
}

/// Everything in which a file differs from what the network expects, each list sorted by name.
#[derive(Debug)]
pub struct Mismatch {
    /// The file, or what else the tensors came from.
    pub file: String,
    /// Expected tensors that the file lacks, with the expected shape.
    pub missing: Vec<(String, Vec<usize>)>,
    /// Tensors of the file that the network has no place for, with their shape.
    pub unexpected: Vec<(String, Vec<usize>)>,
    /// Tensors of another shape or kind, with a sentence on what is there and what is expected.
    pub misshapen: Vec<(String, String)>,
    /// What seems to be the matter, when the lists as a whole suggest it.
    pub hint: Option<String>,
}

/// Lines that the message gives to each of its three lists.
const SHOWN: usize = 8;

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.missing.len(), "missing"),
            (self.unexpected.len(), "unexpected"),
            (self.misshapen.len(), "of another shape or kind"),
        ];
        let counts: Vec<_> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        write!(f, "{} does not fit the model (tensors: {})", self.file, counts.join(", "))?;
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        let shaped = |list: &[(String, Vec<usize>)]| -> Vec<String> {
            list.iter().take(SHOWN).map(|(name, shape)| format!("{} {shape:?}", printable(name))).collect()
        };
        let misshapen = self.misshapen.iter().take(SHOWN);
        let misshapen = misshapen.map(|(name, what)| format!("{} {what}", printable(name))).collect();
        for (heading, lines, total) in [
            ("missing", shaped(&self.missing), self.missing.len()),
            ("unexpected", shaped(&self.unexpected), self.unexpected.len()),
            ("other shape or kind", misshapen, self.misshapen.len()),
        ] {
            for line in &lines {
                write!(f, "\n  {heading}: {line}")?;
            }
            if total > lines.len() {
                write!(f, "\n  {heading}: … and {} more", total - lines.len())?;
            }
        }
        Ok(())
    }
}
