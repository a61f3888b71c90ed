//! Token ids in, hidden states out: the layers that BERT, RoBERTa and DistilBERT share (post-norm encoder blocks with absolute positions).
//!
//! Written on `gemm` and not on a tensor framework for two reasons. Several texts of any lengths go through the linear layers as one
//! matrix with a row a token, so nothing is padded; and each product runs on one thread, so texts are spread over rayon's current pool,
//! and a state's bits depend on its own text only (see [`product`]).

use super::product::{Matrix, product};
use super::tensors::Tensors;
use crate::error::{Error, Result};

/// The sizes of a transformer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) intermediate: usize,
    pub(super) norm_epsilon: f64,
    pub(super) activation: Activation,
    /// Position number of a text's first token: RoBERTa's start behind the padding token's.
    pub(super) first_position: usize,
}

/// The function between the two halves of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// x·Φ(x).
    Gelu,
    /// The tanh approximation of it.
    GeluTanh,
    Relu,
}

/// What a family of checkpoints calls its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// BERT, RoBERTa and XLM-RoBERTa.
    Bert,
    DistilBert,
}

/// A linear layer. `weight` is in × out, row by row: the checkpoint's, turned, which is what [`product`] needs to treat every row
/// of the input alike.
struct Linear {
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
}

struct Norm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    epsilon: f64,
}

struct Layer {
    /// Query, key and value, side by side.
    attention_in: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    feed_in: Linear,
    feed_out: Linear,
    feed_norm: Norm,
}

/// The weights of one model.
pub(super) struct Transformer {
    shape: Shape,
    words: Vec<f32>,
    positions: Vec<f32>,
    /// The row of token type 0, where the family has types.
    token_type: Option<Vec<f32>>,
    norm: Norm,
    layers: Vec<Layer>,
}

impl std::fmt::Debug for Transformer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transformer").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Transformer {
    /// Reads the weights, under `prefix` (empty, or `bert.` and the like).
    pub(super) fn load(tensors: &Tensors<'_>, prefix: &str, names: Names, shape: Shape) -> Result<Self> {
        let (h, wide) = (shape.hidden, shape.intermediate);
        // Several layers with the same input become one, their outputs side by side.
        let linear = |paths: &[String], inputs: usize, outputs: usize| -> Result<Linear> {
            let wide = outputs * paths.len();
            let mut joined = Linear { weight: vec![0.0; inputs * wide], bias: Vec::with_capacity(wide), inputs };
            for (part, path) in paths.iter().enumerate() {
                let weight = tensors.floats(&format!("{path}.weight"), Some(&[outputs, inputs]))?;
                for (output, row) in weight.chunks_exact(inputs).enumerate() {
                    for (input, &x) in row.iter().enumerate() {
                        joined.weight[input * wide + part * outputs + output] = x;
                    }
                }
                joined.bias.extend(tensors.floats(&format!("{path}.bias"), Some(&[outputs]))?);
            }
            Ok(joined)
        };
        let norm = |path: String| -> Result<Norm> {
            // Checkpoints converted from TensorFlow have the older names.
            let old = tensors.has(&format!("{path}.gamma"));
            let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
            Ok(Norm {
                scale: tensors.floats(&format!("{path}.{scale}"), Some(&[h]))?,
                shift: tensors.floats(&format!("{path}.{shift}"), Some(&[h]))?,
                epsilon: shape.norm_epsilon,
            })
        };
        let layers = (0..shape.layers)
            .map(|i| {
                let (base, [q, k, v, out, out_norm, wide_in, wide_out, wide_norm]) = match names {
                    Names::Bert => (
                        format!("{prefix}encoder.layer.{i}"),
                        [
                            "attention.self.query",
                            "attention.self.key",
                            "attention.self.value",
                            "attention.output.dense",
                            "attention.output.LayerNorm",
                            "intermediate.dense",
                            "output.dense",
                            "output.LayerNorm",
                        ],
                    ),
                    Names::DistilBert => (
                        format!("{prefix}transformer.layer.{i}"),
                        [
                            "attention.q_lin",
                            "attention.k_lin",
                            "attention.v_lin",
                            "attention.out_lin",
                            "sa_layer_norm",
                            "ffn.lin1",
                            "ffn.lin2",
                            "output_layer_norm",
                        ],
                    ),
                };
                let path = |name: &str| format!("{base}.{name}");
                Ok(Layer {
                    attention_in: linear(&[path(q), path(k), path(v)], h, h)?,
                    attention_out: linear(&[path(out)], h, h)?,
                    attention_norm: norm(path(out_norm))?,
                    feed_in: linear(&[path(wide_in)], h, wide)?,
                    feed_out: linear(&[path(wide_out)], wide, h)?,
                    feed_norm: norm(path(wide_norm))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let table = |name: &str| tensors.table(&format!("{prefix}embeddings.{name}.weight"), h);
        let token_type = match names {
            Names::Bert => Some(table("token_type_embeddings")?.into_iter().take(h).collect()),
            Names::DistilBert => None,
        };
        Ok(Self {
            shape,
            words: table("word_embeddings")?,
            positions: table("position_embeddings")?,
            token_type,
            norm: norm(format!("{prefix}embeddings.LayerNorm"))?,
            layers,
        })
    }

    /// The length of a hidden state.
    pub(super) fn hidden(&self) -> usize {
        self.shape.hidden
    }

    /// The number of token ids.
    pub(super) fn words(&self) -> usize {
        self.words.len() / self.shape.hidden
    }

    /// The number of positions.
    pub(super) fn positions(&self) -> usize {
        self.positions.len() / self.shape.hidden
    }

    /// The last layer's states of all tokens, one row a token, text after text. On the calling thread.
    ///
    /// A row's bits depend on its own text only: not on the texts it is packed with.
    pub(super) fn states(&self, texts: &[&[u32]]) -> Result<Vec<f32>> {
        let h = self.shape.hidden;
        let tokens: usize = texts.iter().map(|t| t.len()).sum();
        // A matrix of one row, or a small one, could be summed in another order: never make one (see `product`).
        let rows = tokens.max(if h > 64 { 2 } else { 65 });
        let mut states = vec![0.0; rows * h];
        self.embed(texts, &mut states)?;
        let mut qkv = vec![0.0; rows * 3 * h];
        let mut context = vec![0.0; rows * h];
        let mut update = vec![0.0; rows * h];
        let mut wide = vec![0.0; rows * self.shape.intermediate];
        let mut scores = Vec::new();
        for layer in &self.layers {
            layer.attention_in.apply(&states, &mut qkv)?;
            let mut at = 0;
            for text in texts.iter().filter(|t| !t.is_empty()) {
                self.attend(&qkv[3 * h * at..], text.len(), &mut scores, &mut context[h * at..])?;
                at += text.len();
            }
            layer.attention_out.apply(&context, &mut update)?;
            layer.attention_norm.add(&mut states, &update);
            layer.feed_in.apply(&states, &mut wide)?;
            self.shape.activation.apply(&mut wide);
            layer.feed_out.apply(&wide, &mut update)?;
            layer.feed_norm.add(&mut states, &update);
        }
        states.truncate(tokens * h);
        Ok(states)
    }

    /// Word, token type and position, added in that order as the published implementations do, then normalised.
    fn embed(&self, texts: &[&[u32]], states: &mut [f32]) -> Result<()> {
        let h = self.shape.hidden;
        let row = |table: &'_ [f32], at: usize| -> Option<std::ops::Range<usize>> {
            let range = at * h..(at + 1) * h;
            (range.end <= table.len()).then_some(range)
        };
        let places = texts.iter().flat_map(|t| t.iter().enumerate());
        for (state, (position, &id)) in states.chunks_exact_mut(h).zip(places) {
            let position = position + self.shape.first_position;
            let (Some(word), Some(place)) = (row(&self.words, id as usize), row(&self.positions, position)) else {
                return Err(Error::Internal(format!("token {id} at position {position} is outside the model's tables")));
            };
            state.copy_from_slice(&self.words[word]);
            for table in self.token_type.iter().map(Vec::as_slice).chain([&self.positions[place]]) {
                for (x, y) in state.iter_mut().zip(table) {
                    *x += y;
                }
            }
            self.norm.apply(state);
        }
        Ok(())
    }

    /// Softmax attention among the first `length` rows of `qkv`, every head on its own.
    fn attend(&self, qkv: &[f32], length: usize, scores: &mut Vec<f32>, context: &mut [f32]) -> Result<()> {
        let h = self.shape.hidden;
        let size = h / self.shape.heads;
        let scale = 1.0 / (size as f32).sqrt();
        scores.clear();
        scores.resize(length * length, 0.0);
        for head in 0..self.shape.heads {
            let part = |which: usize| which * h + head * size;
            let by_row = |offset| Matrix { numbers: qkv, offset, row: 3 * h, column: 1 };
            product(
                [length, length, size],
                by_row(part(0)),
                Matrix { numbers: qkv, offset: part(1), row: 1, column: 3 * h },
                scores,
                (0, length),
            )?;
            for row in scores.chunks_exact_mut(length) {
                softmax(row, scale);
            }
            product(
                [length, size, length],
                Matrix { numbers: scores, offset: 0, row: length, column: 1 },
                by_row(part(2)),
                context,
                (head * size, h),
            )?;
        }
        Ok(())
    }
}

impl Linear {
    /// `output = input · weight + bias`, a row a token.
    fn apply(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        let outputs = self.bias.len();
        let rows = input.len() / self.inputs;
        product(
            [rows, outputs, self.inputs],
            Matrix { numbers: input, offset: 0, row: self.inputs, column: 1 },
            Matrix { numbers: &self.weight, offset: 0, row: outputs, column: 1 },
            output,
            (0, outputs),
        )?;
        for row in output.chunks_exact_mut(outputs) {
            for (x, b) in row.iter_mut().zip(&self.bias) {
                *x += b;
            }
        }
        Ok(())
    }
}

impl Norm {
    /// Adds `update` to `states` and normalises every row.
    fn add(&self, states: &mut [f32], update: &[f32]) {
        let width = self.scale.len();
        for (state, update) in states.chunks_exact_mut(width).zip(update.chunks_exact(width)) {
            for (x, y) in state.iter_mut().zip(update) {
                *x += y;
            }
            self.apply(state);
        }
    }

    fn apply(&self, state: &mut [f32]) {
        let n = state.len() as f64;
        let mean = state.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = state.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let (mean, scale) = (mean as f32, (1.0 / (variance + self.epsilon).sqrt()) as f32);
        for ((x, s), b) in state.iter_mut().zip(&self.scale).zip(&self.shift) {
            *x = (*x - mean) * scale * s + b;
        }
    }
}

impl Activation {
    fn apply(self, values: &mut [f32]) {
        match self {
            Self::Gelu => values.iter_mut().for_each(|x| *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2))),
            Self::GeluTanh => values.iter_mut().for_each(|x| {
                let inner = 0.797_884_6 * (*x + 0.044_715 * *x * *x * *x);
                // tanh(y) = 1 − 2 / (1 + e^{2y})
                *x *= 1.0 - 1.0 / (1.0 + exp(2.0 * inner));
            }),
            Self::Relu => values.iter_mut().for_each(|x| *x = x.max(0.0)),
        }
    }
}

fn softmax(row: &mut [f32], scale: f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp((*x - largest) * scale);
    }
    let sum: f32 = row.iter().sum();
    for x in row {
        *x /= sum;
    }
}

/// eˣ to 2 units in the last place, as arithmetic a compiler turns into vector instructions (the system's own is a call a number).
/// Arguments are cut to [−87, 88], where f32 ends.
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding 1.5 · 2²³ rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the difference keeps its low bits.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let exponent = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    y * f32::from_bits(exponent)
}

/// The error function to 1.5e-7 (Abramowitz and Stegun 7.1.26), below what the weights' f32 carries through.
fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let p = 1.061_405_4;
    let p = p * t - 1.453_152;
    let p = p * t + 1.421_413_8;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    (1.0 - p * t * exp(-a * a)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_and_never_surprises() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(1e9).is_finite());
    }

    #[test]
    fn erf_matches_known_values() {
        for (x, y) in [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3), (-1.0, -0.842_700_8), (6.0, 1.0)] {
            assert!((erf(x) - y).abs() < 4e-7, "{x}: {}", erf(x));
        }
    }
}
