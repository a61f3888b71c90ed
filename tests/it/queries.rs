//! Every file in `queries/` runs on the quick start and answers what it did when its snapshot was reviewed; what it says of itself is
//! computed anew from the rows.

use crate::support::{Lake, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Weights move in their last digits with the processor's instructions; texts, places and counts don't.
const TOLERANCE: f64 = 2e-3;
/// Rows kept in a snapshot.
const KEPT: usize = 12;

/// The quick start after two runs: the first with half the push, so that there is a version before the newest.
fn run_twice() -> Lake {
    let lake = Lake::new();
    // Far below the default, so that the weights are the optimum's and not those of whichever step came first below the threshold.
    lake.json(&["run", "job.toml", "--set", "transport.threshold=1e-6", "--set", "transport.push=0.5"], 0);
    lake.json(&["run", "job.toml", "--set", "transport.threshold=1e-6"], 0);
    lake
}

#[test]
fn every_query_has_a_snapshot_and_keeps_to_it() {
    let lake = run_twice();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut queries: Vec<_> = fs::read_dir(root.join("queries")).unwrap().map(|entry| entry.unwrap().path()).collect();
    queries.sort();
    assert!(queries.len() >= 15);
    for query in queries {
        let output = lake.pushpull(&["sql", "job.toml", "-f", query.to_str().unwrap(), "--format", "json"]);
        assert!(output.status.success(), "{query:?}: {}", text(&output.stderr));
        let is_ordered = fs::read_to_string(&query).unwrap().lines().any(|line| line.starts_with("order by"));
        let rows = reviewable(&text(&output.stdout), is_ordered);
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
fn reviewable(lines: &str, is_ordered: bool) -> Vec<Value> {
    let mut rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = rows.len();
    if !is_ordered {
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

/// Rows of a file in `queries/`.
fn answers(lake: &Lake, name: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("queries").join(name);
    let output = lake.pushpull(&["sql", "job.toml", "-f", file.to_str().unwrap(), "--format", "json"]);
    assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(row: &Value, column: &str) -> f64 {
    row[column].as_f64().unwrap_or_else(|| panic!("{column} of {row}"))
}

fn place(row: &Value) -> (String, u64) {
    (row["shard"].as_str().unwrap().to_owned(), row["row"].as_u64().unwrap())
}

/// The numbers of the newer queries, from the rows of `corpus` and of the version before by loops a person can follow.
#[test]
fn the_answers_are_those_of_a_plain_computation() {
    let lake = run_twice();
    let corpus = lake.sql("select * from corpus where weight is not null order by weight desc, shard, row");
    let weights: Vec<f64> = corpus.iter().map(|row| number(row, "weight")).collect();
    let total: f64 = weights.iter().sum();

    let exported = answers(&lake, "export_for_fine_tuning.sql");
    let cut = weights[weights.len() * 4 / 5 - 1];
    let kept: Vec<&Value> = corpus.iter().filter(|row| number(row, "weight") >= cut).collect();
    assert_eq!(exported.len(), kept.len());
    let mean = kept.iter().map(|row| number(row, "weight")).sum::<f64>() / kept.len() as f64;
    let wanted: BTreeMap<_, f64> = kept.iter().map(|row| (place(row), number(row, "weight") / mean)).collect();
    for row in &exported {
        assert!((number(row, "loss_weight") - wanted[&place(row)]).abs() < 1e-6, "{row}");
    }
    let mean = exported.iter().map(|row| number(row, "loss_weight")).sum::<f64>() / exported.len() as f64;
    assert!((mean - 1.0).abs() < 1e-9, "{mean}");

    let mut sources: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    corpus.iter().for_each(|row| sources.entry(row["source"].as_str().unwrap()).or_default().push(row));
    let budget = answers(&lake, "per_source_budget.sql");
    let wanted: Vec<_> = sources.values().flat_map(|rows| rows.iter().take(10).map(|row| place(row))).collect();
    assert_eq!(budget.iter().map(place).collect::<Vec<_>>(), wanted);
    assert!(budget.iter().all(|row| row["available"].as_u64() == Some(sources[row["source"].as_str().unwrap()].len() as u64)));

    let sample = answers(&lake, "weighted_sample.sql");
    assert_eq!(sample.iter().map(place).collect::<BTreeSet<_>>().len(), 50);
    assert_eq!(sample.iter().map(|row| row["draw"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());

    let resampled = answers(&lake, "resample.sql");
    let copies: BTreeMap<_, u64> = resampled.iter().map(|row| (place(row), row["copies"].as_u64().unwrap())).collect();
    for row in &corpus {
        let copies = copies.get(&place(row)).copied().unwrap_or(0) as f64;
        assert!((copies - number(row, "weight")).abs() < 1.0, "{row}");
    }

    for row in answers(&lake, "cost_of_threshold.sql") {
        let kept: Vec<&Value> = corpus.iter().filter(|of| number(of, "weight") >= number(&row, "threshold")).collect();
        let length = |text: &Value| text.as_str().map_or(0, |text| text.chars().count() as u64);
        let characters: u64 = kept.iter().map(|of| length(&of["prompt"]) + length(&of["response"])).sum();
        assert_eq!((row["rows_kept"].as_u64(), row["characters_kept"].as_u64()), (Some(kept.len() as u64), Some(characters)), "{row}");
        let share = kept.iter().map(|of| number(of, "weight")).sum::<f64>() / total;
        assert!((number(&row, "weight_share") - share).abs() < 1e-9, "{row}");
    }

    let coverage = answers(&lake, "coverage.sql");
    assert_eq!(coverage.len() as u64, lake.sql("select count(*) as n from references")[0]["n"].as_u64().unwrap());
    for side in ["safe", "harm"] {
        let of_side = || coverage.iter().filter(|row| row["side"] == side);
        assert!((of_side().map(|row| number(row, "mass_share")).sum::<f64>() - 1.0).abs() < 1e-9);
        assert!((of_side().map(|row| number(row, "row_share")).sum::<f64>() - 1.0).abs() < 1e-9);
        for row in of_side() {
            let used = corpus.iter().filter(|of| of[format!("{side}_ref")] == row["id"]).count();
            assert_eq!(row["row_count"].as_u64(), Some(used as u64), "{row}");
            assert!((number(row, "use") - number(row, "row_share") / number(row, "mass_share")).abs() < 1e-9);
        }
    }

    let before = lake.sql("select * from weights_at(0) where weight is not null");
    let drift = answers(&lake, "drift.sql");
    for (column, rows) in [("rows_before", &before), ("rows_now", &corpus)] {
        for (line, row) in drift.iter().enumerate() {
            let low = if line == 0 { 0.0 } else { number(row, "at_least") };
            let high = drift.get(line + 1).map_or(f64::INFINITY, |next| number(next, "at_least"));
            let wanted = rows.iter().filter(|of| (low..high).contains(&number(of, "weight"))).count();
            assert_eq!(row[column].as_u64(), Some(wanted as u64), "{column} {row}");
        }
    }
    let smooth = |row: &Value, column: &str| (number(row, column) + 0.5) / (408.0 + 0.5 * drift.len() as f64);
    let psi: f64 = drift
        .iter()
        .map(|row| {
            let (a, b) = (smooth(row, "rows_before"), smooth(row, "rows_now"));
            (b - a) * (b / a).ln()
        })
        .sum();
    assert!(psi > 0.0 && drift.iter().all(|row| (number(row, "psi_total") - psi).abs() < 1e-9), "{psi} {drift:?}");

    let earlier: BTreeMap<_, f64> = before.iter().map(|row| (place(row), number(row, "weight"))).collect();
    let changed = answers(&lake, "decision_changed.sql");
    let wanted: BTreeSet<_> =
        corpus.iter().filter(|row| (number(row, "weight") >= 0.5) != (earlier[&place(row)] >= 0.5)).map(place).collect();
    assert!(!wanted.is_empty());
    assert_eq!(changed.iter().map(place).collect::<BTreeSet<_>>(), wanted);
    for row in &changed {
        assert_eq!(row["decision"] == "kept now", number(row, "weight_now") >= 0.5, "{row}");
        assert!((number(row, "weight_before") - earlier[&place(row)]).abs() < 1e-12);
    }
}
