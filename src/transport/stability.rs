//! In: the plan between weighed rows and the harmful references. Out: how near the push side is to losing its balance.
//!
//! The push term is concave in the row weights, so the problem is a difference of convex functions and its optimum can be a
//! saddle. With the weights eliminated the objective is a function of both potentials; its second derivative in the harmful
//! one, for π the responsibilities of a row and expectations under the weights, is
//!
//! ```text
//! λ · [ (1/ε)·A − (λ/τ)·C ],        A = E_w[diag π − ππᵀ],        C = Cov_w(π) = E_w[ππᵀ] − ppᵀ,        p = E_w[π]
//! ```
//!
//! Where it is positive on the mean-free space the potential sits in a strict minimum: raising `g_k` draws more mass to `h_k`
//! than the falling weights of its rows take away. [`push_stability`] is the number σ by which that holds: the largest σ with
//! `(λ/τ)·C v = σ·(1/ε)·A v`. Below 1 the solution is a strict local optimum (the pull side, left out here, is convex in the
//! weights and only adds to it), and a small enough step settles there. At 1 or above nothing holds some direction of the
//! harmful potential back: it runs away or circles with the pull side.
//!
//! **One symmetric eigenvalue decides it.** With `D = diag p` both matrices are functions of `K = D^−½ E_w[ππᵀ] D^−½`:
//! `D^−½ A D^−½ = I − K` and `D^−½ C D^−½ = K − √p√pᵀ`, and `√p` is K's eigenvector for its largest eigenvalue, 1. So they share
//! eigenvectors, and with κ the second largest eigenvalue of K (a squared singular value of the plan, the factor by which plain
//! Sinkhorn steps shrink the error, Knight 2008)
//!
//! ```text
//! σ = (λ/τ) · κ / ((1 − κ)/ε + 1/ρ)
//! ```
//!
//! where `1/ρ` is the curvature that relaxed marginals add (0 where they are exact).
//!
//! **With the pull side.** σ ≥ 1 is no verdict yet, as the pull side may hold what the push side alone would not. The objective
//! in the weights has the second derivative `OT_safe'' − λ OT_harm'' + τ diag(1/w)`, and `OT''`, in units of `√w_i`, has for every
//! eigenvalue g of `TTᵀ`, `T_ij = √w_i π_ij/√p_j`, the eigenvalue `ε g/(1 − g + b)`, `b = ε/ρ`. Eliminating the weights leaves,
//! on the harmful side's mean-free space and with `a = ε/τ`, `K_s = T_sᵀT_s`, `X = T_hᵀT_s`,
//!
//! ```text
//! ν = λ_max( K_h + λa·[ K_h − a·X ((1 + b) I − (1 − a) K_s)⁻¹ Xᵀ ] ) / (1 + b)
//! ```
//!
//! and the solution is a strict local optimum exactly where ν < 1. ν is the factor by which a full step of the harmful side, small
//! steps added up while the pull side follows, multiplies an error of its potential. σ < 1 implies ν < 1; never the other way.
//!
//! Both come from [`SPECTRUM_STEPS`] Lanczos steps (the inverse by conjugate gradients): products with the plans alone, no matrix of
//! references by references. τ counts as fixed.
//!
//! Memory: one f32 a row and reference, over at most [`STABILITY_ROWS`] rows.

use nalgebra::DMatrix;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Rows at most from which the stability is measured. Few rows make the plan sharper than it is and σ too large by some per cent, never
/// too small by more than the noise.
pub const STABILITY_ROWS: usize = 2048;

/// Lanczos steps at most. The largest eigenvalue is the first to come out; 48 give `1 − κ` to a few per cent where κ is .999.
const SPECTRUM_STEPS: usize = 48;

/// Lanczos steps between two looks at the eigenvalue.
const CHECK_STEPS: usize = 8;

/// Growth of the eigenvalue between two looks, relative to its distance from 1, at which it is good enough.
const SPECTRUM_TOLERANCE: f64 = 1e-3;

/// Conjugate gradient steps at most. The matrix has a condition of max(τ/ε, ε/τ), so few are needed.
const SOLVE_STEPS: usize = 60;

/// Residual, relative to the right-hand side, at which the conjugate gradients stop: well below what a sample of rows knows.
const SOLVE_TOLERANCE: f64 = 1e-5;

/// Least `1 − κ` that responsibilities in f32 can tell from 0.
const LEAST_GAP: f64 = 1e-7;

/// Rows summed at a time. Fixed, so that a sum doesn't depend on the number of threads.
const SUM_ROWS: usize = 64;

/// The normalised plan `√w_i π_ij / √p_j`, one row a row of the sample; its largest singular value is 1.
#[derive(Debug)]
pub(super) struct Coupling {
    values: Vec<f32>,
    width: usize,
    /// `√p_j`, the right singular vector of the largest singular value.
    root: Vec<f64>,
}

impl Coupling {
    /// From responsibilities (`width` a row, each row's sum 1) and weights of any positive sum.
    #[expect(clippy::cast_possible_truncation, reason = "f32 storage by design")]
    pub(super) fn new(mut responsibilities: Vec<f32>, width: usize, weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        let mut marginal = vec![0.0; width];
        for (row, w) in responsibilities.chunks_exact(width).zip(weights) {
            marginal.iter_mut().zip(row).for_each(|(p, pi)| *p += w / total * f64::from(*pi));
        }
        let root: Vec<f64> = marginal.iter().map(|p| p.sqrt()).collect();
        for (row, w) in responsibilities.chunks_exact_mut(width).zip(weights) {
            let w = (w / total).sqrt();
            row.iter_mut().zip(&root).for_each(|(v, r)| *v = if *r > 0.0 { (w * f64::from(*v) / r) as f32 } else { 0.0 });
        }
        Self { values: responsibilities, width, root }
    }

    /// κ, the second largest eigenvalue of `K`, in `[0, 1]`: 0 where there is no second.
    pub(super) fn second_eigenvalue(&self) -> f64 {
        largest_eigenvalue(&self.root, |v| self.back(&self.along(v))).clamp(0.0, 1.0)
    }

    /// `T v`, one number a row.
    fn along(&self, vector: &[f64]) -> Vec<f64> {
        let row = |row: &[f32]| row.iter().zip(vector).map(|(t, v)| f64::from(*t) * v).sum();
        self.values.par_chunks(self.width).map(row).collect()
    }

    /// `Tᵀ u`, one number a reference.
    fn back(&self, rows: &[f64]) -> Vec<f64> {
        let parts: Vec<Vec<f64>> = self
            .values
            .par_chunks(SUM_ROWS * self.width)
            .zip(rows.par_chunks(SUM_ROWS))
            .map(|(values, rows)| {
                let mut sum = vec![0.0; self.width];
                for (row, u) in values.chunks_exact(self.width).zip(rows) {
                    sum.iter_mut().zip(row).for_each(|(s, t)| *s += u * f64::from(*t));
                }
                sum
            })
            .collect();
        parts.into_iter().fold(vec![0.0; self.width], |mut total, part| {
            total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
            total
        })
    }
}

/// Largest eigenvalue of a symmetric positive semidefinite `operator` on the space orthogonal to `root`, which it maps to itself;
/// 0 where that space is empty. By Lanczos with full orthogonalisation from a fixed start.
fn largest_eigenvalue(root: &[f64], operator: impl Fn(&[f64]) -> Vec<f64>) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut basis = vec![root.to_vec()];
    let mut next: Vec<f64> = root.iter().map(|r| r * (2.0 * rng.random::<f64>() - 1.0)).collect();
    let (mut diagonal, mut beside) = (Vec::new(), Vec::new());
    let mut largest = 0.0;
    for step in 1..=SPECTRUM_STEPS {
        orthogonalise(&mut next, &basis);
        let size = norm(&next);
        // The space is used up: what is left is rounding.
        let exhausted = size <= 1e-9;
        if !exhausted {
            if basis.len() > 1 {
                beside.push(size);
            }
            next.iter_mut().for_each(|v| *v /= size);
            let image = operator(&next);
            diagonal.push(dot(&image, &next));
            basis.push(std::mem::replace(&mut next, image));
        }
        if exhausted || step % CHECK_STEPS == 0 || step == SPECTRUM_STEPS {
            let before = std::mem::replace(&mut largest, largest_of_tridiagonal(&diagonal, &beside));
            // What matters is the distance from 1.
            if exhausted || largest - before <= SPECTRUM_TOLERANCE * (1.0 - largest).abs() {
                break;
            }
        }
    }
    largest
}

fn largest_of_tridiagonal(diagonal: &[f64], beside: &[f64]) -> f64 {
    let matrix = DMatrix::from_fn(diagonal.len(), diagonal.len(), |i, j| match i.abs_diff(j) {
        0 => diagonal[i],
        1 => beside[i.min(j)],
        _ => 0.0,
    });
    if matrix.is_empty() { 0.0 } else { matrix.symmetric_eigenvalues().max() }
}

/// Conjugate gradients for a symmetric positive definite `operator`.
fn solve(operator: impl Fn(&[f64]) -> Vec<f64>, target: &[f64]) -> Vec<f64> {
    let mut solution = vec![0.0; target.len()];
    let (mut residual, mut direction) = (target.to_vec(), target.to_vec());
    let mut energy = dot(&residual, &residual);
    let enough = SOLVE_TOLERANCE * SOLVE_TOLERANCE * energy;
    for _ in 0..SOLVE_STEPS {
        if energy <= enough {
            break;
        }
        let image = operator(&direction);
        let step = energy / dot(&direction, &image);
        solution.iter_mut().zip(&direction).for_each(|(s, d)| *s += step * d);
        residual.iter_mut().zip(&image).for_each(|(r, i)| *r -= step * i);
        let next = dot(&residual, &residual);
        direction.iter_mut().zip(&residual).for_each(|(d, r)| *d = r + next / energy * *d);
        energy = next;
    }
    solution
}

/// ν of both sides' plans for the same rows and weights (see the module): 0 where nothing is pushed or transport is off, finite always.
pub(super) fn joint_rate(safe: &Coupling, harm: &Coupling, push: f64, tau: f64, epsilon: f64, slack: Option<f64>) -> f64 {
    if push == 0.0 || slack == Some(0.0) {
        return 0.0;
    }
    let (a, b) = (epsilon / tau, slack.map_or(0.0, |rho| epsilon / rho));
    let pull = |v: &[f64]| -> Vec<f64> {
        let image = safe.back(&safe.along(v));
        v.iter().zip(image).map(|(v, k)| (1.0 + b) * v - (1.0 - a) * k).collect()
    };
    let rate = largest_eigenvalue(&harm.root, |v| {
        let rows = harm.along(v);
        let held = safe.along(&solve(pull, &safe.back(&rows)));
        let moved: Vec<f64> = rows.iter().zip(&held).map(|(u, h)| u + push * a * (u - a * h)).collect();
        harm.back(&moved)
    });
    (rate / (1.0 + b)).clamp(0.0, f64::MAX)
}

/// σ of the push side (see the module): 0 where nothing is pushed or transport is off, finite always.
pub(super) fn push_stability(kappa: f64, push: f64, tau: f64, epsilon: f64, slack: Option<f64>) -> f64 {
    if push == 0.0 || slack == Some(0.0) || kappa <= 0.0 {
        return 0.0;
    }
    let hold = (1.0 - kappa).max(LEAST_GAP) / epsilon + slack.map_or(0.0, |rho| 1.0 / rho);
    (push / tau * kappa / hold).min(f64::MAX)
}

/// Takes the span of an orthonormal basis (up to its first vector's length) out of `vector`. Twice: once leaves rounding behind.
fn orthogonalise(vector: &mut [f64], basis: &[Vec<f64>]) {
    for _ in 0..2 {
        for b in basis {
            let square: f64 = b.iter().map(|b| b * b).sum();
            if square > 0.0 {
                let along = vector.iter().zip(b).map(|(v, b)| v * b).sum::<f64>() / square;
                vector.iter_mut().zip(b).for_each(|(v, b)| *v -= along * b);
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test data are stored as f32")]
mod tests {
    use super::*;
    use crate::transport::naive;
    use crate::transport::references::ReferenceSet;

    /// The largest generalised eigenvalue of the two matrices of the module text on the mean-free space, densely.
    fn by_definition(plan: &[Vec<f64>], weights: &[f64], push: f64, tau: f64, epsilon: f64, slack: Option<f64>) -> f64 {
        let (n, total) = (plan[0].len(), weights.iter().sum::<f64>());
        let p = naive::marginal(plan, weights);
        let mut second = DMatrix::zeros(n, n);
        for (pi, w) in plan.iter().zip(weights) {
            second += DMatrix::from_fn(n, n, |i, j| w / total * pi[i] * pi[j]);
        }
        let diagonal = DMatrix::from_fn(n, n, |i, j| if i == j { p[i] } else { 0.0 });
        let outer = DMatrix::from_fn(n, n, |i, j| p[i] * p[j]);
        let held = (&diagonal - &second) / epsilon + (&diagonal - &outer) * slack.map_or(0.0, |rho| 1.0 / rho);
        let moved = (&second - &outer) * (push / tau);
        // Columns e_k − e_{k+1} span the mean-free space.
        let basis = DMatrix::from_fn(n, n - 1, |i, k| {
            if i == k {
                1.0
            } else if i == k + 1 {
                -1.0
            } else {
                0.0
            }
        });
        let (held, moved) = (basis.transpose() * held * &basis, basis.transpose() * moved * &basis);
        let lower = held.cholesky().unwrap().l().try_inverse().unwrap();
        (&lower * moved * lower.transpose()).symmetric_eigenvalues().max()
    }

    fn plan_of(rows: usize, references: usize, epsilon: f64, seed: u64) -> Vec<Vec<f64>> {
        let set = ReferenceSet::try_new(naive::unit_rows(references, 6, seed), naive::masses(references, seed)).unwrap();
        let potential = naive::potential(references, 0.1, seed + 1);
        let costs = naive::cost(naive::mixed_sample(rows, 6, seed + 2).view(), &set);
        costs.iter().map(|c| naive::soft_transform(c, &potential, set.masses(), epsilon).1).collect()
    }

    fn coupling(plan: &[Vec<f64>], weights: &[f64]) -> Coupling {
        Coupling::new(plan.iter().flatten().map(|v| *v as f32).collect(), plan[0].len(), weights)
    }

    #[test]
    fn same_as_the_dense_problem() {
        for (rows, references, epsilon, slack) in [
            (200, 12, 0.1, None),
            (90, 40, 0.3, None),
            (500, 100, 0.05, None),
            (60, 2, 0.5, None),
            (200, 30, 0.1, Some(0.2)),
            (400, 25, 0.02, None),
        ] {
            let plan = plan_of(rows, references, epsilon, 7);
            let weights: Vec<f64> = naive::masses(rows, 8).iter().map(|m| m * 3.0).collect();
            let kappa = coupling(&plan, &weights).second_eigenvalue();
            let ours = push_stability(kappa, 1.5, 0.2, epsilon, slack);
            let expected = by_definition(&plan, &weights, 1.5, 0.2, epsilon, slack);
            assert!((ours / expected - 1.0).abs() < 1e-3, "{rows} {references} {epsilon} {slack:?}: {ours} {expected}");
        }
    }

    /// ν and the least curvature of the objective in the weights, densely, from the definitions.
    fn joint_by_definition(
        plans: [&[Vec<f64>]; 2],
        weights: &[f64],
        (push, tau, epsilon): (f64, f64, f64),
        slack: Option<f64>,
    ) -> (f64, f64) {
        let (rows, total) = (weights.len(), weights.iter().sum::<f64>());
        let b = slack.map_or(0.0, |rho| epsilon / rho);
        let root = DMatrix::from_fn(rows, 1, |i, _| (weights[i] / total).sqrt());
        let transport = |plan: &[Vec<f64>]| {
            let p = naive::marginal(plan, weights);
            let t = DMatrix::from_fn(rows, p.len(), |i, j| root[i] * plan[i][j] / p[j].sqrt());
            let gram = &t * t.transpose() - &root * root.transpose();
            let one = DMatrix::identity(rows, rows);
            (one * (1.0 + b) - &gram).try_inverse().unwrap() * gram * epsilon
        };
        // Directions of the weights that keep their sum.
        let basis = DMatrix::from_fn(rows, rows - 1, |i, k| {
            if i == k {
                root[i + 1]
            } else if i == k + 1 {
                -root[k]
            } else {
                0.0
            }
        });
        let basis = basis.qr().q();
        let on = |m: DMatrix<f64>| basis.transpose() * ((&m + m.transpose()) * 0.5) * &basis;
        let (safe, harm) = (on(transport(plans[0])), on(transport(plans[1])));
        let held = safe + DMatrix::identity(rows - 1, rows - 1) * tau;
        let least = (&held - &harm * push).symmetric_eigenvalues().min();
        // ν with the inverse in the space of the weights, where ours has it among the safe references.
        let p = naive::marginal(plans[1], weights);
        let t = DMatrix::from_fn(rows, p.len(), |i, j| root[i] * plans[1][i][j] / p[j].sqrt());
        let mean = DMatrix::from_fn(p.len(), p.len(), |i, j| (p[i] * p[j]).sqrt());
        let inverse = &basis * held.try_inverse().unwrap() * basis.transpose();
        let rate = (t.transpose() * &t - mean) + t.transpose() * inverse * &t * (push * epsilon);
        ((&rate + rate.transpose()).symmetric_eigenvalues().max() * 0.5 / (1.0 + b), least)
    }

    #[test]
    fn the_joint_rate_is_the_same_as_the_dense_problem() {
        let (mut below, mut above) = (0, 0);
        for (epsilon, push, tau, slack) in [
            (0.1, 1.0, 0.2, None),
            (0.05, 1.0, 0.1, None),
            (0.05, 3.0, 0.05, None),
            (0.03, 2.0, 0.02, None),
            (0.2, 1.5, 0.1, Some(0.3)),
            (0.05, 8.0, 0.05, Some(0.1)),
            (0.3, 0.5, 0.05, None),
            (0.5, 0.1, 1.0, None),
            (0.3, 0.3, 0.5, None),
            (0.3, 0.02, 0.1, None),
            (0.2, 0.2, 0.6, Some(0.3)),
        ] {
            let (safe, harm) = (plan_of(80, 12, epsilon, 13), plan_of(80, 15, epsilon, 16));
            let weights = naive::masses(80, 17);
            let ours = joint_rate(&coupling(&safe, &weights), &coupling(&harm, &weights), push, tau, epsilon, slack);
            let (rate, least) = joint_by_definition([&safe, &harm], &weights, (push, tau, epsilon), slack);
            assert!((ours / rate - 1.0).abs() < 1e-3, "{epsilon} {push} {tau} {slack:?}: {ours} {rate}");
            // Below 1 is exactly where the objective curves upwards in every direction of the weights.
            assert_eq!(ours < 1.0, least > 0.0, "{epsilon} {push} {tau} {slack:?}: {ours} {least}");
            let sigma = push_stability(coupling(&harm, &weights).second_eigenvalue(), push, tau, epsilon, slack);
            assert!(sigma >= 1.0 || ours < 1.0, "{sigma} {ours}");
            if ours < 1.0 { below += 1 } else { above += 1 }
        }
        assert!(below > 1 && above > 1, "{below} {above}");
        let one = plan_of(50, 1, 0.1, 9);
        let nothing = coupling(&one, &[0.02; 50]);
        assert_eq!(joint_rate(&nothing, &nothing, 1.0, 0.2, 0.1, None), 0.0);
    }

    #[test]
    fn plans_without_a_second_direction_are_stable() {
        let one = plan_of(50, 1, 0.1, 9);
        assert_eq!(coupling(&one, &[0.02; 50]).second_eigenvalue(), 0.0);
        // Every row has the same responsibilities: no row can take more of one reference than another.
        let same = vec![vec![0.2, 0.5, 0.3]; 30];
        assert!(coupling(&same, &[1.0; 30]).second_eigenvalue() < 1e-6);
        let one_row = plan_of(1, 20, 0.1, 10);
        assert!(coupling(&one_row, &[4.0]).second_eigenvalue() < 1e-6);
    }

    #[test]
    fn a_plan_in_two_parts_has_nothing_to_hold_it() {
        let parts: Vec<Vec<f64>> = (0..40).map(|i| if i % 2 == 0 { vec![0.5, 0.5, 0.0] } else { vec![0.0, 0.0, 1.0] }).collect();
        let kappa = coupling(&parts, &[1.0; 40]).second_eigenvalue();
        assert!((kappa - 1.0).abs() < 1e-6);
        let sigma = push_stability(kappa, 1.0, 1.0, 0.1, None);
        assert!(sigma > 1e4 && sigma.is_finite());
        assert_eq!(push_stability(kappa, 0.0, 1.0, 0.1, None), 0.0);
        assert_eq!(push_stability(kappa, 1.0, 1.0, 0.1, Some(0.0)), 0.0);
        assert!(push_stability(1.0, f64::MAX, 1e-6, 100.0, None).is_finite());
    }

    #[test]
    fn does_not_depend_on_threads() {
        let plan = plan_of(900, 70, 0.05, 11);
        let weights = naive::masses(900, 12);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| coupling(&plan, &weights).second_eigenvalue())
        };
        assert_eq!(with(1).to_bits(), with(3).to_bits());
    }
}
