# Sidecars and the Delta table by pyarrow and deltalake.
found = {}
for shard, base, weight in recipe_pyarrow.rows("corpus", "output"):
    at = sum(key[0] == shard for key in found)
    columns = [base.column(c).to_pylist() for c in COLUMNS[2:-1]]
    for row, values in enumerate(zip(*columns, weight.to_pylist()), start=at):
        found[shard, row] = values
wanted = expected()
same(found, wanted, "pyarrow by position")

table = DeltaTable("output").to_pyarrow_table(columns=["shard", "row", "weight"])
same({(s, r): (w,) for s, r, w in zip(*plain(table).values())}, {key: values[-1:] for key, values in wanted.items()}, "delta")
groups = {}
for path in DeltaTable("output").file_uris():
    side = pq.ParquetFile(path)
    groups[side.metadata.metadata[b"pushpull.base"].decode()] = [side.metadata.row_group(i).num_rows for i in range(side.num_row_groups)]
for shard in groups:
    if shard.endswith(".parquet"):
        base = pq.ParquetFile(f"corpus/{shard}").metadata
        # A row group without rows has no counterpart.
        assert groups[shard] == [n for n in (base.row_group(i).num_rows for i in range(base.num_row_groups)) if n], shard
if spliced:
    joined = {}
    for path in DeltaTable("spliced").file_uris():
        whole = pq.ParquetFile(path).read()
        for id_, values in zip(whole.column("id").to_pylist(), zip(*(whole.column(c).to_pylist() for c in COLUMNS[2:]))):
            joined[id_] = values
    same(joined, {values[0]: values for values in wanted.values()}, "pyarrow spliced")
