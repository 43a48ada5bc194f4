//! What a model does to the values of its images before its first layer.

use super::{Form, From, Tensor};
use crate::models::Spec;

/// What rescaling makes of a pixel's values from 0 to 255, of red, green and blue: `scale · x + offset`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Rescaling {
    scale: [f64; 3],
    offset: [f64; 3],
    /// Whether blue comes first then.
    pub(super) bgr: bool,
}

impl Rescaling {
    pub(super) const NONE: Self = Self { scale: [1.0; 3], offset: [0.0; 3], bgr: false };
    /// From −1 to 1.
    pub(super) const TF: Self = Self { scale: [1.0 / 127.5; 3], offset: [-1.0; 3], bgr: false };
    /// Less the mean colour of ImageNet.
    pub(super) const CAFFE: Self = Self { scale: [1.0; 3], offset: [-123.68, -116.779, -103.939], bgr: true };

    /// Less the mean of ImageNet's images, over their deviation.
    pub(super) const TORCH: Self = Self {
        scale: [1.0 / (255.0 * 0.229), 1.0 / (255.0 * 0.224), 1.0 / (255.0 * 0.225)],
        offset: [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        bgr: false,
    };

    /// With numbers for the channels in the order in which they are by now.
    pub(super) fn then(self, scale: [f64; 3], offset: [f64; 3]) -> Self {
        let channels = [0, 1, 2];
        let at = |c: usize| if self.bgr { 2 - c } else { c };
        Self {
            scale: channels.map(|c| self.scale[c] * scale[at(c)]),
            offset: channels.map(|c| self.offset[c] * scale[at(c)] + offset[at(c)]),
            bgr: self.bgr,
        }
    }

    /// With u = x/255: scale·255·u + offset = (u − mean)/std.
    pub(super) fn mean_and_deviation(self) -> ([f32; 3], [f32; 3]) {
        let channels = [0, 1, 2];
        let std = self.scale.map(|scale| 1.0 / (255.0 * scale));
        (channels.map(|c| (0.0 - self.offset[c] * std[c]) as f32), std.map(|std| std as f32))
    }
}

/// What `preprocess_input` does for the models of `keras.applications` that do not prepare their images themselves: the
/// module that has it, and layers at the beginning that no other of these models has together. The names of models would
/// not do: a model that is built on such a one's layers has another name than the one within a model. The first that
/// fits counts. Source: `mode` in each of its modules, and `imagenet_utils.py` for what a mode is.
pub(super) const APPLICATIONS: [(&str, &[&str], Rescaling); 11] = [
    ("resnet_v2", &["conv1_conv", "conv2_block1_preact_bn", "conv2_block1_1_conv"], Rescaling::TF),
    ("resnet", &["conv1_conv", "conv1_bn", "conv2_block1_1_conv", "conv2_block1_0_conv"], Rescaling::CAFFE),
    // As Keras called its layers before 2.2.5.
    ("resnet", &["conv1", "bn_conv1", "res2a_branch2a", "res2a_branch1"], Rescaling::CAFFE),
    ("densenet", &["conv2_block1_0_bn", "conv2_block1_concat", "pool2_conv"], Rescaling::TORCH),
    ("inception_v3", &["mixed0", "mixed7", "mixed9_0"], Rescaling::TF),
    ("inception_resnet_v2", &["mixed_5b", "block35_1_mixed", "block8_10_mixed"], Rescaling::TF),
    ("xception", &["block1_conv1", "block1_conv2", "block2_sepconv1"], Rescaling::TF),
    ("vgg19", &["block1_conv1", "block1_conv2", "block2_conv1", "block3_conv4"], Rescaling::CAFFE),
    ("vgg16", &["block1_conv1", "block1_conv2", "block2_conv1"], Rescaling::CAFFE),
    ("mobilenet", &["conv1", "conv1_bn", "conv_dw_1", "conv_pw_1"], Rescaling::TF),
    ("mobilenet_v2", &["Conv1", "bn_Conv1", "expanded_conv_depthwise"], Rescaling::TF),
];

/// The channels of images in reverse order.
pub(super) fn reversed(x: Tensor, rescaling: Rescaling) -> Tensor {
    let rescaling = Rescaling { bgr: !rescaling.bgr, ..rescaling };
    Tensor { from: From::Images(rescaling), form: Form::Plain, ..x }
}

/// Mean and deviation of the images, as values from 0 to 1, that a `Normalization` layer's variables mean in the network
/// `spec`, where a file has no configuration beside them.
///
/// The EfficientNets of `keras.applications` keep the deviation itself as the variance if they have ImageNet's weights, and
/// divide by its root once more; then there is nothing to tell. None, too, if there is not one number a channel.
pub fn image_statistics(spec: &Spec, [mean, variance]: &[Vec<f32>; 2]) -> Option<[[f32; 3]; 2]> {
    let [mean, variance]: [[f32; 3]; 2] = [mean.as_slice().try_into().ok()?, variance.as_slice().try_into().ok()?];
    let is_deviation =
        variance.iter().zip(spec.preprocessing.value.std).all(|(variance, std)| (variance - std).abs() < 1e-3);
    let std = variance.map(f32::sqrt);
    let is_sound = mean.iter().all(|mean| mean.is_finite()) && std.iter().all(|&std| std > 0.0 && std.is_finite());
    (is_sound && !is_deviation).then_some([mean, std])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normalization_without_its_configuration() {
        let spec = crate::models::spec("keras_efficientnet_b0").unwrap();
        let own = [vec![0.4, 0.5, 0.6], vec![0.04, 0.09, 0.25]];
        let [mean, std] = image_statistics(spec, &own).unwrap();
        assert_eq!(mean, [0.4, 0.5, 0.6]);
        assert!(std.iter().zip([0.2, 0.3, 0.5]).all(|(std, expected)| (std - expected).abs() < 1e-6), "{std:?}");
        assert_eq!(image_statistics(spec, &[vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]]), None);
        assert_eq!(image_statistics(spec, &[vec![0.5], vec![0.25]]), None);
        assert_eq!(image_statistics(spec, &[vec![0.5; 3], vec![-1.0; 3]]), None);
    }

    #[test]
    fn chains_of_rescaling_become_one_mean_and_deviation() {
        let images = Rescaling::NONE;
        assert_eq!(images.then([1.0 / 127.5; 3], [-1.0; 3]).mean_and_deviation(), ([0.5; 3], [0.5; 3]));
        let normalized = images.then([1.0 / 255.0; 3], [0.0; 3]).then([4.0; 3], [-2.0; 3]);
        assert_eq!(normalized.mean_and_deviation(), ([0.5; 3], [0.25; 3]));
    }
}
