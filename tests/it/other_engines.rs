//! Sidecars, the weights table and spliced shards as other engines see them. Each engine's recipe (`tests/engines/recipe_*.py`, which
//! the README quotes) is run as it is, and what it finds compared with a plain join by shard and row (`tests/engines/lake.py`).

use crate::support::{Lake, needs, python, script, skipped};
use std::process::Command;

const CHECK_WINDOWS: &str = r#"
import glob, os, sys
import duckdb, deltalake, pyarrow as pa, pyarrow.parquet as pq
lake = sys.argv[1]
base = pq.read_table(f"{lake}/corpus/documents.parquet")
path, = glob.glob(f"{lake}/output/data/*/*.parquet")
side = pq.read_table(path)
assert side.schema.field("window").type == pa.int64() and side.schema.field("window_view").type == pa.string()
assert set(side.column("window_view").to_pylist()) == {"document"}
windows = side.column("window").to_pylist()
assert all(0 <= w < len(text) for w, text in zip(windows, base.column("document").to_pylist()))
assert len(set(windows)) > 20
# `window` is a keyword in DuckDB, hence the quotes.
duck = duckdb.sql(f"""
    select b.id, substr(b.document, w."window" + 1, 80) from read_parquet('{lake}/corpus/documents.parquet', file_row_number = true) b
    join read_parquet('{path}') w on b.file_row_number = w.row order by w.row""").fetchall()
assert duck == [(i, t[w:w + 80]) for i, t, w in zip(base.column("id").to_pylist(), base.column("document").to_pylist(), windows)]
table = deltalake.DeltaTable(f"{lake}/output").to_pyarrow_table().sort_by("row")
assert table.column("window").to_pylist() == windows
print("windows", len(windows))
"#;

/// The quick start's corpus and the shards of `odd_shards.py`, weighed and spliced; the interpreter to ask with.
fn lake(what: &str) -> Option<(String, Lake)> {
    let interpreter = needs("PUSHPULL_TEST_PYTHON", what)?;
    let lake = Lake::new();
    python(&interpreter, &script("odd_shards.py"), &[lake.path("corpus").to_str().unwrap()]);
    lake.json(&["run", "job.toml"], 0);
    lake.json(&["splice", "job.toml", "--to", "spliced"], 0);
    Some((interpreter, lake))
}

/// Runs an engine's check. Its recipe must read every row of every Parquet shard, with the weight that is its own.
fn check(engine: &str) {
    let Some((interpreter, lake)) = lake(&format!("reading weights with {engine}")) else { return };
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engines");
    let printed = python(&interpreter, &script("check.py"), &[here, engine, lake.path("").to_str().unwrap()]);
    assert!(printed.contains(" rows\n") && printed.contains("spliced shards read"), "{printed}");
    print!("{printed}");
}

#[test]
fn the_readme_quotes_the_recipes_as_they_are_tested() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for engine in ["pyarrow", "duckdb", "polars", "datasets", "spark"] {
        let recipe = script(&format!("recipe_{engine}.py"));
        assert!(readme.contains(recipe.trim()), "README.md does not hold recipe_{engine}.py as it is");
    }
}

#[test]
fn pyarrow_pairs_rows_by_position() {
    check("pyarrow");
}

#[test]
fn duckdb_joins_shards_and_sidecars() {
    check("duckdb");
}

#[test]
fn polars_joins_shards_and_the_delta_table() {
    check("polars");
}

#[test]
fn hugging_face_datasets_draw_rows_by_weight() {
    check("datasets");
}

#[test]
fn spark_joins_shards_and_sidecars() {
    let Some(_) = needs("PUSHPULL_TEST_PYTHON", "reading weights with spark") else { return };
    if !Command::new("java").arg("-version").output().is_ok_and(|output| output.status.success()) {
        skipped("reading weights with spark (put java, 17 or newer, on the path)");
        return;
    }
    check("spark");
}

#[test]
fn duckdb_and_pyarrow_cut_the_passage_that_a_window_points_at() {
    let Some(interpreter) = needs("PUSHPULL_TEST_PYTHON", "reading windows with pyarrow, DuckDB and deltalake") else { return };
    let lake = Lake::of("long_documents");
    lake.json(&["run", "job.toml"], 0);
    let printed = python(&interpreter, CHECK_WINDOWS, &[lake.path("").to_str().unwrap()]);
    assert!(printed.contains("windows 165"), "{printed}");
}
