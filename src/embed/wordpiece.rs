//! A BERT-style WordPiece vocabulary and plain ASCII in, token ids out: exactly the library's ids, without its bookkeeping.
//!
//! The library follows every character through normalisation to report offsets, which nobody here asks for, and spends most of
//! the static encoder's time on it. For ASCII the whole pipeline (BertNormalizer, BertPreTokenizer, WordPiece) is a table of
//! 128 classes and a greedy longest match. Anything else is declined ([`WordPiece::chunk`] returns false), and the caller asks the library.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use serde::Deserialize;

/// Bytes a packed piece can hold. The longest ASCII piece of the usual BERT vocabularies has 18.
const PACKED: usize = 16;

/// What an ASCII byte is to BertNormalizer and BertPreTokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Part of a word.
    Word,
    /// A token of its own.
    Punctuation,
    /// Removed by the normaliser's text cleaning: its neighbours join. Vertical tab and form feed are among them, although
    /// they are white space: cleaning comes first.
    Dropped,
}

/// The parts of a tokenizer.json that decide whether this path gives the library's ids.
#[derive(Debug, Deserialize)]
pub(super) struct Pipeline {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Normalizer>,
    pre_tokenizer: Option<Kind>,
    pub(super) model: Model,
}

#[derive(Debug, Deserialize)]
struct AddedToken {
    content: String,
    #[serde(default)]
    normalized: bool,
}

#[derive(Debug, Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Normalizer {
    #[serde(rename = "type")]
    kind: Option<String>,
    clean_text: Option<bool>,
    lowercase: Option<bool>,
}

/// The tokenizer's model, less its vocabulary.
#[derive(Debug, Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    pub(super) unk_token: Option<String>,
    pub(super) unk_id: Option<u32>,
    continuing_subword_prefix: Option<String>,
    max_input_chars_per_word: Option<usize>,
}

/// The vocabulary in the form the greedy match wants.
#[derive(Debug)]
pub(super) struct WordPiece {
    classes: [Class; 128],
    lowercase: bool,
    /// Pieces that start a word; every entry of the vocabulary, as the library looks all of them up.
    initial: Pieces,
    /// Pieces that go on with a word, without their prefix.
    continuing: Pieces,
    added: Vec<Box<[u8]>>,
    /// Whether an added token starts with this byte.
    added_start: [bool; 128],
    unknown: u32,
    max_word: usize,
}

/// Takes the pieces of a stretch of text as they are found. For ids alone all but [`piece`](Sink::piece) is nothing.
pub(super) trait Sink {
    /// Pieces taken so far.
    fn taken(&self) -> usize;
    /// Forgets all but the first `taken` pieces.
    fn back_to(&mut self, taken: usize);
    /// A byte of the word under way stands at this place of the stretch.
    fn letter(&mut self, _place: usize) {}
    /// The word under way has a piece that begins at its byte `byte`.
    fn piece(&mut self, id: u32, byte: usize);
    /// The word under way is over.
    fn end_of_word(&mut self) {}
}

impl Sink for Vec<u32> {
    fn taken(&self) -> usize {
        self.len()
    }

    fn back_to(&mut self, taken: usize) {
        self.truncate(taken);
    }

    fn piece(&mut self, id: u32, _byte: usize) {
        self.push(id);
    }
}

impl WordPiece {
    /// The fast path for this pipeline, or none where its ids could differ from the library's: another normaliser,
    /// pre-tokenizer or model, or added tokens that a look at one white-space-separated chunk cannot find.
    pub(super) fn new(pipeline: &Pipeline, vocabulary: &HashMap<String, u32>) -> Option<Self> {
        let normalizer = pipeline.normalizer.as_ref()?;
        let is = |kind: &Option<String>, name: &str| kind.as_deref() == Some(name);
        if !is(&normalizer.kind, "BertNormalizer")
            || normalizer.clean_text != Some(true)
            || !is(&pipeline.pre_tokenizer.as_ref()?.kind, "BertPreTokenizer")
            || !is(&pipeline.model.kind, "WordPiece")
        {
            return None;
        }
        let findable = |t: &AddedToken| {
            !t.normalized && t.content.starts_with(|c: char| c.is_ascii_punctuation()) && !t.content.contains(char::is_whitespace)
        };
        if !pipeline.added_tokens.iter().all(findable) {
            return None;
        }
        let unknown = *vocabulary.get(pipeline.model.unk_token.as_deref()?)?;
        let prefix = pipeline.model.continuing_subword_prefix.as_deref()?.as_bytes();

        let mut initial = Pieces::default();
        let mut continuing = Pieces::default();
        for (piece, &id) in vocabulary {
            let piece = piece.as_bytes();
            // The fast path only ever looks ASCII up.
            if !piece.is_ascii() || piece.contains(&0) {
                continue;
            }
            initial.insert(piece, id);
            if let Some(rest) = piece.strip_prefix(prefix)
                && !rest.is_empty()
            {
                continuing.insert(rest, id);
            }
        }
        let mut added_start = [false; 128];
        for token in &pipeline.added_tokens {
            if let Some(&first) = token.content.as_bytes().first() {
                added_start[usize::from(first & 0x7f)] = true;
            }
        }
        Some(Self {
            classes: std::array::from_fn(|byte| match byte as u8 {
                b if b.is_ascii_punctuation() => Class::Punctuation,
                b if b.is_ascii_control() => Class::Dropped,
                _ => Class::Word,
            }),
            lowercase: normalizer.lowercase?,
            initial,
            continuing,
            added: pipeline.added_tokens.iter().map(|t| t.content.as_bytes().into()).collect(),
            added_start,
            unknown,
            max_word: pipeline.model.max_input_chars_per_word?,
        })
    }

    /// Gives the pieces of `chunk`, a stretch of text between the white space of [`is_separator`]. Returns false, with `pieces`
    /// as it was, where the library has to be asked: for text beyond ASCII, or where an added token (`[MASK]`) is written out.
    pub(super) fn chunk(&self, chunk: &[u8], word: &mut Vec<u8>, pieces: &mut impl Sink) -> bool {
        let before = pieces.taken();
        word.clear();
        pieces.end_of_word();
        for (at, &byte) in chunk.iter().enumerate() {
            let Some(&class) = self.classes.get(usize::from(byte)) else {
                pieces.back_to(before);
                return false;
            };
            match class {
                Class::Word => {
                    word.push(if self.lowercase { byte.to_ascii_lowercase() } else { byte });
                    pieces.letter(at);
                }
                Class::Punctuation => {
                    if self.added_start[usize::from(byte)] && self.added.iter().any(|t| chunk[at..].starts_with(t)) {
                        pieces.back_to(before);
                        return false;
                    }
                    self.word(word, pieces);
                    word.push(byte);
                    pieces.letter(at);
                    self.word(word, pieces);
                }
                Class::Dropped => {}
            }
        }
        self.word(word, pieces);
        true
    }

    /// Greedy longest match from the left; one unknown token where some stretch has no piece.
    /// The word is empty afterwards.
    fn word(&self, word: &mut Vec<u8>, found: &mut impl Sink) {
        if !word.is_empty() {
            self.match_pieces(word, found);
            word.clear();
        }
        found.end_of_word();
    }

    fn match_pieces(&self, word: &mut Vec<u8>, found: &mut impl Sink) {
        let length = word.len();
        if length > self.max_word {
            found.piece(self.unknown, 0);
            return;
        }
        // Room behind the word, so that sixteen bytes can be read from any of its positions.
        word.resize(length + PACKED, 0);
        let before = found.taken();
        let mut start = 0;
        while start < length {
            let pieces = if start == 0 { &self.initial } else { &self.continuing };
            let Some((id, matched)) = pieces.longest(&word[start..], length - start) else {
                found.back_to(before);
                found.piece(self.unknown, 0);
                return;
            };
            found.piece(id, start);
            start += matched;
        }
    }
}

/// White space that separates chunks whatever surrounds it. Only what is both ASCII and kept by the normaliser's cleaning; other
/// white space stays inside a chunk and is the library's business.
pub(super) fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Pieces by content: short ones packed into one integer, zero-padded, so that a look-up follows no pointer.
#[derive(Debug, Default)]
struct Pieces {
    short: HashMap<u128, u32, BuildHasherDefault<FoldHasher>>,
    long: HashMap<Box<[u8]>, u32>,
    longest: usize,
}

impl Pieces {
    fn insert(&mut self, piece: &[u8], id: u32) {
        self.longest = self.longest.max(piece.len());
        if piece.len() <= PACKED {
            let mut packed = [0; PACKED];
            packed[..piece.len()].copy_from_slice(piece);
            self.short.insert(u128::from_le_bytes(packed), id);
        } else {
            self.long.insert(piece.into(), id);
        }
    }

    /// The longest piece that `text[..length]` starts with. `text` holds at least `PACKED` bytes more than `length`.
    fn longest(&self, text: &[u8], length: usize) -> Option<(u32, usize)> {
        let mut size = length.min(self.longest);
        while size > PACKED {
            if let Some(&id) = self.long.get(&text[..size]) {
                return Some((id, size));
            }
            size -= 1;
        }
        let mut packed = u128::from_le_bytes(*text.first_chunk()?);
        while size > 0 {
            packed &= u128::MAX >> (8 * (PACKED - size));
            if let Some(&id) = self.short.get(&packed) {
                return Some((id, size));
            }
            size -= 1;
        }
        None
    }
}

/// A multiply-and-fold hash of one integer. The table's keys are the vocabulary, so nobody can choose them to collide.
#[derive(Debug, Default)]
struct FoldHasher(u64);

impl Hasher for FoldHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u128(u128::from(byte) ^ u128::from(self.0));
        }
    }

    fn write_u128(&mut self, value: u128) {
        let low = value as u64 ^ 0x9e37_79b9_7f4a_7c15;
        let high = (value >> 64) as u64 ^ 0xd1b5_4a32_d192_ed03;
        let product = u128::from(low) * u128::from(high);
        self.0 = (product as u64 ^ (product >> 64) as u64).wrapping_mul(0xff51_afd7_ed55_8ccd);
    }
}
