//! The transport stage against numbers made by other programs (see `fixtures/transport/README.md`).

use ndarray::Array2;
use pushpull::transport::{Fit, Prior, ReferenceSet, RowWeight, Temperature, TransportOptions, fit};
use serde_json::Value;

struct Golden(Value);

impl Golden {
    fn load(name: &str) -> Self {
        let path = format!("{}/fixtures/transport/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        Self(serde_json::from_str(&text).unwrap())
    }

    fn number(&self, key: &str) -> f64 {
        self.0[key].as_f64().unwrap_or_else(|| panic!("no number {key}"))
    }

    fn numbers(&self, key: &str) -> Vec<f64> {
        self.0[key].as_array().unwrap_or_else(|| panic!("no list {key}")).iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn vectors(&self, key: &str) -> Array2<f32> {
        let bytes = decode_base64(self.0[key].as_str().unwrap());
        let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let dims = self.number("dims") as usize;
        Array2::from_shape_vec((values.len() / dims, dims), values).unwrap()
    }

    fn references(&self, side: &str) -> ReferenceSet {
        ReferenceSet::try_new(self.vectors(&format!("{side}_f32")), self.numbers(&format!("{side}_masses"))).unwrap()
    }

    /// Fits every row of the problem with its own settings.
    fn fit(&self, threshold: f64) -> (Fit, Vec<RowWeight>) {
        let options = TransportOptions::default()
            .with_epsilon(self.number("epsilon"))
            .with_push(self.number("push"))
            .with_prior(0.0)
            .with_temperature(Temperature::Fixed(self.number("tau")))
            .with_slack(self.0["slack"].as_f64())
            .with_held_out(0.0)
            .with_threshold(threshold)
            .with_max_steps(3000);
        let sample = self.vectors("sample_f32");
        let fitted = fit(sample.view(), &self.references("safe"), &self.references("harm"), &options, None, &mut |_| {}).unwrap();
        assert!(fitted.report.converged, "{:?}", fitted.report);
        let weights = fitted.model.weigh(sample.view()).unwrap();
        (fitted, weights)
    }
}

/// Standard alphabet with padding; enough for the fixtures and no dependency.
fn decode_base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => u32::from(c - b'A'),
        b'a'..=b'z' => u32::from(c - b'a') + 26,
        b'0'..=b'9' => u32::from(c - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("not base64: {c}"),
    };
    let digits: Vec<u32> = text.bytes().filter(|c| *c != b'=').map(digit).collect();
    digits
        .chunks(4)
        .flat_map(|group| {
            let word = group.iter().enumerate().fold(0, |word, (k, d)| word | (d << (18 - 6 * k)));
            word.to_be_bytes()[1..group.len()].to_vec()
        })
        .collect()
}

/// `f(x; g)` for every row, from the formula, in f64.
fn transforms(rows: &Array2<f32>, set: &ReferenceSet, potential: &[f64], epsilon: f64) -> Vec<f64> {
    let row = |x: ndarray::ArrayView1<'_, f32>| {
        let exponents: Vec<f64> = set
            .vectors()
            .outer_iter()
            .zip(potential)
            .zip(set.masses())
            .map(|((y, g), q)| {
                let similarity: f64 = x.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                (g - (1.0 - similarity)) / epsilon + q.ln()
            })
            .collect();
        let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        -epsilon * (exponents.iter().map(|a| (a - largest).exp()).sum::<f64>().ln() + largest)
    };
    rows.outer_iter().map(row).collect()
}

fn worst(ours: impl IntoIterator<Item = f64>, theirs: impl IntoIterator<Item = f64>) -> f64 {
    ours.into_iter().zip(theirs).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max)
}

#[test]
fn pull_weights_agree_with_pot_unbalanced() {
    for name in ["pull_small", "pull_sharp", "pull_smooth"] {
        let golden = Golden::load(name);
        let (_, weights) = golden.fit(1e-6);
        let error = worst(weights.iter().map(|w| f64::from(w.weight)), golden.numbers("pot_weights"));
        assert!(error < 1e-4, "{name}: {error:.2e}");
    }
}

#[test]
fn relaxed_weights_agree_with_pot_unbalanced() {
    for name in ["slack_loose", "slack_tight"] {
        let golden = Golden::load(name);
        let (fitted, weights) = golden.fit(1e-6);
        let error = worst(weights.iter().map(|w| f64::from(w.weight)), golden.numbers("pot_weights"));
        assert!(error < 1e-4, "{name}: {error:.2e}");
        // The relaxed marginal is q exp(−g/ρ), up to its sum.
        let model = &fitted.model;
        let tilt = |(g, q): (&f64, &f64)| q * (-g / golden.number("slack")).exp();
        let tilted: Vec<f64> = model.safe_potential.iter().zip(model.safe.masses()).map(tilt).collect();
        let total: f64 = tilted.iter().sum();
        let error = worst(tilted.iter().map(|t| t / total), golden.numbers("pot_safe_marginal"));
        assert!(error < 1e-3, "{name}: {error:.2e}");
    }
}

#[test]
fn push_weights_agree_with_the_fixed_point() {
    for name in ["push_small", "push_uneven", "push_smooth"] {
        let golden = Golden::load(name);
        let (_, weights) = golden.fit(1e-6);
        let error = worst(weights.iter().map(|w| f64::from(w.weight)), golden.numbers("weights"));
        assert!(error < 1e-3, "{name}: {error:.2e}");
    }
}

#[test]
fn both_optimality_conditions_hold() {
    for name in ["pull_small", "pull_sharp", "pull_smooth", "push_small", "push_uneven", "push_smooth"] {
        let golden = Golden::load(name);
        let (fitted, weights) = golden.fit(1e-6);
        let (epsilon, tau, push) = (golden.number("epsilon"), golden.number("tau"), golden.number("push"));
        // 1. Each potential solves its own balanced problem for the weights, by POT.
        let mut sides = vec![("safe", &fitted.model.safe_potential)];
        if push > 0.0 {
            sides.push(("harm", &fitted.model.harm_potential));
        }
        for (side, ours) in sides {
            let pot = golden.numbers(&format!("pot_{side}_potential"));
            let error = ours.iter().zip(&pot).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < 1e-3 * epsilon, "{name} {side}: {error:.2e}");
        }
        // 2. The weights are the closed form of POT's potentials.
        let sample = golden.vectors("sample_f32");
        let transform =
            |side: &str| transforms(&sample, &golden.references(side), &golden.numbers(&format!("pot_{side}_potential")), epsilon);
        let (pull, away) = (transform("safe"), transform("harm"));
        let raw: Vec<f64> = pull.iter().zip(&away).map(|(f, h)| (-(f - push * h) / tau).exp()).collect();
        let mean = raw.iter().sum::<f64>() / raw.len() as f64;
        let error = worst(weights.iter().map(|w| f64::from(w.weight)), raw.iter().map(|w| w / mean));
        assert!(error < 1e-3, "{name}: {error:.2e}");
    }
}

#[test]
fn transport_costs_agree_with_pot() {
    for name in ["pull_small", "pull_sharp", "pull_smooth", "push_small", "push_uneven", "push_smooth"] {
        let golden = Golden::load(name);
        let (fitted, _) = golden.fit(1e-6);
        let costs = fitted.report.transport_cost;
        let ours = [costs.safe.before, costs.harm.before, costs.safe.after, costs.harm.after];
        let pot = [golden.numbers("pot_cost_before"), golden.numbers("pot_cost_after")].concat();
        for (ours, pot) in ours.iter().zip(&pot) {
            assert!((ours - pot).abs() < 1e-4, "{name}: {ours} {pot}");
        }
    }
}

#[test]
fn the_semidiscrete_potential_agrees_with_pot_and_ott() {
    let golden = Golden::load("semidiscrete");
    let epsilon = golden.number("epsilon");
    // Nothing is pushed and the temperature is so high that every weight is 1: what is left is the balanced semi-discrete problem.
    let options = TransportOptions::default()
        .with_epsilon(epsilon)
        .with_push(0.0)
        .with_prior(0.0)
        .with_temperature(Temperature::Fixed(1e9))
        .with_held_out(0.0)
        .with_threshold(1e-6)
        .with_max_steps(3000);
    let (sample, safe) = (golden.vectors("sample_f32"), golden.references("safe"));
    let fitted = fit(sample.view(), &safe, &safe, &options, None, &mut |_| {}).unwrap();
    assert!(fitted.report.converged && fitted.report.certificate.residuals.safe < 2e-6, "{:?}", fitted.report);
    assert!(fitted.model.weigh(sample.view()).unwrap().iter().all(|w| (w.weight - 1.0).abs() < 1e-6));
    for who in ["pot", "ott"] {
        let theirs = golden.numbers(&format!("{who}_potential"));
        let error = fitted.model.safe_potential.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < 1e-4 * epsilon, "{who}: {error:.2e}");
    }
}

#[test]
fn the_golden_optima_are_certified() {
    for name in ["push_small", "push_uneven", "push_smooth"] {
        let golden = Golden::load(name);
        let (fitted, _) = golden.fit(1e-6);
        let certificate = &fitted.report.certificate;
        assert!(certificate.residuals.safe < 2e-6 && certificate.residuals.harm < 2e-6, "{name}: {certificate:?}");
        assert!(certificate.gap.safe.abs() < 1e-6 && certificate.gap.harm.abs() < 1e-6, "{name}: {certificate:?}");
        assert!(certificate.weight_error < 1e-5 && certificate.stability < 1.0, "{name}: {certificate:?}");
    }
}

#[test]
fn the_prior_agrees_with_scikit_learn() {
    for name in ["prior_tall", "prior_wide"] {
        let golden = Golden::load(name);
        let set = |side: &str| ReferenceSet::uniform(golden.vectors(&format!("{side}_f32"))).unwrap();
        let corpus = golden.vectors("corpus_f32");
        let places: Vec<usize> = (0..corpus.nrows()).collect();
        let (safe, harm) = (set("safe"), set("harm"));
        let prior = Prior::fit(&safe, &harm, (corpus.view(), &places), 30.0, 1.0).unwrap();
        let rows = golden.vectors("sample_f32");
        let (near, far) = (rows.dot(&safe.vectors().t()), rows.dot(&harm.vectors().t()));
        for (row, theirs) in golden.numbers("logit").into_iter().enumerate() {
            let ours = prior.logit(&near.row(row).to_vec(), &far.row(row).to_vec());
            assert!((ours - theirs).abs() < 1e-3, "{name}: {ours} {theirs}");
        }
    }
}
