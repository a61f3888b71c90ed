//! Shards without a page index: the weigher notes where their pages are, and a predicate on the weight skips those it rules out.

use crate::support::Lake;
use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Float32Type, Int64Type};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use pushpull::job::{Job, RunOptions, sql_session};
use std::fs::File;
use std::sync::Arc;

const ROWS: usize = 12_000;

/// A quick start whose corpus is one shard of two row groups, its pages of 200 rows in no index, and a nested column beside its texts.
fn lake() -> Lake {
    let lake = Lake::new();
    std::fs::remove_dir_all(lake.path("corpus")).unwrap();
    std::fs::create_dir(lake.path("corpus")).unwrap();
    let words = ["river", "bread", "engine", "letter", "garden", "winter", "number", "poison", "weapon", "teacher", "music", "stone"];
    let text = |salt: u64| -> ArrayRef {
        let value = |i: usize| {
            let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
            let mut word = || {
                z = z.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                format!("{} {:x}", words[(z >> 40) as usize % words.len()], z >> 20)
            };
            (i as u64 % 97 != salt).then(|| (0..6).map(|_| word()).collect::<Vec<_>>().join(" "))
        };
        Arc::new((0..ROWS).map(value).collect::<StringArray>())
    };
    let id: ArrayRef = Arc::new(Int64Array::from_iter_values((0..ROWS as i64).map(|i| i * 7)));
    let columns = [("id", id), ("prompt", text(3)), ("response", text(5)), ("text", text(96))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_data_page_row_count_limit(200)
        .set_write_batch_size(100)
        .set_max_row_group_row_count(Some(ROWS / 2 + 100))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .build();
    let mut writer =
        ArrowWriter::try_new(File::create(lake.path("corpus/bare.parquet")).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    lake
}

struct Answer {
    batches: Vec<RecordBatch>,
    bytes: u64,
}

/// The rows of a query in a session of its own, and the bytes it read.
async fn ask(lake: &Lake, sql: &str) -> Answer {
    let job = Job::open(lake.path("job.toml").to_str().unwrap(), &[], RunOptions::default()).await.unwrap();
    let session = sql_session(&job, 2).await.unwrap();
    let before = job.stores.traffic().bytes_read();
    let batches = session.query(sql).await.unwrap().collect().await.unwrap();
    Answer { batches, bytes: job.stores.traffic().bytes_read() - before }
}

/// `row` (the last column) and the column before it, as text.
fn rows(answer: &Answer) -> Vec<(i64, Option<String>)> {
    let mut rows = Vec::new();
    for batch in &answer.batches {
        let text = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).unwrap();
        let place = batch.columns().last().unwrap().as_primitive::<Int64Type>();
        rows.extend(place.values().iter().copied().zip(text.as_string::<i32>().iter().map(|text| text.map(str::to_owned))));
    }
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_the_weight_rules_out_are_not_read() {
    let lake = lake();
    let report = lake.json(&["run", "job.toml"], 0);
    assert_eq!(report["rows"], ROWS);
    let all = ask(&lake, "select prompt, weight, row from corpus").await;
    let mut weights: Vec<f32> =
        all.batches.iter().flat_map(|batch| batch.column(1).as_primitive::<Float32Type>().iter().flatten().collect::<Vec<_>>()).collect();
    weights.sort_by(f32::total_cmp);
    let cut = weights[weights.len() - 3];
    let kept: Vec<i64> = {
        let of = |batch: &RecordBatch| {
            let (weight, row) =
                (batch.column(1).as_primitive::<Float32Type>().clone(), batch.column(2).as_primitive::<Int64Type>().clone());
            (0..batch.num_rows()).filter(move |i| weight.value(*i) >= cut).map(move |i| row.value(i)).collect::<Vec<_>>()
        };
        let mut kept: Vec<i64> = all.batches.iter().flat_map(of).collect();
        kept.sort();
        kept
    };
    assert!((3..10).contains(&kept.len()));
    let full = rows(&all);
    let of = |rows: &[(i64, Option<String>)]| rows.iter().filter(|(row, _)| kept.contains(row)).cloned().collect::<Vec<_>>();

    let few = ask(&lake, &format!("select prompt, row from corpus where weight >= cast({cut} as real)")).await;
    assert_eq!(rows(&few), of(&full));
    // Three rows are in at most three of sixty pages; the rest is footers and the sidecar's own pages.
    let sidecar = lake.sidecars("output").iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    let prompts = all.bytes - sidecar.min(all.bytes / 2);
    assert!(few.bytes < prompts / 4, "{} of {} bytes", few.bytes, all.bytes);

    // A predicate on a noted column as well, and one on a column without notes.
    for (sql, column) in [("response is not null", "response"), ("id % 2 = 0", "id")] {
        let wanted = ask(&lake, &format!("select prompt, row from corpus where {sql}")).await;
        let both = ask(&lake, &format!("select prompt, row from corpus where weight >= cast({cut} as real) and {sql}")).await;
        assert_eq!(rows(&both), of(&rows(&wanted)), "{column}");
    }
    let ids = ask(&lake, &format!("select id, prompt, row from corpus where weight >= cast({cut} as real)")).await;
    let expected: Vec<_> = kept.iter().map(|row| (*row, Some((row * 7).to_string()))).collect();
    assert_eq!(rows(&ids), expected);
    assert!(ids.bytes > few.bytes * 2, "a column whose pages nobody noted is read whole");
    // A range of rows that begins inside a page, and all columns.
    let middle = ask(&lake, "select prompt, weight, row from corpus where row between 5950 and 6350").await;
    assert_eq!(rows(&middle), full.iter().filter(|(row, _)| (5950..=6350).contains(row)).cloned().collect::<Vec<_>>());
}

#[test]
fn notes_do_not_depend_on_threads_chunks_or_memory() {
    let lake = lake();
    lake.json(&["run", "job.toml", "--memory", "2GiB"], 0);
    let sidecars = lake.sidecars("output");
    for (output, flags) in [("two", ["--chunk-rows", "77", "--threads", "1"]), ("three", ["--memory", "1MiB", "--threads", "3"])] {
        lake.json(&[&["run", "job.toml", "--set", &format!("output.url={output}")], &flags[..]].concat(), 0);
        assert!(lake.sidecars(output) == sidecars, "{flags:?}");
    }
}
