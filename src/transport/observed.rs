//! In: rows weighed with one fixed model. Out: what they say about that model, [`Observed`]: how the corpus itself (not the fit's
//! sample) matches the references, and better potentials for the next fit to start from.
//!
//! Sums only, so observations of shards, workers or runs add up with [`Observed::merge`] in any order (to the last bits: add them
//! in shard order where bits matter). Memory: one f64 a reference.

use serde::{Deserialize, Serialize};

use super::dual::{HARM_STEP, damping, residual, safe_step, sinkhorn_step};
use super::model::TransportModel;
use super::report::Residuals;
use crate::error::{Error, Result};

/// Sums over weighed rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Rows weighed.
    pub rows: u64,
    /// `Σ_i w_i`.
    pub weight: f64,
    /// `Σ_i w_i²`.
    pub weight_squared: f64,
    /// `Σ_i w_i π_ij`, one a safe reference.
    pub safe: Vec<f64>,
    /// `Σ_i w_i π_ik`, one a harmful reference.
    pub harm: Vec<f64>,
}

impl Observed {
    /// Nothing observed yet, for the references of `model`.
    #[must_use]
    pub fn new(model: &TransportModel) -> Self {
        Self { safe: vec![0.0; model.safe.len()], harm: vec![0.0; model.harm.len()], ..Self::default() }
    }

    /// Adds what another worker or shard observed with the same model.
    ///
    /// # Errors
    /// [`Error::Internal`] where the numbers of references differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.safe.len() != other.safe.len() || self.harm.len() != other.harm.len() {
            return Err(Error::Internal(format!(
                "observations over {} and {} references merged with {} and {}",
                self.safe.len(),
                self.harm.len(),
                other.safe.len(),
                other.harm.len()
            )));
        }
        self.rows += other.rows;
        self.weight += other.weight;
        self.weight_squared += other.weight_squared;
        for (into, from) in [(&mut self.safe, &other.safe), (&mut self.harm, &other.harm)] {
            into.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        }
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
        let (safe, harm) = self.marginals()?;
        Some(Residuals {
            safe: residual(&model.safe_potential, &safe, model.safe.masses(), model.slack),
            harm: residual(&model.harm_potential, &harm, model.harm.masses(), model.slack),
        })
    }

    /// The model's potentials moved by one step towards the observed corpus: what the next fit with the same references starts
    /// from (its `warm`). The model's own where nothing was observed.
    #[must_use]
    pub fn advance(&self, model: &TransportModel) -> (Vec<f64>, Vec<f64>) {
        let (mut safe, mut harm) = (model.safe_potential.clone(), model.harm_potential.clone());
        if let Some((safe_marginal, harm_marginal)) = self.marginals() {
            let (epsilon, kappa) = (model.epsilon, damping(model.slack, model.epsilon));
            let rate = safe_step(epsilon, model.tau);
            sinkhorn_step(&mut safe, &safe_marginal, model.safe.masses(), epsilon, kappa, rate);
            sinkhorn_step(&mut harm, &harm_marginal, model.harm.masses(), epsilon, kappa, HARM_STEP);
        }
        (safe, harm)
    }

    fn marginals(&self) -> Option<(Vec<f64>, Vec<f64>)> {
        let share = |sums: &[f64]| sums.iter().map(|s| s / self.weight).collect();
        (self.weight.is_finite() && self.weight > 0.0).then(|| (share(&self.safe), share(&self.harm)))
    }
}
