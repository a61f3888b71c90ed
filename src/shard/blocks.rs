//! A blocking view of one object that fetches blocks as they are needed and the next one ahead, so that decoding one page of
//! a huge column chunk never needs the whole chunk in memory.

use super::listing::Shard;
use super::pages::MetPages;
use crate::storage::Location;
use bytes::{Buf, Bytes, BytesMut};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};
use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A byte range that is read from front to back, and the lane it belongs to: the same column in every row group. A lane keeps
/// one block and the one after it.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) lane: usize,
    pub(super) range: Range<u64>,
}

type Fetch = JoinHandle<object_store::Result<Bytes>>;

#[derive(Debug, Default)]
struct Lane {
    current: Option<(u64, Bytes)>,
    next: Option<(Range<u64>, Fetch)>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some((_, fetch)) = self.next.take() {
            fetch.abort();
        }
    }
}

#[derive(Debug)]
struct Shared {
    location: Location,
    etag: Option<String>,
    size: u64,
    spans: Vec<Span>,
    block: u64,
    ahead: bool,
    runtime: Handle,
    lanes: Mutex<HashMap<usize, Lane>>,
    /// The page headers read, where they are of interest.
    met: Option<Mutex<MetPages>>,
}

/// Blocking reader of one object. Must be used outside the async runtime's own threads.
#[derive(Debug, Clone)]
pub(super) struct BlockReader(Arc<Shared>);

impl BlockReader {
    /// `spans`, sorted by start, are what will be read, in blocks of `block` bytes; `ahead` fetches the next block while one is decoded,
    /// `notes_pages` keeps the page headers that are read.
    pub(super) fn new(shard: &Shard, spans: Vec<Span>, block: u64, ahead: bool, notes_pages: bool, runtime: Handle) -> Self {
        let (location, etag, size) = (shard.location.clone(), shard.meta.e_tag.clone(), shard.meta.size);
        let met = notes_pages.then(Mutex::default);
        Self(Arc::new(Shared { location, etag, size, spans, block: block.max(1), ahead, runtime, lanes: Mutex::default(), met }))
    }

    /// What `with` makes of the pages met so far; `None` where they are not kept.
    pub(super) fn pages<T>(&self, with: impl FnOnce(&MetPages) -> T) -> Option<T> {
        self.0.met.as_ref().map(|met| with(&met.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn note(&self, with: impl FnOnce(&mut MetPages)) {
        if let Some(met) = &self.0.met {
            with(&mut met.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Bytes from `position` to the end of the block that holds it; never empty inside the object.
    fn at(&self, position: u64) -> Result<Bytes> {
        let shared = &*self.0;
        if position >= shared.size {
            return Err(ParquetError::EOF(format!("position {position} is beyond the object's {} bytes", shared.size)));
        }
        let index = shared.spans.partition_point(|span| span.range.end <= position);
        let Some(span) = shared.spans.get(index).filter(|span| span.range.contains(&position)) else {
            let end = (position + shared.block).min(shared.size);
            return self.fetch_now(position..end);
        };
        let mut lanes = shared.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry(span.lane).or_default();
        if let Some((start, bytes)) = &lane.current
            && (*start..*start + bytes.len() as u64).contains(&position)
        {
            return Ok(bytes.slice((position - start) as usize..));
        }
        let (start, bytes) = match lane.next.take() {
            Some((range, fetch)) if range.contains(&position) => {
                let joined = shared.runtime.block_on(fetch).map_err(|e| ParquetError::External(Box::new(e)))?;
                (range.start, joined.map_err(|e| self.failed(e))?)
            }
            other => {
                if let Some((_, fetch)) = other {
                    fetch.abort();
                }
                let range = position..(position + shared.block).min(span.range.end);
                (position, self.fetch_now(range)?)
            }
        };
        let end = start + bytes.len() as u64;
        if shared.ahead
            && let Some(range) = self.following(index, end)
        {
            let (object, wanted) = (Arc::clone(&self.0), range.clone());
            let fetch = shared.runtime.spawn(async move { object.location.read_range(wanted, object.etag.as_deref()).await });
            lane.next = Some((range, fetch));
        }
        lane.current = Some((start, bytes.clone()));
        Ok(bytes.slice((position - start) as usize..))
    }

    /// The block after `end` in the same lane, in the same span or the lane's next one.
    fn following(&self, index: usize, end: u64) -> Option<Range<u64>> {
        let shared = &*self.0;
        let span = &shared.spans[index];
        if end < span.range.end {
            return Some(end..(end + shared.block).min(span.range.end));
        }
        let next = shared.spans[index + 1..].iter().find(|other| other.lane == span.lane && !other.range.is_empty())?;
        Some(next.range.start..(next.range.start + shared.block).min(next.range.end))
    }

    fn fetch_now(&self, range: Range<u64>) -> Result<Bytes> {
        let shared = &*self.0;
        shared.runtime.block_on(shared.location.read_range(range, shared.etag.as_deref())).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: object_store::Error) -> ParquetError {
        ParquetError::External(Box::new(self.0.location.error("read", error)))
    }
}

impl Length for BlockReader {
    fn len(&self) -> u64 {
        self.0.size
    }
}

impl ChunkReader for BlockReader {
    type T = BlockCursor;

    fn get_read(&self, start: u64) -> Result<BlockCursor> {
        Ok(BlockCursor { reader: self.clone(), start, position: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.note(|met| met.content(start, start + length as u64));
        let mut first = if length == 0 { return Ok(Bytes::new()) } else { self.at(start)? };
        if first.len() >= length {
            return Ok(first.split_to(length));
        }
        let mut joined = BytesMut::with_capacity(length);
        joined.extend_from_slice(&first);
        while joined.len() < length {
            let part = self.at(start + joined.len() as u64)?;
            let wanted = part.len().min(length - joined.len());
            joined.extend_from_slice(&part[..wanted]);
        }
        Ok(joined.freeze())
    }
}

/// A sequential read from one position.
#[derive(Debug)]
pub(super) struct BlockCursor {
    reader: BlockReader,
    start: u64,
    position: u64,
}

impl Read for BlockCursor {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.position >= self.reader.0.size || buffer.is_empty() {
            return Ok(0);
        }
        let mut bytes = self.reader.at(self.position).map_err(std::io::Error::other)?;
        let read = bytes.len().min(buffer.len());
        bytes.copy_to_slice(&mut buffer[..read]);
        // A Parquet reader takes page headers from a cursor and contents whole.
        self.reader.note(|met| met.header(self.start, &buffer[..read]));
        self.position += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::ShardFormat;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStore, PutPayload};

    #[test]
    fn any_block_size_reads_the_same_bytes() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let content: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        runtime.block_on(store.put(&Path::from("o"), PutPayload::from(content.clone()))).unwrap();
        let location = Location::new(store, Path::from("o"), "memory://o".into());
        let meta = runtime.block_on(location.head()).unwrap();
        let shard = Shard { name: "o".into(), location, meta, format: ShardFormat::Parquet };
        let spans = vec![
            Span { lane: 0, range: 4..300 },
            Span { lane: 1, range: 300..500 },
            Span { lane: 0, range: 500..777 },
            Span { lane: 1, range: 777..990 },
        ];
        for block in [1, 13, 64, 5000] {
            for ahead in [false, true] {
                let reader = BlockReader::new(&shard, spans.clone(), block, ahead, false, runtime.handle().clone());
                for (start, length) in [(4, 50), (54, 246), (300, 200), (500, 277), (10, 3), (780, 100), (990, 10), (250, 300)] {
                    assert_eq!(reader.get_bytes(start, length).unwrap(), content[start as usize..start as usize + length]);
                }
                let mut all = Vec::new();
                reader.get_read(0).unwrap().read_to_end(&mut all).unwrap();
                assert_eq!(all, content);
                assert!(reader.get_bytes(990, 11).is_err());
            }
        }
    }
}
