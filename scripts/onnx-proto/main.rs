//! Writes `src/formats/onnx/proto.rs`; see the README beside this file.

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = here.join("../../src/formats/onnx");
    let descriptors = protox::compile([here.join("onnx.proto")], [here])?;
    // The comments are in onnx.proto, and in a form that rustdoc does not take.
    prost_build::Config::new().disable_comments(["."]).out_dir(&out).compile_fds(descriptors)?;
    Ok(fs::rename(out.join("onnx.rs"), out.join("proto.rs"))?)
}
