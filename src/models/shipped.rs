//! Networks whose graph files are part of the library: of torchvision, timm and Keras, made by `scripts/graphs/generate.py`, which
//! says more.

use super::{BY_KERAS, BY_TIMM, GraphFile, Network, Spec, torchvision};
use crate::graph::{Graph, GraphError};
use crate::preprocessing::{Preprocessing, Traced};
use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::sync::{Arc, OnceLock};
use zip::ZipArchive;

/// A graph file for each network, `NAME.json`, and `index.json`, which is what lists show.
const ARCHIVE: &[u8] = include_bytes!("../../assets/graphs.zip");

/// A network, whose graph file is read when it is first asked for.
pub(super) struct Shipped {
    name: String,
    file: OnceLock<GraphFile>,
}

#[derive(serde::Deserialize)]
struct Entry {
    name: String,
    library: Library,
    size: usize,
    preprocessing: Preprocessing,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Library {
    Torchvision,
    Timm,
    Keras,
}

/// All of them, in the order of the index.
///
/// # Panics
/// If the archive is broken, which `tests/models.rs` would find.
pub(super) fn specs() -> impl Iterator<Item = Spec> {
    let entries: Vec<Entry> = serde_json::from_str(&text("index.json")).expect("the index of assets/graphs.zip");
    entries.into_iter().map(|Entry { name, library, size, preprocessing }| {
        let origin = match library {
            Library::Torchvision => torchvision::DEFAULT,
            Library::Timm => BY_TIMM,
            Library::Keras => BY_KERAS,
        };
        Spec {
            name: Cow::Owned(name.clone()),
            default_size: size,
            preprocessing: Traced::known(preprocessing, origin),
            default_classes: 1000,
            augmentation: Vec::new(),
            network: Network::Shipped(Arc::new(Shipped { name, file: OnceLock::new() })),
        }
    })
}

impl Shipped {
    /// The network for `batch` images of `size` = (height, width) pixels.
    pub(super) fn build(&self, batch: usize, size: (usize, usize), classes: usize) -> Result<Graph, GraphError> {
        self.file().build(batch, size, classes)
    }

    pub(super) fn file(&self) -> &GraphFile {
        self.file.get_or_init(|| {
            let name = format!("{}.json", self.name);
            GraphFile::parse(&text(&name), &name).expect("a graph file of assets/graphs.zip")
        })
    }
}

/// A file of the archive.
fn text(name: &str) -> String {
    let mut archive = ZipArchive::new(Cursor::new(ARCHIVE)).expect("assets/graphs.zip");
    let mut file = archive.by_name(name).expect("a file of assets/graphs.zip");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("a text of assets/graphs.zip");
    text
}
