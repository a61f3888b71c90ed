//! The table `corpus`: in go the shards of a corpus and their sidecars, out come scans that read no more objects than the columns
//! of a query need.
//!
//! The shards a scan touches are chosen by its filters on `shard`, the objects by its columns. Base columns only: the base shards. Weight columns only: the sidecars,
//! and nothing of the base. Both: base and sidecar as one Parquet file. All of it is one stock Parquet scan; Arrow shards whose
//! base columns are needed are streamed beside it.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, StringArray};
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result as DfResult, ScalarValue, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, streaming::PartitionStream};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use parquet::arrow::parquet_to_arrow_schema;

use super::arrow_shard::ArrowPartition;
use super::columns::{CorpusColumns, Origin, ServedNames};
use super::ipc::IpcShard;
use super::object::{Role, StoredObject};
use super::reader::{Part, Shard, ShardReaderFactory, ShardView, external};
use super::statistics::{scan_statistics, shard_statistics};
use super::{CorpusShard, ShardFormat};
use crate::error::{Error, Result};

/// Footers fetched at a time.
const FOOTERS_AT_A_TIME: usize = 32;

/// The name DataFusion knows our objects' store by. The bytes come through our own reader, so one name does for both stores.
const STORE_URL: &str = "pushpull://corpus";

/// A corpus and its weights as one table. See the [module](super) for its columns and what is guaranteed.
#[derive(Debug)]
pub struct CorpusTable {
    corpus_store: Arc<dyn ObjectStore>,
    columns: Arc<CorpusColumns>,
    names: Arc<ServedNames>,
    shards: Vec<Arc<Shard>>,
}

impl CorpusTable {
    /// Reads the schema of every shard (one footer each, several at a time) and makes the table's schema of them: base columns in
    /// the order in which shards bring them, then the weight columns. Sidecars are opened by the queries that need them.
    ///
    /// # Errors
    /// A shard that cannot be read, or a column whose types in two shards have nothing in common. A shard that changed since it
    /// was weighed is not an error here but in each scan that touches it.
    pub async fn try_new(corpus_store: Arc<dyn ObjectStore>, output_store: Arc<dyn ObjectStore>, shards: Vec<CorpusShard>) -> Result<Self> {
        let open = |listed: CorpusShard| {
            let base = StoredObject::new(Arc::clone(&corpus_store), listed.meta.clone(), &listed.name, Role::Base);
            let sidecar =
                listed.sidecar.as_ref().map(|s| StoredObject::new(Arc::clone(&output_store), s.meta.clone(), &listed.name, Role::Sidecar));
            let shard = Arc::new(Shard::new(listed, base, sidecar));
            async move { Ok::<_, Error>((base_schema(&shard).await?, shard)) }
        };
        let opened: Vec<(SchemaRef, Arc<Shard>)> = stream::iter(shards).map(open).buffered(FOOTERS_AT_A_TIME).try_collect().await?;
        let columns = CorpusColumns::union(opened.iter().map(|(schema, shard)| (shard.name(), Arc::clone(schema))))?;
        let shards = opened.into_iter().map(|(_, shard)| shard).collect();
        Ok(Self { corpus_store, names: Arc::new(columns.names.clone()), columns: Arc::new(columns), shards })
    }

    /// The shards whose name meets the filters on the name; no other shard is touched by a scan.
    fn named(&self, state: &dyn Session, filters: &[Expr]) -> DfResult<Vec<Arc<Shard>>> {
        let names = self.shards.len();
        let column = StringArray::from_iter_values(self.shards.iter().map(|s| s.name()));
        let schema = Arc::new(Schema::new(vec![Arc::clone(&self.columns.shard)]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(column)])?;
        let schema = DFSchema::try_from(schema)?;
        let mut kept = vec![true; names];
        for filter in filters {
            let columns = filter.column_refs();
            if filter.is_volatile() || columns.is_empty() || columns.iter().any(|c| c.name() != self.columns.shard.name()) {
                continue;
            }
            let bare = filter.clone().transform(|e| {
                Ok(match e {
                    Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
                    other => Transformed::no(other),
                })
            })?;
            // The filter stays above the scan, so one that cannot be computed here (it may hold a subquery) spares nothing.
            let met = state.create_physical_expr(bare.data, &schema).and_then(|e| e.evaluate(&batch)?.into_array(names));
            let Ok(met) = met else { continue };
            let Some(met) = met.as_any().downcast_ref::<BooleanArray>() else { continue };
            for (kept, met) in kept.iter_mut().zip(met) {
                *kept &= met == Some(true);
            }
        }
        Ok(self.shards.iter().zip(kept).filter(|(_, kept)| *kept).map(|(shard, _)| Arc::clone(shard)).collect())
    }

    fn parquet_scan(&self, state: &dyn Session, scan: &Scan<'_>) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let (mut files, mut statistics) = (vec![], vec![]);
        for shard in &scan.shards {
            let Some(part) = part(shard, scan.needs) else { continue };
            let view = ShardView { shard: Arc::clone(shard), names: Arc::clone(&self.names), part };
            let name = ScalarValue::Utf8(Some(shard.name().to_owned()));
            let mut file = PartitionedFile::new_from_meta(view.object().map_err(external)?.meta().clone());
            file = file.with_partition_values(vec![name]).with_extension(view);
            if let Some(known) = shard_statistics(shard, &self.columns, &scan.columns, part != Part::Sidecar)? {
                file = file.with_statistics(Arc::new(known));
            }
            statistics.push(file.statistics.clone());
            files.push(file);
        }
        if files.is_empty() {
            return Ok(None);
        }
        let schema =
            TableSchema::builder(Arc::clone(&self.columns.file)).with_table_partition_cols(vec![Arc::clone(&self.columns.shard)]).build();
        let known: Statistics = scan_statistics(&statistics, schema.table_schema())?;
        let source = ParquetSource::new(schema)
            .with_table_parquet_options(state.table_options().parquet.clone())
            .with_pushdown_filters(true)
            .with_parquet_file_reader_factory(Arc::new(ShardReaderFactory));
        let url = ObjectStoreUrl::parse(STORE_URL)?;
        state.runtime_env().register_object_store(url.as_ref(), Arc::clone(&self.corpus_store));
        let indices = scan.output.iter().map(|index| self.columns.scan_index(*index)).collect();
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(FileGroup::new(files).split_files(state.config().target_partitions()))
            .with_statistics(known)
            .with_limit(scan.limit)
            .with_projection_indices(Some(indices))?
            .build();
        Ok(Some(DataSourceExec::from_data_source(config)))
    }

    fn arrow_scan(&self, state: &dyn Session, scan: &Scan<'_>) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let streamed: Vec<_> = scan.shards.iter().filter(|s| part(s, scan.needs).is_none()).cloned().collect();
        if streamed.is_empty() {
            return Ok(None);
        }
        let schema = Arc::new(self.columns.table.project(scan.output)?);
        let output: Arc<[usize]> = scan.output.into();
        let partitions = streamed
            .chunks(streamed.len().div_ceil(state.config().target_partitions().max(1)))
            .map(|shards| {
                let (columns, output) = (Arc::clone(&self.columns), Arc::clone(&output));
                Arc::new(ArrowPartition::new(columns, output, Arc::clone(&schema), shards.to_vec())) as Arc<dyn PartitionStream>
            })
            .collect();
        let exec = StreamingTableExec::try_new(schema, partitions, None, [], false, scan.limit)?;
        Ok(Some(Arc::new(exec)))
    }
}

fn check_fresh(shards: &[Arc<Shard>]) -> Result<()> {
    let mut stale = shards.iter().filter(|s| s.is_stale());
    let Some(first) = stale.next() else { return Ok(()) };
    let others = match stale.count() {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    let reason = format!("changed since it was weighed{others}: run `pushpull run` again");
    Err(Error::Shard { shard: first.name().to_owned(), row_group: None, reason, source: None })
}

/// What a scan shows of `shard`; `None` if the shard must be streamed.
fn part(shard: &Shard, needs: Needs) -> Option<Part> {
    let weighed = shard.sidecar.is_some();
    match (shard.is_parquet(), weighed) {
        (true, true) if needs.base && needs.weights => Some(Part::Merged),
        (_, true) if needs.weights && !needs.base => Some(Part::Sidecar),
        (true, _) => Some(Part::Base { pruned: needs.pruned }),
        (false, true) if !needs.base => Some(Part::Sidecar),
        (false, _) => None,
    }
}

async fn load_sidecars(shards: &[Arc<Shard>], needs: Needs) -> Result<()> {
    let read = shards.iter().filter(|shard| matches!(part(shard, needs), Some(Part::Sidecar | Part::Merged)));
    stream::iter(read.cloned().collect::<Vec<_>>())
        .map(|shard| async move { shard.load_sidecar().await })
        .buffer_unordered(FOOTERS_AT_A_TIME)
        .try_collect()
        .await
}

/// Which objects the columns of a scan need.
#[derive(Debug, Clone, Copy)]
struct Needs {
    base: bool,
    weights: bool,
    /// Whether there is a predicate on base columns.
    pruned: bool,
}

struct Scan<'a> {
    /// Columns of the table, in the order of the result.
    output: &'a [usize],
    /// The columns of a scanned file that the result or a filter needs.
    columns: Vec<usize>,
    shards: Vec<Arc<Shard>>,
    needs: Needs,
    limit: Option<usize>,
}

#[async_trait]
impl TableProvider for CorpusTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.columns.table)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        // Inexact keeps a filter above the scan; the physical optimizer moves it into the Parquet scan, which then applies it in full.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let shards = self.named(state, filters)?;
        check_fresh(&shards).map_err(external)?;
        let all: Vec<usize> = (0..self.columns.table.fields().len()).collect();
        let output = projection.unwrap_or(&all);
        let filtered = filters.iter().flat_map(Expr::column_refs).filter_map(|c| self.columns.table.index_of(c.name()).ok());
        let filtered: Vec<usize> = filtered.collect();
        let uses = |columns: &[usize], wanted| columns.iter().any(|index| self.columns.origin(*index) == wanted);
        let needs = Needs {
            base: uses(output, Origin::Base) || uses(&filtered, Origin::Base),
            weights: uses(output, Origin::Sidecar) || uses(&filtered, Origin::Sidecar),
            pruned: uses(&filtered, Origin::Base),
        };
        // With a limit the first shards may do, so their sidecars are left to be opened one by one.
        if limit.is_none() {
            load_sidecars(&shards, needs).await.map_err(external)?;
        }
        let columns: BTreeSet<usize> = output.iter().chain(&filtered).map(|index| self.columns.scan_index(*index)).collect();
        let columns = columns.into_iter().filter(|index| *index < self.columns.file.fields().len()).collect();
        let scan = Scan { output, columns, shards, needs, limit };
        let mut plans: Vec<_> = [self.parquet_scan(state, &scan)?, self.arrow_scan(state, &scan)?].into_iter().flatten().collect();
        match (plans.len(), plans.pop()) {
            (_, None) => Ok(Arc::new(EmptyExec::new(Arc::new(self.columns.table.project(output)?)))),
            (1, Some(plan)) => Ok(plan),
            (_, Some(plan)) => {
                plans.push(plan);
                UnionExec::try_new(plans)
            }
        }
    }
}

/// The schema of the base shard; reads its footer.
async fn base_schema(shard: &Shard) -> Result<SchemaRef> {
    match shard.listed.format {
        ShardFormat::Parquet => {
            let file = shard.base.footer().await?.file_metadata();
            let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())
                .map_err(|e| shard.base.error("its schema cannot be used", Some(Box::new(e))))?;
            Ok(Arc::new(schema))
        }
        ShardFormat::Arrow => {
            let header = shard.ipc.get_or_try_init(|| IpcShard::open(&shard.base)).await?;
            Ok(Arc::clone(&header.schema))
        }
    }
}
