//! Counter-based random numbers: a value is a function of a seed and keys such as (epoch, sample), never of how many
//! numbers were drawn before, so a resumed run and any number of threads see the same ones.

/// SplitMix64 (Steele, Lea and Flood 2014): 64 bits of state, equal on every platform. Not for cryptography.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The stream that belongs to `seed` and `keys`; other keys, or the same in another order, give an unrelated one.
    pub fn keyed(seed: u64, keys: &[u64]) -> Self {
        let fold = |state: u64, &key: &u64| mix(state.wrapping_add(GOLDEN).wrapping_add(mix(key)));
        Self { state: keys.iter().fold(mix(seed), fold) }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in `[0, 1)`, a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in `0..end`, without bias (Lemire 2019); 0 when `end` is 0 or 1.
    pub fn below(&mut self, end: usize) -> usize {
        let end = end as u64;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(end);
            // The low half is unevenly covered below 2⁶⁴ mod `end`: draw again there.
            if end < 2 || (wide as u64) >= end.wrapping_neg() % end {
                return (wide >> 64) as usize;
            }
        }
    }

    /// A fair coin.
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }

    /// Fisher and Yates: every order is equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011): 128 random bits for each counter and key. 32-bit integers are all
/// it needs, so shaders compute the same bits.
pub(crate) fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let product = |a: u32, b: u32| {
        let wide = u64::from(a) * u64::from(b);
        ((wide >> 32) as u32, wide as u32)
    };
    for _ in 0..10 {
        let ((a_high, a_low), (b_high, b_low)) = (product(0xd251_1f53, counter[0]), product(0xcd9e_8d57, counter[2]));
        counter = [b_high ^ counter[1] ^ key[0], b_low, a_high ^ counter[3] ^ key[1], a_low];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prop_assert_eq, proptest};

    #[test]
    fn known_answers() {
        let mut rng = Rng::new(1234567);
        let published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        assert_eq!(published.map(|_| rng.next_u64()), published);
    }

    /// The test vectors of Random123, where Philox was published.
    #[test]
    fn philox_is_philox() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, published) in cases {
            assert_eq!(philox(counter, key), published);
        }
    }

    #[test]
    fn streams_differ_by_seed_key_and_order() {
        let keys: [(u64, &[u64]); 7] =
            [(0, &[]), (0, &[0]), (0, &[0, 0]), (0, &[1]), (0, &[1, 2]), (0, &[2, 1]), (1, &[1])];
        let mut firsts: Vec<u64> = keys.iter().map(|(seed, keys)| Rng::keyed(*seed, keys).next_u64()).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), keys.len());
    }

    #[test]
    fn below_is_even() {
        let mut rng = Rng::new(3);
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[rng.below(7)] += 1;
        }
        assert!(counts.iter().all(|&count| (9_600..10_400).contains(&count)), "{counts:?}");
        assert_eq!((rng.below(0), rng.below(1)), (0, 0));
    }

    #[test]
    fn uniform_has_its_mean_and_variance() {
        let mut rng = Rng::new(5);
        let draws: Vec<f64> = (0..100_000).map(|_| rng.uniform()).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 0.005 && (variance - 1.0 / 12.0).abs() < 0.001, "{mean} {variance}");
        assert!(draws.iter().all(|x| (0.0..1.0).contains(x)));
    }

    proptest! {
        #[test]
        fn shuffle_is_a_permutation(seed: u64, len in 0_usize..300) {
            let mut items: Vec<usize> = (0..len).collect();
            Rng::new(seed).shuffle(&mut items);
            let mut sorted = items.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..len).collect::<Vec<_>>());
        }
    }
}
