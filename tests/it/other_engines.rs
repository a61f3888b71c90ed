//! Sidecars and the weights table as other engines see them.

use crate::support::{Lake, needs, python};

const CHECK: &str = r#"
import glob, json, os, sys
import duckdb, polars, pyarrow as pa, pyarrow.dataset, pyarrow.parquet as pq
import deltalake
lake = sys.argv[1]
out = os.path.join(lake, "output")
base_rows = {}
for path in glob.glob(f"{lake}/corpus/**/part-*", recursive=True):
    name = os.path.relpath(path, f"{lake}/corpus")
    if path.endswith(".arrow"):
        reader = pa.ipc.open_file(path)
        groups, table = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)], reader.read_all()
    else:
        file = pq.ParquetFile(path)
        groups, table = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], file.read()
    base_rows[name] = groups, table
seen = set()
for path in glob.glob(f"{out}/data/*/*.parquet"):
    file = pq.ParquetFile(path)
    side = file.read()
    name = side.column("shard")[0].as_py()
    seen.add(name)
    groups, base = base_rows[name]
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == groups, name
    assert side.column("row").to_pylist() == list(range(base.num_rows)), name
    empty = [all(base.column(c)[i].as_py() is None for c in ("prompt", "response", "text")) for i in range(base.num_rows)]
    assert [w is None for w in side.column("weight").to_pylist()] == empty, name
    duck = duckdb.sql(f"select row, weight, safe_ref, harm_ref from read_parquet('{path}')").fetchall()
    assert duck == list(zip(*(side.column(c).to_pylist() for c in ("row", "weight", "safe_ref", "harm_ref")))), name
    assert polars.read_parquet(path)["weight"].to_list() == side.column("weight").to_pylist(), name
assert seen == set(base_rows), seen
table = deltalake.DeltaTable(out)
rows = table.to_pyarrow_table()
assert rows.num_rows == sum(b.num_rows for _, b in base_rows.values())
weights = [w for w in rows.column("weight").to_pylist() if w is not None]
assert abs(sum(weights) / len(weights) - 1) < 0.02
assert polars.read_delta(out).height == rows.num_rows
print(json.dumps({"rows": rows.num_rows, "version": table.version()}))
"#;

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

#[test]
fn duckdb_and_pyarrow_cut_the_passage_that_a_window_points_at() {
    let Some(interpreter) = needs("PUSHPULL_TEST_PYTHON", "reading windows with pyarrow, DuckDB and deltalake") else { return };
    let lake = Lake::of("long_documents");
    lake.json(&["run", "job.toml"], 0);
    let printed = python(&interpreter, CHECK_WINDOWS, &[lake.path("").to_str().unwrap()]);
    assert!(printed.contains("windows 165"), "{printed}");
}

#[test]
fn pyarrow_duckdb_polars_and_delta_read_the_weights_in_the_bases_order() {
    let Some(interpreter) = needs("PUSHPULL_TEST_PYTHON", "reading sidecars with pyarrow, DuckDB, Polars and deltalake") else { return };
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let printed = python(&interpreter, CHECK, &[lake.path("").to_str().unwrap()]);
    assert!(printed.contains("\"rows\": 410"), "{printed}");
}
