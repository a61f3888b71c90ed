# pyarrow: a sidecar has the row groups of its shard, so that rows are paired by position. Memory: one row group.
import pyarrow as pa, pyarrow.parquet as pq
from deltalake import DeltaTable

def rows(corpus, weights):
    for path in DeltaTable(weights).file_uris():  # only what the log has published
        side = pq.ParquetFile(path)
        shard = side.metadata.metadata[b"pushpull.base"].decode()
        base = (pa.ipc.open_file if shard.endswith(".arrow") else pq.ParquetFile)(f"{corpus}/{shard}")
        read = base.get_batch if shard.endswith(".arrow") else base.read_row_group
        for group in range(side.num_row_groups):
            yield shard, read(group), side.read_row_group(group, ["weight"])["weight"]
