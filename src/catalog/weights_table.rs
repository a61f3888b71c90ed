//! The weights table: a Delta Lake table whose data files are the sidecars.

use super::delta_log::{COMMIT_ATTEMPTS, failed, is_conflict, load, open_log};
use crate::error::{Error, Result};
use crate::storage::Location;
use crate::writeback::Receipt;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, DataType, MetadataExt, PrimitiveType, StructField, StructType};
use deltalake::logstore::LogStoreRef;
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::{DeltaTable, DeltaTableError};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The table property that names the current model.
const MODEL_PROPERTY: &str = "pushpull.model";
/// Tags of an entry: sums that statistics have no place for.
const WEIGHT_SUM_TAG: &str = "pushpull.weight_sum";
const WEIGHT_SQUARE_SUM_TAG: &str = "pushpull.weight_square_sum";

/// A sidecar that the log holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Path below the table's URL.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Rows.
    pub rows: u64,
    /// The shard's name.
    pub shard: String,
    /// The shard's version when it was weighed.
    pub shard_version: String,
    /// Digest of the model that weighed it.
    pub model: String,
    /// Smallest and largest weight, if any row has one.
    pub weight_range: Option<(f32, f32)>,
    /// Rows without a weight.
    pub unweighed: u64,
    /// Sum of the weights.
    pub weight_sum: f64,
    /// Sum of the squared weights, from which the effective sample size follows.
    pub weight_square_sum: f64,
}

/// One change of the table.
#[derive(Debug, Clone, Default)]
pub struct Publication {
    /// Sidecars written in this run. A published sidecar of the same shard is replaced.
    pub written: Vec<Receipt>,
    /// Names of shards that are gone.
    pub removed: Vec<String>,
    /// The model that is current from now on, if it changes.
    pub model: Option<String>,
}

impl Publication {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty() && self.removed.is_empty() && self.model.is_none()
    }
}

/// The weights table at an output URL, which may not exist yet.
#[derive(Debug)]
pub struct WeightsTable {
    location: Location,
    log: LogStoreRef,
    table: Option<DeltaTable>,
}

impl WeightsTable {
    /// Opens the table as it is now.
    ///
    /// # Errors
    /// [`Error::Catalog`] where there is a log that cannot be read, and what the store answers.
    pub async fn open(location: &Location) -> Result<Self> {
        let (log, table) = open_log(location, "output.url").await?;
        Ok(Self { location: location.clone(), log, table })
    }

    /// The table's version, or `None` before the first commit.
    pub fn version(&self) -> Option<u64> {
        self.table.as_ref().and_then(DeltaTable::version)
    }

    /// Digest of the current model.
    ///
    /// # Errors
    /// [`Error::Catalog`] if the log's metadata cannot be read.
    pub fn model(&self) -> Result<Option<String>> {
        let Some(table) = &self.table else { return Ok(None) };
        let snapshot = table.snapshot().map_err(|e| self.failed("cannot be read", e))?;
        Ok(snapshot.metadata().configuration().get(MODEL_PROPERTY).cloned())
    }

    /// The published sidecars by shard name.
    ///
    /// # Errors
    /// [`Error::Catalog`] if an entry is not a sidecar of ours.
    pub fn published(&self) -> Result<BTreeMap<String, Published>> {
        let Some(table) = &self.table else { return Ok(BTreeMap::new()) };
        let snapshot = table.snapshot().map_err(|e| self.failed("cannot be read", e))?;
        let mut published = BTreeMap::new();
        for file in snapshot.log_data().iter() {
            let path = file.path().into_owned();
            let stats: Option<Statistics> = file.stats().and_then(|json| serde_json::from_str(&json).ok());
            let Some(stats) = stats else {
                return Err(Error::Catalog {
                    location: self.location.to_string(),
                    reason: format!("{path} is not a file that pushpull wrote; use another output.url"),
                    source: None,
                });
            };
            #[expect(deprecated, reason = "the only access to an entry's tags")]
            let tags = file.add_action().tags.unwrap_or_default();
            let sum = |tag: &str| tags.get(tag).and_then(|value| value.as_deref()?.parse().ok()).unwrap_or(0.0);
            let range = stats.min_values.weight.zip(stats.max_values.weight);
            published.insert(
                stats.min_values.shard.clone(),
                Published {
                    path,
                    size: u64::try_from(file.size()).unwrap_or_default(),
                    rows: stats.num_records,
                    shard: stats.min_values.shard,
                    shard_version: stats.min_values.shard_version,
                    model: stats.min_values.model,
                    weight_range: range,
                    unweighed: stats.null_count.weight,
                    weight_sum: sum(WEIGHT_SUM_TAG),
                    weight_square_sum: sum(WEIGHT_SQUARE_SUM_TAG),
                },
            );
        }
        Ok(published)
    }

    /// Commits a change and gives the new version. Repeating a commit that already happened changes nothing.
    ///
    /// # Errors
    /// [`Error::Catalog`] when other writers keep committing in between, and what the store answers.
    pub async fn publish(&mut self, change: &Publication, report: serde_json::Value) -> Result<u64> {
        for attempt in 0..COMMIT_ATTEMPTS {
            match self.try_publish(change, report.clone()).await {
                Ok(()) => {
                    self.reload().await?;
                    return self.version().ok_or_else(|| Error::Internal("a committed table has no version".into()));
                }
                Err(error) if is_conflict(&error) => {
                    tracing::info!(attempt, %error, "another writer committed first; trying again on its version");
                    tokio::time::sleep(Duration::from_millis(50 * u64::from(attempt + 1))).await;
                    let before = self.model()?;
                    self.reload().await?;
                    let now = self.model()?;
                    if now != before && now != change.model {
                        let reason = format!(
                            "another run made model {} current meanwhile; nothing of this run was committed, run again",
                            now.unwrap_or_default()
                        );
                        return Err(Error::Catalog { location: self.location.to_string(), reason, source: None });
                    }
                }
                Err(error) => return Err(self.failed("could not be committed", error)),
            }
        }
        Err(Error::Catalog {
            location: self.location.to_string(),
            reason: format!("other writers committed first {COMMIT_ATTEMPTS} times; run again when they are done"),
            source: None,
        })
    }

    async fn try_publish(&self, change: &Publication, report: serde_json::Value) -> std::result::Result<(), DeltaTableError> {
        // Its own retry would commit our list of actions on a newer version without looking at what that version holds: two runs
        // that both add a new shard would leave it there twice.
        let properties = CommitProperties::default().with_max_retries(0).with_metadata([("pushpull.run".to_owned(), report)]);
        let adds = change.written.iter().map(|receipt| Action::Add(add(receipt)));
        let Some(table) = &self.table else {
            let model = change.model.as_ref().map(|model| (MODEL_PROPERTY, Some(model.as_str())));
            return CreateBuilder::new()
                .with_log_store(Arc::clone(&self.log))
                .with_table_name("pushpull_weights")
                .with_columns(columns())
                .with_raise_if_key_not_exists(false)
                .with_configuration(model)
                .with_save_mode(SaveMode::ErrorIfExists)
                .with_actions(adds)
                .with_commit_properties(properties)
                .await
                .map(drop);
        };
        let snapshot = table.snapshot()?;
        let written: HashSet<&str> = change.written.iter().map(|receipt| receipt.path.as_str()).collect();
        let gone: HashSet<&str> =
            change.removed.iter().map(String::as_str).chain(change.written.iter().map(|receipt| receipt.identity.shard.as_str())).collect();
        let mut actions: Vec<Action> = adds.collect();
        for file in snapshot.log_data().iter() {
            let stats: Option<Statistics> = file.stats().and_then(|json| serde_json::from_str(&json).ok());
            // The same path written again is one and the same file: adding it anew is enough, and removing it would lose it.
            if stats.is_some_and(|stats| gone.contains(stats.min_values.shard.as_str())) && !written.contains(file.path().as_ref()) {
                actions.push(Action::Remove(file.remove_action(true)));
            }
        }
        let mut metadata = snapshot.metadata().clone();
        let schema = StructType::try_new(columns())?;
        // A table that an older version made lacks columns of the sidecars that are added now. All are nullable, so its own stay readable.
        let grows = metadata.parse_schema()? != schema;
        if grows {
            metadata = metadata.with_schema(&schema)?;
        }
        if let Some(model) = &change.model {
            metadata = metadata.add_config_key(MODEL_PROPERTY.to_owned(), model.clone())?;
        }
        if grows || change.model.is_some() {
            actions.push(Action::Metadata(metadata));
        }
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        CommitBuilder::from(properties).with_actions(actions).build(Some(snapshot), Arc::clone(&self.log), operation).await.map(drop)
    }

    async fn reload(&mut self) -> Result<()> {
        self.table = Some(load(&self.location, &self.log).await?);
        Ok(())
    }

    fn failed(&self, reason: &str, error: DeltaTableError) -> Error {
        failed(&self.location, reason, error)
    }
}

fn columns() -> Vec<StructField> {
    let field = |name: &str, kind| StructField::new(name, DataType::Primitive(kind), true);
    crate::writeback::WEIGHT_COLUMNS
        .iter()
        .map(|&name| match name {
            "row" | "window" => field(name, PrimitiveType::Long),
            "weight" | "pull" | "push" | "prior" => field(name, PrimitiveType::Float),
            _ => field(name, PrimitiveType::String),
        })
        .collect()
}

fn add(receipt: &Receipt) -> Add {
    let identity = &receipt.identity;
    let bound = |last_row: bool, weight: Option<f32>| {
        let row = if last_row { receipt.rows.saturating_sub(1) } else { 0 };
        let mut values = serde_json::json!({
            "shard": identity.shard, "shard_version": identity.shard_version, "model": identity.model, "row": row,
        });
        if let (Some(weight), Some(map)) = (weight, values.as_object_mut()) {
            map.insert("weight".to_owned(), serde_json::json!(f64::from(weight)));
        }
        values
    };
    let nulls = receipt.rows - receipt.weighed;
    let stats = serde_json::json!({
        "numRecords": receipt.rows,
        "minValues": bound(false, receipt.weight_range.map(|r| r.0)),
        "maxValues": bound(true, receipt.weight_range.map(|r| r.1)),
        "nullCount": { "shard": 0, "shard_version": 0, "model": 0, "row": 0, "weight": nulls, "pull": nulls, "push": nulls, "prior": nulls,
            "safe_ref": nulls, "harm_ref": nulls },
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64);
    Add {
        path: receipt.path.clone(),
        size: receipt.size as i64,
        partition_values: HashMap::new(),
        modification_time: now,
        data_change: true,
        stats: Some(stats.to_string()),
        tags: Some(HashMap::from([
            (WEIGHT_SUM_TAG.to_owned(), Some(receipt.weight_sum.to_string())),
            (WEIGHT_SQUARE_SUM_TAG.to_owned(), Some(receipt.weight_square_sum.to_string())),
        ])),
        ..Default::default()
    }
}

/// The statistics of one sidecar as the log keeps them; the constant columns' bounds are their values.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statistics {
    num_records: u64,
    min_values: Bounds,
    max_values: Bounds,
    null_count: NullCounts,
}

#[derive(Debug, Deserialize)]
struct Bounds {
    shard: String,
    shard_version: String,
    model: String,
    weight: Option<f32>,
}

#[derive(Debug, Deserialize)]
struct NullCounts {
    weight: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writeback::{SidecarIdentity, sidecar_path};
    use object_store::memory::InMemory;
    use object_store::path::Path;

    fn receipt(shard: &str, version: &str, model: &str) -> Receipt {
        let identity = SidecarIdentity { shard: shard.into(), shard_version: version.into(), shard_size: 10, model: model.into() };
        let path = sidecar_path(&identity);
        Receipt { identity, path, size: 100, rows: 5, weighed: 4, weight_sum: 4.0, weight_square_sum: 5.0, weight_range: Some((0.25, 2.5)) }
    }

    fn memory() -> Location {
        Location::new(Arc::new(InMemory::new()), Path::from("lake/weights"), "memory://lake/weights".into())
    }

    #[tokio::test]
    async fn replace_remove_and_repeat() {
        let place = memory();
        let mut table = WeightsTable::open(&place).await.unwrap();
        assert_eq!((table.version(), table.model().unwrap()), (None, None));
        let first =
            Publication { written: vec![receipt("a", "1", "m1"), receipt("b", "1", "m1")], removed: vec![], model: Some("m1".into()) };
        assert_eq!(table.publish(&first, serde_json::json!({})).await.unwrap(), 0);
        assert_eq!(table.model().unwrap().as_deref(), Some("m1"));
        let published = table.published().unwrap();
        assert_eq!(published.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(published["a"].weight_range, Some((0.25, 2.5)));
        assert_eq!((published["a"].rows, published["a"].unweighed), (5, 1));
        assert_eq!((published["a"].weight_sum, published["a"].weight_square_sum), (4.0, 5.0));

        let second = Publication { written: vec![receipt("a", "2", "m2")], removed: vec!["b".into()], model: Some("m2".into()) };
        table.publish(&second, serde_json::json!({})).await.unwrap();
        table.publish(&second, serde_json::json!({})).await.unwrap();
        let again = WeightsTable::open(&place).await.unwrap();
        let published = again.published().unwrap();
        assert_eq!(published.len(), 1);
        assert_eq!((published["a"].shard_version.as_str(), published["a"].model.as_str()), ("2", "m2"));
        assert_eq!(again.model().unwrap().as_deref(), Some("m2"));
    }

    #[tokio::test]
    async fn a_table_of_an_older_version_gets_the_columns_it_lacks() {
        let place = memory();
        let mut table = WeightsTable::open(&place).await.unwrap();
        let older = columns().into_iter().filter(|column| !column.name().starts_with("window"));
        CreateBuilder::new()
            .with_log_store(Arc::clone(&table.log))
            .with_columns(older)
            .with_raise_if_key_not_exists(false)
            .with_configuration([(MODEL_PROPERTY, Some("m1"))])
            .with_actions([Action::Add(add(&receipt("a", "1", "m1"))), Action::Add(add(&receipt("b", "1", "m1")))])
            .await
            .unwrap();
        table.reload().await.unwrap();
        let names = |table: &WeightsTable| -> Vec<String> {
            let schema = table.table.as_ref().unwrap().snapshot().unwrap().metadata().parse_schema().unwrap();
            schema.fields().map(|field| field.name().clone()).collect()
        };
        assert_eq!(names(&table).len(), crate::writeback::WEIGHT_COLUMNS.len() - 2);
        let change = Publication { written: vec![receipt("a", "1", "m2")], removed: vec![], model: Some("m2".into()) };
        table.publish(&change, serde_json::json!({})).await.unwrap();
        assert_eq!(names(&table), crate::writeback::WEIGHT_COLUMNS);
        assert_eq!(table.model().unwrap().as_deref(), Some("m2"));
        // What the older version wrote and nobody weighed again stays.
        let models: Vec<String> = table.published().unwrap().into_values().map(|p| p.model).collect();
        assert_eq!(models, ["m2", "m1"]);
        let before = table.version();
        let again = Publication { written: vec![receipt("b", "1", "m2")], ..Publication::default() };
        table.publish(&again, serde_json::json!({})).await.unwrap();
        assert_eq!(table.version(), before.map(|v| v + 1));
        assert_eq!(table.model().unwrap().as_deref(), Some("m2"));
    }

    #[tokio::test]
    async fn many_versions_on_a_local_disk() {
        let dir = tempfile::tempdir().unwrap();
        let place = crate::storage::Stores::new(dir.path()).open("weights of a lake/").unwrap();
        for version in 0..12 {
            let mut table = WeightsTable::open(&place).await.unwrap();
            let change = Publication { written: vec![receipt("a", &version.to_string(), "m")], ..Publication::default() };
            assert_eq!(table.publish(&change, serde_json::json!({})).await.unwrap(), version);
        }
        assert_eq!(WeightsTable::open(&place).await.unwrap().published().unwrap()["a"].shard_version, "11");
    }

    #[tokio::test]
    async fn a_late_run_replaces_the_shard_and_respects_another_model() {
        let place = memory();
        let change = |shard: &str, version: &str, model: &str, current: Option<&str>| Publication {
            written: vec![receipt(shard, version, model)],
            removed: vec![],
            model: current.map(str::to_owned),
        };
        WeightsTable::open(&place).await.unwrap().publish(&change("a", "1", "m", Some("m")), serde_json::json!({})).await.unwrap();
        let (mut early, mut late) = (WeightsTable::open(&place).await.unwrap(), WeightsTable::open(&place).await.unwrap());
        let mut other = WeightsTable::open(&place).await.unwrap();
        early.publish(&change("new", "1", "m", None), serde_json::json!({})).await.unwrap();
        late.publish(&change("new", "2", "m", None), serde_json::json!({})).await.unwrap();
        let snapshot = late.table.as_ref().unwrap().snapshot().unwrap();
        assert_eq!(snapshot.log_data().iter().count(), 2, "one sidecar a shard");
        assert_eq!(late.published().unwrap()["new"].shard_version, "2");

        early.publish(&change("a", "1", "m2", Some("m2")), serde_json::json!({})).await.unwrap();
        let error = other.publish(&change("new", "3", "m", None), serde_json::json!({})).await.unwrap_err().to_string();
        assert!(error.contains("m2") && error.contains("run again"), "{error}");
        assert_eq!(WeightsTable::open(&place).await.unwrap().published().unwrap()["new"].shard_version, "2");
    }

    #[tokio::test]
    async fn writers_at_once_all_get_in_from_the_first_commit_on() {
        let place = memory();
        let mut writers = Vec::new();
        for writer in 0..4 {
            let mut table = WeightsTable::open(&place).await.unwrap();
            writers.push(tokio::spawn(async move {
                let change = Publication { written: vec![receipt(&format!("shard-{writer}"), "1", "m")], ..Publication::default() };
                table.publish(&change, serde_json::json!({})).await
            }));
        }
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
        assert_eq!(WeightsTable::open(&place).await.unwrap().published().unwrap().len(), 4);
    }
}
