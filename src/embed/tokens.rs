//! A tokenizer.json and texts in, token ids out: always the ids of the `tokenizers` library, without special tokens. Or, for a
//! text that is to be cut, where each of its tokens begins.
//!
//! BERT-style WordPiece tokenizers take a fast path for ASCII (`wordpiece`). Their pipeline treats each stretch between ASCII
//! white space on its own, so a text is cut there, and only stretches with other characters go to the library, through a
//! small cache, because such stretches repeat (`don’t`, `café`). Other tokenizers go to the library as a whole.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokenizers::Tokenizer;

use super::folder::model_error;
use super::window::TokenSpan;
use super::wordpiece::{Pipeline, Sink, WordPiece, is_separator};
use crate::error::Result;

/// Longest stretch kept in a cache, in bytes, and the number of stretches it holds: at most about 2 MB a cache, and two of them a worker.
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
    /// Caches that no worker holds now. A lock is taken once a worker, not once a text.
    idle: Mutex<Vec<Scratch>>,
}

/// What is reused from text to text.
#[derive(Debug, Default)]
struct Scratch {
    word: Vec<u8>,
    stretches: HashMap<Box<str>, Box<[u32]>>,
    spans: HashMap<Box<str>, Box<[TokenSpan]>>,
}

/// Tokenises text after text, in one thread. Its cache comes from the tokenizer and goes back when the worker is dropped.
pub(super) struct Worker<'a> {
    tokens: &'a Tokens,
    scratch: Scratch,
    ids: Vec<u32>,
}

/// Turns the pieces of a stretch into places in the text.
#[derive(Debug, Default)]
struct SpanSink {
    spans: Vec<TokenSpan>,
    /// Where the stretch begins.
    stretch: usize,
    /// Where in the stretch the bytes of the word under way stand: the tokenizer may have dropped bytes in between.
    letters: Vec<usize>,
}

impl Sink for SpanSink {
    fn taken(&self) -> usize {
        self.spans.len()
    }

    fn back_to(&mut self, taken: usize) {
        self.spans.truncate(taken);
    }

    fn letter(&mut self, place: usize) {
        self.letters.push(place);
    }

    fn piece(&mut self, _id: u32, byte: usize) {
        let place = self.letters.get(byte).copied().unwrap_or_default();
        self.spans.push(TokenSpan { start: self.stretch + place, word: byte == 0 });
    }

    fn end_of_word(&mut self) {
        self.letters.clear();
    }
}

impl Worker<'_> {
    /// The text's ids, at most the first `limit` of them.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) where the library refuses the text.
    pub(super) fn ids(&mut self, text: &str, limit: usize) -> Result<&[u32]> {
        self.tokens.ids_into(text, limit, &mut self.scratch, &mut self.ids)?;
        Ok(&self.ids)
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.tokens.idle().push(std::mem::take(&mut self.scratch));
    }
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
        Ok(Self { location: location.to_owned(), library, fast, unknown, size, idle: Mutex::default() })
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

    /// A worker for one thread, with a cache another has filled where one is free.
    pub(super) fn worker(&self) -> Worker<'_> {
        let scratch = self.idle().pop().unwrap_or_default();
        Worker { tokens: self, scratch, ids: Vec::new() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Scratch>> {
        // A cache holds the library's answers only, so one that a panic left behind is as good as any.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where each token of the whole text begins, in order: as many as [`Worker::ids`] gives without a limit.
    ///
    /// # Errors
    /// [`Error::Model`](crate::error::Error::Model) where the library refuses the text.
    pub(super) fn spans(&self, text: &str) -> Result<Vec<TokenSpan>> {
        let mut worker = self.worker();
        self.spans_with(text, &mut worker.scratch)
    }

    fn spans_with(&self, text: &str, scratch: &mut Scratch) -> Result<Vec<TokenSpan>> {
        let mut found = SpanSink::default();
        let Some(fast) = &self.fast else {
            self.library_spans(text, 0, &mut found.spans)?;
            return Ok(found.spans);
        };
        for stretch in text.split(|c: char| c.is_ascii() && is_separator(c as u8)) {
            if !fast.chunk(stretch.as_bytes(), &mut scratch.word, &mut found) {
                self.cached_spans(stretch, found.stretch, &mut scratch.spans, &mut found.spans)?;
            }
            // One separator, which is ASCII, stands between two stretches.
            found.stretch += stretch.len() + 1;
        }
        Ok(found.spans)
    }

    fn cached_spans(
        &self,
        stretch: &str,
        at: usize,
        cache: &mut HashMap<Box<str>, Box<[TokenSpan]>>,
        spans: &mut Vec<TokenSpan>,
    ) -> Result<()> {
        if stretch.len() > CACHED_BYTES {
            return self.library_spans(stretch, at, spans);
        }
        let moved = |span: &TokenSpan| TokenSpan { start: at + span.start, ..*span };
        if let Some(known) = cache.get(stretch) {
            spans.extend(known.iter().map(moved));
            return Ok(());
        }
        let mut own = Vec::new();
        self.library_spans(stretch, 0, &mut own)?;
        spans.extend(own.iter().map(moved));
        if cache.len() >= CACHED_STRETCHES {
            cache.clear();
        }
        cache.insert(stretch.into(), own.into());
        Ok(())
    }

    /// The library's tokens of `text`, which begins at byte `at` of what is being read, appended.
    fn library_spans(&self, text: &str, at: usize, spans: &mut Vec<TokenSpan>) -> Result<()> {
        let encoding = self.library.encode(text, false).map_err(|e| self.refused(e))?;
        let (mut last_word, mut last_start) = (None, 0);
        for (&(start, _), &word) in encoding.get_offsets().iter().zip(encoding.get_word_ids()) {
            // A normaliser may exchange characters; what is cut needs starts in order, on whole characters.
            let mut start = start.clamp(last_start, text.len());
            while !text.is_char_boundary(start) {
                start -= 1;
            }
            spans.push(TokenSpan { start: at + start, word: word.is_none() || word != last_word });
            (last_word, last_start) = (word, start);
        }
        Ok(())
    }

    /// Replaces `ids` by the text's ids, at most the first `limit` of them.
    fn ids_into(&self, text: &str, limit: usize, scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<()> {
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
    fn library_ids(&self, text: &str, limit: usize, ids: &mut Vec<u32>) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUILTIN: &[u8] = include_bytes!("builtin/tokenizer.json");

    fn builtin() -> &'static Tokens {
        static TOKENS: std::sync::LazyLock<Tokens> =
            std::sync::LazyLock::new(|| Tokens::load("builtin", "tokenizer.json", BUILTIN).unwrap());
        &TOKENS
    }

    /// The same twice through one scratch, so that the cache is asked as well as filled.
    #[track_caller]
    fn same_as_the_library(text: &str, scratch: &mut Scratch) {
        let mut spans = Vec::new();
        builtin().library_spans(text, 0, &mut spans).unwrap();
        for _ in 0..2 {
            assert_eq!(builtin().spans_with(text, scratch).unwrap(), spans, "{text:?}");
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        builtin().library_ids(text, usize::MAX, &mut theirs).unwrap();
        assert_eq!(spans.len(), theirs.len(), "{text:?}");
        for _ in 0..2 {
            builtin().ids_into(text, usize::MAX, scratch, &mut ours).unwrap();
            assert_eq!(ours, theirs, "{text:?}");
        }
        for limit in [0, 1, theirs.len() / 2] {
            builtin().ids_into(text, limit, scratch, &mut ours).unwrap();
            assert_eq!(ours, theirs[..limit.min(theirs.len())], "{text:?}, limit {limit}");
        }
    }

    #[test]
    fn the_builtin_takes_the_fast_path() {
        assert!(builtin().fast.is_some());
        assert_eq!((builtin().len(), builtin().unknown()), (30522, Some(100)));
        assert_eq!(builtin().specials().unwrap(), (vec![101], vec![102]));
        assert_eq!(builtin().median_characters(), 6);
    }

    #[test]
    fn every_ascii_character_alone_between_letters_and_doubled() {
        let mut scratch = Scratch::default();
        for c in (0..128_u8).map(char::from) {
            for text in [c.to_string(), format!("ab{c}cd"), format!("a {c} b"), format!("{c}{c}x{c}"), format!("é{c}Über{c}")] {
                same_as_the_library(&text, &mut scratch);
            }
        }
    }

    #[test]
    fn every_piece_of_the_vocabulary_and_pairs_of_them() {
        let mut scratch = Scratch::default();
        let vocabulary = builtin().library.get_vocab(true);
        let mut pieces: Vec<&str> = vocabulary.keys().map(String::as_str).collect();
        pieces.sort_unstable();
        for pair in pieces.chunks(7) {
            same_as_the_library(&pair.join(" "), &mut scratch);
            same_as_the_library(&pair.concat().replace("##", ""), &mut scratch);
            same_as_the_library(&pair.concat().to_uppercase(), &mut scratch);
        }
    }

    #[test]
    fn awkward_texts() {
        let mut scratch = Scratch::default();
        let long = ["a".repeat(100), "a".repeat(101), "1".repeat(5000), "x".repeat(99) + "\u{7f}y", "é".repeat(200)];
        for text in [
            "",
            " ",
            "\u{b}\u{c}\u{85}\u{a0}\u{2003}",
            "[CLS]",
            "a[MASK]b [mask] [ MASK ] [MASK",
            "[PAD][SEP]. [UNK]",
            "é[SEP]ü",
            "e\u{301} \u{301}e a\u{300}\u{301}b",
            "中文 and 文字",
            "don’t “quote”—dash…",
            "İI ΣΑΣ ß ﬁ",
            "\u{feff}bom\u{200b}zero\u{ad}soft",
            "\u{fffd}\u{0}",
            "👩‍👩‍👧 🇫🇷",
        ]
        .into_iter()
        .chain(long.iter().map(String::as_str))
        {
            same_as_the_library(text, &mut scratch);
        }
    }

    #[test]
    fn the_golden_texts() {
        let texts: Vec<String> = serde_json::from_str(include_str!("../../fixtures/embed/texts.json")).unwrap();
        let mut scratch = Scratch::default();
        texts.iter().for_each(|text| same_as_the_library(text, &mut scratch));
    }

    #[test]
    fn spans_of_other_tokenizers_are_the_librarys() {
        let texts: Vec<String> = serde_json::from_str(include_str!("../../fixtures/embed/texts.json")).unwrap();
        let long = texts.join(" ");
        for json in [
            &include_bytes!("../../fixtures/embed/tiny_bert/tokenizer.json")[..],
            include_bytes!("../../fixtures/embed/tiny_distilbert/tokenizer.json"),
            include_bytes!("../../fixtures/embed/tiny_roberta/tokenizer.json"),
            include_bytes!("../../fixtures/embed/tiny_static/tokenizer.json"),
        ] {
            let tokens = Tokens::load("fixture", "tokenizer.json", json).unwrap();
            for text in texts.iter().chain([&long]) {
                let spans = tokens.spans(text).unwrap();
                let (mut expected, mut ids) = (vec![], vec![]);
                tokens.library_spans(text, 0, &mut expected).unwrap();
                tokens.library_ids(text, usize::MAX, &mut ids).unwrap();
                assert_eq!(spans, expected, "{text:?}");
                assert_eq!(spans.len(), ids.len(), "{text:?}");
                assert!(spans.iter().all(|span| text.is_char_boundary(span.start)) && spans.is_sorted_by_key(|span| span.start));
                // A word that starts in the text starts in the tokens; byte-level tokens have the space before them.
                for (at, word) in text.match_indices(" the ").map(|(at, word)| (at + 1, word)) {
                    let known = spans.iter().any(|span| span.word && (span.start == at || span.start + 1 == at));
                    assert!(known, "{word:?} at {at} of {text:?}");
                }
            }
        }
    }

    #[test]
    fn the_cache_stays_bounded() {
        let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
        for i in 0..2 * CACHED_STRETCHES {
            builtin().ids_into(&format!("é{i}"), usize::MAX, &mut scratch, &mut ids).unwrap();
            builtin().spans_with(&format!("é{i}"), &mut scratch).unwrap();
            assert!(scratch.stretches.len().max(scratch.spans.len()) <= CACHED_STRETCHES);
        }
        builtin().ids_into(&"é".repeat(CACHED_BYTES), usize::MAX, &mut scratch, &mut ids).unwrap();
        assert!(scratch.stretches.keys().all(|stretch| stretch.len() <= CACHED_BYTES));
    }

    #[test]
    fn pipelines_that_could_differ_go_to_the_library() {
        let json = std::str::from_utf8(BUILTIN).unwrap();
        for (from, to) in [
            (r#""clean_text":true"#, r#""clean_text":false"#),
            (r#"{"type":"BertPreTokenizer"}"#, r#"{"type":"Whitespace"}"#),
            (r#""normalized":false,"special":true"#, r#""normalized":true,"special":true"#),
            (r#""content":"[MASK]""#, r#""content":"mask it""#),
        ] {
            assert!(json.contains(from), "{from}");
            let other = Tokens::load("other", "tokenizer.json", json.replacen(from, to, 1).as_bytes()).unwrap();
            assert!(other.fast.is_none(), "{to}");
        }
        let cased = json.replace(r#""lowercase":true"#, r#""lowercase":false"#);
        let cased = Tokens::load("cased", "tokenizer.json", cased.as_bytes()).unwrap();
        assert!(cased.fast.is_some());
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        cased.ids_into("Upper lower CAFÉ", usize::MAX, &mut Scratch::default(), &mut ours).unwrap();
        cased.library_ids("Upper lower CAFÉ", usize::MAX, &mut theirs).unwrap();
        assert_eq!(ours, theirs);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn random_ascii(text in "[\\x00-\\x7f]{0,80}") {
            same_as_the_library(&text, &mut Scratch::default());
        }

        #[test]
        fn random_words(text in "([a-zA-Z]{1,12}[ ,.'\\-\n]{1,2}){0,12}") {
            same_as_the_library(&text, &mut Scratch::default());
        }

        #[test]
        fn random_unicode(text in "(\\PC|[a-z ]|[\u{80}-\u{3ff}]|[\u{300}-\u{36f}]|[\u{2000}-\u{206f}]|[\u{4e00}-\u{4e20}]| |\\[MASK\\]|\\[SEP){0,40}") {
            same_as_the_library(&text, &mut Scratch::default());
        }

        #[test]
        fn any_string(text in any::<String>()) {
            same_as_the_library(&text, &mut Scratch::default());
        }
    }
}
