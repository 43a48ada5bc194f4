//! Maxima and means of windows.

use super::case::{Case, on_host};
use super::values::{Random, untouched, when, windows};
use crate::kernels::{Window, pool};
use crate::tensor::Shape;

pub(super) fn pooling() -> Vec<Case> {
    let rng = &mut Random::new(7);
    let mut cases = vec![];
    for (x, out, g) in windows(rng) {
        let what = format!("{x} → {out}, {g:?}");
        // Few different values, so that there are ties.
        let values: Vec<f32> = rng.tensor(x).iter().map(|v| (v * 4.0).round()).collect();
        let quads = out.pixels() * out.quads();
        for argmax in [false, true] {
            let buffers = vec![values.clone(), untouched(out.stored_len()), when(argmax, || untouched(quads))];
            let dispatch = pool::max_forward(x, out, g, argmax);
            if argmax {
                let argmax = on_host(&dispatch, buffers.clone()).swap_remove(2);
                let buffers = vec![rng.tensor(out), argmax, untouched(x.stored_len())];
                cases.push(Case::new(&what, pool::max_grad(x, out, g), buffers, 0.0).padded("x_grad", x));
            }
            cases.push(Case::new(&what, dispatch, buffers, 0.0).padded("z", out));
        }
        // Padding that counts, that does not, and that counts in part.
        let part = g.padding.map(|side| rng.below(side + 1));
        let mut counts = vec![g.padding, [0; 4], part];
        counts.retain(|&counted| g.divides(counted, [x.h(), x.w()]).is_ok());
        counts.dedup();
        for counted in counts {
            let what = format!("{what}, {counted:?} counted");
            let buffers = vec![rng.tensor(x), untouched(out.stored_len())];
            cases.push(Case::new(&what, pool::avg_forward(x, out, g, counted), buffers, 1e-5).padded("z", out));
            let buffers = vec![rng.tensor(out), untouched(x.stored_len())];
            cases.push(Case::new(&what, pool::avg_grad(x, out, g, counted), buffers, 1e-5).padded("x_grad", x));
        }
    }
    cases.push(special_values());
    cases
}

/// The first maximum wins, and every NaN.
fn special_values() -> Case {
    let (x, out) = (Shape::nhwc(1, 2, 2, 4), Shape::nhwc(1, 1, 1, 4));
    let g = Window { kernel: [2, 2], stride: [1, 1], padding: [0; 4] };
    // By channel: a tie of the second and the last; all −∞; a NaN between numbers; a maximum at the end.
    let low = f32::NEG_INFINITY;
    let values = vec![0.0, low, 5.0, 1.0, 3.0, low, f32::NAN, 2.0, 1.0, low, 6.0, 3.0, 3.0, low, 7.0, 4.0];
    let buffers = vec![values, untouched(4), untouched(1)];
    Case::new("ties, −∞ and NaN", pool::max_forward(x, out, g, true), buffers, 0.0).claims(move |found| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|channel| found[1][channel]);
        let argmax = found[2][0].to_bits().to_le_bytes();
        match (a, b, d) == (3.0, low, 4.0) && c.is_nan() && argmax == [1, 0, 1, 3] {
            true => Ok(()),
            false => Err(format!("the maxima are {:?} at {argmax:?}", [a, b, c, d])),
        }
    })
}
