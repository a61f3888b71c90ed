//! Finds the shards of a corpus and streams their rows.
//!
//! In: a corpus URL (a prefix, a glob or one file) and the columns a job needs. Out: [`Chunk`]s, consecutive rows of one shard, in
//! the order of the shards' paths and of the rows in each shard.
//! Guarantees: every row comes exactly once and in order; only the named columns are read from a Parquet shard; the same corpus
//! gives the same chunks whatever the timing. Memory: [`ReadOptions::memory`] bounds decoded chunks and blocks read ahead, also
//! inside one huge row group, because pages are fetched as they are decoded.

mod arrow_file;
mod blocks;
mod chunk;
mod layout;
mod listing;
mod parquet_file;
mod read_ahead;

pub use chunk::{Chunk, ReadOptions};
pub use layout::Layout;
pub(crate) use layout::read_parquet_footer;
pub(crate) use listing::corpus_root;
pub use listing::{Listing, Shard, ShardFormat, list_shards};
pub use read_ahead::{Permit, ReadAhead, ShardEvent, ShardRequest, read_ahead};
