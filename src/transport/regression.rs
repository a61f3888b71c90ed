//! In: feature rows, labels and how much each row counts. Out: the L2 logistic regression of the labels,
//!
//! ```text
//! min over (a, b)   ½‖a‖² + Σ_i c_i log(1 + exp(−y_i (⟨a, x_i⟩ + b)))       y = ±1; b is not penalised
//! ```
//!
//! One solver for every shape: Newton's method whose linear systems are solved by conjugate gradients (truncated Newton), with
//! a backtracking line search. It never forms the Hessian, and the objective is strictly convex in `a`, so there is one answer.
//! Deterministic: sums run in a fixed order. Memory: a few numbers a row and a column.

use rayon::prelude::*;

use super::potential::{accumulate, dot};
use super::references::ReferenceSet;

/// Newton steps at most. Five to fifteen are usual.
const NEWTON_STEPS: usize = 100;
/// Rows summed at a time. Fixed, so that a sum doesn't depend on the number of threads.
const SUM_ROWS: usize = 256;

/// The linear logistic regression "harmful against safe" on the references' own vectors, both classes counting alike:
/// scikit-learn's `LogisticRegression(C, class_weight="balanced")`, with masses as sample weights. Coefficients, one a dimension, then the intercept.
/// What people do without a transport; no part of a fit.
#[must_use]
pub fn logistic_regression(safe: &ReferenceSet, harm: &ReferenceSet, inverse_penalty: f64) -> Vec<f64> {
    let features: Vec<f32> = safe.rows().chain(harm.rows()).flatten().copied().collect();
    let half = 0.5 * (safe.len() + harm.len()) as f64;
    let regression = Regression {
        features: &features,
        width: safe.dims(),
        labels: safe.masses().iter().map(|_| -1.0).chain(harm.masses().iter().map(|_| 1.0)).collect(),
        loss_scale: safe.masses().iter().chain(harm.masses()).map(|mass| inverse_penalty * half * mass).collect(),
    };
    regression.solve(None, 1e-7)
}

/// A regression's data. A parameter vector is the coefficients and then the intercept.
#[derive(Debug)]
pub(super) struct Regression<'a> {
    /// Row-major features.
    pub(super) features: &'a [f32],
    /// Features a row.
    pub(super) width: usize,
    /// ±1, one a row.
    pub(super) labels: Vec<f64>,
    /// `c_i ≥ 0`, one a row.
    pub(super) loss_scale: Vec<f64>,
}

impl Regression<'_> {
    /// The coefficients and the intercept, by Newton steps from `start` until the gradient's norm is `tolerance` of what it is at 0.
    pub(super) fn solve(&self, start: Option<&[f64]>, tolerance: f64) -> Vec<f64> {
        let zero = vec![0.0; self.width + 1];
        let enough = tolerance * norm(&self.gradient(&zero, &vec![0.0; self.labels.len()])).max(1e-12);
        let mut parameters = start.map_or(zero, <[f64]>::to_vec);
        let mut logits = self.logits(&parameters);
        let mut objective = self.objective(&parameters, &logits);
        for _ in 0..NEWTON_STEPS {
            let gradient = self.gradient(&parameters, &logits);
            if norm(&gradient) <= enough {
                break;
            }
            let step = self.newton_step(&logits, &gradient);
            let slope: f64 = step.iter().zip(&gradient).map(|(s, g)| s * g).sum();
            let mut length = 1.0;
            let improved = loop {
                let trial: Vec<f64> = parameters.iter().zip(&step).map(|(p, s)| p + length * s).collect();
                let trial_logits = self.logits(&trial);
                let value = self.objective(&trial, &trial_logits);
                if value <= objective + 1e-4 * length * slope {
                    let improved = value < objective;
                    (parameters, logits, objective) = (trial, trial_logits, value);
                    break improved;
                }
                length *= 0.5;
                if length < 1e-10 {
                    break false;
                }
            };
            if !improved {
                break;
            }
        }
        parameters
    }

    fn lines(&self) -> impl IndexedParallelIterator<Item = &[f32]> {
        self.features.par_chunks(SUM_ROWS * self.width.max(1))
    }

    fn logits(&self, parameters: &[f64]) -> Vec<f64> {
        let (coefficients, intercept) = parameters.split_at(self.width);
        if self.width == 0 {
            return vec![intercept[0]; self.labels.len()];
        }
        let parts: Vec<Vec<f64>> =
            self.lines().map(|lines| lines.chunks_exact(self.width).map(|row| dot(coefficients, row) + intercept[0]).collect()).collect();
        parts.concat()
    }

    /// `Σ_i factor_i (x_i, 1)`.
    fn combine(&self, factors: &[f64]) -> Vec<f64> {
        let width = self.width;
        let mut total = vec![0.0; width + 1];
        if width > 0 {
            let parts: Vec<Vec<f64>> = self
                .lines()
                .zip(factors.par_chunks(SUM_ROWS))
                .map(|(lines, factors)| {
                    let mut sum = vec![0.0; width];
                    for (rows, factors) in lines.chunks(4 * width).zip(factors.chunks(4)) {
                        if let &[a, b, c, d] = factors {
                            accumulate(&mut sum, rows, [a, b, c, d]);
                            continue;
                        }
                        for (row, factor) in rows.chunks_exact(width).zip(factors) {
                            sum.iter_mut().zip(row).for_each(|(s, v)| *s += factor * f64::from(*v));
                        }
                    }
                    sum
                })
                .collect();
            for part in parts {
                total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
            }
        }
        total[width] = factors.iter().sum();
        total
    }

    fn objective(&self, parameters: &[f64], logits: &[f64]) -> f64 {
        let penalty: f64 = parameters[..self.width].iter().map(|a| a * a).sum();
        let loss: f64 = logits
            .iter()
            .zip(&self.labels)
            .zip(&self.loss_scale)
            .map(|((z, y), c)| {
                let t = -y * z;
                c * (t.max(0.0) + (-t.abs()).exp().ln_1p())
            })
            .sum();
        0.5 * penalty + loss
    }

    pub(super) fn gradient(&self, parameters: &[f64], logits: &[f64]) -> Vec<f64> {
        let factors: Vec<f64> = logits.iter().zip(&self.labels).zip(&self.loss_scale).map(|((z, y), c)| -c * y * sigmoid(-y * z)).collect();
        let mut gradient = self.combine(&factors);
        gradient.iter_mut().zip(&parameters[..self.width]).for_each(|(g, a)| *g += a);
        gradient
    }

    /// Conjugate gradients on `Hessian · step = −gradient`, stopped where more digits would not help this Newton step.
    fn newton_step(&self, logits: &[f64], gradient: &[f64]) -> Vec<f64> {
        let curvature: Vec<f64> = logits.iter().zip(&self.loss_scale).map(|(z, c)| c * sigmoid(*z) * sigmoid(-z)).collect();
        // The intercept has no penalty; this keeps its curvature positive where every probability has saturated.
        let ridge = 1e-10 * self.loss_scale.iter().sum::<f64>();
        let hessian = |v: &[f64]| {
            let factors: Vec<f64> = self.logits(v).iter().zip(&curvature).map(|(z, c)| z * c).collect();
            let mut product = self.combine(&factors);
            product.iter_mut().zip(&v[..self.width]).for_each(|(p, a)| *p += a);
            product[self.width] += ridge * v[self.width];
            product
        };
        let size = norm(gradient);
        let enough = size * size.sqrt().clamp(1e-10, 0.1).min(0.1);
        let mut step = vec![0.0; gradient.len()];
        let mut residual: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut direction = residual.clone();
        let mut energy: f64 = residual.iter().map(|r| r * r).sum();
        for _ in 0..(2 * gradient.len()).clamp(20, 500) {
            if energy.sqrt() <= enough {
                break;
            }
            let product = hessian(&direction);
            let alpha = energy / direction.iter().zip(&product).map(|(a, b)| a * b).sum::<f64>();
            step.iter_mut().zip(&direction).for_each(|(s, d)| *s += alpha * d);
            residual.iter_mut().zip(&product).for_each(|(r, p)| *r -= alpha * p);
            let next: f64 = residual.iter().map(|r| r * r).sum();
            direction.iter_mut().zip(&residual).for_each(|(d, r)| *d = r + next / energy * *d);
            energy = next;
        }
        step
    }
}

fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

pub(super) fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;

    #[test]
    fn the_gradient_vanishes_at_the_answer_from_any_start() {
        for (rows, width) in [(50, 5), (50, 60), (2, 3), (500, 40), (7, 0)] {
            let features: Vec<f32> = naive::unit_rows(rows, width.max(1), 21).iter().copied().take(rows * width).collect();
            let labels = (0..rows).map(|i| if i % 3 == 0 { 1.0 } else { -1.0 }).collect();
            let regression = Regression { features: &features, width, labels, loss_scale: vec![10.0; rows] };
            let answer = regression.solve(None, 1e-9);
            let gradient = regression.gradient(&answer, &regression.logits(&answer));
            assert!(norm(&gradient) < 1e-5, "{rows} {width}: {}", norm(&gradient));
            let again = regression.solve(Some(&naive::potential(width + 1, 2.0, 5)), 1e-9);
            assert!(answer.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-4), "{rows} {width}");
        }
    }
}
