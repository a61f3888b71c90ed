//! Folders named `key=value` as columns, and shards that lack columns.

use super::shards::{add_parquet, ipc_file, paged, rows, split, unindexed, weights};
use super::{Lake, assert_same, lines};
use crate::sql::{FolderColumns, MissingColumns};

async fn folders() -> Lake {
    let mut lake = Lake::new();
    lake.logged = true;
    for (name, ids) in [
        ("region=eu/year=2023/a.parquet", 0..600),
        ("region=eu/year=2024/b.parquet", 600..900),
        ("region=us/year=2024/c.parquet", 900..1300),
        ("region=__HIVE_DEFAULT_PARTITION__/year=2024/d.parquet", 1300..1400),
        ("plain/e.parquet", 1400..1500),
    ] {
        let data = rows(ids.clone(), &["id", "text", "n"]);
        let count = (ids.end - ids.start) as usize;
        add_parquet(&mut lake, name, data, ids, &[count / 2, count - count / 2], paged(), !name.contains("d.parquet")).await;
    }
    let data = rows(1500..1700, &["text", "id"]);
    let sidecar = (weights("x", 1500..1700), vec![120, 80]);
    lake.add("region=us/year=2022/f.arrow", ipc_file(&split(&data, &[120, 80])), vec![data], Some(sidecar)).await;
    lake
}

#[tokio::test]
async fn keys_are_columns_that_give_the_twins_rows() {
    let lake = folders().await;
    let schema = datafusion::catalog::TableProvider::schema(&lake.table().await.unwrap());
    let names: Vec<_> = schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
    assert_eq!(names[..6], ["id Int64", "text Utf8", "n Int64", "region Utf8", "year Int64", "shard Utf8"]);
    let twin = lake.twin(&schema);
    for partitions in [1, 4] {
        let session = lake.session(partitions).await.unwrap();
        for sql in [
            "select * from corpus",
            "select region, year, count(*), count(weight), avg(weight) from corpus group by region, year",
            "select region, count(*) from corpus group by region",
            "select id, weight, region from corpus where year = 2024 and weight > 0.4",
            "select id, year from corpus where region is null",
            "select weight from corpus where region = 'us' and id < 1600",
            "select min(year), max(year), min(region), max(region), count(region), count(year) from corpus",
            "select region, max(year) from corpus where weight > 0.5 or year < 2023 group by region",
            "select id from corpus where region = 'us' or id < 5",
            "select distinct year from corpus order by year desc limit 2",
            "select count(*) from corpus where year > 2022 and region in ('eu', 'us')",
            "select a.id, b.year from corpus a join (select max(id) as id, year from corpus group by year) b on a.id = b.id",
        ] {
            let expected = lines(&twin, sql).await.unwrap();
            assert!(!expected.is_empty(), "{sql}");
            assert_same(&lines(&session, sql).await.unwrap(), &expected, &format!("{partitions} partitions: {sql}"));
        }
    }
}

#[tokio::test]
async fn a_filter_on_a_key_opens_no_other_shard() {
    let lake = folders().await;
    for (sql, opened) in [
        ("select id, weight from corpus where region = 'eu' and year = 2024", "b.parquet"),
        ("select text from corpus where year = 2022", "f.arrow"),
        ("select count(n) from corpus where region is null and year is not null", "d.parquet"),
    ] {
        let session = lake.session(4).await.unwrap();
        assert!(!lines(&session, sql).await.unwrap().is_empty());
        let all = lake.corpus.bytes("") + lake.output.bytes("");
        assert_eq!(all, lake.corpus.bytes(opened) + lake.output.bytes(opened), "{sql}");
        assert!(all > 0, "{sql}");
    }
    for sql in [
        "select region, year, count(*) from corpus group by region, year",
        "select count(*) from corpus where region = 'us'",
        "select id from corpus where year = 1999",
        "select count(weight) from corpus where year = 2024",
    ] {
        let session = lake.session(4).await.unwrap();
        lines(&session, sql).await.unwrap();
        assert_eq!((lake.corpus.reads(""), lake.output.reads("")), (vec![], vec![]), "{sql}");
    }
    let session = lake.session(4).await.unwrap();
    lines(&session, "select region, avg(weight) from corpus where weight > 0 group by region").await.unwrap();
    assert_eq!(lake.corpus.reads(""), vec![], "weights by a key");
}

#[tokio::test]
async fn a_column_of_the_files_keeps_its_name() {
    let mut lake = Lake::new();
    lake.logged = true;
    add_parquet(&mut lake, "source=web/model=x/a.parquet", rows(0..40, &["id", "source"]), 0..40, &[40], paged(), true).await;
    let session = lake.session(1).await.unwrap();
    let found = lines(&session, "select distinct pushpull_source, model, pushpull_model from corpus").await.unwrap();
    assert_eq!(found, ["web | x | m0"]);
    assert!(lines(&session, "select source from corpus").await.unwrap().iter().all(|source| source.starts_with("source-")));
    lake.options.folders = FolderColumns::None;
    let session = lake.session(1).await.unwrap();
    assert_eq!(lines(&session, "select distinct model from corpus").await.unwrap(), ["m0"]);
    assert!(lines(&session, "select pushpull_source from corpus").await.is_err());
}

#[tokio::test]
async fn missing_columns_are_told_or_refused() {
    let mut lake = Lake::new();
    lake.logged = true;
    add_parquet(&mut lake, "a.parquet", rows(0..100, &["id", "text", "n"]), 0..100, &[100], paged(), true).await;
    add_parquet(&mut lake, "b.parquet", rows(100..200, &["text", "id"]), 100..200, &[100], unindexed(), true).await;
    add_parquet(&mut lake, "c.parquet", rows(200..300, &["id", "lang", "text"]), 200..300, &[100], paged(), false).await;
    let table = lake.table().await.unwrap();
    let missing: Vec<_> = table.missing_columns().iter().map(|m| (m.column.as_str(), m.shards, m.first.as_str())).collect();
    assert_eq!(missing, [("n", 2, "b.parquet"), ("lang", 2, "a.parquet")]);
    let session = lake.session(2).await.unwrap();
    assert_eq!(lines(&session, "select count(*), count(n), count(lang), count(text) from corpus").await.unwrap(), ["300 | 85 | 67 | 300"]);
    lake.options.missing = MissingColumns::Refuse;
    let error = lake.table().await.unwrap_err().to_string();
    let expected = "shard b.parquet: column `n` is missing here and in 1 more; `[corpus] missing_columns = \"null\"` makes it NULL there";
    assert_eq!(error, expected);
}
