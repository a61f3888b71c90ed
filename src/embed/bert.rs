//! A sentence-transformers folder in, an encoder out: tokenise, transformer, pooling, optional dense layers, unit length.
//!
//! Transformers: BERT, RoBERTa, XLM-RoBERTa and DistilBERT checkpoints with absolute positions. Pooling: mean, first token, maximum.
//! As sentence-transformers does, a text is cut to `max_seq_length` tokens, special tokens included. Unlike there, every row is
//! normalised, whether or not the folder has a Normalize module, because every cost here is a cosine; and a text without a token
//! (empty, or white space) has a zero row and not the vector of the special tokens.

use ndarray::Array2;
use rayon::prelude::*;
use serde::Deserialize;

use super::folder::{DECODERS, Folder, Module, PoolingConfig, model_error};
use super::tokens::{Tokens, Worker};
use super::transformer::{Activation, Names, Shape, Transformer};
use super::window::{TokenSpan, lowered_spans};
use super::{Encoder, unit};
use crate::error::{Error, Result};

/// Changes whenever the same files would give other bits.
const FORMAT: &str = "pushpull transformer 1";

/// Tokens that go through the layers together: enough rows for the matrix products to run at speed, few enough for the
/// intermediate states to stay in the cache, and many packs to share among threads. Bits do not depend on it.
const PACK_TOKENS: usize = 256;

/// The transformer encoder.
pub(super) struct Bert {
    tokens: Tokens,
    before: Vec<u32>,
    after: Vec<u32>,
    max_tokens: usize,
    lower_case: bool,
    transformer: Transformer,
    pooling: Pooling,
    dense: Vec<Dense>,
    fingerprint: String,
    location: String,
}

impl std::fmt::Debug for Bert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bert")
            .field("location", &self.location)
            .field("transformer", &self.transformer)
            .field("pooling", &self.pooling)
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

/// config.json, with DistilBERT's names as aliases.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: Option<String>,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default = "usual_epsilon")]
    layer_norm_eps: f64,
    position_embedding_type: Option<String>,
    pad_token_id: Option<usize>,
}

/// BERT's and DistilBERT's.
fn usual_epsilon() -> f64 {
    1e-12
}

/// sentence_bert_config.json.
#[derive(Debug, Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    First,
    Maximum,
}

/// The config.json of a Dense module.
#[derive(Debug, Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: String,
}

fn yes() -> bool {
    true
}

/// A Dense module: `weight` is out × in.
struct Dense {
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
    tanh: bool,
}

impl Bert {
    /// Loads the modules in their order.
    pub(super) fn load(folder: &Folder<'_>, modules: &[Module]) -> Result<Self> {
        let Some((first, rest)) = modules.split_first() else {
            return Err(folder.wrong("modules.json is empty".to_owned()));
        };
        let config: Config = folder.json(&first.file("config.json"))?;
        let (names, shape) = config.shape(folder)?;
        let weights = first.file("model.safetensors");
        let tensors = folder.tensors(&weights)?;
        let prefix = ["", "bert.", "roberta.", "distilbert."]
            .into_iter()
            .find(|prefix| tensors.has(&format!("{prefix}embeddings.word_embeddings.weight")))
            .unwrap_or_default();
        let transformer = Transformer::load(&tensors, prefix, names, shape)?;
        if config.max_position_embeddings > transformer.positions() {
            return Err(folder.wrong(format!(
                "the checkpoint has {} positions and config.json {}",
                transformer.positions(),
                config.max_position_embeddings
            )));
        }

        let tokenizer = first.file("tokenizer.json");
        let tokens = Tokens::load(folder.location, &tokenizer, folder.file(&tokenizer)?)?;
        if tokens.len() > transformer.words() {
            return Err(folder.wrong(format!("the tokenizer has {} tokens and the checkpoint {}", tokens.len(), transformer.words())));
        }
        let (before, after) = tokens.specials()?;
        let sentence_path = ["bert", "roberta", "distilbert", "xlm-roberta"]
            .iter()
            .map(|family| first.file(&format!("sentence_{family}_config.json")))
            .find(|path| folder.files.contains_key(path))
            .unwrap_or_else(|| first.file("sentence_bert_config.json"));
        let sentence: SentenceConfig = folder.optional_json(&sentence_path)?;
        let room = config.max_position_embeddings.saturating_sub(shape.first_position);
        let max_tokens = sentence.max_seq_length.unwrap_or(room).min(room);
        if max_tokens <= before.len() + after.len() {
            return Err(folder.wrong(format!("max_seq_length {max_tokens} leaves no room for text")));
        }

        let mut used = vec![first.file("config.json"), weights.clone(), tokenizer.clone(), sentence_path];
        let (pooling, dense) = load_heads(folder, rest, shape.hidden, &mut used)?;
        let fingerprint = folder.fingerprint(FORMAT, &used);
        Ok(Self {
            tokens,
            before,
            after,
            max_tokens,
            lower_case: sentence.do_lower_case,
            transformer,
            pooling,
            dense,
            fingerprint,
            location: folder.location.to_owned(),
        })
    }

    /// The tokenizer.
    pub(super) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// One token between the special tokens.
    pub(super) fn framed(&self, id: u32) -> Vec<u32> {
        [self.before.as_slice(), &[id], &self.after].concat()
    }

    /// A text's ids with special tokens, cut to the model's length; none at all for a text without tokens.
    fn text_ids(&self, text: &str, worker: &mut Worker<'_>) -> Result<Vec<u32>> {
        let lowered;
        let text = if self.lower_case {
            lowered = text.to_lowercase();
            &lowered
        } else {
            text
        };
        let room = self.max_tokens - self.before.len() - self.after.len();
        let ids = worker.ids(text, room)?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        Ok([self.before.as_slice(), ids, &self.after].concat())
    }

    /// One unit row for each sequence of ids, in order; a zero row for an empty one. Spread over rayon's current pool.
    pub(super) fn pooled(&self, sequences: &[Vec<u32>]) -> Result<Array2<f32>> {
        let dims = self.dims();
        let mut packs: Vec<&[Vec<u32>]> = Vec::new();
        let mut rest = sequences;
        while !rest.is_empty() {
            let mut total = 0;
            let size = rest
                .iter()
                .take_while(|s| {
                    total += s.len();
                    total <= PACK_TOKENS
                })
                .count()
                .max(1);
            let (pack, others) = rest.split_at(size);
            packs.push(pack);
            rest = others;
        }
        let parts = packs.into_par_iter().map(|pack| self.pack(pack)).collect::<Result<Vec<_>>>()?;
        Array2::from_shape_vec((sequences.len(), dims), parts.concat()).map_err(|e| Error::Internal(format!("pooled rows: {e}")))
    }

    fn pack(&self, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
        let hidden = self.transformer.hidden();
        let ids: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let states = self.transformer.states(&ids)?;
        let mut rows = Vec::with_capacity(sequences.len() * self.dims());
        let mut at = 0;
        for sequence in sequences {
            let end = at + sequence.len() * hidden;
            if sequence.is_empty() {
                rows.resize(rows.len() + self.dims(), 0.0);
                continue;
            }
            let mut row = self.pooling.apply(&states[at..end], hidden);
            for dense in &self.dense {
                row = dense.apply(&row);
            }
            if !unit::normalise(&mut row) {
                return Err(model_error(&self.location, "the model gave a number that is not finite".to_owned(), None));
            }
            rows.extend(row);
            at = end;
        }
        Ok(rows)
    }
}

/// Pooling and what follows it.
fn load_heads(folder: &Folder<'_>, modules: &[Module], hidden: usize, used: &mut Vec<String>) -> Result<(Pooling, Vec<Dense>)> {
    let mut pooling = None;
    let mut dense = Vec::new();
    let mut width = hidden;
    for module in modules {
        let path = module.file("config.json");
        match module.name() {
            "Pooling" if pooling.is_none() => {
                pooling = Some(Pooling::of(&folder.json(&path)?, folder, &path)?);
                used.push(path);
            }
            "Dense" if pooling.is_some() => {
                let config: DenseConfig = folder.json(&path)?;
                let weights = module.file("model.safetensors");
                let layer = Dense::load(folder, &config, &path, &weights, width)?;
                width = config.out_features;
                dense.push(layer);
                used.extend([path, weights]);
            }
            "Normalize" => {}
            other => {
                return Err(folder.wrong(format!(
                    "modules.json lists `{other}`; supported are Transformer, Pooling, Dense and Normalize in this order"
                )));
            }
        }
    }
    // Without a Pooling module sentence-transformers takes the mean.
    Ok((pooling.unwrap_or(Pooling::Mean), dense))
}

impl Config {
    fn shape(&self, folder: &Folder<'_>) -> Result<(Names, Shape)> {
        let padding = self.pad_token_id.unwrap_or(1);
        let (names, first_position) = match self.model_type.as_deref() {
            Some("bert") => (Names::Bert, 0),
            Some("roberta" | "xlm-roberta" | "camembert") => (Names::Bert, padding + 1),
            Some("distilbert") => (Names::DistilBert, 0),
            other => {
                return Err(folder.wrong(format!(
                    "config.json has model_type {}; supported are bert, roberta, xlm-roberta, camembert and distilbert, and the decoders {}",
                    other.map_or_else(|| "none".to_owned(), |name| format!("`{name}`")),
                    DECODERS.join(", ")
                )));
            }
        };
        if let Some(kind) = self.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(folder.wrong(format!("config.json has position_embedding_type `{kind}`; supported is `absolute`")));
        }
        let activation = match self.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => return Err(folder.wrong(format!("config.json has activation `{other}`; supported are gelu, gelu_new and relu"))),
        };
        if self.num_attention_heads == 0 || self.hidden_size == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(
                folder.wrong(format!("config.json has {} heads for a hidden size of {}", self.num_attention_heads, self.hidden_size))
            );
        }
        let shape = Shape {
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            intermediate: self.intermediate_size,
            norm_epsilon: self.layer_norm_eps,
            activation,
            first_position,
        };
        Ok((names, shape))
    }
}

impl Pooling {
    fn of(config: &PoolingConfig, folder: &Folder<'_>, path: &str) -> Result<Self> {
        match config.modes().as_slice() {
            // Dividing by the root of the length and not by the length changes no direction.
            ["mean" | "mean_sqrt_len_tokens"] => Ok(Self::Mean),
            ["cls"] => Ok(Self::First),
            ["max"] => Ok(Self::Maximum),
            other => Err(folder.wrong(format!("{path} asks for pooling [{}]; supported is one of mean, cls and max", other.join(", ")))),
        }
    }

    fn apply(self, states: &[f32], hidden: usize) -> Vec<f32> {
        let mut rows = states.chunks_exact(hidden);
        let mut pooled = rows.next().map(<[f32]>::to_vec).unwrap_or_else(|| vec![0.0; hidden]);
        match self {
            Self::First => {}
            Self::Mean => rows.for_each(|row| pooled.iter_mut().zip(row).for_each(|(p, x)| *p += x)),
            Self::Maximum => rows.for_each(|row| pooled.iter_mut().zip(row).for_each(|(p, &x)| *p = p.max(x))),
        }
        if self == Self::Mean {
            // A Dense layer may follow, so the sum is not enough.
            let count = (states.len() / hidden).max(1) as f32;
            pooled.iter_mut().for_each(|p| *p /= count);
        }
        pooled
    }
}

impl Dense {
    fn load(folder: &Folder<'_>, config: &DenseConfig, path: &str, weights: &str, width: usize) -> Result<Self> {
        let tanh = match config.activation_function.rsplit('.').next() {
            Some("Tanh") => true,
            Some("Identity") => false,
            _ => return Err(folder.wrong(format!("{path} has activation {}; supported are Identity and Tanh", config.activation_function))),
        };
        if config.in_features != width || config.out_features == 0 {
            return Err(folder.wrong(format!("{path} takes {} numbers where the module before gives {width}", config.in_features)));
        }
        let tensors = folder.tensors(weights)?;
        let bias = match config.bias {
            true => tensors.floats("linear.bias", Some(&[config.out_features]))?,
            false => vec![0.0; config.out_features],
        };
        let weight = tensors.floats("linear.weight", Some(&[config.out_features, config.in_features]))?;
        Ok(Self { weight, bias, inputs: config.in_features, tanh })
    }

    fn apply(&self, row: &[f32]) -> Vec<f32> {
        let weights = self.weight.chunks_exact(self.inputs);
        weights
            .zip(&self.bias)
            .map(|(weight, bias)| {
                let sum = bias + weight.iter().zip(row).map(|(w, x)| w * x).sum::<f32>();
                if self.tanh { sum.tanh() } else { sum }
            })
            .collect()
    }
}

impl Encoder for Bert {
    fn dims(&self) -> usize {
        self.dense.last().map_or(self.transformer.hidden(), |dense| dense.bias.len())
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn max_tokens(&self) -> Option<usize> {
        Some(self.max_tokens - self.before.len() - self.after.len())
    }

    fn spans(&self, text: &str) -> Result<Vec<TokenSpan>> {
        if self.lower_case { lowered_spans(text, |lowered| self.tokens.spans(lowered)) } else { self.tokens.spans(text) }
    }

    fn encode(&self, texts: &[&str]) -> Result<Array2<f32>> {
        let ids = |worker: &mut Worker<'_>, text: &&str| self.text_ids(text, worker);
        let sequences = texts.par_iter().map_init(|| self.tokens.worker(), ids).collect::<Result<Vec<_>>>()?;
        self.pooled(&sequences)
    }
}
