use std::io;
use std::path::PathBuf;

/// Why a file of a hub is not there.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("`{text}` is not a reference of the form hf:owner/name[@revision][:file]: {reason}")]
    Reference { text: String, reason: String },
    #[error("the environment variable {name} {reason}")]
    Setting { name: &'static str, reason: String },
    #[error("{what} is not in the cache {cache}, and nothing is downloaded while offline", cache = cache.display())]
    Offline { what: String, cache: PathBuf },
    #[error("cannot reach {host} for {what}: {reason}; see to the connection, or set HF_ENDPOINT to a mirror")]
    Unreachable { host: String, what: String, reason: String },
    #[error(
        "{host} has not sent all of {what} within {}, which is as long as it may take; what has come is kept: try again to go \
         on from there",
        in_words(*seconds)
    )]
    TooSlow { host: String, what: String, seconds: u64 },
    #[error("another process is still downloading {what}, which takes longer than it may: stop it, and try again")]
    Busy { what: String },
    /// The server does not say whether a repository exists to those who may not see it.
    #[error("{host} gives {what} to nobody without leave: it does not exist, or is private or gated; {hint}")]
    Unauthorised { host: String, what: String, hint: &'static str },
    #[error("{host} refuses {what}: it may have conditions to accept at {page}; {hint}")]
    Forbidden { host: String, what: String, page: String, hint: &'static str },
    #[error("{host} has no {what}; see to the spelling of owner, name, revision and file")]
    NotFound { host: String, what: String },
    #[error("{repository} has no file `{file}` at {revision}; it has {files}")]
    NoFile { repository: String, file: String, revision: String, files: String },
    #[error("{repository} does not tell which file to take: write hf:{repository}:FILE with one of {files}")]
    Choice { repository: String, files: String },
    #[error("{repository} has no weights that can be read; its files are {files}")]
    NoWeights { repository: String, files: String },
    #[error("{host} answers the request for {what} with the status {status}")]
    Status { host: String, what: String, status: u16 },
    #[error("{host} answers the request for {what} as no hub does: {reason}")]
    Answer { host: String, what: String, reason: String },
    #[error("{host} has {bytes} bytes for {what}, which are more than it can have, {limit}")]
    TooLarge { host: String, what: String, bytes: u64, limit: u64 },
    #[error("{what} came damaged from {host}: its {kind} is {found}, not {expected}; the download is thrown away")]
    Checksum { host: String, what: String, kind: &'static str, found: String, expected: String },
    #[error("no space is left for {what}, {bytes} bytes, in {cache}: free some, or set HF_HOME to another disk", cache = cache.display())]
    NoSpace { what: String, bytes: u64, cache: PathBuf },
    #[error("cannot use {path}: {source}", path = path.display())]
    Cache { path: PathBuf, source: io::Error },
}

/// Whole minutes, where there are some.
fn in_words(seconds: u64) -> String {
    match seconds / 60 {
        0 => format!("{seconds} s"),
        minutes => format!("{minutes} min"),
    }
}
