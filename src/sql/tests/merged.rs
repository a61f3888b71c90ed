//! Every query over the merged table gives the rows the naive twin gives, however the scan is cut.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use arrow::ipc::reader::FileReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::shards::{add_arrow, add_parquet, paged, parquet_bytes, parquet_lake, rows, split, weights};
use super::{Lake, assert_same, lines};

const QUERIES: [&str; 38] = [
    "select * from corpus",
    "select weight from corpus",
    "select id, weight from corpus",
    "select id, text from corpus where weight > 0.9",
    "select * from corpus where weight > 0.95",
    "select id, tokens, weight from corpus where weight > 0.4 and source = 'source-1'",
    "select id, text, lang from corpus where (weight > 0.9 or n < 20) and id between 3000 and 22500",
    "select id, weight, lang, shard from corpus where id between 4990 and 5010",
    "select id, meta['score'] as score, array_length(tokens) as k from corpus where weight > 0.8",
    "select count(*) from corpus",
    "select count(*), count(weight), sum(id), count(text), count(tokens), count(lang), count(n) from corpus",
    "select min(weight), max(weight), min(id), max(id), min(n), max(n), min(score), max(score), max(source), max(harm_ref) from corpus",
    "select source, count(*), count(weight), sum(n) from corpus group by source",
    "select shard, count(*), count(weight), min(row), max(row) from corpus group by shard",
    "select shard, count(*) from corpus where weight is null group by shard",
    "select id, weight, source from corpus order by weight desc nulls last, id limit 10",
    "select id, weight from corpus where weight > 0.5 order by id desc limit 10",
    "select * from corpus where weight > 2",
    "select id, lang, weight from corpus where lang is null and weight > 0.85",
    "select count(*) from corpus where weight is null",
    "select a.id, a.weight, a.text from corpus a join (select id from corpus where weight > 0.97) b on a.id = b.id",
    "select id, r from (select id, source, row_number() over (partition by source order by weight desc nulls last, id) as r from corpus) where r <= 2",
    "select id from corpus where weight > 0.9 except select id from corpus where weight > 0.95",
    "select id, text from corpus where weight > cast(0.95 as real)",
    "select harm_ref, safe_ref, count(*) from corpus where shard like 'b/%' group by harm_ref, safe_ref",
    "select id, shard, row, model, shard_version from corpus where shard = 'a/indexed.parquet' and row between 990 and 1010",
    "select row, push + pull + prior as s from corpus where harm_ref = 'harm2' and row < 40",
    "select id from corpus where n is null and weight < 0.3",
    "select id, source from corpus where source in ('source-0', 'source-4') and weight between 0.2 and 0.25",
    "select id from corpus where id = 8801 or id = 22001 or id = 9800 or id = 4",
    "select id from corpus where weight > (select avg(weight) from corpus) and shard = (select min(shard) from corpus)",
    "select shard, row from corpus where shard in (select shard from corpus where weight > 0.99)",
    "select id, weight from corpus order by weight nulls first, id limit 700",
    "select count(*), count(shard), max(shard) from corpus where shard > 'c'",
    "select window from corpus",
    "select id, substr(text, window + 1, 20) as passage from corpus where window >= 100 and window_view = 'text'",
    "select shard, count(window), min(window), max(window), max(window_view) from corpus group by shard",
    "select count(window), min(window), max(window), max(window_view) from corpus where shard in ('c/dictionary.parquet', 'e/stream.arrow')",
];

async fn same_as_twin(lake: &mut Lake) {
    for logged in [false, true] {
        lake.logged = logged;
        queries_give_the_twins_rows(lake).await;
    }
}

async fn queries_give_the_twins_rows(lake: &Lake) {
    let schema = datafusion::catalog::TableProvider::schema(&lake.table().await.unwrap());
    let twin = lake.twin(&schema);
    for partitions in [1, 4, 16] {
        let session = lake.session(partitions).await.unwrap();
        for sql in QUERIES {
            let expected = lines(&twin, sql).await.unwrap();
            assert_eq!(expected.is_empty(), sql.contains("weight > 2"), "{sql}");
            assert_same(&lines(&session, sql).await.unwrap(), &expected, &format!("{partitions} partitions: {sql}"));
            // Once more, with the footers that the first run left behind.
            assert_same(&lines(&session, sql).await.unwrap(), &expected, &format!("{partitions} partitions, again: {sql}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_shards_of_every_shape() {
    same_as_twin(&mut parquet_lake().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_and_arrow_shards_together() {
    let mut lake = parquet_lake().await;
    add_arrow(&mut lake).await;
    same_as_twin(&mut lake).await;
}

/// Shards with row groups, pages and indexes drawn at random, some with very small ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_cut_at_random() {
    for seed in 0..4 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut lake = Lake::new();
        let mut first = 0;
        for shard in 0..3 {
            let mut groups: Vec<usize> = (0..rng.random_range(1..6)).map(|_| rng.random_range(1..400)).collect();
            groups.push(1);
            let ids = first..first + groups.iter().sum::<usize>() as u64;
            first = ids.end;
            let mut properties = || {
                let pages = rng.random_range(1..300);
                WriterProperties::builder()
                    .set_data_page_row_count_limit(pages)
                    .set_write_batch_size(pages.min(64))
                    .set_dictionary_enabled(rng.random())
                    .set_statistics_enabled(
                        [EnabledStatistics::None, EnabledStatistics::Chunk, EnabledStatistics::Page][rng.random_range(0..3)],
                    )
                    .set_offset_index_disabled(rng.random())
                    .build()
            };
            lake.logged = seed % 2 == 1;
            let (base, side) = (properties(), properties());
            let (name, data) = (format!("{shard}.parquet"), rows(ids.clone(), &["tokens", "id", "text", "source", "n"]));
            let weights = weights("x", ids);
            let bytes = parquet_bytes(&split(&data, &groups), base, false);
            lake.add_with(&name, bytes, vec![data], parquet_bytes(&split(&weights, &groups), side, false), weights).await;
        }
        let schema = datafusion::catalog::TableProvider::schema(&lake.table().await.unwrap());
        let twin = lake.twin(&schema);
        for partitions in [1, 3, 32] {
            let session = lake.session(partitions).await.unwrap();
            for sql in QUERIES.iter().filter(|sql| !["lang", "meta", "score"].iter().any(|c| sql.contains(c))) {
                let expected = lines(&twin, sql).await.unwrap();
                assert_same(&lines(&session, sql).await.unwrap(), &expected, &format!("seed {seed}, {partitions} partitions: {sql}"));
            }
        }
    }
}

/// The corpus of the quick start: files of pyarrow, an Arrow file, dictionaries, large strings.
#[tokio::test]
async fn the_quick_start_corpus() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quickstart/corpus");
    let mut lake = Lake::new();
    let names = ["nested/part-0002.parquet", "part-0000.parquet", "part-0001.parquet", "part-0003.parquet", "part-0004.arrow"];
    for (nth, name) in names.into_iter().enumerate() {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let (base, groups) = read_base(name, &bytes);
        let first = nth as u64 * 1000;
        let weights = weights("x", first..first + groups.iter().sum::<usize>() as u64);
        lake.add(name, bytes, base, Some((weights, groups))).await;
    }
    let schema = datafusion::catalog::TableProvider::schema(&lake.table().await.unwrap());
    let twin = lake.twin(&schema);
    for partitions in [1, 4] {
        let session = lake.session(partitions).await.unwrap();
        for sql in [
            "select * from corpus",
            "select id, source, weight from corpus where weight > 0.5 and source in ('coding', 'health')",
            "select source, count(*), avg(weight) from corpus group by source",
            "select label, count(*), min(weight), max(prompt) from corpus group by label",
            "select id from corpus where prompt is null and response is null",
            "select id, harm_ref from corpus where text is not null order by weight desc limit 5",
            "select count(*), count(weight), count(text), min(id), max(source), max(weight) from corpus",
        ] {
            let expected = lines(&twin, sql).await.unwrap();
            assert!(!expected.is_empty(), "{sql}");
            assert_same(&lines(&session, sql).await.unwrap(), &expected, &format!("{partitions} partitions: {sql}"));
        }
    }
}

/// The rows of a file, and the row counts of its row groups or record batches.
fn read_base(name: &str, bytes: &[u8]) -> (Vec<RecordBatch>, Vec<usize>) {
    if name.ends_with(".arrow") {
        let batches: Vec<_> = FileReader::try_new(Cursor::new(bytes), None).unwrap().map(|b| b.unwrap()).collect();
        let groups = batches.iter().map(RecordBatch::num_rows).collect();
        return (batches, groups);
    }
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::copy_from_slice(bytes)).unwrap();
    let groups = builder.metadata().row_groups().iter().map(|g| g.num_rows() as usize).collect();
    (builder.build().unwrap().map(|b| b.unwrap()).collect(), groups)
}

#[tokio::test]
async fn a_limit_gives_that_many_rows_of_the_table() {
    let mut lake = parquet_lake().await;
    add_arrow(&mut lake).await;
    let session = lake.session(4).await.unwrap();
    let all = lines(&session, "select id, weight from corpus").await.unwrap();
    for (sql, count) in
        [("select id, weight from corpus limit 17", 17), ("select id, weight from corpus where weight > 0 limit 2500", 2500)]
    {
        let some = lines(&session, sql).await.unwrap();
        assert_eq!(some.len(), count, "{sql}");
        assert!(some.iter().all(|row| all.binary_search(row).is_ok()), "{sql}");
    }
    assert_eq!(lines(&session, "select weight from corpus limit 5").await.unwrap().len(), 5);
    assert_eq!(lines(&session, "select 1 from corpus limit 5000").await.unwrap().len(), 5000);
}

#[tokio::test]
async fn a_base_column_keeps_its_name_and_the_weight_gets_another() {
    let mut lake = Lake::new();
    add_parquet(&mut lake, "plain.parquet", rows(0..500, &["id", "text"]), 0..500, &[300, 200], paged(), true).await;
    add_parquet(&mut lake, "taken.parquet", rows(500..900, &["id", "weight"]), 500..900, &[100, 300], paged(), true).await;
    add_parquet(&mut lake, "later.parquet", rows(900..1000, &["weight", "id"]), 900..1000, &[100], paged(), false).await;
    let schema = datafusion::catalog::TableProvider::schema(&lake.table().await.unwrap());
    assert!(schema.index_of("pushpull_weight").unwrap() > schema.index_of("weight").unwrap());
    let twin = lake.twin(&schema);
    let session = lake.session(4).await.unwrap();
    for sql in [
        "select * from corpus",
        "select pushpull_weight from corpus",
        "select max(pushpull_weight), min(pushpull_weight), max(weight) from corpus",
        "select id, weight, pushpull_weight, pull from corpus where pushpull_weight > 0.5 and (weight > 5500 or weight is null)",
        "select pull from corpus where pushpull_weight > 0.6",
    ] {
        let expected = lines(&twin, sql).await.unwrap();
        assert!(!expected.is_empty());
        assert_same(&lines(&session, sql).await.unwrap(), &expected, sql);
    }
}

/// Bounds in a footer leave NaN out: a column of 1 and NaN must not be taken for a constant.
#[tokio::test]
async fn a_nan_is_no_constant() {
    let mut lake = Lake::new();
    let score: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN, 1.0]));
    let id: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let data = RecordBatch::try_from_iter([("id", id), ("score", score)]).unwrap();
    add_parquet(&mut lake, "nan.parquet", data, 0..3, &[3], paged(), true).await;
    let session = lake.session(1).await.unwrap();
    assert_eq!(lines(&session, "select id, score from corpus").await.unwrap(), ["1 | 1.0", "2 | NaN", "3 | 1.0"]);
    assert_eq!(lines(&session, "select max(score) from corpus").await.unwrap(), ["NaN"]);
}

#[tokio::test]
async fn a_corpus_without_shards_is_an_empty_table() {
    let lake = Lake::new();
    let session = lake.session(2).await.unwrap();
    assert_eq!(lines(&session, "select count(*), max(weight) from corpus").await.unwrap(), ["0 | NULL"]);
}
