//! Rows of which everything is known without reading: in go shards with their row counts, out come batches of constants.
//!
//! `select source, count(*) … group by source` over a folder key, or the weights of shards that have none, open no object: each shard's
//! rows are its constants as often as it has rows, and NULL for every other column. Memory: one batch a partition.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result as DfResult, Statistics};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions, SendableRecordBatchStream,
};
use futures::stream;

use super::columns::{CorpusColumns, Origin};
use super::reader::Shard;
use super::statistics::{scan_statistics, shard_statistics};

/// The rows of shards that no object is opened for.
#[derive(Debug)]
pub(super) struct KnownRowsExec {
    columns: Arc<CorpusColumns>,
    output: Arc<[usize]>,
    schema: SchemaRef,
    /// The shards of each partition.
    partitions: Vec<Vec<Arc<Shard>>>,
    limit: Option<usize>,
    properties: Arc<PlanProperties>,
}

impl KnownRowsExec {
    /// Rows of `shards` with the columns `output` of the table, in at most `partitions` partitions of at most `limit` rows each.
    pub(super) fn try_new(
        columns: Arc<CorpusColumns>,
        output: &[usize],
        shards: Vec<Arc<Shard>>,
        partitions: usize,
        limit: Option<usize>,
    ) -> DfResult<Self> {
        let schema = Arc::new(columns.table.project(output)?);
        let partitions: Vec<_> = shards.chunks(shards.len().div_ceil(partitions.max(1)).max(1)).map(<[_]>::to_vec).collect();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(partitions.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self { columns, output: output.into(), schema, partitions, limit, properties: Arc::new(properties) })
    }

    fn statistics(&self, shards: &[Arc<Shard>]) -> DfResult<Statistics> {
        let known = shards.iter().map(|shard| Ok(Some(Arc::new(shard_statistics(shard, &self.columns, &[], false)?))));
        let all = scan_statistics(&known.collect::<DfResult<Vec<_>>>()?, &self.columns.file)?;
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = all.num_rows;
        for (column, index) in statistics.column_statistics.iter_mut().zip(self.output.iter()) {
            if let Some(known) = all.column_statistics.get(self.columns.scan_index(*index)) {
                *column = known.clone();
            }
        }
        if let Some(limit) = self.limit
            && all.num_rows.get_value().is_some_and(|rows| *rows > limit)
        {
            statistics = statistics.to_inexact();
        }
        Ok(statistics)
    }
}

impl DisplayAs for KnownRowsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards: usize = self.partitions.iter().map(Vec::len).sum();
        write!(f, "KnownRowsExec: shards={shards}")
    }
}

impl ExecutionPlan for KnownRowsExec {
    fn name(&self) -> &'static str {
        "KnownRowsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(&self, _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>, _: ReplaceChildrenOptions) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let rows = Rows {
            columns: Arc::clone(&self.columns),
            output: Arc::clone(&self.output),
            schema: Arc::clone(&self.schema),
            shards: self.partitions.get(partition).cloned().unwrap_or_default().into_iter(),
            batch: context.session_config().batch_size().max(1) as u64,
            current: None,
            left: self.limit.map_or(u64::MAX, |limit| limit as u64),
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream::iter(rows))))
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> DfResult<Arc<Statistics>> {
        let statistics = match args.partition() {
            Some(partition) => self.statistics(self.partitions.get(partition).map_or(&[], Vec::as_slice))?,
            None => self.statistics(&self.partitions.concat())?,
        };
        Ok(Arc::new(statistics))
    }
}

/// The batches of one partition.
struct Rows {
    columns: Arc<CorpusColumns>,
    output: Arc<[usize]>,
    schema: SchemaRef,
    shards: std::vec::IntoIter<Arc<Shard>>,
    /// Most rows of a batch.
    batch: u64,
    /// The longest batch of the current shard, and its rows that are still to come.
    current: Option<(RecordBatch, u64)>,
    /// Rows that may still come under the limit.
    left: u64,
}

impl Rows {
    fn longest(&self, shard: &Shard, rows: u64) -> DfResult<RecordBatch> {
        let rows = rows.min(self.batch) as usize;
        let column = |(index, field): (&usize, &Arc<arrow::datatypes::Field>)| -> DfResult<ArrayRef> {
            match self.columns.origin(*index) {
                Origin::Constant(place) => shard.constants[place].to_array_of_size(rows),
                Origin::Base | Origin::Sidecar => Ok(new_null_array(field.data_type(), rows)),
            }
        };
        let columns = self.output.iter().zip(self.schema.fields()).map(column).collect::<DfResult<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

impl Iterator for Rows {
    type Item = DfResult<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.left > 0 {
            match self.current.take() {
                Some((batch, rows)) if rows > 0 => {
                    let piece = rows.min(batch.num_rows() as u64).min(self.left);
                    self.left -= piece;
                    let sliced = batch.slice(0, piece as usize);
                    self.current = Some((batch, rows - piece));
                    return Some(Ok(sliced));
                }
                _ => {
                    let shard = self.shards.next()?;
                    let rows = shard.rows.unwrap_or_default();
                    match self.longest(&shard, rows) {
                        Ok(batch) => self.current = Some((batch, rows)),
                        Err(error) => return Some(Err(error)),
                    }
                }
            }
        }
        None
    }
}
