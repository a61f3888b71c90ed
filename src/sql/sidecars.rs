//! The table `weights`, now and at earlier versions: in goes what the log holds of the sidecars, out come scans that read these alone.
//!
//! One row a row of a weighed shard, also of a shard that changed or went since; the columns are [`WEIGHT_COLUMNS`]. The log's
//! counts answer `count(*)` and its bounds of the weight skip whole sidecars; the sidecars' own skip their row groups and pages, so a filter
//! on `shard` reads every footer. No file is opened before a scan reads it. Memory: the list of published sidecars.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Result as DfResult, ScalarValue, Statistics, plan_err};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use object_store::ObjectMeta;
use tokio::sync::OnceCell;

use super::WEIGHT_COLUMNS;
use super::reader::external;
use super::statistics::scan_statistics;
use crate::catalog::{Published, WeightsTable};
use crate::error::Result;
use crate::storage::Location;

/// The rows of the sidecars that one version of the weights table holds.
pub struct SidecarTable {
    location: Location,
    /// The version where it is not the one of `published`; see [`WeightsTable::published_at`].
    version: Option<i64>,
    published: OnceCell<Arc<Vec<Published>>>,
    schema: SchemaRef,
}

impl fmt::Debug for SidecarTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SidecarTable").field("location", &self.location.to_string()).field("version", &self.version).finish_non_exhaustive()
    }
}

impl SidecarTable {
    /// The sidecars `published` of the weights table at `location`.
    pub fn new(location: Location, published: Vec<Published>) -> Self {
        Self { published: OnceCell::new_with(Some(Arc::new(published))), ..Self::unread(location, None) }
    }

    /// The sidecars at a version, whose log is read by the first scan. A negative version counts back from the newest: −1 is the one before.
    pub fn at_version(location: Location, version: i64) -> Self {
        Self::unread(location, Some(version))
    }

    fn unread(location: Location, version: Option<i64>) -> Self {
        let fields = WEIGHT_COLUMNS.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect::<Vec<_>>();
        Self { location, version, published: OnceCell::new(), schema: Arc::new(Schema::new(fields)) }
    }

    /// Rows that have a weight, by the log.
    pub(super) async fn weighed(&self) -> DfResult<u64> {
        Ok(self.published().await.map_err(external)?.iter().map(|p| p.rows - p.unweighed.min(p.rows)).sum())
    }

    async fn published(&self) -> Result<Arc<Vec<Published>>> {
        let read = || async {
            match self.version {
                None => Ok(Arc::default()),
                Some(version) => WeightsTable::published_at(&self.location, version).await.map(Arc::new),
            }
        };
        self.published.get_or_try_init(read).await.cloned()
    }

    fn file(&self, sidecar: &Published) -> PartitionedFile {
        let location = self.location.join(&sidecar.path).path().clone();
        // Content-addressed, so its time says nothing.
        let meta = ObjectMeta { location, last_modified: Default::default(), size: sidecar.size, e_tag: None, version: None };
        PartitionedFile::new_from_meta(meta).with_statistics(Arc::new(self.statistics(sidecar)))
    }

    fn statistics(&self, sidecar: &Published) -> Statistics {
        let mut statistics = Statistics::new_unknown(&self.schema);
        let count = |n: u64| usize::try_from(n).map_or(Precision::Absent, Precision::Exact);
        statistics.num_rows = count(sidecar.rows);
        let text = |text: &String| ScalarValue::Utf8(Some(text.clone()));
        for (field, column) in self.schema.fields().iter().zip(&mut statistics.column_statistics) {
            let bounds = match field.name().as_str() {
                "shard" => Some((text(&sidecar.shard), text(&sidecar.shard))),
                "shard_version" => Some((text(&sidecar.shard_version), text(&sidecar.shard_version))),
                "model" => Some((text(&sidecar.model), text(&sidecar.model))),
                "row" => Some((ScalarValue::Int64(Some(0)), ScalarValue::Int64(i64::try_from(sidecar.rows).ok().map(|n| n - 1)))),
                "weight" => sidecar.weight_range.map(|(low, high)| (ScalarValue::Float32(Some(low)), ScalarValue::Float32(Some(high)))),
                _ => None,
            };
            let nulls = match field.name().as_str() {
                "shard" | "shard_version" | "model" | "row" => Precision::Exact(0),
                "window" | "window_view" => Precision::Absent,
                _ => count(sidecar.unweighed),
            };
            let (low, high) = match bounds.filter(|_| sidecar.rows > 0) {
                Some((low, high)) => (Precision::Exact(low), Precision::Exact(high)),
                None => (Precision::Absent, Precision::Absent),
            };
            *column = ColumnStatistics { null_count: nulls, min_value: low, max_value: high, ..ColumnStatistics::new_unknown() };
        }
        statistics
    }
}

#[async_trait]
impl TableProvider for SidecarTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        // As in `corpus`: the physical optimizer moves the filter into the Parquet scan.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let published = self.published().await.map_err(external)?;
        let files: Vec<PartitionedFile> = published.iter().map(|sidecar| self.file(sidecar)).collect();
        if files.is_empty() {
            let schema = projection.map_or_else(|| Ok(Arc::clone(&self.schema)), |p| self.schema.project(p).map(Arc::new))?;
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        // DataFusion knows a store by scheme and host: one name for each table's own.
        let name = blake3::hash(format!("{} {}", self.location, self.location.path()).as_bytes()).to_hex();
        let url = ObjectStoreUrl::parse(format!("pushpull://weights-{}", &name[..16]))?;
        state.runtime_env().register_object_store(url.as_ref(), Arc::clone(self.location.store()));
        let statistics: Vec<_> = files.iter().map(|file| file.statistics.clone()).collect();
        let source = ParquetSource::new(Arc::clone(&self.schema))
            .with_table_parquet_options(state.table_options().parquet.clone())
            .with_pushdown_filters(true);
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_statistics(scan_statistics(&statistics, &self.schema)?)
            .with_file_groups(FileGroup::new(files).split_files(state.config().target_partitions()))
            .with_limit(limit)
            .with_projection_indices(projection.cloned())?
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// `weights_at(version)`: the table `weights` as a version of the log had it.
#[derive(Debug)]
pub(super) struct WeightsAt(pub(super) Location);

impl TableFunctionImpl for WeightsAt {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> DfResult<Arc<dyn TableProvider>> {
        let version = match args.exprs() {
            [Expr::Literal(ScalarValue::Int64(Some(version)), _)] => *version,
            [Expr::Negative(inner)] if matches!(**inner, Expr::Literal(ScalarValue::Int64(Some(_)), _)) => match &**inner {
                Expr::Literal(ScalarValue::Int64(Some(version)), _) => version.saturating_neg(),
                _ => 0,
            },
            _ => {
                return plan_err!(
                    "weights_at takes the number of a version, as the table `runs` has it, or a negative number that counts back: \
                     weights_at(-1) is the version before the newest"
                );
            }
        };
        Ok(Arc::new(SidecarTable::at_version(self.0.clone(), version)))
    }
}
