//! Text in, unit vectors out: the encoders, the views of a row, and the Arrow columns they read.
//!
//! | file | noun |
//! |---|---|
//! | `folder` | a model folder: which layout, which files, fingerprint |
//! | `static_table` | the static encoder: a mean of token rows (model2vec layout, and the built-in table) |
//! | `lexical` | token ids to a vector of the words themselves |
//! | `bert` | the transformer encoder (sentence-transformers layout) on `transformer` |
//! | `decoder` | the encoder made of a language model's hidden states (Llama, Mistral, Qwen), on candle; feature `decoder` |
//! | `decoder_config`, `decoder_weights`, `decoder_layers` | its shape, its checkpoint in one file or several, its layers |
//! | `tokens`, `wordpiece` | text to token ids: the library's ids, found faster |
//! | `distill` | a static table made from a transformer |
//! | `views` | several text columns to one vector a row |
//! | `window` | a text cut into windows |
//! | `candidates` | rows read in windows: their mean, or each of them |
//! | `tensors`, `product`, `unit` | numbers in a safetensors file, a matrix product, unit length |
//! | `column` | Arrow arrays to texts or to ready-made vectors |
//!
//! Everything here is synchronous and does no IO: model files come in as bytes. Work is spread over rayon's *current* thread
//! pool. A row's bits depend on its own text and the model only: not on its neighbours, on the size of the call or on the
//! number of threads.

mod bert;
mod candidates;
mod column;
#[cfg(feature = "decoder")]
mod decoder;
#[cfg(feature = "decoder")]
mod decoder_config;
#[cfg(feature = "decoder")]
mod decoder_layers;
#[cfg(feature = "decoder")]
mod decoder_weights;
mod distill;
mod folder;
mod lexical;
mod product;
mod static_table;
mod tensors;
mod tokens;
mod transformer;
mod unit;
mod views;
mod window;
mod wordpiece;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use ndarray::Array2;

use crate::error::Result;

pub use candidates::{Candidate, Candidates, WindowPlace, embed_candidates, embed_windows};
pub use column::{texts, vectors};
pub use distill::{DEFAULT_DISTILL_DIMS, DEFAULT_FREQUENCY_SMOOTHING, DEFAULT_LEXICAL_DIMS, DistillOptions, distill};
pub use folder::{load, needed_file};
pub use views::{RowVectors, embed_views};
pub use window::{MIN_WINDOW, Pool, TokenSpan, Windows};

/// The files of a model folder: path inside the folder, with `/` between its parts, to content. [`needed_file`] says which
/// paths are worth fetching.
pub type ModelFiles = BTreeMap<String, Bytes>;

/// Turns texts into unit vectors.
pub trait Encoder: Send + Sync + Debug {
    /// The length of every vector, at least 1.
    fn dims(&self) -> usize;

    /// Lower-case hex BLAKE3 of everything that determines the output: the encoder's own format version and the content of the
    /// model files it reads. Two encoders with the same fingerprint give the same vectors.
    fn fingerprint(&self) -> &str;

    /// Most tokens of a text that are read, special tokens not counted; `None` where a text is read whole. A longer window is of no
    /// use.
    fn max_tokens(&self) -> Option<usize>;

    /// Where each token of the whole text begins, in order, also past [`max_tokens`](Encoder::max_tokens). Texts are cut into windows there.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) where the tokenizer refuses the text.
    fn spans(&self, text: &str) -> Result<Vec<TokenSpan>>;

    /// One row a text, in order, `texts.len()` × [`dims`](Encoder::dims): of unit length, or all zero where the text has no
    /// token the model knows (an empty text, for example). Runs on rayon's current pool; the bits of a row depend on its text only.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) where the tokenizer refuses a text or the model gives a number that is not finite.
    fn encode(&self, texts: &[&str]) -> Result<Array2<f32>>;

    /// The same for texts that are windows, of at most [`max_tokens`](Encoder::max_tokens) tokens each: every one is read whole, also by an
    /// encoder that cuts texts by another measure than tokens. Any other encoder gives what [`encode`](Encoder::encode) gives.
    ///
    /// # Errors
    /// As [`encode`](Encoder::encode).
    fn encode_windows(&self, windows: &[&str]) -> Result<Array2<f32>> {
        self.encode(windows)
    }
}

/// Where the built-in table is said to be, in errors.
const BUILTIN: &str = "builtin";

/// The table shipped inside the crate: 30,522 WordPiece tokens × 128 dimensions, int8, distilled from all-MiniLM-L6-v2
/// (Apache-2.0; `src/embed/builtin/README.md` has the derivation). It reads whole texts, however long. Parsed once a process and shared.
///
/// # Errors
/// [`Error::Model`](crate::error::Error::Model) if the shipped files do not load, which would be a broken build.
pub fn builtin() -> Result<Arc<dyn Encoder>> {
    static SHARED: OnceLock<Arc<dyn Encoder>> = OnceLock::new();
    if let Some(encoder) = SHARED.get() {
        return Ok(Arc::clone(encoder));
    }
    let encoder = load(BUILTIN, &builtin_files())?;
    Ok(Arc::clone(SHARED.get_or_init(|| encoder)))
}

fn builtin_files() -> ModelFiles {
    ModelFiles::from([
        ("config.json".to_owned(), Bytes::from_static(include_bytes!("builtin/config.json"))),
        ("model.safetensors".to_owned(), Bytes::from_static(include_bytes!("builtin/model.safetensors"))),
        ("tokenizer.json".to_owned(), Bytes::from_static(include_bytes!("builtin/tokenizer.json"))),
    ])
}
