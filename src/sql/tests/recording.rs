//! A store in memory that records which bytes of which object are read.

use std::fmt;
use std::ops::Range;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};

#[derive(Debug, Default)]
pub(super) struct RecordingStore {
    inner: InMemory,
    reads: Mutex<Vec<(String, Range<u64>)>>,
}

impl RecordingStore {
    pub(super) fn forget(&self) {
        self.reads.lock().unwrap().clear();
    }

    /// The reads of objects whose path contains `part`.
    pub(super) fn reads(&self, part: &str) -> Vec<Range<u64>> {
        let reads = self.reads.lock().unwrap();
        reads.iter().filter(|(path, _)| path.contains(part)).map(|(_, range)| range.clone()).collect()
    }

    /// Bytes read of objects whose path contains `part`.
    pub(super) fn bytes(&self, part: &str) -> u64 {
        self.reads(part).iter().map(|r| r.end - r.start).sum()
    }
}

impl fmt::Display for RecordingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "recording")
    }
}

#[async_trait]
impl ObjectStore for RecordingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let result = self.inner.get_opts(location, options).await?;
        if !head {
            self.reads.lock().unwrap().push((location.to_string(), result.range.clone()));
        }
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.reads.lock().unwrap().extend(ranges.iter().map(|r| (location.to_string(), r.clone())));
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
