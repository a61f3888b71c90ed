//! The config.json of a decoder in, its shape out: sizes, which parts a family has, rotary frequencies.
//!
//! Families, as transformers names them in `model_type`: llama, mistral, qwen2, qwen3. They differ in where biases are, in qwen3's
//! norms of queries and keys, and in defaults. What would change the numbers and is not computed here is refused by name: other
//! activations, other rotary scalings, quantised checkpoints, attention that looks ahead.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::folder::{DECODERS, Folder};
use crate::error::Result;

/// What the layers have to know.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    /// Heads of the queries; a multiple of `key_heads`.
    pub(super) heads: usize,
    /// Heads of keys and values, each shared by `heads / key_heads` heads of the queries.
    pub(super) key_heads: usize,
    /// Numbers a head.
    pub(super) head: usize,
    pub(super) intermediate: usize,
    pub(super) norm_epsilon: f64,
    /// Biases of the query, key and value projections.
    pub(super) input_bias: bool,
    /// A bias of attention's output projection.
    pub(super) output_bias: bool,
    /// Biases of the feed-forward projections.
    pub(super) wide_bias: bool,
    /// Whether queries and keys are normalised head by head.
    pub(super) head_norms: bool,
    /// Radians a position, one for each pair of a head's numbers.
    pub(super) frequencies: Vec<f32>,
    /// The most tokens that the model can read and this code computes as transformers does.
    pub(super) positions: usize,
}

/// config.json, as far as it is read. transformers 5 writes `rope_parameters`, earlier releases `rope_theta` and `rope_scaling`.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    max_position_embeddings: Option<usize>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rotary>,
    rope_parameters: Option<Rotary>,
    is_causal: Option<bool>,
    use_bidirectional_attention: Option<bool>,
    quantization_config: Option<IgnoredAny>,
}

/// How rotary frequencies are scaled. Older files have `type` for `rope_type`, and some have both.
#[derive(Debug, Clone, Default, Deserialize)]
struct Rotary {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl Shape {
    /// Reads `path`.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) that names the key that is missing or cannot be used.
    pub(super) fn load(folder: &Folder<'_>, path: &str) -> Result<Self> {
        let config: Config = folder.json(path)?;
        config.shape().map_err(|reason| folder.wrong(format!("{path} {reason}")))
    }
}

impl Config {
    /// The shape, or what is wrong.
    fn shape(&self) -> Result<Shape, String> {
        let family = self.model_type.as_str();
        if !DECODERS.contains(&family) {
            return Err(format!("has model_type `{family}`; supported are {}", DECODERS.join(", ")));
        }
        if self.quantization_config.is_some() {
            return Err("has a quantization_config; supported are checkpoints in f32, f16 and bf16".to_owned());
        }
        if self.is_causal == Some(false) || self.use_bidirectional_attention == Some(true) {
            return Err("asks for attention in both directions; supported is a decoder's, where a token sees those before it".to_owned());
        }
        if let Some(other) = self.hidden_act.as_deref().filter(|name| !matches!(*name, "silu" | "swish")) {
            return Err(format!("has activation `{other}`; supported is silu"));
        }

        let heads = self.num_attention_heads;
        let key_heads = match (self.num_key_value_heads, family) {
            (Some(key_heads), _) => key_heads,
            (None, "llama") => heads,
            (None, _) => return Err("lacks num_key_value_heads".to_owned()),
        };
        let sizes = [self.hidden_size, self.num_hidden_layers, heads, key_heads, self.intermediate_size];
        if sizes.contains(&0) || !heads.is_multiple_of(key_heads) {
            return Err(format!("has {heads} heads for {key_heads} heads of keys and a hidden size of {}", self.hidden_size));
        }
        let head = match (self.head_dim, family) {
            (Some(head), _) => head,
            // transformers' default for this family, whatever the other sizes.
            (None, "qwen3") => 128,
            (None, _) if self.hidden_size.is_multiple_of(heads) => self.hidden_size / heads,
            (None, _) => return Err(format!("has {heads} heads for a hidden size of {} and no head_dim", self.hidden_size)),
        };
        if head == 0 || !head.is_multiple_of(2) {
            return Err(format!("has heads of {head} numbers; rotary positions need an even number"));
        }

        let attention_bias = self.attention_bias.unwrap_or(false) && matches!(family, "llama" | "qwen3");
        let slides = match family {
            "mistral" => true,
            "llama" => false,
            _ => self.use_sliding_window.unwrap_or(false),
        };
        // Inside its first window a sliding layer sees all tokens before, as any other does.
        let window = self.sliding_window.filter(|_| slides).unwrap_or(usize::MAX);
        Ok(Shape {
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads,
            key_heads,
            head,
            intermediate: self.intermediate_size,
            norm_epsilon: self.rms_norm_eps.unwrap_or(1e-6),
            input_bias: attention_bias || family == "qwen2",
            output_bias: attention_bias,
            wide_bias: self.mlp_bias.unwrap_or(false) && family == "llama",
            head_norms: family == "qwen3",
            frequencies: self.frequencies(head)?,
            positions: self.max_position_embeddings.unwrap_or(usize::MAX).min(window),
        })
    }

    /// θ^(-2i/head), scaled as `rope_type` says: Su et al. 2021, "RoFormer", §3.2.2; the scaling of Llama 3 is transformers'
    /// `_compute_llama3_parameters`.
    fn frequencies(&self, head: usize) -> Result<Vec<f32>, String> {
        let rotary = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).cloned().unwrap_or_default();
        if let Some(part) = rotary.partial_rotary_factor.filter(|part| *part != 1.0) {
            return Err(format!("has partial_rotary_factor {part}; supported is 1"));
        }
        let theta = rotary.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let number = |name: &str, value: Option<f64>| match value {
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            Some(x) => Err(format!("has rotary scaling with {name} {x}")),
            None => Err(format!("has rotary scaling without {name}")),
        };
        number("rope_theta", Some(theta))?;
        let plain = (0..head / 2).map(|i| theta.powf(-2.0 * i as f64 / head as f64));
        let scaled: Vec<f64> = match rotary.rope_type.as_deref().or(rotary.kind.as_deref()) {
            None | Some("default") => plain.collect(),
            Some("linear") => {
                let factor = number("factor", rotary.factor)?;
                plain.map(|frequency| frequency / factor).collect()
            }
            Some("llama3") => {
                let factor = number("factor", rotary.factor)?;
                let (low, high) =
                    (number("low_freq_factor", rotary.low_freq_factor)?, number("high_freq_factor", rotary.high_freq_factor)?);
                let context = number("original_max_position_embeddings", rotary.original_max_position_embeddings)?;
                if low >= high {
                    return Err(format!("has rotary scaling with low_freq_factor {low}, which is not below high_freq_factor {high}"));
                }
                // How often a pair turns within the original context decides: many turns stay, few are slowed down, between is mixed.
                let scale = |frequency: f64| {
                    let turns = context * frequency / std::f64::consts::TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    frequency * (kept + (1.0 - kept) / factor)
                };
                plain.map(scale).collect()
            }
            Some(other) => return Err(format!("has rotary scaling `{other}`; supported are default, linear and llama3")),
        };
        Ok(scaled.into_iter().map(|frequency| frequency as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shape(changes: &Value) -> Result<Shape, String> {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 96, "max_position_embeddings": 512,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        serde_json::from_value::<Config>(config).unwrap().shape()
    }

    #[test]
    fn families_differ_in_biases_norms_and_defaults() {
        let parts = |family: &str| {
            let s = shape(&json!({"model_type": family, "sliding_window": 128})).unwrap();
            (s.input_bias, s.output_bias, s.head_norms, s.head, s.positions)
        };
        assert_eq!(parts("llama"), (false, false, false, 16, 512));
        assert_eq!(parts("mistral"), (false, false, false, 16, 128));
        assert_eq!(parts("qwen2"), (true, false, false, 16, 512));
        assert_eq!(parts("qwen3"), (false, false, true, 128, 512));
        let slides = shape(&json!({"model_type": "qwen2", "sliding_window": 128, "use_sliding_window": true})).unwrap();
        assert_eq!(slides.positions, 128);
        let biased = shape(&json!({"attention_bias": true, "mlp_bias": true, "num_key_value_heads": null})).unwrap();
        assert_eq!((biased.input_bias, biased.output_bias, biased.wide_bias, biased.key_heads), (true, true, true, 4));
    }

    #[test]
    fn frequencies_fall_from_one_and_are_scaled() {
        let of = |changes: Value| shape(&changes).unwrap().frequencies;
        let plain = of(json!({}));
        assert_eq!(plain.len(), 8);
        assert!(plain[0] == 1.0 && (plain[4] - 0.01).abs() < 1e-9, "{plain:?}");
        assert_eq!(of(json!({"rope_theta": 10000.0})), plain);
        assert_eq!(of(json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}})), plain);
        let slow = of(json!({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}}));
        assert!(slow.iter().zip(&plain).all(|(s, p)| (s * 4.0 - p).abs() < 1e-7));

        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64
        });
        let llama = of(json!({"rope_scaling": scaling}));
        // Wavelengths 2π·10^(i/2): below 16 kept, above 64 slowed eightfold, between them mixed.
        assert_eq!(llama[0], plain[0]);
        assert!(llama[1] < plain[1] && llama[1] > plain[1] / 8.0);
        assert!((3..8).all(|i| (llama[i] * 8.0 - plain[i]).abs() < 1e-8), "{llama:?}");
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (changes, said) in [
            (json!({"model_type": "gemma"}), "`gemma`; supported are llama, mistral, qwen2, qwen3"),
            (json!({"hidden_act": "gelu"}), "activation `gelu`"),
            (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
            (json!({"is_causal": false}), "both directions"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "rotary scaling `yarn`"),
            (json!({"rope_scaling": {"type": "llama3", "factor": 8.0}}), "without low_freq_factor"),
            (json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), "factor 0"),
            (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor 0.5"),
            (json!({"num_attention_heads": 3}), "3 heads for 2 heads of keys"),
            (json!({"num_attention_heads": 6}), "no head_dim"),
            (json!({"num_hidden_layers": 0}), "heads"),
            (json!({"head_dim": 7}), "heads of 7 numbers"),
            (json!({"model_type": "qwen2", "num_key_value_heads": null}), "num_key_value_heads"),
        ] {
            let reason = shape(&changes).unwrap_err();
            assert!(reason.contains(said), "{reason}");
        }
    }
}
