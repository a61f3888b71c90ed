//! In: several readings (candidates) of each row of a sample. Out: a fit on the most harmful reading of each row, by that fit itself.
//!
//! Which reading of a row weighs least depends on the potentials, and the potentials on which readings are fitted, so both are
//! sought in turn:
//!
//! 1. Readings are picked by the instance-level score: the same objective with both potentials 0 (κ = 0), so a soft
//!    nearest-reference difference with the prior. It needs no pick of its own, and unlike the prior alone it is there where the
//!    prior is switched off; dual potentials move a ranking by little.
//! 2. The potentials are fitted to the picked readings, and readings are picked anew.
//! 3. Again from these potentials, until at most [`MOVED_TOLERANCE`] of the rows change their pick or [`MAX_ROUNDS`] are over.
//!    ε and the prior are those of the first picks' fit in every round: a prior learned anew, with the new readings as its corpus, would
//!    give every reading that has just been picked a lower logit, and the picks would never settle.
//!
//! Readings are picked by the mean of the new potentials and those that the last picks were made with. Picking by the new ones alone
//! runs in a circle: potentials that were fitted to one choice of readings weigh the other choice less, and the other way round (on long
//! film reviews in windows of 64 tokens 8 % of the rows went to and fro for ever; with the mean it was 2 % after six rounds, and falling).
//!
//! At last the normaliser is set so that the mean weight over the sample, each row by the final model's own pick, is 1, and the finished
//! model is measured on these picks: certificate, effective size, mean terms, coverage. The residuals, the transport costs and
//! `converged` in the report are the last fit's, on its own readings, of which the share [`Picks::moved`] is no longer the pick.
//!
//! Memory: a copy of one vector a row, and one [`RowWeight`] a candidate, beside what [`fit()`](super::fit()) takes.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use super::fit::{fit, fit_with, measure_again};
use super::model::{TransportModel, Weigher};
use super::options::{Auto, Temperature, TransportOptions};
use super::references::ReferenceSet;
use super::report::{Fit, FitProgress};
use super::weight::RowWeight;
use crate::error::{Error, Result};

/// Fits at most. Rows that still change their pick after so many have readings that are as harmful as one another.
pub const MAX_ROUNDS: usize = 6;
/// Share of the sample's rows that may change their pick in the last round.
pub const MOVED_TOLERANCE: f64 = 5e-3;

/// The readings of some rows, those of a row one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct RowCandidates {
    vectors: Array2<f32>,
    ends: Vec<usize>,
}

impl RowCandidates {
    /// Readings in `vectors`, a unit or zero vector each; those of row `i` end before `ends[i]`, and row `i + 1` begins there.
    ///
    /// # Errors
    /// [`Error::Internal`] where a row has no reading or the last row does not end with `vectors`.
    pub fn try_new(vectors: Array2<f32>, ends: Vec<usize>) -> Result<Self> {
        let rising = ends.first().is_none_or(|&end| end > 0) && ends.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || ends.last().copied().unwrap_or(0) != vectors.nrows() {
            return Err(Error::Internal(format!("{} candidates for {} rows do not fit together", vectors.nrows(), ends.len())));
        }
        Ok(Self { vectors, ends })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Every reading, a row of the matrix each.
    pub fn vectors(&self) -> ArrayView2<'_, f32> {
        self.vectors.view()
    }

    /// The rows with these indices, with all their readings.
    #[must_use]
    pub fn subset(&self, rows: &[usize]) -> Self {
        let (mut readings, mut ends) = (Vec::new(), Vec::with_capacity(rows.len()));
        for &row in rows {
            readings.extend(row.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[row]);
            ends.push(readings.len());
        }
        Self { vectors: self.select(&readings), ends }
    }

    /// Each row's most harmful reading under `model`, a row of the matrix each.
    ///
    /// # Errors
    /// As [`TransportModel::weigh`].
    pub fn most_harmful(&self, model: &TransportModel) -> Result<Array2<f32>> {
        let worst = self.worst(model)?;
        Ok(self.select(&worst.into_iter().map(|(at, _)| at).collect::<Vec<_>>()))
    }

    /// The readings of each row.
    fn spans(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        self.ends.iter().map(move |&end| std::mem::replace(&mut start, end)..end)
    }

    /// The readings with these indices.
    fn select(&self, picks: &[usize]) -> Array2<f32> {
        self.vectors.select(Axis(0), picks)
    }

    /// The index of each row's most harmful reading under `model`, the first of equals, and its weight.
    fn worst(&self, model: &TransportModel) -> Result<Vec<(usize, RowWeight)>> {
        let weigher = model.weigher()?;
        let weights = weigher.weigh(self.vectors())?;
        let worst = |span: Range<usize>| {
            let mut best = (span.start, weights[span.start]);
            for at in span {
                if weigher.is_worse(&weights[at], &best.1) {
                    best = (at, weights[at]);
                }
            }
            best
        };
        Ok(self.spans().map(worst).collect())
    }
}

impl Weigher<'_> {
    /// Whether `row` counts as more harmful than `other`: its weight is smaller, or both are alike (at the end of what f32 can hold,
    /// for example) and its score is higher.
    pub fn is_worse(&self, row: &RowWeight, other: &RowWeight) -> bool {
        row.weight < other.weight || (row.weight == other.weight && self.score(row) > self.score(other))
    }
}

/// How a fit and the picks of its readings came together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picks {
    /// Fits made.
    pub rounds: usize,
    /// Readings of all rows together.
    pub candidates: usize,
    /// Share of the rows whose pick by the final model is not the one it was fitted on.
    pub moved: f64,
}

/// Fits a model to the most harmful reading of each row.
///
/// With one reading a row it is [`fit()`](super::fit()), but for the time the first picks take and the last digits of `log_z`.
/// `warm` and `progress` are as there. The result is the same for any number of threads.
///
/// # Errors
/// As [`fit()`](super::fit()); rows that are named by their index are readings.
pub fn fit_worst(
    candidates: &RowCandidates,
    safe: &ReferenceSet,
    harm: &ReferenceSet,
    options: &TransportOptions,
    warm: Option<(&[f64], &[f64])>,
    progress: &mut dyn FnMut(FitProgress),
) -> Result<(Fit, Picks)> {
    let rows = candidates.rows();
    let mut picks: Vec<usize> = candidates.spans().map(|span| span.start).collect();
    let instance_level =
        TransportOptions { slack: Some(0.0), temperature: Temperature::Fixed(1.0), max_steps: 1, epochs: 0, ..options.clone() };
    let first = fit(candidates.select(&picks).view(), safe, harm, &instance_level, None, &mut |_| {})?;
    picks = candidates.worst(&first.model)?.into_iter().map(|(at, _)| at).collect();

    let options = TransportOptions {
        epsilon: Auto::Fixed(first.model.epsilon),
        prior: Auto::Fixed(first.model.prior.strength),
        inverse_penalty: Auto::Fixed(first.model.prior.inverse_penalty),
        ..options.clone()
    };
    let prior = Some(&first.model.prior);
    let mut fitted = fit_with(prior, candidates.select(&picks).view(), safe, harm, &options, warm, progress)?;
    let mut picked_by = fitted.model.clone();
    let mut rounds = 1;
    while rounds < MAX_ROUNDS {
        let next: Vec<usize> = candidates.worst(&picked_by)?.into_iter().map(|(at, _)| at).collect();
        if share_of_changes(&picks, &next) <= MOVED_TOLERANCE {
            break;
        }
        picks = next;
        let potentials = (fitted.model.safe_potential.as_slice(), fitted.model.harm_potential.as_slice());
        let before = fitted.report.clone();
        fitted = fit_with(prior, candidates.select(&picks).view(), safe, harm, &options, Some(potentials), progress)?;
        fitted.report.steps += before.steps;
        fitted.report.online_steps += before.online_steps;
        fitted.report.halvings += before.halvings;
        fitted.report.oscillated |= before.oscillated;
        rounds += 1;
        let halfway = |from: &mut [f64], to: &[f64]| from.iter_mut().zip(to).for_each(|(from, to)| *from = 0.5 * (*from + to));
        halfway(&mut picked_by.safe_potential, &fitted.model.safe_potential);
        halfway(&mut picked_by.harm_potential, &fitted.model.harm_potential);
    }
    let worst = candidates.worst(&fitted.model)?;
    let moved = share_of_changes(&picks, &worst.iter().map(|(at, _)| *at).collect::<Vec<_>>());
    let sum: f64 = worst.iter().map(|(_, row)| f64::from(row.weight)).sum();
    let squares: f64 = worst.iter().map(|(_, row)| f64::from(row.weight).powi(2)).sum();
    let mean = sum / rows as f64;
    if mean > 0.0 && mean.is_finite() {
        fitted.model.log_z += mean.ln();
        fitted.report.mean_weight = 1.0;
        fitted.report.ess = sum * sum / (rows as f64 * squares);
    }
    fitted.report.selection = first.report.selection;
    let picked = candidates.select(&worst.iter().map(|(at, _)| *at).collect::<Vec<_>>());
    measure_again(&mut fitted, picked.view(), &options)?;
    Ok((fitted, Picks { rounds, candidates: candidates.vectors.nrows(), moved }))
}

fn share_of_changes(before: &[usize], now: &[usize]) -> f64 {
    let changed = before.iter().zip(now).filter(|(before, now)| before != now).count();
    changed as f64 / before.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use ndarray::s;

    use super::*;

    /// Unit vectors about some of twelve axes, by a fixed pattern.
    fn vectors(rows: usize, centres: Range<usize>, salt: usize) -> Array2<f32> {
        let noise = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 9) % 1000) as f32 / 1000.0 - 0.5;
        let centre = |i: usize| centres.start + i % centres.len();
        let mut matrix = Array2::from_shape_fn((rows, 12), |(i, k)| f32::from(u8::from(k == centre(i))) + 0.8 * noise((i + salt) * 12 + k));
        for mut row in matrix.rows_mut() {
            let norm = row.dot(&row).sqrt();
            row /= norm;
        }
        matrix
    }

    fn references() -> (ReferenceSet, ReferenceSet) {
        (ReferenceSet::uniform(vectors(20, 0..4, 5000)).unwrap(), ReferenceSet::uniform(vectors(15, 4..6, 6000)).unwrap())
    }

    /// Row `i` has `i % 4 + 1` readings; one in nine rows has a harmful one among them.
    fn sample() -> RowCandidates {
        let (benign, harmful) = (vectors(2000, 0..4, 0), vectors(2000, 4..6, 9000));
        let (mut values, mut ends) = (vec![], vec![]);
        for row in 0..600 {
            for reading in 0..row % 4 + 1 {
                let at = values.len() / 12;
                let planted = row % 9 == 0 && reading == (row / 9) % (row % 4 + 1);
                values.extend(if planted { harmful.row(at % 2000) } else { benign.row(at % 2000) }.iter().copied());
            }
            ends.push(values.len() / 12);
        }
        RowCandidates::try_new(Array2::from_shape_vec((values.len() / 12, 12), values).unwrap(), ends).unwrap()
    }

    fn fitted(candidates: &RowCandidates, options: &TransportOptions) -> (Fit, Picks) {
        let (safe, harm) = references();
        fit_worst(candidates, &safe, &harm, options, None, &mut |_| {}).unwrap()
    }

    #[test]
    fn the_mean_weight_of_the_final_picks_is_one_and_planted_readings_are_picked() {
        let sample = sample();
        for options in [TransportOptions::default(), TransportOptions::default().with_prior(0.0).with_push(0.5)] {
            let (fit, picks) = fitted(&sample, &options);
            assert!(fit.report.converged && picks.moved < 0.1, "{:?} {picks:?}", fit.report);
            let worst = sample.worst(&fit.model).unwrap();
            let mean = worst.iter().map(|(_, row)| f64::from(row.weight)).sum::<f64>() / 600.0;
            assert!((mean - 1.0).abs() < 1e-6, "{mean}");
            // A naive pick, row by row.
            let mut start = 0;
            let mut found = 0;
            for (row, &end) in sample.ends.iter().enumerate() {
                let own = fit.model.weigh(sample.vectors.slice(s![start..end, ..])).unwrap();
                let least = own.iter().map(|w| w.weight).fold(f32::INFINITY, f32::min);
                assert_eq!(worst[row].0 - start, own.iter().position(|w| w.weight == least).unwrap(), "row {row}");
                found += usize::from(row % 9 == 0 && worst[row].0 - start == (row / 9) % (row % 4 + 1));
                start = end;
            }
            assert!(found >= 64, "{found} of 67");
        }
    }

    #[test]
    fn one_reading_a_row_is_a_plain_fit() {
        let rows = vectors(500, 0..6, 77);
        let sample = RowCandidates::try_new(rows.clone(), (1..=500).collect()).unwrap();
        let (worst, picks) = fitted(&sample, &TransportOptions::default());
        let (safe, harm) = references();
        let plain = fit(rows.view(), &safe, &harm, &TransportOptions::default(), None, &mut |_| {}).unwrap();
        assert_eq!((picks.rounds, picks.candidates, picks.moved), (1, 500, 0.0));
        assert!((worst.model.log_z - plain.model.log_z).abs() < 1e-6);
        assert_eq!(TransportModel { log_z: 0.0, ..worst.model }, TransportModel { log_z: 0.0, ..plain.model });
    }

    #[test]
    fn threads_do_not_matter() {
        let sample = sample();
        let of = |threads: usize| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| fitted(&sample, &TransportOptions::default()))
        };
        assert!(of(1) == of(3));
    }

    #[test]
    fn candidates_that_do_not_fit_are_refused() {
        for ends in [vec![0, 3], vec![2, 2, 3], vec![2], vec![]] {
            assert!(RowCandidates::try_new(Array2::zeros((3, 2)), ends).is_err());
        }
    }
}
