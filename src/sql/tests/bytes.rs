//! Which bytes a query reads.

use super::shards::{add_arrow, add_parquet, paged, parquet_lake, rows};
use super::{Lake, lines};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_alone_read_no_base() {
    let mut lake = parquet_lake().await;
    add_arrow(&mut lake).await;
    for (sql, sidecars) in [
        ("select weight, row, harm_ref, shard from corpus where shard not like '%unweighed%'", true),
        ("select count(weight) from corpus where weight > 0.4 and shard not like '%unweighed%'", true),
        ("select shard, avg(weight) from corpus where shard < 'd' group by shard", true),
    ] {
        let session = lake.session(4).await.unwrap();
        lines(&session, sql).await.unwrap();
        let base: Vec<_> = lake.corpus.reads("sft/").into_iter().collect();
        let parquet = lake.corpus.bytes(".parquet");
        assert_eq!(parquet, 0, "{sql}: {base:?}");
        assert_eq!(lake.corpus.bytes("e/file") + lake.corpus.bytes("e/stream"), 0, "{sql}");
        assert_eq!(lake.output.bytes("") > 0, sidecars, "{sql}");
    }
}

#[tokio::test]
async fn a_count_reads_nothing() {
    let lake = parquet_lake().await;
    let session = lake.session(4).await.unwrap();
    assert_eq!(lines(&session, "select count(*) from corpus").await.unwrap().len(), 1);
    assert_eq!((lake.corpus.reads(""), lake.output.reads("")), (vec![], vec![]));
}

#[tokio::test]
async fn the_bounds_of_the_weight_come_from_footers() {
    let mut lake = Lake::new();
    add_parquet(&mut lake, "one.parquet", rows(0..900, &["id"]), 0..900, &[500, 400], paged(), true).await;
    add_parquet(&mut lake, "two.parquet", rows(900..1500, &["id"]), 900..1500, &[600], paged(), true).await;
    let session = lake.session(4).await.unwrap();
    assert_eq!(lines(&session, "select min(weight), max(weight), count(weight) from corpus").await.unwrap().len(), 1);
    assert_eq!(lake.output.reads("").len(), 2, "one footer each");
    assert_eq!(lake.corpus.reads(""), vec![]);
    lines(&session, "select min(weight), max(weight), count(weight) from corpus").await.unwrap();
    assert_eq!(lake.output.reads("").len(), 2, "and only once");
}

#[tokio::test]
async fn base_columns_alone_read_no_sidecar() {
    let lake = parquet_lake().await;
    let session = lake.session(4).await.unwrap();
    lines(&session, "select id, source from corpus where id > 3000").await.unwrap();
    assert_eq!(lake.output.reads(""), vec![]);
    assert!(lake.corpus.bytes("") > 0);
}

/// One big row group per shard, so that only pages can be skipped.
async fn one_group_lake(properties: parquet::file::properties::WriterProperties) -> Lake {
    let mut lake = Lake::new();
    let data = rows(0..20_000, &["id", "text"]);
    add_parquet(&mut lake, "big.parquet", data, 0..20_000, &[20_000], properties, true).await;
    lake
}

#[tokio::test]
async fn a_predicate_on_the_weight_skips_pages_of_the_base() {
    let sql = "select id, text from corpus where weight > 0.985";
    let mut read = vec![];
    for properties in [paged(), super::shards::unindexed()] {
        let lake = one_group_lake(properties).await;
        let session = lake.session(1).await.unwrap();
        let found = lines(&session, sql).await.unwrap();
        assert!(!found.is_empty() && found.len() < 200, "{}", found.len());
        read.push((lake.corpus.bytes(""), lake.size_of("big.parquet").await));
    }
    let [(indexed, size), (whole, _)] = read[..] else { panic!("{read:?}") };
    assert!(indexed * 3 < size, "{indexed} of {size} bytes with a page index");
    assert!(whole * 10 > size * 8, "{whole} bytes without one");
}

#[tokio::test]
async fn a_predicate_no_weight_meets_reads_no_base() {
    let lake = parquet_lake().await;
    let session = lake.session(4).await.unwrap();
    assert!(lines(&session, "select * from corpus where weight > 2").await.unwrap().is_empty());
    // A shard of one row is answered from its constants, for which the scan opens it.
    let others: Vec<_> = ["a/", "b/", "c/", "d/unweighed"].iter().flat_map(|part| lake.corpus.reads(part)).collect();
    assert_eq!(others, vec![]);
    assert!(lake.corpus.bytes("d/one-row") < 500);
}

#[tokio::test]
async fn footers_are_fetched_once_however_the_scan_is_cut() {
    let lake = one_group_lake(paged()).await;
    let session = lake.session(16).await.unwrap();
    lines(&session, "select id, weight from corpus where weight > 0.9").await.unwrap();
    let tail = lake.size_of("big.parquet").await - 100;
    let index_reads = lake.corpus.reads("").into_iter().filter(|r| r.end > tail).count();
    assert!(index_reads <= 1, "{index_reads}");
    let side: Vec<_> = lake.output.reads("");
    let size = lake.shards[0].listed.sidecar.as_ref().unwrap().meta.size;
    assert_eq!(side.iter().filter(|r| r.end == size).count(), 1, "{side:?}");
}

#[tokio::test]
async fn a_limit_opens_few_shards() {
    let lake = parquet_lake().await;
    let session = lake.session(1).await.unwrap();
    lines(&session, "select id, weight from corpus limit 10").await.unwrap();
    assert_eq!(lake.corpus.bytes("b/") + lake.corpus.bytes("c/"), 0);
    assert_eq!(lake.output.bytes("b/") + lake.output.bytes("c/"), 0);
}

#[tokio::test]
async fn rows_of_an_arrow_file_are_counted_from_its_headers() {
    let mut lake = Lake::new();
    add_arrow(&mut lake).await;
    let session = lake.session(2).await.unwrap();
    assert_eq!(lines(&session, "select count(*) from corpus where shard = 'e/unweighed-file.arrow'").await.unwrap(), ["400"]);
    assert!(lake.corpus.bytes("unweighed-file") < 8192, "{}", lake.corpus.bytes("unweighed-file"));
    assert_eq!(lake.corpus.bytes("e/file") + lake.corpus.bytes("e/stream"), 0);
}
