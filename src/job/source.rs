//! What SQL shows of a job, and the model behind its functions.

use super::context::Job;
use super::encoder::{RowColumns, RowEncoder};
use super::explain::check_model;
use super::query::{TableSnapshot, corpus_table};
use super::tables::small_tables;
use super::windows::weigh_batch;
use crate::catalog::StoredModel;
use crate::error::{Error, Result};
use crate::sql::{LazyWeigher, RowWeigher, SqlSource, SqlTables, TextArguments, WriteTargets};
use crate::writeback::{ReferenceIds, SidecarRow};
use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::FutureExt;
use std::sync::Arc;

#[async_trait]
impl SqlSource for Job {
    async fn sql_tables(&self) -> Result<SqlTables> {
        let snapshot = TableSnapshot::open(self).await?;
        let corpus = Arc::new(corpus_table(self, &snapshot).await?);
        let in_corpus = snapshot.listing.shards.iter().filter_map(|shard| snapshot.published.get(&shard.name).cloned()).collect();
        Ok(SqlTables {
            corpus,
            output: self.output.clone(),
            others: small_tables(self, &snapshot)?,
            weigher: lazy_weigher(self, snapshot.plan.model.clone()),
            in_corpus,
            published: snapshot.published.into_values().collect(),
        })
    }
}

/// Where queries over a job may write: not on what the job is made of.
///
/// # Errors
/// A URL of the job that cannot be opened.
pub fn write_targets(job: &Job) -> Result<WriteTargets> {
    let (corpus, _) = crate::shard::split_glob(&job.file.corpus.url)?;
    Ok(WriteTargets::new(job.stores.clone())
        .keep("corpus", job.stores.open(&corpus)?)
        .keep("weights table", job.output.clone())
        .keep("safe references", job.stores.open(&job.file.references.safe)?)
        .keep("harmful references", job.stores.open(&job.file.references.harm)?))
}

fn lazy_weigher(job: &Job, model: Option<String>) -> LazyWeigher {
    let columns = RowColumns::of(&job.file);
    let arguments =
        TextArguments { columns: columns.views().to_vec(), fallback: columns.fallback().map(str::to_owned), is_text: columns.is_text() };
    let (file, stores, output) = (job.file.clone(), job.stores.clone(), job.output.clone());
    LazyWeigher::new(arguments, move || {
        let (file, stores, output, model) = (file.clone(), stores.clone(), output.clone(), model.clone());
        async move {
            let Some(model) = model else {
                let reason = "has no model yet; `pushpull fit` makes one".to_owned();
                return Err(Error::Catalog { location: output.to_string(), reason, source: None });
            };
            let model = StoredModel::read(&output, &model).await?;
            let encoder = RowEncoder::load(&file, &stores).await?;
            check_model(&model, &encoder)?;
            let (ids, windows) = (model.card.reference_ids(), model.card.window_columns());
            Ok(Arc::new(ModelWeigher { model, encoder, ids, windows }) as Arc<dyn RowWeigher>)
        }
        .boxed()
    })
}

#[derive(Debug)]
struct ModelWeigher {
    model: StoredModel,
    encoder: RowEncoder,
    ids: ReferenceIds,
    windows: Vec<String>,
}

impl RowWeigher for ModelWeigher {
    fn weigh(&self, function: &str, batch: &RecordBatch) -> Result<Vec<Option<SidecarRow>>> {
        weigh_batch(&self.model.transport.weigher()?, &self.encoder, function, batch)
    }

    fn references(&self) -> &ReferenceIds {
        &self.ids
    }

    fn window_columns(&self) -> &[String] {
        &self.windows
    }
}
