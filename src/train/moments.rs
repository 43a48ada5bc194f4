//! Means and variances of a batch norm's input, on the host and in f64.

use crate::tensor::HostTensor;

/// The moments of some values, channel by channel.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Moments {
    /// Values a channel that they were taken over: images × height × width. 0 for moments that a file stores, since it
    /// does not say.
    pub count: u64,
    /// `[channels]`
    pub mean: Vec<f64>,
    /// `[channels]`, biased, unless a file stores the unbiased one.
    pub var: Vec<f64>,
}

impl Moments {
    /// The running moments in a parameter of role [`Moments`](crate::graph::Role::Moments).
    pub fn stored(tensor: &HostTensor) -> Self {
        let (channels, row) = (tensor.shape.c(), tensor.shape.stored_c());
        let wide = |from: usize| tensor.data[from..from + channels].iter().map(|&v| f64::from(v)).collect();
        Self { count: 0, mean: wide(0), var: wide(row) }
    }

    /// Takes in further values, of which `other` are the moments (Chan, Golub & LeVeque 1979): stable, and the same up
    /// to rounding whatever the parts and their order.
    ///
    /// # Panics
    /// The channels are not as many.
    pub fn merge(&mut self, other: &Self) {
        if self.count == 0 {
            self.clone_from(other);
            return;
        }
        assert_eq!(self.mean.len(), other.mean.len(), "moments of the same channels");
        let total = (self.count + other.count) as f64;
        let (before, after) = (self.count as f64 / total, other.count as f64 / total);
        for c in 0..self.mean.len() {
            let apart = other.mean[c] - self.mean[c];
            self.mean[c] += apart * after;
            self.var[c] = before * self.var[c] + after * other.var[c] + before * after * apart * apart;
        }
        self.count += other.count;
    }

    /// The unbiased estimate of the variance: times count/(count − 1). A single value has none; its biased one, 0,
    /// stays.
    pub fn unbiased(&self) -> Vec<f64> {
        let correction = self.count as f64 / (self.count.max(2) - 1) as f64;
        self.var.iter().map(|var| var * correction).collect()
    }

    /// How far apart a batch norm with this `eps` finds these moments and `other`'s, channel by channel, in nats: the
    /// divergence of Jeffreys (1946), which is Kullback and Leibler's in both directions added up, between the normal
    /// distributions with the two means and with the variances plus `eps`:
    ///
    /// ```text
    /// J = ½·( (a + d²)/b + (b + d²)/a ) − 1        a = var + ε, b = other's var + ε, d = difference of the means
    /// ```
    ///
    /// 0 for equal moments; 0.25 where one variance is twice the other; 1 where the means are a standard deviation
    /// apart.
    pub fn divergence(&self, other: &Self, eps: f64) -> Vec<f64> {
        let channels = self.mean.iter().zip(&self.var).zip(other.mean.iter().zip(&other.var));
        channels
            .map(|((mean, var), (other_mean, other_var))| {
                let (a, b, square) = (var + eps, other_var + eps, (mean - other_mean).powi(2));
                0.5 * ((a + square) / b + (b + square) / a) - 1.0
            })
            .collect()
    }

    /// The mean [`divergence`](Self::divergence) over all channels.
    pub fn drift(&self, other: &Self, eps: f64) -> f64 {
        let channels = self.divergence(other, eps);
        channels.iter().sum::<f64>() / channels.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use approx::assert_relative_eq;
    use proptest::{prop_assert, proptest};

    /// In two passes, as a textbook has it.
    fn of(values: &[f64]) -> Moments {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        Moments { count: values.len() as u64, mean: vec![mean], var: vec![var] }
    }

    proptest! {
        #[test]
        fn parts_merge_to_the_whole(seed: u64, lengths in proptest::collection::vec(1_usize..20, 1..6)) {
            // A mean far above the deviations: E[x²] − E[x]² would lose everything.
            let mut rng = Rng::new(seed);
            let values: Vec<f64> = (0..lengths.iter().sum()).map(|_| 1e6 + rng.uniform()).collect();
            let (mut merged, mut rest) = (Moments::default(), &values[..]);
            for length in lengths {
                let (part, after) = rest.split_at(length);
                merged.merge(&of(part));
                rest = after;
            }
            let whole = of(&values);
            prop_assert!(merged.count == whole.count);
            prop_assert!((merged.mean[0] - whole.mean[0]).abs() < 1e-8);
            prop_assert!((merged.var[0] - whole.var[0]).abs() < 1e-9);
        }
    }

    #[test]
    fn the_unbiased_variance_of_one_value_is_nothing() {
        assert_eq!(of(&[3.0]).unbiased(), [0.0]);
        assert_relative_eq!(of(&[1.0, 2.0, 6.0]).unbiased()[0], 7.0, max_relative = 1e-12);
    }

    #[test]
    fn divergences_are_those_that_the_documentation_tells() {
        let normal = |mean, var| Moments { count: 1, mean: vec![mean], var: vec![var] };
        let divergence = |a: Moments, b: Moments| a.divergence(&b, 0.5)[0];
        assert_eq!(divergence(normal(2.0, 3.5), normal(2.0, 3.5)), 0.0);
        assert_relative_eq!(divergence(normal(2.0, 3.5), normal(2.0, 7.5)), 0.25, max_relative = 1e-12);
        assert_relative_eq!(divergence(normal(2.0, 3.5), normal(4.0, 3.5)), 1.0, max_relative = 1e-12);
        let (a, b) = (normal(-1.0, 0.1), normal(0.3, 2.0));
        assert_relative_eq!(divergence(a.clone(), b.clone()), divergence(b, a), max_relative = 1e-12);
    }
}
