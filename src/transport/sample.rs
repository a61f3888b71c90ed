//! In: a sample of rows and both reference sets. Out: for given potentials, every row's two transforms and the marginals of the
//! weighted rows. This is the one place where a fit touches rows.
//!
//! Memory: similarity tiles are kept up to a byte bound, tiles past it are computed again each time with the same bits. Beside
//! that, one pair of tiles a thread and one pair of marginals for every [`SPAN_TILES`] tiles. Sums over rows run inside a span
//! in row order and then over spans in order, so results don't depend on the number of threads.

use std::ops::Range;

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::cost::{PackedReferences, TILE_ROWS, fill_tile};
use super::potential::{RowTransform, SoftTransform, accumulate};
use super::references::ReferenceSet;
use super::weight::score;
use crate::error::{Error, Result};

/// Tiles whose marginals are summed together, by one thread.
const SPAN_TILES: usize = 4;

/// Rows of a sample in a fixed order, cut into tiles, with as many similarity tiles as fit the bound.
#[derive(Debug)]
pub(super) struct SampleTiles<'a> {
    rows: ArrayView2<'a, f32>,
    order: &'a [usize],
    safe: &'a PackedReferences,
    harm: &'a PackedReferences,
    cached: Vec<(Vec<f32>, Vec<f32>)>,
}

/// How rows are weighted in a pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Weighting<'a> {
    /// `exp(−score/τ)`, with the prior's term of every row (in the sample's order).
    Closed { push: f64, tau: f64, prior: &'a [f64] },
    /// Given log weights (in the sample's order), up to a constant.
    Fixed(&'a [f64]),
}

/// What a pass over rows found. Rows are in the sample's order.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// `f(x; g_safe)`.
    pub(super) pull: Vec<f64>,
    /// `f(x; g_harm)`.
    pub(super) push: Vec<f64>,
    /// Logarithm of the sum of the unnormalised weights.
    pub(super) log_mass: f64,
    /// Marginal of the safe references, sum 1.
    pub(super) safe: Marginal,
    /// Marginal of the harmful references, sum 1.
    pub(super) harm: Marginal,
}

/// A marginal `p_j = Σ_i w_i π_ij` and, where asked for, what its sampling noise needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Marginal {
    pub(super) mass: Vec<f64>,
    /// `Σ_i w_i² π_ij` and `Σ_i w_i² π_ij²`.
    noise: Option<(Vec<f64>, Vec<f64>)>,
    /// `Σ_i w_i²`.
    squares: f64,
}

impl Marginal {
    pub(super) fn new(len: usize, noise: bool) -> Self {
        Self { mass: vec![0.0; len], noise: noise.then(|| (vec![0.0; len], vec![0.0; len])), squares: 0.0 }
    }

    /// Expected L1 distance of the marginal of so many rows from `masses` for a perfect potential.
    pub(super) fn expected_noise(&self, masses: &[f64]) -> f64 {
        let Some((first, second)) = &self.noise else { return 0.0 };
        let deviation: f64 =
            masses.iter().zip(first).zip(second).map(|((q, one), two)| (two - 2.0 * q * one + q * q * self.squares).max(0.0).sqrt()).sum();
        (2.0 / std::f64::consts::PI).sqrt() * deviation
    }

    /// Adds rows `0..count` of a tile of exponentials, whose responsibilities are `exponentials / sum`.
    pub(super) fn add_tile(&mut self, exponentials: &[f32], transforms: &[RowTransform], weights: &[f64]) {
        let width = self.mass.len();
        for ((group, transforms), weights) in exponentials.chunks_exact(4 * width).zip(transforms.chunks(4)).zip(weights.chunks(4)) {
            let mut scale = [0.0; 4];
            scale.iter_mut().zip(weights.iter().zip(transforms)).for_each(|(s, (w, t))| *s = w / t.sum);
            accumulate(&mut self.mass, group, scale);
            if let Some((first, second)) = &mut self.noise {
                for ((row, s), w) in group.chunks_exact(width).zip(scale).zip(weights) {
                    self.squares += w * w;
                    for ((one, two), e) in first.iter_mut().zip(second.iter_mut()).zip(row) {
                        let share = s * f64::from(*e);
                        *one += w * share;
                        *two += share * share;
                    }
                }
            }
        }
    }

    /// `self += factor · other`; the squares of weights take the factor twice.
    fn add(&mut self, other: &Self, factor: f64) {
        let add = |into: &mut [f64], from: &[f64], by: f64| into.iter_mut().zip(from).for_each(|(a, b)| *a += by * b);
        add(&mut self.mass, &other.mass, factor);
        if let (Some(into), Some(from)) = (&mut self.noise, &other.noise) {
            add(&mut into.0, &from.0, factor * factor);
            add(&mut into.1, &from.1, factor * factor);
        }
        self.squares += factor * factor * other.squares;
    }

    fn scale(&mut self, factor: f64) {
        let zero = Self::new(self.mass.len(), self.noise.is_some());
        let scaled = std::mem::replace(self, zero);
        self.add(&scaled, factor);
    }
}

/// The sums of one span; weights are relative to `exp(shift)`.
struct SpanSums {
    pull: Vec<f64>,
    push: Vec<f64>,
    shift: f64,
    mass: f64,
    safe: Marginal,
    harm: Marginal,
}

impl SpanSums {
    /// Makes `exp(shift)` the unit of weight, so that no weight overflows.
    fn raise(&mut self, shift: f64) {
        if shift <= self.shift {
            return;
        }
        if self.mass > 0.0 {
            let factor = (self.shift - shift).exp();
            self.mass *= factor;
            self.safe.scale(factor);
            self.harm.scale(factor);
        }
        self.shift = shift;
    }
}

/// Buffers of one thread.
struct Scratch {
    rows: Vec<f32>,
    safe: Vec<f32>,
    harm: Vec<f32>,
}

impl Scratch {
    fn new(tiles: &SampleTiles<'_>) -> Self {
        let tile = |width: usize| vec![0.0; TILE_ROWS * width];
        Self { rows: tile(tiles.rows.ncols()), safe: tile(tiles.safe.padded()), harm: tile(tiles.harm.padded()) }
    }
}

impl<'a> SampleTiles<'a> {
    /// Cuts `order`, indices into `rows`, into tiles and computes as many similarity tiles as fit `cache_bytes`.
    pub(super) fn try_new(
        rows: ArrayView2<'a, f32>,
        order: &'a [usize],
        safe: &'a PackedReferences,
        harm: &'a PackedReferences,
        cache_bytes: usize,
    ) -> Result<Self> {
        let mut tiles = Self { rows, order, safe, harm, cached: Vec::new() };
        let tile_bytes = TILE_ROWS * (safe.padded() + harm.padded()) * size_of::<f32>();
        let keep = tiles.tiles().min(cache_bytes / tile_bytes);
        tiles.cached = (0..keep)
            .into_par_iter()
            .map_init(
                || vec![0.0; TILE_ROWS * rows.ncols()],
                |buffer, tile| {
                    let mut pair = (vec![0.0; TILE_ROWS * safe.padded()], vec![0.0; TILE_ROWS * harm.padded()]);
                    tiles.similarities(tile, buffer, &mut pair.0, &mut pair.1)?;
                    Ok(pair)
                },
            )
            .collect::<Result<_>>()?;
        Ok(tiles)
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn tiles(&self) -> usize {
        self.order.len().div_ceil(TILE_ROWS)
    }

    fn row_range(&self, tiles: &Range<usize>) -> Range<usize> {
        (tiles.start * TILE_ROWS).min(self.len())..(tiles.end * TILE_ROWS).min(self.len())
    }

    fn similarities(&self, tile: usize, buffer: &mut [f32], safe: &mut [f32], harm: &mut [f32]) -> Result<()> {
        let range = self.row_range(&(tile..tile + 1));
        fill_tile(self.rows, self.order[range].iter().copied(), buffer);
        self.safe.similarities(buffer, safe)?;
        self.harm.similarities(buffer, harm)
    }

    /// Responsibilities of the harmful references for the first `rows` rows (at most all), row-major, each row's sum 1.
    pub(super) fn harm_responsibilities(&self, rows: usize, harm: &SoftTransform, references: usize) -> Result<Vec<f32>> {
        let rows = rows.min(self.len());
        let mut scratch = Scratch::new(self);
        let mut out = Vec::with_capacity(rows * references);
        for tile in 0..rows.div_ceil(TILE_ROWS) {
            let range = self.row_range(&(tile..tile + 1));
            let similarities = match self.cached.get(tile) {
                Some(pair) => &pair.1,
                None => {
                    self.similarities(tile, &mut scratch.rows, &mut scratch.safe, &mut scratch.harm)?;
                    &scratch.harm
                }
            };
            let rows = similarities.chunks_exact(self.harm.padded()).take(range.end.min(rows) - range.start);
            rows.for_each(|row| harm.share(row, references, &mut out));
        }
        Ok(out)
    }

    /// Transforms the rows of `tiles` and sums their marginals. With `noise`, the marginals can tell their sampling noise.
    ///
    /// # Errors
    /// [`Error::Internal`] where the weighting hasn't one entry a row of the sample.
    pub(super) fn pass(
        &self,
        tiles: Range<usize>,
        safe: &SoftTransform,
        harm: &SoftTransform,
        weighting: Weighting<'_>,
        noise: bool,
    ) -> Result<Pass> {
        let per_row = match weighting {
            Weighting::Closed { prior, .. } => prior.len(),
            Weighting::Fixed(log_weights) => log_weights.len(),
        };
        if per_row != self.len() {
            return Err(Error::Internal(format!("{per_row} row terms for {} rows", self.len())));
        }
        let starts: Vec<usize> = tiles.clone().step_by(SPAN_TILES).collect();
        let spans: Vec<SpanSums> = starts
            .into_par_iter()
            .map_init(
                || Scratch::new(self),
                |scratch, start| self.span(start..(start + SPAN_TILES).min(tiles.end), safe, harm, weighting, noise, scratch),
            )
            .collect::<Result<_>>()?;
        Ok(self.combine(spans, noise))
    }

    fn span(
        &self,
        tiles: Range<usize>,
        safe: &SoftTransform,
        harm: &SoftTransform,
        weighting: Weighting<'_>,
        noise: bool,
        scratch: &mut Scratch,
    ) -> Result<SpanSums> {
        let mut sums = SpanSums {
            pull: Vec::new(),
            push: Vec::new(),
            shift: f64::NEG_INFINITY,
            mass: 0.0,
            safe: Marginal::new(self.safe.padded(), noise),
            harm: Marginal::new(self.harm.padded(), noise),
        };
        for tile in tiles {
            let rows = self.row_range(&(tile..tile + 1));
            let cached = self.cached.get(tile);
            if cached.is_none() {
                let Scratch { rows, safe, harm } = &mut *scratch;
                self.similarities(tile, rows, safe, harm)?;
            }
            let pulls = transform_tile(safe, self.safe.padded(), rows.len(), cached.map(|c| &*c.0), &mut scratch.safe);
            let pushes = transform_tile(harm, self.harm.padded(), rows.len(), cached.map(|c| &*c.1), &mut scratch.harm);
            let logs: Vec<f64> = match weighting {
                Weighting::Closed { push, tau, prior } => pulls
                    .iter()
                    .zip(&pushes)
                    .zip(&prior[rows])
                    .map(|((f, h), prior)| -score(f.value, h.value, push, *prior) / tau)
                    .collect(),
                Weighting::Fixed(log_weights) => log_weights[rows].to_vec(),
            };
            sums.raise(logs.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            let weights: Vec<f64> = logs.iter().map(|z| (z - sums.shift).exp()).collect();
            sums.mass += weights.iter().sum::<f64>();
            sums.safe.add_tile(&scratch.safe, &pulls, &weights);
            sums.harm.add_tile(&scratch.harm, &pushes, &weights);
            sums.pull.extend(pulls.iter().map(|f| f.value));
            sums.push.extend(pushes.iter().map(|f| f.value));
        }
        Ok(sums)
    }

    /// Joins spans in order and divides by the total weight.
    fn combine(&self, spans: Vec<SpanSums>, noise: bool) -> Pass {
        let shift = spans.iter().map(|s| s.shift).fold(f64::NEG_INFINITY, f64::max);
        let mass: f64 = spans.iter().map(|s| s.mass * (s.shift - shift).exp()).sum();
        let mut pass = Pass {
            log_mass: shift + mass.ln(),
            safe: Marginal::new(self.safe.padded(), noise),
            harm: Marginal::new(self.harm.padded(), noise),
            ..Pass::default()
        };
        for span in spans {
            let factor = (span.shift - shift).exp() / mass;
            pass.safe.add(&span.safe, factor);
            pass.harm.add(&span.harm, factor);
            pass.pull.extend(span.pull);
            pass.push.extend(span.push);
        }
        pass
    }
}

/// Transforms the first `count` rows of a tile, from `cached` similarities or in place, leaving exponentials in `tile`.
fn transform_tile(transform: &SoftTransform, width: usize, count: usize, cached: Option<&[f32]>, tile: &mut [f32]) -> Vec<RowTransform> {
    let mut line = vec![0.0; width];
    (0..count)
        .map(|row| {
            let span = row * width..(row + 1) * width;
            match cached {
                Some(similarities) => transform.transform(&similarities[span.clone()], &mut tile[span]),
                None => {
                    line.copy_from_slice(&tile[span.clone()]);
                    transform.transform(&line, &mut tile[span])
                }
            }
        })
        .collect()
}

/// A packed pair of reference sets.
pub(super) fn pack(safe: &ReferenceSet, harm: &ReferenceSet) -> (PackedReferences, PackedReferences) {
    (PackedReferences::new(safe), PackedReferences::new(harm))
}
