//! In: similarities of rows to landmarks. Out: the prior's kernel, and features whose inner products are that kernel.
//!
//! The kernel is `k(x, y) = ((1 + ⟨x, y⟩)/2)⁴`: positive definite (a polynomial of the cosine with positive coefficients), 1 for
//! the same direction, and a few multiplications on similarities that a row's potentials need anyhow.
//!
//! The features come from a pivoted incomplete Cholesky factorisation `K ≈ F Fᵀ` (Fine and Scheinberg 2001): each step takes the
//! candidate whose kernel the earlier ones explain least. That chooses the landmarks, whatever the order of the candidates, and
//! bounds the memory: rows × rank × 4 bytes.

use rayon::prelude::*;

use super::potential::{dot, widest};

/// Rows that one thread takes at a time.
const CHUNK_ROWS: usize = 256;

/// `((1 + s)/2)⁴` for a cosine similarity `s`: a half at a cosine of 0.68. The exponential kernels `exp(γ (s − 1))`, γ from 1 to 8, of
/// which this is nearly the one at 2, were no better on the corpora that it was tried on.
#[inline(always)]
pub(super) fn kernel(similarity: f32) -> f32 {
    let half = 0.5 + 0.5 * similarity;
    let square = half * half;
    square * square
}

widest! {
    /// `Σ_j coefficient_j k(similarity_j)`, in f64. The shorter of both decides the length.
    fn kernel_sum(coefficients: &[f64], similarities: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        let (heads, tails) = (coefficients.chunks_exact(16), similarities.chunks_exact(16));
        for (a, s) in heads.clone().zip(tails.clone()) {
            for k in 0..16 {
                lanes[k] += a[k] * f64::from(kernel(s[k]));
            }
        }
        let done = heads.len().min(tails.len()) * 16;
        for (k, (a, s)) in coefficients.iter().zip(similarities).skip(done).enumerate() {
            lanes[k % 16] += a * f64::from(kernel(*s));
        }
        lanes.iter().sum()
    }
}

/// Rows as features `F`, with `F Fᵀ ≈ K`, and the candidates that span them.
#[derive(Debug)]
pub(super) struct KernelFeatures {
    /// Row-major, [`rank`](Self::rank) numbers a row.
    pub(super) features: Vec<f32>,
    /// Numbers a row.
    pub(super) rank: usize,
    /// Which candidates are landmarks, in the order they were chosen: one a feature.
    pub(super) landmarks: Vec<usize>,
}

impl KernelFeatures {
    /// Factors the kernel over `squared_norms.len()` rows, the first of which are the candidates. `similarities[c]` holds candidate
    /// c's similarity to every row. Stops at `max_rank` landmarks, or where no candidate has more than `tolerance` of its kernel
    /// (which is 1 for a unit vector) left to explain.
    #[expect(clippy::cast_possible_truncation, reason = "f32 storage by design")]
    pub(super) fn factor(similarities: &[&[f32]], squared_norms: &[f32], max_rank: usize, tolerance: f64) -> Self {
        let (rows, max_rank) = (squared_norms.len(), max_rank.min(similarities.len()));
        let mut features = vec![0.0f32; rows * max_rank];
        let mut left: Vec<f64> = squared_norms.iter().map(|s| f64::from(kernel(*s))).collect();
        let mut landmarks = Vec::with_capacity(max_rank);
        while landmarks.len() < max_rank {
            let rank = landmarks.len();
            // Ties go to the first, so that the choice is the same on every machine.
            let (pivot, most) =
                (0..similarities.len()).fold((0, f64::NEG_INFINITY), |best, c| if left[c] > best.1 { (c, left[c]) } else { best });
            if most.is_nan() || most <= tolerance {
                break;
            }
            let root = most.sqrt();
            let of_pivot: Vec<f64> = features[pivot * max_rank..][..rank].iter().map(|v| f64::from(*v)).collect();
            features.par_chunks_mut(CHUNK_ROWS * max_rank).zip(left.par_chunks_mut(CHUNK_ROWS)).enumerate().for_each(
                |(chunk, (lines, left))| {
                    let similarities = &similarities[pivot][chunk * CHUNK_ROWS..];
                    for ((line, left), similarity) in lines.chunks_exact_mut(max_rank).zip(left).zip(similarities) {
                        let value = (f64::from(kernel(*similarity)) - dot(&of_pivot, &line[..rank])) / root;
                        line[rank] = value as f32;
                        *left -= value * value;
                    }
                },
            );
            left[pivot] = 0.0;
            landmarks.push(pivot);
        }
        let rank = landmarks.len();
        if rank < max_rank {
            features = features.chunks_exact(max_rank.max(1)).flat_map(|line| &line[..rank]).copied().collect();
        }
        Self { features, rank, landmarks }
    }

    /// Coefficients `α` of the landmarks (in their order) for which `Σ_l α_l k(x, y_l)` is `⟨β, feature(x)⟩`: solves `Lᵀ α = β`, `L` the
    /// landmarks' own features, a triangle.
    pub(super) fn landmark_coefficients(&self, beta: &[f64]) -> Vec<f64> {
        let mut alpha = beta.to_vec();
        for l in (0..self.rank).rev() {
            let line = &self.features[self.landmarks[l] * self.rank..][..self.rank];
            alpha[l] /= f64::from(line[l]);
            let solved = alpha[l];
            alpha[..l].iter_mut().zip(line).for_each(|(a, v)| *a -= solved * f64::from(*v));
        }
        alpha
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;

    #[test]
    fn the_kernel_is_the_power_it_says() {
        for s in [-1.0f32, -0.3, 0.0, 0.5, 1.0] {
            assert!((f64::from(kernel(s)) - ((1.0 + f64::from(s)) / 2.0).powi(4)).abs() < 1e-6);
        }
        let (coefficients, similarities) = (naive::potential(37, 3.0, 1), naive::potential(48, 1.0, 2));
        let similarities: Vec<f32> = similarities.iter().map(|s| *s as f32).collect();
        let expected: f64 = coefficients.iter().zip(&similarities).map(|(a, s)| a * f64::from(kernel(*s))).sum();
        assert!((kernel_sum(&coefficients, &similarities) - expected).abs() < 1e-9);
    }

    #[test]
    fn features_multiply_to_the_kernel_and_coefficients_give_it_back() {
        let rows = naive::unit_rows(60, 12, 3);
        let products = rows.dot(&rows.t());
        let candidates: Vec<Vec<f32>> = (0..40).map(|c| products.row(c).to_vec()).collect();
        let candidates: Vec<&[f32]> = candidates.iter().map(Vec::as_slice).collect();
        let full = KernelFeatures::factor(&candidates, &vec![1.0; 60], 40, 1e-7);
        for i in 0..40 {
            for j in 0..60 {
                let product: f64 =
                    (0..full.rank).map(|t| f64::from(full.features[i * full.rank + t]) * f64::from(full.features[j * full.rank + t])).sum();
                assert!((product - f64::from(kernel(products[[i, j]]))).abs() < 1e-4, "{i} {j}");
            }
        }
        let few = KernelFeatures::factor(&candidates, &vec![1.0; 60], 10, 1e-7);
        assert_eq!((few.rank, few.landmarks.as_slice()), (10, &full.landmarks[..10]));
        let beta = naive::potential(10, 1.0, 4);
        let alpha = few.landmark_coefficients(&beta);
        for j in 0..60 {
            let by_features: f64 = (0..10).map(|t| beta[t] * f64::from(few.features[j * 10 + t])).sum();
            let by_kernel: f64 = few.landmarks.iter().zip(&alpha).map(|(l, a)| a * f64::from(kernel(products[[*l, j]]))).sum();
            assert!((by_features - by_kernel).abs() < 1e-3, "{j}: {by_features} {by_kernel}");
        }
    }

    #[test]
    fn copies_and_zero_vectors_end_it_early() {
        let same = vec![1.0f32; 5];
        let copies: Vec<&[f32]> = vec![&same; 3];
        assert_eq!(KernelFeatures::factor(&copies, &[1.0; 5], 3, 1e-4).rank, 1);
        let none = KernelFeatures::factor(&[], &[1.0; 5], 3, 1e-4);
        assert_eq!((none.rank, none.features.len()), (0, 0));
    }
}
