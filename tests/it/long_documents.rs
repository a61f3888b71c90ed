//! A harmful passage planted at the start, in the middle and at the end of long documents is found alike.

use crate::support::Lake;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DOCUMENTS: usize = 165;
const PLANTED: usize = 15;
const POSITIONS: [&str; 3] = ["start", "middle", "end"];

/// Documents by weight, the least weighted first. `window_begins_inside`: whether the window's first words are words of the passage.
/// `passage_begins_at`: where in 200 characters from the window on the passage begins, counted from 1; 0 where it does not.
fn ranked(lake: &Lake) -> Vec<Value> {
    let rows = lake.sql(
        "select id, position, category, weight, window, window_view,
           strpos(passage, substr(document, window + 1, 24)) > 0 as window_begins_inside,
           strpos(substr(document, window + 1, 200), substr(passage, 1, 24)) as passage_begins_at
         from corpus order by weight, id",
    );
    assert_eq!(rows.len(), DOCUMENTS);
    rows
}

/// The share of pairs of a planted and a clean document in which the planted one weighs less.
fn auc(rows: &[Value], position: &str) -> f64 {
    let weight = |row: &Value| row["weight"].as_f64().unwrap();
    let planted: Vec<f64> = rows.iter().filter(|row| row["position"] == position).map(weight).collect();
    let clean: Vec<f64> = rows.iter().filter(|row| row["position"].is_null()).map(weight).collect();
    let below: usize = planted.iter().map(|p| clean.iter().filter(|c| p < c).count()).sum();
    below as f64 / (planted.len() * clean.len()) as f64
}

#[test]
fn a_planted_passage_is_found_wherever_it_stands() {
    let lake = Lake::of("long_documents");
    let report = lake.json(&["run", "job.toml"], 0);
    assert_eq!((&report["rows"], &report["converged"]), (&json!(DOCUMENTS), &json!(true)));
    // The mean weight is 1 over the model's sample, which is the whole corpus here, by the picks of the model itself.
    assert!((report["mean_weight"].as_f64().unwrap() - 1.0).abs() < 1e-5, "{report}");

    let rows = ranked(&lake);
    let (planted, clean) = rows.split_at(PLANTED);
    assert!(clean.iter().all(|row| row["position"].is_null() && row["window_view"] == "document"), "{planted:#?}");
    let mut of_kind: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in planted {
        of_kind.entry(row["category"].as_str().unwrap()).or_default().push(row["weight"].as_f64().unwrap());
        assert!(row["window_begins_inside"] == true || row["passage_begins_at"].as_u64().unwrap() > 0, "{row}");
    }
    assert_eq!(of_kind.len(), PLANTED / POSITIONS.len());
    for (kind, weights) in of_kind {
        // Weights of clean documents are from 0.1 to above 4.
        assert_eq!(weights.len(), POSITIONS.len());
        assert!(weights[2] / weights[0] < 2.5, "{kind}: {weights:?}");
    }
}

#[test]
fn without_windows_it_drowns() {
    let lake = Lake::of("long_documents");
    let job = std::fs::read_to_string(lake.path("job.toml")).unwrap();
    let windowed = |line: &&str| ["window", "stride", "pool"].iter().any(|key| line.starts_with(key));
    let plain: Vec<&str> = job.lines().filter(|line| !windowed(line)).collect();
    // The mean of all windows is a reading of the whole as well.
    for (mode, job) in [("plain", plain.join("\n")), ("mean", job.replace("\"worst\"", "\"mean\""))] {
        std::fs::write(lake.path("job.toml"), job).unwrap();
        lake.json(&["run", "job.toml"], 0);
        let rows = ranked(&lake);
        assert!(rows.iter().all(|row| row["window"].is_null() && row["window_view"].is_null()), "{mode}");
        let aucs = POSITIONS.map(|position| auc(&rows, position));
        assert!(aucs.iter().all(|auc| *auc < 0.99), "{mode}: {aucs:?}");
        let found = rows[..PLANTED].iter().filter(|row| row["position"].is_string()).count();
        assert!(found < PLANTED * 2 / 3, "{mode}: {found}");
    }
}

#[test]
fn windows_do_not_depend_on_threads_chunks_or_memory() {
    let lake = Lake::of("long_documents");
    lake.json(&["run", "job.toml", "--threads", "1"], 0);
    let expected = lake.sidecars("output");
    for (n, options) in [["--threads", "3", "--chunk-rows", "7"], ["--threads", "2", "--memory", "64MiB"]].iter().enumerate() {
        let set = format!("output.url=output-{n}/");
        lake.json(&[&["run", "job.toml", "--set", &set][..], options].concat(), 0);
        assert!(lake.sidecars(&format!("output-{n}")) == expected, "{options:?}");
    }
    let error = lake.error(&["run", "job.toml", "--memory", "64KiB", "--set", "output.url=other/"]);
    assert!(error.contains("transport.sample_rows") && error.contains("lower it to"), "{error}");
}

#[test]
fn windows_are_another_problem_and_short_rows_stay_what_they_are() {
    let lake = Lake::new();
    let plain = lake.json(&["run", "job.toml"], 0);
    let weights = "select id, weight, window, window_view from corpus order by id";
    let before = lake.sql(weights);
    // No text of the quick start has so many tokens: the same vectors, so the same weights as far as the fit, which starts from the
    // other one's potentials, is converged.
    let windows = ["--set", "embed.window=500", "--set", "embed.pool=worst"];
    let worst = lake.json(&[&["run", "job.toml"][..], &windows].concat(), 0);
    assert_ne!(plain["model"], worst["model"]);
    let after = lake.sql(weights);
    let mut views = BTreeMap::new();
    for (before, after) in before.iter().zip(&after) {
        let (plain, worst) = (before["weight"].as_f64(), after["weight"].as_f64());
        assert_eq!(plain.is_some(), worst.is_some());
        assert!(plain.zip(worst).is_none_or(|(a, b)| (a - b).abs() <= 5e-2 * a), "{before} {after}");
        assert!(before["window"].is_null() && before["window_view"].is_null());
        assert_eq!(after["window"].is_null(), worst.is_none(), "{after}");
        *views.entry(after["window_view"].as_str().map(str::to_owned)).or_insert(0) += 1;
    }
    assert_eq!(views, BTreeMap::from([(None, 2), (Some("response".to_owned()), 396), (Some("text".to_owned()), 12)]));
    let error = lake.error(&["run", "job.toml", "--set", "embed.window=64", "--set", "embed.stride=65"]);
    assert!(error.contains("embed.stride"), "{error}");
    let tiny = format!("embed.model={}/fixtures/embed/tiny_bert", env!("CARGO_MANIFEST_DIR"));
    let error = lake.error(&["run", "job.toml", "--set", "embed.window=64", "--set", &tiny]);
    assert!(error.contains("embed.window") && error.contains("set it to 30 or less"), "{error}");
    let whole = ["--set", "embed.window=30", "--set", "output.url=whole/", "--set", &tiny];
    assert_eq!(lake.json(&[&["run", "job.toml"][..], &whole].concat(), 0)["shards"]["weighed"], 5);
}
