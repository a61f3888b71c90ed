//! The main job: choose a model (or fit one), bring the selected shards to it, commit once. Safe to repeat and to kill.

use super::apply::apply;
use super::choose::{Which, choose};
use super::context::Job;
use super::encoder::RowEncoder;
use super::plan::{gone, is_done};
use super::report::{Quarantined, RunReport, with_causes};
use super::select::Selection;
use crate::catalog::{Publication, WeightsTable, write_run};
use crate::error::{Error, Result};
use crate::shard::{Listing, Shard};
use crate::storage::{Traffic, counted};
use std::sync::Arc;
use std::time::Instant;

/// What `weigh`, `run` and `plan` may be told beside the job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeighOptions {
    /// The shards to weigh; the others keep the weights they have, by the model that gave them. Default: all. With a selection nothing is
    /// removed from the table either.
    pub selection: Selection,
    /// A stored model by its digest or the beginning of it, whatever the job's references and transport options are by now. It must read
    /// rows as the job does: the same embedder, columns and windows. Without a selection it becomes the table's current model. Default: the
    /// current one.
    pub model: Option<String>,
    /// Where the table's current model differs from the job in push and temperature alone: derive a model that keeps its potentials, and
    /// compute weights from the sidecars instead of fitting and reading the corpus. Shards that are new or changed are read and weighed by
    /// the derived model. Default: no.
    pub keep_potentials: bool,
}

impl WeighOptions {
    /// # Errors
    /// [`Error::InvalidOption`] for options that do not go together.
    pub(super) fn check(&self) -> Result<()> {
        let fault = |reason: &str| Err(Error::InvalidOption { name: "--keep-potentials".to_owned(), reason: reason.to_owned() });
        match (self.keep_potentials, &self.model, self.selection.is_everything()) {
            (true, Some(_), _) => fault("derives a model from the table's current one; it cannot be used with --model"),
            (true, _, false) => fault("computes temperature and mean weight over the whole table; it cannot be used with a selection"),
            _ => Ok(()),
        }
    }

    /// The model that `weigh` takes by these options.
    pub(super) fn which(&self, otherwise: Which) -> Which {
        self.model.clone().map_or(otherwise, Which::Stored)
    }
}

/// Fits if there is no model for this job, weighs what is new or changed, removes what is gone, and commits once.
///
/// # Errors
/// What is wrong with the job, the references or the model; the first shard's error where no shard can be read; what the store answers.
pub async fn run(job: &Job) -> Result<RunReport> {
    run_with(job, &WeighOptions::default()).await
}

/// As [`run`], with options.
///
/// # Errors
/// As [`run`], [`Error::InvalidOption`] for options that cannot be used, and [`Error::Catalog`] where potentials cannot be kept.
pub async fn run_with(job: &Job, options: &WeighOptions) -> Result<RunReport> {
    execute(job, options.which(Which::Fitting), options, true).await
}

/// Fits a new model and makes it the table's current one; weighs nothing.
///
/// # Errors
/// As [`run`].
pub async fn fit(job: &Job) -> Result<RunReport> {
    execute(job, Which::New, &WeighOptions::default(), false).await
}

/// Weighs what is new or changed with the table's current model, and commits once.
///
/// # Errors
/// As [`run`], and [`Error::Catalog`] where there is no model for this job.
pub async fn weigh(job: &Job) -> Result<RunReport> {
    weigh_with(job, &WeighOptions::default()).await
}

/// As [`weigh`], for a part of the corpus, with an earlier model, or from the sidecars alone.
///
/// # Errors
/// As [`weigh`] and [`run_with`].
pub async fn weigh_with(job: &Job, options: &WeighOptions) -> Result<RunReport> {
    execute(job, options.which(Which::Current), options, true).await
}

async fn execute(job: &Job, which: Which, options: &WeighOptions, weighing: bool) -> Result<RunReport> {
    let started = Instant::now();
    options.check()?;
    let of_corpus = Arc::<Traffic>::default();
    let listing = with_reads_counted(job.list().await?, &of_corpus);
    let encoder = RowEncoder::load(&job.file, &job.stores).await?;
    let mut table = WeightsTable::open(&job.output).await?;
    let chosen = choose(job, &encoder, &listing, &table, (&which, options.keep_potentials)).await?;
    let model = chosen.model;

    let mut report = RunReport::of_model(&model.digest, &model.card);
    report.fitted = chosen.fitted;
    report.seconds.fit = chosen.fit_seconds;
    let mut quarantined = chosen.quarantined;
    let mut change = Publication::default();
    // An earlier model that weighs a part of the table does not become the model of the rest.
    let becomes_current = options.selection.is_everything() || !matches!(which, Which::Stored(_));
    if becomes_current && table.model()?.as_deref() != Some(model.digest.as_str()) {
        change.model = Some(model.digest.clone());
    }
    if weighing {
        let weigh_started = Instant::now();
        let published = table.published()?;
        let before = job.stores.traffic().bytes_read();
        let selected = options.selection.apply(job, &listing, &published, Some(&model.digest)).await?;
        report.corpus_bytes_read = job.stores.traffic().bytes_read() - before;
        let (done, open): (Vec<Shard>, Vec<Shard>) =
            listing.shards.iter().cloned().partition(|shard| is_done(shard, &published, &model.digest));
        let (todo, left): (Vec<Shard>, Vec<Shard>) = open.into_iter().partition(|shard| selected.takes(&shard.name));
        (report.shards.unchanged, report.shards.not_selected) = (done.len(), left.len());
        let weighed = apply(job, &encoder, &model, todo, chosen.sources, &mut report.shards).await?;
        // What the fit met and weighing did not is mended, and weighed.
        quarantined = weighed.quarantined;
        (report.most, report.least) = (weighed.extremes.most, weighed.extremes.least);
        change.written = weighed.receipts;
        let gone: Vec<String> = gone(&listing, &published).collect();
        match options.selection.is_everything() {
            true => change.removed = gone,
            false => report.keeps_gone(gone.len()),
        }
        report.shards.removed = change.removed.len();
        if let (true, Some(error)) = (change.written.is_empty() && report.shards.unchanged == 0, weighed.first_error) {
            return Err(error);
        }
        report.seconds.weigh = weigh_started.elapsed().as_secs_f64();
    }

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
    report.describe_table(published.values(), weighing);
    report.bytes_read = job.stores.traffic().bytes_read();
    report.requests = job.stores.traffic().requests();
    report.corpus_bytes_read += of_corpus.bytes_read();
    report.seconds.total = started.elapsed().as_secs_f64();
    if changed || !report.quarantined.is_empty() {
        let stored = serde_json::to_value(&report).map_err(|e| Error::Internal(format!("run report: {e}")))?;
        if let Err(error) = write_run(&job.output, report.version, &stored).await {
            tracing::warn!(error = %with_causes(&error), "the run is committed, but its report could not be stored");
        }
    }
    Ok(report)
}

fn with_reads_counted(mut listing: Listing, traffic: &Arc<Traffic>) -> Listing {
    for shard in &mut listing.shards {
        shard.location = counted(&shard.location, traffic);
    }
    listing
}
