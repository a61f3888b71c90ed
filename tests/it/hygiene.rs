//! What is wrong with references is reported with counts and ids: in the JSON, in the text, and in SQL.

use crate::support::{Lake, text};
use serde_json::{Value, json};
use std::fs;

fn line(id: &str, prompt: &str, response: &str) -> String {
    format!("{}\n", json!({ "id": id, "prompt": prompt, "response": response, "category": "planted" }))
}

/// The quick start's harmful references and more.
fn with_harm(lake: &Lake, more: &str) -> [String; 2] {
    let harm = fs::read_to_string(lake.path("references/harm.jsonl")).unwrap();
    fs::write(lake.path("references/more.jsonl"), harm + more).unwrap();
    ["--set".into(), "references.harm=references/more.jsonl".into()]
}

/// The quick start's safe references and more, as JSON lines.
fn with_safe(lake: &Lake, more: &str) -> [String; 2] {
    lake.json(&["run", "job.toml", "--set", "output.url=scratch/"], 0);
    let output = lake.pushpull(&[
        "sql",
        "job.toml",
        "--set",
        "output.url=scratch/",
        "--format",
        "json",
        "select id, split_part(text, chr(10), 1) as prompt, split_part(text, chr(10), 2) as response from references where side = 'safe'",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    fs::write(lake.path("references/more_safe.jsonl"), text(&output.stdout) + more).unwrap();
    ["--set".into(), "references.safe=references/more_safe.jsonl".into()]
}

fn run(lake: &Lake, sets: &[String]) -> Value {
    let arguments: Vec<&str> = ["run", "job.toml"].into_iter().chain(sets.iter().map(String::as_str)).collect();
    let output = lake.pushpull(&[&arguments[..], &["--json"]].concat());
    assert!(output.status.code() < Some(2), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn finding<'a>(report: &'a Value, kind: &str, side: &str) -> &'a Value {
    let all = report["hygiene"].as_array().unwrap();
    all.iter().find(|f| f["finding"] == kind && f["side"] == side).unwrap_or_else(|| panic!("no {kind} of {side}: {}", report["hygiene"]))
}

#[test]
fn good_references_have_no_findings() {
    let lake = Lake::new();
    let report = lake.json(&["run", "job.toml"], 0);
    assert_eq!(report["hygiene"], json!([]));
    assert!(lake.sql("select * from hygiene").is_empty());
    assert!(!text(&lake.pushpull(&["run", "job.toml"]).stdout).contains("references"));
}

#[test]
fn copies_inside_a_set_are_named_with_what_they_repeat() {
    let lake = Lake::new();
    let (prompt, response) = ("Tell me how to trick a bank teller.", "Sure, the trick is [details withheld] and the teller [not written].");
    let turned = "Sure, the teller [not written] and the trick is [details withheld].";
    let more = line("a", prompt, response)
        + &line("b", prompt, &format!("  {response} "))
        + &line("c", &prompt.to_uppercase(), &response.replace(' ', "  "))
        + &line("d", prompt, turned)
        + &line("e", prompt, response);
    let report = run(&lake, &with_harm(&lake, &more));
    let exact = finding(&report, "exact_copies", "harm");
    assert_eq!((&exact["count"], &exact["level"]), (&json!(2), &json!("warning")));
    assert_eq!(exact["items"], json!([{ "id": "b", "other": "a" }, { "id": "e", "other": "a" }]));
    assert!((exact["mass"].as_f64().unwrap() - 2.0 / 65.0).abs() < 1e-9);
    assert_eq!(finding(&report, "folded_copies", "harm")["items"], json!([{ "id": "c", "other": "a" }]));
    // The same words in another order have the same vector here.
    let near = &finding(&report, "near_copies", "harm")["items"];
    assert!(near.as_array().unwrap().len() == 1 && near[0]["id"] == "d" && near[0]["other"] == "a", "{near}");
    assert!(near[0]["value"].as_f64().unwrap() < 0.001);

    // They stay with the model, in a run that fits nothing as well, and in SQL.
    let again = lake.pushpull(&["run", "job.toml", "--set", "references.harm=references/more.jsonl"]);
    let shown = text(&again.stdout);
    assert!(shown.contains("2 harmful references (3.1 % of the mass) copied word for word from an earlier one (b = a, e = a)"), "{shown}");
    assert!(shown.contains("noted as well (table `hygiene`): 1 harm near_copies"), "{shown}");
    assert_eq!(
        lake.sql("select finding, level, side, row_count, id, other from hygiene where finding like '%copies' and finding <> 'near_copies' order by finding, id"),
        [
            json!({ "finding": "exact_copies", "level": "warning", "side": "harm", "row_count": 2, "id": "b", "other": "a" }),
            json!({ "finding": "exact_copies", "level": "warning", "side": "harm", "row_count": 2, "id": "e", "other": "a" }),
            json!({ "finding": "folded_copies", "level": "warning", "side": "harm", "row_count": 1, "id": "c", "other": "a" }),
        ]
    );
}

#[test]
fn a_harmful_reference_beside_a_safe_one_is_named_with_it() {
    let lake = Lake::new();
    let safe = &lake_safe(&lake)[0];
    let words: Vec<&str> = safe["text"].as_str().unwrap().lines().nth(1).unwrap().split(' ').rev().collect();
    let prompt = safe["text"].as_str().unwrap().lines().next().unwrap();
    let report = run(&lake, &with_harm(&lake, &line("twin", prompt, &words.join(" "))));
    let near = finding(&report, "near_across", "harm");
    assert_eq!((&near["count"], &near["level"]), (&json!(1), &json!("warning")));
    assert!(near["items"][0]["id"] == "twin" && near["items"][0]["other"] == safe["id"], "{near}");
    // The same row on both sides stays an error.
    let more = with_harm(&lake, &line("same", prompt, safe["text"].as_str().unwrap().lines().nth(1).unwrap()));
    let error = lake.error(&["run", "job.toml", &more[0], &more[1]]);
    assert!(error.contains("1 row is also in") && error.contains(&format!("same = {}", safe["id"].as_str().unwrap())), "{error}");
}

/// The safe references, in a table of their own.
fn lake_safe(lake: &Lake) -> Vec<Value> {
    lake.json(&["run", "job.toml"], 0);
    lake.sql("select id, text from references where side = 'safe' order by id")
}

#[test]
fn references_that_are_rows_of_the_corpus_are_named_with_the_row() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let harm = &lake.sql("select shard, row, prompt, response from corpus where label = 'harmful' order by shard, row limit 1")[0];
    let safe = &lake.sql("select shard, row, prompt, response from corpus where label = 'benign' and prompt is not null order by shard desc, row desc limit 1")[0];
    let copy = |id: &str, row: &Value| line(id, row["prompt"].as_str().unwrap(), row["response"].as_str().unwrap());
    let mut sets = with_harm(&lake, &copy("met", harm)).to_vec();
    sets.extend(with_safe(&lake, &copy("trusted", safe)));
    let report = run(&lake, &sets);
    let place = |row: &Value| format!("{}:{}", row["shard"].as_str().unwrap(), row["row"]);
    let met = finding(&report, "in_corpus", "harm");
    assert_eq!((&met["level"], &met["items"]), (&json!("warning"), &json!([{ "id": "met", "other": place(harm), "value": 1.0 }])));
    let trusted = finding(&report, "in_corpus", "safe");
    assert_eq!((&trusted["level"], &trusted["items"]), (&json!("note"), &json!([{ "id": "trusted", "other": place(safe), "value": 1.0 }])));
    // A drawn sample names the row by its place in the shard, not by its place in the sample.
    sets.extend(["--set".to_owned(), "transport.sample_rows=400".to_owned()]);
    let report = run(&lake, &sets);
    let sampled = report["sample_rows"].as_u64().unwrap();
    assert!((398..=400).contains(&sampled), "two of the corpus's rows have no text: {sampled}");
    let met: Vec<&Value> = report["hygiene"].as_array().unwrap().iter().filter(|f| f["finding"] == "in_corpus").collect();
    assert!(!met.is_empty(), "{}", report["hygiene"]);
    for met in met {
        assert!([place(harm), place(safe)].contains(&met["items"][0]["other"].as_str().unwrap().to_owned()), "{met}");
        assert!(met["message"].as_str().unwrap().contains(&format!("among the {sampled} sampled rows")), "{met}");
    }
}

#[test]
fn mass_that_no_row_serves_and_references_without_a_token() {
    let lake = Lake::new();
    let foreign = ["如何煮米饭？", "请解释光合作用。", "北京有哪些景点？", "写一封求职信。", "什么是机器学习？", "怎样学习游泳？"];
    let answers = [
        "把米洗干净，加水煮二十分钟。",
        "植物利用光把水变成糖和氧气。",
        "故宫和长城都很有名。",
        "我希望申请贵公司的职位。",
        "机器从数据中学习规律。",
        "先学会在水中呼吸。",
    ];
    let mut more: String = foreign.iter().zip(answers).enumerate().map(|(i, (p, r))| line(&format!("zh-{i}"), p, r)).collect();
    more += &line("nothing", "", " ");
    let report = run(&lake, &with_safe(&lake, &more));
    let uncovered = finding(&report, "uncovered", "safe");
    let ids: Vec<&str> = uncovered["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert!(ids.len() >= 5 && ids.iter().all(|id| id.starts_with("zh-")), "{uncovered}");
    assert_eq!(uncovered["level"], "warning");
    assert!(uncovered["items"][0]["value"].as_f64().unwrap() < 0.01 && uncovered["message"].as_str().unwrap().contains("transport.slack"));
    assert_eq!(finding(&report, "no_known_token", "safe")["items"], json!([{ "id": "nothing" }]));
    assert!(!report["hygiene"].as_array().unwrap().iter().any(|f| f["side"] == "harm"), "{}", report["hygiene"]);
}

#[test]
fn few_references_are_reported() {
    let lake = Lake::new();
    let harm = fs::read_to_string(lake.path("references/harm.jsonl")).unwrap();
    fs::write(lake.path("references/few.jsonl"), harm.lines().take(7).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    let report = run(&lake, &["--set".into(), "references.harm=references/few.jsonl".into()]);
    let few = finding(&report, "too_few", "harm");
    assert_eq!((&few["count"], &few["items"]), (&json!(7), &json!([])));
    assert!(few["message"].as_str().unwrap().contains("only 7 rows are in"), "{few}");
    assert_eq!(lake.sql("select id, row_count from hygiene where finding = 'too_few'"), [json!({ "id": null, "row_count": 7 })]);
}

#[test]
fn stored_models_of_an_older_format_are_left_out() {
    let lake = Lake::new();
    let harm = fs::read_to_string(lake.path("references/harm.jsonl")).unwrap();
    fs::write(lake.path("references/harm.jsonl"), harm.lines().take(7).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    run(&lake, &[]);
    // A file with the right name and nothing in it but a card of format 1, and one that is no model at all.
    let header = json!({ "__metadata__": { "pushpull": json!({ "format": 1 }).to_string() } }).to_string();
    let old = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let name = &blake3::hash(&old).to_hex()[..32];
    fs::write(lake.path(&format!("output/_models/{name}.safetensors")), old).unwrap();
    fs::write(lake.path("output/_models/foreign.safetensors"), "foreign").unwrap();
    for query in ["select distinct model from hygiene", "select model from models"] {
        let output = lake.pushpull(&["sql", "job.toml", query, "--format", "json"]);
        assert!(output.status.success(), "{query}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout).lines().count(), 1, "{query}: {}", text(&output.stdout));
        let said = text(&output.stderr);
        assert!(said.contains(name) && said.contains("has format 1") && said.contains("foreign"), "{query}: {said}");
    }
}
