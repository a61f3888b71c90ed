//! In: unit rows. Out: tiles of their cosine similarity to a reference set, from which the cost is `c(x, y) = 1 − ⟨x, y⟩`.
//!
//! Guarantee: the bits of a row's similarities depend on that row and the references alone. Rows are padded to tiles of one
//! fixed height, each tile is one single-threaded matrix product of one fixed shape, and references are padded to a multiple
//! of [`LANES`], so no special path for thin matrices is ever taken. The cost isn't clamped at 0: rounding makes it −1e-7 at
//! worst, and clamping would bias the mean.

use gemm::Parallelism;
use ndarray::ArrayView2;

use super::references::ReferenceSet;
use crate::error::{Error, Result};

/// Rows of one tile. Lower wastes time packing references for each tile, higher wastes it padding small chunks.
pub const TILE_ROWS: usize = 128;

/// References are padded to a multiple of this many, so inner loops have no remainder.
pub(super) const LANES: usize = 16;

/// How far a row's norm may be from 1. Wide enough for vectors stored as half floats, narrow enough to catch raw ones.
pub const UNIT_TOLERANCE: f64 = 1e-2;

/// The first row that isn't finite, or neither a unit nor a zero vector, said in words.
pub(super) fn row_fault(rows: ArrayView2<'_, f32>) -> Option<String> {
    rows.outer_iter().enumerate().find_map(|(index, row)| {
        let norm = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            Some(format!("row {index} holds a value that is not finite"))
        } else if norm > 0.0 && (norm - 1.0).abs() > UNIT_TOLERANCE {
            Some(format!("row {index} has norm {norm:.4}; rows must be unit vectors (or zero), normalise them first"))
        } else {
            None
        }
    })
}

/// Rejects rows that aren't finite unit (or zero) vectors of `dims` dimensions.
pub(super) fn check_rows(rows: ArrayView2<'_, f32>, dims: usize) -> Result<()> {
    let fault = |reason| Error::InvalidOption { name: "rows".into(), reason };
    if rows.ncols() != dims {
        return Err(fault(format!("rows have {} dimensions but the references have {dims}; use one embedding for both", rows.ncols())));
    }
    row_fault(rows).map_or(Ok(()), |reason| Err(fault(reason)))
}

/// Mean ground cost between sample and references: over all rows of the sample, references weighted by their masses, then the
/// plain mean of the two sets. Closed form from the mean vectors, `1 − ½⟨x̄, ȳ_safe + ȳ_harm⟩`, so it costs one pass.
pub(super) fn mean_cost(rows: ArrayView2<'_, f32>, safe: &ReferenceSet, harm: &ReferenceSet) -> f64 {
    let mut row_mean = vec![0.0f64; rows.ncols()];
    for row in rows.outer_iter() {
        row_mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v));
    }
    let similarity = |set: &ReferenceSet| {
        let mut centre = vec![0.0f64; set.dims()];
        for (vector, mass) in set.vectors().outer_iter().zip(set.masses()) {
            centre.iter_mut().zip(vector).for_each(|(m, v)| *m += mass * f64::from(*v));
        }
        centre.iter().zip(&row_mean).map(|(a, b)| a * b).sum::<f64>()
    };
    1.0 - 0.5 * (similarity(safe) + similarity(harm)) / rows.nrows().max(1) as f64
}

/// A reference set laid out for tiles: rows padded with zero vectors to a multiple of [`LANES`].
#[derive(Debug)]
pub(super) struct PackedReferences {
    vectors: Vec<f32>,
    padded: usize,
    dims: usize,
}

impl PackedReferences {
    pub(super) fn new(set: &ReferenceSet) -> Self {
        let mut vectors = Vec::with_capacity(padded_len(set.len()) * set.dims());
        set.vectors().outer_iter().for_each(|row| vectors.extend(row.iter().copied()));
        Self::from_rows(vectors, set.dims())
    }

    /// Rows of any vectors, row-major.
    pub(super) fn from_rows(mut vectors: Vec<f32>, dims: usize) -> Self {
        let padded = padded_len(vectors.len().checked_div(dims).unwrap_or(0));
        vectors.resize(padded * dims, 0.0);
        Self { vectors, padded, dims }
    }

    /// Length of one row of a tile.
    pub(super) fn padded(&self) -> usize {
        self.padded
    }

    /// Similarities of a tile of [`TILE_ROWS`] rows: `out[row × padded + reference]`. Columns past the last reference are 0.
    ///
    /// # Errors
    /// [`Error::Internal`] where a buffer hasn't the tile's size.
    pub(super) fn similarities(&self, rows: &[f32], out: &mut [f32]) -> Result<()> {
        if rows.len() != TILE_ROWS * self.dims || out.len() != TILE_ROWS * self.padded || self.vectors.len() != self.padded * self.dims {
            return Err(Error::Internal(format!(
                "similarity tile of {} values from {} row values, {} references of {} dimensions",
                out.len(),
                rows.len(),
                self.padded,
                self.dims
            )));
        }
        // A Vec never holds more than isize::MAX bytes, so these sizes fit; saturating keeps the conversion total.
        let dims = isize::try_from(self.dims).unwrap_or(isize::MAX);
        let padded = isize::try_from(self.padded).unwrap_or(isize::MAX);
        // SAFETY: the lengths checked above are exactly those the shape (padded × dims) · (dims × TILE_ROWS) and the strides
        // reach, and `out` is a unique borrow that overlaps neither input.
        unsafe {
            gemm::gemm(
                self.padded,
                TILE_ROWS,
                self.dims,
                out.as_mut_ptr(),
                padded,
                1,
                false,
                self.vectors.as_ptr(),
                1,
                dims,
                rows.as_ptr(),
                dims,
                1,
                0.0f32,
                1.0f32,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
        Ok(())
    }
}

/// `len` rounded up to a multiple of [`LANES`].
pub(super) fn padded_len(len: usize) -> usize {
    len.next_multiple_of(LANES)
}

/// Copies the rows at `indices` (at most [`TILE_ROWS`]) into a tile and zeroes the rest.
pub(super) fn fill_tile(rows: ArrayView2<'_, f32>, indices: impl Iterator<Item = usize>, tile: &mut [f32]) {
    let dims = rows.ncols();
    let mut filled = 0;
    for (index, slot) in indices.zip(tile.chunks_exact_mut(dims)) {
        let row = rows.row(index);
        match row.as_slice() {
            Some(values) => slot.copy_from_slice(values),
            None => slot.iter_mut().zip(row).for_each(|(s, v)| *s = *v),
        }
        filled += dims;
    }
    tile[filled..].fill(0.0);
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;
    use crate::transport::naive;

    #[test]
    fn tile_matches_plain_dot_products() {
        let set = ReferenceSet::uniform(naive::unit_rows(37, 19, 1)).unwrap();
        let rows = naive::unit_rows(5, 19, 2);
        let packed = PackedReferences::new(&set);
        let mut tile = vec![9.0; TILE_ROWS * 19];
        fill_tile(rows.view(), 0..5, &mut tile);
        let mut out = vec![f32::NAN; TILE_ROWS * packed.padded()];
        packed.similarities(&tile, &mut out).unwrap();
        for (i, row) in rows.outer_iter().enumerate() {
            for (j, reference) in set.vectors().outer_iter().enumerate() {
                let expected: f64 = row.iter().zip(reference).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!((f64::from(out[i * packed.padded() + j]) - expected).abs() < 1e-6);
            }
        }
        assert!(out[5 * packed.padded()..].iter().all(|v| *v == 0.0));
    }

    #[test]
    fn a_row_has_the_same_bits_at_every_place_of_a_tile() {
        for (references, dims) in [(1, 1), (1, 7), (3, 2), (16, 64), (61, 33), (300, 513)] {
            let set = ReferenceSet::uniform(naive::unit_rows(references, dims, 3)).unwrap();
            let packed = PackedReferences::new(&set);
            let row = naive::unit_rows(1, dims, 4);
            let same = Array2::from_shape_fn((TILE_ROWS, dims), |(_, k)| row[[0, k]]);
            let mut tile = vec![0.0; TILE_ROWS * dims];
            fill_tile(same.view(), 0..TILE_ROWS, &mut tile);
            let mut out = vec![0.0; TILE_ROWS * packed.padded()];
            packed.similarities(&tile, &mut out).unwrap();
            let first: Vec<u32> = out[..packed.padded()].iter().map(|v| v.to_bits()).collect();
            assert!(out.chunks_exact(packed.padded()).all(|r| r.iter().map(|v| v.to_bits()).eq(first.iter().copied())));
        }
    }

    #[test]
    fn mean_cost_is_the_mean_over_pairs() {
        let rows = array![[1.0, 0.0], [0.0, 1.0]];
        let safe = ReferenceSet::try_new(array![[1.0, 0.0], [0.0, 1.0]], vec![3.0, 1.0]).unwrap();
        let harm = ReferenceSet::uniform(array![[0.0, 0.0]]).unwrap();
        assert!((mean_cost(rows.view(), &safe, &harm) - 0.5 * (0.5 + 1.0)).abs() < 1e-12);
    }
}
