//! In: rankings of the same rows. Out: every metric on many resamples, and percentile intervals.
//!
//! The percentile bootstrap (Efron and Tibshirani 1993, chapter 13), stratified by class because the classes' sizes are what the corpus has
//! and not what is estimated. Every ranking is measured on the same resamples, so that a difference of two rankings is estimated
//! far more exactly than either: rows that are hard are hard for both.

use rayon::prelude::*;
use serde::Serialize;

use super::classes::{Classes, Resample};
use super::metrics::Ranking;

/// Resamples by default. The ends of a 95 % interval are then the 25th and the 975th of a thousand, within about a tenth of the
/// interval's half width of where more resamples would put them.
pub const DEFAULT_RESAMPLES: usize = 1000;

/// The share of resamples that an interval holds.
pub const LEVEL: f64 = 0.95;

/// How intervals are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootstrapOptions {
    /// Resamples, at least 1. Default [`DEFAULT_RESAMPLES`].
    pub resamples: usize,
    /// Decides the resamples. Default 0.
    pub seed: u64,
}

impl Default for BootstrapOptions {
    fn default() -> Self {
        Self { resamples: DEFAULT_RESAMPLES, seed: 0 }
    }
}

/// What [`LEVEL`] of the resamples lies between.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Quantile `(1 − level)/2`.
    pub low: f64,
    /// Quantile `(1 + level)/2`.
    pub high: f64,
}

impl Interval {
    /// The percentile interval of these values, quantiles between two values interpolated linearly as NumPy does. Both ends are 0 where there
    /// is no value.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let quantile = |q: f64| {
            let place = q * values.len().saturating_sub(1) as f64;
            let below = values.get(place.floor() as usize).copied().unwrap_or(0.0);
            let above = values.get(place.ceil() as usize).copied().unwrap_or(0.0);
            below + (above - below) * place.fract()
        };
        Self { low: quantile(0.5 * (1.0 - LEVEL)), high: quantile(0.5 * (1.0 + LEVEL)) }
    }
}

/// Measures every ranking on the same resamples: `[ranking][metric][resample]`, metrics in the order of
/// [`Metric::all`](super::Metric::all). Runs on rayon's current pool; the result is the same for any number of threads. Time: that of
/// `resamples × rankings` passes over the rows.
pub fn replicates(rankings: &[Ranking], classes: &Classes, options: BootstrapOptions) -> Vec<Vec<Vec<f64>>> {
    let measured: Vec<Vec<Vec<f64>>> = (0..options.resamples as u64)
        .into_par_iter()
        .map(|index| {
            let resample = Resample::draw(classes, options.seed, index);
            rankings.iter().map(|ranking| ranking.measure(classes, &resample)).collect()
        })
        .collect();
    let metrics = measured.first().and_then(|rankings: &Vec<Vec<f64>>| rankings.first()).map_or(0, Vec::len);
    (0..rankings.len())
        .map(|ranking| (0..metrics).map(|metric| measured.iter().map(|resample| resample[ranking][metric]).collect()).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn quantiles_are_numpys() {
        // numpy.quantile(numpy.arange(1, 12) ** 2, [.025, .975])
        let interval = Interval::of((1..12).rev().map(|i| f64::from(i * i)).collect());
        assert!((interval.low - 1.75).abs() < 1e-12 && (interval.high - 115.75).abs() < 1e-12, "{interval:?}");
        assert_eq!(Interval::of(vec![3.0]), Interval { low: 3.0, high: 3.0 });
    }

    /// A standard normal number, by Box and Muller.
    fn normal(random: &mut ChaCha8Rng) -> f64 {
        let (a, b): (f64, f64) = (random.random(), random.random());
        (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    #[test]
    fn an_interval_covers_the_true_auc_as_often_as_it_says() {
        // Two unit normals a distance of 1 apart: AUC = Φ(1/√2) = 0.760250.
        let classes = Classes::try_new((0..180).map(|row| u8::from(row >= 60)).collect()).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let (mut covered, sets) = (0, 300);
        for set in 0..sets {
            let scores: Vec<f64> = classes.of().iter().map(|c| normal(&mut random) + f64::from(u8::from(*c == 0))).collect();
            let ranking = Ranking::try_new(&scores, &vec![1.0; 180], &classes).unwrap();
            let options = BootstrapOptions { resamples: 200, seed: set };
            let interval = Interval::of(replicates(&[ranking], &classes, options)[0][0].clone());
            covered += usize::from(interval.low <= 0.760_250 && 0.760_250 <= interval.high);
        }
        // 95 % of 300 is 285, its standard deviation 3.8; the percentile interval is a little too short for so few rows.
        assert!((270..=296).contains(&covered), "{covered} of {sets}");
    }

    #[test]
    fn threads_do_not_change_a_bit_and_resamples_are_shared() {
        let classes = Classes::try_new((0..500).map(|row| (row % 3) as u8).collect()).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(6);
        let scores: Vec<f64> = (0..500).map(|_| normal(&mut random)).collect();
        let same: Vec<f64> = scores.iter().map(|s| 3.0 * s + 1.0).collect();
        let ranked = |scores: &[f64]| Ranking::try_new(scores, &vec![1.0; 500], &classes).unwrap();
        let rankings = [ranked(&scores), ranked(&same)];
        let options = BootstrapOptions { resamples: 64, seed: 1 };
        let measure = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| replicates(&rankings, &classes, options))
        };
        let one = measure(1);
        assert_eq!(one, measure(3));
        assert_eq!(one[0], one[1], "the same order has the same metrics on every resample");
        assert!(one[0][0].windows(2).any(|pair| pair[0] != pair[1]));
    }
}
