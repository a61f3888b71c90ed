//! Shards with the weights inside, for engines that read plain Parquet: each weighed shard spliced with its sidecar, and one commit.

use super::context::Job;
use super::fit::FOOTERS_AT_ONCE;
use crate::catalog::{Published, SplicedFile, SplicedSchema, SplicedTable, WeightsTable};
use crate::error::{Error, Result};
use crate::shard::{Layout, Shard, ShardFormat, corpus_root};
use crate::storage::{Location, relative};
use crate::writeback::{DEFAULT_SPLICED_COLUMNS, Splice, SplicedColumns, SplicedShard};
use arrow::datatypes::SchemaRef;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Shards under way at once: enough to hide a remote store's latency.
const SHARDS_AT_ONCE: usize = 8;
/// Shards named in an error about several.
const NAMED: usize = 3;

/// What to splice, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpliceOptions {
    /// URL of the table of spliced shards: outside of the corpus and of the weights table.
    pub to: String,
    /// Sidecar columns that go into the shards, in order. Default: [`DEFAULT_SPLICED_COLUMNS`].
    pub columns: Vec<String>,
    /// Whether files that the table no longer holds are deleted after the commit, those of older versions and those that killed runs left.
    /// Default: no, so that older versions can be read.
    pub prune: bool,
}

impl SpliceOptions {
    /// Splices the default columns to a URL.
    pub fn to(url: impl Into<String>) -> Self {
        Self { to: url.into(), columns: DEFAULT_SPLICED_COLUMNS.map(str::to_owned).to_vec(), prune: false }
    }
}

/// How many shards had which fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SplicedCounts {
    /// Made in this run, their old bytes copied.
    pub spliced: usize,
    /// Made in this run from Arrow IPC shards, which are encoded as Parquet.
    pub reencoded: usize,
    /// There already.
    pub unchanged: usize,
    /// Replaced or gone from the corpus, removed from the table.
    pub removed: usize,
}

/// A weight column in the spliced shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServedColumn {
    /// Its name in the sidecars.
    pub column: String,
    /// Its name in the spliced shards: another one where a shard has such a column itself.
    pub name: String,
}

/// What a splice did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpliceReport {
    /// URL of the table.
    pub to: String,
    /// Its version.
    pub version: Option<u64>,
    /// Rows of the table.
    pub rows: u64,
    /// Fate of the shards.
    pub shards: SplicedCounts,
    /// The columns added.
    pub columns: Vec<ServedColumn>,
    /// Files deleted because the table no longer holds them.
    pub files_pruned: usize,
    /// Bytes of the corpus's shards.
    pub corpus_bytes: u64,
    /// Bytes of the spliced shards.
    pub spliced_bytes: u64,
    /// Bytes that this process read.
    pub bytes_read: u64,
    /// Bytes that this process sent to the target.
    pub bytes_sent: u64,
    /// Bytes that the object store copied by itself.
    pub bytes_copied_by_server: u64,
    /// Bytes that the operating system copied on a local disk.
    pub bytes_copied_on_disk: u64,
    /// Requests to the stores.
    pub requests: u64,
    /// Seconds from listing to commit.
    pub seconds: f64,
}

/// Makes the table at `options.to` hold every shard of the corpus with its weights inside. Safe to repeat and to kill: what is there
/// already is not made again, and the table changes by one commit at the end.
///
/// # Errors
/// [`Error::Catalog`] before the first run or where another table is at the target; [`Error::Shard`] for a shard that is not weighed, that
/// changed since, or that its sidecar doesn't fit, before anything is written; [`Error::Column`] for a type that Delta tables do not
/// have; [`Error::InvalidOption`] for an unknown column or a target inside the corpus or the weights table; what the stores answer.
pub async fn splice(job: &Job, options: &SpliceOptions) -> Result<SpliceReport> {
    let started = Instant::now();
    let to = job.stores.open(&options.to)?;
    check_target(job, &to)?;
    let weights = WeightsTable::open(&job.output).await?;
    if weights.version().is_none() {
        let reason = "does not exist yet: `pushpull run` makes it".to_owned();
        return Err(Error::Catalog { location: job.output.to_string(), reason, source: None });
    }
    let published = weights.published()?;
    let listing = job.list().await?;
    let listing_bytes = listing.bytes();
    let weighed = all_weighed(&listing.shards, &published)?;
    let mut table = SplicedTable::open(&to, &job.file.corpus.url).await?;
    let (schema, columns) = schema_of(&listing.shards, &options.columns).await?;
    let columns = Arc::new(columns);
    let splices: Vec<Splice> = weighed
        .into_iter()
        .map(|(shard, sidecar)| Splice {
            shard: shard.clone(),
            sidecar: job.output.join(&sidecar.path),
            sidecar_path: sidecar.path.clone(),
            sidecar_size: sidecar.size,
            columns: Arc::clone(&columns),
        })
        .collect();

    let made = make(job, &to, &table, &splices).await?;
    let mut counts = SplicedCounts::default();
    let mut files = Vec::with_capacity(made.len());
    for (splice, (spliced, fresh)) in splices.iter().zip(made) {
        match (fresh, splice.shard.format) {
            (false, _) => counts.unchanged += 1,
            (true, ShardFormat::Parquet) => counts.spliced += 1,
            (true, ShardFormat::Arrow) => counts.reencoded += 1,
        }
        let sidecar = published.get(&splice.shard.name);
        if sidecar.is_some_and(|sidecar| sidecar.rows != spliced.rows) {
            let reason = format!("has {} rows in {} and another number in sidecar {}", spliced.rows, spliced.path, splice.sidecar);
            return Err(Error::Shard { shard: splice.shard.name.clone(), row_group: None, reason, source: None });
        }
        files.push(SplicedFile {
            path: spliced.path,
            size: spliced.size,
            rows: spliced.rows,
            shard: splice.shard.name.clone(),
            weight_column: columns.served("weight").map(str::to_owned),
            weight_range: sidecar.and_then(|sidecar| sidecar.weight_range),
            unweighed: sidecar.map_or(0, |sidecar| sidecar.unweighed),
        });
    }
    counts.removed = table.publish(&schema, &files).await?;
    let files_pruned = if options.prune { prune(&to, &files).await? } else { 0 };
    let traffic = job.stores.traffic();
    let copied = traffic.bytes_copied();
    Ok(SpliceReport {
        to: options.to.clone(),
        version: table.version(),
        rows: files.iter().map(|file| file.rows).sum(),
        shards: counts,
        columns: columns.iter().map(|c| ServedColumn { column: c.name.clone(), name: c.field.name().clone() }).collect(),
        files_pruned,
        corpus_bytes: listing_bytes,
        spliced_bytes: files.iter().map(|file| file.size).sum(),
        bytes_read: traffic.bytes_read(),
        bytes_sent: traffic.bytes_written(),
        bytes_copied_by_server: if to.is_local() { 0 } else { copied },
        bytes_copied_on_disk: if to.is_local() { copied } else { 0 },
        requests: traffic.requests(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// A splice in the corpus would be taken for shards, and a table around or inside another would be vacuumed with it.
fn check_target(job: &Job, to: &Location) -> Result<()> {
    let corpus = corpus_root(&job.stores, &job.file.corpus.url)?;
    for (place, name) in [(&corpus, "corpus.url"), (&job.output, "output.url")] {
        let relation = match (place.contains(to), to.contains(place)) {
            (true, true) => "is",
            (true, false) => "is inside of",
            (false, true) => "holds",
            (false, false) => continue,
        };
        let reason = format!("{to} {relation} {name} ({place}); give a place beside it");
        return Err(Error::InvalidOption { name: "to".into(), reason });
    }
    Ok(())
}

/// Each shard with its sidecar.
fn all_weighed<'a>(shards: &'a [Shard], published: &'a BTreeMap<String, Published>) -> Result<Vec<(&'a Shard, &'a Published)>> {
    let mut refused = Vec::new();
    let mut weighed = Vec::with_capacity(shards.len());
    for shard in shards {
        match published.get(&shard.name) {
            Some(sidecar) if sidecar.shard_version == shard.version() => weighed.push((shard, sidecar)),
            Some(sidecar) => refused.push((
                shard,
                format!(
                    "changed since it was weighed: it is version {} now, and sidecar {} was made for version {}",
                    shard.version(),
                    sidecar.path,
                    sidecar.shard_version
                ),
            )),
            None => refused.push((shard, "is not weighed yet".to_owned())),
        }
    }
    let Some((first, reason)) = refused.first() else { return Ok(weighed) };
    let others: Vec<&str> = refused.iter().skip(1).take(NAMED).map(|(shard, _)| shard.name.as_str()).collect();
    let others = match refused.len() - 1 {
        0 => String::new(),
        n if n == others.len() => format!(" (as are {})", others.join(", ")),
        n => format!(" (as are {} and {} more)", others.join(", "), n - others.len()),
    };
    let reason = format!("{reason}{others}; nothing was spliced: `pushpull run` weighs what is new or changed");
    Err(Error::Shard { shard: first.name.clone(), row_group: None, reason, source: None })
}

/// The table's columns, and the names under which the weight columns fit beside every shard's.
async fn schema_of(shards: &[Shard], asked: &[String]) -> Result<(SplicedSchema, SplicedColumns)> {
    // An unknown column is worth no request.
    SplicedColumns::beside(asked, &[])?;
    let schemas =
        stream::iter(shards).map(|shard| async move { Layout::load(shard, false).await.map(|layout| Arc::clone(layout.schema())) });
    let schemas: Vec<SchemaRef> = schemas.buffered(FOOTERS_AT_ONCE).try_collect().await?;
    let mut schema = SplicedSchema::default();
    let mut names: Vec<String> = Vec::new();
    for (shard, columns) in shards.iter().zip(&schemas) {
        schema.add(&shard.name, columns.fields().iter().map(AsRef::as_ref))?;
        let new = columns.fields().iter().map(|field| field.name()).filter(|name| !names.contains(name));
        names.extend(new.cloned().collect::<Vec<_>>());
    }
    let columns = SplicedColumns::beside(asked, &names)?;
    schema.add("sidecar", columns.iter().map(|column| column.field.as_ref()))?;
    Ok((schema, columns))
}

/// Every spliced shard, and whether this run made it.
async fn make(job: &Job, to: &Location, table: &SplicedTable, splices: &[Splice]) -> Result<Vec<(SplicedShard, bool)>> {
    let published = table.published()?;
    let listed = to.list().await?.into_iter();
    let there: HashMap<String, u64> = listed.filter_map(|object| Some((relative(to.path(), &object.location)?, object.size))).collect();
    let (failed, done) = (AtomicBool::new(false), AtomicU64::new(0));
    job.options.progress.begin("splicing", splices.len() as u64);
    let made = stream::iter(splices).map(|splice| async {
        // What is under way comes to its end, so that no upload is left open; nothing new begins.
        if failed.load(Ordering::Relaxed) {
            return None;
        }
        let made = make_one(job, to, &published, &there, splice).await;
        failed.fetch_or(made.is_err(), Ordering::Relaxed);
        job.options.progress.advance(done.fetch_add(1, Ordering::Relaxed) + 1);
        Some(made)
    });
    let made: Vec<Option<Result<(SplicedShard, bool)>>> = made.buffered(SHARDS_AT_ONCE).collect().await;
    job.options.progress.end();
    made.into_iter().flatten().collect()
}

/// Deletes what earlier versions and killed runs left below `to`; the log's own files stay.
async fn prune(to: &Location, files: &[SplicedFile]) -> Result<usize> {
    let kept: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let left = to.list().await?.into_iter().filter(|object| {
        let Some(name) = relative(to.path(), &object.location) else { return false };
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", &name));
        let shard = file.ends_with(".parquet") && !file.starts_with(['.', '_']) && !kept.contains(name.as_str());
        let unfinished = file.starts_with('.') && file.ends_with(".tmp");
        (shard || unfinished) && !folder.split('/').any(|part| part.starts_with(['.', '_']))
    });
    let mut pruned = 0;
    for object in left {
        to.store().delete(&object.location).await.map_err(|e| to.error("delete in", e))?;
        pruned += 1;
    }
    Ok(pruned)
}

async fn make_one(
    job: &Job,
    to: &Location,
    published: &BTreeMap<String, (u64, u64)>,
    there: &HashMap<String, u64>,
    splice: &Splice,
) -> Result<(SplicedShard, bool)> {
    let path = splice.path();
    if let Some(&size) = there.get(&path) {
        if let Some(&(listed, rows)) = published.get(&path)
            && listed == size
        {
            return Ok((SplicedShard { path, size, rows }, false));
        }
        if let Some(finished) = splice.unpublished(to, size).await {
            return Ok((finished, false));
        }
    }
    splice.write(&job.stores, to).await.map(|spliced| (spliced, true))
}
