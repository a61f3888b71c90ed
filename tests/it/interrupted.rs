//! A run may be killed at any moment and repeated.

use crate::support::Lake;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn killed_runs_leave_nothing_half_done() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml", "--set", "output.url=whole/"], 0);
    for after in [20, 60, 120, 200, 300, 450] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_pushpull"))
            .args(["run", "job.toml", "--threads", "1"])
            .current_dir(lake.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(after));
        // It may have ended by itself: then this is a run that was not killed.
        let _ = run.kill();
        run.wait().unwrap();
        if lake.path("output/_delta_log").exists() && lake.path("output/_delta_log").read_dir().unwrap().next().is_some() {
            // What is committed is whole.
            assert_eq!(lake.sql("select count(*) as n, count(weight) as w from corpus")[0], serde_json::json!({ "n": 410, "w": 408 }));
        }
    }
    lake.json(&["run", "job.toml"], 0);
    assert_eq!(lake.sidecars("output"), lake.sidecars("whole"));
}

#[test]
fn what_was_finished_before_the_commit_is_not_weighed_again() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let before = lake.sidecars("output");
    // As if the run had been killed before its commit, with one sidecar damaged since.
    std::fs::remove_dir_all(lake.path("output/_delta_log")).unwrap();
    let damaged = lake.path("output/data").join(&before[2].0);
    std::fs::write(&damaged, &before[2].1[..before[2].1.len() - 9]).unwrap();
    let time = |name: &str| std::fs::metadata(lake.path("output/data").join(name)).unwrap().modified().unwrap();
    let times: Vec<_> = before.iter().map(|(name, _)| time(name)).collect();
    let report = lake.json(&["run", "job.toml"], 0);
    assert_eq!((&report["shards"]["weighed"], &report["rows"], &report["version"]), (&5.into(), &410.into(), &0.into()));
    assert!((report["mean_weight"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    for (n, (name, _)) in before.iter().enumerate() {
        assert_eq!(time(name) != times[n], n == 2, "{name}");
    }
    assert_eq!(lake.sidecars("output"), before);
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_error() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let query = "select a.prompt, b.response from corpus a cross join corpus b";
    let mut child = Command::new(env!("CARGO_BIN_EXE_pushpull"))
        .args(["sql", "job.toml", query, "--format", "csv"])
        .current_dir(lake.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 64];
    child.stdout.take().unwrap().read_exact(&mut start).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", crate::support::text(&output.stderr));
}
