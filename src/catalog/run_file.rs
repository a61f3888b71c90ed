//! Run reports: one immutable JSON object per run under `_runs/`, because the log's own history is cleaned up after a while.

use crate::error::{Error, Result};
use crate::storage::Location;
use serde_json::Value;

/// Spared by a vacuum for its `_`, as the models are.
const FOLDER: &str = "_runs";

/// Stores a report under `_runs/<table version>-<digest>.json` and gives the path below `output`.
///
/// # Errors
/// What the store answers.
pub async fn write_run(output: &Location, version: Option<u64>, report: &Value) -> Result<String> {
    let encode = |value: &Value| serde_json::to_vec_pretty(value).map_err(|e| Error::Internal(format!("run report: {e}")));
    let bytes = encode(report)?;
    // A run that meets the same as the one before it adds no report, however long it took.
    let mut lasting = report.clone();
    if let Some(fields) = lasting.as_object_mut() {
        fields.retain(|key, _| key != "seconds" && key != "bytes_read");
    }
    let digest = blake3::hash(&encode(&lasting)?).to_hex();
    let version = version.map_or_else(|| "none".to_owned(), |v| format!("{v:020}"));
    let path = format!("{FOLDER}/{version}-{}.json", &digest[..16]);
    output.join(&path).write_immutable(bytes).await?;
    Ok(path)
}

/// Every stored report, by the table version after the run; those of runs before the first version come last.
///
/// # Errors
/// What the store answers, and [`Error::Catalog`] for a report that is no JSON.
pub async fn list_runs(output: &Location) -> Result<Vec<Value>> {
    let files = output.join(FOLDER).read_all(|name| name.ends_with(".json")).await?;
    files
        .into_iter()
        .map(|(name, bytes)| {
            serde_json::from_slice(&bytes).map_err(|e| Error::Catalog {
                location: output.to_string(),
                reason: format!("{FOLDER}/{name} is not a run report"),
                source: Some(Box::new(e)),
            })
        })
        .collect()
}
