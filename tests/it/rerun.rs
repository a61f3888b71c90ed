//! What a second run does, and what no run may depend on.

use crate::support::{Lake, ROWS, SHARDS};
use serde_json::json;

#[test]
fn the_second_run_weighs_nothing() {
    let lake = Lake::new();
    let plan = lake.json(&["plan", "job.toml"], 0);
    assert_eq!((plan["shards"].as_array().unwrap().len(), &plan["model"]), (5, &json!(null)));
    assert!(!lake.path("output").exists(), "a plan writes nothing");

    let first = lake.json(&["run", "job.toml"], 0);
    assert_eq!(first["shards"], json!({ "weighed": 5, "unchanged": 0, "removed": 0, "quarantined": 0 }));
    assert_eq!((&first["rows"], &first["rows_without_text"], &first["converged"]), (&json!(ROWS), &json!(2), &json!(true)));
    assert!((first["mean_weight"].as_f64().unwrap() - 1.0).abs() < 0.02, "{first}");
    for key in ["model", "residuals", "ess", "epsilon", "tau", "transport_cost", "bytes_read", "seconds", "version"] {
        assert!(!first[key].is_null(), "{key}");
    }
    assert!(first["residuals"]["safe"].as_f64().unwrap() < 1e-3 && first["residuals"]["harm"].as_f64().unwrap() < 1e-3);
    let certificate = &first["certificate"];
    let certified = |of: &serde_json::Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("{key}: {of}"));
    assert!(certified(&certificate["residuals"], "safe") < 1e-3 && certified(&certificate["gap"], "harm").abs() < 1e-3, "{certificate}");
    assert!(certified(certificate, "weight_error") < 1e-4 && certified(certificate, "joint_rate") < 1.0, "{certificate}");
    let stored = &lake.sql("select stability, joint_rate, gap_safe, gap_harm, oscillated from models")[0];
    assert_eq!((&stored["stability"], &stored["joint_rate"]), (&certificate["stability"], &certificate["joint_rate"]), "{stored}");
    assert_eq!((&stored["gap_harm"], &stored["oscillated"]), (&certificate["gap"]["harm"], &json!(false)), "{stored}");

    let second = lake.json(&["run", "job.toml"], 0);
    assert_eq!(second["shards"], json!({ "weighed": 0, "unchanged": 5, "removed": 0, "quarantined": 0 }));
    for key in ["rows", "model", "version", "mean_weight", "ess"] {
        assert_eq!(first[key], second[key], "{key}");
    }
    let states = lake.json(&["plan", "job.toml"], 0);
    assert!(states["shards"].as_array().unwrap().iter().all(|shard| shard["state"] == "unchanged"), "{states}");
}

#[test]
fn new_changed_and_vanished_shards() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    std::fs::copy(lake.path("corpus/part-0000.parquet"), lake.path("corpus/part-0009.parquet")).unwrap();
    std::fs::copy(lake.path("corpus/part-0003.parquet"), lake.path("corpus/part-0001.parquet")).unwrap();
    std::fs::remove_file(lake.path("corpus/part-0004.arrow")).unwrap();
    let plan = lake.json(&["plan", "job.toml"], 0);
    let states: Vec<_> =
        plan["shards"].as_array().unwrap().iter().map(|s| (s["shard"].as_str().unwrap(), s["state"].as_str().unwrap())).collect();
    let expected = [
        (SHARDS[0], "unchanged"),
        (SHARDS[1], "unchanged"),
        (SHARDS[2], "changed"),
        (SHARDS[3], "unchanged"),
        (SHARDS[4], "gone"),
        ("part-0009.parquet", "new"),
    ];
    assert_eq!(states, expected);
    let report = lake.json(&["run", "job.toml"], 0);
    assert_eq!(report["shards"], json!({ "weighed": 2, "unchanged": 3, "removed": 1, "quarantined": 0 }));
    // The copy has the original's weights, and the replaced shard has the other's.
    let different = "select count(*) as n from corpus a join corpus b on a.row = b.row and a.weight is distinct from b.weight \
        where (a.shard = 'part-0000.parquet' and b.shard = 'part-0009.parquet') or (a.shard = 'part-0001.parquet' and b.shard = 'part-0003.parquet')";
    assert_eq!(lake.sql(different), [json!({ "n": 0 })]);
    assert_eq!(lake.sql("select count(*) as n from corpus"), [json!({ "n": report["rows"] })]);
}

#[test]
fn another_problem_is_fitted_and_weighed_anew() {
    let lake = Lake::new();
    let first = lake.json(&["run", "job.toml"], 0);
    let second = lake.json(&["run", "job.toml", "--set", "transport.push=0.5"], 0);
    assert_ne!(first["model"], second["model"]);
    assert_eq!(second["shards"]["weighed"], 5);
    let plan = lake.json(&["plan", "job.toml"], 0);
    assert_eq!(plan["model"], first["model"], "a plan names the model that the run takes up");
    // The first job again: its model and its sidecars are still there, so it costs neither a fit nor any weighing.
    let third = lake.json(&["run", "job.toml"], 0);
    assert_eq!((&third["shards"]["weighed"], &third["model"], &third["fitted"]), (&json!(5), &first["model"], &json!(false)));
    let models = lake.sql("select model, push from models order by push");
    assert!(models.len() >= 2 && models[0]["push"] == 0.5, "{models:?}");
}

#[test]
fn fit_and_weigh_apart_give_what_run_gives() {
    let lake = Lake::new();
    let error = lake.error(&["weigh", "job.toml"]);
    assert!(error.contains("pushpull fit"), "{error}");
    let whole = lake.json(&["run", "job.toml"], 0);
    let apart = ["--set", "output.url=apart/"];
    let fitted = lake.json(&[&["fit", "job.toml"][..], &apart].concat(), 0);
    assert_eq!((&fitted["rows"], &fitted["shards"]["weighed"]), (&json!(0), &json!(0)));
    let weighed = lake.json(&[&["weigh", "job.toml"][..], &apart].concat(), 0);
    assert_eq!(weighed["model"], whole["model"]);
    assert_eq!(lake.sidecars("output"), lake.sidecars("apart"));
}

#[test]
fn bytes_do_not_depend_on_threads_chunks_or_memory() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml", "--threads", "1", "--chunk-rows", "4096"], 0);
    let expected = lake.sidecars("output");
    assert_eq!(expected.len(), 5);
    for (n, options) in
        [["--threads", "2", "--chunk-rows", "64"], ["--threads", "3", "--chunk-rows", "7"], ["--threads", "2", "--memory", "64KiB"]]
            .iter()
            .enumerate()
    {
        let output = format!("output-{n}");
        let set = format!("output.url={output}/");
        lake.json(&[&["run", "job.toml", "--set", &set][..], options].concat(), 0);
        assert!(lake.sidecars(&output) == expected, "{options:?}");
    }
}

#[test]
fn a_sample_smaller_than_the_corpus_converges_too() {
    let lake = Lake::new();
    let report = lake.json(&["run", "job.toml", "--set", "transport.sample_rows=250"], 0);
    assert_eq!((&report["rows"], &report["converged"]), (&json!(ROWS), &json!(true)));
    // Rows without text may be drawn but say nothing.
    let rows = lake.sql("select rows from models")[0]["rows"].as_u64().unwrap();
    assert!((248..=250).contains(&rows), "{rows}");
}

#[test]
fn weights_beside_the_corpus_are_no_shards() {
    let lake = Lake::new();
    let inside = ["--set", "output.url=corpus/weights/"];
    for weighed in [5, 0] {
        let report = lake.json(&[&["run", "job.toml"][..], &inside].concat(), 0);
        assert_eq!((&report["shards"]["weighed"], &report["rows"]), (&json!(weighed), &json!(ROWS)));
    }
    // Another job over the same corpus doesn't take them for shards either.
    assert_eq!(lake.json(&["run", "job.toml"], 0)["rows"], ROWS);
}

#[test]
fn shards_with_odd_names_are_shards() {
    let lake = Lake::new();
    let odd = "corpus/ts=2026-11-24 00%3A00 [x]~#";
    std::fs::create_dir_all(lake.path(odd)).unwrap();
    std::fs::rename(lake.path("corpus/part-0003.parquet"), lake.path(odd).join("part-0003.parquet")).unwrap();
    let report = lake.json(&["run", "job.toml"], 0);
    assert_eq!((&report["shards"]["weighed"], &report["rows"]), (&json!(5), &json!(ROWS)));
    assert_eq!(
        lake.sql("select count(*) as n from corpus where shard like 'ts=%' and text is null and weight is not null"),
        [json!({ "n": 74 })]
    );
}

#[test]
fn a_model_that_is_gone_or_damaged_is_fitted_again() {
    let lake = Lake::new();
    let first = lake.json(&["run", "job.toml"], 0);
    let model = lake.path("output/_models").join(format!("{}.safetensors", first["model"].as_str().unwrap()));
    std::fs::write(&model, "damaged").unwrap();
    let error = lake.pushpull(&["weigh", "job.toml"]);
    assert!(crate::support::text(&error.stderr).contains("damaged"));
    std::fs::remove_file(&model).unwrap();
    let again = lake.json(&["run", "job.toml"], 0);
    assert_eq!((&again["model"], &again["fitted"], &again["shards"]["unchanged"]), (&first["model"], &json!(true), &json!(5)));
}

#[test]
fn a_person_is_told_what_happened_and_what_to_type_next() {
    let lake = Lake::new();
    let output = lake.pushpull(&["run", "job.toml"]);
    let said = crate::support::text(&output.stdout);
    for part in ["410 rows", "5 weighed", "converged", "most weight", "least weight", "pushpull sql job.toml -f queries/"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
