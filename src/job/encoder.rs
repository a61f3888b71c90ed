//! The columns of a job to vectors: which columns are read, and what becomes of them.

use super::file::{BUILTIN, JobFile};
use crate::embed::{self, Candidates, Encoder, ModelFiles, Pool, RowVectors, Windows};
use crate::error::{Error, Result};
use crate::storage::Stores;
use arrow::array::{ArrayRef, RecordBatch};
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
    windows: Option<Windows>,
    fingerprint: String,
}

impl RowEncoder {
    /// Loads the job's model; nothing of the corpus is read.
    ///
    /// # Errors
    /// [`Error::Model`] for a model that cannot be used, [`Error::InvalidOption`] for a window longer than what the model reads, and what
    /// the store answers.
    pub async fn load(job: &JobFile, stores: &Stores) -> Result<Self> {
        let columns = RowColumns::of(job);
        if !columns.is_text {
            return Ok(Self { columns, encoder: None, windows: None, fingerprint: "vectors".to_owned() });
        }
        let encoder = load_model(&job.embed.model, stores).await?;
        let windows = job.embed.windows();
        if let (Some(windows), Some(most)) = (windows, encoder.max_tokens())
            && windows.window > most
        {
            let reason =
                format!("{} tokens are more than the {most} that {} reads; set it to {most} or less", windows.window, job.embed.model);
            return Err(Error::InvalidOption { name: "embed.window".to_owned(), reason });
        }
        let fingerprint = encoder.fingerprint().to_owned();
        Ok(Self { columns, encoder: Some(encoder), windows, fingerprint })
    }

    /// How texts are read in windows, if they are.
    pub fn windows(&self) -> Option<Windows> {
        self.windows
    }

    /// Whether a row has several candidates, of which the most harmful one gives its weight.
    pub fn reads_worst(&self) -> bool {
        self.windows.is_some_and(|windows| windows.pool == Pool::Worst)
    }

    /// What determines a text's vector; windows are told by [`windows`](Self::windows).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The columns it reads.
    pub fn columns(&self) -> &RowColumns {
        &self.columns
    }

    /// Vectors of a batch whose columns are [`RowColumns::to_read`], or these without the fallback; with windows, texts are the means of
    /// theirs, whatever the pool. Runs on rayon's current pool.
    ///
    /// # Errors
    /// [`Error::Column`] naming `object` and the column for a type or a value that cannot be used.
    pub fn encode(&self, object: &str, batch: &RecordBatch) -> Result<RowVectors> {
        let Some(encoder) = &self.encoder else {
            return embed::vectors(object, &self.columns.columns[0], column(object, batch, 0)?);
        };
        let (views, fallback) = self.texts(object, batch)?;
        match self.windows {
            None => embed::embed_views(encoder.as_ref(), &views, fallback.as_deref()),
            Some(windows) => embed::embed_windows(encoder.as_ref(), &views, fallback.as_deref(), windows),
        }
    }

    /// Hands every candidate of every row to `visit`, for a batch as in [`encode`](Self::encode), and tells which rows have text; see
    /// [`embed_candidates`](embed::embed_candidates). The vectors of some thousand candidates are alive at once.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); what `visit` returns; [`Error::Internal`] where the job has no windows.
    pub fn encode_candidates(
        &self,
        object: &str,
        batch: &RecordBatch,
        visit: &mut dyn FnMut(Candidates<'_>) -> Result<()>,
    ) -> Result<Vec<bool>> {
        let (Some(encoder), Some(windows)) = (&self.encoder, self.windows) else {
            return Err(Error::Internal("candidates of a job without windows".to_owned()));
        };
        let (views, fallback) = self.texts(object, batch)?;
        embed::embed_candidates(encoder.as_ref(), &views, fallback.as_deref(), windows, visit)
    }

    fn texts<'b>(&self, object: &str, batch: &'b RecordBatch) -> Result<(Vec<Texts<'b>>, Option<Texts<'b>>)> {
        let RowColumns { columns, fallback, .. } = &self.columns;
        let mut views = Vec::with_capacity(columns.len());
        for (index, name) in columns.iter().enumerate() {
            views.push(embed::texts(object, name, column(object, batch, index)?)?);
        }
        let fallback = match fallback {
            Some(name) if batch.num_columns() > columns.len() => Some(embed::texts(object, name, column(object, batch, columns.len())?)?),
            _ => None,
        };
        Ok((views, fallback))
    }
}

type Texts<'b> = Vec<Option<&'b str>>;

fn column<'b>(object: &str, batch: &'b RecordBatch, index: usize) -> Result<&'b ArrayRef> {
    let missing = || Error::Internal(format!("{object}: column {index} of {} is missing", batch.num_columns()));
    batch.columns().get(index).ok_or_else(missing)
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
        let reason = format!(
            "no model files there; name a folder in model2vec or sentence-transformers layout or of a Llama or Qwen model, or \"{BUILTIN}\""
        );
        return Err(Error::Model { location: name.to_owned(), reason, source: None });
    }
    Ok(files)
}
