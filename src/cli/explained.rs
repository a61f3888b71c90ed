//! Explanations in words.

use super::text::short;
use crate::job::{ExplainedReference, ExplainedRow, ExplainedSide, ExplainedWeight, PublishedState};
use std::fmt::Write;

/// Characters shown of a row's text.
const TEXT: usize = 240;
/// Characters shown of a reference's text.
const REFERENCE: usize = 100;

/// Rows for a person. `full` shows whole texts.
pub(super) fn explained(rows: &[ExplainedRow], full: bool) -> String {
    rows.iter().map(|row| one(row, full)).collect::<Vec<_>>().join("\n")
}

fn one(row: &ExplainedRow, full: bool) -> String {
    let mut out = String::new();
    let weight = match (&row.explained, row.published) {
        (None, PublishedState::Differs { weight: Some(weight) }) => format!("no weight, but the table has {}", short(weight.into())),
        (None, _) => "no weight".to_owned(),
        (Some(found), PublishedState::Same) => format!("weight {}, as published", short(found.weight.into())),
        (Some(found), PublishedState::NotYet) => {
            format!("weight {} by the current model; not published, because the shard is not weighed yet", short(found.weight.into()))
        }
        (Some(found), PublishedState::Differs { weight }) => {
            let there = weight.map_or_else(|| "none".to_owned(), |weight| short(weight.into()));
            format!(
                "weight {} here, but {there} in the table (numbers of another kind of processor differ in their last digits)",
                short(found.weight.into())
            )
        }
    };
    let _ = writeln!(out, "{}:{}  {weight}", row.shard, row.row);
    let _ = writeln!(out, "model {}", row.model);
    let window = row.explained.as_ref().and_then(|found| found.window.as_ref());
    if let Some(window) = window {
        let _ = writeln!(out, "read in the window at character {} of column {}", window.character, printable(&window.column));
    }
    let width = row.texts.iter().map(|text| text.column.chars().count()).max().unwrap_or(0);
    // A text that is there and not embedded has no part in the weight.
    for text in row.texts.iter().filter(|text| text.embedded || text.text.is_none()) {
        let shown = match &text.text {
            None => "(null)".to_owned(),
            Some(whole) if full => indented(whole, width + 4),
            Some(whole) => match window.filter(|window| window.column == text.column && window.character > 0) {
                Some(window) => format!("…{}", cut(from_character(whole, window.character), TEXT)),
                None => cut(whole, TEXT),
            },
        };
        let _ = writeln!(out, "  {:<width$}  {shown}", text.column);
    }
    for note in &row.notes {
        let _ = writeln!(out, "  note: {note}");
    }
    if let Some(found) = &row.explained {
        product(&mut out, found);
        views(&mut out, found);
        references(&mut out, "safe references", &found.safe, found, full);
        references(&mut out, "harmful references", &found.harm, found, full);
    }
    out
}

/// The weight as a product, and the terms behind each factor.
fn product(out: &mut String, found: &ExplainedWeight) {
    let _ = writeln!(out, "\nterms of the weight");
    if let Some(factors) = &found.factors {
        let _ = writeln!(
            out,
            "  {} = {} (a row of mean terms) x {} (pull) x {} (push) x {} (prior)",
            short(found.weight.into()),
            short(factors.typical),
            short(factors.pull),
            short(factors.push),
            short(factors.prior)
        );
    }
    let mean = |mean: Option<f64>| mean.map(|mean| format!("mean {mean:>8.4}")).unwrap_or_default();
    let _ = writeln!(
        out,
        "  pull  {:>8.4}  {}  cost to the safe references; a high one lowers the weight",
        found.safe.value,
        mean(found.safe.mean)
    );
    let _ = writeln!(
        out,
        "  push  {:>8.4}  {}  cost to the harmful references; a low one lowers the weight",
        found.harm.value,
        mean(found.harm.mean)
    );
    let _ = writeln!(
        out,
        "  prior {:>8.4}  {}  a classifier learned from references and corpus says harmful with {:.1} % (not calibrated)",
        found.prior.value,
        mean(found.prior.mean),
        100.0 * found.prior.probability
    );
}

fn views(out: &mut String, found: &ExplainedWeight) {
    let width = found.views.iter().map(|view| view.view.chars().count()).max().unwrap_or(0).max("view".len());
    let _ = writeln!(out, "\n{:<w$}  cost to safe  cost to harm  weight without it", "view", w = width + 2);
    let cost = |cost: Option<f64>| cost.map_or_else(|| "-".to_owned(), |cost| format!("{cost:.4}"));
    for view in &found.views {
        let without = view.weight_without.map_or_else(|| "-".to_owned(), |weight| short(weight.into()));
        let _ = writeln!(out, "  {:<width$}  {:>12}  {:>12}  {without:>17}", view.view, cost(view.cost_to_safe), cost(view.cost_to_harm));
    }
}

fn references(out: &mut String, title: &str, side: &ExplainedSide, found: &ExplainedWeight, full: bool) {
    let id = side.strongest.iter().map(|reference| reference.id.chars().count()).max().unwrap_or(0).max(title.len() - 2);
    let mut head = format!("\n{title:<w$}  share    cost", w = id + 2);
    let widths: Vec<usize> = found.views.iter().map(|view| view.view.chars().count().max(6)).collect();
    // With one view its cost is the cost.
    let split = found.views.len() > 1;
    for (view, width) in found.views.iter().zip(&widths).filter(|_| split) {
        let _ = write!(head, "  {:>width$}", view.view);
    }
    let _ = writeln!(out, "{head}  potential    mass  category");
    for reference in &side.strongest {
        let _ = write!(out, "  {:<id$}  {:>5.1} %  {:.4}", reference.id, 100.0 * reference.responsibility, reference.cost);
        for (cost, width) in reference.view_costs.iter().zip(&widths).filter(|_| split) {
            let cost = cost.map_or_else(|| "-".to_owned(), |cost| format!("{cost:.4}"));
            let _ = write!(out, "  {cost:>width$}");
        }
        let _ = writeln!(
            out,
            "  {:>+9.4}  {:>4.2} %  {}",
            reference.potential,
            100.0 * reference.mass,
            reference.category.as_deref().map(printable).unwrap_or_else(|| "-".to_owned())
        );
        text_of(out, reference, full);
    }
}

fn text_of(out: &mut String, reference: &ExplainedReference, full: bool) {
    if let Some(text) = &reference.text {
        let shown = if full { indented(text, 6) } else { cut(text, REFERENCE) };
        let _ = writeln!(out, "      {shown}");
    }
}

/// The text from this character on.
fn from_character(text: &str, character: u64) -> &str {
    let place = usize::try_from(character).ok().and_then(|character| text.char_indices().nth(character));
    place.map_or("", |(at, _)| &text[at..])
}

/// One line of at most so many characters.
fn cut(text: &str, characters: usize) -> String {
    let line = printable(text);
    match line.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// One line without control characters: a corpus must not steer a terminal.
fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A whole text, its further lines moved in by so many columns.
fn indented(text: &str, columns: usize) -> String {
    let margin = format!("\n{:columns$}", "");
    text.lines().map(|line| line.replace(|c: char| c.is_control(), " ")).collect::<Vec<_>>().join(&margin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_at_characters_and_steer_no_terminal() {
        assert_eq!(cut("äöü\u{1b}[31m x", 3), "äöü…");
        assert_eq!(cut("a\n b\t c", 20), "a b c");
        assert_eq!(indented("a\n\u{1b}b", 2), "a\n   b");
        assert_eq!((from_character("äöü", 1), from_character("äöü", 0), from_character("äöü", 9)), ("öü", "äöü", ""));
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0, 0.0123, 0.009_25, 0.544, 1.0, 12.5, 0.000_012_34, 123_456.0].map(short);
        assert_eq!(shown, ["0", "0.0123", "0.00925", "0.544", "1.00", "12.5", "1.23e-5", "1.23e5"]);
    }
}
