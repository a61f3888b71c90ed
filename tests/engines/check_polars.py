import polars as pl
wanted = parquet_only(expected())
same(keyed(recipe_polars.rows("corpus", "output").select(COLUMNS).collect().rows()), wanted, "polars delta")
for path in DeltaTable("output").file_uris():
    assert pl.read_parquet(path)["weight"].to_list() == pq.ParquetFile(path).read()["weight"].to_pylist()
if spliced:
    whole = pl.scan_delta("spliced").select(COLUMNS[2:]).collect().rows()
    same({row[0]: row for row in whole}, {values[0]: values for values in expected().values()}, "polars spliced")
