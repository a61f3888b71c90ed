//! Our transformer against candle's BERT on the same texts and threads: `cargo bench --bench transformer`, with
//! `PUSHPULL_TEST_MINILM` naming a folder of all-MiniLM-L6-v2. Texts are the quick start's references.

#![expect(clippy::unwrap_used, missing_docs, reason = "a benchmark fails by panicking and documents itself in its names")]

#[path = "../tests/it/candle_bert.rs"]
mod candle_bert;

use candle_bert::CandleBert;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pushpull::embed::{ModelFiles, load, needed_file};
use std::hint::black_box;
use std::path::Path;

fn transformer(criterion: &mut Criterion) {
    let Some(folder) = std::env::var_os("PUSHPULL_TEST_MINILM") else {
        eprintln!("SKIPPED: transformer against candle (set PUSHPULL_TEST_MINILM)");
        return;
    };
    let folder = Path::new(&folder);
    let names =
        ["modules.json", "config.json", "sentence_bert_config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"];
    let files: ModelFiles = names
        .iter()
        .filter(|name| needed_file(name))
        .map(|name| ((*name).to_owned(), std::fs::read(folder.join(name)).unwrap().into()))
        .collect();
    let (ours, candle) = (load("minilm", &files).unwrap(), CandleBert::load(folder));
    let lines = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quickstart/references/harm.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<&str> = rows.iter().flat_map(|row| [row["prompt"].as_str().unwrap(), row["response"].as_str().unwrap()]).collect();
    let mut group = criterion.benchmark_group("transformer");
    group.throughput(Throughput::Elements(texts.len() as u64)).sample_size(10);
    group.bench_function("ours", |b| b.iter(|| ours.encode(black_box(&texts)).unwrap()));
    group.bench_function("candle, one batch", |b| b.iter(|| candle.encode(black_box(&texts))));
    group.bench_function("candle, batches of 16", |b| {
        b.iter(|| black_box(&texts).chunks(16).map(|part| candle.encode(part)).collect::<Vec<_>>());
    });
    group.finish();
}

criterion_group!(benches, transformer);
criterion_main!(benches);
