//! In: methods, push-pull first. Out: the table: every metric of every method, its interval, and how push-pull compares.

use serde::Serialize;

use super::bootstrap::{BootstrapOptions, Interval, LEVEL, replicates};
use super::classes::{Classes, Resample};
use super::methods::{Method, MethodKind};
use super::metrics::{Metric, Ranking};
use crate::error::{Error, Result};

/// How push-pull does beside a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Push-pull is better: the interval of the difference leaves out 0.
    Better,
    /// The interval of the difference holds 0.
    NoDifference,
    /// The method is better.
    Worse,
}

/// Push-pull minus a method, on the same resamples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Against {
    /// The difference on the scored rows.
    pub difference: f64,
    /// The interval of the difference.
    #[serde(flatten)]
    pub interval: Interval,
    /// What that means for push-pull.
    pub verdict: Verdict,
}

/// One metric of one method.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// `auc`, `average_precision`, `kept` or `weight_share`.
    pub metric: &'static str,
    /// Of `auc`: the negative class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative: Option<String>,
    /// Of `kept`: the best percentage of all rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// On the scored rows. `kept` is in rows.
    pub value: f64,
    /// Where 95 % of the resamples are.
    #[serde(flatten)]
    pub interval: Interval,
    /// Push-pull minus this method; `None` for push-pull itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_pull_minus_this: Option<Against>,
}

/// A method's row of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MethodResult {
    /// The method.
    pub method: String,
    /// What it is to push-pull.
    pub kind: MethodKind,
    /// Whether its fit converged; absent where nothing is fitted iteratively.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub converged: Option<bool>,
    /// Every metric, in the same order for each method.
    pub cells: Vec<Cell>,
}

/// Rows of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// The label's value, or several joined by ` + `.
    pub class: String,
    /// Whether it is the positive (harmful) one.
    pub positive: bool,
    /// Scored rows of it.
    pub rows: usize,
}

/// How methods compare on labelled rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The classes, the positive one first.
    pub classes: Vec<ClassCount>,
    /// Resamples behind every interval.
    pub resamples: usize,
    /// Share of the resamples in an interval.
    pub level: f64,
    /// The methods, push-pull first.
    pub methods: Vec<MethodResult>,
}

impl Evaluation {
    /// Cells of methods of this kind by verdict, each with the method's name.
    pub fn cells(&self, kind: MethodKind, verdict: Verdict) -> impl Iterator<Item = (&str, &Cell)> {
        let of_kind = self.methods.iter().filter(move |method| method.kind == kind);
        let cells = of_kind.flat_map(|method| method.cells.iter().map(|cell| (method.method.as_str(), cell)));
        cells.filter(move |(_, cell)| cell.push_pull_minus_this.is_some_and(|against| against.verdict == verdict))
    }
}

/// Measures every method and compares the first, push-pull, with each of the others. `names` are the classes' names, the positive one first.
///
/// # Errors
/// [`Error::InvalidOption`] for no resamples or scores that cannot be ranked, [`Error::Internal`] for no method or other names than classes.
pub fn evaluate(methods: &[Method], classes: &Classes, names: &[String], options: BootstrapOptions) -> Result<Evaluation> {
    if options.resamples == 0 {
        return Err(Error::InvalidOption { name: "bootstrap".into(), reason: "must be at least 1".into() });
    }
    if methods.is_empty() || names.len() != classes.negatives() + 1 {
        let reason = format!("{} methods, {} names for {} classes", methods.len(), names.len(), classes.negatives() + 1);
        return Err(Error::Internal(reason));
    }
    let rankings: Vec<Ranking> =
        methods.iter().map(|method| Ranking::try_new(&method.scores, &method.weights, classes)).collect::<Result<_>>()?;
    let original = Resample::original(classes);
    let measured: Vec<Vec<f64>> = rankings.iter().map(|ranking| ranking.measure(classes, &original)).collect();
    let resampled = replicates(&rankings, classes, options);
    let metrics = Metric::all(classes.negatives());
    let results = methods.iter().enumerate().map(|(at, method)| {
        let cells = metrics.iter().enumerate().map(|(m, metric)| {
            let difference = (at > 0).then(|| {
                let differences = resampled[0][m].iter().zip(&resampled[at][m]).map(|(ours, theirs)| ours - theirs).collect();
                against(*metric, measured[0][m] - measured[at][m], Interval::of(differences))
            });
            cell(*metric, names, measured[at][m], Interval::of(resampled[at][m].clone()), difference)
        });
        MethodResult { method: method.name.clone(), kind: method.kind, converged: method.converged, cells: cells.collect() }
    });
    let classes =
        names.iter().enumerate().map(|(class, name)| ClassCount { class: name.clone(), positive: class == 0, rows: classes.size(class) });
    Ok(Evaluation { classes: classes.collect(), resamples: options.resamples, level: LEVEL, methods: results.collect() })
}

fn against(metric: Metric, difference: f64, interval: Interval) -> Against {
    let verdict = match (interval.low > 0.0, interval.high < 0.0) {
        (true, _) if metric.more_is_better() => Verdict::Better,
        (_, true) if metric.more_is_better() => Verdict::Worse,
        (true, _) => Verdict::Worse,
        (_, true) => Verdict::Better,
        (false, false) => Verdict::NoDifference,
    };
    Against { difference, interval, verdict }
}

fn cell(metric: Metric, names: &[String], value: f64, interval: Interval, push_pull_minus_this: Option<Against>) -> Cell {
    let (name, negative, percent) = match metric {
        Metric::Auc(class) => ("auc", names.get(class).cloned(), None),
        Metric::AveragePrecision => ("average_precision", None, None),
        Metric::Kept(percent) => ("kept", None, Some(percent)),
        Metric::WeightShare => ("weight_share", None, None),
    };
    Cell { metric: name, negative, percent, value, interval, push_pull_minus_this }
}
