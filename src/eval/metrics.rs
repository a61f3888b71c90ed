//! In: a score a row (higher is more harmful), a weight a row, and a [`Resample`]. Out: the metrics, in one pass over the ranking.
//!
//! ```text
//! AUC against class k   P(score of a positive > score of a row of k) + ½ P(equal)          (Mann and Whitney 1947)
//! average precision     Σ_t (R_t − R_{t−1}) P_t over the distinct scores t from the highest    as scikit-learn's average_precision_score
//! kept at q %           positives among the ⌊q·n/100⌋ rows of lowest score, of rows of equal score at the cut the expected number
//! share of weight       Σ w over the positives / Σ w over all rows
//! ```
//!
//! Rows of equal score are one step of each curve: no metric depends on the order in which rows came.

use super::classes::{Classes, MAX_NEGATIVES, Resample};
use crate::error::{Error, Result};

/// How much of a corpus a user may keep, in percent of its rows.
pub const KEPT_PERCENT: [u8; 4] = [50, 80, 90, 95];

/// What is measured of a ranking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Area under the ROC curve of the positives against this negative class (1 and up), in `[0, 1]`; 0.5 is chance.
    Auc(usize),
    /// Average precision over all rows, in `(0, 1]`; chance is the share of the positives.
    AveragePrecision,
    /// Positives left in this best percentage of all rows, in rows; a fraction where ties lie across the cut.
    Kept(u8),
    /// The positives' share of the total weight, in `[0, 1]`.
    WeightShare,
}

impl Metric {
    /// Every metric, in the order [`Ranking::measure`] gives them.
    pub fn all(negatives: usize) -> Vec<Self> {
        let auc = (1..=negatives).map(Self::Auc);
        auc.chain([Self::AveragePrecision]).chain(KEPT_PERCENT.map(Self::Kept)).chain([Self::WeightShare]).collect()
    }

    /// Whether more is better; for kept rows and the share of weight less is.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Auc(_) | Self::AveragePrecision)
    }
}

/// Rows in the order of their scores, lowest (best) first, laid out so that a resample is measured in one pass without sorting.
#[derive(Clone, Debug)]
pub struct Ranking {
    rows: Vec<u32>,
    /// Class of the row at each place.
    class: Vec<u8>,
    /// Weight of the row at each place.
    weight: Vec<f64>,
    /// Whether the row at each place has the same score as the next.
    tied: Vec<bool>,
}

impl Ranking {
    /// Ranks rows by `scores`, higher is more harmful.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where the lengths differ, a score is NaN, or a weight is negative or not finite.
    pub fn try_new(scores: &[f64], weights: &[f64], classes: &Classes) -> Result<Self> {
        let fault = |reason: String| Err(Error::InvalidOption { name: "scores".into(), reason });
        if scores.len() != classes.len() || weights.len() != classes.len() {
            return fault(format!("{} scores and {} weights for {} rows", scores.len(), weights.len(), classes.len()));
        }
        if let Some(row) = scores.iter().position(|s| s.is_nan()) {
            return fault(format!("row {row} has no score (NaN)"));
        }
        if let Some(row) = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
            return fault(format!("row {row} has weight {}", weights[row]));
        }
        let mut rows: Vec<u32> = (0u32..).take(scores.len()).collect();
        let score = |row: &u32| scores[*row as usize];
        rows.sort_by(|a, b| score(a).total_cmp(&score(b)).then(a.cmp(b)));
        let tied = rows.iter().zip(rows.iter().skip(1)).map(|(a, b)| score(a) == score(b)).chain([false]).collect();
        let class = rows.iter().map(|row| classes.of()[*row as usize]).collect();
        let weight = rows.iter().map(|row| weights[*row as usize]).collect();
        Ok(Self { rows, class, weight, tied })
    }

    /// Every metric of a resample, in the order of [`Metric::all`]. The classes are those the ranking was made with.
    pub fn measure(&self, classes: &Classes, resample: &Resample) -> Vec<f64> {
        let counts = resample.counts();
        let (all, positives) = (classes.len() as u64, classes.size(0) as u64);
        let cuts = KEPT_PERCENT.map(|percent| all * u64::from(percent) / 100);
        let mut seen = Seen::default();
        let mut twice_auc = [0u64; MAX_NEGATIVES];
        let (mut precision, mut kept, mut cut) = (0.0, [0.0; KEPT_PERCENT.len()], 0);
        let (mut weight, mut weight_of_positives) = (0.0, 0.0);
        let mut step = Step::default();
        for (place, row) in self.rows.iter().enumerate() {
            let count = u64::from(counts[*row as usize]);
            let class = self.class[place] as usize;
            let share = count as f64 * self.weight[place];
            weight += share;
            if class > 0 && step.rows == 0 && !self.tied[place] {
                // Most rows: alone with their score, and nothing found.
                seen.negatives[class - 1] += count;
                seen.rows += count;
                while cut < cuts.len() && seen.rows >= cuts[cut] {
                    kept[cut] = seen.positives as f64;
                    cut += 1;
                }
                continue;
            }
            if class == 0 {
                step.positives += count;
                weight_of_positives += share;
            } else {
                step.negatives[class - 1] += count;
            }
            step.rows += count;
            if self.tied[place] || step.rows == 0 {
                continue;
            }
            if step.positives > 0 {
                for ((twice, below), equal) in twice_auc.iter_mut().zip(seen.negatives).zip(step.negatives) {
                    *twice += step.positives * (2 * below + equal);
                }
                let found = (positives - seen.positives) as f64 / (all - seen.rows) as f64;
                precision += step.positives as f64 / positives as f64 * found;
            }
            while cut < cuts.len() && seen.rows + step.rows >= cuts[cut] {
                let within = (cuts[cut] - seen.rows) as f64 / step.rows as f64;
                kept[cut] = seen.positives as f64 + step.positives as f64 * within;
                cut += 1;
            }
            seen.add(&step);
            step = Step::default();
        }
        let auc = (0..classes.negatives()).map(|k| twice_auc[k] as f64 / (2 * positives * classes.size(k + 1) as u64) as f64);
        let share = if weight > 0.0 { weight_of_positives / weight } else { 0.0 };
        auc.chain([precision]).chain(kept).chain([share]).collect()
    }
}

/// Rows of one score, counted.
#[derive(Default)]
struct Step {
    rows: u64,
    positives: u64,
    negatives: [u64; MAX_NEGATIVES],
}

/// Rows of lower scores, counted.
#[derive(Default)]
struct Seen {
    rows: u64,
    positives: u64,
    negatives: [u64; MAX_NEGATIVES],
}

impl Seen {
    fn add(&mut self, step: &Step) {
        self.rows += step.rows;
        self.positives += step.positives;
        self.negatives.iter_mut().zip(step.negatives).for_each(|(seen, more)| *seen += more);
    }
}
