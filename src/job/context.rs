//! An opened job: the file, the stores, and how much of the machine a run may use.

use super::file::JobFile;
use crate::error::Result;
use crate::shard::{Listing, list_shards};
use crate::sql::FooterCache;
use crate::storage::{Location, Stores};
use std::fmt;
use std::sync::Arc;

/// Rows that go through embed and transport together. Large enough to spread over many cores, small enough to start early.
pub const DEFAULT_CHUNK_ROWS: usize = 4096;
/// Bytes for decoded chunks and reads ahead.
pub const DEFAULT_MEMORY: u64 = 2 << 30;

/// How much of the machine a run may use. No result depends on it.
#[derive(Clone)]
pub struct RunOptions {
    /// Most rows of a chunk. Default [`DEFAULT_CHUNK_ROWS`].
    pub chunk_rows: usize,
    /// Bytes for decoded chunks and blocks read ahead. Default [`DEFAULT_MEMORY`].
    pub memory: u64,
    /// Is told what is going on. Default: nobody is.
    pub progress: Arc<dyn Progress>,
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOptions").field("chunk_rows", &self.chunk_rows).field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { chunk_rows: DEFAULT_CHUNK_ROWS, memory: DEFAULT_MEMORY, progress: Arc::new(()) }
    }
}

/// Is told what a run is doing, for a person who waits. Every method does nothing by default.
pub trait Progress: Send + Sync {
    /// A stage of `total` units (rows, steps) begins; 0 is unknown.
    fn begin(&self, _stage: &str, _total: u64) {}
    /// `done` units of the stage are done.
    fn advance(&self, _done: u64) {}
    /// The stage is over.
    fn end(&self) {}
}

impl Progress for () {}

/// An opened job.
#[derive(Debug)]
pub struct Job {
    /// The file.
    pub file: JobFile,
    /// The stores its URLs are opened in.
    pub stores: Stores,
    /// Where the weights table is.
    pub output: Location,
    /// How much of the machine may be used.
    pub options: RunOptions,
    /// Footers that queries of this job have read.
    pub footers: Arc<FooterCache>,
}

impl Job {
    /// Reads the job file and opens its output location; nothing else is requested yet.
    ///
    /// # Errors
    /// What is wrong with the file, an override or a URL.
    pub async fn open(location: &str, overrides: &[String], options: RunOptions) -> Result<Self> {
        let (file, base) = JobFile::read(location, overrides).await?;
        let stores = Stores::new(base);
        let output = stores.open(&file.output.url)?;
        Ok(Self { file, stores, output, options, footers: Arc::default() })
    }

    /// The corpus as it is now.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::error::Error::NotFound) where there is no shard, and what the store answers.
    pub async fn list(&self) -> Result<Listing> {
        list_shards(&self.stores, &self.file.corpus.url, Some(&self.output)).await
    }
}
