use super::{Interpolation, Preprocessing, Resize};
use std::borrow::Cow;

/// What someone says of a preprocessing: all of it, or some parts.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Parts {
    pub resize: Option<Resize>,
    pub crop: Option<f64>,
    pub interpolation: Option<Interpolation>,
    pub mean: Option<[f32; 3]>,
    pub std: Option<[f32; 3]>,
    pub bgr: Option<bool>,
}

impl From<Preprocessing> for Parts {
    fn from(Preprocessing { resize, crop, interpolation, mean, std, bgr }: Preprocessing) -> Self {
        Self {
            resize: Some(resize),
            crop: Some(crop),
            interpolation: Some(interpolation),
            mean: Some(mean),
            std: Some(std),
            bgr: Some(bgr),
        }
    }
}

/// A preprocessing, and where each part of it comes from.
#[derive(Clone, PartialEq, Debug)]
pub struct Traced {
    pub value: Preprocessing,
    /// Of the parts in the order of [`Traced::PARTS`].
    origins: [Cow<'static, str>; 6],
}

impl Traced {
    /// The names of the parts, as in a graph file.
    pub const PARTS: [&'static str; 6] = ["resize", "crop", "interpolation", "mean", "std", "bgr"];

    /// All of it from one place, such as `config.json`.
    pub fn new(value: Preprocessing, origin: impl Into<Cow<'static, str>>) -> Self {
        let origin = origin.into();
        Self { value, origins: [(); 6].map(|()| origin.clone()) }
    }

    /// As [`new`](Self::new), for a constant.
    pub const fn known(value: Preprocessing, origin: &'static str) -> Self {
        const fn cow(origin: &'static str) -> Cow<'static, str> {
            Cow::Borrowed(origin)
        }
        let origins = [cow(origin), cow(origin), cow(origin), cow(origin), cow(origin), cow(origin)];
        Self { value, origins }
    }

    /// With other parts, which come from `origin`.
    #[must_use]
    pub fn with(mut self, parts: &Parts, origin: impl Into<Cow<'static, str>>) -> Self {
        fn replace<T: Copy>(value: &mut T, part: Option<T>) -> bool {
            part.is_some_and(|part| {
                *value = part;
                true
            })
        }
        let (value, origin) = (&mut self.value, origin.into());
        let replaced = [
            replace(&mut value.resize, parts.resize),
            replace(&mut value.crop, parts.crop),
            replace(&mut value.interpolation, parts.interpolation),
            replace(&mut value.mean, parts.mean),
            replace(&mut value.std, parts.std),
            replace(&mut value.bgr, parts.bgr),
        ];
        for (known, _) in self.origins.iter_mut().zip(replaced).filter(|(_, replaced)| *replaced) {
            known.clone_from(&origin);
        }
        self
    }

    /// The parts' names, each with where it comes from.
    pub fn origins(&self) -> impl Iterator<Item = (&'static str, &str)> {
        Self::PARTS.into_iter().zip(self.origins.iter().map(Cow::as_ref))
    }

    /// In one line: the [value](Preprocessing::describe) for a network of `size` = (height, width) pixels, and the origins,
    /// those of most parts last.
    pub fn describe(&self, size: (usize, usize)) -> String {
        let mut places: Vec<(&str, Vec<&str>)> = Vec::new();
        for (part, origin) in self.origins() {
            match places.iter_mut().find(|(known, _)| *known == origin) {
                Some((_, parts)) => parts.push(part),
                None => places.push((origin, vec![part])),
            }
        }
        let value = self.value.describe(size);
        if let [(origin, _)] = places[..] {
            return format!("{value} (from {origin})");
        }
        places.sort_by_key(|(_, parts)| parts.len());
        let places: Vec<String> =
            places.into_iter().map(|(origin, parts)| format!("{} from {origin}", parts.join(", "))).collect();
        format!("{value} ({})", places.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_can_be_replaced_and_is_traced() {
        let other = Preprocessing {
            resize: Resize::Pad,
            crop: 0.5,
            interpolation: Interpolation::Nearest,
            mean: [0.1; 3],
            std: [0.2; 3],
            bgr: true,
        };
        let all = Traced::new(Preprocessing::default(), "the default").with(&other.into(), "the file");
        assert_eq!(all.value, other);
        assert!(all.origins().all(|(_, origin)| origin == "the file"));
        assert!(all.describe((8, 8)).ends_with("BGR (from the file)"));
        let some = Parts { crop: Some(0.25), std: Some([0.3; 3]), ..Parts::default() };
        let some = all.with(&some, "the command line");
        assert_eq!(some.value, Preprocessing { crop: 0.25, std: [0.3; 3], ..other });
        let text = some.describe((8, 8));
        assert!(
            text.ends_with("(crop, std from the command line; resize, interpolation, mean, bgr from the file)"),
            "{text}"
        );
    }
}
