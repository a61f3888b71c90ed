//! The job file: what to weigh, against what, and where the weights go.

use crate::embed::{MIN_WINDOW, Pool, Windows};
use crate::error::{Error, Result, nearest};
use crate::sql::{FolderColumns, MissingColumns};
use crate::storage::Stores;
use crate::transport::{Auto, Temperature, TransportOptions};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Rows the potentials are fitted on by default. 65,536 rows of 512 dimensions take 128 MiB, and the sampling error of a
/// thousand references' marginals is then a few percent.
pub const DEFAULT_SAMPLE_ROWS: usize = 65_536;

/// Every section with every key it may have: the list that slips are compared with.
const KEYS: [(&str, &[&str]); 5] = [
    ("corpus", &["url", "text", "text_fallback", "embedding", "partitions", "missing_columns"]),
    ("references", &["safe", "harm"]),
    ("embed", &["model", "window", "stride", "pool"]),
    ("transport", &["epsilon", "push", "prior", "temperature", "slack", "sample_rows", "seed", "threshold", "max_steps"]),
    ("output", &["url"]),
];

/// A job, checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// What is weighed.
    pub corpus: CorpusSection,
    /// What it is compared with.
    pub references: ReferencesSection,
    /// How text becomes vectors.
    #[serde(default)]
    pub embed: EmbedSection,
    /// How vectors become weights.
    #[serde(default)]
    pub transport: TransportSection,
    /// Where the weights go.
    pub output: OutputSection,
}

/// `[corpus]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSection {
    /// A prefix, a glob or one file.
    pub url: String,
    /// String columns; each is a view, embedded on its own.
    #[serde(default)]
    pub text: Vec<String>,
    /// A string column for rows where every view is null.
    #[serde(default)]
    pub text_fallback: Option<String>,
    /// A column that holds vectors already, instead of `text`.
    #[serde(default)]
    pub embedding: Option<String>,
    /// Whether folders named `key=value` are columns in SQL: `"auto"` (default) or `"none"`. They are never embedded.
    #[serde(default)]
    pub partitions: FolderColumns,
    /// What SQL makes of a column that some shards lack: `"null"` (default) or `"refuse"`. A shard that lacks a column to be embedded is
    /// quarantined in either case: a row without text is another thing than a file without the column.
    #[serde(default)]
    pub missing_columns: MissingColumns,
}

/// `[references]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferencesSection {
    /// Parquet, Arrow or JSON lines with trusted rows.
    pub safe: String,
    /// The same with harmful rows.
    pub harm: String,
}

/// `[embed]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedSection {
    /// `builtin`, or a folder or URL in model2vec or sentence-transformers layout, or with a Llama, Mistral or Qwen model. Default
    /// `builtin`: it needs no network and is about a hundred times cheaper than a transformer.
    pub model: String,
    /// Tokens of a window, at least [`MIN_WINDOW`]: texts of more tokens are read in windows of so many. Default: none, every text is
    /// read as one, as far as the model reads.
    pub window: Option<usize>,
    /// Tokens from the beginning of one window to the next, in `1..=window`. Default: half the window.
    pub stride: Option<usize>,
    /// What becomes of the windows. Default: their mean. A fit with `worst` keeps the vectors of all windows of the sample in memory.
    /// References are read by the mean of their windows in any case.
    #[serde(deserialize_with = "pool")]
    pub pool: Option<Pool>,
}

impl Default for EmbedSection {
    fn default() -> Self {
        Self { model: BUILTIN.to_owned(), window: None, stride: None, pool: None }
    }
}

impl EmbedSection {
    /// How texts are read in windows, if they are.
    pub fn windows(&self) -> Option<Windows> {
        let window = self.window?;
        Some(Windows { window, stride: self.stride.unwrap_or(window / 2), pool: self.pool.unwrap_or_default() })
    }

    fn check(&self) -> std::result::Result<(), String> {
        let Some(windows) = self.windows() else {
            let without = [("stride", self.stride.is_some()), ("pool", self.pool.is_some())].into_iter().find(|(_, given)| *given);
            return without.map_or(Ok(()), |(key, _)| Err(format!("`embed.{key}` needs `embed.window`, the tokens of a window")));
        };
        if windows.window < MIN_WINDOW {
            return Err(format!("`embed.window` must be at least {MIN_WINDOW} tokens, found {}", windows.window));
        }
        if !(1..=windows.window).contains(&windows.stride) {
            return Err(format!("`embed.stride` must be in 1..={}, the window, found {}", windows.window, windows.stride));
        }
        Ok(())
    }
}

/// The name of the embedder inside the binary.
pub const BUILTIN: &str = "builtin";

/// `[transport]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportSection {
    /// Entropic smoothing ε in units of the cost, or `"auto"`.
    #[serde(deserialize_with = "auto")]
    pub epsilon: Auto,
    /// λ: how much the push from the harmful references counts against the pull to the safe ones.
    pub push: f64,
    /// β: how much the learned prior counts, or `"auto"`; 0 is the paper's objective.
    #[serde(deserialize_with = "auto")]
    pub prior: Auto,
    /// τ, or `{ ess = x }` for the τ at which the effective sample size is the fraction x.
    #[serde(deserialize_with = "temperature")]
    pub temperature: Temperature,
    /// ρ of relaxed reference marginals, or `"none"`.
    #[serde(deserialize_with = "slack")]
    pub slack: Option<f64>,
    /// Rows drawn over all shards to fit the potentials on.
    pub sample_rows: usize,
    /// Seed of every random choice.
    pub seed: u64,
    /// Marginal error below which the fit has converged.
    pub threshold: f64,
    /// Most steps over the whole sample.
    pub max_steps: usize,
}

impl Default for TransportSection {
    fn default() -> Self {
        let options = TransportOptions::default();
        Self {
            epsilon: options.epsilon,
            push: options.push,
            prior: options.prior,
            temperature: options.temperature,
            slack: options.slack,
            sample_rows: DEFAULT_SAMPLE_ROWS,
            seed: options.seed,
            threshold: options.threshold,
            max_steps: options.max_steps,
        }
    }
}

impl TransportSection {
    /// The options of the fit.
    pub fn options(&self) -> TransportOptions {
        TransportOptions {
            epsilon: self.epsilon,
            push: self.push,
            prior: self.prior,
            temperature: self.temperature,
            slack: self.slack,
            seed: self.seed,
            threshold: self.threshold,
            max_steps: self.max_steps,
            ..TransportOptions::default()
        }
    }
}

/// `[output]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSection {
    /// Prefix of the weights table. May lie inside the corpus prefix: what is written here is never taken for shards.
    pub url: String,
}

impl JobFile {
    /// Reads a job file from a path or URL and applies `section.key=value` overrides. Gives the job and the directory that
    /// relative paths in it start from: the file's own.
    ///
    /// # Errors
    /// [`Error::JobFile`] naming the file, the key and the nearest known one.
    pub async fn read(location: &str, overrides: &[String]) -> Result<(Self, PathBuf)> {
        let failed = |reason: String| Error::JobFile { location: location.to_owned(), reason };
        let text = Stores::new(".").open(location)?.read().await?;
        let text = std::str::from_utf8(&text).map_err(|e| failed(format!("is not UTF-8: {e}")))?;
        let base = match location.contains("://") {
            true => PathBuf::from("."),
            false => Path::new(location).parent().map(Path::to_path_buf).unwrap_or_default(),
        };
        let job = Self::parse(text, overrides).map_err(|reason| match Self::parse(text, &[]) {
            Ok(_) => Error::JobFile { location: "--set".to_owned(), reason },
            Err(_) => failed(reason),
        })?;
        Ok((job, base))
    }

    /// Parses a job and applies overrides. The error is the reason alone.
    ///
    /// # Errors
    /// What is wrong with the text, a key or a value.
    pub fn parse(text: &str, overrides: &[String]) -> std::result::Result<Self, String> {
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
        for entry in overrides {
            set(&mut table, entry)?;
        }
        check_keys(&table)?;
        for (section, _) in KEYS {
            if let Some(value) = table.get(section)
                && !value.is_table()
            {
                return Err(format!("`{section}` must be a section"));
            }
        }
        let job = Self::deserialize(table).map_err(|e| e.to_string().trim_end().to_owned())?;
        job.check()?;
        Ok(job)
    }

    fn check(&self) -> std::result::Result<(), String> {
        match (self.corpus.text.is_empty(), &self.corpus.embedding) {
            (true, None) => return Err("[corpus] needs `text = [\"column\", …]` or `embedding = \"column\"`".into()),
            (false, Some(_)) => return Err("[corpus] has both `text` and `embedding`; keep one".into()),
            _ => {}
        }
        if self.corpus.embedding.is_some() && self.corpus.text_fallback.is_some() {
            return Err("`corpus.text_fallback` needs `corpus.text`".into());
        }
        if let Some(twice) = self.corpus.text.iter().enumerate().find(|(i, column)| self.corpus.text[..*i].contains(column)) {
            return Err(format!("`corpus.text` names `{}` twice", twice.1));
        }
        self.embed.check()?;
        if self.corpus.embedding.is_some() && self.embed.window.is_some() {
            return Err("`embed.window` needs `corpus.text`: the vectors of `corpus.embedding` cannot be cut".into());
        }
        if self.transport.sample_rows == 0 {
            return Err("`transport.sample_rows` must be at least 1".into());
        }
        self.transport.options().validate().map_err(|e| e.to_string())
    }
}

fn set(table: &mut Table, entry: &str) -> std::result::Result<(), String> {
    let form = || format!("--set {entry}: write it as section.key=value");
    let (path, value) = entry.split_once('=').ok_or_else(form)?;
    let (section, key) = path.trim().split_once('.').ok_or_else(form)?;
    let value = value.trim();
    // What is no TOML value is a bare string, so that quotes are not needed on a command line.
    let value =
        format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(value.to_owned()));
    let section = table.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
    let section = section.as_table_mut().ok_or_else(form)?;
    section.insert(key.to_owned(), value);
    Ok(())
}

fn check_keys(table: &Table) -> std::result::Result<(), String> {
    for (section, value) in table {
        let Some((_, keys)) = KEYS.iter().find(|(name, _)| name == section) else {
            return Err(unknown("section", "", section, &KEYS.map(|(name, _)| name)));
        };
        for key in value.as_table().into_iter().flat_map(Table::keys) {
            if !keys.contains(&key.as_str()) {
                return Err(unknown("key", &format!("{section}."), key, keys));
            }
        }
    }
    Ok(())
}

fn unknown(kind: &str, prefix: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown {kind} `{prefix}{name}`; did you mean `{prefix}{near}`?"),
        None => format!("unknown {kind} `{prefix}{name}`; known are: {}", known.join(", ")),
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(x) => Some(*x),
        Value::Integer(x) => Some(*x as f64),
        _ => None,
    }
}

fn auto<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Auto, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match (number(&value), value.as_str()) {
        (Some(x), _) => Ok(Auto::Fixed(x)),
        (_, Some("auto")) => Ok(Auto::Auto),
        _ => Err(serde::de::Error::custom(format!("expected a number or \"auto\", found {value}"))),
    }
}

fn pool<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Pool>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match value.as_str() {
        Some("mean") => Ok(Some(Pool::Mean)),
        Some("worst") => Ok(Some(Pool::Worst)),
        _ => Err(serde::de::Error::custom(format!("expected \"mean\" or \"worst\", found {value}"))),
    }
}

fn slack<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<f64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match (number(&value), value.as_str()) {
        (Some(x), _) => Ok(Some(x)),
        (_, Some("none")) => Ok(None),
        _ => Err(serde::de::Error::custom(format!("expected a number or \"none\", found {value}"))),
    }
}

fn temperature<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Temperature, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let ess = value.as_table().filter(|t| t.len() == 1).and_then(|t| t.get("ess")).and_then(number);
    match (number(&value), ess) {
        (Some(x), _) => Ok(Temperature::Fixed(x)),
        (_, Some(x)) => Ok(Temperature::Ess(x)),
        _ => Err(serde::de::Error::custom(format!("expected a number or {{ ess = 0.5 }}, found {value}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"
        [corpus]
        url = "s3://lake/sft/"
        text = ["prompt", "response"]
        [references]
        safe = "s3://lake/refs/safe.parquet"
        harm = "s3://lake/refs/harm.jsonl"
        [output]
        url = "s3://lake/weights/"
    "#;

    #[test]
    fn defaults_and_overrides() {
        let job = JobFile::parse(JOB, &[]).unwrap();
        assert_eq!(job.embed.model, "builtin");
        assert_eq!(job.transport.options(), TransportOptions::default());
        let sets = [
            "transport.push=0.5",
            "transport.temperature={ ess = 0.3 }",
            "output.url=/tmp/out",
            "transport.epsilon = 1",
            "transport.slack=none",
        ];
        let job = JobFile::parse(JOB, &sets.map(str::to_owned)).unwrap();
        assert_eq!(job.transport.push, 0.5);
        assert_eq!(job.transport.temperature, Temperature::Ess(0.3));
        assert_eq!(job.transport.epsilon, Auto::Fixed(1.0));
        assert_eq!(job.output.url, "/tmp/out");
    }

    #[test]
    fn slips_name_the_nearest_key() {
        let error =
            |text: &str, sets: &[&str]| JobFile::parse(text, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap_err();
        assert!(error(&JOB.replace("url = \"s3://lake/sft/\"", "ur = \"x\""), &[]).contains("did you mean `corpus.url`"));
        assert!(error(JOB, &["transport.epsilom=1"]).contains("did you mean `transport.epsilon`"));
        assert!(error(JOB, &["trasport.push=1"]).contains("did you mean `transport`"));
        assert!(error(JOB, &["transport.push"]).contains("section.key=value"));
        assert!(error(JOB, &["transport.epsilon=\"automatic\""]).contains("expected a number or \"auto\""));
        assert!(error(JOB, &["transport.epsilon=-1"]).contains("transport.epsilon"));
        assert!(error(JOB, &["corpus.embedding=v"]).contains("both"));
        assert!(error(&JOB.replace("[output]\n        url = \"s3://lake/weights/\"", ""), &[]).contains("output"));
    }

    #[test]
    fn windows_are_checked() {
        let with = |text: &str, sets: &[&str]| JobFile::parse(text, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(with(JOB, &[]).unwrap().embed.windows(), None);
        let windows = |sets: &[&str]| with(JOB, sets).unwrap().embed.windows().unwrap();
        assert_eq!(windows(&["embed.window=128"]), Windows { window: 128, stride: 64, pool: Pool::Mean });
        let all = windows(&["embed.window=9", "embed.stride=9", "embed.pool=worst"]);
        assert_eq!(all, Windows { window: 9, stride: 9, pool: Pool::Worst });
        let vectors = JOB.replace("text = [\"prompt\", \"response\"]", "embedding = \"vector\"");
        for (text, sets, expected) in [
            (JOB, &["embed.window=7"][..], "at least 8"),
            (JOB, &["embed.window=64", "embed.stride=0"], "1..=64"),
            (JOB, &["embed.window=64", "embed.stride=65"], "1..=64"),
            (JOB, &["embed.stride=8"], "`embed.stride` needs `embed.window`"),
            (JOB, &["embed.pool=worst"], "`embed.pool` needs `embed.window`"),
            (JOB, &["embed.window=64", "embed.pool=best"], "\"mean\" or \"worst\""),
            (JOB, &["embed.widnow=64"], "did you mean `embed.window`"),
            (&vectors, &["embed.window=64"], "needs `corpus.text`"),
        ] {
            let error = with(text, sets).unwrap_err();
            assert!(error.contains(expected), "{sets:?}: {error}");
        }
    }

    #[test]
    fn every_listed_key_is_accepted() {
        // `KEYS` and the structs must agree: a listed key may have a wrong value here, but never be unknown.
        for (section, keys) in KEYS {
            for key in keys {
                if let Err(reason) = JobFile::parse(JOB, &[format!("{section}.{key}=\"none\"")]) {
                    assert!(!reason.contains("unknown") || reason.contains("unknown variant"), "{section}.{key}: {reason}");
                }
            }
        }
    }
}
