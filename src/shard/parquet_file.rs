//! Parquet shards, decoded page by page from blocks fetched on demand.

use super::blocks::{BlockReader, Span};
use super::chunk::ReadOptions;
use super::listing::Shard;
use super::pages::ShardPages;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::errors::Result;
use parquet::file::metadata::RowGroupMetaData;
use tokio::runtime::Handle;

/// The largest block fetched at once: long enough for an object store's throughput.
const BLOCK: u64 = 8 << 20;
/// The smallest, below which requests cost more than bytes.
const SMALLEST_BLOCK: u64 = 64 << 10;
/// Blocks for a reader of few rows, which mostly skips.
const SPARSE_BLOCK: u64 = 256 << 10;

/// A shard that is being read, and what was met on the way.
pub(super) struct ParquetFile {
    /// The rows.
    pub(super) rows: ParquetRecordBatchReader,
    blocks: BlockReader,
    metadata: ArrowReaderMetadata,
    leaves: Vec<usize>,
}

impl ParquetFile {
    /// The pages of the columns read, after the last row. Empty for a shard that has a page index, and where only some rows were read.
    pub(super) fn pages(&self) -> ShardPages {
        self.blocks.pages(|met| met.finish(self.metadata.metadata(), &self.leaves)).unwrap_or_default()
    }
}

/// A reader of the given top-level columns. Blocking; fetches through `runtime`.
pub(super) fn open(
    shard: &Shard,
    metadata: &ArrowReaderMetadata,
    roots: &[usize],
    options: &ReadOptions,
    runtime: Handle,
) -> Result<ParquetFile> {
    let descriptor = metadata.parquet_schema();
    let mask = ProjectionMask::roots(descriptor, roots.iter().copied());
    let lanes: Vec<usize> = (0..descriptor.num_columns()).filter(|&leaf| mask.leaf_included(leaf)).collect();
    let groups = metadata.metadata().row_groups();
    let mut spans = Vec::with_capacity(groups.len() * lanes.len());
    let (mut decoded, mut rows) = (0u64, 0u64);
    for group in groups {
        rows += group.num_rows().max(0) as u64;
        for &lane in &lanes {
            let (start, length) = group.column(lane).byte_range();
            spans.push(Span { lane, range: start..start + length });
            decoded += group.column(lane).uncompressed_size().max(0) as u64;
        }
    }
    spans.sort_by_key(|span| span.range.start);
    // A quarter of the budget for blocks (two a column), the rest for chunks decoded and under way.
    let block = (options.memory / 4 / (2 * lanes.len().max(1)) as u64).clamp(SMALLEST_BLOCK, BLOCK);
    let sparse = options.rows.is_some();
    let block = if sparse { block.min(SPARSE_BLOCK) } else { block };
    let unindexed = groups.iter().flat_map(RowGroupMetaData::columns).any(|chunk| chunk.offset_index_offset().is_none());
    let blocks = BlockReader::new(shard, spans, block, !sparse, unindexed && !sparse, runtime);
    let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(blocks.clone(), metadata.clone())
        .with_projection(mask)
        .with_batch_size(options.chunk_rows_for(decoded, rows));
    if let Some(wanted) = &options.rows {
        let counts: Vec<u64> = groups.iter().map(|group| group.num_rows().max(0) as u64).collect();
        let (row_groups, selection) = select(&counts, wanted);
        builder = builder.with_row_groups(row_groups).with_row_selection(selection);
    }
    Ok(ParquetFile { rows: builder.build()?, blocks, metadata: metadata.clone(), leaves: lanes })
}

/// The row groups that hold wanted rows, and the selection inside them. `wanted` is sorted and without duplicates.
fn select(rows_per_group: &[u64], wanted: &[u64]) -> (Vec<usize>, RowSelection) {
    let (mut groups, mut selectors) = (Vec::new(), Vec::new());
    let (mut first, mut rest) = (0u64, wanted);
    for (index, &rows) in rows_per_group.iter().enumerate() {
        let (here, later) = rest.split_at(rest.partition_point(|&row| row < first + rows));
        if !here.is_empty() {
            groups.push(index);
            let mut next = first;
            for &row in here {
                if row > next {
                    selectors.push(RowSelector::skip((row - next) as usize));
                }
                selectors.push(RowSelector::select(1));
                next = row + 1;
            }
            if next < first + rows {
                selectors.push(RowSelector::skip((first + rows - next) as usize));
            }
        }
        (first, rest) = (first + rows, later);
    }
    (groups, RowSelection::from(selectors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_covers_only_groups_with_wanted_rows() {
        let (groups, selection) = select(&[3, 0, 4, 5], &[1, 7, 8, 11]);
        assert_eq!(groups, [0, 3]);
        assert_eq!(selection.row_count(), 4);
        assert_eq!(selection.skipped_row_count(), 4);
        let (groups, selection) = select(&[3, 4], &[]);
        assert!(groups.is_empty());
        assert_eq!(selection.row_count(), 0);
    }
}
