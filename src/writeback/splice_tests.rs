//! Spliced shards against their bases: the old bytes, what the footer says of them, and the rows that a stock reader gives.

use super::sidecar::{ReferenceIds, SidecarIdentity, SidecarRow, SidecarWriter};
use super::splice::{Splice, SplicedShard};
use super::spliced_columns::SplicedColumns;
use super::thrift::{Fields, LIST, items};
use crate::embed::WindowPlace;
use crate::error::Result;
use crate::shard::{Shard, ShardFormat};
use crate::storage::{Location, Stores};
use crate::transport::RowWeight;
use arrow::array::{Array, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowWriter};
use parquet::basic::Compression;
use parquet::bloom_filter::Sbbf;
use parquet::data_type::Int64Type;
use parquet::file::metadata::{KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// The columns a generated shard may have: a flat text first, then everything a Parquet file can nest.
fn kinds() -> Vec<Field> {
    let item = |kind| Arc::new(Field::new("item", kind, true));
    let record =
        DataType::Struct(vec![Field::new("a", DataType::Utf8, true), Field::new("b", DataType::List(item(DataType::Int64)), true)].into());
    let entries = DataType::Struct(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Int64, true)].into());
    vec![
        Field::new("text", DataType::Utf8, true),
        Field::new("n", DataType::Int64, false),
        Field::new("tokens", DataType::List(item(DataType::Int32)), true),
        Field::new("record", record, true),
        Field::new("tags", DataType::Map(Arc::new(Field::new("entries", entries, false)), false), true),
        Field::new("price", DataType::Decimal128(20, 3), true),
        Field::new("weight", DataType::Float64, true),
    ]
}

fn rows(schema: &SchemaRef, first: usize, count: usize) -> RecordBatch {
    let null = |i: usize, every: usize| i % every == every - 1;
    let lines = (first..first + count).map(|i| {
        let text = (!null(i, 5)).then(|| format!("text {i} {}", "ä".repeat(i % 9)));
        let list: Vec<usize> = (0..i % 4).collect();
        let record = (!null(i, 3)).then(|| serde_json::json!({ "a": text, "b": (!null(i, 4)).then(|| list.clone()) }));
        let all = serde_json::json!({
            "text": text, "n": i, "tokens": (!null(i, 6)).then(|| list.clone()), "record": record,
            "tags": (!null(i, 7)).then(|| serde_json::json!({ format!("k{}", i % 3): i })),
            "price": format!("{}.{:03}", i, i % 1000), "weight": i as f64 / 3.0,
        });
        let kept: serde_json::Map<_, _> = schema.fields().iter().map(|f| (f.name().clone(), all[f.name()].clone())).collect();
        serde_json::Value::Object(kept).to_string()
    });
    let lines = lines.collect::<Vec<_>>().join("\n");
    let plain = Arc::new(Schema::new(
        schema
            .fields()
            .iter()
            .map(|f| if f.name() == "text" { f.as_ref().clone().with_data_type(DataType::Utf8) } else { f.as_ref().clone() })
            .collect::<Vec<_>>(),
    ));
    if count == 0 {
        return RecordBatch::new_empty(Arc::clone(schema));
    }
    let reader = arrow::json::ReaderBuilder::new(plain).with_batch_size(count).build(lines.as_bytes()).unwrap();
    let batch = reader.map(|batch| batch.unwrap()).next().unwrap();
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()).unwrap());
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

fn schema(fields: &[Field]) -> SchemaRef {
    let metadata = HashMap::from([("pandas".to_owned(), "{\"index\": []}".to_owned()), ("owner".to_owned(), "someone".to_owned())]);
    Arc::new(Schema::new_with_metadata(fields.to_vec(), metadata))
}

fn file(schema: &SchemaRef, groups: &[usize], properties: WriterPropertiesBuilder, store_schema: bool) -> Vec<u8> {
    use parquet::arrow::arrow_writer::ArrowWriterOptions;
    let options = ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(!store_schema);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(schema), options).unwrap();
    let mut first = 0;
    for &count in groups {
        writer.write(&rows(schema, first, count)).unwrap();
        writer.flush().unwrap();
        first += count;
    }
    writer.into_inner().unwrap()
}

fn weight(i: usize) -> Option<f32> {
    (i % 11 != 4).then_some(i as f32 / 7.0)
}

struct Made {
    base: Bytes,
    spliced: Bytes,
    shard: SplicedShard,
    columns: Arc<SplicedColumns>,
    splice: Splice,
    stores: Stores,
    to: Location,
    _dir: tempfile::TempDir,
}

/// Writes a base and its sidecar to disk and splices them.
async fn try_spliced(name: &str, base: &[u8], groups: &[u64], asked: &[&str], base_names: &[String]) -> Result<Made> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("corpus").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, base).unwrap();
    let stores = Stores::new(dir.path());
    let location = stores.open("corpus").unwrap().join(name);
    let meta = location.head().await.unwrap();
    let shard = Shard { name: name.to_owned(), location, meta, format: ShardFormat::of(name).unwrap() };
    let identity =
        SidecarIdentity { shard: shard.name.clone(), shard_version: shard.version(), shard_size: shard.meta.size, model: "m".into() };
    let ids = Arc::new(ReferenceIds { safe: vec!["s0".into(), "s1".into()], harm: vec!["h0".into()] });
    let output = stores.open("weights").unwrap();
    let mut writer = SidecarWriter::try_new(&output, identity, groups, ids, vec!["text".to_owned()].into()).unwrap();
    let row = |i: usize| {
        let weight = RowWeight { weight: weight(i)?, pull: 0.5, push: i as f32, prior: 1.0, safe_ref: (i % 2) as u32, harm_ref: 0 };
        Some(SidecarRow { weight, window: i.is_multiple_of(2).then_some(WindowPlace { column: 0, offset: i }) })
    };
    let all: Vec<_> = (0..groups.iter().sum::<u64>() as usize).map(row).collect();
    writer.write(&all).await.unwrap();
    let receipt = writer.finish().await.unwrap();
    let columns = Arc::new(SplicedColumns::beside(asked, base_names).unwrap());
    let splice = Splice {
        shard,
        sidecar: output.join(&receipt.path),
        sidecar_path: receipt.path,
        sidecar_size: receipt.size,
        columns: Arc::clone(&columns),
    };
    let to = stores.open("spliced").unwrap();
    let made = splice.write(&stores, &to).await?;
    let spliced = to.join(&made.path).read().await.unwrap();
    assert_eq!(spliced.len() as u64, made.size);
    Ok(Made { base: base.to_vec().into(), spliced, shard: made, columns, splice, stores, to, _dir: dir })
}

async fn spliced(base: &[u8], groups: &[usize], asked: &[&str]) -> Made {
    let groups: Vec<u64> = groups.iter().map(|&rows| rows as u64).collect();
    let metadata = metadata(&base.to_vec().into());
    let names: Vec<String> = metadata.file_metadata().schema().get_fields().iter().map(|f| f.name().to_owned()).collect();
    try_spliced("lang=en/part 0.parquet", base, &groups, asked, &names).await.unwrap()
}

fn metadata(bytes: &Bytes) -> ParquetMetaData {
    ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional).parse_and_finish(bytes).unwrap()
}

fn footer(bytes: &Bytes) -> (usize, Bytes) {
    let length = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    let start = bytes.len() - 8 - length;
    (start, bytes.slice(start..bytes.len() - 8))
}

/// The encoded column chunks of each row group that has rows, and the group's other fields but the two totals.
fn raw_groups(footer: &Bytes) -> Vec<(Vec<Vec<u8>>, Vec<u8>)> {
    let file = Fields::parse(footer).unwrap();
    let groups = items(file.required(4, LIST).unwrap()).unwrap();
    let groups = groups.iter().map(|group| Fields::parse(group).unwrap()).filter(|group| group.int(3, 6).unwrap() != Some(0));
    groups
        .map(|mut group| {
            let chunks = items(group.required(1, LIST).unwrap()).unwrap().into_iter().map(<[u8]>::to_vec).collect();
            for total in [1, 2, 6] {
                group.remove(total);
            }
            (chunks, group.encode())
        })
        .collect()
}

fn read(bytes: &Bytes, selection: Option<RowSelection>) -> RecordBatch {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes.clone(), options).unwrap();
    let schema = Arc::clone(builder.schema());
    let builder = match selection {
        Some(selection) => builder.with_row_selection(selection),
        None => builder,
    };
    let batches: Vec<RecordBatch> = builder.build().unwrap().map(|batch| batch.unwrap()).collect();
    concat_batches(&schema, &batches).unwrap()
}

/// The schema's metadata without what splicing says of itself: readers add the file's key-values to it.
fn own_metadata(batch: &RecordBatch) -> HashMap<String, String> {
    let mut metadata = batch.schema().metadata().clone();
    metadata.retain(|key, _| !key.starts_with("pushpull.spliced."));
    metadata
}

/// All that must hold of a spliced shard.
fn check(made: &Made) {
    let Made { base, spliced, columns, .. } = made;
    let ((keep, old_footer), (_, new_footer)) = (footer(base), footer(spliced));
    assert!(spliced[..keep] == base[..keep], "the old bytes");
    let (old_raw, new_raw) = (raw_groups(&old_footer), raw_groups(&new_footer));
    assert_eq!(old_raw.len(), new_raw.len());
    for ((old_chunks, old_rest), (new_chunks, new_rest)) in old_raw.iter().zip(&new_raw) {
        assert_eq!(new_chunks.len(), old_chunks.len() + columns.iter().len());
        assert!(new_chunks.starts_with(old_chunks), "what the footer says of old chunks");
        assert_eq!(old_rest, new_rest);
    }

    let (old, new) = (metadata(base), metadata(spliced));
    let leaves = old.file_metadata().schema_descr().num_columns();
    assert_eq!(
        (old.file_metadata().version(), old.file_metadata().created_by()),
        (new.file_metadata().version(), new.file_metadata().created_by())
    );
    let old_groups: Vec<_> = old.row_groups().iter().enumerate().filter(|(_, group)| group.num_rows() > 0).collect();
    let indexed = old_groups.iter().all(|(place, _)| old.offset_index().is_some_and(|index| !index[*place].is_empty()))
        && old.offset_index().is_some();
    for ((place, old_group), (new_place, new_group)) in old_groups.iter().zip(new.row_groups().iter().enumerate()) {
        assert_eq!(old_group.sorting_columns(), new_group.sorting_columns());
        assert_eq!(new_group.total_byte_size(), new_group.columns().iter().map(|c| c.uncompressed_size()).sum::<i64>());
        for leaf in 0..leaves {
            assert_eq!(old_group.column(leaf), new_group.column(leaf));
            if let (Some(old), Some(new)) = (old.offset_index(), new.offset_index()) {
                assert_eq!(old[*place][leaf], new[new_place][leaf]);
            }
            if let (Some(old), Some(new)) = (old.column_index(), new.column_index()) {
                assert_eq!(old[*place][leaf], new[new_place][leaf]);
            }
            let bloom = |group: &parquet::file::metadata::RowGroupMetaData, bytes: &Bytes| {
                Sbbf::read_from_column_chunk(group.column(leaf), bytes).unwrap().map(|filter| filter.check(&"text 1 ä"))
            };
            assert_eq!(bloom(old_group, base), bloom(new_group, spliced));
        }
        for leaf in leaves..leaves + columns.iter().len() {
            assert!(new_group.column(leaf).statistics().is_some());
            assert_eq!(new_group.column(leaf).offset_index_offset().is_some(), indexed);
        }
    }
    if !old_groups.is_empty() {
        assert_eq!(new.offset_index().is_some(), indexed);
    }
    let kept = |metadata: &ParquetMetaData| -> Vec<KeyValue> {
        let all = metadata.file_metadata().key_value_metadata().cloned().unwrap_or_default();
        all.into_iter().filter(|kv| kv.key != ARROW_SCHEMA_META_KEY && !kv.key.starts_with("pushpull.spliced.")).collect()
    };
    assert_eq!(kept(&old), kept(&new));
    let stores_schema = |m: &ParquetMetaData| {
        m.file_metadata().key_value_metadata().is_some_and(|kvs| kvs.iter().any(|kv| kv.key == ARROW_SCHEMA_META_KEY))
    };
    assert_eq!(stores_schema(&old), stores_schema(&new));

    let (before, after) = (read(base, None), read(spliced, None));
    assert_eq!((before.num_rows(), made.shard.rows), (after.num_rows(), after.num_rows() as u64));
    assert_eq!(own_metadata(&before), own_metadata(&after));
    for (place, field) in before.schema().fields().iter().enumerate() {
        assert_eq!((field, before.column(place)), (&after.schema().fields()[place], after.column(place)));
    }
    check_weights(&after, columns, |i| i);
    // Every third row only: pages are skipped by the new columns' own index where there is one.
    let rows = after.num_rows();
    let selectors = (0..rows).map(|i| if i % 3 == 1 { RowSelector::select(1) } else { RowSelector::skip(1) });
    check_weights(&read(spliced, Some(selectors.collect::<Vec<_>>().into())), columns, |i| 3 * i + 1);
}

fn check_weights(batch: &RecordBatch, columns: &SplicedColumns, row: impl Fn(usize) -> usize) {
    for column in columns.iter() {
        let array = batch.column_by_name(column.field.name()).unwrap();
        assert_eq!(array.data_type(), column.field.data_type());
        for i in 0..batch.num_rows() {
            let (row, null) = (row(i), array.is_null(i));
            match column.name.as_str() {
                "weight" => {
                    let values = array.as_any().downcast_ref::<Float32Array>().unwrap();
                    assert_eq!((!null).then(|| values.value(i)), weight(row));
                }
                "row" => assert_eq!(array.as_any().downcast_ref::<Int64Array>().unwrap().value(i), row as i64),
                "safe_ref" => {
                    let values = array.as_any().downcast_ref::<StringArray>().unwrap();
                    assert_eq!((!null).then(|| values.value(i).to_owned()), weight(row).map(|_| format!("s{}", row % 2)));
                }
                "model" => assert_eq!(array.as_any().downcast_ref::<StringArray>().unwrap().value(i), "m"),
                _ => {}
            }
        }
    }
}

fn with_page_index() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_statistics_enabled(EnabledStatistics::Page).set_data_page_row_count_limit(50).set_write_batch_size(25)
}

fn without_page_index() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_statistics_enabled(EnabledStatistics::Chunk).set_offset_index_disabled(true)
}

const GROUPS: [usize; 4] = [300, 1, 77, 129];

#[tokio::test]
async fn pages_blooms_sorting_and_key_values_stay() {
    let schema = schema(&kinds()[..6]);
    let sorted = SortingColumn { column_idx: 1, descending: false, nulls_first: false };
    let all = with_page_index()
        .set_compression(Compression::SNAPPY)
        .set_created_by("some writer version 1.2".into())
        .set_sorting_columns(Some(vec![sorted]))
        .set_column_bloom_filter_enabled("text".into(), true)
        .set_key_value_metadata(Some(vec![KeyValue::new("licence".to_owned(), "CC".to_owned()), KeyValue::new("empty".to_owned(), None)]));
    for properties in [all.clone(), all.set_writer_version(WriterVersion::PARQUET_2_0)] {
        let base = file(&schema, &GROUPS, properties, true);
        let made = spliced(&base, &GROUPS, &["weight"]).await;
        check(&made);
        assert!(made.shard.path.starts_with("lang=en/part 0.") && made.shard.path.ends_with(".parquet"), "{}", made.shard.path);
        let sent = made.stores.traffic().bytes_written() as usize;
        let (keep, _) = footer(&made.base);
        assert_eq!(made.stores.traffic().bytes_copied() as usize, keep);
        assert!(sent < made.base.len(), "{sent}");
    }
}

#[tokio::test]
async fn a_base_without_page_index_or_stored_schema_gets_none() {
    let schema = schema(&kinds()[..6]);
    for store_schema in [true, false] {
        let base = file(&schema, &GROUPS, without_page_index(), store_schema);
        check(&spliced(&base, &GROUPS, &["weight", "safe_ref"]).await);
    }
}

#[tokio::test]
async fn any_columns_in_any_order_and_a_name_that_is_taken() {
    let fields = kinds();
    let base = file(&schema(&fields), &GROUPS, with_page_index(), true);
    let made = spliced(&base, &GROUPS, &["row", "weight", "model", "window", "shard", "safe_ref", "push"]).await;
    check(&made);
    assert_eq!(made.columns.served("weight"), Some("pushpull_weight"));
    let served = metadata(&made.spliced);
    let names: Vec<_> = served.file_metadata().schema().get_fields().iter().skip(fields.len()).map(|f| f.name()).collect();
    assert_eq!(names, ["row", "pushpull_weight", "model", "window", "shard", "safe_ref", "push"]);
}

#[tokio::test]
async fn no_rows_one_row_and_groups_without_rows() {
    let schema = schema(&kinds()[..2]);
    for groups in [&[][..], &[1][..]] {
        check(&spliced(&file(&schema, groups, with_page_index(), true), groups, &["weight"]).await);
    }
    // Only a low-level writer leaves groups without rows.
    let message = Arc::new(parse_message_type("message m { REQUIRED INT64 n; }").unwrap());
    for properties in [with_page_index(), without_page_index()] {
        let mut writer = SerializedFileWriter::new(Vec::new(), Arc::clone(&message), Arc::new(properties.build())).unwrap();
        let groups = [0, 5, 0, 0, 70, 0];
        for count in groups {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&(0..count).collect::<Vec<_>>(), None, None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        let base = writer.into_inner().unwrap();
        let made = spliced(&base, &groups.map(|rows| rows as usize), &["weight"]).await;
        check(&made);
        assert_eq!(metadata(&made.spliced).num_row_groups(), 2);
    }
}

#[tokio::test]
async fn a_sidecar_that_does_not_fit_names_both_objects() {
    let schema = schema(&kinds()[..2]);
    let base = file(&schema, &[10, 20], with_page_index(), true);
    for (groups, said) in [(vec![10, 19], "19 rows"), (vec![30], "1 row groups")] {
        let error = try_spliced("a.parquet", &base, &groups, &["weight"], &[]).await.err().unwrap();
        let text = crate::job::with_causes(&error);
        assert!(text.contains("shard a.parquet") && text.contains("/data/") && text.contains(said), "{text}");
    }
    // Another version of the base than the sidecar was made for.
    let made = spliced(&base, &[10, 20], &["weight"]).await;
    let mut stale = made.splice.clone();
    stale.shard.meta.e_tag = Some("other".into());
    let text = crate::job::with_causes(&stale.write(&made.stores, &made.to).await.unwrap_err());
    assert!(text.contains("base_version") && text.contains("other") && text.contains("/data/"), "{text}");
    for broken in [&b"PAR1"[..], b"no Parquet at all", b"PAR1xxxx\xff\xff\xff\xffPAR1", b"PAR1\x00\x00\x00\x00PAR1"] {
        let error = try_spliced("a.parquet", broken, &[1], &["weight"], &[]).await.err().unwrap();
        assert!(error.to_string().contains("shard a.parquet"), "{error}");
    }
}

#[tokio::test]
async fn what_is_there_is_known_by_its_own_words() {
    let schema = schema(&kinds()[..2]);
    let made = spliced(&file(&schema, &[10], with_page_index(), true), &[10], &["weight"]).await;
    assert_eq!(made.splice.unpublished(&made.to, made.shard.size).await, Some(made.shard.clone()));
    assert_eq!(made.splice.unpublished(&made.to, made.shard.size - 1).await, None);
    let other = Splice { columns: Arc::new(SplicedColumns::beside(&["pull"], &[]).unwrap()), ..made.splice.clone() };
    assert_ne!(other.path(), made.splice.path());
    // Another shard's bytes at this path.
    made.to.join(&other.path()).write(made.spliced.clone()).await.unwrap();
    assert_eq!(other.unpublished(&made.to, made.shard.size).await, None);
}

#[tokio::test]
async fn a_spliced_shard_can_be_spliced_again() {
    let schema = schema(&kinds()[..3]);
    let first = spliced(&file(&schema, &GROUPS, with_page_index(), true), &GROUPS, &["weight"]).await;
    let again = spliced(&first.spliced, &GROUPS, &["weight", "row"]).await;
    assert_eq!(again.columns.served("weight"), Some("pushpull_weight"));
    check(&again);
}

#[tokio::test]
async fn an_arrow_shard_is_encoded_with_its_weights() {
    let schema = schema(&kinds()[..6]);
    for groups in [vec![], vec![0, 9000, 1, 0, 300]] {
        let mut writer = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &schema).unwrap();
        let (mut first, mut batches) = (0, Vec::new());
        for &count in &groups {
            let batch = rows(&schema, first, count);
            writer.write(&batch).unwrap();
            batches.push(batch);
            first += count;
        }
        let counts: Vec<u64> = batches.iter().map(|batch| batch.num_rows() as u64).collect();
        let base = writer.into_inner().unwrap();
        let made = try_spliced("deep/er/a.arrow", &base, &counts, &["safe_ref", "weight", "row"], &[]).await.unwrap();
        assert!(made.shard.path.starts_with("deep/er/a."), "{}", made.shard.path);
        let after = read(&made.spliced, None);
        assert_eq!(own_metadata(&after), *schema.metadata());
        let before = concat_batches(&schema, &batches).unwrap();
        assert_eq!(made.shard.rows, before.num_rows() as u64);
        for (place, field) in schema.fields().iter().enumerate() {
            assert_eq!(field, &after.schema().fields()[place]);
            assert_eq!(before.column(place), after.column(place));
        }
        check_weights(&after, &made.columns, |i| i);
        assert_eq!(made.splice.unpublished(&made.to, made.shard.size).await, Some(made.shard.clone()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_shard_keeps_its_bytes_and_gains_its_weights(
        groups in prop::collection::vec(prop_oneof![Just(1usize), 1..5usize, 1..400usize], 0..5),
        chosen in prop::sample::subsequence((0..7usize).collect::<Vec<_>>(), 1..=7),
        asked in prop::sample::subsequence(vec!["weight", "pull", "row", "safe_ref", "model", "window"], 1..=4),
        indexed: bool, v2: bool, stored: bool, dictionary: bool, bloom: bool,
    ) {
        let fields: Vec<Field> = chosen.iter().map(|&place| kinds()[place].clone()).collect();
        let schema = schema(&fields);
        let version = if v2 { WriterVersion::PARQUET_2_0 } else { WriterVersion::PARQUET_1_0 };
        let properties = if indexed { with_page_index() } else { without_page_index() };
        let properties = properties.set_writer_version(version).set_dictionary_enabled(dictionary).set_bloom_filter_enabled(bloom);
        let base = file(&schema, &groups, properties, stored);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { check(&spliced(&base, &groups, &asked).await) });
    }

    #[test]
    fn a_damaged_footer_is_an_error_or_harmless_and_no_panic(place in 0..100_000usize, value: u8) {
        let base = file(&schema(&kinds()[..3]), &[20, 3], with_page_index(), true);
        let (start, _) = footer(&base.clone().into());
        let mut broken = base;
        let place = start + place % (broken.len() - start);
        broken[place] = value;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = runtime.block_on(try_spliced("a.parquet", &broken, &[20, 3], &["weight"], &[]));
    }
}
