//! What a run would do: each shard new, changed, done or gone, by comparing the listing with the log.

use super::context::Job;
use crate::catalog::{Published, WeightsTable};
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
}

/// Compares the corpus with the table; nothing is read but listings, the log and, for the model, what decides whether it still fits.
///
/// # Errors
/// As for a run's first steps.
pub async fn plan(job: &Job) -> Result<Plan> {
    let listing = job.list().await?;
    let table = WeightsTable::open(&job.output).await?;
    let model = super::run::usable_model(job, &table).await?.map(|model| model.digest);
    Ok(compare(&listing, &table.published()?, model, table.version()))
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
    let bytes_to_weigh = shards.iter().filter(|s| matches!(s.state, ShardState::New | ShardState::Changed)).map(|s| s.bytes).sum();
    Plan { model, shards, bytes_to_weigh, passed_over: listing.passed_over, version }
}

/// Names of published shards that are not in the listing.
pub(super) fn gone(listing: &Listing, published: &BTreeMap<String, Published>) -> impl Iterator<Item = String> {
    let names: std::collections::HashSet<&str> = listing.shards.iter().map(|shard| shard.name.as_str()).collect();
    published.keys().filter(move |name| !names.contains(name.as_str())).cloned().collect::<Vec<_>>().into_iter()
}
