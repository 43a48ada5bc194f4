//! A network's parameters on the host, and their names, shapes and layouts in a file.

use super::{
    Bound, Expected, ExpectedKind, FileTensor, Head, NewHead, StateDict, TensorData, WeightsError, bind, layout,
};
use crate::graph::{Graph, Param, Role};
use crate::rng::Rng;
use crate::tensor::{HostTensor, pad4};

/// The largest count of updates that an `f32` holds exactly; a larger one in a file saturates.
const MAX_COUNT: i64 = 1 << 24;

/// The tensors that a file of this network holds, in the order of the graph's parameters, with PyTorch's names.
pub fn expected(graph: &Graph) -> Vec<Expected> {
    graph.params().iter().flat_map(|param| parts(graph, param)).collect()
}

fn parts(graph: &Graph, param: &Param) -> Vec<Expected> {
    let layer = &graph.layers()[param.layer.index()].name;
    let float =
        |part: &str, shape: Vec<usize>| Expected { name: format!("{layer}.{part}"), shape, kind: ExpectedKind::Float };
    let [kh, kw, _, out] = param.shape.0;
    match param.role {
        Role::ConvWeight | Role::DepthwiseWeight => vec![float("weight", vec![out, param.channels, kh, kw])],
        Role::LinearWeight => vec![float("weight", vec![out, param.channels * kh * kw])],
        Role::Scale => vec![Expected { name: layer.clone(), shape: vec![out], kind: ExpectedKind::Float }],
        Role::ImageScale => vec![Expected { name: layer.clone(), shape: vec![out, 1, 1], kind: ExpectedKind::Float }],
        Role::Bias => vec![float("bias", vec![out])],
        Role::Affine => vec![float("weight", vec![out]), float("bias", vec![out])],
        Role::Moments => vec![
            float("running_mean", vec![out]),
            float("running_var", vec![out]),
            Expected { name: format!("{layer}.num_batches_tracked"), shape: vec![], kind: ExpectedKind::Counter },
        ],
    }
}

/// Fresh parameters, as torchvision initialises them: He normal over the outputs of a group for convolutions (He et al. 2015),
/// uniform within `1/√fan_in` for linear layers and for a convolution that gives the classes, identity for batch norms. A
/// function of `seed` only.
pub fn initialise(graph: &Graph, seed: u64) -> Vec<HostTensor> {
    (0..graph.params().len()).map(|index| initialise_param(graph, index, seed)).collect()
}

fn initialise_param(graph: &Graph, index: usize, seed: u64) -> HostTensor {
    let param = &graph.params()[index];
    let mut rng = Rng::keyed(seed, &[index as u64]);
    let mut tensor = HostTensor::zeros(param.shape);
    let [kh, kw, _, out] = param.shape.0;
    let c = param.shape.stored_c();
    let fan_in = |g: &Graph| {
        let weight = g.layers()[param.layer.index()].params.first().map(|&weight| g.param(weight));
        weight.map_or(1, |weight| weight.channels * weight.shape.0[0] * weight.shape.0[1])
    };
    match param.role {
        Role::ConvWeight | Role::DepthwiseWeight => {
            let fan_out = out / graph.groups(param.layer) * kh * kw;
            let bound = 1.0 / ((param.channels * kh * kw) as f64).sqrt();
            let draw = |_| match graph.head() == Some(param.layer) {
                true => rng.range(-bound, bound) as f32,
                false => ((2.0 / fan_out as f64).sqrt() * normal(&mut rng)) as f32,
            };
            let file: Vec<f32> = (0..out * param.channels * kh * kw).map(draw).collect();
            tensor.data = match param.role {
                Role::DepthwiseWeight => layout::depthwise_to_device(&file, [out, kh, kw]),
                _ => layout::conv_to_device(&file, [out, param.channels, kh, kw]),
            };
        }
        Role::LinearWeight => {
            let inputs = param.channels * kh * kw;
            let bound = 1.0 / (inputs as f64).sqrt();
            let file: Vec<f32> = (0..out * inputs).map(|_| rng.range(-bound, bound) as f32).collect();
            tensor.data = layout::conv_to_device(&file, [out, param.channels, kh, kw]);
        }
        Role::Bias => {
            let bound = 1.0 / (fan_in(graph) as f64).sqrt();
            tensor.data[..out].fill_with(|| rng.range(-bound, bound) as f32);
        }
        Role::Affine | Role::Scale | Role::ImageScale => tensor.data[..out].fill(1.0),
        Role::Moments => tensor.data[c..c + out].fill(1.0),
    }
    tensor
}

/// A standard normal number (Box & Muller 1958).
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.uniform()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.uniform()).cos()
}

/// A network's parameters from a file.
#[derive(Clone, PartialEq, Debug)]
pub struct Loaded {
    pub tensors: Vec<HostTensor>,
    /// Why the head starts anew, if it does.
    pub new_head: Option<NewHead>,
}

/// Takes a network's parameters from `state`. The [head](Graph::head) may have another number of classes; it is initialised
/// from `seed` then.
///
/// # Errors
/// [`WeightsError::Mismatch`] lists every tensor that is missing, unexpected or misshapen.
pub fn from_state(graph: &Graph, state: StateDict, seed: u64) -> Result<Loaded, WeightsError> {
    from_state_with(graph, state, seed, Head::Required)
}

/// As [`from_state`], of a file that may lack the head if `needed` says so.
///
/// # Errors
/// Those of [`from_state`].
pub fn from_state_with(graph: &Graph, state: StateDict, seed: u64, needed: Head) -> Result<Loaded, WeightsError> {
    let head = graph.head().map_or("", |head| &graph.layers()[head.index()].name);
    let Bound { tensors, new_head } = bind(state, &expected(graph), head, needed)?;
    let mut files = tensors.into_iter();
    let tensors = graph
        .params()
        .iter()
        .enumerate()
        .map(|(index, param)| {
            let count = parts(graph, param).len();
            let files: Option<Vec<FileTensor>> = files.by_ref().take(count).collect();
            files.map_or_else(|| initialise_param(graph, index, seed), |files| to_device(param, files))
        })
        .collect();
    Ok(Loaded { tensors, new_head })
}

fn to_device(param: &Param, files: Vec<FileTensor>) -> HostTensor {
    let [kh, kw, _, out] = param.shape.0;
    let mut data = Vec::with_capacity(param.shape.stored_len());
    for file in files {
        match (param.role, file.data) {
            (Role::ConvWeight | Role::LinearWeight, TensorData::F32(v)) => {
                data = layout::conv_to_device(&v, [out, param.channels, kh, kw]);
            }
            (Role::DepthwiseWeight, TensorData::F32(v)) => data = layout::depthwise_to_device(&v, [out, kh, kw]),
            (_, TensorData::F32(v)) => data.extend(layout::vector_to_device(&v)),
            (_, TensorData::I64(count)) => {
                let count = count.first().copied().unwrap_or(0).clamp(0, MAX_COUNT);
                data.resize(data.len() + pad4(out), count as f32);
            }
        }
    }
    HostTensor { shape: param.shape, data }
}

/// The file form of all parameters, with PyTorch's names and layouts.
///
/// # Panics
/// `tensors` are not the graph's.
pub fn to_state(graph: &Graph, tensors: &[HostTensor]) -> StateDict {
    assert_eq!(graph.params().len(), tensors.len(), "one tensor a parameter");
    let mut state = StateDict::default();
    for (param, tensor) in graph.params().iter().zip(tensors) {
        state.tensors.extend(to_file(graph, param, &tensor.data));
    }
    state
}

/// The file form of one parameter, or of its gradient: names and tensors.
pub fn to_file(graph: &Graph, param: &Param, data: &[f32]) -> Vec<(String, FileTensor)> {
    let [kh, kw, _, out] = param.shape.0;
    let c = pad4(out);
    parts(graph, param)
        .into_iter()
        .enumerate()
        .map(|(row, part)| {
            let tensor = match (param.role, part.kind) {
                (Role::ConvWeight | Role::LinearWeight, _) => {
                    FileTensor::f32(part.shape, layout::conv_to_file(data, [out, param.channels, kh, kw]))
                }
                (Role::DepthwiseWeight, _) => {
                    FileTensor::f32(part.shape, layout::depthwise_to_file(data, [out, kh, kw]))
                }
                (_, ExpectedKind::Counter) => FileTensor::i64(part.shape, vec![data[row * c] as i64]),
                _ => FileTensor::f32(part.shape, layout::vector_to_file(&data[row * c..][..c], out)),
            };
            (part.name, tensor)
        })
        .collect()
}
