//! Arrow IPC shards: in goes an object, out come its schema and its record batches with the wanted columns.
//!
//! Both layouts are read: the file (a footer lists the batches) and the stream (batches follow each other; what Hugging Face
//! `datasets` writes). A file's batches are fetched one by one, a stream in windows; one fetch is always ahead of the decoder, so
//! two batches, or two windows and a batch, are held.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{FileDecoder, StreamDecoder, read_footer_length};
use arrow::ipc::{Block, MetadataVersion, root_as_footer, root_as_message};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use super::object::{StoredObject, TAIL};
use super::reader::Shard;
use crate::error::{Error, Result};

/// Marks begin and end of the file layout.
const MAGIC: &[u8] = b"ARROW1";

/// Bytes of the trailer: the footer's length and the magic.
const TRAILER: usize = 10;

/// Bytes of a stream fetched at a time.
const WINDOW: u64 = 8 << 20;

/// Fetches under way at a time, in order.
const AHEAD: usize = 2;

/// What is known of an Arrow shard before its rows are read.
#[derive(Debug)]
pub(super) struct IpcShard {
    pub(super) schema: SchemaRef,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    File { version: MetadataVersion, dictionaries: Vec<Block>, batches: Vec<Block> },
    Stream,
}

impl IpcShard {
    /// Reads the footer of a file or the first message of a stream.
    pub(super) async fn open(object: &StoredObject) -> Result<Self> {
        let size = object.size();
        let tail = object.range(size - size.min(TAIL)..size).await?;
        let Some(trailer) = tail.last_chunk::<TRAILER>().filter(|t| t.ends_with(MAGIC)) else {
            return Self::open_stream(object).await;
        };
        let length = read_footer_length(*trailer).map_err(|e| unreadable(object, e))?;
        let start = size
            .checked_sub((length + TRAILER) as u64)
            .ok_or_else(|| object.error(format!("its Arrow footer claims {length} bytes, the object has {size}"), None))?;
        let footer = match tail.len().checked_sub(length + TRAILER) {
            Some(begin) => tail.slice(begin..begin + length),
            None => object.range(start..start + length as u64).await?,
        };
        let footer = root_as_footer(&footer).map_err(|e| unreadable(object, ArrowError::ParseError(e.to_string())))?;
        let schema = footer.schema().ok_or_else(|| object.error("its Arrow footer has no schema", None))?;
        let blocks = |blocks: Option<_>| -> Result<Vec<Block>> {
            let blocks: Vec<Block> = blocks.iter().flatten().copied().collect();
            for block in &blocks {
                block_range(object, block)?;
            }
            Ok(blocks)
        };
        let layout = Layout::File {
            version: footer.version(),
            dictionaries: blocks(footer.dictionaries())?,
            batches: blocks(footer.recordBatches())?,
        };
        Ok(Self { schema: Arc::new(fb_to_schema(schema)), layout })
    }

    async fn open_stream(object: &StoredObject) -> Result<Self> {
        let mut length = TAIL;
        loop {
            let head = object.range(0..length.min(object.size())).await?;
            if head.starts_with(MAGIC) {
                return Err(object.error("is an Arrow file without its footer: cut off", None));
            }
            let mut decoder = StreamDecoder::new();
            decoder.decode(&mut Buffer::from(head)).map_err(|e| unreadable(object, e))?;
            if let Some(schema) = decoder.schema() {
                return Ok(Self { schema, layout: Layout::Stream });
            }
            if length >= object.size() {
                return Err(object.error("is neither an Arrow file nor an Arrow stream", None));
            }
            length *= 4;
        }
    }

    /// The record batches of `shard`, whose header this is, with the columns `projection` of its schema (ascending).
    pub(super) fn batches(&self, shard: Arc<Shard>, projection: Vec<usize>) -> BoxStream<'static, Result<RecordBatch>> {
        match &self.layout {
            Layout::Stream => stream_batches(shard, projection),
            Layout::File { batches, .. } if projection.is_empty() => row_counts(shard, batches.clone()),
            Layout::File { version, dictionaries, batches } => {
                let decoder = FileDecoder::new(Arc::clone(&self.schema), *version).with_projection(projection);
                file_batches(shard, decoder, dictionaries.clone(), batches.clone())
            }
        }
    }
}

fn unreadable(object: &StoredObject, error: ArrowError) -> Error {
    object.error("cannot be read as Arrow IPC", Some(Box::new(error)))
}

/// Where a block lies; the decoder trusts these numbers, so they are checked here.
fn block_range(object: &StoredObject, block: &Block) -> Result<Range<u64>> {
    let parts = [block.offset(), i64::from(block.metaDataLength()), block.bodyLength()].map(u64::try_from);
    if let [Ok(offset), Ok(metadata), Ok(body)] = parts
        && metadata >= 8
        && let Some(end) = offset.checked_add(metadata).and_then(|end| end.checked_add(body))
        && end <= object.size()
    {
        return Ok(offset..end);
    }
    Err(object.error(format!("its Arrow footer points outside of the object: {block:?}"), None))
}

fn fetch_blocks(
    shard: Arc<Shard>,
    blocks: Vec<Block>,
    metadata_only: bool,
) -> impl futures::Stream<Item = Result<(Block, Bytes)>> + Send + 'static {
    let fetch = move |block: Block| {
        let shard = Arc::clone(&shard);
        async move {
            let mut range = block_range(&shard.base, &block)?;
            if metadata_only {
                range.end -= block.bodyLength().unsigned_abs();
            }
            Ok((block, shard.base.range(range).await?))
        }
    };
    stream::iter(blocks).map(fetch).buffered(AHEAD)
}

fn file_batches(
    shard: Arc<Shard>,
    mut decoder: FileDecoder,
    dictionaries: Vec<Block>,
    batches: Vec<Block>,
) -> BoxStream<'static, Result<RecordBatch>> {
    let open = async move {
        let mut fetched = Box::pin(fetch_blocks(Arc::clone(&shard), dictionaries, false));
        while let Some((block, bytes)) = fetched.try_next().await? {
            decoder.read_dictionary(&block, &Buffer::from(bytes)).map_err(|e| unreadable(&shard.base, e))?;
        }
        let blocks = fetch_blocks(Arc::clone(&shard), batches, false);
        let decode = move |(index, fetched): (usize, Result<(Block, Bytes)>)| {
            let (block, bytes) = fetched?;
            let batch = decoder.read_record_batch(&block, &Buffer::from(bytes)).map_err(|e| bad_batch(&shard, index, e))?;
            batch.ok_or_else(|| bad_batch(&shard, index, ArrowError::ParseError("empty message".to_owned())))
        };
        Ok(blocks.enumerate().map(decode))
    };
    stream::once(open).try_flatten().boxed()
}

/// Batches without columns: only the headers of the record batches are fetched.
fn row_counts(shard: Arc<Shard>, batches: Vec<Block>) -> BoxStream<'static, Result<RecordBatch>> {
    let headers = fetch_blocks(Arc::clone(&shard), batches, true);
    let count = move |(index, fetched): (usize, Result<(Block, Bytes)>)| {
        let (_, bytes) = fetched?;
        // An optional continuation mark and the length precede the message.
        let message = if bytes.starts_with(&[0xff; 4]) { bytes.get(8..) } else { bytes.get(4..) };
        let rows = message
            .and_then(|m| root_as_message(m).ok())
            .and_then(|m| m.header_as_record_batch())
            .and_then(|batch| usize::try_from(batch.length()).ok())
            .ok_or_else(|| bad_batch(&shard, index, ArrowError::ParseError("not a record batch".to_owned())))?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).map_err(|e| bad_batch(&shard, index, e))
    };
    headers.enumerate().map(count).boxed()
}

fn stream_batches(shard: Arc<Shard>, projection: Vec<usize>) -> BoxStream<'static, Result<RecordBatch>> {
    let size = shard.base.size();
    let windows = (0..size.div_ceil(WINDOW)).map(move |n| n * WINDOW..size.min((n + 1) * WINDOW));
    let fetching = Arc::clone(&shard);
    let fetched = stream::iter(windows)
        .map(move |range| {
            let shard = Arc::clone(&fetching);
            async move { shard.base.range(range).await }
        })
        .buffered(AHEAD)
        .boxed();
    let state = StreamState { shard, projection, fetched, decoder: StreamDecoder::new(), bytes: Buffer::from(Bytes::new()), index: 0 };
    stream::try_unfold(state, |mut state| async move { Ok(state.next().await?.map(|batch| (batch, state))) }).boxed()
}

struct StreamState {
    shard: Arc<Shard>,
    projection: Vec<usize>,
    fetched: BoxStream<'static, Result<Bytes>>,
    decoder: StreamDecoder,
    bytes: Buffer,
    index: usize,
}

impl StreamState {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let decoded = self.decoder.decode(&mut self.bytes).and_then(|b| b.map(|b| b.project(&self.projection)).transpose());
            if let Some(batch) = decoded.map_err(|e| bad_batch(&self.shard, self.index, e))? {
                self.index += 1;
                return Ok(Some(batch));
            }
            match self.fetched.try_next().await? {
                Some(bytes) => self.bytes = Buffer::from(bytes),
                None => {
                    self.decoder.finish().map_err(|e| bad_batch(&self.shard, self.index, e))?;
                    return Ok(None);
                }
            }
        }
    }
}

fn bad_batch(shard: &Shard, index: usize, error: ArrowError) -> Error {
    Error::Shard {
        shard: shard.name().to_owned(),
        row_group: Some(index),
        reason: "record batch cannot be decoded".to_owned(),
        source: Some(Box::new(error)),
    }
}
