//! Matches the tensors of a file with those that a network expects.

use std::collections::BTreeSet;

use super::error::Mismatch;
use super::{FileTensor, StateDict, TensorData, WeightsError};
use crate::text::printable;

/// A tensor that the network expects from a file.
#[derive(Clone, PartialEq, Debug)]
pub struct Expected {
    pub name: String,
    /// In the file's own layout, e.g. OIHW.
    pub shape: Vec<usize>,
    pub kind: ExpectedKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExpectedKind {
    /// A parameter or a statistic.
    Float,
    /// A scalar integer such as `num_batches_tracked`. Old files lack it; it is zero then.
    Counter,
}

/// A file's tensors in the order of what was expected.
#[derive(Clone, PartialEq, Debug)]
pub struct Bound {
    /// One entry for each expected tensor; `None` is a tensor of the head that has to be initialised, because the
    /// file has no head, or one with another number of classes.
    pub tensors: Vec<Option<FileTensor>>,
    /// Why the head starts anew, if it does.
    pub new_head: Option<NewHead>,
}

/// Whether a file needs a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head {
    Required,
    /// It starts anew where the file has none: before training.
    Optional,
    /// It starts anew, whatever the file has.
    New,
}

/// Why a head starts anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewHead {
    /// The file's head has `found` classes, and `asked` are asked for.
    OtherClasses { found: usize, asked: usize },
    /// The file has none.
    Absent,
    /// The caller asked for it.
    Asked,
}

/// Gives each expected tensor its values from `state`.
///
/// `head` is the layer, e.g. `fc`, whose tensors may differ in the first dimension, the number of classes. If they
/// do, all of them alike, then the file's head is left out and the log says so. With [`Head::Optional`] all of its tensors may
/// be missing; with [`Head::New`] it is left out in any case.
///
/// # Errors
/// [`WeightsError::Mismatch`] with every tensor that is missing, unexpected, or of another shape or kind.
pub fn bind(state: StateDict, expected: &[Expected], head: &str, needed: Head) -> Result<Bound, WeightsError> {
    let of_head = || expected.iter().filter(|wanted| belongs_to(&wanted.name, head));
    let is_absent = of_head().next().is_some() && of_head().all(|wanted| !state.tensors.contains_key(&wanted.name));
    let new_head = match (is_absent, needed) {
        (_, Head::New) => Some(NewHead::Asked),
        (true, Head::Optional) => Some(NewHead::Absent),
        (true, Head::Required) => None,
        (false, _) => other_classes(&state, expected, head),
    };
    let skipped = |name: &str| new_head.is_some() && belongs_to(name, head);

    let mut missing = Vec::new();
    let mut misshapen = Vec::new();
    for wanted in expected.iter().filter(|wanted| !skipped(&wanted.name)) {
        match state.tensors.get(&wanted.name) {
            Some(tensor) => {
                if let Some(difference) = difference(tensor, wanted) {
                    misshapen.push((wanted.name.clone(), difference));
                }
            }
            None if wanted.kind == ExpectedKind::Counter => {}
            None => missing.push((wanted.name.clone(), wanted.shape.clone())),
        }
    }
    let names: BTreeSet<&str> = expected.iter().map(|wanted| wanted.name.as_str()).collect();
    let unexpected: Vec<_> = state
        .tensors
        .iter()
        .filter(|(name, _)| !names.contains(name.as_str()))
        .map(|(name, tensor)| (name.clone(), tensor.shape.clone()))
        .collect();

    let file = match &state.origin {
        Some(path) => path.display().to_string(),
        None => "the state dict".to_string(),
    };
    if !(missing.is_empty() && unexpected.is_empty() && misshapen.is_empty()) {
        missing.sort();
        misshapen.sort();
        let others_missing = missing.iter().any(|(name, _)| !belongs_to(name, head));
        let hint = match is_absent && !others_missing && misshapen.is_empty() {
            true => Some(format!(
                "it has no head `{head}`, which gives the classes: `finetune` and `compare` start one anew, and what they \
                 write has one"
            )),
            false => hint(&state, expected, missing.len() + unexpected.len() + misshapen.len()),
        };
        let mismatch = Mismatch { file, missing, unexpected, misshapen, hint };
        return Err(WeightsError::Mismatch(Box::new(mismatch)));
    }
    match new_head {
        Some(NewHead::OtherClasses { found, asked }) => {
            log::warn!("{file} was trained for {found} classes; `{head}` starts anew with {asked}");
        }
        Some(NewHead::Absent) => log::warn!("{file} has no head; `{head}` starts anew"),
        Some(NewHead::Asked) | None => {}
    }

    let mut found = state.tensors;
    let tensors = expected.iter().map(|wanted| match wanted.kind {
        _ if skipped(&wanted.name) => None,
        ExpectedKind::Float => found.remove(&wanted.name),
        ExpectedKind::Counter => {
            let data = found.remove(&wanted.name).map_or(TensorData::I64(vec![0]), |tensor| tensor.data);
            Some(FileTensor { shape: Vec::new(), data })
        }
    });
    Ok(Bound { tensors: tensors.collect(), new_head })
}

fn belongs_to(name: &str, layer: &str) -> bool {
    name.strip_prefix(layer).is_some_and(|rest| rest.starts_with('.'))
}

/// How a tensor differs from what is expected under its name.
fn difference(tensor: &FileTensor, wanted: &Expected) -> Option<String> {
    let shape = &tensor.shape;
    match (&tensor.data, wanted.kind) {
        (TensorData::F32(_), ExpectedKind::Float) if *shape == wanted.shape => None,
        (TensorData::F32(_), ExpectedKind::Float) => {
            Some(format!("has the shape {shape:?}, the model's is {:?}", wanted.shape))
        }
        (TensorData::I64(_), ExpectedKind::Float) => {
            Some(format!("holds integers {shape:?}, the model wants floats {:?}", wanted.shape))
        }
        (TensorData::I64(values), ExpectedKind::Counter) if values.len() == 1 => None,
        (_, ExpectedKind::Counter) => Some(format!("has the shape {shape:?}, the model wants one integer")),
    }
}

/// The classes in the file and those expected, if that is the only thing in which the head differs.
fn other_classes(state: &StateDict, expected: &[Expected], head: &str) -> Option<NewHead> {
    let mut classes = None;
    for wanted in expected.iter().filter(|wanted| belongs_to(&wanted.name, head)) {
        let tensor = state.tensors.get(&wanted.name)?;
        let (&found, found_rest) = tensor.shape.split_first()?;
        let (&asked, asked_rest) = wanted.shape.split_first()?;
        let floats = matches!(tensor.data, TensorData::F32(_));
        if !floats || found_rest != asked_rest || classes.is_some_and(|both| both != (found, asked)) {
            return None;
        }
        classes = Some((found, asked));
    }
    classes.filter(|(found, asked)| found != asked).map(|(found, asked)| NewHead::OtherClasses { found, asked })
}

/// What is the matter with the file as a whole, if so many tensors differ that the lists alone do not tell.
fn hint(state: &StateDict, expected: &[Expected], problems: usize) -> Option<String> {
    let integers = |wanted: &&Expected| {
        let found = state.tensors.get(&wanted.name).map(|tensor| &tensor.data);
        wanted.kind == ExpectedKind::Float && matches!(found, Some(TensorData::I64(_)))
    };
    if let Some(wanted) = expected.iter().find(integers) {
        return Some(format!(
            "`{}` holds integers, so the file seems to be quantised: give the file of floats that it was made from",
            wanted.name
        ));
    }
    // Counters may be missing from a good file, so they prove nothing.
    let names: Vec<&str> = expected
        .iter()
        .filter(|wanted| wanted.kind == ExpectedKind::Float)
        .map(|wanted| wanted.name.as_str())
        .collect();
    let in_file =
        |prefix: &str| names.iter().filter(|name| state.tensors.contains_key(&format!("{prefix}{name}"))).count();
    let &first_wanted = names.first()?;
    if in_file("") * 2 < names.len() {
        let prefixes: BTreeSet<&str> = state
            .tensors
            .keys()
            .filter_map(|name| name.strip_suffix(first_wanted))
            .filter(|prefix| prefix.ends_with('.'))
            .collect();
        let prefix = prefixes.into_iter().max_by_key(|prefix| in_file(prefix));
        if let Some(prefix) = prefix.filter(|prefix| in_file(prefix) * 2 > names.len()) {
            let prefix = printable(prefix);
            return Some(format!(
                "the names in the file begin with `{prefix}`; save the state_dict() of that part alone"
            ));
        }
    }
    if in_file("") == 0 {
        let instead = state.tensors.keys().next()?;
        return Some(format!(
            "no name agrees, so the file follows another naming: it has `{}` where names like `{first_wanted}` \
             are wanted",
            printable(instead)
        ));
    }
    (problems * 10 > names.len())
        .then(|| "the file seems to hold another architecture; choose the model that it was saved from".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(name: &str, shape: &[usize]) -> Expected {
        Expected { name: name.to_string(), shape: shape.to_vec(), kind: ExpectedKind::Float }
    }

    /// A convolution, a batch norm, and a head of 3 classes.
    fn network() -> Vec<Expected> {
        vec![
            float("conv1.weight", &[4, 3, 1, 1]),
            float("bn1.weight", &[4]),
            float("bn1.bias", &[4]),
            Expected { name: "bn1.num_batches_tracked".into(), shape: vec![], kind: ExpectedKind::Counter },
            float("fc.weight", &[3, 4]),
            float("fc.bias", &[3]),
        ]
    }

    /// A file that has what `expected` asks for, each tensor filled with its position.
    fn file(expected: &[Expected]) -> StateDict {
        let mut state = StateDict { origin: Some("net.pth".into()), ..Default::default() };
        for (index, wanted) in expected.iter().enumerate() {
            let count = wanted.shape.iter().product();
            let tensor = match wanted.kind {
                ExpectedKind::Float => FileTensor::f32(wanted.shape.clone(), vec![index as f32; count]),
                ExpectedKind::Counter => FileTensor::i64(wanted.shape.clone(), vec![index as i64; count]),
            };
            state.tensors.insert(wanted.name.clone(), tensor);
        }
        state
    }

    fn mismatch(state: StateDict, expected: &[Expected]) -> (Mismatch, String) {
        match bind(state, expected, "fc", Head::Required) {
            Err(WeightsError::Mismatch(mismatch)) => {
                let message = mismatch.to_string();
                (*mismatch, message)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tensors_come_in_the_expected_order() {
        let expected = network();
        let bound = bind(file(&expected), &expected, "fc", Head::Required).unwrap();
        assert_eq!(bound.new_head, None);
        assert_eq!(bound.tensors.len(), 6);
        assert_eq!(bound.tensors[0], Some(FileTensor::f32([4, 3, 1, 1], vec![0.0; 12])));
        assert_eq!(bound.tensors[3], Some(FileTensor::i64([], vec![3])));
        assert_eq!(bound.tensors[5], Some(FileTensor::f32([3], vec![5.0; 3])));
    }

    #[test]
    fn a_missing_counter_is_zero() {
        let mut state = file(&network());
        state.tensors.remove("bn1.num_batches_tracked");
        let bound = bind(state, &network(), "fc", Head::Required).unwrap();
        assert_eq!(bound.tensors[3], Some(FileTensor::i64([], vec![0])));
    }

    #[test]
    fn another_class_count_leaves_the_head_out() {
        let mut trained = network();
        trained[4].shape[0] = 1000;
        trained[5].shape[0] = 1000;
        let bound = bind(file(&trained), &network(), "fc", Head::Required).unwrap();
        assert_eq!(bound.new_head, Some(NewHead::OtherClasses { found: 1000, asked: 3 }));
        assert_eq!((&bound.tensors[4], &bound.tensors[5]), (&None, &None));
        assert!(bound.tensors[..4].iter().all(Option::is_some));
    }

    #[test]
    fn a_head_that_differs_otherwise_is_an_error() {
        let mut inconsistent = network();
        inconsistent[4].shape[0] = 1000;
        assert_eq!(mismatch(file(&inconsistent), &network()).0.misshapen.len(), 1);

        let mut wider = network();
        (wider[4].shape, wider[5].shape) = (vec![7, 5], vec![7]);
        assert_eq!(mismatch(file(&wider), &network()).0.misshapen.len(), 2);

        let mut half = file(&network());
        half.tensors.remove("fc.bias");
        assert_eq!(mismatch(half.clone(), &network()).0.missing.len(), 1);
        assert!(bind(half, &network(), "fc", Head::Optional).is_err());

        // `fc` is a layer, not any name that begins so.
        let mut other = network();
        other[0].name = "fc2.weight".into();
        let mut trained = other.clone();
        trained[0].shape[0] = 8;
        assert_eq!(mismatch(file(&trained), &other).0.misshapen.len(), 1);
    }

    #[test]
    fn a_head_that_is_not_there_starts_anew_before_training() {
        let mut headless = file(&network());
        headless.tensors.retain(|name, _| !name.starts_with("fc."));
        let (found, message) = mismatch(headless.clone(), &network());
        assert_eq!(found.missing.len(), 2);
        assert!(message.contains("it has no head `fc`") && message.contains("`finetune`"), "{message}");
        let bound = bind(headless, &network(), "fc", Head::Optional).unwrap();
        assert_eq!(bound.new_head, Some(NewHead::Absent));

        let bound = bind(file(&network()), &network(), "fc", Head::New).unwrap();
        assert_eq!(bound.new_head, Some(NewHead::Asked));
        let of_head = |name: &str| name.starts_with("fc.");
        assert!(network().iter().zip(&bound.tensors).all(|(wanted, found)| of_head(&wanted.name) == found.is_none()));
        assert_eq!((&bound.tensors[4], &bound.tensors[5]), (&None, &None));
    }

    #[test]
    fn integers_in_the_place_of_floats_are_called_quantised() {
        let mut state = file(&network());
        state.tensors.insert("fc.weight".into(), FileTensor::i64([3, 4], vec![1; 12]));
        let hint = mismatch(state, &network()).0.hint.unwrap();
        assert!(hint.contains("`fc.weight` holds integers") && hint.contains("quantised"), "{hint}");
    }

    #[test]
    fn every_difference_is_in_one_error() {
        let mut state = file(&network());
        let bias = state.tensors.remove("bn1.bias").unwrap();
        state.tensors.insert("bn1.extra".into(), bias);
        state.tensors.insert("bn1.weight".into(), FileTensor::i64([4], vec![1; 4]));
        state.tensors.insert("conv1.weight".into(), FileTensor::f32([4, 3, 3, 1], vec![0.0; 36]));
        state.tensors.insert("bn1.num_batches_tracked".into(), FileTensor::f32([], vec![1.0]));
        let (mismatch, message) = mismatch(state, &network());
        assert_eq!(mismatch.missing, [("bn1.bias".to_string(), vec![4])]);
        assert_eq!(mismatch.unexpected, [("bn1.extra".to_string(), vec![4])]);
        let names: Vec<_> = mismatch.misshapen.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["bn1.num_batches_tracked", "bn1.weight", "conv1.weight"]);
        assert_eq!(
            message,
            "net.pth does not fit the model (tensors: 1 missing, 1 unexpected, 3 of another shape or kind); \
             `bn1.weight` holds integers, so the file seems to be quantised: give the file of floats that it was made \
             from\n  \
             missing: bn1.bias [4]\n  \
             unexpected: bn1.extra [4]\n  \
             other shape or kind: bn1.num_batches_tracked has the shape [], the model wants one integer\n  \
             other shape or kind: bn1.weight holds integers [4], the model wants floats [4]\n  \
             other shape or kind: conv1.weight has the shape [4, 3, 3, 1], the model's is [4, 3, 1, 1]"
        );
    }

    #[test]
    fn long_lists_are_cut_with_a_count() {
        let expected: Vec<_> = (10..60).map(|index| float(&format!("layer{index}.weight"), &[1])).collect();
        let mut state = file(&expected);
        state.tensors.retain(|name, _| name.as_str() >= "layer40");
        let (mismatch, message) = mismatch(state, &expected);
        assert_eq!(mismatch.missing.len(), 30);
        assert!(message.contains("\n  missing: layer17.weight [1]\n  missing: … and 22 more"), "{message}");
    }

    #[test]
    fn a_single_difference_gets_no_guess() {
        let expected: Vec<_> = (10..60).map(|index| float(&format!("layer{index}.weight"), &[1])).collect();
        let mut state = file(&expected);
        state.tensors.remove("layer10.weight");
        assert_eq!(mismatch(state, &expected).0.hint, None);
    }

    #[test]
    fn a_prefix_and_another_naming_are_recognised() {
        let renamed = |rename: &dyn Fn(&str) -> String| {
            let mut state = file(&network());
            state.tensors = state.tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
            mismatch(state, &network()).0.hint.unwrap()
        };
        assert!(renamed(&|name| format!("backbone.net.{name}")).contains("begin with `backbone.net.`"));
        let other = renamed(&|name| name.replace('.', "/"));
        assert!(other.contains("it has `bn1/bias` where names like `conv1.weight` are wanted"), "{other}");
    }

    #[test]
    fn names_from_a_file_cannot_write_to_the_terminal() {
        let mut state = file(&network());
        let name = format!("\x1b[2J{}", "x".repeat(500));
        state.tensors.insert(name, FileTensor::f32([1], vec![0.0]));
        let (_, message) = mismatch(state, &network());
        assert!(message.contains("\\u{1b}[2Jxxx") && message.len() < 500, "{message}");
    }
}
