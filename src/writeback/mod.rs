//! Row weights to a sidecar: one ordinary Parquet file per shard, beside the corpus and never inside it.
//!
//! In: the weights of a shard's rows, in order. Out: a Parquet file whose row groups have exactly the base shard's row counts, so that
//! base and sidecar can be read as one file. Guarantees: row `i` of the sidecar is row `i` of the shard; the same shard and model
//! give the same bytes however the rows were chunked; the object appears whole or not at all, and nothing here publishes it (see
//! `catalog`). Memory: one block of rows and the row group's encoded pages.
//!
//! On demand also spliced shards: a base shard's own bytes with weight columns behind them, in one Parquet file (see [`Splice`]).

mod receipt;
mod reencode;
mod sidecar;
mod splice;
mod splice_footer;
#[cfg(test)]
mod splice_tests;
mod spliced_columns;
mod thrift;

pub use receipt::{Receipt, unpublished_receipt};
pub use sidecar::{
    BASE_SIZE_KEY, BASE_VERSION_KEY, ReferenceIds, SIDECAR_FORMAT, SidecarIdentity, SidecarRow, SidecarWriter, WEIGHT_COLUMNS,
    sidecar_path, sidecar_schema,
};
pub use splice::{Splice, SplicedShard};
pub(crate) use spliced_columns::free_name;
pub use spliced_columns::{DEFAULT_SPLICED_COLUMNS, SplicedColumn, SplicedColumns};
