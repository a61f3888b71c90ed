//! In: rows. Out: their row weights under one fixed model.
//!
//! A row's result depends on the row and the model alone, to the bit: not on the chunk it came in, its place there, the other
//! rows, or the number of threads. Memory: both reference sets once more, and two tiles of similarities a thread.

use std::ops::Range;

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::cost::{PackedReferences, TILE_ROWS, check_rows, fill_tile};
use super::observed::{Observed, plan_cost};
use super::options::{MAX_EPSILON, MIN_EPSILON};
use super::potential::{RowTransform, SoftTransform};
use super::prior::Prior;
use super::references::ReferenceSet;
use super::sample::Marginal;
use super::weight::{RowWeight, density_ratio, score};
use crate::error::{Error, Result};

/// Everything a row's weight needs. Plain data: the fields are what is stored, [`TransportModel::validate`] says whether they fit
/// together.
#[derive(Clone, Debug, PartialEq)]
pub struct TransportModel {
    /// Trusted references `s_j`, the target of the pull.
    pub safe: ReferenceSet,
    /// Harmful references `h_k`, the source of the push.
    pub harm: ReferenceSet,
    /// `g_safe`, one number a safe reference, mean 0 under the masses; excludes `ε log q`.
    pub safe_potential: Vec<f64>,
    /// `g_harm`, one number a harmful reference, mean 0 under the masses; excludes `ε log q`.
    pub harm_potential: Vec<f64>,
    /// The learned prior h and its strength β.
    pub prior: Prior,
    /// ε, entropic smoothing, in units of the cost.
    pub epsilon: f64,
    /// λ, strength of the push.
    pub push: f64,
    /// τ, temperature of the weights, in units of the cost.
    pub tau: f64,
    /// Logarithm of the normaliser: the mean weight over the fit's sample is 1.
    pub log_z: f64,
    /// ρ, relaxation of the reference marginals the potentials were fitted with; None for exact marginals.
    pub slack: Option<f64>,
}

impl TransportModel {
    /// The model, where its parts fit together.
    ///
    /// # Errors
    /// As [`TransportModel::validate`].
    pub fn try_new(model: Self) -> Result<Self> {
        model.validate()?;
        Ok(model)
    }

    /// Checks lengths, ranges and finiteness.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the field as `model.<field>`.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, fine: bool, reason: String| {
            if fine { Ok(()) } else { Err(Error::InvalidOption { name: format!("model.{name}"), reason }) }
        };
        let (safe, harm) = (self.safe.dims(), self.harm.dims());
        check("harm", safe == harm, format!("has {harm} dimensions but the safe references have {safe}"))?;
        for (name, potential, set) in
            [("safe_potential", &self.safe_potential, &self.safe), ("harm_potential", &self.harm_potential, &self.harm)]
        {
            check(name, potential.len() == set.len(), format!("has {} values for {} references", potential.len(), set.len()))?;
            check(name, potential.iter().all(|g| g.is_finite()), "must be finite".into())?;
        }
        let Prior { safe: safe_coefficients, harm: harm_coefficients, intercept, strength, .. } = &self.prior;
        let (near, far) = (safe_coefficients.len(), harm_coefficients.len());
        let fits = near == self.safe.len() && far == self.harm.len();
        check("prior", fits, format!("has {near} and {far} coefficients for {} and {} references", self.safe.len(), self.harm.len()))?;
        let finite = safe_coefficients.iter().chain(harm_coefficients).all(|c| c.is_finite()) && intercept.is_finite();
        check("prior", finite && strength.is_finite() && *strength >= 0.0, "must be finite, its strength at least 0".into())?;
        let fine = (MIN_EPSILON..=MAX_EPSILON).contains(&self.epsilon);
        check("epsilon", fine, format!("must be in [{MIN_EPSILON}, {MAX_EPSILON}], found {}", self.epsilon))?;
        check("push", self.push.is_finite() && self.push >= 0.0, format!("must be at least 0, found {}", self.push))?;
        check("tau", self.tau.is_finite() && self.tau > 0.0, format!("must be positive, found {}", self.tau))?;
        check("log_z", self.log_z.is_finite(), format!("must be finite, found {}", self.log_z))?;
        check("slack", self.slack.is_none_or(|s| s.is_finite() && s >= 0.0), format!("must be at least 0, found {:?}", self.slack))
    }

    /// Weighs a chunk of rows: one [`RowWeight`] a row, in order. Runs on the current rayon pool.
    ///
    /// Chunks of a few hundred rows or more are best: rows are computed in tiles of [`TILE_ROWS`], and each
    /// call lays the references out anew. For many small chunks keep a [`Weigher`].
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where the model is not valid, the dimensions differ, or a row (named by its index) isn't a finite
    /// unit or zero vector.
    pub fn weigh(&self, rows: ArrayView2<'_, f32>) -> Result<Vec<RowWeight>> {
        self.weigher()?.weigh(rows)
    }

    /// Prepares the model for weighing many chunks.
    ///
    /// # Errors
    /// As [`TransportModel::validate`].
    pub fn weigher(&self) -> Result<Weigher<'_>> {
        self.validate()?;
        Ok(Weigher {
            model: self,
            packed_safe: PackedReferences::new(&self.safe),
            packed_harm: PackedReferences::new(&self.harm),
            log_masses: [&self.safe, &self.harm].map(|set| set.masses().iter().map(|q| q.ln()).collect()),
            safe: SoftTransform::new(self.safe.masses(), &self.safe_potential, self.epsilon),
            harm: SoftTransform::new(self.harm.masses(), &self.harm_potential, self.epsilon),
        })
    }
}

/// A model laid out for weighing. Holds a copy of both reference sets.
#[derive(Debug)]
pub struct Weigher<'a> {
    pub(super) model: &'a TransportModel,
    pub(super) packed_safe: PackedReferences,
    pub(super) packed_harm: PackedReferences,
    /// `log q` of the safe and the harmful references.
    pub(super) log_masses: [Vec<f64>; 2],
    pub(super) safe: SoftTransform,
    pub(super) harm: SoftTransform,
}

impl Weigher<'_> {
    /// Length of the vectors it weighs, at least 1.
    pub fn dims(&self) -> usize {
        self.model.safe.dims()
    }

    /// The score of a row that this model weighed, `pull − λ · push + β · h`: higher is more harmful.
    pub fn score(&self, row: &RowWeight) -> f64 {
        row.score(self.model.push)
    }

    /// Weighs a chunk of rows; see [`TransportModel::weigh`].
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where the dimensions differ or a row (named by its index) isn't a finite unit or zero vector.
    pub fn weigh(&self, rows: ArrayView2<'_, f32>) -> Result<Vec<RowWeight>> {
        Ok(self.tiles(rows, false)?.into_iter().flat_map(|tile| tile.weights).collect())
    }

    /// Weighs a chunk of rows, with the same bits as [`Weigher::weigh`], and adds what they say about the model to `observed`.
    /// Costs about half more time: every plan entry that counts takes a logarithm.
    ///
    /// # Errors
    /// As [`Weigher::weigh`]; [`Error::Internal`] where `observed` was made for other references. Nothing is added then.
    pub fn weigh_observed(&self, rows: ArrayView2<'_, f32>, observed: &mut Observed) -> Result<Vec<RowWeight>> {
        let tiles = self.tiles(rows, true)?;
        let mut seen = Observed::new(self.model);
        let mut weights = Vec::with_capacity(rows.nrows());
        for tile in tiles {
            seen.rows += tile.weights.len() as u64;
            for row in &tile.weights {
                let weight = f64::from(row.weight);
                seen.weight += weight;
                seen.weight_squared += weight * weight;
                seen.safe.transform += weight * f64::from(row.pull);
                seen.harm.transform += weight * f64::from(row.push);
            }
            for (side, sums) in [(&mut seen.safe, tile.safe), (&mut seen.harm, tile.harm)] {
                if let Some(sums) = sums {
                    side.marginal.iter_mut().zip(&sums.marginal.mass).for_each(|(a, b)| *a += b);
                    side.plan += sums.plan;
                }
            }
            weights.extend(tile.weights);
        }
        observed.merge(&seen)?;
        Ok(weights)
    }

    /// Responsibilities of the safe and of the harmful references for each row, row-major, each row's sum 1.
    ///
    /// # Errors
    /// As [`Weigher::weigh`].
    pub(super) fn responsibilities(&self, rows: ArrayView2<'_, f32>) -> Result<(Vec<f32>, Vec<f32>)> {
        check_rows(rows, self.model.safe.dims())?;
        let one_side = |packed: &PackedReferences, transform: &SoftTransform, references: usize| -> Result<Vec<f32>> {
            let width = packed.padded();
            let (mut tile, mut similarities) = (vec![0.0; TILE_ROWS * rows.ncols()], vec![0.0; TILE_ROWS * width]);
            let mut out = Vec::with_capacity(rows.nrows() * references);
            for start in (0..rows.nrows()).step_by(TILE_ROWS) {
                let span = start..(start + TILE_ROWS).min(rows.nrows());
                fill_tile(rows, span.clone(), &mut tile);
                packed.similarities(&tile, &mut similarities)?;
                similarities.chunks_exact(width).take(span.len()).for_each(|row| transform.share(row, references, &mut out));
            }
            Ok(out)
        };
        let TransportModel { safe, harm, .. } = self.model;
        Ok((one_side(&self.packed_safe, &self.safe, safe.len())?, one_side(&self.packed_harm, &self.harm, harm.len())?))
    }

    fn tiles(&self, rows: ArrayView2<'_, f32>, observe: bool) -> Result<Vec<WeighedTile>> {
        let dims = self.model.safe.dims();
        check_rows(rows, dims)?;
        (0..rows.nrows().div_ceil(TILE_ROWS))
            .into_par_iter()
            .map_init(
                || Scratch::new(dims, self.packed_safe.padded(), self.packed_harm.padded(), observe),
                |scratch, tile| self.tile(rows, tile * TILE_ROWS..((tile + 1) * TILE_ROWS).min(rows.nrows()), scratch, observe),
            )
            .collect()
    }

    #[expect(clippy::cast_possible_truncation, reason = "f32 is the output's type")]
    fn tile(&self, rows: ArrayView2<'_, f32>, span: Range<usize>, scratch: &mut Scratch, observe: bool) -> Result<WeighedTile> {
        let model = self.model;
        let (safe_width, harm_width) = (self.packed_safe.padded(), self.packed_harm.padded());
        fill_tile(rows, span.clone(), &mut scratch.rows);
        self.packed_safe.similarities(&scratch.rows, &mut scratch.safe)?;
        self.packed_harm.similarities(&scratch.rows, &mut scratch.harm)?;
        let mut weights = Vec::with_capacity(span.len());
        let (mut nears, mut fars) = (Vec::new(), Vec::new());
        for place in 0..span.len() {
            let safe = &scratch.safe[place * safe_width..(place + 1) * safe_width];
            let harm = &scratch.harm[place * harm_width..(place + 1) * harm_width];
            // Without observation one line of exponentials is enough, each row overwrites the last.
            let line = if observe { place } else { 0 };
            let near = self.safe.transform(safe, &mut scratch.safe_exponentials[line * safe_width..(line + 1) * safe_width]);
            let far = self.harm.transform(harm, &mut scratch.harm_exponentials[line * harm_width..(line + 1) * harm_width]);
            let prior = model.prior.term(safe, harm);
            weights.push(RowWeight {
                weight: density_ratio(score(near.value, far.value, model.push, prior), model.tau, model.log_z),
                pull: near.value as f32,
                push: far.value as f32,
                prior: prior as f32,
                safe_ref: self.safe.nearest(safe, &near),
                harm_ref: self.harm.nearest(harm, &far),
            });
            if observe {
                nears.push(near);
                fars.push(far);
            }
        }
        let [log_safe, log_harm] = &self.log_masses;
        let side = |similarities: &[f32], exponentials: &[f32], width: usize, transforms: &[RowTransform], log_masses: &[f64]| {
            observe.then(|| TileSums::new(similarities, exponentials, width, transforms, &weights, (log_masses, model.epsilon)))
        };
        Ok(WeighedTile {
            safe: side(&scratch.safe, &scratch.safe_exponentials, safe_width, &nears, log_safe),
            harm: side(&scratch.harm, &scratch.harm_exponentials, harm_width, &fars, log_harm),
            weights,
        })
    }
}

/// Up to [`TILE_ROWS`] rows, weighed, and the sums over them and either reference set where they are observed.
struct WeighedTile {
    weights: Vec<RowWeight>,
    safe: Option<TileSums>,
    harm: Option<TileSums>,
}

/// What one tile of weighed rows adds to an observation.
struct TileSums {
    marginal: Marginal,
    plan: f64,
}

impl TileSums {
    fn new(
        similarities: &[f32],
        exponentials: &[f32],
        width: usize,
        transforms: &[RowTransform],
        weights: &[RowWeight],
        (log_masses, epsilon): (&[f64], f64),
    ) -> Self {
        let ratios: Vec<f64> = weights.iter().map(|w| f64::from(w.weight)).collect();
        let mut marginal = Marginal::new(width, false);
        marginal.add_tile(exponentials, transforms, &ratios);
        let rows = similarities.chunks_exact(width).zip(exponentials.chunks_exact(width)).zip(transforms);
        let plan = rows.zip(&ratios).map(|(((s, e), row), w)| w * plan_cost(s, e, row.sum, log_masses, epsilon)).sum();
        Self { marginal, plan }
    }
}

/// Buffers of one thread.
struct Scratch {
    rows: Vec<f32>,
    safe: Vec<f32>,
    harm: Vec<f32>,
    safe_exponentials: Vec<f32>,
    harm_exponentials: Vec<f32>,
}

impl Scratch {
    fn new(dims: usize, safe: usize, harm: usize, observe: bool) -> Self {
        let tile = |width: usize| vec![0.0; TILE_ROWS * width];
        let lines = |width: usize| vec![0.0; if observe { TILE_ROWS } else { 1 } * width];
        Self { rows: tile(dims), safe: tile(safe), harm: tile(harm), safe_exponentials: lines(safe), harm_exponentials: lines(harm) }
    }
}
