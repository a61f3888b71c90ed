//! The table `corpus`: in go the shards of a corpus and their sidecars, out come scans that read no more objects than the columns
//! of a query need.
//!
//! The objects a scan touches are chosen by its columns. Base columns only: the base shards. Weight columns only: the sidecars,
//! and nothing of the base. Both: base and sidecar as one Parquet file. All of it is one stock Parquet scan; Arrow shards whose
//! base columns are needed are streamed beside it.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result as DfResult, ScalarValue, Statistics};
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
    /// was weighed is not an error here but in a scan, so that its neighbours can still be listed.
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

    fn check_fresh(&self) -> Result<()> {
        let mut stale = self.shards.iter().filter(|s| s.is_stale());
        let Some(first) = stale.next() else { return Ok(()) };
        let others = match stale.count() {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        let reason = format!("changed since it was weighed{others}: run `pushpull run` again");
        Err(Error::Shard { shard: first.name().to_owned(), row_group: None, reason, source: None })
    }

    /// What a scan shows of `shard` if it needs base columns or weight columns; `None` if the shard must be streamed.
    fn part(&self, shard: &Shard, needs: Needs) -> Option<Part> {
        let weighed = shard.sidecar.is_some();
        match (shard.is_parquet(), weighed) {
            (true, true) if needs.base && needs.weights => Some(Part::Merged),
            (_, true) if needs.weights && !needs.base => Some(Part::Sidecar),
            (true, _) => Some(Part::Base { pruned: needs.pruned }),
            (false, true) if !needs.base => Some(Part::Sidecar),
            (false, _) => None,
        }
    }

    async fn load_sidecars(&self, needs: Needs) -> Result<()> {
        let read = |shard: &Arc<Shard>| matches!(self.part(shard, needs), Some(Part::Sidecar | Part::Merged)).then(|| Arc::clone(shard));
        let shards: Vec<_> = self.shards.iter().filter_map(read).collect();
        stream::iter(shards).map(|shard| async move { shard.load_sidecar().await }).buffer_unordered(FOOTERS_AT_A_TIME).try_collect().await
    }

    fn parquet_scan(&self, state: &dyn Session, scan: &Scan<'_>) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let (mut files, mut statistics) = (vec![], vec![]);
        for shard in &self.shards {
            let Some(part) = self.part(shard, scan.needs) else { continue };
            let view = ShardView { shard: Arc::clone(shard), names: Arc::clone(&self.names), part };
            let name = ScalarValue::Utf8(Some(shard.name().to_owned()));
            let mut file = PartitionedFile::new_from_meta(view.object().map_err(external)?.meta().clone());
            file = file.with_partition_values(vec![name]).with_extension(view);
            if let Some(known) = shard_statistics(shard, &self.columns, part != Part::Sidecar)? {
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
        let streamed: Vec<_> = self.shards.iter().filter(|s| self.part(s, scan.needs).is_none()).cloned().collect();
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
        self.check_fresh().map_err(external)?;
        let all: Vec<usize> = (0..self.columns.table.fields().len()).collect();
        let output = projection.unwrap_or(&all);
        let origin = |index: usize| self.columns.origin(index);
        let columns = filters.iter().flat_map(Expr::column_refs);
        let filtered: Vec<Origin> = columns.filter_map(|c| self.columns.table.index_of(c.name()).ok()).map(origin).collect();
        let shown = |wanted: Origin| output.iter().any(|index| origin(*index) == wanted);
        let needs = Needs {
            base: shown(Origin::Base) || filtered.contains(&Origin::Base),
            weights: shown(Origin::Sidecar) || filtered.contains(&Origin::Sidecar),
            pruned: filtered.contains(&Origin::Base),
        };
        // With a limit the first shards may do, so their sidecars are left to be opened one by one.
        if limit.is_none() {
            self.load_sidecars(needs).await.map_err(external)?;
        }
        let scan = Scan { output, needs, limit };
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
