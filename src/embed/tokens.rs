//! A tokenizer.json and texts in, token ids out: always the ids of the `tokenizers` library, without special tokens.
//!
//! BERT-style WordPiece tokenizers take a fast path for ASCII (`wordpiece`). Their pipeline treats each stretch between ASCII
//! white space on its own, so a text is cut there, and only stretches with other characters go to the library, through a
//! small cache, because such stretches repeat (`don’t`, `café`). Other tokenizers go to the library as a whole.

use std::collections::HashMap;

use tokenizers::Tokenizer;

use super::folder::model_error;
use super::wordpiece::{Pipeline, WordPiece, is_separator};
use crate::error::Result;

/// Longest stretch kept in the cache, in bytes, and the number of stretches it holds: at most about 2 MB a worker.
const CACHED_BYTES: usize = 64;
const CACHED_STRETCHES: usize = 8192;

/// A loaded tokenizer.
#[derive(Debug)]
pub(super) struct Tokens {
    location: String,
    library: Tokenizer,
    fast: Option<WordPiece>,
    unknown: Option<u32>,
    size: usize,
}

/// What one worker reuses from text to text.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    word: Vec<u8>,
    stretches: HashMap<Box<str>, Box<[u32]>>,
}

impl Tokens {
    /// Loads a tokenizer.json. Its truncation and padding are switched off: encoders have their own.
    pub(super) fn load(location: &str, path: &str, bytes: &[u8]) -> Result<Self> {
        let unreadable = |e| model_error(location, format!("{path} is not a tokenizer the `tokenizers` library reads"), Some(e));
        let mut library = Tokenizer::from_bytes(bytes).map_err(unreadable)?;
        library.with_padding(None);
        library.with_truncation(None).map_err(unreadable)?;
        let pipeline: Pipeline = serde_json::from_slice(bytes).map_err(|e| unreadable(e.into()))?;
        let unknown = match &pipeline.model.unk_token {
            Some(token) => library.token_to_id(token),
            None => pipeline.model.unk_id,
        };
        let fast = WordPiece::new(&pipeline, &library.get_vocab(false));
        let size = library.get_vocab(true).values().max().map_or(0, |&highest| highest as usize + 1);
        Ok(Self { location: location.to_owned(), library, fast, unknown, size })
    }

    /// The id that stands for what the vocabulary does not have, if there is one.
    pub(super) fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// One more than the highest id, added tokens included.
    pub(super) fn len(&self) -> usize {
        self.size
    }

    /// The tokenizer as JSON, without truncation and padding: the same text for the same tokenizer.
    pub(super) fn to_json(&self) -> Result<String> {
        self.library.to_string(false).map_err(|e| self.refused(e))
    }

    /// The median length of all tokens in characters, rounded down.
    pub(super) fn median_characters(&self) -> usize {
        let mut lengths: Vec<usize> = self.library.get_vocab(true).keys().map(|t| t.chars().count()).collect();
        lengths.sort_unstable();
        let middle = lengths.len() / 2;
        match lengths.len() {
            0 => 0,
            n if n % 2 == 1 => lengths[middle],
            _ => (lengths[middle - 1] + lengths[middle]) / 2,
        }
    }

    /// The special tokens put before and after a text (`[CLS]` and `[SEP]` for BERT).
    pub(super) fn specials(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let ids = |special| self.library.encode_fast("a", special).map(|e| e.get_ids().to_vec()).map_err(|e| self.refused(e));
        let (bare, framed) = (ids(false)?, ids(true)?);
        let at = framed.windows(bare.len().max(1)).position(|w| w == bare.as_slice());
        let Some(at) = at else {
            return Err(model_error(&self.location, "the tokenizer's special tokens do not frame the text".to_owned(), None));
        };
        Ok((framed[..at].to_vec(), framed[at + bare.len()..].to_vec()))
    }

    /// Replaces `ids` by the text's ids, at most the first `limit` of them.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) where the library refuses the text.
    pub(super) fn ids_into(&self, text: &str, limit: usize, scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<()> {
        ids.clear();
        let Some(fast) = &self.fast else {
            return self.library_ids(text, limit, ids);
        };
        for stretch in text.split(|c: char| c.is_ascii() && is_separator(c as u8)) {
            if ids.len() >= limit {
                break;
            }
            if !fast.chunk(stretch.as_bytes(), &mut scratch.word, ids) {
                self.cached_ids(stretch, &mut scratch.stretches, ids)?;
            }
        }
        ids.truncate(limit);
        Ok(())
    }

    /// The library's own ids for a whole text, at most the first `limit`, appended.
    pub(super) fn library_ids(&self, text: &str, limit: usize, ids: &mut Vec<u32>) -> Result<()> {
        let encoding = self.library.encode_fast(text, false).map_err(|e| self.refused(e))?;
        ids.extend(encoding.get_ids().iter().take(limit));
        Ok(())
    }

    fn cached_ids(&self, stretch: &str, cache: &mut HashMap<Box<str>, Box<[u32]>>, ids: &mut Vec<u32>) -> Result<()> {
        if stretch.len() > CACHED_BYTES {
            return self.library_ids(stretch, usize::MAX, ids);
        }
        if let Some(known) = cache.get(stretch) {
            ids.extend_from_slice(known);
            return Ok(());
        }
        let before = ids.len();
        self.library_ids(stretch, usize::MAX, ids)?;
        if cache.len() >= CACHED_STRETCHES {
            cache.clear();
        }
        cache.insert(stretch.into(), ids[before..].into());
        Ok(())
    }

    fn refused(&self, source: tokenizers::Error) -> crate::error::Error {
        model_error(&self.location, "the tokenizer failed".to_owned(), Some(source))
    }
}
