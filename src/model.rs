//! A model as people have it: a weights file of any format with its network, its preprocessing and its classes, opened as one, and
//! written back in the format that it came in.
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
use crate::graph::Graph;
use crate::identify::{Identified, IdentifyError, Known, identify};
use crate::models::keras::{KerasConfig, KerasError, Prepared};
use crate::models::{self, GRAPH, GraphAbout, GraphFile, GraphFileError, ModelError, Spec, Told};
use crate::onnx::{self, Imported};
use crate::plan::Input;
use crate::preprocessing::{PREPROCESSING, Parts, Traced};
use crate::tensor::HostTensor;
use crate::text::quantity;
use crate::train::PADDING;
use crate::weights::keras::{Copied, Description};
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
    #[error("{} cannot be read", path.display())]
    Keras { path: PathBuf, source: KerasError },
    #[error("{} cannot be written with other classes", path.display())]
    OtherClasses { path: PathBuf, source: KerasError },
    #[error("{}: {reason}", path.display())]
    Preprocessing { path: PathBuf, reason: String },
    #[error("neither a weights file nor a network is named")]
    Nothing,
    #[error("--weights-set: {} is an ONNX file, which holds one set of weights; leave it out", path.display())]
    OneSet { path: PathBuf },
    #[error(
        "cannot write {}: a {form} file can be written only where --weights is one, whose copy it is; give a name that ends in \
         .safetensors",
        path.display()
    )]
    NoTemplate { path: PathBuf, form: &'static str },
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
    /// Opens a weights file: safetensors, PyTorch's, Keras's or ONNX.
    ///
    /// # Errors
    /// It cannot be read, or its network is not known.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::of(read(path, None)?, Options::default())
    }

    /// As [`open`](Self::open), with what the caller knows better.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); what the caller says contradicts the file.
    pub fn open_with(path: &Path, options: Options) -> Result<Self, OpenError> {
        Self::of(read(path, None)?, options)
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
        })
    }

    /// The model of a file's content; see [`read`].
    ///
    /// # Errors
    /// Those of [`open_with`](Self::open_with).
    pub fn of(mut state: StateDict, options: Options) -> Result<Self, OpenError> {
        let config = state.origin.as_deref().map(Config::beside).transpose()?.flatten().unwrap_or_default();
        // A network that only takes other images than the one of its name is still meant by that name.
        let named = match options.spec.clone() {
            Some(named) if named.file().is_none() => {
                of_metadata(&state)?.filter(|told| told.name == named.name).or(Some(named))
            }
            named => named,
        };
        let described = match &named {
            Some(_) => None,
            None => described(&state)?,
        };
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
        spec.preprocessing = prepared(&spec, &state, &config, &options.preprocessing, size)?;
        let test_size = config.test_size.filter(|_| spec.file().is_none()).map(Size::from);
        if one_output {
            spec = spec.with_one_output()?;
        }
        let names: Option<Vec<String>> = state.metadata.get("classes").and_then(|json| serde_json::from_str(json).ok());
        if let (Some(names), Some(outputs)) = (&names, in_file)
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
            class_names: names.filter(|names| names.len() == classes && in_file == Some(classes)),
            folded: export::is_folded(&state),
            state: Some(state),
            notes,
            options,
            source,
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

    /// Writes the weights `tensors` of `network`, a network of this model: where `path` is named as a Keras file, as a copy of the
    /// Keras file that was opened; where it ends in `.onnx` as ONNX; else as safetensors that tell of their network.
    /// Returns what the user should know of the file, a sentence each.
    ///
    /// # Errors
    /// The file cannot be written, and one that was there is unchanged; or a Keras file is asked for and none was opened.
    ///
    /// # Panics
    /// `tensors` are not the network's.
    pub fn save(&self, network: &Graph, tensors: &[HostTensor], path: &Path) -> Result<Vec<String>, OpenError> {
        let size: Size = network.input_shape().map_or(self.spec.size(), |images| (images.h(), images.w())).into();
        if has_ending(path, "onnx") {
            let about = onnx::About {
                model: &self.spec.name,
                preprocessing: self.spec.preprocessing.value,
                classes: self.class_names.as_deref(),
                batch: None,
            };
            onnx::save(path, network, tensors, &about)?;
            return Ok(Vec::new());
        }
        let mut metadata = self.metadata(size)?;
        metadata.insert("model".into(), self.spec.name.to_string());
        metadata.insert("size".into(), size.to_string());
        metadata.remove("classes");
        metadata
            .extend(self.class_names.as_ref().map(|names| ("classes".into(), serde_json::json!(names).to_string())));
        let state = StateDict { metadata, ..weights::to_state(network, tensors) };
        save(&state, self.source.as_ref().map(|(path, _)| path.as_path()), path)
    }

    /// The network's label of each of the folder's classes: by name, if the weights file names its classes, else by order; and
    /// [`PADDING`] for a class that no image has and the network does not know. `dir` is the folder, for messages.
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

/// Reads a weights file, of several sets of weights the one called `set`. Of an ONNX file the graph is in the metadata, as it is in
/// what is saved from one.
///
/// # Errors
/// It cannot be read, or does not hold such a set.
pub fn read(path: &Path, set: Option<&str>) -> Result<StateDict, OpenError> {
    if !has_ending(path, "onnx") {
        return Ok(StateDict::load_set(path, set)?);
    }
    if set.is_some() {
        return Err(OpenError::OneSet { path: path.into() });
    }
    let Imported { mut state, notes, .. } = onnx::load(path)?;
    state.notes = notes;
    Ok(state)
}

/// The network called `name`, or that of a graph file or an ONNX file.
///
/// # Errors
/// There is none of that name, or the file cannot be read.
pub fn spec(name: &str) -> Result<Spec, OpenError> {
    let path = Path::new(name);
    if has_ending(path, "json") {
        Ok(Spec::of_file(GraphFile::read(path)?))
    } else if has_ending(path, "onnx") {
        Ok(Spec::of_file(onnx::load(path)?.file))
    } else {
        Ok(models::spec(name)?.clone())
    }
}

/// Whether a weights file describes its network.
pub fn describes(state: &StateDict) -> bool {
    state.metadata.contains_key(GRAPH) || state.keras.as_ref().is_some_and(|keras| keras.config.is_some())
}

/// Which of Keras's files a name stands for. A whole model and weights alone are both HDF5, which Keras tells apart by the
/// name.
pub fn keras_form(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let forms = [(".keras", ".keras"), (".weights.h5", ".weights.h5"), (".h5", ".h5"), (".hdf5", ".h5")];
    forms.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, form)| form)
}

/// Refuses to save weights as a Keras file that they do not come from or do not fit, before there is anything to save;
/// `state` has the network's names and shapes.
///
/// # Errors
/// Those of [`save`], of a Keras file.
pub fn check(state: &StateDict, source: Option<&Path>, out: &Path) -> Result<(), OpenError> {
    let Some(form) = keras_form(out) else { return Ok(()) };
    match source.filter(|source| keras_form(source) == Some(form)) {
        Some(source) => keras_copy(state, source).map(drop),
        None => Err(OpenError::NoTemplate { path: out.into(), form }),
    }
}

/// Writes weights that come from the file `source`: into a copy of that file where `out` is named as Keras's files are,
/// else as safetensors. Returns what the user should know of the file, a sentence each.
///
/// # Errors
/// It cannot be written; what was there stays.
pub fn save(state: &StateDict, source: Option<&Path>, out: &Path) -> Result<Vec<String>, OpenError> {
    let Some(form) = keras_form(out) else {
        state.save(out)?;
        return Ok(Vec::new());
    };
    let source = source.filter(|source| keras_form(source) == Some(form));
    let Some(source) = source else { return Err(OpenError::NoTemplate { path: out.into(), form }) };
    let copied = keras_copy(state, source)?;
    copied.write(out)?;
    Ok(copied.notes)
}

/// A copy of the Keras file `source` that has these weights and can be read again.
fn keras_copy(state: &StateDict, source: &Path) -> Result<Copied, OpenError> {
    let copied = Copied::of(state, source)?;
    if let Some(other) = &copied.other {
        import(other).map_err(|error| OpenError::OtherClasses { path: source.into(), source: error })?;
    }
    Ok(copied)
}

/// How images of `size` are prepared for the weights `state`.
fn prepared(
    spec: &Spec,
    state: &StateDict,
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
    let in_keras = state.keras.as_ref().map(|keras| keras.normalizations.values().collect::<Vec<_>>());
    let told = Told {
        file_name: path.file_name().and_then(OsStr::to_str).unwrap_or_default(),
        config,
        normalization: in_keras.as_deref().and_then(|all| if let [one] = all { Some(*one) } else { None }),
        metadata: state.metadata.get(PREPROCESSING).map(String::as_str),
        asked: *asked,
    };
    spec.prepared(&told).map_err(|reason| OpenError::Preprocessing { path: path.into(), reason })
}

/// The network that the metadata of a weights file describes.
fn of_metadata(state: &StateDict) -> Result<Option<Spec>, OpenError> {
    let Some(text) = state.metadata.get(GRAPH) else { return Ok(None) };
    let file = state.origin.as_ref().map_or_else(String::new, |path| path.display().to_string());
    let graph = GraphFile::parse(text, &format!("the graph in the metadata of {file}"))?;
    let preprocessing = Traced::new(graph.preprocessing(), "the file");
    Ok(Some(Spec::of_file(graph).with_preprocessing(preprocessing)))
}

/// The network that a weights file describes, if it is none that has a name.
fn described(state: &StateDict) -> Result<Option<Spec>, OpenError> {
    if let Some(told) = of_metadata(state)? {
        return Ok(Some(told));
    }
    let path = state.origin.as_deref().unwrap_or(Path::new("the Keras file"));
    let imported = state.keras.as_deref().map(import).transpose();
    let imported = imported.map_err(|source| OpenError::Keras { path: path.into(), source })?;
    let Some(imported) = imported.flatten() else { return Ok(None) };
    let file = path.display();
    for note in imported.notes {
        log::info!("{file}: {note}");
    }
    match imported.images {
        Prepared::ByModel => {}
        Prepared::AsApplication(name) => log::warn!(
            "{file}: the model does not prepare its images, so that is done as the preprocess_input of {name} does; if it \
             was trained on others, say so by --mean and --std, or, if red comes first, by `bgr` in the graph file that inspect \
             --graph prints"
        ),
        Prepared::Unknown => log::warn!(
            "{file}: the model does not rescale its images, so it gets values from 0 to 255; if it was trained on others, \
             save it with a Rescaling layer at the beginning"
        ),
    }
    let spec = Spec::of_file(imported.graph).with_preprocessing(imported.preprocessing);
    Ok(Some(spec.with_augmentation(imported.augmentation)))
}

/// The network that a Keras file describes, if it does.
fn import(keras: &Description) -> Result<Option<models::keras::Imported>, KerasError> {
    let normalization = |layer: &str| keras.normalizations.get(layer).cloned();
    let config = keras.config.as_ref();
    let model = config.map(|config| KerasConfig { config, keras_2: keras.is_keras_2(), normalization: &normalization });
    model.map(models::keras::import).transpose()
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|extension| extension == ending)
}
