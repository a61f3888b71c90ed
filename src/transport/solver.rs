//! In: the tiles of a sample and what is fixed during a fit (references, ε, options). Out: potentials, a temperature and how near
//! they are to the optimum.
//!
//! 1. *Online*: minibatches in a seeded order, rate `t^−0.6`, averaged potentials (Mensch and Peyré 2020). Skipped where warm
//!    potentials are given: its first steps would undo them.
//! 2. *Whole sample*: from the averaged potentials, full steps for the safe side and half steps for the harmful side, whose
//!    term is concave in `w`. A safe step is damped by `2/(1 + ε/τ)` where τ < ε: there the weights answer a move of the
//!    potential more strongly than the plan does and a full step would overshoot. τ follows the effective sample size in the
//!    same loop: each pass finds the τ its scores call for, and the next pass uses it. These plain steps are mixed (see
//!    `acceleration`), which needs about a fifth of them at small ε and has the same fixed points.
//! 3. *Stall*: where the error hasn't improved for [`STALL_STEPS`] steps the harmful side's step is halved (the safe side's
//!    where nothing is pushed), at most [`MAX_HALVINGS`] times, and then the fit stops and says why. The potentials returned are
//!    those with the smallest error seen.

use std::ops::Range;

use super::acceleration::Anderson;
use super::cost::TILE_ROWS;
use super::dual::{DualState, HARM_STEP, online_rate, online_step, residual, safe_step, sinkhorn_step};
use super::options::{Temperature, TransportOptions};
use super::potential::SoftTransform;
use super::references::ReferenceSet;
use super::report::{BeforeAfter, FitPhase, FitProgress, Residuals, TransportCosts};
use super::sample::{Pass, SampleTiles, Weighting};
use super::temperature::{effective_fraction, solve_effective_fraction};
use super::weight::score;
use crate::error::{Error, Result};

/// Steps without a better error before the steps are halved.
const STALL_STEPS: usize = 20;
/// Halvings before a fit is given up.
const MAX_HALVINGS: u32 = 4;
/// Growth of the error in one step at which the mixing starts anew.
const MIXING_PATIENCE: f64 = 2.0;
/// How far a mixed temperature may be from the one the scores call for.
const TAU_FACTOR: f64 = 1.5;
/// How near the effective sample size must come to its target.
const ESS_TOLERANCE: f64 = 1e-3;
/// Sinkhorn steps at most for one pair of transport costs. The value is of second order in the error, so few are needed.
const COST_STEPS: usize = 60;
/// Marginal error at which a transport cost is good enough for a report.
const COST_THRESHOLD: f64 = 3e-3;

/// What a step moves.
#[derive(Clone, Debug)]
pub(super) struct Iterate {
    pub(super) safe: Vec<f64>,
    pub(super) harm: Vec<f64>,
    pub(super) tau: f64,
}

/// The best iterate and what was measured there.
pub(super) struct Solved {
    pub(super) iterate: Iterate,
    pub(super) pass: Pass,
    pub(super) residuals: Residuals,
    pub(super) ess: f64,
    /// What the loop brings down: the marginal error plus the effective size's.
    pub(super) measure: f64,
    /// Whether the effective sample size asked for can be had at all.
    reachable: bool,
    pub(super) converged: bool,
    /// Whole-sample steps taken, also those after the best.
    pub(super) steps: usize,
    /// Why it hasn't converged and what to change.
    pub(super) why_not: Option<String>,
}

/// A step's outcome, before the potentials move.
struct Evaluation {
    pass: Pass,
    residuals: Residuals,
    ess: f64,
    next_tau: f64,
    /// Whether the effective sample size asked for can be had at all.
    reachable: bool,
}

pub(super) struct Problem<'a> {
    pub(super) safe: &'a ReferenceSet,
    pub(super) harm: &'a ReferenceSet,
    pub(super) options: &'a TransportOptions,
    pub(super) epsilon: f64,
    pub(super) kappa: f64,
    pub(super) prior_terms: Vec<f64>,
}

impl Problem<'_> {
    pub(super) fn transforms(&self, safe: &[f64], harm: &[f64]) -> (SoftTransform, SoftTransform) {
        (SoftTransform::new(self.safe.masses(), safe, self.epsilon), SoftTransform::new(self.harm.masses(), harm, self.epsilon))
    }

    pub(super) fn closed<'b>(&self, tau: f64, prior: &'b [f64]) -> Weighting<'b> {
        Weighting::Closed { push: self.options.push, tau, prior }
    }

    pub(super) fn residuals(&self, iterate: &Iterate, pass: &Pass) -> Residuals {
        let slack = self.options.slack;
        Residuals {
            safe: residual(&iterate.safe, &pass.safe.mass, self.safe.masses(), slack),
            harm: residual(&iterate.harm, &pass.harm.mass, self.harm.masses(), slack),
        }
    }

    /// The error a fit must bring down: the push side doesn't count where nothing is pushed.
    fn error(&self, residuals: &Residuals) -> f64 {
        if self.options.push == 0.0 { residuals.safe } else { residuals.safe.max(residuals.harm) }
    }

    fn evaluate(&self, sample: &SampleTiles<'_>, tiles: Range<usize>, iterate: &Iterate) -> Result<Evaluation> {
        let (safe, harm) = self.transforms(&iterate.safe, &iterate.harm);
        let rows = tiles.start * TILE_ROWS..(tiles.end * TILE_ROWS).min(sample.len());
        let pass = sample.pass(tiles, &safe, &harm, self.closed(iterate.tau, &self.prior_terms), false)?;
        let scores: Vec<f64> = pass
            .pull
            .iter()
            .zip(&pass.push)
            .zip(&self.prior_terms[rows])
            .map(|((f, h), prior)| score(*f, *h, self.options.push, *prior))
            .collect();
        let (next_tau, reachable) = match self.options.temperature {
            Temperature::Fixed(tau) => (tau, true),
            Temperature::Ess(target) => {
                let found = solve_effective_fraction(&scores, target, iterate.tau);
                (found.tau, found.met)
            }
        };
        let residuals = self.residuals(iterate, &pass);
        Ok(Evaluation { ess: effective_fraction(&scores, iterate.tau), pass, residuals, next_tau, reachable })
    }

    /// The temperature to start from: the fixed one, or the one the starting potentials call for on the first tiles.
    pub(super) fn first_tau(&self, sample: &SampleTiles<'_>, start: &Iterate) -> Result<f64> {
        match self.options.temperature {
            Temperature::Fixed(tau) => Ok(tau),
            Temperature::Ess(_) => Ok(self.evaluate(sample, 0..sample.tiles().min(64), start)?.next_tau),
        }
    }

    /// Phase 1. Leaves averaged potentials in `iterate`.
    pub(super) fn online(&self, sample: &SampleTiles<'_>, iterate: &mut Iterate, progress: &mut dyn FnMut(FitProgress)) -> Result<u64> {
        let batch = self.options.minibatch_rows.div_ceil(TILE_ROWS);
        let per_epoch = sample.tiles().div_ceil(batch);
        let mut state = DualState::new(iterate.safe.clone(), iterate.harm.clone());
        for _ in 0..self.options.epochs {
            for start in (0..sample.tiles()).step_by(batch) {
                let seen = self.evaluate(sample, start..(start + batch).min(sample.tiles()), iterate)?;
                state.steps += 1;
                let eta = online_rate(state.steps);
                let (safe, harm) = (self.safe.masses(), self.harm.masses());
                online_step(&mut state.safe, &seen.pass.safe.mass, safe, self.epsilon, self.kappa, eta);
                online_step(&mut state.harm, &seen.pass.harm.mass, harm, self.epsilon, self.kappa, HARM_STEP * eta);
                state.average();
                iterate.safe.copy_from_slice(&state.safe);
                iterate.harm.copy_from_slice(&state.harm);
                // A minibatch knows τ as roughly as it knows the marginals: the same rate, on the logarithm.
                iterate.tau *= (seen.next_tau / iterate.tau).powf(eta);
                let step = usize::try_from(state.steps).unwrap_or(usize::MAX);
                let max_steps = per_epoch * self.options.epochs;
                progress(FitProgress { phase: FitPhase::Online, step, max_steps, residuals: seen.residuals });
            }
        }
        iterate.safe.copy_from_slice(&state.averaged_safe);
        iterate.harm.copy_from_slice(&state.averaged_harm);
        Ok(state.steps)
    }

    /// Phase 2. The only place that decides whether a fit has converged.
    pub(super) fn whole_sample(
        &self,
        sample: &SampleTiles<'_>,
        mut iterate: Iterate,
        progress: &mut dyn FnMut(FitProgress),
    ) -> Result<Solved> {
        let TransportOptions { threshold, max_steps, .. } = *self.options;
        let mut best: Option<Solved> = None;
        let (mut last_better, mut halvings) = (0, 0u32);
        let mut mixing = self.mixing();
        let (mut previous, mut taken) = (f64::INFINITY, 0);
        for step in 1..=max_steps {
            taken = step;
            let seen = self.evaluate(sample, 0..sample.tiles(), &iterate)?;
            progress(FitProgress { phase: FitPhase::Whole, step, max_steps, residuals: seen.residuals });
            let (error, ess_error) = (self.error(&seen.residuals), self.ess_error(&seen));
            let measure = error + ess_error;
            // An effective size that no τ gives can only be reported; waiting for it would be waiting for ever.
            let settled = error < threshold && ess_error <= ESS_TOLERANCE;
            let image_of = (seen.pass.safe.mass.clone(), seen.pass.harm.mass.clone(), seen.next_tau);
            if settled || best.as_ref().is_none_or(|best| measure < best.measure) {
                let Evaluation { pass, residuals, ess, reachable, .. } = seen;
                let (converged, iterate) = (settled && reachable, iterate.clone());
                best = Some(Solved { iterate, pass, residuals, ess, measure, reachable, converged, steps: 0, why_not: None });
                last_better = step;
            }
            if settled {
                break;
            }
            if step - last_better >= STALL_STEPS {
                if halvings == MAX_HALVINGS {
                    break;
                }
                halvings += 1;
                last_better = step;
                mixing.restart();
            } else if measure > MIXING_PATIENCE * previous {
                mixing.restart();
            }
            previous = measure;
            let shrink = 0.5f64.powi(i32::try_from(halvings).unwrap_or(0));
            let image = self.image(&iterate, &image_of.0, &image_of.1, image_of.2, shrink);
            iterate = self.unpack(&mixing.propose(&self.pack(&iterate), self.pack(&image)), &image);
        }
        let mut best = best.ok_or_else(|| Error::Internal("a fit without a step".into()))?;
        best.steps = taken;
        best.why_not = (!best.converged).then(|| self.why_not(&best));
        Ok(best)
    }

    /// Distance of the effective sample size from its target, 0 where there is none or no τ can reach it.
    fn ess_error(&self, seen: &Evaluation) -> f64 {
        match self.options.temperature {
            Temperature::Ess(target) if seen.reachable => (seen.ess - target).abs(),
            _ => 0.0,
        }
    }

    /// One plain step of both potentials and τ, each side's rate multiplied by `shrink` where it can be unstable.
    fn image(&self, at: &Iterate, p_safe: &[f64], p_harm: &[f64], next_tau: f64, shrink: f64) -> Iterate {
        let mut next = Iterate { tau: next_tau, ..at.clone() };
        // The push side is the one that can be unstable; without it the safe side takes the smaller steps.
        let safe_shrink = if self.options.push == 0.0 { shrink } else { 1.0 };
        let safe_rate = safe_shrink * safe_step(self.epsilon, at.tau);
        sinkhorn_step(&mut next.safe, p_safe, self.safe.masses(), self.epsilon, self.kappa, safe_rate);
        sinkhorn_step(&mut next.harm, p_harm, self.harm.masses(), self.epsilon, self.kappa, HARM_STEP * shrink);
        next
    }

    /// Mixing of iterates as one vector: the safe potential, the harmful one where it counts, and log τ in units of ε.
    fn mixing(&self) -> Anderson {
        let harm = if self.options.push == 0.0 { &[] } else { self.harm.masses() };
        Anderson::new(self.safe.masses().iter().chain(harm).copied().chain([1.0]).collect())
    }

    fn pack(&self, iterate: &Iterate) -> Vec<f64> {
        let harm = if self.options.push == 0.0 { &[][..] } else { &iterate.harm };
        iterate.safe.iter().chain(harm).copied().chain([self.epsilon * iterate.tau.ln()]).collect()
    }

    /// The iterate of a mixed vector; what the mixing doesn't hold comes from `image`. τ stays within a factor of its image, as
    /// an extrapolated temperature near 0 would put all the weight on one row.
    fn unpack(&self, mixed: &[f64], image: &Iterate) -> Iterate {
        let mut next = image.clone();
        if mixed.iter().any(|v| !v.is_finite()) {
            return next;
        }
        let (safe, rest) = mixed.split_at(self.safe.len());
        next.safe.copy_from_slice(safe);
        if self.options.push != 0.0 {
            next.harm.copy_from_slice(&rest[..self.harm.len()]);
        }
        if let (Temperature::Ess(_), Some(log)) = (self.options.temperature, mixed.last()) {
            next.tau = (log / self.epsilon).exp().clamp(image.tau / TAU_FACTOR, image.tau * TAU_FACTOR);
        }
        next
    }

    /// What stands between the best iterate and convergence, and what to change.
    fn why_not(&self, best: &Solved) -> String {
        let TransportOptions { threshold, max_steps, push, .. } = *self.options;
        let Solved { residuals, ess, steps, .. } = best;
        if let (Temperature::Ess(target), false) = (self.options.temperature, best.reachable) {
            return format!(
                "no temperature gives an effective sample size of {target} (reached {ess:.4}): too many rows score alike; check \
                 the sample for duplicate or empty rows, or set a fixed `temperature`"
            );
        }
        let end = if *steps == max_steps {
            format!("after all {max_steps} steps allowed by `max_steps`")
        } else {
            format!("and does not get smaller after {steps} steps")
        };
        let (epsilon, tau) = (self.epsilon, best.iterate.tau);
        if push > 0.0 && residuals.harm >= threshold && residuals.harm >= residuals.safe {
            return format!(
                "the push side's marginal error is {:.1e} (threshold {threshold:.0e}) {end}, with push {push}, temperature {tau:.4} \
                 and epsilon {epsilon:.4}: lower `push`, raise `temperature` (or its `ess`) or raise `epsilon`",
                residuals.harm
            );
        }
        if residuals.safe >= threshold {
            return format!(
                "the pull side's marginal error is {:.1e} (threshold {threshold:.0e}) {end}, with epsilon {epsilon:.4} and \
                 temperature {tau:.4}: raise `epsilon`, `temperature` or `max_steps`, or set `slack` if no row is near some of the \
                 safe references",
                residuals.safe
            );
        }
        format!("the effective sample size is {ess:.4} and still moving {end}: raise `max_steps`")
    }

    /// Balanced transport costs for even weights and for the fitted ones. Where nothing is pushed this also finishes the
    /// harmful potential, which the fit needn't wait for.
    pub(super) fn transport_costs(
        &self,
        sample: &SampleTiles<'_>,
        solved: &mut Solved,
        progress: &mut dyn FnMut(FitProgress),
    ) -> Result<TransportCosts> {
        let log_weights: Vec<f64> = solved
            .pass
            .pull
            .iter()
            .zip(&solved.pass.push)
            .zip(&self.prior_terms)
            .map(|((f, h), prior)| -score(*f, *h, self.options.push, *prior) / solved.iterate.tau)
            .collect();
        let (after, harm) = self.fixed_weights(sample, &log_weights, &solved.iterate, progress)?;
        let (before, _) = self.fixed_weights(sample, &vec![0.0; sample.len()], &solved.iterate, progress)?;
        if self.options.push == 0.0 && self.options.slack.is_none() {
            let (_, transform) = self.transforms(&solved.iterate.safe, &harm);
            let (safe, _) = self.transforms(&solved.iterate.safe, &harm);
            let weighting = self.closed(solved.iterate.tau, &self.prior_terms);
            solved.iterate.harm = harm;
            solved.pass = sample.pass(0..sample.tiles(), &safe, &transform, weighting, false)?;
            solved.residuals = self.residuals(&solved.iterate, &solved.pass);
        }
        Ok(TransportCosts {
            safe: BeforeAfter { before: before.safe, after: after.safe },
            harm: BeforeAfter { before: before.harm, after: after.harm },
        })
    }

    /// Plain Sinkhorn for fixed weights: both semi-dual values, and the harmful potential that has it.
    fn fixed_weights(
        &self,
        sample: &SampleTiles<'_>,
        log_weights: &[f64],
        start: &Iterate,
        progress: &mut dyn FnMut(FitProgress),
    ) -> Result<(Residuals, Vec<f64>)> {
        let (mut safe, mut harm) = (start.safe.clone(), start.harm.clone());
        let enough = self.options.threshold.max(COST_THRESHOLD);
        let mut step = 0;
        loop {
            step += 1;
            let (safe_transform, harm_transform) = self.transforms(&safe, &harm);
            let pass = sample.pass(0..sample.tiles(), &safe_transform, &harm_transform, Weighting::Fixed(log_weights), false)?;
            let residuals = Residuals {
                safe: residual(&safe, &pass.safe.mass, self.safe.masses(), None),
                harm: residual(&harm, &pass.harm.mass, self.harm.masses(), None),
            };
            progress(FitProgress { phase: FitPhase::Costs, step, max_steps: COST_STEPS, residuals });
            if residuals.safe.max(residuals.harm) < enough || step == COST_STEPS {
                let value = |transforms: &[f64], potential: &[f64], masses: &[f64]| {
                    let rows: f64 = transforms.iter().zip(log_weights).map(|(f, z)| f * (z - pass.log_mass).exp()).sum();
                    rows + potential.iter().zip(masses).map(|(g, q)| g * q).sum::<f64>()
                };
                let values =
                    Residuals { safe: value(&pass.pull, &safe, self.safe.masses()), harm: value(&pass.push, &harm, self.harm.masses()) };
                return Ok((values, harm));
            }
            sinkhorn_step(&mut safe, &pass.safe.mass, self.safe.masses(), self.epsilon, 1.0, 1.0);
            sinkhorn_step(&mut harm, &pass.harm.mass, self.harm.masses(), self.epsilon, 1.0, 1.0);
        }
    }
}
