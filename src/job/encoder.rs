//! The columns of a job to vectors: which columns are read, and what becomes of them.

use super::file::{BUILTIN, JobFile};
use crate::embed::{self, Encoder, ModelFiles, RowVectors};
use crate::error::{Error, Result};
use crate::storage::Stores;
use arrow::array::RecordBatch;
use std::sync::Arc;

/// The columns that a job embeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowColumns {
    columns: Vec<String>,
    fallback: Option<String>,
    is_text: bool,
}

impl RowColumns {
    /// The columns that the job file names.
    pub fn of(job: &JobFile) -> Self {
        match &job.corpus.embedding {
            Some(column) => Self { columns: vec![column.clone()], fallback: None, is_text: false },
            None => Self { columns: job.corpus.text.clone(), fallback: job.corpus.text_fallback.clone(), is_text: true },
        }
    }

    /// The text columns, or the one vector column.
    pub fn views(&self) -> &[String] {
        &self.columns
    }

    /// The column for rows where every text column is null.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Whether the columns are text.
    pub fn is_text(&self) -> bool {
        self.is_text
    }

    /// Every column to read, the fallback last.
    pub fn to_read(&self) -> Vec<String> {
        self.columns.iter().chain(&self.fallback).cloned().collect()
    }
}

/// Turns rows into unit vectors as a job says.
#[derive(Debug, Clone)]
pub struct RowEncoder {
    columns: RowColumns,
    /// `None`: the one column holds vectors already.
    encoder: Option<Arc<dyn Encoder>>,
    fingerprint: String,
}

impl RowEncoder {
    /// Loads the job's model; nothing of the corpus is read.
    ///
    /// # Errors
    /// [`Error::Model`] for a model that cannot be used, and what the store answers.
    pub async fn load(job: &JobFile, stores: &Stores) -> Result<Self> {
        let columns = RowColumns::of(job);
        if !columns.is_text {
            return Ok(Self { columns, encoder: None, fingerprint: "vectors".to_owned() });
        }
        let encoder = load_model(&job.embed.model, stores).await?;
        let fingerprint = encoder.fingerprint().to_owned();
        Ok(Self { columns, encoder: Some(encoder), fingerprint })
    }

    /// What determines the vectors.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The columns it reads.
    pub fn columns(&self) -> &RowColumns {
        &self.columns
    }

    /// Vectors of a batch whose columns are [`RowColumns::to_read`], or these without the fallback. Runs on
    /// rayon's current pool.
    ///
    /// # Errors
    /// [`Error::Column`] naming `object` and the column for a type or a value that cannot be used.
    pub fn encode(&self, object: &str, batch: &RecordBatch) -> Result<RowVectors> {
        let column = |index: usize| {
            batch
                .columns()
                .get(index)
                .ok_or_else(|| Error::Internal(format!("{object}: column {index} of {} is missing", batch.num_columns())))
        };
        let RowColumns { columns, fallback, .. } = &self.columns;
        let Some(encoder) = &self.encoder else {
            return embed::vectors(object, &columns[0], column(0)?);
        };
        let mut views = Vec::with_capacity(columns.len());
        for (index, name) in columns.iter().enumerate() {
            views.push(embed::texts(object, name, column(index)?)?);
        }
        let fallback = match fallback {
            Some(name) if batch.num_columns() > columns.len() => Some(embed::texts(object, name, column(columns.len())?)?),
            _ => None,
        };
        embed::embed_views(encoder.as_ref(), &views, fallback.as_deref())
    }
}

/// The embedder of this name: the builtin one, or a folder or URL.
///
/// # Errors
/// [`Error::Model`] for files that cannot be used, and what the store answers.
pub async fn load_model(name: &str, stores: &Stores) -> Result<Arc<dyn Encoder>> {
    if name == BUILTIN {
        return embed::builtin();
    }
    embed::load(name, &read_model_folder(name, stores).await?)
}

/// The files of a model folder that a loader reads.
///
/// # Errors
/// [`Error::Model`] where there is no file of a model, and what the store answers.
pub async fn read_model_folder(name: &str, stores: &Stores) -> Result<ModelFiles> {
    let files: ModelFiles = stores.open(name)?.read_all(embed::needed_file).await?.into_iter().collect();
    if files.is_empty() {
        let reason = format!("no model files there; name a folder in model2vec or sentence-transformers layout, or \"{BUILTIN}\"");
        return Err(Error::Model { location: name.to_owned(), reason, source: None });
    }
    Ok(files)
}
