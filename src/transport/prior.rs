//! In: safe and harmful reference vectors. Out: a [`Prior`], `h(x) = tanh(z/2) ∈ (−1, 1)` with `z` the logit of an L2
//! logistic regression "harmful against safe" on those vectors.
//!
//! The regression is scikit-learn's `LogisticRegression(C=10, class_weight="balanced")`:
//!
//! ```text
//! min over (a, b)   ½‖a‖² + C Σ_i s_i log(1 + exp(−y_i (⟨a, x_i⟩ + b)))       y = +1 harmful, −1 safe; b is not penalised
//! s_i = n · mass_i / 2                                                          = n / (2 n_class) for equal masses: "balanced"
//! ```
//!
//! One solver for every shape: Newton's method whose linear systems are solved by conjugate gradients (truncated Newton), with
//! a backtracking line search. It never forms the d × d Hessian, so 8,192 dimensions cost no more memory than 64, and the
//! objective is strictly convex in `a`, so there is one answer. Deterministic: sums run in a fixed order.

use ndarray::ArrayView1;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::references::ReferenceSet;

/// Inverse strength of the L2 penalty, scikit-learn's `C`. 10 rather than its default 1: unit vectors have small coordinates,
/// and a penalty made for standardised features would flatten the logit.
pub const PRIOR_INVERSE_PENALTY: f64 = 10.0;

/// Newton steps at most. Five to ten are usual.
const NEWTON_STEPS: usize = 100;
/// Gradient norm, relative to the first, at which the fit stops.
const GRADIENT_TOLERANCE: f64 = 1e-9;
/// References summed at a time. Fixed, so that a sum doesn't depend on the number of threads.
const SUM_ROWS: usize = 256;

/// How likely a row is to be harmful before the geometry speaks, and how much that counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    /// One coefficient a dimension of the vectors.
    pub coefficients: Vec<f64>,
    /// The logit of a zero vector.
    pub intercept: f64,
    /// β ≥ 0, in units of the cost: the score gains `β · h(x)`. 0 switches the prior off.
    pub strength: f64,
}

impl Prior {
    /// The prior that says nothing: β = 0, every coefficient 0.
    #[must_use]
    pub fn none(dims: usize) -> Self {
        Self { coefficients: vec![0.0; dims], intercept: 0.0, strength: 0.0 }
    }

    /// Fits the regression on both reference sets, harmful as class 1.
    #[must_use]
    pub fn fit(safe: &ReferenceSet, harm: &ReferenceSet, strength: f64) -> Self {
        let (coefficients, intercept) = Regression::new(safe, harm).solve();
        Self { coefficients, intercept, strength }
    }

    /// z, the logit of "harmful". 0 for a prior that says nothing.
    #[must_use]
    pub fn logit(&self, row: ArrayView1<'_, f32>) -> f64 {
        self.coefficients.iter().zip(row).map(|(a, x)| a * f64::from(*x)).sum::<f64>() + self.intercept
    }

    /// `h(x) = tanh(z/2) = 2·P(harmful | x) − 1`, in `[−1, 1]`.
    #[must_use]
    pub fn h(&self, row: ArrayView1<'_, f32>) -> f64 {
        (0.5 * self.logit(row)).tanh()
    }

    /// `β · h(x)`, exactly 0 where the prior is off.
    pub(super) fn term(&self, row: ArrayView1<'_, f32>) -> f64 {
        if self.strength == 0.0 { 0.0 } else { self.strength * self.h(row) }
    }
}

/// The regression's data. A parameter vector is the coefficients and then the intercept.
struct Regression<'a> {
    rows: Vec<&'a [f32]>,
    /// −1 safe, +1 harmful.
    labels: Vec<f64>,
    /// `C · s_i`.
    loss_scale: Vec<f64>,
    dims: usize,
}

impl<'a> Regression<'a> {
    fn new(safe: &'a ReferenceSet, harm: &'a ReferenceSet) -> Self {
        let count = (safe.len() + harm.len()) as f64;
        let mut data = Self { rows: Vec::new(), labels: Vec::new(), loss_scale: Vec::new(), dims: safe.dims() };
        for (set, label) in [(safe, -1.0), (harm, 1.0)] {
            // A reference set keeps its vectors in row-major order, so every row is a slice.
            data.rows.extend(set.rows());
            data.labels.extend(std::iter::repeat_n(label, set.len()));
            data.loss_scale.extend(set.masses().iter().map(|m| PRIOR_INVERSE_PENALTY * 0.5 * count * m));
        }
        data
    }

    fn logits(&self, parameters: &[f64]) -> Vec<f64> {
        let (coefficients, intercept) = parameters.split_at(self.dims);
        self.rows.par_iter().map(|row| dot(coefficients, row) + intercept[0]).collect()
    }

    /// `Σ_i factor_i (x_i, 1)`.
    fn combine(&self, factors: &[f64]) -> Vec<f64> {
        let parts: Vec<Vec<f64>> = self
            .rows
            .par_chunks(SUM_ROWS)
            .zip(factors.par_chunks(SUM_ROWS))
            .map(|(rows, factors)| {
                let mut sum = vec![0.0; self.dims + 1];
                for (row, factor) in rows.iter().zip(factors) {
                    sum.iter_mut().zip(row.iter()).for_each(|(s, v)| *s += factor * f64::from(*v));
                    sum[self.dims] += factor;
                }
                sum
            })
            .collect();
        parts.into_iter().fold(vec![0.0; self.dims + 1], |mut total, part| {
            total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
            total
        })
    }

    fn objective(&self, parameters: &[f64], logits: &[f64]) -> f64 {
        let penalty: f64 = parameters[..self.dims].iter().map(|a| a * a).sum();
        let loss = |margin: f64| if margin > 0.0 { (-margin).exp().ln_1p() } else { margin.exp().ln_1p() - margin };
        let data: f64 = self.labels.iter().zip(logits).zip(&self.loss_scale).map(|((y, z), c)| c * loss(y * z)).sum();
        0.5 * penalty + data
    }

    fn gradient(&self, parameters: &[f64], logits: &[f64]) -> Vec<f64> {
        let factors: Vec<f64> = self.labels.iter().zip(logits).zip(&self.loss_scale).map(|((y, z), c)| -c * y * sigmoid(-y * z)).collect();
        let mut gradient = self.combine(&factors);
        gradient.iter_mut().zip(&parameters[..self.dims]).for_each(|(g, a)| *g += a);
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
            product.iter_mut().zip(&v[..self.dims]).for_each(|(p, a)| *p += a);
            product[self.dims] += ridge * v[self.dims];
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

    fn solve(&self) -> (Vec<f64>, f64) {
        let mut parameters = vec![0.0; self.dims + 1];
        let mut logits = self.logits(&parameters);
        let mut objective = self.objective(&parameters, &logits);
        let mut first = None;
        for _ in 0..NEWTON_STEPS {
            let gradient = self.gradient(&parameters, &logits);
            let size = norm(&gradient);
            if size <= GRADIENT_TOLERANCE * *first.get_or_insert(size.max(1.0)) {
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
        let intercept = parameters.pop().unwrap_or(0.0);
        (parameters, intercept)
    }
}

fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn dot(coefficients: &[f64], row: &[f32]) -> f64 {
    coefficients.iter().zip(row).map(|(a, x)| a * f64::from(*x)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;

    #[test]
    fn the_gradient_vanishes_at_the_answer() {
        for (n, m, d) in [(20, 30, 5), (40, 10, 60), (1, 1, 3), (300, 200, 40)] {
            let safe = ReferenceSet::uniform(naive::unit_rows(n, d, 21)).unwrap();
            let harm = ReferenceSet::uniform(naive::unit_rows(m, d, 22)).unwrap();
            let prior = Prior::fit(&safe, &harm, 0.1);
            let data = Regression::new(&safe, &harm);
            let mut parameters = prior.coefficients.clone();
            parameters.push(prior.intercept);
            let gradient = data.gradient(&parameters, &data.logits(&parameters));
            assert!(norm(&gradient) < 1e-5, "{n} {m} {d}: {}", norm(&gradient));
        }
    }

    #[test]
    fn harmful_references_score_higher() {
        let (safe, harm) = naive::two_blobs(40, 50, 16, 23);
        let prior = Prior::fit(&safe, &harm, 1.0);
        let mean = |set: &ReferenceSet| set.vectors().outer_iter().map(|r| prior.h(r)).sum::<f64>() / set.len() as f64;
        assert!(mean(&safe) < -0.5 && mean(&harm) > 0.5);
    }

    #[test]
    fn odd_references_give_finite_coefficients() {
        let zero = ReferenceSet::uniform(ndarray::Array2::zeros((2, 4))).unwrap();
        let same = ReferenceSet::uniform(naive::unit_rows(1, 4, 24)).unwrap();
        for (safe, harm) in [(&zero, &zero), (&same, &same), (&zero, &same)] {
            let prior = Prior::fit(safe, harm, 1.0);
            assert!(prior.intercept.is_finite() && prior.coefficients.iter().all(|c| c.is_finite()));
        }
    }
}
