//! In: a SQL condition on the columns of `corpus`. Out: for how many rows of each shard it holds. Only the condition's own columns are read.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::ExprSchemable;
use datafusion::prelude::{col, in_list, lit, when};

use super::session::{SqlSession, query_error};
use crate::error::{Error, Result};

/// Names that are written out in the query, so that the scan leaves the other shards alone. A longer list is slower to compare than to read.
const NAMED: usize = 1000;

/// Rows of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowsMet {
    /// Rows for which the condition holds. For a row where it is null it does not.
    pub met: u64,
    /// All rows.
    pub all: u64,
}

/// Counts the rows of each of these shards for which `condition` holds, over the table `corpus`. A shard without rows, or one that the table
/// leaves out, has no entry.
///
/// # Errors
/// [`Error::Query`] for what is no condition: bad SQL, an unknown column, a result that is not true or false, a volatile function such as
/// `random()`, a subquery or an aggregate; and what reading answers.
pub async fn count_rows_met(session: &SqlSession, condition: &str, shards: &BTreeSet<String>) -> Result<BTreeMap<String, RowsMet>> {
    let corpus = session.context().table("corpus").await.map_err(query_error)?;
    let schema = corpus.schema();
    let holds = session.context().parse_sql_expr(condition, schema).map_err(query_error)?;
    let refuse = |what: &str| Err(Error::Query { reason: format!("`{condition}` {what}"), source: None });
    match holds.get_type(schema).map_err(query_error)? {
        DataType::Boolean => {}
        other => return refuse(&format!("is {other}, not true or false")),
    }
    if holds.is_volatile() {
        return refuse("gives another answer each time it is asked: a shard would be taken by chance");
    }
    let met = when(holds, lit(1i64)).end().map_err(query_error)?;
    let mut frame = corpus;
    if shards.len() <= NAMED {
        let names = shards.iter().map(|shard| lit(shard.as_str())).collect();
        frame = frame.filter(in_list(col("shard"), names, false)).map_err(query_error)?;
    }
    let frame = frame.aggregate(vec![col("shard")], vec![count(lit(1i64)).alias("all_rows"), count(met).alias("met_rows")]);
    let batches = frame.map_err(query_error)?.collect().await.map_err(query_error)?;
    let mut counted = BTreeMap::new();
    for batch in &batches {
        let (all, met) = (column(batch, "all_rows")?, column(batch, "met_rows")?);
        let names = arrow::compute::cast(batch.column(0), &DataType::Utf8).map_err(|e| Error::Internal(format!("shard names: {e}")))?;
        for ((shard, all), met) in names.as_string::<i32>().iter().zip(all).zip(met) {
            if let Some(shard) = shard.filter(|shard| shards.contains(*shard)) {
                counted.insert(shard.to_owned(), RowsMet { met, all });
            }
        }
    }
    Ok(counted)
}

fn column(batch: &RecordBatch, name: &str) -> Result<Vec<u64>> {
    let counts = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
    let counts = counts.ok_or_else(|| Error::Internal(format!("no counts in {name}")))?;
    Ok(counts.values().iter().map(|count| u64::try_from(*count).unwrap_or_default()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use std::sync::Arc;

    fn session() -> SqlSession {
        let shard: ArrayRef = Arc::new(StringArray::from(vec!["a", "a", "b", "b", "b", "c"]));
        let n: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(3), None, Some(3), Some(9)]));
        let batch = RecordBatch::try_from_iter_with_nullable([("shard", shard, true), ("n", n, true)]).unwrap();
        let session = SqlSession::new(2);
        session.register_batches("corpus", batch.schema(), vec![batch]).unwrap();
        session
    }

    async fn counted(condition: &str) -> Result<Vec<(String, u64, u64)>> {
        let shards = ["a", "b"].map(str::to_owned).into();
        Ok(count_rows_met(&session(), condition, &shards).await?.into_iter().map(|(shard, rows)| (shard, rows.met, rows.all)).collect())
    }

    #[tokio::test]
    async fn rows_are_counted_by_shard_and_null_does_not_hold() {
        let rows = |a: (u64, u64), b: (u64, u64)| vec![("a".to_owned(), a.0, a.1), ("b".to_owned(), b.0, b.1)];
        assert_eq!(counted("n = 3").await.unwrap(), rows((0, 2), (2, 3)));
        assert_eq!(counted("shard = 'a' or n is null").await.unwrap(), rows((2, 2), (1, 3)));
        assert_eq!(counted("true").await.unwrap(), rows((2, 2), (3, 3)));
        assert_eq!(counted("n > 1 -- and more").await.unwrap(), rows((1, 2), (2, 3)));
    }

    #[tokio::test]
    async fn what_is_no_condition_is_refused() {
        for (sql, part) in [
            ("n +", "query"),
            ("m = 1", "m"),
            ("n + 1", "not true or false"),
            ("random() < 0.5", "each time"),
            ("sum(n) > 1", "query"),
            ("n in (select 1)", "query"),
            ("true) or (n = 1", "query"),
        ] {
            let error = counted(sql).await.unwrap_err().to_string();
            assert!(error.contains(part), "{sql}: {error}");
        }
    }
}
