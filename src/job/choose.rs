//! Which model a command weighs with: the table's current one, a stored one, a new fit, or one that keeps another's potentials.

use super::context::Job;
use super::encoder::RowEncoder;
use super::fit::{fit_model, load_references, problem_digest};
use super::keep::{Sources, keep_potentials};
use super::references::ReferenceRows;
use super::report::{Quarantined, with_causes};
use crate::catalog::{StoredModel, WeightsTable};
use crate::error::{Error, Result};
use crate::shard::{Layout, Listing};
use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

/// Stored models that an error lists.
const LISTED: usize = 12;
/// Digits by which a listed model is shown. Any unique beginning of the digest is enough.
const SHOWN_DIGITS: usize = 12;

/// Which model a run weighs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Which {
    /// The table's, or a new one where that solves another problem or there is none.
    Fitting,
    /// A new one in any case.
    New,
    /// The table's; it is an error if there is none for this job.
    Current,
    /// The stored one whose digest begins so, whatever the job's references and transport options are.
    Stored(String),
}

/// The model a run weighs with.
pub(super) struct Chosen {
    pub(super) model: StoredModel,
    /// Whether this run fitted it.
    pub(super) fitted: bool,
    /// Seconds the fit took.
    pub(super) fit_seconds: f64,
    /// Shards that the fit could not read.
    pub(super) quarantined: Vec<Quarantined>,
    /// Sidecars that the weights can be computed from; empty but where potentials are kept.
    pub(super) sources: Sources,
}

impl Chosen {
    fn stored(model: StoredModel) -> Self {
        Self { model, fitted: false, fit_seconds: 0.0, quarantined: Vec::new(), sources: Sources::default() }
    }
}

/// Chooses the model, and fits or derives it where there is none yet; a new one is stored. `keep` says that a model whose push and
/// temperature alone differ from the job's is to lend its potentials.
///
/// # Errors
/// What is wrong with the references or the model, [`Error::Catalog`] where there is no model to use, and what fitting and the store answer.
pub(super) async fn choose(
    job: &Job,
    encoder: &RowEncoder,
    listing: &Listing,
    table: &WeightsTable,
    (which, keep): (&Which, bool),
) -> Result<Chosen> {
    if let Which::Stored(digits) = which {
        // References are not read: the model holds its own.
        let model = named_model(job, digits).await?;
        check_usable(job, encoder, &model)?;
        return Ok(Chosen::stored(model));
    }
    let (safe, harm) = match load_references(job, encoder.columns()).await {
        Ok(references) => references,
        Err(error @ Error::Column { .. }) => return Err(blame_corpus_first(listing, encoder, error).await),
        Err(error) => return Err(error),
    };
    let current = current_model(job, table).await?;
    let problem = problem_digest(job, encoder, &safe, &harm)?;
    let usable = current.as_ref().filter(|model| model.card.problem == problem);
    let stored = match (usable, which) {
        (_, Which::New | Which::Stored(_)) => None,
        (Some(model), _) => Some(model.clone()),
        (None, _) if keep && current.is_some() => None,
        (None, Which::Fitting) => stored_model(job, &problem).await?,
        (None, Which::Current) => return Err(no_model(job, current.as_ref())),
    };
    if let Some(model) = stored {
        return Ok(Chosen::stored(model));
    }
    if let (true, Some(current)) = (keep, &current) {
        let (model, sources) = keep_potentials(job, encoder, (&safe, &harm), current, listing, table).await?;
        model.write(&job.output).await?;
        return Ok(Chosen { sources, ..Chosen::stored(model) });
    }
    let started = Instant::now();
    let fitted = fit_model(job, encoder, (&safe, &harm), &listing.shards, current.as_ref()).await?;
    fitted.model.write(&job.output).await?;
    let fit_seconds = started.elapsed().as_secs_f64();
    Ok(Chosen { fitted: true, fit_seconds, quarantined: fitted.quarantined, ..Chosen::stored(fitted.model) })
}

/// The model that [`choose`] would take, if it need not make one; nothing is written.
///
/// # Errors
/// As [`choose`].
pub(super) async fn usable_model(job: &Job, table: &WeightsTable, which: &Which) -> Result<Option<StoredModel>> {
    let encoder = RowEncoder::load(&job.file, &job.stores).await?;
    if let Which::Stored(digits) = which {
        let model = named_model(job, digits).await?;
        check_usable(job, &encoder, &model)?;
        return Ok(Some(model));
    }
    let (safe, harm) = load_references(job, encoder.columns()).await?;
    let problem = problem_digest(job, &encoder, &safe, &harm)?;
    match current_model(job, table).await?.filter(|model| model.card.problem == problem) {
        Some(model) => Ok(Some(model)),
        None => stored_model(job, &problem).await,
    }
}

/// Every stored model that can be read, by its digest.
async fn stored_models(job: &Job) -> Result<BTreeMap<String, StoredModel>> {
    let mut models = BTreeMap::new();
    for digest in StoredModel::list(&job.output).await? {
        match StoredModel::read(&job.output, &digest).await {
            Ok(model) => drop(models.insert(digest, model)),
            Err(Error::Model { .. } | Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(models)
}

/// A stored model of this problem that is not the table's current one: fitted by a run that did not come to its commit, or before the
/// job was something else for a while. Of several the one that no other was made from, so the latest.
async fn stored_model(job: &Job, problem: &str) -> Result<Option<StoredModel>> {
    let mut models = stored_models(job).await?;
    let of_problem = |model: &&StoredModel| model.card.problem == problem;
    // Through models of other problems as well: potentials that were kept for another push and back are later than where they came from.
    let mut earlier: HashSet<&str> = HashSet::new();
    for model in models.values().filter(of_problem) {
        let mut parent = model.card.parent.as_deref();
        while let Some(digest) = parent.filter(|digest| earlier.insert(digest)) {
            parent = models.get(digest).and_then(|model| model.card.parent.as_deref());
        }
    }
    let latest = models.values().filter(of_problem).find(|model| !earlier.contains(model.digest.as_str())).map(|m| m.digest.clone());
    Ok(latest.and_then(|digest| models.remove(&digest)))
}

/// The stored model whose digest begins with these digits.
async fn named_model(job: &Job, digits: &str) -> Result<StoredModel> {
    let stored = StoredModel::list(&job.output).await?;
    let matching: Vec<&String> = stored.iter().filter(|digest| !digits.is_empty() && digest.starts_with(digits)).collect();
    if let [digest] = matching.as_slice() {
        return StoredModel::read(&job.output, digest).await;
    }
    let (listed, reason) = match matching.is_empty() {
        true => (stored.iter().collect(), format!("no stored model's digest begins with {digits:?}")),
        false => (matching.clone(), format!("{} stored models' digests begin with {digits:?}", matching.len())),
    };
    Err(Error::InvalidOption { name: "--model".to_owned(), reason: format!("{reason}; {}", described(job, &listed).await) })
}

/// Stored models in words, by what tells them apart.
async fn described(job: &Job, digests: &[&String]) -> String {
    if digests.is_empty() {
        return format!("{} holds no model yet: `pushpull fit` makes one", job.output);
    }
    let mut words = Vec::new();
    for digest in digests.iter().take(LISTED) {
        let short = digest.get(..SHOWN_DIGITS).unwrap_or(digest);
        words.push(match StoredModel::read(&job.output, digest).await {
            Ok(StoredModel { card, .. }) => format!("{short} (push {}, temperature {:.4})", card.push, card.tau),
            Err(_) => format!("{short} (cannot be read)"),
        });
    }
    let more = digests.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more: `pushpull sql … \"select * from models\"`") } else { String::new() };
    format!("there are {}{more}", words.join(", "))
}

/// A stored model weighs this job's rows where they become vectors as its own sample did. References and options may be others: the model
/// holds its own.
fn check_usable(job: &Job, encoder: &RowEncoder, model: &StoredModel) -> Result<()> {
    let differing = reads_otherwise(encoder, model);
    if differing.is_empty() {
        return Ok(());
    }
    let reason = format!("model {} cannot weigh this job: {}", model.digest, differing.join("; "));
    Err(Error::Catalog { location: job.output.to_string(), reason, source: None })
}

/// In what the job reads rows otherwise than a model's sample was read.
pub(super) fn reads_otherwise(encoder: &RowEncoder, model: &StoredModel) -> Vec<String> {
    let (card, columns) = (&model.card, encoder.columns());
    let mut differing = Vec::new();
    if card.embedder != encoder.fingerprint() {
        differing.push(format!("`embed.model` is {}, the model's {}", encoder.fingerprint(), card.embedder));
    }
    if card.columns != columns.views() {
        differing.push(format!("the columns are {}, the model's {}", columns.views().join(", "), card.columns.join(", ")));
    }
    if card.text_fallback.as_deref() != columns.fallback() {
        let named = |fallback: Option<&str>| fallback.map_or_else(|| "none".to_owned(), |column| format!("`{column}`"));
        let (of_job, of_model) = (named(columns.fallback()), named(card.text_fallback.as_deref()));
        differing.push(format!("`corpus.text_fallback` is {of_job}, the model's {of_model}"));
    }
    if card.windows != encoder.windows() {
        differing.push("`embed.window`, `stride` or `pool` are others".to_owned());
    }
    differing
}

fn no_model(job: &Job, current: Option<&StoredModel>) -> Error {
    let reason = match current {
        None => "has no model yet; `pushpull fit` makes one".to_owned(),
        Some(model) => format!(
            "has model {} for other references, columns or options; `pushpull fit` makes one for this job, \
             `pushpull weigh --model {}` uses that one all the same",
            model.digest,
            model.digest.get(..SHOWN_DIGITS).unwrap_or(&model.digest)
        ),
    };
    Error::Catalog { location: job.output.to_string(), reason, source: None }
}

/// A column that the first shard lacks as well is a slip in the job file and no fault of the references.
pub(super) async fn blame_corpus_first(listing: &Listing, encoder: &RowEncoder, error: Error) -> Error {
    let Some(shard) = listing.shards.first() else { return error };
    let Ok(layout) = Layout::load(shard, false).await else { return error };
    layout.column_positions(&shard.name, &encoder.columns().to_read()).err().unwrap_or(error)
}

/// The table's current model, if there is one that can be read.
pub(super) async fn current_model(job: &Job, table: &WeightsTable) -> Result<Option<StoredModel>> {
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

/// In what the job differs from a model but in push and temperature.
pub(super) fn differs_otherwise(
    job: &Job,
    encoder: &RowEncoder,
    (safe, harm): (&ReferenceRows, &ReferenceRows),
    model: &StoredModel,
) -> Result<Vec<String>> {
    let mut options = job.file.transport.options();
    (options.push, options.temperature) = (model.card.options.push, model.card.options.temperature);
    if super::fit::problem_with(job, encoder, (safe, harm), &options)? == model.card.problem {
        return Ok(Vec::new());
    }
    let mut differing = reads_otherwise(encoder, model);
    for (side, digest, of_model) in [("safe", &safe.digest, &model.card.safe_digest), ("harm", &harm.digest, &model.card.harm_digest)] {
        if digest != of_model {
            differing.push(format!("`references.{side}` are others"));
        }
    }
    let fields = |options: &_| serde_json::to_value(options).map_err(|e| Error::Internal(format!("options: {e}")));
    let (of_job, of_model) = (fields(&options)?, fields(&model.card.options)?);
    for (name, value) in of_job.as_object().into_iter().flatten() {
        let before = of_model.get(name);
        if before != Some(value) {
            let before = before.map_or_else(|| "unknown".to_owned(), ToString::to_string);
            differing.push(format!("`transport.{name}` is {value}, the model's {before}"));
        }
    }
    if differing.is_empty() {
        differing.push("`transport.sample_rows` is another".to_owned());
    }
    Ok(differing)
}
