//! Which bytes a query reads.

use super::shards::{add_arrow, add_parquet, paged, parquet_lake, rows};
use super::{Lake, lines};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_alone_read_no_base() {
    let mut lake = parquet_lake().await;
    add_arrow(&mut lake).await;
    lake.logged = true;
    for (sql, sidecars) in [
        ("select weight, row, harm_ref, shard from corpus", true),
        ("select count(weight) from corpus where weight > 0.4", true),
        ("select shard, avg(weight) from corpus where shard < 'd' group by shard", true),
        ("select count(*), count(weight) from corpus", false),
        // A shard without weights has no bounds that could be put together with those of others.
        ("select min(weight), max(weight), min(row), max(row), max(model) from corpus where shard not like '%unweighed%'", false),
        ("select shard, model, shard_version, count(*) from corpus group by shard, model, shard_version", false),
        ("select count(*) from corpus where shard like '%unweighed%' and model is null", false),
        ("select weight, pull, harm_ref from corpus where shard like '%unweighed%'", false),
    ] {
        let session = lake.session(4).await.unwrap();
        lines(&session, sql).await.unwrap();
        assert_eq!(lake.corpus.reads(""), vec![], "{sql}");
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
async fn the_bounds_of_the_weight_come_from_the_log_and_others_from_footers() {
    let mut lake = Lake::new();
    add_parquet(&mut lake, "one.parquet", rows(0..900, &["id"]), 0..900, &[500, 400], paged(), true).await;
    add_parquet(&mut lake, "two.parquet", rows(900..1500, &["id"]), 900..1500, &[600], paged(), true).await;
    let session = lake.session(4).await.unwrap();
    assert_eq!(lines(&session, "select min(weight), max(weight), count(weight) from corpus").await.unwrap().len(), 1);
    assert_eq!((lake.corpus.reads(""), lake.output.reads("")), (vec![], vec![]));
    lake.logged = true;
    let session = lake.session(4).await.unwrap();
    let bounds = lines(&session, "select min(id), max(id) from corpus").await.unwrap();
    assert_eq!((bounds[0].as_str(), lake.corpus.reads("").len(), lake.output.reads("").len()), ("0 | 1499", 2, 0), "one footer each");
    lines(&session, "select min(id), max(id) from corpus").await.unwrap();
    assert_eq!(lake.corpus.reads("").len(), 2, "and only once");
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
    assert_eq!((lake.corpus.reads(""), lake.output.reads("")), (vec![], vec![]), "the log says so");
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

/// Tables of one process share what they read; another version of an object is read anew.
#[tokio::test]
async fn footers_are_kept_between_tables() {
    let mut lake = one_group_lake(paged()).await;
    (lake.logged, lake.keep_footers) = (true, true);
    let sql = "select id, text from corpus where weight > 0.985";
    lines(&lake.session(2).await.unwrap(), sql).await.unwrap();
    let first = (lake.corpus.reads("").len(), lake.output.reads("").len());
    lines(&lake.session(2).await.unwrap(), sql).await.unwrap();
    let second = (lake.corpus.reads("").len(), lake.output.reads("").len());
    assert!(second.0 < first.0 && second.1 < first.1, "{first:?} {second:?}");
    let footer = lake.size_of("big.parquet").await;
    assert!(lake.corpus.reads("").iter().all(|read| read.end < footer), "{:?}", lake.corpus.reads(""));
}

#[tokio::test]
async fn a_small_object_is_read_with_one_request() {
    let mut lake = Lake::new();
    lake.logged = true;
    for shard in 0..40 {
        let ids = shard * 20..shard * 20 + 20;
        add_parquet(&mut lake, &format!("{shard:02}.parquet"), rows(ids.clone(), &["id", "text"]), ids, &[20], paged(), true).await;
    }
    let session = lake.session(2).await.unwrap();
    assert_eq!(lines(&session, "select count(*), count(pull) from corpus where pull >= 0 or pull is null").await.unwrap().len(), 1);
    assert_eq!((lake.corpus.reads("").len(), lake.output.reads("").len()), (0, 40));
    lines(&session, "select id, text from corpus where weight >= 0").await.unwrap();
    assert_eq!((lake.corpus.reads("").len(), lake.output.reads("").len()), (40, 40));
}

/// One row in ten thousand: at most a fifth of the text is read, by way of the pages.
#[tokio::test]
async fn few_rows_read_few_pages_of_the_text() {
    let mut lake = one_group_lake(paged()).await;
    lake.logged = true;
    let session = lake.session(1).await.unwrap();
    let best = lines(&session, "select max(weight) from corpus").await.unwrap();
    lake.forget();
    let found = lines(&session, &format!("select text from corpus where weight >= cast({} as real)", best[0])).await.unwrap();
    assert!((1..=2).contains(&found.len()), "{}", found.len());
    let size = lake.size_of("big.parquet").await;
    assert!(lake.corpus.bytes("") * 5 < size, "{} of {size}", lake.corpus.bytes(""));
}
