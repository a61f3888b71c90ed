//! Evaluates a job on rows with labels: reads which rows have one, embeds them and the fit's sample once, fits as a run does, and compares
//! push-pull with simpler scores on the same vectors. Writes nothing. The labels enter nothing but the metrics.
//!
//! Memory: [`RunOptions::memory`](super::RunOptions::memory) for chunks; the vectors of the sample and of the scored rows (together, where they are not the
//! same rows, twice; once more divided by the views while one view is fitted); see [`crate::eval`] for the rest.

use super::choose::blame_corpus_first;
use super::contents::ContentIndex;
use super::context::Job;
use super::encoder::RowEncoder;
use super::fit::{draw_requests, embed_sample, fit_sample, load_references, within_memory};
use super::labelled::{LabelQuery, Labelled, LabelledRow, find_labelled};
use super::report::Quarantined;
use crate::catalog::StoredModel;
use crate::error::{Error, Result};
use crate::eval::{
    BootstrapOptions, Classes, Compared, DEFAULT_RESAMPLES, Evaluation, LARF_NEAREST, MAX_NEGATIVES, ablations, baselines, evaluate,
    push_pull,
};
use crate::shard::{Listing, ReadOptions, ShardRequest};
use crate::transport::{FitPhase, RowCandidates, TransportModel};
use ndarray::{CowArray, Ix2};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;

/// Rows scored at most by default: intervals hardly shrink any further, and their vectors take 200 MiB at 512 dimensions.
pub const DEFAULT_EVAL_ROWS: usize = 100_000;

/// Fewer rows of a class make an interval that is not to be trusted.
const FEW_ROWS: usize = 20;

/// What to evaluate on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalOptions {
    /// The column with the labels: text, numbers or true and false.
    pub label: String,
    /// The labels of harmful rows, at least one; together they are the positive class.
    pub positive: Vec<String>,
    /// The labels of the other rows, each a class of its own; at most [`MAX_NEGATIVES`]. Empty (default): every other label, the rarest together where there are
    /// more than that.
    pub negative: Vec<String>,
    /// A SQL condition on the corpus's own columns: only rows for which it holds are scored. It does not change what is fitted on. Default: none.
    pub predicate: Option<String>,
    /// Rows scored at most, a uniform sample of those with these labels. Default [`DEFAULT_EVAL_ROWS`].
    pub rows: usize,
    /// Resamples of the bootstrap. Default [`DEFAULT_RESAMPLES`].
    pub resamples: usize,
}

impl EvalOptions {
    /// Evaluates on a label column whose `positive` value marks harmful rows.
    pub fn new(label: impl Into<String>, positive: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            positive: vec![positive.into()],
            negative: Vec::new(),
            predicate: None,
            rows: DEFAULT_EVAL_ROWS,
            resamples: DEFAULT_RESAMPLES,
        }
    }

    fn check(&self) -> Result<()> {
        let fault = |name: &str, reason: String| Err(Error::InvalidOption { name: name.to_owned(), reason });
        if self.positive.is_empty() {
            return fault("--positive", "at least one value is needed".into());
        }
        if self.negative.len() > MAX_NEGATIVES {
            return fault("--negative", format!("{} values are too many columns; {MAX_NEGATIVES} at most", self.negative.len()));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = self.positive.iter().chain(&self.negative).find(|value| !seen.insert(*value)) {
            return fault("--negative", format!("{twice:?} is named twice; a row has one class"));
        }
        if self.rows == 0 || self.resamples == 0 {
            return fault(if self.rows == 0 { "--rows" } else { "--bootstrap" }, "must be at least 1".into());
        }
        Ok(())
    }
}

/// What became of the corpus's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EvalRows {
    /// Rows that every metric is over.
    pub scored: u64,
    /// Rows with an asked label for which the condition holds. More than `scored` where a sample was drawn or rows have no text.
    pub eligible: u64,
    /// Rows drawn for scoring that have no text, and so no weight.
    pub without_text: u64,
    /// Rows drawn for scoring whose shard is among the quarantined: their label was read, their text could not be. Absent where there is none.
    #[serde(skip_serializing_if = "is_none_of_them")]
    pub unreadable: u64,
    /// Rows whose label is null.
    pub without_label: u64,
    /// Rows with a label that was not asked for.
    pub other_label: u64,
    /// Rows for which the condition does not hold.
    pub not_selected: u64,
}

fn is_none_of_them(rows: &u64) -> bool {
    *rows == 0
}

/// How a job does on labelled rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalReport {
    /// The column with the labels.
    pub label: String,
    /// The condition on scored rows.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub predicate: Option<String>,
    /// What became of the rows.
    pub rows: EvalRows,
    /// Safe references.
    pub safe_references: usize,
    /// Harmful references.
    pub harm_references: usize,
    /// Digest of the model, fitted now: what the first `run` of this job fits on this corpus. Not stored.
    pub model: String,
    /// Rows it was fitted on, labelled or not.
    pub sample_rows: usize,
    /// Whether its fit reached the threshold.
    pub converged: bool,
    /// Why it did not, and what to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// ε.
    pub epsilon: f64,
    /// τ.
    pub tau: f64,
    /// λ.
    pub push: f64,
    /// β.
    pub prior: f64,
    /// Effective sample size of push-pull's weights over the scored rows, as a fraction of them. Every method's weights have it.
    pub ess: f64,
    /// Seed of the sample, the fit and the resamples.
    pub seed: u64,
    /// The table.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Shards that could not be read, or have no such label.
    pub quarantined: Vec<Quarantined>,
    /// What to mind when reading the table.
    pub warnings: Vec<String>,
    /// Seconds from listing to the last interval.
    pub seconds: f64,
}

impl EvalReport {
    /// 0 when everything is done, 1 when the fit did not converge or a shard is left out.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.converged || !self.quarantined.is_empty())
    }
}

/// Compares push-pull with simpler scores on labelled rows of the corpus. Fits anew on the sample that a run would draw, from all rows
/// and without a look at any label; nothing is written, and a model in the weights table is not used.
///
/// # Errors
/// As [`run`](super::run()) for job, references and model; [`Error::Column`] for a label column that is missing or no label,
/// [`Error::InvalidOption`] for a label that no row has, [`Error::Query`] for a condition that cannot be computed.
pub async fn eval(job: &Job, options: &EvalOptions) -> Result<EvalReport> {
    options.check()?;
    let started = Instant::now();
    let listing = Arc::new(job.list().await?);
    let encoder = RowEncoder::load(&job.file, &job.stores).await?;
    let (safe, harm) = match load_references(job, encoder.columns()).await {
        Ok(references) => references,
        Err(error @ Error::Column { .. }) => return Err(blame_corpus_first(&listing, &encoder, error).await),
        Err(error) => return Err(error),
    };
    let labelled = read_labels(job, options, &listing).await?;
    let (requests, quarantined) = draw_requests(job, &listing.shards).await?;
    let wanted = Wanted::new(&listing, requests.0, &labelled.rows);
    let index = ContentIndex::new([&safe, &harm], encoder.columns())?;
    let embedded = embed(job, (&encoder, index), &wanted, quarantined).await?;
    let (rows, unreadable) = (wanted.sort_out(&embedded.places), wanted.unread(&embedded.read));
    let readings = Readings::new(embedded.vectors, &rows);
    let model = fit_sample(job, &encoder, (&safe, &harm), (Arc::clone(&readings.sample), &embedded.occurrences), None).await?;

    let (classes, names, missing) = classes(&labelled, &rows.scored, options)?;
    let mut quarantined = embedded.quarantined;
    quarantined.extend(labelled.quarantined);
    quarantined.sort_by(|a: &Quarantined, b| a.shard.cmp(&b.shard));
    quarantined.dedup_by(|a, b| a.shard == b.shard);
    let counts = EvalRows {
        scored: classes.len() as u64,
        eligible: labelled.eligible,
        without_text: (labelled.rows.len() - classes.len()) as u64 - unreadable,
        unreadable,
        without_label: labelled.without_label,
        other_label: labelled.other_label,
        not_selected: labelled.not_selected,
    };
    let (evaluation, ess) = compare(job, &encoder, &model, readings, classes, &names, options.resamples).await?;
    let mut report = EvalReport {
        label: options.label.clone(),
        predicate: options.predicate.clone(),
        rows: counts,
        safe_references: model.transport.safe.len(),
        harm_references: model.transport.harm.len(),
        model: model.digest,
        sample_rows: model.card.report.rows,
        converged: model.card.report.converged,
        why_not: model.card.report.why_not,
        epsilon: model.card.epsilon,
        tau: model.card.tau,
        push: model.card.push,
        prior: model.card.prior,
        ess,
        seed: job.file.transport.seed,
        evaluation,
        quarantined,
        warnings: missing,
        seconds: 0.0,
    };
    report.warn();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

impl EvalReport {
    fn warn(&mut self) {
        for class in self.evaluation.classes.iter().filter(|class| class.rows < FEW_ROWS) {
            let rows = if class.rows == 1 { "1 row".to_owned() } else { format!("{} rows", class.rows) };
            self.warnings.push(format!("only {rows} of {:?}: too few for its intervals to be trusted", class.class));
        }
        let fewest = self.safe_references.min(self.harm_references);
        if fewest < LARF_NEAREST {
            let text = format!("only {fewest} references on one side: the mean of the {LARF_NEAREST} nearest is there the mean of all");
            self.warnings.push(text);
        }
        for method in self.evaluation.methods.iter().skip(1).filter(|method| method.converged == Some(false)) {
            self.warnings.push(format!("the fit of {:?} did not converge", method.method));
        }
    }
}

async fn read_labels(job: &Job, options: &EvalOptions, listing: &Arc<Listing>) -> Result<Labelled> {
    let query = LabelQuery {
        label: options.label.clone(),
        positive: options.positive.clone(),
        negative: options.negative.clone(),
        predicate: options.predicate.clone(),
        rows: options.rows,
        seed: job.file.transport.seed,
    };
    let (listing, runtime, run) = (Arc::clone(listing), Handle::current(), job.options.clone());
    let task = tokio::task::spawn_blocking(move || {
        run.progress.begin("reading labels", 0);
        let labelled = find_labelled(&run, &listing, &query, &runtime);
        run.progress.end();
        labelled
    });
    task.await.map_err(|e| Error::Internal(format!("labels: {e}")))?
}

/// The rows to embed: the fit's sample and the scored ones.
struct Wanted<'a> {
    requests: Vec<ShardRequest>,
    /// Of each request: the rows of the fit's sample (`None`: all) and the scored rows, both sorted.
    of: Vec<(Option<Vec<u64>>, &'a [LabelledRow])>,
}

/// Positions among the embedded rows.
#[derive(Default)]
struct Sorted {
    sample: Vec<usize>,
    scored: Vec<(usize, LabelledRow)>,
}

impl<'a> Wanted<'a> {
    fn new(listing: &Listing, sample: Vec<ShardRequest>, scored: &'a [LabelledRow]) -> Self {
        let mut sampled: HashMap<String, Option<Vec<u64>>> = sample.into_iter().map(|request| (request.shard.name, request.rows)).collect();
        let mut wanted = Self { requests: Vec::new(), of: Vec::new() };
        for (index, shard) in listing.shards.iter().enumerate() {
            let scored = &scored[scored.partition_point(|row| row.shard < index)..scored.partition_point(|row| row.shard <= index)];
            let sample = sampled.remove(&shard.name);
            if sample.is_none() && scored.is_empty() {
                continue;
            }
            // No rows of the sample are in a shard that it did not ask for.
            let sample = sample.unwrap_or_else(|| Some(Vec::new()));
            let rows = sample.as_ref().map(|sample| {
                let mut rows: Vec<u64> = sample.iter().copied().chain(scored.iter().map(|row| row.row)).collect();
                rows.sort_unstable();
                rows.dedup();
                rows
            });
            wanted.requests.push(ShardRequest { shard: shard.clone(), rows });
            wanted.of.push((sample, scored));
        }
        wanted
    }

    fn sort_out(&self, places: &[(usize, u64)]) -> Sorted {
        let mut sorted = Sorted::default();
        for (position, (request, place)) in places.iter().enumerate() {
            let row = self.requests[*request].rows.as_ref().map_or(*place, |rows| rows[*place as usize]);
            let (sample, scored) = &self.of[*request];
            if sample.as_ref().is_none_or(|sample| sample.binary_search(&row).is_ok()) {
                sorted.sample.push(position);
            }
            if let Ok(at) = scored.binary_search_by_key(&row, |scored| scored.row) {
                sorted.scored.push((position, scored[at]));
            }
        }
        sorted
    }

    /// Scored rows that come after the last row read of their shard, from the number of wanted rows that were read of each request.
    fn unread(&self, read: &[u64]) -> u64 {
        let unread = self.requests.iter().zip(&self.of).zip(read).map(|((request, (_, scored)), read)| {
            let from = match &request.rows {
                None => Some(*read),
                Some(rows) => rows.get(*read as usize).copied(),
            };
            from.map_or(0, |from| scored.len() - scored.partition_point(|row| row.row < from)) as u64
        });
        unread.sum()
    }
}

async fn embed(
    job: &Job,
    (encoder, index): (&RowEncoder, ContentIndex),
    wanted: &Wanted<'_>,
    before: Vec<Quarantined>,
) -> Result<super::fit::EmbeddedRows> {
    let read =
        ReadOptions { columns: encoder.columns().to_read(), rows: None, chunk_rows: job.options.chunk_rows, memory: job.options.memory };
    let (requests, encoder, runtime, progress) =
        (wanted.requests.clone(), encoder.clone(), Handle::current(), Arc::clone(&job.options.progress));
    let sampled: Vec<Option<Vec<u64>>> = wanted.of.iter().map(|(sample, _)| sample.clone()).collect();
    let task = tokio::task::spawn_blocking(move || {
        progress.begin("embedding", 0);
        let is_sampled = |request: usize, row: u64| sampled[request].as_ref().is_none_or(|rows| rows.binary_search(&row).is_ok());
        let embedded = embed_sample(requests, read, (&encoder, &index), is_sampled, runtime, |done| progress.advance(done));
        progress.end();
        embedded
    });
    let mut embedded = task.await.map_err(|e| Error::Internal(format!("embedding: {e}")))??;
    embedded.quarantined.extend(before);
    Ok(embedded)
}

/// The embedded rows, by what they are for, with all their readings. Where both are all rows, there is one copy.
struct Readings {
    sample: Arc<RowCandidates>,
    scored: Arc<RowCandidates>,
}

impl Readings {
    fn new(all: RowCandidates, rows: &Sorted) -> Self {
        let all = Arc::new(all);
        let pick = |positions: Vec<usize>| match positions.len() == all.rows() {
            true => Arc::clone(&all),
            false => Arc::new(all.subset(&positions)),
        };
        Self { sample: pick(rows.sample.clone()), scored: pick(rows.scored.iter().map(|(position, _)| *position).collect()) }
    }
}

/// One vector of each of these rows: its only reading, or the most harmful one under the model, so that every method sees what
/// push-pull's weight is from.
fn one_reading<'a>(rows: &'a RowCandidates, model: &TransportModel) -> Result<CowArray<'a, f32, Ix2>> {
    match rows.vectors().nrows() == rows.rows() {
        true => Ok(CowArray::from(rows.vectors())),
        false => rows.most_harmful(model).map(CowArray::from),
    }
}

/// The class of every scored row, the classes' names, and a warning for each asked label that no scored row has.
fn classes(labelled: &Labelled, scored: &[(usize, LabelledRow)], options: &EvalOptions) -> Result<(Classes, Vec<String>, Vec<String>)> {
    const OTHER: &str = "other labels";
    let positives = options.positive.len();
    let mut counts = vec![0u64; labelled.values.len()];
    scored.iter().for_each(|(_, row)| counts[row.value] += 1);
    let name = |value: usize| labelled.values[value].as_deref().unwrap_or(OTHER);
    let mut negatives: Vec<usize> = (positives..counts.len()).filter(|value| counts[*value] > 0).collect();
    if options.negative.is_empty() {
        negatives.sort_by(|a, b| counts[*b].cmp(&counts[*a]).then_with(|| name(*a).cmp(name(*b))));
    }
    let mut names = vec![options.positive.join(" + ")];
    let mut class_of = vec![0u8; counts.len()];
    let joined = if negatives.len() > MAX_NEGATIVES { MAX_NEGATIVES - 1 } else { MAX_NEGATIVES };
    for (place, value) in negatives.iter().enumerate() {
        class_of[*value] = place.min(joined) as u8 + 1;
        match place == joined {
            true => names.push(OTHER.to_owned()),
            false if place < joined => names.push(name(*value).to_owned()),
            false => {}
        }
    }
    let has_text = |missing: bool, option: &str| match missing {
        true => Err(Error::InvalidOption { name: option.to_owned(), reason: "no drawn row of it has text; raise --rows".into() }),
        false => Ok(()),
    };
    has_text(counts[..positives].iter().all(|n| *n == 0), "--positive")?;
    has_text(negatives.is_empty(), "--negative")?;
    let asked =
        options.positive.iter().map(|value| ("--positive", value)).chain(options.negative.iter().map(|value| ("--negative", value)));
    // The asked labels are the first values, in this order.
    let missing = asked.enumerate().filter(|(at, _)| counts[*at] == 0).map(|(at, (option, value))| {
        let why = match labelled.rows.iter().filter(|row| row.value == at).count() {
            0 => "no row of it was drawn".to_owned(),
            1 => "the one row drawn of it has no text that could be read".to_owned(),
            n => format!("none of the {n} rows drawn of it has text that could be read"),
        };
        format!("{option} {value:?} is left out: {why}; raise --rows")
    });
    let missing = missing.collect();
    Ok((Classes::try_new(scored.iter().map(|(_, row)| class_of[row.value]).collect())?, names, missing))
}

/// Everything that is computed on vectors, off the async threads. Gives push-pull's effective sample size too.
async fn compare(
    job: &Job,
    encoder: &RowEncoder,
    model: &StoredModel,
    readings: Readings,
    classes: Classes,
    names: &[String],
    resamples: usize,
) -> Result<(Evaluation, f64)> {
    let options = within_memory(job, &job.file.transport.options());
    let bootstrap = BootstrapOptions { resamples, seed: job.file.transport.seed };
    let views = encoder.columns().views().to_vec();
    let (model, converged, names, progress) =
        (model.transport.clone(), model.card.report.converged, names.to_vec(), Arc::clone(&job.options.progress));
    let task = tokio::task::spawn_blocking(move || {
        progress.begin("scoring", 0);
        let (sample, scored) = (one_reading(&readings.sample, &model)?, one_reading(&readings.scored, &model)?);
        let (ours, ess) = push_pull(&model, converged, scored.view())?;
        let compared = Compared { sample: sample.view(), scored: scored.view(), ess };
        let mut methods = vec![ours];
        methods.extend(baselines(compared, &model.safe, &model.harm)?);
        let mut under_way = String::new();
        methods.extend(ablations(compared, &model, &options, &views, &mut |name, at| {
            if at.phase == FitPhase::Whole && under_way != name {
                under_way = name.to_owned();
                progress.begin(&format!("fitting, {name}"), at.max_steps as u64);
            }
            if at.phase == FitPhase::Whole {
                progress.advance(at.step as u64);
            }
        })?);
        progress.begin("bootstrap", resamples as u64);
        let evaluation = evaluate(&methods, &classes, &names, bootstrap)?;
        progress.advance(resamples as u64);
        progress.end();
        Ok((evaluation, ess))
    });
    task.await.map_err(|e| Error::Internal(format!("comparing: {e}")))?
}
