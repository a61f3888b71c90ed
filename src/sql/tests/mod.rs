//! A small lake of odd shards in memory, a store that records what is read, and the naive twin: base and sidecar read one by one
//! and zipped in memory, over which the same SQL must give the same rows.

mod bytes;
mod folders;
mod guards;
mod merged;
mod queries;
mod ranges;
mod recording;
mod session;
mod shards;

use std::sync::Arc;

use arrow::array::{Array, Float32Array, RecordBatch};
use arrow::compute::{cast, max, min};
use arrow::datatypes::SchemaRef;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionConfig;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{CorpusOptions, CorpusShard, CorpusTable, ShardFormat, SidecarRef, SqlSession, WEIGHT_COLUMNS};
use crate::error::Result;
use crate::shard::{Layout, Shard};
use crate::storage::Location;
use recording::RecordingStore;

/// What the lake knows of a shard: its listing, and its rows for the twin.
struct LakeShard {
    listed: CorpusShard,
    base: Vec<RecordBatch>,
    weights: Option<RecordBatch>,
}

/// A corpus store and an output store with a few shards.
struct Lake {
    corpus: Arc<RecordingStore>,
    output: Arc<RecordingStore>,
    shards: Vec<LakeShard>,
    /// Whether the table is told the weighed shards' columns, as the log does, or reads them.
    logged: bool,
    options: CorpusOptions,
    /// Whether tables share the footers of `options`, as those of one process do.
    keep_footers: bool,
}

impl Lake {
    fn new() -> Self {
        let (logged, keep_footers) = (false, false);
        Self { corpus: Arc::default(), output: Arc::default(), shards: vec![], logged, options: CorpusOptions::default(), keep_footers }
    }

    /// Adds a shard; `weights`, if any, are the sidecar's rows and the row counts of its row groups.
    async fn add(&mut self, name: &str, bytes: Vec<u8>, base: Vec<RecordBatch>, weights: Option<(RecordBatch, Vec<usize>)>) {
        match weights {
            Some((weights, groups)) => {
                let sidecar = shards::sidecar_bytes(&weights, &groups);
                self.add_with(name, bytes, base, sidecar, weights).await;
            }
            None => self.add_base(name, bytes, base).await,
        }
    }

    /// Adds a shard with a sidecar of these bytes.
    async fn add_with(&mut self, name: &str, bytes: Vec<u8>, base: Vec<RecordBatch>, sidecar: Vec<u8>, weights: RecordBatch) {
        self.add_base(name, bytes, base).await;
        let meta = put(&*self.output, &format!("data/{name}.weights"), sidecar).await;
        let shard = self.shards.last_mut().unwrap();
        let (base_size, base_version) = (shard.listed.meta.size, shard.listed.version.clone());
        let column = weights.column_by_name("weight").unwrap().as_any().downcast_ref::<Float32Array>().unwrap();
        shard.listed.sidecar = Some(SidecarRef {
            meta,
            base_size,
            base_version,
            model: "m0".to_owned(),
            rows: weights.num_rows() as u64,
            unweighed: column.null_count() as u64,
            weight_range: min(column).zip(max(column)),
        });
        shard.weights = Some(weights);
    }

    async fn add_base(&mut self, name: &str, bytes: Vec<u8>, base: Vec<RecordBatch>) {
        let meta = put(&*self.corpus, &format!("sft/{name}"), bytes).await;
        let version = meta.e_tag.clone().unwrap();
        let format = if name.ends_with(".parquet") { ShardFormat::Parquet } else { ShardFormat::Arrow };
        let listed = CorpusShard { name: name.to_owned(), format, meta, version, schema: None, rows: None, sidecar: None };
        self.shards.push(LakeShard { listed, base, weights: None });
    }

    async fn size_of(&self, name: &str) -> u64 {
        self.corpus.head(&Path::from(format!("sft/{name}"))).await.unwrap().size
    }

    async fn table(&self) -> Result<CorpusTable> {
        let mut listed: Vec<_> = self.shards.iter().map(|s| s.listed.clone()).collect();
        for (shard, known) in listed.iter_mut().zip(&self.shards).filter(|_| self.logged) {
            let (schema, rows) = match (shard.format, known.base.first()) {
                // Streams have no footer that a layout could be read from.
                (ShardFormat::Arrow, Some(first)) => (first.schema(), known.base.iter().map(|batch| batch.num_rows() as u64).sum()),
                _ => {
                    let layout = self.layout_of(shard).await;
                    (layout.schema().clone(), layout.rows())
                }
            };
            shard.schema = Some(schema);
            shard.rows = shard.sidecar.is_none().then_some(rows);
        }
        let footers = if self.keep_footers { Arc::clone(&self.options.footers) } else { Arc::default() };
        let options = CorpusOptions { footers, ..self.options.clone() };
        CorpusTable::try_with(self.corpus.clone(), self.output.clone(), listed, options).await
    }

    async fn layout_of(&self, shard: &CorpusShard) -> Layout {
        let location = Location::new(self.corpus.clone(), shard.meta.location.clone(), shard.name.clone());
        let shard = Shard { name: shard.name.clone(), location, meta: shard.meta.clone(), format: shard.format };
        Layout::load(&shard, false).await.unwrap()
    }

    /// A session over the table as a new process sees it, with scans cut as small as DataFusion can.
    async fn session(&self, partitions: usize) -> Result<SqlSession> {
        let config = SessionConfig::new()
            .with_target_partitions(partitions)
            .with_repartition_file_min_size(1)
            .with_batch_size(1000)
            .with_collect_statistics(true);
        let session = SqlSession::with_config(config);
        session.register_table("corpus", Arc::new(self.table().await?))?;
        self.forget();
        Ok(session)
    }

    /// A session over the same rows in memory.
    fn twin(&self, schema: &SchemaRef) -> SqlSession {
        let session = SqlSession::new(1);
        let batches = self.shards.iter().flat_map(|shard| zipped(shard, schema)).collect();
        session.register_batches("corpus", schema.clone(), batches).unwrap();
        session
    }

    fn forget(&self) {
        self.corpus.forget();
        self.output.forget();
    }
}

async fn put(store: &dyn ObjectStore, path: &str, bytes: Vec<u8>) -> ObjectMeta {
    let path = Path::from(path);
    store.put(&path, bytes.into()).await.unwrap();
    store.head(&path).await.unwrap()
}

/// The rows of a shard in the table's schema, the slow and obvious way.
fn zipped(shard: &LakeShard, schema: &SchemaRef) -> Vec<RecordBatch> {
    let mut first = 0;
    let mut out = vec![];
    for base in &shard.base {
        let rows = base.num_rows();
        let weights = shard.weights.as_ref().map(|w| w.slice(first, rows));
        first += rows;
        let columns = schema.fields().iter().map(|field| {
            let ours = field.name().strip_prefix("pushpull_").unwrap_or(field.name());
            let found = if let Some(column) = base.column_by_name(field.name()) {
                Some(column.clone())
            } else if let Some(constant) = constant(shard, ours) {
                Some(Arc::new(arrow::array::StringArray::from(vec![constant; rows])) as Arc<dyn Array>)
            } else if ours == field.name() && schema.index_of(&format!("pushpull_{ours}")).is_ok() {
                None // a base column this shard lacks
            } else if WEIGHT_COLUMNS.iter().any(|(name, _)| *name == ours) {
                weights.as_ref().and_then(|w| w.column_by_name(ours).cloned())
            } else {
                None
            };
            match found {
                Some(column) => cast(&column, field.data_type()).unwrap(),
                None => arrow::array::new_null_array(field.data_type(), rows),
            }
        });
        out.push(RecordBatch::try_new(schema.clone(), columns.collect()).unwrap());
    }
    out
}

/// The weight columns that are the same in every row of a shard.
fn constant<'a>(shard: &'a LakeShard, column: &str) -> Option<Option<&'a str>> {
    let sidecar = shard.listed.sidecar.as_ref();
    match column {
        "shard" => Some(Some(shard.listed.name.as_str())),
        "shard_version" => Some(sidecar.map(|s| s.base_version.as_str())),
        "model" => Some(sidecar.map(|s| s.model.as_str())),
        key => {
            let mut values = shard.listed.name.split('/').filter_map(|folder| folder.split_once('=')).filter(|(found, _)| *found == key);
            let lake_has_it = ["region", "year"].contains(&key);
            lake_has_it.then(|| values.next_back().map(|(_, value)| value).filter(|value| *value != "__HIVE_DEFAULT_PARTITION__"))
        }
    }
}

/// Every row as one line, sorted.
async fn lines(session: &SqlSession, sql: &str) -> Result<Vec<String>> {
    let options = FormatOptions::default().with_null("NULL");
    let mut lines = vec![];
    for batch in session.query(sql).await?.collect().await? {
        let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            lines.push(columns.iter().map(|c| c.value(row).to_string()).collect::<Vec<_>>().join(" | "));
        }
    }
    lines.sort();
    Ok(lines)
}

/// The text of an error and of all its causes.
fn full_text(error: &crate::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// `assert_eq` over lines that says no more than the first difference.
fn assert_same(found: &[String], expected: &[String], what: &str) {
    let first = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
    let short = |lines: &[String]| lines.get(first).map(|l| l.chars().take(300).collect::<String>());
    let counts = (found.len(), expected.len());
    assert!(found == expected, "{what}: {counts:?} lines, line {first}\n  found    {:?}\n  expected {:?}", short(found), short(expected));
}
