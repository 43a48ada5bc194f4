//! What a Keras file is made of: an HDF5 file, by itself or in a zip with two JSON texts beside it.

use std::collections::HashSet;
use std::io::{Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hdf5_pure::{File, FormatError, Source};
use serde_json::Value;
use zip::ZipArchive;

use crate::formats::leads_out;
use crate::text::printable;

/// The entries of a `.keras` archive.
pub(super) const CONFIG: &str = "config.json";
pub(super) const METADATA: &str = "metadata.json";
pub(super) const WEIGHTS: &str = "model.weights.h5";
/// In the place of [`WEIGHTS`] where Keras cut them into several files.
const SHARDS: &str = "model.weights.json";

/// The longest text accepted; EfficientNetB7's takes less than 2 MB.
const MAX_TEXT: u64 = 32 << 20;

/// Keras compresses nothing, but an archive packed anew may be; weights hardly shrink.
const MAX_GROWTH: u64 = 8;
const MAX_GROWTH_FROM: u64 = 64 << 20;

/// An opened container.
pub(super) struct Container {
    pub(super) kind: Kind,
    /// The HDF5 file's bytes.
    pub(super) hdf5: Arc<Vec<u8>>,
    /// The text of `config.json`, in an archive.
    pub(super) config: Option<Value>,
    /// The version of Keras that wrote an archive.
    pub(super) version: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// `.keras`
    Archive,
    /// `.h5`
    Hdf5,
}

/// Whether it is a zip with an entry that Keras's have.
pub(in crate::formats) fn is_archive(bytes: &[u8]) -> bool {
    let named = |archive: ZipArchive<Cursor<&[u8]>>| {
        [CONFIG, WEIGHTS, SHARDS].iter().any(|name| archive.index_for_name(name).is_some())
    };
    bytes.starts_with(b"PK") && ZipArchive::new(Cursor::new(bytes)).is_ok_and(named)
}

impl Container {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.starts_with(b"PK") {
            Self::archive(bytes)
        } else {
            Ok(Self { kind: Kind::Hdf5, hdf5: Arc::new(bytes.to_vec()), config: None, version: None })
        }
    }

    fn archive(bytes: &[u8]) -> Result<Self, String> {
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| error.to_string())?;
        let mut names = HashSet::new();
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(|error| error.to_string())?;
            let name = entry.name().map_err(|error| error.to_string())?.into_owned();
            if leads_out(&name) {
                return Err(format!("it has an entry `{}`, which leads out of the archive", printable(&name)));
            }
            if let Some(name) = names.replace(name) {
                return Err(format!("it has the entry `{}` twice", printable(&name)));
            }
        }
        let limit = MAX_GROWTH_FROM.max(MAX_GROWTH * bytes.len() as u64);
        let hdf5 = entry(&mut archive, WEIGHTS, limit)?.ok_or_else(|| match archive.index_for_name(SHARDS) {
            Some(_) => "its weights are cut into shards; save it in one piece, without max_shard_size".to_owned(),
            None => format!("it has no {WEIGHTS}"),
        })?;
        let config = entry(&mut archive, CONFIG, MAX_TEXT)?.map(|text| json(CONFIG, &text)).transpose()?;
        let metadata = entry(&mut archive, METADATA, MAX_TEXT)?.map(|text| json(METADATA, &text)).transpose()?;
        let version = metadata.and_then(|metadata| Some(metadata.get("keras_version")?.as_str()?.to_owned()));
        Ok(Self { kind: Kind::Archive, hdf5: Arc::new(hdf5), config, version })
    }

    /// The HDF5 file, which can be read for a time that its size bounds.
    pub(super) fn open(&self) -> Result<File, String> {
        File::from_source(Budgeted::new(Arc::clone(&self.hdf5))).map_err(|error| error.to_string())
    }
}

/// What an entry unfolds to, at most `limit` bytes of it.
fn entry(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str, limit: u64) -> Result<Option<Vec<u8>>, String> {
    let Some(index) = archive.index_for_name(name) else { return Ok(None) };
    let entry = archive.by_index(index).map_err(|error| format!("{name}: {error}"))?;
    let size = entry.size();
    if size > limit {
        return Err(format!("{name} claims to unfold to {} MiB", size >> 20));
    }
    let mut bytes = Vec::new();
    // The declared size is believed no more than the archive's own checksum, which reading to the end checks.
    entry.take(limit + 1).read_to_end(&mut bytes).map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() as u64 > limit {
        return Err(format!("{name} unfolds to more than the {} MiB that are accepted", limit >> 20));
    }
    Ok(Some(bytes))
}

pub(super) fn json(what: &str, text: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(text).map_err(|error| format!("{what} is not JSON: {error}"))
}

/// The JSON text in an attribute.
pub(super) fn json_attribute(what: &str, text: &str) -> Result<Value, String> {
    match text.len() as u64 <= MAX_TEXT {
        true => json(what, text.as_bytes()),
        false => Err(format!("{what} is longer than {} MiB", MAX_TEXT >> 20)),
    }
}

/// An HDF5 file in memory that refuses to be read for ever: one whose links or B-trees lead back to themselves could be.
struct Budgeted {
    bytes: Arc<Vec<u8>>,
    /// Bytes that may still be read.
    left: AtomicU64,
}

impl Budgeted {
    /// What a read costs beside its bytes.
    const READ: u64 = 64;
    /// Each group and each dataset is looked at a few times, and what lists them each time.
    const PASSES: u64 = 64;
    const AT_LEAST: u64 = 64 << 20;

    fn new(bytes: Arc<Vec<u8>>) -> Self {
        let left = AtomicU64::new(Self::AT_LEAST + Self::PASSES * bytes.len() as u64);
        Self { bytes, left }
    }
}

impl Source for Budgeted {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FormatError> {
        let cost = buf.len() as u64 + Self::READ;
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(cost)).is_err() {
            return Err(FormatError::Source("its parts refer to each other too often".to_owned()));
        }
        let length = buf.len() as u64;
        let end = offset.checked_add(length).ok_or(FormatError::OffsetOverflow { offset, length })?;
        let available = self.bytes.len();
        let range = usize::try_from(offset).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(usize::MAX);
        let expected = range.end;
        let found = self.bytes.get(range).ok_or(FormatError::UnexpectedEof { expected, available })?;
        buf.copy_from_slice(found);
        Ok(())
    }
}
