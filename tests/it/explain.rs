//! `pushpull explain`: the printed weight is the published one, its parts are what they are said to be, and what cannot be explained is named.

use crate::support::{Lake, SHARDS, text};
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::sync::Arc;

/// A shard of prompts and responses.
fn write_shard(lake: &Lake, name: &str, rows: &[(Option<&str>, Option<&str>)]) {
    let prompts: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<StringArray>());
    let responses: ArrayRef = Arc::new(rows.iter().map(|row| row.1).collect::<StringArray>());
    let texts: ArrayRef = Arc::new(StringArray::new_null(rows.len()));
    let columns = [("prompt", prompts, true), ("response", responses, true), ("text", texts, true)];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(lake.path(&format!("corpus/{name}"))).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn near(a: &Value, b: f64, tolerance: f64) -> bool {
    (a.as_f64().unwrap() - b).abs() <= tolerance * b.abs().max(1e-9)
}

#[test]
fn the_first_and_last_rows_of_every_shard_have_their_published_weight() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let rows = lake.sql("select shard, min(row) as a, max(row) as b from corpus where weight is not null group by shard order by shard");
    assert_eq!(rows.len(), SHARDS.len());
    let mut arguments = vec!["explain".to_owned(), "job.toml".to_owned()];
    for row in &rows {
        for end in ["a", "b"] {
            arguments.extend(["--row".to_owned(), format!("{}:{}", row["shard"].as_str().unwrap(), row[end])]);
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let explained = lake.json(&arguments, 0);
    let explained = explained["rows"].as_array().unwrap();
    assert_eq!(explained.len(), 2 * SHARDS.len());
    for row in explained {
        assert_eq!(row["published"], json!({ "state": "same" }), "{row}");
        let place = format!("shard = '{}' and row = {}", row["shard"].as_str().unwrap(), row["row"]);
        let table =
            &lake.sql(&format!("select weight, pull, push, prior, safe_ref, harm_ref, prompt, text, model from corpus where {place}"))[0];
        let parts = &row["explained"];
        assert!(near(&parts["weight"], table["weight"].as_f64().unwrap(), 1e-6));
        assert_eq!(parts["safe"]["strongest"][0]["id"], table["safe_ref"]);
        assert_eq!(parts["harm"]["strongest"][0]["id"], table["harm_ref"]);
        assert_eq!(row["model"], table["model"]);
        for (side, column) in [("safe", "pull"), ("harm", "push"), ("prior", "prior")] {
            assert!(near(&parts[side]["value"], table[column].as_f64().unwrap(), 1e-5), "{side} {row} {table}");
        }
        let product: f64 = ["typical", "pull", "push", "prior"].iter().map(|f| parts["factors"][f].as_f64().unwrap()).product();
        assert!(near(&parts["weight"], product, 1e-5));
        assert_eq!(row["texts"][0], json!({ "column": "prompt", "text": table["prompt"], "embedded": table["prompt"].is_string() }));
        for side in ["safe", "harm"] {
            let strongest = parts[side]["strongest"].as_array().unwrap();
            assert_eq!(strongest.len(), 3);
            for reference in strongest {
                let known = &lake
                    .sql(&format!("select category, text from \"references\" where side = '{side}' and id = {}", quoted(reference)))[0];
                assert_eq!((&reference["category"], &reference["text"]), (&known["category"], &known["text"]));
            }
        }
    }
}

fn quoted(reference: &Value) -> String {
    format!("'{}'", reference["id"].as_str().unwrap())
}

#[test]
fn without_a_view_is_what_the_model_gives_a_row_that_lacks_it() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let (prompt, response) =
        ("How do I poach an egg without vinegar?", "Use a very fresh egg and barely simmering water for three minutes.");
    write_shard(&lake, "later.parquet", &[(Some(prompt), Some(response)), (None, Some(response)), (Some(prompt), None)]);
    let explained =
        lake.json(&["explain", "job.toml", "--row", "later.parquet:0", "--row", "later.parquet:1", "--row", "later.parquet:2"], 0);
    let rows = explained["rows"].as_array().unwrap();
    let views = |row: usize| rows[row]["explained"]["views"].as_array().unwrap();
    for row in rows {
        assert_eq!(row["published"]["state"], "not_yet");
    }
    for (view, other) in [(0, 1), (1, 2)] {
        let alone = rows[other]["explained"]["weight"].as_f64().unwrap();
        assert!(near(&views(0)[view]["weight_without"], alone, 1e-4), "{} {alone}", views(0)[view]);
        // Its only view cannot be taken from a row.
        assert!(views(other).iter().all(|view| view["weight_without"].is_null()));
        assert!(views(other)[view]["cost_to_safe"].is_null() && views(0)[view]["cost_to_safe"].is_f64());
    }
    let shown = lake.pushpull(&["explain", "job.toml", "--row", "later.parquet:0"]);
    let shown = text(&shown.stdout);
    for part in ["not published", prompt, "terms of the weight", "cost to safe", "safe references", "harmful references"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // Weighed, the same row has the same weight.
    lake.json(&["run", "job.toml"], 0);
    let published = lake.json(&["explain", "job.toml", "--row", "later.parquet:0"], 0);
    assert_eq!(published["rows"][0]["published"], json!({ "state": "same" }));
    assert_eq!(published["rows"][0]["explained"], rows[0]["explained"]);
}

#[test]
fn a_row_without_text_says_why_it_has_no_weight() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let null = &lake.sql("select shard, row from corpus where weight is null order by shard, row limit 1")[0];
    let address = format!("{}:{}", null["shard"].as_str().unwrap(), null["row"]);
    let explained = lake.json(&["explain", "job.toml", "--row", &address], 0);
    let row = &explained["rows"][0];
    assert!(row["explained"].is_null() && row["published"]["state"] == "same");
    assert!(row["notes"][0].as_str().unwrap().contains("`prompt`, `response`, `text` are all null"), "{row}");
    assert!(text(&lake.pushpull(&["explain", "job.toml", "--row", &address]).stdout).contains("no weight, because"));
}

#[test]
fn a_document_says_where_its_text_stands() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let document = &lake.sql("select shard, row, text from corpus where text is not null order by shard, row limit 1")[0];
    let address = format!("{}:{}", document["shard"].as_str().unwrap(), document["row"]);
    let explained = lake.json(&["explain", "job.toml", "--row", &address], 0);
    assert_eq!(explained["rows"][0]["texts"][2]["text"], document["text"]);
    assert!(explained["rows"][0]["notes"][0].as_str().unwrap().contains("`text` stands in the view `response`"));
    assert_eq!(explained["rows"][0]["texts"][2]["embedded"], true);
    let full = text(&lake.pushpull(&["explain", "job.toml", "--full", "--row", &address]).stdout);
    assert!(full.contains(document["text"].as_str().unwrap().lines().next().unwrap()), "{full}");
}

#[test]
fn a_shard_may_be_named_by_its_end() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let explained = lake.json(&["explain", "job.toml", "--row", "part-0002.parquet:3"], 0);
    assert_eq!(explained["rows"][0]["shard"], "nested/part-0002.parquet");
    fs::create_dir(lake.path("corpus/other")).unwrap();
    fs::copy(lake.path("corpus/nested/part-0002.parquet"), lake.path("corpus/other/part-0002.parquet")).unwrap();
    let error = lake.error(&["explain", "job.toml", "--row", "part-0002.parquet:3"]);
    assert!(error.contains("nested/part-0002.parquet and other/part-0002.parquet"), "{error}");
}

#[test]
fn what_cannot_be_explained_is_named() {
    let lake = Lake::new();
    let explain = |row: &str| lake.error(&["explain", "job.toml", "--row", row]);
    assert!(explain("part-0000.parquet:1").contains("pushpull run"));
    lake.json(&["run", "job.toml"], 0);
    assert!(explain("part-0000.parquet").contains("SHARD:ROW"));
    assert!(explain("part-000.parquet:1").contains("did you mean part-0000.parquet"));
    assert!(explain("part-0000.parquet:100").contains("has 100 rows"), "{}", explain("part-0000.parquet:100"));
    let error = lake.error(&["explain", "job.toml", "--row", "part-0000.parquet:1", "--set", "corpus.text=[\"prompt\"]"]);
    assert!(error.contains("prompt, response with fallback text"), "{error}");
    fs::copy(lake.path("corpus/part-0000.parquet"), lake.path("corpus/part-0003.parquet")).unwrap();
    let error = explain("part-0003.parquet:1");
    assert!(error.contains("part-0003.parquet: changed since it was weighed"), "{error}");
    fs::remove_file(lake.path("corpus/part-0003.parquet")).unwrap();
    assert!(explain("part-0003.parquet:1").contains("gone"));
}

#[test]
fn references_of_another_file_lend_no_texts() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let harm = fs::read_to_string(lake.path("references/harm.jsonl")).unwrap();
    fs::write(lake.path("references/harm.jsonl"), harm.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let explained = lake.json(&["explain", "job.toml", "--row", "part-0000.parquet:1"], 0);
    let row = &explained["rows"][0];
    assert!(row["explained"]["harm"]["strongest"][0]["text"].is_null() && row["explained"]["safe"]["strongest"][0]["text"].is_string());
    let notes = row["notes"].as_array().unwrap();
    assert!(notes.iter().any(|note| note.as_str().unwrap().contains("harm.jsonl is not the file")), "{row}");
    assert_eq!(row["published"]["state"], "same");
}

#[test]
fn a_long_row_is_explained_in_the_window_that_its_weight_is_from() {
    let lake = Lake::of("long_documents");
    lake.json(&["run", "job.toml"], 0);
    let columns = "shard, row, weight, \"window\", window_view, document";
    let mut rows = lake.sql(&format!("select {columns} from corpus where position = 'end' order by weight, id limit 2"));
    rows.extend(lake.sql(&format!("select {columns} from corpus where position = 'middle' order by weight, id limit 1")));
    rows.extend(lake.sql(&format!("select {columns} from corpus where position is null order by weight desc, id limit 2")));
    rows.extend(lake.sql(&format!("select {columns} from corpus where position is null order by weight, id limit 1")));
    assert!(rows.len() == 6 && rows[..3].iter().all(|row| row["window"].as_u64().unwrap() > 0), "{rows:?}");
    let addresses: Vec<String> = rows.iter().map(|row| format!("{}:{}", row["shard"].as_str().unwrap(), row["row"])).collect();
    let mut arguments = vec!["explain", "job.toml"];
    addresses.iter().for_each(|address| arguments.extend(["--row", address]));
    let explained = lake.json(&arguments, 0);
    for (row, found) in rows.iter().zip(explained["rows"].as_array().unwrap()) {
        assert_eq!(found["published"], json!({ "state": "same" }), "{row} {}", found["explained"]);
        assert_eq!(found["explained"]["window"], json!({ "column": row["window_view"], "character": row["window"] }));
        assert!(near(&found["explained"]["weight"], row["weight"].as_f64().unwrap(), 1e-6));
    }
    // In words, and the text from the window on: the beginning of a long text says nothing about its weight.
    let shown = text(&lake.pushpull(&["explain", "job.toml", "--row", &addresses[0]]).stdout);
    let at = rows[0]["window"].as_u64().unwrap();
    assert!(shown.contains(&format!("read in the window at character {at} of column document")), "{shown}");
    let from: String = rows[0]["document"].as_str().unwrap().chars().skip(at as usize).take(120).collect();
    assert!(shown.contains(&format!("…{}", from.split_whitespace().collect::<Vec<_>>().join(" "))), "{shown}");

    // Read otherwise it would be another weight.
    for set in ["embed.pool=mean", "embed.stride=16", "embed.window=40"] {
        let error = lake.error(&["explain", "job.toml", "--row", &addresses[0], "--set", set]);
        assert!(error.contains("was fitted with other windows"), "{set}: {error}");
    }
    // The mean of the windows has no place.
    let mean = ["--set", "embed.pool=mean", "--set", "output.url=mean/"];
    lake.json(&[&["run", "job.toml"][..], &mean].concat(), 0);
    let explained = lake.json(&[&["explain", "job.toml", "--row", &addresses[0]][..], &mean].concat(), 0);
    assert_eq!(explained["rows"][0]["published"], json!({ "state": "same" }));
    assert!(explained["rows"][0]["explained"]["window"].is_null());
}
