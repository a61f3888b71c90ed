"""What every check compares with: base and weights joined by shard and row, row by row and without any engine's join."""
import glob, os, sys
import pyarrow as pa, pyarrow.parquet as pq
from deltalake import DeltaTable


def read(path):
    return pa.ipc.open_file(path).read_all() if path.endswith(".arrow") else pq.ParquetFile(path).read()


def plain(table):
    """Columns as lists of Python values, whatever string or dictionary type they have."""
    return {name: table.column(name).to_pylist() for name in table.column_names}


def expected(columns=("id", "prompt", "response", "text"), corpus="corpus", weights="output"):
    """{(shard, row): (base columns..., weight)} over all shards, from files that are found by walking and not by a log."""
    by_row = {}
    for path in glob.glob(f"{weights}/data/*/*.parquet"):
        side = plain(pq.ParquetFile(path).read())
        for shard, row, weight in zip(side["shard"], side["row"], side["weight"]):
            assert (shard, row) not in by_row, f"{shard} {row} is there twice"
            by_row[shard, row] = weight
    rows = {}
    for path in sorted(glob.glob(f"{corpus}/**/*", recursive=True)):
        if not path.endswith((".parquet", ".arrow")):
            continue
        shard, base = os.path.relpath(path, corpus), read(path)
        values = [base.column(c).to_pylist() if c in base.column_names else [None] * base.num_rows for c in columns]
        for row, of_row in enumerate(zip(*values)):
            rows[shard, row] = (*of_row, by_row.pop((shard, row)))
    assert not by_row, f"weights without a row: {list(by_row)[:3]}"
    return rows


def parquet_only(rows):
    """Without Arrow IPC shards, which the other engines do not join."""
    return {key: values for key, values in rows.items() if key[0].endswith(".parquet")}


def same(found, wanted, what):
    """Both are {(shard, row): values}."""
    assert found.keys() == wanted.keys(), f"{what}: other rows: {list(found.keys() ^ wanted.keys())[:3]}"
    for key, values in wanted.items():
        assert found[key] == values, f"{what}: {key}: {found[key]} is not {values}"
    print(what, len(wanted), "rows")


COLUMNS = ("shard", "row", "id", "prompt", "response", "text", "weight")


def keyed(rows):
    """Tuples in the order of COLUMNS to {(shard, row): the rest}; a row that comes twice is an error."""
    rows = list(rows)
    found = {(row[0], row[1]): tuple(row[2:]) for row in rows}
    assert len(found) == len(rows), "a row comes twice"
    return found
