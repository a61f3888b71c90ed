//! The safetensors files of a checkpoint in, candle's tensors out: one file, or several that an index lists.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;

use super::folder::{Folder, Module, model_error};
use super::tensors::Tensors;
use crate::error::Result;

/// A checkpoint whose tensors are read by name.
pub(super) struct Checkpoint<'a> {
    location: &'a str,
    files: Vec<Tensors<'a>>,
    /// For every tensor that the index lists, the file it is in. Empty without an index.
    listed: BTreeMap<String, usize>,
    /// Before every name: `model.` where a language model was saved, nothing where its decoder alone was.
    prefix: &'static str,
    paths: Vec<String>,
}

/// model.safetensors.index.json.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl<'a> Checkpoint<'a> {
    /// Reads the headers. As transformers does, one file is preferred to an index.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) that names the file that is missing or cannot be read.
    pub(super) fn open(folder: &Folder<'a>, module: &Module) -> Result<Self> {
        let (whole, index) = (module.file("model.safetensors"), module.file("model.safetensors.index.json"));
        let mut checkpoint = Self { location: folder.location, files: Vec::new(), listed: BTreeMap::new(), prefix: "", paths: Vec::new() };
        if folder.files.contains_key(&whole) || !folder.files.contains_key(&index) {
            checkpoint.add(folder, &whole)?;
        } else {
            let Index { weight_map } = folder.json(&index)?;
            let mut opened: BTreeMap<String, usize> = BTreeMap::new();
            for (tensor, file) in weight_map {
                let path = module.file(&file);
                let at = match opened.get(&path) {
                    Some(&at) => at,
                    None => {
                        let at = checkpoint.add(folder, &path)?;
                        opened.insert(path, at);
                        at
                    }
                };
                checkpoint.listed.insert(tensor, at);
            }
            checkpoint.paths.push(index);
        }
        if checkpoint.find("model.embed_tokens.weight").is_some() {
            checkpoint.prefix = "model.";
        }
        Ok(checkpoint)
    }

    fn add(&mut self, folder: &Folder<'a>, path: &str) -> Result<usize> {
        let content = folder.file(path)?;
        let path = folder.files.get_key_value(path).map_or("", |(path, _)| path.as_str());
        self.files.push(Tensors::open(folder.location, path, content)?);
        self.paths.push(path.to_owned());
        Ok(self.files.len() - 1)
    }

    /// The files read, for a fingerprint.
    pub(super) fn paths(&self) -> &[String] {
        &self.paths
    }

    fn find(&self, full: &str) -> Option<&Tensors<'a>> {
        match self.listed.get(full) {
            Some(&at) => self.files.get(at),
            None if self.listed.is_empty() => self.files.first().filter(|file| file.has(full)),
            None => None,
        }
    }

    fn view(&self, full: &str) -> Result<(&Tensors<'a>, TensorView<'_>)> {
        let file = self.find(full).or(self.files.first().filter(|_| self.listed.is_empty())).ok_or_else(|| {
            let some: Vec<&str> = self.listed.keys().map(String::as_str).take(8).collect();
            let reason = format!("model.safetensors.index.json lists no tensor `{full}` (it starts with {})", some.join(", "));
            model_error(self.location, reason, None)
        })?;
        Ok((file, file.view(full)?))
    }

    /// The number of rows of a table, and the kind of number it holds.
    pub(super) fn rows(&self, name: &str) -> Result<(usize, DType)> {
        let full = format!("{}{name}", self.prefix);
        let (file, view) = self.view(&full)?;
        Ok((view.shape().first().copied().unwrap_or_default(), stored(file, &full, &view)?))
    }

    /// A tensor on `device` as `dtype`. Its bytes are copied once, and once more where the dtype changes.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) that names the tensor that is missing or has another shape or another kind of number.
    pub(super) fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let full = format!("{}{name}", self.prefix);
        let (file, view) = self.view(&full)?;
        if view.shape() != shape {
            return Err(file.wrong(&full, format!("has shape {:?} where config.json asks for {shape:?}", view.shape())));
        }
        Tensor::from_raw_buffer(view.data(), stored(file, &full, &view)?, shape, device)
            .and_then(|tensor| tensor.to_dtype(dtype))
            .map_err(|e| model_error(self.location, format!("tensor `{full}` cannot be placed on the device"), Some(e.into())))
    }
}

/// The kind of number a tensor is stored in.
fn stored(file: &Tensors<'_>, full: &str, view: &TensorView<'_>) -> Result<DType> {
    match view.dtype() {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => Err(file.wrong(full, format!("is {other:?}; supported are F32, F16 and BF16"))),
    }
}
