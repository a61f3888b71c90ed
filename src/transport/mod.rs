//! Push-pull optimal transport: rows of a corpus and two sets of references in, one weight a row out.
//!
//! **In**: unit vectors (a sample of the corpus for [`fit()`], any rows for [`TransportModel::weigh`]), safe and harmful
//! [`ReferenceSet`]s, [`TransportOptions`]. **Out**: a [`TransportModel`] with a [`FitReport`], and a [`RowWeight`] for every
//! row. Pure: no IO, no clock, no async; every random choice comes from the seed.
//!
//! **What is computed.** Weights that pull the corpus towards the safe references and push it away from the harmful ones (Wang
//! et al. 2026, arXiv 2601.07200), by entropic optimal transport (Cuturi 2013) with ground cost `1 − cos`, solved through dual
//! potentials on the references (Genevay et al. 2016) by an online update (Mensch and Peyré 2020), optionally with relaxed
//! reference marginals (Séjourné et al. 2019). No plan between rows and references is ever stored: a weight needs two small
//! vectors and a few numbers.
//!
//! **Conventions.** A potential `g` excludes `ε log q` (the mass stands inside the sum of the soft c-transform) and is centred,
//! `Σ_j q_j g_j = 0`. `pull` and `push` are transport *costs*: smaller is nearer, and a smaller `pull − λ·push + β·h` is a larger
//! weight. `OT_ε` has its entropy relative to the product of the marginals. A row weight is a density ratio with mean 1.
//!
//! **Guarantees.** A row's weight depends on the row and the model alone, to the bit, whatever the chunking, the order or the
//! number of threads. A fit is the same for any number of threads. (Two kinds of processor may differ in the last digits of
//! matrix products.) Nothing becomes NaN or infinite for finite input.
//!
//! **Memory.** Weighing: a copy of the references, and `128 × (dims + references) × 4` bytes a thread. Fitting: the sample, and costs up to
//! [`TransportOptions::cost_cache_bytes`].
//!
//! | file | noun |
//! |---|---|
//! | `references` | a discrete measure of unit vectors |
//! | `cost` | tiles of cosine similarities |
//! | `potential` | the soft c-transform of a row |
//! | `prior` | the learned prior h |
//! | `kernel` | its kernel, and features that multiply to it |
//! | `regression` | logistic regression on features |
//! | `dual` | steps of the dual potentials |
//! | `acceleration` | mixing of those steps |
//! | `temperature` | τ from an effective sample size |
//! | `calibration` | τ and log Z of scores that pass by several times |
//! | `weight` | a row's weight in closed form |
//! | `sample` | passes over the sample of a fit |
//! | `solver` | potentials and temperature of a sample |
//! | `oscillation` | steps that turn back on themselves |
//! | `stability` | the second-order condition of the push side |
//! | `convergence` | the verdict on a solution |
//! | `select` | ε, β and the penalty that cross-validation on the references chooses |
//! | `options`, `fit`, `report` | what a fit is told, does, and says |
//! | `observed` | what weighed rows say about the model |
//! | `certificate` | the optimality conditions of a finished fit |
//! | `coverage` | which references the sample's rows can serve |
//! | `neighbours` | the nearest reference of a reference |
//! | `similarity` | each row's similarities, for scores that need no model |
//! | `model` | a fitted model that weighs rows |
//! | `worst` | a fit on the most harmful of several readings of each row |
//! | `explain` | a row's weight taken apart |
//!
//! ```
//! use ndarray::array;
//! use pushpull::transport::{ReferenceSet, TransportOptions, fit};
//!
//! let safe = ReferenceSet::uniform(array![[1.0, 0.0], [0.8, 0.6]])?;
//! let harm = ReferenceSet::uniform(array![[0.0, 1.0]])?;
//! let sample = array![[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]];
//! let fitted = fit(sample.view(), &safe, &harm, &TransportOptions::default(), None, &mut |_| {})?;
//! let weights = fitted.model.weigh(sample.view())?;
//! assert!(weights[0].weight > weights[3].weight);
//! # Ok::<(), pushpull::error::Error>(())
//! ```

mod acceleration;
mod calibration;
mod certificate;
mod convergence;
mod cost;
mod coverage;
mod dual;
mod explain;
mod fit;
mod kernel;
mod model;
#[cfg(test)]
mod naive;
mod neighbours;
mod observed;
mod options;
mod oscillation;
mod potential;
mod prior;
mod references;
mod regression;
mod report;
mod sample;
mod select;
mod similarity;
mod solver;
mod stability;
mod temperature;
#[cfg(test)]
mod tests;
mod weight;
mod worst;

pub use calibration::{Calibrated, Calibration, ScorePass};
pub use certificate::Certificate;
pub use cost::{TILE_ROWS, UNIT_TOLERANCE};
pub use coverage::Coverage;
pub use explain::{LogFactors, PriorPart, ReferencePart, RowExplanation, SidePart};
pub use fit::fit;
pub use model::{TransportModel, Weigher};
pub use neighbours::{Neighbour, nearest_earlier, nearest_in};
pub use observed::{Observed, ObservedSide};
pub use options::{
    AUTO_EPSILON_PER_COST, AUTO_PRIOR_PER_COST, Auto, DEFAULT_COST_CACHE_BYTES, DEFAULT_EFFECTIVE_FRACTION, DEFAULT_EPOCHS,
    DEFAULT_HELD_OUT, DEFAULT_MAX_STEPS, DEFAULT_MINIBATCH_ROWS, DEFAULT_PUSH, DEFAULT_THRESHOLD, HELD_OUT_MIN_SAMPLE, MAX_EPSILON,
    MIN_EPSILON, Temperature, TransportOptions,
};
pub use prior::{PRIOR_CORPUS_ROWS, PRIOR_CORPUS_SHARE, PRIOR_INVERSE_PENALTY, PRIOR_LANDMARKS, Prior};
pub use references::ReferenceSet;
pub use regression::logistic_regression;
pub use report::{BeforeAfter, Fit, FitPhase, FitProgress, FitReport, MeanTerms, Residuals, TransportCosts};
pub use select::{SELECT_MIN_REFERENCES, Selection};
pub use similarity::map_similarities;
pub use stability::STABILITY_ROWS;
pub use temperature::{TemperatureFound, solve_effective_fraction};
pub use weight::RowWeight;
pub use worst::{MAX_ROUNDS, MOVED_TOLERANCE, Picks, RowCandidates, fit_worst};
