# pyarrow: a sidecar has the row groups of its shard (but for empty ones), so rows are paired by position. Memory: one row group.
import pyarrow as pa, pyarrow.parquet as pq
from deltalake import DeltaTable

def rows(corpus, weights):
    for path in DeltaTable(weights).file_uris():  # only what the log has published
        side = pq.ParquetFile(path)
        shard = side.metadata.metadata[b"pushpull.base"].decode()
        if shard.endswith(".arrow"):
            base = pa.ipc.open_file(f"{corpus}/{shard}")
            groups = map(base.get_batch, range(base.num_record_batches))
        else:
            base = pq.ParquetFile(f"{corpus}/{shard}")
            groups = map(base.read_row_group, range(base.num_row_groups))
        for at, group in enumerate(group for group in groups if group.num_rows):
            yield shard, group, side.read_row_group(at, ["weight"])["weight"]
