//! What a row is compared by: its texts as they are embedded, or its vector. Finds references that are copies of one another or rows of the
//! corpus. Memory: the references' contents once more; of the corpus one row at a time.

use super::encoder::RowColumns;
use super::references::ReferenceRows;
use crate::catalog::Side;
use crate::embed;
use crate::error::Result;
use arrow::array::RecordBatch;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};

/// Bytes at each end of a content that decide where it is looked up. A longer text is compared whole only where these are the same.
const ENDS: usize = 64;

/// Calls `see` with the index and the content of every row that has one. Two rows have the same content where they are embedded alike: the same
/// texts in the same views, white space at the ends aside, with the fallback in its place; or the same unit vector.
///
/// # Errors
/// [`Error::Column`](crate::error::Error::Column) for a type or value that cannot be used.
pub(super) fn each_content(object: &str, batch: &RecordBatch, columns: &RowColumns, mut see: impl FnMut(usize, &[u8])) -> Result<()> {
    let mut content = Vec::new();
    if !columns.is_text() {
        let Some(column) = batch.columns().first() else { return Ok(()) };
        let rows = embed::vectors(object, &columns.views()[0], column)?;
        for (index, (vector, present)) in rows.vectors.outer_iter().zip(&rows.present).enumerate() {
            if *present {
                content.clear();
                vector.iter().for_each(|value| content.extend_from_slice(&value.to_le_bytes()));
                see(index, &content);
            }
        }
        return Ok(());
    }
    let names = columns.views().iter().map(String::as_str).chain(columns.fallback());
    let mut texts = Vec::new();
    // References may lack the fallback.
    for (name, column) in names.zip(batch.columns()) {
        texts.push(embed::texts(object, name, column)?);
    }
    let views = columns.views().len().min(texts.len());
    for row in 0..batch.num_rows() {
        let fallback = texts.get(views).and_then(|column| column[row]);
        let all_null = texts[..views].iter().all(|column| column[row].is_none());
        if all_null && fallback.is_none() {
            continue;
        }
        content.clear();
        for (view, column) in texts[..views].iter().enumerate() {
            match column[row].or(fallback.filter(|_| all_null && view + 1 == views)) {
                Some(text) => content.extend_from_slice(text.trim().as_bytes()),
                None => content.push(0),
            }
            content.push(0);
        }
        see(row, &content);
    }
    Ok(())
}

/// The contents of the rows of one reference file, in order.
///
/// # Errors
/// As [`each_content`].
pub(super) fn contents_of(rows: &ReferenceRows, columns: &RowColumns) -> Result<Vec<Vec<u8>>> {
    let mut contents = vec![Vec::new(); rows.ids.len()];
    each_content(&rows.location, &rows.batch, columns, |row, content| contents[row] = content.to_vec())?;
    Ok(contents)
}

/// Looks up rows of the corpus among the references.
#[derive(Debug)]
pub(super) struct ContentIndex {
    references: Vec<(Side, usize, Vec<u8>)>,
    by_key: HashMap<u64, Vec<usize>>,
}

impl ContentIndex {
    /// # Errors
    /// As [`each_content`].
    pub(super) fn new(sides: [&ReferenceRows; 2], columns: &RowColumns) -> Result<Self> {
        let mut index = Self { references: Vec::new(), by_key: HashMap::new() };
        for rows in sides {
            for (row, content) in contents_of(rows, columns)?.into_iter().enumerate() {
                index.by_key.entry(key(&content)).or_default().push(index.references.len());
                index.references.push((rows.side, row, content));
            }
        }
        Ok(index)
    }

    /// The references with this content.
    fn find(&self, content: &[u8]) -> impl Iterator<Item = (Side, usize)> {
        let candidates = self.by_key.get(&key(content)).into_iter().flatten();
        candidates.map(|&place| &self.references[place]).filter(move |(.., other)| other == content).map(|(side, row, _)| (*side, *row))
    }
}

fn key(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.len().hash(&mut hasher);
    content[..content.len().min(ENDS)].hash(&mut hasher);
    content[content.len().saturating_sub(ENDS)..].hash(&mut hasher);
    hasher.finish()
}

/// A reference met in the corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Occurrence {
    /// Rows with its content.
    pub(super) rows: u64,
    /// The first of them, as `shard:row`.
    pub(super) first: String,
}

/// The references met so far, by side and index.
pub(super) type Occurrences = BTreeMap<(Side, usize), Occurrence>;

impl ContentIndex {
    /// Adds the rows of a chunk that are references. `position` gives the place in the shard of the chunk's n-th row, or none where that row
    /// doesn't count.
    ///
    /// # Errors
    /// As [`each_content`].
    pub(super) fn look(
        &self,
        shard: &str,
        batch: &RecordBatch,
        columns: &RowColumns,
        position: impl Fn(usize) -> Option<u64>,
        found: &mut Occurrences,
    ) -> Result<()> {
        each_content(shard, batch, columns, |row, content| {
            for reference in self.find(content) {
                let Some(place) = position(row) else { return };
                let first = || Occurrence { rows: 0, first: format!("{shard}:{place}") };
                found.entry(reference).or_insert_with(first).rows += 1;
            }
        })
    }
}
