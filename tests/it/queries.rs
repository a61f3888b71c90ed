//! Every file in `queries/` runs on the quick start and answers what it did when its snapshot was reviewed.

use crate::support::{Lake, text};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Weights move in their last digits with the processor's instructions; texts, places and counts don't.
const TOLERANCE: f64 = 2e-3;
/// Rows kept in a snapshot.
const KEPT: usize = 12;

#[test]
fn every_query_has_a_snapshot_and_keeps_to_it() {
    let lake = Lake::new();
    // Far below the default, so that the weights are the optimum's and not those of whichever step came first below the threshold.
    lake.json(&["run", "job.toml", "--set", "transport.threshold=1e-6"], 0);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut queries: Vec<_> = fs::read_dir(root.join("queries")).unwrap().map(|entry| entry.unwrap().path()).collect();
    queries.sort();
    assert!(queries.len() >= 5);
    for query in queries {
        let output = lake.pushpull(&["sql", "job.toml", "-f", query.to_str().unwrap(), "--format", "json"]);
        assert!(output.status.success(), "{query:?}: {}", text(&output.stderr));
        let rows = reviewable(&text(&output.stdout));
        let snapshot = root.join("tests/it/snapshots").join(query.file_stem().unwrap()).with_extension("jsonl");
        if std::env::var_os("PUSHPULL_UPDATE_SNAPSHOTS").is_some() {
            fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
            fs::write(&snapshot, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        }
        let expected = fs::read_to_string(&snapshot)
            .unwrap_or_else(|_| panic!("{snapshot:?} is missing: set PUSHPULL_UPDATE_SNAPSHOTS=1 and review it"));
        let expected: Vec<Value> = expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), expected.len(), "{query:?}");
        for (row, wanted) in rows.iter().zip(&expected) {
            assert!(alike(row, wanted), "{query:?}\nfound    {row}\nexpected {wanted}");
        }
    }
}

/// The first rows, in the order of the corpus where the query gives none, without what differs between checkouts; and how many there are.
fn reviewable(lines: &str) -> Vec<Value> {
    let mut rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = rows.len();
    if rows.iter().all(|row| row["shard_version"].is_string()) {
        // A query of all columns is one that leaves the order open.
        rows.sort_by_key(|row| (row["shard"].to_string(), row["row"].as_u64()));
    }
    rows.truncate(KEPT);
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        row.remove("shard_version");
        row.remove("model");
    }
    rows.push(serde_json::json!({ "rows": count }));
    rows
}

fn alike(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| alike(value, other)))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= TOLERANCE * b.abs().max(0.05)
        }
        (a, b) => a == b,
    }
}
