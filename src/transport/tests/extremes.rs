//! Nothing becomes NaN or infinite anywhere in the range that options and inputs may have.

use ndarray::{Array2, s};

use super::*;

/// Rounds to the nearest half float that f16 storage would give (values near 1; smaller ones lose no less).
fn half(rows: &Array2<f32>) -> Array2<f32> {
    rows.mapv(|v| f32::from_bits((v.to_bits() + 0x0fff + ((v.to_bits() >> 13) & 1)) & !0x1fff))
}

#[test]
fn half_float_vectors_give_nearly_the_same_weights() {
    let rows = naive::mixed_sample(700, 48, 120);
    let (safe, harm) = naive::two_blobs(20, 25, 48, 121);
    let halved = |set: &ReferenceSet| ReferenceSet::uniform(half(&set.vectors().to_owned())).unwrap();
    let options = TransportOptions::default();
    let exact = fit_quietly(rows.view(), &safe, &harm, &options);
    let rounded = fit_quietly(half(&rows).view(), &halved(&safe), &halved(&harm), &options);
    assert!(exact.report.converged && rounded.report.converged);
    let (a, b) = (exact.model.weigh(rows.view()).unwrap(), rounded.model.weigh(half(&rows).view()).unwrap());
    all_finite(&rounded, &b);
    for (a, b) in a.iter().zip(&b) {
        assert!((a.weight / b.weight - 1.0).abs() < 0.05, "{a:?} {b:?}");
    }
}

#[test]
fn every_size_of_reference_set_is_finite() {
    for (safe, harm, dims) in [(1, 1, 1), (1, 8192, 3), (8192, 3000, 4), (2, 17, 2), (300, 5, 8)] {
        let safe = ReferenceSet::uniform(naive::unit_rows(safe, dims, 122)).unwrap();
        let harm = ReferenceSet::try_new(naive::unit_rows(harm, dims, 123), naive::masses(harm, 124)).unwrap();
        let sample = naive::unit_rows(100, dims, 125);
        for epsilon in [1e-4, 10.0] {
            let options = TransportOptions::default().with_epsilon(epsilon).with_max_steps(4);
            let fitted = fit_quietly(sample.view(), &safe, &harm, &options);
            all_finite(&fitted, &fitted.model.weigh(sample.view()).unwrap());
        }
    }
}

#[test]
fn one_reference_a_side_weighs_by_distance_alone() {
    let (safe, harm) = naive::two_blobs(1, 1, 6, 126);
    let sample = naive::mixed_sample(300, 6, 127);
    let fitted = fit_quietly(sample.view(), &safe, &harm, &TransportOptions::default().with_prior(0.0));
    // A single reference has potential 0 and any weights match its marginal.
    assert!(fitted.report.converged && fitted.model.safe_potential == [0.0] && fitted.model.harm_potential == [0.0]);
    assert_eq!(fitted.report.certificate.stability, 0.0);
    let similarity = |i: usize, set: &ReferenceSet| f64::from(sample.row(i).dot(&set.vectors().row(0)));
    for (i, row) in fitted.model.weigh(sample.view()).unwrap().iter().enumerate() {
        let score = similarity(i, &harm) - similarity(i, &safe);
        assert!((f64::from(row.pull - row.push) - score).abs() < 1e-5, "{row:?} {score}");
    }
}

#[test]
fn identical_sets_cancel_for_a_push_of_one() {
    let set = ReferenceSet::uniform(naive::unit_rows(20, 8, 128)).unwrap();
    let sample = naive::unit_rows(400, 8, 129);
    let fitted = fit_quietly(sample.view(), &set, &set, &plain(0.1, 1.0, 0.3));
    assert!(fitted.report.converged, "{:?}", fitted.report);
    let weights = fitted.model.weigh(sample.view()).unwrap();
    assert!(weights.iter().all(|w| (w.weight - 1.0).abs() < 0.02), "{weights:?}");
}

#[test]
fn odd_inputs_stay_finite() {
    let zero = ReferenceSet::uniform(Array2::zeros((3, 6))).unwrap();
    let one = ReferenceSet::uniform(naive::unit_rows(1, 6, 21)).unwrap();
    let row = naive::unit_rows(1, 6, 22);
    let same = ReferenceSet::uniform(Array2::from_shape_fn((40, 6), |(_, k)| row[[0, k]])).unwrap();
    let (safe, harm) = naive::two_blobs(10, 12, 6, 23);
    let mut sample = naive::mixed_sample(300, 6, 24);
    sample.row_mut(5).fill(0.0);
    for (safe, harm) in [(&zero, &harm), (&safe, &zero), (&one, &one), (&one, &harm), (&same, &harm), (&same, &same), (&safe, &harm)] {
        for epsilon in [1e-4, 0.05, 10.0] {
            for temperature in [Temperature::Ess(0.5), Temperature::Fixed(1e-3), Temperature::Fixed(5.0)] {
                let options = TransportOptions::default().with_epsilon(epsilon).with_temperature(temperature).with_max_steps(25);
                let fitted = fit_quietly(sample.view(), safe, harm, &options);
                all_finite(&fitted, &fitted.model.weigh(sample.view()).unwrap());
                assert_eq!(fitted.report.converged, fitted.report.why_not.is_none());
            }
        }
    }
    let single = fit_quietly(sample.slice(s![..1, ..]), &safe, &harm, &TransportOptions::default());
    all_finite(&single, &single.model.weigh(sample.view()).unwrap());
    assert!(!single.report.converged);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_option_within_its_range_gives_finite_numbers(
        seed in 0u64..1000,
        rows in 1usize..300,
        dims in 1usize..12,
        safe in 1usize..30,
        harm in 1usize..30,
        log_epsilon in -4.0f64..2.0,
        log_push in -3.0f64..3.0,
        log_tau in -6.0f64..6.0,
        target in 0.001f64..0.999,
        fixed in any::<bool>(),
        log_slack in proptest::option::of(-6.0f64..4.0),
        duplicates in 1usize..8,
        steps in 1usize..50,
    ) {
        // Every third row is a zero vector, the rest come in groups of equal ones.
        let distinct = naive::unit_rows(rows, dims, seed);
        let sample = Array2::from_shape_fn((rows, dims), |(i, k)| if i % 3 == 2 { 0.0 } else { distinct[[i / duplicates, k]] });
        let set = |n, seed| ReferenceSet::try_new(naive::unit_rows(n, dims, seed), naive::masses(n, seed)).unwrap();
        let temperature = if fixed { Temperature::Fixed(10f64.powf(log_tau)) } else { Temperature::Ess(target) };
        let options = TransportOptions::default()
            .with_epsilon(10f64.powf(log_epsilon))
            .with_push(10f64.powf(log_push))
            .with_temperature(temperature)
            .with_slack(log_slack.map(|log| 10f64.powf(log)))
            .with_max_steps(steps);
        let fitted = fit_quietly(sample.view(), &set(safe, seed + 1), &set(harm, seed + 2), &options);
        all_finite(&fitted, &fitted.model.weigh(sample.view()).unwrap());
        prop_assert_eq!(fitted.report.converged, fitted.report.why_not.is_none());
    }
}
