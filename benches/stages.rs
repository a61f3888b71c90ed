//! What each stage of weighing costs: `cargo bench --bench stages`. Rows are those of the quick start, repeated.

#![expect(clippy::unwrap_used, missing_docs, reason = "a benchmark fails by panicking and documents itself in its names")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ndarray::{Array2, ArrayView2};
use pushpull::embed::{Pool, Windows, builtin, embed_candidates, embed_views, embed_windows};
use pushpull::transport::{ReferenceSet, TransportOptions, fit};
use std::fs::File;
use std::hint::black_box;
use std::path::Path;

const ROWS: usize = 4096;
const DOCUMENTS: usize = 100;
const DIMS: usize = 512;
const SAFE: usize = 970;
const HARM: usize = 1341;

/// Prompts and responses of the quick start's first shard, repeated.
fn texts() -> (Vec<String>, Vec<String>) {
    use arrow::array::AsArray;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quickstart/corpus/part-0000.parquet");
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let (mut prompts, mut responses) = (Vec::new(), Vec::new());
    for batch in reader {
        let batch = batch.unwrap();
        let column = |name| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        prompts.extend(column("prompt").iter().map(|text| text.unwrap_or_default().to_owned()));
        responses.extend(column("response").iter().map(|text| text.unwrap_or_default().to_owned()));
    }
    (prompts.iter().cycle().take(ROWS).cloned().collect(), responses.iter().cycle().take(ROWS).cloned().collect())
}

/// Unit vectors of a fixed pseudo-random pattern around one of eight centres.
fn vectors(rows: usize, salt: usize) -> Array2<f32> {
    let noise = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 1000) as f32 / 1000.0 - 0.5;
    let mut matrix =
        Array2::from_shape_fn((rows, DIMS), |(i, k)| noise((i % 8 + salt) * DIMS + k) + 0.7 * noise((i + salt * 7919) * DIMS + k));
    for mut row in matrix.rows_mut() {
        let norm = row.dot(&row).sqrt();
        row /= norm;
    }
    matrix
}

/// The soft c-transform of one reference set, row by row in double precision: what tiles and `gemm` are measured against.
fn transform_row_by_row(rows: ArrayView2<'_, f32>, references: ArrayView2<'_, f32>, potential: &[f64], epsilon: f64) -> f64 {
    let mut total = 0.0;
    for row in rows.rows() {
        let exponents: Vec<f64> = references
            .rows()
            .into_iter()
            .zip(potential)
            .map(|(reference, g)| (g - (1.0 - f64::from(row.dot(&reference)))) / epsilon)
            .collect();
        let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        total -= epsilon * (largest + exponents.iter().map(|e| (e - largest).exp()).sum::<f64>().ln());
    }
    total
}

fn embed(criterion: &mut Criterion) {
    let encoder = builtin().unwrap();
    let (prompts, responses) = texts();
    let views = [prompts.iter().map(|t| Some(t.as_str())).collect::<Vec<_>>(), responses.iter().map(|t| Some(t.as_str())).collect()];
    let mut group = criterion.benchmark_group("embed");
    group.throughput(Throughput::Elements(ROWS as u64)).sample_size(20);
    group.bench_function("builtin, two views", |b| b.iter(|| embed_views(encoder.as_ref(), black_box(&views), None).unwrap()));
    group.finish();
}

/// Documents of 4,000 characters read whole, as the mean of their windows, and as one candidate a window.
fn windows(criterion: &mut Criterion) {
    let encoder = builtin().unwrap();
    let responses = texts().1.join(" ");
    let characters: Vec<char> = responses.chars().collect();
    let documents: Vec<String> = characters.chunks_exact(4000).take(DOCUMENTS).map(|part| part.iter().collect()).collect();
    assert_eq!(documents.len(), DOCUMENTS);
    let views = [documents.iter().map(|text| Some(text.as_str())).collect::<Vec<_>>()];
    let windows = Windows { window: 64, stride: 32, pool: Pool::Worst };
    let mut group = criterion.benchmark_group("long documents");
    group.throughput(Throughput::Elements(DOCUMENTS as u64)).sample_size(20);
    group.bench_function("whole", |b| b.iter(|| embed_views(encoder.as_ref(), black_box(&views), None).unwrap()));
    group.bench_function("mean of windows of 64", |b| {
        b.iter(|| embed_windows(encoder.as_ref(), black_box(&views), None, windows).unwrap());
    });
    group.bench_function("each window of 64", |b| {
        b.iter(|| {
            let mut seen = 0;
            embed_candidates(encoder.as_ref(), black_box(&views), None, windows, &mut |block| {
                seen += block.of.len();
                Ok(())
            })
            .unwrap();
            seen
        });
    });
    group.finish();
}

fn transport(criterion: &mut Criterion) {
    let (safe, harm) = (ReferenceSet::uniform(vectors(SAFE, 1)).unwrap(), ReferenceSet::uniform(vectors(HARM, 2)).unwrap());
    let rows = vectors(ROWS, 3);
    let options = TransportOptions::default();
    let model = fit(rows.view(), &safe, &harm, &options, None, &mut |_| {}).unwrap().model;
    let weigher = model.weigher().unwrap();
    let mut group = criterion.benchmark_group("transport");
    group.throughput(Throughput::Elements(ROWS as u64)).sample_size(10);
    group.bench_function("weigh, 2311 references", |b| b.iter(|| weigher.weigh(black_box(rows.view())).unwrap()));
    group.bench_function("row by row, both transforms", |b| {
        b.iter(|| {
            transform_row_by_row(rows.view(), model.safe.vectors(), &model.safe_potential, model.epsilon)
                + transform_row_by_row(rows.view(), model.harm.vectors(), &model.harm_potential, model.epsilon)
        });
    });
    group.bench_function("fit", |b| b.iter(|| fit(black_box(rows.view()), &safe, &harm, &options, None, &mut |_| {}).unwrap()));
    group.finish();
}

criterion_group!(stages, embed, windows, transport);
criterion_main!(stages);
