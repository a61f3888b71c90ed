//! What a run did, for machines and for people.

use crate::catalog::{Hygiene, KeptPotentials, ModelCard, Published};
use crate::error::Error;
use crate::shard::Shard;
use crate::transport::{Certificate, Residuals, TransportCosts};
use serde::Serialize;
use std::collections::BTreeMap;

/// A mean weight this far from 1 is worth a hint. Sampling alone moves it less: by 0.01 for 300,000 rows and the default sample.
const DRIFT: f64 = 0.05;
/// References listed of each finding. A run's report is stored with every run.
const LISTED: usize = 20;
/// So many of the sample's rows read in another window than the model was fitted on are worth a hint.
const MOVED: f64 = 0.05;

/// A shard that could not be weighed, and why. It is tried again in every run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// The shard's name.
    pub shard: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Quarantined {
    /// Records an error with its causes.
    pub fn new(shard: &Shard, error: &Error) -> Self {
        Self { shard: shard.name.clone(), reason: with_causes(error) }
    }
}

/// An error and its causes in one line; a cause that repeats what was said is left out.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// How many shards had which fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ShardCounts {
    /// New or changed, weighed in this run.
    pub weighed: usize,
    /// Weighed before with the same content and model.
    pub unchanged: usize,
    /// Gone from the corpus, removed from the table.
    pub removed: usize,
    /// Could not be read.
    pub quarantined: usize,
    /// Weighed without being read, from the numbers that their sidecars held. Left out of the JSON where there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub recomputed: usize,
    /// New or changed, but left by the selection. Left out of the JSON where there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub not_selected: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What one model weighed of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelShare {
    /// Digest of the model.
    pub model: String,
    /// Shards that have their weights from it.
    pub shards: usize,
    /// Rows of these.
    pub rows: u64,
}

/// Where the time went, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Sampling, embedding the sample, fitting.
    pub fit: f64,
    /// Weighing and writing.
    pub weigh: f64,
    /// Everything, from listing to commit.
    pub total: f64,
}

/// A row worth showing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeighedRow {
    /// The shard's name.
    pub shard: String,
    /// Position in the shard.
    pub row: u64,
    /// Its weight.
    pub weight: f32,
    /// The safe reference with the largest responsibility for it.
    pub safe_ref: String,
    /// The harmful reference with the largest responsibility for it.
    pub harm_ref: String,
    /// The beginning of its text.
    #[serde(skip)]
    pub excerpt: String,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// Rows of the table after the run.
    pub rows: u64,
    /// Rows among them without text and so without a weight.
    pub rows_without_text: u64,
    /// Fate of the shards.
    pub shards: ShardCounts,
    /// Digest of the model.
    pub model: String,
    /// Whether this run fitted it.
    pub fitted: bool,
    /// Rows it was fitted on.
    pub sample_rows: usize,
    /// Whether the fit reached its threshold.
    pub converged: bool,
    /// Why it did not, and what to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// Whether the push side was seen to oscillate or run away during the fit.
    pub oscillated: bool,
    /// Where the model was not fitted as it is but has another's potentials: whose. What a fit measures is then absent here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_potentials: Option<KeptPotentials>,
    /// The optimality conditions, measured on the finished model; `None` where potentials were kept.
    pub certificate: Option<Certificate>,
    /// Marginal errors ‖p − q‖₁ over the fit's sample; `None` where potentials were kept.
    pub residuals: Option<Residuals>,
    /// The same on rows that no step used, where any were held out.
    pub held_out: Option<Residuals>,
    /// What sampling noise alone makes of `held_out`.
    pub held_out_noise: Option<Residuals>,
    /// Effective sample size of the table's weights, as a fraction of its rows.
    pub ess: f64,
    /// Mean of the table's weights.
    pub mean_weight: f64,
    /// ε.
    pub epsilon: f64,
    /// τ.
    pub tau: f64,
    /// λ.
    pub push: f64,
    /// β.
    pub prior: f64,
    /// Entropic transport cost to both references, before (every row 1) and after weighing; `None` where potentials were kept.
    pub transport_cost: Option<TransportCosts>,
    /// Which models the table's weights are by, most shards first.
    pub models: Vec<ModelShare>,
    /// Bytes read from object stores.
    pub bytes_read: u64,
    /// Requests sent to object stores.
    pub requests: u64,
    /// Bytes read of shards of the corpus, in footers and columns. What a selection's condition read, of sidecars too, counts here.
    pub corpus_bytes_read: u64,
    /// Where the time went.
    pub seconds: Seconds,
    /// The table's version after the run, if there is a table.
    pub version: Option<u64>,
    /// Shards that could not be read.
    pub quarantined: Vec<Quarantined>,
    /// What to look at although nothing failed.
    pub hints: Vec<String>,
    /// What was found about the references when the model was fitted, with a few of the references concerned; the table `hygiene` has all.
    pub hygiene: Hygiene,
    /// The most and the least weighted rows of this run. Not in the JSON: rows belong in SQL.
    #[serde(skip)]
    pub most: Vec<WeighedRow>,
    /// See `most`.
    #[serde(skip)]
    pub least: Vec<WeighedRow>,
}

impl RunReport {
    /// 0 when everything is done, 1 when the fit did not converge or a shard is quarantined. Kept potentials are no failure, since they were
    /// asked for, where the fit they are from converged and the effective sample size is met.
    pub fn exit_code(&self) -> u8 {
        let settled = self.kept_potentials.as_ref().map_or(self.converged, |kept| kept.converged && kept.met);
        u8::from(!settled || !self.quarantined.is_empty())
    }

    /// Shards of the table whose weights are by another model than this run's.
    pub fn shards_of_other_models(&self) -> usize {
        self.models.iter().filter(|share| share.model != self.model).map(|share| share.shards).sum()
    }

    /// A report about the model alone; the rest is filled in by the caller.
    pub(super) fn of_model(digest: &str, card: &ModelCard) -> Self {
        let report = &card.report;
        // Of another model's potentials nothing of this was measured.
        let fitted = card.kept.is_none().then_some(report);
        let moved = card.picks.filter(|picks| picks.moved > MOVED);
        let moved = moved.map(|picks| {
            format!(
                "after {} rounds {:.1} % of the sample's rows are still read in another window than the model was fitted on: their weights are \
                 right for this model, its marginals are off by as much",
                picks.rounds,
                100.0 * picks.moved
            )
        });
        Self {
            rows: 0,
            rows_without_text: 0,
            shards: ShardCounts::default(),
            model: digest.to_owned(),
            fitted: false,
            sample_rows: report.rows,
            converged: report.converged,
            why_not: report.why_not.clone(),
            oscillated: report.oscillated,
            certificate: fitted.map(|report| report.certificate.clone()),
            residuals: fitted.map(|report| report.residuals),
            held_out: fitted.and_then(|report| report.held_out),
            held_out_noise: fitted.and_then(|report| report.held_out_noise),
            kept_potentials: card.kept.clone(),
            ess: report.ess,
            mean_weight: report.mean_weight,
            epsilon: card.epsilon,
            tau: card.tau,
            push: card.push,
            prior: card.prior,
            transport_cost: fitted.map(|report| report.transport_cost),
            models: Vec::new(),
            bytes_read: 0,
            requests: 0,
            corpus_bytes_read: 0,
            seconds: Seconds::default(),
            version: None,
            quarantined: Vec::new(),
            hygiene: card.hygiene.shortened(LISTED),
            hints: moved.into_iter().collect(),
            most: Vec::new(),
            least: Vec::new(),
        }
    }

    /// Says that shards which are gone stay in the table, since a selection removes nothing.
    pub(super) fn keeps_gone(&mut self, shards: usize) {
        if shards > 0 {
            self.hints
                .push(format!("{shards} shards of the table are gone from the corpus and stay: a run without a selection removes them"));
        }
    }

    /// Rows, mean weight and effective sample size of what is published, and a hint where the corpus has moved away from the sample
    /// that the model was fitted on.
    pub(super) fn describe_table<'a>(&mut self, published: impl IntoIterator<Item = &'a Published>, weighed_now: bool) {
        let mut shares: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
        let (mut rows, mut unweighed, mut sum, mut squares) = (0u64, 0u64, 0.0f64, 0.0f64);
        let mut of_this_model = false;
        for sidecar in published {
            of_this_model |= sidecar.model == self.model;
            let share = shares.entry(&sidecar.model).or_default();
            *share = (share.0 + 1, share.1 + sidecar.rows);
            rows += sidecar.rows;
            unweighed += sidecar.unweighed;
            sum += sidecar.weight_sum;
            squares += sidecar.weight_square_sum;
        }
        (self.rows, self.rows_without_text) = (rows, unweighed);
        self.models = shares.into_iter().map(|(model, (shards, rows))| ModelShare { model: model.to_owned(), shards, rows }).collect();
        self.models.sort_by(|a, b| b.shards.cmp(&a.shards).then(a.model.cmp(&b.model)));
        let others = self.shards_of_other_models();
        if others > 0 && weighed_now {
            let all: usize = self.models.iter().map(|share| share.shards).sum();
            self.hints.push(format!(
                "{others} of {all} shards of the table have weights by another model, and weights of two models do not compare: a run without a \
                 selection brings all to one"
            ));
        }
        let weighed = (rows - unweighed) as f64;
        // A model that was only fitted has weighed nothing: its own figures, on its sample, stand.
        if of_this_model && weighed > 0.0 && squares > 0.0 {
            self.mean_weight = sum / weighed;
            self.ess = sum * sum / (weighed * squares);
            if others == 0 && (self.mean_weight - 1.0).abs() > DRIFT {
                self.hints.push(format!(
                    "the mean weight is {:.3}, not 1: the corpus is no longer what the model was fitted on; `pushpull fit` learns it anew",
                    self.mean_weight
                ));
            }
        }
    }
}
