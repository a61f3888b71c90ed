# Shards as real corpora have them, written before the weighing: one without rows, one whose name needs care and that has an empty row
# group in the middle, one of which most texts are null.
import os, sys
import pyarrow as pa, pyarrow.parquet as pq
corpus = sys.argv[1]
some = pq.read_table(f"{corpus}/part-0000.parquet")
pq.write_table(some.slice(0, 0), f"{corpus}/empty.parquet")
os.makedirs(f"{corpus}/a folder")
ids = pa.array([f"odd-{i}" for i in range(some.num_rows)])
odd = some.set_column(some.column_names.index("id"), "id", ids)
with pq.ParquetWriter(f"{corpus}/a folder/one + 100% of it.parquet", odd.schema) as writer:
    for part in (odd.slice(0, 7), odd.slice(0, 0), odd.slice(7)):
        writer.write_table(part)
nothing = pa.nulls(some.num_rows, pa.string())
texts = pa.array([None if i % 5 else t for i, t in enumerate(some["text"].to_pylist())], pa.string())
ids = pa.array([f"null-{i}" for i in range(some.num_rows)])
null = pa.table({"id": ids, "prompt": nothing, "response": nothing, "text": texts})
pq.write_table(null, f"{corpus}/mostly-null.parquet", row_group_size=33)
