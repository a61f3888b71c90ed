//! One object of a store, read by byte range: in go its listed size and entity tag, out come bytes of exactly that version.
//!
//! Every answer is compared with the listing, so an object that is replaced while a query runs is an error and not a mixture of
//! two versions. Parquet footers and page indexes are fetched once per object, however many partitions ask at the same time, and
//! kept in a [`FooterCache`]; so is the whole of an object no longer than the tail that is fetched for its footer.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, coalesce_ranges};
use parquet::arrow::async_reader::MetadataFetch;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use tokio::sync::Mutex;

use super::footers::{Cached, FooterCache, Key, Kind, version};
use crate::error::{BoxError, Error, Result};

/// Ranges closer than this are fetched in one request: below it a second request costs more than the bytes between.
const RANGE_GAP: u64 = 128 << 10;

/// Bytes fetched from the end of an object in the hope that they hold the whole footer.
pub(super) const TAIL: u64 = 64 << 10;

/// Which of a shard's two objects, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The user's own object.
    Base,
    /// The weights beside it.
    Sidecar,
}

/// A base shard or a sidecar.
#[derive(Debug)]
pub(super) struct StoredObject {
    store: Arc<dyn ObjectStore>,
    meta: ObjectMeta,
    shard: String,
    role: Role,
    cache: Arc<FooterCache>,
    turns: Turns,
}

/// One caller at a time reads what several want.
#[derive(Debug, Default)]
struct Turns {
    whole: Mutex<()>,
    footer: Mutex<()>,
    indexed: Mutex<()>,
}

impl StoredObject {
    pub(super) fn new(store: Arc<dyn ObjectStore>, meta: ObjectMeta, shard: &str, role: Role, cache: Arc<FooterCache>) -> Self {
        Self { store, meta, shard: shard.to_owned(), role, cache, turns: Turns::default() }
    }

    pub(super) fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    pub(super) fn size(&self) -> u64 {
        self.meta.size
    }

    pub(super) fn cache(&self) -> &FooterCache {
        &self.cache
    }

    /// What an entry of the cache about this object goes by.
    pub(super) fn key(&self, kind: Kind) -> Key {
        Key::new(&self.store, &self.meta, kind)
    }

    /// Path and version, to tell this object from others.
    pub(super) fn identity(&self) -> (String, String) {
        (self.meta.location.to_string(), version(&self.meta))
    }

    /// An error about this object; `reason` reads after "shard X: ".
    pub(super) fn error(&self, reason: impl std::fmt::Display, source: Option<BoxError>) -> Error {
        let reason = match self.role {
            Role::Base => reason.to_string(),
            Role::Sidecar => format!("sidecar {}: {reason}", self.meta.location),
        };
        Error::Shard { shard: self.shard.clone(), row_group: None, reason, source }
    }

    /// The bytes of `ranges`, in their order.
    pub(super) async fn ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if let Some(range) = ranges.iter().find(|r| r.start > r.end || r.end > self.size()) {
            return Err(self.error(format!("bytes {range:?} are outside of its {} bytes", self.size()), None));
        }
        // The footer of a small object comes with all of it, so all of it is kept: one request in place of three.
        if self.size() <= TAIL && ranges.iter().any(|range| !range.is_empty()) {
            let whole = self.whole().await?;
            return Ok(ranges.iter().map(|range| whole.slice(range.start as usize..range.end as usize)).collect());
        }
        coalesce_ranges(ranges, |range| self.fetch(range), RANGE_GAP).await
    }

    async fn whole(&self) -> Result<Bytes> {
        let load = || async { Ok(Cached::Bytes(self.fetch(0..self.size()).await?)) };
        match self.cache.get_or_load(self.key(Kind::Whole), &self.turns.whole, load).await? {
            Cached::Bytes(bytes) => Ok(bytes),
            Cached::Metadata(_) => Err(Error::Internal("metadata where bytes were kept".to_owned())),
        }
    }

    /// The bytes of one range.
    pub(super) async fn range(&self, range: Range<u64>) -> Result<Bytes> {
        let bytes = self.ranges(std::slice::from_ref(&range)).await?;
        bytes.into_iter().next().ok_or_else(|| Error::Internal(format!("no bytes for {range:?}")))
    }

    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let expected = range.end - range.start;
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..Default::default() };
        let failed = |e: object_store::Error| self.error("cannot be read", Some(Box::new(e)));
        let answer = self.store.get_opts(&self.meta.location, options).await.map_err(failed)?;
        if answer.meta.size != self.meta.size || !same_tag(&answer.meta, &self.meta) {
            return Err(self.error("changed while it was read: repeat the query", None));
        }
        let bytes = answer.bytes().await.map_err(failed)?;
        if bytes.len() as u64 != expected {
            return Err(self.error(format!("the store sent {} bytes where {expected} were asked for", bytes.len()), None));
        }
        Ok(bytes)
    }

    /// The Parquet footer, without page indexes.
    pub(super) async fn footer(&self) -> Result<Arc<ParquetMetaData>> {
        let load = || async {
            let metadata = ParquetMetaDataReader::new()
                .with_page_index_policy(PageIndexPolicy::Skip)
                .with_prefetch_hint(Some(TAIL.min(self.size()) as usize))
                .load_and_finish(Fetch(self), self.size())
                .await
                .map_err(|e| self.parquet_error(e))?;
            self.check_chunks(&metadata)?;
            Ok(Cached::Metadata(Arc::new(metadata)))
        };
        metadata(self.cache.get_or_load(self.key(Kind::Footer), &self.turns.footer, load).await?)
    }

    /// The footer, if it is in memory.
    pub(super) fn known_footer(&self) -> Option<Arc<ParquetMetaData>> {
        metadata(self.cache.get(&self.key(Kind::Footer))?).ok()
    }

    /// The Parquet footer with those page indexes that the file has.
    pub(super) async fn indexed(&self) -> Result<Arc<ParquetMetaData>> {
        let load = || async { Ok(Cached::Metadata(Arc::new(self.read_indexed().await?))) };
        metadata(self.cache.get_or_load(self.key(Kind::Indexed), &self.turns.indexed, load).await?)
    }

    /// As [`Self::indexed`], for a caller that keeps what it makes of them.
    pub(super) async fn read_indexed(&self) -> Result<ParquetMetaData> {
        let footer = self.footer().await?;
        let mut reader =
            ParquetMetaDataReader::new_with_metadata(footer.as_ref().clone()).with_page_index_policy(PageIndexPolicy::Optional);
        reader.load_page_index(Fetch(self)).await.map_err(|e| self.parquet_error(e))?;
        reader.finish().map_err(|e| self.parquet_error(e))
    }

    /// A scan is cut into byte ranges of `[0, size)`, and a row group belongs to the range in which it starts: one that claims to
    /// start elsewhere would belong to no range and vanish silently.
    fn check_chunks(&self, metadata: &ParquetMetaData) -> Result<()> {
        for (index, group) in metadata.row_groups().iter().enumerate() {
            for chunk in group.columns() {
                let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
                let inside = u64::try_from(start)
                    .ok()
                    .zip(u64::try_from(chunk.compressed_size()).ok())
                    .and_then(|(start, length)| start.checked_add(length))
                    .is_some_and(|end| end <= self.size());
                if !inside {
                    let column = chunk.column_path().string();
                    return Err(self.error(format!("row group {index}: column `{column}` lies outside of the object"), None));
                }
            }
        }
        Ok(())
    }

    fn parquet_error(&self, error: ParquetError) -> Error {
        match error {
            ParquetError::External(inner) => match inner.downcast::<Error>() {
                Ok(own) => *own,
                Err(other) => self.error("cannot be read as Parquet", Some(other)),
            },
            other => self.error("cannot be read as Parquet", Some(Box::new(other))),
        }
    }
}

/// Entity tags as one service spells them in a listing and in an answer may differ in quotes and in the weak mark; a missing tag
/// proves nothing.
fn same_tag(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    let bare = |tag: &str| tag.trim_start_matches("W/").trim_matches('"').to_owned();
    match (&a.e_tag, &b.e_tag) {
        (Some(a), Some(b)) => bare(a) == bare(b),
        _ => true,
    }
}

/// The metadata of an entry that holds metadata.
pub(super) fn metadata(cached: Cached) -> Result<Arc<ParquetMetaData>> {
    match cached {
        Cached::Metadata(metadata) => Ok(metadata),
        Cached::Bytes(_) => Err(Error::Internal("bytes where metadata was kept".to_owned())),
    }
}

struct Fetch<'a>(&'a StoredObject);

impl MetadataFetch for Fetch<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        let object = self.0;
        async move { object.range(range).await.map_err(|e| ParquetError::External(Box::new(e))) }.boxed()
    }
}
