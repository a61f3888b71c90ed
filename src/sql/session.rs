//! A DataFusion session for queries: in go tables and SQL, out come streams of record batches.
//!
//! A session reads its tables and nothing else: no file or URL can be named in a query. `COPY (…) TO` writes files where that was allowed
//! ([`SqlSession::allow_writing`]). Statements that change tables or the session (`INSERT`, `CREATE`, `SET`) are always refused: the weights
//! table has one writer.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::TryStreamExt;
use parquet::errors::ParquetError;

use super::cooperation::JoinsGiveWay;
use super::register::{register_plain_functions, register_table};
use super::write::{WriteTargets, check};
use crate::error::{BoxError, Error, Result};

/// Tables by name, and queries over them.
pub struct SqlSession {
    pub(super) context: SessionContext,
    targets: Option<WriteTargets>,
}

impl std::fmt::Debug for SqlSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlSession").field("session", &self.context.session_id()).finish_non_exhaustive()
    }
}

impl SqlSession {
    /// A session without tables whose scans run in `threads` partitions (at least one).
    pub fn new(threads: usize) -> Self {
        Self::with_config(SessionConfig::new().with_target_partitions(threads.max(1)))
    }

    /// As [`SqlSession::new`], with a budget of `bytes` for what queries collect (sorts, groups, joins); sorts and groups beyond it
    /// go to temporary files. Decoded batches on their way are not counted.
    ///
    /// # Errors
    /// If no folder for temporary files can be used.
    pub fn with_memory(threads: usize, bytes: usize) -> Result<Self> {
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(bytes))).build_arc().map_err(query_error)?;
        Ok(Self::build(SessionConfig::new().with_target_partitions(threads.max(1)), runtime))
    }

    /// A session with DataFusion's own options. `information_schema` is switched on, so that `SHOW TABLES` works.
    pub fn with_config(config: SessionConfig) -> Self {
        Self::build(config, Arc::default())
    }

    fn build(mut config: SessionConfig, runtime: Arc<RuntimeEnv>) -> Self {
        // DataFusion 55 loses rows of `min` and `max` over a column that some files lack, as any base column may be
        // (https://github.com/apache/datafusion/issues/25147).
        config.options_mut().optimizer.enable_aggregate_dynamic_filter_pushdown = false;
        // "The highest weights" are not the rows without one.
        config.options_mut().sql_parser.default_null_ordering = "nulls_last".to_owned();
        let state = SessionStateBuilder::new()
            .with_config(config.with_information_schema(true))
            .with_runtime_env(runtime)
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(JoinsGiveWay))
            .build();
        let context = SessionContext::new_with_state(state);
        register_plain_functions(&context);
        Self { context, targets: None }
    }

    /// Lets queries write files: `COPY (query) TO 's3://…'`, where `targets` has no objection.
    #[must_use]
    pub fn allow_writing(mut self, targets: WriteTargets) -> Self {
        self.targets = Some(targets);
        self
    }

    /// DataFusion's context, for functions and settings of your own.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Makes `table` known as `name`, to be written in SQL as it is (in double quotes if it has capitals); replaces a table of that
    /// name.
    ///
    /// # Errors
    /// If DataFusion refuses the name.
    pub fn register_table(&self, name: &str, table: Arc<dyn TableProvider>) -> Result<()> {
        register_table(&self.context, name, table)
    }

    /// Makes record batches in memory known as the table `name`; no batches is an empty table.
    ///
    /// # Errors
    /// If a batch has another schema.
    pub fn register_batches(&self, name: &str, schema: SchemaRef, batches: Vec<RecordBatch>) -> Result<()> {
        let table = MemTable::try_new(schema, vec![batches]).map_err(query_error)?;
        self.register_table(name, Arc::new(table))
    }

    /// Plans one statement and starts to run it. Rows come as they are found; without `ORDER BY` their order is not defined.
    ///
    /// # Errors
    /// [`Error::Query`] for SQL that cannot be planned, that changes something, or that writes where that is not allowed; an error that names
    /// the shard for a shard that changed since it was weighed.
    pub async fn query(&self, sql: &str) -> Result<QueryRows> {
        let plan = self.context.state().create_logical_plan(sql).await.map_err(query_error)?;
        let plan = check(plan, &self.context, self.targets.as_ref())?;
        let rows = DataFrame::new(self.context.state(), plan).execute_stream().await.map_err(query_error)?;
        Ok(QueryRows { rows })
    }
}

/// The rows of a query, as they are found.
pub struct QueryRows {
    pub(super) rows: SendableRecordBatchStream,
}

impl std::fmt::Debug for QueryRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryRows").field("schema", &self.rows.schema()).finish_non_exhaustive()
    }
}

impl QueryRows {
    /// Names and types of the result's columns.
    pub fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    /// The next rows; `None` after the last.
    ///
    /// # Errors
    /// A shard that cannot be read, or a value the query cannot compute with.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        self.rows.try_next().await.map_err(query_error)
    }

    /// All rows, in memory.
    ///
    /// # Errors
    /// As [`QueryRows::next`].
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>> {
        let mut batches = vec![];
        while let Some(batch) = self.next().await? {
            batches.push(batch);
        }
        Ok(batches)
    }
}

/// Our own error if DataFusion carries one, else [`Error::Query`] with DataFusion's text.
pub(super) fn query_error(error: DataFusionError) -> Error {
    let reason = error.strip_backtrace();
    match own_error(Box::new(error)) {
        Ok(own) => own,
        Err(source) => Error::Query { reason, source: Some(source) },
    }
}

/// Unwraps the errors that DataFusion, Arrow and Parquet put around a reader's own.
fn own_error(error: BoxError) -> std::result::Result<Error, BoxError> {
    let error = match error.downcast::<Error>() {
        Ok(own) => return Ok(*own),
        Err(other) => other,
    };
    let error = match error.downcast::<DataFusionError>() {
        Ok(wrapped) => {
            return match *wrapped {
                DataFusionError::External(inner) => own_error(inner),
                DataFusionError::Context(_, inner) => own_error(inner),
                DataFusionError::ParquetError(inner) => own_error(inner),
                DataFusionError::ArrowError(inner, _) => own_error(inner),
                DataFusionError::Shared(inner) => match Arc::try_unwrap(inner) {
                    Ok(inner) => own_error(Box::new(inner)),
                    Err(shared) => Err(Box::new(DataFusionError::Shared(shared))),
                },
                other => Err(Box::new(other)),
            };
        }
        Err(other) => other,
    };
    let error = match error.downcast::<ParquetError>() {
        Ok(wrapped) => {
            return match *wrapped {
                ParquetError::External(inner) => own_error(inner),
                other => Err(Box::new(other)),
            };
        }
        Err(other) => other,
    };
    match error.downcast::<ArrowError>() {
        Ok(wrapped) => match *wrapped {
            ArrowError::ExternalError(inner) => own_error(inner),
            other => Err(Box::new(other)),
        },
        Err(other) => Err(other),
    }
}
