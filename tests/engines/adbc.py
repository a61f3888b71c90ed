# The server by ADBC's Flight SQL driver, as BI tools and notebooks use it. Arguments: address, token, a file with the expected rows.
import json, sys
import adbc_driver_flightsql.dbapi as flight_sql
from adbc_driver_flightsql import DatabaseOptions
import adbc_driver_manager

address, token, wanted = sys.argv[1:]
wanted = [(row["shard"], row["row"], row["weight"]) for row in json.load(open(wanted))]
QUERY = "select shard, row, weight from corpus order by shard, row"


def near(found):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert a[:2] == b[:2] and (a[2] == b[2] or abs(a[2] - b[2]) < 1e-6 * abs(b[2])), (a, b)


bearer = {DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {token}"}
basic = {"username": "anyone", "password": token}
for options in (bearer, basic):
    with flight_sql.connect(f"grpc://{address}", db_kwargs=options, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(QUERY)
        table = cursor.fetch_arrow_table()
        near(list(zip(*table.to_pydict().values())))

with flight_sql.connect(f"grpc://{address}", db_kwargs=bearer, autocommit=True) as connection, connection.cursor() as cursor:
    cursor.execute(QUERY)
    near(cursor.fetchall())
    # Values for parameters.
    cursor.execute("select id from corpus where shard = $1 and row < $2 order by row", ("part-0001.parquet", 3))
    assert len(cursor.fetchall()) == 3
    # What a tool asks to draw its tree of tables.
    objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
    tables = {t["table_name"]: t for c in objects for s in c["catalog_db_schemas"] for t in s["db_schema_tables"]}
    assert {"corpus", "references", "shards", "runs", "models", "hygiene"} <= tables.keys(), tables.keys()
    assert "weight" in [column["column_name"] for column in tables["corpus"]["table_columns"]]
    assert connection.adbc_get_table_schema("corpus").field("weight").type == "float"
    assert "TABLE" in connection.adbc_get_table_types()
    info = connection.adbc_get_info()
    assert info["vendor_name"] == "pushpull", info
    # Rows as they come: one batch after the other.
    cursor.execute("select a.weight from corpus a, corpus b")
    assert sum(batch.num_rows for batch in cursor.fetch_record_batch()) == 410 * 410
    for bad, says in (("select wieght from corpus", "wieght"), ("delete from corpus", "DML not supported")):
        try:
            cursor.execute(bad)
            cursor.fetchall()
        except adbc_driver_manager.Error as error:
            assert says in str(error), error
        else:
            raise AssertionError(f"{bad} was not refused")

for options in ({}, {DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer wrong"}):
    try:
        with flight_sql.connect(f"grpc://{address}", db_kwargs=options, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("select 1")
    except adbc_driver_manager.Error as error:
        assert "nauthenticated" in str(error).replace("UNAUTHENTICATED", "unauthenticated"), error
    else:
        raise AssertionError("no token was needed")
print("adbc", len(wanted), "rows")
