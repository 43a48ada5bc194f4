use super::keras::{Description, Prepared};
use super::{Format, FormatError, Opening};
use crate::models::{GRAPH, GraphFile, Spec};
use crate::preprocessing::Traced;
use crate::weights::{StateDict, WeightsError};
use std::path::Path;

/// The key in [`StateDict::metadata`] of the names of the classes, a list in JSON in the order of the labels.
pub const CLASSES: &str = "classes";

/// What a file of any format gives when it is opened.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelFile {
    pub format: Format,
    /// The tensors; with them the file's path, its metadata, and notes on how it was read. Where the file has a graph, its
    /// text is in the metadata under [`GRAPH`]; how images are prepared under
    /// [`PREPROCESSING`](crate::preprocessing::PREPROCESSING), the names of the classes under [`CLASSES`].
    pub tensors: StateDict,
    /// What a Keras file says of its network. It becomes a network when that is asked for, since one that cannot is still a
    /// file of weights for a network that is named.
    pub network: Option<Description>,
}

impl From<StateDict> for ModelFile {
    /// Tensors that say of themselves what a safetensors file can.
    fn from(tensors: StateDict) -> Self {
        Self { format: Format::Safetensors, tensors, network: None }
    }
}

impl ModelFile {
    /// What was read, with the names that its model has without wrappers; of several sets of weights the one that is wanted.
    pub(super) fn read(
        opening: &Opening<'_>,
        tensors: StateDict,
        network: Option<Description>,
    ) -> Result<Self, WeightsError> {
        let Opening { path, set, format, .. } = *opening;
        let mut tensors = tensors.without_wrappers(path)?;
        tensors.origin = Some(path.into());
        if let Some(set) = set.filter(|set| tensors.set.as_deref() != Some(set)) {
            tensors.choose(set)?;
        }
        Ok(Self { format, tensors, network })
    }

    /// Whether the file describes its network.
    pub fn describes(&self) -> bool {
        self.tensors.metadata.contains_key(GRAPH)
            || self.network.as_ref().is_some_and(|network| network.config.is_some())
    }

    /// The names of the classes in the order of their labels, if the file tells.
    pub fn classes(&self) -> Option<Vec<String>> {
        serde_json::from_str(self.tensors.metadata.get(CLASSES)?).ok()
    }

    /// The network that the metadata describe.
    ///
    /// # Errors
    /// They do, but it is none.
    pub fn graph(&self) -> Result<Option<Spec>, FormatError> {
        let Some(text) = self.tensors.metadata.get(GRAPH) else { return Ok(None) };
        let file = self.tensors.origin.as_ref().map_or_else(String::new, |path| path.display().to_string());
        let graph = GraphFile::parse(text, &format!("the graph in the metadata of {file}"))?;
        let preprocessing = Traced::new(graph.preprocessing(), "the file");
        Ok(Some(Spec::of_file(graph).with_preprocessing(preprocessing)))
    }

    /// The network that the file describes, if it is none that has a name. What is to be known of how it was understood is
    /// logged.
    ///
    /// # Errors
    /// It has a network that is not supported: names the layer.
    pub fn described(&self) -> Result<Option<Spec>, FormatError> {
        if let Some(told) = self.graph()? {
            return Ok(Some(told));
        }
        let path = self.tensors.origin.as_deref().unwrap_or(Path::new("the Keras file"));
        let imported = self.network.as_ref().map(Description::import).transpose();
        let imported = imported.map_err(|source| FormatError::Keras { path: path.into(), source })?;
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
}
