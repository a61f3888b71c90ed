//! In: a fitted model and the rows of its sample. Out: a [`Certificate`], the optimality conditions measured anew.
//!
//! The rows are weighed by [`Weigher::weigh_observed`](super::Weigher::weigh_observed), the path by which every row of the corpus
//! gets its weight, and nothing is taken from the solver but the model. Whoever trusts the weights need not trust the solver:
//! a solution is optimal where both transport problems are solved for the weights (their marginals are right and primal and dual
//! value meet), the weights follow from the potentials by the closed form, and the second-order condition holds.
//!
//! Cost: the sample is weighed once more. Memory: one chunk of rows, and a f32 for each of
//! [`STABILITY_ROWS`] rows and references of both sides.

use ndarray::{ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use super::model::{TransportModel, Weigher};
use super::observed::Observed;
use super::options::Temperature;
use super::report::Residuals;
use super::stability::{Coupling, STABILITY_ROWS, joint_rate, push_stability};
use super::weight::{RowWeight, score};
use crate::error::Result;

/// Rows weighed at a time.
const CHUNK_ROWS: usize = 8192;

/// How well a model solves the problem it was fitted for, measured on the fit's sample by the path that weighs rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// Rows weighed for it: all of the fit's sample.
    pub rows: u64,
    /// Marginal errors `‖p − q‖₁` of the weighted rows, in `[0, 2]`. With slack: distance to the relaxed optimum.
    pub residuals: Residuals,
    /// Mean weight, 1 up to rounding.
    pub mean_weight: f64,
    /// Effective sample size `(Σw)²/(N Σw²)`, in `(0, 1]`.
    pub ess: f64,
    /// The effective sample size asked for; None where the temperature was fixed.
    pub ess_target: Option<f64>,
    /// How well `weight = exp(−score/τ) / mean of exp(−score/τ)` holds: the largest relative difference over the rows. Rows whose
    /// weight is outside the normal range of f32 are passed over. The rounding of pull and push to f32 makes it some 1e-7/τ.
    pub weight_error: f64,
    /// Primal minus dual value of both transport problems, `⟨P, C⟩ + ε KL(P ‖ w ⊗ q)` less the semi-dual value, in units of the
    /// cost: 0 at the optimum, see [`Observed::gap`].
    pub gap: Residuals,
    /// σ, second-order condition of the push side alone: the largest generalised eigenvalue of `(λ/τ)·Cov_w(π)` against
    /// `(1/ε)·E_w[diag π − ππᵀ]` on the mean-free space. Below 1 the solution is a strict local optimum; at 1 or above the push
    /// side by itself is not held in place and can oscillate or run away. 0 where nothing is pushed.
    pub stability: f64,
    /// ν, the same condition with the pull side, exactly: the factor by which full steps of the harmful potential multiply its error while
    /// the pull side follows. The solution is a strict local optimum where it is below 1. 0 where nothing is pushed.
    pub joint_rate: f64,
    /// Rows of the sample that `stability` and `joint_rate` were measured on, at most [`STABILITY_ROWS`].
    pub stability_rows: u64,
}

impl Certificate {
    /// Measures `model` on its sample. `order` holds row indices of `sample` in random order, of which the first are taken for the
    /// stability.
    ///
    /// # Errors
    /// As [`Weigher::weigh`].
    pub(super) fn measure(model: &TransportModel, sample: ArrayView2<'_, f32>, order: &[usize], temperature: Temperature) -> Result<Self> {
        let weigher = model.weigher()?;
        let mut observed = Observed::new(model);
        let mut law = WeightLaw::default();
        for chunk in sample.axis_chunks_iter(Axis(0), CHUNK_ROWS) {
            weigher.weigh_observed(chunk, &mut observed)?.iter().for_each(|row| law.see(model, row));
        }
        let (stability, joint_rate) = second_order(&weigher, model, sample, &order[..order.len().min(STABILITY_ROWS)])?;
        Ok(Self {
            rows: observed.rows,
            residuals: observed.residuals(model).unwrap_or_default(),
            mean_weight: observed.mean_weight(),
            ess: observed.ess(),
            ess_target: match temperature {
                Temperature::Ess(target) => Some(target),
                Temperature::Fixed(_) => None,
            },
            weight_error: law.error(),
            gap: observed.gap(model).unwrap_or_default(),
            stability,
            joint_rate,
            stability_rows: order.len().min(STABILITY_ROWS) as u64,
        })
    }

    /// Whether every number is finite. (A model without NaN that gives no row a weight would not be.)
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let Self { residuals, mean_weight, ess, weight_error, gap, stability, joint_rate, .. } = self;
        [residuals.safe, residuals.harm, *mean_weight, *ess, *weight_error, gap.safe, gap.harm, *stability, *joint_rate]
            .iter()
            .all(|v| v.is_finite())
    }
}

/// σ and ν on the rows of the sample at these indices.
fn second_order(weigher: &Weigher<'_>, model: &TransportModel, sample: ArrayView2<'_, f32>, few: &[usize]) -> Result<(f64, f64)> {
    if model.push == 0.0 {
        return Ok((0.0, 0.0));
    }
    let rows = sample.select(Axis(0), few);
    // Relative to the largest of these few: a low temperature may leave none of them a weight that f32 can hold.
    let scores: Vec<f64> = weigher.weigh(rows.view())?.iter().map(|row| weigher.score(row)).collect();
    let lowest = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let weights: Vec<f64> = scores.iter().map(|score| ((lowest - score) / model.tau).exp()).collect();
    let (safe, harm) = weigher.responsibilities(rows.view())?;
    let (safe, harm) = (Coupling::new(safe, model.safe.len(), &weights), Coupling::new(harm, model.harm.len(), &weights));
    let TransportModel { push, tau, epsilon, slack, .. } = *model;
    let stability = push_stability(harm.second_eigenvalue(), push, tau, epsilon, slack);
    Ok((stability, joint_rate(&safe, &harm, push, tau, epsilon, slack)))
}

/// How far weights are from `exp(−score/τ − c)`, with the `c` that makes their mean 1, seen row by row.
#[derive(Default)]
struct WeightLaw {
    rows: u64,
    /// Largest `−score/τ` so far.
    largest: Option<f64>,
    /// Sum of `exp(−score/τ)` relative to the largest.
    mass: f64,
    /// Lowest and highest `log(weight) + score/τ`.
    range: Option<(f64, f64)>,
}

impl WeightLaw {
    fn see(&mut self, model: &TransportModel, row: &RowWeight) {
        let exponent = -score(f64::from(row.pull), f64::from(row.push), model.push, f64::from(row.prior)) / model.tau;
        let largest = self.largest.map_or(exponent, |l| l.max(exponent));
        self.mass = self.mass * self.largest.map_or(0.0, |l| (l - largest).exp()) + (exponent - largest).exp();
        self.largest = Some(largest);
        self.rows += 1;
        if row.weight >= f32::MIN_POSITIVE && row.weight < f32::MAX {
            let constant = f64::from(row.weight).ln() - exponent;
            self.range = Some(self.range.map_or((constant, constant), |(low, high)| (low.min(constant), high.max(constant))));
        }
    }

    fn error(&self) -> f64 {
        let (Some(largest), Some((low, high))) = (self.largest, self.range) else { return 0.0 };
        let expected = -largest - (self.mass / self.rows as f64).ln();
        (high - expected).exp_m1().abs().max((low - expected).exp_m1().abs()).min(f64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{Prior, ReferenceSet};

    #[test]
    fn one_wrong_weight_among_many_shows() {
        let set = ReferenceSet::uniform(ndarray::array![[1.0, 0.0]]).unwrap();
        let model = TransportModel {
            safe: set.clone(),
            harm: set,
            safe_potential: vec![0.0],
            harm_potential: vec![0.0],
            prior: Prior::none(2, 1),
            epsilon: 0.1,
            push: 1.0,
            tau: 0.2,
            log_z: 0.0,
            slack: None,
        };
        let pulls = [0.1f32, 0.3, 0.2, 0.25];
        let mean = pulls.iter().map(|f| (-f64::from(*f) / 0.2).exp()).sum::<f64>() / 4.0;
        #[expect(clippy::cast_possible_truncation, reason = "a weight is f32")]
        let rows = pulls.map(|pull| {
            let weight = ((-f64::from(pull) / 0.2).exp() / mean) as f32;
            RowWeight { weight, pull, push: 0.0, prior: 0.0, safe_ref: 0, harm_ref: 0 }
        });
        let error = |rows: &[RowWeight]| {
            let mut law = WeightLaw::default();
            rows.iter().for_each(|row| law.see(&model, row));
            law.error()
        };
        assert!(error(&rows) < 1e-6 && error(&[]) == 0.0);
        let mut wrong = rows;
        wrong[2].weight *= 1.01;
        assert!((error(&wrong) - 0.01).abs() < 1e-6);
        // An underflowed weight says nothing.
        wrong = rows;
        wrong[1].weight = 0.0;
        assert!(error(&wrong) < 1e-6);
    }
}
