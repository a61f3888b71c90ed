//! Where the data pages of a Parquet shard without a page index are. In go the page headers that a reader of whole column chunks met on
//! its way; out comes what an offset index would have said of these columns, so that a later reader may skip their pages.
//!
//! Only columns without repetition are kept, as only there a value is a row. What does not add up (a page that was not met, another
//! number of rows) is left out: a column is known in all row groups or not at all. Memory: some fifty bytes a page.

use bytes::Bytes;
use parquet::basic::Type as PhysicalType;
use parquet::column::page::{PageMetadata, PageReader};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::page_index::offset_index::{OffsetIndexMetaData, PageLocation};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::{ColumnDescriptor, ColumnPath, Type};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most pages of a shard that are kept: their places take some ten bytes each in the sidecar's footer.
const MOST_PAGES: usize = 100_000;

/// The pages of some columns of one shard, by the column's path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardPages(BTreeMap<String, Vec<ChunkPages>>);

/// The data pages of one column chunk, one after another without a gap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ChunkPages {
    /// Where each page (its header) begins in the object.
    starts: Vec<u64>,
    /// The first row of each page in its row group.
    rows: Vec<u64>,
    /// Where the last one ends.
    end: u64,
}

/// A page that was met.
#[derive(Debug)]
enum MetPage {
    /// Its header, as far as it was read.
    Header(Vec<u8>),
    /// Its content was read too, up to `end`.
    Whole { end: u64, rows: PageRows },
}

/// What a page's header says of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageRows {
    /// A dictionary has none.
    Dictionary,
    Data(u64),
    Unknown,
}

/// The pages met while one object was read, by where they begin.
#[derive(Debug, Default)]
pub(super) struct MetPages {
    pages: BTreeMap<u64, MetPage>,
}

impl MetPages {
    /// Bytes of a header that begins at `start` were read.
    pub(super) fn header(&mut self, start: u64, bytes: &[u8]) {
        if let MetPage::Header(header) = self.pages.entry(start).or_insert_with(|| MetPage::Header(Vec::new())) {
            header.extend_from_slice(bytes);
        }
    }

    /// The content from `start` to `end` was asked for: of the page whose header ends there, if it is one.
    pub(super) fn content(&mut self, start: u64, end: u64) {
        let Some((begin, page)) = self.pages.range_mut(..=start).next_back() else { return };
        if let MetPage::Header(header) = page
            && begin + header.len() as u64 == start
        {
            // Headers carry statistics, which may be long; from here on a few numbers do.
            *page = MetPage::Whole { end, rows: rows_of(header) };
        }
    }

    /// What is known now of these leaves of the shard.
    pub(super) fn finish(&self, metadata: &ParquetMetaData, leaves: &[usize]) -> ShardPages {
        let mut known = BTreeMap::new();
        let mut left = MOST_PAGES;
        for &leaf in leaves {
            let descriptor = metadata.file_metadata().schema_descr().column(leaf);
            if descriptor.max_rep_level() > 0 {
                continue;
            }
            let chunks: Option<Vec<ChunkPages>> =
                metadata.row_groups().iter().map(|group| self.chunk(group.column(leaf), u64::try_from(group.num_rows()).ok()?)).collect();
            if let Some(chunks) = chunks {
                let pages = chunks.iter().map(|chunk| chunk.starts.len()).sum::<usize>();
                let Some(rest) = left.checked_sub(pages) else { continue };
                left = rest;
                known.insert(descriptor.path().string(), chunks);
            }
        }
        ShardPages(known)
    }

    /// The data pages of a chunk of `rows` rows; `None` if not all of them were met.
    fn chunk(&self, chunk: &ColumnChunkMetaData, rows: u64) -> Option<ChunkPages> {
        if rows == 0 {
            return Some(ChunkPages::default());
        }
        let (start, length) = chunk.byte_range();
        let mut found = ChunkPages { end: start, ..ChunkPages::default() };
        let mut row = 0;
        for (&start, page) in self.pages.range(start..start + length) {
            let MetPage::Whole { end, rows } = *page else { return None };
            if start != found.end {
                return None;
            }
            found.end = end;
            match rows {
                PageRows::Dictionary => {}
                PageRows::Data(rows) => {
                    found.starts.push(start);
                    found.rows.push(row);
                    row += rows;
                }
                PageRows::Unknown => return None,
            }
        }
        (row == rows && found.end == start + length).then_some(found)
    }
}

fn rows_of(header: &[u8]) -> PageRows {
    let peek = || -> ParquetResult<Option<PageMetadata>> {
        // A header is read the same way whatever its column is.
        let any = Type::primitive_type_builder("any", PhysicalType::BYTE_ARRAY).build()?;
        let any = Arc::new(ColumnDescriptor::new(Arc::new(any), 0, 0, ColumnPath::from("any")));
        let alone = ColumnChunkMetaData::builder(any).set_data_page_offset(0).set_total_compressed_size(i64::from(i32::MAX)).build()?;
        SerializedPageReader::new(Arc::new(Bytes::copy_from_slice(header)), &alone, usize::MAX, None)?.peek_next_page()
    };
    match peek() {
        Ok(Some(PageMetadata { is_dict: true, .. })) => PageRows::Dictionary,
        Ok(Some(page)) => page.num_rows.or(page.num_levels).map_or(PageRows::Unknown, |rows| PageRows::Data(rows as u64)),
        Ok(None) | Err(_) => PageRows::Unknown,
    }
}

impl ShardPages {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The offset index of one chunk of this leaf in row group `group`, by its place in the footer. `None` where it is not known, or does
    /// not fit the chunk.
    pub fn offset_index(&self, metadata: &ParquetMetaData, group: usize, leaf: usize) -> Option<OffsetIndexMetaData> {
        let row_group = metadata.row_groups().get(group)?;
        let chunk = row_group.columns().get(leaf)?;
        let ChunkPages { starts, rows, end } = self.0.get(&chunk.column_path().string())?.get(group)?;
        let (first, length) = chunk.byte_range();
        let within = starts.first()? >= &first && *end == first + length && rows.first()? == &0;
        let ends = starts.iter().skip(1).chain([end]);
        let rising = starts.iter().zip(ends.clone()).all(|(start, end)| start < end);
        let last = u64::try_from(row_group.num_rows()).ok()?;
        let rows_rise = rows.windows(2).all(|pair| pair[0] <= pair[1]) && rows.last()? <= &last;
        if !(within && rising && rows_rise && starts.len() == rows.len()) {
            return None;
        }
        let page = |((start, end), row): ((&u64, &u64), &u64)| {
            Some(PageLocation {
                offset: i64::try_from(*start).ok()?,
                compressed_page_size: i32::try_from(end - start).ok()?,
                first_row_index: i64::try_from(*row).ok()?,
            })
        };
        let page_locations = starts.iter().zip(ends).zip(rows).map(page).collect::<Option<_>>()?;
        Some(OffsetIndexMetaData { page_locations, unencoded_byte_array_data_bytes: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{ReadOptions, Shard, ShardEvent, ShardFormat, ShardRequest, read_ahead};
    use crate::storage::Location;
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
    use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

    fn file(rows: std::ops::Range<usize>, version: WriterVersion, compression: Compression, dictionary: bool, indexed: bool) -> Bytes {
        let text = |salt: usize| -> ArrayRef {
            let value = |i: usize| (i % 11 != salt).then(|| format!("{} {}", i * (salt + 7) % 97, "words ".repeat(i * 31 % 40)));
            Arc::new(rows.clone().map(value).collect::<StringArray>())
        };
        let columns: [(&str, ArrayRef); 3] =
            [("a", text(3)), ("n", Arc::new(Int64Array::from_iter_values(rows.clone().map(|i| i as i64)))), ("b", text(5))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let properties = WriterProperties::builder()
            .set_writer_version(version)
            .set_compression(compression)
            .set_dictionary_enabled(dictionary)
            .set_data_page_row_count_limit(130)
            .set_write_batch_size(64)
            .set_max_row_group_row_count(Some(1000))
            .set_statistics_enabled(if indexed { EnabledStatistics::Page } else { EnabledStatistics::Chunk })
            .set_offset_index_disabled(!indexed)
            .build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes.into()
    }

    fn read(bytes: &Bytes, columns: &[&str], rows: Option<Vec<u64>>, memory: u64) -> ShardPages {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = Path::from("p.parquet");
        runtime.block_on(store.put(&path, bytes.clone().into())).unwrap();
        let location = Location::new(store, path, "memory://p.parquet".into());
        let meta = runtime.block_on(location.head()).unwrap();
        let shard = Shard { name: "p.parquet".into(), location, meta, format: ShardFormat::Parquet };
        let options = ReadOptions { columns: columns.iter().map(|c| (*c).to_owned()).collect(), rows: None, chunk_rows: 100, memory };
        let mut ahead = read_ahead(vec![ShardRequest { shard, rows }], options, runtime.handle().clone());
        let mut pages = None;
        while let Some((_, event)) = ahead.next_blocking() {
            match event {
                ShardEvent::Done(met) => pages = Some(met),
                ShardEvent::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        pages.unwrap()
    }

    fn footer(bytes: &Bytes) -> ParquetMetaData {
        ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional).parse_and_finish(bytes).unwrap()
    }

    #[test]
    fn what_is_met_is_what_an_offset_index_says() {
        let zstd = Compression::ZSTD(ZstdLevel::try_new(1).unwrap());
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
                for dictionary in [true, false] {
                    let write = |indexed| file(0..2500, version, compression, dictionary, indexed);
                    let (bare, twin) = (write(false), footer(&write(true)));
                    let metadata = footer(&bare);
                    assert!(metadata.offset_index().is_none());
                    // The blocks are smaller than a chunk in one reading and larger in the other.
                    let pages = read(&bare, &["b", "a"], None, 64 << 20);
                    assert_eq!(pages, read(&bare, &["b", "a"], None, 1 << 10));
                    for group in 0..3 {
                        for leaf in [0, 2] {
                            let found = pages.offset_index(&metadata, group, leaf).unwrap();
                            let expected = &twin.offset_index().unwrap()[group][leaf];
                            assert!(found.page_locations.len() > 1);
                            assert_eq!(
                                found.page_locations, expected.page_locations,
                                "{version:?} {compression:?} {dictionary} {group} {leaf}"
                            );
                        }
                        assert!(pages.offset_index(&metadata, group, 1).is_none(), "a column that was not read");
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_noted_where_the_footer_says_it_or_rows_are_skipped() {
        let (bare, indexed) = ([false, true]).map(|i| file(0..900, WriterVersion::PARQUET_1_0, Compression::SNAPPY, true, i)).into();
        assert!(read(&indexed, &["a"], None, 1 << 20).is_empty());
        assert!(read(&bare, &["a"], Some(vec![3, 700]), 1 << 20).is_empty());
        assert!(!read(&bare, &["a"], None, 1 << 20).is_empty());
    }

    #[test]
    fn places_of_another_file_do_not_fit() {
        let write = |rows| file(rows, WriterVersion::PARQUET_1_0, Compression::SNAPPY, false, false);
        let (one, other) = (write(0..2000), write(100..2000));
        let pages = read(&one, &["a"], None, 1 << 20);
        assert!(pages.offset_index(&footer(&one), 1, 0).is_some());
        assert!(pages.offset_index(&footer(&other), 1, 0).is_none());
        assert!(pages.offset_index(&footer(&one), 2, 0).is_none());
        let written = serde_json::to_string(&pages).unwrap();
        assert_eq!(serde_json::from_str::<ShardPages>(&written).unwrap(), pages);
    }
}
