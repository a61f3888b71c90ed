//! Sidecars as `writeback` writes them and the table `sql` makes of them, over the quick-start corpus on a disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Int64Type};
use arrow::ipc::reader::FileReader;
use object_store::ObjectMeta;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pushpull::shard::{Layout, Shard, ShardFormat, list_shards};
use pushpull::sql::{self, CorpusShard, CorpusTable, SidecarRef, SqlSession};
use pushpull::storage::{Location, Stores};
use pushpull::transport::RowWeight;
use pushpull::writeback::{ReferenceIds, SidecarIdentity, SidecarRow, SidecarWriter};

/// A weight that tells shard and row; every seventh row has none.
fn weight(shard: usize, row: usize) -> Option<RowWeight> {
    let weight = (shard * 1000 + row) as f32 / 1024.0;
    let of = |factor: f32| weight * factor;
    (row % 7 != 3).then_some(RowWeight {
        weight,
        pull: of(2.0),
        push: of(3.0),
        prior: 0.0,
        safe_ref: (row % 2) as u32,
        harm_ref: (row % 3) as u32,
    })
}

async fn sidecar(output: &Location, shard: &Shard, nth: usize) -> SidecarRef {
    let groups = Layout::load(shard, false).await.unwrap().rows_per_group().to_vec();
    let identity =
        SidecarIdentity { shard: shard.name.clone(), shard_version: shard.version(), shard_size: shard.meta.size, model: "m".to_owned() };
    let named = |side: &str, count| (0..count).map(|n| format!("{side}-{n}")).collect();
    let ids = Arc::new(ReferenceIds { safe: named("safe", 2), harm: named("harm", 3) });
    let mut writer = SidecarWriter::try_new(output, identity, &groups, ids, Arc::new([])).unwrap();
    let rows: usize = groups.iter().sum::<u64>().try_into().unwrap();
    let weights: Vec<_> = (0..rows).map(|row| weight(nth, row).map(|weight| SidecarRow { weight, window: None })).collect();
    // In pieces that fit no row group.
    for piece in weights.chunks(29) {
        writer.write(piece).await.unwrap();
    }
    let receipt = writer.finish().await.unwrap();
    let location = output.join(&receipt.path).path().clone();
    let meta = ObjectMeta { location, last_modified: Default::default(), size: receipt.size, e_tag: None, version: None };
    SidecarRef {
        meta,
        base_size: shard.meta.size,
        base_version: shard.version(),
        model: "m".to_owned(),
        rows: receipt.rows,
        unweighed: receipt.rows - receipt.weighed,
        weight_range: receipt.weight_range,
    }
}

async fn weighed(stores: &Stores, output: &Location) -> Vec<(Shard, CorpusShard)> {
    let mut shards = vec![];
    for (nth, shard) in list_shards(stores, "corpus/", Some(output)).await.unwrap().shards.into_iter().enumerate() {
        let format = match shard.format {
            ShardFormat::Parquet => sql::ShardFormat::Parquet,
            ShardFormat::Arrow => sql::ShardFormat::Arrow,
        };
        let sidecar = Some(sidecar(output, &shard, nth).await);
        let (name, meta, version) = (shard.name.clone(), shard.meta.clone(), shard.version());
        let listed = CorpusShard { name, format, meta, version, schema: None, rows: None, sidecar };
        shards.push((shard, listed));
    }
    shards
}

async fn session(stores: &Stores, output: &Location, shards: Vec<CorpusShard>) -> SqlSession {
    let corpus = stores.open("corpus/").unwrap();
    let table = CorpusTable::try_new(Arc::clone(corpus.store()), Arc::clone(output.store()), shards).await.unwrap();
    let session = SqlSession::new(3);
    session.register_table("corpus", Arc::new(table)).unwrap();
    session
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

fn read(path: &Path) -> Vec<RecordBatch> {
    let file = File::open(path).unwrap();
    if path.extension().is_some_and(|e| e == "arrow") {
        FileReader::try_new(file, None).unwrap().map(Result::unwrap).collect()
    } else {
        ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().map(Result::unwrap).collect()
    }
}

type Row = (Option<f32>, i64, Option<String>);

/// `id` → weight, row and harmful reference, from columns of a query or of a file.
fn found(batches: &[RecordBatch]) -> BTreeMap<String, Row> {
    let mut rows = BTreeMap::new();
    for batch in batches {
        let text = |name: &str| cast(batch.column_by_name(name).unwrap(), &DataType::Utf8).unwrap();
        let (ids, harm) = (text("id"), text("harm_ref"));
        let weights = batch.column_by_name("weight").unwrap().as_primitive::<Float32Type>();
        let places = batch.column_by_name("row").unwrap().as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let harm = harm.is_valid(row).then(|| harm.as_string::<i32>().value(row).to_owned());
            let weight = weights.is_valid(row).then(|| weights.value(row));
            rows.insert(ids.as_string::<i32>().value(row).to_owned(), (weight, places.value(row), harm));
        }
    }
    rows
}

#[tokio::test]
async fn every_row_has_its_own_weight() {
    let folder = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quickstart/corpus"), &folder.path().join("corpus"));
    let stores = Stores::new(folder.path());
    let output = stores.open("weights/").unwrap();
    let shards = weighed(&stores, &output).await;

    let mut expected = BTreeMap::new();
    for (nth, (shard, _)) in shards.iter().enumerate() {
        let mut row = 0;
        for batch in read(&folder.path().join("corpus").join(&shard.name)) {
            let ids = cast(batch.column_by_name("id").unwrap(), &DataType::Utf8).unwrap();
            for id in ids.as_string::<i32>() {
                let weight = weight(nth, row);
                let harm = weight.map(|w| format!("harm-{}", w.harm_ref));
                expected.insert(id.unwrap().to_owned(), (weight.map(|w| w.weight), i64::try_from(row).unwrap(), harm));
                row += 1;
            }
        }
    }
    assert_eq!(expected.len(), 410);

    let listed: Vec<_> = shards.into_iter().map(|(_, listed)| listed).collect();
    let session = session(&stores, &output, listed.clone()).await;
    let rows = session.query("select id, weight, row, harm_ref from corpus").await.unwrap().collect().await.unwrap();
    assert_eq!(found(&rows), expected);

    let some = "select id, weight, row, harm_ref from corpus where weight > 1.5 and source <> 'coding'";
    let rows = found(&session.query(some).await.unwrap().collect().await.unwrap());
    assert!(!rows.is_empty());
    assert!(rows.iter().all(|(id, row)| expected.get(id) == Some(row) && row.0.is_some_and(|w| w > 1.5)));
}

#[tokio::test]
async fn a_shard_written_again_is_an_error_until_it_is_weighed_again() {
    let folder = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quickstart/corpus"), &folder.path().join("corpus"));
    let stores = Stores::new(folder.path());
    let output = stores.open("weights/").unwrap();
    let before = weighed(&stores, &output).await;

    let changed = folder.path().join("corpus/part-0001.parquet");
    let bytes = fs::read(folder.path().join("corpus/part-0000.parquet")).unwrap();
    fs::write(&changed, bytes).unwrap();
    let now = list_shards(&stores, "corpus/", Some(&output)).await.unwrap().shards;
    let mut listed = vec![];
    for (shard, (_, mut old)) in now.into_iter().zip(before) {
        (old.version, old.meta) = (shard.version(), shard.meta.clone());
        listed.push(old);
    }
    let session = session(&stores, &output, listed).await;
    let error = match session.query("select count(weight) from corpus").await {
        Ok(rows) => rows.collect().await.map(|_| ()).unwrap_err(),
        Err(error) => error,
    };
    let expected = "shard part-0001.parquet: changed since it was weighed: run `pushpull run` again; base ";
    assert!(error.to_string().starts_with(expected), "{error}");
    let others = session.query("select id from corpus where shard <> 'part-0001.parquet'").await.unwrap().collect().await.unwrap();
    assert_eq!(others.iter().map(RecordBatch::num_rows).sum::<usize>(), 410 - 90);
}
