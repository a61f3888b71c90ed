//! Bad input gets an error that names the thing, and nothing is lost.

use crate::support::{Lake, ROWS};
use serde_json::json;
use std::fs;

#[test]
fn columns_that_are_missing_or_no_text() {
    let lake = Lake::new();
    let error = lake.error(&["run", "job.toml", "--set", "corpus.text=[\"promt\", \"response\"]"]);
    assert!(error.contains("part-0002.parquet") && error.contains("`promt`") && error.contains("did you mean `prompt`"), "{error}");
    let error = lake.error(&["run", "job.toml", "--set", "corpus.text_fallback=txt"]);
    assert!(error.contains("`txt`") && error.contains("did you mean `text`"), "{error}");
    let error = lake.error(&["run", "job.toml", "--set", "corpus.embedding=prompt", "--set", "corpus.text=[]"]);
    assert!(error.contains("text_fallback"), "{error}");
    assert!(!lake.path("output/_delta_log").exists());
}

#[test]
fn no_shard_under_the_url() {
    let lake = Lake::new();
    let error = lake.error(&["run", "job.toml", "--set", "corpus.url=corpse/"]);
    assert!(error.contains("corpse/") && error.contains("corpus.url"), "{error}");
    let error = lake.error(&["run", "job.toml", "--set", "corpus.url=corpus/*.orc"]);
    assert!(error.contains("*.orc"), "{error}");
}

#[test]
fn an_unknown_key_and_a_missing_job_file() {
    let lake = Lake::new();
    let job = fs::read_to_string(lake.path("job.toml")).unwrap();
    fs::write(lake.path("slip.toml"), job.replace("text_fallback", "text_falback")).unwrap();
    let error = lake.error(&["run", "slip.toml"]);
    assert!(error.contains("slip.toml") && error.contains("did you mean `corpus.text_fallback`"), "{error}");
    let error = lake.error(&["run", "nowhere.toml"]);
    assert!(error.contains("nowhere.toml") && error.contains("no such file"), "{error}");
    assert!(lake.error(&["run", "job.toml", "--set", "transport.pusch=1"]).contains("--set: unknown key `transport.pusch`"));
    fs::write(lake.path("broken.toml"), "[corpus\nurl = 1").unwrap();
    assert!(lake.error(&["plan", "broken.toml"]).contains("broken.toml"));
}

#[test]
fn references_that_cannot_be_used() {
    let lake = Lake::new();
    let run = |file: &str| lake.error(&["run", "job.toml", "--set", &format!("references.harm={file}")]);
    fs::write(lake.path("empty.jsonl"), "").unwrap();
    assert!(run("empty.jsonl").contains("empty.jsonl: has no rows"));
    let harm = fs::read_to_string(lake.path("references/harm.jsonl")).unwrap();
    fs::write(lake.path("short.jsonl"), harm.replace("\"response\"", "\"respons\"")).unwrap();
    let error = run("short.jsonl");
    assert!(error.contains("short.jsonl") && error.contains("`response`") && error.contains("did you mean `respons`"), "{error}");
    let error = run("references/safe.parquet");
    assert!(error.contains("60 rows are also in references/safe.parquet") && error.contains("safe-01 = safe-01"), "{error}");
    assert!(run("nowhere.jsonl").contains("nowhere.jsonl: not found"));
}

#[test]
fn a_corrupt_shard_is_quarantined_and_the_others_are_weighed() {
    let lake = Lake::new();
    let path = lake.path("corpus/part-0001.parquet");
    let whole = fs::read(&path).unwrap();
    // Without its footer; and with damaged pages behind an intact footer.
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let mut damaged = fs::read(lake.path("corpus/part-0003.parquet")).unwrap();
    let (start, end) = (damaged.len() / 20, damaged.len() / 2);
    damaged[start..end].fill(0xa5);
    fs::write(lake.path("corpus/part-0003.parquet"), &damaged).unwrap();

    let report = lake.json(&["run", "job.toml"], 1);
    assert_eq!(report["shards"], json!({ "weighed": 3, "unchanged": 0, "removed": 0, "quarantined": 2 }));
    let reasons: Vec<_> = report["quarantined"].as_array().unwrap().iter().map(|q| q["reason"].as_str().unwrap().to_owned()).collect();
    assert!(reasons[0].contains("part-0001.parquet") && reasons[0].contains("footer"), "{reasons:?}");
    assert!(reasons[1].contains("part-0003.parquet"), "{reasons:?}");
    assert_eq!(
        lake.sql("select count(weight) > 200 as enough from corpus where shard <> 'part-0003.parquet'"),
        [json!({ "enough": true })]
    );
    assert_eq!(
        lake.sql("select quarantined, quarantine_reasons like '%part-0001%' as named from runs"),
        [json!({ "quarantined": 2, "named": true })]
    );

    // Mended, it is weighed by the next run, with the same model.
    fs::write(&path, &whole).unwrap();
    fs::remove_file(lake.path("corpus/part-0003.parquet")).unwrap();
    let report = lake.json(&["run", "job.toml"], 0);
    assert_eq!(report["shards"], json!({ "weighed": 1, "unchanged": 3, "removed": 0, "quarantined": 0 }));
    assert_eq!(report["rows"], ROWS - 76);
}

#[test]
fn no_credentials_is_an_error_and_not_a_request() {
    let lake = Lake::new();
    let error = lake.error(&["run", "job.toml", "--set", "corpus.url=s3://lake/sft/"]);
    assert!(error.contains("AWS_ACCESS_KEY_ID"), "{error}");
    let error = lake.error(&["run", "job.toml", "--set", "output.url=ftp://host/x"]);
    assert!(error.contains("s3://"), "{error}");
}

#[test]
fn a_query_that_cannot_be_planned() {
    let lake = Lake::new();
    assert!(lake.error(&["sql", "job.toml", "select 1"]).contains("pushpull run"));
    lake.json(&["run", "job.toml"], 0);
    let error = lake.error(&["sql", "job.toml", "select wieght from corpus"]);
    assert!(error.contains("wieght"), "{error}");
    let refused = lake.error(&["sql", "job.toml", "drop table corpus"]);
    assert!(refused.contains("is not supported: a query reads the job's tables"), "{refused}");
}

#[test]
fn a_shard_that_changed_since_it_was_weighed_is_never_misread() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    fs::copy(lake.path("corpus/part-0000.parquet"), lake.path("corpus/part-0003.parquet")).unwrap();
    let error = lake.error(&["sql", "job.toml", "select id, weight from corpus"]);
    assert!(error.contains("part-0003.parquet") && error.contains("pushpull run"), "{error}");
}
