//! What a run would do: each shard new, changed, done or gone, by comparing the listing with the log.

use super::choose::{Which, current_model, usable_model};
use super::context::Job;
use super::encoder::RowEncoder;
use super::fit::load_references;
use super::keep::{Sources, usable_sources};
use super::run::WeighOptions;
use crate::catalog::{Published, StoredModel, WeightsTable};
use crate::error::Result;
use crate::shard::{Listing, Shard};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a run does with a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardState {
    /// Not in the table yet.
    New,
    /// In the table, but its content or the model is another.
    Changed,
    /// In the table with this content and model.
    Unchanged,
    /// In the table, but gone from the corpus.
    Gone,
    /// New or changed, but left by the selection.
    NotSelected,
    /// To be computed from its own sidecar, without reading the shard.
    Recomputed,
}

/// One shard of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedShard {
    /// The shard's name.
    pub shard: String,
    /// What a run does with it.
    pub state: ShardState,
    /// Bytes of the shard; 0 for one that is gone.
    pub bytes: u64,
}

/// What a run would do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The model a run would use, if there is one; otherwise it fits one.
    pub model: Option<String>,
    /// The model whose potentials would be kept by a new one, where that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keeps_potentials_of: Option<String>,
    /// Whether shards that are gone stay in the table, as they do where a selection is given.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keeps_gone: bool,
    /// Every shard of the corpus or the table, by name.
    pub shards: Vec<PlannedShard>,
    /// Bytes of the shards to weigh. Only their needed columns are read.
    pub bytes_to_weigh: u64,
    /// Objects under the corpus URL that are no shards.
    pub passed_over: usize,
    /// The table's version.
    pub version: Option<u64>,
}

impl Plan {
    /// Number of shards in a state.
    pub fn count(&self, state: ShardState) -> usize {
        self.shards.iter().filter(|shard| shard.state == state).count()
    }

    /// Gives shards that would be weighed another state.
    fn mark(&mut self, state: impl Fn(&PlannedShard) -> Option<ShardState>) {
        for shard in self.shards.iter_mut().filter(|shard| matches!(shard.state, ShardState::New | ShardState::Changed)) {
            shard.state = state(shard).unwrap_or(shard.state);
        }
        self.bytes_to_weigh = bytes_to_weigh(&self.shards);
    }
}

/// Compares the corpus with the table; nothing is read but listings, the log and, for the model, what decides whether it still fits.
///
/// # Errors
/// As for a run's first steps.
pub async fn plan(job: &Job) -> Result<Plan> {
    plan_with(job, &WeighOptions::default()).await
}

/// As [`plan`], for a run with options. A condition reads its columns of the corpus.
///
/// # Errors
/// As the run.
pub async fn plan_with(job: &Job, options: &WeighOptions) -> Result<Plan> {
    options.check()?;
    let listing = job.list().await?;
    let table = WeightsTable::open(&job.output).await?;
    let published = table.published()?;
    if let Some((lender, sources)) = lender(job, options, &listing, &table).await? {
        let mut plan = compare(&listing, &published, None, table.version());
        plan.keeps_potentials_of = Some(lender.digest);
        plan.mark(|shard| if sources.contains_key(&shard.shard) { Some(ShardState::Recomputed) } else { None });
        return Ok(plan);
    }
    let model = usable_model(job, &table, &options.which(Which::Fitting)).await?.map(|model| model.digest);
    let selected = options.selection.apply(job, &listing, &published, model.as_deref()).await?;
    let mut plan = compare(&listing, &published, model, table.version());
    plan.keeps_gone = !options.selection.is_everything();
    plan.mark(|shard| if selected.takes(&shard.shard) { None } else { Some(ShardState::NotSelected) });
    Ok(plan)
}

/// The model that would lend its potentials, and the sidecars it would lend them to.
async fn lender(job: &Job, options: &WeighOptions, listing: &Listing, table: &WeightsTable) -> Result<Option<(StoredModel, Sources)>> {
    if !options.keep_potentials {
        return Ok(None);
    }
    let Some(current) = current_model(job, table).await? else { return Ok(None) };
    let encoder = RowEncoder::load(&job.file, &job.stores).await?;
    let (safe, harm) = load_references(job, encoder.columns()).await?;
    if current.card.problem == super::fit::problem_digest(job, &encoder, &safe, &harm)? {
        return Ok(None);
    }
    let sources = usable_sources(job, &encoder, (&safe, &harm), &current, listing, table).await?;
    Ok(Some((current, sources)))
}

/// Whether a published sidecar is still right for a shard.
pub(super) fn is_done(shard: &Shard, published: &BTreeMap<String, Published>, model: &str) -> bool {
    published.get(&shard.name).is_some_and(|p| p.shard_version == shard.version() && p.model == model)
}

pub(super) fn compare(listing: &Listing, published: &BTreeMap<String, Published>, model: Option<String>, version: Option<u64>) -> Plan {
    let mut shards: Vec<PlannedShard> = listing
        .shards
        .iter()
        .map(|shard| {
            let state = match (published.contains_key(&shard.name), model.as_deref()) {
                (false, _) => ShardState::New,
                (true, Some(model)) if is_done(shard, published, model) => ShardState::Unchanged,
                (true, _) => ShardState::Changed,
            };
            PlannedShard { shard: shard.name.clone(), state, bytes: shard.meta.size }
        })
        .collect();
    shards.extend(gone(listing, published).map(|shard| PlannedShard { shard, state: ShardState::Gone, bytes: 0 }));
    shards.sort_by(|a, b| a.shard.cmp(&b.shard));
    let bytes_to_weigh = bytes_to_weigh(&shards);
    Plan { model, keeps_potentials_of: None, keeps_gone: false, shards, bytes_to_weigh, passed_over: listing.passed_over, version }
}

fn bytes_to_weigh(shards: &[PlannedShard]) -> u64 {
    shards.iter().filter(|s| matches!(s.state, ShardState::New | ShardState::Changed)).map(|s| s.bytes).sum()
}

/// Names of published shards that are not in the listing.
pub(super) fn gone(listing: &Listing, published: &BTreeMap<String, Published>) -> impl Iterator<Item = String> {
    let names: std::collections::HashSet<&str> = listing.shards.iter().map(|shard| shard.name.as_str()).collect();
    published.keys().filter(move |name| !names.contains(name.as_str())).cloned().collect::<Vec<_>>().into_iter()
}
