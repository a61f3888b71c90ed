//! `pushpull eval`: every labelled row is accounted for, also where its text is missing or its shard breaks off.

use crate::support::{Lake, text};
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::sync::Arc;

const QUICK: [&str; 8] = ["eval", "job.toml", "--label", "label", "--positive", "harmful", "--bootstrap", "20"];

/// A shard of rows with a label and one text (or none), in row groups of ten.
fn write_shard(lake: &Lake, name: &str, rows: &[(&str, Option<String>)]) {
    let labels: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>());
    let prompts: ArrayRef = Arc::new(rows.iter().map(|row| row.1.as_deref()).collect::<StringArray>());
    let nothing: ArrayRef = Arc::new(StringArray::new_null(rows.len()));
    let columns = [("label", labels, true), ("prompt", prompts, true), ("response", Arc::clone(&nothing), true), ("text", nothing, true)];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(10)).build();
    let mut writer =
        ArrowWriter::try_new(File::create(lake.path(&format!("corpus/{name}"))).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn counts(report: &Value, names: [&str; 4]) -> [u64; 4] {
    names.map(|name| report["rows"][name].as_u64().unwrap_or(0))
}

#[test]
fn rows_of_a_shard_that_breaks_off_are_not_rows_without_text() {
    let lake = Lake::new();
    let rows: Vec<_> = (0..20).map(|row| ("benign", (row != 3).then(|| format!("How do I fold a paper crane, take {row}?")))).collect();
    write_shard(&lake, "broken.parquet", &rows);
    let names = ["scored", "eligible", "without_text", "unreadable"];
    assert_eq!(counts(&lake.json(&QUICK, 0), names), [427, 430, 3, 0]);
    // The prompts of the second row group; the labels beside them can still be read.
    let place = lake.path("corpus/broken.parquet");
    let mut bytes = fs::read(&place).unwrap();
    let reader = SerializedFileReader::new(File::open(&place).unwrap()).unwrap();
    let (start, length) = reader.metadata().row_group(1).column(1).byte_range();
    bytes[start as usize..(start + length) as usize].fill(0);
    fs::write(&place, bytes).unwrap();
    // What was read of the shard before it broke off is scored; by default that is nothing of so short a shard.
    for (more, expected) in [(&[][..], [408, 430, 2, 20]), (&["--chunk-rows", "5"], [417, 430, 3, 10])] {
        let report = lake.json(&[&QUICK[..], more].concat(), 1);
        assert_eq!(counts(&report, names), expected, "{more:?}");
        assert_eq!(report["quarantined"][0]["shard"], "broken.parquet");
    }
    let shown = text(&lake.pushpull(&QUICK).stdout);
    assert!(shown.contains("2 without text, 20 in shards that could not be read"), "{shown}");
    assert!(!shown.contains("beyond the sample"), "{shown}");
}

#[test]
fn an_asked_label_without_text_does_not_vanish_silently() {
    let lake = Lake::new();
    write_shard(&lake, "odd.parquet", &[("odd", None), ("odd", None), ("strange", None)]);
    let negatives = ["--negative", "refusal", "--negative", "odd", "--positive", "strange"];
    let report = lake.json(&[&QUICK[..], &negatives].concat(), 0);
    let classes: Vec<&Value> = report["classes"].as_array().unwrap().iter().map(|class| &class["class"]).collect();
    assert_eq!(classes, [&json!("harmful + strange"), &json!("refusal")]);
    let warnings: Vec<&str> = report["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let of = |option: &str| warnings.iter().find(|warning| warning.starts_with(option)).copied().unwrap_or_default();
    assert!(of("--negative \"odd\" is left out").contains("none of the 2 rows drawn of it has text"), "{warnings:?}");
    assert!(of("--positive \"strange\" is left out").contains("the one row drawn of it has no text"), "{warnings:?}");
    assert_eq!(warnings.iter().filter(|warning| warning.contains("is left out")).count(), 2);
    let shown = text(&lake.pushpull(&[&QUICK[..], &negatives].concat()).stdout);
    assert!(shown.contains("--negative \"odd\" is left out"), "{shown}");
}
