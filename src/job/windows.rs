//! Rows that are read in windows: a batch to its weights, and the sample of a fit.
//!
//! Where the job's pool is `worst`, each row is weighed in every reading ([`embed_candidates`](crate::embed::embed_candidates)) and
//! keeps the smallest weight, the first of equals, with the place of its window. Any other job has one reading a row, and all of this
//! is a plain encoding. The candidates of a chunk pass by some thousand at a time; those of a fit's sample stay, as every
//! round of [`fit_worst`](crate::transport::fit_worst) looks at all of them.

use super::encoder::RowEncoder;
use super::weigh::check_dimensions;
use crate::embed::WindowPlace;
use crate::error::{Error, Result};
use crate::transport::{RowCandidates, RowWeight, Weigher};
use crate::writeback::SidecarRow;
use arrow::array::RecordBatch;
use ndarray::{Array1, Array2, Axis};

/// Weighs a batch whose columns are [`RowColumns::to_read`](super::RowColumns::to_read): one entry a row, in order, `None` for a row
/// without text. Where the job picks the most harmful window, that window's weight, and its place. Runs on rayon's current pool.
///
/// # Errors
/// [`Error::Column`] naming `object` for a column that cannot be used or has vectors of another length than the model's.
pub fn weigh_batch(weigher: &Weigher<'_>, encoder: &RowEncoder, object: &str, batch: &RecordBatch) -> Result<Vec<Option<SidecarRow>>> {
    if !encoder.reads_worst() {
        let rows = encoder.encode(object, batch)?;
        if !rows.present.contains(&true) {
            return Ok(vec![None; rows.present.len()]);
        }
        check_dimensions(object, encoder, rows.vectors.ncols(), weigher.dims())?;
        let weights = weigher.weigh(rows.vectors.view())?;
        let kept = |(weight, present): (_, bool)| present.then_some(SidecarRow { weight, window: None });
        return Ok(weights.into_iter().zip(rows.present).map(kept).collect());
    }
    let mut worst: Vec<Option<SidecarRow>> = vec![None; batch.num_rows()];
    encoder.encode_candidates(object, batch, &mut |candidates| {
        check_dimensions(object, encoder, candidates.vectors.ncols(), weigher.dims())?;
        for (of, weight) in candidates.of.iter().zip(weigher.weigh(candidates.vectors)?) {
            let best = &mut worst[of.row];
            if best.is_none_or(|best| weigher.is_worse(&weight, &best.weight)) {
                *best = Some(SidecarRow { weight, window: Some(of.window) });
            }
        }
        Ok(())
    })?;
    Ok(worst)
}

/// The vector that the weight of a batch's one row is from: where the job picks the most harmful window, the row read in that window, and
/// its place. `None` for a row without text. Runs on rayon's current pool.
///
/// # Errors
/// As [`weigh_batch`].
pub(super) fn read_one(
    weigher: &Weigher<'_>,
    encoder: &RowEncoder,
    object: &str,
    row: &RecordBatch,
) -> Result<Option<(Array1<f32>, Option<WindowPlace>)>> {
    if !encoder.reads_worst() {
        let rows = encoder.encode(object, row)?;
        if rows.present.first() != Some(&true) {
            return Ok(None);
        }
        check_dimensions(object, encoder, rows.vectors.ncols(), weigher.dims())?;
        return Ok(Some((rows.vectors.row(0).to_owned(), None)));
    }
    let mut worst: Option<(RowWeight, Array1<f32>, WindowPlace)> = None;
    encoder.encode_candidates(object, row, &mut |candidates| {
        check_dimensions(object, encoder, candidates.vectors.ncols(), weigher.dims())?;
        let weights = weigher.weigh(candidates.vectors)?;
        for ((weight, vector), of) in weights.into_iter().zip(candidates.vectors.axis_iter(Axis(0))).zip(candidates.of) {
            if worst.as_ref().is_none_or(|(best, ..)| weigher.is_worse(&weight, best)) {
                worst = Some((weight, vector.to_owned(), of.window));
            }
        }
        Ok(())
    })?;
    Ok(worst.map(|(_, vector, window)| (vector, Some(window))))
}

/// Vectors of the rows of a sample that have text, as they come in.
pub(super) struct SampleVectors<'a> {
    encoder: &'a RowEncoder,
    /// Bytes that candidates may take; one vector a row is bounded by `transport.sample_rows` and always kept.
    memory: u64,
    values: Vec<f32>,
    dims: usize,
    /// For each row, the number of candidates up to it.
    ends: Vec<usize>,
}

impl<'a> SampleVectors<'a> {
    pub(super) fn new(encoder: &'a RowEncoder, memory: u64) -> Self {
        Self { encoder, memory, values: Vec::new(), dims: 0, ends: Vec::new() }
    }

    /// Takes the rows of a batch that have text, and tells which these are.
    ///
    /// # Errors
    /// As [`weigh_batch`]; [`Error::InvalidOption`] naming `transport.sample_rows` where the candidates do not fit the memory.
    pub(super) fn add(&mut self, object: &str, batch: &RecordBatch) -> Result<Vec<usize>> {
        if !self.encoder.reads_worst() {
            let rows = self.encoder.encode(object, batch)?;
            if rows.present.contains(&true) {
                self.check_dims(object, rows.vectors.ncols())?;
                for (row, _) in rows.vectors.axis_iter(Axis(0)).zip(&rows.present).filter(|(_, present)| **present) {
                    self.values.extend(row.iter().copied());
                    self.ends.push(self.ends.len() + 1);
                }
            }
            return Ok(places(&rows.present));
        }
        let encoder = self.encoder;
        let mut last = None;
        let present = encoder.encode_candidates(object, batch, &mut |candidates| {
            self.check_dims(object, candidates.vectors.ncols())?;
            let taken = (self.values.len() + candidates.vectors.len()) as u64 * size_of::<f32>() as u64;
            if taken > self.memory {
                return Err(self.too_many());
            }
            self.values.extend(candidates.vectors.iter().copied());
            for of in candidates.of {
                match self.ends.last_mut().filter(|_| last == Some(of.row)) {
                    Some(end) => *end += 1,
                    None => {
                        let start = self.ends.last().copied().unwrap_or(0);
                        self.ends.push(start + 1);
                    }
                }
                last = Some(of.row);
            }
            Ok(())
        })?;
        Ok(places(&present))
    }

    /// Whether no row had text.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All of them.
    ///
    /// # Errors
    /// [`Error::Internal`] where they do not fit together.
    pub(super) fn finish(self) -> Result<RowCandidates> {
        let rows = self.values.len().checked_div(self.dims).unwrap_or(0);
        let vectors = Array2::from_shape_vec((rows, self.dims), self.values).map_err(|e| Error::Internal(format!("sample: {e}")))?;
        RowCandidates::try_new(vectors, self.ends)
    }

    fn check_dims(&mut self, object: &str, found: usize) -> Result<()> {
        if self.dims > 0 {
            return check_dimensions(object, self.encoder, found, self.dims);
        }
        self.dims = found;
        Ok(())
    }

    fn too_many(&self) -> Error {
        // The rows so far nearly fill it; a tenth less leaves room for longer ones.
        let fits = (self.ends.len() * 9 / 10).max(1);
        let reason = format!(
            "the windows of the rows to embed take more than the {} MiB of --memory, {} rows of them so far: lower it to {fits} (in an \
             evaluation it and --rows together, whose rows are embedded with the sample), allow more memory, or widen embed.stride",
            self.memory >> 20,
            self.ends.len()
        );
        Error::InvalidOption { name: "transport.sample_rows".to_owned(), reason }
    }
}

fn places(present: &[bool]) -> Vec<usize> {
    (0..present.len()).filter(|row| present[*row]).collect()
}
