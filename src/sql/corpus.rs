//! The table `corpus`: in go the shards of a corpus and their sidecars, out come scans that read no more objects than the columns
//! of a query need.
//!
//! The shards a scan touches are chosen by its filters, the objects by its columns. What is the same in every row of a shard (its name,
//! its folders' keys, version and model) is known without reading: a filter on it is done by the choice. The weights' bounds are in the
//! log: a shard that none of its weights lets meet a filter is not touched. Of the others, base columns only: the base shards. Weight
//! columns only: the sidecars, and nothing of the base. Both: base and sidecar as one Parquet file. Neither: no object at all. Files
//! are read by one stock Parquet scan; Arrow shards whose base columns are needed are streamed beside it.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PrunableStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result as DfResult, ScalarValue, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::context::ExecutionProps;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, streaming::PartitionStream};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;

use super::arrow_shard::ArrowPartition;
use super::columns::{CorpusColumns, Origin, ServedNames};
use super::known_rows::KnownRowsExec;
use super::object::{Role, StoredObject};
use super::partitions::FolderKeys;
use super::prefetch::Prefetch;
use super::reader::{Part, Shard, ShardReaderFactory, ShardView, external};
use super::statistics::{scan_statistics, shard_statistics};
use super::{CorpusOptions, CorpusShard, FolderColumns, MissingColumn, MissingColumns};
use crate::error::{Error, Result};

/// Footers fetched at a time.
const FOOTERS_AT_A_TIME: usize = 32;

/// Shards of which a scan reads the footers before it starts, for what they tell the planner. Beyond it they are read as the scan
/// comes to them.
const PLANNED_FOOTERS: usize = 2048;

/// Column statistics that the files of one scan may have, about half a kilobyte each. Beyond it files have none, and the choice of
/// shards is all the planner gets.
const MOST_STATISTICS: usize = 1 << 20;

/// The name DataFusion knows our objects' store by. The bytes come through our own reader, so one name does for both stores.
const STORE_URL: &str = "pushpull://corpus";

/// A corpus and its weights as one table. See the [module](super) for its columns and what is guaranteed.
#[derive(Debug)]
pub struct CorpusTable {
    corpus_store: Arc<dyn ObjectStore>,
    columns: Arc<CorpusColumns>,
    names: Arc<ServedNames>,
    shards: Vec<Arc<Shard>>,
    /// The constants of all shards, a row each.
    constants: RecordBatch,
}

impl CorpusTable {
    /// As [`Self::try_with`], with the default options.
    ///
    /// # Errors
    /// As [`Self::try_with`].
    pub async fn try_new(corpus_store: Arc<dyn ObjectStore>, output_store: Arc<dyn ObjectStore>, shards: Vec<CorpusShard>) -> Result<Self> {
        Self::try_with(corpus_store, output_store, shards, CorpusOptions::default()).await
    }

    /// Makes the table's schema of the shards': base columns in the order in which shards bring them, then the keys of folders, then the
    /// weight columns. The footer is read of each shard that comes without its schema (several at a time), and of no other; sidecars are
    /// opened by the queries that need them. Columns that some shards lack are warned of, once each.
    ///
    /// # Errors
    /// A shard that must be read and cannot, a column whose types in two shards have nothing in common, or one that a shard lacks where
    /// that is refused. A shard that changed since it was weighed is not an error here but in each scan that touches it.
    pub async fn try_with(
        corpus_store: Arc<dyn ObjectStore>,
        output_store: Arc<dyn ObjectStore>,
        shards: Vec<CorpusShard>,
        options: CorpusOptions,
    ) -> Result<Self> {
        let object = |store: &Arc<dyn ObjectStore>, meta: &object_store::ObjectMeta, name: &str, role| {
            StoredObject::new(Arc::clone(store), meta.clone(), name, role, Arc::clone(&options.footers))
        };
        let open = |listed: CorpusShard| {
            let base = object(&corpus_store, &listed.meta, &listed.name, Role::Base);
            let sidecar = listed.sidecar.as_ref().map(|s| object(&output_store, &s.meta, &listed.name, Role::Sidecar));
            let known = listed.schema.is_some();
            let mut shard = Shard::new(listed, base, sidecar);
            async move {
                if !known {
                    shard.read_schema().await?;
                }
                Ok::<_, Error>(shard)
            }
        };
        let mut shards: Vec<Shard> = stream::iter(shards).map(open).buffered(FOOTERS_AT_A_TIME).try_collect().await?;
        let keys = match options.folders {
            FolderColumns::Auto => FolderKeys::of(shards.iter().map(Shard::name)),
            FolderColumns::None => FolderKeys { columns: vec![], values: vec![vec![]; shards.len()] },
        };
        let columns = CorpusColumns::union(shards.iter().map(|shard| (shard.name(), Arc::clone(&shard.schema))), &keys.columns)?;
        report_missing(&columns.missing, shards.len(), options.missing)?;
        for (shard, mut values) in shards.iter_mut().zip(keys.values) {
            let text = |text: Option<&str>| ScalarValue::Utf8(text.map(str::to_owned));
            let sidecar = shard.listed.sidecar.as_ref();
            values.extend([
                text(Some(&shard.listed.name)),
                text(sidecar.map(|sidecar| sidecar.base_version.as_str())),
                text(sidecar.map(|sidecar| sidecar.model.as_str())),
            ]);
            shard.constants = values;
        }
        let constants = constants_of(&shards, &columns).map_err(|e| Error::Internal(format!("constants of the shards: {e}")))?;
        let shards = shards.into_iter().map(Arc::new).collect();
        Ok(Self { corpus_store, names: Arc::new(columns.names.clone()), columns: Arc::new(columns), shards, constants })
    }

    /// The base columns that some shards lack, which are NULL there.
    pub fn missing_columns(&self) -> &[MissingColumn] {
        &self.columns.missing
    }

    /// For each shard whether its rows meet a filter on nothing but constants; `None` if the filter is another or must be computed
    /// above the scan (it may hold a subquery, or fail for a value).
    fn by_constants(&self, filter: &Expr) -> Option<BooleanArray> {
        let columns = filter.column_refs();
        let schema = self.constants.schema();
        if filter.is_volatile() || columns.is_empty() || columns.iter().any(|c| schema.index_of(c.name()).is_err()) {
            return None;
        }
        let met = bare(filter, &schema).ok()?.evaluate(&self.constants).ok()?.into_array(self.shards.len()).ok()?;
        met.as_any().downcast_ref::<BooleanArray>().cloned()
    }

    /// The shards that may have rows which meet the filters; no other is touched by a scan. Also the filters that are done by that.
    fn chosen(&self, filters: &[Expr]) -> DfResult<(Vec<Arc<Shard>>, Vec<bool>)> {
        let mut kept = vec![true; self.shards.len()];
        let mut done = vec![];
        for filter in filters {
            let met = self.by_constants(filter);
            done.push(met.is_some());
            let Some(met) = met else { continue };
            for (kept, met) in kept.iter_mut().zip(&met) {
                *kept &= met == Some(true);
            }
        }
        let shards: Vec<_> = self.shards.iter().zip(kept).filter(|(_, kept)| *kept).map(|(shard, _)| Arc::clone(shard)).collect();
        // Stale shards are told of before any is left out for its old weights.
        check_fresh(&shards)?;
        let left: Vec<&Expr> = filters.iter().zip(&done).filter(|(_, done)| !**done).map(|(filter, _)| filter).collect();
        Ok((self.by_weights(shards, &left)?, done))
    }

    /// Of `shards` those whose published weights may meet the filters.
    fn by_weights(&self, shards: Vec<Arc<Shard>>, filters: &[&Expr]) -> DfResult<Vec<Arc<Shard>>> {
        let Some(place) = self.columns.weight_column("weight") else { return Ok(shards) };
        let field = self.columns.table.field(place);
        let filters: Vec<_> = filters.iter().filter(|f| f.column_refs().iter().any(|c| c.name() == field.name())).collect();
        if filters.is_empty() || shards.is_empty() {
            return Ok(shards);
        }
        let schema = Arc::new(Schema::new(vec![field.clone()]));
        let known: Vec<Arc<Statistics>> = shards.iter().map(|shard| Arc::new(weight_statistics(shard, &schema))).collect();
        let mut kept = vec![true; shards.len()];
        for filter in filters {
            // A filter that names other columns as well may still rule out shards by the part of it that is about the weight.
            let parts = split_conjunction(filter);
            for part in parts.into_iter().filter(|part| part.column_refs().iter().all(|c| c.name() == field.name()) && !part.is_volatile())
            {
                let Ok(expr) = bare(part, &schema) else { continue };
                let Ok(predicate) = PruningPredicateBuilder::new().with_file_schema(Arc::clone(&schema)).try_build(expr) else { continue };
                let statistics = PrunableStatistics::new(known.clone(), Arc::clone(&schema));
                let Ok(met) = predicate.prune(&statistics) else { continue };
                kept.iter_mut().zip(met).for_each(|(kept, met)| *kept &= met);
            }
        }
        Ok(shards.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(shard, _)| shard).collect())
    }

    fn parquet_scan(&self, state: &dyn Session, scan: &Scan<'_>) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let schema = self.scan_schema();
        let count = scan.shards.len();
        let described = count.saturating_mul(schema.table_schema().fields().len()) <= MOST_STATISTICS;
        let base_columns = scan.columns.iter().filter(|index| self.columns.is_base(**index));
        let base_columns: Arc<[String]> = base_columns.map(|index| self.columns.file.field(*index).name().clone()).collect();
        let mut files = vec![];
        for shard in &scan.shards {
            let Access::File(part) = access(shard, scan.needs) else { continue };
            let (shard, names, base_columns) = (Arc::clone(shard), Arc::clone(&self.names), Arc::clone(&base_columns));
            let view = ShardView { shard: Arc::clone(&shard), names, part, base_columns };
            let mut file = PartitionedFile::new_from_meta(view.object().map_err(external)?.meta().clone());
            file = file.with_partition_values(shard.constants.clone()).with_extension(view);
            if described {
                let known = shard_statistics(&shard, &self.columns, &scan.columns, part != Part::Sidecar)?;
                file.statistics = Some(Arc::new(known));
            }
            files.push(file);
        }
        if files.is_empty() {
            return Ok(None);
        }
        let statistics: Vec<_> = files.iter().map(|file| file.statistics.clone()).collect();
        let known: Statistics = scan_statistics(&statistics, schema.table_schema())?;
        let groups = FileGroup::new(files).split_files(state.config().target_partitions());
        let views = groups.iter().map(|group| group.iter().filter_map(|file| file.extension::<ShardView>().cloned()).collect());
        // With a limit the first shards may do.
        let prefetch = if scan.limit.is_none() { Prefetch::new(views.collect()) } else { Prefetch::default() };
        let source = ParquetSource::new(schema)
            .with_table_parquet_options(state.table_options().parquet.clone())
            .with_pushdown_filters(true)
            .with_parquet_file_reader_factory(Arc::new(ShardReaderFactory { prefetch: Arc::new(prefetch) }));
        let url = ObjectStoreUrl::parse(STORE_URL)?;
        state.runtime_env().register_object_store(url.as_ref(), Arc::clone(&self.corpus_store));
        let indices = scan.output.iter().map(|index| self.columns.scan_index(*index)).collect();
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(known)
            .with_limit(scan.limit)
            .with_projection_indices(Some(indices))?
            .build();
        Ok(Some(DataSourceExec::from_data_source(config)))
    }

    /// The columns of a scanned file and then the constants, as DataFusion numbers them.
    fn scan_schema(&self) -> TableSchema {
        TableSchema::builder(Arc::clone(&self.columns.file)).with_table_partition_cols(self.columns.constants.clone()).build()
    }

    fn arrow_scan(&self, state: &dyn Session, scan: &Scan<'_>) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let streamed: Vec<_> = scan.shards.iter().filter(|s| access(s, scan.needs) == Access::Stream).cloned().collect();
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

    fn known_rows(&self, state: &dyn Session, scan: &Scan<'_>) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let known: Vec<_> = scan.shards.iter().filter(|s| access(s, scan.needs) == Access::None).cloned().collect();
        if known.is_empty() {
            return Ok(None);
        }
        let partitions = state.config().target_partitions();
        Ok(Some(Arc::new(KnownRowsExec::try_new(Arc::clone(&self.columns), scan.output, known, partitions, scan.limit)?)))
    }
}

fn report_missing(missing: &[MissingColumn], shards: usize, policy: MissingColumns) -> Result<()> {
    for MissingColumn { column, shards: lacking, first } in missing {
        let others = match lacking - 1 {
            0 => String::new(),
            n => format!(" and in {n} more"),
        };
        match policy {
            MissingColumns::Null => {
                tracing::warn!(%column, shards = lacking, of = shards, %first, "some shards lack a column; it is NULL in their rows");
            }
            MissingColumns::Refuse => {
                let reason = format!("is missing here{others}; `[corpus] missing_columns = \"null\"` makes it NULL there");
                return Err(Error::Column { object: format!("shard {first}"), column: column.clone(), reason });
            }
        }
    }
    Ok(())
}

fn constants_of(shards: &[Shard], columns: &CorpusColumns) -> DfResult<RecordBatch> {
    let schema = Arc::new(Schema::new(columns.constants.clone()));
    if shards.is_empty() {
        return Ok(RecordBatch::new_empty(schema));
    }
    let column = |place: usize| ScalarValue::iter_to_array(shards.iter().map(|shard| shard.constants[place].clone()));
    let arrays = (0..columns.constants.len()).map(column).collect::<DfResult<Vec<_>>>()?;
    Ok(RecordBatch::try_new(schema, arrays)?)
}

/// The filter over columns without their table's name.
fn bare(filter: &Expr, schema: &SchemaRef) -> DfResult<Arc<dyn PhysicalExpr>> {
    let bare = filter.clone().transform(|e| {
        Ok(match e {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    })?;
    create_physical_expr(&bare.data, &DFSchema::try_from(Arc::clone(schema))?, &ExecutionProps::new(), &PhysicalPlanningContext::default())
}

/// What the log says of a shard's weights, as statistics of one column.
fn weight_statistics(shard: &Shard, schema: &Schema) -> Statistics {
    let mut statistics = Statistics::new_unknown(schema);
    let column = &mut statistics.column_statistics[0];
    // NULL where no row has a weight. An unknown bound would take the bounds of all other shards with it.
    let bound = |weight: Option<f32>| Precision::Exact(ScalarValue::Float32(weight));
    let range = shard.listed.sidecar.as_ref().and_then(|sidecar| sidecar.weight_range);
    (column.min_value, column.max_value) = (bound(range.map(|range| range.0)), bound(range.map(|range| range.1)));
    match &shard.listed.sidecar {
        // Without a sidecar every weight is NULL, however many rows there are.
        None => (statistics.num_rows, column.null_count) = (Precision::Exact(1), Precision::Exact(1)),
        Some(sidecar) => {
            let count = |n: u64| usize::try_from(n).map_or(Precision::Absent, Precision::Exact);
            (statistics.num_rows, column.null_count) = (count(sidecar.rows), count(sidecar.unweighed));
        }
    }
    statistics
}

fn check_fresh(shards: &[Arc<Shard>]) -> DfResult<()> {
    let mut stale = shards.iter().filter(|s| s.is_stale());
    let Some(first) = stale.next() else { return Ok(()) };
    let others = match stale.count() {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    let reason = format!("changed since it was weighed{others}: run `pushpull run` again; {}", first.staleness());
    Err(external(Error::Shard { shard: first.name().to_owned(), row_group: None, reason, source: None }))
}

/// How a scan gets at the rows of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// No object is needed: all its columns are constant and the rows counted.
    None,
    /// As a Parquet file.
    File(Part),
    /// An Arrow shard that must be streamed.
    Stream,
}

fn access(shard: &Shard, needs: Needs) -> Access {
    let weights = needs.weights && shard.sidecar.is_some();
    match (needs.base, weights) {
        (true, _) if !shard.is_parquet() => Access::Stream,
        (true, true) => Access::File(Part::Merged),
        (true, false) => Access::File(Part::Base { pruned: needs.pruned }),
        (false, true) => Access::File(Part::Sidecar),
        (false, false) if shard.rows.is_some() => Access::None,
        (false, false) if shard.is_parquet() => Access::File(Part::Base { pruned: false }),
        (false, false) => Access::Stream,
    }
}

/// Reads the footers of base shards, whose statistics may answer the query or rule out files.
async fn load_bases(shards: &[Arc<Shard>], needs: Needs) -> Result<()> {
    let read = shards.iter().filter(|shard| matches!(access(shard, needs), Access::File(Part::Base { .. })));
    stream::iter(read.cloned().collect::<Vec<_>>())
        .map(|shard| async move { shard.base.footer().await.map(drop) })
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
        let answer = |filter: &&Expr| match self.by_constants(filter) {
            Some(_) => TableProviderFilterPushDown::Exact,
            None => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(answer).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let (shards, done) = self.chosen(filters)?;
        let all: Vec<usize> = (0..self.columns.table.fields().len()).collect();
        let output = projection.unwrap_or(&all);
        let left = filters.iter().zip(&done).filter(|(_, done)| !**done).map(|(filter, _)| filter);
        let filtered: Vec<usize> = left.flat_map(Expr::column_refs).filter_map(|c| self.columns.table.index_of(c.name()).ok()).collect();
        let uses = |columns: &[usize], wanted| columns.iter().any(|index| self.columns.origin(*index) == wanted);
        let needs = Needs {
            base: uses(output, Origin::Base) || uses(&filtered, Origin::Base),
            weights: uses(output, Origin::Sidecar) || uses(&filtered, Origin::Sidecar),
            pruned: uses(&filtered, Origin::Base),
        };
        // Where every base shard of the scan is opened anyway, their footers can as well be read at once and tell the planner what they
        // know. With a limit the first shards may do; with weights, what they rule out need not be opened.
        if limit.is_none() && !needs.weights && shards.len() <= PLANNED_FOOTERS {
            load_bases(&shards, needs).await.map_err(external)?;
        }
        let columns: BTreeSet<usize> = output.iter().chain(&filtered).map(|index| self.columns.scan_index(*index)).collect();
        let columns = columns.into_iter().filter(|index| *index < self.columns.file.fields().len()).collect();
        let scan = Scan { output, columns, shards, needs, limit };
        let plans = [self.parquet_scan(state, &scan)?, self.arrow_scan(state, &scan)?, self.known_rows(state, &scan)?];
        let mut plans: Vec<_> = plans.into_iter().flatten().collect();
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
