//! Why a row has its weight: reads one row of a shard, embeds and weighs it with the model that its published weight is from, and takes
//! that weight apart. Writes nothing.
//!
//! Read are the log, the model, the two reference files, the pages of the row's columns (a record batch for an Arrow shard) and of its
//! sidecar. Memory: the model, the references, one row and what [`RunOptions::memory`](super::RunOptions::memory) allows for pages.

use super::context::Job;
use super::encoder::RowEncoder;
use super::explained_row::{
    ExplainedPrior, ExplainedReference, ExplainedRow, ExplainedSide, ExplainedView, ExplainedWeight, ExplainedWindow, Factors,
    PublishedState, RowAddress, RowText,
};
use super::references::{ReferenceRows, Side};
use super::windows::read_one;
use crate::catalog::{Published, StoredModel, WeightsTable};
use crate::embed;
use crate::error::{Error, Result, nearest};
use crate::shard::{Listing, ReadOptions, Shard, ShardEvent, ShardFormat, ShardRequest, read_ahead};
use crate::transport::{RowExplanation, RowWeight, SidePart, TransportModel, Weigher};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Int64Type};
use ndarray::ArrayView1;
use std::collections::{BTreeMap, BTreeSet};
use tokio::runtime::Handle;

/// References named on each side.
const STRONGEST: usize = 3;

/// Explains rows, in the order given.
///
/// # Errors
/// [`Error::InvalidOption`] for a shard or row that is not there, [`Error::Catalog`] before the first model, [`Error::Shard`] for a shard that changed
/// since it was weighed, [`Error::Model`] where the job's columns, embedder or windows are not the model's, and what the store answers.
pub async fn explain(job: &Job, addresses: &[RowAddress]) -> Result<Vec<ExplainedRow>> {
    let table = WeightsTable::open(&job.output).await?;
    let (published, current) = (table.published()?, table.model()?);
    let Some(current) = current else {
        let reason = "has no model yet; `pushpull run` makes one".to_owned();
        return Err(Error::Catalog { location: job.output.to_string(), reason, source: None });
    };
    let listing = job.list().await?;
    let found = addresses
        .iter()
        .map(|address| Ok((find(&listing, &published, &address.shard)?, address.row)))
        .collect::<Result<Vec<(&Shard, u64)>>>()?;
    for (shard, _) in &found {
        if published.get(&shard.name).is_some_and(|sidecar| sidecar.shard_version != shard.version()) {
            let reason = "changed since it was weighed: run `pushpull run` again".to_owned();
            return Err(Error::Shard { shard: shard.name.clone(), row_group: None, reason, source: None });
        }
    }
    let encoder = RowEncoder::load(&job.file, &job.stores).await?;
    let columns = encoder.columns();
    let (safe, harm) = (job.stores.open(&job.file.references.safe)?, job.stores.open(&job.file.references.harm)?);
    let references = [ReferenceRows::read(Side::Safe, &safe, columns).await?, ReferenceRows::read(Side::Harm, &harm, columns).await?];

    let model_of = |shard: &Shard| published.get(&shard.name).map_or(&current, |sidecar| &sidecar.model);
    let mut models = BTreeMap::new();
    for digest in found.iter().map(|(shard, _)| model_of(shard)).collect::<BTreeSet<_>>() {
        let model = StoredModel::read(&job.output, digest).await?;
        check_model(&model, &encoder)?;
        models.insert(digest, model);
    }
    let mut rows = Vec::with_capacity(found.len());
    for (shard, row) in found {
        let Some(model) = models.get(model_of(shard)) else { continue };
        let batch = read_row(job, shard, columns.to_read(), row).await?;
        let sidecar = match published.get(&shard.name) {
            Some(sidecar) => Some(read_sidecar(job, sidecar, row).await?),
            None => None,
        };
        // Embedding and transport run on rayon's pool and must not hold up the runtime.
        let (shard, model, encoder, references) = (shard.clone(), model.clone(), encoder.clone(), references.clone());
        let explained =
            tokio::task::spawn_blocking(move || explain_row(&shard, row, &batch, sidecar.as_ref(), &model, &encoder, &references));
        rows.push(explained.await.map_err(|e| Error::Internal(format!("explain: {e}")))??);
    }
    Ok(rows)
}

/// The shard that is meant: by its name, or by an end of its name that is no other's.
fn find<'a>(listing: &'a Listing, published: &BTreeMap<String, Published>, wanted: &str) -> Result<&'a Shard> {
    let failed = |reason: String| Error::InvalidOption { name: "--row".into(), reason };
    if let Some(shard) = listing.shards.iter().find(|shard| shard.name == wanted) {
        return Ok(shard);
    }
    if published.contains_key(wanted) {
        return Err(failed(format!("shard {wanted} is gone from the corpus; only its weights are left")));
    }
    let ends = |name: &str| name.strip_suffix(wanted).is_some_and(|before| before.ends_with('/'));
    let candidates: Vec<&Shard> = listing.shards.iter().filter(|shard| ends(&shard.name)).collect();
    match candidates[..] {
        [shard] => Ok(shard),
        [] => {
            let names = || listing.shards.iter().map(|shard| shard.name.as_str());
            Err(failed(match nearest(wanted, names()) {
                Some(near) => format!("no shard {wanted}; did you mean {near}?"),
                None => format!("no shard {wanted} among {}, the first is {}", names().count(), names().next().unwrap_or_default()),
            }))
        }
        [first, second, ..] => Err(failed(format!(
            "{wanted} is the end of {} names, {} and {} among them; give more of it",
            candidates.len(),
            first.name,
            second.name
        ))),
    }
}

/// A weight can only be taken apart by the embedder and the columns that it was made with.
pub(super) fn check_model(model: &StoredModel, encoder: &RowEncoder) -> Result<()> {
    let (card, columns) = (&model.card, encoder.columns());
    let reason = if card.columns != columns.views() || card.text_fallback.as_deref() != columns.fallback() {
        let fallback = card.text_fallback.as_ref().map(|column| format!(" with fallback {column}")).unwrap_or_default();
        format!("was fitted on the columns {}{fallback}; the job names others", card.columns.join(", "))
    } else if card.embedder != encoder.fingerprint() {
        "was fitted with another embedder than the job's `embed.model`".to_owned()
    } else if card.windows != encoder.windows() {
        "was fitted with other windows than the job's `embed.window`, `embed.stride` and `embed.pool`".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Model {
        location: model.digest.clone(),
        reason: format!("{reason}; use the job file that the table was made with"),
        source: None,
    })
}

/// One row of a shard.
async fn read_row(job: &Job, shard: &Shard, columns: Vec<String>, row: u64) -> Result<RecordBatch> {
    let options = ReadOptions { columns, rows: None, chunk_rows: 1, memory: job.options.memory };
    let (request, name, runtime) = (ShardRequest { shard: shard.clone(), rows: Some(vec![row]) }, shard.name.clone(), Handle::current());
    let read = tokio::task::spawn_blocking(move || {
        let mut ahead = read_ahead(vec![request], options, runtime);
        while let Some((_, event)) = ahead.next_blocking() {
            match event {
                ShardEvent::Opened(layout) if layout.rows() <= row => {
                    let reason = format!("{name}:{row}: the shard has {} rows, and rows count from 0", layout.rows());
                    return Err(Error::InvalidOption { name: "--row".into(), reason });
                }
                ShardEvent::Rows(chunk, _permit) if chunk.batch.num_rows() == 1 => return Ok(chunk.batch),
                ShardEvent::Failed(error) => return Err(error),
                ShardEvent::Opened(_) | ShardEvent::Rows(..) | ShardEvent::Done(_) => {}
            }
        }
        Err(Error::Internal(format!("{name}:{row} was not read")))
    });
    read.await.map_err(|e| Error::Internal(format!("reading a row: {e}")))?
}

/// What the table holds of a row; `None` inside is a row without a weight.
#[derive(Debug, Clone, PartialEq)]
struct PublishedRow(Option<PublishedWeight>);

#[derive(Debug, Clone, PartialEq)]
struct PublishedWeight {
    /// Weight, pull, push and prior.
    numbers: [f32; 4],
    safe_ref: String,
    harm_ref: String,
    window: Option<ExplainedWindow>,
}

async fn read_sidecar(job: &Job, sidecar: &Published, row: u64) -> Result<PublishedRow> {
    let location = job.output.join(&sidecar.path);
    let meta = location.head().await?;
    let file = Shard { name: sidecar.path.clone(), location, meta, format: ShardFormat::Parquet };
    let numbers = ["weight", "pull", "push", "prior"];
    let columns = numbers.into_iter().chain(["safe_ref", "harm_ref", "window_view", "window"]).map(str::to_owned).collect();
    let batch = read_row(job, &file, columns, row).await?;
    let failed = |what: &str| Error::Internal(format!("sidecar {}: {what}", sidecar.path));
    let number = |column: usize| -> Result<Option<f32>> {
        let values = batch.column(column).as_primitive_opt::<Float32Type>().ok_or_else(|| failed("a weight column is no f32"))?;
        Ok(values.is_valid(0).then(|| values.value(0)))
    };
    let id = |column: usize| -> Result<Option<String>> {
        let values = cast(batch.column(column), &DataType::Utf8).map_err(|e| failed(&e.to_string()))?;
        Ok(values.as_string::<i32>().iter().next().flatten().map(str::to_owned))
    };
    let character = batch.column(7).as_primitive_opt::<Int64Type>().ok_or_else(|| failed("`window` is no integer"))?;
    let character = character.is_valid(0).then(|| u64::try_from(character.value(0)).unwrap_or_default());
    let window = id(6)?.zip(character).map(|(column, character)| ExplainedWindow { column, character });
    let weighed = (number(0)?, number(1)?, number(2)?, number(3)?, id(4)?, id(5)?);
    Ok(PublishedRow(match weighed {
        (Some(weight), Some(pull), Some(push), Some(prior), Some(safe_ref), Some(harm_ref)) => {
            Some(PublishedWeight { numbers: [weight, pull, push, prior], safe_ref, harm_ref, window })
        }
        _ => None,
    }))
}

fn explain_row(
    shard: &Shard,
    row: u64,
    batch: &RecordBatch,
    sidecar: Option<&PublishedRow>,
    model: &StoredModel,
    encoder: &RowEncoder,
    references: &[ReferenceRows; 2],
) -> Result<ExplainedRow> {
    let columns = encoder.columns();
    let mut texts = Vec::new();
    if columns.is_text() {
        for (name, column) in columns.to_read().into_iter().zip(batch.columns()) {
            let text = embed::texts(&shard.name, &name, column)?.pop().flatten().map(str::to_owned);
            let stands_in = texts.len() < columns.views().len() || !texts.iter().any(|text: &RowText| text.embedded);
            texts.push(RowText { column: name, embedded: text.is_some() && stands_in, text });
        }
    }
    let mut notes = Vec::new();
    let weigher = model.transport.weigher()?;
    let explained = if let Some((vector, place)) = read_one(&weigher, encoder, &shard.name, batch)? {
        let window = match place {
            None => None,
            Some(place) => {
                let column = model.card.window_columns().into_iter().nth(place.column);
                let column = column.ok_or_else(|| Error::Internal(format!("a window in column {}", place.column)))?;
                Some(ExplainedWindow { column, character: place.offset as u64 })
            }
        };
        if vector.iter().all(|value| *value == 0.0) {
            let what = if window.is_some() { "window" } else { "row" };
            notes.push(format!("the embedder knows no token of this {what}: a zero vector, at cost 1 from every reference"));
        }
        if texts.len() > columns.views().len() && texts.last().is_some_and(|text| text.embedded) {
            let last = columns.views().last().cloned().unwrap_or_default();
            let fallback = columns.fallback().unwrap_or_default();
            notes.push(format!("every text column is null: `{fallback}` stands in the view `{last}`"));
        }
        let (weight, explained) = explain_vector(vector.view(), &weigher, model, columns.views(), references, &mut notes)?;
        Some((weight, ExplainedWeight { window, ..explained }))
    } else {
        let all: Vec<String> = columns.to_read().into_iter().map(|column| format!("`{column}`")).collect();
        let null = if all.len() == 1 { "is null" } else { "are all null" };
        notes.push(format!("no weight, because {} {null}: there is nothing to embed", all.join(", ")));
        None
    };
    let here = PublishedRow(explained.as_ref().map(|(weight, explained)| {
        let first = |side: &ExplainedSide| side.strongest.first().map(|reference| reference.id.clone()).unwrap_or_default();
        PublishedWeight {
            numbers: [weight.weight, weight.pull, weight.push, weight.prior],
            safe_ref: first(&explained.safe),
            harm_ref: first(&explained.harm),
            window: explained.window.clone(),
        }
    }));
    let published = match sidecar {
        None => PublishedState::NotYet,
        Some(there) if same(&here, there) => PublishedState::Same,
        Some(there) => PublishedState::Differs { weight: there.0.as_ref().map(|there| there.numbers[0]) },
    };
    Ok(ExplainedRow {
        shard: shard.name.clone(),
        row,
        shard_version: shard.version(),
        model: model.digest.clone(),
        texts,
        published,
        explained: explained.map(|(_, explained)| explained),
        notes,
    })
}

fn same(here: &PublishedRow, there: &PublishedRow) -> bool {
    match (&here.0, &there.0) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            a.numbers.map(f32::to_bits) == b.numbers.map(f32::to_bits)
                && (&a.safe_ref, &a.harm_ref, &a.window) == (&b.safe_ref, &b.harm_ref, &b.window)
        }
        _ => false,
    }
}

/// The weight of one vector, which may be a row's or one of its parts.
fn explain_vector(
    vector: ArrayView1<'_, f32>,
    weigher: &Weigher<'_>,
    model: &StoredModel,
    views: &[String],
    references: &[ReferenceRows; 2],
    notes: &mut Vec<String>,
) -> Result<(RowWeight, ExplainedWeight)> {
    let transport: &TransportModel = &model.transport;
    let card = &model.card;
    let parts: RowExplanation = weigher.explain(vector, views.len(), STRONGEST)?;
    let mean = card.report.mean_terms;
    let factors = mean.map(|mean| {
        let logs = parts.log_factors(transport, &mean);
        Factors { typical: logs.typical.exp(), pull: logs.pull.exp(), push: logs.push.exp(), prior: logs.prior.exp() }
    });
    let mut side = |part: &SidePart, rows: &ReferenceRows, ids: &[String], digest: &str, mean: Option<f64>| {
        // Other rows may stand in a file of another content.
        let known = rows.digest == digest;
        if !known {
            notes.push(format!("{} is not the file that the model was fitted with: its texts and categories are not shown", rows.location));
        }
        let named = |reference: &crate::transport::ReferencePart| ExplainedReference {
            id: ids.get(reference.index).cloned().unwrap_or_default(),
            category: if known { rows.categories.get(reference.index).cloned().flatten() } else { None },
            text: known.then(|| rows.text(reference.index)).filter(|text| !text.is_empty()),
            responsibility: reference.responsibility,
            cost: reference.cost,
            view_costs: reference.view_costs.clone(),
            potential: reference.potential,
            mass: reference.mass,
        };
        ExplainedSide { value: part.value, mean, mean_cost: part.mean_cost, strongest: part.strongest.iter().map(named).collect() }
    };
    let [safe_rows, harm_rows] = references;
    let safe = side(&parts.safe, safe_rows, &card.safe_ids, &card.safe_digest, mean.map(|mean| mean.pull));
    let harm = side(&parts.harm, harm_rows, &card.harm_ids, &card.harm_digest, mean.map(|mean| mean.push));
    let views = views.iter().enumerate().map(|(index, view)| ExplainedView {
        view: view.clone(),
        cost_to_safe: parts.safe.view_costs[index],
        cost_to_harm: parts.harm.view_costs[index],
        weight_without: parts.without_view[index].map(|weight| weight.weight),
    });
    let explained = ExplainedWeight {
        weight: parts.row.weight,
        window: None,
        score: parts.score,
        factors,
        prior: ExplainedPrior { value: parts.prior.term, mean: mean.map(|mean| mean.prior), probability: 0.5 * (1.0 + parts.prior.h) },
        tau: transport.tau,
        safe,
        harm,
        views: views.collect(),
    };
    Ok((parts.row, explained))
}
