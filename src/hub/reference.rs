use super::HubError;
use crate::text::printable;
use std::fmt;
use std::str::FromStr;

/// What a reference begins with, where a path could stand, too.
pub const SCHEME: &str = "hf:";

/// A file in a repository of models: `hf:owner/name[@revision][:file]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reference {
    pub owner: String,
    pub name: String,
    /// A branch, a tag or a commit; `main` where the text names none.
    pub revision: String,
    /// Path inside the repository; where there is none, the repository's weights are looked for.
    pub file: Option<String>,
}

/// The branch that every repository has.
const MAIN: &str = "main";

impl Reference {
    /// `owner/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.owner, self.name)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

impl FromStr for Reference {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let refused = |reason: &str| HubError::Reference { text: printable(text), reason: reason.into() };
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        let (rest, file) = rest.split_once(':').map_or((rest, None), |(rest, file)| (rest, Some(file)));
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, MAIN));
        let (owner, name) =
            repository.split_once('/').ok_or_else(|| refused("a repository has an owner and a name"))?;
        if !is_name(owner) || !is_name(name) {
            return Err(refused("owner and name are letters and digits, with single `-`, `_` or `.` between them"));
        }
        if !is_relative(revision) {
            return Err(refused("the revision is not a branch, a tag or a commit"));
        }
        if !file.is_none_or(is_relative) {
            return Err(refused("the file is not a path inside the repository"));
        }
        let owned = str::to_owned;
        Ok(Self { owner: owned(owner), name: owned(name), revision: owned(revision), file: file.map(owned) })
    }
}

/// Whether a hub could have an owner or a repository of that name, and a folder of the cache may be called by it.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let inside = !text.starts_with(['-', '.']) && !text.ends_with(['-', '.']);
    (1..=96).contains(&text.len())
        && inside
        && text.chars().all(allowed)
        && !text.contains("..")
        && !text.contains("--")
}

/// Whether the text is a path, its parts divided by `/`, that stays inside the folder that it is appended to, on every
/// system.
pub(super) fn is_relative(text: &str) -> bool {
    let allowed = |c: char| !c.is_control() && !"\\:*?\"<>|".contains(c);
    let part = |part: &str| !part.is_empty() && part.chars().any(|c| c != '.') && !part.ends_with([' ', '.']);
    (1..=255).contains(&text.len()) && text.chars().all(allowed) && text.split('/').all(part)
}

/// Whether the text is a commit in full.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
