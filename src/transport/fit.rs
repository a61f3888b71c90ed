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
//! See `solver` for the steps; this file checks what comes in, derives the automatic options, splits the sample and writes the
//! report. The split is for judging: a first solution without the held-out rows is measured on them, then the fit goes on over
//! all rows of the sample, so that a corpus that fits the sample gets the weights of its own optimum.
//!
//! Memory: the cost cache, the shuffled order and a dozen numbers a row.

use ndarray::ArrayView2;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::cost::{PackedReferences, check_rows, mean_cost};
use super::coverage::{Coverage, coverage};
use super::dual::{centre, damping};
use super::model::TransportModel;
use super::options::{AUTO_EPSILON_PER_COST, AUTO_PRIOR_PER_COST, Auto, HELD_OUT_MIN_SAMPLE, MAX_EPSILON, MIN_EPSILON, TransportOptions};
use super::prior::Prior;
use super::references::ReferenceSet;
use super::report::{Fit, FitProgress, FitReport, MeanTerms, Residuals, TransportCosts};
use super::sample::{SampleTiles, pack, prior_terms};
use super::solver::{Iterate, Problem, Solved};
use crate::error::{Error, Result};

/// Fits a model to a sample of the corpus.
///
/// `sample` holds one unit (or zero) vector a row. `warm` takes the potentials of an earlier fit with the same references and
/// skips the online phase. `progress` is called after every step. The result is the same for any number of threads; it depends
/// on the order of the rows only through the seeded shuffle.
///
/// # Errors
/// [`Error::InvalidOption`] where an option is out of its range, the sample is empty or has other dimensions than the references,
/// a row (named by its index) isn't a finite unit or zero vector, or warm potentials don't have the references' lengths;
/// [`Error::References`] where the two sets differ in dimensions. Not converging isn't an error: see
/// [`FitReport::converged`].
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
    let packed = pack(safe, harm);
    let problem_over = |order: &[usize]| Problem {
        safe,
        harm,
        options,
        epsilon,
        kappa: damping(options.slack, epsilon),
        prior_terms: prior_terms(sample, order, &prior),
    };
    let problem = problem_over(&fit_order);
    let mut start = Iterate { safe: vec![0.0; safe.len()], harm: vec![0.0; harm.len()], tau: epsilon };
    let mut online_steps = 0;
    // Without transport there is nothing to start from: every potential is 0.
    if let Some((warm_safe, warm_harm)) = warm.filter(|_| problem.kappa > 0.0) {
        start.safe.copy_from_slice(warm_safe);
        start.harm.copy_from_slice(warm_harm);
        centre(&mut start.safe, safe.masses());
        centre(&mut start.harm, harm.masses());
    }
    let solve = |problem: &Problem<'_>,
                 order: &[usize],
                 mut start: Iterate,
                 online: Option<&mut u64>,
                 last: bool,
                 progress: &mut dyn FnMut(FitProgress)| {
        let tiles = SampleTiles::try_new(sample, order, &packed.0, &packed.1, options.cost_cache_bytes)?;
        if let Some(steps) = online {
            start.tau = problem.first_tau(&tiles, &start)?;
            if warm.is_none() {
                *steps = problem.online(&tiles, &mut start, progress)?;
            }
        }
        let mut solved = problem.whole_sample(&tiles, start, progress)?;
        let costs = if last { problem.transport_costs(&tiles, &mut solved, progress)? } else { TransportCosts::default() };
        let covered = if last { coverage(&tiles, safe, harm, mean_cost)? } else { Coverage::default() };
        Ok::<_, Error>((solved, costs, covered))
    };
    let (mut solved, mut transport_cost, mut covered) =
        solve(&problem, &fit_order, start, Some(&mut online_steps), held_out_order.is_empty(), progress)?;
    let held_out = HeldOut::measure(&problem, sample, &held_out_order, (&packed.0, &packed.1), &prior, &solved)?;
    if !held_out_order.is_empty() {
        // The held-out rows have said what they can; rows of the corpus that no step used would have heavier tails than the rest.
        let order: Vec<usize> = fit_order.iter().chain(&held_out_order).copied().collect();
        let steps = solved.steps;
        (solved, transport_cost, covered) = solve(&problem_over(&order), &order, solved.iterate, None, true, progress)?;
        solved.steps += steps;
    }
    let rows = sample.nrows() as f64;
    let log_z = solved.pass.log_mass - rows.ln();
    let mean = |terms: &[f64]| terms.iter().sum::<f64>() / terms.len().max(1) as f64;
    let mean_prior = mean(&prior_terms(sample, &(0..sample.nrows()).collect::<Vec<_>>(), &prior));
    let report = FitReport {
        rows: sample.nrows(),
        held_out_rows: held_out_order.len(),
        steps: solved.steps,
        online_steps,
        converged: solved.converged,
        why_not: solved.why_not,
        residuals: solved.residuals,
        held_out: held_out.residuals,
        held_out_noise: held_out.noise,
        ess: solved.ess,
        mean_weight: (solved.pass.log_mass - log_z).exp() / rows,
        mean_cost,
        transport_cost,
        mean_terms: Some(MeanTerms { pull: mean(&solved.pass.pull), push: mean(&solved.pass.push), prior: mean_prior }),
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
    Ok(Fit { model, report, coverage: covered })
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

/// What the held-out rows say.
struct HeldOut {
    residuals: Option<Residuals>,
    noise: Option<Residuals>,
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
            return Ok(Self { residuals: None, noise: None });
        }
        let tiles = SampleTiles::try_new(sample, order, packed_safe, packed_harm, 0)?;
        let terms = prior_terms(sample, order, prior);
        let (safe, harm) = problem.transforms(&solved.iterate.safe, &solved.iterate.harm);
        let pass = tiles.pass(0..tiles.tiles(), &safe, &harm, problem.closed(solved.iterate.tau, &terms), true)?;
        let noise =
            Residuals { safe: pass.safe.expected_noise(problem.safe.masses()), harm: pass.harm.expected_noise(problem.harm.masses()) };
        Ok(Self { residuals: Some(problem.residuals(&solved.iterate, &pass)), noise: Some(noise) })
    }
}
