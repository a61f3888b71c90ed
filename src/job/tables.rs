//! The small tables beside `corpus`: `references`, `shards`, `runs`, `models` and `hygiene`. In go the log, stored models, run reports
//! and reference files; out come tables that are read when a query asks for them.

use super::context::Job;
use super::encoder::RowColumns;
use super::plan::{Plan, ShardState};
use super::query::TableSnapshot;
use super::references::{ReferenceRows, Side};
use crate::catalog::{Finding, FindingItem, Published, StoredModel, list_runs};
use crate::error::{Error, Result};
use crate::sql::LazyTable;
use crate::storage::Location;
use crate::transport::FitReport;
use arrow::array::{ArrayRef, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every table but `corpus` and `weights`, by name.
///
/// # Errors
/// A reference URL that cannot be opened.
pub(super) fn small_tables(job: &Job, snapshot: &TableSnapshot) -> Result<Vec<(String, Arc<dyn TableProvider>)>> {
    let states = shard_states(&snapshot.plan, &snapshot.published)?;
    let states = MemTable::try_new(states.schema(), vec![vec![states]]).map_err(|e| Error::Internal(format!("table: {e}")))?;
    let of_output = |empty: RecordBatch, load: fn(Location) -> BoxFuture<'static, Result<RecordBatch>>| {
        let output = job.output.clone();
        lazy(&empty, move || load(output.clone()))
    };
    let tables = [
        ("shards", Arc::new(states) as Arc<dyn TableProvider>),
        ("references", references_table(job)?),
        ("hygiene", of_output(hygiene(&[])?, |output| async move { hygiene(&stored_models(&output).await?) }.boxed())),
        ("models", of_output(models(&[])?, |output| async move { models(&stored_models(&output).await?) }.boxed())),
        ("runs", of_output(runs(&[])?, |output| async move { runs(&list_runs(&output).await?) }.boxed())),
    ];
    Ok(tables.into_iter().map(|(name, table)| (name.to_owned(), table)).collect())
}

/// Every stored model that can be read.
async fn stored_models(output: &Location) -> Result<Vec<StoredModel>> {
    let mut stored = Vec::new();
    for digest in StoredModel::list(output).await? {
        match StoredModel::read(output, &digest).await {
            Ok(model) => stored.push(model),
            // Models of an older format stay where they are, for the sidecars that name them.
            Err(error @ Error::Model { .. }) => tracing::warn!(error = %super::report::with_causes(&error), "a stored model is left out"),
            Err(error) => return Err(error),
        }
    }
    Ok(stored)
}

/// A table that is read when it is asked for; `empty` has its columns.
fn lazy(empty: &RecordBatch, load: impl Fn() -> BoxFuture<'static, Result<RecordBatch>> + Send + Sync + 'static) -> Arc<dyn TableProvider> {
    Arc::new(LazyTable::new(empty.schema(), load))
}

fn references_table(job: &Job) -> Result<Arc<dyn TableProvider>> {
    let columns = RowColumns::of(&job.file);
    let (safe, harm) = (job.stores.open(&job.file.references.safe)?, job.stores.open(&job.file.references.harm)?);
    Ok(lazy(&references(&[])?, move || {
        let (columns, safe, harm) = (columns.clone(), safe.clone(), harm.clone());
        async move {
            let safe = ReferenceRows::read(Side::Safe, &safe, &columns).await?;
            references(&[safe, ReferenceRows::read(Side::Harm, &harm, &columns).await?])
        }
        .boxed()
    }))
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
        ShardState::NotSelected => "not selected",
        ShardState::Recomputed => "recomputed",
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
fn models(cards: &[StoredModel]) -> Result<RecordBatch> {
    let number = |of: &dyn Fn(&StoredModel) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(cards.iter().map(of))) };
    let optional = |of: &dyn Fn(&StoredModel) -> Option<f64>| -> ArrayRef { Arc::new(cards.iter().map(of).collect::<Float64Array>()) };
    // What a fit measures is not known of a model that kept another's potentials.
    let fitted = |of: fn(&FitReport) -> f64| optional(&|m: &StoredModel| m.card.kept.is_none().then(|| of(&m.card.report)));
    batch(vec![
        ("model", texts(cards.iter().map(|m| Some(&m.digest)))),
        ("parent", texts(cards.iter().map(|m| m.card.parent.as_ref()))),
        ("potentials_of", texts(cards.iter().map(|m| m.card.kept.as_ref().map(|kept| &kept.fitted)))),
        ("converged", Arc::new(cards.iter().map(|m| Some(m.card.report.converged)).collect::<BooleanArray>())),
        ("rows", Arc::new(Int64Array::from_iter_values(cards.iter().map(|m| m.card.report.rows as i64)))),
        ("epsilon", number(&|m| m.card.epsilon)),
        ("push", number(&|m| m.card.push)),
        ("prior", number(&|m| m.card.prior)),
        ("tau", number(&|m| m.card.tau)),
        ("residual_safe", fitted(|r| r.residuals.safe)),
        ("residual_harm", fitted(|r| r.residuals.harm)),
        ("held_out_safe", optional(&|m| m.card.kept.is_none().then_some(m.card.report.held_out)?.map(|r| r.safe))),
        ("held_out_harm", optional(&|m| m.card.kept.is_none().then_some(m.card.report.held_out)?.map(|r| r.harm))),
        ("held_out_noise_safe", optional(&|m| m.card.kept.is_none().then_some(m.card.report.held_out_noise)?.map(|r| r.safe))),
        ("held_out_noise_harm", optional(&|m| m.card.kept.is_none().then_some(m.card.report.held_out_noise)?.map(|r| r.harm))),
        ("gap_safe", fitted(|r| r.certificate.gap.safe)),
        ("gap_harm", fitted(|r| r.certificate.gap.harm)),
        ("stability", fitted(|r| r.certificate.stability)),
        ("joint_rate", fitted(|r| r.certificate.joint_rate)),
        ("oscillated", Arc::new(cards.iter().map(|m| Some(m.card.report.oscillated)).collect::<BooleanArray>())),
        ("ess", number(&|m| m.card.report.ess)),
        ("cost_safe_before", fitted(|r| r.transport_cost.safe.before)),
        ("cost_safe_after", fitted(|r| r.transport_cost.safe.after)),
        ("cost_harm_before", fitted(|r| r.transport_cost.harm.before)),
        ("cost_harm_after", fitted(|r| r.transport_cost.harm.after)),
        ("embedder", texts(cards.iter().map(|m| Some(&m.card.embedder)))),
    ])
}

/// One row a reference concerned by a finding about a model's references (or a finding without any, as that there are too few).
fn hygiene(stored: &[StoredModel]) -> Result<RecordBatch> {
    let mut rows: Vec<(&StoredModel, &Finding, Option<&FindingItem>)> = Vec::new();
    for model in stored {
        for finding in &model.card.hygiene.findings {
            match finding.items.is_empty() {
                true => rows.push((model, finding, None)),
                false => rows.extend(finding.items.iter().map(|item| (model, finding, Some(item)))),
            }
        }
    }
    batch(vec![
        ("model", texts(rows.iter().map(|(model, ..)| Some(&model.digest)))),
        ("level", texts(rows.iter().map(|(_, finding, _)| Some(finding.level.name())))),
        ("finding", texts(rows.iter().map(|(_, finding, _)| Some(finding.finding.name())))),
        ("side", texts(rows.iter().map(|(_, finding, _)| Some(finding.side.name())))),
        ("row_count", Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, finding, _)| finding.count as i64)))),
        ("mass", Arc::new(Float64Array::from_iter_values(rows.iter().map(|(_, finding, _)| finding.mass)))),
        ("id", texts(rows.iter().map(|(.., item)| item.map(|item| &item.id)))),
        ("other", texts(rows.iter().map(|(.., item)| item.and_then(|item| item.other.as_ref())))),
        ("value", Arc::new(rows.iter().map(|(.., item)| item.and_then(|item| item.value)).collect::<Float64Array>())),
        ("message", texts(rows.iter().map(|(_, finding, _)| Some(&finding.message)))),
    ])
}

/// One row a run that changed the table or met a shard it could not read.
fn runs(reports: &[Value]) -> Result<RecordBatch> {
    let count =
        |path: &str| -> ArrayRef { Arc::new(reports.iter().map(|r| r.pointer(path).and_then(Value::as_i64)).collect::<Int64Array>()) };
    let number =
        |path: &str| -> ArrayRef { Arc::new(reports.iter().map(|r| r.pointer(path).and_then(Value::as_f64)).collect::<Float64Array>()) };
    let flag =
        |path: &str| -> ArrayRef { Arc::new(reports.iter().map(|r| r.pointer(path).and_then(Value::as_bool)).collect::<BooleanArray>()) };
    let reasons = |report: &Value| {
        let list = report.get("quarantined")?.as_array()?;
        let lines: Vec<&str> = list.iter().filter_map(|q| q.get("reason")?.as_str()).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    };
    batch(vec![
        ("version", count("/version")),
        ("model", texts(reports.iter().map(|r| r.get("model").and_then(Value::as_str)))),
        ("fitted", flag("/fitted")),
        ("converged", flag("/converged")),
        ("rows", count("/rows")),
        ("rows_without_text", count("/rows_without_text")),
        ("weighed", count("/shards/weighed")),
        ("unchanged", count("/shards/unchanged")),
        ("removed", count("/shards/removed")),
        ("quarantined", count("/shards/quarantined")),
        ("quarantine_reasons", texts(reports.iter().map(reasons))),
        ("mean_weight", number("/mean_weight")),
        ("ess", number("/ess")),
        ("residual_safe", number("/residuals/safe")),
        ("residual_harm", number("/residuals/harm")),
        ("bytes_read", count("/bytes_read")),
        ("seconds", number("/seconds/total")),
    ])
}
