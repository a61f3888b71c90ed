//! Fits the potentials: draws the sample over all shards, embeds it once, and lets transport iterate over it.

use super::contents::{ContentIndex, Occurrences};
use super::context::Job;
use super::encoder::{RowColumns, RowEncoder};
use super::hygiene::Judged;
use super::references::{ReferenceRows, Side, check_disjoint};
use super::report::Quarantined;
use super::sample::{SampledShard, draw};
use super::windows::SampleVectors;
use crate::catalog::{MODEL_FORMAT, ModelCard, StoredModel};
use crate::error::{Error, Result};
use crate::shard::{Layout, ReadOptions, Shard, ShardEvent, ShardRequest, read_ahead};
use crate::transport::{FitPhase, FitProgress, ReferenceSet, RowCandidates, TransportOptions, fit as fit_transport, fit_worst};
use futures::{StreamExt, stream};
use std::sync::Arc;
use tokio::runtime::Handle;

/// Footers read at once.
pub(super) const FOOTERS_AT_ONCE: usize = 16;

/// A fitted model and what happened on the way.
#[derive(Debug)]
pub struct Fitted {
    /// The model. Not written yet.
    pub model: StoredModel,
    /// Shards that could not be sampled.
    pub quarantined: Vec<Quarantined>,
}

/// Reads and checks both reference files.
///
/// # Errors
/// As [`ReferenceRows::read`] and [`check_disjoint`].
pub async fn load_references(job: &Job, columns: &RowColumns) -> Result<(ReferenceRows, ReferenceRows)> {
    let (safe, harm) = (job.stores.open(&job.file.references.safe)?, job.stores.open(&job.file.references.harm)?);
    let safe = ReferenceRows::read(Side::Safe, &safe, columns).await?;
    let harm = ReferenceRows::read(Side::Harm, &harm, columns).await?;
    check_disjoint(&safe, &harm, columns)?;
    Ok((safe, harm))
}

/// Digest of everything that decides what is being solved, but the corpus. Models of the same problem can weigh the same job.
///
/// # Errors
/// [`Error::Internal`] if it cannot be encoded.
pub fn problem_digest(job: &Job, encoder: &RowEncoder, safe: &ReferenceRows, harm: &ReferenceRows) -> Result<String> {
    problem_with(job, encoder, (safe, harm), &job.file.transport.options())
}

/// The digest that the job would have with these options.
pub(super) fn problem_with(
    job: &Job,
    encoder: &RowEncoder,
    (safe, harm): (&ReferenceRows, &ReferenceRows),
    options: &TransportOptions,
) -> Result<String> {
    let mut problem = serde_json::json!({
        "format": MODEL_FORMAT,
        "embedder": encoder.fingerprint(),
        "columns": encoder.columns().views(),
        "fallback": encoder.columns().fallback(),
        "safe": safe.digest,
        "harm": harm.digest,
        "options": options,
        "sample_rows": job.file.transport.sample_rows,
    });
    if let (Some(windows), Some(problem)) = (encoder.windows(), problem.as_object_mut()) {
        problem.insert("windows".to_owned(), serde_json::json!(windows));
    }
    let bytes = serde_json::to_vec(&problem).map_err(|e| Error::Internal(format!("problem: {e}")))?;
    Ok(blake3::hash(&bytes).to_hex()[..32].to_owned())
}

/// Fits a model on a sample of `shards`, starting from the potentials of `previous` where its references and embedder are the same.
///
/// # Errors
/// [`Error::NotFound`] where no row of the sample has text, the first shard's error where no shard can be read, and what
/// embedding and the store answer.
pub async fn fit_model(
    job: &Job,
    encoder: &RowEncoder,
    references: (&ReferenceRows, &ReferenceRows),
    shards: &[Shard],
    previous: Option<&StoredModel>,
) -> Result<Fitted> {
    let (requests, mut quarantined) = draw_requests(job, shards).await?;
    let read =
        ReadOptions { columns: encoder.columns().to_read(), rows: None, chunk_rows: job.options.chunk_rows, memory: job.options.memory };
    let (total, progress) = (requests.1, Arc::clone(&job.options.progress));
    let (requests, task_encoder, runtime) = (requests.0, encoder.clone(), Handle::current());
    let index = ContentIndex::new([references.0, references.1], encoder.columns())?;
    let sampled = tokio::task::spawn_blocking(move || {
        progress.begin("embedding the sample", total);
        let sampled = embed_sample(requests, read, (&task_encoder, &index), |_, _| true, runtime, |done| progress.advance(done));
        progress.end();
        sampled
    });
    let sampled = sampled.await.map_err(|e| Error::Internal(format!("sampling: {e}")))??;
    quarantined.extend(sampled.quarantined);
    let model = fit_sample(job, encoder, references, (Arc::new(sampled.vectors), &sampled.occurrences), previous).await?;
    Ok(Fitted { model, quarantined })
}

/// Fits a model on embedded rows.
pub(super) async fn fit_sample(
    job: &Job,
    encoder: &RowEncoder,
    (safe_rows, harm_rows): (&ReferenceRows, &ReferenceRows),
    (sample, occurrences): (Arc<RowCandidates>, &Occurrences),
    previous: Option<&StoredModel>,
) -> Result<StoredModel> {
    let options = job.file.transport.options();
    if sample.rows() == 0 {
        let help = "no row of the sample has text in the job's columns".to_owned();
        return Err(Error::NotFound { location: job.file.corpus.url.clone(), help });
    }

    let problem = problem_digest(job, encoder, safe_rows, harm_rows)?;
    let (encode, to_embed) = (encoder.clone(), [safe_rows.clone(), harm_rows.clone()]);
    // A transformer takes minutes for them, and must not hold up the runtime.
    let embedded = tokio::task::spawn_blocking(move || Ok::<_, Error>((to_embed[0].embed(&encode)?, to_embed[1].embed(&encode)?)));
    let (safe, harm) = embedded.await.map_err(|e| Error::Internal(format!("references: {e}")))??;
    check_set(&sample, &safe, safe_rows)?;
    check_set(&sample, &harm, harm_rows)?;
    let warm = previous.filter(|model| {
        let card = &model.card;
        card.embedder == encoder.fingerprint()
            && card.columns == encoder.columns().views()
            && (&card.safe_digest, &card.harm_digest) == (&safe_rows.digest, &harm_rows.digest)
    });
    let potentials = warm.map(|model| (model.transport.safe_potential.clone(), model.transport.harm_potential.clone()));
    let fit_options = within_memory(job, &options);
    let (progress, worst) = (Arc::clone(&job.options.progress), encoder.reads_worst());
    let (safe_set, harm_set) = (safe.clone(), harm.clone());
    let fitted = tokio::task::spawn_blocking(move || {
        let warm = potentials.as_ref().map(|(safe, harm)| (safe.as_slice(), harm.as_slice()));
        let mut phase = None;
        let mut told = |at: FitProgress| {
            if phase != Some(at.phase) {
                phase = Some(at.phase);
                let name = match at.phase {
                    FitPhase::Online => "fitting, minibatches",
                    FitPhase::Whole => "fitting, whole sample",
                    FitPhase::Costs => "transport costs",
                };
                progress.begin(name, at.max_steps as u64);
            }
            progress.advance(at.step as u64);
        };
        let fitted = match worst {
            true => fit_worst(&sample, &safe, &harm, &fit_options, warm, &mut told).map(|(fitted, picks)| (fitted, Some(picks))),
            false => fit_transport(sample.vectors(), &safe, &harm, &fit_options, warm, &mut told).map(|fitted| (fitted, None)),
        };
        progress.end();
        fitted
    });
    let (fitted, picks) = fitted.await.map_err(|e| Error::Internal(format!("fit: {e}")))??;
    let (rows, columns, occurrences) = ([safe_rows.clone(), harm_rows.clone()], encoder.columns().clone(), occurrences.clone());
    let (mean_cost, sample_rows, coverage) = (fitted.report.mean_cost, fitted.report.rows, fitted.coverage);
    // Comparing every reference with every other takes a while, and must not hold up the runtime.
    let judged = tokio::task::spawn_blocking(move || {
        let [safe_rows, harm_rows] = &rows;
        let judged = Judged {
            rows: [safe_rows, harm_rows],
            sets: [&safe_set, &harm_set],
            columns: &columns,
            mean_cost,
            coverage: &coverage,
            occurrences: &occurrences,
            sample_rows,
        };
        judged.judge()
    });
    let hygiene = judged.await.map_err(|e| Error::Internal(format!("references: {e}")))??;
    let transport = fitted.model;
    let card = ModelCard {
        format: MODEL_FORMAT,
        problem,
        embedder: encoder.fingerprint().to_owned(),
        columns: encoder.columns().views().to_vec(),
        text_fallback: encoder.columns().fallback().map(str::to_owned),
        windows: encoder.windows(),
        picks,
        safe_digest: safe_rows.digest.clone(),
        harm_digest: harm_rows.digest.clone(),
        safe_ids: safe_rows.ids.clone(),
        harm_ids: harm_rows.ids.clone(),
        options,
        epsilon: transport.epsilon,
        push: transport.push,
        prior: transport.prior.strength,
        tau: transport.tau,
        log_z: transport.log_z,
        slack: transport.slack,
        report: fitted.report,
        hygiene,
        parent: warm.map(|model| model.digest.clone()),
        kept: None,
    };
    StoredModel::try_new(card, transport)
}

/// The options of a fit whose cost cache fits the job's memory. The cache changes no bit of the result, so it is no part of what a model
/// says it was asked for.
pub(super) fn within_memory(job: &Job, options: &TransportOptions) -> TransportOptions {
    let cost_cache_bytes = options.cost_cache_bytes.min(usize::try_from(job.options.memory / 2).unwrap_or(usize::MAX));
    TransportOptions { cost_cache_bytes, ..options.clone() }
}

/// Reads every footer and draws the sample: requests for the shards with sampled rows, and the number of these rows.
pub(super) async fn draw_requests(job: &Job, shards: &[Shard]) -> Result<((Vec<ShardRequest>, u64), Vec<Quarantined>)> {
    let footers: Vec<_> = stream::iter(shards)
        .map(|shard| async move { (shard, Layout::load(shard, false).await.map(|layout| layout.rows())) })
        .buffered(FOOTERS_AT_ONCE)
        .collect()
        .await;
    let (mut readable, mut quarantined, mut first_error) = (Vec::new(), Vec::new(), None);
    for (shard, rows) in footers {
        match rows {
            Ok(rows) => readable.push((shard, rows)),
            // A sample that misses shards for an outage would be a biased one, and its model would stay.
            Err(error) if error.is_storage() => return Err(error),
            Err(error) => {
                quarantined.push(Quarantined::new(shard, &error));
                first_error.get_or_insert(error);
            }
        }
    }
    if let (true, Some(error)) = (readable.is_empty(), first_error) {
        return Err(error);
    }
    let sampled: Vec<SampledShard<'_>> = readable.iter().map(|(shard, rows)| SampledShard { name: &shard.name, rows: *rows }).collect();
    let drawn = draw(&sampled, job.file.transport.sample_rows, job.file.transport.seed);
    let mut total = 0;
    let mut requests = Vec::new();
    for ((shard, rows), drawn) in readable.into_iter().zip(drawn) {
        let wanted = drawn.as_ref().map_or(rows, |drawn| drawn.len() as u64);
        if wanted > 0 {
            total += wanted;
            requests.push(ShardRequest { shard: shard.clone(), rows: drawn });
        }
    }
    Ok(((requests, total), quarantined))
}

/// The wanted rows that have text, embedded.
pub(super) struct EmbeddedRows {
    /// One row each, in the order of shards and rows.
    pub(super) vectors: RowCandidates,
    /// Which request each is of, and how many wanted rows came before it there.
    pub(super) places: Vec<(usize, u64)>,
    /// Of each request, how many of its wanted rows were read: fewer than wanted where the shard could not be read to its end.
    pub(super) read: Vec<u64>,
    /// The references that are among the rows of the fit's sample.
    pub(super) occurrences: Occurrences,
    /// Shards that could not be read.
    pub(super) quarantined: Vec<Quarantined>,
}

/// Embeds the wanted rows, and looks for references among those that `is_sampled` (by request and row of the shard). Memory: their vectors, and
/// 16 bytes a row.
pub(super) fn embed_sample(
    requests: Vec<ShardRequest>,
    options: ReadOptions,
    (encoder, index): (&RowEncoder, &ContentIndex),
    is_sampled: impl Fn(usize, u64) -> bool,
    runtime: Handle,
    mut progress: impl FnMut(u64),
) -> Result<EmbeddedRows> {
    let shards: Vec<Shard> = requests.iter().map(|request| request.shard.clone()).collect();
    let wanted: Vec<Option<Vec<u64>>> = requests.iter().map(|request| request.rows.clone()).collect();
    let mut sample = SampleVectors::new(encoder, options.memory);
    let (mut places, mut done) = (Vec::new(), 0);
    let (mut occurrences, mut seen) = (Occurrences::new(), vec![0u64; shards.len()]);
    let (mut quarantined, mut first_error) = (Vec::new(), None);
    let mut ahead = read_ahead(requests, options, runtime);
    while let Some((request, event)) = ahead.next_blocking() {
        let shard = &shards[request];
        let outcome = match event {
            ShardEvent::Rows(chunk, _permit) => sample.add(&shard.name, &chunk.batch).and_then(|kept| {
                let first = seen[request];
                let position = |row: usize| {
                    let place = first + row as u64;
                    let row = wanted[request].as_ref().map_or(place, |rows| rows.get(place as usize).copied().unwrap_or_default());
                    is_sampled(request, row).then_some(row)
                };
                index.look(&shard.name, &chunk.batch, encoder.columns(), position, &mut occurrences)?;
                places.extend(kept.into_iter().map(|row| (request, first + row as u64)));
                seen[request] += chunk.batch.num_rows() as u64;
                Ok(chunk.batch.num_rows())
            }),
            ShardEvent::Failed(error) => Err(error),
            ShardEvent::Opened(_) | ShardEvent::Done(_) => continue,
        };
        match outcome {
            Ok(rows) => {
                done += rows as u64;
                progress(done);
            }
            Err(error @ (Error::Shard { .. } | Error::Column { .. })) if !error.is_storage() => {
                ahead.skip_shard();
                quarantined.push(Quarantined::new(shard, &error));
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    if let (true, Some(error)) = (sample.is_empty(), first_error) {
        return Err(error);
    }
    Ok(EmbeddedRows { vectors: sample.finish()?, places, read: seen, occurrences, quarantined })
}

fn check_set(sample: &RowCandidates, set: &ReferenceSet, rows: &ReferenceRows) -> Result<()> {
    let dims = sample.vectors().ncols();
    if set.dims() == dims {
        return Ok(());
    }
    let reason = format!("has vectors of {} dimensions, the corpus of {dims}", set.dims());
    Err(Error::References { location: rows.location.clone(), reason })
}
