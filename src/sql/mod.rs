//! Corpus and weights as one DataFusion table.
//!
//! **In**: the corpus's current listing and, for each weighed shard, its sidecar (plain values, see [`CorpusShard`]); any small
//! tables the caller adds. **Out**: the rows of one SQL query, as a stream ([`SqlSession::query`]), as text ([`write_rows`]) or, where
//! the session may write, as files ([`WriteTargets`]).
//!
//! [`register`] makes the tables and functions of a job known to any DataFusion session. Functions: `push_pull_weight(text…)` and
//! `push_pull_explain(text…)` weigh any text with the job's current model ([`LazyWeigher`]); `weight_cutoff(keep)` is the weight from which on
//! a share of the rows is kept, exactly; `sample_key` and `resample_count` draw rows by weight, repeatably; `weights_at(version)` is the table
//! `weights` ([`SidecarTable`]) as it was.
//!
//! The table `corpus` has every base column (the union over all shards) and then the weight columns ([`WEIGHT_COLUMNS`]). A
//! Parquet shard and its sidecar are read as *one* file: the reader hands DataFusion merged Parquet metadata, in which the
//! sidecar's chunks follow the base's, and routes each byte range to the object it belongs to. So the stock Parquet scan does
//! projection, pruning of row groups and pages, and late materialisation over both. Arrow IPC shards are streamed and zipped
//! with their sidecar by position.
//!
//! **Guaranteed**
//! * A row is never paired with another row's weight: the sidecar names the size and version of the base it was made for, has the
//!   published number of rows and, wherever the base is read, the base's row groups; every answer of the store is checked against the
//!   listed size and entity tag. Anything else is an error that names the shard and both objects.
//! * Opening the table opens no shard whose columns the caller knows (the log does, of every weighed shard) and no sidecar. A query of
//!   weight columns alone reads nothing of the base, a query of base columns alone reads no sidecar; `count(*)`, the bounds of `weight`
//!   and whatever is the same in every row of a shard (`shard`, `shard_version`, `model`, folder keys) read nothing at all.
//! * A filter on what is the same in every row of a shard chooses shards, and so does one on `weight`, by the published bounds: no other
//!   shard is opened.
//! * A shard that changed since it was weighed is an error in a query that may touch it; a filter on `shard` or a folder key that leaves
//!   it out keeps it untouched.
//! * A shard without a sidecar has NULL in every weight column but `shard`.
//! * A sidecar of an older format has NULL in the weight columns that it lacks (`window` and `window_view` in format 1).
//! * A base column that a shard lacks is NULL in its rows and warned of, or refused ([`MissingColumns`]). Columns are found by name, so
//!   their order does not matter; types that differ are widened (see [`CorpusTable::try_with`]).
//! * Folders named `key=value` are columns between those of the base and the weights ([`FolderColumns`]).
//! * In a session that has the table from neither [`SqlSession`] nor [`register`], switch
//!   `datafusion.optimizer.enable_aggregate_dynamic_filter_pushdown` off: with it
//!   DataFusion 55 may lose the `min` or `max` of a column that some shards lack (datafusion issue 25147).
//! * A base column keeps its name: what the table adds, a folder key or a weight column, is served as `pushpull_<name>` where the base has
//!   its name, and so is a weight column that has the name of a folder key.
//!
//! **Memory**: the list of shards; footers and page indexes in a [`FooterCache`] of at most 256 MiB by default; per scan about half a
//! kilobyte per file and column while there are no more than a million of these, and what DataFusion decodes. An Arrow shard adds two
//! record batches per partition.

mod arrow_shard;
mod columns;
mod cooperation;
mod corpus;
mod footers;
mod functions;
mod ipc;
mod known_rows;
mod lazy;
mod merge;
mod noted_pages;
mod object;
mod output;
mod partitions;
mod predicate;
mod prefetch;
mod prepared;
mod reader;
mod register;
mod rows_met;
mod selection;
mod session;
mod sidecars;
mod statistics;
#[cfg(test)]
mod tests;
mod write;

pub use crate::shard::ShardFormat;
pub use columns::WEIGHT_COLUMNS;
pub use corpus::CorpusTable;
pub use footers::{DEFAULT_FOOTER_MEMORY, FooterCache};
pub use functions::weigh::{LazyWeigher, LoadWeigher, RowWeigher, TextArguments};
pub use lazy::LazyTable;
pub use output::{OutputFormat, TABLE_TEXT, write_batches, write_rows};
pub use predicate::Predicate;
pub use prepared::Prepared;
pub use register::{SqlSource, SqlTables, register};
pub use rows_met::{RowsMet, count_rows_met};
pub use session::{QueryRows, SqlSession};
pub use sidecars::SidecarTable;
pub use write::WriteTargets;

use arrow::datatypes::SchemaRef;
use object_store::ObjectMeta;
use serde::Deserialize;
use std::sync::Arc;

/// A published sidecar and the base shard it was made for.
#[derive(Debug, Clone)]
pub struct SidecarRef {
    /// Location and size of the sidecar in the output store.
    pub meta: ObjectMeta,
    /// Size in bytes of the base shard when it was weighed.
    pub base_size: u64,
    /// Version of the base shard when it was weighed.
    pub base_version: String,
    /// Digest of the model that weighed it.
    pub model: String,
    /// Rows of the shard.
    pub rows: u64,
    /// Rows among them without a weight.
    pub unweighed: u64,
    /// Smallest and largest weight, if they are known and there are any.
    pub weight_range: Option<(f32, f32)>,
}

/// One shard of the corpus as it is now, with its weights if there are any.
#[derive(Debug, Clone)]
pub struct CorpusShard {
    /// Path relative to the corpus URL; served as the column `shard`.
    pub name: String,
    /// How the rows are stored.
    pub format: ShardFormat,
    /// Location, size and entity tag in the corpus store, from a current listing.
    pub meta: ObjectMeta,
    /// Current version, compared with [`SidecarRef::base_version`].
    pub version: String,
    /// Columns of the shard as it is now, if they are known; otherwise the shard is opened to read them.
    pub schema: Option<SchemaRef>,
    /// Rows of the shard as it is now, if they are known. Those of a weighed shard are in its [`SidecarRef`].
    pub rows: Option<u64>,
    /// The weights, if the shard has been weighed.
    pub sidecar: Option<SidecarRef>,
}

/// What a table over a corpus does where there is a choice.
#[derive(Debug, Clone, Default)]
pub struct CorpusOptions {
    /// Where footers are kept. Default: a cache of the table's own.
    pub footers: Arc<FooterCache>,
    /// Whether folders become columns. Default [`FolderColumns::Auto`].
    pub folders: FolderColumns,
    /// What becomes of a base column that some shards lack. Default [`MissingColumns::Null`].
    pub missing: MissingColumns,
}

/// Whether folders named `key=value` become columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FolderColumns {
    /// Each key is a column: of 64-bit integers if every value is written as one, else of text. NULL for `__HIVE_DEFAULT_PARTITION__`
    /// and where a shard's folders lack the key. Values are percent-decoded.
    #[default]
    Auto,
    /// Folders are only part of the shard's name.
    None,
}

/// What becomes of a base column that some shards lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissingColumns {
    /// It is NULL in their rows, and a warning names the column, how many shards lack it and the first of them.
    #[default]
    Null,
    /// An error that names shard and column.
    Refuse,
}

/// A base column that some shards lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingColumn {
    /// Its name.
    pub column: String,
    /// How many shards lack it, at least 1.
    pub shards: usize,
    /// The first of them.
    pub first: String,
}
