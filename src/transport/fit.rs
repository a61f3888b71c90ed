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
//! See `solver` for the steps; this file checks what comes in, derives the automatic options, splits the sample, has the finished
//! model certified and writes the report. The split is for judging: a first solution without the held-out rows is measured on them, then the fit goes on over
//! all rows of the sample, so that a corpus that fits the sample gets the weights of its own optimum.
//!
//! Memory: the cost cache, the shuffled order and a dozen numbers a row.

use ndarray::ArrayView2;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::certificate::Certificate;
use super::convergence::{CERTIFICATE_ROUNDING, Criterion, Ending, Measured, Verdict};
use super::cost::{PackedReferences, check_rows, mean_cost};
use super::coverage::{Coverage, coverage};
use super::dual::{centre, damping};
use super::model::TransportModel;
use super::options::{AUTO_EPSILON_PER_COST, AUTO_PRIOR_PER_COST, Auto, HELD_OUT_MIN_SAMPLE, TransportOptions};
use super::prior::{PRIOR_INVERSE_PENALTY, Prior, prior_terms};
use super::references::ReferenceSet;
use super::report::{Fit, FitProgress, FitReport, MeanTerms, Residuals, TransportCosts};
use super::sample::{SampleTiles, pack};
use super::select::{Selection, epsilon_of, select};
use super::solver::{Iterate, Problem, Solved};
use super::weight::RowWeight;
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
    fit_with(None, sample, safe, harm, options, warm, progress)
}

/// As [`fit()`], with a prior that is given and not learned: strength, penalty and all.
pub(super) fn fit_with(
    prior: Option<&Prior>,
    sample: ArrayView2<'_, f32>,
    safe: &ReferenceSet,
    harm: &ReferenceSet,
    options: &TransportOptions,
    warm: Option<(&[f64], &[f64])>,
    progress: &mut dyn FnMut(FitProgress),
) -> Result<Fit> {
    options.validate()?;
    check_inputs(sample, safe, harm, warm)?;
    let (mut order, held_out_order) = split(sample.nrows(), options);
    let resolved = resolve(options, sample, &order, (safe, harm), prior)?;
    let packed = pack(safe, harm);
    let prior_terms = prior_terms(sample, &resolved.prior, (&packed.0, &packed.1))?;
    let fitting = Fitting { sample, safe, harm, options, resolved, packed, prior_terms };
    let start = warm.map_or(Start::Cold, |(safe, harm)| Start::Warm(safe, harm));
    let mut solution = fitting.solve(&order, start, held_out_order.is_empty(), progress)?;
    let held_out = fitting.held_out(&held_out_order, &solution.solved)?;
    if !held_out_order.is_empty() {
        // The held-out rows have said what they can; rows of the corpus that no step used would have heavier tails than the rest.
        order.extend(&held_out_order);
        let first = solution.history;
        solution = fitting.solve(&order, Start::At(solution.solved.iterate), true, progress)?;
        solution.history.add(&first);
    }
    fitting.finish(&order, solution, held_out)
}

/// What the options come to for one sample: the numbers that `auto` stands for.
struct Resolved {
    /// ε.
    epsilon: f64,
    /// The prior with its strength β; none where that is 0.
    prior: Prior,
    /// Mean cost between sample and references.
    mean_cost: f64,
    /// What cross-validation chose, where it was asked.
    selection: Option<Selection>,
}

/// Puts numbers where the options say `auto`. `corpus` are the rows that may be learned from.
fn resolve(
    options: &TransportOptions,
    sample: ArrayView2<'_, f32>,
    corpus: &[usize],
    (safe, harm): (&ReferenceSet, &ReferenceSet),
    given: Option<&Prior>,
) -> Result<Resolved> {
    let mean_cost = mean_cost(sample, safe, harm);
    let selection = select(options, mean_cost, sample, corpus, safe, harm)?;
    let (epsilon_per_cost, prior_per_cost, inverse_penalty) = selection
        .map_or((AUTO_EPSILON_PER_COST, AUTO_PRIOR_PER_COST, PRIOR_INVERSE_PENALTY), |chosen| {
            (chosen.epsilon_per_cost, chosen.prior_per_cost, chosen.inverse_penalty)
        });
    let epsilon = match options.epsilon {
        Auto::Auto => epsilon_of(epsilon_per_cost, mean_cost),
        Auto::Fixed(value) => value,
    };
    let strength = match options.prior {
        Auto::Auto => (prior_per_cost * mean_cost).max(0.0),
        Auto::Fixed(value) => value,
    };
    let inverse_penalty = match options.inverse_penalty {
        Auto::Auto => inverse_penalty,
        Auto::Fixed(value) => value,
    };
    // A prior that counts for nothing isn't worth a regression.
    let prior = match (given, strength) {
        (Some(prior), _) => prior.clone(),
        (None, 0.0) => Prior::none(safe.len(), harm.len()),
        _ => Prior::fit(safe, harm, (sample, corpus), inverse_penalty, strength)?,
    };
    Ok(Resolved { epsilon, prior, mean_cost, selection })
}

/// Where a solution starts.
enum Start<'a> {
    /// From potentials of 0, by the online phase.
    Cold,
    /// From the safe and harmful potentials of an earlier fit, without the online phase.
    Warm(&'a [f64], &'a [f64]),
    /// From an earlier solution, over other rows.
    At(Iterate),
}

/// The steps behind a solution, over all its stages.
#[derive(Clone, Copy, Default)]
struct History {
    steps: usize,
    online_steps: u64,
    halvings: u32,
    oscillated: bool,
}

impl History {
    fn add(&mut self, earlier: &Self) {
        self.steps += earlier.steps;
        self.online_steps += earlier.online_steps;
        self.halvings += earlier.halvings;
        self.oscillated |= earlier.oscillated;
    }
}

/// A solution over some rows of the sample.
struct Solution {
    solved: Solved,
    history: History,
    costs: TransportCosts,
    coverage: Coverage,
}

/// Everything that stays the same during a fit.
struct Fitting<'a> {
    sample: ArrayView2<'a, f32>,
    safe: &'a ReferenceSet,
    harm: &'a ReferenceSet,
    options: &'a TransportOptions,
    resolved: Resolved,
    packed: (PackedReferences, PackedReferences),
    /// `β · h` of every row of the sample.
    prior_terms: Vec<f64>,
}

impl Fitting<'_> {
    /// The problem over these rows of the sample.
    fn problem(&self, order: &[usize]) -> Problem<'_> {
        Problem {
            safe: self.safe,
            harm: self.harm,
            options: self.options,
            epsilon: self.resolved.epsilon,
            kappa: damping(self.options.slack, self.resolved.epsilon),
            prior_terms: order.iter().map(|row| self.prior_terms[*row]).collect(),
        }
    }

    /// Solves over these rows, and where this is the last stage measures the transport costs.
    fn solve(&self, order: &[usize], start: Start<'_>, last: bool, progress: &mut dyn FnMut(FitProgress)) -> Result<Solution> {
        let problem = self.problem(order);
        let tiles = SampleTiles::try_new(self.sample, order, &self.packed.0, &self.packed.1, self.options.cost_cache_bytes)?;
        let (iterate, online_steps) = self.begin(&problem, &tiles, start, progress)?;
        let mut solved = problem.whole_sample(&tiles, iterate, progress)?;
        let (mut costs, mut covered) = (TransportCosts::default(), Coverage::default());
        if last {
            costs = problem.transport_costs(&tiles, &mut solved, progress)?;
            covered = coverage(&tiles, self.safe, self.harm, self.resolved.mean_cost)?;
        }
        let history = History { steps: solved.steps, online_steps, halvings: solved.halvings, oscillated: solved.oscillated };
        Ok(Solution { solved, history, costs, coverage: covered })
    }

    /// The iterate that whole-sample steps start from, and the online steps that led there.
    fn begin(
        &self,
        problem: &Problem<'_>,
        tiles: &SampleTiles<'_>,
        start: Start<'_>,
        progress: &mut dyn FnMut(FitProgress),
    ) -> Result<(Iterate, u64)> {
        let mut iterate = Iterate { safe: vec![0.0; self.safe.len()], harm: vec![0.0; self.harm.len()], tau: self.resolved.epsilon };
        let cold = match start {
            Start::At(iterate) => return Ok((iterate, 0)),
            Start::Cold => true,
            Start::Warm(safe, harm) => {
                // Without transport there is nothing to start from: every potential is 0.
                if problem.kappa > 0.0 {
                    iterate.safe.copy_from_slice(safe);
                    iterate.harm.copy_from_slice(harm);
                    centre(&mut iterate.safe, self.safe.masses());
                    centre(&mut iterate.harm, self.harm.masses());
                }
                false
            }
        };
        iterate.tau = problem.first_tau(tiles, &iterate)?;
        let online_steps = if cold { problem.online(tiles, &mut iterate, progress)? } else { 0 };
        Ok((iterate, online_steps))
    }

    /// What the held-out rows say about a solution that did without them.
    fn held_out(&self, order: &[usize], solved: &Solved) -> Result<HeldOut> {
        if order.is_empty() {
            return Ok(HeldOut { rows: 0, residuals: None, noise: None });
        }
        let problem = self.problem(order);
        let tiles = SampleTiles::try_new(self.sample, order, &self.packed.0, &self.packed.1, 0)?;
        let (safe, harm) = problem.transforms(&solved.iterate.safe, &solved.iterate.harm);
        let weighting = problem.closed(solved.iterate.tau, &problem.prior_terms);
        let pass = tiles.pass(0..tiles.tiles(), &safe, &harm, weighting, true)?;
        let noise = Residuals { safe: pass.safe.expected_noise(self.safe.masses()), harm: pass.harm.expected_noise(self.harm.masses()) };
        Ok(HeldOut { rows: order.len(), residuals: Some(problem.residuals(&solved.iterate, &pass)), noise: Some(noise) })
    }

    /// The model, its certificate and the report. `order` holds every row of the sample.
    fn finish(&self, order: &[usize], solution: Solution, held_out: HeldOut) -> Result<Fit> {
        let Solution { solved, history, costs, coverage } = solution;
        let mean = |terms: &[f64]| terms.iter().sum::<f64>() / terms.len().max(1) as f64;
        let rows = self.sample.nrows();
        let log_z = solved.pass.log_mass - (rows as f64).ln();
        let model = TransportModel::try_new(TransportModel {
            safe: self.safe.clone(),
            harm: self.harm.clone(),
            safe_potential: solved.iterate.safe.clone(),
            harm_potential: solved.iterate.harm.clone(),
            prior: self.resolved.prior.clone(),
            epsilon: self.resolved.epsilon,
            push: self.options.push,
            tau: solved.iterate.tau,
            log_z,
            slack: self.options.slack,
        })?;
        let certificate = Certificate::measure(&model, self.sample, order, self.options.temperature)?;
        let why_not = self.why_not(&certificate, &solved, history.oscillated);
        let report = FitReport {
            rows,
            held_out_rows: held_out.rows,
            steps: history.steps,
            online_steps: history.online_steps,
            converged: why_not.is_none(),
            why_not,
            oscillated: history.oscillated,
            halvings: history.halvings,
            residuals: solved.measured.residuals,
            held_out: held_out.residuals,
            held_out_noise: held_out.noise,
            ess: solved.measured.ess,
            mean_weight: (solved.pass.log_mass - log_z).exp() / rows as f64,
            mean_cost: self.resolved.mean_cost,
            selection: self.resolved.selection,
            transport_cost: costs,
            certificate,
            mean_terms: Some(MeanTerms { pull: mean(&solved.pass.pull), push: mean(&solved.pass.push), prior: mean(&self.prior_terms) }),
        };
        Ok(Fit { model, report, coverage })
    }

    /// The verdict on what the certificate measured: None where the fit has converged.
    fn why_not(&self, certificate: &Certificate, solved: &Solved, oscillated: bool) -> Option<String> {
        let criterion = Criterion { options: self.options };
        let measured = Measured {
            residuals: certificate.residuals,
            ess: certificate.ess,
            reachable: solved.measured.reachable,
            finite: certificate.is_finite(),
        };
        let ending = Ending {
            steps: solved.steps,
            epsilon: self.resolved.epsilon,
            tau: solved.iterate.tau,
            oscillated,
            stability: certificate.stability,
            joint_rate: certificate.joint_rate,
        };
        let converged = criterion.judge(&measured, CERTIFICATE_ROUNDING) == Verdict::Converged;
        (!converged).then(|| criterion.why_not(&measured, &ending))
    }
}

/// Measures a finished model anew, on other rows than it was fitted on: certificate, coverage, and means of the score's terms.
pub(super) fn measure_again(fitted: &mut Fit, rows: ArrayView2<'_, f32>, options: &TransportOptions) -> Result<()> {
    let model = &fitted.model;
    let (order, held_out) = split(rows.nrows(), options);
    let order: Vec<usize> = order.into_iter().chain(held_out).collect();
    fitted.report.certificate = Certificate::measure(model, rows, &order, options.temperature)?;
    let packed = pack(&model.safe, &model.harm);
    let tiles = SampleTiles::try_new(rows, &order, &packed.0, &packed.1, 0)?;
    fitted.coverage = coverage(&tiles, &model.safe, &model.harm, fitted.report.mean_cost)?;
    let weighed = model.weigh(rows)?;
    let mean = |of: fn(&RowWeight) -> f32| weighed.iter().map(|row| f64::from(of(row))).sum::<f64>() / weighed.len().max(1) as f64;
    fitted.report.mean_terms = Some(MeanTerms { pull: mean(|row| row.pull), push: mean(|row| row.push), prior: mean(|row| row.prior) });
    Ok(())
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
    rows: usize,
    residuals: Option<Residuals>,
    noise: Option<Residuals>,
}
