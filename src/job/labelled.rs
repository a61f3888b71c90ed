//! Which rows of a corpus are scored: those with a label that was asked for, a uniform sample where there are too many.
//!
//! Only the label column and the columns of the condition are read, of every row. Memory: 32 bytes a row of the sample, and the counts of
//! [`MAX_VALUES`] different labels.

use super::context::RunOptions;
use super::report::Quarantined;
use super::sample::{rank, shard_key};
use crate::error::{Error, Result, nearest};
use crate::shard::{Layout, Listing, ReadOptions, ShardEvent, ShardRequest, read_ahead};
use crate::sql::Predicate;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use std::collections::{BinaryHeap, HashMap};
use tokio::runtime::Handle;

/// Different labels that are told apart. A column with more is hardly one of labels; the rest is one class, "other labels".
const MAX_VALUES: usize = 1000;
/// Values that an error lists.
const LISTED: usize = 12;

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct LabelQuery {
    pub(super) label: String,
    pub(super) positive: Vec<String>,
    /// Empty: every other value.
    pub(super) negative: Vec<String>,
    pub(super) predicate: Option<String>,
    /// Rows of the sample at most.
    pub(super) rows: usize,
    pub(super) seed: u64,
}

/// A row that is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LabelledRow {
    /// Position in the listing.
    pub(super) shard: usize,
    pub(super) row: u64,
    /// Position in [`Labelled::values`].
    pub(super) value: usize,
}

/// The rows to score, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Labelled {
    /// Sorted by shard and row.
    pub(super) rows: Vec<LabelledRow>,
    /// The labels met, the asked ones first (positive, then negative, as given); `None` is all labels past [`MAX_VALUES`].
    pub(super) values: Vec<Option<String>>,
    /// Rows with an asked label for which the condition holds; the sample is drawn from these.
    pub(super) eligible: u64,
    pub(super) without_label: u64,
    pub(super) other_label: u64,
    /// Rows for which the condition does not hold.
    pub(super) not_selected: u64,
    pub(super) quarantined: Vec<Quarantined>,
}

/// The labels met so far.
struct Values {
    known: HashMap<String, usize>,
    names: Vec<Option<String>>,
    counts: Vec<u64>,
}

impl Values {
    fn asked(query: &LabelQuery) -> Self {
        let mut values = Self { known: HashMap::new(), names: Vec::new(), counts: Vec::new() };
        query.positive.iter().chain(&query.negative).for_each(|value| {
            values.at(value);
        });
        values
    }

    fn at(&mut self, value: &str) -> usize {
        if let Some(at) = self.known.get(value) {
            return *at;
        }
        let full = self.names.len() > MAX_VALUES;
        if !full {
            let at = self.names.len();
            let rest = at == MAX_VALUES;
            self.names.push((!rest).then(|| value.to_owned()));
            self.counts.push(0);
            if !rest {
                self.known.insert(value.to_owned(), at);
            }
        }
        self.names.len() - 1
    }

    /// The labels there are, most frequent first.
    fn listed(&self) -> String {
        let mut found: Vec<(u64, &str)> =
            self.names.iter().zip(&self.counts).filter(|(_, n)| **n > 0).map(|(name, n)| (*n, name.as_deref().unwrap_or("…"))).collect();
        found.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let more = if found.len() > LISTED { format!(" and {} more", found.len() - LISTED) } else { String::new() };
        let shown: Vec<String> = found.iter().take(LISTED).map(|(n, name)| format!("{name:?} ({n} rows)")).collect();
        format!("{}{more}", shown.join(", "))
    }
}

/// Reads the labels of the whole corpus. Blocking: call it outside the async runtime's own threads.
///
/// # Errors
/// [`Error::Column`] where no shard has the label column or it is no label, [`Error::InvalidOption`] for a value that no row has,
/// [`Error::Query`] for a condition that cannot be computed, and what the store answers.
pub(super) fn find_labelled(run: &RunOptions, listing: &Listing, query: &LabelQuery, runtime: &Handle) -> Result<Labelled> {
    let mut predicate = match &query.predicate {
        Some(sql) => Some(plan_predicate(listing, sql, runtime)?),
        None => None,
    };
    let mut columns = vec![query.label.clone()];
    columns.extend(predicate.iter().flat_map(|p| p.columns()).filter(|column| **column != query.label).cloned());
    let read = ReadOptions { columns, rows: None, chunk_rows: run.chunk_rows, memory: run.memory };
    let requests = listing.shards.iter().map(|shard| ShardRequest { shard: shard.clone(), rows: None }).collect();
    let mut ahead = read_ahead(requests, read, runtime.clone());

    let mut found = Labelled::default();
    let mut values = Values::asked(query);
    let asked = values.names.len();
    let mut lowest: BinaryHeap<(u64, LabelledRow)> = BinaryHeap::new();
    let (mut first_error, mut read_rows) = (None, 0u64);
    let (mut current, mut first) = (usize::MAX, 0u64);
    while let Some((index, event)) = ahead.next_blocking() {
        let shard = &listing.shards[index];
        if current != index {
            (current, first) = (index, 0);
        }
        let chunk = match event {
            ShardEvent::Rows(chunk, _permit) => Ok(chunk),
            ShardEvent::Failed(error) => Err(error),
            ShardEvent::Opened(_) | ShardEvent::Done(_) => continue,
        };
        let labelled = chunk.and_then(|chunk| {
            let labels = labels(&shard.name, &query.label, chunk.batch.column(0))?;
            Ok((labels, chunk.batch))
        });
        let (labels, batch): (StringArray, RecordBatch) = match labelled {
            Ok(labelled) => labelled,
            Err(error @ (Error::Shard { .. } | Error::Column { .. })) if !error.is_storage() => {
                ahead.skip_shard();
                found.quarantined.push(Quarantined::new(shard, &error));
                first_error.get_or_insert(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let holds = predicate.as_mut().map(|predicate| predicate.holds(&batch)).transpose()?;
        let key = shard_key(&shard.name, query.seed);
        for (row, label) in (first..).zip(labels.iter()) {
            if holds.as_ref().is_some_and(|holds| !holds.value((row - first) as usize)) {
                found.not_selected += 1;
                continue;
            }
            let Some(label) = label else {
                found.without_label += 1;
                continue;
            };
            let value = values.at(label);
            values.counts[value] += 1;
            if !query.negative.is_empty() && value >= asked {
                found.other_label += 1;
                continue;
            }
            found.eligible += 1;
            let entry = (rank(key, row), LabelledRow { shard: index, row, value });
            if lowest.len() < query.rows {
                lowest.push(entry);
            } else if lowest.peek().is_some_and(|highest| entry < *highest) {
                lowest.pop();
                lowest.push(entry);
            }
        }
        first += labels.len() as u64;
        read_rows += labels.len() as u64;
        run.progress.advance(read_rows);
    }
    if let (0, Some(error)) = (read_rows, first_error) {
        return Err(error);
    }
    check_found(query, &values, &found)?;
    found.rows = lowest.into_iter().map(|(_, row)| row).collect();
    found.rows.sort_unstable();
    found.values = values.names;
    Ok(found)
}

/// The condition for the first shard that has a schema; the others are planned for as they come.
fn plan_predicate(listing: &Listing, sql: &str, runtime: &Handle) -> Result<Predicate> {
    let mut first_error = None;
    for shard in &listing.shards {
        match runtime.block_on(Layout::load(shard, false)) {
            Ok(layout) => return Predicate::try_new(sql, std::sync::Arc::clone(layout.schema())),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| Error::Internal("an empty listing".to_owned())))
}

fn labels(object: &str, name: &str, column: &ArrayRef) -> Result<StringArray> {
    let kind = match column.data_type() {
        DataType::Dictionary(_, values) => values.as_ref(),
        other => other,
    };
    let is_label = kind.is_primitive() || kind.is_string() || matches!(kind, DataType::Boolean | DataType::Null);
    let text = is_label.then(|| cast(column, &DataType::Utf8).ok()).flatten();
    let reason = || format!("is {}; a label is a text, a number or true and false", column.data_type());
    let text = text.ok_or_else(|| Error::Column { object: object.to_owned(), column: name.to_owned(), reason: reason() })?;
    Ok(text.as_string::<i32>().clone())
}

/// Every asked value must occur, and there must be something to compare the positive rows with.
fn check_found(query: &LabelQuery, values: &Values, found: &Labelled) -> Result<()> {
    let fault = |option: &str, reason: String| Err(Error::InvalidOption { name: option.to_owned(), reason });
    let among = match &query.predicate {
        Some(sql) => format!("among the rows where {sql}, "),
        None => String::new(),
    };
    if values.counts.iter().all(|n| *n == 0) {
        let rows = found.without_label + found.not_selected;
        return fault("--label", format!("{among}no row has a `{}`; {rows} rows were read", query.label));
    }
    for (option, asked) in [("--positive", &query.positive), ("--negative", &query.negative)] {
        for value in asked {
            if values.known.get(value).is_none_or(|at| values.counts[*at] == 0) {
                let there = values.names.iter().zip(&values.counts).filter(|(_, n)| **n > 0).filter_map(|(name, _)| name.as_deref());
                let near = nearest(value, there).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
                return fault(option, format!("{among}no row has `{}` {value:?}{near}; there are {}", query.label, values.listed()));
            }
        }
    }
    let positive: u64 = values.counts[..query.positive.len()].iter().sum();
    if found.eligible == positive {
        return fault("--negative", format!("{among}every labelled row is positive: there is nothing to tell them from"));
    }
    Ok(())
}
