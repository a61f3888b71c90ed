//! Joins the stages: what a job says becomes a plan, a fitted model, weights in a table, and SQL over both. The only place that
//! knows the stages' order.
//!
//! In: a job file. Out: a committed weights table and a report. Guarantees: any step may be killed and repeated; nothing is
//! visible before its commit; a shard that cannot be read is quarantined and named, and the others go on.
//! Memory: [`RunOptions::memory`] for chunks, plus the fit's sample (`sample_rows` × dimensions × 4 bytes; with `pool = "worst"` times
//! the windows of a row, which may take as much as the chunks and are refused beyond it).

mod contents;
mod context;
mod encoder;
mod eval;
mod explain;
mod file;
mod fit;
mod hygiene;
mod labelled;
mod plan;
mod query;
mod references;
mod report;
mod run;
mod sample;
mod splice;
mod tables;
mod weigh;
mod windows;

pub use context::{DEFAULT_CHUNK_ROWS, DEFAULT_MEMORY, Job, Progress, RunOptions};
pub use encoder::{RowColumns, RowEncoder, load_model, read_model_folder};
pub use eval::{DEFAULT_EVAL_ROWS, EvalOptions, EvalReport, EvalRows, eval};
pub use explain::{
    ExplainedPrior, ExplainedReference, ExplainedRow, ExplainedSide, ExplainedView, ExplainedWeight, ExplainedWindow, Factors,
    PublishedState, RowAddress, RowText, explain,
};
pub use file::{BUILTIN, CorpusSection, DEFAULT_SAMPLE_ROWS, EmbedSection, JobFile, OutputSection, ReferencesSection, TransportSection};
pub use fit::{Fitted, fit_model, load_references, problem_digest};
pub use plan::{Plan, PlannedShard, ShardState, plan};
pub use query::sql_session;
pub use references::{ReferenceRows, Side, check_disjoint};
pub use report::{Quarantined, RunReport, Seconds, ShardCounts, WeighedRow, with_causes};
pub use run::{fit, run, weigh};
pub use sample::{SampledShard, draw};
pub use splice::{ServedColumn, SpliceOptions, SpliceReport, SplicedCounts, splice};
pub use weigh::{Extremes, Weighed, Weighing, weigh_shards};
pub use windows::weigh_batch;
