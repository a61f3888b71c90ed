//! In: unit vectors with a mass each. Out: a [`ReferenceSet`] that every later formula may trust: finite, unit (or zero) rows,
//! positive masses that sum to one.

use ndarray::{Array2, ArrayView2};

use super::cost::row_fault;
use crate::error::{Error, Result};

/// A discrete reference measure: vectors `y_j` with masses `q_j`, the fixed side of both transport problems.
///
/// Rows are unit vectors or zero vectors (a zero vector is at cost 1 from everything). Masses are positive and sum to one.
/// Memory: `len × dims × 4` bytes plus 8 bytes a mass.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceSet {
    vectors: Array2<f32>,
    masses: Vec<f64>,
}

impl ReferenceSet {
    /// References with a mass each; the masses are divided by their sum.
    ///
    /// # Errors
    /// [`Error::References`] names the row where the set is empty, a vector is not finite or neither unit nor zero (within
    /// [`UNIT_TOLERANCE`](super::UNIT_TOLERANCE)), a mass is not finite and positive, or the two lengths differ.
    pub fn try_new(vectors: Array2<f32>, masses: Vec<f64>) -> Result<Self> {
        let fault = |reason: String| Error::References { location: "in memory".into(), reason };
        if vectors.nrows() == 0 || vectors.ncols() == 0 {
            return Err(fault(format!("at least one vector of at least one dimension is needed, found {:?}", vectors.dim())));
        }
        if vectors.nrows() != masses.len() {
            return Err(fault(format!("{} vectors but {} masses; give one mass a vector", vectors.nrows(), masses.len())));
        }
        if let Some(reason) = row_fault(vectors.view()) {
            return Err(fault(reason));
        }
        if let Some((row, mass)) = masses.iter().enumerate().find(|(_, m)| !(m.is_finite() && **m > 0.0)) {
            return Err(fault(format!("row {row} has mass {mass}; masses must be finite and positive, drop the row instead")));
        }
        let largest = masses.iter().copied().fold(0.0, f64::max);
        // Dividing by the largest first keeps the sum finite for any finite masses.
        let total: f64 = masses.iter().map(|m| m / largest).sum();
        let masses: Vec<f64> = masses.iter().map(|m| m / largest / total).collect();
        if let Some((row, _)) = masses.iter().enumerate().find(|(_, m)| **m < f64::MIN_POSITIVE) {
            return Err(fault(format!("row {row} has a mass too small beside the largest, {largest}; drop the row instead")));
        }
        let vectors = if vectors.is_standard_layout() { vectors } else { vectors.as_standard_layout().into_owned() };
        Ok(Self { vectors, masses })
    }

    /// References of equal mass, `1 / len`.
    ///
    /// # Errors
    /// As [`ReferenceSet::try_new`].
    pub fn uniform(vectors: Array2<f32>) -> Result<Self> {
        let masses = vec![1.0; vectors.nrows()];
        Self::try_new(vectors, masses)
    }

    /// Number of references, at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a reference set is never empty")]
    pub fn len(&self) -> usize {
        self.masses.len()
    }

    /// Dimensions of a vector, at least 1.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.vectors.ncols()
    }

    /// The vectors, one a row, in the order given.
    #[must_use]
    pub fn vectors(&self) -> ArrayView2<'_, f32> {
        self.vectors.view()
    }

    /// The vectors as slices.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        let values = self.vectors.as_slice().unwrap_or_default();
        values.chunks_exact(self.dims())
    }

    /// The masses `q_j`, positive, sum 1.
    #[must_use]
    pub fn masses(&self) -> &[f64] {
        &self.masses
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn masses_are_normalised() {
        let set = ReferenceSet::try_new(array![[1.0, 0.0], [0.0, 1.0]], vec![3.0, 1.0]).unwrap();
        assert_eq!(set.masses(), &[0.75, 0.25]);
        let huge = ReferenceSet::try_new(array![[1.0], [1.0]], vec![f64::MAX, f64::MAX]).unwrap();
        assert_eq!(huge.masses(), &[0.5, 0.5]);
    }

    #[test]
    fn bad_sets_name_the_row() {
        let reason = |vectors: Array2<f32>, masses: Vec<f64>| ReferenceSet::try_new(vectors, masses).unwrap_err().to_string();
        assert!(reason(Array2::zeros((0, 3)), vec![]).contains("at least one vector"));
        assert!(reason(array![[1.0, 0.0], [f32::NAN, 0.0]], vec![1.0, 1.0]).contains("row 1"));
        assert!(reason(array![[1.0, 0.0], [2.0, 0.0]], vec![1.0, 1.0]).contains("row 1"));
        assert!(reason(array![[1.0, 0.0]], vec![1.0, 1.0]).contains("1 vectors but 2 masses"));
        assert!(reason(array![[1.0, 0.0], [0.0, 0.0]], vec![1.0, 0.0]).contains("row 1 has mass 0"));
    }

    #[test]
    fn zero_vectors_are_fine() {
        assert_eq!(ReferenceSet::uniform(array![[0.0, 0.0]]).unwrap().len(), 1);
    }
}
