//! What must be an error is one, and it names the shard.

use std::sync::Arc;

use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::shards::{add_arrow, add_parquet, ipc_file, paged, parquet_bytes, rows, sidecar_bytes, split, unindexed, weights};
use super::{Lake, full_text, lines, put};
use crate::error::Error;
use crate::sql::{CorpusShard, ShardFormat};

async fn two_shards() -> Lake {
    let mut lake = Lake::new();
    add_parquet(&mut lake, "one.parquet", rows(0..600, &["id", "text"]), 0..600, &[300, 300], paged(), true).await;
    add_parquet(&mut lake, "two.parquet", rows(600..900, &["id", "text"]), 600..900, &[300], paged(), true).await;
    lake
}

async fn error_of(lake: &Lake, sql: &str) -> Error {
    let session = lake.session(4).await.unwrap();
    lines(&session, sql).await.unwrap_err()
}

#[tokio::test]
async fn a_shard_that_changed_since_it_was_weighed() {
    let queries = ["select * from corpus", "select weight from corpus", "select id from corpus", "select count(*) from corpus"];
    for sql in queries {
        let mut lake = two_shards().await;
        lake.shards[1].listed.version = "another".to_owned();
        let error = error_of(&lake, sql).await;
        assert!(matches!(&error, Error::Shard { shard, .. } if shard == "two.parquet"), "{sql}: {error}");
        let (size, was) = (lake.shards[1].listed.meta.size, &lake.shards[1].listed.sidecar.as_ref().unwrap().base_version);
        let expected = format!(
            "shard two.parquet: changed since it was weighed: run `pushpull run` again; base sft/two.parquet is now version another \
             ({size} bytes), sidecar data/two.parquet.weights was made for version {was} ({size} bytes)"
        );
        assert_eq!(error.to_string(), expected);

        let mut lake = two_shards().await;
        lake.shards[0].listed.sidecar.as_mut().unwrap().base_size += 1;
        assert!(error_of(&lake, sql).await.to_string().starts_with("shard one.parquet: changed"));
    }
}

#[tokio::test]
async fn a_changed_shard_does_not_stand_in_the_way_of_others() {
    let mut lake = two_shards().await;
    lake.shards[1].listed.version = "another".to_owned();
    let session = lake.session(2).await.unwrap();
    for filter in
        ["shard = 'one.parquet'", "shard <> 'two.parquet' and weight is not null", "shard like 'one%'", "shard in ('one.parquet', 'x')"]
    {
        let found = lines(&session, &format!("select id, weight from corpus where {filter}")).await.unwrap();
        assert!(found.len() > 500, "{filter}");
    }
    assert_eq!(lake.corpus.bytes("two") + lake.output.bytes("two"), 0);
    assert!(lines(&session, "select id from corpus where shard > 'one'").await.is_err());
}

#[tokio::test]
async fn a_shard_replaced_after_it_was_listed() {
    for sql in ["select * from corpus", "select id from corpus where weight > 0.1", "select id from corpus"] {
        let lake = two_shards().await;
        let session = lake.session(2).await.unwrap();
        // The same bytes again: only the entity tag tells.
        let path = Path::from("sft/two.parquet");
        let bytes = lake.corpus.get(&path).await.unwrap().bytes().await.unwrap();
        lake.corpus.put(&path, bytes.into()).await.unwrap();
        let error = lines(&session, sql).await.unwrap_err();
        assert!(full_text(&error).contains("shard two.parquet: changed while it was read"), "{sql}: {}", full_text(&error));
    }
}

/// Replaces the sidecar of the first shard.
async fn with_sidecar(groups: &[usize]) -> Lake {
    let mut lake = two_shards().await;
    let count: usize = groups.iter().sum();
    let meta = put(&*lake.output, "data/other", sidecar_bytes(&weights("x", 0..count as u64), groups)).await;
    lake.shards[0].listed.sidecar.as_mut().unwrap().meta = meta;
    lake
}

#[tokio::test]
async fn a_sidecar_with_other_row_groups() {
    for sql in ["select id, weight from corpus", "select weight from corpus", "select * from corpus limit 1"] {
        let error = full_text(&error_of(&with_sidecar(&[299, 301]).await, sql).await);
        let expected =
            "shard one.parquet, row group 0: sidecar data/other does not fit base sft/one.parquet: it has 299 rows, the base 300";
        assert!(error.contains(expected), "{sql}: {error}");
        let error = full_text(&error_of(&with_sidecar(&[600]).await, sql).await);
        let expected = "shard one.parquet: sidecar data/other does not fit base sft/one.parquet: it has 1 row groups, the base 2";
        assert!(error.contains(expected), "{sql}: {error}");
    }
}

/// Where the base is not opened, the rows must be as many as were published; where it is, its row groups must be the sidecar's.
#[tokio::test]
async fn a_sidecar_with_other_rows_than_were_published() {
    for sql in ["select weight from corpus", "select id, weight from corpus", "select harm_ref from corpus limit 1"] {
        let mut lake = with_sidecar(&[300, 299]).await;
        lake.logged = true;
        let error = full_text(&error_of(&lake, sql).await);
        let expected = "shard one.parquet: sidecar data/other: it has 599 rows, published for base sft/one.parquet were 600";
        assert!(error.contains(expected), "{sql}: {error}");
    }
    let mut lake = with_sidecar(&[299, 301]).await;
    lake.logged = true;
    let error = full_text(&error_of(&lake, "select id, weight from corpus").await);
    assert!(error.contains("row group 0: sidecar data/other does not fit base sft/one.parquet"), "{error}");
}

#[tokio::test]
async fn a_sidecar_that_says_it_was_made_for_another_base() {
    for (key, value) in [("pushpull.base_version", "another"), ("pushpull.base_size", "1")] {
        let mut lake = two_shards().await;
        let key_value = parquet::file::metadata::KeyValue::new(key.to_owned(), value.to_owned());
        let properties = paged().into_builder().set_key_value_metadata(Some(vec![key_value])).build();
        let bytes = parquet_bytes(&split(&weights("x", 0..600), &[300, 300]), properties, false);
        lake.shards[0].listed.sidecar.as_mut().unwrap().meta = put(&*lake.output, "data/other", bytes).await;
        for sql in ["select weight from corpus", "select id, weight from corpus limit 1"] {
            let error = full_text(&error_of(&lake, sql).await);
            let expected = format!("shard one.parquet: sidecar data/other: its {key} is {value}, that of base sft/one.parquet is ");
            assert!(error.contains(&expected), "{error}");
        }
    }
}

#[tokio::test]
async fn an_arrow_shard_whose_sidecar_does_not_fit() {
    for (groups, expected) in [
        (
            &[200, 100][..],
            "shard x.arrow, row group 1: sidecar data/x.arrow.weights does not fit base sft/x.arrow: it has 100 rows, the base 150",
        ),
        (&[200, 150, 50], "shard x.arrow: sidecar data/x.arrow.weights does not fit base sft/x.arrow: it has 1 row groups too many"),
        (&[200], "shard x.arrow, row group 1: sidecar data/x.arrow.weights does not fit base sft/x.arrow: it ends before the base"),
    ] {
        let mut lake = Lake::new();
        let data = rows(0..350, &["id", "text"]);
        let count: usize = groups.iter().sum();
        let sidecar = (weights("x", 0..count as u64), groups.to_vec());
        lake.add("x.arrow", ipc_file(&split(&data, &[200, 150])), vec![data], Some(sidecar)).await;
        let error = full_text(&error_of(&lake, "select id, weight from corpus").await);
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_sidecar_that_is_gone() {
    let lake = two_shards().await;
    lake.output.delete(&Path::from("data/one.parquet.weights")).await.unwrap();
    let error = error_of(&lake, "select weight from corpus").await;
    assert!(full_text(&error).contains("shard one.parquet: sidecar data/one.parquet.weights: cannot be read"), "{}", full_text(&error));
}

#[tokio::test]
async fn shards_that_cannot_be_read() {
    let parquet = parquet_bytes(&[rows(0..50, &["id"])], unindexed(), false);
    let arrow = ipc_file(&[rows(0..50, &["id"])]);
    for (name, bytes) in [
        ("cut.parquet", parquet[..parquet.len() - 20].to_vec()),
        ("text.parquet", b"no parquet at all".to_vec()),
        ("cut.arrow", arrow[..arrow.len() - 20].to_vec()),
        ("text.arrow", b"no arrow at all, only a few words".to_vec()),
        ("none.arrow", vec![]),
        ("none.parquet", vec![]),
    ] {
        let mut lake = Lake::new();
        lake.add(name, bytes, vec![], None).await;
        let error = lake.table().await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("shard {name}: ")), "{error}");
    }
    let missing = CorpusShard {
        name: "missing.parquet".to_owned(),
        format: ShardFormat::Parquet,
        meta: put(&object_store::memory::InMemory::new(), "sft/missing.parquet", vec![0; 100]).await,
        version: String::new(),
        schema: None,
        rows: None,
        sidecar: None,
    };
    let lake = Lake::new();
    let error = crate::sql::CorpusTable::try_new(lake.corpus.clone(), lake.output.clone(), vec![missing]).await.unwrap_err();
    assert!(error.to_string().starts_with("shard missing.parquet: cannot be read"), "{error}");
}

#[tokio::test]
async fn an_arrow_file_that_breaks_off_in_a_batch() {
    let mut lake = Lake::new();
    add_arrow(&mut lake).await;
    let mut bytes = ipc_file(&split(&rows(0..400, &["id", "text"]), &[200, 200]));
    let middle = bytes.len() / 3;
    bytes[middle - 200..middle + 3000].fill(0xff);
    lake.add("z.arrow", bytes, vec![], None).await;
    // Whether the damage lies in values or in offsets decides if it can be noticed; it must not panic.
    let session = lake.session(2).await.unwrap();
    let _ = lines(&session, "select id, text from corpus").await;
}

#[tokio::test]
async fn the_table_works_in_a_session_of_someone_else() {
    let lake = two_shards().await;
    let context = datafusion::prelude::SessionContext::new();
    context.register_table("c", Arc::new(lake.table().await.unwrap())).unwrap();
    let rows = context.sql("select id from c where weight > 0.2").await.unwrap().collect().await.unwrap();
    assert!(rows.iter().map(|b| b.num_rows()).sum::<usize>() > 0);
}

/// On a local disk: what is listed is what is read, and a file written again in between is noticed.
#[tokio::test]
async fn files_on_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn object_store::ObjectStore> = Arc::new(object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let bytes = parquet_bytes(&split(&rows(0..900, &["id", "text"]), &[500, 400]), paged(), false);
    let meta = put(&*store, "base dir/a b.parquet", bytes.clone()).await;
    let side = put(&*store, "out/a.parquet", sidecar_bytes(&weights("x", 0..900), &[500, 400])).await;
    let version = "v".to_owned();
    let sidecar = Some(crate::sql::SidecarRef {
        base_size: meta.size,
        base_version: version.clone(),
        meta: side,
        model: "m".to_owned(),
        rows: 900,
        unweighed: 69,
        weight_range: None,
    });
    let (name, format) = ("a b.parquet".to_owned(), ShardFormat::Parquet);
    let shard = CorpusShard { name, format, meta, version, schema: None, rows: None, sidecar };
    let table = crate::sql::CorpusTable::try_new(store.clone(), store.clone(), vec![shard]).await.unwrap();
    let session = crate::sql::SqlSession::new(2);
    session.register_table("corpus", Arc::new(table)).unwrap();
    assert_eq!(lines(&session, "select count(*), count(weight), sum(id) from corpus where id >= 0").await.unwrap(), ["900 | 831 | 404550"]);
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    put(&*store, "base dir/a b.parquet", bytes).await;
    let error = lines(&session, "select id, text from corpus").await.unwrap_err();
    assert!(full_text(&error).contains("shard a b.parquet: changed while it was read"), "{}", full_text(&error));
}
