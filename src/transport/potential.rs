//! In: one row's similarities to a reference set, and the set's dual potential `g`. Out: the soft c-transform of the row,
//!
//! ```text
//! f(x; g) = −ε log Σ_j q_j exp((g_j − c(x, y_j)) / ε)        π_j(x) = softmax_j((g_j − c(x, y_j))/ε + log q_j)
//! ```
//!
//! (Genevay et al. 2016, eq. 2.7, with the mass inside the sum; Cuturi 2013 for the entropic problem). The exponents are formed
//! in f32 as `similarity − bias_j` with one common offset kept in f64, so for close competitors the subtraction is exact and
//! the error is that of the similarity itself; the largest is subtracted before the exponential and sums are f64.
//!
//! The exponential is a polynomial in plain multiplications and additions: no libm, no fused operation, sums over a fixed
//! number of lanes. The same bits come out whatever vector width the machine has.

use super::cost::{LANES, padded_len};

/// Exponents below this are cut: e^−87 is the smallest normal f32.
const LOWEST_EXPONENT: f32 = -87.0;

/// Bias of padding references: far enough down to have no responsibility, small enough to stay finite when divided by ε.
const PADDING_BIAS: f32 = 1e30;

/// One reference set's soft c-transform for a fixed potential.
#[derive(Debug)]
pub(super) struct SoftTransform {
    /// `1 − g_j − ε log q_j − offset`, so that `(similarity − bias)/ε` is the exponent up to a constant.
    bias: Vec<f32>,
    offset: f64,
    epsilon: f64,
    inverse: f32,
}

/// The transform of one row. Its responsibilities are `exponentials / sum`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowTransform {
    /// `f(x; g)`.
    pub(super) value: f64,
    /// Sum of the exponentials, in `[1, len]`.
    pub(super) sum: f64,
    /// Largest `similarity − bias`, whose exponential is 1.
    largest: f32,
}

impl SoftTransform {
    #[expect(clippy::cast_possible_truncation, reason = "f32 storage of exponents by design")]
    pub(super) fn new(masses: &[f64], potential: &[f64], epsilon: f64) -> Self {
        let exact: Vec<f64> = masses.iter().zip(potential).map(|(q, g)| 1.0 - g - epsilon * q.ln()).collect();
        let offset = exact.iter().copied().fold(f64::INFINITY, f64::min);
        let mut bias: Vec<f32> = exact.iter().map(|b| (b - offset) as f32).collect();
        bias.resize(padded_len(masses.len()), PADDING_BIAS);
        Self { bias, offset, epsilon, inverse: (1.0 / epsilon) as f32 }
    }

    /// Transforms one row and writes `exp(exponent − largest exponent)` of every reference into `exponentials`.
    pub(super) fn transform(&self, similarities: &[f32], exponentials: &mut [f32]) -> RowTransform {
        let (largest, sum) = exponentiate(&self.bias, self.inverse, similarities, exponentials);
        RowTransform { value: self.offset - f64::from(largest) - self.epsilon * sum.ln(), sum, largest }
    }

    /// Appends the responsibilities of the first `references` references (all but the padding) for one row.
    #[expect(clippy::cast_possible_truncation, reason = "f32 storage by design")]
    pub(super) fn share(&self, similarities: &[f32], references: usize, out: &mut Vec<f32>) {
        let mut exponentials = vec![0.0; similarities.len()];
        let sum = self.transform(similarities, &mut exponentials).sum;
        out.extend(exponentials.iter().take(references).map(|e| (f64::from(*e) / sum) as f32));
    }

    /// The reference with the largest responsibility for a row just transformed, ties to the lowest index.
    pub(super) fn nearest(&self, similarities: &[f32], row: &RowTransform) -> u32 {
        let block = first_block(&self.bias, similarities, row.largest);
        let start = block * LANES;
        let lane = self.bias[start..].iter().zip(&similarities[start..]).position(|(b, s)| s - b == row.largest);
        lane.and_then(|lane| u32::try_from(start + lane).ok()).unwrap_or(0)
    }
}

/// Runs a loop compiled for the widest vectors this machine has. The arithmetic is the same, so are the bits.
macro_rules! widest {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        pub(super) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { plain($($arg),*) }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the line above has just found the feature on this machine.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}

widest! {
    /// First block of lanes that holds `value = similarity − bias`; 0 where none does.
    fn first_block(bias: &[f32], similarities: &[f32], value: f32) -> usize {
        for (block, (b, s)) in bias.chunks_exact(LANES).zip(similarities.chunks_exact(LANES)).enumerate() {
            let mut hit = false;
            for k in 0..LANES {
                hit |= s[k] - b[k] == value;
            }
            if hit {
                return block;
            }
        }
        0
    }
}

widest! {
    /// Largest `similarity − bias`, and the sum of `exp((similarity − bias − largest) · inverse)`, whose terms go to `out`.
    fn exponentiate(bias: &[f32], inverse: f32, similarities: &[f32], out: &mut [f32]) -> (f32, f64) {
        let mut lanes = [f32::MIN; LANES];
        for (b, s) in bias.chunks_exact(LANES).zip(similarities.chunks_exact(LANES)) {
            for k in 0..LANES {
                let v = s[k] - b[k];
                lanes[k] = if v > lanes[k] { v } else { lanes[k] };
            }
        }
        let largest = lanes.iter().copied().fold(f32::MIN, f32::max);
        let mut sums = [0.0f64; LANES];
        for ((b, s), o) in bias.chunks_exact(LANES).zip(similarities.chunks_exact(LANES)).zip(out.chunks_exact_mut(LANES)) {
            let mut e = [0.0f32; LANES];
            for k in 0..LANES {
                e[k] = exp_nonpositive((s[k] - b[k] - largest) * inverse);
            }
            o.copy_from_slice(&e);
            for k in 0..LANES {
                sums[k] += f64::from(e[k]);
            }
        }
        (largest, sums.iter().sum())
    }
}

widest! {
    /// `into[j] += Σ_r scale[r] · rows[r][j]` over four rows, f64 accumulation. Four at a time to touch `into` less often.
    fn accumulate(into: &mut [f64], rows: &[f32], scale: [f64; 4]) {
        let width = into.len();
        let (a, rest) = rows.split_at(width);
        let (b, rest) = rest.split_at(width);
        let (c, d) = rest.split_at(width);
        for ((((p, a), b), c), d) in into.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *p += scale[0] * f64::from(*a) + scale[1] * f64::from(*b) + (scale[2] * f64::from(*c) + scale[3] * f64::from(*d));
        }
    }
}

widest! {
    /// `Σ_k coefficient_k · value_k` in f64. Both have the same length.
    fn dot(coefficients: &[f64], values: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (heads, tails) = (coefficients.chunks_exact(LANES), values.chunks_exact(LANES));
        let rest: f64 = heads.remainder().iter().zip(tails.remainder()).map(|(a, v)| a * f64::from(*v)).sum();
        for (a, v) in heads.zip(tails) {
            for k in 0..LANES {
                lanes[k] += a[k] * f64::from(v[k]);
            }
        }
        lanes.iter().sum::<f64>() + rest
    }
}

pub(super) use widest;

/// `exp(t)` for `t ≤ 0` within 2 units in the last place, cut at e^−87. Range reduction by ln 2 in two parts and the
/// single-precision minimax polynomial of the Cephes library.
#[inline(always)]
fn exp_nonpositive(t: f32) -> f32 {
    /// Adding 1.5·2^23 rounds to the nearest integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let t = if t > LOWEST_EXPONENT { t } else { LOWEST_EXPONENT };
    let shifted = t * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = t - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    (p * (r * r) + r + 1.0) * power
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test data are stored as f32")]
mod tests {
    use super::*;
    use crate::transport::naive;

    #[test]
    fn exponential_is_accurate() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000u32 {
            let t = -(f64::from(i) * 86.9 / 2e6) as f32;
            let exact = f64::from(t).exp();
            worst = worst.max((f64::from(exp_nonpositive(t)) / exact - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert!(exp_nonpositive(-1e34) > 0.0 && exp_nonpositive(-1e34) < 1e-37);
    }

    #[test]
    fn same_as_naive() {
        for epsilon in [1e-4, 0.03, 1.0, 10.0] {
            let (masses, potential) = (naive::masses(37, 5), naive::potential(37, 0.3, 6));
            let similarities: Vec<f32> = naive::potential(37, 1.0, 7).iter().map(|v| *v as f32).collect();
            let cost: Vec<f64> = similarities.iter().map(|s| 1.0 - f64::from(*s)).collect();
            let (value, responsibilities) = naive::soft_transform(&cost, &potential, &masses, epsilon);
            let transform = SoftTransform::new(&masses, &potential, epsilon);
            let mut padded = similarities.clone();
            padded.resize(48, 0.0);
            let mut out = vec![0.0; 48];
            let row = transform.transform(&padded, &mut out);
            assert!((row.value - value).abs() < 1e-6 * (1.0 + value.abs()), "{epsilon}: {} {value}", row.value);
            for (e, pi) in out.iter().zip(&responsibilities) {
                // An exponent carries the rounding of a similarity divided by epsilon.
                assert!((f64::from(*e) / row.sum - pi).abs() < 1e-5 + 2e-7 / epsilon, "{epsilon}");
            }
            let best = (0..37).max_by(|a, b| responsibilities[*a].total_cmp(&responsibilities[*b])).unwrap();
            assert_eq!(transform.nearest(&padded, &row) as usize, best);
        }
    }

    #[test]
    fn vector_width_does_not_change_bits() {
        let bias: Vec<f32> = naive::potential(160, 0.3, 8).iter().map(|v| *v as f32).collect();
        let similarities: Vec<f32> = naive::potential(160, 1.0, 9).iter().map(|v| *v as f32).collect();
        let mut out = vec![0.0; 160];
        let (largest, sum) = exponentiate(&bias, 1.0 / 0.03, &similarities, &mut out);
        let mut sums = [0.0f64; LANES];
        for (k, ((b, s), o)) in bias.iter().zip(&similarities).zip(&out).enumerate() {
            // black_box keeps this loop scalar.
            let one = std::hint::black_box(exp_nonpositive(std::hint::black_box((s - b - largest) * (1.0 / 0.03))));
            assert_eq!(one.to_bits(), o.to_bits());
            sums[k % LANES] += f64::from(one);
        }
        assert_eq!(sums.iter().sum::<f64>().to_bits(), sum.to_bits());
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        let transform = SoftTransform::new(&[0.25; 4], &[0.0; 4], 0.1);
        let mut similarities = vec![0.1, 0.7, 0.7, 0.7];
        similarities.resize(16, 0.0);
        let row = transform.transform(&similarities, &mut [0.0; 16]);
        assert_eq!(transform.nearest(&similarities, &row), 1);
    }
}
