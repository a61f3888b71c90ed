//! What was written: everything a commit needs to know of a sidecar without opening it. The file carries it too, so that a run that
//! was killed before its commit does not weigh again what it had finished.

use super::sidecar::{SidecarIdentity, sidecar_path};
use crate::error::{Error, Result};
use crate::shard::read_parquet_footer;
use crate::storage::Location;
use parquet::file::metadata::{KeyValue, PageIndexPolicy};
use serde::{Deserialize, Serialize};

/// Key of the counts and sums in the sidecar's own metadata.
const COUNTS_KEY: &str = "pushpull.counts";
/// Key of the digest of the base shard's columns.
pub(super) const SCHEMA_KEY: &str = "pushpull.base_schema";

/// A finished sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    /// What the sidecar is the sidecar of.
    pub identity: SidecarIdentity,
    /// Path below the output URL.
    pub path: String,
    /// Bytes of the sidecar.
    pub size: u64,
    /// Rows of the shard.
    pub rows: u64,
    /// Rows that have a weight.
    pub weighed: u64,
    /// Sum of the weights.
    pub weight_sum: f64,
    /// Sum of the squared weights.
    pub weight_square_sum: f64,
    /// Smallest and largest weight, if any row has one.
    pub weight_range: Option<(f32, f32)>,
    /// Digest of the base shard's columns, whose file the catalog keeps; `None` if the writer was told none. A reader then opens the base
    /// shard to know its columns.
    pub schema: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Counts {
    rows: u64,
    weighed: u64,
    weight_sum: f64,
    weight_square_sum: f64,
    weight_range: Option<(f32, f32)>,
}

impl Receipt {
    pub(super) fn empty(identity: SidecarIdentity, path: String) -> Self {
        Self { identity, path, size: 0, rows: 0, weighed: 0, weight_sum: 0.0, weight_square_sum: 0.0, weight_range: None, schema: None }
    }

    /// Counts a row that has a weight.
    pub(super) fn count(&mut self, weight: f32) {
        let (low, high) = self.weight_range.unwrap_or((weight, weight));
        self.weight_range = Some((low.min(weight), high.max(weight)));
        let weight = f64::from(weight);
        self.weighed += 1;
        self.weight_sum += weight;
        self.weight_square_sum += weight * weight;
    }

    pub(super) fn key_values(&self) -> Result<Vec<KeyValue>> {
        let &Self { rows, weighed, weight_sum, weight_square_sum, weight_range, .. } = self;
        let counts = Counts { rows, weighed, weight_sum, weight_square_sum, weight_range };
        let counts = serde_json::to_string(&counts).map_err(|e| Error::Internal(format!("sidecar counts: {e}")))?;
        let schema = self.schema.iter().map(|digest| KeyValue::new(SCHEMA_KEY.to_owned(), digest.clone()));
        Ok(std::iter::once(KeyValue::new(COUNTS_KEY.to_owned(), counts)).chain(schema).collect())
    }
}

/// The receipt of a sidecar of `size` bytes that is there already, whole because an object appears whole or not at all. `None` where it
/// does not say that it belongs to `identity`: then it is to be written again.
pub async fn unpublished_receipt(output: &Location, identity: SidecarIdentity, size: u64) -> Option<Receipt> {
    let path = sidecar_path(&identity);
    let footer = read_parquet_footer(&output.join(&path), size, PageIndexPolicy::Skip).await.ok()?;
    let found = footer.file_metadata().key_value_metadata()?;
    if !identity.key_values().iter().all(|wanted| found.contains(wanted)) {
        return None;
    }
    let counts = found.iter().find(|entry| entry.key == COUNTS_KEY)?.value.as_ref()?;
    let Counts { rows, weighed, weight_sum, weight_square_sum, weight_range } = serde_json::from_str(counts).ok()?;
    let schema = found.iter().find(|entry| entry.key == SCHEMA_KEY).and_then(|entry| entry.value.clone());
    let whole = u64::try_from(footer.file_metadata().num_rows()).ok()? == rows;
    whole.then_some(Receipt { identity, path, size, rows, weighed, weight_sum, weight_square_sum, weight_range, schema })
}
