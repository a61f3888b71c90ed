//! Token ids in, hidden states after the final norm out: the layers that Llama, Mistral, Qwen2 and Qwen3 share, on candle's operations.
//!
//! Each layer is x + attention(norm(x)), then x + wide(norm(x)): root-mean-square norms, rotary positions, heads of queries that share
//! keys and values (grouped-query attention), SwiGLU. One sequence at a time and without padding, so its bits depend on nothing else.
//!
//! Memory: every weight once, in f32 on a CPU (the token table stays as it is stored); for n tokens about
//! 4·n·(4·hidden + 3·intermediate) + 12·heads·[`BLOCK`]·n bytes more.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::rope;

use super::decoder_config::Shape;
use super::decoder_weights::Checkpoint;

/// Tokens whose attention is computed together: bounds the matrix of scores, and skips most of its upper half. Bits depend on it.
const BLOCK: usize = 128;

/// The layers of a decoder, without the head that predicts tokens.
pub(super) struct Layers {
    /// One row a token, as stored: rows are converted when they are looked up, which is exact.
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// Cosine and sine of position × frequency.
    turns: (Tensor, Tensor),
    shape: Shape,
    dtype: DType,
    device: Device,
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    /// Norms of each head's queries and keys.
    head_norms: Option<(Tensor, Tensor)>,
    output: Linear,
    wide_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// `weight` is outputs × inputs.
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

impl Layers {
    /// Loads every tensor the shape asks for. `positions` is the most tokens a sequence will have.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) that names the tensor that is missing or has another shape.
    pub(super) fn load(checkpoint: &Checkpoint<'_>, shape: Shape, positions: usize, device: &Device) -> crate::error::Result<Self> {
        let (words, stored) = checkpoint.rows("embed_tokens.weight")?;
        // candle multiplies no bf16 on a CPU. On other devices the checkpoint's own kind is kept: half the memory.
        let dtype = if device.is_cpu() { DType::F32 } else { stored };
        let Shape { hidden, heads, key_heads, head, intermediate, .. } = shape;
        let tensor = |name: String, shape: &[usize]| checkpoint.tensor(&name, shape, dtype, device);
        let linear = |name: String, outputs: usize, inputs: usize, biased: bool| {
            let weight = tensor(format!("{name}.weight"), &[outputs, inputs])?;
            let bias = if biased { Some(tensor(format!("{name}.bias"), &[outputs])?) } else { None };
            Ok::<_, crate::error::Error>(Linear { weight, bias })
        };
        let mut layers = Vec::with_capacity(shape.layers);
        for i in 0..shape.layers {
            let name = |part: &str| format!("layers.{i}.{part}");
            layers.push(Layer {
                attention_norm: tensor(name("input_layernorm.weight"), &[hidden])?,
                query: linear(name("self_attn.q_proj"), heads * head, hidden, shape.input_bias)?,
                key: linear(name("self_attn.k_proj"), key_heads * head, hidden, shape.input_bias)?,
                value: linear(name("self_attn.v_proj"), key_heads * head, hidden, shape.input_bias)?,
                head_norms: match shape.head_norms {
                    true => Some((tensor(name("self_attn.q_norm.weight"), &[head])?, tensor(name("self_attn.k_norm.weight"), &[head])?)),
                    false => None,
                },
                output: linear(name("self_attn.o_proj"), hidden, heads * head, shape.output_bias)?,
                wide_norm: tensor(name("post_attention_layernorm.weight"), &[hidden])?,
                gate: linear(name("mlp.gate_proj"), intermediate, hidden, shape.wide_bias)?,
                up: linear(name("mlp.up_proj"), intermediate, hidden, shape.wide_bias)?,
                down: linear(name("mlp.down_proj"), hidden, intermediate, shape.wide_bias)?,
            });
        }
        let embedding = checkpoint.tensor("embed_tokens.weight", &[words, hidden], stored, device)?;
        let norm = tensor("norm.weight".to_owned(), &[hidden])?;
        let turns = turns(&shape, positions, dtype, device).map_err(|e| crate::error::Error::Internal(format!("rotary table: {e}")))?;
        Ok(Self { embedding, layers, norm, turns, shape, dtype, device: device.clone() })
    }

    /// The number of tokens the table has a row for.
    pub(super) fn words(&self) -> usize {
        self.embedding.dims().first().copied().unwrap_or_default()
    }

    /// The length of a state.
    pub(super) fn hidden(&self) -> usize {
        self.shape.hidden
    }

    /// The kind of number that is computed with.
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// The states of one sequence after the final norm, in f32: all of them one after the other, or the last token's only.
    /// `ids` has at least one entry and at most `positions`; each is below [`words`](Self::words).
    ///
    /// # Errors
    /// candle's, where an operation fails: on a device that is out of memory, for example.
    pub(super) fn states(&self, ids: &[u32], last: bool) -> Result<Vec<f32>> {
        let epsilon = self.shape.norm_epsilon as f32;
        let tokens = ids.len();
        let at = Tensor::new(ids, &self.device)?;
        let mut x = self.embedding.index_select(&at, 0)?.to_dtype(self.dtype)?;
        let turns = (self.turns.0.narrow(0, 0, tokens)?, self.turns.1.narrow(0, 0, tokens)?);
        let masks = (0..tokens).step_by(BLOCK).map(|start| self.mask(start, (start + BLOCK).min(tokens))).collect::<Result<Vec<_>>>()?;
        for layer in &self.layers {
            let seen = self.attention(layer, &rms_norm(&x, &layer.attention_norm, epsilon)?, &turns, &masks)?;
            x = (x + seen)?;
            let y = rms_norm(&x, &layer.wide_norm, epsilon)?;
            let wide = (silu(&layer.gate.apply(&y)?)? * layer.up.apply(&y)?)?;
            x = (x + layer.down.apply(&wide)?)?;
        }
        let kept = if last { x.narrow(0, tokens - 1, 1)? } else { x };
        rms_norm(&kept.contiguous()?, &self.norm, epsilon)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    /// Attention of every token to itself and those before it: softmax(q·kᵀ/√head)·v, projected.
    fn attention(&self, layer: &Layer, x: &Tensor, (cosine, sine): &(Tensor, Tensor), masks: &[Tensor]) -> Result<Tensor> {
        let Shape { heads, key_heads, head, .. } = self.shape;
        let tokens = x.dim(0)?;
        let epsilon = self.shape.norm_epsilon as f32;
        let split = |y: Tensor, heads: usize| y.reshape((tokens, heads, head));
        let (mut query, mut key) = (split(layer.query.apply(x)?, heads)?, split(layer.key.apply(x)?, key_heads)?);
        if let Some((of_query, of_key)) = &layer.head_norms {
            query = rms_norm(&query, of_query, epsilon)?;
            key = rms_norm(&key, of_key, epsilon)?;
        }
        // From here on heads × tokens × head.
        let turn = |y: Tensor| rope(&y.transpose(0, 1)?.contiguous()?.unsqueeze(0)?, cosine, sine)?.squeeze(0);
        let query = (turn(query)? * (1.0 / (head as f64).sqrt()))?;
        let key = turn(key)?;
        let value = split(layer.value.apply(x)?, key_heads)?.transpose(0, 1)?.contiguous()?;

        let mut seen = Vec::with_capacity(masks.len());
        for mask in masks {
            let (rows, end) = mask.dims2()?;
            // The heads that share keys are neighbours, so they stack into one product.
            let query = query.narrow(1, end - rows, rows)?.contiguous()?.reshape((key_heads, heads / key_heads * rows, head))?;
            let (key, value) = (key.narrow(1, 0, end)?.contiguous()?, value.narrow(1, 0, end)?.contiguous()?);
            let scores = query.matmul(&key.t()?)?.to_dtype(DType::F32)?.reshape((heads, rows, end))?.broadcast_add(mask)?;
            let shares = softmax_last_dim(&scores)?.to_dtype(self.dtype)?.reshape((key_heads, heads / key_heads * rows, end))?;
            seen.push(shares.matmul(&value)?.reshape((heads, rows, head))?);
        }
        let seen = Tensor::cat(&seen, 1)?.transpose(0, 1)?.contiguous()?.reshape((tokens, heads * head))?;
        layer.output.apply(&seen)
    }

    /// What is added to the scores of tokens `start..end` over tokens `0..end`: nothing, or -∞ for the tokens after one.
    fn mask(&self, start: usize, end: usize) -> Result<Tensor> {
        let hidden = |row: usize| (0..end).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 });
        let numbers: Vec<f32> = (start..end).flat_map(hidden).collect();
        Tensor::from_vec(numbers, (end - start, end), &self.device)
    }
}

/// Cosine and sine for each position and frequency. The angle is rounded to f32 first, as transformers does.
fn turns(shape: &Shape, positions: usize, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
    let angles: Vec<f64> = (0..positions).flat_map(|at| shape.frequencies.iter().map(move |f| f64::from(at as f32 * f))).collect();
    let table = |of: fn(f64) -> f64| {
        let numbers: Vec<f32> = angles.iter().map(|angle| of(*angle) as f32).collect();
        Tensor::from_vec(numbers, (positions, shape.frequencies.len()), device)?.to_dtype(dtype)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}
