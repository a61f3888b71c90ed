//! A job as SQL tables: `corpus` (rows and weights), `weights`, `references`, `shards`, `runs`, `models` and `hygiene`.

use super::context::Job;
use super::fit::FOOTERS_AT_ONCE;
use super::plan::Plan;
use crate::catalog::{Published, StoredSchema, WeightsTable};
use crate::error::{Error, Result};
use crate::shard::{Layout, Listing, Shard};
use crate::sql::{CorpusOptions, CorpusShard, CorpusTable, SidecarRef, SqlSession, register};
use arrow::datatypes::SchemaRef;
use futures::{StreamExt, stream};
use object_store::ObjectMeta;
use std::collections::{BTreeMap, HashMap};
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
/// No shard is opened that was weighed as it is now: its columns are in the log (in a table of an older version they are not, and its
/// footer is read). A shard that is not weighed yet has null weights; one that is new or changed is opened, and left out with a warning
/// if it cannot be read.
///
/// # Errors
/// [`Error::Column`] for columns that do not fit together, or that a shard lacks where `corpus.missing_columns` refuses that; what the
/// shards' footers and the store answer.
pub async fn corpus_table(job: &Job, snapshot: &TableSnapshot) -> Result<CorpusTable> {
    let TableSnapshot { listing, published, .. } = snapshot;
    let schemas = StoredSchema::read_all(&job.output, published.values().filter_map(|p| p.schema.clone()).collect()).await?;
    // Futures by name and not by a closure over borrowed shards, whose lifetimes a `Send` future of the caller could not tell.
    let known: Vec<_> = listing.shards.iter().map(|shard| known_shard(job, shard, published.get(&shard.name), &schemas)).collect();
    let shards = stream::iter(known).buffered(FOOTERS_AT_ONCE).collect::<Vec<_>>().await.into_iter().flatten().collect();
    let corpus_store = listing.shards.first().map_or_else(|| job.output.store(), |shard| shard.location.store());
    let options =
        CorpusOptions { footers: Arc::clone(&job.footers), folders: job.file.corpus.partitions, missing: job.file.corpus.missing_columns };
    CorpusTable::try_with(Arc::clone(corpus_store), Arc::clone(job.output.store()), shards, options).await
}

/// A shard with what the log says of it, or its own footer where it is new or changed; `None` if that cannot be read.
async fn known_shard(job: &Job, shard: &Shard, sidecar: Option<&Published>, schemas: &HashMap<String, SchemaRef>) -> Option<CorpusShard> {
    let (schema, rows) = match sidecar {
        Some(sidecar) if sidecar.shard_version == shard.version() => {
            (sidecar.schema.as_ref().and_then(|digest| schemas.get(digest)).cloned(), None)
        }
        // It may be broken, and must not take the rest down with it.
        _ => match Layout::load(shard, false).await {
            Ok(layout) => (Some(Arc::clone(layout.schema())), Some(layout.rows())),
            Err(error) => {
                tracing::warn!(shard = %shard.name, error = %super::report::with_causes(&error), "not in `corpus`: it cannot be read");
                return None;
            }
        },
    };
    Some(CorpusShard {
        name: shard.name.clone(),
        format: shard.format,
        meta: shard.meta.clone(),
        version: shard.version(),
        schema,
        rows,
        sidecar: sidecar.map(|sidecar| sidecar_ref(job, shard, sidecar)),
    })
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
    SidecarRef {
        meta,
        base_size: shard.meta.size,
        base_version: sidecar.shard_version.clone(),
        model: sidecar.model.clone(),
        rows: sidecar.rows,
        unweighed: sidecar.unweighed,
        weight_range: sidecar.weight_range,
    }
}
