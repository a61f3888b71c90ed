//! In: a dual potential and the marginal its responsibilities have. Out: the next potential.
//!
//! With `q` the masses, `p_j = Σ_i w_i π_j(x_i)` the marginal of the current rows and `κ = ρ/(ρ+ε)` (1 where balanced), the
//! Sinkhorn target is `T_j = κ (g_j + ε log(q_j / p_j))` (Cuturi 2013; the damping by κ is the unbalanced form of Séjourné et
//! al. 2019, eq. 14), and a step of rate η mixes it in the exponential domain:
//!
//! ```text
//! g_j ← g_j − ε log(1 − η + η exp((g_j − T_j)/ε)),    then subtract Σ_j q_j g_j
//! ```
//!
//! For κ = 1 this is `g_j ← g_j − ε log(1 − η + η p_j/q_j)`: online Sinkhorn (Mensch and Peyré 2020, alg. 1) for a fixed
//! discrete target. It stays finite where `p_j = 0`, needs no step size tuned to the cost, and η = 1 on the whole sample is one
//! plain Sinkhorn step. For κ < 1 the mix keeps the fixed point of the damped problem at every η; κ = 0 gives `g = 0`.

/// Smallest `p/q` a full step may see; keeps the logarithm finite where no row is near a reference.
const SMALLEST_RATIO: f64 = 1e-300;

/// Largest rate of the online phase: the first batches must not erase each other.
const LARGEST_RATE: f64 = 0.9;

/// Decay of the online rate, `η_t = t^−0.6`: slow enough to reach the solution, fast enough that its sum of squares is finite.
const RATE_DECAY: f64 = 0.6;

/// Relaxation of the harmful side's step, whose term is concave in the row weights.
pub(super) const HARM_STEP: f64 = 0.5;

/// Rate of a whole-sample step of the safe side: full for τ ≥ ε, less where the row weights would overshoot.
pub(super) fn safe_step(epsilon: f64, tau: f64) -> f64 {
    (2.0 / (1.0 + epsilon / tau)).min(1.0)
}

/// κ = ρ/(ρ+ε): 1 where the reference marginal is exact, 0 where transport is off.
pub(super) fn damping(slack: Option<f64>, epsilon: f64) -> f64 {
    slack.map_or(1.0, |rho| rho / (rho + epsilon))
}

/// The online rate η of step `t ≥ 1`.
pub(super) fn online_rate(step: u64) -> f64 {
    (step.max(1) as f64).powf(-RATE_DECAY).min(LARGEST_RATE)
}

/// The weight of the newest potential in the running average, `2/(t+1)`: early, poor potentials are forgotten.
pub(super) fn average_rate(step: u64) -> f64 {
    2.0 / (step as f64 + 1.0)
}

/// One dual step with mixing in the exponential domain (the online rule above).
pub(super) fn online_step(potential: &mut [f64], marginal: &[f64], masses: &[f64], epsilon: f64, kappa: f64, eta: f64) {
    if kappa == 0.0 {
        potential.fill(0.0);
        return;
    }
    for ((g, p), q) in potential.iter_mut().zip(marginal).zip(masses) {
        // exp((g − T)/ε), without forming T, which is infinite where p = 0.
        let ratio = ((1.0 - kappa) * *g / epsilon).min(600.0).exp() * (p / q).powf(kappa);
        *g -= epsilon * (1.0 - eta + eta * ratio).max(SMALLEST_RATIO).ln();
    }
    centre(potential, masses);
}

/// One whole-sample step towards the Sinkhorn target, relaxed by `rate` in the potentials' own domain.
pub(super) fn sinkhorn_step(potential: &mut [f64], marginal: &[f64], masses: &[f64], epsilon: f64, kappa: f64, rate: f64) {
    if kappa == 0.0 {
        potential.fill(0.0);
        return;
    }
    for ((g, p), q) in potential.iter_mut().zip(marginal).zip(masses) {
        let target = kappa * (*g - epsilon * (p / q).max(SMALLEST_RATIO).ln());
        *g += rate * (target - *g);
    }
    centre(potential, masses);
}

/// Removes the constant no weight depends on, so that `Σ_j q_j g_j = 0`.
pub(super) fn centre(potential: &mut [f64], masses: &[f64]) {
    let mean: f64 = potential.iter().zip(masses).map(|(g, q)| g * q).sum();
    potential.iter_mut().for_each(|g| *g -= mean);
}

/// How far a marginal is from optimal, in L1: from `q` where balanced, from `q_j exp(−g_j/ρ)` (normalised) where relaxed by ρ,
/// 0 where transport is off. In `[0, 2]`.
pub(super) fn residual(potential: &[f64], marginal: &[f64], masses: &[f64], slack: Option<f64>) -> f64 {
    match slack {
        None => marginal.iter().zip(masses).map(|(p, q)| (p - q).abs()).sum(),
        Some(0.0) => 0.0,
        Some(rho) => marginal.iter().zip(relaxed_masses(potential, masses, rho).0).map(|(p, t)| (p - t).abs()).sum(),
    }
}

/// The marginal that a potential calls for where it is relaxed by ρ > 0, `q_j exp(−g_j/ρ)` divided by its sum, and the logarithm
/// of that sum.
pub(super) fn relaxed_masses(potential: &[f64], masses: &[f64], rho: f64) -> (Vec<f64>, f64) {
    let lowest = potential.iter().copied().fold(f64::INFINITY, f64::min);
    let mut tilted: Vec<f64> = potential.iter().zip(masses).map(|(g, q)| q * ((lowest - g) / rho).exp()).collect();
    let total: f64 = tilted.iter().sum();
    tilted.iter_mut().for_each(|t| *t /= total);
    (tilted, total.ln() - lowest / rho)
}

/// The state of the online phase: current potentials and their running averages.
#[derive(Debug)]
pub(super) struct DualState {
    pub(super) safe: Vec<f64>,
    pub(super) harm: Vec<f64>,
    pub(super) averaged_safe: Vec<f64>,
    pub(super) averaged_harm: Vec<f64>,
    /// Minibatches seen, which sets the rate of the next.
    pub(super) steps: u64,
}

impl DualState {
    pub(super) fn new(safe: Vec<f64>, harm: Vec<f64>) -> Self {
        Self { averaged_safe: safe.clone(), averaged_harm: harm.clone(), safe, harm, steps: 0 }
    }

    /// Folds the newest potentials into the averages.
    pub(super) fn average(&mut self) {
        let rate = average_rate(self.steps);
        for (average, newest) in [(&mut self.averaged_safe, &self.safe), (&mut self.averaged_harm, &self.harm)] {
            average.iter_mut().zip(newest).for_each(|(a, g)| *a += rate * (g - *a));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;

    #[test]
    fn a_full_online_step_is_a_sinkhorn_step() {
        let (masses, marginal) = (naive::masses(9, 31), naive::masses(9, 32));
        for kappa in [1.0, 0.4] {
            let mut online = naive::potential(9, 0.2, 33);
            let mut batch = online.clone();
            online_step(&mut online, &marginal, &masses, 0.05, kappa, 1.0);
            sinkhorn_step(&mut batch, &marginal, &masses, 0.05, kappa, 1.0);
            online.iter().zip(&batch).for_each(|(a, b)| assert!((a - b).abs() < 1e-12));
        }
    }

    #[test]
    fn same_as_naive() {
        let (masses, marginal) = (naive::masses(9, 34), naive::masses(9, 35));
        let start = naive::potential(9, 0.2, 36);
        let mut ours = start.clone();
        online_step(&mut ours, &marginal, &masses, 0.07, 1.0, 0.3);
        let expected = naive::online_step(&start, &marginal, &masses, 0.07, 0.3);
        ours.iter().zip(&expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-12));
    }

    #[test]
    fn an_empty_marginal_stays_finite() {
        let masses = [0.5, 0.5];
        let mut potential = [0.0, 0.0];
        online_step(&mut potential, &[1.0, 0.0], &masses, 1e-4, 1.0, 1.0);
        assert!(potential.iter().all(|g| g.is_finite()));
        sinkhorn_step(&mut potential, &[1.0, 0.0], &masses, 10.0, 1.0, 1.0);
        assert!(potential.iter().all(|g| g.is_finite()));
    }

    #[test]
    fn no_slack_at_all_means_no_transport() {
        let mut potential = [0.4, -0.1];
        online_step(&mut potential, &[0.9, 0.1], &[0.5, 0.5], 0.1, damping(Some(0.0), 0.1), 0.5);
        assert_eq!(potential, [0.0, 0.0]);
        assert_eq!(damping(None, 0.1), 1.0);
        assert!((damping(Some(0.1), 0.1) - 0.5).abs() < 1e-15);
    }

    #[test]
    fn relaxed_residual_vanishes_at_the_relaxed_optimum() {
        let (masses, potential, rho) = (naive::masses(5, 37), naive::potential(5, 0.2, 38), 0.3);
        let tilted: Vec<f64> = potential.iter().zip(&masses).map(|(g, q)| q * (-g / rho).exp()).collect();
        let total: f64 = tilted.iter().sum();
        let marginal: Vec<f64> = tilted.iter().map(|t| t / total).collect();
        assert!(residual(&potential, &marginal, &masses, Some(rho)) < 1e-12);
        assert!(residual(&potential, &marginal, &masses, None) > 1e-3);
    }
}
