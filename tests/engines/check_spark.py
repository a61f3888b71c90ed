from pyspark.sql import SparkSession
spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.sql.shuffle.partitions", "2").config("spark.sql.warehouse.dir", os.path.abspath("warehouse"))
    # Small data: what costs time is Java warming up.
    .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1").config("spark.sql.codegen.wholeStage", "false")
    .config("spark.log.level", "ERROR").getOrCreate()
)
wanted = parquet_only(expected())
rows = recipe_spark.rows(spark, "corpus", "output").select(*COLUMNS).collect()
same(keyed(tuple(row) for row in rows), wanted, "spark sidecars")
if spliced:
    whole = spark.read.option("mergeSchema", True).parquet(*DeltaTable("spliced").file_uris()).select(*COLUMNS[2:])
    same({row[0]: tuple(row) for row in whole.collect()}, {values[0]: values for values in expected().values()}, "spark spliced")
    kept = whole.where("weight > 1").count()
    assert kept == sum((v[-1] or 0) > 1 for v in expected().values()), kept
spark.stop()
