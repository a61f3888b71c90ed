//! In: what a fit measured. Out: the plain structs it reports, ready to be written as JSON.

use serde::{Deserialize, Serialize};

use super::certificate::Certificate;
use super::coverage::Coverage;
use super::model::TransportModel;
use super::select::Selection;

/// A fitted model and how the fit went. Not converging is a result, never an error: the model is usable either way.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The model, with the potentials of the step whose residuals are reported.
    pub model: TransportModel,
    /// How the fit went.
    pub report: FitReport,
    /// How much of each reference's mass the sample would serve as it is.
    pub coverage: Coverage,
}

/// One number a reference set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Residuals {
    /// Marginal error `‖p − q‖₁` of the safe references, in `[0, 2]`. With slack: distance to the relaxed optimum.
    pub safe: f64,
    /// The same of the harmful references.
    pub harm: f64,
}

/// Means over the sample, every row counted once, of the terms of a row's score: what a single row is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MeanTerms {
    /// Mean pull, in units of the cost.
    pub pull: f64,
    /// Mean push, in units of the cost.
    pub push: f64,
    /// Mean of `β · h`, in units of the cost.
    pub prior: f64,
}

/// Entropic transport cost before and after weighing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BeforeAfter {
    /// Of the rows as the corpus has them (every row weight 1).
    pub before: f64,
    /// Of the weighted rows.
    pub after: f64,
}

/// `OT_ε` of the sample to each reference set: `min ⟨P, C⟩ + ε KL(P ‖ a ⊗ q)`, the entropy taken relative to the product of
/// the marginals, by its semi-dual value `Σ_i a_i f(x_i; g) + Σ_j q_j g_j`. That value is a lower bound, off by a term of second
/// order in the marginal error. Always the balanced problem, also with slack, so that runs compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TransportCosts {
    /// To the safe references; weighing should lower it.
    pub safe: BeforeAfter,
    /// To the harmful references; weighing should raise it.
    pub harm: BeforeAfter,
}

/// How a fit went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Rows of the sample.
    pub rows: usize,
    /// Rows that a first solution did without, to be judged by `held_out`; the fit then goes on with them.
    pub held_out_rows: usize,
    /// Whole-sample steps taken, before and after the held-out rows joined.
    pub steps: usize,
    /// Minibatch steps taken before them.
    pub online_steps: u64,
    /// Whether, by the certificate, both residuals over the sample are below the threshold (the harmful one counts only where push > 0),
    /// the effective sample size is within 1e-3 of the one asked for, and every number is finite. Judged on the sample, because on
    /// held-out rows sampling noise alone is above any useful threshold for hundreds of references: compare `held_out` with
    /// `held_out_noise` for that.
    pub converged: bool,
    /// Where not converged: what happened and which option to change.
    pub why_not: Option<String>,
    /// Whether the push side was seen to oscillate or run away: the error stalled while its steps turned back on themselves, or while
    /// its stability number was 1 or above. A fit may still converge after it, with smaller steps.
    pub oscillated: bool,
    /// Times a side's step was halved because the error stalled.
    pub halvings: u32,
    /// Marginal errors over all rows of the sample, of the potentials in the model, as the solver saw them.
    pub residuals: Residuals,
    /// Marginal errors over the held-out rows, of the solution that no step used them for; None where none was held out.
    pub held_out: Option<Residuals>,
    /// What sampling noise alone would make of `held_out` for a perfect potential:
    /// `√(2/π) Σ_j √(Σ_i w_i² (π_ij − q_j)²)` over the held-out rows. A `held_out` well above it says the sample is too small.
    pub held_out_noise: Option<Residuals>,
    /// Effective sample size `(Σw)²/(N Σw²)` of the fit rows, in `(0, 1]`; the temperature aims at this.
    pub ess: f64,
    /// Mean weight over all rows of the sample: 1 up to rounding.
    pub mean_weight: f64,
    /// Mean cost between sample and references, which the automatic options scale with.
    pub mean_cost: f64,
    /// What cross-validation on the references chose; None where no option is `auto` or the references are too few.
    pub selection: Option<Selection>,
    /// The four transport costs.
    pub transport_cost: TransportCosts,
    /// The optimality conditions, measured on the finished model.
    pub certificate: Certificate,
    /// Means of the terms of the score over the sample; None before anything was measured.
    pub mean_terms: Option<MeanTerms>,
}

/// Where a fit is, for a progress display.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitProgress {
    /// What is being done.
    pub phase: FitPhase,
    /// Steps done in this phase.
    pub step: usize,
    /// Steps at most in this phase.
    pub max_steps: usize,
    /// Residuals of the last step: over its minibatch in the online phase, over all rows after it.
    pub residuals: Residuals,
}

/// The phases of a fit, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FitPhase {
    /// Online dual updates over minibatches.
    Online,
    /// Whole-sample steps until convergence.
    Whole,
    /// The transport costs before and after weighing.
    Costs,
}
