//! In: a class for every row. Out: [`Classes`], and stratified [`Resample`]s of the rows.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// Negative classes at most: as many columns as a person can read.
pub const MAX_NEGATIVES: usize = 8;

/// The class of every row: 0 is the positive one, 1 and up are negative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    of: Vec<u8>,
    rows: Vec<Vec<u32>>,
}

impl Classes {
    /// Takes each row's class.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where there is no negative class or more than [`MAX_NEGATIVES`], a class below the highest one has no row, or
    /// there are more than `u32::MAX` rows.
    pub fn try_new(of: Vec<u8>) -> Result<Self> {
        let fault = |reason: String| Error::InvalidOption { name: "classes".into(), reason };
        let highest = of.iter().copied().max().unwrap_or(0) as usize;
        if !(1..=MAX_NEGATIVES).contains(&highest) {
            return Err(fault(format!("one positive and 1 to {MAX_NEGATIVES} negative classes are needed, found {highest} negative")));
        }
        if u32::try_from(of.len()).is_err() {
            return Err(fault(format!("{} rows are too many; score a sample", of.len())));
        }
        let mut rows = vec![Vec::new(); highest + 1];
        for (row, class) in (0u32..).zip(&of) {
            rows[*class as usize].push(row);
        }
        match rows.iter().position(Vec::is_empty) {
            Some(empty) => Err(fault(format!("class {empty} has no row"))),
            None => Ok(Self { of, rows }),
        }
    }

    /// Number of rows.
    #[expect(clippy::len_without_is_empty, reason = "every class has a row")]
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// The class of each row.
    pub fn of(&self) -> &[u8] {
        &self.of
    }

    /// Rows of a class; 0 where there is no such class.
    pub fn size(&self, class: usize) -> usize {
        self.rows.get(class).map_or(0, Vec::len)
    }

    /// Number of negative classes, in `1..=MAX_NEGATIVES`.
    pub fn negatives(&self) -> usize {
        self.rows.len() - 1
    }
}

/// How often each row counts. Every class has as many rows as in the original, so a metric's denominators never vanish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resample {
    counts: Vec<u32>,
}

impl Resample {
    /// The rows themselves, each once.
    pub fn original(classes: &Classes) -> Self {
        Self { counts: vec![1; classes.len()] }
    }

    /// Draw number `index` of a seed: from each class as many rows as it has, with replacement.
    pub fn draw(classes: &Classes, seed: u64, index: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(index);
        let mut counts = vec![0; classes.len()];
        for rows in &classes.rows {
            for _ in 0..rows.len() {
                // The position is drawn as u32, so that 32-bit and 64-bit machines draw the same.
                let place = random.random_range(0..rows.len() as u32);
                counts[rows[place as usize] as usize] += 1;
            }
        }
        Self { counts }
    }

    #[cfg(test)]
    pub(super) fn of_counts(counts: Vec<u32>) -> Self {
        Self { counts }
    }

    /// How often each row counts.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_keeps_its_size_and_draws_differ() {
        let classes = Classes::try_new((0..1000).map(|i| if i % 10 == 0 { 0 } else { 1 + (i % 3) as u8 }).collect()).unwrap();
        let draws: Vec<Resample> = (0..20).map(|index| Resample::draw(&classes, 7, index)).collect();
        for draw in &draws {
            for class in 0..=classes.negatives() {
                let size: u32 = draw.counts().iter().zip(classes.of()).filter(|(_, c)| **c as usize == class).map(|(n, _)| n).sum();
                assert_eq!(size as usize, classes.size(class));
            }
        }
        assert_eq!(draws[3], Resample::draw(&classes, 7, 3));
        assert!(draws[0] != draws[1] && draws[0] != Resample::draw(&classes, 8, 0));
        // A row is left out of a resample with probability (1 − 1/n)^n, about e⁻¹.
        let left_out = draws.iter().flat_map(Resample::counts).filter(|n| **n == 0).count() as f64 / 20_000.0;
        assert!((left_out - (-1.0f64).exp()).abs() < 0.02, "{left_out}");
    }

    #[test]
    fn classes_that_cannot_be_compared_are_refused() {
        let reason = |of: Vec<u8>| Classes::try_new(of).unwrap_err().to_string();
        assert!(reason(vec![]).contains("found 0 negative"));
        assert!(reason(vec![0, 0]).contains("found 0 negative"));
        assert!(reason(vec![1, 2]).contains("class 0 has no row"));
        assert!(reason(vec![0, 2]).contains("class 1 has no row"));
        assert!(reason((0..10).collect()).contains("found 9 negative"));
    }
}
