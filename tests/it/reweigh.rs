//! Weighing a part of the corpus, going back to an earlier model, and another push or temperature from the sidecars alone.

use crate::support::{Lake, ROWS, SHARDS};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const HALF: [&str; 2] = ["--set", "transport.push=0.5"];

fn with<'a>(command: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [command, more].concat()
}

fn models(lake: &Lake) -> Vec<(String, u64)> {
    let rows = lake.sql("select model, count(*) as n from corpus group by model order by n desc");
    rows.iter().map(|row| (row["model"].as_str().unwrap_or("none").to_owned(), row["n"].as_u64().unwrap())).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Overwrites a file so that nothing a listing shows of it changes.
fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all(bytes).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(modified)).unwrap();
}

/// A corpus of zeros that is listed as it was: whoever reads it gets nothing. As it was again when dropped.
struct Blanked(Vec<(PathBuf, Vec<u8>)>);

impl Blanked {
    fn corpus(lake: &Lake) -> Self {
        let shards: Vec<_> =
            crate::support::walk(&lake.path("corpus")).into_iter().map(|p| (p.clone(), std::fs::read(p).unwrap())).collect();
        shards.iter().for_each(|(path, bytes)| overwrite(path, &vec![0; bytes.len()]));
        Self(shards)
    }
}

impl Drop for Blanked {
    fn drop(&mut self) {
        self.0.iter().for_each(|(path, bytes)| overwrite(path, bytes));
    }
}

/// What the sidecars hold but the weight and the model.
const CARRIED: &str = "select shard, row, pull, push, prior, safe_ref, harm_ref, \"window\", window_view from corpus order by shard, row";

#[test]
fn a_part_is_weighed_and_the_others_keep_theirs() {
    let lake = Lake::new();
    let first = text(&lake.json(&["run", "job.toml"], 0)["model"]);
    let second = text(&lake.json(&with(&["fit", "job.toml"], &HALF), 0)["model"]);
    let weigh = with(&["weigh", "job.toml"], &HALF);

    let planned = lake.json(&with(&["plan", "job.toml", "--shard", "part-000[01].parquet"], &HALF), 0);
    let states: Vec<&str> = planned["shards"].as_array().unwrap().iter().map(|shard| shard["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["not_selected", "changed", "changed", "not_selected", "not_selected"], "{planned}");

    let by_name = lake.json(&with(&weigh, &["--shard", "part-0000.parquet"]), 0);
    assert_eq!(by_name["shards"], json!({ "weighed": 1, "unchanged": 0, "removed": 0, "quarantined": 0, "not_selected": 4 }));
    assert_eq!(models(&lake), [(first.clone(), ROWS - 100), (second.clone(), 100)]);
    assert_eq!(by_name["models"][0], json!({ "model": first, "shards": 4, "rows": ROWS - 100 }));
    assert!(by_name["hints"].to_string().contains("4 of 5 shards"), "{by_name}");

    // A condition on a base column that one shard meets, and one on what the sidecars say; all parts must be met.
    let ids = "id between 'corpus-0101' and 'corpus-0190'";
    let none = lake.json(&with(&weigh, &["--where", ids, "--shard", "nested/*"]), 0);
    assert_eq!((&none["shards"]["weighed"], &none["shards"]["not_selected"]), (&json!(0), &json!(4)));
    let by_row = lake.json(&with(&weigh, &["--where", ids]), 0);
    assert_eq!((&by_row["shards"]["weighed"], &by_row["shards"]["not_selected"]), (&json!(1), &json!(3)));
    assert_eq!(models(&lake), [(first.clone(), ROWS - 190), (second.clone(), 190)]);
    let by_model = format!("model = '{first}' and shard like 'nested/%'");
    assert_eq!(lake.json(&with(&weigh, &["--where", &by_model]), 0)["shards"]["weighed"], 1);

    // Stale ones only: a new shard is left, one that changed under the current model is taken.
    std::fs::copy(lake.path("corpus/part-0001.parquet"), lake.path("corpus/part-0009.parquet")).unwrap();
    std::fs::copy(lake.path("corpus/part-0003.parquet"), lake.path("corpus/part-0001.parquet")).unwrap();
    let stale = lake.json(&with(&weigh, &["--stale"]), 0);
    assert_eq!((&stale["shards"]["weighed"], &stale["shards"]["not_selected"]), (&json!(3), &json!(1)), "{stale}");
    let shares = models(&lake);
    assert_eq!(shares.iter().map(|(model, _)| model.as_str()).collect::<Vec<_>>(), [second.as_str(), "none"], "{shares:?}");
    let rest = lake.json(&weigh, 0);
    assert_eq!((&rest["shards"]["weighed"], rest["models"].as_array().unwrap().len()), (&json!(1), 1));
}

#[test]
fn what_cannot_be_selected_is_refused_and_nothing_changes() {
    let lake = Lake::new();
    let version = lake.json(&["run", "job.toml"], 0)["version"].clone();
    for (arguments, parts) in [
        (["--shard", "part-000.parquet"], &["--shard", "nearest name is \"part-0000.parquet\""][..]),
        (["--shard", "*/part-0000.parquet"], &["matches none of the 5 shards"]),
        (["--where", "id < 'corpus-0105'"], &["shard part-0001.parquet: 4 of 90 rows; a shard is weighed whole"]),
        (["--where", "sorce = 'cooking'"], &["sorce"]),
        (["--where", "length(id)"], &["not true or false"]),
        (["--where", "random() < 0.5"], &["each time"]),
        (["--model", "zz"], &["--model", "no stored model's digest begins with \"zz\"", "push 1"]),
    ] {
        for command in ["weigh", "plan"] {
            let error = lake.error(&with(&[command, "job.toml"], &arguments));
            assert!(parts.iter().all(|part| error.contains(part)), "{command} {arguments:?}: {error}");
        }
    }
    assert_eq!(lake.json(&["run", "job.toml"], 0)["version"], version);
}

#[test]
fn a_selection_removes_nothing() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    std::fs::remove_file(lake.path("corpus").join(SHARDS[3])).unwrap();
    let plan = lake.pushpull(&["plan", "job.toml", "--stale"]);
    assert!(crate::support::text(&plan.stdout).contains("gone, kept"), "{plan:?}");
    let part = lake.json(&["weigh", "job.toml", "--stale"], 0);
    assert_eq!((&part["shards"]["removed"], &part["rows"]), (&json!(0), &json!(ROWS)));
    assert!(part["hints"].to_string().contains("1 shards of the table are gone"), "{part}");
    assert_eq!(lake.json(&["weigh", "job.toml"], 0)["shards"]["removed"], 1);
}

#[test]
fn an_earlier_model_comes_back_without_reading_the_corpus() {
    let lake = Lake::new();
    let first = lake.json(&["run", "job.toml"], 0);
    let weights = lake.sql("select shard, row, weight from corpus order by shard, row");
    let second = lake.json(&with(&["run", "job.toml"], &HALF), 0);
    assert_ne!(first["model"], second["model"]);
    // The job stays at the new push, and its references are gone: the model has its own.
    let blanked = Blanked::corpus(&lake);
    std::fs::rename(lake.path("references"), lake.path("elsewhere")).unwrap();
    let digits = first["model"].as_str().unwrap().get(..9).unwrap().to_owned();
    let back = with(&["weigh", "job.toml", "--model", &digits], &HALF);
    let planned = lake.json(&with(&["plan", "job.toml", "--model", &digits], &HALF), 0);
    assert_eq!(planned["model"], first["model"]);
    let report = lake.json(&back, 0);
    assert_eq!((&report["model"], &report["push"], &report["corpus_bytes_read"]), (&first["model"], &json!(1.0), &json!(0)), "{report}");
    assert_eq!((&report["shards"]["weighed"], &report["fitted"]), (&json!(5), &json!(false)));
    drop(blanked);
    assert_eq!(lake.sql("select shard, row, weight from corpus order by shard, row"), weights);
    let again = lake.json(&back, 0);
    assert_eq!((&again["shards"]["unchanged"], &again["version"]), (&json!(5), &report["version"]));

    // The job's own run goes back to its own model, and says so beforehand.
    std::fs::rename(lake.path("elsewhere"), lake.path("references")).unwrap();
    let error = lake.error(&with(&["weigh", "job.toml"], &HALF));
    assert!(error.contains(&format!("pushpull weigh --model {}", &text(&first["model"])[..12])), "{error}");
    let own = lake.json(&with(&["run", "job.toml"], &HALF), 0);
    assert_eq!((&own["model"], &own["corpus_bytes_read"]), (&second["model"], &json!(0)));
}

#[test]
fn an_earlier_model_for_a_part_leaves_the_current_one() {
    let lake = Lake::new();
    let first = text(&lake.json(&["run", "job.toml"], 0)["model"]);
    let second = text(&lake.json(&with(&["run", "job.toml"], &HALF), 0)["model"]);
    let part = lake.json(&["weigh", "job.toml", "--model", &first, "--shard", "**/part-000[02].parquet"], 0);
    assert_eq!((&part["shards"]["weighed"], &part["corpus_bytes_read"]), (&json!(2), &json!(0)));
    assert_eq!(models(&lake), [(second.clone(), ROWS - 176), (first.clone(), 176)]);
    assert_eq!(lake.json(&with(&["plan", "job.toml"], &HALF), 0)["model"], second.as_str());
    let shards = lake.sql(&format!("select count(*) as n from shards where model = '{first}'"));
    assert_eq!(shards, [json!({ "n": 2 })]);
    // `--stale` is by the model that weighs.
    let rest = lake.json(&["weigh", "job.toml", "--model", &first, "--stale"], 0);
    assert_eq!((&rest["shards"]["weighed"], &rest["shards"]["unchanged"]), (&json!(3), &json!(2)));
    assert_eq!(models(&lake), [(first, ROWS)]);
}

#[test]
fn a_model_that_reads_otherwise_is_refused_with_what_differs() {
    let lake = Lake::new();
    let model = text(&lake.json(&["run", "job.toml"], 0)["model"]);
    let twin = format!("{}{}", &model[..8], "f".repeat(24));
    let folder = lake.path("output/_models");
    std::fs::copy(folder.join(format!("{model}.safetensors")), folder.join(format!("{twin}.safetensors"))).unwrap();
    let error = lake.error(&["weigh", "job.toml", "--model", &model[..8]]);
    assert!(error.contains("2 stored models' digests begin with") && error.contains(&model[..12]), "{error}");
    let columns = ["--set", "corpus.text=[\"prompt\"]"];
    let error = lake.error(&with(&["weigh", "job.toml", "--model", &model], &columns));
    assert!(error.contains("the columns are prompt, the model's prompt, response"), "{error}");
    let windows = ["--set", "embed.window=32"];
    let error = lake.error(&with(&["weigh", "job.toml", "--model", &model], &windows));
    assert!(error.contains("embed.window"), "{error}");
}

/// The weights that the sidecars' own numbers give by the closed form, with mean 1.
fn by_formula(rows: &[Value], push: f64, tau: f64) -> Vec<Option<f64>> {
    // As the sidecar holds it; its decimal digits are those of a f32.
    let number = |row: &Value, name: &str| row[name].as_f64().map(|number| f64::from(number as f32));
    let exponents: Vec<Option<f64>> =
        rows.iter().map(|row| Some(-(number(row, "pull")? - push * number(row, "push")? + number(row, "prior")?) / tau)).collect();
    let largest = exponents.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    let weighed = exponents.iter().flatten().count() as f64;
    let mean = exponents.iter().flatten().map(|e| (e - largest).exp()).sum::<f64>() / weighed;
    exponents.into_iter().map(|e| e.map(|e| (e - largest).exp() / mean)).collect()
}

#[test]
fn another_push_and_temperature_from_the_sidecars_alone() {
    let lake = Lake::new();
    let first = lake.json(&["run", "job.toml"], 0);
    let carried = lake.sql(CARRIED);
    let blanked = Blanked::corpus(&lake);
    let sets = ["--set", "transport.push=0.5", "--set", "transport.temperature={ess=0.3}"];
    let planned = lake.json(&with(&["plan", "job.toml", "--keep-potentials"], &sets), 0);
    assert_eq!((&planned["keeps_potentials_of"], &planned["bytes_to_weigh"]), (&first["model"], &json!(0)), "{planned}");
    assert!(planned["shards"].as_array().unwrap().iter().all(|shard| shard["state"] == "recomputed"), "{planned}");

    let report = lake.json(&with(&["weigh", "job.toml", "--keep-potentials"], &sets), 0);
    assert_eq!(report["shards"], json!({ "weighed": 0, "unchanged": 0, "removed": 0, "quarantined": 0, "recomputed": 5 }));
    assert_eq!((&report["corpus_bytes_read"], &report["fitted"]), (&json!(0), &json!(false)), "{report}");
    // Nothing that only a fit measures is claimed.
    assert_eq!((&report["converged"], &report["residuals"], &report["certificate"]), (&json!(false), &json!(null), &json!(null)));
    let kept = &report["kept_potentials"];
    assert_eq!((&kept["fitted"], &kept["push"], &kept["rows"]), (&first["model"], &json!(1.0), &json!(ROWS - 2)), "{kept}");
    assert!((report["ess"].as_f64().unwrap() - 0.3).abs() < 1e-6, "{report}");
    assert!((report["mean_weight"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{report}");

    drop(blanked);
    assert_eq!(lake.sql(CARRIED), carried);
    let rows = lake.sql("select shard, row, model, weight, pull, push, prior from corpus order by shard, row");
    let expected = by_formula(&rows, 0.5, report["tau"].as_f64().unwrap());
    assert_eq!(rows.len() as u64, ROWS);
    for (row, expected) in rows.iter().zip(expected) {
        assert_eq!(row["model"], report["model"]);
        match (row["weight"].as_f64(), expected) {
            (Some(weight), Some(expected)) => assert!((weight / expected - 1.0).abs() < 1e-6, "{row}: {expected}"),
            (weight, expected) => assert_eq!(weight, expected, "{row}"),
        }
    }
    let stored =
        lake.sql(&format!("select potentials_of, parent, converged, residual_safe, push from models where model = {}", quoted(&report)));
    let expected = json!({ "potentials_of": first["model"], "parent": first["model"], "converged": false, "push": 0.5 });
    let (Value::Object(mut stored), Value::Object(expected)) = (stored[0].clone(), expected) else { panic!("{stored:?}") };
    assert!(stored.remove("residual_safe").is_none_or(|residual| residual.is_null()));
    assert_eq!(stored, expected);

    // Nothing is left to do, and a plain run goes on with that model.
    for again in [with(&["weigh", "job.toml", "--keep-potentials"], &sets), with(&["run", "job.toml"], &sets)] {
        let again = lake.json(&again, 0);
        assert_eq!((&again["shards"]["unchanged"], &again["model"]), (&json!(5), &report["model"]));
        assert_eq!((&again["version"], &again["corpus_bytes_read"]), (&report["version"], &json!(0)));
    }
    let said = crate::support::text(&lake.pushpull(&with(&["weigh", "job.toml"], &sets)).stdout);
    assert!(said.contains("potentials of") && said.contains("of the corpus 0 B") && !said.contains("residuals  "), "{said}");
}

fn quoted(report: &Value) -> String {
    format!("'{}'", report["model"].as_str().unwrap())
}

#[test]
fn the_same_push_and_temperature_give_the_same_weights() {
    let lake = Lake::new();
    let first = lake.json(&["run", "job.toml"], 0);
    let query = "select shard, row, weight, pull, push, prior from corpus order by shard, row";
    let before = lake.sql(query);
    let tau = first["tau"].as_f64().unwrap();
    let set = format!("transport.temperature={tau:?}");
    let report = lake.json(&["weigh", "job.toml", "--set", &set, "--keep-potentials"], 0);
    assert_eq!((report["tau"].as_f64(), &report["shards"]["recomputed"]), (Some(tau), &json!(5)));
    let after = lake.sql(query);
    for (before, after) in before.iter().zip(&after) {
        let (Some(old), Some(new)) = (before["weight"].as_f64(), after["weight"].as_f64()) else {
            assert_eq!(before["weight"], after["weight"]);
            continue;
        };
        // Each number is rounded to f32 once, the weight twice; log Z, the mean over all rows, has no more of it than a row.
        let size: f64 = ["pull", "push", "prior"].iter().map(|name| before[name].as_f64().unwrap().abs()).sum();
        let bound = 2f64.powi(-24) * (3.0 + 2.0 * size.max(1.0) / tau);
        assert!((new / old - 1.0).abs() <= bound, "{before} {after} {bound}");
    }

    // There and back through another push: the later of two models of one problem is the one a run takes up.
    let half = lake.json(&with(&["weigh", "job.toml", "--set", &set, "--keep-potentials"], &HALF), 0);
    let back = lake.json(&["weigh", "job.toml", "--set", &set, "--keep-potentials"], 0);
    assert_eq!(back["kept_potentials"]["fitted"], first["model"]);
    assert_eq!(lake.sql(query), after);
    lake.json(&["weigh", "job.toml", "--model", half["model"].as_str().unwrap()], 0);
    assert_eq!(lake.json(&["run", "job.toml", "--set", &set], 0)["model"], back["model"]);
}

#[test]
fn kept_potentials_do_not_depend_on_threads_chunks_or_memory() {
    let lake = Lake::new();
    let mut outputs = Vec::new();
    for (n, options) in [
        ["--threads", "1", "--chunk-rows", "4096", "--memory", "2GiB"],
        ["--threads", "3", "--chunk-rows", "7", "--memory", "2GiB"],
        ["--threads", "2", "--chunk-rows", "64", "--memory", "64KiB"],
    ]
    .iter()
    .enumerate()
    {
        let set = format!("output.url=output-{n}/");
        lake.json(&["run", "job.toml", "--set", &set], 0);
        let sharper = ["--set", "transport.temperature={ess=0.2}", "--keep-potentials"];
        let report = lake.json(&[&["weigh", "job.toml", "--set", &set][..], &sharper, options].concat(), 0);
        assert_eq!(report["shards"]["recomputed"], 5);
        outputs.push(lake.sidecars(&format!("output-{n}")));
    }
    assert_eq!(outputs[0].len(), 10);
    assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2]);
}

#[test]
fn what_was_computed_before_a_lost_commit_is_taken_up() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let keep = with(&["weigh", "job.toml", "--keep-potentials"], &HALF);
    let report = lake.json(&keep, 0);
    let files = lake.sidecars("output");
    std::fs::remove_file(lake.path(&format!("output/_delta_log/{:020}.json", report["version"].as_u64().unwrap()))).unwrap();
    let again = lake.json(&keep, 0);
    for key in ["model", "version", "shards", "corpus_bytes_read", "ess"] {
        assert_eq!(again[key], report[key], "{key}");
    }
    assert!(again["bytes_read"].as_u64().unwrap() < report["bytes_read"].as_u64().unwrap() && lake.sidecars("output") == files);

    // Another push and back to this one: the same weights, whatever was tried in between.
    let weights = "select shard, row, weight from corpus order by shard, row";
    let before = lake.sql(weights);
    lake.json(&["weigh", "job.toml", "--keep-potentials", "--set", "transport.push=0.8"], 0);
    assert_ne!(lake.sql(weights), before);
    lake.json(&keep, 0);
    assert_eq!(lake.sql(weights), before);
}

#[test]
fn what_has_no_numbers_by_these_potentials_is_weighed() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    std::fs::copy(lake.path("corpus/part-0000.parquet"), lake.path("corpus/part-0009.parquet")).unwrap();
    std::fs::remove_file(lake.path("corpus").join(SHARDS[3])).unwrap();
    let sidecars = lake.sql("select shard, sidecar from shards where sidecar is not null order by shard");
    let broken = lake.path("output").join(sidecars[0]["sidecar"].as_str().unwrap());
    let size = std::fs::metadata(&broken).unwrap().len() as usize;
    overwrite(&broken, &vec![0; size]);
    let report = lake.json(&with(&["run", "job.toml", "--keep-potentials"], &HALF), 0);
    assert_eq!(report["shards"], json!({ "weighed": 2, "unchanged": 0, "removed": 1, "quarantined": 0, "recomputed": 3 }), "{report}");
    assert!(report["corpus_bytes_read"].as_u64().unwrap() > 0);
    // A shard that is weighed gets what its twin got from the sidecar, up to the rounding of the numbers.
    let apart = "select count(*) as n from corpus a join corpus b on a.row = b.row where a.shard = 'part-0000.parquet' \
        and b.shard = 'part-0009.parquet' and ((a.pull is distinct from b.pull) or abs(a.weight / b.weight - 1) > 1e-5)";
    assert_eq!(lake.sql(apart), [json!({ "n": 0 })]);
}

#[test]
fn potentials_are_kept_for_push_and_temperature_alone() {
    let lake = Lake::new();
    let error = lake.error(&["weigh", "job.toml", "--keep-potentials"]);
    assert!(error.contains("pushpull fit"), "{error}");
    lake.json(&["run", "job.toml"], 0);
    std::fs::copy(lake.path("references/safe.parquet"), lake.path("references/more.parquet")).unwrap();
    for (set, part) in [
        ("transport.epsilon=0.05", "`transport.epsilon` is {\"fixed\":0.05}, the model's \"auto\""),
        ("transport.sample_rows=100", "`transport.sample_rows`"),
        ("corpus.text=[\"prompt\"]", "the columns are prompt"),
        ("references.harm=references/more.parquet", "references"),
    ] {
        for command in ["weigh", "plan"] {
            let error = lake.error(&with(&[command, "job.toml", "--keep-potentials", "--set", set], &HALF));
            assert!(error.contains(part), "{command} {set}: {error}");
        }
    }
    for more in [&["--shard", "part-0000.parquet"][..], &["--stale"], &["--model", "a"], &["--where", "true"]] {
        let error = lake.error(&with(&["weigh", "job.toml", "--keep-potentials"], more));
        assert!(error.contains("--keep-potentials"), "{more:?}: {error}");
    }
}

#[test]
fn the_most_harmful_window_depends_on_push_but_not_on_temperature() {
    let lake = Lake::of("long_documents");
    let code = lake.pushpull(&["run", "job.toml"]).status.code().unwrap();
    let carried = lake.sql(CARRIED);
    let error = lake.error(&with(&["weigh", "job.toml", "--keep-potentials"], &HALF));
    assert!(error.contains("embed.pool"), "{error}");
    let report = lake.json(&["weigh", "job.toml", "--keep-potentials", "--set", "transport.temperature={ess=0.4}"], code);
    assert_eq!(report["corpus_bytes_read"], 0);
    assert_eq!(lake.sql(CARRIED), carried);
}
