//! Arrow IPC shards in a scan: in go shards, out come their rows with the weights zipped on by position.
//!
//! IPC has no footer that could be merged, so these shards are streamed, several of them one after the other per partition. Each
//! record batch must have as many rows as the sidecar's row group at its place.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::{Field, SchemaRef};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};

use super::columns::{CorpusColumns, Origin};
use super::merge::filled;
use super::reader::{Part, Shard, ShardReader, ShardView, external};
use crate::error::{Error, Result};

/// Shards that one partition of a scan streams one after the other.
#[derive(Debug)]
pub(super) struct ArrowPartition {
    columns: Arc<CorpusColumns>,
    /// Columns of the table, in the order of `schema`.
    output: Arc<[usize]>,
    schema: SchemaRef,
    shards: Vec<Arc<Shard>>,
}

impl ArrowPartition {
    pub(super) fn new(columns: Arc<CorpusColumns>, output: Arc<[usize]>, schema: SchemaRef, shards: Vec<Arc<Shard>>) -> Self {
        Self { columns, output, schema, shards }
    }
}

impl PartitionStream for ArrowPartition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batch_size = context.session_config().batch_size();
        let (columns, output, schema) = (Arc::clone(&self.columns), Arc::clone(&self.output), Arc::clone(&self.schema));
        let rows = stream::iter(self.shards.clone())
            .then(move |shard| {
                let plan = RowPlan { shard, columns: Arc::clone(&columns), output: Arc::clone(&output), schema: Arc::clone(&schema) };
                plan.open(batch_size)
            })
            .try_flatten()
            .map_err(external);
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

/// How the rows of one shard become rows of the scan.
struct RowPlan {
    shard: Arc<Shard>,
    columns: Arc<CorpusColumns>,
    output: Arc<[usize]>,
    schema: SchemaRef,
}

impl RowPlan {
    async fn open(self, batch_size: usize) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let header = self.shard.ipc().await?;
        let projection: Vec<usize> = (0..header.schema.fields().len())
            .filter(|index| self.names(Origin::Base).any(|name| name == header.schema.field(*index).name()))
            .collect();
        let base = header.batches(Arc::clone(&self.shard), projection);
        let wanted: Vec<String> = self.names(Origin::Sidecar).map(str::to_owned).collect();
        let weights = match self.shard.sidecar.is_some() && !wanted.is_empty() {
            true => Some(WeightRows::open(&self.shard, &self.columns, &wanted, batch_size).await?),
            false => None,
        };
        let state = Zip { plan: self, base, weights, pending: None, batch_size };
        Ok(stream::try_unfold(state, |mut state| async move { Ok(state.next().await?.map(|batch| (batch, state))) }).boxed())
    }

    /// Names of the output columns that come from `origin`.
    fn names(&self, origin: Origin) -> impl Iterator<Item = &str> {
        let wanted = move |index: &&usize| self.columns.origin(**index) == origin;
        self.output.iter().filter(wanted).map(|index| self.columns.table.field(*index).name().as_str())
    }

    fn rows(&self, base: &RecordBatch, weights: Option<&RecordBatch>) -> Result<RecordBatch> {
        let rows = base.num_rows();
        let column = |(index, field): (&usize, &Arc<Field>)| -> Result<ArrayRef> {
            let found = match self.columns.origin(*index) {
                Origin::Constant(place) => self
                    .shard
                    .constants
                    .get(place)
                    .map(|value| value.to_array_of_size(rows))
                    .transpose()
                    .map_err(|e| self.failed(None, format!("column `{}` cannot be filled in", field.name()), Some(Box::new(e))))?,
                Origin::Base => base.column_by_name(field.name()).cloned(),
                Origin::Sidecar => weights.and_then(|w| w.column_by_name(field.name()).cloned()),
            };
            self.adapted(found, field, rows)
        };
        let columns = self.output.iter().zip(self.schema.fields()).map(column).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| self.failed(None, "its rows do not fit the table", Some(Box::new(e))))
    }

    /// The column in the table's type; NULLs if the shard lacks it.
    fn adapted(&self, found: Option<ArrayRef>, field: &Field, rows: usize) -> Result<ArrayRef> {
        match found {
            None => Ok(new_null_array(field.data_type(), rows)),
            Some(array) if array.data_type() == field.data_type() => Ok(array),
            Some(array) => {
                let options = CastOptions { safe: false, ..Default::default() };
                cast_with_options(&array, field.data_type(), &options).map_err(|e| {
                    let reason = format!("column `{}` cannot be read as {}", field.name(), field.data_type());
                    self.failed(None, reason, Some(Box::new(e)))
                })
            }
        }
    }

    fn failed(&self, row_group: Option<usize>, reason: impl Into<String>, source: Option<crate::error::BoxError>) -> Error {
        Error::Shard { shard: self.shard.name().to_owned(), row_group, reason: reason.into(), source }
    }
}

struct Zip {
    plan: RowPlan,
    base: BoxStream<'static, Result<RecordBatch>>,
    weights: Option<WeightRows>,
    /// Rows that wait to be handed on in pieces of `batch_size`.
    pending: Option<RecordBatch>,
    batch_size: usize,
}

impl Zip {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.pending.take().filter(|b| b.num_rows() > 0) {
                let piece = batch.num_rows().min(self.batch_size.max(1));
                self.pending = Some(batch.slice(piece, batch.num_rows() - piece));
                return Ok(Some(batch.slice(0, piece)));
            }
            let Some(base) = self.base.try_next().await? else {
                return match &self.weights {
                    Some(weights) if weights.groups_left() > 0 => {
                        Err(self.plan.shard.pair()?.misfit(None, format!("it has {} row groups too many", weights.groups_left())))
                    }
                    _ => Ok(None),
                };
            };
            if base.num_rows() == 0 {
                continue;
            }
            let weights = match &mut self.weights {
                Some(weights) => Some(weights.group(&self.plan, base.num_rows()).await?),
                None => None,
            };
            self.pending = Some(self.plan.rows(&base, weights.as_ref())?);
        }
    }
}

/// The weight columns of a sidecar, row group by row group.
struct WeightRows {
    rows: ParquetRecordBatchStream<ShardReader>,
    read: VecDeque<RecordBatch>,
    /// Row counts of the row groups that have not been handed out.
    groups: VecDeque<usize>,
    taken: usize,
}

impl WeightRows {
    async fn open(shard: &Arc<Shard>, columns: &CorpusColumns, wanted: &[String], batch_size: usize) -> Result<Self> {
        let view = ShardView { shard: Arc::clone(shard), names: Arc::new(columns.names.clone()), part: Part::Sidecar };
        let failed = |e| shard.weights().map_or_else(|e| e, |s| s.error("cannot be read", Some(Box::new(e))));
        let builder = ParquetRecordBatchStreamBuilder::new(ShardReader::uncounted(view)).await.map_err(failed)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), wanted.iter().map(String::as_str));
        let groups = filled(builder.metadata()).iter().filter_map(|(_, g)| usize::try_from(g.num_rows()).ok()).collect();
        let rows = builder.with_projection(mask).with_batch_size(batch_size).build().map_err(failed)?;
        Ok(Self { rows, read: VecDeque::new(), groups, taken: 0 })
    }

    fn groups_left(&self) -> usize {
        self.groups.len()
    }

    /// The next row group, which must have `rows` rows.
    async fn group(&mut self, plan: &RowPlan, rows: usize) -> Result<RecordBatch> {
        let place = self.taken;
        self.taken += 1;
        match self.groups.pop_front() {
            Some(found) if found == rows => {}
            Some(found) => return Err(plan.shard.pair()?.misfit(Some(place), format!("it has {found} rows, the base {rows}"))),
            None => return Err(plan.shard.pair()?.misfit(Some(place), "it ends before the base")),
        }
        let mut parts = vec![];
        let mut missing = rows;
        while missing > 0 {
            let batch = match self.read.pop_front() {
                Some(batch) => batch,
                None => match self.rows.try_next().await {
                    Ok(Some(batch)) => batch,
                    Ok(None) => return Err(plan.shard.pair()?.misfit(Some(place), "it ends before the base")),
                    Err(e) => return Err(plan.shard.weights()?.error("cannot be read", Some(Box::new(e)))),
                },
            };
            let piece = batch.num_rows().min(missing);
            if piece < batch.num_rows() {
                self.read.push_front(batch.slice(piece, batch.num_rows() - piece));
            }
            parts.push(batch.slice(0, piece));
            missing -= piece;
        }
        let schema = parts.first().map(RecordBatch::schema).ok_or_else(|| Error::Internal("row group without rows".to_owned()))?;
        concat_batches(&schema, &parts).map_err(|e| plan.failed(Some(place), "its weights cannot be joined", Some(Box::new(e))))
    }
}
