# Spark 3.5 and later: shards and sidecars joined by file and row number; both come with every Parquet file.
from deltalake import DeltaTable
from pyspark.sql import functions as f

def rows(spark, corpus, weights):
    base = spark.read.options(recursiveFileLookup=True, mergeSchema=True, pathGlobFilter="*.parquet").parquet(corpus)
    path = f.expr("url_decode(replace(_metadata.file_path, '+', '%2B'))")  # Spark escapes it as a URL
    base = base.select("*", f.substring_index(path, f"/{corpus}/", -1).alias("shard"), f.col("_metadata.row_index").alias("row"))
    # With Delta's package on the class path: spark.read.format("delta").load(weights)
    table = spark.read.parquet(*DeltaTable(weights).file_uris()).select("shard", "row", "weight")
    return base.join(table, ["shard", "row"])
