//! The files of a model folder in, an encoder out: which layout it is, which files count, the fingerprint.
//!
//! Layouts: model2vec's own (`config.json`, `model.safetensors`, `tokenizer.json` in one folder), the two that sentence-transformers
//! writes for a static embedding, a sentence-transformers folder with a BERT-family transformer (`modules.json`), also as a bare
//! transformers folder without `modules.json`, for which mean pooling is the convention, and the same two layouts with a decoder
//! (Llama, Mistral, Qwen), whose weights may be in several files and for which the last token's state is the convention.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::bert::Bert;
use super::static_table::StaticTable;
use super::tensors::Tensors;
use super::{Encoder, ModelFiles};
use crate::error::{BoxError, Error, Result};

const SUPPORTED: &str = "supported are a model2vec folder (config.json, model.safetensors, tokenizer.json), a \
                         sentence-transformers folder with a BERT-family transformer (modules.json beside them) and a \
                         transformers folder with a decoder (llama, mistral, qwen2, qwen3)";

/// The `model_type` of the decoders that can be loaded.
pub(super) const DECODERS: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// An [`Error::Model`].
pub(super) fn model_error(location: &str, reason: String, source: Option<BoxError>) -> Error {
    Error::Model { location: location.to_owned(), reason, source }
}

/// Whether a loader reads this file of a model folder. `path` is relative to the folder, with `/` between its parts. The weights in
/// other formats (`onnx/`, `openvino/`, `pytorch_model.bin`) and the documentation are not needed.
#[must_use]
pub fn needed_file(path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    // Modules live in the root or in a folder that starts with their position: `1_Pooling`.
    let module = folder.is_empty()
        || (!folder.contains('/') && folder.split_once('_').is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())));
    let sentence_config = name.strip_prefix("sentence_").is_some_and(|rest| rest.ends_with("_config.json"));
    module
        && (sentence_config
            || matches!(
                name,
                "config.json"
                    | "config_sentence_transformers.json"
                    | "model.safetensors"
                    | "model.safetensors.index.json"
                    | "modules.json"
                    | "tokenizer.json"
                    | "tokenizer_config.json"
            )
            || is_part(name))
}

/// Whether this is one file of a checkpoint in several: `model-00001-of-00002.safetensors`.
fn is_part(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(part, parts)| digits(part) && digits(parts))
}

/// Loads the encoder in `files`; `location` is the folder or URL they came from and only appears in errors. See the module for the layouts.
///
/// # Errors
/// [`Error::Model`] that says what was found and what is supported.
pub fn load(location: &str, files: &ModelFiles) -> Result<Arc<dyn Encoder>> {
    let folder = Folder { location, files };
    Ok(match folder.layout()? {
        Layout::Static(parts) => Arc::new(StaticTable::load(&folder, &parts)?),
        Layout::Transformer(modules) => Arc::new(Bert::load(&folder, &modules)?),
        #[cfg(feature = "decoder")]
        Layout::Decoder(modules) => Arc::new(super::decoder::Decoder::load(&folder, &modules)?),
        #[cfg(not(feature = "decoder"))]
        Layout::Decoder(modules) => {
            let config = modules.first().map(|module| module.file("config.json")).unwrap_or_default();
            return Err(folder.wrong(format!("{config} is a decoder's; build pushpull with the feature `decoder` to use it")));
        }
    })
}

/// What a folder holds.
pub(super) enum Layout {
    Static(StaticParts),
    Transformer(Vec<Module>),
    /// A transformer that predicts the next token. The first module is the transformer itself.
    Decoder(Vec<Module>),
}

/// Where a static embedding's parts are.
pub(super) struct StaticParts {
    pub(super) config: String,
    pub(super) embeddings: String,
    pub(super) tokenizer: String,
    /// The name of the embedding tensor.
    pub(super) tensor: &'static str,
}

/// One entry of modules.json.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Module {
    /// The module's folder inside the model folder; empty or `.` for the folder itself.
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Module {
    /// The class name: `Transformer`, `Pooling`, whatever package it is in.
    pub(super) fn name(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or(&self.kind)
    }

    /// The path of one of the module's files.
    pub(super) fn file(&self, name: &str) -> String {
        match self.path.trim_matches('/') {
            "" | "." => name.to_owned(),
            folder => format!("{folder}/{name}"),
        }
    }
}

/// The config.json of a Pooling module: one mode by name in newer folders, flags in older ones.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PoolingConfig {
    pooling_mode: Option<String>,
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

impl PoolingConfig {
    /// The modes asked for, by their names in newer folders.
    pub(super) fn modes(&self) -> Vec<&str> {
        match &self.pooling_mode {
            Some(mode) => vec![mode.as_str()],
            None => [
                ("cls", self.pooling_mode_cls_token),
                ("mean", self.pooling_mode_mean_tokens),
                ("max", self.pooling_mode_max_tokens),
                ("mean_sqrt_len_tokens", self.pooling_mode_mean_sqrt_len_tokens),
                ("weightedmean", self.pooling_mode_weightedmean_tokens),
                ("lasttoken", self.pooling_mode_lasttoken),
            ]
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
            .collect(),
        }
    }
}

/// A model folder and where it came from.
pub(super) struct Folder<'a> {
    pub(super) location: &'a str,
    pub(super) files: &'a ModelFiles,
}

impl<'a> Folder<'a> {
    /// The content of a file that has to be there.
    pub(super) fn file(&self, path: &str) -> Result<&'a Bytes> {
        self.files.get(path).ok_or_else(|| self.wrong(format!("{path} is missing; {}; {SUPPORTED}", self.found())))
    }

    /// A JSON file that has to be there.
    pub(super) fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        serde_json::from_slice(self.file(path)?)
            .map_err(|e| model_error(self.location, format!("{path} cannot be understood"), Some(e.into())))
    }

    /// A JSON file that may be missing.
    pub(super) fn optional_json<T: DeserializeOwned + Default>(&self, path: &str) -> Result<T> {
        if self.files.contains_key(path) { self.json(path) } else { Ok(T::default()) }
    }

    /// The tensors of a file.
    pub(super) fn tensors<'p>(&'p self, path: &'p str) -> Result<Tensors<'p>> {
        Tensors::open(self.location, path, self.file(path)?)
    }

    /// An error about this folder.
    pub(super) fn wrong(&self, reason: String) -> Error {
        model_error(self.location, reason, None)
    }

    /// BLAKE3 of `format` and of the named files that exist, each with its path and length.
    pub(super) fn fingerprint(&self, format: &str, paths: &[String]) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format.as_bytes());
        for (path, content) in paths.iter().filter_map(|path| self.files.get_key_value(path)) {
            for part in [path.as_bytes(), content] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Which layout this is.
    pub(super) fn layout(&self) -> Result<Layout> {
        let modules: Vec<Module> = self.optional_json("modules.json")?;
        let first = modules.first().map(Module::name);
        if first == Some("Transformer") {
            return self.transformer(modules);
        }
        if first.is_some_and(|name| name != "StaticEmbedding") {
            let names: Vec<&str> = modules.iter().map(Module::name).collect();
            return Err(self.wrong(format!("modules.json lists {}; the first has to be Transformer or StaticEmbedding", names.join(", "))));
        }
        if let Some(parts) = self.static_parts()? {
            return Ok(Layout::Static(parts));
        }
        let weights = ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| self.files.contains_key(*name));
        if first.is_none() && self.files.contains_key("config.json") && weights {
            let transformer = Module { path: String::new(), kind: "Transformer".to_owned() };
            return self.transformer(vec![transformer]);
        }
        Err(self.wrong(format!("no model in a known layout: {}; {SUPPORTED}", self.found())))
    }

    /// Which kind of transformer the first module is, by its config.json. One of an unknown kind goes where it is refused by name.
    fn transformer(&self, modules: Vec<Module>) -> Result<Layout> {
        #[derive(Deserialize)]
        struct Kind {
            model_type: Option<String>,
        }
        let kind: Option<Kind> = modules.first().map(|module| self.json(&module.file("config.json"))).transpose()?;
        let decoder = kind.and_then(|kind| kind.model_type).is_some_and(|family| DECODERS.contains(&family.as_str()));
        Ok(if decoder { Layout::Decoder(modules) } else { Layout::Transformer(modules) })
    }

    /// The first static layout whose files are all there and hold its tensor, in model2vec's order.
    fn static_parts(&self) -> Result<Option<StaticParts>> {
        let layouts = [
            ("config.json", "", "embeddings"),
            ("config_sentence_transformers.json", "", "embedding.weight"),
            ("config_sentence_transformers.json", "0_StaticEmbedding/", "embedding.weight"),
        ];
        for (config, folder, tensor) in layouts {
            let parts = StaticParts {
                config: config.to_owned(),
                embeddings: format!("{folder}model.safetensors"),
                tokenizer: format!("{folder}tokenizer.json"),
                tensor,
            };
            let complete = [&parts.config, &parts.embeddings, &parts.tokenizer].iter().all(|path| self.files.contains_key(*path));
            if complete && self.tensors(&parts.embeddings)?.has(tensor) {
                return Ok(Some(parts));
            }
        }
        Ok(None)
    }

    /// What the folder holds, for errors.
    fn found(&self) -> String {
        if self.files.is_empty() {
            return "the folder is empty".to_owned();
        }
        let names: Vec<&str> = self.files.keys().map(String::as_str).take(12).collect();
        let more = if self.files.len() > names.len() { ", …" } else { "" };
        format!("found {}{more}", names.join(", "))
    }
}
