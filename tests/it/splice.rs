//! `pushpull splice`: shards with the weights inside, on disk and on a real S3 server, as every engine reads them.

use crate::support::{Lake, needs, python, text, walk};
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Every spliced shard in every engine against a plain join of base and sidecar by (shard, row).
const CHECK: &str = r#"
import json, os, sys
import deltalake, duckdb, polars, pyarrow as pa, pyarrow.parquet as pq
corpus, weights, spliced = sys.argv[1:4]
columns = json.loads(sys.argv[4])                       # sidecar column -> its name in the spliced shards
def plain(table):
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(field.type.value_type))
    return table
sidecars = deltalake.DeltaTable(weights).to_pyarrow_table().to_pylist()
sidecars = {(row["shard"], row["row"]): row for row in sidecars}
def joined(name):
    path = os.path.join(corpus, name)
    base = pa.ipc.open_file(path).read_all() if path.endswith(".arrow") else pq.read_table(path, partitioning=None)
    rows = plain(base).to_pylist()
    return base, [{**row, **{columns[c]: sidecars[name, i][c] for c in columns}} for i, row in enumerate(rows)]
table = deltalake.DeltaTable(spliced)
everything, names = [], set()
for uri in table.file_uris():
    file = pq.ParquetFile(uri)
    said = {k.decode(): v.decode() for k, v in file.metadata.metadata.items()}
    name = said["pushpull.spliced.base"]
    names.add(name)
    base, expected = joined(name)
    read = file.read()
    n = len(base.schema.names)
    assert read.schema.names[:n] == base.schema.names and sorted(read.schema.names[n:]) == sorted(columns.values()), (name, read.schema.names)
    old = read.select(base.schema.names)
    assert old.schema.equals(base.schema), (name, old.schema, base.schema)
    # Readers take the file's key-values for the schema's; what splicing says of itself is the only difference.
    own = {k: v for k, v in (old.schema.metadata or {}).items() if not k.startswith(b"pushpull.spliced.")}
    assert own == (base.schema.metadata or {}), (name, own, base.schema.metadata)
    assert old.equals(base), name
    assert plain(read).to_pylist() == expected, name
    keys = read.schema.names
    duck = duckdb.sql(f"select {', '.join(json.dumps(k) for k in keys)} from read_parquet('{uri}', hive_partitioning = false)").fetchall()
    assert [dict(zip(keys, row)) for row in duck] == expected, name
    assert polars.read_parquet(uri, hive_partitioning=False).to_dicts() == expected, name
    everything += expected
present = {os.path.relpath(os.path.join(d, f), corpus) for d, _, fs in os.walk(corpus) for f in fs if f.startswith("part-") or f.startswith("odd")}
assert names == present, (names, present)
# The whole table: each row once, whatever shard it is in; a column that a shard lacks is null.
keys = [field.name for field in table.schema().fields]
full = sorted(json.dumps({k: row.get(k) for k in keys}) for row in everything)
def same(rows, engine):
    assert sorted(json.dumps({k: row.get(k) for k in keys}) for row in rows) == full, engine
same(table.to_pyarrow_table().to_pylist(), "deltalake")
same(polars.read_delta(spliced).to_dicts(), "polars")
files = table.file_uris()
duck = duckdb.sql(f"select * from read_parquet({files!r}, union_by_name = true, hive_partitioning = false)")
same([dict(zip(duck.columns, row)) for row in duck.fetchall()], "duckdb")
weight = columns.get("weight")
if weight:
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    assert sum(a["num_records"] for a in actions) == len(everything)
    assert sum(a[f"null_count.{weight}"] for a in actions) == sum(row[weight] is None for row in everything)
    known = [row[weight] for row in everything if row[weight] is not None]
    assert min(a[f"min.{weight}"] for a in actions if a["num_records"]) == min(known)
    assert max(a[f"max.{weight}"] for a in actions if a["num_records"]) == max(known)
print("rows", len(everything), "version", table.version())
"#;

fn counts(report: &Value) -> [u64; 4] {
    ["spliced", "reencoded", "unchanged", "removed"].map(|fate| report["shards"][fate].as_u64().unwrap())
}

fn parquet_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = walk(folder).into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "parquet"));
    let named = files.map(|path| (path.strip_prefix(folder).unwrap().display().to_string(), path));
    named.filter(|(name, _)| !name.contains("_delta_log")).map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

fn check(interpreter: &str, lake: &Lake, to: &str, columns: &Value) -> String {
    let path = |part: &str| lake.path(part).to_str().unwrap().to_owned();
    python(interpreter, CHECK, &[&path("corpus"), &path("output"), &path(to), &columns.to_string()])
}

/// A shard of another shape than the quick start's: a folder as Hive names them, a key with characters that need care, nested columns,
/// a `weight` of its own, row groups of one row and no rows at all.
fn add_odd_shards(lake: &Lake) {
    let folder = lake.path("corpus/lang=de/x y+z");
    std::fs::create_dir_all(&folder).unwrap();
    let texts = |texts: &[Option<&str>]| -> ArrayRef { Arc::new(texts.iter().copied().collect::<StringArray>()) };
    for (name, rows) in
        [("odd ü.parquet", &[Some("how to bake bread"), None, Some("how to pick a lock")][..]), ("odd-empty.parquet", &[][..])]
    {
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("id", texts(&rows.iter().map(|_| Some("odd")).collect::<Vec<_>>()), true),
            ("prompt", texts(rows), true),
            ("response", texts(rows), true),
            ("text", texts(rows), true),
            ("weight", texts(&rows.iter().map(|_| Some("heavy")).collect::<Vec<_>>()), true),
        ])
        .unwrap();
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(1)).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        std::fs::write(folder.join(name), writer.into_inner().unwrap()).unwrap();
    }
}

#[test]
fn a_second_splice_does_nothing_and_a_changed_shard_alone_is_made_anew() {
    let lake = Lake::new();
    assert!(lake.error(&["splice", "job.toml", "--to", "spliced/"]).contains("pushpull run"));
    lake.json(&["run", "job.toml"], 0);
    let arguments = ["splice", "job.toml", "--to", "spliced/"];
    let first = lake.json(&arguments, 0);
    assert_eq!((counts(&first), &first["rows"], &first["version"]), ([4, 1, 0, 0], &json!(410), &json!(0)));
    assert_eq!(first["columns"], json!([{ "column": "weight", "name": "weight" }]));
    assert_eq!(first["bytes_copied_by_server"], 0);
    let files = parquet_files(&lake.path("spliced"));
    assert_eq!(files.len(), 5);
    assert!(files.keys().any(|path| path.starts_with("nested/part-0002.")), "{:?}", files.keys());

    let again = lake.json(&arguments, 0);
    assert_eq!((counts(&again), &again["version"], &again["bytes_sent"]), ([0, 0, 5, 0], &json!(0), &json!(0)));
    assert_eq!(parquet_files(&lake.path("spliced")), files);
    // Finished but not committed: nothing is made again either, unless it is damaged.
    std::fs::remove_dir_all(lake.path("spliced/_delta_log")).unwrap();
    let damaged = files.keys().next().unwrap();
    std::fs::write(lake.path("spliced").join(damaged), b"PAR1").unwrap();
    assert_eq!(counts(&lake.json(&arguments, 0)), [1, 0, 4, 0]);
    assert_eq!(parquet_files(&lake.path("spliced")), files);

    // A shard that changed since it was weighed: both versions are named, and nothing is touched.
    let shard = lake.path("corpus/part-0001.parquet");
    let longer = [std::fs::read(lake.path("corpus/part-0000.parquet")).unwrap()].concat();
    std::fs::write(&shard, longer).unwrap();
    let error = lake.error(&arguments);
    for part in ["part-0001.parquet", "changed since it was weighed", "now, and sidecar data/", "pushpull run"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    std::fs::copy(&shard, lake.path("corpus/part-0009.parquet")).unwrap();
    assert!(lake.error(&arguments).contains("as are part-0009.parquet"));
    assert_eq!(parquet_files(&lake.path("spliced")), files);
    std::fs::remove_file(lake.path("corpus/part-0003.parquet")).unwrap();
    lake.json(&["run", "job.toml"], 0);
    let report = lake.json(&[&arguments[..], &["--prune"]].concat(), 0);
    assert_eq!((counts(&report), &report["version"]), ([2, 0, 3, 2], &json!(1)));
    let left = parquet_files(&lake.path("spliced"));
    assert_eq!((left.len(), &report["files_pruned"]), (5, &json!(2)));
    let shown = text(&lake.pushpull(&arguments).stdout);
    assert!(shown.contains("5 unchanged") && shown.contains("next") && shown.contains("version 1 at spliced/"), "{shown}");
}

#[test]
fn every_engine_reads_spliced_shards_as_a_join_by_shard_and_row() {
    let Some(interpreter) = needs("PUSHPULL_TEST_PYTHON", "spliced shards in pyarrow, DuckDB, Polars and deltalake") else { return };
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    lake.json(&["splice", "job.toml", "--to", "spliced/"], 0);
    assert!(check(&interpreter, &lake, "spliced", &json!({ "weight": "weight" })).contains("rows 410 version 0"));

    add_odd_shards(&lake);
    lake.json(&["run", "job.toml"], 0);
    let report = lake.json(&["splice", "job.toml", "--to", "other/", "--columns", "row,weight,safe_ref,model,window"], 0);
    assert_eq!((counts(&report), &report["rows"]), ([6, 1, 0, 0], &json!(413)));
    let columns = json!({ "row": "row", "weight": "pushpull_weight", "safe_ref": "safe_ref", "model": "model", "window": "window" });
    assert!(check(&interpreter, &lake, "other", &columns).contains("rows 413 version 0"));
    // The first table gets the new shards; the name is taken now, so the old ones are made anew as well.
    assert_eq!(counts(&lake.json(&["splice", "job.toml", "--to", "spliced/"], 0)), [6, 1, 0, 5]);
    assert!(check(&interpreter, &lake, "spliced", &json!({ "weight": "pushpull_weight" })).contains("rows 413 version 1"));
}

#[test]
fn places_columns_and_types_that_will_not_do_are_refused() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let refused = |to: &str, reason: &str| {
        let error = lake.error(&["splice", "job.toml", "--to", to]);
        assert!(error.contains(reason), "{to}: {error}");
    };
    refused("corpus/spliced/", "is inside of corpus.url");
    refused("corpus", "is corpus.url");
    refused(".", "holds corpus.url");
    refused("output/", "is output.url");
    refused("output/spliced", "is inside of output.url");
    let error = lake.error(&["splice", "job.toml", "--to", "s/", "--columns", "wieght"]);
    assert!(error.contains("did you mean `weight`"), "{error}");
    // Another table there is never taken over.
    lake.json(&["run", "job.toml", "--set", "output.url=else/"], 0);
    refused("else/", "did not make");
    let empty: ArrayRef = Arc::new(arrow::array::NullArray::new(1));
    let text = || -> ArrayRef { Arc::new(StringArray::from(vec!["a"])) };
    let columns = [("prompt", text(), true), ("response", text(), true), ("text", text(), true), ("void", empty, true)];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    std::fs::write(lake.path("corpus/part-0007.parquet"), writer.into_inner().unwrap()).unwrap();
    lake.json(&["run", "job.toml"], 0);
    refused("s/", "part-0007.parquet: column `void` has type Null");
    assert!(!lake.path("s").exists());
}

#[test]
fn killed_splices_leave_nothing_half_done() {
    let lake = Lake::new();
    add_odd_shards(&lake);
    lake.json(&["run", "job.toml"], 0);
    lake.json(&["splice", "job.toml", "--to", "whole/"], 0);
    let mut killed = 0;
    for after in [5, 10, 15, 20, 30, 40, 60, 90] {
        let mut splice = Command::new(env!("CARGO_BIN_EXE_pushpull"))
            .args(["splice", "job.toml", "--to", "spliced/", "--threads", "1"])
            .current_dir(lake.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(after));
        let _ = splice.kill();
        killed += usize::from(!splice.wait().unwrap().success());
        // What is there is whole; the first commit has every shard.
        let whole = parquet_files(&lake.path("whole"));
        if lake.path("spliced").exists() {
            let there = parquet_files(&lake.path("spliced"));
            assert!(there.iter().all(|(path, bytes)| whole.get(path) == Some(bytes)), "{:?}", there.keys());
            assert!(!lake.path("spliced/_delta_log/00000000000000000000.json").exists() || there.len() == whole.len());
        }
    }
    assert!(killed > 0);
    lake.json(&["splice", "job.toml", "--to", "spliced/"], 0);
    assert_eq!(parquet_files(&lake.path("spliced")), parquet_files(&lake.path("whole")));
}

mod s3 {
    use super::*;
    use object_store::ObjectStoreExt;

    const BUCKET: &str = "pushpull-test";

    fn environment(endpoint: &str) -> [(&str, &str); 5] {
        [
            ("AWS_ENDPOINT", endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "testkey"),
            ("AWS_SECRET_ACCESS_KEY", "testsecret"),
        ]
    }

    fn client(endpoint: &str, bucket: &str) -> Arc<dyn object_store::ObjectStore> {
        let builder = object_store::aws::AmazonS3Builder::new().with_endpoint(endpoint).with_allow_http(true).with_bucket_name(bucket);
        Arc::new(builder.with_region("us-east-1").with_access_key_id("testkey").with_secret_access_key("testsecret").build().unwrap())
    }

    /// A shard of more than 5 MiB that no codec makes smaller, so that the server copies it in parts.
    fn big_shard(rows: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut noise = |length: usize| -> String {
            (0..length)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    char::from(b'0' + (state % 75) as u8)
                })
                .collect()
        };
        let texts: Vec<String> = (0..rows).map(|_| noise(4000)).collect();
        let column = || -> ArrayRef { Arc::new(StringArray::from(texts.clone())) };
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|i| format!("big-{i}"))));
        let batch = RecordBatch::try_from_iter([("id", ids), ("prompt", column()), ("response", column()), ("text", column())]).unwrap();
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(200)).set_dictionary_enabled(false).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    #[test]
    fn the_server_copies_old_bytes_and_other_places_get_them_streamed() {
        let Some(endpoint) = needs("PUSHPULL_TEST_S3_ENDPOINT", "splicing on a real S3 server") else { return };
        let lake = Lake::new().with_environment(&environment(&endpoint));
        add_odd_shards(&lake);
        let big = big_shard(700);
        assert!(big.len() > 8 << 20);
        let big_name = "lang=de/x y+z/big ü.parquet";
        std::fs::write(lake.path("corpus").join(big_name), &big).unwrap();

        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let prefix = format!("splice-{}-{}", std::process::id(), now.as_nanos());
        let (store, other) = (client(&endpoint, BUCKET), client(&endpoint, "other-bucket"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for path in walk(&lake.path("corpus")) {
            let name = path.strip_prefix(lake.path("corpus")).unwrap().display().to_string();
            let to = object_store::path::Path::parse(format!("{prefix}/corpus/{name}")).unwrap();
            runtime.block_on(store.put(&to, std::fs::read(&path).unwrap().into())).unwrap();
        }
        let url = |part: &str| format!("s3://{BUCKET}/{prefix}/{part}");
        let sets = [format!("corpus.url={}", url("corpus/")), format!("output.url={}", url("weights/"))];
        let json = |arguments: &[&str]| {
            let sets = sets.iter().flat_map(|set| ["--set", set.as_str()]);
            let all: Vec<&str> =
                arguments[..1].iter().copied().chain(["job.toml"]).chain(arguments[1..].iter().copied()).chain(sets).collect();
            lake.json(&all, 0)
        };
        json(&["run"]);
        let report = json(&["splice", "--to", &url("spliced/")]);
        assert_eq!((counts(&report), &report["rows"]), ([7, 1, 0, 0], &json!(1113)));
        let number = |report: &Value, key: &str| report[key].as_u64().unwrap();
        assert!(number(&report, "bytes_copied_by_server") > (big.len() as u64) - 100_000, "{report}");
        // The small shards and the weights only.
        assert!(number(&report, "bytes_sent") < number(&report, "corpus_bytes") - (big.len() as u64) + 200_000, "{report}");
        let again = json(&["splice", "--to", &url("spliced/")]);
        assert_eq!((counts(&again), number(&again, "bytes_sent"), &again["version"]), ([0, 0, 8, 0], 0, &json!(0)));

        // Another bucket and a local disk: streamed, and the same bytes.
        let streamed = json(&["splice", "--to", &format!("s3://other-bucket/{prefix}/spliced/")]);
        assert_eq!((counts(&streamed), number(&streamed, "bytes_copied_by_server")), ([7, 1, 0, 0], 0));
        assert!(number(&streamed, "bytes_sent") > big.len() as u64);
        let local = json(&["splice", "--to", "here/"]);
        assert_eq!(counts(&local), [7, 1, 0, 0]);
        let here = parquet_files(&lake.path("here"));
        assert_eq!(here.len(), 8);
        for (name, bytes) in &here {
            let path = object_store::path::Path::parse(format!("{prefix}/spliced/{name}")).unwrap();
            for store in [&store, &other] {
                let there = runtime.block_on(async { store.get(&path).await.unwrap().bytes().await.unwrap() });
                assert!(there == *bytes, "{name}");
            }
        }
        let spliced = here.iter().find(|(name, _)| name.contains("big ü.")).unwrap().1;
        let footer = u32::from_le_bytes(big[big.len() - 8..big.len() - 4].try_into().unwrap()) as usize;
        let kept = big.len() - 8 - footer;
        assert!(spliced[..kept] == big[..kept]);

        let Some(interpreter) = needs("PUSHPULL_TEST_PYTHON", "spliced shards on S3 in deltalake, pyarrow and DuckDB") else {
            return;
        };
        let script = r#"
import sys, urllib.parse, duckdb, deltalake, pyarrow.fs as fs, pyarrow.parquet as pq
endpoint, url, here = sys.argv[1:]
options = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}
local = deltalake.DeltaTable(here).to_pyarrow_table().sort_by([("id", "ascending"), ("text", "ascending")])
table = deltalake.DeltaTable(url, storage_options=options)
remote = table.to_pyarrow_table().sort_by([("id", "ascending"), ("text", "ascending")])
assert remote.equals(local) and remote.num_rows == 1113
s3 = fs.S3FileSystem(access_key="testkey", secret_key="testsecret", endpoint_override=endpoint.split("//")[1], scheme="http", region="us-east-1")
big = urllib.parse.unquote([u for u in table.file_uris() if "big" in u][0]).removeprefix("s3://")
read = pq.read_table(big, filesystem=s3, partitioning=None, filters=[("pushpull_weight", ">", 0.0)])
assert read.num_rows == 700 and duckdb.sql("select count(pushpull_weight) from read").fetchall() == [(700,)]
print("same")
"#;
        let printed = python(&interpreter, script, &[&endpoint, &url("spliced"), lake.path("here").to_str().unwrap()]);
        assert!(printed.contains("same"), "{printed}");
    }
}
