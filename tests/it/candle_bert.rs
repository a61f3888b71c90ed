//! A BERT of another hand, run the way sentence-transformers runs it: what our own transformer is compared with.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use std::path::Path;
use tokenizers::Tokenizer;

/// candle's BERT with mean pooling and normalisation.
pub(crate) struct CandleBert {
    model: BertModel,
    tokenizer: Tokenizer,
}

impl CandleBert {
    pub(crate) fn load(folder: &Path) -> Self {
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        // candle asks for keys that only training uses.
        let mut config = serde_json::json!({ "hidden_dropout_prob": 0.0, "initializer_range": 0.02 });
        let found: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&read("config.json")).unwrap();
        config.as_object_mut().unwrap().extend(found);
        let config: Config = serde_json::from_value(config).unwrap();
        let tensors = VarBuilder::from_buffered_safetensors(read("model.safetensors"), DType::F32, &Device::Cpu).unwrap();
        let limit: serde_json::Value = serde_json::from_slice(&read("sentence_bert_config.json")).unwrap();
        let mut tokenizer = Tokenizer::from_bytes(read("tokenizer.json")).unwrap();
        let max_length = limit["max_seq_length"].as_u64().unwrap() as usize;
        tokenizer.with_truncation(Some(tokenizers::TruncationParams { max_length, ..Default::default() })).unwrap();
        tokenizer.with_padding(Some(tokenizers::PaddingParams::default()));
        Self { model: BertModel::load(tensors, &config).unwrap(), tokenizer }
    }

    /// One unit vector a text, the texts padded to the longest.
    pub(crate) fn encode(&self, texts: &[&str]) -> Vec<Vec<f32>> {
        let encodings = self.tokenizer.encode_batch(texts.to_vec(), true).unwrap();
        let stack = |of: fn(&tokenizers::Encoding) -> &[u32]| {
            let rows: Vec<Tensor> = encodings.iter().map(|e| Tensor::new(of(e), &Device::Cpu).unwrap()).collect();
            Tensor::stack(&rows, 0).unwrap()
        };
        let (ids, mask) = (stack(|e| e.get_ids()), stack(|e| e.get_attention_mask()));
        let states = self.model.forward(&ids, &ids.zeros_like().unwrap(), Some(&mask)).unwrap();
        let mask = mask.to_dtype(DType::F32).unwrap().unsqueeze(2).unwrap();
        let sums = states.broadcast_mul(&mask).unwrap().sum(1).unwrap();
        let means = sums.broadcast_div(&mask.sum(1).unwrap()).unwrap();
        let norms = means.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
        means.broadcast_div(&norms).unwrap().to_vec2().unwrap()
    }
}
