//! In: a SQL condition on a corpus's own columns. Out: for which rows of a record batch it holds. No table is needed: the condition is
//! evaluated on batches as they are read.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::SessionContext;

use super::session::query_error;
use crate::error::{Error, Result};

/// A condition such as `source = 'wikipedia' and length(response) > 100`.
pub struct Predicate {
    sql: String,
    context: SessionContext,
    columns: Vec<String>,
    /// Planned for the schema that was seen last.
    planned: Option<(SchemaRef, Arc<dyn PhysicalExpr>)>,
}

impl std::fmt::Debug for Predicate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Predicate").field("sql", &self.sql).field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl Predicate {
    /// Plans a condition for rows of this schema.
    ///
    /// # Errors
    /// [`Error::Query`] for what is no condition: bad SQL, an unknown column, a result that is not true or false, a subquery.
    pub fn try_new(sql: &str, schema: SchemaRef) -> Result<Self> {
        let mut predicate = Self { sql: sql.to_owned(), context: SessionContext::new(), columns: Vec::new(), planned: None };
        let expression = predicate.context.parse_sql_expr(sql, &fields(&schema)?).map_err(query_error)?;
        predicate.columns = expression.column_refs().into_iter().map(|column| column.name.clone()).collect();
        predicate.columns.sort_unstable();
        predicate.plan(&schema)?;
        Ok(predicate)
    }

    /// The columns it reads, sorted; a batch needs no other.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Whether it holds for each row; where it is null it does not. Batches may differ in their columns' types.
    ///
    /// # Errors
    /// [`Error::Query`] where it cannot be computed on these rows.
    pub fn holds(&mut self, batch: &RecordBatch) -> Result<BooleanArray> {
        let value = self.plan(&batch.schema())?.evaluate(batch).and_then(|value| value.into_array(batch.num_rows()));
        let value = value.map_err(query_error)?;
        Ok(value.as_boolean().iter().map(|holds| Some(holds == Some(true))).collect())
    }

    fn plan(&mut self, schema: &SchemaRef) -> Result<Arc<dyn PhysicalExpr>> {
        if let Some((planned, expression)) = &self.planned
            && planned == schema
        {
            return Ok(Arc::clone(expression));
        }
        let fields = fields(schema)?;
        let expression = self.context.parse_sql_expr(&self.sql, &fields).map_err(query_error)?;
        let expression = self.context.create_physical_expr(expression, &fields).map_err(query_error)?;
        match expression.data_type(schema).map_err(query_error)? {
            DataType::Boolean => {}
            other => {
                let reason = format!("`{}` is {other}, not true or false", self.sql);
                return Err(Error::Query { reason, source: None });
            }
        }
        self.planned = Some((Arc::clone(schema), Arc::clone(&expression)));
        Ok(expression)
    }
}

fn fields(schema: &Schema) -> Result<DFSchema> {
    DFSchema::try_from(schema.clone()).map_err(query_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array, LargeStringArray, StringArray};

    fn batch(text: ArrayRef) -> RecordBatch {
        let number: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), None]));
        RecordBatch::try_from_iter_with_nullable([("text", text, true), ("n", number, true)]).unwrap()
    }

    #[test]
    fn holds_row_by_row_whatever_the_string_type() {
        let batches =
            [batch(Arc::new(StringArray::from(vec!["a", "bb", "ccc"]))), batch(Arc::new(LargeStringArray::from(vec!["a", "bb", "ccc"])))];
        for (sql, expected) in [
            ("text = 'bb' or n = 1", [true, true, false]),
            ("n > 1", [false, true, false]),
            ("length(text) % 2 = 1", [true, false, true]),
            ("text in ('a', 'ccc') and n is null", [false, false, true]),
        ] {
            let mut predicate = Predicate::try_new(sql, batches[0].schema()).unwrap();
            for batch in &batches {
                assert_eq!(predicate.holds(batch).unwrap(), BooleanArray::from(expected.to_vec()), "{sql}");
            }
        }
        let predicate = Predicate::try_new("n > 1 and text <> 'x' and n < 9", batches[0].schema()).unwrap();
        assert_eq!(predicate.columns(), ["n", "text"]);
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        let schema = batch(Arc::new(StringArray::from(vec!["a", "b", "c"]))).schema();
        for (sql, part) in [
            ("n +", "query"),
            ("texts = 'a'", "texts"),
            ("n + 1", "not true or false"),
            ("n in (select 1)", "query"),
            ("sum(n) > 1", "query"),
            ("n > 1; drop table x", "query"),
        ] {
            let error = Predicate::try_new(sql, Arc::clone(&schema)).unwrap_err().to_string();
            assert!(error.contains(part), "{sql}: {error}");
        }
    }
}
