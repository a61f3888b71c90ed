//! In: the scores of rows, which pass by several times, as rows of a table do that is too large for memory. Out: the temperature τ that
//! was asked for, and the log Z by which the mean weight is 1.
//!
//! The same root as [`solve_effective_fraction`](super::solve_effective_fraction) finds in memory: the effective sample size grows with τ,
//! so a bracket of two temperatures holds it. A pass computes the effective sample size at up to 19 temperatures at once, most of
//! them close to where a straight line through the bracket meets the target, one in its middle. The bracket shrinks at least by half a
//! pass, and by a thousand times where the curve is smooth: five or six passes are usual.
//!
//! Memory: one block of scores and a few numbers a temperature. The result depends on the rows and their order alone, not on how they
//! were chunked or on the number of threads.

use super::options::Temperature;
use super::temperature::{SCORE_RESOLUTION, SUM_ROWS};
use rayon::prelude::*;

/// Scores gathered before they are summed, on every core. Fixed, so that sums don't depend on how rows come.
const BLOCK: usize = 64 * SUM_ROWS;
/// Temperatures of the first pass, as factors of e from the guess, to both sides.
const FIRST: [f64; 8] = [0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2];
/// Each side's distances from the estimate in a later pass, as parts of the bracket: `8^-k`.
const NEARER: i32 = 8;
/// As near to the target as the search in memory goes.
const NEAR: f64 = 1e-9;
/// Of `log τ`.
const NARROW: f64 = 1e-12;
/// Passes after which the best temperature so far is taken. Halving a bracket from 1e-7 to 1e9 to [`NARROW`] takes 46.
const MOST_PASSES: usize = 60;

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibrated {
    /// τ, positive and finite.
    pub tau: f64,
    /// log Z: the mean of `exp(−score/τ − log Z)` over all rows is 1.
    pub log_z: f64,
    /// Effective sample size `(Σw)²/(N Σw²)` at τ, in `(0, 1]`.
    pub ess: f64,
    /// Rows that passed.
    pub rows: u64,
    /// Whether the effective sample size that was asked for was met within 1e-6; true for a fixed temperature. See
    /// [`solve_effective_fraction`](super::solve_effective_fraction) for what cannot be met.
    pub met: bool,
}

/// A search for τ and log Z. Asks for passes over all rows until it is done:
///
/// ```
/// use pushpull::transport::{Calibration, Temperature};
///
/// let scores = [0.1, 0.3, 0.2, 0.7];
/// let mut search = Calibration::new(Temperature::Ess(0.8), 0.1);
/// while let Some(mut pass) = search.next_pass() {
///     scores.iter().for_each(|score| pass.see(*score));
///     search.finish_pass(pass);
/// }
/// let found = search.found().unwrap();
/// assert!(found.met && (found.ess - 0.8).abs() < 1e-6);
/// ```
#[derive(Clone, Debug)]
pub struct Calibration {
    temperature: Temperature,
    guess: f64,
    passes: usize,
    /// Rows, lowest and highest score, once they are known.
    range: Option<(u64, f64, f64)>,
    /// What is known so far, by ascending temperature.
    known: Vec<Point>,
    found: Option<Calibrated>,
}

/// The effective sample size at one temperature.
#[derive(Clone, Copy, Debug)]
struct Point {
    log_tau: f64,
    fraction: f64,
    /// `Σ exp((lowest − score)/τ)`.
    sum: f64,
}

impl Calibration {
    /// A search for `temperature` that begins near `guess`, which need not be good: the last τ is.
    pub fn new(temperature: Temperature, guess: f64) -> Self {
        let guess = if guess.is_finite() && guess > 0.0 { guess } else { 1.0 };
        Self { temperature, guess, passes: 0, range: None, known: Vec::new(), found: None }
    }

    /// The pass to make over all rows now; `None` when the search is done.
    pub fn next_pass(&self) -> Option<ScorePass> {
        if self.found.is_some() {
            return None;
        }
        let Some((_, lowest, highest)) = self.range else { return Some(ScorePass::new(0.0, Vec::new())) };
        Some(ScorePass::new(lowest, self.candidates(lowest, highest)))
    }

    /// Passes so far.
    pub fn passes(&self) -> usize {
        self.passes
    }

    /// What was found, once there is no next pass.
    pub fn found(&self) -> Option<Calibrated> {
        self.found
    }

    /// Takes what a pass of [`Calibration::next_pass`] saw of all rows. Every pass must see the same rows in the same order.
    pub fn finish_pass(&mut self, mut pass: ScorePass) {
        pass.flush();
        self.passes += 1;
        let Some((rows, lowest, highest)) = self.range else {
            self.range = Some((pass.rows, pass.lowest, pass.highest));
            if pass.rows == 0 {
                self.found = Some(Calibrated { tau: self.guess, log_z: 0.0, ess: 1.0, rows: 0, met: false });
            }
            return;
        };
        for (log_tau, (one, two)) in pass.log_taus.iter().zip(&pass.sums) {
            self.known.push(Point { log_tau: *log_tau, fraction: one * one / (two * rows as f64), sum: *one });
        }
        self.known.sort_by(|a, b| a.log_tau.total_cmp(&b.log_tau));
        let Temperature::Ess(target) = self.temperature else { return self.take(rows, lowest, |_| true) };
        if is_flat(lowest, highest) {
            return self.take(rows, lowest, |_| false);
        }
        let off = |point: &Point| (point.fraction - target).abs();
        let Some(best) = self.known.iter().copied().min_by(|a, b| off(a).total_cmp(&off(b))) else { return };
        let settled = match self.bracket(target) {
            (Some(low), Some(high)) => high.log_tau - low.log_tau < NARROW,
            // The lowest or the highest temperature that makes sense was tried: there is no other side.
            _ => true,
        };
        if off(&best) < NEAR || settled || self.passes >= MOST_PASSES {
            self.known = vec![best];
            self.take(rows, lowest, |point| off(point) < 1e-6);
        }
    }

    fn take(&mut self, rows: u64, lowest: f64, met: impl Fn(&Point) -> bool) {
        self.found = self.known.first().map(|point| {
            let tau = match self.temperature {
                Temperature::Fixed(tau) => tau,
                Temperature::Ess(_) => point.log_tau.exp(),
            };
            Calibrated { tau, log_z: (point.sum / rows as f64).ln() - lowest / tau, ess: point.fraction, rows, met: met(point) }
        });
    }

    /// The highest temperature below the target and the lowest at or above it.
    fn bracket(&self, target: f64) -> (Option<Point>, Option<Point>) {
        let low = self.known.iter().rposition(|point| point.fraction < target);
        let high = low.map_or(0, |low| low + 1);
        (low.and_then(|low| self.known.get(low)).copied(), self.known.get(high).copied())
    }

    fn candidates(&self, lowest: f64, highest: f64) -> Vec<f64> {
        let target = match self.temperature {
            Temperature::Fixed(tau) => return vec![tau.ln()],
            Temperature::Ess(_) if is_flat(lowest, highest) => return vec![self.guess.ln()],
            Temperature::Ess(target) => target,
        };
        let range = highest - lowest;
        let (floor, ceiling) = ((range * 1e-7).ln(), (range * 1e9).ln());
        let mut tried: Vec<f64> = match self.bracket(target) {
            (Some(low), Some(high)) => {
                let width = high.log_tau - low.log_tau;
                let line = (target - low.fraction) / (high.fraction - low.fraction);
                let estimate = low.log_tau + width * if line.is_finite() { line } else { 0.5 };
                let near = (1..=NEARER).flat_map(|k| [-1.0, 1.0].map(|side| estimate + side * width * 8f64.powi(-k)));
                let inside = |log_tau: &f64| *log_tau > low.log_tau && *log_tau < high.log_tau;
                near.chain([estimate, low.log_tau + 0.5 * width]).filter(inside).collect()
            }
            _ => {
                let start = self.guess.ln().clamp(floor, ceiling);
                let around = FIRST.iter().flat_map(|step| [start - step, start + step]);
                around.chain([start, floor, ceiling]).map(|log_tau| log_tau.clamp(floor, ceiling)).collect()
            }
        };
        tried.sort_by(f64::total_cmp);
        tried.dedup();
        tried
    }
}

/// f32 resolves no more: any temperature gives the same.
fn is_flat(lowest: f64, highest: f64) -> bool {
    highest - lowest <= SCORE_RESOLUTION * (1.0 + lowest.abs())
}

/// One pass over all scores, in order.
#[derive(Clone, Debug)]
pub struct ScorePass {
    /// What exponents are relative to, so that none overflows.
    origin: f64,
    log_taus: Vec<f64>,
    sums: Vec<(f64, f64)>,
    rows: u64,
    lowest: f64,
    highest: f64,
    pending: Vec<f64>,
}

impl ScorePass {
    fn new(origin: f64, log_taus: Vec<f64>) -> Self {
        let sums = vec![(0.0, 0.0); log_taus.len()];
        Self { origin, log_taus, sums, rows: 0, lowest: f64::INFINITY, highest: f64::NEG_INFINITY, pending: Vec::new() }
    }

    /// Takes the next row's score, which must be finite. Sums run on the current rayon pool.
    pub fn see(&mut self, score: f64) {
        self.pending.push(score);
        if self.pending.len() == BLOCK {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let (origin, inverse): (f64, Vec<f64>) = (self.origin, self.log_taus.iter().map(|log_tau| (-log_tau).exp()).collect());
        let parts: Vec<Part> = self.pending.par_chunks(SUM_ROWS).map(|scores| Part::of(scores, origin, &inverse)).collect();
        for part in parts {
            self.lowest = self.lowest.min(part.lowest);
            self.highest = self.highest.max(part.highest);
            for (sum, (one, two)) in self.sums.iter_mut().zip(part.sums) {
                *sum = (sum.0 + one, sum.1 + two);
            }
        }
        self.rows += self.pending.len() as u64;
        self.pending.clear();
    }
}

/// What [`SUM_ROWS`] rows say.
struct Part {
    lowest: f64,
    highest: f64,
    sums: Vec<(f64, f64)>,
}

impl Part {
    fn of(scores: &[f64], origin: f64, inverse: &[f64]) -> Self {
        let mut part = Self { lowest: f64::INFINITY, highest: f64::NEG_INFINITY, sums: Vec::with_capacity(inverse.len()) };
        for score in scores {
            part.lowest = part.lowest.min(*score);
            part.highest = part.highest.max(*score);
        }
        part.sums.extend(inverse.iter().map(|inverse| {
            scores.iter().fold((0.0, 0.0), |(one, two), score| {
                let w = ((origin - score) * inverse).exp();
                (one + w, two + w * w)
            })
        }));
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;
    use crate::transport::temperature::{effective_fraction, solve_effective_fraction};
    use proptest::prelude::*;

    fn calibrate(scores: &[f64], temperature: Temperature, guess: f64) -> (Calibrated, usize) {
        let mut search = Calibration::new(temperature, guess);
        while let Some(mut pass) = search.next_pass() {
            assert!(pass.log_taus.len() <= 19);
            scores.iter().for_each(|score| pass.see(*score));
            search.finish_pass(pass);
        }
        (search.found().unwrap(), search.passes())
    }

    fn mean_weight(scores: &[f64], found: &Calibrated) -> f64 {
        scores.iter().map(|score| (-score / found.tau - found.log_z).exp()).sum::<f64>() / scores.len() as f64
    }

    proptest! {
        #[test]
        fn passes_find_what_the_search_in_memory_finds(
            rows in 3usize..3000, seed in 0u64..1000, spread in -2.0f64..1.0, shift in -3.0f64..3.0,
            target in 0.05f64..0.98, guess in -6.0f64..4.0,
        ) {
            let scores: Vec<f64> = naive::potential(rows, 10f64.powf(spread), seed).iter().map(|s| s + shift).collect();
            let guess = 10f64.powf(guess);
            let expected = solve_effective_fraction(&scores, target, guess);
            let (found, passes) = calibrate(&scores, Temperature::Ess(target), guess);
            prop_assert_eq!(found.met, expected.met, "{:?} {:?}", found, expected);
            if expected.met {
                prop_assert!((found.tau / expected.tau - 1.0).abs() < 1e-6, "{:?} {:?}", found, expected);
                prop_assert!((effective_fraction(&scores, found.tau) - target).abs() < 2e-9);
            }
            prop_assert!((mean_weight(&scores, &found) - 1.0).abs() < 1e-9);
            prop_assert!(passes <= 12, "{} passes", passes);
        }
    }

    #[test]
    fn a_good_guess_takes_few_passes() {
        let scores = naive::potential(200_000, 0.3, 5);
        let (found, _) = calibrate(&scores, Temperature::Ess(0.5), 1.0);
        for guess in [1.0, 1.3 * found.tau, 0.5 * found.tau] {
            let (again, passes) = calibrate(&scores, Temperature::Ess(0.5), guess);
            assert!(passes <= 7 && (again.tau / found.tau - 1.0).abs() < 1e-8, "{passes} {again:?} {found:?}");
        }
    }

    #[test]
    fn a_fixed_temperature_takes_two_passes() {
        let scores = naive::potential(5000, 2.0, 3);
        let (found, passes) = calibrate(&scores, Temperature::Fixed(0.25), 9.0);
        assert_eq!((found.tau, found.met, found.rows, passes), (0.25, true, 5000, 2));
        assert!((found.ess - effective_fraction(&scores, 0.25)).abs() < 1e-12);
        assert!((mean_weight(&scores, &found) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn unreachable_targets_are_said_and_nothing_overflows() {
        let flat = calibrate(&[0.3; 50], Temperature::Ess(0.5), 0.1).0;
        assert_eq!((flat.tau, flat.met, flat.ess), (0.1f64.ln().exp(), false, 1.0));
        let mut scores = vec![0.0; 80];
        scores.extend([1.0; 20]);
        let found = calibrate(&scores, Temperature::Ess(0.5), 0.1).0;
        assert!(!found.met && found.tau > 0.0 && found.log_z.is_finite() && (mean_weight(&scores, &found) - 1.0).abs() < 1e-9, "{found:?}");
        let none = calibrate(&[], Temperature::Ess(0.5), 0.1).0;
        assert_eq!((none.rows, none.met), (0, false));
        let far = calibrate(&[-1e6, 1e6, 5.0], Temperature::Ess(0.6), 1e-3).0;
        assert!(far.met && far.log_z.is_finite(), "{far:?}");
    }

    #[test]
    fn the_bits_do_not_depend_on_threads() {
        let scores = naive::potential(300_000, 0.3, 8);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| calibrate(&scores, Temperature::Ess(0.4), 0.2))
        };
        assert_eq!(with(1), with(3));
    }
}
