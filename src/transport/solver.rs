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
//! 3. *Stall*: where the error hasn't improved for [`STALL_STEPS`] steps, one side's step is halved: the harmful side's where the
//!    push is unstable (its steps turn back, see `oscillation`, or nothing holds its potential in place, see `stability`) or its
//!    error is the larger, else the safe side's; the fit goes on from the best iterate. A harmful side slow enough lets the safe side follow it, and then settles at
//!    every strict local optimum. After [`MAX_HALVINGS`] the fit stops and says why. The potentials returned are those with the
//!    smallest error seen. Whether that is good enough is decided in `convergence`.

use std::ops::Range;

use super::acceleration::Anderson;
use super::convergence::{Criterion, Measured, Verdict};
use super::cost::TILE_ROWS;
use super::dual::{DualState, HARM_STEP, online_rate, online_step, residual, safe_step, sinkhorn_step};
use super::options::{Temperature, TransportOptions};
use super::oscillation::{REMEMBERED, StepWatch};
use super::potential::SoftTransform;
use super::references::ReferenceSet;
use super::report::{BeforeAfter, FitPhase, FitProgress, Residuals, TransportCosts};
use super::sample::{Pass, SampleTiles, Weighting};
use super::stability::{Coupling, STABILITY_ROWS, push_stability};
use super::temperature::{effective_fraction, solve_effective_fraction};
use super::weight::score;
use crate::error::{Error, Result};

/// Steps without a better error before the steps are halved.
const STALL_STEPS: usize = REMEMBERED;
/// Halvings before a fit is given up.
const MAX_HALVINGS: u32 = 4;
/// Growth of the error in one step at which the mixing starts anew.
const MIXING_PATIENCE: f64 = 2.0;
/// How far a mixed temperature may be from the one the scores call for.
const TAU_FACTOR: f64 = 1.5;
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
    pub(super) measured: Measured,
    /// What the loop brings down: the marginal error plus the effective size's.
    measure: f64,
    /// Whole-sample steps taken, also those after the best.
    pub(super) steps: usize,
    /// Times a side's step was halved.
    pub(super) halvings: u32,
    /// Whether the push side was seen to oscillate or run away.
    pub(super) oscillated: bool,
}

/// A step's outcome, before the potentials move.
struct Evaluation {
    pass: Pass,
    /// Score of every row, in the sample's order.
    scores: Vec<f64>,
    measured: Measured,
    next_tau: f64,
}

/// How often either side's step was halved, and when the error last improved.
#[derive(Clone, Copy, Debug, Default)]
struct Patience {
    last_better: usize,
    safe_halvings: u32,
    harm_halvings: u32,
}

impl Patience {
    fn halvings(&self) -> u32 {
        self.safe_halvings + self.harm_halvings
    }

    /// Factors of the safe and the harmful side's rate.
    fn rates(&self) -> (f64, f64) {
        let half = |times: u32| 0.5f64.powi(i32::try_from(times).unwrap_or(i32::MAX));
        (half(self.safe_halvings), half(self.harm_halvings))
    }
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

    pub(super) fn criterion(&self) -> Criterion<'_> {
        Criterion { options: self.options }
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
        let (residuals, ess) = (self.residuals(iterate, &pass), effective_fraction(&scores, iterate.tau));
        Ok(Evaluation { measured: Measured { residuals, ess, reachable, finite: true }, pass, scores, next_tau })
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
                progress(FitProgress { phase: FitPhase::Online, step, max_steps, residuals: seen.measured.residuals });
            }
        }
        iterate.safe.copy_from_slice(&state.averaged_safe);
        iterate.harm.copy_from_slice(&state.averaged_harm);
        Ok(state.steps)
    }

    /// Phase 2.
    pub(super) fn whole_sample(
        &self,
        sample: &SampleTiles<'_>,
        mut iterate: Iterate,
        progress: &mut dyn FnMut(FitProgress),
    ) -> Result<Solved> {
        let max_steps = self.options.max_steps;
        let mut best: Option<Solved> = None;
        let (mut patience, mut oscillated) = (Patience::default(), false);
        let (mut mixing, mut watch) = (self.mixing(), StepWatch::default());
        let (mut previous, mut taken) = (f64::INFINITY, 0);
        for step in 1..=max_steps {
            taken = step;
            let seen = self.evaluate(sample, 0..sample.tiles(), &iterate)?;
            let measured = seen.measured;
            progress(FitProgress { phase: FitPhase::Whole, step, max_steps, residuals: measured.residuals });
            let settled = self.criterion().judge(&measured, 0.0) != Verdict::Open;
            let measure = self.criterion().error(&measured.residuals) + self.criterion().ess_error(&measured);
            let image = self.image(&iterate, &seen, patience.rates());
            watch.see(&iterate.harm, &image.harm, self.harm.masses());
            let better = settled || best.as_ref().is_none_or(|best| measure < best.measure);
            if !better && step - patience.last_better >= STALL_STEPS {
                if patience.halvings() == MAX_HALVINGS {
                    break;
                }
                let unstable = self.options.push > 0.0 && (watch.turns_back() || self.stability(sample, &iterate, &seen.scores)? >= 1.0);
                oscillated |= unstable;
                if unstable || (self.options.push > 0.0 && measured.residuals.harm >= measured.residuals.safe) {
                    patience.harm_halvings += 1;
                } else {
                    patience.safe_halvings += 1;
                }
                patience.last_better = step;
                watch.restart();
                mixing.restart();
                // What came after the best iterate led nowhere.
                if let Some(best) = &best {
                    (iterate, previous) = (best.iterate.clone(), best.measure);
                    continue;
                }
            } else if measure > MIXING_PATIENCE * previous {
                mixing.restart();
            }
            previous = measure;
            if better {
                best = Some(Solved { iterate: iterate.clone(), pass: seen.pass, measured, measure, steps: 0, halvings: 0, oscillated });
                patience.last_better = step;
            }
            if settled {
                break;
            }
            iterate = self.unpack(&mixing.propose(&self.pack(&iterate), self.pack(&image)), &image);
        }
        let best = best.ok_or_else(|| Error::Internal("a fit without a step".into()))?;
        Ok(Solved { steps: taken, halvings: patience.halvings(), oscillated, ..best })
    }

    /// σ of the push side at an iterate, on the first rows of the sample.
    fn stability(&self, sample: &SampleTiles<'_>, iterate: &Iterate, scores: &[f64]) -> Result<f64> {
        let few = &scores[..scores.len().min(STABILITY_ROWS)];
        let lowest = few.iter().copied().fold(f64::INFINITY, f64::min);
        let weights: Vec<f64> = few.iter().map(|s| ((lowest - s) / iterate.tau).exp()).collect();
        let (_, harm) = self.transforms(&iterate.safe, &iterate.harm);
        let plan = sample.harm_responsibilities(few.len(), &harm, self.harm.len())?;
        let kappa = Coupling::new(plan, self.harm.len(), &weights).second_eigenvalue();
        Ok(push_stability(kappa, self.options.push, iterate.tau, self.epsilon, self.options.slack))
    }

    /// One plain step of both potentials and τ, each side's rate multiplied by its factor.
    fn image(&self, at: &Iterate, seen: &Evaluation, (safe_factor, harm_factor): (f64, f64)) -> Iterate {
        let mut next = Iterate { tau: seen.next_tau, ..at.clone() };
        let safe_rate = safe_factor * safe_step(self.epsilon, at.tau);
        sinkhorn_step(&mut next.safe, &seen.pass.safe.mass, self.safe.masses(), self.epsilon, self.kappa, safe_rate);
        sinkhorn_step(&mut next.harm, &seen.pass.harm.mass, self.harm.masses(), self.epsilon, self.kappa, HARM_STEP * harm_factor);
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
            solved.measured.residuals = self.residuals(&solved.iterate, &solved.pass);
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
