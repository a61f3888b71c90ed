//! In: scores and an effective sample size to reach. Out: the temperature τ at which `weight ∝ exp(−score/τ)` has it.
//!
//! `ESS(τ) = (Σw)² / (N Σw²)` grows with τ: with `K` the cumulant function of −score and `θ = 1/τ`, `log ESS = 2K(θ) − K(2θ)`
//! falls in θ because `K'` grows. So bisection on `log τ` cannot miss.

use rayon::prelude::*;

/// Scores closer than this (relative to their size) are one score: f32 costs resolve no more.
pub(super) const SCORE_RESOLUTION: f64 = 1e-9;

/// Rows summed at a time. Fixed, so that the sum doesn't depend on the number of threads.
pub(super) const SUM_ROWS: usize = 4096;

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TemperatureFound {
    /// The temperature, positive and finite.
    pub tau: f64,
    /// Whether the target was met within 1e-6; if not, `tau` is the closest that makes sense.
    pub met: bool,
}

/// Effective sample size of `exp(−score/τ)` as a fraction of the number of rows, in `(0, 1]`.
pub(super) fn effective_fraction(scores: &[f64], tau: f64) -> f64 {
    let lowest = scores.par_iter().copied().reduce(|| f64::INFINITY, f64::min);
    fraction_above(scores, lowest, tau)
}

fn fraction_above(scores: &[f64], lowest: f64, tau: f64) -> f64 {
    let parts: Vec<(f64, f64)> = scores
        .par_chunks(SUM_ROWS)
        .map(|chunk| {
            chunk.iter().fold((0.0, 0.0), |(one, two), s| {
                let w = ((lowest - s) / tau).exp();
                (one + w, two + w * w)
            })
        })
        .collect();
    let (one, two) = parts.iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
    one * one / (two * scores.len() as f64)
}

/// The temperature τ at which the effective sample size `(Σw)²/(N Σw²)` of `w = exp(−score/τ)` is the fraction `target`, in (0, 1), of
/// the number of scores (finite, in any unit). By bisection on `log τ`; `guess` (the last τ) only makes the bracket smaller.
///
/// Not met, and then with the nearest sensible τ: every score is the same (any τ gives 1; `guess` is kept), or more rows than
/// the target share the lowest score (no τ is low enough).
pub fn solve_effective_fraction(scores: &[f64], target: f64, guess: f64) -> TemperatureFound {
    let lowest = scores.par_iter().copied().reduce(|| f64::INFINITY, f64::min);
    let highest = scores.par_iter().copied().reduce(|| f64::NEG_INFINITY, f64::max);
    let range = highest - lowest;
    let usable_guess = if guess.is_finite() && guess > 0.0 { guess } else { 1.0 };
    if scores.is_empty() || range <= SCORE_RESOLUTION * (1.0 + lowest.abs()) {
        return TemperatureFound { tau: usable_guess, met: false };
    }
    let (floor, ceiling) = ((range * 1e-7).ln(), (range * 1e9).ln());
    let reached = |log_tau: f64| fraction_above(scores, lowest, log_tau.exp());
    let start = usable_guess.ln().clamp(floor, ceiling);
    let (mut low, mut high, mut width) = (start, start, 0.05);
    while low > floor && reached(low) > target {
        high = low;
        low = (low - width).max(floor);
        width *= 4.0;
    }
    if low <= floor && reached(low) > target {
        return TemperatureFound { tau: low.exp(), met: false };
    }
    width = 0.05;
    while high < ceiling && reached(high) < target {
        low = high;
        high = (high + width).min(ceiling);
        width *= 4.0;
    }
    let mut middle = 0.5 * (low + high);
    for _ in 0..80 {
        let fraction = reached(middle);
        if (fraction - target).abs() < 1e-9 || high - low < 1e-12 {
            break;
        }
        if fraction < target {
            low = middle
        } else {
            high = middle
        }
        middle = 0.5 * (low + high);
    }
    TemperatureFound { tau: middle.exp(), met: (reached(middle) - target).abs() < 1e-6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;

    #[test]
    fn the_target_is_met_from_any_guess() {
        let scores = naive::potential(5000, 0.4, 11);
        for target in [0.01, 0.2, 0.5, 0.9, 0.999] {
            for guess in [1e-9, 0.05, 1.0, 1e6] {
                let found = solve_effective_fraction(&scores, target, guess);
                assert!(found.met && (effective_fraction(&scores, found.tau) - target).abs() < 1e-6, "{target} {guess} {found:?}");
            }
        }
    }

    #[test]
    fn effective_size_grows_with_temperature() {
        let scores = naive::potential(300, 1.0, 12);
        let sizes: Vec<f64> = (0..40).map(|k| effective_fraction(&scores, 10f64.powf(f64::from(k) * 0.2 - 5.0))).collect();
        assert!(sizes.windows(2).all(|w| w[0] <= w[1] + 1e-12));
    }

    #[test]
    fn unreachable_targets_are_said() {
        assert_eq!(solve_effective_fraction(&[0.3; 50], 0.5, 0.1), TemperatureFound { tau: 0.1, met: false });
        let mut scores = vec![0.0; 80];
        scores.extend([1.0; 20]);
        let found = solve_effective_fraction(&scores, 0.5, 0.1);
        assert!(!found.met && found.tau > 0.0);
    }
}
