//! A job as SQL tables: `corpus` (rows and weights), `references`, `shards`, `runs` and `models`.

use super::context::Job;
use super::encoder::RowEncoder;
use super::fit::load_references;
use super::plan::{Plan, ShardState};
use super::references::ReferenceRows;
use crate::catalog::{Published, StoredModel, WeightsTable, list_runs};
use crate::error::{Error, Result};
use crate::shard::{Layout, Shard};
use crate::sql::{CorpusShard, CorpusTable, SidecarRef, SqlSession};
use arrow::array::{ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::json::reader::{ReaderBuilder, infer_json_schema_from_iterator};
use object_store::ObjectMeta;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Opens a session over the job's tables as they are now, with `threads` partitions a scan.
///
/// A shard that is not weighed yet has null weights; one that is not weighed and cannot be read is left out with a warning.
///
/// # Errors
/// [`Error::Catalog`] before the first run, and what the references, the shards' footers and the store answer.
pub async fn sql_session(job: &Job, threads: usize) -> Result<SqlSession> {
    let table = WeightsTable::open(&job.output).await?;
    if table.version().is_none() {
        let reason = "does not exist yet: `pushpull run` makes it".to_owned();
        return Err(Error::Catalog { location: job.output.to_string(), reason, source: None });
    }
    let published = table.published()?;
    let listing = job.list().await?;
    let plan = super::plan::compare(&listing, &published, table.model()?, table.version());
    let mut shards = Vec::with_capacity(listing.shards.len());
    for shard in &listing.shards {
        let sidecar = published.get(&shard.name).map(|sidecar| sidecar_ref(job, shard, sidecar));
        if sidecar.is_none()
            && let Err(error) = Layout::load(shard, false).await
        {
            tracing::warn!(shard = %shard.name, error = %super::report::with_causes(&error), "not in `corpus`: it cannot be read");
            continue;
        }
        shards.push(CorpusShard {
            name: shard.name.clone(),
            format: shard.format,
            meta: shard.meta.clone(),
            version: shard.version(),
            sidecar,
        });
    }
    let corpus_store = listing.shards.first().map_or_else(|| job.output.store(), |shard| shard.location.store());
    let corpus = CorpusTable::try_new(Arc::clone(corpus_store), Arc::clone(job.output.store()), shards).await?;
    let session = SqlSession::with_memory(threads, usize::try_from(job.options.memory).unwrap_or(usize::MAX))?;
    session.register_table("corpus", Arc::new(corpus))?;
    let encoder = RowEncoder::load(&job.file, &job.stores).await?;
    let (safe, harm) = load_references(job, &encoder).await?;
    register(&session, "references", references(&[safe, harm])?)?;
    register(&session, "shards", shard_states(&plan, &published)?)?;
    register(&session, "models", models(job).await?)?;
    let runs = list_runs(&job.output).await?;
    register(&session, "runs", runs_table(&runs)?)?;
    Ok(session)
}

fn register(session: &SqlSession, name: &str, batch: RecordBatch) -> Result<()> {
    session.register_batches(name, batch.schema(), vec![batch])
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

fn texts<S: AsRef<str>>(values: impl IntoIterator<Item = Option<S>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<StringArray>())
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    RecordBatch::try_from_iter_with_nullable(columns).map_err(|e| Error::Internal(format!("table: {e}")))
}

/// `side`, `id`, `category`, `mass` (as given, before normalising), `text` (the views, a line each).
fn references(sides: &[ReferenceRows]) -> Result<RecordBatch> {
    let all = || sides.iter().flat_map(|rows| (0..rows.ids.len()).map(move |row| (rows, row)));
    batch(vec![
        ("side", texts(all().map(|(rows, _)| Some(rows.side.name())))),
        ("id", texts(all().map(|(rows, row)| Some(&rows.ids[row])))),
        ("category", texts(all().map(|(rows, row)| rows.categories[row].as_ref()))),
        ("mass", Arc::new(Float64Array::from_iter_values(all().map(|(rows, row)| rows.masses[row])))),
        ("text", texts(all().map(|(rows, row)| Some(rows.text(row))))),
    ])
}

/// `shard`, `state` (as a run would see it now), `bytes`, and what the table holds of it.
fn shard_states(plan: &Plan, published: &BTreeMap<String, Published>) -> Result<RecordBatch> {
    let all = || plan.shards.iter().map(|shard| (shard, published.get(&shard.shard)));
    let mean = |p: &Published| (p.rows > p.unweighed).then(|| p.weight_sum / (p.rows - p.unweighed) as f64);
    let state = |state: ShardState| match state {
        ShardState::New => "new",
        ShardState::Changed => "changed",
        ShardState::Unchanged => "unchanged",
        ShardState::Gone => "gone",
    };
    batch(vec![
        ("shard", texts(all().map(|(shard, _)| Some(&shard.shard)))),
        ("state", texts(all().map(|(shard, _)| Some(state(shard.state))))),
        ("bytes", Arc::new(Int64Array::from_iter_values(all().map(|(shard, _)| shard.bytes as i64)))),
        ("shard_version", texts(all().map(|(_, p)| p.map(|p| &p.shard_version)))),
        ("model", texts(all().map(|(_, p)| p.map(|p| &p.model)))),
        ("rows", Arc::new(all().map(|(_, p)| p.map(|p| p.rows as i64)).collect::<Int64Array>())),
        ("rows_without_text", Arc::new(all().map(|(_, p)| p.map(|p| p.unweighed as i64)).collect::<Int64Array>())),
        ("weight_mean", Arc::new(all().map(|(_, p)| p.and_then(mean)).collect::<Float64Array>())),
        ("weight_min", Arc::new(all().map(|(_, p)| p.and_then(|p| p.weight_range).map(|r| r.0)).collect::<Float32Array>())),
        ("weight_max", Arc::new(all().map(|(_, p)| p.and_then(|p| p.weight_range).map(|r| r.1)).collect::<Float32Array>())),
        ("sidecar", texts(all().map(|(_, p)| p.map(|p| &p.path)))),
    ])
}

/// One row a stored model: what it was fitted with and how well.
async fn models(job: &Job) -> Result<RecordBatch> {
    let mut cards = Vec::new();
    for digest in StoredModel::list(&job.output).await? {
        cards.push(StoredModel::read(&job.output, &digest).await?);
    }
    let number = |of: &dyn Fn(&StoredModel) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(cards.iter().map(of))) };
    batch(vec![
        ("model", texts(cards.iter().map(|m| Some(&m.digest)))),
        ("parent", texts(cards.iter().map(|m| m.card.parent.as_ref()))),
        ("converged", Arc::new(cards.iter().map(|m| Some(m.card.report.converged)).collect::<arrow::array::BooleanArray>())),
        ("rows", Arc::new(Int64Array::from_iter_values(cards.iter().map(|m| m.card.report.rows as i64)))),
        ("epsilon", number(&|m| m.card.epsilon)),
        ("push", number(&|m| m.card.push)),
        ("prior", number(&|m| m.card.prior)),
        ("tau", number(&|m| m.card.tau)),
        ("residual_safe", number(&|m| m.card.report.residuals.safe)),
        ("residual_harm", number(&|m| m.card.report.residuals.harm)),
        ("ess", number(&|m| m.card.report.ess)),
        ("cost_safe_before", number(&|m| m.card.report.transport_cost.safe.before)),
        ("cost_safe_after", number(&|m| m.card.report.transport_cost.safe.after)),
        ("cost_harm_before", number(&|m| m.card.report.transport_cost.harm.before)),
        ("cost_harm_after", number(&|m| m.card.report.transport_cost.harm.after)),
        ("embedder", texts(cards.iter().map(|m| Some(&m.card.embedder)))),
    ])
}

/// The run reports, a row each, with the reports' own fields as columns.
fn runs_table(runs: &[serde_json::Value]) -> Result<RecordBatch> {
    let failed = |e: arrow::error::ArrowError| Error::Internal(format!("runs: {e}"));
    let schema = infer_json_schema_from_iterator(runs.iter().map(Ok)).map_err(failed)?;
    let mut decoder = ReaderBuilder::new(Arc::new(schema.clone())).build_decoder().map_err(failed)?;
    decoder.serialize(runs).map_err(failed)?;
    Ok(decoder.flush().map_err(failed)?.unwrap_or_else(|| RecordBatch::new_empty(Arc::new(schema))))
}
