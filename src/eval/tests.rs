//! The metrics against scikit-learn and against definitions too simple to be wrong; the methods against plain loops.

use ndarray::{Array1, Array2, ArrayView1, array};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::*;
use crate::transport::{ReferenceSet, TransportOptions, fit};

#[derive(Deserialize)]
struct Golden {
    name: String,
    scores: Vec<f64>,
    classes: Vec<u8>,
    counts: Vec<u32>,
    weights: Vec<f64>,
    auc: Vec<f64>,
    average_precision: f64,
    kept: Vec<f64>,
    weight_share: f64,
}

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-12 * (1.0 + expected.abs()), "{what}: {found} {expected}");
    }
}

#[test]
fn metrics_are_scikit_learns() {
    let cases: Vec<Golden> = serde_json::from_str(include_str!("../../fixtures/eval/metrics.json")).unwrap();
    assert_eq!(cases.len(), 11);
    for case in cases {
        let classes = Classes::try_new(case.classes).unwrap();
        let ranking = Ranking::try_new(&case.scores, &case.weights, &classes).unwrap();
        let found = ranking.measure(&classes, &Resample::of_counts(case.counts));
        let expected: Vec<f64> =
            case.auc.iter().chain([&case.average_precision]).chain(&case.kept).chain([&case.weight_share]).copied().collect();
        close(&found, &expected, &case.name);
    }
}

/// Every metric by its definition over all pairs, each row repeated as often as it counts.
fn naive_metrics(scores: &[f64], weights: &[f64], classes: &Classes, counts: &[u32]) -> Vec<f64> {
    let rows: Vec<usize> = (0..scores.len()).flat_map(|row| std::iter::repeat_n(row, counts[row] as usize)).collect();
    let class = |row: &usize| classes.of()[*row] as usize;
    let positive: Vec<usize> = rows.iter().copied().filter(|row| class(row) == 0).collect();
    let mut metrics = Vec::new();
    for k in 1..=classes.negatives() {
        let negative: Vec<usize> = rows.iter().copied().filter(|row| class(row) == k).collect();
        let wins: f64 = positive
            .iter()
            .flat_map(|p| negative.iter().map(move |n| (scores[*p], scores[*n])))
            .map(|(p, n)| if p > n { 1.0 } else { 0.5 * f64::from(u8::from(p == n)) })
            .sum();
        metrics.push(wins / (positive.len() * negative.len()) as f64);
    }
    // A positive row adds the precision at its own score, 1/P each.
    let precision_at = |score: f64| {
        let above = |rows: &[usize]| rows.iter().filter(|row| scores[**row] >= score).count() as f64;
        above(&positive) / above(&rows)
    };
    metrics.push(positive.iter().map(|row| precision_at(scores[*row])).sum::<f64>() / positive.len() as f64);
    for percent in KEPT_PERCENT {
        let m = rows.len() * percent as usize / 100;
        // The chance of each positive to be kept when equal scores come in random order.
        let chance = |row: &usize| {
            let below = rows.iter().filter(|other| scores[**other] < scores[*row]).count() as f64;
            let equal = rows.iter().filter(|other| scores[**other] == scores[*row]).count() as f64;
            ((m as f64 - below) / equal).clamp(0.0, 1.0)
        };
        metrics.push(positive.iter().map(chance).sum());
    }
    let sum = |rows: &[usize]| rows.iter().map(|row| weights[*row]).sum::<f64>();
    metrics.push(sum(&positive) / sum(&rows));
    metrics
}

/// Rows with few different scores (so many ties), one row of each class at least.
fn labelled_rows() -> impl Strategy<Value = (Vec<i8>, Vec<u8>, u64)> {
    (2usize..60, 1u8..4, any::<u64>()).prop_flat_map(|(rows, negatives, seed)| {
        let classes = proptest::collection::vec(0..=negatives, rows).prop_map(move |mut classes| {
            classes.extend(0..=negatives);
            classes
        });
        (proptest::collection::vec(-6i8..6, rows + negatives as usize + 1), classes, Just(seed))
    })
}

proptest! {
    #[test]
    fn same_as_naive((scores, classes, seed) in labelled_rows()) {
        let scores: Vec<f64> = scores.into_iter().map(|s| f64::from(s) / 4.0).collect();
        let weights: Vec<f64> = scores.iter().map(|s| (-s).exp()).collect();
        let classes = Classes::try_new(classes).unwrap();
        let ranking = Ranking::try_new(&scores, &weights, &classes).unwrap();
        for resample in [Resample::original(&classes), Resample::draw(&classes, seed, 3)] {
            close(&ranking.measure(&classes, &resample), &naive_metrics(&scores, &weights, &classes, resample.counts()), "naive");
        }
    }

    #[test]
    fn only_the_order_of_scores_counts_and_no_order_of_rows((scores, classes, seed) in labelled_rows()) {
        let weights = vec![1.0; scores.len()];
        let measure = |scores: &[f64], classes: &[u8]| {
            let classes = Classes::try_new(classes.to_vec()).unwrap();
            Ranking::try_new(scores, &weights, &classes).unwrap().measure(&classes, &Resample::original(&classes))
        };
        let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
        let found = measure(&scores, &classes);
        let stretched: Vec<f64> = scores.iter().map(|s| (s / 3.0).exp() * 1e6).collect();
        close(&measure(&stretched, &classes), &found, "a growing function of the scores");
        let mut order: Vec<usize> = (0..scores.len()).collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (1..order.len()).for_each(|i| order.swap(i, random.random_range(0..=i)));
        let shuffled: Vec<f64> = order.iter().map(|i| scores[*i]).collect();
        let labels: Vec<u8> = order.iter().map(|i| classes[*i]).collect();
        close(&measure(&shuffled, &labels), &found, "a shuffle");
        // Against each class the opposite scores have the opposite AUC.
        let negated: Vec<f64> = scores.iter().map(|s| -s).collect();
        let opposite = measure(&negated, &classes);
        for class in 0..classes.iter().copied().max().unwrap() as usize {
            prop_assert!((opposite[class] + found[class] - 1.0).abs() < 1e-12);
        }
    }
}

#[test]
fn scores_that_cannot_be_ranked_name_the_row() {
    let classes = Classes::try_new(vec![0, 1, 1]).unwrap();
    let error = |scores: &[f64], weights: &[f64]| Ranking::try_new(scores, weights, &classes).unwrap_err().to_string();
    assert!(error(&[0.0, f64::NAN, 1.0], &[1.0; 3]).contains("row 1"));
    assert!(error(&[0.0; 3], &[1.0, 1.0, -1.0]).contains("row 2"));
    assert!(error(&[0.0; 3], &[1.0, f64::INFINITY, 1.0]).contains("row 1"));
    assert!(error(&[0.0; 2], &[1.0; 3]).contains("2 scores"));
}

fn unit(random: &mut ChaCha8Rng, centre: &Array1<f32>) -> Array1<f32> {
    let row = centre + &Array1::from_shape_simple_fn(centre.len(), || random.random_range(-0.4f32..0.4));
    let norm = row.dot(&row).sqrt();
    row / norm
}

fn rows(random: &mut ChaCha8Rng, n: usize, centre: &Array1<f32>) -> Array2<f32> {
    let mut rows = Array2::zeros((n, centre.len()));
    rows.outer_iter_mut().for_each(|mut row| row.assign(&unit(random, centre)));
    rows
}

/// 130 harmful and 270 harmless rows, 150 safe and 40 harmful references, of two views of 8 dimensions.
fn problem() -> (Array2<f32>, Classes, ReferenceSet, ReferenceSet) {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let safe: Array1<f32> = (0..16).map(|k| if k % 8 < 4 { 0.4 } else { 0.1 }).collect();
    let harm: Array1<f32> = (0..16).map(|k| if k % 8 < 4 { 0.2 } else { 0.4 }).collect();
    let mut all = rows(&mut random, 400, &safe);
    all.slice_mut(ndarray::s![..130, ..]).assign(&rows(&mut random, 130, &harm));
    let classes = Classes::try_new((0..400).map(|row| u8::from(row >= 130)).collect()).unwrap();
    let set = |rows: Array2<f32>| ReferenceSet::uniform(rows).unwrap();
    (all, classes, set(rows(&mut random, 150, &safe)), set(rows(&mut random, 40, &harm)))
}

#[test]
fn baselines_are_what_their_formulas_say() {
    let (rows, _, safe, harm) = problem();
    let compared = Compared { sample: rows.view(), scored: rows.view(), ess: 0.4 };
    let methods = baselines(compared, &safe, &harm).unwrap();
    let names: Vec<&str> = methods.iter().map(|method| method.name.as_str()).collect();
    assert_eq!(names, ["nearest reference", "mean of 100 nearest", "logistic regression"]);
    let near = |row: ArrayView1<'_, f32>, set: &ReferenceSet, k: usize| {
        let mut all: Vec<f64> = set.vectors().outer_iter().map(|y| f64::from(row.dot(&y))).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        let k = k.min(all.len());
        all[..k].iter().sum::<f64>() / k as f64
    };
    for (method, k) in methods.iter().zip([1, 100]) {
        for (row, score) in rows.outer_iter().zip(&method.scores) {
            let expected = near(row, &harm, k) - near(row, &safe, k);
            assert!((score - expected).abs() < 1e-5, "{}: {score} {expected}", method.name);
        }
    }
    for method in &methods {
        let (one, two) = method.weights.iter().fold((0.0, 0.0), |(a, b), w| (a + w, b + w * w));
        assert!((one * one / (400.0 * two) - 0.4).abs() < 1e-4, "{}: the effective sample size is the one asked for", method.name);
        // Weights fall as scores grow.
        let mut order: Vec<usize> = (0..400).collect();
        order.sort_by(|a, b| method.scores[*a].total_cmp(&method.scores[*b]));
        assert!(order.windows(2).all(|pair| method.weights[pair[0]] >= method.weights[pair[1]]), "{}", method.name);
    }
}

#[test]
fn a_view_alone_is_its_slice_or_what_stands_in_for_it() {
    let half = std::f32::consts::FRAC_1_SQRT_2;
    let joined = array![[half, 0.0, 0.0, half], [0.0, 0.0, 0.6, 0.8], [0.6, 0.8, 0.0, 0.0], [0.0; 4]];
    let first = single_view(joined.view(), 2, 0).unwrap();
    let last = single_view(joined.view(), 2, 1).unwrap();
    let near = |a: &Array2<f32>, b: Array2<f32>| assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{a}\n{b}");
    near(&first, array![[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]);
    near(&last, array![[0.0, 1.0], [0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]);
    assert!(single_view(joined.view(), 3, 0).is_err() && single_view(joined.view(), 2, 2).is_err());
}

#[test]
fn push_pull_and_its_parts_on_a_problem_that_needs_both() {
    let (rows, classes, safe, harm) = problem();
    let options = TransportOptions::default();
    let whole = fit(rows.view(), &safe, &harm, &options, None, &mut |_| {}).unwrap();
    let (ours, ess) = push_pull(&whole.model, whole.report.converged, rows.view()).unwrap();
    assert!((ess - whole.report.ess).abs() < 1e-3, "the scored rows are the sample");
    let compared = Compared { sample: rows.view(), scored: rows.view(), ess };
    let views = ["prompt".to_owned(), "response".to_owned()];
    let mut told = Vec::new();
    let parts = ablations(compared, &whole.model, &options, &views, &mut |name, _| told.push(name.to_owned())).unwrap();
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["prior alone", "no prior", "no potentials", "pull only", "push only", "prompt only", "response only"]);
    told.dedup();
    assert_eq!(told, ["no prior", "no potentials", "pull only", "prompt only", "response only"]);

    // The pull alone is a fit without push and prior, at the epsilon of the whole; the whole's score is its weight's logarithm.
    let same = options.clone().with_epsilon(whole.model.epsilon);
    let pull = fit(rows.view(), &safe, &harm, &same.clone().with_push(0.0).with_prior(0.0), None, &mut |_| {}).unwrap();
    let weights = pull.model.weigh(rows.view()).unwrap();
    assert!(parts[3].scores.iter().zip(&weights).all(|(score, row)| (score - f64::from(row.pull)).abs() < 1e-6));
    let without = fit(rows.view(), &safe, &harm, &same.with_prior(0.0), None, &mut |_| {}).unwrap();
    let weights = without.model.weigh(rows.view()).unwrap();
    assert!(parts[4].scores.iter().zip(&weights).all(|(score, row)| (score + f64::from(row.push)).abs() < 1e-6));

    let mut methods = vec![ours];
    methods.extend(baselines(compared, &safe, &harm).unwrap());
    methods.extend(parts);
    let names = ["harmful".to_owned(), "benign".to_owned()];
    let options = BootstrapOptions { resamples: 200, seed: 1 };
    let evaluation = evaluate(&methods, &classes, &names, options).unwrap();
    assert_eq!(evaluation.classes.iter().map(|class| (class.rows, class.positive)).collect::<Vec<_>>(), [(130, true), (270, false)]);
    for method in &evaluation.methods {
        assert_eq!(method.cells.len(), 7);
        for cell in &method.cells {
            assert!(cell.interval.low <= cell.value + 1e-9 && cell.value <= cell.interval.high + 1e-9, "{} {cell:?}", method.method);
        }
    }
    let first = &evaluation.methods[0];
    assert!(first.cells.iter().all(|cell| cell.push_pull_minus_this.is_none()));
    assert!(first.cells[0].value > 0.9, "{:?}", first.cells[0]);
    // Differences are of the values, and their signs decide by whether more is better.
    for method in &evaluation.methods[1..] {
        for (ours, cell) in first.cells.iter().zip(&method.cells) {
            let against = cell.push_pull_minus_this.unwrap();
            assert!((against.difference - (ours.value - cell.value)).abs() < 1e-12);
            let gain = if matches!(cell.metric, "auc" | "average_precision") { against.difference } else { -against.difference };
            match against.verdict {
                Verdict::Better => assert!(gain > 0.0, "{} {cell:?}", method.method),
                Verdict::Worse => assert!(gain < 0.0, "{} {cell:?}", method.method),
                Verdict::NoDifference => assert!(against.interval.low <= 0.0 && against.interval.high >= 0.0),
            }
        }
    }
    assert!(evaluate(&methods, &classes, &names[..1], options).is_err());
    assert!(evaluate(&methods, &classes, &names, BootstrapOptions { resamples: 0, seed: 0 }).is_err());
}

#[test]
fn a_part_that_the_job_has_switched_off_is_not_compared() {
    let (rows, _, safe, harm) = problem();
    let names = |options: TransportOptions| {
        let whole = fit(rows.view(), &safe, &harm, &options, None, &mut |_| {}).unwrap();
        let compared = Compared { sample: rows.view(), scored: rows.view(), ess: 0.5 };
        let parts = ablations(compared, &whole.model, &options, &["text".to_owned()], &mut |_, _| {}).unwrap();
        parts.into_iter().map(|part| part.name).collect::<Vec<_>>()
    };
    assert_eq!(names(TransportOptions::default().with_prior(0.0)), ["no potentials", "pull only", "push only"]);
    assert_eq!(names(TransportOptions::default().with_slack(Some(0.0))), ["prior alone", "no prior", "pull only", "push only"]);
    assert_eq!(names(TransportOptions::default().with_push(0.0)), ["prior alone", "no prior", "no potentials"]);
}

#[test]
fn a_better_score_is_better_and_an_equal_one_is_not() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let classes = Classes::try_new((0..600).map(|row| u8::from(row % 4 > 0)).collect()).unwrap();
    let noisy = |random: &mut ChaCha8Rng, signal: f64| -> Vec<f64> {
        classes.of().iter().map(|class| random.random_range(-1.0..1.0) + signal * f64::from(u8::from(*class == 0))).collect()
    };
    let (strong, weak) = (noisy(&mut random, 1.2), noisy(&mut random, 0.0));
    let method = |name: &str, kind, scores: &[f64]| Method {
        name: name.to_owned(),
        kind,
        converged: None,
        scores: scores.to_vec(),
        weights: scores.iter().map(|s| (-s).exp()).collect(),
    };
    let names = ["harmful".to_owned(), "benign".to_owned()];
    let verdicts = |first: &[f64], second: &[f64]| {
        let methods = [method("a", MethodKind::PushPull, first), method("b", MethodKind::Baseline, second)];
        let evaluation = evaluate(&methods, &classes, &names, BootstrapOptions::default()).unwrap();
        let count = |verdict| evaluation.cells(MethodKind::Baseline, verdict).count();
        (count(Verdict::Better), count(Verdict::NoDifference), count(Verdict::Worse))
    };
    assert_eq!(verdicts(&strong, &weak), (7, 0, 0));
    assert_eq!(verdicts(&weak, &strong), (0, 0, 7));
    assert_eq!(verdicts(&strong, &strong), (0, 7, 0));
}
