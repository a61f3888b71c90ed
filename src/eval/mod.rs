//! How well a score tells harmful rows from others, and whether another score does it as well: numbers in, numbers out.
//!
//! **In**: scores and weights of labelled rows under several methods, push-pull first; `methods` makes them from vectors and references
//! alone. **Out**: an [`Evaluation`]: each metric of each method with a bootstrap interval, and of the *difference* between push-pull and
//! the method.
//!
//! **What is measured.** For one positive class (harmful) and up to [`MAX_NEGATIVES`] negative ones: the area under the ROC curve against
//! each negative class, average precision, how many positives are left when the best 50, 80, 90 or 95 % of all rows are kept, and
//! the positives' share of the total weight. Exact with ties: see [`Ranking`].
//!
//! **How it is judged.** By a paired, stratified bootstrap (Efron and Tibshirani 1993, chapters 8 and 13): every resample draws as many rows of
//! each class as there are, with replacement, and the *same* resamples serve all methods. Where the 95 % percentile interval of a
//! difference leaves out 0, one of the two is better; otherwise there is no difference that these rows show. The intervals are about the
//! choice of the scored rows: references and fit stay as they are. No correction is made for looking at many cells.
//!
//! **Guarantees.** The same input and seed give the same bits, for any number of threads. The labels enter nothing but the metrics.
//! **Memory**: 30 bytes a row and method, 4 bytes a row and thread, 16 bytes a resample, method and metric.
//!
//! | file | noun |
//! |---|---|
//! | `classes` | which class each row has, and a resample of the rows |
//! | `metrics` | a ranking of rows and its metrics |
//! | `bootstrap` | intervals of metrics and of differences |
//! | `methods` | the scores that are compared |
//! | `report` | the comparison of all methods |

mod bootstrap;
mod classes;
mod methods;
mod metrics;
mod report;
#[cfg(test)]
mod tests;

pub use bootstrap::{BootstrapOptions, DEFAULT_RESAMPLES, Interval, LEVEL, replicates};
pub use classes::{Classes, MAX_NEGATIVES, Resample};
pub use methods::{Compared, LARF_NEAREST, Method, MethodKind, ablations, baselines, push_pull, single_view};
pub use metrics::{KEPT_PERCENT, Metric, Ranking};
pub use report::{Against, Cell, ClassCount, Evaluation, MethodResult, Verdict, evaluate};
