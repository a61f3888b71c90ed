//! What `explain` says of a row: the weight and its terms, the strongest references, the views; all of it serializable. Plain data, and the
//! address a row is asked by.

use serde::Serialize;
use std::str::FromStr;

/// A row of the corpus: a shard and a position in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowAddress {
    /// The shard's name, or the end of it where that is the end of no other.
    pub shard: String,
    /// Position in the shard from 0, as in the column `row`.
    pub row: u64,
}

impl FromStr for RowAddress {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts = text.rsplit_once(':').filter(|(shard, _)| !shard.is_empty());
        let parsed = parts.and_then(|(shard, row)| Some(Self { shard: shard.to_owned(), row: row.parse().ok()? }));
        parsed.ok_or_else(|| format!("{text}: write it as SHARD:ROW, the columns `shard` and `row`, as in part-0000.parquet:41"))
    }
}

/// One row and why it has its weight.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedRow {
    /// The shard's name.
    pub shard: String,
    /// Position in the shard, from 0.
    pub row: u64,
    /// The shard's version.
    pub shard_version: String,
    /// Digest of the model.
    pub model: String,
    /// The row's texts: the job's text columns, then the fallback. Empty where the job reads vectors.
    pub texts: Vec<RowText>,
    /// What the table holds of the row.
    pub published: PublishedState,
    /// The weight in parts; null where the row has none.
    pub explained: Option<ExplainedWeight>,
    /// What to know when reading this.
    pub notes: Vec<String>,
}

/// One text of a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowText {
    /// The column.
    pub column: String,
    /// What is in it.
    pub text: Option<String>,
    /// Whether it is embedded: a null is not, and the fallback only where every text column is null.
    pub embedded: bool,
}

/// How the weight computed here compares with the one in the table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum PublishedState {
    /// The shard is not weighed yet; the table's current model is used.
    NotYet,
    /// The table holds the same numbers, to the bit, the same references and the same window; or no weight, as here.
    Same,
    /// The table holds other numbers. Another kind of processor can move their last digits.
    Differs {
        /// The weight in the table.
        weight: Option<f32>,
    },
}

/// A weight in parts. Costs are in units of the cost `1 − cos`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedWeight {
    /// The weight; 1 is "as the corpus has it".
    pub weight: f32,
    /// The window that the row was read in, and that all of this is about: the most harmful one. Null where the job's pool is not `worst`.
    pub window: Option<ExplainedWindow>,
    /// `pull − λ · push + prior`.
    pub score: f64,
    /// The parts of the product that the weight is; null where the model's report has no means of its sample.
    pub factors: Option<Factors>,
    /// The prior's part.
    pub prior: ExplainedPrior,
    /// τ, by which differences of the score are divided.
    pub tau: f64,
    /// What the safe references say.
    pub safe: ExplainedSide,
    /// What the harmful references say.
    pub harm: ExplainedSide,
    /// Each view of the row.
    pub views: Vec<ExplainedView>,
}

/// Where a row was read, as in the table's columns `window_view` and `window`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedWindow {
    /// The column that the window is in.
    pub column: String,
    /// Where it begins there, in characters (Unicode scalar values) from 0.
    pub character: u64,
}

/// `weight = typical × pull × push × prior`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Factors {
    /// Weight of a row whose pull, push and prior are the sample's means.
    pub typical: f64,
    /// What the row's pull makes of it, by its difference from the mean.
    pub pull: f64,
    /// What its push makes of it.
    pub push: f64,
    /// What its prior makes of it.
    pub prior: f64,
}

/// The prior's part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ExplainedPrior {
    /// `β · h`.
    pub value: f64,
    /// Its mean over the sample.
    pub mean: Option<f64>,
    /// `(1 + h)/2`: what the prior's classifier says for "harmful", in `[0, 1]`. It is learned from the harmful references against the safe ones
    /// and the corpus, half and half, harmful rows of the corpus included, so it orders rows and is no calibrated probability of harm.
    pub probability: f64,
}

/// One side's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedSide {
    /// The pull, or the push.
    pub value: f64,
    /// Its mean over the sample.
    pub mean: Option<f64>,
    /// Mean cost to the references, each counted by its responsibility.
    pub mean_cost: f64,
    /// The references with the largest responsibilities, largest first. The first is the row's `safe_ref` or `harm_ref`.
    pub strongest: Vec<ExplainedReference>,
}

/// A reference and its part for the row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedReference {
    /// Its id.
    pub id: String,
    /// Its category, if it has one.
    pub category: Option<String>,
    /// Its text; null where the job reads vectors, or the file is not the one of the fit.
    pub text: Option<String>,
    /// Share of the row that goes to it; over all references of a side these sum to 1.
    pub responsibility: f64,
    /// The cost between the two.
    pub cost: f64,
    /// Each view's own cost, in the order of `views`; null where one of the two has no such view.
    pub view_costs: Vec<Option<f64>>,
    /// Its potential: above 0 it attracts rows more than its cost says.
    pub potential: f64,
    /// Its share of the side's mass.
    pub mass: f64,
}

/// One view of the row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedView {
    /// The column.
    pub view: String,
    /// The view's mean cosine cost to the safe references, each counted by its responsibility; null for a view that is empty.
    pub cost_to_safe: Option<f64>,
    /// The same to the harmful references.
    pub cost_to_harm: Option<f64>,
    /// The row's weight if this view were null; null where it is, or is the only one. Of a row that is read in its most harmful window,
    /// the weight of this reading: another window may be the most harmful one then.
    pub weight_without: Option<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_shard_and_a_row() {
        let address = |text: &str| text.parse::<RowAddress>();
        assert_eq!(address("a/part-0.parquet:41").unwrap(), RowAddress { shard: "a/part-0.parquet".into(), row: 41 });
        assert_eq!(address("odd:name.parquet:0").unwrap(), RowAddress { shard: "odd:name.parquet".into(), row: 0 });
        for wrong in ["part-0.parquet", "part-0.parquet:", "part-0.parquet:-1", ":3", "part-0.parquet:x"] {
            assert!(address(wrong).unwrap_err().contains("SHARD:ROW"), "{wrong}");
        }
    }
}
