//! `pushpull eval` on the quick start's corpus, whose rows have labels.

use crate::support::{Lake, text};
use serde_json::{Value, json};

const ASKED: [&str; 6] = ["eval", "job.toml", "--label", "label", "--positive", "harmful"];

fn asked<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&ASKED[..], more].concat()
}

/// A metric of a method.
fn cell<'a>(report: &'a Value, method: &str, metric: &str, of: Option<Value>) -> &'a Value {
    let methods = report["methods"].as_array().unwrap();
    let cells = methods.iter().find(|m| m["method"] == method).unwrap_or_else(|| panic!("{method}: {report}"))["cells"].as_array().unwrap();
    let wanted = |cell: &&Value| cell["metric"] == metric && of.as_ref().is_none_or(|of| cell["negative"] == *of || cell["percent"] == *of);
    cells.iter().find(wanted).unwrap_or_else(|| panic!("{metric}: {cells:?}"))
}

#[test]
fn push_pull_is_measured_by_the_weights_that_a_run_publishes() {
    let lake = Lake::new();
    let report = lake.json(&asked(&["--bootstrap", "200"]), 0);
    assert!(!lake.path("output").exists(), "an evaluation writes nothing");
    let run = lake.json(&["run", "job.toml"], 0);
    assert_eq!(report["model"], run["model"], "the model is the one a run fits");
    assert_eq!((&report["sample_rows"], &report["epsilon"], &report["tau"]), (&run["sample_rows"], &run["epsilon"], &run["tau"]));

    // The same figures from the published weights, by SQL.
    let pairs = "select n.label, avg(case when h.weight < n.weight then 1.0 when h.weight = n.weight then 0.5 else 0.0 end) as auc \
        from corpus h cross join corpus n where h.label = 'harmful' and n.label <> 'harmful' and h.weight is not null and n.weight is not null \
        group by n.label";
    for row in lake.sql(pairs) {
        let found = cell(&report, "push-pull", "auc", Some(row["label"].clone()));
        assert!((found["value"].as_f64().unwrap() - row["auc"].as_f64().unwrap()).abs() < 1e-9, "{row} {found}");
    }
    let share = "select sum(case when label = 'harmful' then weight else 0 end) / sum(weight) as share, \
        count(*) filter (where label = 'harmful') as harmful, count(*) as rows from corpus where weight is not null";
    let share = &lake.sql(share)[0];
    let found = cell(&report, "push-pull", "weight_share", None)["value"].as_f64().unwrap();
    assert!((found - share["share"].as_f64().unwrap()).abs() < 1e-6, "{found} {share}");
    assert_eq!((&report["rows"]["scored"], &report["classes"][0]["rows"]), (&share["rows"], &share["harmful"]));
    let kept = "select count(*) filter (where label = 'harmful') as n from (select label, row_number() over (order by weight desc) as place, \
        count(*) over () as n from corpus where weight is not null) where place <= n * 80 / 100";
    assert_eq!(cell(&report, "push-pull", "kept", Some(json!(80)))["value"].as_f64().unwrap(), lake.sql(kept)[0]["n"].as_f64().unwrap());

    // What was left out is counted, and every class has its column.
    assert_eq!(
        report["rows"],
        json!({ "scored": 408, "eligible": 410, "without_text": 2, "without_label": 0, "other_label": 0, "not_selected": 0 })
    );
    let classes: Vec<&str> = report["classes"].as_array().unwrap().iter().map(|class| class["class"].as_str().unwrap()).collect();
    assert_eq!(classes, ["harmful", "benign", "refusal"]);
    let methods: Vec<&str> = report["methods"].as_array().unwrap().iter().map(|method| method["method"].as_str().unwrap()).collect();
    assert_eq!(
        methods,
        [
            "push-pull",
            "nearest reference",
            "mean of 100 nearest",
            "logistic regression",
            "prior alone",
            "no prior",
            "no potentials",
            "pull only",
            "push only",
            "prompt only",
            "response only"
        ]
    );
    for method in report["methods"].as_array().unwrap() {
        for cell in method["cells"].as_array().unwrap() {
            let [low, value, high] = ["low", "value", "high"].map(|key| cell[key].as_f64().unwrap());
            assert!(low <= value + 1e-9 && value <= high + 1e-9, "{cell}");
            assert_eq!(cell["push_pull_minus_this"].is_null(), method["method"] == "push-pull");
        }
    }
}

#[test]
fn the_result_depends_on_no_thread_or_chunk_and_on_the_seed() {
    let lake = Lake::new();
    let report = |more: &[&str]| {
        let mut report = lake.json(&asked(&[&["--bootstrap", "100"], more].concat()), 0);
        report.as_object_mut().unwrap().remove("seconds");
        report
    };
    let one = report(&["--threads", "1"]);
    assert_eq!(one, report(&["--threads", "3", "--chunk-rows", "7", "--memory", "64KiB"]));
    let other = report(&["--set", "transport.seed=1"]);
    let of = |report: &Value| cell(report, "push-pull", "average_precision", None)["low"].as_f64().unwrap();
    assert_ne!(of(&one), of(&other));
}

#[test]
fn the_table_says_where_push_pull_is_not_better() {
    let lake = Lake::new();
    let output = lake.pushpull(&asked(&["--bootstrap", "200"]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(table.lines().all(|line| line.chars().count() <= 140), "{table}");
    for part in ["push-pull", "nearest reference", "what people do today", "push-pull with parts missing", "benign", "refusal", "best 80 %"]
    {
        assert!(table.contains(part), "{part}\n{table}");
    }
    let report = lake.json(&asked(&["--bootstrap", "200"]), 0);
    let methods = report["methods"].as_array().unwrap();
    for (kind, sentence) in [("baseline", "Against the baselines"), ("ablation", "Against itself with parts missing")] {
        let cells: Vec<&Value> = methods.iter().filter(|m| m["kind"] == kind).flat_map(|m| m["cells"].as_array().unwrap()).collect();
        let better = cells.iter().filter(|cell| cell["push_pull_minus_this"]["verdict"] == "better").count();
        assert!(better < cells.len(), "a small corpus cannot show every difference");
        assert!(table.contains(&format!("{sentence}, push-pull is better in {better} of {} cells", cells.len())), "{table}");
    }
    let marks =
        |mark: char| table.lines().take_while(|line| !line.starts_with("AUC  ")).flat_map(str::chars).filter(|c| *c == mark).count();
    let verdicts = |verdict: &str| {
        let cells = methods.iter().flat_map(|m| m["cells"].as_array().unwrap());
        cells.filter(|cell| cell["push_pull_minus_this"]["verdict"] == verdict).count()
    };
    assert_eq!((marks('='), marks('!')), (verdicts("no-difference"), verdicts("worse")), "{table}");
    assert!(text(&output.stderr).contains("bootstrap"), "{}", text(&output.stderr));
}

#[test]
fn which_rows_are_scored_is_asked_and_what_is_fitted_on_is_not() {
    let lake = Lake::new();
    let quick = ["--bootstrap", "20"];
    let all = lake.json(&asked(&quick), 0);
    let refusals = lake.json(&asked(&[&quick[..], &["--negative", "refusal"]].concat()), 0);
    assert_eq!(refusals["classes"].as_array().unwrap().len(), 2);
    assert!(refusals["rows"]["other_label"].as_u64().unwrap() > 200);
    let auc = |report: &Value| cell(report, "push-pull", "auc", Some(json!("refusal")))["value"].clone();
    assert_eq!((&refusals["model"], auc(&refusals)), (&all["model"], auc(&all)));

    let some = lake.json(&asked(&[&quick[..], &["--where", "source in ('writing', 'support') and label is not null"]].concat()), 0);
    let count = lake.pushpull(&["run", "job.toml"]);
    assert!(count.status.success());
    let expected = &lake.sql("select count(*) as n from corpus where source in ('writing', 'support') and weight is not null")[0]["n"];
    assert_eq!((&some["rows"]["scored"], &some["model"]), (expected, &all["model"]));
    assert_eq!(some["rows"]["not_selected"].as_u64().unwrap() + some["rows"]["eligible"].as_u64().unwrap(), 410);

    let sample = lake.json(&asked(&[&quick[..], &["--rows", "150"]].concat()), 0);
    assert_eq!((&sample["rows"]["eligible"], &sample["model"]), (&json!(410), &all["model"]));
    assert_eq!(sample["rows"]["scored"].as_u64().unwrap() + sample["rows"]["without_text"].as_u64().unwrap(), 150);
    // A small sample for the fit is another problem; the same rows are scored.
    let small = lake.json(&asked(&[&quick[..], &["--set", "transport.sample_rows=200"]].concat()), 0);
    assert_eq!(small["rows"], all["rows"]);
    assert!(small["sample_rows"].as_u64().unwrap() <= 200 && small["model"] != all["model"]);

    // Several harmful labels are one class, and a category is a label like any other.
    let joined = ["eval", "job.toml", "--label", "category", "--positive", "malware", "--positive", "fraud", "--bootstrap", "20"];
    let joined = lake.json(&joined, 0);
    assert_eq!(joined["classes"][0]["class"], "malware + fraud");
    let classes = joined["classes"].as_array().unwrap();
    assert_eq!((classes.len(), &classes[8]["class"]), (9, &json!("other labels")), "seven columns and the rest");
}

#[test]
fn a_label_that_is_not_there_is_named_with_what_is() {
    let lake = Lake::new();
    let error = lake.error(&["eval", "job.toml", "--label", "lable", "--positive", "harmful"]);
    assert!(error.contains("`lable`") && error.contains("did you mean `label`"), "{error}");
    let error = lake.error(&["eval", "job.toml", "--label", "label", "--positive", "harmfull"]);
    assert!(error.contains("--positive") && error.contains("did you mean \"harmful\"") && error.contains("\"benign\" ("), "{error}");
    let error = lake.error(&asked(&["--negative", "safe"]));
    assert!(error.contains("--negative") && error.contains("\"safe\"") && error.contains("\"refusal\" ("), "{error}");
    let error = lake.error(&asked(&["--negative", "harmful"]));
    assert!(error.contains("named twice"), "{error}");
    let error = lake.error(&asked(&["--where", "label = 'harmful'"]));
    assert!(error.contains("every labelled row is positive"), "{error}");
    let error = lake.error(&asked(&["--where", "sourze = 'writing'"]));
    assert!(error.contains("sourze"), "{error}");
    let error = lake.error(&asked(&["--where", "source = 'nowhere'"]));
    assert!(error.contains("source = 'nowhere'") && error.contains("no row has a `label`"), "{error}");
    for more in [&["--rows", "0"][..], &["--bootstrap", "0"]] {
        assert!(lake.error(&asked(more)).contains("at least 1"));
    }
}

#[test]
fn too_few_rows_are_warned_of_and_a_broken_shard_is_left_out() {
    let lake = Lake::new();
    std::fs::write(lake.path("corpus/part-0003.parquet"), b"PAR1 nothing PAR1").unwrap();
    let report = lake.json(&asked(&["--bootstrap", "20", "--where", "category in ('malware', 'coding')"]), 1);
    let warnings = report["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|w| w.as_str().unwrap().contains("too few")), "{warnings:?}");
    assert_eq!(report["quarantined"].as_array().unwrap().len(), 1);
    assert_eq!(report["quarantined"][0]["shard"], "part-0003.parquet");
    let table = text(&lake.pushpull(&asked(&["--bootstrap", "20"])).stdout);
    assert!(table.contains("quarantined: shard part-0003.parquet"), "{table}");
}
