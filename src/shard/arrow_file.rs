//! Arrow IPC files in an object store: the footer, and record batches one at a time. A record batch is fetched whole, because
//! its buffers are not addressable by column before its header is read; columns that are not wanted are not decoded.

use super::layout::unreadable;
use super::listing::Shard;
use crate::error::Result;
use crate::storage::Location;
use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::{Block, MetadataVersion, root_as_footer, root_as_message};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const TRAILER: u64 = 10;
/// Record batch heads read at once.
const HEADS_AT_ONCE: usize = 16;

/// The footer of an Arrow IPC file.
#[derive(Debug, Clone)]
pub(super) struct ArrowFile {
    schema: SchemaRef,
    version: MetadataVersion,
    dictionaries: Vec<Block>,
    batches: Vec<Block>,
    rows_per_batch: Vec<u64>,
}

impl ArrowFile {
    pub(super) async fn load(shard: &Shard) -> Result<Self> {
        let (location, size) = (&shard.location, shard.meta.size);
        let malformed = |reason: String| unreadable(shard, None, "no readable Arrow footer", Box::new(ArrowError::ParseError(reason)));
        let read = |range: Range<u64>| async move {
            location
                .store()
                .get_range(location.path(), range)
                .await
                .map_err(|e| location.error("read", e))
                .map_err(|e| unreadable(shard, None, "could not be read", Box::new(e)))
        };
        if size < TRAILER {
            return Err(malformed(format!("the file has {size} bytes")));
        }
        let trailer: [u8; TRAILER as usize] =
            read(size - TRAILER..size).await?.as_ref().try_into().map_err(|_| malformed("short read".into()))?;
        let length = read_footer_length(trailer).map_err(|e| malformed(e.to_string()))? as u64;
        if length > size - TRAILER {
            return Err(malformed(format!("footer of {length} bytes in a file of {size}")));
        }
        let bytes = read(size - TRAILER - length..size - TRAILER).await?;
        let footer = root_as_footer(&bytes).map_err(|e| malformed(e.to_string()))?;
        let schema = footer.schema().ok_or_else(|| malformed("no schema".into()))?;
        let dictionaries: Vec<Block> = footer.dictionaries().iter().flatten().copied().collect();
        let batches: Vec<Block> = footer.recordBatches().iter().flatten().copied().collect();
        for block in dictionaries.iter().chain(&batches) {
            let end = (block.offset() as u64).saturating_add(block.metaDataLength() as u64).saturating_add(block.bodyLength() as u64);
            if block.offset() < 0 || block.metaDataLength() < 0 || block.bodyLength() < 0 || end > size {
                return Err(malformed(format!("a block ends at {end} in a file of {size} bytes")));
            }
        }
        // One by one: a combined request would fetch what lies between the heads, which is the file.
        let heads = batches.iter().map(|b| read(b.offset() as u64..b.offset() as u64 + b.metaDataLength() as u64));
        let heads: Vec<Bytes> = stream::iter(heads.collect::<Vec<_>>()).buffered(HEADS_AT_ONCE).try_collect().await?;
        let mut rows_per_batch = Vec::with_capacity(heads.len());
        for (index, head) in heads.iter().enumerate() {
            let rows = batch_rows(head).map_err(|e| unreadable(shard, Some(index), "no readable record batch header", Box::new(e)))?;
            rows_per_batch.push(rows);
        }
        let schema = catch_unwind(AssertUnwindSafe(|| fb_to_schema(schema)))
            .map_err(|_| malformed("a schema that Arrow cannot represent".into()))?;
        Ok(Self { schema: Arc::new(schema), version: footer.version(), dictionaries, batches, rows_per_batch })
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(super) fn rows_per_batch(&self) -> &[u64] {
        &self.rows_per_batch
    }

    /// Bytes of one record batch as stored.
    pub(super) fn batch_bytes(&self, index: usize) -> u64 {
        self.batches.get(index).map_or(0, |b| b.metaDataLength() as u64 + b.bodyLength() as u64)
    }

    /// A decoder of the given columns, its dictionaries loaded.
    pub(super) async fn decoder(&self, location: &Location, projection: Vec<usize>) -> std::result::Result<ArrowDecoder, ArrowError> {
        let mut decoder = FileDecoder::new(Arc::clone(&self.schema), self.version).with_projection(projection);
        for block in &self.dictionaries {
            decoder.read_dictionary(block, &fetch(location, block).await?)?;
        }
        Ok(ArrowDecoder { decoder, location: location.clone(), batches: self.batches.clone() })
    }
}

/// Reads record batches by number.
#[derive(Debug)]
pub(super) struct ArrowDecoder {
    decoder: FileDecoder,
    location: Location,
    batches: Vec<Block>,
}

impl ArrowDecoder {
    pub(super) async fn batch(&self, index: usize) -> std::result::Result<RecordBatch, ArrowError> {
        let block = self.batches.get(index).ok_or_else(|| ArrowError::IpcError(format!("no record batch {index}")))?;
        let bytes = fetch(&self.location, block).await?;
        self.decoder.read_record_batch(block, &bytes)?.ok_or_else(|| ArrowError::IpcError(format!("record batch {index} is empty")))
    }
}

async fn fetch(location: &Location, block: &Block) -> std::result::Result<Buffer, ArrowError> {
    let start = block.offset() as u64;
    let range = start..start + block.metaDataLength() as u64 + block.bodyLength() as u64;
    let bytes = location
        .store()
        .get_range(location.path(), range)
        .await
        .map_err(|e| ArrowError::ExternalError(Box::new(location.error("read", e))))?;
    Ok(Buffer::from(bytes))
}

/// The number of rows in the header of a record batch message: continuation marker, length, flatbuffer.
fn batch_rows(head: &[u8]) -> std::result::Result<u64, ArrowError> {
    let start = if head.starts_with(&[0xff; 4]) { 8 } else { 4 };
    let message = head.get(start..).ok_or_else(|| ArrowError::IpcError("short record batch header".into()))?;
    let message = root_as_message(message).map_err(|e| ArrowError::IpcError(e.to_string()))?;
    let batch = message.header_as_record_batch().ok_or_else(|| ArrowError::IpcError("not a record batch".into()))?;
    u64::try_from(batch.length()).map_err(|_| ArrowError::IpcError("a negative number of rows".into()))
}
