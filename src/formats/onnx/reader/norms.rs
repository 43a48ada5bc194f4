//! Layer norms and group norms, as one operator or written out.

use super::constant::{Constant, Kind};
use super::fold::axis;
use super::network::{Note, Weights};
use super::{Def, Id, Image, Node, Over, Reader};
use crate::formats::onnx::attributes::{attributes, float, int, size};
use crate::models::LayerOp;

impl<'a> Reader<'a> {
    pub(super) fn layer_normalization(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["axis", "epsilon", "stash_type"])?;
        let x = self.operand(node, 0)?;
        let rank = self.image(x).view.rank();
        let at = axis(int(&node, "axis", -1)?, rank + 1)?;
        if at != rank || self.image(x).view.channels(self.image(x).shape) != Some(rank - 1) {
            return Err(format!(
                "over the dimensions from {at} on of {} it is not supported; over the channels of each pixel it is",
                self.described(x)
            ));
        }
        let normalised = self.part(node, Def::Normalised(x, Over::Channels, float(&node, "epsilon", 1e-5)?), x)?;
        let gamma = self.constant(node, 1)?;
        let beta = if node.has(2) { Some(self.constant(node, 2)?) } else { None };
        self.norm(node, normalised, Some(gamma), beta)
    }

    pub(super) fn group_normalization(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["epsilon", "num_groups", "stash_type"])?;
        let x = self.operand_of_images(node, 0)?;
        let groups = size(int(&node, "num_groups", 0)?)?;
        let normalised =
            self.part(node, Def::Normalised(x, Over::Groups(groups), float(&node, "epsilon", 1e-5)?), x)?;
        let (gamma, beta) = (self.constant(node, 1)?, self.constant(node, 2)?);
        self.norm(node, normalised, Some(gamma), Some(beta))
    }

    /// Over the pixels of each channel, or of each group if channels of a group are a dimension with pixels.
    pub(super) fn instance_normalization(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["epsilon"])?;
        let x = self.operand(node, 0)?;
        let Image { shape: shape @ [channels, ..], view, .. } = self.image(x).clone();
        let groups = match view.run_of_channels(0, shape) {
            Some(run) => Some(channels / run),
            // All channels are one group.
            None => (view.sizes().first() == Some(&1)).then_some(1),
        };
        let wrong = || format!("the second dimension of {} is no group of channels", self.described(x));
        let groups = groups.ok_or_else(wrong)?;
        let normalised =
            self.part(node, Def::Normalised(x, Over::Groups(groups), float(&node, "epsilon", 1e-5)?), x)?;
        let (gamma, beta) = (self.constant(node, 1)?, self.constant(node, 2)?);
        let mut all_are = |constant: &Constant<'a>, number: f64| {
            Ok::<bool, String>(self.numbers(constant)?.iter().all(|&value| value == Some(number)))
        };
        // Those that follow are γ and β of each channel.
        match all_are(&gamma, 1.0)? && all_are(&beta, 0.0)? {
            true => Ok(normalised),
            false if groups == channels => self.norm(node, normalised, Some(gamma), Some(beta)),
            false => Err("a factor or a sum for each group is not supported; for each channel it is".into()),
        }
    }

    /// The norm of what is normalised, in its dimensions.
    fn norm(
        &mut self,
        node: Node<'a>,
        normalised: Id,
        gamma: Option<Constant<'a>>,
        beta: Option<Constant<'a>>,
    ) -> Result<Id, String> {
        let Def::Normalised(x, over, eps) = self.image(normalised).def else {
            return Err(self.unknown_part(normalised));
        };
        let channels = self.image(x).shape[0];
        let plain = gamma.is_none() || beta.is_none();
        let row = |constant: Option<Constant<'a>>, number: f64| {
            let same = || Constant::number(Kind::Float, number).expanded(&[channels]);
            let row = constant.map_or_else(same, |constant| constant.reshaped(&[channels]));
            row.ok_or_else(|| format!("its γ or β are not {channels} values, one a channel"))
        };
        let weights = vec![Weights::new("weight", row(gamma, 1.0)?), Weights::new("bias", row(beta, 0.0)?)];
        let op = match over {
            Over::Channels => LayerOp::LayerNorm { eps },
            Over::Groups(groups) => LayerOp::GroupNorm { groups, eps },
        };
        let view = self.image(normalised).view.clone();
        let id = self.layer(node, op, &[x], weights, |_| view)?;
        self.note(id, plain.then_some(Note::PlainNorm));
        Ok(id)
    }

    // ---- Written out: d = x − mean(x), d/√(mean(d²) + ε)·γ + β, the means being over channels.

    /// What one image over another normalises over its channels, and with which ε.
    pub(super) fn normalised(&self, difference: Id, deviation: Id) -> Option<(Id, f32)> {
        let Def::Difference(x, mean) = self.image(difference).def else { return None };
        let Def::Sqrt(sum) = self.image(deviation).def else { return None };
        let Def::Plus(variance, eps) = self.image(sum).def else { return None };
        let Def::ChannelMean(square) = self.image(variance).def else { return None };
        // Some write the difference twice.
        let is_difference = |id: Id| match self.image(id).def {
            Def::Difference(of, other) => of == x && self.image(other).def == Def::ChannelMean(x),
            _ => false,
        };
        let squares = match self.image(square).def {
            Def::Power(of, 2.0) => is_difference(of),
            Def::Product(a, b) => is_difference(a) && is_difference(b),
            _ => false,
        };
        (squares && self.image(mean).def == Def::ChannelMean(x)).then_some((x, eps))
    }

    /// The norm that ends in adding β to `x`, if it is one.
    pub(super) fn norm_with_beta(&mut self, node: Node<'a>, x: Id, beta: &Constant<'a>) -> Result<Option<Id>, String> {
        let (normalised, gamma) = self.without_gamma(x);
        match self.image(normalised).def {
            Def::Normalised(..) => self.norm(node, normalised, gamma, Some(beta.clone())).map(Some),
            _ => Ok(None),
        }
    }

    /// The norm that has no β, or neither γ nor β, if it is one.
    pub(super) fn norm_without_beta(&mut self, node: Node<'a>, x: Id) -> Result<Option<Id>, String> {
        let (normalised, gamma) = self.without_gamma(x);
        match self.image(normalised).def {
            Def::Normalised(..) => self.norm(node, normalised, gamma, None).map(Some),
            _ => Ok(None),
        }
    }

    fn without_gamma(&self, x: Id) -> (Id, Option<Constant<'a>>) {
        match self.image(x).def {
            Def::TimesChannels(normalised, index) => (normalised, Some(self.channels[index].0.clone())),
            _ => (x, None),
        }
    }
}
