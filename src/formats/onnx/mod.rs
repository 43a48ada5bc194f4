//! Networks as ONNX: [`encode`] and [`save`] write one for other programs, [`load`] reads one that another program wrote.

mod attributes;
mod bounds;
mod export;
mod import;
mod names;
#[cfg(test)]
mod operator_tests;
// Written by scripts/onnx-proto from ONNX's own definition.
#[rustfmt::skip]
#[allow(dead_code, clippy::enum_variant_names, reason = "generated, and for all of ONNX")]
pub(crate) mod proto;
mod reader;
mod tensor;
#[cfg(test)]
mod tests;

pub use export::{About, MAX_BYTES, encode, save};
pub(super) use import::open;
pub use import::{Imported, load, parse};

/// Who wrote a file, as its `producer_name` says. The metadata below mean what they do here in this crate's files only.
const PRODUCER: &str = env!("CARGO_PKG_NAME");

/// Metadata that this crate writes into a file, and reads: what is done to images before the network sees them, and which
/// layers are a residual block; the names of the classes have their own key. The values are JSON.
const MEAN: &str = "mean";
const STD: &str = "std";
const BGR: &str = "bgr";
const BLOCKS: &str = "blocks";
