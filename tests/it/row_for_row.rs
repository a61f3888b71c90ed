//! The whole table, through the real process, against a plain join of shards and sidecars by (shard, row): each file read by itself and
//! zipped in memory.

use crate::support::{Lake, text};
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::ipc::reader::FileReader;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::{self, File};
use std::path::Path;

fn read(path: &Path) -> RecordBatch {
    let file = File::open(path).unwrap();
    let (schema, batches): (_, Vec<RecordBatch>) = if path.extension().is_some_and(|e| e == "arrow") {
        let reader = FileReader::try_new(file, None).unwrap();
        (reader.schema(), reader.map(Result::unwrap).collect())
    } else {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        (builder.schema().clone(), builder.build().unwrap().map(Result::unwrap).collect())
    };
    concat_batches(&schema, &batches).unwrap()
}

/// Each row as one line: the values of `names`, looked up in `parts` in turn, else in the names of the shard's folders.
fn lines(names: &[String], parts: &[&RecordBatch], shard: &str) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let rows = parts[0].num_rows();
    let column = |name: &String| -> Vec<String> {
        match parts.iter().find_map(|part| part.column_by_name(name)) {
            Some(column) => {
                let format = ArrayFormatter::try_new(column, &options).unwrap();
                (0..rows).map(|row| format.value(row).to_string()).collect()
            }
            None => {
                let found = shard.split('/').find_map(|folder| folder.strip_prefix(name.as_str())?.strip_prefix('='));
                vec![found.unwrap_or("NULL").to_owned(); rows]
            }
        }
    };
    let columns: Vec<Vec<String>> = names.iter().map(column).collect();
    (0..rows).map(|row| columns.iter().map(|column| format!("{:?}", column[row])).collect::<Vec<_>>().join(" | ")).collect()
}

/// Adds a shard without rows and one in a folder that is a column, of a shard's columns.
fn add_odd_shards(lake: &Lake, like: &str) {
    let whole = read(&lake.path("corpus").join(like));
    for (name, rows) in [("empty.parquet", 0), ("region=eu/part.parquet", 7)] {
        let path = lake.path("corpus").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), whole.schema(), None).unwrap();
        writer.write(&whole.slice(0, rows)).unwrap();
        writer.close().unwrap();
    }
}

fn is_the_plain_join(lake: &Lake, least: usize) {
    let run = lake.pushpull(&["run", "job.toml"]);
    assert!(matches!(run.status.code(), Some(0 | 1)), "{}", text(&run.stderr));
    let output = lake.pushpull(&["sql", "job.toml", "select * from corpus", "--format", "parquet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = lake.path("table.parquet");
    fs::write(&table, output.stdout).unwrap();
    let table = read(&table);
    let names: Vec<String> = table.schema().fields().iter().map(|field| field.name().clone()).collect();
    let mut found = lines(&names, &[&table], "");

    let mut expected = vec![];
    let shards = lake.sql("select shard, sidecar from shards");
    for shard in &shards {
        let (shard, sidecar) = (shard["shard"].as_str().unwrap(), shard["sidecar"].as_str().unwrap());
        let (base, weights) = (read(&lake.path("corpus").join(shard)), read(&lake.path("output").join(sidecar)));
        assert_eq!(base.num_rows(), weights.num_rows(), "{shard}");
        expected.extend(lines(&names, &[&base, &weights], shard));
    }
    found.sort();
    expected.sort();
    assert!(found.len() >= least, "{} rows", found.len());
    let first = found.iter().zip(&expected).position(|(a, b)| a != b);
    assert!(found == expected, "{} rows, {} expected; row {first:?} differs", found.len(), expected.len());
    assert!(found.iter().any(|row| row.contains("NULL")), "null texts are among them");
}

#[test]
fn the_quick_start_with_nulls_and_an_empty_shard() {
    let lake = Lake::new();
    add_odd_shards(&lake, "part-0000.parquet");
    is_the_plain_join(&lake, 417);
}

#[test]
fn long_documents() {
    let lake = Lake::of("long_documents");
    is_the_plain_join(&lake, 10);
}

/// A shard that lacks a column of others, and what the job file says of that.
#[test]
fn a_column_that_a_shard_lacks() {
    let lake = Lake::new();
    let whole = read(&lake.path("corpus/part-0000.parquet"));
    let keep: Vec<usize> = (0..whole.num_columns()).rev().filter(|&i| whole.schema().field(i).name() != "source").collect();
    let without = whole.project(&keep).unwrap();
    let path = lake.path("corpus/part-0009.parquet");
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), without.schema(), None).unwrap();
    writer.write(&without).unwrap();
    writer.close().unwrap();
    is_the_plain_join(&lake, 480);
    let output = lake.pushpull(&["sql", "job.toml", "select count(*) from corpus"]);
    let told = text(&output.stderr);
    assert!(told.contains("source") && told.contains("part-0009.parquet"), "{told}");
    let error = lake.error(&["sql", "job.toml", "select count(*) from corpus", "--set", "corpus.missing_columns=refuse"]);
    assert!(error.contains("shard part-0009.parquet: column `source` is missing here"), "{error}");
    let error = lake.error(&["sql", "job.toml", "select 1", "--set", "corpus.missing_columns=drop"]);
    assert!(error.contains("missing_columns") || error.contains("drop"), "{error}");
}

/// A table whose log names no columns, as an older version wrote it, is read by the shards' footers.
#[test]
fn a_schema_file_that_is_gone() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    assert_eq!(fs::read_dir(lake.path("output/_schemas")).unwrap().count(), distinct_schemas(&lake));
    let before = lake.sql("select count(*), sum(row), max(id) from corpus where weight > 0.5");
    fs::remove_dir_all(lake.path("output/_schemas")).unwrap();
    assert_eq!(lake.sql("select count(*), sum(row), max(id) from corpus where weight > 0.5"), before);
}

fn distinct_schemas(lake: &Lake) -> usize {
    let mut kinds = vec![];
    for shard in lake.sql("select shard from shards") {
        let fields = read(&lake.path("corpus").join(shard["shard"].as_str().unwrap())).schema().fields().clone();
        if !kinds.contains(&fields) {
            kinds.push(fields);
        }
    }
    kinds.len()
}
