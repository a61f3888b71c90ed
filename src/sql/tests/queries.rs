//! The files in `queries/` run as they are, over tables of the columns they name, and answer what they say.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};

use super::shards::{add_parquet, ipc_file, paged, rows, split, unindexed, weights};
use super::{Lake, lines};
use crate::sql::SqlSession;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("queries")
}

fn query(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

async fn lake() -> Lake {
    let columns = ["id", "prompt", "response", "source"];
    let mut lake = Lake::new();
    add_parquet(&mut lake, "one.parquet", rows(0..700, &columns), 0..700, &[300, 400], paged(), true).await;
    add_parquet(&mut lake, "two.parquet", rows(700..1000, &columns), 700..1000, &[300], unindexed(), true).await;
    let data = rows(1000..1303, &columns);
    lake.add("x.arrow", ipc_file(&split(&data, &[203, 100])), vec![data], Some((weights("x", 1000..1303), vec![203, 100]))).await;
    lake
}

/// Registers the table `references` with a fifth harmful reference that no row names.
fn add_references(session: &SqlSession) {
    let ids = (0..5).flat_map(|i| [format!("safe{i}"), format!("harm{i}")]);
    let sides = (0..10).map(|i| if i % 2 == 0 { "safe" } else { "harm" });
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("side", Arc::new(StringArray::from_iter_values(sides))),
        ("id", Arc::new(StringArray::from_iter_values(ids))),
        ("category", Arc::new(StringArray::from_iter((0..10).map(|i| (i != 3).then(|| format!("kind {i}")))))),
        ("mass", Arc::new(Float64Array::from(vec![0.2; 10]))),
        ("text", Arc::new(StringArray::from_iter_values((0..10).map(|i| format!("a prompt\nan answer {i}"))))),
    ];
    let schema = Arc::new(Schema::new(columns.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), true)).collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, a)| a).collect()).unwrap();
    session.register_batches("references", schema, vec![batch]).unwrap();
}

#[tokio::test]
async fn every_file_states_its_question_and_gives_the_twins_answer() {
    let lake = lake().await;
    let schema = datafusion::catalog::TableProvider::schema(&lake.table().await.unwrap());
    let (session, twin) = (lake.session(4).await.unwrap(), lake.twin(&schema));
    add_references(&session);
    add_references(&twin);
    let mut names: Vec<String> = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        let sql = query(&name);
        let question = sql.lines().next().unwrap();
        assert!(question.starts_with("-- ") && question.ends_with('?'), "{name} begins with {question}");
        // What only a job's own session has is tested there.
        if ["weight_cutoff(", "weights_at("].iter().any(|function| sql.contains(function)) {
            continue;
        }
        let found = lines(&session, &sql).await.unwrap_or_else(|e| panic!("{name}: {}", super::full_text(&e)));
        assert!(!found.is_empty(), "{name}");
        super::assert_same(&found, &lines(&twin, &sql).await.unwrap(), &name);
    }
}

/// Weights with their places, best first.
async fn by_weight(session: &SqlSession) -> Vec<(f32, String, i64)> {
    let sql = "select arrow_cast(weight, 'Float32'), shard, row from corpus where weight is not null";
    let mut rows: Vec<(f32, String, i64)> = lines(session, sql)
        .await
        .unwrap()
        .iter()
        .map(|line| {
            let parts: Vec<_> = line.split(" | ").collect();
            (parts[0].parse().unwrap(), parts[1].to_owned(), parts[2].parse().unwrap())
        })
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (&a.1, a.2).cmp(&(&b.1, b.2))));
    rows
}

#[tokio::test]
async fn the_best_80_percent_are_exactly_those() {
    let lake = lake().await;
    let session = lake.session(4).await.unwrap();
    let mut best = by_weight(&session).await;
    let count = best.len() * 4 / 5;
    let tied = best[count - 1].0 == best[count].0;
    assert!(tied, "the test wants a tie at the cut: {:?}", &best[count - 3..count + 3]);
    best.truncate(count);
    let mut expected: Vec<String> = best.into_iter().map(|(_, shard, row)| format!("{shard} | {row}")).collect();
    expected.sort();
    let sql = format!("select shard, row from ({})", query("best_80_percent.sql"));
    super::assert_same(&lines(&session, &sql).await.unwrap(), &expected, "best_80_percent.sql");
}

#[tokio::test]
async fn heaviest_and_lightest_are_twenty_and_in_order() {
    let lake = lake().await;
    let session = lake.session(4).await.unwrap();
    add_references(&session);
    let best = by_weight(&session).await;
    let found = session.query(&query("heaviest.sql")).await.unwrap().collect().await.unwrap();
    let top = arrow::compute::concat_batches(&found[0].schema(), &found).unwrap();
    let weights: Vec<f32> = top.column(0).as_any().downcast_ref::<arrow::array::Float32Array>().unwrap().values().to_vec();
    assert_eq!(weights, best[..20].iter().map(|b| b.0).collect::<Vec<_>>());

    let sql = query("most_down_weighted.sql");
    let found = session.query(&sql).await.unwrap().collect().await.unwrap();
    let low = arrow::compute::concat_batches(&found[0].schema(), &found).unwrap();
    assert_eq!(low.num_rows(), 20);
    let texts = low.column_by_name("harm_text").unwrap();
    assert_eq!(texts.null_count(), 0, "each row's reference is found");
    assert_eq!(low.schema().field_with_name("harm_category").unwrap().data_type(), &DataType::Utf8);
}

#[tokio::test]
async fn shares_of_the_histogram_add_up() {
    let lake = lake().await;
    let session = lake.session(2).await.unwrap();
    let histogram = query("weight_histogram.sql");
    let one = "between 0.999999 and 1.000001";
    let sum =
        format!("select sum(row_count) = (select count(weight) from corpus), sum(share) {one}, max(share_so_far) {one} from ({histogram})");
    assert_eq!(lines(&session, &sum).await.unwrap(), ["true | true | true"]);
    assert_eq!(lake.corpus.bytes(""), 0, "the histogram reads weights only");
}
