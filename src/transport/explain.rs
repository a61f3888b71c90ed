//! In: one row's vector and a fitted model. Out: its weight taken apart, [`RowExplanation`]: the terms of its score, the references
//! that matter most for it on each side, what each view of the row costs, and what the weight would be without each view.
//!
//! The weight has the bits that [`Weigher::weigh`] gives. The parts are for a person: f64 made from the same similarities.
//!
//! **Views.** A row's vector is the concatenation of V views (see `embed::views`), each `|x_v|` long: `1/√V` where all are there, 0
//! where one is null. The cosine of two rows is therefore the sum over views of `⟨x_v, y_v⟩`, and with all views on both sides the
//! cost is the mean of the views' own cosine costs `1 − ⟨x_v, y_v⟩ / (|x_v||y_v|)`.
//!
//! **Without a view** is the same row with that view treated as null: zeroed, the rest scaled back to unit length, weighed by the
//! same model. It answers "what if only the other view had been written", not "what if the model had never seen the view".

use ndarray::{Array2, ArrayView1, Axis};

use super::cost::{TILE_ROWS, fill_tile};
use super::model::{TransportModel, Weigher};
use super::report::MeanTerms;
use super::weight::{RowWeight, score};
use crate::error::{Error, Result};

/// One row's weight, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct RowExplanation {
    /// What weighing gives the row, to the bit.
    pub row: RowWeight,
    /// `pull − λ · push + β · h`, in units of the cost; lower is a larger weight.
    pub score: f64,
    /// `−score/τ − log Z`, the logarithm of the weight before it is cut to the range of an f32.
    pub log_weight: f64,
    /// The prior's part.
    pub prior: PriorPart,
    /// What the safe references say.
    pub safe: SidePart,
    /// What the harmful references say.
    pub harm: SidePart,
    /// `|x_v|` of each view, in `[0, 1]`; 0 is a null view, or a text without a known token.
    pub view_norms: Vec<f64>,
    /// The row's weight without each view; `None` where the view is null already or is the only one.
    pub without_view: Vec<Option<RowWeight>>,
}

/// The prior's part in a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PriorPart {
    /// z, the logit of "harmful"; 0 where the prior is off.
    pub logit: f64,
    /// `h = tanh(z/2)`, in `[−1, 1]`: twice the probability of "harmful", less 1.
    pub h: f64,
    /// `β · h`, in units of the cost.
    pub term: f64,
}

/// One reference set's part in a score.
#[derive(Clone, Debug, PartialEq)]
pub struct SidePart {
    /// `f(x; g)`: the pull or the push, in units of the cost.
    pub value: f64,
    /// `Σ_j π_j c(x, y_j)`: the mean cost to the references, each counted by its responsibility for the row.
    pub mean_cost: f64,
    /// The same of each view's own cosine cost, over the references that have the view; `None` for a null view.
    pub view_costs: Vec<Option<f64>>,
    /// The references with the largest responsibilities, largest first.
    pub strongest: Vec<ReferencePart>,
}

/// One reference's part for a row.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferencePart {
    /// Its index in the set.
    pub index: usize,
    /// `π_j(x)`, the share of the row's mass that goes to it, in `[0, 1]`; all references' sum to 1.
    pub responsibility: f64,
    /// `c(x, y_j) = 1 − cos`, in `[0, 2]` up to rounding.
    pub cost: f64,
    /// `g_j`, in units of the cost: above 0 the reference is made more attractive than its cost, because too few rows are near it.
    pub potential: f64,
    /// `q_j`, its share of the set's mass.
    pub mass: f64,
    /// Each view's own cosine cost; `None` where the row or the reference has no such view.
    pub view_costs: Vec<Option<f64>>,
}

/// A weight as a product, by comparison with a row of mean terms: `log w = typical + pull + push + prior`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogFactors {
    /// Log weight of a row whose pull, push and prior are the sample's means.
    pub typical: f64,
    /// `−(pull − mean pull)/τ`.
    pub pull: f64,
    /// `λ (push − mean push)/τ`.
    pub push: f64,
    /// `−(prior − mean prior)/τ`.
    pub prior: f64,
}

impl RowExplanation {
    /// Which term moved the weight: the log weight as the sum of a typical row's and what each term adds to it.
    #[must_use]
    pub fn log_factors(&self, model: &TransportModel, mean: &MeanTerms) -> LogFactors {
        LogFactors {
            typical: -score(mean.pull, mean.push, model.push, mean.prior) / model.tau - model.log_z,
            pull: -(self.safe.value - mean.pull) / model.tau,
            push: if model.push == 0.0 { 0.0 } else { model.push * (self.harm.value - mean.push) / model.tau },
            prior: -(self.prior.term - mean.prior) / model.tau,
        }
    }
}

impl Weigher<'_> {
    /// Takes the weight of a row apart. The row is the concatenation of `views` vectors of equal length; the `strongest` references of
    /// each side are named.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where `views` does not divide the dimensions, and as [`Weigher::weigh`] for the row.
    pub fn explain(&self, row: ArrayView1<'_, f32>, views: usize, strongest: usize) -> Result<RowExplanation> {
        let dims = self.dims();
        if !dims.is_multiple_of(views) {
            let reason = format!("{views} views of equal length do not make {dims} dimensions");
            return Err(Error::InvalidOption { name: "views".into(), reason });
        }
        let rows = row.insert_axis(Axis(0));
        let weighed = self.weigh(rows)?;
        let Some(weight) = weighed.first().copied() else {
            return Err(Error::Internal("a row gave no weight".into()));
        };
        let model = self.model;
        let row = row.to_vec();
        let mut tile = vec![0.0; TILE_ROWS * dims];
        fill_tile(rows, std::iter::once(0), &mut tile);
        let side = |safe: bool| -> Result<(SidePart, Vec<f32>)> {
            let (packed, transform, set, potential, first) = match safe {
                true => (&self.packed_safe, &self.safe, &model.safe, &model.safe_potential, weight.safe_ref),
                false => (&self.packed_harm, &self.harm, &model.harm, &model.harm_potential, weight.harm_ref),
            };
            let mut similarities = vec![0.0; TILE_ROWS * packed.padded()];
            packed.similarities(&tile, &mut similarities)?;
            similarities.truncate(packed.padded());
            let mut exponentials = vec![0.0; packed.padded()];
            let transformed = transform.transform(&similarities, &mut exponentials);
            let references: Vec<&[f32]> = set.rows().collect();
            let part = |index: usize| ReferencePart {
                index,
                responsibility: f64::from(exponentials[index]) / transformed.sum,
                cost: 1.0 - f64::from(similarities[index]),
                potential: potential[index],
                mass: set.masses()[index],
                view_costs: view_costs(&row, references[index], views),
            };
            let all: Vec<ReferencePart> = (0..set.len()).map(part).collect();
            let mean_cost = all.iter().map(|part| part.responsibility * part.cost).sum();
            let view_costs = (0..views).map(|view| mean_over(&all, view)).collect();
            let mut strong: Vec<&ReferencePart> = all.iter().collect();
            // Two exponentials may round to the same number where weighing still tells them apart: the weight's own reference leads.
            strong.sort_by(|a, b| {
                let leads = |part: &ReferencePart| part.index == first as usize;
                leads(b).cmp(&leads(a)).then(b.responsibility.total_cmp(&a.responsibility)).then(a.index.cmp(&b.index))
            });
            let strongest = strong.into_iter().take(strongest).cloned().collect();
            Ok((SidePart { value: transformed.value, mean_cost, view_costs, strongest }, similarities))
        };
        let ((safe, near), (harm, far)) = (side(true)?, side(false)?);
        let h = &model.prior;
        let prior = PriorPart { logit: h.logit(&near, &far), h: h.h(&near, &far), term: h.term(&near, &far) };
        let score = score(safe.value, harm.value, model.push, prior.term);
        let view_norms: Vec<f64> = row.chunks_exact(dims / views).map(norm).collect();
        Ok(RowExplanation {
            row: weight,
            score,
            log_weight: -score / model.tau - model.log_z,
            prior,
            safe,
            harm,
            without_view: self.without_each_view(&row, &view_norms)?,
            view_norms,
        })
    }

    fn without_each_view(&self, row: &[f32], norms: &[f64]) -> Result<Vec<Option<RowWeight>>> {
        let present = norms.iter().filter(|norm| **norm > 0.0).count();
        let width = row.len() / norms.len();
        let mut kept = Vec::new();
        let mut rows = Vec::new();
        for (view, _) in norms.iter().enumerate().filter(|(_, norm)| **norm > 0.0 && present > 1) {
            let mut other = row.to_vec();
            other[view * width..(view + 1) * width].fill(0.0);
            let length = norm(&other);
            #[expect(clippy::cast_possible_truncation, reason = "vectors are f32")]
            other.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
            kept.push(view);
            rows.extend(other);
        }
        let rows = Array2::from_shape_vec((kept.len(), row.len()), rows).map_err(|e| Error::Internal(format!("views: {e}")))?;
        let mut without = vec![None; norms.len()];
        for (view, weight) in kept.into_iter().zip(self.weigh(rows.view())?) {
            without[view] = Some(weight);
        }
        Ok(without)
    }
}

/// The cosine cost of each view of two rows.
fn view_costs(row: &[f32], reference: &[f32], views: usize) -> Vec<Option<f64>> {
    let width = row.len() / views;
    let cost = |(x, y): (&[f32], &[f32])| {
        let lengths = norm(x) * norm(y);
        let product: f64 = x.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        (lengths > 0.0).then(|| 1.0 - product / lengths)
    };
    row.chunks_exact(width).zip(reference.chunks_exact(width)).map(cost).collect()
}

/// Mean of a view's cost under the responsibilities.
fn mean_over(parts: &[ReferencePart], view: usize) -> Option<f64> {
    let (mut sum, mut share) = (0.0, 0.0);
    for part in parts {
        if let Some(cost) = part.view_costs[view] {
            sum += part.responsibility * cost;
            share += part.responsibility;
        }
    }
    (share > 0.0).then(|| sum / share)
}

fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{Prior, ReferenceSet, naive};
    use ndarray::{Array1, s};

    const VIEWS: usize = 3;
    const WIDTH: usize = 6;

    /// Rows of three views of equal length, some of them null.
    fn rows(count: usize, seed: u64) -> Array2<f32> {
        let mut rows = Array2::zeros((count, VIEWS * WIDTH));
        for view in 0..VIEWS {
            let part = naive::unit_rows(count, WIDTH, seed + view as u64);
            rows.slice_mut(s![.., view * WIDTH..(view + 1) * WIDTH]).assign(&part);
        }
        for (index, mut row) in rows.outer_iter_mut().enumerate() {
            if index % 4 == 3 {
                row.slice_mut(s![WIDTH..2 * WIDTH]).fill(0.0);
            }
            if index % 8 == 7 {
                row.slice_mut(s![..WIDTH]).fill(0.0);
            }
            let length = norm(row.as_slice().unwrap());
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
        }
        rows
    }

    fn model(push: f64) -> TransportModel {
        let set = |count, seed| ReferenceSet::try_new(rows(count, seed), naive::masses(count, seed)).unwrap();
        let (safe, harm) = (set(21, 100), set(34, 200));
        TransportModel::try_new(TransportModel {
            safe_potential: naive::potential(21, 0.1, 1),
            harm_potential: naive::potential(34, 0.1, 2),
            prior: Prior::fit(&safe, &harm, (rows(30, 300).view(), &[0, 4, 9]), 30.0, 0.07).unwrap(),
            safe,
            harm,
            epsilon: 0.05,
            push,
            tau: 0.2,
            log_z: 0.3,
            slack: None,
        })
        .unwrap()
    }

    #[test]
    fn the_weight_has_the_bits_of_weighing_and_the_parts_add_up_to_it() {
        let sample = rows(40, 1);
        for push in [1.0, 0.0] {
            let model = model(push);
            let weigher = model.weigher().unwrap();
            let weighed = model.weigh(sample.view()).unwrap();
            let mean = MeanTerms { pull: 0.4, push: 0.5, prior: 0.01 };
            for (row, weight) in sample.outer_iter().zip(weighed) {
                let found = weigher.explain(row, VIEWS, 3).unwrap();
                assert_eq!(found.row.weight.to_bits(), weight.weight.to_bits());
                assert_eq!(found.row, weight);
                assert!((found.log_weight.exp() - f64::from(weight.weight)).abs() < 1e-6 * f64::from(weight.weight));
                let factors = found.log_factors(&model, &mean);
                assert!((factors.typical + factors.pull + factors.push + factors.prior - found.log_weight).abs() < 1e-9);
                assert_eq!(found.safe.strongest[0].index, weight.safe_ref as usize);
                assert_eq!(found.harm.strongest[0].index, weight.harm_ref as usize);
            }
        }
    }

    #[test]
    fn costs_and_responsibilities_are_the_naive_ones() {
        let (sample, model) = (rows(16, 5), model(1.0));
        let weigher = model.weigher().unwrap();
        let costs = naive::cost(sample.view(), &model.harm);
        for (row, cost) in sample.outer_iter().zip(&costs) {
            let found = weigher.explain(row, VIEWS, usize::MAX).unwrap();
            let (value, responsibilities) = naive::soft_transform(cost, &model.harm_potential, model.harm.masses(), model.epsilon);
            assert!((found.harm.value - value).abs() < 1e-5);
            let mean: f64 = cost.iter().zip(&responsibilities).map(|(c, pi)| c * pi).sum();
            assert!((found.harm.mean_cost - mean).abs() < 1e-4);
            assert_eq!(found.harm.strongest.len(), model.harm.len());
            assert!(found.harm.strongest.windows(2).all(|w| w[0].responsibility >= w[1].responsibility));
            for part in &found.harm.strongest {
                assert!((part.cost - cost[part.index]).abs() < 1e-6);
                assert!((part.responsibility - responsibilities[part.index]).abs() < 1e-4);
                assert_eq!((part.potential, part.mass), (model.harm_potential[part.index], model.harm.masses()[part.index]));
                // The views' costs, weighted by both lengths, are the cost.
                let reference = model.harm.vectors();
                let split: f64 = (0..VIEWS)
                    .map(|view| {
                        let length = |x: ArrayView1<'_, f32>| norm(&x.slice(s![view * WIDTH..(view + 1) * WIDTH]).to_vec());
                        part.view_costs[view].map_or(0.0, |c| (1.0 - c) * length(row) * length(reference.row(part.index)))
                    })
                    .sum();
                assert!((1.0 - split - part.cost).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn without_a_view_is_the_weight_of_the_row_whose_view_is_null() {
        let (sample, model) = (rows(16, 9), model(1.0));
        let weigher = model.weigher().unwrap();
        // Row 0 has all views, row 3 no second one, row 7 only the third.
        let found = weigher.explain(sample.row(0), VIEWS, 1).unwrap();
        let mut other: Array1<f32> = sample.row(0).to_owned();
        other.slice_mut(s![2 * WIDTH..]).fill(0.0);
        let scale = (1.5f64).sqrt();
        other.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
        let wanted = model.weigh(other.view().insert_axis(Axis(0))).unwrap()[0];
        let got = found.without_view[2].unwrap();
        assert!((got.weight / wanted.weight - 1.0).abs() < 1e-4, "{got:?} {wanted:?}");
        assert!(found.without_view.iter().all(Option::is_some));
        let found = weigher.explain(sample.row(3), VIEWS, 1).unwrap();
        assert!(found.without_view[1].is_none() && found.without_view[0].is_some() && found.without_view[2].is_some());
        assert!(found.view_norms[1] == 0.0 && found.safe.view_costs[1].is_none());
        let found = weigher.explain(sample.row(7), VIEWS, 1).unwrap();
        assert_eq!(found.without_view, [None; VIEWS]);
        assert!((found.view_norms[2] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_zero_row_and_views_that_do_not_divide() {
        let model = model(1.0);
        let weigher = model.weigher().unwrap();
        let found = weigher.explain(Array1::zeros(VIEWS * WIDTH).view(), VIEWS, 2).unwrap();
        assert!(found.row.weight.is_finite() && found.safe.view_costs.iter().all(Option::is_none));
        assert!((found.safe.mean_cost - 1.0).abs() < 1e-6);
        for views in [0, 4] {
            assert!(weigher.explain(Array1::zeros(VIEWS * WIDTH).view(), views, 2).unwrap_err().to_string().contains("views"));
        }
        assert!(weigher.explain(Array1::zeros(5).view(), VIEWS, 2).is_err());
    }
}
