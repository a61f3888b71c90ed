//! Joins the stages: what a job says becomes a plan, a fitted model, weights in a table, and SQL over both. The only place that
//! knows the stages' order.
//!
//! In: a job file. Out: a committed weights table and a report. Guarantees: any step may be killed and repeated; nothing is
//! visible before its commit; a shard that cannot be read is quarantined and named, and the others go on.
//! A part of the corpus can be weighed, by an earlier model too ([`WeighOptions`]); the table then holds rows by several models, each
//! named. Another push or temperature can be had from the sidecars alone, with the potentials kept.
//! Memory: [`RunOptions::memory`] for chunks, plus the fit's sample (`sample_rows` × dimensions × 4 bytes; with `pool = "worst"` times
//! the windows of a row, which may take as much as the chunks and are refused beyond it).

mod apply;
mod choose;
mod contents;
mod context;
mod encoder;
mod eval;
mod explain;
mod explained_row;
mod file;
mod fit;
mod hygiene;
mod keep;
mod labelled;
mod plan;
mod query;
mod references;
mod report;
mod run;
mod sample;
mod select;
mod source;
mod splice;
mod tables;
mod uploads;
mod weigh;
mod windows;

pub use context::{DEFAULT_CHUNK_ROWS, DEFAULT_MEMORY, Job, Progress, RunOptions};
pub use encoder::{RowColumns, RowEncoder, load_model, read_model_folder};
pub use eval::{DEFAULT_EVAL_ROWS, EvalOptions, EvalReport, EvalRows, eval};
pub use explain::explain;
pub use explained_row::{
    ExplainedPrior, ExplainedReference, ExplainedRow, ExplainedSide, ExplainedView, ExplainedWeight, ExplainedWindow, Factors,
    PublishedState, RowAddress, RowText,
};
pub use file::{BUILTIN, CorpusSection, DEFAULT_SAMPLE_ROWS, EmbedSection, JobFile, OutputSection, ReferencesSection, TransportSection};
pub use fit::{Fitted, fit_model, load_references, problem_digest};
pub use plan::{Plan, PlannedShard, ShardState, plan, plan_with};
pub use query::{TableSnapshot, corpus_table, sql_session};
pub use references::{ReferenceRows, Side, check_disjoint};
pub use report::{ModelShare, Quarantined, RunReport, Seconds, ShardCounts, WeighedRow, with_causes};
pub use run::{WeighOptions, fit, run, run_with, weigh, weigh_with};
pub use sample::{SampledShard, draw};
pub use select::Selection;
pub use source::write_targets;
pub use splice::{ServedColumn, SpliceOptions, SpliceReport, SplicedCounts, splice};
pub use weigh::{Extremes, Weighed, Weighing, weigh_shards};
pub use windows::weigh_batch;
