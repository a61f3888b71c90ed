//! A transformer in, the files of a static table out: one row a token, smaller and weighted by how rare the token is.
//!
//! The recipe of model2vec: each token goes through the model alone, between the special tokens; its pooled unit vectors are
//! centred and projected on their leading principal components; each row is scaled by a / (a + p), p the token's probability
//! under Zipf's law by its position in the vocabulary (Arora et al. 2017, smooth inverse frequency).
//!
//! Rows are stored as int8, each stretched to the full range; what brings it back, times the scale above, is the row's entry in the
//! `weights` tensor. That keeps three more bits of the rare tokens' rows than one scale for the table, and the model2vec package reads it too.

use std::collections::BTreeMap;

use nalgebra::{DMatrix, SymmetricEigen};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

use super::ModelFiles;
use super::bert::Bert;
use super::folder::{Folder, Layout, model_error};
use super::lexical::MAX_LEXICAL_DIMS;
use super::product::{Matrix, product};
use super::static_table::DEFAULT_LEXICAL_SHARE;
use crate::error::{Error, Result};

/// Dimensions kept by default. Together with as many lexical ones they separate harm better than 256 of their own, at the same cost a
/// row and half the file: a table of 30,522 tokens stays under 4 MB.
pub const DEFAULT_DISTILL_DIMS: usize = 128;

/// Lexical dimensions by default. 64 were clearly worse, 256 hardly better.
pub const DEFAULT_LEXICAL_DIMS: usize = 128;

/// The a of a / (a + p) by default: the value of Arora et al. and of model2vec.
pub const DEFAULT_FREQUENCY_SMOOTHING: f64 = 1e-4;

/// Tokens between two calls of the progress function.
const STEP: usize = 2048;

/// Rows of one partial sum of the covariance. Fixed, so that the sum does not depend on the number of threads.
const BLOCK: usize = 1024;

/// How [`distill`] makes a table.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DistillOptions {
    /// Principal components kept, from 1 to the model's own dimensions. Default [`DEFAULT_DISTILL_DIMS`].
    pub dims: usize,
    /// Dimensions after those that say which tokens a text has, whatever they mean; 0 for none, which leaves the vectors as the model2vec
    /// package makes them. At most 4,096. Default [`DEFAULT_LEXICAL_DIMS`].
    pub lexical_dims: usize,
    /// The a of a / (a + p), above 0: the larger, the closer all tokens' scales. Default [`DEFAULT_FREQUENCY_SMOOTHING`].
    pub frequency_smoothing: f64,
}

impl Default for DistillOptions {
    fn default() -> Self {
        Self { dims: DEFAULT_DISTILL_DIMS, lexical_dims: DEFAULT_LEXICAL_DIMS, frequency_smoothing: DEFAULT_FREQUENCY_SMOOTHING }
    }
}

impl DistillOptions {
    /// Sets [`dims`](Self::dims).
    #[must_use]
    pub fn with_dims(mut self, dims: usize) -> Self {
        self.dims = dims;
        self
    }

    /// Sets [`lexical_dims`](Self::lexical_dims).
    #[must_use]
    pub fn with_lexical_dims(mut self, dims: usize) -> Self {
        self.lexical_dims = dims;
        self
    }

    /// Sets [`frequency_smoothing`](Self::frequency_smoothing).
    #[must_use]
    pub fn with_frequency_smoothing(mut self, a: f64) -> Self {
        self.frequency_smoothing = a;
        self
    }
}

/// Makes a static table of a transformer and returns the files of its folder (model2vec layout): `config.json`, `model.safetensors`,
/// `tokenizer.json`. The new encoder reads whole texts (`"max_length": null`).
///
/// `progress` is called with the tokens done and their total. The model runs on rayon's current pool; the same files and options
/// give the same bytes on the same kind of processor, whatever the number of threads.
///
/// # Errors
/// [`Error::Model`] where `files` is not a sentence-transformers folder, [`Error::InvalidOption`] for options out of range.
pub fn distill(
    location: &str,
    files: &ModelFiles,
    options: &DistillOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<BTreeMap<String, Vec<u8>>> {
    let folder = Folder { location, files };
    let modules = match folder.layout()? {
        Layout::Transformer(modules) => modules,
        Layout::Decoder(_) => {
            return Err(folder
                .wrong("is a decoder; distilling starts from a sentence-transformers folder with a BERT-family transformer".to_owned()));
        }
        Layout::Static(_) => {
            return Err(folder.wrong("is a static table already; distilling starts from a sentence-transformers folder".to_owned()));
        }
    };
    let invalid = |name: &str, reason: String| Error::InvalidOption { name: name.to_owned(), reason };
    if !(options.frequency_smoothing > 0.0 && options.frequency_smoothing.is_finite()) {
        return Err(invalid("frequency_smoothing", format!("{} is not above 0", options.frequency_smoothing)));
    }
    if options.lexical_dims > MAX_LEXICAL_DIMS {
        return Err(invalid("lexical_dims", format!("{} is above {MAX_LEXICAL_DIMS}", options.lexical_dims)));
    }
    let model = Bert::load(&folder, &modules)?;
    let tokens = model.tokens().len();
    let width = super::Encoder::dims(&model);
    if options.dims == 0 || options.dims > width || options.dims >= tokens {
        return Err(invalid("dims", format!("{} is not between 1 and the model's {width}", options.dims)));
    }

    let mut vectors = Vec::with_capacity(tokens * width);
    progress(0, tokens);
    for start in (0..tokens).step_by(STEP) {
        let end = (start + STEP).min(tokens);
        let sequences: Vec<Vec<u32>> = (start as u32..end as u32).map(|id| model.framed(id)).collect();
        vectors.extend(model.pooled(&sequences)?);
        progress(end, tokens);
    }
    let vectors = Array2::from_shape_vec((tokens, width), vectors).map_err(|e| Error::Internal(format!("token vectors: {e}")))?;
    let rows = principal_components(&vectors, options.dims)?;
    let table = quantise(&rows, options.dims, options.frequency_smoothing);
    Ok(BTreeMap::from([
        ("config.json".to_owned(), config(options)),
        ("model.safetensors".to_owned(), table.file(location)?),
        ("tokenizer.json".to_owned(), model.tokens().to_json()?.into_bytes()),
    ]))
}

/// The centred vectors in the coordinates of their leading principal components, one row of `dims` numbers a token.
fn principal_components(vectors: &Array2<f32>, dims: usize) -> Result<Vec<f64>> {
    let (count, width) = vectors.dim();
    let mut mean = vec![0.0; width];
    for row in vectors.rows() {
        for (sum, &x) in mean.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    mean.iter_mut().for_each(|sum| *sum /= count as f64);
    let centred = |rows: ArrayView2<'_, f32>| -> Vec<f64> {
        rows.rows().into_iter().flat_map(|row| row.into_iter().zip(&mean).map(|(&x, m)| f64::from(x) - m)).collect()
    };

    // Blocks of fixed size, added in order: the sum does not depend on the number of threads.
    let blocks: Vec<ArrayView2<'_, f32>> = vectors.axis_chunks_iter(Axis(0), BLOCK).collect();
    let square = |rows: &ArrayView2<'_, f32>| {
        let block = centred(*rows);
        let mut out = vec![0.0; width * width];
        let left = Matrix { numbers: &block, offset: 0, row: 1, column: width };
        let right = Matrix { numbers: &block, offset: 0, row: width, column: 1 };
        product([width, width, rows.nrows()], left, right, &mut out, (0, width)).map(|()| out)
    };
    let squares = blocks.par_iter().map(square).collect::<Result<Vec<_>>>()?;
    let mut covariance = DMatrix::<f64>::zeros(width, width);
    for square in &squares {
        covariance.iter_mut().zip(square).for_each(|(sum, x)| *sum += x);
    }

    // Not divided by the number of tokens: that changes no axis.
    let eigen = SymmetricEigen::new(covariance);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let mut axes = Vec::with_capacity(dims * width);
    for &from in order.iter().take(dims) {
        let axis = eigen.eigenvectors.column(from);
        // An eigenvector's sign is arbitrary; its largest coordinate is made positive.
        let largest = axis.iter().copied().fold(0.0_f64, |best, x| if x.abs() > best.abs() { x } else { best });
        axes.extend(axis.iter().map(|x| x * largest.signum()));
    }
    let project = |rows: &ArrayView2<'_, f32>| {
        let block = centred(*rows);
        let mut out = vec![0.0; rows.nrows() * dims];
        let left = Matrix { numbers: &block, offset: 0, row: width, column: 1 };
        let right = Matrix { numbers: &axes, offset: 0, row: 1, column: width };
        product([rows.nrows(), dims, width], left, right, &mut out, (0, dims)).map(|()| out)
    };
    Ok(blocks.par_iter().map(project).collect::<Result<Vec<_>>>()?.concat())
}

/// An int8 table and each row's factor.
struct Table {
    rows: Vec<u8>,
    factors: Vec<u8>,
    shape: [usize; 2],
}

fn quantise(rows: &[f64], dims: usize, smoothing: f64) -> Table {
    let count = rows.len() / dims;
    // Zipf: the token at position r has a probability in proportion to 1 / (r + 2), as model2vec counts.
    let harmonic: f64 = (0..count).map(|r| 1.0 / (r as f64 + 2.0)).sum();
    let mut table = Table { rows: Vec::with_capacity(count * dims), factors: Vec::with_capacity(count * 4), shape: [count, dims] };
    for (rank, row) in rows.chunks_exact(dims).enumerate() {
        let largest = row.iter().fold(0.0_f64, |best, x| best.max(x.abs()));
        let step = largest / 127.0;
        for &x in row {
            let level = if step > 0.0 { (x / step).round() as i8 } else { 0 };
            table.rows.extend(level.to_le_bytes());
        }
        let probability = 1.0 / (rank as f64 + 2.0) / harmonic;
        let factor = step * smoothing / (smoothing + probability);
        table.factors.extend((factor as f32).to_le_bytes());
    }
    table
}

impl Table {
    fn file(&self, location: &str) -> Result<Vec<u8>> {
        let failed = |e: safetensors::SafeTensorError| model_error(location, "the table cannot be written".to_owned(), Some(e.into()));
        let rows = TensorView::new(Dtype::I8, self.shape.to_vec(), &self.rows).map_err(failed)?;
        let factors = TensorView::new(Dtype::F32, vec![self.shape[0]], &self.factors).map_err(failed)?;
        safetensors::serialize([("embeddings", rows), ("weights", factors)], None).map_err(failed)
    }
}

/// The keys model2vec writes, in its order, and those of the lexical part.
fn config(options: &DistillOptions) -> Vec<u8> {
    let DistillOptions { dims, lexical_dims, frequency_smoothing } = options;
    let lexical = match lexical_dims {
        0 => String::new(),
        dims => format!(",\n  \"lexical_dims\": {dims},\n  \"lexical_share\": {DEFAULT_LEXICAL_SHARE}"),
    };
    format!(
        "{{\n  \"model_type\": \"model2vec\",\n  \"architectures\": [\"StaticModel\"],\n  \"apply_pca\": {dims},\n  \
         \"sif_coefficient\": {frequency_smoothing},\n  \"hidden_dim\": {dims},\n  \"normalize\": true,\n  \"max_length\": null,\n  \
         \"embedding_dtype\": \"int8\"{lexical}\n}}\n"
    )
    .into_bytes()
}
