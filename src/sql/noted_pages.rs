//! The pages of a base whose own footer does not say where they are: in go the base's footer and its sidecar's, where the weigher noted the
//! pages of the columns it read; out comes an offset index that is right for a scan of these columns.
//!
//! An offset index has an entry for every column. Those that the scan does not read get one that stands for the whole chunk, which
//! nobody looks at; so the index is made for one scan's columns, and there is none as soon as one of them was not noted.

use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::offset_index::{OffsetIndexMetaData, PageLocation};

use crate::shard::ShardPages;
use crate::writeback::BASE_PAGES_KEY;

/// Whether the footer says where every page is and what is in it.
pub(super) fn has_page_index(metadata: &ParquetMetaData) -> bool {
    let mut chunks = metadata.row_groups().iter().flat_map(RowGroupMetaData::columns);
    chunks.all(|chunk| chunk.offset_index_offset().is_some() && chunk.column_index_offset().is_some())
}

/// The base's offset index by row group and leaf, for a scan that reads `columns` of it; `None` where the sidecar does not know the pages
/// of each of them.
pub(super) fn noted_pages(base: &ParquetMetaData, sidecar: &ParquetMetaData, columns: &[String]) -> Option<Vec<Vec<OffsetIndexMetaData>>> {
    let entries = sidecar.file_metadata().key_value_metadata()?;
    let noted = entries.iter().find(|entry| entry.key == BASE_PAGES_KEY)?.value.as_ref()?;
    let pages: ShardPages = serde_json::from_str(noted).ok()?;
    let of_group = |(place, group): (usize, &RowGroupMetaData)| {
        if group.num_rows() == 0 {
            return Some(vec![]);
        }
        let leaf = |(leaf, chunk): (usize, &ColumnChunkMetaData)| match chunk.column_path().parts().first() {
            Some(root) if columns.contains(root) => pages.offset_index(base, place, leaf),
            _ => Some(whole(chunk)),
        };
        group.columns().iter().enumerate().map(leaf).collect()
    };
    base.row_groups().iter().enumerate().map(of_group).collect()
}

fn whole(chunk: &ColumnChunkMetaData) -> OffsetIndexMetaData {
    let (start, length) = chunk.byte_range();
    let page = PageLocation {
        offset: i64::try_from(start).unwrap_or(i64::MAX),
        compressed_page_size: i32::try_from(length).unwrap_or(i32::MAX),
        first_row_index: 0,
    };
    OffsetIndexMetaData { page_locations: vec![page], unencoded_byte_array_data_bytes: None }
}
