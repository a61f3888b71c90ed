//! In: reference sets. Out: each reference's nearest other one, by the ground cost: what says that two references are copies of one
//! another. Quadratic in the references, one tile of similarities a thread.

use rayon::prelude::*;

use super::cost::{PackedReferences, TILE_ROWS, fill_tile};
use super::references::ReferenceSet;
use crate::error::{Error, Result};

/// The nearest of some references.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Its index in its set.
    pub index: usize,
    /// The cost to it, `1 − cos`, in `[0, 2]` up to rounding.
    pub cost: f64,
}

/// For each reference the nearest of those before it in the same set, ties to the lowest index; `None` for the first. Following it
/// from copy to copy always ends at the first of them.
///
/// # Errors
/// [`Error::Internal`] only.
pub fn nearest_earlier(set: &ReferenceSet) -> Result<Vec<Option<Neighbour>>> {
    nearest(set, set, |row| row)
}

/// For each reference of `set` the nearest of `others`, ties to the lowest index.
///
/// # Errors
/// [`Error::References`] where the dimensions differ.
pub fn nearest_in(set: &ReferenceSet, others: &ReferenceSet) -> Result<Vec<Neighbour>> {
    if set.dims() != others.dims() {
        let reason = format!("{} and {} dimensions; embed both alike", set.dims(), others.dims());
        return Err(Error::References { location: "in memory".into(), reason });
    }
    // A reference set is never empty, so each has one.
    Ok(nearest(set, others, |_| others.len())?.into_iter().flatten().collect())
}

/// The nearest among the first `among(row)` references of `others`.
fn nearest(set: &ReferenceSet, others: &ReferenceSet, among: impl Fn(usize) -> usize + Sync) -> Result<Vec<Option<Neighbour>>> {
    let packed = PackedReferences::new(others);
    let width = packed.padded();
    let tiles: Vec<Vec<Option<Neighbour>>> = (0..set.len().div_ceil(TILE_ROWS))
        .into_par_iter()
        .map_init(
            || (vec![0.0; TILE_ROWS * set.dims()], vec![0.0; TILE_ROWS * width]),
            |(rows, similarities), tile| {
                let span = tile * TILE_ROWS..((tile + 1) * TILE_ROWS).min(set.len());
                fill_tile(set.vectors(), span.clone(), rows);
                packed.similarities(rows, similarities)?;
                let lines = span.zip(similarities.chunks_exact(width));
                Ok(lines.map(|(row, line)| highest(&line[..among(row)])).collect())
            },
        )
        .collect::<Result<_>>()?;
    Ok(tiles.into_iter().flatten().collect())
}

fn highest(similarities: &[f32]) -> Option<Neighbour> {
    let mut best: Option<(usize, f32)> = None;
    for (index, similarity) in similarities.iter().copied().enumerate() {
        if best.is_none_or(|(_, highest)| similarity > highest) {
            best = Some((index, similarity));
        }
    }
    best.map(|(index, similarity)| Neighbour { index, cost: 1.0 - f64::from(similarity) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;
    use ndarray::{Axis, concatenate, s};

    #[test]
    fn same_as_naive() {
        let set = ReferenceSet::uniform(naive::unit_rows(150, 9, 1)).unwrap();
        let others = ReferenceSet::uniform(naive::unit_rows(140, 9, 2)).unwrap();
        let best = |costs: &[f64]| costs.iter().copied().enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        for (found, costs) in nearest_in(&set, &others).unwrap().iter().zip(naive::cost(set.vectors(), &others)) {
            let (index, cost) = best(&costs).unwrap();
            assert!(found.index == index && (found.cost - cost).abs() < 1e-6);
        }
        for (row, (found, costs)) in nearest_earlier(&set).unwrap().iter().zip(naive::cost(set.vectors(), &set)).enumerate() {
            let wanted = best(&costs[..row]);
            assert_eq!(found.map(|n| n.index), wanted.map(|w| w.0));
            assert!(found.is_none_or(|n| (n.cost - wanted.unwrap().1).abs() < 1e-6));
        }
    }

    #[test]
    fn every_copy_names_the_first() {
        let rows = naive::unit_rows(40, 7, 3);
        let copies = concatenate(Axis(0), &[rows.view(), rows.slice(s![5..6, ..]), rows.slice(s![5..6, ..])]).unwrap();
        let found = nearest_earlier(&ReferenceSet::uniform(copies).unwrap()).unwrap();
        for copy in [40, 41] {
            assert!(found[copy].is_some_and(|n| n.index == 5 && n.cost.abs() < 1e-6), "{:?}", found[copy]);
        }
        assert_eq!(found[0], None);
    }

    #[test]
    fn other_dimensions_are_refused() {
        let set = |dims| ReferenceSet::uniform(naive::unit_rows(3, dims, 1)).unwrap();
        assert!(nearest_in(&set(4), &set(5)).is_err());
    }
}
