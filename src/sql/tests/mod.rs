//! A small lake of odd shards in memory, a store that records what is read, and the naive twin: base and sidecar read one by one
//! and zipped in memory, over which the same SQL must give the same rows.

mod bytes;
mod guards;
mod merged;
mod queries;
mod recording;
mod session;
mod shards;

use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionConfig;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{CorpusShard, CorpusTable, ShardFormat, SidecarRef, SqlSession, WEIGHT_COLUMNS};
use crate::error::Result;
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
}

impl Lake {
    fn new() -> Self {
        Self { corpus: Arc::default(), output: Arc::default(), shards: vec![] }
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
        shard.listed.sidecar = Some(SidecarRef { meta, base_size, base_version });
        shard.weights = Some(weights);
    }

    async fn add_base(&mut self, name: &str, bytes: Vec<u8>, base: Vec<RecordBatch>) {
        let meta = put(&*self.corpus, &format!("sft/{name}"), bytes).await;
        let version = meta.e_tag.clone().unwrap();
        let format = if name.ends_with(".parquet") { ShardFormat::Parquet } else { ShardFormat::Arrow };
        let listed = CorpusShard { name: name.to_owned(), format, meta, version, sidecar: None };
        self.shards.push(LakeShard { listed, base, weights: None });
    }

    async fn size_of(&self, name: &str) -> u64 {
        self.corpus.head(&Path::from(format!("sft/{name}"))).await.unwrap().size
    }

    async fn table(&self) -> Result<CorpusTable> {
        let listed = self.shards.iter().map(|s| s.listed.clone()).collect();
        CorpusTable::try_new(self.corpus.clone(), self.output.clone(), listed).await
    }

    /// A session over the table, with scans cut as small as DataFusion can.
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
            } else if ours == "shard" {
                let names = vec![shard.listed.name.as_str(); rows];
                Some(Arc::new(arrow::array::StringArray::from(names)) as Arc<dyn Array>)
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
