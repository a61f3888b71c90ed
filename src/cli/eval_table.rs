//! An evaluation for a person: one table, what its marks mean, and what it comes to in words.

use crate::eval::{Cell, MethodKind, MethodResult, Verdict};
use crate::job::EvalReport;
use std::fmt::Write;

/// Columns of a terminal that the table keeps to.
const WIDTH: usize = 140;
/// Longest name of a class in a heading.
const CLASS_WIDTH: usize = 13;
/// Between columns, beside the place of a mark.
const GAP: usize = 1;

/// One column of the table: two lines of heading, and each method's value with its interval.
struct Column {
    heading: [String; 2],
    cells: Vec<[String; 2]>,
}

impl Column {
    fn width(&self) -> usize {
        let texts = self.heading.iter().chain(self.cells.iter().flatten());
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    }
}

/// The whole report.
pub(super) fn evaluation(report: &EvalReport) -> String {
    let mut out = head(report);
    let methods = &report.evaluation.methods;
    let positives = report.evaluation.classes.first().map_or(0, |class| class.rows);
    let columns: Vec<Column> = methods
        .first()
        .map_or(0, |method| method.cells.len())
        .checked_sub(1)
        .map_or(Vec::new(), |last| (0..=last).map(|at| column(methods, at, positives)).collect());
    let names = methods.iter().map(|method| method.method.chars().count() + 2).max().unwrap_or(0);
    let mut rest = columns.as_slice();
    while !rest.is_empty() {
        let mut width = names;
        let fit = rest.iter().take_while(|column| {
            width += GAP + column.width();
            width <= WIDTH
        });
        let (block, later) = rest.split_at(fit.count().max(1));
        rest = later;
        table(&mut out, methods, names, block);
    }
    legend(&mut out, report);
    verdicts(&mut out, report);
    for warning in &report.warnings {
        let _ = writeln!(out, "warning    {warning}");
    }
    out
}

fn head(report: &EvalReport) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| wrapped(&mut out, &format!("{name:<10} "), &text);
    let classes = &report.evaluation.classes;
    let rows = report.rows;
    let of = |class: &crate::eval::ClassCount| format!("{} {}", class.rows, class.class);
    let negatives: Vec<String> = classes.iter().skip(1).map(of).collect();
    let positives = classes.first().map_or(0, |class| class.rows);
    line(
        "scored",
        format!(
            "{} rows: {} ({:.1} %) against {}",
            rows.scored,
            classes.first().map(of).unwrap_or_default(),
            100.0 * positives as f64 / rows.scored.max(1) as f64,
            negatives.join(", ")
        ),
    );
    if let Some(sql) = &report.predicate {
        line("", format!("only where {sql}"));
    }
    let left_out: Vec<String> = [
        (rows.not_selected, "for which the condition does not hold"),
        (rows.without_label, "without a label"),
        (rows.other_label, "with another label"),
        (rows.without_text, "without text"),
        (rows.unreadable, "in shards that could not be read"),
        (rows.eligible - rows.scored - rows.without_text - rows.unreadable, "beyond the sample (see --rows)"),
    ]
    .iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, why)| format!("{n} {why}"))
    .collect();
    if !left_out.is_empty() {
        line("left out", left_out.join(", "));
    }
    for bad in &report.quarantined {
        line("", format!("quarantined: {}", bad.reason));
    }
    let state = if report.converged { "converged" } else { "NOT converged" };
    line(
        "push-pull",
        format!(
            "fitted now on {} rows, labelled or not, and {} safe and {} harmful references ({state}); nothing is written",
            report.sample_rows, report.safe_references, report.harm_references
        ),
    );
    if let Some(reason) = &report.why_not {
        line("", reason.clone());
    }
    line("", format!("epsilon {:.4}, push {}, prior {:.4}, temperature {:.4}", report.epsilon, report.push, report.prior, report.tau));
    out
}

fn column(methods: &[MethodResult], at: usize, positives: usize) -> Column {
    let cells: Vec<&Cell> = methods.iter().filter_map(|method| method.cells.get(at)).collect();
    Column {
        heading: cells.first().map(|cell| heading(cell)).unwrap_or_default(),
        cells: cells.iter().map(|cell| [format!("{}{}", value(cell, positives), mark(cell)), format!("{} ", interval(cell))]).collect(),
    }
}

fn heading(cell: &Cell) -> [String; 2] {
    match (cell.metric, &cell.negative, cell.percent) {
        ("auc", Some(negative), _) => ["AUC ".to_owned(), format!("{} ", shortened(negative))],
        ("average_precision", ..) => ["average ".to_owned(), "precision ".to_owned()],
        ("kept", _, Some(percent)) => ["kept in ".to_owned(), format!("best {percent} % ")],
        _ => ["share of ".to_owned(), "weight ".to_owned()],
    }
}

fn shortened(name: &str) -> String {
    match name.chars().count() > CLASS_WIDTH {
        true => name.chars().take(CLASS_WIDTH - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

fn value(cell: &Cell, positives: usize) -> String {
    match cell.metric {
        "kept" => format!("{} ({:.1}%)", count(cell.value), 100.0 * cell.value / positives.max(1) as f64),
        "weight_share" => format!("{:.2} %", 100.0 * cell.value),
        _ => format!("{:.4}", cell.value),
    }
}

fn interval(cell: &Cell) -> String {
    let (low, high) = (cell.interval.low, cell.interval.high);
    match cell.metric {
        "kept" => format!("{low:.0}-{high:.0}"),
        "weight_share" => format!("{:.2}-{:.2}", 100.0 * low, 100.0 * high),
        _ => format!("{low:.4}-{high:.4}"),
    }
}

/// A number of rows, which ties across the cut make a fraction.
fn count(rows: f64) -> String {
    if rows.fract() == 0.0 { format!("{rows:.0}") } else { format!("{rows:.1}") }
}

fn mark(cell: &Cell) -> char {
    match cell.push_pull_minus_this.map(|against| against.verdict) {
        None | Some(Verdict::Better) => ' ',
        Some(Verdict::NoDifference) => '=',
        Some(Verdict::Worse) => '!',
    }
}

fn table(out: &mut String, methods: &[MethodResult], names: usize, columns: &[Column]) {
    let mut row = |name: &str, texts: &mut dyn Iterator<Item = &String>| {
        let mut line = format!("{name:<names$}");
        for (text, column) in texts.zip(columns) {
            let _ = write!(line, "{:GAP$}{text:>width$}", "", width = column.width());
        }
        let _ = writeln!(out, "{}", line.trim_end());
    };
    row("", &mut std::iter::empty());
    row("", &mut columns.iter().map(|column| &column.heading[0]));
    row("", &mut columns.iter().map(|column| &column.heading[1]));
    let mut kind = None;
    for (at, method) in methods.iter().enumerate() {
        if kind.replace(method.kind).is_some_and(|before| before != method.kind) {
            row("", &mut std::iter::empty());
            let title = if method.kind == MethodKind::Baseline { "what people do today" } else { "push-pull with parts missing" };
            row(title, &mut std::iter::empty());
        }
        let indent = if method.kind == MethodKind::PushPull { "" } else { "  " };
        row(&format!("{indent}{}", method.method), &mut columns.iter().filter_map(|column| Some(&column.cells.get(at)?[0])));
        row("", &mut columns.iter().filter_map(|column| Some(&column.cells.get(at)?[1])));
    }
}

fn legend(out: &mut String, report: &EvalReport) {
    let evaluation = &report.evaluation;
    let (positive, positives) = evaluation.classes.first().map_or(("", 0), |class| (class.class.as_str(), class.rows));
    let level = 100.0 * evaluation.level;
    let chance = positives as f64 / report.rows.scored.max(1) as f64;
    let _ = writeln!(out);
    for (name, text) in [
        (
            "AUC",
            format!(
                "chance that a row of {positive:?} ranks as more harmful than a row of that class; 0.5 is a coin toss. Average precision: of the \
                 ranking over all rows; {chance:.2} is chance. More is better in both."
            ),
        ),
        ("kept", format!("rows of {positive:?} left when so many of the scored rows are kept, those of most weight. Fewer is better.")),
        (
            "share",
            format!(
                "their share of the total weight; less is better. Methods without weights of their own get exp(-score/t), t such that the \
                 effective sample size is push-pull's, {:.1} %.",
                100.0 * report.ess
            ),
        ),
        (
            "intervals",
            format!(
                "second lines: {level:.0} % of {} resamples of the scored rows, class by class. They do not cover another choice of references.",
                evaluation.resamples
            ),
        ),
        ("marks", "no mark: push-pull is better. `=`: no difference shown. `!`: better than push-pull. Each by the interval of the difference on the same resamples.".to_owned()),
        (
            "names",
            "logistic regression: linear, on the vectors of the references alone, C = 10; its score is the logit. Prior alone: push-pull's prior, a \
             kernel regression on references and corpus, without transport. No potentials: slack = 0."
                .to_owned(),
        ),
    ] {
        wrapped(out, &format!("{name:<10} "), &text);
    }
}

fn verdicts(out: &mut String, report: &EvalReport) {
    let level = 100.0 * report.evaluation.level;
    let _ = writeln!(out);
    for (kind, all, what) in [
        (MethodKind::Baseline, "every baseline", "the baselines"),
        (MethodKind::Ablation, "every version of itself with a part missing", "itself with parts missing"),
    ] {
        let methods = || report.evaluation.methods.iter().filter(|method| method.kind == kind);
        let total: usize = methods().map(|method| method.cells.len()).sum();
        let better = report.evaluation.cells(kind, Verdict::Better).count();
        if total == 0 {
            continue;
        }
        if better == total {
            let _ = writeln!(out, "push-pull beats {all} in every column outside the {level:.0} % interval.");
            continue;
        }
        let _ = writeln!(out, "Against {what}, push-pull is better in {better} of {total} cells. Not better:");
        for method in methods() {
            let found: Vec<String> = [(Verdict::Worse, "worse in "), (Verdict::NoDifference, "no difference in ")]
                .into_iter()
                .filter_map(|(verdict, what)| Some(format!("{what}{}", columns_of(method, verdict)?)))
                .collect();
            if !found.is_empty() {
                wrapped(out, &format!("  {:<22} ", method.method), &found.join("; "));
            }
        }
    }
}

/// The columns with this verdict; where they are nearly all, the few others.
fn columns_of(method: &MethodResult, verdict: Verdict) -> Option<String> {
    let has = |cell: &&Cell| cell.push_pull_minus_this.is_some_and(|against| against.verdict == verdict);
    let (found, others): (Vec<&Cell>, Vec<&Cell>) = method.cells.iter().partition(has);
    let list = |cells: &[&Cell]| cells.iter().map(|cell| said(cell)).collect::<Vec<_>>().join(", ");
    match (found.len(), others.len()) {
        (0, _) => None,
        (_, 0) => Some("every column".to_owned()),
        (n, 1..=2) if n > 3 => Some(format!("every column but {}", list(&others))),
        _ => Some(list(&found)),
    }
}

/// A text behind a name, broken between words; the lines after the first are indented like it.
fn wrapped(out: &mut String, name: &str, text: &str) {
    let indent = name.chars().count();
    let (mut line, mut fresh) = (name.to_owned(), true);
    for word in text.split(' ') {
        if !fresh && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{line}");
            (line, fresh) = (" ".repeat(indent), true);
        }
        if !fresh {
            line.push(' ');
        }
        line.push_str(word);
        fresh = false;
    }
    let _ = writeln!(out, "{line}");
}

/// A column's name in a sentence.
fn said(cell: &Cell) -> String {
    match (cell.metric, &cell.negative, cell.percent) {
        ("auc", Some(negative), _) => format!("AUC {}", shortened(negative)),
        ("kept", _, Some(percent)) => format!("kept {percent} %"),
        ("weight_share", ..) => "share of weight".to_owned(),
        _ => "average precision".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_break_between_words_and_keep_them() {
        let text = "word ".repeat(60).trim_end().to_owned();
        let mut out = String::new();
        wrapped(&mut out, "name       ", &text);
        assert!(out.lines().count() == 3 && out.lines().all(|line| line.chars().count() <= WIDTH), "{out}");
        assert!(
            out.starts_with("name       word word") && out.lines().nth(1).is_some_and(|line| line.starts_with("           word")),
            "{out}"
        );
        assert_eq!(out.split_whitespace().count(), 61);
        let mut out = String::new();
        wrapped(&mut out, "name ", &"x".repeat(200));
        assert_eq!(out.lines().count(), 1, "a word too long for any line stays whole");
    }
}
