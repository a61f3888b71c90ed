//! A decoder's folder in, an encoder out: tokenise, layers, the last token's hidden state, unit length.
//!
//! Folders: what transformers saves of a Llama, Mistral, Qwen2 or Qwen3 model (config.json, tokenizer.json, safetensors in one file or
//! several), alone or as the first module of a sentence-transformers folder. Pooling: the state of the last token after the final norm, which is
//! what a bare folder gets and `pooling_mode_lasttoken` asks for; `mean` is the mean of all states, special tokens included.
//!
//! Special tokens are those the tokenizer's own post-processor adds, and nothing else: no prompt, no end-of-text token that tokenizer.json
//! does not add. A text is cut to the least of the model's positions (for sliding attention: its window), tokenizer_config.json's
//! `model_max_length`, `max_seq_length` of a sentence-transformers folder and [`MAX_TOKENS`], special tokens included. As transformers does, the
//! cut is at the end, or at the start where tokenizer_config.json says `"truncation_side": "left"`. A text without a token (the empty text) has a zero row.
//!
//! Every text goes through the layers alone, so its bits depend on its text, the processor and the model only. On a CPU as many texts as the pool has threads
//! are in work at a time; on another device one.
//!
//! Memory: `decoder_layers` says what a model and a text in work take. While it loads, the files are in memory too: for a checkpoint
//! in bf16, 2 bytes a number in the files and 4 in the model.

use candle_core::Device;
use ndarray::Array2;
use rayon::prelude::*;
use serde::Deserialize;

use super::decoder_config::Shape;
use super::decoder_layers::Layers;
use super::decoder_weights::Checkpoint;
use super::folder::{Folder, Module, PoolingConfig, model_error};
use super::tokens::{Tokens, Worker};
use super::window::TokenSpan;
use super::{Encoder, unit};
use crate::error::Result;

/// Changes whenever the same files would give other bits.
const FORMAT: &str = "pushpull decoder 1";

/// The most tokens read of a text, whatever the model could read. Attention's cost grows with the square of the length, and a row of a
/// fine-tuning corpus is rarely longer.
const MAX_TOKENS: usize = 2048;

/// The decoder as an encoder.
pub(super) struct Decoder {
    tokens: Tokens,
    before: Vec<u32>,
    after: Vec<u32>,
    max_tokens: usize,
    cut: Cut,
    layers: Layers,
    pooling: Pooling,
    device: Device,
    fingerprint: String,
    location: String,
}

/// Which end of a long text is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Cut {
    Left,
    #[default]
    Right,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Last,
    Mean,
}

/// tokenizer_config.json. The length is a float because transformers writes 1e30 for "no limit".
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    model_max_length: Option<f64>,
    truncation_side: Option<Cut>,
}

/// sentence_bert_config.json, which sentence-transformers writes for every transformer.
#[derive(Debug, Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("location", &self.location)
            .field("dims", &self.layers.hidden())
            .field("pooling", &self.pooling)
            .field("max_tokens", &self.max_tokens)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Decoder {
    /// Loads the modules in their order; the first is the transformer.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) that names the file, key or tensor that is missing or cannot be used.
    pub(super) fn load(folder: &Folder<'_>, modules: &[Module]) -> Result<Self> {
        let Some((first, rest)) = modules.split_first() else {
            return Err(folder.wrong("modules.json is empty".to_owned()));
        };
        let [config, tokenizer, tokenizer_config, sentence_config] =
            ["config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"].map(|name| first.file(name));
        let shape = Shape::load(folder, &config)?;
        let tokens = Tokens::load(folder.location, &tokenizer, folder.file(&tokenizer)?)?;
        let (before, after) = tokens.specials()?;
        let settings: TokenizerConfig = folder.optional_json(&tokenizer_config)?;
        let sentence: SentenceConfig = folder.optional_json(&sentence_config)?;
        // `as` saturates, and a length that is not a number becomes 0.
        let longest = settings.model_max_length.map_or(usize::MAX, |length| length as usize);
        let max_tokens = MAX_TOKENS.min(shape.positions).min(longest).min(sentence.max_seq_length.unwrap_or(usize::MAX));
        if max_tokens <= before.len() + after.len() {
            return Err(folder.wrong(format!("a length of {max_tokens} tokens leaves no room for text")));
        }
        let mut used = vec![config, tokenizer, tokenizer_config, sentence_config];
        let pooling = pooling(folder, rest, &mut used)?;

        let device = device(folder)?;
        let checkpoint = Checkpoint::open(folder, first)?;
        used.extend_from_slice(checkpoint.paths());
        let layers = Layers::load(&checkpoint, shape, max_tokens, &device)?;
        if tokens.len() > layers.words() {
            return Err(folder.wrong(format!("the tokenizer has {} tokens and the checkpoint {}", tokens.len(), layers.words())));
        }
        // Devices and kinds of number differ in their last bits.
        let kind = match &device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        };
        let fingerprint = folder.fingerprint(&format!("{FORMAT} {kind} {}", layers.dtype().as_str()), &used);
        Ok(Self {
            tokens,
            before,
            after,
            max_tokens,
            cut: settings.truncation_side.unwrap_or_default(),
            layers,
            pooling,
            device,
            fingerprint,
            location: folder.location.to_owned(),
        })
    }

    /// A text's ids with special tokens, cut to the model's length; none at all for a text without tokens.
    fn text_ids(&self, text: &str, worker: &mut Worker<'_>) -> Result<Vec<u32>> {
        let room = self.max_tokens - self.before.len() - self.after.len();
        let ids = match self.cut {
            Cut::Right => worker.ids(text, room)?,
            Cut::Left => {
                let all = worker.ids(text, usize::MAX)?;
                &all[all.len().saturating_sub(room)..]
            }
        };
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        Ok([self.before.as_slice(), ids, &self.after].concat())
    }

    /// The unit vector of one sequence of at least one token.
    fn row(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let failed = |e: candle_core::Error| {
            model_error(&self.location, format!("the model failed on a text of {} tokens", ids.len()), Some(e.into()))
        };
        let states = self.layers.states(ids, self.pooling == Pooling::Last).map_err(failed)?;
        let mut row = match self.pooling {
            Pooling::Last => states,
            Pooling::Mean => {
                // The division by the number of tokens is left out: it does not change the direction.
                let mut sums = vec![0.0_f64; self.dims()];
                states.chunks_exact(self.dims()).for_each(|state| sums.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x)));
                sums.into_iter().map(|sum| sum as f32).collect()
            }
        };
        if !unit::normalise(&mut row) {
            return Err(model_error(&self.location, "the model gave a number that is not finite".to_owned(), None));
        }
        Ok(row)
    }
}

impl Encoder for Decoder {
    fn dims(&self) -> usize {
        self.layers.hidden()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn max_tokens(&self) -> Option<usize> {
        Some(self.max_tokens - self.before.len() - self.after.len())
    }

    fn spans(&self, text: &str) -> Result<Vec<TokenSpan>> {
        self.tokens.spans(text)
    }

    fn encode(&self, texts: &[&str]) -> Result<Array2<f32>> {
        let ids = |worker: &mut Worker<'_>, text: &&str| self.text_ids(text, worker);
        let sequences = texts.par_iter().map_init(|| self.tokens.worker(), ids).collect::<Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..texts.len()).filter(|&i| !sequences[i].is_empty()).collect();
        // Neighbours of one length, so that no thread waits long for another.
        order.sort_by_key(|&i| std::cmp::Reverse(sequences[i].len()));
        // candle's products wait inside the pool, and a worker that waits may take up another text: without groups of a fixed
        // size the number of texts in memory would have no bound.
        let together = if self.device.is_cpu() { rayon::current_num_threads() } else { 1 };
        let mut rows = Array2::zeros((texts.len(), self.dims()));
        for group in order.chunks(together) {
            let vectors = group.par_iter().map(|&i| self.row(&sequences[i])).collect::<Result<Vec<_>>>()?;
            for (&i, vector) in group.iter().zip(&vectors) {
                rows.row_mut(i).iter_mut().zip(vector).for_each(|(to, from)| *to = *from);
            }
        }
        Ok(rows)
    }
}

/// What the modules after the transformer ask for.
fn pooling(folder: &Folder<'_>, modules: &[Module], used: &mut Vec<String>) -> Result<Pooling> {
    let mut pooling = None;
    for module in modules {
        match module.name() {
            "Pooling" if pooling.is_none() => {
                let path = module.file("config.json");
                let config: PoolingConfig = folder.json(&path)?;
                pooling = Some(match config.modes().as_slice() {
                    ["lasttoken"] => Pooling::Last,
                    // Dividing by the root of the length and not by the length changes no direction.
                    ["mean" | "mean_sqrt_len_tokens"] => Pooling::Mean,
                    other => {
                        let other = other.join(", ");
                        return Err(folder
                            .wrong(format!("{path} asks for pooling [{other}]; supported for a decoder is one of lasttoken and mean")));
                    }
                });
                used.push(path);
            }
            "Normalize" => {}
            other => {
                return Err(folder.wrong(format!(
                    "modules.json lists `{other}`; supported for a decoder are Transformer, Pooling and Normalize in this order"
                )));
            }
        }
    }
    Ok(pooling.unwrap_or(Pooling::Last))
}

/// The first CUDA or Metal device where the build has the feature for it, and the CPU otherwise. Not measured on any device but a CPU.
///
/// # Errors
/// [`Error::Model`](crate::error::Error::Model) where the build has such a feature and no such device can be opened: a CPU in its place would give other bits, slowly.
fn device(folder: &Folder<'_>) -> Result<Device> {
    let opened = Device::cuda_if_available(0).and_then(|device| if device.is_cpu() { Device::metal_if_available(0) } else { Ok(device) });
    opened.map_err(|e| {
        let reason = "no device can be opened; use a build without the features `cuda` and `metal` for this machine".to_owned();
        model_error(folder.location, reason, Some(e.into()))
    })
}
