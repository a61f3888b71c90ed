//! Judges the references of a fit: copies, too few rows, rows that contradict each other, mass that no row of the corpus serves, and
//! references that are rows of the corpus. In: both sets and what the fit saw. Out: a [`Hygiene`] report that stays with the model.
//!
//! Only one thing is refused: the same row on both sides ([`check_disjoint`](super::check_disjoint), before the fit). Everything else
//! is reported with counts and ids and the fit goes on, because a copy may be meant and a clean corpus has no harmful rows.
//!
//! A reference is in one finding about copies at most: as an exact copy, else as a folded one, else as a near one; and it is always the
//! later row that is the copy, so dropping every listed reference leaves one of each.

use super::contents::{Occurrences, contents_of};
use super::encoder::RowColumns;
use super::references::{ReferenceRows, some_of};
use crate::catalog::{Finding, FindingItem, FindingKind, Hygiene, Level, Side};
use crate::error::Result;
use crate::transport::{Coverage, ReferenceSet, nearest_earlier, nearest_in};
use std::collections::HashMap;

/// Rows below which a set is too small to speak for a corpus. On a labelled mix of 8,624 rows, embedded with an earlier builtin table, with
/// so many safe references drawn at random from 970 (three draws each), the area under the curve of harmful against benign rows, and the harmful
/// rows of 700 left in the best 80 %: 5 rows .77-.89, 216-363; 10 rows .85-.88, 209-278; 20 rows .90-.94, 113-183; 50 rows .95-.96, 61-79; 100 rows
/// .96-.97, 45-55; 300 rows .97, 24-38; all .975, 18. With 5 harmful references of 1,341 .77-.84, with 10 .84-.91. From 50 on the draw no longer decides.
const FEW: usize = 50;
/// A near copy costs at most this share of the mean cost. With the built-in embedder and its mean cost of 0.557 on that mix that is a cosine of
/// 0.989: of its 2,311 references, of which none is a copy, it finds none, where a cosine of 0.98 finds one safe and one harmful pair.
const NEAR_COPY: f64 = 0.02;
/// References of the two sets nearer than this share of the mean cost are hardly told apart by the transport: the automatic epsilon is from 0.02
/// to 0.09 of it. On that mix (a cosine of 0.972) there is none; the nearest pair across the sets has 0.893.
const NEAR_ACROSS: f64 = 0.05;
/// A reference is uncovered where the sample, left alone, would serve less than this share of its mass.
const COVERED: f64 = 0.01;
/// Share of a set's mass from which near copies and uncovered references are worth a change. A good set has some outliers: on the mix
/// 0.7 % of the safe and 1.5 % of the harmful mass is uncovered; with an earlier builtin table 65 % of the safe where the corpus was one of its
/// twelve sources.
const WORTH_A_CHANGE: f64 = 0.05;

/// What a fit knows about its references.
pub(super) struct Judged<'a> {
    /// The safe and the harmful file.
    pub(super) rows: [&'a ReferenceRows; 2],
    /// Their vectors.
    pub(super) sets: [&'a ReferenceSet; 2],
    /// The columns they are compared by.
    pub(super) columns: &'a RowColumns,
    /// Mean cost between the sample and the references.
    pub(super) mean_cost: f64,
    /// What the sample serves of each reference.
    pub(super) coverage: &'a Coverage,
    /// References met in the sample.
    pub(super) occurrences: &'a Occurrences,
    /// Rows of the sample.
    pub(super) sample_rows: usize,
}

impl Judged<'_> {
    /// Judges both sets.
    ///
    /// # Errors
    /// As reading the references.
    pub(super) fn judge(&self) -> Result<Hygiene> {
        let mut findings = Vec::new();
        for place in [0, 1] {
            let side = Judgement { of: self, rows: self.rows[place], set: self.sets[place] };
            findings.extend(side.too_few());
            findings.extend(side.copies()?);
            if side.rows.side == Side::Harm {
                findings.extend(side.near_across()?);
            }
            findings.extend(side.no_known_token());
            findings.extend(side.uncovered());
            findings.extend(side.in_corpus());
        }
        // Stable: the order above inside each level.
        findings.sort_by_key(|finding| finding.level == Level::Note);
        Ok(Hygiene { findings })
    }
}

/// One set under judgement.
struct Judgement<'a> {
    of: &'a Judged<'a>,
    rows: &'a ReferenceRows,
    set: &'a ReferenceSet,
}

/// A reference of a finding: its index, what it goes with, a number.
type Item = (usize, Option<String>, Option<f64>);

impl Judgement<'_> {
    /// A finding about `items`; `None` where there are none. `message` gets the number, as "3 safe references", and examples.
    fn finding(
        &self,
        finding: FindingKind,
        level: impl Fn(f64) -> Level,
        items: Vec<Item>,
        message: impl Fn(&str, &str, f64) -> String,
    ) -> Option<Finding> {
        if items.is_empty() {
            return None;
        }
        let mass: f64 = items.iter().map(|(index, ..)| self.set.masses()[*index]).sum();
        let examples: Vec<String> = items
            .iter()
            .map(|(index, other, _)| match other {
                Some(other) => format!("{} = {other}", self.rows.ids[*index]),
                None => self.rows.ids[*index].clone(),
            })
            .collect();
        let examples: Vec<&str> = examples.iter().map(String::as_str).collect();
        let number = match items.len() {
            1 => format!("1 {} reference", self.rows.side.adjective()),
            n => format!("{n} {} references", self.rows.side.adjective()),
        };
        Some(Finding {
            finding,
            side: self.rows.side,
            level: level(mass),
            count: items.len(),
            mass,
            message: message(&number, &some_of(&examples), 100.0 * mass),
            items: items.into_iter().map(|(index, other, value)| FindingItem { id: self.rows.ids[index].clone(), other, value }).collect(),
        })
    }

    fn too_few(&self) -> Option<Finding> {
        let count = self.set.len();
        (count < FEW).then(|| Finding {
            finding: FindingKind::TooFew,
            side: self.rows.side,
            level: Level::Warning,
            count,
            mass: 1.0,
            message: format!(
                "only {count} {} in {}: the weights follow these few rows; give {FEW} or more of many kinds",
                if count == 1 { "row is" } else { "rows are" },
                self.rows.location
            ),
            items: Vec::new(),
        })
    }

    fn copies(&self) -> Result<Vec<Finding>> {
        let contents = contents_of(self.rows, self.of.columns)?;
        let ids = &self.rows.ids;
        let (mut exact, mut folded, mut near): (Vec<Item>, Vec<Item>, Vec<Item>) = Default::default();
        let (mut seen, mut seen_folded) = (HashMap::new(), HashMap::new());
        let nearest = nearest_earlier(self.set)?;
        for (index, content) in contents.iter().enumerate() {
            let same = *seen.entry(content.as_slice()).or_insert(index);
            // Vectors have no case.
            let key = if self.of.columns.is_text() { fold(content) } else { String::new() };
            let alike = if key.is_empty() { index } else { *seen_folded.entry(key).or_insert(index) };
            let neighbour = nearest[index].filter(|n| n.cost <= NEAR_COPY * self.of.mean_cost && !is_zero(self.set, index));
            if same != index {
                exact.push((index, Some(ids[same].clone()), None));
            } else if alike != index {
                folded.push((index, Some(ids[alike].clone()), None));
            } else if let Some(n) = neighbour {
                near.push((index, Some(ids[n.index].clone()), Some(n.cost.max(0.0))));
            }
        }
        let drop = "each copy counts as mass; drop them, or say it with a column `mass`";
        let found = [
            self.finding(
                FindingKind::ExactCopies,
                |_| Level::Warning,
                exact,
                |number, ids, mass| format!("{number} ({mass:.1} % of the mass) copied word for word from an earlier one ({ids}): {drop}"),
            ),
            self.finding(
                FindingKind::FoldedCopies,
                |_| Level::Warning,
                folded,
                |number, ids, mass| {
                    format!("{number} ({mass:.1} % of the mass) copied from an earlier one but for case and white space ({ids}): {drop}")
                },
            ),
            self.finding(FindingKind::NearCopies, worth_a_change, near, |number, ids, mass| {
                format!("{number} ({mass:.1} % of the mass) with nearly the vector of an earlier one ({ids}): {drop}")
            }),
        ];
        Ok(found.into_iter().flatten().collect())
    }

    fn near_across(&self) -> Result<Option<Finding>> {
        let ([safe_rows, _], [safe_set, _]) = (self.of.rows, self.of.sets);
        let near = nearest_in(self.set, safe_set)?;
        let items = near
            .into_iter()
            .enumerate()
            .filter(|(index, n)| n.cost <= NEAR_ACROSS * self.of.mean_cost && !is_zero(self.set, *index))
            .map(|(index, n)| (index, Some(safe_rows.ids[n.index].clone()), Some(n.cost.max(0.0))))
            .collect();
        Ok(self.finding(
            FindingKind::NearAcross,
            |_| Level::Warning,
            items,
            |number, ids, mass| {
                format!("{number} ({mass:.1} % of the mass) with nearly the vector of a safe one ({ids}): the same place is pulled and pushed; drop one of each pair")
            },
        ))
    }

    fn no_known_token(&self) -> Option<Finding> {
        let items = (0..self.set.len()).filter(|index| is_zero(self.set, *index)).map(|index| (index, None, None)).collect();
        self.finding(
            FindingKind::NoKnownToken,
            |_| Level::Warning,
            items,
            |number, ids, mass| format!("{number} ({mass:.1} % of the mass) without any token that the embedder knows ({ids}): drop them"),
        )
    }

    fn uncovered(&self) -> Option<Finding> {
        let coverage = if self.rows.side == Side::Safe { &self.of.coverage.safe } else { &self.of.coverage.harm };
        let mut items: Vec<Item> = coverage
            .iter()
            .enumerate()
            .filter(|(index, share)| **share < COVERED && !is_zero(self.set, *index))
            .map(|(index, share)| (index, None, Some(*share)))
            .collect();
        // The least covered first; equals stay in the file's order.
        items.sort_by(|a, b| a.2.unwrap_or(0.0).total_cmp(&b.2.unwrap_or(0.0)));
        let advice = match self.rows.side {
            Side::Safe => "the weights of the rows that come nearest are forced up; drop these references, or set `transport.slack`",
            Side::Harm => "the corpus has next to nothing like them; drop these references, or set `transport.slack`",
        };
        self.finding(FindingKind::Uncovered, worth_a_change, items, |number, ids, mass| {
            format!(
                "{number} ({mass:.1} % of the mass) for less than {:.0} % of whose mass the corpus has rows ({ids}): {advice}",
                100.0 * COVERED
            )
        })
    }

    fn in_corpus(&self) -> Option<Finding> {
        let here = self.of.occurrences.iter().filter(|((side, _), _)| *side == self.rows.side);
        let items = here.map(|((_, index), met)| (*index, Some(met.first.clone()), Some(met.rows as f64))).collect();
        let (level, advice) = match self.rows.side {
            Side::Safe => (Level::Note, "they are trusted rows"),
            Side::Harm => (Level::Warning, "these rows are harmful by your own references; remove them"),
        };
        let sample = self.of.sample_rows;
        self.finding(
            FindingKind::InCorpus,
            |_| level,
            items,
            |number, ids, _| format!("{number} found word for word among the {sample} sampled rows of the corpus ({ids}): {advice}"),
        )
    }
}

fn worth_a_change(mass: f64) -> Level {
    if mass < WORTH_A_CHANGE { Level::Note } else { Level::Warning }
}

fn is_zero(set: &ReferenceSet, index: usize) -> bool {
    set.vectors().row(index).iter().all(|value| *value == 0.0)
}

/// A content without case and with single spaces.
fn fold(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content).to_lowercase();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
