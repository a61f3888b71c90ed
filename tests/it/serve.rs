//! `pushpull serve`, asked by Arrow's own Flight SQL client and by the ADBC driver.

use crate::support::{Lake, needs, python, script, text};
use arrow::array::{ArrayRef, AsArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use arrow_flight::FlightInfo;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo, SqlInfo};
use futures::TryStreamExt;
use pushpull::sql::{OutputFormat, write_batches};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

type Client = FlightSqlServiceClient<Channel>;

/// A running server, killed when dropped.
struct Served {
    child: Child,
    address: String,
    log: Option<std::thread::JoinHandle<String>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    fn start(lake: &Lake, arguments: &[&str]) -> Self {
        let all = [&["serve", "job.toml", "--listen", "127.0.0.1:0", "--json", "-v"], arguments].concat();
        let mut child = lake.command(&all).env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = said.read_to_end(&mut bytes);
            text(&bytes)
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        Self { child, address: ready["address"].as_str().unwrap().to_owned(), log: Some(log) }
    }

    async fn client(&self) -> Client {
        Client::new(Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap())
    }

    fn terminate(&self) {
        assert!(std::process::Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status().unwrap().success());
    }

    /// Waits for the end of the process: its exit code and everything it said.
    fn ended(&mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        (status.code(), self.log.take().unwrap().join().unwrap())
    }
}

fn weighed() -> Lake {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    lake
}

async fn stream(client: &mut Client, info: FlightInfo) -> Result<FlightRecordBatchStream, FlightError> {
    client.do_get(info.endpoint[0].ticket.clone().unwrap()).await
}

async fn query(client: &mut Client, sql: &str) -> Result<Vec<RecordBatch>, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    stream(client, info).await?.try_collect().await
}

async fn count(client: &mut Client, sql: &str) -> i64 {
    query(client, sql).await.unwrap()[0].column(0).as_primitive::<Int64Type>().value(0)
}

fn json(batches: &[RecordBatch]) -> Vec<serde_json::Value> {
    let Some(first) = batches.first() else { return Vec::new() };
    let mut out = Vec::new();
    write_batches(OutputFormat::Json, &first.schema(), batches, &mut out).unwrap();
    text(&out).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refusal(error: FlightError) -> (Code, String) {
    match error {
        FlightError::Tonic(status) => (status.code(), status.message().to_owned()),
        other => panic!("{other:?}"),
    }
}

fn strings(batches: &[RecordBatch], column: &str) -> Vec<String> {
    batches.iter().flat_map(|b| b.column_by_name(column).unwrap().as_string::<i32>().iter().map(|v| v.unwrap().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_those_of_pushpull_sql() {
    let lake = weighed();
    let served = Served::start(&lake, &[]);
    let mut client = served.client().await;
    let file = std::fs::read_to_string(format!("{}/queries/best_80_percent.sql", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let best = format!("select * from (\n{file}\n) order by shard, row");
    for sql in [
        "select * from corpus order by shard, row",
        "select shard, count(*) n, avg(weight) w from corpus group by shard order by shard",
        "select text, weight from corpus where weight > 2 order by weight desc limit 7",
        "select id from corpus where weight > 1e9",
        "select * from models",
        "select * from runs",
        "select * from shards order by shard",
        "select * from \"references\" order by side, id",
        "select * from hygiene order by finding, id",
        "select table_name, column_name, data_type from information_schema.columns order by table_name, ordinal_position",
        best.as_str(),
    ] {
        let expected = lake.sql(sql);
        assert_eq!(json(&query(&mut client, sql).await.unwrap()), expected, "{sql}");
        let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
        let info = prepared.execute().await.unwrap();
        let batches: Vec<RecordBatch> = stream(&mut client, info).await.unwrap().try_collect().await.unwrap();
        assert_eq!(json(&batches), expected, "{sql}");
        if let Some(first) = batches.first() {
            assert_eq!(prepared.dataset_schema().unwrap().fields().len(), first.num_columns());
        }
        prepared.close().await.unwrap();
    }
    assert_eq!(count(&mut client, "select count(*) from corpus").await, 410);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_comes_before_the_rows_and_without_them() {
    let lake = weighed();
    let served = Served::start(&lake, &[]);
    let mut client = served.client().await;
    let info = client.execute("select id, weight, row, arrow_cast(id, 'Utf8View') v from corpus where false".into(), None).await.unwrap();
    let promised = info.clone().try_decode_schema().unwrap();
    let types: Vec<&DataType> = promised.fields().iter().map(|f| f.data_type()).collect();
    assert_eq!(types, [&DataType::LargeUtf8, &DataType::Float32, &DataType::Int64, &DataType::Utf8]);
    let mut empty = stream(&mut client, info).await.unwrap();
    let batches: Vec<RecordBatch> = (&mut empty).try_collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    let types: Vec<DataType> = empty.schema().unwrap().fields().iter().map(|f| f.data_type().clone()).collect();
    assert_eq!(types, [DataType::LargeUtf8, DataType::Float32, DataType::Int64, DataType::Utf8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_find_tables_columns_and_abilities() {
    let lake = weighed();
    let served = Served::start(&lake, &[]);
    let mut client = served.client().await;
    let info = client.get_catalogs().await.unwrap();
    let catalogs: Vec<RecordBatch> = stream(&mut client, info).await.unwrap().try_collect().await.unwrap();
    assert_eq!(strings(&catalogs, "catalog_name"), ["datafusion"]);
    let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
    let schemas: Vec<RecordBatch> = stream(&mut client, info).await.unwrap().try_collect().await.unwrap();
    assert!(strings(&schemas, "db_schema_name").contains(&"public".to_owned()));

    let info = client.get_tables(CommandGetTables { include_schema: true, ..Default::default() }).await.unwrap();
    let tables: Vec<RecordBatch> = stream(&mut client, info).await.unwrap().try_collect().await.unwrap();
    let names = strings(&tables, "table_name");
    for name in ["corpus", "references", "shards", "runs", "models", "hygiene"] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
    let at = names.iter().position(|name| name == "corpus").unwrap();
    let bytes = tables[0].column_by_name("table_schema").unwrap().as_binary::<i32>().value(at);
    let schema = arrow::ipc::convert::try_schema_from_ipc_buffer(bytes).unwrap();
    assert_eq!(schema.field_with_name("weight").unwrap().data_type(), &DataType::Float32);
    assert_eq!(schema.field_with_name("text").unwrap().data_type(), &DataType::LargeUtf8);

    let filter =
        CommandGetTables { table_name_filter_pattern: Some("mod%".into()), table_types: vec!["TABLE".into()], ..Default::default() };
    let info = client.get_tables(filter).await.unwrap();
    let tables: Vec<RecordBatch> = stream(&mut client, info).await.unwrap().try_collect().await.unwrap();
    assert_eq!(strings(&tables, "table_name"), ["models"]);

    let info = client.get_table_types().await.unwrap();
    let types: Vec<RecordBatch> = stream(&mut client, info).await.unwrap().try_collect().await.unwrap();
    assert_eq!(strings(&types, "table_type"), ["TABLE", "VIEW"]);
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName, SqlInfo::FlightSqlServerReadOnly]).await.unwrap();
    let abilities: Vec<RecordBatch> = stream(&mut client, info).await.unwrap().try_collect().await.unwrap();
    let values = abilities[0].column(1).as_union();
    assert_eq!(abilities[0].num_rows(), 2);
    assert_eq!(values.value(0).as_string::<i32>().value(0), "pushpull");
    assert!(values.value(1).as_boolean().value(0), "read only");
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    let types: Vec<RecordBatch> = stream(&mut client, info).await.unwrap().try_collect().await.unwrap();
    assert!(strings(&types, "type_name").contains(&"VARCHAR".to_owned()));
    let keys = CommandGetPrimaryKeys { catalog: None, db_schema: None, table: "corpus".into() };
    let info = client.get_primary_keys(keys).await.unwrap();
    let mut keys = stream(&mut client, info).await.unwrap();
    assert_eq!((&mut keys).try_collect::<Vec<_>>().await.unwrap().len(), 0);
    assert_eq!(keys.schema().unwrap().field(3).name(), "column_name");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_queries_and_writes_are_refused_and_change_nothing() {
    let lake = weighed();
    let served = Served::start(&lake, &["--memory", "64KiB"]);
    let mut client = served.client().await;
    let before = lake.sidecars("output");
    for (sql, says) in [
        ("select wieght from corpus", "wieght"),
        ("select * from nothing", "nothing"),
        ("selec 1", "Expected"),
        ("insert into models select * from models", "DML not supported"),
        ("create table t as select 1", "DDL not supported"),
        ("drop table corpus", "DDL not supported"),
        ("copy (select 1) to 'x.parquet'", "DML not supported"),
        ("set datafusion.execution.batch_size = 1", "Statement not supported"),
        ("create external table t stored as csv location '/etc/passwd'", "DDL not supported"),
        ("select * from '/etc/passwd'", "not found"),
    ] {
        let (code, message) = refusal(query(&mut client, sql).await.unwrap_err());
        assert_eq!(code, Code::InvalidArgument, "{sql}: {message}");
        assert!(message.contains(says), "{sql}: {message}");
        assert!(!lake.path("x.parquet").exists());
    }
    // An error while rows are found is an error of the stream, after the rows before it.
    let (code, message) = refusal(query(&mut client, "select 1 / (row - 50) from corpus").await.unwrap_err());
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(message.contains("Divide by zero"), "{message}");
    let pairs = "(select a.text t, b.row r from corpus a, corpus b)";
    let large = format!("select count(*) from {pairs} x join {pairs} y on x.t = y.t and x.r = y.r");
    let (code, message) = refusal(query(&mut client, &large).await.unwrap_err());
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    let update = client.execute_update("delete from corpus".into(), None).await.unwrap_err();
    let (code, message) = refusal(update);
    assert!(code == Code::InvalidArgument && message.contains("only reads"), "{message}");
    let (code, message) = refusal(client.execute("select 1".into(), Some("t".into())).await.unwrap_err());
    assert!(code == Code::InvalidArgument && message.contains("transactions"), "{message}");
    let ticket = arrow_flight::Ticket::new("not ours");
    assert!(client.do_get(ticket).await.is_err());
    assert_eq!(lake.sidecars("output"), before);
    // It is still there.
    assert_eq!(count(&mut client, "select count(*) from models").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_take_values() {
    let lake = weighed();
    let served = Served::start(&lake, &[]);
    let mut client = served.client().await;
    let sql = "select id from corpus where weight > $2 and shard = $1 order by id";
    let mut prepared = client.prepare(sql.into(), None).await.unwrap();
    let parameters = prepared.parameter_schema().unwrap().clone();
    let types: Vec<&DataType> = parameters.fields().iter().map(|f| f.data_type()).collect();
    assert_eq!(types.len(), 2);
    assert_eq!(types[1], &DataType::Float32);
    let unbound = prepared.execute().await.unwrap();
    let (code, message) = refusal(stream(&mut client, unbound).await.map(drop).unwrap_err());
    assert!(code == Code::InvalidArgument && message.contains("$1 has no value"), "{message}");
    for (shard, least) in [("part-0001.parquet", 1.0_f32), ("part-0004.arrow", 2.0), ("none", 0.0)] {
        let values: [(&str, ArrayRef); 2] =
            [("$1", Arc::new(StringArray::from(vec![shard]))), ("$2", Arc::new(Float32Array::from(vec![least])))];
        prepared.set_parameters(RecordBatch::try_from_iter(values).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        let batches: Vec<RecordBatch> = stream(&mut client, info).await.unwrap().try_collect().await.unwrap();
        let expected = lake.sql(&format!("select id from corpus where weight > {least} and shard = '{shard}' order by id"));
        assert_eq!(json(&batches), expected);
    }
    let one: [(&str, ArrayRef); 1] = [("$1", Arc::new(StringArray::from(vec!["a"])))];
    prepared.set_parameters(RecordBatch::try_from_iter(one).unwrap()).unwrap();
    let (code, message) = refusal(prepared.execute().await.unwrap_err());
    assert!(code == Code::InvalidArgument && message.contains("one row with 2 values"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_and_never_said() {
    let lake = weighed().with_environment(&[("PUSHPULL_SERVE_TOKEN", "correct-horse")]);
    let mut served = Served::start(&lake, &[]);
    let mut client = served.client().await;
    let (code, message) = refusal(query(&mut client, "select 1").await.unwrap_err());
    assert!(code == Code::Unauthenticated && message.contains("token"), "{message}");
    client.set_token("wrong-horse".into());
    assert_eq!(refusal(query(&mut client, "select 1").await.unwrap_err()).0, Code::Unauthenticated);
    client.clear_token();
    assert!(client.handshake("anyone", "wrong-horse").await.is_err());
    client.handshake("anyone", "correct-horse").await.unwrap();
    assert_eq!(count(&mut client, "select count(*) from corpus").await, 410);
    let mut other = served.client().await;
    other.set_token("correct-horse".into());
    assert_eq!(count(&mut other, "select count(*) from corpus").await, 410);
    drop((client, other));
    served.terminate();
    let (code, log) = served.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("horse"), "{log}");
}

#[test]
fn without_a_token_only_this_machine_is_served() {
    let lake = weighed();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let error = lake.error(&["serve", "job.toml", "--listen", address]);
        assert!(error.contains("PUSHPULL_SERVE_TOKEN"), "{error}");
    }
    assert!(Lake::new().error(&["serve", "job.toml", "--listen", "127.0.0.1:0"]).contains("`pushpull run` makes it"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = lake.error(&["serve", "job.toml", "--listen", &taken.local_addr().unwrap().to_string()]);
    assert!(error.contains("cannot listen on 127.0.0.1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_is_seen_and_a_running_query_keeps_the_old_one() {
    let lake = weighed();
    let served = Served::start(&lake, &["--refresh", "0"]);
    let mut client = served.client().await;
    let weights = "select count(weight) from corpus";
    let before = count(&mut client, weights).await;
    let info = client.execute("select a.weight, b.text from corpus a, corpus b".into(), None).await.unwrap();
    let late = client.execute(weights.into(), None).await.unwrap();
    let mut running = stream(&mut client, info).await.unwrap();
    let first = running.try_next().await.unwrap().unwrap().num_rows();

    std::fs::copy(lake.path("corpus/part-0000.parquet"), lake.path("corpus/part-0009.parquet")).unwrap();
    assert_eq!(count(&mut client, weights).await, before, "a shard that is new has no weights");
    assert!(count(&mut client, "select count(*) from corpus").await > 410);
    lake.json(&["weigh", "job.toml"], 0);
    let after = count(&mut client, weights).await;
    assert!(after > before);
    assert_eq!(count(&mut client, "select count(*) from runs").await, 2);
    // A ticket is its statement: it is run when it is fetched.
    let batches: Vec<RecordBatch> = stream(&mut client, late).await.unwrap().try_collect().await.unwrap();
    assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), after);

    let rest: Vec<RecordBatch> = running.try_collect().await.unwrap();
    assert_eq!(first + rest.iter().map(RecordBatch::num_rows).sum::<usize>(), 410 * 410);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_queries_at_once_all_get_their_rows() {
    let lake = weighed();
    let served = Served::start(&lake, &["--max-queries", "3"]);
    let client = served.client().await;
    let sql = "select shard, row, weight, text from corpus order by shard, row";
    let expected = lake.sql(sql);
    let asked = (0..40).map(|_| {
        let mut client = Client::new_from_inner(client.inner().clone());
        tokio::spawn(async move { json(&query(&mut client, sql).await.unwrap()) })
    });
    for answer in asked.collect::<Vec<_>>() {
        assert_eq!(answer.await.unwrap(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_stops_its_query() {
    let lake = weighed();
    let mut served = Served::start(&lake, &["--max-queries", "1"]);
    let mut client = served.client().await;
    // 69 million rows of texts, as a stream of them and as one value.
    let triples = "corpus a, corpus b, corpus c";
    for sql in [
        format!("select a.text, b.response from {triples}"),
        format!("select max(concat(a.text, b.text, c.text, a.response, b.response, c.response)) from {triples}"),
    ] {
        let info = client.execute(sql, None).await.unwrap();
        let mut rows = stream(&mut client, info).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(2), rows.try_next()).await;
        drop(rows);
        // The only turn is free again at once.
        let asked = Instant::now();
        let one = tokio::time::timeout(Duration::from_secs(20), count(&mut client, "select count(*) from models")).await;
        assert_eq!(one.expect("the query before was not stopped"), 1);
        assert!(asked.elapsed() < Duration::from_secs(20));
    }
    drop(client);
    served.terminate();
    let (code, log) = served.ended();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(log.matches("its client is gone").count(), 2, "{log}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_costs_no_memory() {
    let lake = weighed();
    let served = Served::start(&lake, &[]);
    let mut client = served.client().await;
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", served.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    // 69 million rows of texts: many gigabytes if they were made ahead.
    let info = client.execute("select a.text, b.response, c.prompt from corpus a, corpus b, corpus c".into(), None).await.unwrap();
    let mut rows = stream(&mut client, info).await.unwrap();
    rows.try_next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let early = resident();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let late = resident();
    assert!(late < early + 64, "{early} MiB, then {late} MiB");
    rows.try_next().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_stop_it_finishes_what_runs_and_takes_nothing_new() {
    let lake = weighed();
    let mut served = Served::start(&lake, &[]);
    let mut client = served.client().await;
    let info = client.execute("select a.text, b.response from corpus a, corpus b".into(), None).await.unwrap();
    let mut rows = stream(&mut client, info).await.unwrap();
    let first = rows.try_next().await.unwrap().unwrap().num_rows();
    served.terminate();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(Endpoint::from_shared(format!("http://{}", served.address)).unwrap().connect().await.is_err());
    let rest: Vec<RecordBatch> = rows.try_collect().await.unwrap();
    assert_eq!(first + rest.iter().map(RecordBatch::num_rows).sum::<usize>(), 410 * 410);
    let (code, log) = served.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopping"), "{log}");
}

#[test]
fn the_adbc_driver_reads_the_table() {
    let Some(interpreter) = needs("PUSHPULL_TEST_PYTHON", "asking the server with the ADBC driver") else { return };
    let lake = weighed().with_environment(&[("PUSHPULL_SERVE_TOKEN", "correct-horse")]);
    let served = Served::start(&lake, &[]);
    let expected = lake.sql("select shard, row, weight from corpus order by shard, row");
    std::fs::write(lake.path("expected.json"), serde_json::to_vec(&expected).unwrap()).unwrap();
    let printed =
        python(&interpreter, &script("adbc.py"), &[&served.address, "correct-horse", lake.path("expected.json").to_str().unwrap()]);
    assert!(printed.contains("410 rows"), "{printed}");
}
