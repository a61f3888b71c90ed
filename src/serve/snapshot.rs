//! The tables that queries see: opened once, used by all queries, opened anew when the log or the corpus changed.

use crate::error::{Error, Result};
use crate::job::{Job, sql_session};
use crate::sql::SqlSession;
use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool};
use object_store::ObjectMeta;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Gives every query the newest view of the job, and looks for a newer one at most once in `refresh`.
///
/// A look costs two listings: the log's and the corpus's. Opening a new view costs what `pushpull sql` pays at its start. Queries that
/// come meanwhile wait for it; a query that runs keeps its own view.
pub(super) struct Snapshots {
    job: Arc<Job>,
    threads: usize,
    refresh: Duration,
    pool: Arc<dyn MemoryPool>,
    current: Mutex<Option<Current>>,
}

struct Current {
    session: Arc<SqlSession>,
    state: blake3::Hash,
    seen: Instant,
}

impl Snapshots {
    pub(super) fn new(job: Job, threads: usize, refresh: Duration) -> Self {
        let budget = usize::try_from(job.options.memory).unwrap_or(usize::MAX);
        Self { job: Arc::new(job), threads, refresh, pool: Arc::new(FairSpillPool::new(budget)), current: Mutex::new(None) }
    }

    /// The session a query that begins now runs in.
    ///
    /// # Errors
    /// What listing the log and the corpus, and [`sql_session`], answer.
    pub(super) async fn current(&self) -> Result<Arc<SqlSession>> {
        let mut current = self.current.lock().await;
        if let Some(now) = current.as_ref().filter(|now| now.seen.elapsed() < self.refresh) {
            return Ok(Arc::clone(&now.session));
        }
        // Looked at before the session is opened: what changes in between is seen by the next look.
        let seen = Instant::now();
        let state = self.state().await?;
        let session = match current.take() {
            Some(now) if now.state == state => now.session,
            _ => {
                tracing::info!("opening the tables");
                Arc::new(self.open().await?)
            }
        };
        *current = Some(Current { session: Arc::clone(&session), state, seen });
        Ok(session)
    }

    /// On a thread of its own: reading many footers shares no thread with running queries.
    async fn open(&self) -> Result<SqlSession> {
        let (job, threads) = (Arc::clone(&self.job), self.threads);
        let runtime = tokio::runtime::Handle::current();
        let opened = tokio::task::spawn_blocking(move || runtime.block_on(sql_session(&job, threads)));
        opened.await.map_err(|e| Error::Internal(format!("opening the tables: {e}")))??.with_memory_pool(Arc::clone(&self.pool))
    }

    /// Makes the next query look for a newer view: this one met an object that is not what it was.
    pub(super) async fn expire(&self) {
        *self.current.lock().await = None;
    }

    /// Everything that a view depends on: the log's objects and the corpus's.
    async fn state(&self) -> Result<blake3::Hash> {
        let mut hash = blake3::Hasher::new();
        let mut add = |object: &ObjectMeta| {
            let etag = object.e_tag.as_deref().unwrap_or_default();
            let line = format!("{} {} {} {etag}\n", object.location, object.size, object.last_modified.timestamp_micros());
            hash.update(line.as_bytes());
        };
        self.job.output.join("_delta_log").list().await?.iter().for_each(&mut add);
        self.job.list().await?.shards.iter().for_each(|shard| add(&shard.meta));
        Ok(hash.finalize())
    }
}
