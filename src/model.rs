//! A model as people have it: a weights file of any format with its network, its preprocessing and its classes, opened as
//! one, and written back in the format that it came in.
//!
//! ```no_run
//! use thawline::model::Model;
//! use thawline::policy::{self, Policy};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut model = Model::open("flowers.keras".as_ref())?;
//! let network = policy::resolve(&Policy::recipe("head")?, model.network(8, model.size(None))?)?.graph;
//! let tensors = model.tensors(&network)?;
//! // … train …
//! model.save(&network, &tensors, "tuned.keras".as_ref())?;
//! # Ok(())
//! # }
//! ```

use crate::data::{Augment, ImageFolder, Transform};
use crate::export::{self, ExportError, Folding};
use crate::formats::onnx::{self, About};
use crate::formats::{self, CLASSES, Format, FormatError, ModelFile, Save};
use crate::graph::Graph;
use crate::identify::{Identified, IdentifyError, Known, identify};
use crate::models::{self, GRAPH, GraphAbout, GraphFile, GraphFileError, ModelError, Spec, Told};
use crate::plan::Input;
use crate::preprocessing::{PREPROCESSING, Parts, Traced};
use crate::tensor::HostTensor;
use crate::text::quantity;
use crate::train::PADDING;
use crate::weights::{self, Config, Head, StateDict, WeightsError};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Height and width of images, in pixels. Its text is `N` or `HxW`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    pub height: usize,
    pub width: usize,
}

impl Size {
    /// Height and width, as [`models::build`] takes them.
    pub fn pair(self) -> (usize, usize) {
        (self.height, self.width)
    }
}

impl From<(usize, usize)> for Size {
    fn from((height, width): (usize, usize)) -> Self {
        Self { height, width }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (height, width) = text.split_once(['x', '×']).unwrap_or((text, text));
        match (height.parse(), width.parse()) {
            (Ok(height), Ok(width)) if height > 0 && width > 0 => Ok(Self { height, width }),
            _ => Err("expected pixels per side such as 224, or height and width such as 192x256".into()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.height == self.width {
            true => write!(f, "{}", self.height),
            false => write!(f, "{}x{}", self.height, self.width),
        }
    }
}

/// A network, and its weights file if there is one.
pub struct Model {
    pub spec: Spec,
    /// Those asked for, else the file's, else the network's.
    pub classes: usize,
    /// Of the images that the file's run was trained at, if the file tells.
    pub trained_size: Option<Size>,
    /// The names of the classes in the order of their labels, if the file tells and the number of classes is its own.
    pub class_names: Option<Vec<String>>,
    /// Of larger images that the weights are tested with, too, if what is beside the file tells.
    pub test_size: Option<Size>,
    /// Whether the file's batch norms were folded into the convolutions.
    pub folded: bool,
    /// The file's content; none once [`tensors`](Self::tensors) took it.
    pub state: Option<StateDict>,
    /// What the user should know of how the file was understood, a sentence each.
    pub notes: Vec<String>,
    pub options: Options,
    /// The format of the file; none if there is no file.
    pub format: Option<Format>,
    /// The file, and what its metadata said.
    source: Option<(PathBuf, BTreeMap<String, String>)>,
}

/// What the caller says of a model, where the file is not to decide.
#[derive(Clone)]
pub struct Options {
    /// The network.
    pub spec: Option<Spec>,
    pub classes: Option<usize>,
    /// How images are prepared.
    pub preprocessing: Parts,
    /// Of the images.
    pub size: Option<Size>,
    /// Whether the file needs a head: without one it starts anew.
    pub head: Head,
    /// Of weights that start anew.
    pub seed: u64,
}

impl Default for Options {
    /// All as the file says, which needs a head.
    fn default() -> Self {
        Self { spec: None, classes: None, preprocessing: Parts::default(), size: None, head: Head::Required, seed: 0 }
    }
}

/// A model that cannot be opened, or not be written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Identify(#[from] IdentifyError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Graph(#[from] GraphFileError),
    #[error(transparent)]
    Network(#[from] crate::graph::GraphError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("{}: {reason}", path.display())]
    Preprocessing { path: PathBuf, reason: String },
    #[error("neither a weights file nor a network is named")]
    Nothing,
    #[error(
        "{} has folders for {}, but the network tells {classes} apart, and the weights file does not name them: add a folder for \
         each of the others, in the order of the labels; it may be empty",
        folder.display(),
        quantity(*folders, "class")
    )]
    OtherFolders { folder: PathBuf, folders: usize, classes: usize },
    #[error(
        "{} has a class `{class}`, but the network's classes are {names}: rename or remove the folder, or give weights that were \
         trained on these classes",
        folder.display()
    )]
    UnknownClass { folder: PathBuf, class: String, names: String },
}

impl Model {
    /// Opens a weights file of any [format](Format).
    ///
    /// # Errors
    /// It cannot be read, or its network is not known.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::of(formats::open(path, None)?, Options::default())
    }

    /// As [`open`](Self::open), with what the caller knows better.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); what the caller says contradicts the file.
    pub fn open_with(path: &Path, options: Options) -> Result<Self, OpenError> {
        Self::of(formats::open(path, None)?, options)
    }

    /// The network of `options`, with weights that start anew.
    ///
    /// # Errors
    /// The options name no network, or a number of classes that it cannot have.
    pub fn anew(options: Options) -> Result<Self, OpenError> {
        let Some(mut spec) = options.spec.clone() else { return Err(OpenError::Nothing) };
        let classes = options.classes.unwrap_or(spec.default_classes);
        models::check_classes(&spec.name, classes)?;
        spec.preprocessing = spec.preprocessing.with(&options.preprocessing, "the command line");
        Ok(Self {
            spec,
            classes,
            trained_size: None,
            class_names: None,
            test_size: None,
            folded: false,
            state: None,
            notes: Vec::new(),
            options,
            source: None,
            format: None,
        })
    }

    /// The model of a file's content; see [`formats::open`].
    ///
    /// # Errors
    /// Those of [`open_with`](Self::open_with).
    pub fn of(file: impl Into<ModelFile>, options: Options) -> Result<Self, OpenError> {
        let file = file.into();
        let config = file.tensors.origin.as_deref().map(Config::beside).transpose()?.flatten().unwrap_or_default();
        Self::of_configured(file, options, config)
    }

    /// As [`of`](Self::of), of weights that lie beside no `config.json`: with what one would say.
    ///
    /// # Errors
    /// Those of [`open_with`](Self::open_with).
    pub fn of_configured(file: impl Into<ModelFile>, options: Options, config: Config) -> Result<Self, OpenError> {
        let file = file.into();
        // A network that only takes other images than the one of its name is still meant by that name.
        let named = match options.spec.clone() {
            Some(named) if named.file().is_none() => {
                file.graph()?.filter(|told| told.name == named.name).or(Some(named))
            }
            named => named,
        };
        let described = match &named {
            Some(_) => None,
            None => file.described()?,
        };
        let in_file_names = file.classes();
        let ModelFile { format, tensors: mut state, network } = file;
        let known = Known {
            named: named.as_ref(),
            described: described.as_ref(),
            config: Some(&config),
            classes: options.classes,
            new_head: options.head == Head::Optional,
        };
        let Identified { mut spec, classes: in_file, one_output } = identify(&mut state, known)?;
        let mut notes = std::mem::take(&mut state.notes);
        let classes = options.classes.or(in_file).unwrap_or(spec.default_classes);
        models::check_classes(&spec.name, classes)?;
        let trained_size =
            state.metadata.get("size").and_then(|size| size.parse().ok()).or(config.size.map(Size::from));
        let size = options.size.or(trained_size).map_or(spec.size(), Size::pair);
        let statistics = network.and_then(|network| network.image_statistics(&spec));
        spec.preprocessing = prepared(&spec, &state, statistics, &config, &options.preprocessing, size)?;
        let test_size = config.test_size.filter(|_| spec.file().is_none()).map(Size::from);
        if one_output {
            spec = spec.with_one_output()?;
        }
        if let (Some(names), Some(outputs)) = (&in_file_names, in_file)
            && names.len() != outputs
        {
            let named = quantity(names.len(), "class");
            notes.push(format!("its names are of {named}, and its head has {outputs}: they are left out"));
        }
        let source = state.origin.clone().map(|path| (path, state.metadata.clone()));
        Ok(Self {
            spec,
            classes,
            trained_size,
            test_size,
            class_names: in_file_names.filter(|names| names.len() == classes && in_file == Some(classes)),
            folded: export::is_folded(&state),
            state: Some(state),
            notes,
            options,
            source,
            format: Some(format),
        })
    }

    /// The same network without the file that it came from.
    #[must_use]
    pub fn without_weights(&self) -> Self {
        Self {
            spec: self.spec.clone(),
            class_names: None,
            state: None,
            notes: Vec::new(),
            options: self.options.clone(),
            source: None,
            format: None,
            ..*self
        }
    }

    /// The size of the images: the one `asked` for, else the file's, else the network's.
    pub fn size(&self, asked: Option<Size>) -> Size {
        asked.or(self.trained_size).unwrap_or(self.spec.size().into())
    }

    /// The network for batches of `batch` images, every layer frozen; without its batch norms if the file is folded.
    ///
    /// # Errors
    /// It does not take images of that size, or not so many.
    pub fn network(&self, batch: usize, size: Size) -> Result<Graph, OpenError> {
        let network = self.spec.build(batch, size.pair(), self.classes)?;
        Ok(if self.folded { Folding::of(&network)?.graph } else { network })
    }

    /// The graph file of the network for images of `size`.
    ///
    /// # Errors
    /// Those of [`network`](Self::network).
    pub fn describe(&self, size: Size) -> Result<GraphFile, OpenError> {
        if !self.folded {
            return Ok(self.spec.describe(size.pair(), self.classes)?);
        }
        let Spec { name, preprocessing, .. } = &self.spec;
        let about = GraphAbout { name: name.to_string(), size: size.pair(), preprocessing: preprocessing.value };
        GraphFile::of(about, |size| self.network(1, size.into()))
    }

    /// How images become what the network takes.
    pub fn input(&self) -> Input {
        self.spec.preprocessing.value.into()
    }

    /// How images are shown to a network of `size`: all of them the same way each time.
    pub fn transform(&self, size: Size) -> Transform {
        // No network takes images beyond that.
        let [height, width] = [size.height, size.width].map(|side| u32::try_from(side).unwrap_or(u32::MAX));
        Transform::new(height, width, Augment::None, self.spec.preprocessing.value)
    }

    /// The parameters of `network`, a network of this model: the file's, which are taken out of `self`, or random ones.
    ///
    /// # Errors
    /// The file's tensors are not the network's: lists those that are missing, unexpected or misshapen.
    pub fn tensors(&mut self, network: &Graph) -> Result<Vec<HostTensor>, OpenError> {
        match self.state.take() {
            Some(state) => Ok(weights::from_state_with(network, state, self.options.seed, self.options.head)?.tensors),
            None => Ok(weights::initialise(network, self.options.seed)),
        }
    }

    /// The file that the weights came from, with its whole path; none if they are random.
    ///
    /// # Errors
    /// The present folder is not known.
    pub fn origin(&self) -> std::io::Result<Option<PathBuf>> {
        self.source.as_ref().map(|(path, _)| std::path::absolute(path)).transpose()
    }

    /// What a weights file of this network says of itself: what the one that it came from said, how images are prepared,
    /// and the graph if the network has no name.
    ///
    /// # Errors
    /// Those of [`describe`](Self::describe).
    pub fn metadata(&self, size: Size) -> Result<BTreeMap<String, String>, OpenError> {
        let mut metadata = self.source.as_ref().map(|(_, metadata)| metadata.clone()).unwrap_or_default();
        for key in [GRAPH, PREPROCESSING] {
            metadata.remove(key);
        }
        // A graph says how images are prepared, too.
        match self.spec.file() {
            Some(_) => metadata.insert(GRAPH.into(), self.spec.describe(size.pair(), self.classes)?.json()),
            None => metadata.insert(PREPROCESSING.into(), self.spec.preprocessing.value.json()),
        };
        Ok(metadata)
    }

    /// Writes the weights `tensors` of `network`, a network of this model, in the format that `path` is named after: as a
    /// copy of the file that was opened where that is how such files [are written](Save), and as safetensors that tell of
    /// their network where the name is no format's. Returns what the user should know of the file, a sentence each.
    ///
    /// # Errors
    /// The file cannot be written, and one that was there is unchanged; or it would be a copy, and no such file was opened.
    ///
    /// # Panics
    /// `tensors` are not the network's.
    pub fn save(&self, network: &Graph, tensors: &[HostTensor], path: &Path) -> Result<Vec<String>, OpenError> {
        let size: Size = network.input_shape().map_or(self.spec.size(), |images| (images.h(), images.w())).into();
        if let Some(Save::Network(save)) = Format::of_name(path).map(|format| &format.facts().save) {
            let about = About {
                model: &self.spec.name,
                preprocessing: self.spec.preprocessing.value,
                classes: self.class_names.as_deref(),
                batch: None,
            };
            save(path, network, tensors, &about)?;
            return Ok(Vec::new());
        }
        let mut metadata = self.metadata(size)?;
        metadata.insert("model".into(), self.spec.name.to_string());
        metadata.insert("size".into(), size.to_string());
        metadata.remove(CLASSES);
        metadata.extend(self.class_names.as_ref().map(|names| (CLASSES.into(), serde_json::json!(names).to_string())));
        let state = StateDict { metadata, ..weights::to_state(network, tensors) };
        Ok(formats::save(&state, self.source.as_ref().map(|(path, _)| path.as_path()), path)?)
    }

    /// The network's label of each of the folder's classes: by name, if the weights file names its classes, else by order;
    /// and [`PADDING`] for a class that no image has and the network does not know. `dir` is the folder, for messages.
    ///
    /// # Errors
    /// The folder's classes are not the network's.
    pub fn labels(&self, folder: &ImageFolder, dir: &Path) -> Result<Vec<u32>, OpenError> {
        let Some(names) = &self.class_names else {
            let folders = folder.classes.len();
            return match folders == self.classes {
                true => Ok((0..self.classes as u32).collect()),
                false => Err(OpenError::OtherFolders { folder: dir.into(), folders, classes: self.classes }),
            };
        };
        let used = |index: usize| folder.train.iter().chain(&folder.val).any(|sample| sample.label as usize == index);
        let label = |(index, class): (usize, &String)| match names.iter().position(|name| name == class) {
            Some(label) => Ok(label as u32),
            None if !used(index) => Ok(PADDING),
            None => Err(OpenError::UnknownClass { folder: dir.into(), class: class.clone(), names: few(names) }),
        };
        folder.classes.iter().enumerate().map(label).collect()
    }
}

/// `a, b, c, …`
pub fn few(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown}, …") } else { shown }
}

/// The network called `name`, or that of a graph file or an ONNX file.
///
/// # Errors
/// There is none of that name, or the file cannot be read.
pub fn spec(name: &str) -> Result<Spec, OpenError> {
    let path = Path::new(name);
    if path.extension().is_some_and(|extension| extension == "json") {
        Ok(Spec::of_file(GraphFile::read(path)?))
    } else if Format::of_name(path) == Some(Format::Onnx) {
        Ok(Spec::of_file(onnx::load(path)?.file))
    } else {
        Ok(models::spec(name)?.clone())
    }
}

/// How images of `size` are prepared for the weights `state`.
fn prepared(
    spec: &Spec,
    state: &StateDict,
    statistics: Option<[[f32; 3]; 2]>,
    config: &Config,
    asked: &Parts,
    size: (usize, usize),
) -> Result<Traced, OpenError> {
    let path = state.origin.as_deref().unwrap_or(Path::new("the weights file"));
    // A graph says it itself.
    let config = match spec.file() {
        Some(_) => Parts::default(),
        None => config
            .parts(size, asked)
            .map_err(|reason| OpenError::Preprocessing { path: path.with_file_name("config.json"), reason })?,
    };
    let told = Told {
        file_name: path.file_name().and_then(OsStr::to_str).unwrap_or_default(),
        config,
        statistics,
        metadata: state.metadata.get(PREPROCESSING).map(String::as_str),
        asked: *asked,
    };
    spec.prepared(&told).map_err(|reason| OpenError::Preprocessing { path: path.into(), reason })
}
