//! Shards of many shapes and their sidecars, made from a counter.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Float64Array, Int32Builder, Int64Array, ListBuilder, RecordBatch, StringArray, StructArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::writer::{FileWriter, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::Lake;

fn hash(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Text that does not compress, so that bytes read mean something.
fn text(id: u64) -> String {
    (0..20).map(|i| format!("{:016x}", hash(id * 31 + i + 1))).collect()
}

/// Columns by name, each written out for `ids`; `n` and `lang` have nulls.
pub(super) fn rows(ids: std::ops::Range<u64>, names: &[&str]) -> RecordBatch {
    let column = |name: &&str| -> (String, ArrayRef, bool) {
        let array: ArrayRef = match *name {
            "id" => Arc::new(Int64Array::from_iter_values(ids.clone().map(|i| i as i64))),
            "text" | "prompt" | "response" => Arc::new(StringArray::from_iter_values(ids.clone().map(text))),
            "source" => Arc::new(StringArray::from_iter_values(ids.clone().map(|i| format!("source-{}", hash(i) % 5)))),
            "n" => Arc::new(Int64Array::from_iter(ids.clone().map(|i| (i % 7 != 0).then_some((hash(i) % 1000) as i64)))),
            "lang" => Arc::new(StringArray::from_iter(ids.clone().map(|i| (i % 3 != 0).then_some(["en", "de"][(i % 2) as usize])))),
            "score" => Arc::new(Float64Array::from_iter_values(ids.clone().map(|i| (hash(i) % 100) as f64 / 10.0))),
            "weight" => Arc::new(Int64Array::from_iter_values(ids.clone().map(|i| i as i64 * 10))),
            "tokens" => {
                let mut list = ListBuilder::new(Int32Builder::new());
                for i in ids.clone() {
                    list.append_value((0..hash(i) % 4).map(|k| (i % 6 != 1).then_some(k as i32)));
                }
                Arc::new(list.finish())
            }
            "meta" => {
                let score = Arc::new(Float64Array::from_iter_values(ids.clone().map(|i| i as f64 / 2.0))) as ArrayRef;
                let tag = Arc::new(StringArray::from_iter_values(ids.clone().map(|i| format!("tag{}", i % 3)))) as ArrayRef;
                Arc::new(StructArray::from(vec![
                    (Arc::new(Field::new("score", DataType::Float64, false)), score),
                    (Arc::new(Field::new("tag", DataType::Utf8, false)), tag),
                ]))
            }
            other => panic!("no column {other}"),
        };
        ((*name).to_owned(), array, *name != "id")
    };
    let columns: Vec<_> = names.iter().map(column).collect();
    let schema = Schema::new(columns.iter().map(|(n, a, null)| Field::new(n, a.data_type().clone(), *null)).collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, a, _)| a).collect()).unwrap()
}

/// The batch with column `name` in another type.
pub(super) fn retyped(batch: &RecordBatch, name: &str, kind: DataType) -> RecordBatch {
    let before = batch.schema();
    let fields = before
        .fields()
        .iter()
        .map(|f| if f.name() == name { Arc::new(f.as_ref().clone().with_data_type(kind.clone())) } else { f.clone() });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let columns = batch.columns().iter().zip(schema.fields()).map(|(c, f)| cast(c, f.data_type()).unwrap());
    RecordBatch::try_new(schema.clone(), columns.collect()).unwrap()
}

/// Weights of `rows` rows: near the row's hundred, so that neighbours are alike and pages can be skipped; every 13th is null.
pub(super) fn weights(shard: &str, ids: std::ops::Range<u64>) -> RecordBatch {
    let n = (ids.end - ids.start) as usize;
    let weight = |i: u64| -> Option<f32> { (i % 13 != 5).then(|| ((hash(i / 100) % 900) as f32 + (hash(i) % 100) as f32) / 1000.0) };
    let part = |salt: u64| Float32Array::from_iter(ids.clone().map(|i| weight(i).map(|w| w * (1.0 + (hash(i + salt) % 7) as f32))));
    let reference =
        |side: &'static str| StringArray::from_iter(ids.clone().map(move |i| weight(i).map(|_| format!("{side}{}", hash(i) % 4))));
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("shard", Arc::new(StringArray::from(vec![shard; n])), false),
        ("shard_version", Arc::new(StringArray::from(vec!["v1"; n])), false),
        ("model", Arc::new(StringArray::from(vec!["m0"; n])), false),
        ("row", Arc::new(Int64Array::from_iter_values(0..n as i64)), false),
        ("weight", Arc::new(Float32Array::from_iter(ids.clone().map(weight))), true),
        ("pull", Arc::new(part(1)), true),
        ("push", Arc::new(part(2)), true),
        ("prior", Arc::new(part(3)), true),
        ("safe_ref", Arc::new(reference("safe")), true),
        ("harm_ref", Arc::new(reference("harm")), true),
        ("window", Arc::new(Int64Array::from_iter(ids.clone().map(|i| weight(i).map(|_| (hash(i / 50) % 40) as i64 * 100)))), true),
        (
            "window_view",
            Arc::new(StringArray::from_iter(ids.clone().map(|i| weight(i).map(|_| ["prompt", "text"][(i % 2) as usize])))),
            true,
        ),
    ];
    let schema = Schema::new(columns.iter().map(|(n, a, null)| Field::new(*n, a.data_type().clone(), *null)).collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, a, _)| a).collect()).unwrap()
}

/// The weights as sidecars of format 1 had them: without the windows.
fn format_1(weights: RecordBatch) -> RecordBatch {
    let kept: Vec<usize> = (0..weights.num_columns() - 2).collect();
    weights.project(&kept).unwrap()
}

pub(super) fn sidecar_bytes(rows: &RecordBatch, groups: &[usize]) -> Vec<u8> {
    let properties = WriterProperties::builder().set_data_page_row_count_limit(200).set_write_batch_size(100).build();
    parquet_bytes(&split(rows, groups), properties, false)
}

/// `rows` cut into batches of these lengths.
pub(super) fn split(rows: &RecordBatch, groups: &[usize]) -> Vec<RecordBatch> {
    let mut first = 0;
    let mut batches = vec![];
    for length in groups {
        batches.push(rows.slice(first, *length));
        first += length;
    }
    assert_eq!(first, rows.num_rows());
    batches
}

/// One row group per batch (none for an empty one); without batches a file without rows is not possible, so there is at least one.
pub(super) fn parquet_bytes(batches: &[RecordBatch], properties: WriterProperties, skip_arrow_schema: bool) -> Vec<u8> {
    let mut bytes = vec![];
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(skip_arrow_schema);
    let mut writer = ArrowWriter::try_new_with_options(&mut bytes, batches[0].schema(), options).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
    bytes
}

pub(super) fn paged() -> WriterProperties {
    WriterProperties::builder().set_data_page_row_count_limit(200).set_write_batch_size(100).build()
}

pub(super) fn unindexed() -> WriterProperties {
    WriterProperties::builder().set_statistics_enabled(EnabledStatistics::Chunk).set_offset_index_disabled(true).build()
}

/// A file with columns `id` and `text` whose second row group has no rows.
fn with_empty_row_group(groups: &[RecordBatch]) -> Vec<u8> {
    let schema = parse_message_type("message m { required int64 id; optional binary text (utf8); }").unwrap();
    let mut bytes = vec![];
    let mut writer = SerializedFileWriter::new(&mut bytes, Arc::new(schema), Arc::new(paged())).unwrap();
    for batch in groups {
        let mut group = writer.next_row_group().unwrap();
        let id: &Int64Array = batch.column(0).as_any().downcast_ref().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(id.values(), None, None).unwrap();
        column.close().unwrap();
        let text: &StringArray = batch.column(1).as_any().downcast_ref().unwrap();
        let values: Vec<ByteArray> = text.iter().flatten().map(ByteArray::from).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&vec![1; values.len()]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

pub(super) fn ipc_file(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = FileWriter::try_new(vec![], &batches[0].schema()).unwrap();
    batches.iter().for_each(|b| writer.write(b).unwrap());
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

pub(super) fn ipc_stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(vec![], &batches[0].schema()).unwrap();
    batches.iter().for_each(|b| writer.write(b).unwrap());
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

/// Adds a Parquet shard with one row group per entry of `groups`.
pub(super) async fn add_parquet(
    lake: &mut Lake,
    name: &str,
    rows: RecordBatch,
    ids: std::ops::Range<u64>,
    groups: &[usize],
    properties: WriterProperties,
    weighed: bool,
) {
    let bytes = parquet_bytes(&split(&rows, groups), properties, false);
    let weights = weighed.then(|| (weights(name, ids), groups.to_vec()));
    lake.add(name, bytes, vec![rows], weights).await;
}

/// Parquet shards of every shape, all weighed but one.
pub(super) async fn parquet_lake() -> Lake {
    let mut lake = Lake::new();
    let usual = ["id", "text", "source", "n", "tokens", "meta"];
    add_parquet(&mut lake, "a/no-index.parquet", rows(0..1500, &usual), 0..1500, &[700, 500, 300], unindexed(), true).await;
    add_parquet(&mut lake, "a/indexed.parquet", rows(2000..4000, &usual), 2000..4000, &[1000, 1000], paged(), true).await;
    let nested_first = rows(4000..5000, &["tokens", "meta", "lang", "id", "text", "n"]);
    add_parquet(&mut lake, "b/nested-first.parquet", nested_first, 4000..5000, &[400, 600], paged(), true).await;
    let large = retyped(&rows(5000..5600, &["id", "text", "source", "lang", "score"]), "text", DataType::LargeUtf8);
    add_parquet(&mut lake, "b/large-text.parquet", large, 5000..5600, &[600], paged(), true).await;
    let narrow = retyped(&rows(6000..6900, &["id", "n", "text", "source"]), "n", DataType::Int32);
    add_parquet(&mut lake, "b/narrow.parquet", narrow, 6000..6900, &[450, 450], unindexed(), true).await;

    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let encoded = retyped(&rows(7000..7800, &["source", "id", "text"]), "source", dictionary);
    let v2 = WriterProperties::builder().set_writer_version(WriterVersion::PARQUET_2_0).set_bloom_filter_enabled(true).build();
    let bytes = parquet_bytes(&split(&encoded, &[300, 500]), v2, false);
    lake.add("c/dictionary.parquet", bytes, vec![encoded], Some((format_1(weights("x", 7000..7800)), vec![300, 500]))).await;
    let plain = rows(8000..8400, &["id", "text", "n"]);
    let bytes = parquet_bytes(&split(&plain, &[200, 200]), paged(), true);
    lake.add("c/no-arrow-schema.parquet", bytes, vec![plain], Some((weights("x", 8000..8400), vec![200, 200]))).await;
    add_parquet(&mut lake, "c/no-rows.parquet", rows(0..0, &usual), 0..0, &[0], paged(), true).await;
    let (first, none, last) = (rows(8500..8800, &["id", "text"]), rows(0..0, &["id", "text"]), rows(8800..8900, &["id", "text"]));
    let bytes = with_empty_row_group(&[first.clone(), none, last.clone()]);
    lake.add("c/empty-group.parquet", bytes, vec![first, last], Some((weights("x", 8500..8900), vec![300, 100]))).await;
    add_parquet(&mut lake, "d/unweighed.parquet", rows(9000..9700, &usual), 9000..9700, &[350, 350], paged(), false).await;
    add_parquet(&mut lake, "d/one-row.parquet", rows(9800..9801, &usual), 9800..9801, &[1], paged(), true).await;
    lake
}

/// Adds Arrow shards: a file and a stream with weights, one of each without.
pub(super) async fn add_arrow(lake: &mut Lake) {
    let usual = ["id", "text", "source", "n", "tokens", "meta"];
    let all = rows(20000..21200, &usual);
    let batches = split(&all, &[500, 400, 300]);
    lake.add("e/file.arrow", ipc_file(&batches), vec![all], Some((weights("x", 20000..21200), vec![500, 400, 300]))).await;
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let all = retyped(&rows(22000..23500, &["text", "source", "id"]), "source", dictionary);
    let batches = split(&all, &[1000, 0, 500]);
    lake.add("e/stream.arrow", ipc_stream(&batches), vec![all], Some((format_1(weights("x", 22000..23500)), vec![1000, 500]))).await;
    let all = rows(24000..24400, &["id", "text", "lang"]);
    lake.add("e/unweighed-file.arrow", ipc_file(&split(&all, &[150, 0, 250])), vec![all], None).await;
    let all = rows(24500..24600, &["id", "lang"]);
    lake.add("e/unweighed-stream.arrow", ipc_stream(&[concat_batches(&all.schema(), [&all]).unwrap()]), vec![all], None).await;
}
