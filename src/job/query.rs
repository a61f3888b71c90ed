//! A job as SQL tables: `corpus` (rows and weights), `weights`, `references`, `shards`, `runs`, `models` and `hygiene`.

use super::context::Job;
use super::fit::FOOTERS_AT_ONCE;
use super::plan::Plan;
use crate::catalog::{Published, WeightsTable};
use crate::error::{Error, Result};
use crate::shard::{Layout, Listing, Shard};
use crate::sql::{CorpusShard, CorpusTable, SidecarRef, SqlSession, register};
use futures::{StreamExt, stream};
use object_store::ObjectMeta;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the SQL tables of a job are made of, read once: the corpus's listing and the log.
#[derive(Debug)]
pub struct TableSnapshot {
    /// The corpus as it is now.
    pub listing: Listing,
    /// The published sidecars by shard name.
    pub published: BTreeMap<String, Published>,
    /// What a run would do with each shard.
    pub plan: Plan,
}

impl TableSnapshot {
    /// Lists the corpus and reads the log; no shard and no sidecar is opened.
    ///
    /// # Errors
    /// [`Error::Catalog`] before the first run, and what the store answers.
    pub async fn open(job: &Job) -> Result<Self> {
        let table = WeightsTable::open(&job.output).await?;
        if table.version().is_none() {
            let reason = "does not exist yet: `pushpull run` makes it".to_owned();
            return Err(Error::Catalog { location: job.output.to_string(), reason, source: None });
        }
        let published = table.published()?;
        let listing = job.list().await?;
        let plan = super::plan::compare(&listing, &published, table.model()?, table.version());
        Ok(Self { listing, published, plan })
    }
}

/// The table `corpus` of a job, for any DataFusion session: every base column and the weight columns.
///
/// A shard that is not weighed yet has null weights; one that is new or changed and cannot be read is left out with a warning.
///
/// # Errors
/// What the shards' footers and the store answer.
pub async fn corpus_table(job: &Job, snapshot: &TableSnapshot) -> Result<CorpusTable> {
    let TableSnapshot { listing, published, .. } = snapshot;
    // Futures by name and not by a closure over borrowed shards, whose lifetimes a `Send` future of the caller could not tell.
    let checked: Vec<_> = listing.shards.iter().map(|shard| readable(shard, published.get(&shard.name))).collect();
    let mut shards = Vec::with_capacity(listing.shards.len());
    for (shard, sidecar, readable) in stream::iter(checked).buffered(FOOTERS_AT_ONCE).collect::<Vec<_>>().await {
        if let Err(error) = readable {
            tracing::warn!(shard = %shard.name, error = %super::report::with_causes(&error), "not in `corpus`: it cannot be read");
            continue;
        }
        shards.push(CorpusShard {
            name: shard.name.clone(),
            format: shard.format,
            meta: shard.meta.clone(),
            version: shard.version(),
            sidecar: sidecar.map(|sidecar| sidecar_ref(job, shard, sidecar)),
        });
    }
    let corpus_store = listing.shards.first().map_or_else(|| job.output.store(), |shard| shard.location.store());
    CorpusTable::try_new(Arc::clone(corpus_store), Arc::clone(job.output.store()), shards).await
}

/// A weighed shard that is unchanged was read; any other may be broken, and must not take the rest down with it.
async fn readable<'a>(shard: &'a Shard, sidecar: Option<&'a Published>) -> (&'a Shard, Option<&'a Published>, Result<()>) {
    let readable = match sidecar {
        Some(sidecar) if sidecar.shard_version == shard.version() => Ok(()),
        _ => Layout::load(shard, false).await.map(drop),
    };
    (shard, sidecar, readable)
}

/// Opens a session over the job's tables as they are now, with `threads` partitions a scan.
///
/// # Errors
/// As [`TableSnapshot::open`] and [`corpus_table`], and what the references answer.
pub async fn sql_session(job: &Job, threads: usize) -> Result<SqlSession> {
    let session = SqlSession::with_memory(threads, usize::try_from(job.options.memory).unwrap_or(usize::MAX))?;
    register(session.context(), job).await?;
    Ok(session)
}

fn sidecar_ref(job: &Job, shard: &Shard, sidecar: &Published) -> SidecarRef {
    let meta = ObjectMeta {
        location: job.output.join(&sidecar.path).path().clone(),
        // Content-addressed, so its time says nothing.
        last_modified: Default::default(),
        size: sidecar.size,
        e_tag: None,
        version: None,
    };
    SidecarRef { meta, base_size: shard.meta.size, base_version: sidecar.shard_version.clone() }
}
