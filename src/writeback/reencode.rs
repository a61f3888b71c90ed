//! An Arrow IPC shard with weights inside: it has no column chunks to copy, so it is encoded as Parquet, batch by batch.

use super::splice::Splice;
use crate::error::{Error, Result};
use crate::shard::{Layout, ReadAhead, ReadOptions, Shard, ShardEvent, ShardFormat, ShardRequest, read_ahead};
use crate::storage::Location;
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::concat;
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use object_store::ObjectMeta;
use object_store::buffered::BufWriter;
use parquet::arrow::AsyncArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Rows written at once and bytes read ahead: constants, because page boundaries follow them.
const BLOCK_ROWS: usize = 4096;
const MEMORY: u64 = 256 << 20;
/// A row group ends when its encoded pages have this many bytes.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Writes the shard with the columns of its sidecar and gives its size and rows. Memory: two record batches of the shard, [`MEMORY`]
/// of reads ahead, one row group's encoded pages.
pub(super) async fn reencode(splice: &Splice, key_values: &[(&'static str, String)], target: &Location) -> Result<(u64, u64)> {
    let layout = Layout::load(&splice.shard, false).await?;
    let added = splice.columns.iter().map(|column| Arc::clone(&column.field));
    let fields: Vec<FieldRef> = layout.schema().fields().iter().cloned().chain(added).collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, layout.schema().metadata().clone()));
    let level = ZstdLevel::try_new(3).map_err(|e| Error::Internal(e.to_string()))?;
    let properties = WriterProperties::builder()
        .set_created_by(concat!("pushpull version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_key_value_metadata(Some(key_values.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect()));
    let output = BufWriter::new(Arc::clone(target.store()), target.path().clone());
    let writer = AsyncArrowWriter::try_new(output, Arc::clone(&schema), Some(properties.build()))
        .map_err(|e| splice.failed("a type that Parquet cannot hold", Box::new(e)))?;
    let (splice, columns) = (splice.clone(), layout.schema().fields().iter().map(|field| field.name().clone()).collect());
    let (runtime, shown) = (Handle::current(), target.clone());
    let weights = Rows::of(&splice, runtime.clone());
    let written = tokio::task::spawn_blocking(move || Reencoding { splice, schema, columns, weights, writer, runtime }.run(&shown));
    written.await.map_err(|e| Error::Internal(format!("encoding: {e}")))?
}

struct Reencoding {
    splice: Splice,
    schema: SchemaRef,
    columns: Vec<String>,
    weights: Rows,
    writer: AsyncArrowWriter<BufWriter>,
    runtime: Handle,
}

impl Reencoding {
    fn run(mut self, target: &Location) -> Result<(u64, u64)> {
        match self.write_rows(target) {
            Ok(rows) => {
                let failed = |e: ParquetError| Error::Storage { location: target.to_string(), action: "write", source: Box::new(e) };
                self.runtime.block_on(self.writer.finish()).map_err(failed)?;
                Ok((self.writer.bytes_written() as u64, rows))
            }
            Err(error) => {
                let abandoned = self.runtime.block_on(self.writer.into_inner().abort());
                if let Err(error) = abandoned {
                    tracing::debug!(%target, %error, "an abandoned upload was not cleaned up");
                }
                Err(error)
            }
        }
    }

    fn write_rows(&mut self, target: &Location) -> Result<u64> {
        let options = ReadOptions { columns: self.columns.clone(), rows: None, chunk_rows: BLOCK_ROWS, memory: MEMORY };
        let request = ShardRequest { shard: self.splice.shard.clone(), rows: None };
        let mut events = read_ahead(vec![request], options, self.runtime.clone());
        let mut rows = 0u64;
        while let Some((_, event)) = events.next_blocking() {
            let chunk = match event {
                ShardEvent::Opened(_) | ShardEvent::Done => continue,
                ShardEvent::Failed(error) => return Err(error),
                ShardEvent::Rows(chunk, _permit) => chunk.batch,
            };
            rows += chunk.num_rows() as u64;
            let Some(weights) = self.weights.take(chunk.num_rows()).map_err(|e| self.splice.failed("its sidecar", Box::new(e)))? else {
                return Err(self.splice.failed("its sidecar", "it has fewer rows than the shard".into()));
            };
            let columns: Vec<ArrayRef> = chunk.columns().iter().chain(&weights).cloned().collect();
            let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
                .map_err(|e| self.splice.failed("the shard beside its sidecar", Box::new(e)))?;
            let write = async {
                self.writer.write(&batch).await?;
                if self.writer.in_progress_size() >= ROW_GROUP_BYTES { self.writer.flush().await } else { Ok(()) }
            };
            let failed = |e: ParquetError| Error::Storage { location: target.to_string(), action: "write", source: Box::new(e) };
            self.runtime.block_on(write).map_err(failed)?;
        }
        if self.weights.next()?.is_some() {
            return Err(self.splice.failed("its sidecar", format!("it has more than the shard's {rows} rows").into()));
        }
        Ok(rows)
    }
}

/// The rows of one object, as many as asked for at a time.
struct Rows {
    events: ReadAhead,
    schema: SchemaRef,
    pending: Option<RecordBatch>,
}

impl Rows {
    fn of(splice: &Splice, runtime: Handle) -> Self {
        let columns: Vec<String> = splice.columns.iter().map(|column| column.name.clone()).collect();
        let options = ReadOptions { columns, rows: None, chunk_rows: BLOCK_ROWS, memory: MEMORY };
        // A sidecar is a shard like any other: its version is in its path.
        let meta = ObjectMeta {
            location: splice.sidecar.path().clone(),
            last_modified: Default::default(),
            size: splice.sidecar_size,
            e_tag: None,
            version: None,
        };
        let shard = Shard { name: splice.sidecar_path.clone(), location: splice.sidecar.clone(), meta, format: ShardFormat::Parquet };
        let fields: Vec<FieldRef> = splice.columns.iter().map(|column| Arc::clone(&column.field)).collect();
        let events = read_ahead(vec![ShardRequest { shard, rows: None }], options, runtime);
        Self { events, schema: Arc::new(Schema::new(fields)), pending: None }
    }

    /// The next rows, however many come; `None` after the last.
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        if let Some(batch) = self.pending.take() {
            return Ok(Some(batch));
        }
        while let Some((_, event)) = self.events.next_blocking() {
            match event {
                ShardEvent::Opened(_) | ShardEvent::Done => {}
                ShardEvent::Failed(error) => return Err(error),
                ShardEvent::Rows(chunk, _permit) if chunk.batch.num_rows() > 0 => return Ok(Some(chunk.batch)),
                ShardEvent::Rows(..) => {}
            }
        }
        Ok(None)
    }

    /// The next `rows` rows; `None` where there are fewer.
    fn take(&mut self, rows: usize) -> Result<Option<Vec<ArrayRef>>> {
        let (mut parts, mut missing) = (Vec::new(), rows);
        while missing > 0 {
            let Some(batch) = self.next()? else { return Ok(None) };
            let now = missing.min(batch.num_rows());
            parts.push(batch.slice(0, now));
            if now < batch.num_rows() {
                self.pending = Some(batch.slice(now, batch.num_rows() - now));
            }
            missing -= now;
        }
        let column = |place: usize| -> std::result::Result<ArrayRef, ArrowError> {
            let arrays: Vec<&dyn Array> = parts.iter().map(|part| part.column(place).as_ref()).collect();
            concat(&arrays)
        };
        let columns = (0..self.schema.fields().len()).map(column).collect::<std::result::Result<_, _>>();
        columns.map(Some).map_err(|e| Error::Internal(format!("rows of a sidecar: {e}")))
    }
}
