//! In: rows weighed with one fixed model. Out: what they say about that model, [`Observed`]: how well the weighted rows match
//! both reference sets, and what their transport plans cost.
//!
//! Sums only, so observations of shards, workers or runs add up with [`Observed::merge`] in any order (to the last bits: add them
//! in shard order where bits matter). A fit's [`Certificate`](super::Certificate) is made of them. Memory: one f64 a reference.

use serde::{Deserialize, Serialize};

use super::dual::{relaxed_masses, residual};
use super::model::TransportModel;
use super::references::ReferenceSet;
use super::report::Residuals;
use crate::error::{Error, Result};

/// Entries of a plan below this share of their row are left out of its cost: all of them together are below its rounding.
const LEAST_SHARE: f64 = 1e-12;

/// Sums over weighed rows. `w` is a row's weight, π its responsibilities.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Rows weighed.
    pub rows: u64,
    /// `Σ_i w_i`.
    pub weight: f64,
    /// `Σ_i w_i²`.
    pub weight_squared: f64,
    /// Of the safe references.
    pub safe: ObservedSide,
    /// Of the harmful references.
    pub harm: ObservedSide,
}

/// Sums over weighed rows and one reference set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObservedSide {
    /// `Σ_i w_i π_ij`, one a reference.
    pub marginal: Vec<f64>,
    /// `Σ_i w_i f(x_i; g)`, the rows' part of the semi-dual value.
    pub transform: f64,
    /// `Σ_ij w_i π_ij (c_ij + ε log(π_ij/q_j))`, the cost of the plan `w_i π_ij`, its entropy relative to `w ⊗ q`.
    pub plan: f64,
}

impl ObservedSide {
    fn new(references: usize) -> Self {
        Self { marginal: vec![0.0; references], ..Self::default() }
    }

    fn add(&mut self, other: &Self) {
        self.marginal.iter_mut().zip(&other.marginal).for_each(|(a, b)| *a += b);
        self.transform += other.transform;
        self.plan += other.plan;
    }

    /// The plan's cost less the semi-dual value, each for weights of sum 1: 0 at the optimum. Both carry what a relaxed marginal
    /// costs, `ρ KL(p ‖ q)` and its conjugate.
    fn gap(&self, weight: f64, potential: &[f64], set: &ReferenceSet, slack: Option<f64>) -> f64 {
        let marginal = self.marginal.iter().map(|s| s / weight);
        let references = match slack {
            None => potential.iter().zip(set.masses()).map(|(g, q)| g * q).sum(),
            // The marginal is free and costs nothing, as every potential is 0.
            Some(0.0) => 0.0,
            Some(rho) => {
                let (_, log_total) = relaxed_masses(potential, set.masses(), rho);
                let divergence: f64 = marginal.zip(set.masses()).map(|(p, q)| if p > 0.0 { p * (p / q).ln() } else { 0.0 }).sum();
                -rho * (log_total + divergence)
            }
        };
        (self.plan - self.transform) / weight - references
    }
}

/// `Σ_j π_j (c_j + ε log(π_j/q_j))` of one row, π from its exponentials and their sum.
pub(super) fn plan_cost(similarities: &[f32], exponentials: &[f32], sum: f64, log_masses: &[f64], epsilon: f64) -> f64 {
    let mut cost = 0.0;
    for ((s, e), log_q) in similarities.iter().zip(exponentials).zip(log_masses) {
        let share = f64::from(*e) / sum;
        if share > LEAST_SHARE {
            cost += share * (1.0 - f64::from(*s) + epsilon * (share.ln() - log_q));
        }
    }
    cost
}

impl Observed {
    /// Nothing observed yet, for the references of `model`.
    #[must_use]
    pub fn new(model: &TransportModel) -> Self {
        Self { safe: ObservedSide::new(model.safe.len()), harm: ObservedSide::new(model.harm.len()), ..Self::default() }
    }

    /// Adds what another worker or shard observed with the same model.
    ///
    /// # Errors
    /// [`Error::Internal`] where the numbers of references differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let references = |observed: &Self| (observed.safe.marginal.len(), observed.harm.marginal.len());
        if references(self) != references(other) {
            let ((safe, harm), (other_safe, other_harm)) = (references(self), references(other));
            return Err(Error::Internal(format!(
                "observations over {safe} and {harm} references merged with {other_safe} and {other_harm}"
            )));
        }
        self.rows += other.rows;
        self.weight += other.weight;
        self.weight_squared += other.weight_squared;
        self.safe.add(&other.safe);
        self.harm.add(&other.harm);
        Ok(())
    }

    /// Mean weight of the rows: near 1 where the corpus is like the fit's sample. NaN before the first row.
    #[must_use]
    pub fn mean_weight(&self) -> f64 {
        self.weight / self.rows as f64
    }

    /// Effective sample size `(Σw)²/(N Σw²)`, in `[0, 1]`. NaN before the first row.
    #[must_use]
    pub fn ess(&self) -> f64 {
        self.weight * self.weight / (self.rows as f64 * self.weight_squared)
    }

    /// Marginal errors of the model over the observed rows, as in the fit's report. None before the first weight.
    #[must_use]
    pub fn residuals(&self, model: &TransportModel) -> Option<Residuals> {
        let share = |side: &ObservedSide| -> Vec<f64> { side.marginal.iter().map(|s| s / self.weight).collect() };
        self.has_weight().then(|| Residuals {
            safe: residual(&model.safe_potential, &share(&self.safe), model.safe.masses(), model.slack),
            harm: residual(&model.harm_potential, &share(&self.harm), model.harm.masses(), model.slack),
        })
    }

    /// Primal minus dual value of both transport problems for the observed weights, in units of the cost: `⟨P, C⟩ +
    /// ε KL(P ‖ w ⊗ q)` of the plan `P_ij = w_i π_ij` less `Σ_i w_i f(x_i; g) + Σ_j q_j g_j`. With exact marginals the plan
    /// reaches `p` instead of `q`, so that the gap may fall below 0, by at most `‖p − q‖₁ · max|g|`. None before the first weight.
    #[must_use]
    pub fn gap(&self, model: &TransportModel) -> Option<Residuals> {
        self.has_weight().then(|| Residuals {
            safe: self.safe.gap(self.weight, &model.safe_potential, &model.safe, model.slack),
            harm: self.harm.gap(self.weight, &model.harm_potential, &model.harm, model.slack),
        })
    }

    fn has_weight(&self) -> bool {
        self.weight.is_finite() && self.weight > 0.0
    }
}
