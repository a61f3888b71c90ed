wanted = parquet_only(expected())
found = recipe_duckdb.rows("corpus", "output").select(*COLUMNS).fetchall()
same(keyed(found), wanted, "duckdb sidecars")
import duckdb
weights = DeltaTable("output").to_pyarrow_table(columns=["shard", "row", "weight"])  # duckdb reads Arrow tables by name
least = duckdb.sql("select shard, row from weights where weight is not null order by weight, shard, row limit 5").fetchall()
everything = sorted((v[-1], key) for key, v in expected().items() if v[-1] is not None)
assert least == [key for _, key in everything[:5]], least
if spliced:
    whole = duckdb.sql("select id, prompt, response, text, weight from read_parquet($files, union_by_name = true)",
                       params={"files": DeltaTable("spliced").file_uris()}).fetchall()
    same({row[0]: row for row in whole}, {values[0]: values for values in expected().values()}, "duckdb spliced")
    kept = duckdb.sql("select count(*) from read_parquet($files, union_by_name = true) where weight > 1",
                      params={"files": DeltaTable("spliced").file_uris()}).fetchall()[0][0]
    assert kept == sum((v[-1] or 0) > 1 for v in expected().values())
