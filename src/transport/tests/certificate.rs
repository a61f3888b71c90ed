//! The certificate, its twin in f64 loops, what it says of wrong models, and what a fit says that doesn't converge.

use ndarray::{Array2, Axis, concatenate};

use super::*;
use crate::transport::certificate::Certificate;

/// Marginal error, primal and dual value of one side by the formulas.
fn by_formula(rows: &Array2<f32>, set: &ReferenceSet, potential: &[f64], epsilon: f64, weights: &[f64], slack: Option<f64>) -> (f64, f64) {
    let total: f64 = weights.iter().sum();
    let (mut primal, mut dual) = (0.0, 0.0);
    let mut marginal = vec![0.0; set.len()];
    for (cost, w) in naive::cost(rows.view(), set).iter().zip(weights) {
        let (f, pi) = naive::soft_transform(cost, potential, set.masses(), epsilon);
        dual += w / total * f;
        for (j, share) in pi.iter().enumerate() {
            marginal[j] += w / total * share;
            if *share > 0.0 {
                primal += w / total * share * (cost[j] + epsilon * (share / set.masses()[j]).ln());
            }
        }
    }
    let mut target = set.masses().to_vec();
    match slack {
        None => dual += potential.iter().zip(set.masses()).map(|(g, q)| g * q).sum::<f64>(),
        Some(rho) => {
            let tilted: Vec<f64> = potential.iter().zip(set.masses()).map(|(g, q)| q * (-g / rho).exp()).collect();
            let sum: f64 = tilted.iter().sum();
            dual -= rho * sum.ln();
            primal += rho * marginal.iter().zip(set.masses()).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
            target = tilted.iter().map(|t| t / sum).collect();
        }
    }
    (marginal.iter().zip(&target).map(|(p, q)| (p - q).abs()).sum(), primal - dual)
}

#[test]
fn the_certificate_is_the_same_as_naive() {
    let rows = naive::mixed_sample(700, 14, 60);
    let safe = ReferenceSet::try_new(naive::blob(20, &naive::axis(14, 0), 0.3, 61), naive::masses(20, 62)).unwrap();
    let harm = ReferenceSet::uniform(naive::blob(30, &naive::axis(14, 1), 0.3, 63)).unwrap();
    let base = TransportOptions::default;
    for options in [
        base(),
        base().with_push(0.0),
        base().with_epsilon(0.01).with_push(0.4).with_max_steps(3),
        base().with_slack(Some(0.2)),
        base().with_slack(Some(0.2)).with_max_steps(1),
        plain(0.2, 1.0, 0.5),
    ] {
        let fitted = fit_quietly(rows.view(), &safe, &harm, &options);
        let (model, certificate) = (&fitted.model, &fitted.report.certificate);
        let weights: Vec<f64> = model.weigh(rows.view()).unwrap().iter().map(|w| f64::from(w.weight)).collect();
        let sides = [
            (&safe, &model.safe_potential, certificate.residuals.safe, certificate.gap.safe),
            (&harm, &model.harm_potential, certificate.residuals.harm, certificate.gap.harm),
        ];
        for (set, potential, residual, gap) in sides {
            let (expected_residual, expected_gap) = by_formula(&rows, set, potential, model.epsilon, &weights, options.slack);
            assert!((residual - expected_residual).abs() < 1e-5, "{options:?}: {residual} {expected_residual}");
            assert!((gap - expected_gap).abs() < 1e-6, "{options:?}: {gap:e} {expected_gap:e}");
        }
        let squares: f64 = weights.iter().map(|w| w * w).sum::<f64>() / 700.0;
        assert!((certificate.ess - 1.0 / squares).abs() < 1e-6 && (certificate.mean_weight - 1.0).abs() < 1e-6);
        assert_eq!((certificate.rows, certificate.stability_rows), (700, 700));
        assert!(certificate.weight_error < 1e-5, "{certificate:?}");
        // The solver says the same of itself.
        let report = &fitted.report;
        assert!((report.residuals.safe - certificate.residuals.safe).abs() < 1e-6, "{report:?}");
        assert!((report.residuals.harm - certificate.residuals.harm).abs() < 1e-6 && (report.ess - certificate.ess).abs() < 1e-6);
        assert_eq!(certificate.ess_target, if options.temperature == Temperature::Ess(0.5) { Some(0.5) } else { None });
        assert_eq!((certificate.stability == 0.0, certificate.joint_rate == 0.0), (options.push == 0.0, options.push == 0.0));
        assert!(certificate.stability >= 1.0 || certificate.joint_rate < 1.0, "{certificate:?}");
    }
}

#[test]
fn at_an_optimum_primal_and_dual_meet() {
    let rows = naive::mixed_sample(500, 12, 64);
    let (safe, harm) = naive::two_blobs(20, 30, 12, 65);
    let loose = fit_quietly(rows.view(), &safe, &harm, &plain(0.05, 1.0, 0.3).with_threshold(0.2)).report.certificate;
    let tight = fit_quietly(rows.view(), &safe, &harm, &plain(0.05, 1.0, 0.3).with_threshold(1e-6)).report.certificate;
    assert!(tight.gap.safe.abs() < 1e-6 && tight.gap.harm.abs() < 1e-6, "{tight:?}");
    assert!(loose.gap.safe.abs() > 1e-5 && loose.gap.harm.abs() > 1e-3, "{loose:?}");
    assert!(tight.stability > 0.05 && tight.stability < 1.0, "{tight:?}");
}

#[test]
fn a_wrong_model_gets_no_certificate() {
    let rows = naive::mixed_sample(900, 16, 66);
    let (safe, harm) = naive::two_blobs(25, 25, 16, 67);
    let good = fit_quietly(rows.view(), &safe, &harm, &TransportOptions::default()).model;
    let order: Vec<usize> = (0..900).collect();
    let measure = |model: &TransportModel| Certificate::measure(model, rows.view(), &order, Temperature::Ess(0.5)).unwrap();
    let right = measure(&good);
    assert!(right.residuals.safe < 1e-3 && right.residuals.harm < 1e-3 && (right.ess - 0.5).abs() < 1e-3, "{right:?}");
    let mut moved = good.clone();
    moved.harm_potential[3] += 0.1;
    assert!(measure(&moved).residuals.harm > 1e-2 && measure(&moved).gap.harm.abs() > 1e-4);
    moved = good.clone();
    moved.safe_potential[3] -= 0.1;
    assert!(measure(&moved).residuals.safe > 1e-2);
    moved = good.clone();
    moved.log_z += 0.1;
    assert!((measure(&moved).mean_weight - (-0.1f64).exp()).abs() < 1e-5 && measure(&moved).weight_error > 0.09);
    moved = good.clone();
    moved.tau *= 2.0;
    assert!(measure(&moved).ess > 0.6);
}

#[test]
fn below_one_every_small_change_of_the_weights_costs_more() {
    let rows = naive::mixed_sample(40, 8, 68);
    let (safe, harm) = naive::two_blobs(6, 7, 8, 69);
    for (epsilon, push, tau) in [(0.1, 1.0, 0.15), (0.05, 1.0, 0.1), (0.2, 2.0, 0.3)] {
        let fitted = fit_quietly(rows.view(), &safe, &harm, &plain(epsilon, push, tau).with_threshold(1e-7).with_max_steps(2000));
        let sigma = fitted.report.certificate.stability;
        assert!(sigma > 0.0 && sigma < 1.0, "{epsilon} {push} {tau}: {:?}", fitted.report);
        let weights: Vec<f64> = fitted.model.weigh(rows.view()).unwrap().iter().map(|w| f64::from(w.weight) / 40.0).collect();
        let objective = |w: &[f64]| {
            let total: f64 = w.iter().sum();
            let w: Vec<f64> = w.iter().map(|v| v / total).collect();
            let divergence: f64 = w.iter().map(|v| v * (v * 40.0).ln()).sum();
            naive::transport_cost(rows.view(), &safe, epsilon, &w) - push * naive::transport_cost(rows.view(), &harm, epsilon, &w)
                + tau * divergence
        };
        let least = objective(&weights);
        for seed in 0..12 {
            let change = naive::potential(40, 0.05, 70 + seed);
            let near: Vec<f64> = weights.iter().zip(&change).map(|(w, c)| w * (1.0 + c)).collect();
            assert!(objective(&near) > least, "{epsilon} {push} {tau} {seed}: {} {least}", objective(&near));
        }
    }
}

fn why(fitted: &Fit) -> &str {
    assert!(!fitted.report.converged, "{:?}", fitted.report);
    fitted.report.why_not.as_deref().unwrap()
}

#[test]
fn an_effective_size_out_of_reach_is_said() {
    let (safe, harm) = naive::two_blobs(10, 10, 8, 80);
    let row = naive::unit_rows(1, 8, 81);
    let same = Array2::from_shape_fn((400, 8), |(_, k)| row[[0, k]]);
    // Every row scores alike; then three of four do, at the best score.
    let towards = safe.vectors().slice(s![..1, ..]).to_owned();
    let mostly = Array2::from_shape_fn((400, 8), |(i, k)| if i % 4 == 0 { -towards[[0, k]] } else { towards[[0, k]] });
    for (rows, reached) in [(&same, 1.0), (&mostly, 0.75)] {
        let fitted = fit_quietly(rows.view(), &safe, &harm, &TransportOptions::default());
        let text = why(&fitted);
        assert!(text.contains("effective sample size of 0.5") && text.contains("`temperature`"), "{text}");
        assert!((fitted.report.ess - reached).abs() < 1e-2, "{:?}", fitted.report);
    }
}

#[test]
fn too_few_steps_are_said() {
    let rows = naive::mixed_sample(700, 16, 82);
    let (safe, harm) = naive::two_blobs(40, 40, 16, 83);
    for push in [0.0, 1.0] {
        let fitted = fit_quietly(rows.view(), &safe, &harm, &TransportOptions::default().with_push(push).with_max_steps(2));
        assert!(why(&fitted).contains("after all 2 steps") && why(&fitted).contains("`max_steps`"), "{}", why(&fitted));
        assert!(!fitted.report.oscillated && fitted.report.halvings == 0);
    }
}

#[test]
fn a_push_that_does_not_settle_is_said() {
    let rows = naive::mixed_sample(1200, 16, 25);
    let (safe, harm) = naive::two_blobs(40, 40, 16, 26);
    for (epsilon, push, tau) in [(0.02, 2.0, 0.05), (0.1, 2.0, 0.02), (0.005, 2.0, 0.05)] {
        let fitted = fit_quietly(rows.view(), &safe, &harm, &plain(epsilon, push, tau));
        assert!(fitted.report.oscillated && fitted.report.halvings > 0, "{:?}", fitted.report);
        assert!(fitted.report.certificate.stability >= 1.0, "{:?}", fitted.report);
        let text = why(&fitted);
        assert!(text.contains("does not settle") && text.contains("`push`") && text.contains("`epsilon`"), "{text}");
        // What the message says helps.
        for options in [plain(epsilon, 0.2 * push, tau.max(0.05)), plain(epsilon, push, 1.0), plain(0.5, push, tau.max(0.1))] {
            let fitted = fit_quietly(rows.view(), &safe, &harm, &options);
            assert!(fitted.report.converged, "{options:?}: {:?}", fitted.report);
        }
    }
}

#[test]
fn smaller_steps_can_save_a_push_that_does_not_settle() {
    let rows = naive::mixed_sample(1200, 16, 25);
    let (safe, harm) = naive::two_blobs(40, 40, 16, 26);
    let report = fit_quietly(rows.view(), &safe, &harm, &plain(0.005, 1.0, 0.05)).report;
    assert!(report.oscillated && report.halvings > 0 && report.converged && report.why_not.is_none(), "{report:?}");
}

#[test]
fn a_safe_marginal_that_is_not_reached_is_said() {
    // Half of the safe references are far from every row, at an epsilon whose steps cannot carry mass that far.
    let rows = naive::blob(500, &naive::axis(12, 0), 0.2, 84);
    let near = naive::blob(10, &naive::axis(12, 0), 0.2, 85);
    let far = naive::blob(10, &naive::axis(12, 5), 0.2, 86);
    let safe = ReferenceSet::uniform(concatenate(Axis(0), &[near.view(), far.view()]).unwrap()).unwrap();
    let harm = ReferenceSet::uniform(naive::blob(8, &naive::axis(12, 1), 0.2, 87)).unwrap();
    let options = TransportOptions::default().with_epsilon(2e-4).with_push(0.0).with_max_steps(60);
    let fitted = fit_quietly(rows.view(), &safe, &harm, &options);
    assert!(why(&fitted).contains("the pull side's marginal error") && why(&fitted).contains("`slack`"), "{}", why(&fitted));
    // Both ways out that the message names.
    for options in [options.clone().with_epsilon(0.1), options.with_slack(Some(1e-3)).with_max_steps(300)] {
        let fitted = fit_quietly(rows.view(), &safe, &harm, &options);
        assert!(fitted.report.converged, "{options:?}: {:?}", fitted.report);
    }
}

#[test]
fn observed_rows_measure_the_model_and_add_up() {
    let sample = naive::mixed_sample(1200, 16, 40);
    let (safe, harm) = naive::two_blobs(20, 25, 16, 41);
    let fitted = fit_quietly(sample.view(), &safe, &harm, &TransportOptions::default().with_held_out(0.0));
    let weigher = fitted.model.weigher().unwrap();
    let mut whole = Observed::new(&fitted.model);
    let weights = weigher.weigh_observed(sample.view(), &mut whole).unwrap();
    assert_eq!(bits(&weights), bits(&weigher.weigh(sample.view()).unwrap()));
    let residuals = whole.residuals(&fitted.model).unwrap();
    assert!((residuals.safe - fitted.report.residuals.safe).abs() < 1e-5 && residuals.harm < 1e-3, "{residuals:?}");
    assert!((whole.ess() - fitted.report.ess).abs() < 1e-5 && (whole.mean_weight() - 1.0).abs() < 1e-5);
    let mut parts = Observed::new(&fitted.model);
    for chunk in sample.axis_chunks_iter(Axis(0), 130) {
        let mut part = Observed::new(&fitted.model);
        weigher.weigh_observed(chunk, &mut part).unwrap();
        parts.merge(&part).unwrap();
    }
    assert_eq!(parts.rows, whole.rows);
    assert!(parts.safe.marginal.iter().zip(&whole.safe.marginal).all(|(a, b)| (a / b - 1.0).abs() < 1e-9));
    assert!(parts.merge(&Observed::default()).is_err());
}
