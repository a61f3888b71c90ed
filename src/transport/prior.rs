//! In: safe and harmful reference vectors, and rows of the corpus itself. Out: a [`Prior`], `h(x) = tanh(z/2) ∈ (−1, 1)` with `z` the
//! logit of a kernel logistic regression "like the harmful references" against "like the safe references or the corpus":
//!
//! ```text
//! z(x) = b + Σ_l α_l k(x, y_l)        k(x, y) = ((1 + ⟨x, y⟩)/2)⁴        y_l: landmarks among the references
//! min over (α, b)   ½ αᵀKα + C Σ_i s_i log(1 + exp(−y_i z(x_i)))         y = +1 harmful, −1 otherwise; b is not penalised
//! s_i = n · mass_i / 2              for a harmful reference              n: number of references
//!     = (1 − κ) · n · mass_i / 2    for a safe one                       κ: [`PRIOR_CORPUS_SHARE`]
//!     = κ · n / (2 m)               for each of m rows of the corpus
//! ```
//!
//! Both classes count alike. Half of the other class is the corpus, unlabelled: a classifier of positive against unlabelled rows
//! ranks like one of positive against negative rows (Elkan and Noto 2008), and the corpus shows what the safe references leave out. A harmful
//! row of the corpus pulls its own logit down, but not below that of the rows around it.
//!
//! A row's logit needs nothing but its similarities to the references, which its potentials need anyhow. See `kernel` for how
//! landmarks are chosen and `regression` for the solver. Memory of a fit: `4 × (candidates + 2 × landmarks + dimensions)` bytes
//! for each reference and each corpus row, at most 2,048 candidates and 1,024 landmarks: 200 MB for 8,192 references a side.

use ndarray::ArrayView2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cost::{PackedReferences, TILE_ROWS, fill_tile};
use super::kernel::{KernelFeatures, kernel_sum};
use super::references::ReferenceSet;
use super::regression::Regression;
use crate::error::Result;

/// Inverse strength of the L2 penalty, scikit-learn's `C`, where cross-validation finds nothing better: it did better than 10 both
/// where references were few and where they were many.
pub const PRIOR_INVERSE_PENALTY: f64 = 30.0;
/// Share of the corpus in the class that isn't harmful; the safe references are the rest.
pub const PRIOR_CORPUS_SHARE: f64 = 0.5;
/// Rows of the corpus in the regression, at most. A thousand did nearly as well as four thousand.
pub const PRIOR_CORPUS_ROWS: usize = 2048;
/// Landmarks at most.
pub const PRIOR_LANDMARKS: usize = 1024;

/// References that may become landmarks, at most, of both sides together; more are thinned evenly.
const CANDIDATES: usize = 2048;
/// A candidate with less of its kernel unexplained than this is no landmark: below it lies the rounding of f32 similarities.
const TOLERANCE: f64 = 1e-4;
/// Gradient norm, relative to that at 0, at which the regression stops: far below what moves a weight.
const GRADIENT_TOLERANCE: f64 = 1e-5;

/// How likely a row is to be harmful before the geometry speaks, and how much that counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    /// `α`, one coefficient a safe reference, 0 for those that are no landmark.
    pub safe: Vec<f64>,
    /// The same for the harmful references.
    pub harm: Vec<f64>,
    /// `b`.
    pub intercept: f64,
    /// C, the inverse penalty of the regression. No part of a weight: it says how the numbers above were found.
    pub inverse_penalty: f64,
    /// β ≥ 0, in units of the cost: the score gains `β · h(x)`. 0 switches the prior off.
    pub strength: f64,
}

impl Prior {
    /// The prior that says nothing: β = 0, every coefficient 0.
    #[must_use]
    pub fn none(safe: usize, harm: usize) -> Self {
        Self { safe: vec![0.0; safe], harm: vec![0.0; harm], intercept: 0.0, inverse_penalty: PRIOR_INVERSE_PENALTY, strength: 0.0 }
    }

    /// Fits the regression on both reference sets and the rows of the sample at these places (the first [`PRIOR_CORPUS_ROWS`] of
    /// them); without any, the safe references are the whole other class. `inverse_penalty` is C, `strength` β.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::error::Error::Internal) where the dimensions differ.
    pub fn fit(
        safe: &ReferenceSet,
        harm: &ReferenceSet,
        (sample, corpus): (ArrayView2<'_, f32>, &[usize]),
        inverse_penalty: f64,
        strength: f64,
    ) -> Result<Self> {
        let problem = PriorProblem::try_new(safe, harm, sample, &corpus[..corpus.len().min(PRIOR_CORPUS_ROWS)], PRIOR_LANDMARKS)?;
        Ok(problem.solve(inverse_penalty, strength))
    }

    /// The logit `z` of a row, from its cosine similarities to all references of both sides, in their order (padding may follow).
    #[must_use]
    pub fn logit(&self, safe_similarities: &[f32], harm_similarities: &[f32]) -> f64 {
        self.intercept + kernel_sum(&self.safe, safe_similarities) + kernel_sum(&self.harm, harm_similarities)
    }

    /// `h(x) = tanh(z/2) = 2·P(harmful | x) − 1`, in `[−1, 1]`.
    #[must_use]
    pub fn h(&self, safe_similarities: &[f32], harm_similarities: &[f32]) -> f64 {
        (0.5 * self.logit(safe_similarities, harm_similarities)).tanh()
    }

    /// `β · h(x)`, exactly 0 where the prior is off.
    pub(super) fn term(&self, safe_similarities: &[f32], harm_similarities: &[f32]) -> f64 {
        if self.strength == 0.0 { 0.0 } else { self.strength * self.h(safe_similarities, harm_similarities) }
    }
}

/// The regression's data for one pair of reference sets and one part of the corpus.
pub(super) struct PriorProblem {
    features: KernelFeatures,
    /// The candidates as references: side (harm is true) and index.
    candidates: Vec<(bool, usize)>,
    labels: Vec<f64>,
    /// `s_i`.
    shares: Vec<f64>,
    lengths: (usize, usize),
}

impl PriorProblem {
    pub(super) fn try_new(
        safe: &ReferenceSet,
        harm: &ReferenceSet,
        sample: ArrayView2<'_, f32>,
        corpus: &[usize],
        landmarks: usize,
    ) -> Result<Self> {
        let dims = safe.dims();
        // Candidates come first, as the factorisation wants them, then the other references, then the corpus.
        let count = CANDIDATES.min(safe.len() + harm.len());
        let of_safe = count.saturating_sub(harm.len()).max(count / 2).min(safe.len());
        let thinned = |len: usize, keep: usize| (0..keep).map(move |i| i * len / keep.max(1)).collect::<Vec<_>>();
        let (safe_kept, harm_kept) = (thinned(safe.len(), of_safe), thinned(harm.len(), count - of_safe));
        let candidates: Vec<(bool, usize)> = safe_kept.iter().map(|i| (false, *i)).chain(harm_kept.iter().map(|i| (true, *i))).collect();
        let others = |len: usize, kept: &[usize]| (0..len).filter(|i| kept.binary_search(i).is_err()).collect::<Vec<_>>();
        let rest = others(safe.len(), &safe_kept).into_iter().map(|i| (false, i));
        let references: Vec<(bool, usize)> =
            candidates.iter().copied().chain(rest).chain(others(harm.len(), &harm_kept).into_iter().map(|i| (true, i))).collect();
        let (safe_rows, harm_rows): (Vec<&[f32]>, Vec<&[f32]>) = (safe.rows().collect(), harm.rows().collect());
        let vector = |&(harmful, index): &(bool, usize)| if harmful { harm_rows[index] } else { safe_rows[index] };
        let mut vectors: Vec<f32> = Vec::with_capacity((references.len() + corpus.len()) * dims);
        references.iter().for_each(|reference| vectors.extend(vector(reference)));
        for &index in corpus {
            vectors.extend(sample.row(index));
        }
        let rows = references.len() + corpus.len();
        let squared_norms: Vec<f32> =
            if dims == 0 { vec![0.0; rows] } else { vectors.chunks_exact(dims).map(|row| row.iter().map(|v| v * v).sum()).collect() };
        let packed = PackedReferences::from_rows(vectors, dims);
        let candidate_rows: Vec<&[f32]> = candidates.iter().map(vector).collect();
        let similarities = similarities_to_rows(&packed, &candidate_rows, dims)?;
        let lines: Vec<&[f32]> = similarities.chunks_exact(packed.padded()).take(candidates.len()).map(|line| &line[..rows]).collect();
        let features = KernelFeatures::factor(&lines, &squared_norms, landmarks, TOLERANCE);

        let half = 0.5 * references.len() as f64;
        let corpus_share = if corpus.is_empty() { 0.0 } else { PRIOR_CORPUS_SHARE };
        let share = |&(harmful, index): &(bool, usize)| {
            if harmful { half * harm.masses()[index] } else { (1.0 - corpus_share) * half * safe.masses()[index] }
        };
        let of_corpus = std::iter::repeat_n(corpus_share * half / corpus.len().max(1) as f64, corpus.len());
        Ok(Self {
            features,
            candidates,
            labels: references.iter().map(|(harmful, _)| if *harmful { 1.0 } else { -1.0 }).chain(corpus.iter().map(|_| -1.0)).collect(),
            shares: references.iter().map(share).chain(of_corpus).collect(),
            lengths: (safe.len(), harm.len()),
        })
    }

    /// The prior with this inverse penalty `C` and strength β.
    pub(super) fn solve(&self, inverse_penalty: f64, strength: f64) -> Prior {
        let regression = Regression {
            features: &self.features.features,
            width: self.features.rank,
            labels: self.labels.clone(),
            loss_scale: self.shares.iter().map(|s| inverse_penalty * s).collect(),
        };
        let mut beta = regression.solve(None, GRADIENT_TOLERANCE);
        let intercept = beta.pop().unwrap_or(0.0);
        let mut prior = Prior { intercept, inverse_penalty, strength, ..Prior::none(self.lengths.0, self.lengths.1) };
        for (landmark, alpha) in self.features.landmarks.iter().zip(self.features.landmark_coefficients(&beta)) {
            let (harmful, index) = self.candidates[*landmark];
            if harmful { prior.harm[index] = alpha } else { prior.safe[index] = alpha }
        }
        prior
    }
}

/// Similarities of the candidates to all packed rows, a line a candidate.
fn similarities_to_rows(packed: &PackedReferences, candidates: &[&[f32]], dims: usize) -> Result<Vec<f32>> {
    let width = packed.padded();
    let mut out = vec![0.0f32; candidates.len().next_multiple_of(TILE_ROWS) * width];
    out.par_chunks_mut(TILE_ROWS * width).zip(candidates.par_chunks(TILE_ROWS)).try_for_each(|(tile, candidates)| {
        let mut rows = candidates.concat();
        rows.resize(TILE_ROWS * dims, 0.0);
        packed.similarities(&rows, tile)
    })?;
    Ok(out)
}

/// Prior terms `β · h` of every row.
///
/// # Errors
/// [`Error::Internal`](crate::error::Error::Internal) where the dimensions differ.
pub(super) fn prior_terms(
    rows: ArrayView2<'_, f32>,
    prior: &Prior,
    (safe, harm): (&PackedReferences, &PackedReferences),
) -> Result<Vec<f64>> {
    if prior.strength == 0.0 {
        return Ok(vec![0.0; rows.nrows()]);
    }
    let tiles: Vec<Vec<f64>> = (0..rows.nrows().div_ceil(TILE_ROWS))
        .into_par_iter()
        .map(|tile| {
            let span = tile * TILE_ROWS..((tile + 1) * TILE_ROWS).min(rows.nrows());
            let mut vectors = vec![0.0; TILE_ROWS * rows.ncols()];
            let (mut near, mut far) = (vec![0.0; TILE_ROWS * safe.padded()], vec![0.0; TILE_ROWS * harm.padded()]);
            fill_tile(rows, span.clone(), &mut vectors);
            safe.similarities(&vectors, &mut near)?;
            harm.similarities(&vectors, &mut far)?;
            Ok(near
                .chunks_exact(safe.padded())
                .zip(far.chunks_exact(harm.padded()))
                .take(span.len())
                .map(|(s, h)| prior.term(s, h))
                .collect())
        })
        .collect::<Result<_>>()?;
    Ok(tiles.concat())
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::transport::naive;

    fn logits(prior: &Prior, rows: &Array2<f32>, safe: &ReferenceSet, harm: &ReferenceSet) -> Vec<f64> {
        let (near, far) = (rows.dot(&safe.vectors().t()), rows.dot(&harm.vectors().t()));
        (0..rows.nrows()).map(|i| prior.logit(&near.row(i).to_vec(), &far.row(i).to_vec())).collect()
    }

    #[test]
    fn harmful_references_score_higher_with_and_without_a_corpus() {
        let (safe, harm) = naive::two_blobs(40, 50, 16, 23);
        let corpus: Vec<usize> = (0..30).collect();
        for rows in [&corpus[..], &[]] {
            let prior = Prior::fit(&safe, &harm, (safe.vectors().view(), rows), 30.0, 1.0).unwrap();
            let h = |set: &ReferenceSet| {
                logits(&prior, &set.vectors().to_owned(), &safe, &harm).iter().map(|z| (z / 2.0).tanh()).sum::<f64>() / set.len() as f64
            };
            assert!(h(&safe) < -0.5 && h(&harm) > 0.5, "{} {}", h(&safe), h(&harm));
        }
    }

    #[test]
    fn the_objective_is_the_one_stated() {
        // By plain gradient descent on the objective in the module's head, over all coefficients.
        let safe = ReferenceSet::try_new(naive::unit_rows(9, 5, 31), naive::masses(9, 1)).unwrap();
        let harm = ReferenceSet::try_new(naive::unit_rows(7, 5, 32), naive::masses(7, 2)).unwrap();
        let sample = naive::unit_rows(6, 5, 33);
        let problem = PriorProblem::try_new(&safe, &harm, sample.view(), &[1, 2, 4, 5], 100).unwrap();
        let prior = problem.solve(2.0, 1.0);
        let references: Vec<(Vec<f32>, f64, f64)> = safe
            .rows()
            .zip(safe.masses())
            .map(|(row, q)| (row.to_vec(), -1.0, (1.0 - PRIOR_CORPUS_SHARE) * 8.0 * q))
            .chain(harm.rows().zip(harm.masses()).map(|(row, r)| (row.to_vec(), 1.0, 8.0 * r)))
            .collect();
        let corpus = [1, 2, 4, 5].map(|i| (sample.row(i).to_vec(), -1.0, PRIOR_CORPUS_SHARE * 8.0 / 4.0));
        let rows: Vec<_> = references.iter().cloned().chain(corpus).collect();
        let k = |x: &[f32], y: &[f32]| {
            let s: f64 = x.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (0.5 + 0.5 * s).powi(4)
        };
        let alpha: Vec<f64> = prior.safe.iter().chain(&prior.harm).copied().collect();
        let objective = |alpha: &[f64], b: f64| {
            let z = |x: &[f32]| b + references.iter().zip(alpha).map(|((y, ..), a)| a * k(x, y)).sum::<f64>();
            let penalty: f64 = references.iter().zip(alpha).map(|((x, ..), a)| a * (z(x) - b)).sum();
            0.5 * penalty + rows.iter().map(|(x, y, s)| 2.0 * s * (1.0 + (-y * z(x)).exp()).ln()).sum::<f64>()
        };
        let best = objective(&alpha, prior.intercept);
        for j in 0..alpha.len() {
            for step in [-0.02, 0.02] {
                let mut moved = alpha.clone();
                moved[j] += step;
                assert!(objective(&moved, prior.intercept) > best - 1e-5, "{j} {step}");
            }
        }
        assert!(objective(&alpha, prior.intercept + 0.02) > best && objective(&alpha, prior.intercept - 0.02) > best);
    }

    #[test]
    fn odd_references_give_finite_coefficients() {
        let zero = ReferenceSet::uniform(Array2::zeros((2, 4))).unwrap();
        let same = ReferenceSet::uniform(naive::unit_rows(1, 4, 24)).unwrap();
        for (safe, harm) in [(&zero, &zero), (&same, &same), (&zero, &same)] {
            let prior = Prior::fit(safe, harm, (zero.vectors().view(), &[0, 1]), 30.0, 1.0).unwrap();
            assert!(prior.intercept.is_finite() && prior.safe.iter().chain(&prior.harm).all(|c| c.is_finite()));
        }
    }
}
