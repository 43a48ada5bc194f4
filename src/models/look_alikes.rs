//! Networks of other libraries whose weights files look like those of a network here.
//!
//! `tests/golden/look_alikes.py` finds them, by the names and shapes of all tensors, over everything that timm and torchvision
//! have, and says which of them compute the same.

use super::{MODELS, Spec};

/// A line a network and library: the network's name here, `same` or `differs`, the library, and the names there.
const TABLE: &str = include_str!("look_alikes.txt");

/// A network with the same names and shapes of tensors as one here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LookAlike {
    /// The network here.
    pub model: &'static str,
    /// `timm` or `torchvision`.
    pub library: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// Whether it computes the same from the same weights.
    pub same: bool,
}

/// Every network of timm or torchvision that has the tensors of one here, that one among them.
pub fn look_alikes() -> impl Iterator<Item = LookAlike> {
    TABLE.lines().filter(|line| !line.starts_with('#')).flat_map(|line| {
        let mut words = line.split_whitespace();
        let (model, verdict, library) = (words.next(), words.next(), words.next());
        words.filter_map(move |name| {
            Some(LookAlike { model: model?, library: library?, name, same: verdict? == "same" })
        })
    })
}

/// The network that timm calls `architecture`, which is also what the `config.json` beside its files calls it.
pub fn of_timm(architecture: &str) -> Option<&'static Spec> {
    // `resnet50.a1_in1k` is resnet50 with certain weights.
    let architecture = architecture.split('.').next().unwrap_or_default();
    let own = |spec: &&Spec| spec.name.strip_prefix("timm_") == Some(architecture);
    let named = |spec: &&Spec| spec.name == architecture;
    let same = look_alikes().find(|found| found.same && found.library == "timm" && found.name == architecture);
    let same = || MODELS.iter().find(|spec| same.is_some_and(|same| spec.name == same.model));
    MODELS.iter().find(own).or_else(|| MODELS.iter().find(named)).or_else(same)
}
