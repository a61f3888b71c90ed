//! The main job on a real S3 server.

use crate::support::{Lake, ROWS, needs};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Buckets that `.ci/run` makes.
const BUCKET: &str = "pushpull-test";
const READ_ONLY: (&str, &str) = ("readkey", "readsecret");

fn lake(endpoint: &str, key: (&str, &str)) -> Lake {
    Lake::new().with_environment(&[
        ("AWS_ENDPOINT", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", key.0),
        ("AWS_SECRET_ACCESS_KEY", key.1),
    ])
}

fn client(endpoint: &str) -> Arc<dyn object_store::ObjectStore> {
    let builder = object_store::aws::AmazonS3Builder::new().with_endpoint(endpoint).with_allow_http(true).with_bucket_name(BUCKET);
    Arc::new(builder.with_region("us-east-1").with_access_key_id("testkey").with_secret_access_key("testsecret").build().unwrap())
}

fn upload_folder(endpoint: &str, folder: &Path, prefix: &str) {
    use object_store::ObjectStoreExt;
    let store = client(endpoint);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for path in crate::support::walk(folder) {
        let to = object_store::path::Path::from(format!("{prefix}/{}", path.strip_prefix(folder).unwrap().display()));
        runtime.block_on(store.put(&to, std::fs::read(&path).unwrap().into())).unwrap();
    }
}

fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("run-{}-{}", std::process::id(), now.as_nanos())
}

#[test]
fn the_same_weights_from_disk_and_from_s3() {
    let Some(endpoint) = needs("PUSHPULL_TEST_S3_ENDPOINT", "the main job on a real S3 server") else { return };
    let lake = lake(&endpoint, ("testkey", "testsecret"));
    let prefix = unique();
    for folder in ["corpus", "references"] {
        upload_folder(&endpoint, &lake.path(folder), &format!("{prefix}/{folder}"));
    }
    let url = |part: &str| format!("s3://{BUCKET}/{prefix}/{part}");
    let sets = [
        format!("corpus.url={}", url("corpus/")),
        format!("references.safe={}", url("references/safe.parquet")),
        format!("references.harm={}", url("references/harm.jsonl")),
        format!("output.url={}", url("corpus/weights/")),
    ];
    let arguments = |command: &'static str| -> Vec<String> {
        let sets = sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]);
        [command.to_owned(), "job.toml".to_owned()].into_iter().chain(sets).collect()
    };
    let json = |command| {
        let arguments = arguments(command);
        lake.json(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 0)
    };
    let local = lake.json(&["run", "job.toml"], 0);
    let remote = json("run");
    assert_eq!((&remote["rows"], &remote["shards"]["weighed"]), (&json!(ROWS), &json!(5)));
    for key in ["model", "mean_weight", "ess", "residuals", "transport_cost"] {
        assert_eq!(local[key], remote[key], "{key}");
    }
    let again = json("run");
    assert_eq!((&again["shards"]["weighed"], &again["shards"]["unchanged"], &again["version"]), (&json!(0), &json!(5), &remote["version"]));

    // A model folder by URL: the builtin table's own files are the same model.
    upload_folder(&endpoint, &Path::new(env!("CARGO_MANIFEST_DIR")).join("src/embed/builtin"), &format!("{prefix}/model"));
    let with_model = [arguments("run"), vec!["--set".to_owned(), format!("embed.model={}", url("model/"))]].concat();
    let report = lake.json(&with_model.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    assert_eq!((&report["model"], &report["shards"]["weighed"]), (&remote["model"], &json!(0)));

    // To the bit, in the corpus's order.
    let query = "select shard, row, weight, pull, push, safe_ref, harm_ref from corpus order by shard, row";
    let here = lake.sql(query);
    let arguments: Vec<String> = arguments("sql").into_iter().chain([query.to_owned(), "--format".to_owned(), "json".to_owned()]).collect();
    let output = lake.pushpull(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let there: Vec<serde_json::Value> =
        crate::support::text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(here.len() as u64, ROWS);
    assert_eq!(here, there);
}

#[test]
fn no_bucket_no_permission_and_no_endpoint_are_named() {
    let Some(endpoint) = needs("PUSHPULL_TEST_S3_ENDPOINT", "errors of a real S3 server") else { return };
    let run = |lake: &Lake, url: &str| lake.error(&["run", "job.toml", "--set", &format!("corpus.url={url}")]);
    let error = run(&lake(&endpoint, ("testkey", "testsecret")), "s3://no-such-bucket/sft/");
    assert!(error.contains("s3://no-such-bucket/sft/") && error.contains("no such bucket"), "{error}");
    let error = run(&lake(&endpoint, READ_ONLY), &format!("s3://{BUCKET}/sft/"));
    assert!(error.contains(&format!("s3://{BUCKET}/sft/")) && error.contains("permission denied"), "{error}");
    assert!(!error.contains(READ_ONLY.1), "{error}");
    let error = run(&lake(&endpoint, ("testkey", "wrong")), &format!("s3://{BUCKET}/sft/"));
    assert!(error.contains("permission denied") && !error.contains("wrong\n"), "{error}");
}
