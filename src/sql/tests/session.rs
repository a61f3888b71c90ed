//! Sessions refuse what does not read, and results have the form that was asked for.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, ListBuilder, RecordBatch, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::lines;
use crate::error::Error;
use crate::sql::{OutputFormat, SqlSession, write_batches, write_rows};

fn small() -> (SchemaRef, Vec<RecordBatch>) {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("name", Arc::new(StringArray::from(vec![Some("a, \"b\""), None]))),
        ("weight", Arc::new(Float32Array::from(vec![Some(0.5), None]))),
    ];
    let schema = Arc::new(Schema::new(columns.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), true)).collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, a)| a).collect()).unwrap();
    (schema, vec![batch])
}

fn session() -> SqlSession {
    let session = SqlSession::new(2);
    let (schema, batches) = small();
    session.register_batches("t", schema, batches).unwrap();
    session
}

#[tokio::test]
async fn only_statements_that_read() {
    let session = session();
    for sql in
        ["create table u as select * from t", "insert into t values ('x', 1)", "set datafusion.execution.batch_size = 1", "drop table t"]
    {
        let error = session.query(sql).await.unwrap_err();
        assert!(matches!(error, Error::Query { .. }), "{sql}: {error}");
        assert!(error.to_string().contains("not supported"), "{sql}: {error}");
    }
    let error = session.query("copy t to '/tmp/x.csv'").await.unwrap_err();
    assert!(error.to_string().contains("--allow-write"), "{error}");
    assert!(lines(&session, "show tables").await.unwrap().iter().any(|l| l.contains(" | t | ")));
    assert_eq!(lines(&session, "describe t").await.unwrap().len(), 2);
    assert!(!lines(&session, "explain select * from t").await.unwrap().is_empty());
    assert_eq!(lines(&session, "select count(*) from t; -- and no more").await.unwrap(), ["2"]);
    assert!(session.query("select 1; select 2").await.is_err());
}

#[tokio::test]
async fn a_query_that_cannot_be_planned_says_why() {
    let error = session().query("select wieght from t").await.unwrap_err();
    assert!(error.to_string().starts_with("query: Schema error: No field named wieght"), "{error}");
    assert!(session().query("select").await.is_err());
    let error = lines(&session(), "select cast(name as int) from t").await.unwrap_err();
    assert!(matches!(error, Error::Query { .. }), "{error}");
}

#[tokio::test]
async fn a_table_can_be_replaced_and_be_empty() {
    let session = session();
    session.register_batches("t", small().0, vec![]).unwrap();
    assert_eq!(lines(&session, "select count(*) from t").await.unwrap(), ["0"]);
    let other: SchemaRef = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true)]));
    assert!(session.register_batches("u", other, small().1).is_err());
}

async fn written(format: OutputFormat, sql: &str) -> Vec<u8> {
    let mut out = vec![];
    write_rows(format, session().query(sql).await.unwrap(), &mut out).await.unwrap();
    out
}

#[tokio::test]
async fn the_four_formats() {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert_eq!(text(written(OutputFormat::Csv, "select * from t").await), "name,weight\n\"a, \"\"b\"\"\",0.5\n,\n");
    assert_eq!(
        text(written(OutputFormat::Json, "select * from t").await),
        "{\"name\":\"a, \\\"b\\\"\",\"weight\":0.5}\n{\"name\":null,\"weight\":null}\n"
    );
    let table = text(written(OutputFormat::Table, "select * from t").await);
    assert!(table.lines().nth(1).unwrap().starts_with("| name "), "{table}");
    let parquet = written(OutputFormat::Parquet, "select * from t").await;
    let rows: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(parquet)).unwrap().build().unwrap().collect();
    assert_eq!(rows[0].as_ref().unwrap().columns(), small().1[0].columns());
}

#[tokio::test]
async fn no_rows_in_each_format() {
    let none = "select * from t where weight > 1";
    assert_eq!(written(OutputFormat::Csv, none).await, b"name,weight\n");
    assert_eq!(written(OutputFormat::Json, none).await, b"");
    assert!(String::from_utf8(written(OutputFormat::Table, none).await).unwrap().contains("| name"));
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(written(OutputFormat::Parquet, none).await)).unwrap();
    assert_eq!(reader.schema().fields().len(), 2);
}

#[tokio::test]
async fn a_sort_beyond_the_budget_goes_to_disk() {
    let lake = super::shards::parquet_lake().await;
    let session = SqlSession::with_memory(2, 64 << 20).unwrap();
    session.register_table("corpus", Arc::new(lake.table().await.unwrap())).unwrap();
    // 64 copies of each row: some 200 MB.
    let sql = "select count(*), max(place) from (select row_number() over (order by c.text, b.value) as place, c.text as text
               from corpus c cross join (select unnest(range(0, 64)) as value) b) where text is not null";
    let counted = lines(&session, "select count(text) * 64 from corpus").await.unwrap();
    let found = lines(&session, sql).await.unwrap();
    assert!(found[0].starts_with(&format!("{} | ", counted[0])), "{found:?} {counted:?}");
}

#[test]
fn csv_refuses_nested_columns_by_name() {
    let mut list = ListBuilder::new(StringBuilder::new());
    list.append_value([Some("x")]);
    let array = Arc::new(list.finish()) as ArrayRef;
    let schema = Arc::new(Schema::new(vec![Field::new("tags", array.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![array]).unwrap();
    let error = write_batches(OutputFormat::Csv, &schema, std::slice::from_ref(&batch), vec![]).unwrap_err();
    assert!(error.to_string().contains("column `tags`"), "{error}");
    let mut json = vec![];
    write_batches(OutputFormat::Json, &schema, &[batch], &mut json).unwrap();
    assert_eq!(json, b"{\"tags\":[\"x\"]}\n");
}

#[test]
fn a_format_is_named_or_the_nearest_is_told() {
    assert_eq!("json".parse::<OutputFormat>().unwrap(), OutputFormat::Json);
    let error = "jsn".parse::<OutputFormat>().unwrap_err().to_string();
    assert!(error.contains("did you mean `json`?"), "{error}");
}

struct Full;

impl std::io::Write for Full {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_pipe_can_be_told_from_other_failures() {
    let (schema, batches) = small();
    for format in [OutputFormat::Table, OutputFormat::Csv, OutputFormat::Json, OutputFormat::Parquet] {
        let error = write_batches(format, &schema, &batches, Full).unwrap_err();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        let mut kinds = vec![];
        while let Some(next) = cause {
            kinds.extend(next.downcast_ref::<std::io::Error>().map(std::io::Error::kind));
            cause = next.source();
        }
        assert!(kinds.contains(&std::io::ErrorKind::BrokenPipe), "{format:?}: {error:?}");
    }
}
