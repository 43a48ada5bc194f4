//! The state of a run in one file, from which it goes on bit for bit.
//!
//! A checkpoint is a safetensors file: the network's tensors under their own names, the optimiser's under
//! `optimizer.…`, and in the header the run's settings, its position, and a checksum over everything. Writing it is the
//! commit point of a run: whatever else a folder holds follows from it, or is written again by the resumed run.

use super::{ConfusionMatrix, Crc32c, EpochMetrics, OptimizerState, Settings, Totals, TrainError};
use crate::graph::{Graph, ParamId, Role, StateKind};
use crate::kernels::conv2d::Variant;
use crate::tensor::HostTensor;
use crate::weights::{self, FileTensor, StateDict, TensorData};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// How far a run has come.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// Micro-batches done of the epoch under way: whole windows, or all.
    pub batches: usize,
    /// Broken images skipped in the epoch under way.
    pub skipped: u64,
    /// What the epoch under way has added up.
    pub totals: Totals,
    /// Metrics before training, then of every finished epoch.
    pub history: Vec<EpochMetrics>,
    /// Of the last validation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub confusion: Option<ConfusionMatrix>,
}

impl Position {
    /// Optimiser steps done, in a run with such settings.
    pub fn step(&self, settings: &Settings) -> u64 {
        // The last step of an epoch may have fewer micro-batches.
        let of_epoch = match self.batches == settings.batches_per_epoch() {
            true => settings.steps_per_epoch(),
            false => self.batches / settings.accumulate,
        };
        (self.epochs_done() * settings.steps_per_epoch() + of_epoch) as u64
    }

    /// Epochs that are complete.
    pub fn epochs_done(&self) -> usize {
        // The first entry is the state before training.
        self.history.len().saturating_sub(1)
    }
}

/// What a checkpoint restores.
pub(super) struct Checkpoint {
    pub position: Position,
    /// Of the convolutions, since another one rounds differently.
    pub variant: Variant,
    /// Whether the run skipped broken images when it was saved; part of the settings.
    pub skip_broken: bool,
    pub tensors: Vec<HostTensor>,
    pub optimizer: Vec<OptimizerState>,
}

const SETTINGS: &str = "thawline.settings";
const POSITION: &str = "thawline.position";
const VARIANT: &str = "thawline.variant";
const CHECKSUM: &str = "thawline.crc32c";
const OPTIMIZER: &str = "optimizer.";

impl Checkpoint {
    /// Replaces the file at `path`.
    pub fn save(&self, network: &Graph, settings: &Settings, path: &Path) -> Result<(), TrainError> {
        let mut state = weights::to_state(network, &self.tensors);
        for OptimizerState { kind, param, tensor } in &self.optimizer {
            state.tensors.insert(optimizer_name(network, *kind, *param), stored(tensor));
        }
        let position = toml::to_string(&self.position);
        let position = position.map_err(|error| TrainError::Unwritable { reason: error.to_string() })?;
        state.metadata.insert(SETTINGS.into(), settings.to_toml()?);
        state.metadata.insert(POSITION.into(), position);
        state.metadata.insert(VARIANT.into(), self.variant.name().into());
        state.metadata.insert(CHECKSUM.into(), checksum(&state));
        Ok(state.save(path)?)
    }

    /// Reads the checkpoint of a run of `network` under `settings`.
    pub fn load(network: &Graph, settings: &Settings, path: &Path) -> Result<Self, TrainError> {
        let damaged = |reason: String| TrainError::Damaged { path: path.into(), reason };
        let mut state = StateDict::load(path)?;
        let expected = state.metadata.remove(CHECKSUM).ok_or_else(|| damaged("it is not a checkpoint".into()))?;
        // Set by every writer, and not part of what was summed.
        state.metadata.remove("format");
        if checksum(&state) != expected {
            return Err(damaged("its checksum does not fit its content".into()));
        }
        let text = |key: &str| state.metadata.get(key).map_or("", String::as_str);
        let began = Settings::from_toml(text(SETTINGS)).map_err(damaged)?;
        if let Some((setting, here, there)) = settings.difference(&began) {
            return Err(match setting.as_str() {
                "images.content" => TrainError::ContentChanged { path: path.into(), data: settings.data.clone() },
                _ => TrainError::Changed { path: path.into(), setting, here, there },
            });
        }
        if began.thawline != settings.thawline {
            log::warn!(
                "the run in {} was begun by thawline {}: another version may round differently",
                path.display(),
                began.thawline
            );
        }
        let position = toml::from_str(text(POSITION)).map_err(|error| damaged(error.to_string()))?;
        let variant = text(VARIANT);
        let variant =
            Variant::of_name(variant).ok_or_else(|| damaged(format!("it names unknown kernels, `{variant}`")))?;

        let (optimizer, tensors) = state.tensors.into_iter().partition(|(name, _)| name.starts_with(OPTIMIZER));
        let optimizer = read_optimizer(network, optimizer).ok_or(TrainError::ForeignState)?;
        let state = StateDict { tensors, origin: state.origin, ..StateDict::default() };
        // The seed would be for a head of another size, which is refused.
        let loaded = weights::from_state(network, state, 0)?;
        if loaded.new_head.is_some() {
            return Err(TrainError::ForeignState);
        }
        Ok(Self { position, variant, skip_broken: began.skip_broken, tensors: loaded.tensors, optimizer })
    }
}

fn optimizer_name(network: &Graph, kind: StateKind, param: ParamId) -> String {
    let kind = match kind {
        StateKind::FirstMoment => "first_moment",
        StateKind::SecondMoment => "second_moment",
        StateKind::Gradient => "gradient",
        StateKind::Moments => "moments",
    };
    let param = network.param(param);
    let role = match param.role {
        Role::ConvWeight | Role::DepthwiseWeight | Role::LinearWeight => "weight",
        Role::Bias => "bias",
        Role::Affine => "affine",
        Role::Moments => "moments",
        Role::Scale | Role::ImageScale => "scale",
    };
    format!("{OPTIMIZER}{kind}.{}.{role}", network.layers()[param.layer.index()].name)
}

/// The tensor as the device stores it, padding included: nobody but this crate reads it.
fn stored(tensor: &HostTensor) -> FileTensor {
    FileTensor::f32(stored_shape(tensor.shape), tensor.data.clone())
}

fn stored_shape(shape: crate::tensor::Shape) -> Vec<usize> {
    let [a, b, c, _] = shape.0;
    vec![a, b, c, shape.stored_c()]
}

/// The optimiser's tensors; `None` if one does not belong to `network`.
fn read_optimizer(network: &Graph, mut tensors: BTreeMap<String, FileTensor>) -> Option<Vec<OptimizerState>> {
    let mut states = Vec::new();
    for index in 0..network.params().len() {
        let param = ParamId(index as u32);
        let shape = network.param(param).shape;
        for kind in [StateKind::FirstMoment, StateKind::SecondMoment] {
            let Some(tensor) = tensors.remove(&optimizer_name(network, kind, param)) else { continue };
            match tensor.data {
                TensorData::F32(data) if tensor.shape == stored_shape(shape) => {
                    states.push(OptimizerState { kind, param, tensor: HostTensor { shape, data } });
                }
                _ => return None,
            }
        }
    }
    tensors.is_empty().then_some(states)
}

/// CRC-32C over names, shapes and values of the tensors, and the metadata, in hexadecimal.
pub(crate) fn checksum(state: &StateDict) -> String {
    let mut crc = Crc32c::new();
    for (name, tensor) in &state.tensors {
        crc = crc.update(name.as_bytes()).update(&[0]);
        for &size in &tensor.shape {
            crc = crc.update(&(size as u64).to_le_bytes());
        }
        crc = crc.update(match &tensor.data {
            TensorData::F32(values) => bytemuck::cast_slice(values),
            TensorData::I64(values) => bytemuck::cast_slice(values),
        });
    }
    for (key, value) in &state.metadata {
        crc = crc.update(key.as_bytes()).update(&[0]).update(value.as_bytes()).update(&[0]);
    }
    format!("{:08x}", crc.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;
    use crate::train::settings::tests::settings;
    use std::fs;

    fn checkpoint(network: &Graph) -> Checkpoint {
        let tensors = weights::initialise(network, 3);
        let odd = |seed: usize, shape: crate::tensor::Shape| HostTensor {
            shape,
            data: (0..shape.stored_len()).map(|i| 1.0 / (i + seed + 3) as f32).collect(),
        };
        let optimizer = [0, 2, 5].map(|i| {
            let param = ParamId(i);
            let tensor = odd(i as usize, network.param(param).shape);
            OptimizerState { kind: StateKind::FirstMoment, param, tensor }
        });
        let totals = Totals { loss: 0.1 + 0.2, top1: 3, top5: 4, samples: 5 };
        let metrics = EpochMetrics {
            epoch: 0,
            step: 0,
            lr: 0.0,
            train: None,
            val: Some(Totals { loss: f64::NAN, ..totals }),
            skipped: 1,
            val_balanced: Some(0.1 + 0.2),
        };
        let mut confusion = ConfusionMatrix::new(3);
        confusion.add(2, 1);
        let position = Position { batches: 4, skipped: 2, totals, history: vec![metrics], confusion: Some(confusion) };
        Checkpoint { position, variant: Variant::Workgroup, skip_broken: false, tensors, optimizer: optimizer.into() }
    }

    fn saved() -> (tempfile::TempDir, Graph, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let network = models::build("resnet_tiny", 4, (16, 16), 3).unwrap();
        let path = dir.path().join("c");
        checkpoint(&network).save(&network, &settings(), &path).unwrap();
        let bytes = fs::read(path).unwrap();
        (dir, network, bytes)
    }

    #[test]
    fn a_checkpoint_gives_back_what_it_was_given() {
        let (dir, network, _) = saved();
        let (kept, given) =
            (Checkpoint::load(&network, &settings(), &dir.path().join("c")).unwrap(), checkpoint(&network));
        assert_eq!(kept.tensors, given.tensors);
        assert_eq!(kept.variant, given.variant);
        assert_eq!(kept.optimizer, given.optimizer);
        assert_eq!(kept.position.totals, given.position.totals);
        // By its text: a loss that is not a number differs from itself.
        assert_eq!(format!("{:?}", kept.position), format!("{:?}", given.position));
    }

    #[test]
    fn a_damaged_checkpoint_is_refused() {
        let (dir, network, bytes) = saved();
        let path = dir.path().join("damaged");
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = Checkpoint::load(&network, &settings(), &path).err();
            let message = error.expect("a damaged checkpoint is refused").to_string();
            assert!(message.contains("damaged"), "{message}");
        };
        for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(Checkpoint::load(&network, &settings(), &path).is_err(), "cut to {length} bytes");
        }
        for place in [bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            refused(&flipped);
        }
        // In the header: the position.
        let key = b"batches = 4";
        let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
        let mut moved = bytes.clone();
        moved[at + key.len() - 1] = b'2';
        refused(&moved);
    }

    #[test]
    fn a_changed_setting_is_named() {
        let (dir, network, _) = saved();
        let changed = Settings { seed: 8, ..settings() };
        let message = Checkpoint::load(&network, &changed, &dir.path().join("c")).err().unwrap().to_string();
        assert!(message.contains("`seed` is 8") && message.contains("with 7"), "{message}");
    }

    #[test]
    fn a_checkpoint_of_another_network_is_refused() {
        let (dir, ..) = saved();
        let path = dir.path().join("c");
        for (model, classes) in [("resnet_tiny", 4), ("resnet18", 3)] {
            let other = models::build(model, 4, (16, 16), classes).unwrap();
            assert!(Checkpoint::load(&other, &settings(), &path).is_err(), "{model} with {classes} classes");
        }
    }
}
