//! How the dimensions of a value are those of images.
//!
//! A layer gives images of channels, height and width. What a file calls a value of such a layer may have its dimensions in
//! another order, some of them as one, or one of them as several. A [`View`] says which.

use std::cmp::Reverse;

/// A dimension of images.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Dim {
    C,
    H,
    W,
}

/// A part of a dimension: of each index `i` in it the digit `i / stride % size`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Digit {
    of: Dim,
    pub(super) size: usize,
    pub(super) stride: usize,
}

/// The dimensions of a value behind that of the images. Each one is a number written in digits, the greatest first; without
/// digits it has the size 1. All digits of all dimensions of the images are somewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct View(Vec<Vec<Digit>>);

/// Forms that operators ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// `[N, C, H, W]`
    Nchw,
    /// `[N, H, W, C]`
    Nhwc,
    /// `[N, C]`, of images of one pixel
    Flat,
}

impl View {
    /// A value in a form, of a layer that gives so many channels, rows and columns.
    pub(super) fn of(form: Form, [c, h, w]: [usize; 3]) -> Self {
        let [c, h, w] = [(Dim::C, c), (Dim::H, h), (Dim::W, w)].map(|(of, size)| whole(of, size));
        Self(match form {
            Form::Nchw => vec![c, h, w],
            Form::Nhwc => vec![h, w, c],
            Form::Flat => vec![[c, h, w].concat()],
        })
    }

    /// How many dimensions there are behind that of the images.
    pub(super) fn rank(&self) -> usize {
        self.0.len()
    }

    pub(super) fn sizes(&self) -> Vec<usize> {
        self.0.iter().map(|digits| digits.iter().map(|digit| digit.size).product()).collect()
    }

    /// The dimension that is all of the channels, of a layer that gives so many channels, rows and columns.
    pub(super) fn channels(&self, shape: [usize; 3]) -> Option<usize> {
        match shape[0] {
            // A single channel has no digits, as have other dimensions of one value.
            1 if *self == Self::of(Form::Nchw, shape) || shape == [1; 3] && self.rank() == 1 => Some(0),
            1 if *self == Self::of(Form::Nhwc, shape) => Some(2),
            1 => None,
            c => self.0.iter().position(|digits| *digits == whole(Dim::C, c)),
        }
    }

    /// Whether the dimensions are all of the height and of the width, and nothing else.
    pub(super) fn are_pixels(&self, axes: &[usize], [_, h, w]: [usize; 3]) -> bool {
        let mut digits: Vec<Digit> = axes.iter().filter_map(|&axis| self.0.get(axis)).flatten().copied().collect();
        digits.sort_unstable_by_key(|digit| digit.of);
        digits == [whole(Dim::H, h), whole(Dim::W, w)].concat()
    }

    /// The consecutive channels that an index of a dimension stands for, if it does.
    pub(super) fn run_of_channels(&self, axis: usize, [c, ..]: [usize; 3]) -> Option<usize> {
        match self.0.get(axis)?[..] {
            [digit] if digit.of == Dim::C && digit.size * digit.stride == c => Some(digit.stride),
            _ => None,
        }
    }

    /// The same dimensions where one of [consecutive channels](Self::run_of_channels) has another size.
    pub(super) fn with_run(&self, axis: usize, size: usize) -> Self {
        let mut view = self.clone();
        if let Some(digits) = view.0.get_mut(axis) {
            let stride = digits.first().map_or(1, |digit| digit.stride);
            *digits = if size == 1 { Vec::new() } else { vec![Digit { of: Dim::C, size, stride }] };
        }
        view
    }

    /// The same dimensions where all of the channels are so many.
    pub(super) fn with_channels(&self, axis: usize, channels: usize) -> Self {
        let mut view = self.clone();
        if let Some(digits) = view.0.get_mut(axis) {
            *digits = whole(Dim::C, channels);
        }
        view
    }

    /// The dimensions without those, which have the size 1 now or vanish.
    pub(super) fn reduced(&self, axes: &[usize], keep: bool) -> Self {
        let axis = |(axis, digits): (usize, &Vec<Digit>)| match axes.contains(&axis) {
            true => keep.then(Vec::new),
            false => Some(digits.clone()),
        };
        Self(self.0.iter().enumerate().filter_map(axis).collect())
    }

    /// With dimensions of one value at places of the result.
    pub(super) fn with_ones(&self, places: &[usize]) -> Option<Self> {
        let mut axes = self.0.iter().cloned();
        let axis = |place| if places.contains(&place) { Some(Vec::new()) } else { axes.next() };
        let all: Option<Vec<_>> = (0..self.rank() + places.len()).map(axis).collect();
        all.filter(|all| all.len() == self.rank() + places.len()).map(Self)
    }

    pub(super) fn transposed(&self, order: &[usize]) -> Option<Self> {
        let each_once = order.len() == self.rank() && (0..self.rank()).all(|axis| order.contains(&axis));
        each_once.then(|| Self(order.iter().map(|&axis| self.0[axis].clone()).collect()))
    }

    /// Dimensions of other sizes over the same values; `None` if a dimension would be more than digits of others.
    pub(super) fn reshaped(&self, sizes: &[usize]) -> Option<Self> {
        let mut digits = self.0.iter().flatten().copied();
        let mut rest: Option<Digit> = None;
        let mut axes = Vec::new();
        for &size in sizes {
            let (mut axis, mut wanted) = (Vec::new(), size);
            while wanted > 1 {
                let digit = rest.take().or_else(|| digits.next())?;
                if wanted.is_multiple_of(digit.size) {
                    wanted /= digit.size;
                    axis.push(digit);
                } else if digit.size.is_multiple_of(wanted) {
                    let inner = digit.size / wanted;
                    axis.push(Digit { size: wanted, stride: digit.stride * inner, ..digit });
                    rest = Some(Digit { size: inner, ..digit });
                    wanted = 1;
                } else {
                    return None;
                }
            }
            axes.push(merged(axis));
        }
        let used = wholly_used(rest, digits) && !sizes.contains(&0);
        used.then_some(Self(axes))
    }

    /// In how many groups channels were before they were exchanged between them, if that is all that tells the view from a
    /// form: then the channel of a layer at `i·(C/groups) + j` is that of the view at `j·groups + i`.
    pub(super) fn shuffled(&self, shape: [usize; 3]) -> Option<(usize, Form)> {
        let axis = |digits: &Vec<Digit>| match digits[..] {
            [inner, outer] => {
                let fits = inner.of == Dim::C && outer.of == Dim::C && inner.stride == 1 && outer.stride == inner.size;
                (fits && inner.size * outer.size == shape[0]).then_some(outer.size)
            }
            _ => None,
        };
        let (place, groups) = self.0.iter().enumerate().find_map(|(place, digits)| Some((place, axis(digits)?)))?;
        let straight = self.with_channels(place, shape[0]);
        let form = [Form::Nchw, Form::Nhwc, Form::Flat].into_iter().find(|&form| straight == Self::of(form, shape))?;
        Some((groups, form))
    }

    /// Of a value of one dimension: the sizes of its digits, and the order in which they are channels, rows and columns.
    pub(super) fn flat_order(&self) -> Option<(Vec<usize>, Vec<usize>)> {
        let [digits] = &self.0[..] else { return None };
        let mut order: Vec<usize> = (0..digits.len()).collect();
        order.sort_by_key(|&place| (digits[place].of, Reverse(digits[place].stride)));
        Some((digits.iter().map(|digit| digit.size).collect(), order))
    }

    /// Whether a value of these dimensions can be repeated along `other`'s: each is the same there, or of one value.
    pub(super) fn repeats_along(&self, other: &Self) -> bool {
        self.rank() == other.rank() && self.0.iter().zip(&other.0).all(|(own, other)| own.is_empty() || own == other)
    }
}

/// All of a dimension.
fn whole(of: Dim, size: usize) -> Vec<Digit> {
    if size == 1 { Vec::new() } else { vec![Digit { of, size, stride: 1 }] }
}

/// Digits that stand beside each other in a dimension of images are one.
fn merged(digits: Vec<Digit>) -> Vec<Digit> {
    let mut merged: Vec<Digit> = Vec::new();
    for digit in digits {
        match merged.last_mut() {
            Some(last) if last.of == digit.of && last.stride == digit.stride * digit.size => {
                *last = Digit { size: last.size * digit.size, ..digit };
            }
            _ => merged.push(digit),
        }
    }
    merged
}

fn wholly_used(rest: Option<Digit>, mut digits: impl Iterator<Item = Digit>) -> bool {
    rest.is_none() && digits.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [6, 4, 5];

    #[test]
    fn what_is_reshaped_and_transposed_is_a_form_again() {
        let nchw = View::of(Form::Nchw, SHAPE);
        let nhwc = nchw.transposed(&[1, 2, 0]).unwrap();
        assert_eq!(nhwc, View::of(Form::Nhwc, SHAPE));
        assert_eq!(nhwc.transposed(&[2, 0, 1]).unwrap(), nchw);
        assert_eq!(nchw.transposed(&[0, 0, 1]), None);
        assert_eq!(nchw.transposed(&[0, 1]), None);
        assert_eq!(nchw.reshaped(&[120]).unwrap(), View::of(Form::Flat, SHAPE));
        let cut = nchw.reshaped(&[3, 2, 1, 20]).unwrap();
        assert_eq!(cut.sizes(), [3, 2, 1, 20]);
        assert_eq!(cut.reshaped(&[6, 4, 5]).unwrap(), nchw);
        for sizes in [&[4, 30][..], &[6, 4], &[6, 4, 5, 2], &[0, 6, 4, 5], &[usize::MAX, 2]] {
            assert_eq!(nchw.reshaped(sizes), None, "{sizes:?}");
        }
        assert_eq!(nhwc.reshaped(&[20, 6]).unwrap().channels(SHAPE), Some(1));
        assert_eq!(nhwc.reshaped(&[120]).unwrap().flat_order().unwrap(), (vec![4, 5, 6], vec![2, 0, 1]));
    }

    #[test]
    fn shuffles_are_found() {
        let nchw = View::of(Form::Nchw, SHAPE);
        let shuffled = |sizes: &[usize], order: &[usize]| {
            let view = nchw.reshaped(sizes).unwrap().transposed(order).unwrap().reshaped(&SHAPE);
            view.and_then(|view| view.shuffled(SHAPE))
        };
        assert_eq!(shuffled(&[2, 3, 4, 5], &[1, 0, 2, 3]), Some((2, Form::Nchw)));
        assert_eq!(shuffled(&[3, 2, 20], &[1, 0, 2]), Some((3, Form::Nchw)));
        assert_eq!(shuffled(&[2, 3, 4, 5], &[0, 1, 2, 3]), None, "nothing moved");
        assert_eq!(shuffled(&[2, 3, 4, 5], &[1, 0, 3, 2]), None, "the pixels moved");
    }

    #[test]
    fn dimensions_of_one_value_have_a_place() {
        let one = [1, 4, 5];
        assert_eq!(View::of(Form::Nchw, one).channels(one), Some(0));
        assert_eq!(View::of(Form::Nhwc, one).channels(one), Some(2));
        let pixel = View::of(Form::Flat, [6, 1, 1]);
        assert_eq!(pixel.with_ones(&[1, 2]).unwrap(), View::of(Form::Nchw, [6, 1, 1]));
        assert_eq!(pixel.with_ones(&[0, 1]).unwrap(), View::of(Form::Nhwc, [6, 1, 1]));
        assert_eq!(pixel.with_ones(&[3]), None);
        assert!(View::of(Form::Nchw, [6, 1, 1]).repeats_along(&View::of(Form::Nchw, SHAPE)));
        assert!(!View::of(Form::Nhwc, [6, 1, 1]).repeats_along(&View::of(Form::Nchw, SHAPE)));
        assert!(View::of(Form::Nhwc, SHAPE).are_pixels(&[1, 0], SHAPE));
        assert!(!View::of(Form::Nchw, SHAPE).are_pixels(&[1], SHAPE));
    }
}
