//! In: points `x` and their images `G(x)` under a fixed-point map. Out: a next point, nearer to `x = G(x)` than `G(x)` is.
//!
//! Anderson mixing (Anderson 1965; Walker and Ni 2011, type II): of the last few steps, the combination whose residual
//! `G(x) − x` is smallest in least squares, moved on by that residual. Sinkhorn's steps shrink the error by a constant factor
//! that nears 1 for small ε; this needs several times fewer of them, each at the cost of a few dot products.

use std::collections::VecDeque;

use nalgebra::{DMatrix, DVector};

/// Differences remembered. More help little and make the least squares ill-conditioned.
const DEPTH: usize = 6;

/// Tikhonov term relative to the trace: keeps the mixing bounded where remembered differences are nearly parallel.
const RIDGE: f64 = 1e-9;

/// Remembers steps of a fixed-point iteration and proposes the next point.
#[derive(Debug)]
pub(super) struct Anderson {
    /// Scale of each coordinate in the least squares.
    metric: Vec<f64>,
    last: Option<(Vec<f64>, Vec<f64>)>,
    /// Differences of residuals and of images, newest last.
    differences: VecDeque<(Vec<f64>, Vec<f64>)>,
}

impl Anderson {
    /// `metric` weighs the square of each coordinate of a residual.
    pub(super) fn new(metric: Vec<f64>) -> Self {
        Self { metric, last: None, differences: VecDeque::new() }
    }

    /// Forgets every step: the map has changed, or the proposals were poor.
    pub(super) fn restart(&mut self) {
        self.last = None;
        self.differences.clear();
    }

    /// The point to go to after `x` with the image `image`; the image itself where nothing is remembered.
    pub(super) fn propose(&mut self, x: &[f64], image: Vec<f64>) -> Vec<f64> {
        let residual: Vec<f64> = image.iter().zip(x).map(|(g, x)| g - x).collect();
        if let Some((last_residual, last_image)) = self.last.take() {
            self.differences.push_back((difference(&residual, &last_residual), difference(&image, &last_image)));
            if self.differences.len() > DEPTH {
                self.differences.pop_front();
            }
        }
        let mixed = self.mix(&residual, &image);
        self.last = Some((residual, image));
        mixed
    }

    fn mix(&self, residual: &[f64], image: &[f64]) -> Vec<f64> {
        let depth = self.differences.len();
        let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).zip(&self.metric).map(|((a, b), m)| a * b * m).sum::<f64>();
        let mut gram = DMatrix::from_fn(depth, depth, |i, j| inner(&self.differences[i].0, &self.differences[j].0));
        let target = DVector::from_fn(depth, |i, _| inner(&self.differences[i].0, residual));
        let ridge = RIDGE * gram.trace() + f64::MIN_POSITIVE;
        (0..depth).for_each(|i| gram[(i, i)] += ridge);
        let mut mixed = image.to_vec();
        if let Some(factor) = gram.cholesky() {
            let gamma = factor.solve(&target);
            if gamma.iter().all(|g| g.is_finite()) {
                for ((_, step), gamma) in self.differences.iter().zip(gamma.iter()) {
                    mixed.iter_mut().zip(step).for_each(|(m, s)| *m -= gamma * s);
                }
            }
        }
        mixed
    }
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_is_solved_in_as_many_steps_as_it_has_rates() {
        let rates = [0.99, 0.9, -0.5, 0.3];
        let map = |x: &[f64]| -> Vec<f64> { x.iter().zip(rates).map(|(x, r)| r * x + 1.0).collect() };
        let mut mixing = Anderson::new(vec![0.25; 4]);
        let mut x = vec![0.0; 4];
        for _ in 0..9 {
            x = mixing.propose(&x, map(&x));
        }
        for (x, r) in x.iter().zip(rates) {
            assert!((x * (1.0 - r) - 1.0).abs() < 1e-4, "{x} {r}");
        }
    }

    #[test]
    fn a_fixed_point_stays() {
        let mut mixing = Anderson::new(vec![1.0; 2]);
        let mut x = vec![3.0, 4.0];
        for _ in 0..5 {
            x = mixing.propose(&x.clone(), x);
        }
        assert_eq!(x, [3.0, 4.0]);
    }
}
