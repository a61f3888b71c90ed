//! In: a sample of rows, both reference sets, options. Out: a [`Fit`].
//!
//! The fit solves (Wang et al. 2026, arXiv 2601.07200, with a KL regulariser)
//!
//! ```text
//! min over w    OT_ε(P_w, safe) − λ OT_ε(P_w, harm) + τ KL(w ‖ ũ),        ũ_i ∝ exp(−β h(x_i)/τ)
//! ```
//!
//! through its two dual potentials alone: for given potentials the optimal `w` is known in closed form (see `weight`), so each
//! step weighs the rows, looks at both marginals and moves **both** potentials. Solving each transport problem for a fixed `w`
//! and then moving `w` oscillates; this doesn't.
//!
//! 1. *Online*: minibatches in a seeded order, rate `t^−0.6`, averaged potentials (Mensch and Peyré 2020). Skipped where warm
//!    potentials are given: its first steps would undo them.
//! 2. *Whole sample*: from the averaged potentials, full steps for the safe side and half steps for the harmful side, whose
//!    term is concave in `w`. A safe step is damped by `2/(1 + ε/τ)` where τ < ε: there the weights answer a move of the
//!    potential more strongly than the plan does and a full step would overshoot. τ follows the effective sample size in the
//!    same loop.
//! 3. *Stall*: where the error hasn't improved for [`STALL_STEPS`] steps the steps are halved, at most [`MAX_HALVINGS`] times,
//!    and then the fit stops and says why. The potentials returned are those with the smallest error seen.
//!
//! Memory: the cost cache, the shuffled order and a dozen numbers a row.

use ndarray::ArrayView2;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::acceleration::Anderson;
use super::cost::{PackedReferences, TILE_ROWS, check_rows, mean_cost};
use super::dual::{DualState, centre, damping, online_rate, online_step, residual, sinkhorn_step};
use super::model::TransportModel;
use super::options::{
    AUTO_EPSILON_PER_COST, AUTO_PRIOR_PER_COST, Auto, HELD_OUT_MIN_SAMPLE, MAX_EPSILON, MIN_EPSILON, Temperature, TransportOptions,
};
use super::potential::SoftTransform;
use super::prior::Prior;
use super::references::ReferenceSet;
use super::report::{BeforeAfter, Fit, FitPhase, FitProgress, FitReport, Residuals, TransportCosts};
use super::sample::{Pass, SampleTiles, Weighting, pack, prior_terms};
use super::temperature::{effective_fraction, solve_effective_fraction};
use super::weight::score;
use crate::error::{Error, Result};

/// Relaxation of the harmful side's whole-sample step.
const HARM_STEP: f64 = 0.5;
/// Steps without a better error before the steps are halved.
const STALL_STEPS: usize = 12;
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

/// Fits a model to a sample of the corpus.
///
/// `sample` holds one unit (or zero) vector a row. `warm` takes the potentials of an earlier fit with the same references and
/// skips the online phase. `progress` is called after every step. The result is the same for any number of threads; it depends
/// on the order of the rows only through the seeded shuffle.
///
/// # Errors
/// [`Error::InvalidOption`] where an option is out of its range, the sample is empty, dimensions differ, a row (named by its
/// index) isn't a finite unit or zero vector, or warm potentials don't have the references' lengths. Not converging isn't an
/// error: see [`FitReport::converged`].
pub fn fit(
    sample: ArrayView2<'_, f32>,
    safe: &ReferenceSet,
    harm: &ReferenceSet,
    options: &TransportOptions,
    warm: Option<(&[f64], &[f64])>,
    progress: &mut dyn FnMut(FitProgress),
) -> Result<Fit> {
    options.validate()?;
    check_inputs(sample, safe, harm, warm)?;
    let mean_cost = mean_cost(sample, safe, harm);
    let epsilon = match options.epsilon {
        Auto::Auto => (AUTO_EPSILON_PER_COST * mean_cost).clamp(MIN_EPSILON, MAX_EPSILON),
        Auto::Fixed(value) => value,
    };
    let strength = match options.prior {
        Auto::Auto => (AUTO_PRIOR_PER_COST * mean_cost).max(0.0),
        Auto::Fixed(value) => value,
    };
    // A prior that counts for nothing isn't worth a regression.
    let prior = if strength == 0.0 { Prior::none(safe.dims()) } else { Prior::fit(safe, harm, strength) };

    let (fit_order, held_out_order) = split(sample.nrows(), options);
    let (packed_safe, packed_harm) = pack(safe, harm);
    let tiles = SampleTiles::try_new(sample, &fit_order, &packed_safe, &packed_harm, options.cost_cache_bytes)?;
    let problem = Problem {
        safe,
        harm,
        options,
        epsilon,
        kappa: damping(options.slack, epsilon),
        prior_terms: prior_terms(sample, &fit_order, &prior),
    };

    let mut start = Iterate { safe: vec![0.0; safe.len()], harm: vec![0.0; harm.len()], tau: epsilon };
    let mut online_steps = 0;
    if let Some((warm_safe, warm_harm)) = warm {
        start.safe.copy_from_slice(warm_safe);
        start.harm.copy_from_slice(warm_harm);
        centre(&mut start.safe, safe.masses());
        centre(&mut start.harm, harm.masses());
    }
    start.tau = problem.first_tau(&tiles, &start)?;
    if warm.is_none() {
        online_steps = problem.online(&tiles, &mut start, progress)?;
    }
    let mut solved = problem.whole_sample(&tiles, start, progress)?;

    let transport_cost = problem.transport_costs(&tiles, &mut solved, progress)?;
    let held_out = HeldOut::measure(&problem, sample, &held_out_order, (&packed_safe, &packed_harm), &prior, &solved)?;
    let rows = sample.nrows() as f64;
    // Both masses are sums of exp(−score/τ); the larger one is factored out so that neither overflows.
    let largest = solved.pass.log_mass.max(held_out.log_mass);
    let log_z = largest + ((solved.pass.log_mass - largest).exp() + (held_out.log_mass - largest).exp()).ln() - rows.ln();
    let total = (solved.pass.log_mass - log_z).exp() + (held_out.log_mass - log_z).exp();
    let report = FitReport {
        rows: sample.nrows(),
        fit_rows: fit_order.len(),
        held_out_rows: held_out_order.len(),
        steps: solved.steps,
        online_steps,
        converged: solved.why_not.is_none(),
        why_not: solved.why_not,
        residuals: solved.residuals,
        held_out: held_out.residuals,
        held_out_noise: held_out.noise,
        ess: solved.ess,
        mean_weight: total / rows,
        mean_cost,
        transport_cost,
    };
    let model = TransportModel::try_new(TransportModel {
        safe: safe.clone(),
        harm: harm.clone(),
        safe_potential: solved.iterate.safe,
        harm_potential: solved.iterate.harm,
        prior,
        epsilon,
        push: options.push,
        tau: solved.iterate.tau,
        log_z,
        slack: options.slack,
    })?;
    Ok(Fit { model, report })
}

fn check_inputs(sample: ArrayView2<'_, f32>, safe: &ReferenceSet, harm: &ReferenceSet, warm: Option<(&[f64], &[f64])>) -> Result<()> {
    if safe.dims() != harm.dims() {
        return Err(Error::References {
            location: "harm".into(),
            reason: format!("{} dimensions but the safe references have {}; embed both alike", harm.dims(), safe.dims()),
        });
    }
    if sample.nrows() == 0 {
        return Err(Error::InvalidOption { name: "rows".into(), reason: "the sample is empty; at least one row is needed".into() });
    }
    check_rows(sample, safe.dims())?;
    if let Some((warm_safe, warm_harm)) = warm {
        let fits = warm_safe.len() == safe.len() && warm_harm.len() == harm.len();
        if !fits || warm_safe.iter().chain(warm_harm).any(|g| !g.is_finite()) {
            return Err(Error::InvalidOption {
                name: "warm".into(),
                reason: format!(
                    "needs {} and {} finite potentials, found {} and {}; start cold where the references have changed",
                    safe.len(),
                    harm.len(),
                    warm_safe.len(),
                    warm_harm.len()
                ),
            });
        }
    }
    Ok(())
}

/// Row indices of the fit part, shuffled by the seed, and of the held-out part.
fn split(rows: usize, options: &TransportOptions) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..rows).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(options.seed));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction in [0, 0.5] of a row count")]
    let held_out = if rows < HELD_OUT_MIN_SAMPLE { 0 } else { (rows as f64 * options.held_out).round() as usize };
    let held_out = order.split_off(rows - held_out);
    (order, held_out)
}

/// What a step moves.
#[derive(Clone, Debug)]
struct Iterate {
    safe: Vec<f64>,
    harm: Vec<f64>,
    tau: f64,
}

/// The best iterate and what was measured there.
struct Solved {
    iterate: Iterate,
    pass: Pass,
    residuals: Residuals,
    ess: f64,
    /// What the loop brings down: the marginal error plus the effective size's.
    measure: f64,
    steps: usize,
    why_not: Option<String>,
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

struct Problem<'a> {
    safe: &'a ReferenceSet,
    harm: &'a ReferenceSet,
    options: &'a TransportOptions,
    epsilon: f64,
    kappa: f64,
    prior_terms: Vec<f64>,
}

impl Problem<'_> {
    fn transforms(&self, safe: &[f64], harm: &[f64]) -> (SoftTransform, SoftTransform) {
        (SoftTransform::new(self.safe.masses(), safe, self.epsilon), SoftTransform::new(self.harm.masses(), harm, self.epsilon))
    }

    fn closed<'b>(&self, tau: f64, prior: &'b [f64]) -> Weighting<'b> {
        Weighting::Closed { push: self.options.push, tau, prior }
    }

    fn residuals(&self, iterate: &Iterate, pass: &Pass) -> Residuals {
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

    fn evaluate(&self, sample: &SampleTiles<'_>, tiles: std::ops::Range<usize>, iterate: &Iterate) -> Result<Evaluation> {
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
    fn first_tau(&self, sample: &SampleTiles<'_>, start: &Iterate) -> Result<f64> {
        match self.options.temperature {
            Temperature::Fixed(tau) => Ok(tau),
            Temperature::Ess(_) => Ok(self.evaluate(sample, 0..sample.tiles().min(64), start)?.next_tau),
        }
    }

    /// Phase 1. Leaves averaged potentials in `iterate`.
    fn online(&self, sample: &SampleTiles<'_>, iterate: &mut Iterate, progress: &mut dyn FnMut(FitProgress)) -> Result<u64> {
        let batch = self.options.minibatch_rows.div_ceil(TILE_ROWS);
        let per_epoch = sample.tiles().div_ceil(batch);
        let mut state = DualState::new(iterate.safe.clone(), iterate.harm.clone(), 0);
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
    fn whole_sample(&self, sample: &SampleTiles<'_>, mut iterate: Iterate, progress: &mut dyn FnMut(FitProgress)) -> Result<Solved> {
        let TransportOptions { threshold, max_steps, .. } = *self.options;
        let mut best: Option<Solved> = None;
        let (mut last_better, mut halvings) = (0, 0u32);
        let mut mixing = self.mixing();
        let mut previous = f64::INFINITY;
        for step in 1..=max_steps {
            let seen = self.evaluate(sample, 0..sample.tiles(), &iterate)?;
            progress(FitProgress { phase: FitPhase::Whole, step, max_steps, residuals: seen.residuals });
            let (error, ess_error) = (self.error(&seen.residuals), self.ess_error(&seen));
            let measure = error + ess_error;
            // An effective size that no τ gives can only be reported; waiting for it would be waiting for ever.
            let settled = error < threshold && ess_error <= ESS_TOLERANCE;
            let converged = settled && seen.reachable;
            let mut image_of = (seen.pass.safe.mass.clone(), seen.pass.harm.mass.clone(), seen.next_tau);
            if settled || best.as_ref().is_none_or(|best| measure < best.measure) {
                let why_not = (!converged).then(|| self.why_not(&seen, iterate.tau, halvings));
                let Evaluation { pass, residuals, ess, .. } = seen;
                best = Some(Solved { iterate: iterate.clone(), pass, residuals, ess, measure, steps: step, why_not });
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
                if let Some(best) = &best {
                    iterate = best.iterate.clone();
                    image_of = (best.pass.safe.mass.clone(), best.pass.harm.mass.clone(), iterate.tau);
                }
            } else if measure > MIXING_PATIENCE * previous {
                mixing.restart();
            }
            previous = measure;
            let shrink = 0.5f64.powi(i32::try_from(halvings).unwrap_or(0));
            let image = self.image(&iterate, &image_of.0, &image_of.1, image_of.2, shrink);
            iterate = self.unpack(&mixing.propose(&self.pack(&iterate), self.pack(&image)), &image);
        }
        best.ok_or_else(|| Error::Internal("a fit without a step".into()))
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
        let safe_rate = safe_shrink * (2.0 / (1.0 + self.epsilon / at.tau)).min(1.0);
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

    /// What stands between this iterate and convergence, and what to change.
    fn why_not(&self, seen: &Evaluation, tau: f64, halvings: u32) -> String {
        let Evaluation { residuals, ess, reachable, .. } = seen;
        let TransportOptions { threshold, max_steps, push, .. } = *self.options;
        if let (Temperature::Ess(target), false) = (self.options.temperature, *reachable) {
            return format!(
                "no temperature gives an effective sample size of {target} (reached {ess:.4}): too many rows score alike; \
                 check the sample for duplicate or empty rows, or set a fixed `temperature`"
            );
        }
        let epsilon = self.epsilon;
        if push > 0.0 && residuals.harm >= threshold && (residuals.harm > residuals.safe || halvings > 0) {
            return format!(
                "the push side has a marginal error of {:.2e} (threshold {threshold:.0e}) with push {push}, temperature {tau:.4} \
                 and epsilon {epsilon:.4}: lower `push`, raise `temperature` (or its `ess`) or raise `epsilon`; `max_steps` is \
                 {max_steps}",
                residuals.harm
            );
        }
        if residuals.safe >= threshold {
            return format!(
                "the safe side has a marginal error of {:.2e} (threshold {threshold:.0e}) with epsilon {epsilon:.4}: raise \
                 `max_steps` (now {max_steps}) or `epsilon`, or allow `slack` if no row is near some of the references",
                residuals.safe
            );
        }
        format!("the effective sample size is {ess:.4} and still moving: raise `max_steps` (now {max_steps})")
    }

    /// Balanced transport costs for even weights and for the fitted ones. Where nothing is pushed this also finishes the
    /// harmful potential, which the fit needn't wait for.
    fn transport_costs(
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

/// What the held-out rows say.
struct HeldOut {
    residuals: Option<Residuals>,
    noise: Option<Residuals>,
    /// Logarithm of the sum of unnormalised weights, −∞ for no row.
    log_mass: f64,
}

impl HeldOut {
    fn measure(
        problem: &Problem<'_>,
        sample: ArrayView2<'_, f32>,
        order: &[usize],
        (packed_safe, packed_harm): (&PackedReferences, &PackedReferences),
        prior: &Prior,
        solved: &Solved,
    ) -> Result<Self> {
        if order.is_empty() {
            return Ok(Self { residuals: None, noise: None, log_mass: f64::NEG_INFINITY });
        }
        let tiles = SampleTiles::try_new(sample, order, packed_safe, packed_harm, 0)?;
        let terms = prior_terms(sample, order, prior);
        let (safe, harm) = problem.transforms(&solved.iterate.safe, &solved.iterate.harm);
        let pass = tiles.pass(0..tiles.tiles(), &safe, &harm, problem.closed(solved.iterate.tau, &terms), true)?;
        let noise =
            Residuals { safe: pass.safe.expected_noise(problem.safe.masses()), harm: pass.harm.expected_noise(problem.harm.masses()) };
        Ok(Self { residuals: Some(problem.residuals(&solved.iterate, &pass)), noise: Some(noise), log_mass: pass.log_mass })
    }
}
