//! Re-estimates running statistics by forward passes, without a gradient: the remedy for statistics that belong to
//! other data, or that training left behind the weights.

use super::finite::check_finite_but;
use super::{LayerSurvey, Moments, Probe, Survey, TrainError};
use crate::data::Loader;
use crate::gpu::{Device, Parameters};
use crate::graph::{Graph, LayerId, ParamId, Role, Stats, Variance};
use crate::plan::Input;
use crate::tensor::HostTensor;

/// How statistics are estimated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Method {
    /// The moments of all values together, where each batch is normalised by its own (PreciseBN; Wu & Johnson 2021).
    #[default]
    Precise,
    /// The plain means of the batches' means and variances, as PyTorch's `torch.optim.swa_utils.update_bn` takes them
    /// (Izmailov et al. 2018): every batch weighs the same, and what sets the batches apart is not in the variance.
    UpdateBn,
    /// The moments of all values together, layer after layer, where everything before is normalised by its new
    /// statistics already (AdaBN; Li et al. 2016). They are what inference sees, whatever the batch, but take a pass a
    /// layer.
    AdaBn,
}

/// What is estimated and how.
#[derive(Clone, Debug)]
pub struct Recalibration<'a> {
    /// The batch norms; all others keep, and normalise by, the statistics that they have.
    pub layers: &'a [LayerId],
    pub method: Method,
    /// The estimator of the variance that is stored; if there is none, each layer's own, as its setting or else its network
    /// says.
    pub var: Option<Variance>,
}

/// Gives the chosen batch norms of `network` statistics of `images`, in the loader's batches and order. Their counts of
/// updates become the number of batches. Nothing else in `tensors`, one a parameter, changes by a bit; on an error,
/// nothing at all. `observe` is told how many images were shown, and how many will be, each as often as it is shown.
///
/// # Errors
/// A layer is no batch norm, or there is none; an image is broken; a parameter that is not replaced, or a moment, is not
/// finite; the device refuses the batch.
pub fn recalibrate(
    device: &Device,
    network: &Graph,
    tensors: &mut [HostTensor],
    input: Input,
    images: &Loader,
    what: &Recalibration<'_>,
    mut observe: impl FnMut(u64, u64),
) -> Result<(), TrainError> {
    let params = what.layers.iter().map(|&layer| moments_of(network, layer)).collect::<Result<Vec<_>, _>>()?;
    // What is estimated anew may be broken, where nothing normalises by it meanwhile.
    let is_replaced = |param: ParamId| what.method != Method::AdaBn && params.contains(&param);
    check_finite_but(network, tensors, is_replaced)?;
    let shared = Parameters::upload(device, network, tensors)?;
    let mut estimates = Vec::with_capacity(params.len());
    let estimate = |survey: &Survey, probe: &Probe, layer: LayerId, param: ParamId| {
        let position = probe.layers().iter().position(|&l| l == layer).ok_or(TrainError::NoBatchNorm)?;
        let (seen, var) = (&survey.layers[position], what.var.unwrap_or(network.layers()[layer.index()].stored_var()));
        Ok::<_, TrainError>(stored(seen, survey.batches, what.method, var, &tensors[param.index()]))
    };
    let passes = if what.method == Method::AdaBn { params.len() } else { 1 };
    let (mut done, of) = (0, (passes * images.samples().len()) as u64);
    let mut shown = |images: usize| {
        done += images as u64;
        observe(done, of);
    };
    match what.method {
        Method::Precise | Method::UpdateBn => {
            let stats = |layer| if what.layers.contains(&layer) { Stats::Batch } else { Stats::Running };
            let mut probe = Probe::new(device, network, &shared, input, stats)?;
            let survey = probe.survey_with(images, &mut shown)?;
            for (&layer, &param) in what.layers.iter().zip(&params) {
                estimates.push((param, estimate(&survey, &probe, layer, param)?));
            }
        }
        Method::AdaBn => {
            let mut probe = Probe::new(device, network, &shared, input, |_| Stats::Running)?;
            let mut ordered: Vec<(LayerId, ParamId)> = what.layers.iter().copied().zip(params).collect();
            ordered.sort_unstable();
            for (layer, param) in ordered {
                let survey = probe.survey_with(images, &mut shown)?;
                let tensor = estimate(&survey, &probe, layer, param)?;
                shared.write(device, network, param, &tensor)?;
                estimates.push((param, tensor));
            }
        }
    }
    for (param, tensor) in estimates {
        tensors[param.index()] = tensor;
    }
    Ok(())
}

/// How far the stored moments of each batch norm are from what `survey`, of a probe of the same network, has seen: the
/// [mean divergence](Moments::drift) over its channels, in nats, in graph order. 0 is perfect; among good networks
/// about 0.01 is usual.
pub fn drifts(network: &Graph, tensors: &[HostTensor], survey: &Survey) -> Vec<f64> {
    let norms = network.params().iter().enumerate().filter(|(_, param)| param.role == Role::Moments);
    norms
        .zip(&survey.layers)
        .map(|((index, param), seen)| {
            let eps = f64::from(network.eps(param.layer).unwrap_or_default());
            Moments::stored(&tensors[index]).drift(&seen.pooled, eps)
        })
        .collect()
}

/// The parameter with the running moments of `layer`.
fn moments_of(network: &Graph, layer: LayerId) -> Result<ParamId, TrainError> {
    let layer = network.layers().get(layer.index()).ok_or(TrainError::NoBatchNorm)?;
    let moments = layer.params.iter().copied().find(|&param| network.param(param).role == Role::Moments);
    moments.ok_or_else(|| TrainError::NotABatchNorm { layer: layer.name.clone() })
}

/// The parameter with the moments that `seen` amounts to.
fn stored(seen: &LayerSurvey, batches: u64, method: Method, var: Variance, like: &HostTensor) -> HostTensor {
    let (mean, var) = match (method, var) {
        (Method::UpdateBn, Variance::Biased) => (&seen.mean, seen.biased.clone()),
        (Method::UpdateBn, Variance::Unbiased) => (&seen.mean, seen.unbiased.clone()),
        (_, Variance::Biased) => (&seen.pooled.mean, seen.pooled.var.clone()),
        (_, Variance::Unbiased) => (&seen.pooled.mean, seen.pooled.unbiased()),
    };
    let mut tensor = HostTensor::zeros(like.shape);
    let row = like.shape.stored_c();
    for (c, (mean, var)) in mean.iter().zip(var).enumerate() {
        tensor.data[c] = *mean as f32;
        tensor.data[row + c] = var as f32;
    }
    // The whole row, padding included, as loading a file leaves it.
    tensor.data[2 * row..].fill(batches as f32);
    tensor
}
