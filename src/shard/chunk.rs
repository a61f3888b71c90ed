//! Consecutive rows of one shard that go through embed and transport together.

use super::arrow_file::ArrowFile;
use super::layout::{Kind, Layout, unreadable};
use super::listing::Shard;
use super::pages::ShardPages;
use super::parquet_file;
use crate::error::Result;
use arrow::array::RecordBatch;
use tokio::runtime::Handle;

/// Bytes of a chunk at most, far below what an Arrow array of strings can hold (2 GiB).
const LARGEST_CHUNK: u64 = 256 << 20;

/// Consecutive rows of one shard, or, for a reader of few rows, consecutive wanted ones.
#[derive(Debug)]
pub struct Chunk {
    /// The wanted columns, in the order asked.
    pub batch: RecordBatch,
}

/// What to read of a shard and how.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Top-level columns, in the order they are returned.
    pub columns: Vec<String>,
    /// Positions of the wanted rows, sorted and without duplicates; `None` is all of them.
    pub rows: Option<Vec<u64>>,
    /// Most rows of a chunk.
    pub chunk_rows: usize,
    /// Bytes that decoded chunks and blocks read ahead may take together.
    pub memory: u64,
}

impl Chunk {
    /// Bytes of its rows. Arrays cut from one record batch count their own part only.
    pub(super) fn bytes(&self) -> u64 {
        let of =
            |column: &arrow::array::ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size());
        self.batch.columns().iter().map(|column| of(column) as u64).sum()
    }
}

impl ReadOptions {
    /// Rows a chunk may have so that eight of them fit the memory budget, given the size of all rows decoded.
    pub(super) fn chunk_rows_for(&self, decoded_bytes: u64, rows: u64) -> usize {
        let width = (decoded_bytes / rows.max(1)).max(1);
        let fit = usize::try_from((self.memory / 8).min(LARGEST_CHUNK) / width).unwrap_or(usize::MAX);
        self.chunk_rows.clamp(1, fit.max(1))
    }
}

/// Reads a shard's chunks one after another. Blocking; must run outside the async runtime's own threads.
///
/// `emit` gets each chunk and says whether to go on. Gives where the pages read are, for a Parquet shard whose footer does not say it.
///
/// # Errors
/// [`Error::Column`](crate::error::Error::Column) for a missing column, [`Error::Shard`](crate::error::Error::Shard) naming the row group for content that cannot be decoded.
pub(super) fn read_chunks(
    shard: &Shard,
    layout: &Layout,
    options: &ReadOptions,
    runtime: &Handle,
    mut emit: impl FnMut(Chunk) -> bool,
) -> Result<ShardPages> {
    let positions = layout.column_positions(&shard.name, &options.columns)?;
    // Both readers return columns in file order whatever order is asked.
    let mut roots = positions.clone();
    roots.sort_unstable();
    roots.dedup();
    let order: Vec<usize> = positions.iter().filter_map(|p| roots.binary_search(p).ok()).collect();
    let mut emit_ordered = |batch: RecordBatch| -> Result<bool> {
        let batch = batch.project(&order).map_err(|e| unreadable(shard, None, "columns do not fit together", Box::new(e)))?;
        Ok(emit(Chunk { batch }))
    };
    match &layout.kind {
        Kind::Parquet(metadata) => {
            let mut file = parquet_file::open(shard, metadata, &roots, options, runtime.clone())
                .map_err(|e| unreadable(shard, None, "could not be opened", Box::new(e)))?;
            let mut rows = 0u64;
            for batch in file.rows.by_ref() {
                let batch = batch.map_err(|e| {
                    let group = options.rows.is_none().then(|| group_of(layout.rows_per_group(), rows));
                    unreadable(shard, group, "could not be decoded", Box::new(e))
                })?;
                rows += batch.num_rows() as u64;
                if !emit_ordered(batch)? {
                    break;
                }
            }
            Ok(file.pages())
        }
        Kind::Arrow(file) => read_arrow(shard, file, roots, options, runtime, &mut emit_ordered).map(|()| ShardPages::default()),
    }
}

fn read_arrow(
    shard: &Shard,
    file: &ArrowFile,
    roots: Vec<usize>,
    options: &ReadOptions,
    runtime: &Handle,
    emit: &mut dyn FnMut(RecordBatch) -> Result<bool>,
) -> Result<()> {
    let failed = |group: Option<usize>| move |e| unreadable(shard, group, "could not be decoded", Box::new(e));
    let decoder = runtime.block_on(file.decoder(&shard.location, roots)).map_err(failed(None))?;
    let mut first = 0u64;
    let mut rest = options.rows.as_deref().unwrap_or_default();
    for (index, &rows) in file.rows_per_batch().iter().enumerate() {
        let (here, later) = rest.split_at(rest.partition_point(|&row| row < first + rows));
        rest = later;
        if rows > 0 && (options.rows.is_none() || !here.is_empty()) {
            let mut batch = runtime.block_on(decoder.batch(index)).map_err(failed(Some(index)))?;
            if batch.num_rows() as u64 != rows {
                let e = arrow::error::ArrowError::IpcError(format!("{} rows decoded, its header says {rows}", batch.num_rows()));
                return Err(failed(Some(index))(e));
            }
            if options.rows.is_some() {
                let indices: arrow::array::UInt64Array = here.iter().map(|row| row - first).collect();
                batch = arrow::compute::take_record_batch(&batch, &indices).map_err(failed(Some(index)))?;
            }
            let step = options.chunk_rows_for(file.batch_bytes(index), rows);
            for start in (0..batch.num_rows()).step_by(step) {
                if !emit(batch.slice(start, step.min(batch.num_rows() - start)))? {
                    return Ok(());
                }
            }
        }
        first += rows;
    }
    Ok(())
}

/// The row group that holds a row.
fn group_of(rows_per_group: &[u64], row: u64) -> usize {
    let mut end = 0;
    rows_per_group
        .iter()
        .position(|rows| {
            end += rows;
            row < end
        })
        .unwrap_or(rows_per_group.len().saturating_sub(1))
}
