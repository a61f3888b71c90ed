//! The quick start's corpus in a folder of its own, and the real `pushpull` process.

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const SHARDS: [&str; 5] =
    ["nested/part-0002.parquet", "part-0000.parquet", "part-0001.parquet", "part-0003.parquet", "part-0004.arrow"];
pub const ROWS: u64 = 410;

/// A copy of `fixtures/quickstart`, or of another fixture, that a test may change. Removed when dropped.
pub struct Lake {
    dir: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Lake {
    pub fn new() -> Self {
        Self::of("quickstart")
    }

    pub fn of(fixture: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture);
        for part in ["corpus", "references", "job.toml"] {
            copy(&from.join(part), &dir.path().join(part));
        }
        Self { dir, environment: Vec::new() }
    }

    pub fn with_environment(mut self, variables: &[(&str, &str)]) -> Self {
        self.environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// Runs `pushpull` in the lake's folder. No cloud credentials of this machine reach it.
    pub fn pushpull(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The process that [`Lake::pushpull`] would run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pushpull"));
        for (name, _) in std::env::vars().filter(|(name, _)| ["AWS_", "GOOGLE_", "AZURE_", "PUSHPULL_"].iter().any(|p| name.starts_with(p)))
        {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    /// Runs a command with `--json` that must end with `code`, and gives its object.
    pub fn json(&self, arguments: &[&str], code: i32) -> Value {
        let output = self.pushpull(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{}{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output.stdout)))
    }

    /// Runs a command that must fail, and gives what it says.
    pub fn error(&self, arguments: &[&str]) -> String {
        let output = self.pushpull(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} should fail\n{}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Rows of a query, as JSON objects.
    pub fn sql(&self, query: &str) -> Vec<Value> {
        let output = self.pushpull(&["sql", "job.toml", query, "--format", "json"]);
        assert!(output.status.success(), "{query}\n{}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Every sidecar below a folder: its bytes by the path in the table.
    pub fn sidecars(&self, output: &str) -> Vec<(String, Vec<u8>)> {
        let root = self.path(output).join("data");
        let mut files: Vec<_> =
            walk(&root).into_iter().map(|p| (p.strip_prefix(&root).unwrap().display().to_string(), std::fs::read(&p).unwrap())).collect();
        files.sort();
        files
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        std::fs::copy(from, to).unwrap();
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

/// Runs a Python script that must succeed, and gives what it prints.
///
/// The script ends without tearing the interpreter down: in one of eight ends a reading thread of deltalake's dataset was still there
/// and aborted the process after its last line.
pub fn python(interpreter: &str, script: &str, arguments: &[&str]) -> String {
    let script = format!("{script}\nimport os as _os, sys as _sys\n_sys.stdout.flush(); _sys.stderr.flush(); _os._exit(0)\n");
    let output = Command::new(interpreter).arg("-c").arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A Python file of `tests/engines`.
pub fn script(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engines").join(name)).unwrap()
}

/// The value of an environment variable that a test needs, or a line that says what is skipped.
pub fn needs(variable: &str, what: &str) -> Option<String> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        skipped(&format!("{what} (set {variable})"));
    }
    value
}

/// Says what is skipped, past the test harness, which keeps what a passing test prints to itself.
pub fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}
