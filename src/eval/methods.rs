//! In: vectors of the scored rows, both reference sets, a fitted model. Out: a score and a weight a row for every method that is compared.
//!
//! A score is higher for rows that look more harmful. Baselines are what people do today with the same vectors:
//!
//! ```text
//! nearest reference    max_k ⟨x, h_k⟩ − max_j ⟨x, s_j⟩
//! mean of 100 nearest  mean of the 100 largest ⟨x, h_k⟩ − the same of ⟨x, s_j⟩, of all where there are fewer
//!                      (the form of LARF's score, arXiv 2507.18631, which takes a language model's hidden states as vectors)
//! logistic regression  logit of scikit-learn's LogisticRegression(C=10, class_weight="balanced") on the references' vectors: the
//!                      log of a density ratio, up to a constant
//! ```
//!
//! Ablations are push-pull with a part missing, fitted on the same sample with the ε, β and options of the whole model:
//!
//! ```text
//! prior alone       β·h: the kernel regression on references and corpus, without any transport
//! no prior          β = 0: the published objective with a KL regulariser
//! no potentials     slack 0, so κ = 0 and both potentials are 0: pull − λ·push + β·h of soft nearest-reference distances
//! pull only         λ = 0, β = 0
//! push only         −push of the model without a prior; its potentials were fitted with the pull
//! <view> only       one text column: that slice of every vector, scaled to unit length, with automatic options as for a job of that column
//! ```
//!
//! **Weights.** Push-pull has its own. Every other method gets `exp(−score/τ)` with the τ at which the effective sample size over the scored rows is
//! push-pull's: shares of the weight are compared at equal concentration, else the flattest method would always lose.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::transport::{
    Auto, FitProgress, ReferenceSet, TransportModel, TransportOptions, fit, logistic_regression, map_similarities, solve_effective_fraction,
};

/// References a mean of the nearest is taken over, LARF's own number.
pub const LARF_NEAREST: usize = 100;

/// Inverse penalty of the logistic regression: unit vectors have small coordinates, and the usual 1, made for standardised features, does worse.
const LOGISTIC_INVERSE_PENALTY: f64 = 10.0;

/// What a method is to push-pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodKind {
    /// Push-pull itself.
    PushPull,
    /// What people do today.
    Baseline,
    /// Push-pull with a part missing.
    Ablation,
}

/// A method and what it says of every row.
#[derive(Clone, Debug)]
pub struct Method {
    /// Its name, unique among those compared.
    pub name: String,
    /// What it is to push-pull.
    pub kind: MethodKind,
    /// Whether its fit converged; `None` where nothing is fitted iteratively.
    pub converged: Option<bool>,
    /// Higher is more harmful.
    pub scores: Vec<f64>,
    /// Row weights, in any unit, ≥ 0.
    pub weights: Vec<f64>,
}

/// The vectors that methods see.
#[derive(Clone, Copy, Debug)]
pub struct Compared<'a> {
    /// The sample that models are fitted on.
    pub sample: ArrayView2<'a, f32>,
    /// The rows that are scored.
    pub scored: ArrayView2<'a, f32>,
    /// Effective sample size of push-pull's weights over the scored rows, as a fraction of them: every method's weights have it.
    pub ess: f64,
}

impl Compared<'_> {
    fn method(&self, name: &str, kind: MethodKind, converged: Option<bool>, scores: Vec<f64>) -> Method {
        let tau = solve_effective_fraction(&scores, self.ess, 1.0).tau;
        let lowest = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let weights = scores.iter().map(|score| ((lowest - score) / tau).exp()).collect();
        Method { name: name.to_owned(), kind, converged, scores, weights }
    }
}

/// Push-pull itself: the weights as they are published, rows ranked by them. Gives the effective sample size too.
///
/// # Errors
/// As [`TransportModel::weigh`].
pub fn push_pull(model: &TransportModel, converged: bool, scored: ArrayView2<'_, f32>) -> Result<(Method, f64)> {
    let weights: Vec<f64> = model.weigh(scored)?.iter().map(|row| f64::from(row.weight)).collect();
    let (one, two) = weights.iter().fold((0.0, 0.0), |(one, two), w| (one + w, two + w * w));
    let ess = if two > 0.0 { one * one / (two * weights.len() as f64) } else { 1.0 };
    let scores = weights.iter().map(|w| -w).collect();
    Ok((Method { name: "push-pull".to_owned(), kind: MethodKind::PushPull, converged: Some(converged), scores, weights }, ess))
}

/// What people do today, on the same vectors. Masses of references count in the regression only, as usual.
///
/// # Errors
/// Where the vectors and the references differ in dimensions or a row isn't a unit or zero vector.
pub fn baselines(compared: Compared<'_>, safe: &ReferenceSet, harm: &ReferenceSet) -> Result<Vec<Method>> {
    let summary = |set: &ReferenceSet| {
        map_similarities(compared.scored, set, |similarities| {
            let mut largest = similarities.to_vec();
            let nearest = LARF_NEAREST.min(largest.len());
            if nearest < largest.len() {
                largest.select_nth_unstable_by(nearest - 1, |a, b| b.total_cmp(a));
                largest.truncate(nearest);
            }
            largest.sort_unstable_by(|a, b| b.total_cmp(a));
            (f64::from(largest[0]), largest.iter().map(|v| f64::from(*v)).sum::<f64>() / nearest as f64)
        })
    };
    let (safe_near, harm_near) = (summary(safe)?, summary(harm)?);
    let difference = |of: fn(&(f64, f64)) -> f64| safe_near.iter().zip(&harm_near).map(|(s, h)| of(h) - of(s)).collect();
    let line = logistic_regression(safe, harm, LOGISTIC_INVERSE_PENALTY);
    let logit = |row: ArrayView1<'_, f32>| line.iter().zip(row).map(|(a, x)| a * f64::from(*x)).sum::<f64>() + line[line.len() - 1];
    let logistic = (0..compared.scored.nrows()).into_par_iter().map(|row| logit(compared.scored.row(row))).collect();
    let baseline = |name: &str, scores| compared.method(name, MethodKind::Baseline, None, scores);
    Ok(vec![
        baseline("nearest reference", difference(|near| near.0)),
        baseline(&format!("mean of {LARF_NEAREST} nearest"), difference(|near| near.1)),
        baseline("logistic regression", logistic),
    ])
}

/// Push-pull with parts missing. `views` names the text columns whose vectors each row's vector is made of, in order; with one there is
/// no single view to compare. `progress` is told what is being fitted. A part that the job has switched off itself cannot go missing: such an ablation
/// is left out.
///
/// # Errors
/// As [`fit()`] and [`TransportModel::weigh`], and [`Error::Internal`] where the dimensions are no multiple of the number of views.
pub fn ablations(
    compared: Compared<'_>,
    model: &TransportModel,
    options: &TransportOptions,
    views: &[String],
    progress: &mut dyn FnMut(&str, FitProgress),
) -> Result<Vec<Method>> {
    let whole = TransportOptions {
        epsilon: Auto::Fixed(model.epsilon),
        prior: Auto::Fixed(model.prior.strength),
        inverse_penalty: Auto::Fixed(model.prior.inverse_penalty),
        ..options.clone()
    };
    let mut methods = Vec::new();
    let fitted = |name: &str, options: &TransportOptions, progress: &mut dyn FnMut(&str, FitProgress)| {
        fit(compared.sample, &model.safe, &model.harm, options, None, &mut |at| progress(name, at))
    };
    let ablation = |name: &str, converged, scores| compared.method(name, MethodKind::Ablation, Some(converged), scores);
    if model.prior.strength > 0.0 {
        let prior = model.weigh(compared.scored)?.iter().map(|row| f64::from(row.prior)).collect();
        methods.push(compared.method("prior alone", MethodKind::Ablation, None, prior));
    }
    let mut prior_free = None;
    for (name, part) in [
        ("no prior", whole.clone().with_prior(0.0)),
        ("no potentials", whole.clone().with_slack(Some(0.0))),
        ("pull only", whole.clone().with_prior(0.0).with_push(0.0)),
    ] {
        if part == whole || (name == "pull only" && part.push == whole.push) {
            continue;
        }
        let fit = fitted(name, &part, progress)?;
        methods.push(ablation(name, fit.report.converged, scores(&fit.model, compared.scored)?));
        if name == "no prior" {
            prior_free = Some((fit.model, fit.report.converged));
        }
    }
    if whole.push > 0.0 {
        let (model, converged) = prior_free.as_ref().map_or((model, true), |(model, converged)| (model, *converged));
        let push = model.weigh(compared.scored)?.iter().map(|row| -f64::from(row.push)).collect();
        methods.push(ablation("push only", converged, push));
    }
    if views.len() > 1 {
        for (view, name) in views.iter().enumerate() {
            let name = format!("{name} only");
            let slice = |vectors: ArrayView2<'_, f32>| single_view(vectors, views.len(), view);
            let set = |of: &ReferenceSet| ReferenceSet::try_new(slice(of.vectors())?, of.masses().to_vec());
            let fit = fit(slice(compared.sample)?.view(), &set(&model.safe)?, &set(&model.harm)?, options, None, &mut |at| {
                progress(&name, at);
            })?;
            methods.push(ablation(&name, fit.report.converged, scores(&fit.model, slice(compared.scored)?.view())?));
        }
    }
    Ok(methods)
}

/// `pull − λ · push + prior` of every row, from what weighing gives.
fn scores(model: &TransportModel, rows: ArrayView2<'_, f32>) -> Result<Vec<f64>> {
    let score = |pull: f32, push: f32, prior: f32| f64::from(pull) - model.push * f64::from(push) + f64::from(prior);
    Ok(model.weigh(rows)?.iter().map(|row| score(row.pull, row.push, row.prior)).collect())
}

/// One view of vectors that are concatenations of `views` slices of equal length: that slice, scaled to unit length.
///
/// Where the view is all zero (its text is null or unknown), the row takes the last of its other views that is there: a plain document, which a job embeds
/// in its last view, keeps its text, as in a job with that one column and the same fallback. A zero vector stays zero.
///
/// # Errors
/// [`Error::Internal`] where the dimensions are no multiple of `views` or there is no such view.
pub fn single_view(vectors: ArrayView2<'_, f32>, views: usize, view: usize) -> Result<Array2<f32>> {
    if view >= views || !vectors.ncols().is_multiple_of(views) {
        return Err(Error::Internal(format!("view {view} of {views} in {} dimensions", vectors.ncols())));
    }
    let dims = vectors.ncols() / views;
    let mut sliced = Array2::zeros((vectors.nrows(), dims));
    for (from, mut into) in vectors.outer_iter().zip(sliced.axis_iter_mut(Axis(0))) {
        for candidate in std::iter::once(view).chain((0..views).rev()) {
            let slice = from.slice(s![candidate * dims..(candidate + 1) * dims]);
            let norm = slice.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
            if norm > 0.0 {
                into.iter_mut().zip(slice).for_each(|(into, v)| *into = (f64::from(*v) / norm) as f32);
                break;
            }
        }
    }
    Ok(sliced)
}
