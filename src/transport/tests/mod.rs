//! Properties of the whole module: the naive twin, invariances, bit equality, extremes.

use ndarray::{Array2, ArrayView2, Axis, array, s};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::naive;
use super::*;

mod certificate;
mod extremes;
mod invariance;

fn fit_quietly(rows: ArrayView2<'_, f32>, safe: &ReferenceSet, harm: &ReferenceSet, options: &TransportOptions) -> Fit {
    fit(rows, safe, harm, options, None, &mut |_| {}).unwrap()
}

/// Every row is fitted, nothing is automatic: comparable with the naive twin.
fn plain(epsilon: f64, push: f64, tau: f64) -> TransportOptions {
    TransportOptions::default()
        .with_epsilon(epsilon)
        .with_push(push)
        .with_prior(0.0)
        .with_temperature(Temperature::Fixed(tau))
        .with_held_out(0.0)
}

fn model(rows: usize, dims: usize, seed: u64) -> (Array2<f32>, TransportModel) {
    let sample = naive::mixed_sample(rows, dims, seed);
    let (safe, harm) = naive::two_blobs(33, 50, dims, seed + 10);
    let fitted = fit_quietly(sample.view(), &safe, &harm, &TransportOptions::default());
    (sample, fitted.model)
}

fn bits(weights: &[RowWeight]) -> Vec<[u32; 6]> {
    weights.iter().map(|w| [w.weight.to_bits(), w.pull.to_bits(), w.push.to_bits(), w.prior.to_bits(), w.safe_ref, w.harm_ref]).collect()
}

fn all_finite(fitted: &Fit, weights: &[RowWeight]) {
    let model = &fitted.model;
    assert!(model.safe_potential.iter().chain(&model.harm_potential).all(|g| g.is_finite()));
    assert!(weights.iter().all(|w| [w.weight, w.pull, w.push, w.prior].iter().all(|v| v.is_finite()) && w.weight >= 0.0));
    let report = &fitted.report;
    let costs = report.transport_cost;
    for value in [
        report.residuals.safe,
        report.residuals.harm,
        report.ess,
        report.mean_weight,
        costs.safe.before,
        costs.safe.after,
        costs.harm.before,
        costs.harm.after,
    ] {
        assert!(value.is_finite(), "{report:?}");
    }
    assert!(report.certificate.is_finite(), "{report:?}");
    // The card is written as JSON, which has neither NaN nor infinity: a number that was one would not read back.
    let text = serde_json::to_string(report).unwrap();
    assert_eq!(serde_json::from_str::<FitReport>(&text).unwrap().certificate.rows, report.certificate.rows);
}

#[test]
fn same_as_naive_fit() {
    let rows = naive::mixed_sample(300, 12, 1);
    for (epsilon, push, tau) in [(0.05, 0.0, 0.2), (0.1, 0.5, 0.3), (0.08, 1.0, 0.4), (0.2, 1.0, 0.3), (0.1, 0.0, 0.06)] {
        let (safe, harm) = naive::two_blobs(20, 30, 12, 2);
        let (_, _, expected) = naive::fit_batch(rows.view(), &safe, &harm, (epsilon, push, tau));
        let fitted = fit_quietly(rows.view(), &safe, &harm, &plain(epsilon, push, tau).with_threshold(1e-6));
        assert!(fitted.report.converged, "{epsilon} {push} {tau}: {:?}", fitted.report);
        let weights = fitted.model.weigh(rows.view()).unwrap();
        for (ours, theirs) in weights.iter().zip(&expected) {
            assert!((f64::from(ours.weight) / theirs - 1.0).abs() < 1e-3, "{epsilon} {push} {tau}: {ours:?} {theirs}");
        }
    }
}

#[test]
fn weights_match_the_formula_of_the_model() {
    let (rows, model) = model(400, 20, 3);
    let weights = model.weigh(rows.view()).unwrap();
    let (safe, harm) = (naive::cost(rows.view(), &model.safe), naive::cost(rows.view(), &model.harm));
    for (i, ours) in weights.iter().enumerate() {
        let (pull, pi) = naive::soft_transform(&safe[i], &model.safe_potential, model.safe.masses(), model.epsilon);
        let (push, _) = naive::soft_transform(&harm[i], &model.harm_potential, model.harm.masses(), model.epsilon);
        let prior = model.prior.strength * naive::prior_h(&model.prior, &safe[i], &harm[i]);
        let weight = (-(pull - model.push * push + prior) / model.tau - model.log_z).exp();
        assert!((f64::from(ours.weight) / weight - 1.0).abs() < 1e-4, "{ours:?} {weight}");
        assert!((f64::from(ours.pull) - pull).abs() < 1e-5 && (f64::from(ours.push) - push).abs() < 1e-5);
        let best = pi.iter().copied().fold(0.0, f64::max);
        assert!(pi[ours.safe_ref as usize] > best - 1e-4);
    }
}

#[test]
fn bits_do_not_depend_on_chunks_threads_or_order() {
    let (_, model) = model(600, 24, 4);
    let rows = naive::mixed_sample(1500, 24, 5);
    let whole = bits(&model.weigh(rows.view()).unwrap());
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for chunk in [1, 7, 64, 1000] {
            let weigher = model.weigher().unwrap();
            let parts: Vec<RowWeight> = pool.install(|| {
                let limit = if chunk == 1 { 200 } else { rows.nrows() };
                rows.slice(s![..limit, ..]).axis_chunks_iter(Axis(0), chunk).flat_map(|c| weigher.weigh(c).unwrap()).collect()
            });
            assert_eq!(bits(&parts), whole[..parts.len()], "chunk {chunk}, {threads} threads");
        }
    }
    let mut order: Vec<usize> = (0..rows.nrows()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(6));
    let shuffled = bits(&model.weigh(rows.select(Axis(0), &order).view()).unwrap());
    assert!(order.iter().zip(&shuffled).all(|(index, b)| *b == whole[*index]));
    let columns = rows.t().as_standard_layout().into_owned();
    assert_eq!(bits(&model.weigh(columns.t()).unwrap()), whole, "memory layout");
}

#[test]
fn a_fit_does_not_depend_on_threads_or_the_cache() {
    let rows = naive::mixed_sample(1700, 16, 7);
    let (safe, harm) = naive::two_blobs(20, 35, 16, 8);
    let fit_with = |threads: usize, cost_cache_bytes: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = TransportOptions { cost_cache_bytes, ..TransportOptions::default() };
        pool.install(|| fit_quietly(rows.view(), &safe, &harm, &options))
    };
    let one = fit_with(1, 1 << 30);
    assert_eq!(one, fit_with(3, 1 << 30));
    assert_eq!(one, fit_with(2, 0));
    assert_eq!(one, fit_with(2, 200_000));
}

#[test]
fn mean_weight_is_one_and_the_effective_size_is_met() {
    for (rows, target) in [(100, 0.5), (2000, 0.3), (3000, 0.8)] {
        let sample = naive::mixed_sample(rows, 16, 9);
        let (safe, harm) = naive::two_blobs(20, 20, 16, 10);
        let options = TransportOptions::default().with_temperature(Temperature::Ess(target));
        let fitted = fit_quietly(sample.view(), &safe, &harm, &options);
        let weights = fitted.model.weigh(sample.view()).unwrap();
        let mean = weights.iter().map(|w| f64::from(w.weight)).sum::<f64>() / rows as f64;
        assert!((mean - 1.0).abs() < 1e-5 && (fitted.report.mean_weight - 1.0).abs() < 1e-9, "{mean}");
        assert!(fitted.report.converged, "{:?}", fitted.report);
        assert!((fitted.report.ess - target).abs() <= 1e-3);
        assert_eq!(fitted.report.held_out.is_some(), rows >= HELD_OUT_MIN_SAMPLE);
        // The weights of the whole sample have the size that was asked for, held-out rows included.
        let squares = weights.iter().map(|w| f64::from(w.weight).powi(2)).sum::<f64>() / rows as f64;
        assert!((1.0 / squares - target).abs() <= 2e-3, "{}", 1.0 / squares);
    }
}

#[test]
fn weighing_pulls_to_safe_and_pushes_from_harm() {
    let sample = naive::mixed_sample(1500, 16, 11);
    let (safe, harm) = naive::two_blobs(40, 40, 16, 12);
    let fitted = fit_quietly(sample.view(), &safe, &harm, &TransportOptions::default());
    let weights = fitted.model.weigh(sample.view()).unwrap();
    let mean = |span: std::ops::Range<usize>| weights[span.clone()].iter().map(|w| f64::from(w.weight)).sum::<f64>() / span.len() as f64;
    assert!(mean(0..500) > 1.2 && mean(500..1000) < 0.8, "{} {}", mean(0..500), mean(500..1000));
    let costs = fitted.report.transport_cost;
    assert!(costs.safe.after < costs.safe.before && costs.harm.after > costs.harm.before, "{costs:?}");
}

#[test]
fn warm_potentials_start_where_the_last_fit_ended() {
    let rows = naive::mixed_sample(1200, 16, 17);
    let (safe, harm) = naive::two_blobs(25, 25, 16, 18);
    // Without held-out rows: a fit that leaves some out first goes to their absence's optimum and back.
    let options = TransportOptions::default().with_held_out(0.0);
    let cold = fit_quietly(rows.view(), &safe, &harm, &options);
    let potentials = Some((&cold.model.safe_potential[..], &cold.model.harm_potential[..]));
    let warm = fit(rows.view(), &safe, &harm, &options, potentials, &mut |_| {}).unwrap();
    assert!(warm.report.steps <= 3 && warm.report.online_steps == 0, "{:?}", warm.report);
    let wrong = fit(rows.view(), &safe, &harm, &options, Some((&[0.0], &[0.0])), &mut |_| {});
    assert!(wrong.unwrap_err().to_string().contains("warm"));
}

#[test]
fn held_out_error_is_mostly_the_expected_noise() {
    let sample = naive::mixed_sample(6000, 16, 45);
    let (safe, harm) = naive::two_blobs(60, 60, 16, 46);
    let report = fit_quietly(sample.view(), &safe, &harm, &TransportOptions::default()).report;
    let (error, noise) = (report.held_out.unwrap(), report.held_out_noise.unwrap());
    for (error, noise) in [(error.safe, noise.safe), (error.harm, noise.harm)] {
        assert!((0.6..1.6).contains(&(error / noise)), "{error} {noise}");
        assert!(error > report.residuals.safe.max(report.residuals.harm));
    }
}

#[test]
fn nothing_pushed_still_has_a_push_column() {
    let rows = naive::mixed_sample(700, 16, 19);
    let (safe, harm) = naive::two_blobs(25, 25, 16, 20);
    let fitted = fit_quietly(rows.view(), &safe, &harm, &TransportOptions::default().with_push(0.0));
    assert!(fitted.report.converged && fitted.report.residuals.harm < 0.05, "{:?}", fitted.report);
    assert!(fitted.model.harm_potential.iter().any(|g| *g != 0.0));
}

#[test]
fn bad_rows_are_named() {
    let (safe, harm) = naive::two_blobs(5, 5, 3, 27);
    let options = TransportOptions::default();
    let message = |rows: Array2<f32>| fit(rows.view(), &safe, &harm, &options, None, &mut |_| {}).unwrap_err().to_string();
    assert!(message(array![[1.0, 0.0, 0.0], [f32::INFINITY, 0.0, 0.0]]).contains("row 1"));
    assert!(message(array![[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]).contains("row 1"));
    assert!(message(array![[1.0, 0.0]]).contains("2 dimensions"));
    assert!(message(Array2::zeros((0, 3))).contains("empty"));
    let fitted = fit_quietly(naive::mixed_sample(50, 3, 28).view(), &safe, &harm, &options);
    assert!(fitted.model.weigh(array![[f32::NAN, 0.0, 0.0]].view()).unwrap_err().to_string().contains("row 0"));
    assert!(fitted.model.weigh(Array2::zeros((0, 3)).view()).unwrap().is_empty());
}

#[test]
fn a_model_whose_parts_do_not_fit_is_rejected() {
    let (_, good) = model(300, 8, 29);
    type Breakage = fn(&mut TransportModel);
    let broken: [(&str, Breakage); 6] = [
        ("safe_potential", |m| m.safe_potential.push(0.0)),
        ("harm_potential", |m| m.harm_potential[0] = f64::NAN),
        ("prior", |m| m.prior.safe.clear()),
        ("epsilon", |m| m.epsilon = 0.0),
        ("tau", |m| m.tau = -1.0),
        ("log_z", |m| m.log_z = f64::INFINITY),
    ];
    for (name, breakage) in broken {
        let mut model = good.clone();
        breakage(&mut model);
        assert!(TransportModel::try_new(model).unwrap_err().to_string().contains(&format!("model.{name}")));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn weights_are_the_same_as_naive(
        seed in 0u64..1000,
        rows in 1usize..150,
        dims in 2usize..24,
        safe in 1usize..40,
        harm in 1usize..40,
        epsilon in 0.02f64..1.0,
        push in 0.0f64..2.0,
        tau in 0.05f64..1.0,
    ) {
        let model = TransportModel {
            safe: ReferenceSet::try_new(naive::unit_rows(safe, dims, seed), naive::masses(safe, seed + 1)).unwrap(),
            harm: ReferenceSet::try_new(naive::unit_rows(harm, dims, seed + 2), naive::masses(harm, seed + 3)).unwrap(),
            safe_potential: naive::potential(safe, 0.3, seed + 4),
            harm_potential: naive::potential(harm, 0.3, seed + 5),
            prior: Prior { safe: naive::potential(safe, 2.0, seed + 6), harm: naive::potential(harm, 2.0, seed + 8), intercept: 0.1, inverse_penalty: 30.0, strength: 0.1 },
            epsilon,
            push,
            tau,
            log_z: 0.2,
            slack: None,
        };
        let sample = naive::unit_rows(rows, dims, seed + 7);
        let (to_safe, to_harm) = (naive::cost(sample.view(), &model.safe), naive::cost(sample.view(), &model.harm));
        for (i, ours) in model.weigh(sample.view()).unwrap().iter().enumerate() {
            let (pull, _) = naive::soft_transform(&to_safe[i], &model.safe_potential, model.safe.masses(), epsilon);
            let (away, _) = naive::soft_transform(&to_harm[i], &model.harm_potential, model.harm.masses(), epsilon);
            let expected = (-(pull - push * away + 0.1 * naive::prior_h(&model.prior, &to_safe[i], &to_harm[i])) / tau - 0.2).exp();
            prop_assert!((f64::from(ours.weight) / expected - 1.0).abs() < 1e-6 * (5.0 + 5.0 / tau), "{ours:?} {expected}");
        }
    }

    #[test]
    fn a_shift_of_a_potential_changes_no_weight_beyond_the_normaliser(shift in -0.5f64..0.5, seed in 0u64..1000) {
        let (rows, model) = model(60, 7, seed);
        let mut moved = model.clone();
        moved.safe_potential.iter_mut().for_each(|g| *g += shift);
        // f falls by the shift, so the score does, and log Z takes it up.
        moved.log_z += shift / model.tau;
        for (a, b) in model.weigh(rows.view()).unwrap().iter().zip(moved.weigh(rows.view()).unwrap()) {
            prop_assert!((a.weight - b.weight).abs() <= 2e-4 * a.weight, "{a:?} {b:?}");
            prop_assert_eq!(a.harm_ref, b.harm_ref);
        }
    }

    #[test]
    fn fits_are_finite_and_average_to_one(
        seed in 0u64..1000,
        rows in 1usize..400,
        dims in 1usize..20,
        safe in 1usize..40,
        harm in 1usize..40,
        log_epsilon in -4.0f64..1.0,
        push in 0.0f64..2.0,
    ) {
        let sample = naive::unit_rows(rows, dims, seed);
        let safe = ReferenceSet::try_new(naive::unit_rows(safe, dims, seed + 1), naive::masses(safe, seed)).unwrap();
        let harm = ReferenceSet::uniform(naive::unit_rows(harm, dims, seed + 2)).unwrap();
        let options = TransportOptions::default().with_epsilon(10f64.powf(log_epsilon)).with_push(push).with_max_steps(30);
        let fitted = fit_quietly(sample.view(), &safe, &harm, &options);
        let weights = fitted.model.weigh(sample.view()).unwrap();
        all_finite(&fitted, &weights);
        // Where few rows can be told apart the temperature may fall so far that log Z is a number of millions, and its last digit shows.
        prop_assert!((fitted.report.mean_weight - 1.0).abs() < 1e-9 + 4.0 * f64::EPSILON * fitted.model.log_z.abs());
    }
}
