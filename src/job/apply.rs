//! Brings shards to a model: takes up what an earlier run finished, computes from sidecars what can be, weighs the rest. Nothing is
//! published here.

use super::context::Job;
use super::encoder::RowEncoder;
use super::fit::FOOTERS_AT_ONCE;
use super::keep::{Recomputing, Sources, recompute, recompute_options};
use super::report::ShardCounts;
use super::weigh::{Weighed, Weighing, identity, weigh_shards};
use crate::catalog::StoredModel;
use crate::error::{Error, Result};
use crate::shard::{ReadOptions, Shard};
use crate::writeback::{Receipt, sidecar_path, unpublished_receipt};
use futures::{StreamExt, stream};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Gives every shard of `todo` a sidecar by `model`, those in `sources` from their own old numbers.
///
/// # Errors
/// As [`weigh_shards`] and [`recompute`].
pub(super) async fn apply(
    job: &Job,
    encoder: &RowEncoder,
    model: &StoredModel,
    todo: Vec<Shard>,
    sources: Sources,
    counts: &mut ShardCounts,
) -> Result<Weighed> {
    let (todo, finished) = resume(job, model, todo).await?;
    counts.recomputed = finished.iter().filter(|receipt| sources.contains_key(&receipt.identity.shard)).count();
    counts.weighed = finished.len() - counts.recomputed;
    let (from_sidecars, from_shards): (Vec<_>, Vec<_>) = todo.into_iter().partition(|shard| sources.contains_key(&shard.name));
    let recomputed = recompute_shards(job, model, from_sidecars, sources).await?;
    counts.recomputed += recomputed.len();
    let mut weighed = weigh_all(job, encoder, model, from_shards).await?;
    counts.weighed += weighed.receipts.len();
    weighed.receipts.extend(recomputed);
    weighed.receipts.extend(finished);
    Ok(weighed)
}

/// Splits off the shards whose sidecars are there already: finished by a run that did not come to its commit, or by this model before
/// another took its place.
async fn resume(job: &Job, model: &StoredModel, todo: Vec<Shard>) -> Result<(Vec<Shard>, Vec<Receipt>)> {
    if todo.is_empty() {
        return Ok((todo, Vec::new()));
    }
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
        tracing::info!(shards = finished.len(), "there already, by an earlier run of this model");
    }
    Ok((missing, finished))
}

async fn recompute_shards(job: &Job, model: &StoredModel, shards: Vec<Shard>, mut sources: Sources) -> Result<Vec<Receipt>> {
    let pairs: Vec<(Shard, Shard)> =
        shards.into_iter().filter_map(|shard| sources.remove(&shard.name).map(|sidecar| (shard, sidecar))).collect();
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let (model, output, progress, runtime) = (model.clone(), job.output.clone(), Arc::clone(&job.options.progress), Handle::current());
    let read = recompute_options(job);
    let task = tokio::task::spawn_blocking(move || {
        progress.begin("weights from sidecars", 0);
        let receipts = recompute(Recomputing {
            model: &model,
            shards: &pairs,
            output: &output,
            options: &read,
            runtime: &runtime,
            progress: progress.as_ref(),
        });
        progress.end();
        receipts
    });
    task.await.map_err(|e| Error::Internal(format!("weights from sidecars: {e}")))?
}

async fn weigh_all(job: &Job, encoder: &RowEncoder, model: &StoredModel, shards: Vec<Shard>) -> Result<Weighed> {
    if shards.is_empty() {
        return Ok(Weighed::default());
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
            shards: &shards,
            output: &output,
            options: &read,
            runtime: &runtime,
            progress: progress.as_ref(),
        });
        progress.end();
        weighed
    });
    task.await.map_err(|e| Error::Internal(format!("weighing: {e}")))?
}
