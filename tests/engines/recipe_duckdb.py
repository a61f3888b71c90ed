# DuckDB: shards and sidecars as two tables, joined by shard and row number.
import duckdb
from deltalake import DeltaTable

def rows(corpus, weights):
    return duckdb.sql(f"""
        select b.* exclude (filename, file_row_number), w.shard, w.row, w.weight
        from read_parquet('{corpus}/**/*.parquet', filename = true, file_row_number = true, union_by_name = true) b
        join read_parquet($sidecars) w on b.filename = '{corpus}/' || w.shard and b.file_row_number = w.row
        """, params={"sidecars": DeltaTable(weights).file_uris()})
