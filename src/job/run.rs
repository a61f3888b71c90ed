//! The main job: fit if there is no model, weigh what is new or changed, commit once. Safe to repeat and to kill.

use super::context::Job;
use super::encoder::RowEncoder;
use super::fit::{FOOTERS_AT_ONCE, fit_model, load_references, problem_digest};
use super::plan::{gone, is_done};
use super::report::{Quarantined, RunReport, ShardCounts, with_causes};
use super::weigh::{Weighed, Weighing, identity, weigh_shards};
use crate::catalog::{Publication, StoredModel, WeightsTable, write_run};
use crate::error::{Error, Result};
use crate::shard::{Layout, Listing, ReadOptions, Shard};
use crate::writeback::{Receipt, sidecar_path, unpublished_receipt};
use futures::{StreamExt, stream};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;

/// Which model a run weighs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    /// The table's, or a new one where that solves another problem or there is none.
    Fitting,
    /// A new one in any case.
    New,
    /// The table's; it is an error if there is none.
    Current,
}

/// Fits if there is no model for this job, weighs what is new or changed, removes what is gone, and commits once.
///
/// # Errors
/// What is wrong with the job, the references or the model; the first shard's error where no shard can be read; what the store answers.
pub async fn run(job: &Job) -> Result<RunReport> {
    execute(job, Model::Fitting, true).await
}

/// Fits a new model and makes it the table's current one; weighs nothing.
///
/// # Errors
/// As [`run`].
pub async fn fit(job: &Job) -> Result<RunReport> {
    execute(job, Model::New, false).await
}

/// Weighs what is new or changed with the table's current model, and commits once.
///
/// # Errors
/// As [`run`], and [`Error::Catalog`] where there is no model for this job.
pub async fn weigh(job: &Job) -> Result<RunReport> {
    execute(job, Model::Current, true).await
}

/// The model a run would weigh with, if it need not fit one.
pub(super) async fn usable_model(job: &Job, table: &WeightsTable) -> Result<Option<StoredModel>> {
    let encoder = RowEncoder::load(&job.file, &job.stores).await?;
    let (safe, harm) = load_references(job, encoder.columns()).await?;
    let problem = problem_digest(job, &encoder, &safe, &harm)?;
    match current_model(job, table).await?.filter(|model| model.card.problem == problem) {
        Some(model) => Ok(Some(model)),
        None => stored_model(job, &problem).await,
    }
}

/// A stored model of this problem that is not the table's current one: fitted by a run that did not come to its commit, or before the
/// job was something else for a while. Of several the one that no other was fitted from, so the latest.
async fn stored_model(job: &Job, problem: &str) -> Result<Option<StoredModel>> {
    let mut candidates = Vec::new();
    for digest in StoredModel::list(&job.output).await? {
        match StoredModel::read(&job.output, &digest).await {
            Ok(model) if model.card.problem == problem => candidates.push(model),
            Ok(_) | Err(Error::Model { .. } | Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let parents: HashSet<String> = candidates.iter().filter_map(|model| model.card.parent.clone()).collect();
    candidates.retain(|model| !parents.contains(&model.digest));
    Ok(candidates.into_iter().next())
}

/// A column that the first shard lacks as well is a slip in the job file and no fault of the references.
pub(super) async fn blame_corpus_first(listing: &Listing, encoder: &RowEncoder, error: Error) -> Error {
    let Some(shard) = listing.shards.first() else { return error };
    let Ok(layout) = Layout::load(shard, false).await else { return error };
    layout.column_positions(&shard.name, &encoder.columns().to_read()).err().unwrap_or(error)
}

async fn current_model(job: &Job, table: &WeightsTable) -> Result<Option<StoredModel>> {
    match table.model()? {
        None => Ok(None),
        Some(digest) => match StoredModel::read(&job.output, &digest).await {
            Err(error @ (Error::NotFound { .. } | Error::Model { .. })) => {
                tracing::warn!(error = %with_causes(&error), "the table's current model cannot be used; a run or fit makes another");
                Ok(None)
            }
            read => read.map(Some),
        },
    }
}

async fn execute(job: &Job, which: Model, weighing: bool) -> Result<RunReport> {
    let started = Instant::now();
    let listing = job.list().await?;
    let encoder = RowEncoder::load(&job.file, &job.stores).await?;
    let (safe, harm) = match load_references(job, encoder.columns()).await {
        Ok(references) => references,
        Err(error @ Error::Column { .. }) => return Err(blame_corpus_first(&listing, &encoder, error).await),
        Err(error) => return Err(error),
    };
    let mut table = WeightsTable::open(&job.output).await?;
    let current = current_model(job, &table).await?;
    let problem = problem_digest(job, &encoder, &safe, &harm)?;
    let usable = current.as_ref().filter(|model| model.card.problem == problem);

    let mut quarantined = Vec::new();
    let fit_started = Instant::now();
    let stored = match (usable, which) {
        (Some(model), Model::Fitting | Model::Current) => Some(model.clone()),
        (None, Model::Fitting) => stored_model(job, &problem).await?,
        (None, Model::Current) => {
            let reason = match &current {
                None => "has no model yet; `pushpull fit` makes one".to_owned(),
                Some(model) => {
                    format!("has model {} for other references, columns or options; `pushpull fit` makes one for this job", model.digest)
                }
            };
            return Err(Error::Catalog { location: job.output.to_string(), reason, source: None });
        }
        (_, Model::New) => None,
    };
    let fitted = stored.is_none();
    let model = match stored {
        Some(model) => model,
        None => {
            let fitted = fit_model(job, &encoder, (&safe, &harm), &listing.shards, current.as_ref()).await?;
            fitted.model.write(&job.output).await?;
            quarantined = fitted.quarantined;
            fitted.model
        }
    };
    let fit_seconds = if fitted { fit_started.elapsed().as_secs_f64() } else { 0.0 };

    let mut report = RunReport::of_model(&model.digest, &model.card);
    report.fitted = fitted;
    let mut change = Publication::default();
    if table.model()?.as_deref() != Some(model.digest.as_str()) {
        change.model = Some(model.digest.clone());
    }
    let weigh_started = Instant::now();
    if weighing {
        let weighed = weigh_new(job, &encoder, &model, &listing, &table, &mut report.shards).await?;
        // What the fit met and weighing did not is mended, and weighed.
        quarantined = weighed.quarantined;
        (report.most, report.least) = (weighed.extremes.most, weighed.extremes.least);
        change.written = weighed.receipts;
        change.removed = gone(&listing, &table.published()?).collect();
        report.shards.removed = change.removed.len();
        if let (true, Some(error)) = (change.written.is_empty() && report.shards.unchanged == 0, weighed.first_error) {
            return Err(error);
        }
    }
    let weigh_seconds = if weighing { weigh_started.elapsed().as_secs_f64() } else { 0.0 };

    quarantined.sort_by(|a: &Quarantined, b| a.shard.cmp(&b.shard));
    quarantined.dedup_by(|a, b| a.shard == b.shard);
    report.shards.quarantined = quarantined.len();
    report.quarantined = quarantined;
    let changed = !change.is_empty();
    if changed {
        let summary = serde_json::json!({ "shards": report.shards, "model": report.model });
        table.publish(&change, summary).await?;
    }
    report.version = table.version();
    let published = table.published()?;
    report.describe_table(published.values());
    report.bytes_read = job.stores.traffic().bytes_read();
    report.requests = job.stores.traffic().requests();
    report.seconds.fit = fit_seconds;
    report.seconds.weigh = weigh_seconds;
    report.seconds.total = started.elapsed().as_secs_f64();
    if changed || !report.quarantined.is_empty() {
        let stored = serde_json::to_value(&report).map_err(|e| Error::Internal(format!("run report: {e}")))?;
        if let Err(error) = write_run(&job.output, report.version, &stored).await {
            tracing::warn!(error = %with_causes(&error), "the run is committed, but its report could not be stored");
        }
    }
    Ok(report)
}

/// Splits off the shards whose sidecars are there already, finished by a run that did not come to its commit.
async fn resume(job: &Job, model: &StoredModel, todo: Vec<Shard>) -> Result<(Vec<Shard>, Vec<Receipt>)> {
    let there: HashMap<String, u64> =
        job.output.join("data").list().await?.into_iter().map(|object| (object.location.to_string(), object.size)).collect();
    let looked_up = stream::iter(todo).map(|shard| {
        let identity = identity(&shard, model);
        let size = there.get(job.output.join(&sidecar_path(&identity)).path().as_ref()).copied();
        async move {
            let receipt = match size {
                Some(size) => unpublished_receipt(&job.output, identity, size).await,
                None => None,
            };
            (shard, receipt)
        }
    });
    let (mut missing, mut finished) = (Vec::new(), Vec::new());
    for (shard, receipt) in looked_up.buffered(FOOTERS_AT_ONCE).collect::<Vec<_>>().await {
        match receipt {
            Some(receipt) => finished.push(receipt),
            None => missing.push(shard),
        }
    }
    if !finished.is_empty() {
        tracing::info!(shards = finished.len(), "finished by an earlier run that did not commit");
    }
    Ok((missing, finished))
}

async fn weigh_new(
    job: &Job,
    encoder: &RowEncoder,
    model: &StoredModel,
    listing: &Listing,
    table: &WeightsTable,
    counts: &mut ShardCounts,
) -> Result<Weighed> {
    let published = table.published()?;
    let todo: Vec<Shard> = listing.shards.iter().filter(|shard| !is_done(shard, &published, &model.digest)).cloned().collect();
    counts.unchanged = listing.shards.len() - todo.len();
    if todo.is_empty() {
        return Ok(Weighed::default());
    }
    let (todo, finished) = resume(job, model, todo).await?;
    if todo.is_empty() {
        counts.weighed = finished.len();
        return Ok(Weighed { receipts: finished, ..Weighed::default() });
    }
    let read =
        ReadOptions { columns: encoder.columns().to_read(), rows: None, chunk_rows: job.options.chunk_rows, memory: job.options.memory };
    let (model, encoder, output, progress, runtime) =
        (model.clone(), encoder.clone(), job.output.clone(), Arc::clone(&job.options.progress), Handle::current());
    let task = tokio::task::spawn_blocking(move || {
        progress.begin("weighing", 0);
        let weighed = weigh_shards(Weighing {
            model: &model,
            encoder: &encoder,
            shards: &todo,
            output: &output,
            options: &read,
            runtime: &runtime,
            progress: progress.as_ref(),
        });
        progress.end();
        weighed
    });
    let mut weighed = task.await.map_err(|e| Error::Internal(format!("weighing: {e}")))??;
    weighed.receipts.extend(finished);
    counts.weighed = weighed.receipts.len();
    Ok(weighed)
}
