//! Token ids in, the mean of their table rows out: the static encoder, as the model2vec package computes it, and beside it, where the
//! configuration asks for it, a vector of the tokens themselves (see `lexical`).
//!
//! For a text: its ids without special tokens, the unknown token dropped, `mean(row[mapping[id]] × token weight[id])`, scaled to
//! unit length. What differs from model2vec 0.10, on purpose:
//! * rows are always normalised, also where config.json says `"normalize": false`, because every cost here is a cosine;
//! * sums are in f32 (model2vec sums f16 tables into f16), one token after the other, so all machines give the same bits.
//!
//! The same as there: `max_length` (tokens, 512 where config.json does not say, `null` for no limit) cuts a text first to
//! `max_length` × the median token length characters and then to `max_length` tokens. The first cut saves work and is not made in a text that
//! is a window: `max_length` tokens of long words have more characters than that, and every token of a document is to be read in one of its
//! windows. The built-in table has `null`: it reads whole texts.

use ndarray::Array2;
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Deserializer};

use super::folder::{Folder, StaticParts, model_error};
use super::lexical::{LexicalCodes, MAX_LEXICAL_DIMS};
use super::tokens::{Tokens, Worker};
use super::window::TokenSpan;
use super::{Encoder, unit};
use crate::error::{Error, Result};

/// Changes whenever the same files would give other bits.
const FORMAT: &str = "pushpull static table 1";

/// Share of the lexical part in a cosine where `lexical_dims` is written and `lexical_share` isn't: 0.2 to 0.3 did alike on the corpora that
/// it was tried on, 0.4 and 0.5 worse.
pub(super) const DEFAULT_LEXICAL_SHARE: f32 = 0.25;

/// Tokens read of a text where the model's configuration does not say; the default of the model2vec package.
const DEFAULT_MAX_LENGTH: usize = 512;

/// The static encoder.
#[derive(Debug)]
pub(super) struct StaticTable {
    tokens: Tokens,
    dims: usize,
    rows: Rows,
    /// For each token id, its row and its factor.
    entries: Vec<(u32, f32)>,
    limit: Option<Limit>,
    lexical: Option<Lexical>,
    fingerprint: String,
    location: String,
}

/// The part of a vector that knows which tokens a text has.
#[derive(Debug)]
struct Lexical {
    codes: LexicalCodes,
    /// Scales of the table's and of this part: the roots of their shares in a cosine.
    scales: (f32, f32),
}

/// Table rows, one after the other.
enum Rows {
    Int8(Vec<i8>),
    Float(Vec<f32>),
}

/// How much of a text is read.
#[derive(Debug, Clone, Copy)]
struct Limit {
    characters: usize,
    tokens: usize,
}

const NO_LIMIT: Limit = Limit { characters: usize::MAX, tokens: usize::MAX };

#[derive(Debug, Deserialize)]
struct Config {
    /// Outer none: not written, so the default. Inner none: `null`, so no limit.
    #[serde(default, deserialize_with = "written")]
    max_length: Option<Option<usize>>,
    /// Dimensions of the lexical part, which come after the table's. None or 0: there is no such part.
    #[serde(default)]
    lexical_dims: Option<usize>,
    /// Its share in a cosine, between 0 and 1.
    #[serde(default)]
    lexical_share: Option<f32>,
}

fn written<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(value).map(Some)
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int8(rows) => write!(f, "Int8({} numbers)", rows.len()),
            Self::Float(rows) => write!(f, "Float({} numbers)", rows.len()),
        }
    }
}

impl StaticTable {
    /// Loads the table in one of the static layouts.
    pub(super) fn load(folder: &Folder<'_>, parts: &StaticParts) -> Result<Self> {
        let config: Config = folder.json(&parts.config)?;
        let tokens = Tokens::load(folder.location, &parts.tokenizer, folder.file(&parts.tokenizer)?)?;
        let tensors = folder.tensors(&parts.embeddings)?;

        let table = tensors.view(parts.tensor)?;
        let &[height, dims] = table.shape() else {
            return Err(tensors.wrong(parts.tensor, format!("has shape {:?}; a table has two dimensions", table.shape())));
        };
        if dims == 0 || height == 0 {
            return Err(tensors.wrong(parts.tensor, "is empty".to_owned()));
        }
        let rows = match table.dtype() {
            Dtype::I8 => Rows::Int8(tensors.bytes(parts.tensor)?),
            _ => Rows::Float(tensors.floats(parts.tensor, None)?),
        };

        let vocabulary = tokens.len();
        let mapping = if tensors.has("mapping") { Some(tensors.indices("mapping")?) } else { None };
        if mapping.is_none() && height < vocabulary {
            return Err(tensors.wrong(parts.tensor, format!("has {height} rows for {vocabulary} tokens and there is no `mapping`")));
        }
        let factors = if tensors.has("weights") { Some(tensors.floats("weights", None)?) } else { None };
        for (name, length) in [("mapping", mapping.as_ref().map(Vec::len)), ("weights", factors.as_ref().map(Vec::len))] {
            if length.is_some_and(|n| n < vocabulary) {
                return Err(tensors.wrong(name, format!("has {} entries for {vocabulary} tokens", length.unwrap_or(0))));
            }
        }
        let entries = (0..vocabulary)
            .map(|id| {
                let row = mapping.as_ref().map_or(id as i64, |m| m[id]);
                let row = u32::try_from(row).ok().filter(|&row| (row as usize) < height);
                let row = row.ok_or_else(|| tensors.wrong("mapping", format!("sends token {id} outside the table")))?;
                Ok((row, factors.as_ref().map_or(1.0, |f| f[id])))
            })
            .collect::<Result<Vec<_>>>()?;

        let lexical = match config.lexical_dims {
            None | Some(0) => None,
            Some(dims) if dims > MAX_LEXICAL_DIMS => {
                return Err(folder.wrong(format!("{}: lexical_dims is {dims}; at most {MAX_LEXICAL_DIMS} are possible", parts.config)));
            }
            Some(dims) => {
                let share = config.lexical_share.unwrap_or(DEFAULT_LEXICAL_SHARE);
                if !(share > 0.0 && share < 1.0) {
                    return Err(folder.wrong(format!("{}: lexical_share is {share}; it lies between 0 and 1", parts.config)));
                }
                Some(Lexical { codes: LexicalCodes::new(vocabulary, dims), scales: ((1.0 - share).sqrt(), share.sqrt()) })
            }
        };
        let limit = config
            .max_length
            .unwrap_or(Some(DEFAULT_MAX_LENGTH))
            .map(|tokens_read| Limit { characters: tokens_read.saturating_mul(tokens.median_characters()), tokens: tokens_read });
        let fingerprint = folder.fingerprint(FORMAT, &[parts.config.clone(), parts.embeddings.clone(), parts.tokenizer.clone()]);
        Ok(Self { tokens, dims, rows, entries, limit, lexical, fingerprint, location: folder.location.to_owned() })
    }

    /// Vectors of whole texts or of windows.
    fn encode_each(&self, texts: &[&str], limit: Limit) -> Result<Array2<f32>> {
        let dims = self.dims();
        let mut rows = Array2::zeros((texts.len(), dims));
        let Some(numbers) = rows.as_slice_mut() else {
            return Err(Error::Internal("a new array is not contiguous".to_owned()));
        };
        numbers
            .par_chunks_mut(dims)
            .zip(texts)
            .try_for_each_init(|| self.tokens.worker(), |worker, (row, text)| self.encode_into(text, limit, worker, row))?;
        Ok(rows)
    }

    /// Fills `row`, all zero before, with one text's vector.
    fn encode_into(&self, text: &str, limit: Limit, worker: &mut Worker<'_>, row: &mut [f32]) -> Result<()> {
        let text = first_characters(text, limit.characters);
        let dropped = self.tokens.unknown();
        let (meaning, words) = row.split_at_mut(self.dims);
        for &id in worker.ids(text, limit.tokens)?.iter().filter(|&&id| Some(id) != dropped) {
            let Some(&(at, factor)) = self.entries.get(id as usize) else {
                return Err(Error::Internal(format!("token {id} in a table of {} tokens", self.entries.len())));
            };
            if let Some(lexical) = &self.lexical {
                lexical.codes.add(words, id as usize);
            }
            let at = at as usize * self.dims;
            match &self.rows {
                Rows::Int8(rows) => add_int8(meaning, &rows[at..at + self.dims], factor),
                Rows::Float(rows) => add_float(meaning, &rows[at..at + self.dims], factor),
            }
        }
        // The division by the number of tokens is left out: it does not change the direction.
        if unit::normalise(meaning) && unit::normalise(words) {
            if let Some(Lexical { scales, .. }) = &self.lexical {
                meaning.iter_mut().for_each(|x| *x *= scales.0);
                words.iter_mut().for_each(|x| *x *= scales.1);
                // Tokens whose rows are all zero leave one part alone.
                unit::normalise(row);
            }
            return Ok(());
        }
        Err(model_error(&self.location, "the table holds numbers that are not finite".to_owned(), None))
    }
}

impl Encoder for StaticTable {
    fn dims(&self) -> usize {
        self.dims + self.lexical.as_ref().map_or(0, |lexical| lexical.codes.dims())
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn max_tokens(&self) -> Option<usize> {
        self.limit.map(|limit| limit.tokens)
    }

    fn spans(&self, text: &str) -> Result<Vec<TokenSpan>> {
        self.tokens.spans(text)
    }

    fn encode(&self, texts: &[&str]) -> Result<Array2<f32>> {
        self.encode_each(texts, self.limit.unwrap_or(NO_LIMIT))
    }

    fn encode_windows(&self, windows: &[&str]) -> Result<Array2<f32>> {
        self.encode_each(windows, self.limit.map_or(NO_LIMIT, |limit| Limit { characters: usize::MAX, ..limit }))
    }
}

/// The text's first `count` characters.
fn first_characters(text: &str, count: usize) -> &str {
    if text.len() <= count {
        return text;
    }
    text.char_indices().nth(count).map_or(text, |(end, _)| &text[..end])
}

/// `sum += factor × row`. The same operations in the same order with and without AVX2, so the same bits.
pub(super) fn add_int8(sum: &mut [f32], row: &[i8], factor: f32) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { add_int8_avx2(sum, row, factor) };
    }
    add_int8_plain(sum, row, factor);
}

/// The plain loop, compiled for AVX2: widening bytes takes one instruction there and many without, and this is the encoder's inner loop.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_int8_avx2(sum: &mut [f32], row: &[i8], factor: f32) {
    add_int8_plain(sum, row, factor);
}

#[inline(always)]
fn add_int8_plain(sum: &mut [f32], row: &[i8], factor: f32) {
    for (sum, &x) in sum.iter_mut().zip(row) {
        *sum += factor * f32::from(x);
    }
}

fn add_float(sum: &mut [f32], row: &[f32], factor: f32) {
    for (sum, &x) in sum.iter_mut().zip(row) {
        *sum += factor * x;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::embed::{Pool, Windows, builtin, builtin_files, embed_windows, load};

    proptest! {
        #[test]
        fn both_ways_of_adding_int8_give_the_same_bits(
            row in prop::collection::vec(any::<i8>(), 1..70),
            start in prop::collection::vec(-1e3_f32..1e3, 70),
            factor in -10.0_f32..10.0,
        ) {
            let (mut fast, mut plain) = (start.clone(), start);
            add_int8(&mut fast, &row, factor);
            add_int8_plain(&mut plain, &row, factor);
            prop_assert_eq!(fast, plain);
        }

        #[test]
        fn the_first_characters_are_cut_between_characters(text in any::<String>(), count in 0_usize..20) {
            prop_assert_eq!(first_characters(&text, count), text.chars().take(count).collect::<String>());
        }
    }

    /// A table that reads 16 tokens, and 16 times the median length of a token in characters.
    #[test]
    fn windows_of_long_words_are_read_to_their_end() {
        let mut files = builtin_files();
        let mut config: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
        config["max_length"] = 16.into();
        files.insert("config.json".to_owned(), config.to_string().into());
        let (limited, whole) = (load("limited", &files).unwrap(), builtin().unwrap());
        let window = "responsibilities administration characteristics representatives communication understanding considerable organizations \
                      contributions international establishment professional environmental manufacturing poison";
        assert!(limited.spans(window).unwrap().len() <= 16);
        let expected = whole.encode(&[window]).unwrap();
        assert_ne!(limited.encode(&[window]).unwrap(), expected, "as a text it is cut by its characters");
        assert_eq!(limited.encode_windows(&[window]).unwrap(), expected);
        assert_eq!(whole.encode_windows(&[window]).unwrap(), expected);

        // Tokens past the limit are still cut, and a document's windows are read as a table without a limit reads them.
        let longer = format!("{window} and {window}");
        assert_ne!(limited.encode_windows(&[&longer]).unwrap(), whole.encode(&[&longer]).unwrap());
        let windows = Windows { window: 16, stride: 8, pool: Pool::Mean };
        let read = |encoder: &dyn Encoder| embed_windows(encoder, &[vec![Some(longer.as_str()), Some(window)]], None, windows).unwrap();
        assert_eq!(read(limited.as_ref()), read(whole.as_ref()));
    }

    #[test]
    fn the_length_limit_is_the_default_a_number_or_none() {
        let limit = |json: &str| serde_json::from_str::<Config>(json).unwrap().max_length;
        assert_eq!(limit("{}"), None);
        assert_eq!(limit(r#"{"max_length": null}"#), Some(None));
        assert_eq!(limit(r#"{"max_length": 64}"#), Some(Some(64)));
    }
}
