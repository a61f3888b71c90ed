//! The sidecar file: its columns, its encoding and its name.

use super::receipt::{Receipt, SCHEMA_KEY};
use crate::embed::WindowPlace;
use crate::error::{Error, Result};
use crate::shard::{Layout, ShardPages};
use crate::storage::Location;
use crate::transport::RowWeight;
use arrow::array::{ArrayRef, Float32Builder, Int64Array, Int64Builder, RecordBatch, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use object_store::buffered::BufWriter;
use parquet::arrow::AsyncArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use std::iter::repeat_n;
use std::sync::Arc;

/// Version of the sidecar's columns and keys. It is part of the file's name, so a change never meets an old file. Format 1 had no
/// `window` and `window_view`; where one is still published, SQL shows them as null. Format 2 did not name
/// the base's columns (`pushpull.base_schema`).
pub const SIDECAR_FORMAT: u32 = 3;
/// Key of the base shard's size in bytes, by which a reader notices that the base was replaced.
pub const BASE_SIZE_KEY: &str = "pushpull.base_size";
/// Key of the base shard's version (etag, or size and time).
pub const BASE_VERSION_KEY: &str = "pushpull.base_version";

/// Key of the places of the base's pages, as far as they were met while weighing and the base's own footer does not say them: a
/// [`ShardPages`] in JSON.
pub const BASE_PAGES_KEY: &str = "pushpull.base_pages";

/// Rows encoded at once. Page boundaries follow it, so it is a constant and not the caller's chunk.
const BLOCK_ROWS: usize = 65_536;

/// The sidecar's columns in order: `shard`, `shard_version`, `model` (the same in every row), `row` (position in the shard), and
/// the weight columns.
pub const WEIGHT_COLUMNS: [&str; 12] =
    ["shard", "shard_version", "model", "row", "weight", "pull", "push", "prior", "safe_ref", "harm_ref", "window", "window_view"];

/// The Arrow schema of a sidecar. The numbers and the references are null for a row without text.
///
/// `window` and `window_view` say where the row's weight was read: the window of [`Pool::Worst`](crate::embed::Pool::Worst) begins at
/// character `window` (from 0) of the column `window_view`. Both are null for a row without text and for every row of a job with
/// another pool or none. A row of which each text is one window was read in whole: 0, in the last of its columns that has a text.
pub fn sidecar_schema() -> SchemaRef {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let number = |name: &str| Field::new(name, DataType::Float32, true);
    Arc::new(Schema::new(vec![
        text("shard", false),
        text("shard_version", false),
        text("model", false),
        Field::new("row", DataType::Int64, false),
        number("weight"),
        number("pull"),
        number("push"),
        number("prior"),
        text("safe_ref", true),
        text("harm_ref", true),
        Field::new("window", DataType::Int64, true),
        text("window_view", true),
    ]))
}

/// What a sidecar is the sidecar of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidecarIdentity {
    /// The shard's name (path relative to the corpus URL).
    pub shard: String,
    /// The shard's version.
    pub shard_version: String,
    /// The shard's size in bytes.
    pub shard_size: u64,
    /// Digest of the model that gave the weights.
    pub model: String,
}

impl SidecarIdentity {
    /// What the file itself says it belongs to.
    pub(super) fn key_values(&self) -> Vec<KeyValue> {
        let key = |name: &str, value: &str| KeyValue::new(name.to_owned(), value.to_owned());
        vec![
            key("pushpull.format", &SIDECAR_FORMAT.to_string()),
            key("pushpull.base", &self.shard),
            key(BASE_VERSION_KEY, &self.shard_version),
            key(BASE_SIZE_KEY, &self.shard_size.to_string()),
            key("pushpull.model", &self.model),
        ]
    }
}

/// A sidecar's path below the output URL: `data/<hash of shard>/<hash of version and model>.parquet`. A new version of a shard
/// or a new model never reuses a path.
pub fn sidecar_path(identity: &SidecarIdentity) -> String {
    let hash = |parts: &[&str]| {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    };
    let format = SIDECAR_FORMAT.to_string();
    format!("data/{}/{}.parquet", hash(&[&identity.shard]), hash(&[&identity.shard_version, &identity.model, &format]))
}

/// Names of the references, by the index that transport gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceIds {
    /// Safe references.
    pub safe: Vec<String>,
    /// Harmful references.
    pub harm: Vec<String>,
}

/// What a row of a sidecar says beside its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SidecarRow {
    /// The row's weight and what it is made of.
    pub weight: RowWeight,
    /// The window it was read in, where the job picks the most harmful one.
    pub window: Option<WindowPlace>,
}

/// Writes one sidecar, row by row in the shard's order.
pub struct SidecarWriter {
    writer: AsyncArrowWriter<BufWriter>,
    location: Location,
    ids: Arc<ReferenceIds>,
    /// Names of the columns that windows are in.
    columns: Arc<[String]>,
    /// Row counts of the groups still to be filled, the current one first, without empty ones.
    groups: std::vec::IntoIter<u64>,
    left_in_group: u64,
    pending: Vec<Option<SidecarRow>>,
    receipt: Receipt,
}

impl std::fmt::Debug for SidecarWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SidecarWriter").field("receipt", &self.receipt).finish_non_exhaustive()
    }
}

impl SidecarWriter {
    /// Starts the sidecar of a shard whose row groups have `rows_per_group` rows, below the `output` location. `columns` are the
    /// text columns by the number that a [`WindowPlace`] gives.
    ///
    /// # Errors
    /// [`Error::Internal`] if the schema cannot be written.
    pub fn try_new(
        output: &Location,
        identity: SidecarIdentity,
        rows_per_group: &[u64],
        ids: Arc<ReferenceIds>,
        columns: Arc<[String]>,
    ) -> Result<Self> {
        let path = sidecar_path(&identity);
        let location = output.join(&path);
        let writer = BufWriter::new(Arc::clone(location.store()), location.path().clone());
        let writer = AsyncArrowWriter::try_new(writer, sidecar_schema(), Some(properties(&identity)?))
            .map_err(|e| Error::Internal(format!("sidecar schema: {e}")))?;
        let mut groups = rows_per_group.iter().copied().filter(|&rows| rows > 0).collect::<Vec<_>>().into_iter();
        let left_in_group = groups.next().unwrap_or(0);
        let receipt = Receipt::empty(identity, path);
        Ok(Self { writer, location, ids, columns, groups, left_in_group, pending: Vec::new(), receipt })
    }

    /// Names the file with the base shard's columns, so that they are known without opening the base. Default: none is named.
    pub fn with_schema(mut self, digest: String) -> Self {
        self.receipt.schema = Some(digest);
        self
    }

    /// Takes the weights of the next rows; `None` is a row without text.
    ///
    /// # Errors
    /// [`Error::Shard`] if there are more rows than the shard's footer said, and what the store answers.
    pub async fn write(&mut self, rows: &[Option<SidecarRow>]) -> Result<()> {
        let mut rest = rows;
        while !rest.is_empty() {
            if self.left_in_group == 0 {
                return Err(self.miscounted("more rows than its footer says"));
            }
            let room = (BLOCK_ROWS - self.pending.len()).min(usize::try_from(self.left_in_group).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.pending.extend_from_slice(now);
            self.left_in_group -= now.len() as u64;
            rest = later;
            if self.left_in_group == 0 {
                self.encode_pending().await?;
                self.writer.flush().await.map_err(|e| self.failed(e))?;
                self.left_in_group = self.groups.next().unwrap_or(0);
            } else if self.pending.len() == BLOCK_ROWS {
                self.encode_pending().await?;
            }
        }
        Ok(())
    }

    /// Rows taken so far.
    pub fn rows(&self) -> u64 {
        self.receipt.rows + self.pending.len() as u64
    }

    /// Whether every row that the shard's footer announced was taken.
    ///
    /// # Errors
    /// [`Error::Shard`] if rows are missing.
    pub fn complete(&self) -> Result<()> {
        if self.left_in_group > 0 { Err(self.miscounted("fewer rows than its footer says")) } else { Ok(()) }
    }

    /// Says the same of the base as an earlier sidecar of the same version of it, whose footer this is.
    pub fn with_base_of(mut self, earlier: &Layout) -> Self {
        self.receipt.schema = earlier.key_value(SCHEMA_KEY).map(str::to_owned);
        if let Some(pages) = earlier.key_value(BASE_PAGES_KEY) {
            self.writer.append_key_value_metadata(KeyValue::new(BASE_PAGES_KEY.to_owned(), pages.to_owned()));
        }
        self
    }

    /// Takes down where the base's pages are, for readers that skip some of them. Nothing is written where nothing is known.
    ///
    /// # Errors
    /// [`Error::Internal`] if they cannot be written down.
    pub fn note_pages(&mut self, pages: &ShardPages) -> Result<()> {
        if !pages.is_empty() {
            let value = serde_json::to_string(pages).map_err(|e| Error::Internal(format!("pages of a shard: {e}")))?;
            self.writer.append_key_value_metadata(KeyValue::new(BASE_PAGES_KEY.to_owned(), value));
        }
        Ok(())
    }

    /// Finishes the file; only now does the object appear.
    ///
    /// # Errors
    /// As [`complete`](Self::complete), and what the store answers.
    pub async fn finish(mut self) -> Result<Receipt> {
        self.complete()?;
        for entry in self.receipt.key_values()? {
            self.writer.append_key_value_metadata(entry);
        }
        if let Err(error) = self.writer.finish().await {
            let error = self.failed(error);
            self.abort().await;
            return Err(error);
        }
        self.receipt.size = self.writer.bytes_written() as u64;
        Ok(self.receipt)
    }

    /// Gives up; what was uploaded is discarded.
    pub async fn abort(self) {
        let location = self.location;
        if let Err(error) = self.writer.into_inner().abort().await {
            tracing::debug!(%location, %error, "abandoned upload was not cleaned up");
        }
    }

    async fn encode_pending(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let batch = self.columns()?;
        self.receipt.rows += self.pending.len() as u64;
        self.pending.drain(..).flatten().for_each(|row| self.receipt.count(row.weight.weight));
        self.writer.write(&batch).await.map_err(|e| self.failed(e))
    }

    fn columns(&self) -> Result<RecordBatch> {
        let rows = self.pending.len();
        let constant = |text: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(repeat_n(text, rows))) };
        let number = |of: fn(&RowWeight) -> f32| -> ArrayRef {
            let mut column = Float32Builder::with_capacity(rows);
            self.pending.iter().for_each(|row| column.append_option(row.as_ref().map(|row| of(&row.weight))));
            Arc::new(column.finish())
        };
        let names = |kind: &str, names: &[String], of: fn(&SidecarRow) -> Option<usize>| -> Result<ArrayRef> {
            let mut column = StringBuilder::with_capacity(rows, rows * 8);
            for row in &self.pending {
                match row.as_ref().and_then(of) {
                    None => column.append_null(),
                    Some(index) => column.append_value(names.get(index).ok_or_else(|| Error::Internal(format!("no {kind} {index}")))?),
                }
            }
            Ok(Arc::new(column.finish()))
        };
        let mut windows = Int64Builder::with_capacity(rows);
        self.pending.iter().for_each(|row| windows.append_option(row.and_then(|row| row.window).map(|window| window.offset as i64)));
        let first = self.receipt.rows as i64;
        let identity = &self.receipt.identity;
        let columns = vec![
            constant(&identity.shard),
            constant(&identity.shard_version),
            constant(&identity.model),
            Arc::new(Int64Array::from_iter_values(first..first + rows as i64)),
            number(|row| row.weight),
            number(|row| row.pull),
            number(|row| row.push),
            number(|row| row.prior),
            names("reference", &self.ids.safe, |row| Some(row.weight.safe_ref as usize))?,
            names("reference", &self.ids.harm, |row| Some(row.weight.harm_ref as usize))?,
            Arc::new(windows.finish()),
            names("column", &self.columns, |row| row.window.map(|window| window.column))?,
        ];
        RecordBatch::try_new(sidecar_schema(), columns).map_err(|e| Error::Internal(format!("sidecar columns: {e}")))
    }

    fn miscounted(&self, what: &str) -> Error {
        Error::Shard { shard: self.receipt.identity.shard.clone(), row_group: None, reason: format!("holds {what}"), source: None }
    }

    fn failed(&self, error: parquet::errors::ParquetError) -> Error {
        Error::Storage { location: self.location.to_string(), action: "write", source: Box::new(error) }
    }
}

/// Encodings that every engine reads, statistics per page so that a predicate on the weight skips pages of the base as well.
fn properties(identity: &SidecarIdentity) -> Result<WriterProperties> {
    let column = |name: &str| ColumnPath::from(name);
    let level = ZstdLevel::try_new(3).map_err(|e| Error::Internal(e.to_string()))?;
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("pushpull version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(None)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_column_encoding(column("row"), Encoding::DELTA_BINARY_PACKED)
        .set_column_dictionary_enabled(column("row"), false)
        .set_key_value_metadata(Some(identity.key_values()));
    for name in ["weight", "pull", "push", "prior"] {
        properties = properties.set_column_dictionary_enabled(column(name), false);
    }
    Ok(properties.build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    fn row(i: usize) -> Option<SidecarRow> {
        let x = i as f32;
        let weight = RowWeight { weight: x / 100.0, pull: x, push: -x, prior: 0.5, safe_ref: (i % 2) as u32, harm_ref: (i % 3) as u32 };
        let window = (i % 5 != 1).then_some(WindowPlace { column: i % 2, offset: 3 * i });
        (i % 7 != 3).then_some(SidecarRow { weight, window })
    }

    fn columns() -> Arc<[String]> {
        Arc::new(["prompt".to_owned(), "text".to_owned()])
    }

    async fn written(rows_per_group: &[u64], chunk: usize) -> (Receipt, bytes::Bytes) {
        let output = Location::new(Arc::new(InMemory::new()), Path::from("out"), "memory://out".into());
        let identity = SidecarIdentity { shard: "a/b.parquet".into(), shard_version: "v1".into(), shard_size: 99, model: "m".into() };
        let ids = ReferenceIds { safe: vec!["s0".into(), "s1".into()], harm: vec!["h0".into(), "h1".into(), "h2".into()] };
        let mut writer = SidecarWriter::try_new(&output, identity, rows_per_group, Arc::new(ids), columns()).unwrap();
        let rows: Vec<_> = (0..rows_per_group.iter().sum::<u64>() as usize).map(row).collect();
        for part in rows.chunks(chunk) {
            writer.write(part).await.unwrap();
        }
        let receipt = writer.finish().await.unwrap();
        let bytes = output.join(&receipt.path).read().await.unwrap();
        assert_eq!(receipt.size, bytes.len() as u64);
        (receipt, bytes)
    }

    #[tokio::test]
    async fn row_groups_are_the_bases_and_bytes_do_not_depend_on_chunks() {
        let groups = [3, 0, 70_000, 1, 200];
        let (receipt, bytes) = written(&groups, 64).await;
        for chunk in [1, 4096, 100_000] {
            assert!(written(&groups, chunk).await.1 == bytes, "chunk {chunk}");
        }
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        let counts: Vec<i64> = reader.metadata().row_groups().iter().map(|g| g.num_rows()).collect();
        assert_eq!(counts, [3, 70_000, 1, 200]);
        let mut i = 0;
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let weights = batch.column_by_name("weight").unwrap().as_any().downcast_ref::<arrow::array::Float32Array>().unwrap().clone();
            let rows = batch.column_by_name("row").unwrap().as_any().downcast_ref::<Int64Array>().unwrap().clone();
            let harm = batch.column_by_name("harm_ref").unwrap().as_any().downcast_ref::<StringArray>().unwrap().clone();
            let windows = batch.column_by_name("window").unwrap().as_any().downcast_ref::<Int64Array>().unwrap().clone();
            let views = batch.column_by_name("window_view").unwrap().as_any().downcast_ref::<StringArray>().unwrap().clone();
            for k in 0..batch.num_rows() {
                assert_eq!(rows.value(k), i as i64);
                let expected = row(i);
                assert_eq!(weights.iter().nth(k).unwrap(), expected.map(|r| r.weight.weight));
                assert_eq!(harm.iter().nth(k).unwrap().map(str::to_owned), expected.map(|r| format!("h{}", r.weight.harm_ref)));
                let window = expected.and_then(|r| r.window);
                assert_eq!(windows.iter().nth(k).unwrap(), window.map(|w| w.offset as i64));
                assert_eq!(views.iter().nth(k).unwrap(), window.map(|w| columns()[w.column].clone()).as_deref());
                i += 1;
            }
        }
        assert_eq!(i as u64, receipt.rows);
        assert_eq!(receipt.weighed, (0..i).filter(|i| row(*i).is_some()).count() as u64);
    }

    #[tokio::test]
    async fn a_shard_without_rows_has_a_sidecar_without_rows() {
        let (receipt, bytes) = written(&[0], 10).await;
        assert_eq!((receipt.rows, receipt.weight_range), (0, None));
        assert_eq!(ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().metadata().num_row_groups(), 0);
    }

    #[tokio::test]
    async fn wrong_row_counts_are_refused() {
        let output = Location::new(Arc::new(InMemory::new()), Path::from("out"), "memory://out".into());
        let identity = SidecarIdentity { shard: "s".into(), shard_version: "v".into(), shard_size: 1, model: "m".into() };
        let ids = Arc::new(ReferenceIds { safe: vec!["a".into(); 2], harm: vec!["b".into(); 3] });
        let mut writer = SidecarWriter::try_new(&output, identity.clone(), &[2], Arc::clone(&ids), columns()).unwrap();
        assert!(writer.write(&[row(0), row(1), row(2)]).await.unwrap_err().to_string().contains("more rows"));
        let mut writer = SidecarWriter::try_new(&output, identity, &[2], ids, columns()).unwrap();
        writer.write(&[row(0)]).await.unwrap();
        assert!(writer.finish().await.unwrap_err().to_string().contains("fewer rows"));
        assert!(output.list().await.unwrap().is_empty());
    }

    #[test]
    fn paths_change_with_version_and_model_and_share_the_shards_folder() {
        let id = |version: &str, model: &str| SidecarIdentity {
            shard: "s".into(),
            shard_version: version.into(),
            shard_size: 1,
            model: model.into(),
        };
        let (a, b, c) = (sidecar_path(&id("1", "m")), sidecar_path(&id("2", "m")), sidecar_path(&id("1", "n")));
        assert!(a != b && a != c && b != c);
        assert_eq!(a[..37], b[..37]);
    }
}
