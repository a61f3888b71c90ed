//! Which bytes of a shard are fetched.

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use pushpull::shard::{ReadOptions, Shard, ShardEvent, ShardFormat, ShardRequest, read_ahead};
use pushpull::storage::Location;
use std::sync::Arc;

/// Three string columns whose values cannot be compressed away, in row groups of 500 rows.
fn shard_bytes(rows: usize) -> Bytes {
    let column = |salt: u64| -> ArrayRef {
        let text = |i: usize| {
            let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
            (0..40)
                .map(|_| {
                    z = z.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    char::from(b'a' + (z >> 33) as u8 % 26)
                })
                .collect::<String>()
        };
        Arc::new(StringArray::from_iter_values((0..rows).map(text)))
    };
    let batch = RecordBatch::try_from_iter([("prompt", column(1)), ("blob", column(2)), ("response", column(3))]).unwrap();
    let mut bytes = Vec::new();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(500)).set_dictionary_enabled(false).build();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes.into()
}

fn read(bytes: &Bytes, columns: &[&str], rows: Option<Vec<u64>>, memory: u64) -> (usize, u64, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("part.parquet"), bytes).unwrap();
    let stores = pushpull::storage::Stores::new(dir.path());
    let location = stores.open("part.parquet").unwrap();
    let meta = runtime.block_on(location.head()).unwrap();
    let shard = Shard { name: "part.parquet".into(), location, meta, format: ShardFormat::Parquet };
    let options = ReadOptions { columns: columns.iter().map(|c| (*c).to_owned()).collect(), rows: None, chunk_rows: 128, memory };
    let mut events = read_ahead(vec![ShardRequest { shard, rows }], options, runtime.handle().clone());
    let (mut count, mut texts) = (0, Vec::new());
    while let Some((_, event)) = events.next_blocking() {
        match event {
            ShardEvent::Rows(chunk, _permit) => {
                assert!(chunk.batch.num_rows() <= 128);
                count += chunk.batch.num_rows();
                let first = chunk.batch.column(0).as_any().downcast_ref::<StringArray>().unwrap();
                texts.extend(first.iter().map(|text| text.unwrap().to_owned()));
            }
            ShardEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    (count, stores.traffic().bytes_read(), texts)
}

#[test]
fn only_the_named_columns_and_the_footer_are_read() {
    let bytes = shard_bytes(4000);
    let metadata = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap().metadata().clone();
    let of = |leaf: usize| metadata.row_groups().iter().map(|group| group.column(leaf).byte_range().1).sum::<u64>();
    let footer = 32 << 10;
    for memory in [64 << 20, 256 << 10] {
        let (rows, read_bytes, texts) = read(&bytes, &["response", "prompt"], None, memory);
        assert_eq!(rows, 4000);
        assert!(read_bytes >= of(0) + of(2) && read_bytes <= of(0) + of(2) + footer, "{read_bytes} of {}", bytes.len());
        // The order asked for is the order given.
        let whole = ParquetRecordBatchReaderBuilder::try_new(bytes.clone())
            .unwrap()
            .with_batch_size(4000)
            .build()
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let expected = whole.column_by_name("response").unwrap().as_any().downcast_ref::<StringArray>().unwrap().clone();
        assert!(texts.iter().map(String::as_str).eq(expected.iter().flatten()));
    }
}

#[test]
fn a_sample_reads_only_the_row_groups_it_needs() {
    let bytes = shard_bytes(4000);
    let wanted = vec![3, 499, 2100, 2101];
    let (rows, read_bytes, texts) = read(&bytes, &["prompt"], Some(wanted.clone()), 64 << 20);
    let all = read(&bytes, &["prompt"], None, 64 << 20);
    assert_eq!(rows, 4);
    assert_eq!(texts, wanted.iter().map(|&row| all.2[row as usize].clone()).collect::<Vec<_>>());
    assert!(read_bytes < all.1 / 2, "{read_bytes} of {}", all.1);
}

#[test]
fn a_missing_object_fails_and_names_the_shard() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let path = Path::from("gone.parquet");
    runtime.block_on(store.put(&path, shard_bytes(10).into())).unwrap();
    let meta = runtime.block_on(store.head(&path)).unwrap();
    runtime.block_on(store.delete(&path)).unwrap();
    let shard = Shard {
        name: "gone.parquet".into(),
        location: Location::new(store, path, "memory://gone.parquet".into()),
        meta,
        format: ShardFormat::Parquet,
    };
    let options = ReadOptions { columns: vec!["prompt".into()], rows: None, chunk_rows: 10, memory: 1 << 20 };
    let mut events = read_ahead(vec![ShardRequest { shard, rows: None }], options, runtime.handle().clone());
    let (_, event) = events.next_blocking().unwrap();
    assert!(matches!(&event, ShardEvent::Failed(error) if error.to_string().contains("gone.parquet")), "{event:?}");
}
