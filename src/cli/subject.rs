//! What `recalibrate` and `doctor` work on: a weights file, and images to look at it with.

use super::args::{self, DataArgs, DeviceArgs, ModelArgs, Size, SizeArgs, Split};
use super::output;
use super::preprocess::PreprocessArgs;
use super::source::SourceArgs;
use anyhow::{Result, bail};
use std::path::PathBuf;
use thawline::data::{DecodeOptions, ImageFolder, Loader, LoaderOptions, Mode, Sample, Transform, shuffled};
use thawline::gpu::{Device, Parameters};
use thawline::graph::{Graph, Stats};
use thawline::models::Spec;
use thawline::plan::Input;
use thawline::tensor::HostTensor;
use thawline::train::{PADDING, Probe, TrainError};
use thawline::weights::StateDict;

#[derive(clap::Args)]
pub struct SubjectArgs {
    /// A safetensors, PyTorch, Keras, TensorFlow.js or ONNX file, or one of a Hugging Face hub
    #[arg(long, value_name = "FILE|hf:OWNER/NAME")]
    pub weights: PathBuf,
    #[command(flatten)]
    pub source: SourceArgs,
    /// The network, if the file does not tell
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub size: SizeArgs,
    #[command(flatten)]
    pub preprocess: PreprocessArgs,
    /// Decides which images, in which order, and what is set aside for validation
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// A network with its weights, a device and a folder of images.
pub struct Subject {
    pub spec: Spec,
    /// The weights file as it is, and the graph in its metadata if the network has no name.
    pub file: StateDict,
    pub network: Graph,
    pub tensors: Vec<HostTensor>,
    /// Of the images that the network takes.
    pub size: Size,
    /// The size that the file's run was trained at, if the file tells.
    pub trained_size: Option<Size>,
    pub device: Device,
    folder: ImageFolder,
    /// Whether the folder's classes are the network's.
    pub labelled: bool,
    transform: Transform,
    skip_broken: bool,
    decode: DecodeOptions,
    seed: u64,
}

impl SubjectArgs {
    pub fn open(&self) -> Result<Subject> {
        let model = ModelArgs {
            model: self.model.clone(),
            weights: Some(self.weights.clone()),
            source: self.source.clone(),
            classes: None,
            seed: self.seed,
        };
        let mut model = model.read_for(self.preprocess.parts(), self.size.size)?;
        let mut folder = self.data.open(self.seed)?;
        // Statistics need no labels: images of other classes will do.
        let labels = model.labels(&folder, &self.data.data);
        if let Err(reason) = &labels {
            output::warning(format_args!("{reason}: accuracy is not measured"));
        }
        let labelled = labels.is_ok();
        for sample in folder.train.iter_mut().chain(&mut folder.val) {
            sample.label = labels.as_ref().map_or(PADDING, |labels| labels[sample.label as usize]);
        }
        let size = model.size(self.size.size);
        let network = model.network(1, size)?;
        let metadata = model.metadata(size)?;
        let file = model.state.as_ref().map(|state| StateDict { metadata, ..state.clone() }).unwrap_or_default();
        Ok(Subject {
            tensors: model.tensors(&network)?,
            transform: args::transform(&model.spec, size)?,
            spec: model.spec,
            file,
            network,
            size,
            trained_size: model.trained_size,
            device: self.device.open()?,
            folder,
            labelled,
            skip_broken: self.data.skip_broken,
            decode: self.data.decode.options(None),
            seed: self.seed,
        })
    }
}

impl Subject {
    /// The form in which the network takes images.
    pub fn input(&self) -> Input {
        args::input(&self.spec)
    }

    /// At most so many images of `split`, in a seeded order, which mixes the classes.
    pub fn samples(&self, split: Split, most: usize) -> Result<Vec<Sample>> {
        let mut samples = shuffled(split.of(&self.folder), self.seed);
        if samples.is_empty() {
            bail!("no images are set aside for validation; use --split all");
        }
        samples.truncate(most);
        Ok(samples)
    }

    /// The images that are set aside for validation, if there are any and their classes are the network's.
    pub fn validation(&self) -> Option<Vec<Sample>> {
        (self.labelled && !self.folder.val.is_empty()).then(|| self.folder.val.clone())
    }

    pub fn loader(&self, samples: Vec<Sample>, batch: usize) -> Result<Loader> {
        let options = LoaderOptions::new(Mode::Eval, batch, self.seed);
        let options = LoaderOptions { skip_broken: self.skip_broken, decode: self.decode, ..options };
        Ok(Loader::new(samples, self.transform.clone(), options)?)
    }

    /// A probe of the network with the given parameters, in inference.
    pub fn probe(&self, tensors: &[HostTensor]) -> Result<Probe, TrainError> {
        let params = Parameters::upload(&self.device, &self.network, tensors)?;
        Probe::new(&self.device, &self.network, &params, self.input(), |_| Stats::Running)
    }
}
