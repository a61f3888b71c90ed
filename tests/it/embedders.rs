//! Jobs whose vectors come from elsewhere than the builtin table.

use crate::support::{Lake, needs};
use arrow::array::{ArrayRef, FixedSizeListArray, Float16Array, Float32Array, Float64Array, ListArray, RecordBatch, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use half::f16;
use parquet::arrow::ArrowWriter;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

const DIMS: usize = 8;

/// Row `i` points mostly along axis `i % 3`, with noise that depends on `i`; every 50th row is null.
fn vector(i: usize) -> Option<Vec<f64>> {
    let noise = |k: usize| ((i * 7 + k * 13) % 11) as f64 / 60.0;
    (i % 50 != 49).then(|| (0..DIMS).map(|k| if k == i % 3 { 1.0 } else { noise(k) }).collect())
}

fn column(kind: &str, rows: std::ops::Range<usize>) -> ArrayRef {
    let present: Vec<bool> = rows.clone().map(|i| vector(i).is_some()).collect();
    let flat: Vec<f64> = rows.flat_map(|i| vector(i).unwrap_or(vec![0.0; DIMS])).collect();
    let nulls = Some(present.clone().into());
    let field = |kind| Arc::new(Field::new_list_field(kind, true));
    match kind {
        "f32" => Arc::new(FixedSizeListArray::new(
            field(DataType::Float32),
            DIMS as i32,
            Arc::new(flat.iter().map(|&x| Some(x as f32)).collect::<Float32Array>()),
            nulls,
        )),
        "f16" => Arc::new(FixedSizeListArray::new(
            field(DataType::Float16),
            DIMS as i32,
            Arc::new(flat.iter().map(|&x| Some(f16::from_f64(x))).collect::<Float16Array>()),
            nulls,
        )),
        _ => Arc::new(ListArray::new(
            field(DataType::Float64),
            OffsetBuffer::from_lengths(present.iter().map(|_| DIMS)),
            Arc::new(Float64Array::from(flat)),
            nulls,
        )),
    }
}

fn write(path: &Path, kind: &str, rows: std::ops::Range<usize>, prefix: &str) {
    let ids: ArrayRef = Arc::new(StringArray::from_iter_values(rows.clone().map(|i| format!("{prefix}-{i}"))));
    let batch = RecordBatch::try_from_iter([("id", ids), ("vector", column(kind, rows))]).unwrap();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Makes the lake one of 300 vectors of type `kind` in two shards, with references and a job file.
pub fn write_vectors(lake: &Lake, kind: &str) {
    // Safe along axis 0, harmful along axis 1; both from other rows than the corpus.
    let axis = |axis: usize| (3000..3040).filter(move |i| i % 3 == axis && i % 50 != 49).take(10);
    for (side, which) in [("safe", 0), ("harm", 1)] {
        let lines: String = axis(which).map(|i| format!("{}\n", json!({ "id": format!("{side}-{i}"), "vector": vector(i) }))).collect();
        std::fs::write(lake.path(&format!("{side}.jsonl")), lines).unwrap();
    }
    write(&lake.path(&format!("{kind}/a.parquet")), kind, 0..200, "a");
    write(&lake.path(&format!("{kind}/b.parquet")), kind, 200..300, "b");
    let job = format!(
        "[corpus]\nurl = \"{kind}/\"\nembedding = \"vector\"\n[references]\nsafe = \"safe.jsonl\"\nharm = \"harm.jsonl\"\n[output]\nurl = \"out-{kind}/\"\n"
    );
    std::fs::write(lake.path("job.toml"), job).unwrap();
}

#[test]
fn a_column_of_vectors_of_every_type_gives_the_same_weights() {
    let lake = Lake::new();
    let mut answers = Vec::new();
    for kind in ["f32", "f64", "f16"] {
        write_vectors(&lake, kind);
        let report = lake.json(&["run", "job.toml"], 0);
        assert_eq!((&report["rows"], &report["rows_without_text"]), (&json!(300), &json!(6)), "{kind}");
        answers.push(lake.sql("select id, weight from corpus order by shard, row"));
    }
    let weight = |answer: &serde_json::Value| answer["weight"].as_f64();
    for (wide, narrow) in answers[1].iter().zip(&answers[2]) {
        let (a, b) = (weight(wide), weight(narrow));
        assert_eq!(a.is_some(), b.is_some());
        assert!(a.zip(b).is_none_or(|(a, b)| (a - b).abs() < 0.05 * a.max(0.2)), "{wide} {narrow}");
    }
    for (i, row) in answers[0].iter().enumerate() {
        assert_eq!(weight(row).is_none(), i % 50 == 49, "{row}");
    }
    let mean = |axis: usize| {
        let weights: Vec<f64> = answers[0].iter().enumerate().filter(|(i, _)| i % 3 == axis).filter_map(|(_, row)| weight(row)).collect();
        weights.iter().sum::<f64>() / weights.len() as f64
    };
    assert!(mean(0) > mean(2) && mean(2) > mean(1), "{} {} {}", mean(0), mean(2), mean(1));

    let error = lake.error(&["run", "job.toml", "--set", "corpus.embedding=id"]);
    assert!(error.contains("`id`"), "{error}");
}

#[test]
fn a_shard_with_vectors_of_another_length_is_quarantined() {
    let lake = Lake::new();
    let line = |i: usize| format!("{}\n", json!({ "id": i, "vector": vector(i) }));
    std::fs::write(lake.path("safe.jsonl"), [0, 3, 6, 9].map(line).concat()).unwrap();
    std::fs::write(lake.path("harm.jsonl"), [1, 4, 7, 10].map(line).concat()).unwrap();
    write(&lake.path("mixed/a.parquet"), "f64", 0..120, "a");
    // A chunk of nothing but nulls has no length at all.
    let nulls: ArrayRef = Arc::new(ListArray::new_null(Arc::new(Field::new_list_field(DataType::Float64, true)), 30));
    let short: ArrayRef = Arc::new(ListArray::from_iter_primitive::<arrow::datatypes::Float64Type, _, _>(
        (0..40).map(|i| Some(vec![Some(1.0), Some(f64::from(i) / 40.0)])),
    ));
    for (name, column) in [("b", nulls), ("c", short)] {
        let batch = RecordBatch::try_from_iter([("vector", column)]).unwrap();
        let file = std::fs::File::create(lake.path(&format!("mixed/{name}.parquet"))).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }
    let job = "[corpus]\nurl = \"mixed/\"\nembedding = \"vector\"\n[references]\nsafe = \"safe.jsonl\"\nharm = \"harm.jsonl\"\n[output]\nurl = \"out/\"\n";
    std::fs::write(lake.path("job.toml"), job).unwrap();
    let report = lake.json(&["run", "job.toml"], 1);
    assert_eq!(report["shards"], json!({ "weighed": 2, "unchanged": 0, "removed": 0, "quarantined": 1 }));
    let reason = report["quarantined"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("c.parquet") && reason.contains("2 dimensions, expected 8"), "{reason}");
    assert_eq!(report["rows_without_text"], 32);
}

#[test]
fn the_builtin_table_as_a_folder_is_the_same_model() {
    let lake = Lake::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/embed/builtin");
    let builtin = lake.json(&["run", "job.toml"], 0);
    let set = format!("embed.model={}", folder.display());
    let again = lake.json(&["run", "job.toml", "--set", &set], 0);
    assert_eq!((&again["model"], &again["shards"]["weighed"]), (&builtin["model"], &json!(0)));
    let error = lake.error(&["run", "job.toml", "--set", "embed.model=references/"]);
    assert!(error.contains("references/") && error.contains("model2vec"), "{error}");
}

#[test]
fn a_sentence_transformers_folder_and_what_is_distilled_from_it() {
    let Some(folder) = needs("PUSHPULL_TEST_MINILM", "weighing with all-MiniLM-L6-v2") else { return };
    let lake = Lake::new();
    let set = format!("embed.model={folder}");
    let one = ["--set", "corpus.url=corpus/part-0003.parquet", "--set", &set];
    let report = lake.json(&[&["run", "job.toml"][..], &one].concat(), 0);
    assert_eq!((&report["rows"], &report["shards"]["weighed"]), (&json!(76), &json!(1)));
    let first = lake.sidecars("output");
    let other = ["--chunk-rows", "5", "--threads", "1", "--set", "output.url=other/"];
    lake.json(&[&["run", "job.toml"][..], &one, &other].concat(), 0);
    assert!(lake.sidecars("other") == first, "weights of a transformer depend on chunks or threads");
}
