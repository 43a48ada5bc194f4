//! Values that are not numbers, or no variances: which tensor holds them, and which layer gives them.

use super::TrainError;
use crate::gpu::{Executor, GpuError};
use crate::graph::{Graph, ParamId, Phase, Role};
use crate::kernels::Access;
use crate::plan::Storage;
use crate::tensor::HostTensor;

/// Refuses parameters that no network can compute with: values that are not finite, and running variances below zero. `tensors`
/// are one a parameter.
///
/// # Errors
/// [`TrainError::NotFinite`] names the first such tensor, in the order of the network.
pub fn check_finite(network: &Graph, tensors: &[HostTensor]) -> Result<(), TrainError> {
    check_finite_but(network, tensors, |_| false)
}

/// As [`check_finite`], but for the parameters that are `left_out`.
pub(super) fn check_finite_but(
    network: &Graph,
    tensors: &[HostTensor],
    left_out: impl Fn(ParamId) -> bool,
) -> Result<(), TrainError> {
    let kept = (0..).map(ParamId).zip(tensors).filter(|(param, _)| !left_out(*param));
    for (param, tensor) in kept {
        if let Some((tensor, value)) = fault(network, param, tensor) {
            return Err(TrainError::NotFinite { tensor, value });
        }
    }
    Ok(())
}

/// The first tensor, by its name in a file, that holds something else than numbers, or a negative variance; and the value.
fn fault(network: &Graph, param: ParamId, tensor: &HostTensor) -> Option<(String, f32)> {
    let param = network.param(param);
    let (layer, row) = (&network.layers()[param.layer.index()].name, param.shape.stored_c().max(1));
    let is_variance = |index: usize| param.role == Role::Moments && index / row == 1;
    let is_fault = |&(index, value): &(usize, &f32)| !value.is_finite() || is_variance(index) && *value < 0.0;
    let (index, &value) = tensor.data.iter().enumerate().find(is_fault)?;
    let part = match (param.role, index / row) {
        (Role::Affine, 0) | (Role::ConvWeight | Role::DepthwiseWeight | Role::LinearWeight, _) => "weight",
        (Role::Affine, _) | (Role::Bias, _) => "bias",
        (Role::Moments, 0) => "running_mean",
        (Role::Moments, 1) => "running_var",
        (Role::Moments, _) => "num_batches_tracked",
        (Role::Scale | Role::ImageScale, _) => return Some((layer.clone(), value)),
    };
    Some((format!("{layer}.{part}"), value))
}

/// The layer whose results are the first that are not finite, for the batch that the executor's memory holds; `the images` if
/// those already are not. Runs the forward pass once more, call by call.
///
/// # Errors
/// The device failed.
pub(super) async fn first_not_finite(executor: &Executor) -> Result<Option<String>, TrainError> {
    let plan = executor.plan();
    let images = plan.slot(Storage::Images).filter(|_| plan.slot(Storage::Bytes).is_none());
    if let Some(slot) = images
        && executor.read_async(slot).await?.iter().any(|value| !value.is_finite())
    {
        return Ok(Some("the images".to_owned()));
    }
    for (index, call) in plan.calls.iter().enumerate() {
        if !matches!(call.phase, Phase::Once | Phase::Forward) {
            continue;
        }
        match executor.run_call(index) {
            // It is on its way, and reading waits for it.
            Err(GpuError::Blocking { .. }) => {}
            ran => ran?,
        }
        for ((binding, &slot), &words) in call.kernel.bindings.iter().zip(&call.bindings).zip(&call.words) {
            // These hold bits and places.
            if binding.access != Access::Write || matches!(binding.name, "mask" | "argmax") {
                continue;
            }
            if executor.read_async(slot).await?[..words].iter().any(|value| !value.is_finite()) {
                let name = call.layer.map(|layer| plan.graph.layers()[layer.index()].name.clone());
                return Ok(Some(name.map_or_else(|| plan.label(call), |name| format!("`{name}`"))));
            }
        }
    }
    Ok(None)
}

/// The error for results that are not finite.
///
/// # Errors
/// The device failed.
pub(super) async fn not_finite(executor: &Executor) -> Result<TrainError, TrainError> {
    let what = first_not_finite(executor).await?.unwrap_or_else(|| "the loss".to_owned());
    Ok(TrainError::OutputNotFinite { what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Device, DeviceOptions};
    use crate::plan::Input;
    use crate::train::{Evaluator, Images};
    use crate::{models, weights};

    fn network() -> (Graph, Vec<HostTensor>) {
        let network = models::build("resnet_tiny", 2, (8, 8), 4).unwrap();
        let tensors = weights::initialise(&network, 1);
        (network, tensors)
    }

    fn param(network: &Graph, layer: &str, role: Role) -> usize {
        let of = |layer: &str| network.layers().iter().position(|l| l.name == layer).unwrap();
        network.params().iter().position(|p| p.layer.index() == of(layer) && p.role == role).unwrap()
    }

    #[test]
    fn the_first_tensor_is_named() {
        let (network, tensors) = network();
        check_finite(&network, &tensors).unwrap();
        let row = |index: usize| network.params()[index].shape.stored_c();
        let late = param(&network, "layer3.0.bn1", Role::Moments);
        let (affine, moments) = (param(&network, "bn1", Role::Affine), param(&network, "layer2.0.bn2", Role::Moments));
        for (index, at, value, name) in [
            (param(&network, "conv1", Role::ConvWeight), 3, f32::NAN, "conv1.weight"),
            (affine, 1, f32::INFINITY, "bn1.weight"),
            (affine, row(affine) + 1, f32::NEG_INFINITY, "bn1.bias"),
            (moments, 0, f32::NAN, "layer2.0.bn2.running_mean"),
            (moments, row(moments), -1e-12, "layer2.0.bn2.running_var"),
        ] {
            let mut broken = tensors.clone();
            broken[late].data[0] = f32::NAN;
            broken[index].data[at] = value;
            match check_finite(&network, &broken) {
                Err(TrainError::NotFinite { tensor, .. }) => assert_eq!(tensor, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        // A mean may be negative.
        let mut shifted = tensors;
        shifted[moments].data[0] = -1.0;
        check_finite(&network, &shifted).unwrap();
    }

    #[test]
    fn the_layer_that_overflows_is_named() {
        let (network, mut tensors) = network();
        tensors[param(&network, "layer2.0.conv1", Role::ConvWeight)].data.iter_mut().for_each(|w| *w *= 3e38);
        let device = Device::open(&DeviceOptions::default()).unwrap();
        let mut evaluator = Evaluator::new(&device, &network, &tensors, Input::Values).unwrap();
        let images: Vec<f32> = (0..2 * 8 * 8 * 4).map(|i| (i % 7) as f32 - 3.0).collect();
        for result in [
            evaluator.logits(Images::Values(&images)).map(|_| ()),
            evaluator.evaluate(Images::Values(&images), &[0, 1]).map(|_| ()),
        ] {
            match result {
                Err(TrainError::OutputNotFinite { what }) => assert!(what.contains("layer2.0"), "{what}"),
                other => panic!("{other:?}"),
            }
        }
        let images = vec![f32::NAN; images.len()];
        let error = evaluator.logits(Images::Values(&images)).unwrap_err().to_string();
        assert!(error.contains("the images"), "{error}");
    }
}
