//! In: the tiles of a sample and both reference sets. Out: how much of each reference's mass the rows would serve as they are,
//! [`Coverage`].
//!
//! ```text
//! coverage_j = p_j / q_j        p_j = (1/N) Σ_i softmax_j(−c(x_i, y_j)/ε + log q_j)        ε = 0.05 × mean cost
//! ```
//!
//! That is the marginal of the soft c-transform (see `potential`) at potentials 0 and even weights: the plan with the reference
//! side left free. 1 says that the rows near a reference are as many as its mass asks for. Near 0 no row would choose it: exact
//! marginals then force its mass on rows that are near other references, and the solution there is not to be trusted. A cost
//! to the nearest row alone says less: a reference far from everything may still be the nearest of its kind to many rows.
//!
//! The smoothing is fixed to the data's own scale and is not the fit's ε, so the figures of two jobs compare. Memory: the
//! sample's tiles, one f64 a reference.

use super::options::{MAX_EPSILON, MIN_EPSILON};
use super::potential::SoftTransform;
use super::references::ReferenceSet;
use super::sample::{SampleTiles, Weighting};
use crate::error::Result;

/// Smoothing of the coverage, in units of the mean cost between sample and references.
const SMOOTHING_PER_COST: f64 = 0.05;

/// How much of each reference's mass the sample's rows would serve if nothing made them: `p_j / q_j`, at least 0, 1 where the rows
/// meet the demand. The mean under the masses is 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coverage {
    /// One number a safe reference.
    pub safe: Vec<f64>,
    /// One number a harmful reference.
    pub harm: Vec<f64>,
}

/// One pass over the sample, as cheap as a step of the fit.
pub(super) fn coverage(sample: &SampleTiles<'_>, safe: &ReferenceSet, harm: &ReferenceSet, mean_cost: f64) -> Result<Coverage> {
    let epsilon = (SMOOTHING_PER_COST * mean_cost).clamp(MIN_EPSILON, MAX_EPSILON);
    let free = |set: &ReferenceSet| SoftTransform::new(set.masses(), &vec![0.0; set.len()], epsilon);
    let even = vec![0.0; sample.len()];
    let pass = sample.pass(0..sample.tiles(), &free(safe), &free(harm), Weighting::Fixed(&even), false)?;
    let ratio = |set: &ReferenceSet, mass: &[f64]| mass.iter().zip(set.masses()).map(|(p, q)| p / q).collect();
    Ok(Coverage { safe: ratio(safe, &pass.safe.mass), harm: ratio(harm, &pass.harm.mass) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;
    use crate::transport::sample::pack;
    use ndarray::{Axis, concatenate};

    fn of(rows: ndarray::ArrayView2<'_, f32>, safe: &ReferenceSet, harm: &ReferenceSet, mean_cost: f64) -> Coverage {
        let packed = pack(safe, harm);
        let order: Vec<usize> = (0..rows.nrows()).collect();
        let tiles = SampleTiles::try_new(rows, &order, &packed.0, &packed.1, usize::MAX).unwrap();
        coverage(&tiles, safe, harm, mean_cost).unwrap()
    }

    #[test]
    fn same_as_naive() {
        let rows = naive::mixed_sample(150, 12, 1);
        let (safe, harm) = naive::two_blobs(20, 30, 12, 2);
        let found = of(rows.view(), &safe, &harm, 2.0);
        for (set, ratios) in [(&safe, &found.safe), (&harm, &found.harm)] {
            let responsibilities: Vec<Vec<f64>> = naive::cost(rows.view(), set)
                .iter()
                .map(|cost| naive::soft_transform(cost, &vec![0.0; set.len()], set.masses(), 0.1).1)
                .collect();
            let marginal = naive::marginal(&responsibilities, &vec![1.0; rows.nrows()]);
            for ((ratio, p), q) in ratios.iter().zip(&marginal).zip(set.masses()) {
                assert!((ratio - p / q).abs() < 1e-4 * (1.0 + p / q), "{ratio} {}", p / q);
            }
            let mean: f64 = ratios.iter().zip(set.masses()).map(|(r, q)| r * q).sum();
            assert!((mean - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn references_that_no_row_is_near_are_told_from_the_others() {
        let rows = naive::blob(400, &naive::axis(16, 0), 0.25, 3);
        let near = naive::blob(20, &naive::axis(16, 0), 0.25, 4);
        let planted = naive::blob(5, &naive::axis(16, 9), 0.1, 5);
        let safe = ReferenceSet::uniform(concatenate(Axis(0), &[near.view(), planted.view()]).unwrap()).unwrap();
        let harm = ReferenceSet::uniform(naive::blob(10, &naive::axis(16, 0), 0.25, 6)).unwrap();
        let found = of(rows.view(), &safe, &harm, 0.6);
        assert!(found.safe[..20].iter().chain(&found.harm).all(|r| *r > 0.2), "{found:?}");
        assert!(found.safe[20..].iter().all(|r| *r < 0.05), "{found:?}");
    }
}
