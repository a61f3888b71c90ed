//! A statement that is planned but not run: its columns, its parameters, and values for them.
//!
//! In: SQL that only reads. Out: the result's schema without reading any row, or the rows. Memory: the plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SQLOptions, SessionContext};

use super::session::{QueryRows, SqlSession, query_error};
use crate::error::{Error, Result};

/// A planned statement, which may have parameters (`$1`, `$2`, …).
#[derive(Debug, Clone)]
pub struct Prepared {
    frame: DataFrame,
}

impl SqlSession {
    /// Plans one statement and does not run it: no row is read. Nothing but reading is possible, whatever [`SqlSession::query`] allows.
    ///
    /// # Errors
    /// [`Error::Query`] for SQL that cannot be planned or that does not only read.
    pub async fn prepare(&self, sql: &str) -> Result<Prepared> {
        let only_read = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let frame = self.context.sql_with_options(sql, only_read).await.map_err(query_error)?;
        Ok(Prepared { frame })
    }

    /// The same session, whose queries take what they collect from `pool` from now on: one budget over many sessions.
    ///
    /// # Errors
    /// If no folder for temporary files can be used.
    pub fn with_memory_pool(mut self, pool: Arc<dyn MemoryPool>) -> Result<Self> {
        let state = self.context.state();
        let runtime = RuntimeEnvBuilder::from_runtime_env(state.runtime_env()).with_memory_pool(pool).build_arc().map_err(query_error)?;
        self.context = SessionContext::new_with_state(SessionStateBuilder::new_from_existing(state).with_runtime_env(runtime).build());
        Ok(self)
    }
}

impl Prepared {
    /// Names and types of the result's columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::new(self.frame.schema().as_arrow().clone())
    }

    /// The parameters in order, each with the type that its place asks for ([`DataType::Null`] where any type will do).
    ///
    /// # Errors
    /// [`Error::Query`] for a parameter that is not `$1`, `$2`, … in a row without a gap.
    pub fn parameters(&self) -> Result<Schema> {
        let types = self.frame.logical_plan().get_parameter_types().map_err(query_error)?;
        let mut in_order = BTreeMap::new();
        for (name, data_type) in types {
            let Some(position) = name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()) else {
                return Err(Error::Query { reason: format!("parameter `{name}`: only $1, $2, … can be used"), source: None });
            };
            in_order.insert(position, Field::new(name, data_type.unwrap_or(DataType::Null), true));
        }
        if let Some((missing, _)) = (1..).zip(in_order.keys()).find(|(expected, position)| expected != *position) {
            return Err(Error::Query {
                reason: format!("parameter ${missing} is missing: they count from $1 without a gap"),
                source: None,
            });
        }
        Ok(Schema::new(in_order.into_values().collect::<Vec<_>>()))
    }

    /// The statement with the first row of `values` for its parameters, column by column.
    ///
    /// # Errors
    /// [`Error::Query`] if there isn't exactly one row, if there are too few or too many columns, or if a value has a type that its
    /// place cannot take.
    pub fn bind(self, values: &RecordBatch) -> Result<Self> {
        let wanted = self.parameters()?.fields().len();
        if values.num_rows() != 1 || values.num_columns() != wanted {
            let reason = format!(
                "one row with {wanted} values is needed for its parameters, got {} with {}",
                values.num_rows(),
                values.num_columns()
            );
            return Err(Error::Query { reason, source: None });
        }
        let scalars = values.columns().iter().map(|column| ScalarValue::try_from_array(column, 0));
        let scalars = scalars.collect::<std::result::Result<Vec<_>, _>>().map_err(query_error)?;
        let frame = self.frame.with_param_values(ParamValues::from(scalars)).map_err(query_error)?;
        Ok(Self { frame })
    }

    /// Starts to run the statement.
    ///
    /// # Errors
    /// As [`SqlSession::query`]; [`Error::Query`] if a parameter has no value yet.
    pub async fn run(self) -> Result<QueryRows> {
        let open = self.frame.logical_plan().get_parameter_names().map_err(query_error)?;
        if let Some(first) = open.iter().min() {
            return Err(Error::Query { reason: format!("parameter {first} has no value: bind one"), source: None });
        }
        let rows = self.frame.execute_stream().await.map_err(query_error)?;
        Ok(QueryRows { rows })
    }
}
