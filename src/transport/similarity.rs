//! In: unit rows and a reference set. Out: whatever the caller makes of each row's similarities, for scores that need no model.

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::cost::{PackedReferences, TILE_ROWS, check_rows, fill_tile};
use super::references::ReferenceSet;
use crate::error::Result;

/// Calls `of_row` with each row's cosine similarities to every reference (in their order, so `1 − value` is the cost) and gives
/// what it makes of them, in the order of the rows.
///
/// Runs on rayon's current pool. A row's similarities have the same bits as in a fit or in weighing. Memory: a copy of the references,
/// and `128 × (dims + references) × 4` bytes a thread.
///
/// # Errors
/// [`Error::InvalidOption`](crate::error::Error::InvalidOption) where the dimensions differ or a row (named by its index) isn't a finite unit or zero vector.
pub fn map_similarities<T: Send>(
    rows: ArrayView2<'_, f32>,
    references: &ReferenceSet,
    of_row: impl Fn(&[f32]) -> T + Sync,
) -> Result<Vec<T>> {
    let dims = references.dims();
    check_rows(rows, dims)?;
    let packed = PackedReferences::new(references);
    let tiles: Vec<Vec<T>> = (0..rows.nrows().div_ceil(TILE_ROWS))
        .into_par_iter()
        .map_init(
            || (vec![0.0; TILE_ROWS * dims], vec![0.0; TILE_ROWS * packed.padded()]),
            |(tile, similarities), index| {
                let span = index * TILE_ROWS..((index + 1) * TILE_ROWS).min(rows.nrows());
                fill_tile(rows, span.clone(), tile);
                packed.similarities(tile, similarities)?;
                Ok(similarities.chunks_exact(packed.padded()).take(span.len()).map(|row| of_row(&row[..references.len()])).collect())
            },
        )
        .collect::<Result<_>>()?;
    Ok(tiles.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;

    #[test]
    fn every_row_sees_every_reference_and_no_padding() {
        let set = ReferenceSet::uniform(naive::unit_rows(37, 9, 1)).unwrap();
        let rows = naive::unit_rows(300, 9, 2);
        let seen = map_similarities(rows.view(), &set, <[f32]>::to_vec).unwrap();
        assert_eq!(seen.len(), 300);
        for (row, seen) in rows.outer_iter().zip(&seen) {
            assert_eq!(seen.len(), 37);
            for (reference, similarity) in set.vectors().outer_iter().zip(seen) {
                assert!((row.dot(&reference) - similarity).abs() < 1e-5);
            }
        }
        assert!(map_similarities(naive::unit_rows(1, 8, 3).view(), &set, |_| ()).is_err());
    }
}
