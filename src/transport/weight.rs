//! In: a row's two transforms and its prior. Out: its [`RowWeight`], in closed form (Wang et al. 2026, arXiv 2601.07200, for the
//! objective; the KL regulariser gives the exponential):
//!
//! ```text
//! score(x) = pull(x) − λ · push(x) + β · h(x)         weight(x) = exp(−score(x)/τ − log Z)
//! ```

/// What one row gets. Depends on the row and the model alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowWeight {
    /// Density ratio, ≥ 0 and finite, mean 1 over the sample of the fit: 1 means "as the corpus has it". A value past the
    /// largest f32 is that largest f32.
    pub weight: f32,
    /// `f(x; g_safe)`: the price of moving the row to the safe references, lower is safer. In units of the cost; may be
    /// negative, as the potential's constant is free.
    pub pull: f32,
    /// `f(x; g_harm)`: the price of moving the row to the harmful references, lower is more harmful.
    pub push: f32,
    /// `β · h(x)`, positive for rows that look harmful, 0 where the prior is off.
    pub prior: f32,
    /// Index of the safe reference with the largest responsibility for the row, ties to the lowest index.
    pub safe_ref: u32,
    /// Index of the harmful reference with the largest responsibility for the row, ties to the lowest index.
    pub harm_ref: u32,
}

impl RowWeight {
    /// The row's score from its stored numbers, `pull − λ · push + prior`, for any strength λ ≥ 0: higher is more harmful. In units of the
    /// cost. The numbers are rounded to f32, so it is within `2⁻²⁴ · (|pull| + λ|push| + |prior|)` of the score that the potentials give.
    pub fn score(&self, strength: f64) -> f64 {
        score(f64::from(self.pull), f64::from(self.push), strength, f64::from(self.prior))
    }

    /// The row with the weight that λ, τ > 0 and log Z give its stored numbers, `exp(−score/τ − log Z)`; the numbers stay. With the λ, τ
    /// and log Z that it was weighed with its weight comes back within a relative `2⁻²⁴ · (1 + (|pull| + λ|push| + |prior|)/τ)`, from the
    /// rounding of the numbers.
    #[must_use]
    pub fn rescaled(self, strength: f64, tau: f64, log_z: f64) -> Self {
        Self { weight: density_ratio(self.score(strength), tau, log_z), ..self }
    }
}

/// `pull − λ · push + prior`; lower means a larger weight. `−λ·push` is left out where λ is 0.
pub(super) fn score(pull: f64, push: f64, strength: f64, prior: f64) -> f64 {
    if strength == 0.0 { pull + prior } else { pull - strength * push + prior }
}

/// `exp(−score/τ − log Z)` as f32, never infinite.
#[expect(clippy::cast_possible_truncation, reason = "f32 is the output's type; the value is clamped to its range first")]
pub(super) fn density_ratio(score: f64, tau: f64, log_z: f64) -> f32 {
    (-score / tau - log_z).exp().min(f64::from(f32::MAX)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_fall_with_the_score_and_stay_finite() {
        let weights: Vec<f32> = [-1e9, -0.1, 0.0, 0.1, 1e9].iter().map(|s| density_ratio(*s, 0.1, 0.0)).collect();
        assert!(weights.windows(2).all(|w| w[0] > w[1]));
        assert!(weights.iter().all(|w| w.is_finite() && *w >= 0.0));
        assert_eq!(weights[2], 1.0);
    }

    #[test]
    fn stored_numbers_give_the_weight_again() {
        let row = RowWeight { weight: 0.0, pull: 0.7, push: 0.4, prior: 0.05, safe_ref: 3, harm_ref: 1 };
        let (pull, push, prior) = (f64::from(0.7f32), f64::from(0.4f32), f64::from(0.05f32));
        for (strength, tau, log_z) in [(0.0, 0.1, 0.3), (0.5, 0.02, -20.0), (2.0, 1.0, 0.0)] {
            let expected = density_ratio(pull - strength * push + prior, tau, log_z);
            let rescaled = row.rescaled(strength, tau, log_z);
            assert_eq!(rescaled, RowWeight { weight: expected, ..row });
        }
    }
}
