//! A store that counts what passes through it, so that "bytes read" is measured and not estimated.

use super::location::Location;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that passed through every store of one [`Stores`](super::Stores).
#[derive(Debug, Default)]
pub struct Traffic {
    bytes_read: AtomicU64,
    requests: AtomicU64,
}

impl Traffic {
    /// Bytes of object content read so far. A cancelled read counts as asked.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Requests sent so far: reads (one per range), writes (an upload in parts counts as one) and listings
    /// (one per call, whatever its pages).
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn request(&self, count: usize) {
        self.requests.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(super) struct MeteredStore {
    pub(super) inner: Arc<dyn ObjectStore>,
    pub(super) traffic: Arc<Traffic>,
}

impl fmt::Display for MeteredStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// The place, with all that is read through it counted in `traffic` too. Its store is no longer the same as that of other places.
pub(crate) fn counted(place: &Location, traffic: &Arc<Traffic>) -> Location {
    let store = MeteredStore { inner: Arc::clone(place.store()), traffic: Arc::clone(traffic) };
    Location::new(Arc::new(store), place.path().clone(), place.to_string())
}

#[async_trait]
impl ObjectStore for MeteredStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.traffic.request(1);
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.traffic.request(1);
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.traffic.request(1);
        let head = options.head;
        let result = self.inner.get_opts(location, options).await?;
        if !head {
            self.traffic.add(result.range.end - result.range.start);
        }
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.traffic.request(ranges.len());
        let parts = self.inner.get_ranges(location, ranges).await?;
        self.traffic.add(parts.iter().map(|part| part.len() as u64).sum());
        Ok(parts)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.traffic.request(1);
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.traffic.request(1);
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.traffic.request(1);
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.traffic.request(1);
        self.inner.copy_opts(from, to, options).await
    }
}
