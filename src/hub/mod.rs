//! Weights by name, from a hub such as <https://huggingface.co>, through the cache that the hub's own libraries use.
//!
//! [`Hub::fetch`] finds the commit that a [`Reference`] stands for, chooses the weights among its files, and downloads
//! what the cache lacks: to a file beside its place, which a later attempt goes on with, under a lock, and verified before
//! it takes its name. What Python fetched is found here, and the other way round.
//!
//! Servers and references are treated as hostile: no name leaves the cache's folder, no declared size is believed, the
//! token goes to the hub alone.

mod cache;
mod error;
mod http;
mod reference;
#[cfg(test)]
mod tests;

use crate::files::read_text;
use crate::formats::Format;
use cache::{MAX_TEXT, Repository, make_parent, unusable};
pub use error::HubError;
use http::{Client, Deadline, Facts, Failure, Pace, in_words, what};
pub use reference::{Reference, SCHEME};
use reference::{is_commit, is_hex, is_relative};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use ureq::BodyReader;

/// What weights are called when a library of the hub writes them, in order of preference.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// What describes the weights.
const CONFIG: &str = "config.json";

/// The largest file that is downloaded, far more than any convolutional network takes, in bytes.
const MAX_WEIGHTS: u64 = 16 << 30;
const MAX_CONFIG: u64 = 1 << 20;

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// Bytes by which an attempt must get further than all before it, for its failure not to count: the connection is slow or
/// short-lived, but works.
const FURTHER: u64 = 1 << 20;

/// Files that a message names.
const NAMED: usize = 12;

/// Where a download stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub file: &'a str,
    /// Bytes that are there.
    pub done: u64,
    pub total: u64,
}

/// What a reference led to.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The file in the cache; config.json is beside it, if the repository has one.
    pub path: PathBuf,
    /// The reference with the commit and the file: it will mean the same in a year.
    pub reference: Reference,
}

/// A hub and the cache of what came from it.
pub struct Hub {
    client: Client,
    cache: PathBuf,
    offline: bool,
}

/// A commit of a repository, and the files that are to be had of it.
struct Snapshot {
    commit: String,
    files: Vec<String>,
    /// Whether they are the files in the cache.
    cached: bool,
}

impl Hub {
    /// The hub and the cache that the environment names, as for Hugging Face's own libraries: `HF_ENDPOINT`;
    /// `HF_HUB_CACHE` or `HUGGINGFACE_HUB_CACHE`, else the folder `hub` in `HF_HOME`, else in `huggingface` in
    /// `XDG_CACHE_HOME` or `~/.cache`; `HF_TOKEN`, else what is in the file `HF_TOKEN_PATH` or `token` in `HF_HOME`;
    /// `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`.
    ///
    /// # Errors
    /// When an address or a token cannot be one, or no folder for the cache is named.
    pub fn from_env() -> Result<Self, HubError> {
        Self::new(|name| env::var_os(name), env::home_dir(), Pace::USUAL)
    }

    fn new(var: impl Fn(&str) -> Option<OsString>, user: Option<PathBuf>, pace: Pace) -> Result<Self, HubError> {
        let var = |name| var(name).filter(|value| !value.is_empty());
        let path = |name| {
            let path = PathBuf::from(var(name)?);
            Some(match (path.strip_prefix("~"), &user) {
                (Ok(rest), Some(user)) => user.join(rest),
                _ => path,
            })
        };
        let text = |name| match var(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(HubError::Setting { name, reason: "is not text".into() }),
        };
        let shared = || path("XDG_CACHE_HOME").or_else(|| Some(user.as_ref()?.join(".cache")));
        let home = path("HF_HOME").or_else(|| Some(shared()?.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub")));
        let unset = || HubError::Setting { name: "HF_HOME", reason: "is not set, and there is no home folder".into() };
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")));
        let token = match text("HF_TOKEN")? {
            Some(token) => Some(token),
            // Most people have none.
            None => token_file.and_then(|file| read_text(&file, MAX_TEXT).ok()),
        };
        let token = token.as_deref().map(str::trim).filter(|token| !token.is_empty());
        let endpoint = text("HF_ENDPOINT")?;
        let endpoint = endpoint.as_deref().unwrap_or("https://huggingface.co");
        let offline = text("HF_HUB_OFFLINE")?.or(text("TRANSFORMERS_OFFLINE")?);
        let offline = offline.unwrap_or_default().to_ascii_lowercase();
        Ok(Self {
            client: Client::new(endpoint, token, pace)?,
            cache: cache.ok_or_else(unset)?,
            offline: ["1", "on", "yes", "true"].contains(&offline.as_str()),
        })
    }

    /// Whether to use what the cache holds, and nothing else; `false` leaves it as it is.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline |= offline;
        self
    }

    /// The file that `reference` stands for, downloaded unless the cache has it.
    ///
    /// Where the reference names no file, it is `model.safetensors`, else `pytorch_model.bin`, else the only file that is
    /// by its name in a format whose files are weights by themselves, such as .keras or .pth. When the hub cannot be
    /// reached, the commit that the cache knows is used, with a warning. A download that was broken off goes on where it
    /// ended. The content is verified where the hub names it by its SHA-256, as it does large files, or its Git hash, as it
    /// does small ones.
    ///
    /// A config.json too large to be one is left out, with a warning.
    ///
    /// `progress` is told of every piece of a download.
    ///
    /// # Errors
    /// When there is no such file, the hub cannot be reached, refuses or is too slow (what has come is kept, and the next
    /// attempt goes on from there), what came is not what it should be, or it cannot be written.
    pub fn fetch(&self, reference: &Reference, progress: &mut dyn FnMut(Progress)) -> Result<Fetched, HubError> {
        let repository = Repository::of(&self.cache, reference);
        let snapshot = self.snapshot(reference, &repository)?;
        let file = choose(reference, &snapshot.files)?;
        let has_config = snapshot.files.iter().any(|name| name == CONFIG);
        let mut get = |file: &str, limit: u64| {
            let path = repository.path(&snapshot.commit, file);
            if !path.is_file() {
                self.download(&repository, reference, &snapshot.commit, file, limit, progress)?;
            }
            Ok(path)
        };
        if has_config {
            match get(CONFIG, MAX_CONFIG) {
                Err(error @ HubError::TooLarge { .. }) => log::warn!("{error}; going on without it"),
                got => drop(got?),
            }
        }
        let path = get(&file, MAX_WEIGHTS)?;
        if !snapshot.cached {
            repository.remember(&reference.revision, &snapshot.commit)?;
        }
        let reference = Reference { revision: snapshot.commit, file: Some(file), ..reference.clone() };
        Ok(Fetched { path, reference })
    }

    /// The commit that the reference's revision stands at, as the hub says, or the cache where it must or may.
    fn snapshot(&self, reference: &Reference, repository: &Repository) -> Result<Snapshot, HubError> {
        let cached = repository.commit(&reference.revision).and_then(|commit| {
            let files = repository.files(&commit);
            choose(reference, &files).is_ok().then_some(Snapshot { commit, files, cached: true })
        });
        // A commit never changes. Python may have fetched the weights without what describes them.
        let complete = |snapshot: &Snapshot| snapshot.files.iter().any(|file| file == CONFIG);
        if self.offline || (is_commit(&reference.revision) && cached.as_ref().is_some_and(complete)) {
            let what = reference.to_string();
            return cached.ok_or_else(|| HubError::Offline { what, cache: self.cache.clone() });
        }
        // What is there can be had at once.
        let attempts = if cached.is_some() { 1 } else { self.client.attempts() };
        let deadline = self.client.deadline(0);
        let listing = || self.client.list(&reference.repository(), &reference.revision, deadline);
        match (self.client.patiently(&reference.repository(), attempts, deadline, |_| listing()), cached) {
            (Err(error @ (HubError::Unreachable { .. } | HubError::TooSlow { .. })), Some(cached)) => {
                log::warn!("{error}; taking {} from the cache", reference.repository());
                Ok(cached)
            }
            (Err(error), _) => Err(error),
            (Ok((commit, _)), _) if !is_commit(&commit) => Err(HubError::Answer {
                host: self.client.host(),
                what: reference.repository(),
                reason: "it does not tell the commit".into(),
            }),
            (Ok((commit, mut files)), _) => {
                files.retain(|file| is_relative(file));
                Ok(Snapshot { commit, files, cached: false })
            }
        }
    }

    fn download(
        &self,
        repository: &Repository,
        reference: &Reference,
        commit: &str,
        file: &str,
        limit: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), HubError> {
        let name = reference.repository();
        let what = what(&name, file);
        let attempts = self.client.attempts();
        let deadline = self.client.deadline(0);
        let facts = self.client.patiently(&what, attempts, deadline, |_| self.client.facts(&name, commit, file))?;
        if facts.size > limit {
            return Err(HubError::TooLarge { host: self.client.host(), what, bytes: facts.size, limit });
        }
        let etag = facts.etag.clone();
        let blob = repository.blob(&etag);
        make_parent(&blob)?;
        let deadline = self.client.deadline(facts.size);
        let lock = repository.lock(&etag, &what, || deadline.is_over())?;
        let Some(_lock) = lock else { return Err(HubError::Busy { what }) };
        // What another process took is not held against this one.
        let deadline = self.client.deadline(facts.size);
        if !blob.is_file() {
            let path = blob.with_file_name(format!("{etag}.incomplete"));
            // Not to append: with that, Windows lets nobody cut the file.
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let out = options.open(&path).map_err(unusable(&path))?;
            let mut partial = Partial { path, out, what, facts, deadline, furthest: 0, restarted: false };
            let fetch = |from| self.client.content(&name, commit, file, from);
            let mut report = |done, total| progress(Progress { file, done, total });
            let filled = self.client.patiently(&partial.what.clone(), attempts, deadline, |further| {
                partial.go_on(&self.client, &fetch, &mut report, further)
            });
            partial.finish(filled, &blob)?;
        }
        repository.point(commit, file, &etag)
    }
}

/// A download under way: the file that its bytes gather in.
struct Partial {
    path: PathBuf,
    out: File,
    what: String,
    facts: Facts,
    deadline: Deadline,
    /// The furthest byte that was ever reached.
    furthest: u64,
    /// Whether what was there before was thrown away as damaged.
    restarted: bool,
}

impl Partial {
    /// One attempt to complete the file; it sets `further` if that got it further by more than a little.
    fn go_on(
        &mut self,
        client: &Client,
        fetch: &dyn Fn(u64) -> Result<(BodyReader<'static>, u64), Failure>,
        report: &mut dyn FnMut(u64, u64),
        further: &mut bool,
    ) -> Result<(), Failure> {
        let total = self.facts.size;
        let mut from = self.out.metadata().map_err(unusable(&self.path))?.len();
        if from > total {
            from = self.clear()?;
        }
        self.furthest = self.furthest.max(from);
        if from < total {
            let (mut body, start) = fetch(from)?;
            if start < from {
                from = self.clear()?;
            }
            self.out.seek(SeekFrom::Start(from)).map_err(unusable(&self.path))?;
            let mut done = from;
            let mut buffer = vec![0; CHUNK];
            loop {
                let broke_off = |error| format!("broke off after {done} of {total} bytes: {}", in_words(&error));
                let count = body.read(&mut buffer).map_err(|error| Failure::Passing(broke_off(error)))?;
                if count == 0 {
                    break;
                }
                done += count as u64;
                if done > total {
                    self.clear()?;
                    let (host, what) = (client.host(), self.what.clone());
                    return Err(HubError::Answer { host, what, reason: format!("more than {total} bytes come") }.into());
                }
                self.write(&buffer[..count])?;
                report(done, total);
                if done < total && self.deadline.is_over() {
                    return Err(self.deadline.missed(client, &self.what).into());
                }
                // A server without ranges begins anew each time, and may break off each time.
                if done >= self.furthest + FURTHER {
                    (self.furthest, *further) = (done, true);
                }
            }
            if done < total {
                return Err(Failure::Passing(format!("ended after {done} of {total} bytes")));
            }
        }
        match self.verify(client)? {
            // What was there before may be what is wrong.
            Some(_) if from > 0 && !self.restarted => {
                (self.restarted, self.furthest) = (true, 0);
                Err(Failure::Passing("what an earlier attempt left is damaged".into()))
            }
            Some(damage) => Err(damage.into()),
            None => Ok(()),
        }
    }

    fn clear(&mut self) -> Result<u64, HubError> {
        self.out.set_len(0).map_err(unusable(&self.path))?;
        Ok(0)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.out.write_all(bytes).map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                // A full disk is in the way of more than this download.
                let _ = self.out.set_len(0);
                let cache = self.path.parent().unwrap_or(&self.path).into();
                HubError::NoSpace { what: self.what.clone(), bytes: self.facts.size, cache }
            }
            _ => unusable(&self.path)(error),
        })
    }

    /// What is wrong with the content, which is thrown away then.
    ///
    /// The hub names large files by their SHA-256 and small ones by their hash in Git, `blob <size>\0` before the
    /// content; other servers may name them by what cannot be verified.
    fn verify(&mut self, client: &Client) -> Result<Option<HubError>, HubError> {
        let (kind, found) = match self.facts.etag.len() {
            _ if !is_hex(&self.facts.etag) => return Ok(None),
            64 => ("SHA-256", self.digest(Sha256::new())?),
            40 => {
                let git = Sha1::new().chain_update(format!("blob {}\0", self.facts.size));
                ("Git hash", self.digest(git)?)
            }
            _ => return Ok(None),
        };
        if found == self.facts.etag {
            return Ok(None);
        }
        self.clear()?;
        let (host, what, expected) = (client.host(), self.what.clone(), self.facts.etag.clone());
        Ok(Some(HubError::Checksum { host, what, kind, found, expected }))
    }

    fn digest(&mut self, mut hasher: impl Digest) -> Result<String, HubError> {
        let mut read = || {
            self.out.rewind()?;
            let mut buffer = vec![0; CHUNK];
            loop {
                match self.out.read(&mut buffer)? {
                    0 => return Ok(()),
                    count => hasher.update(&buffer[..count]),
                }
            }
        };
        read().map_err(unusable(&self.path))?;
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Gives the file its name if it is complete. One that is not stays for another attempt, unless it is empty.
    fn finish(self, filled: Result<(), HubError>, blob: &Path) -> Result<(), HubError> {
        let Self { path, out, .. } = self;
        let synced = out.sync_all();
        let empty = out.metadata().is_ok_and(|found| found.len() == 0);
        drop(out);
        if filled.is_err() && empty {
            // The first error is the one to report.
            let _ = fs::remove_file(&path);
        }
        filled?;
        synced.and_then(|()| fs::rename(&path, blob)).map_err(unusable(blob))
    }
}

/// The file that the reference names, or the one that holds the repository's weights.
fn choose(reference: &Reference, files: &[String]) -> Result<String, HubError> {
    let repository = reference.repository();
    let has = |wanted: &str| files.iter().any(|file| file == wanted);
    let named = |files: &mut dyn Iterator<Item = &String>| {
        let files: Vec<&str> = files.map(String::as_str).collect();
        let more = files.len().saturating_sub(NAMED);
        let shown = files[..files.len() - more].join(", ");
        match (files.len(), more) {
            (0, _) => "none".into(),
            (_, 0) => shown,
            _ => format!("{shown} and {more} more"),
        }
    };
    if let Some(file) = &reference.file {
        let (revision, file) = (reference.revision.clone(), file.clone());
        return match has(&file) {
            true => Ok(file),
            false => Err(HubError::NoFile { repository, file, revision, files: named(&mut files.iter()) }),
        };
    }
    if let Some(file) = WEIGHTS.into_iter().find(|file| has(file)) {
        return Ok(file.into());
    }
    let mut candidates =
        files.iter().filter(|file| Format::of_name(Path::new(file)).is_some_and(|format| format.facts().alone));
    match (candidates.next(), candidates.next()) {
        (Some(file), None) => Ok(file.clone()),
        (None, _) => Err(HubError::NoWeights { repository, files: named(&mut files.iter()) }),
        (Some(one), Some(two)) => {
            let files = named(&mut [one, two].into_iter().chain(candidates));
            Err(HubError::Choice { repository, files })
        }
    }
}
