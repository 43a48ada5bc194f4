use super::output;
use super::progress::Progress;
use anyhow::Result;
use std::path::PathBuf;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};

/// Write a small image data set to try things on.
///
/// `shapes` are drawn colour shapes and textures, `shapes-noisy` the same under far more noise. `digits` are handwritten digits (UCI, CC BY 4.0), bright on black, and
/// `digits-far` the same ones bright on almost as bright: far from what a network trained on `shapes` has seen. Ten
/// classes each, as PNG files in DIR/train and DIR/val.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  thawline sample-data digits ./digits")]
pub struct Args {
    /// Which data set
    #[arg(value_name = "SET", value_parser = clap::builder::PossibleValuesParser::new(SampleSet::NAMES))]
    set: String,
    /// A folder that does not exist yet, or is empty
    dir: PathBuf,
    /// Pixels a side, 8 to 1024
    #[arg(long, value_name = "N", default_value_t = SampleOptions::default().size)]
    size: u32,
    /// Images of each class of the shapes; of each digit there are about 180
    #[arg(long, value_name = "N", default_value_t = SampleOptions::default().per_class)]
    per_class: usize,
    /// Decides what is drawn, and which fifth of each class goes to val/
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

pub fn run(args: Args) -> Result<()> {
    let options = SampleOptions { size: args.size, per_class: args.per_class, seed: args.seed };
    let progress = Progress::new("writing images");
    let written = write_sample_data(args.set.parse::<SampleSet>()?, &args.dir, &options)?;
    drop(progress);
    let (dir, train, val) = (args.dir.display(), written.train, written.val);
    output::line(format_args!("{dir}: {} to train on, {val} to validate", output::quantity(train, "image")))
}
