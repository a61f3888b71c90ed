//! Sidecars and the weights table as other engines see them.

use crate::support::{Lake, needs, text};
use std::process::Command;

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

#[test]
fn pyarrow_duckdb_polars_and_delta_read_the_weights_in_the_bases_order() {
    let Some(python) = needs("PUSHPULL_TEST_PYTHON", "reading sidecars with pyarrow, DuckDB, Polars and deltalake") else { return };
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let output = Command::new(python).args(["-c", CHECK, lake.path("").to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("\"rows\": 410"), "{}", text(&output.stdout));
}
