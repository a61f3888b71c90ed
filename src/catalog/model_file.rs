//! A fitted model as an immutable file: enough to weigh one row anywhere. No time, host or path is in it, so the same inputs give
//! the same bytes and the same digest, which is its name.

use super::hygiene::Hygiene;
use crate::embed::Windows;
use crate::error::{Error, Result};
use crate::storage::Location;
use crate::transport::{FitReport, Picks, Prior, ReferenceSet, TransportModel, TransportOptions};
use crate::writeback::ReferenceIds;
use bytes::Bytes;
use ndarray::Array2;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Version of the model file's tensors and keys.
pub const MODEL_FORMAT: u32 = 2;
/// Engines that vacuum a Delta table delete files its log does not name, except below names that start with `_`.
const FOLDER: &str = "_models";
/// All metadata is one JSON value under one key, because a map of several keys has no fixed order.
const CARD_KEY: &str = "pushpull";

/// What a model file says about itself beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// [`MODEL_FORMAT`] of the writer.
    pub format: u32,
    /// Digest of everything that decides what is being solved: embedder, columns, references, options. A job whose digest is the
    /// same can use this model.
    pub problem: String,
    /// Fingerprint of the embedder.
    pub embedder: String,
    /// The text columns (or the one vector column), in order.
    pub columns: Vec<String>,
    /// The column that stands in where every text column is null.
    pub text_fallback: Option<String>,
    /// How texts are read in windows, if they are.
    pub windows: Option<Windows>,
    /// How the most harmful windows of the sample were picked, where the job asks for them.
    pub picks: Option<Picks>,
    /// Digest of the safe references.
    pub safe_digest: String,
    /// Digest of the harmful references.
    pub harm_digest: String,
    /// Ids of the safe references, in the order of the tensors.
    pub safe_ids: Vec<String>,
    /// Ids of the harmful references, in the order of the tensors.
    pub harm_ids: Vec<String>,
    /// What the user asked for.
    pub options: TransportOptions,
    /// ε that was used.
    pub epsilon: f64,
    /// λ that was used.
    pub push: f64,
    /// β that was used.
    pub prior: f64,
    /// τ that was used.
    pub tau: f64,
    /// log Z, by which the mean weight over the sample is 1.
    pub log_z: f64,
    /// ρ, or `None` for balanced references.
    pub slack: Option<f64>,
    /// How the fit went.
    pub report: FitReport,
    /// What was found about the references.
    pub hygiene: Hygiene,
    /// The model whose potentials this fit started from, or whose potentials this model kept.
    pub parent: Option<String>,
    /// Where the potentials are an earlier model's: what that was. `None` for a model that was fitted as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptPotentials>,
}

/// Whose potentials a model has that was not fitted: it weighs with another λ or τ than they were fitted for.
///
/// Of the card's [`report`](ModelCard::report) only `ess` and `mean_weight` were measured on this model (over the weighed rows of the
/// table); everything else is that of the fitted model, and `converged` is false.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptPotentials {
    /// Digest of the model that was fitted.
    pub fitted: String,
    /// λ of that fit.
    pub push: f64,
    /// τ of that fit.
    pub tau: f64,
    /// Whether that fit converged.
    pub converged: bool,
    /// Rows of the table that τ and log Z were computed on.
    pub rows: u64,
    /// Whether the effective sample size that the job asks for is met over these rows; true where the job gives τ itself.
    pub met: bool,
}

impl ModelCard {
    /// Names of the references.
    pub fn reference_ids(&self) -> ReferenceIds {
        ReferenceIds { safe: self.safe_ids.clone(), harm: self.harm_ids.clone() }
    }

    /// Names of the columns by the number that a [`WindowPlace`](crate::embed::WindowPlace) gives: the text columns, then the fallback.
    pub fn window_columns(&self) -> Vec<String> {
        self.columns.iter().chain(&self.text_fallback).cloned().collect()
    }
}

/// A model, what it says about itself, and its digest.
#[derive(Debug, Clone)]
pub struct StoredModel {
    /// Hex BLAKE3 of the file, the first 32 digits: its name.
    pub digest: String,
    /// Metadata.
    pub card: ModelCard,
    /// The numbers.
    pub transport: TransportModel,
}

impl StoredModel {
    /// Names a freshly fitted model by its content; nothing is written.
    ///
    /// # Errors
    /// [`Error::Internal`] if the model cannot be encoded.
    pub fn try_new(card: ModelCard, transport: TransportModel) -> Result<Self> {
        let digest = digest(&encode(&card, &transport)?);
        Ok(Self { digest, card, transport })
    }

    /// Writes the file under `_models/` below `output`.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn write(&self, output: &Location) -> Result<()> {
        let bytes = encode(&self.card, &self.transport)?;
        place(output, &self.digest).write_immutable(bytes).await
    }

    /// Reads the model with this digest.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Model`] for a file that is damaged or of another format, and what the store answers.
    pub async fn read(output: &Location, model: &str) -> Result<Self> {
        let place = place(output, model);
        let bytes = place.read().await?;
        let location = place.to_string();
        if digest(&bytes) != model {
            return Err(Error::Model {
                location,
                reason: "its content does not have the digest it is named by: it is damaged".into(),
                source: None,
            });
        }
        let (card, transport) = decode(&bytes).map_err(|reason| Error::Model { location, reason, source: None })?;
        Ok(Self { digest: model.to_owned(), card, transport })
    }

    /// Digests of every model under `output`.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn list(output: &Location) -> Result<Vec<String>> {
        let folder = output.join(FOLDER);
        let names = folder.list().await?.into_iter();
        Ok(names.filter_map(|object| object.location.filename()?.strip_suffix(".safetensors").map(str::to_owned)).collect())
    }

    /// Whether both give every row the same pull, push and prior: the same references, potentials, ε and prior. λ, τ and log Z may differ.
    pub fn has_potentials_of(&self, other: &Self) -> bool {
        let (one, two) = (&self.transport, &other.transport);
        let same = TransportModel { push: two.push, tau: two.tau, log_z: two.log_z, ..one.clone() };
        let reads = |card: &ModelCard| (card.embedder.clone(), card.window_columns(), card.windows, card.reference_ids());
        same == *two && reads(&self.card) == reads(&other.card)
    }
}

fn place(output: &Location, model: &str) -> Location {
    output.join(&format!("{FOLDER}/{model}.safetensors"))
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..32].to_owned()
}

fn encode(card: &ModelCard, model: &TransportModel) -> Result<Vec<u8>> {
    let f32s = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let f64s = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let vectors = |set: &ReferenceSet| f32s(&set.vectors().iter().copied().collect::<Vec<_>>());
    let (safe, harm) = (&model.safe, &model.harm);
    let parts: [(&str, Dtype, Vec<usize>, Vec<u8>); 9] = [
        ("harm.masses", Dtype::F64, vec![harm.len()], f64s(harm.masses())),
        ("harm.potential", Dtype::F64, vec![harm.len()], f64s(&model.harm_potential)),
        ("harm.prior", Dtype::F64, vec![harm.len()], f64s(&model.prior.harm)),
        ("harm.vectors", Dtype::F32, vec![harm.len(), harm.dims()], vectors(harm)),
        ("prior", Dtype::F64, vec![2], f64s(&[model.prior.intercept, model.prior.inverse_penalty])),
        ("safe.masses", Dtype::F64, vec![safe.len()], f64s(safe.masses())),
        ("safe.potential", Dtype::F64, vec![safe.len()], f64s(&model.safe_potential)),
        ("safe.prior", Dtype::F64, vec![safe.len()], f64s(&model.prior.safe)),
        ("safe.vectors", Dtype::F32, vec![safe.len(), safe.dims()], vectors(safe)),
    ];
    let internal = |e: &dyn std::fmt::Display| Error::Internal(format!("model file: {e}"));
    let mut tensors = Vec::with_capacity(parts.len());
    for (name, dtype, shape, bytes) in &parts {
        tensors.push((*name, TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| internal(&e))?));
    }
    let card = serde_json::to_string(card).map_err(|e| internal(&e))?;
    safetensors::serialize(tensors, Some(HashMap::from([(CARD_KEY.to_owned(), card)]))).map_err(|e| internal(&e))
}

fn decode(bytes: &Bytes) -> std::result::Result<(ModelCard, TransportModel), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| text(&e))?;
    let card = header.metadata().as_ref().and_then(|m| m.get(CARD_KEY)).ok_or("not a pushpull model")?;
    let format: Format = serde_json::from_str(card).map_err(|e| text(&e))?;
    if format.format != MODEL_FORMAT {
        return Err(format!("has format {}, this pushpull reads {MODEL_FORMAT}: fit again", format.format));
    }
    let card: ModelCard = serde_json::from_str(card).map_err(|e| text(&e))?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| text(&e))?;
    let tensor = |name: &str, dtype: Dtype| {
        let tensor = tensors.tensor(name).map_err(|e| e.to_string())?;
        if tensor.dtype() == dtype { Ok(tensor) } else { Err(format!("tensor {name} is {:?}, not {dtype:?}", tensor.dtype())) }
    };
    let f64s = |name: &str| -> std::result::Result<Vec<f64>, String> {
        Ok(tensor(name, Dtype::F64)?.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default())).collect())
    };
    let set = |side: &str| -> std::result::Result<ReferenceSet, String> {
        let view = tensor(&format!("{side}.vectors"), Dtype::F32)?;
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap_or_default())).collect();
        let &[rows, dims] = view.shape() else { return Err(format!("{side}.vectors is not a matrix")) };
        let vectors = Array2::from_shape_vec((rows, dims), values).map_err(|e| e.to_string())?;
        ReferenceSet::try_new(vectors, f64s(&format!("{side}.masses"))?).map_err(|e| e.to_string())
    };
    let &[intercept, inverse_penalty] = f64s("prior")?.as_slice() else { return Err("prior is not two numbers".into()) };
    let model = TransportModel {
        safe: set("safe")?,
        harm: set("harm")?,
        safe_potential: f64s("safe.potential")?,
        harm_potential: f64s("harm.potential")?,
        prior: Prior { safe: f64s("safe.prior")?, harm: f64s("harm.prior")?, intercept, inverse_penalty, strength: card.prior },
        epsilon: card.epsilon,
        push: card.push,
        tau: card.tau,
        log_z: card.log_z,
        slack: card.slack,
    };
    model.validate().map_err(|e| e.to_string())?;
    if card.safe_ids.len() != model.safe.len() || card.harm_ids.len() != model.harm.len() {
        return Err("names and vectors of the references differ in number".into());
    }
    Ok((card, model))
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use std::sync::Arc;

    fn model() -> StoredModel {
        let safe = ReferenceSet::try_new(array![[1.0, 0.0], [0.6, 0.8]], vec![0.25, 0.75]).unwrap();
        let harm = ReferenceSet::uniform(array![[0.0, 1.0]]).unwrap();
        let transport = TransportModel {
            safe,
            harm,
            safe_potential: vec![0.1, -0.03],
            harm_potential: vec![0.0],
            prior: Prior { safe: vec![1.5, -0.5], harm: vec![0.7], intercept: 0.2, inverse_penalty: 30.0, strength: 0.05 },
            epsilon: 0.03,
            push: 1.0,
            tau: 0.1,
            log_z: 0.7,
            slack: None,
        };
        let card = ModelCard {
            format: MODEL_FORMAT,
            problem: "p".into(),
            embedder: "e".into(),
            columns: vec!["prompt".into()],
            text_fallback: None,
            windows: Some(Windows { window: 64, stride: 32, pool: crate::embed::Pool::Worst }),
            picks: Some(Picks { rounds: 2, candidates: 7, moved: 1e-3 }),
            safe_digest: "s".into(),
            harm_digest: "h".into(),
            safe_ids: vec!["a".into(), "b".into()],
            harm_ids: vec!["c".into()],
            options: TransportOptions::default(),
            epsilon: 0.03,
            push: 1.0,
            prior: 0.05,
            tau: 0.1,
            log_z: 0.7,
            slack: None,
            report: FitReport::default(),
            hygiene: Hygiene::default(),
            parent: None,
            kept: None,
        };
        StoredModel::try_new(card, transport).unwrap()
    }

    #[tokio::test]
    async fn a_model_read_back_is_the_same_and_damage_is_noticed() {
        let output = Location::new(Arc::new(InMemory::new()), Path::from("o"), "memory://o".into());
        let stored = model();
        assert_eq!(stored.digest, model().digest);
        stored.write(&output).await.unwrap();
        let read = StoredModel::read(&output, &stored.digest).await.unwrap();
        assert_eq!((read.card, read.transport), (stored.card, stored.transport));
        assert_eq!(StoredModel::list(&output).await.unwrap(), std::slice::from_ref(&stored.digest));

        let place = place(&output, &stored.digest);
        let mut bytes = place.read().await.unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        place.write(bytes).await.unwrap();
        assert!(StoredModel::read(&output, &stored.digest).await.unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn potentials_are_the_same_whatever_push_and_temperature() {
        let fitted = model();
        let changed = |change: &dyn Fn(&mut ModelCard, &mut TransportModel)| {
            let (mut card, mut transport) = (fitted.card.clone(), fitted.transport.clone());
            change(&mut card, &mut transport);
            StoredModel::try_new(card, transport).unwrap()
        };
        let kept = KeptPotentials { fitted: fitted.digest.clone(), push: 1.0, tau: 0.1, converged: true, rows: 9, met: true };
        let derived = changed(&|card, transport| {
            (transport.push, transport.tau, transport.log_z) = (0.5, 0.2, -1.0);
            (card.push, card.kept) = (0.5, Some(kept.clone()));
        });
        assert!(derived.has_potentials_of(&fitted) && fitted.has_potentials_of(&derived) && derived.digest != fitted.digest);
        assert!(!changed(&|_, transport| transport.harm_potential[0] = 1e-9).has_potentials_of(&fitted));
        assert!(!changed(&|_, transport| transport.epsilon = 0.04).has_potentials_of(&fitted));
        assert!(!changed(&|card, _| card.embedder = "other".into()).has_potentials_of(&fitted));
        assert!(!changed(&|card, _| card.harm_ids[0] = "renamed".into()).has_potentials_of(&fitted));
    }

    #[test]
    fn a_fitted_models_card_does_not_mention_kept_potentials() {
        // Models of before they existed have the digest they had.
        assert!(!serde_json::to_string(&model().card).unwrap().contains("kept"));
    }
}
