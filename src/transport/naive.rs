//! The formulas in f64 loops, too simple to be wrong, and seeded inputs for tests.

#![expect(clippy::cast_possible_truncation, reason = "test data are stored as f32")]

use ndarray::{Array2, ArrayView2};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::references::ReferenceSet;

/// `f(x; g)` and `π(x)` of one row of costs.
pub(super) fn soft_transform(cost: &[f64], potential: &[f64], masses: &[f64], epsilon: f64) -> (f64, Vec<f64>) {
    let exponents: Vec<f64> = cost.iter().zip(potential).zip(masses).map(|((c, g), q)| (g - c) / epsilon + q.ln()).collect();
    let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = exponents.iter().map(|a| (a - largest).exp()).sum();
    (-epsilon * (total.ln() + largest), exponents.iter().map(|a| (a - largest).exp() / total).collect())
}

/// `1 − ⟨x, y⟩` for all pairs.
pub(super) fn cost(rows: ArrayView2<'_, f32>, set: &ReferenceSet) -> Vec<Vec<f64>> {
    rows.outer_iter()
        .map(|x| {
            set.vectors().outer_iter().map(|y| 1.0 - x.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()).collect()
        })
        .collect()
}

/// Weights of mean 1.
pub(super) fn weights(scores: &[f64], tau: f64) -> Vec<f64> {
    let largest = scores.iter().map(|s| -s / tau).fold(f64::NEG_INFINITY, f64::max);
    let raw: Vec<f64> = scores.iter().map(|s| (-s / tau - largest).exp()).collect();
    let mean = raw.iter().sum::<f64>() / raw.len() as f64;
    raw.iter().map(|w| w / mean).collect()
}

/// `Σ_i w_i π_j(x_i)` with the weights normalised.
pub(super) fn marginal(responsibilities: &[Vec<f64>], weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    let mut sum = vec![0.0; responsibilities[0].len()];
    for (pi, w) in responsibilities.iter().zip(weights) {
        sum.iter_mut().zip(pi).for_each(|(s, p)| *s += w / total * p);
    }
    sum
}

/// `g − ε log(1 − η + η p/q)`, centred.
pub(super) fn online_step(potential: &[f64], marginal: &[f64], masses: &[f64], epsilon: f64, eta: f64) -> Vec<f64> {
    let moved: Vec<f64> =
        potential.iter().zip(marginal).zip(masses).map(|((g, p), q)| g - epsilon * (1.0 - eta + eta * p / q).ln()).collect();
    let mean: f64 = moved.iter().zip(masses).map(|(g, q)| g * q).sum();
    moved.iter().map(|g| g - mean).collect()
}

/// The joint fixed point on the whole sample: both potentials and the weights.
pub(super) fn fit_batch(
    rows: ArrayView2<'_, f32>,
    safe: &ReferenceSet,
    harm: &ReferenceSet,
    (epsilon, push, tau): (f64, f64, f64),
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (cost_safe, cost_harm) = (cost(rows, safe), cost(rows, harm));
    let (mut g, mut h) = (vec![0.0; safe.len()], vec![0.0; harm.len()]);
    let mut w = vec![1.0; rows.nrows()];
    for _ in 0..5000 {
        let (pull, pi_safe): (Vec<f64>, Vec<_>) = cost_safe.iter().map(|c| soft_transform(c, &g, safe.masses(), epsilon)).unzip();
        let (away, pi_harm): (Vec<f64>, Vec<_>) = cost_harm.iter().map(|c| soft_transform(c, &h, harm.masses(), epsilon)).unzip();
        let scores: Vec<f64> = pull.iter().zip(&away).map(|(f, a)| f - push * a).collect();
        w = weights(&scores, tau);
        let (p, r) = (marginal(&pi_safe, &w), marginal(&pi_harm, &w));
        let error = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(a, b)| (a - b).abs()).sum::<f64>();
        if error(&p, safe.masses()) < 1e-9 && error(&r, harm.masses()) < 1e-9 {
            break;
        }
        for (j, q) in safe.masses().iter().enumerate() {
            g[j] += epsilon * (q / p[j].max(1e-300)).ln();
        }
        for (j, q) in harm.masses().iter().enumerate() {
            h[j] += 0.5 * epsilon * (q / r[j].max(1e-300)).ln();
        }
        for (potential, set) in [(&mut g, safe), (&mut h, harm)] {
            let mean: f64 = potential.iter().zip(set.masses()).map(|(g, q)| g * q).sum();
            potential.iter_mut().for_each(|g| *g -= mean);
        }
    }
    (g, h, w)
}

/// Balanced `OT_ε` of rows with these weights (sum 1) to a reference set, by Sinkhorn's steps until nothing moves.
pub(super) fn transport_cost(rows: ArrayView2<'_, f32>, set: &ReferenceSet, epsilon: f64, weights: &[f64]) -> f64 {
    let costs = cost(rows, set);
    let mut g = vec![0.0; set.len()];
    for _ in 0..20_000 {
        let (f, pi): (Vec<f64>, Vec<_>) = costs.iter().map(|c| soft_transform(c, &g, set.masses(), epsilon)).unzip();
        let p = marginal(&pi, weights);
        let error: f64 = p.iter().zip(set.masses()).map(|(p, q)| (p - q).abs()).sum();
        if error < 1e-12 {
            return f.iter().zip(weights).map(|(f, w)| f * w).sum::<f64>() + g.iter().zip(set.masses()).map(|(g, q)| g * q).sum::<f64>();
        }
        g.iter_mut().zip(&p).zip(set.masses()).for_each(|((g, p), q)| *g += epsilon * (q / p).ln());
    }
    f64::NAN
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    // Sum of twelve uniforms: near enough to a normal for test data.
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

/// Random unit rows.
pub(super) fn unit_rows(rows: usize, dims: usize, seed: u64) -> Array2<f32> {
    blob(rows, &vec![0.0; dims], 1.0, seed)
}

/// Unit rows around a centre.
pub(super) fn blob(rows: usize, centre: &[f64], spread: f64, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut out = Array2::zeros((rows, centre.len()));
    for mut row in out.outer_iter_mut() {
        let raw: Vec<f64> = centre.iter().map(|c| c + spread * normal(&mut rng)).collect();
        let norm = raw.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().zip(raw).for_each(|(o, v)| *o = (v / norm) as f32);
    }
    out
}

/// A unit vector along axis `k`.
pub(super) fn axis(dims: usize, k: usize) -> Vec<f64> {
    (0..dims).map(|i| f64::from(u8::from(i == k))).collect()
}

/// Safe references around one axis and harmful ones around another.
pub(super) fn two_blobs(safe: usize, harm: usize, dims: usize, seed: u64) -> (ReferenceSet, ReferenceSet) {
    let set = |n, k, seed| ReferenceSet::uniform(blob(n, &axis(dims, k), 0.25, seed)).unwrap();
    (set(safe, 0, seed), set(harm, 1, seed + 1))
}

/// A sample between the two blobs and beside them.
pub(super) fn mixed_sample(rows: usize, dims: usize, seed: u64) -> Array2<f32> {
    let parts: Vec<Array2<f32>> = (0..3).map(|k| blob(rows.div_ceil(3), &axis(dims, k), 0.35, seed + k as u64)).collect();
    let views: Vec<ArrayView2<'_, f32>> = parts.iter().map(|p| p.view()).collect();
    let all = ndarray::concatenate(ndarray::Axis(0), &views).unwrap();
    all.slice(ndarray::s![..rows, ..]).to_owned()
}

/// Random masses, sum 1.
pub(super) fn masses(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let raw: Vec<f64> = (0..len).map(|_| 0.1 + rng.random::<f64>()).collect();
    let total: f64 = raw.iter().sum();
    raw.iter().map(|m| m / total).collect()
}

/// Numbers in `[−size, size]`.
pub(super) fn potential(len: usize, size: f64, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| size * (2.0 * rng.random::<f64>() - 1.0)).collect()
}

/// `h` of a row from its costs, by the formula in `prior`.
pub(super) fn prior_h(prior: &super::prior::Prior, safe_cost: &[f64], harm_cost: &[f64]) -> f64 {
    let part = |coefficients: &[f64], cost: &[f64]| coefficients.iter().zip(cost).map(|(a, c)| a * (1.0 - c / 2.0).powi(4)).sum::<f64>();
    (0.5 * (prior.intercept + part(&prior.safe, safe_cost) + part(&prior.harm, harm_cost))).tanh()
}
