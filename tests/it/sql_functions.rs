//! The functions, the table `weights` and `COPY … TO`, in the real process and in a session of a user's own.

use crate::support::{Lake, needs, python, text};
use pushpull::job::{Job, RunOptions};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};

const TEXTS: &str = "push_pull_weight(prompt, response, text)";

fn one(lake: &Lake, query: &str) -> Value {
    let rows = lake.sql(query);
    assert_eq!(rows.len(), 1, "{query}");
    rows[0].as_object().unwrap().values().next().unwrap().clone()
}

fn weighed() -> Lake {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    lake
}

#[test]
fn a_text_in_a_query_weighs_what_the_row_weighs() {
    let lake = weighed();
    let differ = |condition: &str| one(&lake, &format!("select count(*) from corpus where {condition}"));
    assert_eq!(differ(&format!("{TEXTS} is distinct from weight")), json!(0));
    assert_eq!(differ(&format!("{TEXTS} is not null")), json!(408), "two rows have no text at all");
    // Without the fallback the rows that need it have none.
    assert_eq!(
        differ("push_pull_weight(prompt, response) is distinct from (case when coalesce(prompt, response) is not null then weight end)"),
        json!(0)
    );
    let parts: Vec<String> = ["weight", "pull", "push", "prior", "safe_ref", "harm_ref", "window", "window_view"]
        .iter()
        .map(|part| format!("(push_pull_explain(prompt, response, text)['{part}'] is distinct from {part})"))
        .collect();
    assert_eq!(differ(&parts.join(" or ")), json!(0));
    assert_eq!(differ("push_pull_explain(prompt, response, text) is null"), json!(2));

    // Texts of no row: a constant, in an aggregate, in a join's condition, none at all.
    let row = &lake.sql("select prompt, response, weight from corpus where prompt not like '%''%' and response not like '%''%' limit 1")[0];
    let texts = format!("'{}', '{}'", row["prompt"].as_str().unwrap(), row["response"].as_str().unwrap());
    let found = lake.sql(&format!(
        "select push_pull_weight({texts}) as weight, push_pull_weight(null, null) as none, push_pull_weight('a', null) is not null as half"
    ));
    assert_eq!(found[0], json!({ "weight": row["weight"], "none": null, "half": true }));
    let sums = &lake.sql(&format!("select sum(cast({TEXTS} as double)) as a, sum(cast(weight as double)) as b from corpus"))[0];
    let (a, b) = (sums["a"].as_f64().unwrap(), sums["b"].as_f64().unwrap());
    assert!((a - b).abs() < 1e-9 * b, "{sums}");
    let joined = "select count(*) from corpus a join corpus b on a.id = b.id and push_pull_weight(a.prompt, b.response, a.text) = b.weight";
    assert_eq!(one(&lake, joined), json!(408));

    for (call, wanted) in [
        ("push_pull_weight(prompt)", "push_pull_weight(prompt, response), or push_pull_weight(prompt, response, text)"),
        ("push_pull_weight(prompt, response, text, text)", "4 given"),
        ("push_pull_explain(row, response)", "takes text for `prompt`, not Int64"),
        ("push_pull_weight()", "0 given"),
    ] {
        let error = lake.error(&["sql", "job.toml", &format!("select {call} from corpus")]);
        assert!(error.contains(wanted), "{call}: {error}");
    }
    // A model of other columns is not taken for one of these.
    let other = &["sql", "job.toml", "--set", "corpus.text=[\"response\"]", "select push_pull_weight('a')"];
    assert!(lake.error(other).contains("was fitted on the columns prompt, response"));
}

#[test]
fn a_query_that_weighs_nothing_loads_no_model() {
    let lake = weighed();
    std::fs::remove_dir_all(lake.path("output/_models")).unwrap();
    assert_eq!(one(&lake, "select count(*) from corpus"), json!(410));
    assert!(lake.error(&["sql", "job.toml", "select push_pull_weight('a', 'b')"]).contains("not found"));
}

#[test]
fn windows_are_read_as_in_weighing() {
    let lake = Lake::of("long_documents");
    lake.json(&["run", "job.toml"], 0);
    let parts: Vec<String> = ["weight", "pull", "safe_ref", "harm_ref", "window", "window_view"]
        .iter()
        .map(|part| format!("(push_pull_explain(document)['{part}'] is distinct from {part})"))
        .collect();
    let differ =
        format!("select count(*) from corpus where (push_pull_weight(document) is distinct from weight) or {}", parts.join(" or "));
    assert_eq!(one(&lake, &differ), json!(0));
    assert!(one(&lake, "select count(*) from corpus where push_pull_explain(document)['window'] > 0").as_i64().unwrap() > 0);
}

#[test]
fn vectors_weigh_as_well() {
    let lake = Lake::new();
    for kind in ["f32", "f64", "f16"] {
        crate::embedders::write_vectors(&lake, kind);
        lake.json(&["run", "job.toml"], 0);
        assert_eq!(one(&lake, "select count(*) from corpus where push_pull_weight(vector) is distinct from weight"), json!(0), "{kind}");
        assert_eq!(one(&lake, "select count(push_pull_weight(vector)) from corpus"), json!(294));
    }
    let error = lake.error(&["sql", "job.toml", "select push_pull_weight('a text')"]);
    assert!(error.contains("a list of floats for `vector`"), "{error}");
    let error = lake.error(&["sql", "job.toml", "select push_pull_weight([0.5, 0.5])"]);
    assert!(error.contains("dimensions"), "{error}");
}

#[test]
fn the_cutoff_keeps_what_sorting_keeps() {
    let lake = weighed();
    let mut weights: Vec<f64> =
        lake.sql("select weight from corpus where weight is not null").iter().map(|row| row["weight"].as_f64().unwrap()).collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    let rows = weights.len();
    assert_eq!(rows, 408);
    for keep in ["0.8", "1", "0.5", "0.01", "0.0025", "0.37"] {
        let found = &lake.sql(&format!(
            "select weight_cutoff({keep}) as cutoff, (select count(*) from corpus where weight >= weight_cutoff({keep})) as kept"
        ))[0];
        let k = (keep.parse::<f64>().unwrap() * rows as f64 + 1e-9).floor() as usize;
        assert_eq!(found["cutoff"].as_f64(), Some(weights[k - 1]), "{keep}");
        let tied = weights.iter().filter(|w| **w >= weights[k - 1]).count();
        assert_eq!(found["kept"].as_u64(), Some(tied as u64), "{keep}");
    }
    assert_eq!(one(&lake, "select count(*) from corpus where weight >= weight_cutoff(0)"), json!(0));
    // A share that differs from row to row is no constant, and cut exactly all the same.
    let cuts = lake
        .sql("select keep, weight_cutoff(keep) = weight_cutoff(0.5) as half from (values (0.5), (0.8), (null)) as t (keep) order by keep");
    assert_eq!(cuts, [json!({"keep": 0.5, "half": true}), json!({"keep": 0.8, "half": false}), json!({"keep": null, "half": null})]);
    for wrong in ["1.5", "-0.1", "'NaN'::double"] {
        let error = lake.error(&["sql", "job.toml", &format!("select * from corpus where weight >= weight_cutoff({wrong})")]);
        assert!(error.contains("between 0 and 1"), "{error}");
    }
    // It is a number by the time the scan is planned.
    let plan = lake.pushpull(&["sql", "job.toml", "explain select id from corpus where weight >= weight_cutoff(0.8)", "--format", "json"]);
    let plan = text(&plan.stdout);
    let cutoff = weights[(rows * 8 / 10) - 1] as f32;
    assert!(plan.contains(&format!("weight@1 >= {cutoff}")) || plan.contains(&format!(">= {cutoff}")), "{plan}");
    assert!(plan.contains("pruning_predicate=") && !plan.contains("weight_cutoff"), "{plan}");

    // Without a weighed row there is no cut, and nothing is kept.
    lake.json(&["fit", "job.toml", "--set", "output.url=fitted/"], 0);
    let none =
        lake.pushpull(&["sql", "job.toml", "--set", "output.url=fitted/", "--format", "json", "select weight_cutoff(0.8) as cutoff"]);
    assert_eq!(text(&none.stdout).trim(), r#"{"cutoff":null}"#, "{}", text(&none.stderr));
}

#[test]
fn weights_has_every_sidecar_row_and_earlier_versions_stay() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml", "--set", "transport.push=0.5"], 0);
    let before = lake.sql("select shard, row, weight from corpus order by shard, row");
    lake.json(&["run", "job.toml"], 0);
    let same = "select count(*) from corpus c full join weights w on c.shard = w.shard and c.row = w.row
        where (c.weight is distinct from w.weight) or (c.model is distinct from w.model) or (c.safe_ref is distinct from w.safe_ref)
            or (c.shard_version is distinct from w.shard_version) or (c.push is distinct from w.push) or c.shard is null or w.shard is null";
    assert_eq!(one(&lake, same), json!(0));
    for version in ["0", "-1"] {
        assert_eq!(lake.sql(&format!("select shard, row, weight from weights_at({version}) order by shard, row")), before);
    }
    assert_eq!(lake.sql("select * from weights_at(1) order by shard, row"), lake.sql("select * from weights order by shard, row"));
    assert_eq!(one(&lake, "select count(distinct model) from (select model from weights union select model from weights_at(0))"), json!(2));
    let error = lake.error(&["sql", "job.toml", "select * from weights_at(7)"]);
    assert!(error.contains("no version 7") && error.contains("newest is 1"), "{error}");
    assert!(lake.error(&["sql", "job.toml", "select * from weights_at('x')"]).contains("number of a version"));

    let sidecars = lake.sql("select shard, sidecar from shards");
    assert!(one(&lake, "select avg(pull) from weights where shard = 'part-0001.parquet'").is_f64());
    // A shard that is gone keeps its rows here until the next run.
    std::fs::remove_file(lake.path("corpus/part-0001.parquet")).unwrap();
    let count = one(&lake, "select count(*) from weights where shard = 'part-0001.parquet'");
    assert!(count.as_u64().unwrap() > 0);
    assert_eq!(one(&lake, "select count(*) from corpus where shard = 'part-0001.parquet'"), json!(0));

    // What the log knows needs no sidecar: counts, and that no weight is as high.
    for row in &sidecars {
        std::fs::remove_file(lake.path("output").join(row["sidecar"].as_str().unwrap())).unwrap();
    }
    assert_eq!(one(&lake, "select count(*) from weights"), json!(410));
    assert_eq!(one(&lake, "select count(*) from weights where weight > 1e6"), json!(0));
    assert!(lake.error(&["sql", "job.toml", "select avg(pull) from weights"]).contains("output/data/"));
}

#[test]
fn samples_are_the_same_whatever_the_threads_and_follow_the_weights() {
    let lake = weighed();
    let query = "select shard, row from corpus where weight > 0 order by sample_key(weight, 7, shard, row) desc limit 60";
    let sample =
        |threads: &str, query: &str| text(&lake.pushpull(&["sql", "job.toml", "--threads", threads, "--format", "csv", query]).stdout);
    assert_eq!(sample("1", query), sample("5", query));
    assert_ne!(sample("1", query), sample("1", &query.replace('7', "8")));
    // The sum of the weights drawn: a uniform sample of 60 rows has 60 on average, this one far more.
    let drawn =
        "select sum(weight) from (select weight from corpus where weight > 0 order by sample_key(weight, 7, shard, row) desc limit 60)";
    assert!(one(&lake, drawn).as_f64().unwrap() > 85.0);

    // Over seeds the copies of a row are its weight on average.
    let seeds = 400;
    let copies = format!(
        "select shard, row, min(weight) as weight, avg(resample_count(weight, seed, shard, row)) as copies
         from corpus cross join (select value as seed from generate_series(1, {seeds})) where weight is not null group by shard, row"
    );
    let rows = lake.sql(&copies);
    assert_eq!(rows.len(), 408);
    let off: Vec<f64> = rows.iter().map(|row| row["copies"].as_f64().unwrap() - row["weight"].as_f64().unwrap()).collect();
    let most = 5.0 * 0.5 / f64::from(seeds).sqrt();
    assert!(off.iter().all(|off| off.abs() < most), "{off:?}");
    let total = one(&lake, "select sum(resample_count(weight, 0, shard, row)) from corpus").as_f64().unwrap();
    assert!((total - 408.0).abs() < 5.0 * 0.5 * 408f64.sqrt(), "{total}");
    let copies =
        |threads: &str| sample(threads, "select shard, row, resample_count(weight, 3, shard, row) from corpus order by shard, row");
    assert_eq!(copies("1"), copies("4"));

    assert_eq!(one(&lake, "select sample_key(cast(null as float), 1, 'a', 1)"), Value::Null);
    assert!(lake.error(&["sql", "job.toml", "select sample_key(-1, 1, 'a', 5)"]).contains("weight -1 in row 5 of a"));
}

#[test]
fn a_query_reads_its_tables_and_nothing_else() {
    let lake = weighed();
    let refused = |query: &str, arguments: &[&str]| lake.error(&[&["sql", "job.toml", query], arguments].concat());
    let before = crate::support::walk(&lake.path("")).len();
    for arguments in [&[][..], &["--allow-write"]] {
        for query in [
            "select * from 'corpus/part-0000.parquet'",
            "select * from \"corpus/part-0000.parquet\"",
            "select * from read_parquet('corpus/part-0000.parquet')",
        ] {
            refused(query, arguments);
        }
        for (query, what) in [
            ("create external table t stored as parquet location 'corpus/part-0000.parquet'", "CreateExternalTable"),
            ("create table t as select 1", "CreateMemoryTable"),
            ("create view t as select 1", "CreateView"),
            ("drop table corpus", "DropTable"),
            ("insert into weights select * from weights", "pushpull run"),
            ("insert into corpus select * from corpus", "pushpull run"),
            ("delete from weights", "pushpull run"),
            ("update weights set weight = 1", "pushpull run"),
            ("set datafusion.execution.batch_size = 1", "not supported"),
        ] {
            let error = refused(query, arguments);
            assert!(error.contains(what) && error.contains("not supported"), "{query}: {error}");
        }
    }
    for query in ["copy weights to 'x.parquet'", "explain analyze copy weights to 'x.parquet'"] {
        assert!(refused(query, &[]).contains("--allow-write"), "{query}");
    }
    for (target, what) in [
        ("corpus/x.parquet", "corpus"),
        ("./corpus/deep/er/x.parquet", "corpus"),
        ("output/data/x.parquet", "weights table"),
        ("output/", "weights table"),
        ("references/safe.parquet", "safe references"),
        ("link/x.parquet", "corpus"),
    ] {
        #[cfg(unix)]
        if target.starts_with("link") {
            std::os::unix::fs::symlink(lake.path("corpus"), lake.path("link")).unwrap();
        }
        let error = refused(&format!("copy weights to '{target}' stored as parquet"), &["--allow-write"]);
        assert!(error.contains(&format!("inside the {what}")), "{target}: {error}");
    }
    assert!(refused("copy weights to 'https://example.com/x.parquet'", &["--allow-write"]).contains("s3://"));
    assert!(refused("copy weights to 's3://nobody/x.parquet'", &["--allow-write"]).contains("AWS"), "no credentials");
    std::fs::remove_file(lake.path("link")).unwrap();
    assert_eq!(crate::support::walk(&lake.path("")).len(), before, "nothing was written");
}

#[test]
fn copy_writes_what_the_query_says() {
    let lake = weighed();
    let write = |query: &str| {
        let output = lake.pushpull(&["sql", "job.toml", "--allow-write", "--format", "json", query]);
        assert!(output.status.success(), "{query}: {}", text(&output.stderr));
        serde_json::from_str::<Value>(&text(&output.stdout)).unwrap()["count"].clone()
    };
    let rows = lake.sql("select id, weight from corpus where weight >= 0.5 order by id");
    let query = "select id, weight from corpus where weight >= 0.5 order by id";
    for ending in ["json", "csv", "parquet"] {
        assert_eq!(write(&format!("copy ({query}) to 'out/x.{ending}'")), json!(rows.len()), "{ending}");
    }
    let lines = std::fs::read_to_string(lake.path("out/x.json")).unwrap();
    assert_eq!(lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>(), rows);
    let csv = std::fs::read_to_string(lake.path("out/x.csv")).unwrap();
    assert_eq!(csv.lines().next(), Some("id,weight"));
    assert_eq!(csv.lines().count(), rows.len() + 1);
    let file = std::fs::File::open(lake.path("out/x.parquet")).unwrap();
    let read = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), rows.len());
    // A folder, split by a column; whole rows of the corpus.
    assert_eq!(
        write("copy (select * from corpus where source is not null) to 'parts/' stored as parquet partitioned by (source)"),
        json!(410)
    );
    let sources: HashSet<_> = std::fs::read_dir(lake.path("parts")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(sources.len() as u64, one(&lake, "select count(distinct source) from corpus").as_u64().unwrap());
}

#[test]
fn copy_to_s3() {
    let Some(endpoint) = needs("PUSHPULL_TEST_S3_ENDPOINT", "COPY … TO a real S3 server") else { return };
    let Some(interpreter) = needs("PUSHPULL_TEST_PYTHON", "what COPY wrote to S3, read by pyarrow") else { return };
    let lake = Lake::new().with_environment(&[
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "testkey"),
        ("AWS_SECRET_ACCESS_KEY", "testsecret"),
    ]);
    lake.json(&["run", "job.toml"], 0);
    let target = format!("pushpull-test/copy-{}", std::process::id());
    let copy = format!("copy (select id, weight from corpus where weight >= weight_cutoff(0.8)) to 's3://{target}/best.parquet'");
    let output = lake.pushpull(&["sql", "job.toml", "--allow-write", "--format", "json", &copy]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let script = "
import sys, pyarrow.fs as fs, pyarrow.parquet as pq
scheme, host = sys.argv[1].split('://')
s3 = fs.S3FileSystem(access_key='testkey', secret_key='testsecret', endpoint_override=host, scheme=scheme, region='us-east-1')
print(pq.read_table(sys.argv[2] + '/best.parquet', filesystem=s3).num_rows)
";
    assert_eq!(python(&interpreter, script, &[&endpoint, &target]).trim(), "326");
    // A corpus on S3 is as safe as one on a disk.
    let inside = format!("copy (select 1 as x) to 's3://{target}/x.parquet'");
    let corpus = format!("corpus.url=s3://{target}/");
    let error = lake.error(&["sql", "job.toml", &inside, "--allow-write", "--set", &corpus]);
    assert!(error.contains("inside the corpus"), "{error}");
}

#[test]
fn the_tables_in_a_session_of_ones_own() {
    let lake = weighed();
    let runtime = |threads| match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build().unwrap(),
    };
    for threads in [1, 3] {
        runtime(threads).block_on(async {
            use datafusion::prelude::SessionContext;
            let job = Job::open(lake.path("job.toml").to_str().unwrap(), &[], RunOptions::default()).await.unwrap();
            let context = SessionContext::new();
            pushpull::sql::register(&context, &job).await.unwrap();
            let query = format!(
                "select count(*), count(*) filter (where {TEXTS} is distinct from weight), min(weight) >= weight_cutoff(0.8),
                        max(sample_key(weight, 1, shard, row)) is not null
                 from corpus where weight >= weight_cutoff(0.8)"
            );
            let batches = context.sql(&query).await.unwrap().collect().await.unwrap();
            let shown = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
            let cells: Vec<&str> = shown.lines().nth(3).unwrap().split('|').map(str::trim).collect();
            assert_eq!(cells[1..5], ["326", "0", "true", "true"], "{threads} threads: {shown}");
            // The user's own tables beside ours.
            context.sql("create view best as select * from weights where weight >= weight_cutoff(0.5)").await.unwrap();
            assert_eq!(context.sql("select * from best").await.unwrap().count().await.unwrap(), 204);
            let tables: BTreeMap<String, usize> =
                context.catalog("datafusion").unwrap().schema("public").unwrap().table_names().into_iter().map(|name| (name, 1)).collect();
            for name in ["corpus", "weights", "references", "shards", "runs", "models", "hygiene"] {
                assert!(tables.contains_key(name), "{name}");
            }
        });
    }
}
