//! Corpus and weights as one DataFusion table.
//!
//! **In**: the corpus's current listing and, for each weighed shard, its sidecar (plain values, see [`CorpusShard`]); any small
//! tables the caller adds. **Out**: the rows of one SQL query, as a stream ([`SqlSession::query`]) or as text
//! ([`write_rows`]).
//!
//! The table `corpus` has every base column (the union over all shards) and then the weight columns ([`WEIGHT_COLUMNS`]). A
//! Parquet shard and its sidecar are read as *one* file: the reader hands DataFusion merged Parquet metadata, in which the
//! sidecar's chunks follow the base's, and routes each byte range to the object it belongs to. So the stock Parquet scan does
//! projection, pruning of row groups and pages, and late materialisation over both. Arrow IPC shards are streamed and zipped
//! with their sidecar by position.
//!
//! **Guaranteed**
//! * A row is never paired with another row's weight: the sidecar names the size and version of the base it was made for, its
//!   row groups must have the base's row counts, and every answer of the store is checked against the listed size and entity
//!   tag. Anything else is an error that names the shard.
//! * Opening the table reads each shard's footer. After that a query of weight columns alone reads nothing of the base, a query of
//!   base columns alone reads no sidecar, and `count(*)` over Parquet shards reads nothing at all.
//! * A shard that changed since it was weighed is an error in a query that may touch it; a filter on `shard` that leaves it out
//!   keeps it untouched.
//! * A shard without a sidecar has NULL in every weight column but `shard`.
//! * A sidecar of an older format has NULL in the weight columns that it lacks (`window` and `window_view` in format 1).
//! * In a session that is not a [`SqlSession`], switch `datafusion.optimizer.enable_aggregate_dynamic_filter_pushdown` off: with it
//!   DataFusion 55 may lose the `min` or `max` of a column that some shards lack (datafusion issue 25147).
//! * A base column that has the name of a weight column keeps it; the weight column is then served as `pushpull_<name>`.
//!
//! **Memory**: the footers of all Parquet shards (and those sidecars' and page indexes a query touched) live as long as the
//! table. A scan holds what DataFusion decodes; an Arrow shard adds two record batches per partition.

mod arrow_shard;
mod columns;
mod corpus;
mod ipc;
mod lazy;
mod merge;
mod object;
mod output;
mod predicate;
mod prepared;
mod reader;
mod session;
mod statistics;
#[cfg(test)]
mod tests;

pub use crate::shard::ShardFormat;
pub use columns::WEIGHT_COLUMNS;
pub use corpus::CorpusTable;
pub use lazy::LazyTable;
pub use output::{OutputFormat, TABLE_TEXT, write_batches, write_rows};
pub use predicate::Predicate;
pub use prepared::Prepared;
pub use session::{QueryRows, SqlSession};

use object_store::ObjectMeta;

/// A published sidecar and the base shard it was made for.
#[derive(Debug, Clone)]
pub struct SidecarRef {
    /// Location and size of the sidecar in the output store.
    pub meta: ObjectMeta,
    /// Size in bytes of the base shard when it was weighed.
    pub base_size: u64,
    /// Version of the base shard when it was weighed.
    pub base_version: String,
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
    /// The weights, if the shard has been weighed.
    pub sidecar: Option<SidecarRef>,
}
