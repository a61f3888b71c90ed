//! In: the references, a part of the corpus, and options that say `auto`. Out: ε, β and the prior's inverse penalty, by
//! cross-validation on the references. No label of the corpus is ever seen.
//!
//! Each of [`FOLDS`] folds hides a third of the references of both sides. The others score the hidden ones and some rows of the corpus,
//! with potentials of 0 (they move the ranking little, and would need a fit for every candidate). What counts is how well
//! hidden harmful references are told from hidden safe ones and from the corpus: the mean of both AUCs. The corpus has a few harmful rows
//! itself; they lower every candidate's AUC alike.
//!
//! A fold is a *region*: the references are sorted along their first principal direction and cut in three. Folds at random would hide a
//! reference whose near copy (another answer to the same prompt) stays, and the sharpest ε would always win by finding that copy; on the
//! corpora this was tried on they chose ε and β that were worse than the defaults, regions chose the best or nearly the best of the grid.
//!
//! Memory: similarities of the scored rows to the references. Deterministic, and free of the order of the references but for ties.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cost::{PackedReferences, TILE_ROWS, fill_tile};
use super::options::{AUTO_EPSILON_PER_COST, AUTO_PRIOR_PER_COST, Auto, MAX_EPSILON, MIN_EPSILON, TransportOptions};
use super::potential::SoftTransform;
use super::prior::{PRIOR_INVERSE_PENALTY, PriorProblem};
use super::references::ReferenceSet;
use super::weight::score;
use crate::error::Result;

/// Parts the references are cut into.
const FOLDS: usize = 3;
/// References a side below which nothing is chosen: ten hidden rows a fold say less than the defaults do.
pub const SELECT_MIN_REFERENCES: usize = 30;
/// References a side used, at most; more are thinned evenly.
const MOST_REFERENCES: usize = 1500;
/// Rows of the corpus that are scored, and as many again for the regression.
const CORPUS_ROWS: usize = 768;
/// Landmarks of a fold's prior.
const LANDMARKS: usize = 256;
/// Steps of the power iteration for the direction that folds are cut along. It needn't be exact, only the same each time.
const DIRECTION_STEPS: usize = 20;
/// Candidates for ε, as factors of the mean cost.
const EPSILONS: [f64; 5] = [0.02, AUTO_EPSILON_PER_COST, 0.04, 0.06, 0.1];
/// Candidates for β, as factors of the mean cost. Half the lowest was never good with the kernel prior.
const STRENGTHS: [f64; 3] = [0.2, AUTO_PRIOR_PER_COST, 0.5];
/// Candidates for the inverse penalty.
const INVERSE_PENALTIES: [f64; 3] = [10.0, PRIOR_INVERSE_PENALTY, 100.0];
/// A candidate replaces the default where its AUC is better by this: less is noise of a few hundred hidden rows.
const BETTER_BY: f64 = 1e-3;

/// What cross-validation on the references chose.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// ε as a factor of the mean cost.
    pub epsilon_per_cost: f64,
    /// β as a factor of the mean cost.
    pub prior_per_cost: f64,
    /// Inverse penalty of the prior's regression.
    pub inverse_penalty: f64,
    /// Mean over the folds of the AUC of hidden harmful references against hidden safe ones and against the corpus.
    pub auc: f64,
    /// The same with the defaults.
    pub auc_of_defaults: f64,
}

/// The choice, or none where nothing is `auto` or the references are too few. Options that are numbers stay as they are.
///
/// # Errors
/// [`Error::Internal`](crate::error::Error::Internal) where the dimensions differ.
pub(super) fn select(
    options: &TransportOptions,
    mean_cost: f64,
    sample: ArrayView2<'_, f32>,
    corpus: &[usize],
    safe: &ReferenceSet,
    harm: &ReferenceSet,
) -> Result<Option<Selection>> {
    let without_prior = options.prior == Auto::Fixed(0.0);
    let nothing_to_choose =
        options.epsilon != Auto::Auto && options.prior != Auto::Auto && (without_prior || options.inverse_penalty != Auto::Auto);
    if nothing_to_choose || safe.len().min(harm.len()) < SELECT_MIN_REFERENCES || mean_cost <= 0.0 {
        return Ok(None);
    }
    let candidates = |option: Auto, factors: &[f64]| match option {
        Auto::Auto => factors.to_vec(),
        Auto::Fixed(value) => vec![value / mean_cost],
    };
    let (epsilons, strengths) = (candidates(options.epsilon, &EPSILONS), candidates(options.prior, &STRENGTHS));
    // Without a prior there is no penalty to choose.
    let penalties = match options.inverse_penalty {
        Auto::Fixed(value) => vec![value],
        Auto::Auto if without_prior => vec![PRIOR_INVERSE_PENALTY],
        Auto::Auto => INVERSE_PENALTIES.to_vec(),
    };
    let grid: Vec<(f64, f64, f64)> =
        penalties.iter().flat_map(|c| epsilons.iter().flat_map(|e| strengths.iter().map(|b| (*e, *b, *c)))).collect();
    let (train_rows, scored_rows) = corpus.split_at(corpus.len() / 2);
    let corpus = (&train_rows[..train_rows.len().min(CORPUS_ROWS)], &scored_rows[..scored_rows.len().min(CORPUS_ROWS)]);
    let mut sums = vec![0.0; grid.len()];
    for fold in 0..FOLDS {
        let data = Fold::try_new(fold, sample, corpus, safe, harm)?;
        let aucs = data.aucs(options.push, mean_cost, (&epsilons, &strengths, &penalties))?;
        sums.iter_mut().zip(aucs).for_each(|(sum, auc)| *sum += auc / FOLDS as f64);
    }
    let default = |value: &f64, option: Auto, factor: f64| matches!(option, Auto::Fixed(_)) || *value == factor;
    let of_defaults = grid
        .iter()
        .position(|(e, b, c)| {
            default(e, options.epsilon, AUTO_EPSILON_PER_COST)
                && default(b, options.prior, AUTO_PRIOR_PER_COST)
                && default(c, options.inverse_penalty, PRIOR_INVERSE_PENALTY)
        })
        .unwrap_or(0);
    let best = (0..grid.len()).fold(of_defaults, |best, i| if sums[i] > sums[best] { i } else { best });
    let chosen = if sums[best] > sums[of_defaults] + BETTER_BY { best } else { of_defaults };
    let (epsilon_per_cost, prior_per_cost, inverse_penalty) = grid[chosen];
    Ok(Some(Selection { epsilon_per_cost, prior_per_cost, inverse_penalty, auc: sums[chosen], auc_of_defaults: sums[of_defaults] }))
}

/// ε for a factor of the mean cost.
pub(super) fn epsilon_of(factor: f64, mean_cost: f64) -> f64 {
    (factor * mean_cost).clamp(MIN_EPSILON, MAX_EPSILON)
}

/// References without one fold, and what they score.
struct Fold {
    safe: ReferenceSet,
    harm: ReferenceSet,
    prior: PriorProblem,
    /// Hidden harmful references, hidden safe ones, rows of the corpus: their similarities to both sides, a line a row.
    near: Vec<f32>,
    far: Vec<f32>,
    widths: (usize, usize),
    counts: [usize; 3],
}

impl Fold {
    fn try_new(
        fold: usize,
        sample: ArrayView2<'_, f32>,
        (corpus, scored): (&[usize], &[usize]),
        safe: &ReferenceSet,
        harm: &ReferenceSet,
    ) -> Result<Self> {
        let part = |set: &ReferenceSet, hidden: bool| -> Vec<usize> {
            let sorted = along_first_direction(set);
            let place = |i: usize| i * FOLDS / sorted.len() == fold;
            sorted.iter().enumerate().filter(|(i, _)| place(*i) == hidden).map(|(_, index)| *index).collect()
        };
        let subset = |set: &ReferenceSet| {
            let kept = part(set, false);
            ReferenceSet::try_new(set.vectors().select(Axis(0), &kept), kept.iter().map(|i| set.masses()[*i]).collect())
        };
        let (kept_safe, kept_harm) = (subset(safe)?, subset(harm)?);
        let rows: [Array2<f32>; 3] = [
            harm.vectors().select(Axis(0), &part(harm, true)),
            safe.vectors().select(Axis(0), &part(safe, true)),
            sample.select(Axis(0), scored),
        ];
        let packed = (PackedReferences::new(&kept_safe), PackedReferences::new(&kept_harm));
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for rows in &rows {
            near.extend(similarities(rows.view(), &packed.0)?);
            far.extend(similarities(rows.view(), &packed.1)?);
        }
        Ok(Self {
            prior: PriorProblem::try_new(&kept_safe, &kept_harm, sample, corpus, LANDMARKS)?,
            widths: (packed.0.padded(), packed.1.padded()),
            counts: rows.map(|rows| rows.nrows()),
            safe: kept_safe,
            harm: kept_harm,
            near,
            far,
        })
    }

    /// The AUC of every candidate: penalties outermost, then ε, then β.
    fn aucs(&self, push: f64, mean_cost: f64, (epsilons, strengths, penalties): (&[f64], &[f64], &[f64])) -> Result<Vec<f64>> {
        let transports: Vec<Vec<f64>> = epsilons
            .iter()
            .map(|factor| {
                let epsilon = epsilon_of(*factor, mean_cost);
                let zero = |set: &ReferenceSet| SoftTransform::new(set.masses(), &vec![0.0; set.len()], epsilon);
                let (safe, harm) = (zero(&self.safe), zero(&self.harm));
                let lines = self.near.par_chunks(self.widths.0).zip(self.far.par_chunks(self.widths.1));
                lines
                    .map_init(
                        || (vec![0.0; self.widths.0], vec![0.0; self.widths.1]),
                        |(a, b), (near, far)| score(safe.transform(near, a).value, harm.transform(far, b).value, push, 0.0),
                    )
                    .collect()
            })
            .collect();
        let mut aucs = Vec::new();
        for penalty in penalties {
            let h: Vec<f64> = if strengths.iter().all(|strength| *strength == 0.0) {
                vec![0.0; self.counts.iter().sum()]
            } else {
                let prior = self.prior.solve(*penalty, 1.0);
                self.near.par_chunks(self.widths.0).zip(self.far.par_chunks(self.widths.1)).map(|(near, far)| prior.h(near, far)).collect()
            };
            for transport in &transports {
                for strength in strengths {
                    let scores: Vec<f64> = transport.iter().zip(&h).map(|(t, h)| t + strength * mean_cost * h).collect();
                    aucs.push(self.auc(&scores));
                }
            }
        }
        Ok(aucs)
    }

    /// Mean of the AUC against the hidden safe references and of that against the corpus.
    fn auc(&self, scores: &[f64]) -> f64 {
        let (harmful, others) = scores.split_at(self.counts[0]);
        let (safe, corpus) = others.split_at(self.counts[1]);
        if corpus.is_empty() { auc(harmful, safe) } else { 0.5 * (auc(harmful, safe) + auc(harmful, corpus)) }
    }
}

/// Indices of the references (of an even selection where there are more than [`MOST_REFERENCES`]) in their order along the direction in
/// which they differ most.
fn along_first_direction(set: &ReferenceSet) -> Vec<usize> {
    let used = set.len().min(MOST_REFERENCES);
    let mut indices: Vec<usize> = (0..used).map(|i| i * set.len() / used).collect();
    let rows: Vec<ArrayView1<'_, f32>> = indices.iter().map(|i| set.vectors().slice_move(s![*i, ..])).collect();
    let mut mean = vec![0.0f64; set.dims()];
    rows.iter().for_each(|row| mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / used as f64));
    let centred = |row: &ArrayView1<'_, f32>, direction: &[f64]| -> f64 {
        row.iter().zip(&mean).zip(direction).map(|((v, m), d)| (f64::from(*v) - m) * d).sum()
    };
    // The coordinates' spreads are a start that no order of the rows changes.
    let mut direction = vec![0.0f64; set.dims()];
    rows.iter().for_each(|row| direction.iter_mut().zip(row).zip(&mean).for_each(|((d, v), m)| *d += (f64::from(*v) - m).powi(2)));
    for _ in 0..DIRECTION_STEPS {
        let mut next = vec![0.0f64; set.dims()];
        for row in &rows {
            let length = centred(row, &direction);
            next.iter_mut().zip(row).zip(&mean).for_each(|((n, v), m)| *n += length * (f64::from(*v) - m));
        }
        let norm = next.iter().map(|n| n * n).sum::<f64>().sqrt();
        if norm <= f64::MIN_POSITIVE {
            break;
        }
        next.iter_mut().for_each(|n| *n /= norm);
        direction = next;
    }
    let places: Vec<f64> = rows.iter().map(|row| centred(row, &direction)).collect();
    let mut order: Vec<usize> = (0..used).collect();
    order.sort_by(|a, b| places[*a].total_cmp(&places[*b]).then(a.cmp(b)));
    indices = order.into_iter().map(|i| indices[i]).collect();
    indices
}

/// Similarities of rows to a packed set, a line a row.
fn similarities(rows: ArrayView2<'_, f32>, packed: &PackedReferences) -> Result<Vec<f32>> {
    let tiles: Vec<Vec<f32>> = (0..rows.nrows().div_ceil(TILE_ROWS))
        .into_par_iter()
        .map(|tile| {
            let span = tile * TILE_ROWS..((tile + 1) * TILE_ROWS).min(rows.nrows());
            let (mut vectors, mut out) = (vec![0.0; TILE_ROWS * rows.ncols()], vec![0.0; TILE_ROWS * packed.padded()]);
            let count = span.len();
            fill_tile(rows, span, &mut vectors);
            packed.similarities(&vectors, &mut out)?;
            out.truncate(count * packed.padded());
            Ok(out)
        })
        .collect::<Result<_>>()?;
    Ok(tiles.concat())
}

/// Probability that a positive scores above a negative, ties counting half.
fn auc(positive: &[f64], negative: &[f64]) -> f64 {
    let mut sorted = negative.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let below: f64 = positive.iter().map(|p| 0.5 * (sorted.partition_point(|n| n < p) + sorted.partition_point(|n| n <= p)) as f64).sum();
    below / (positive.len() * negative.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::naive;

    #[test]
    fn auc_counts_pairs() {
        assert_eq!(auc(&[3.0, 1.0], &[2.0, 0.0]), 0.75);
        assert_eq!(auc(&[1.0], &[1.0, 1.0]), 0.5);
    }

    #[test]
    fn numbers_are_kept_and_auto_is_chosen_from_the_grid() {
        let (safe, harm) = naive::two_blobs(60, 50, 16, 41);
        let sample = ndarray::concatenate![Axis(0), safe.vectors(), harm.vectors()];
        let corpus: Vec<usize> = (0..110).collect();
        let choose = |options: TransportOptions| select(&options, 0.5, sample.view(), &corpus, &safe, &harm).unwrap();
        let chosen = choose(TransportOptions::default()).unwrap();
        assert!(EPSILONS.contains(&chosen.epsilon_per_cost) && STRENGTHS.contains(&chosen.prior_per_cost));
        assert!(chosen.auc >= chosen.auc_of_defaults && chosen.auc <= 1.0);
        let fixed = choose(TransportOptions::default().with_prior(0.0)).unwrap();
        assert_eq!(fixed.prior_per_cost, 0.0);
        assert_eq!(choose(TransportOptions::default().with_prior(0.0).with_epsilon(0.1)), None);
        let fixed = choose(TransportOptions::default().with_inverse_penalty(3.0)).unwrap();
        assert_eq!(fixed.inverse_penalty, 3.0);
    }

    #[test]
    fn a_fold_is_a_region_whatever_the_order() {
        let (safe, _) = naive::two_blobs(61, 50, 16, 43);
        let order = along_first_direction(&safe);
        let mut seen = order.clone();
        seen.sort_unstable();
        assert_eq!(seen, (0..61).collect::<Vec<_>>());
        let reversed = ReferenceSet::uniform(safe.vectors().slice(s![..;-1, ..]).to_owned()).unwrap();
        assert_eq!(along_first_direction(&reversed).into_iter().map(|i| 60 - i).collect::<Vec<_>>(), order);
        // Copies of one reference stand side by side.
        let twice = ndarray::concatenate![Axis(0), safe.vectors(), safe.vectors().slice(s![..1, ..])];
        let order = along_first_direction(&ReferenceSet::uniform(twice).unwrap());
        let place = |index: usize| order.iter().position(|i| *i == index).unwrap();
        assert_eq!(place(0).abs_diff(place(61)), 1);
    }

    #[test]
    fn a_candidate_scores_as_it_would_by_hand() {
        let (safe, harm) = naive::two_blobs(45, 36, 12, 44);
        let sample = naive::mixed_sample(60, 12, 45);
        let (learned, scored): (Vec<usize>, Vec<usize>) = ((0..25).collect(), (25..60).collect());
        let fold = Fold::try_new(1, sample.view(), (&learned, &scored), &safe, &harm).unwrap();
        let (epsilon, strength, push, mean_cost) = (0.06, 0.5, 0.7, 0.9);
        let aucs = fold.aucs(push, mean_cost, (&[0.02, epsilon], &[0.1, strength], &[10.0, 30.0])).unwrap();
        assert_eq!(aucs.len(), 8);
        let split = |set: &ReferenceSet| {
            let order = along_first_direction(set);
            let (hidden, kept): (Vec<_>, Vec<_>) = order.iter().enumerate().partition(|(i, _)| i * 3 / order.len() == 1);
            let take = |part: Vec<(usize, &usize)>| set.vectors().select(Axis(0), &part.into_iter().map(|(_, i)| *i).collect::<Vec<_>>());
            (take(hidden), ReferenceSet::uniform(take(kept)).unwrap())
        };
        let ((hidden_safe, kept_safe), (hidden_harm, kept_harm)) = (split(&safe), split(&harm));
        let prior = PriorProblem::try_new(&kept_safe, &kept_harm, sample.view(), &learned, LANDMARKS).unwrap().solve(30.0, 1.0);
        let scores = |rows: Array2<f32>| -> Vec<f64> {
            let (near, far) = (naive::cost(rows.view(), &kept_safe), naive::cost(rows.view(), &kept_harm));
            let soft =
                |cost: &[f64], set: &ReferenceSet| naive::soft_transform(cost, &vec![0.0; set.len()], set.masses(), epsilon * mean_cost).0;
            (0..rows.nrows())
                .map(|i| {
                    soft(&near[i], &kept_safe) - push * soft(&far[i], &kept_harm)
                        + strength * mean_cost * naive::prior_h(&prior, &near[i], &far[i])
                })
                .collect()
        };
        let pairs = |positive: &[f64], negative: &[f64]| {
            let wins: f64 = positive
                .iter()
                .flat_map(|p| {
                    negative.iter().map(move |n| {
                        if p > n {
                            1.0
                        } else if p == n {
                            0.5
                        } else {
                            0.0
                        }
                    })
                })
                .sum();
            wins / (positive.len() * negative.len()) as f64
        };
        let (harmful, trusted, corpus) = (scores(hidden_harm), scores(hidden_safe), scores(sample.select(Axis(0), &scored)));
        let expected = 0.5 * (pairs(&harmful, &trusted) + pairs(&harmful, &corpus));
        // Penalties outermost, then epsilon, then strength: the last of all. f32 similarities may swap a pair or two.
        assert!((aucs[7] - expected).abs() < 2e-3, "{aucs:?} {expected}");
        assert!(aucs[7] > 0.5);
    }

    #[test]
    fn few_references_choose_nothing() {
        let (safe, harm) = naive::two_blobs(60, SELECT_MIN_REFERENCES - 1, 16, 42);
        let rows = safe.vectors().to_owned();
        assert_eq!(select(&TransportOptions::default(), 0.5, rows.view(), &[0, 1], &safe, &harm).unwrap(), None);
    }
}
