//! Where the tokens of a text begin in, the windows that it is read in out.
//!
//! A window holds at most [`Windows::window`] tokens of the encoder's own tokenizer and is embedded as a text of its own, so a
//! passage weighs as much in its window however long the text around it is. A window begins and ends where a word does, because
//! the pieces of a word that is cut are not the pieces of the whole word; so for a tokenizer that splits at white space its
//! tokens are those that the whole text has there. A word longer than the stride (a hash, text without spaces) is cut between its
//! tokens.
//!
//! The first window begins with the text, each next one at the last word that begins at most [`Windows::stride`] tokens later,
//! and the last one is as long as the others and ends with the text: a short rest read alone would be judged by a few words. No
//! byte is left out. A text of no more tokens than a window is one window, and is read as if there were none.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Fewest tokens of a window. Fewer say next to nothing about what a passage is about.
pub const MIN_WINDOW: usize = 8;

/// What becomes of the windows of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The text's vector is the mean of its windows' unit vectors, scaled to unit length: a whole document where the model reads
    /// only so many tokens.
    #[default]
    Mean,
    /// The row is read in each of its windows in turn, and gets the weight of the most harmful one.
    Worst,
}

/// How texts are read in windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows {
    /// Tokens of a window, at least [`MIN_WINDOW`]; of the encoder's tokenizer, special tokens not counted.
    pub window: usize,
    /// Tokens from the beginning of one window to the next, in `1..=window`. At half a window, the default of a job, each passage of
    /// up to half a window is whole in one of them, and every token is read twice.
    pub stride: usize,
    /// What becomes of them.
    pub pool: Pool,
}

/// Where a token of a text begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSpan {
    /// Byte offset, on a character boundary and not below the one before. Tokens that share a character share its offset.
    pub start: usize,
    /// Whether it is the first token of a word, as the tokenizer splits words.
    pub word: bool,
}

impl Windows {
    /// The windows of a text of `length` bytes whose tokens begin at `spans`: ranges of bytes on character boundaries, in order,
    /// the first from 0 and the last to `length`, each beginning no later than the one before ends. At least one; at most
    /// [`window`](Self::window) tokens each, save where a single character has more. A window of 0 tokens counts as one of 1, a stride
    /// outside its range as the nearest in it.
    pub fn cut(&self, spans: &[TokenSpan], length: usize) -> Vec<Range<usize>> {
        let tokens = spans.len();
        let window = self.window.max(1);
        let stride = self.stride.clamp(1, window);
        if tokens <= window {
            return std::iter::once(0..length).collect();
        }
        let borders = borders(spans, stride);
        // The last border up to `limit`, or the next one where a character has so many tokens that there is none.
        let after = |start: usize, limit: usize| {
            let next = borders.partition_point(|&border| border <= start);
            let last = borders.partition_point(|&border| border <= limit);
            borders.get(next.max(last.saturating_sub(1))).copied().unwrap_or(tokens)
        };
        let byte = |token: usize| match token {
            0 => 0,
            token => spans.get(token).map_or(length, |span| span.start),
        };
        let mut windows = Vec::with_capacity(tokens / stride + 1);
        let mut start = 0;
        while tokens - start > window {
            let end = after(start, start + window);
            windows.push(byte(start)..byte(end));
            if end == tokens {
                return windows;
            }
            start = after(start, start + stride);
        }
        let last = borders.partition_point(|&border| border < tokens - window);
        windows.push(byte(borders.get(last).map_or(start, |&border| border.min(start)))..length);
        windows
    }
}

/// The tokens before which a text may be cut, and the number of its tokens: the first of each word, and every token of a word
/// longer than `stride` that begins at a character of its own.
fn borders(spans: &[TokenSpan], stride: usize) -> Vec<usize> {
    let mut borders = vec![0];
    let mut word = 0;
    while word < spans.len() {
        let end = (word + 1..spans.len()).find(|&token| spans[token].word).unwrap_or(spans.len());
        let inside = if end - word > stride { end } else { word + 1 };
        borders.extend((word.max(1)..inside).filter(|&token| spans[token].start > spans[token - 1].start));
        word = end;
    }
    borders.push(spans.len());
    borders
}

/// The spans of `text` where the tokenizer is given its lower case, which may have another length.
///
/// # Errors
/// What `spans` returns.
pub(super) fn lowered_spans(text: &str, spans: impl FnOnce(&str) -> Result<Vec<TokenSpan>>) -> Result<Vec<TokenSpan>> {
    let lowered = text.to_lowercase();
    let mut found = spans(&lowered)?;
    // A sigma at the end of a word becomes another letter there than alone; both have two bytes.
    let mut characters =
        text.char_indices().map(|(at, c)| (at, c.to_lowercase().map(char::len_utf8).sum::<usize>())).chain([(text.len(), 0)]).peekable();
    let mut end = 0;
    let mut place = 0;
    for span in &mut found {
        while end <= span.start {
            let Some((at, length)) = characters.next() else { break };
            place = at;
            end += length;
        }
        span.start = place;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::embed::builtin;

    /// The definition, word for word and in quadratic time: over token numbers, with every border tried.
    fn naive(spans: &[TokenSpan], length: usize, window: usize, stride: usize) -> Vec<Range<usize>> {
        let n = spans.len();
        let word_of = |t: usize| (0..=t).rev().find(|&w| w == 0 || spans[w].word).unwrap();
        let word_length = |t: usize| (word_of(t) + 1..=n).find(|&e| e == n || spans[e].word).unwrap() - word_of(t);
        let border = |t: usize| t == 0 || t == n || (spans[t].start > spans[t - 1].start && (word_of(t) == t || word_length(t) > stride));
        let reach = |from: usize, most: usize| {
            let within = (from + 1..=n.min(from + most)).rev().find(|&t| border(t));
            within.unwrap_or_else(|| (from + 1..=n).find(|&t| border(t)).unwrap())
        };
        let mut pairs = vec![];
        let mut from = 0;
        loop {
            if n <= from + window {
                let from = (0..=from).find(|&t| border(t) && t + window >= n).unwrap_or(from);
                pairs.push((from, n));
                break;
            }
            let to = reach(from, window);
            pairs.push((from, to));
            if to == n {
                break;
            }
            from = reach(from, stride);
        }
        let begin = |t: usize| if t == 0 { 0 } else { spans[t].start };
        let end = |t: usize| if t == n { length } else { spans[t].start };
        pairs.into_iter().map(|(a, b)| begin(a)..end(b)).collect()
    }

    fn windows(window: usize, stride: usize) -> Windows {
        Windows { window, stride, pool: Pool::Mean }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn as_the_definition_says(
            steps in prop::collection::vec((0_usize..4, prop::bool::weighted(0.6)), 0..60),
            window in 0_usize..12,
            stride in 0_usize..14,
        ) {
            let mut at = 0;
            let spans: Vec<TokenSpan> = steps.iter().map(|&(step, word)| { at += step; TokenSpan { start: at, word } }).collect();
            let cut = windows(window, stride).cut(&spans, at + 2);
            // Fields outside their range are taken for the nearest in it.
            prop_assert_eq!(&cut, &naive(&spans, at + 2, window.max(1), stride.clamp(1, window.max(1))));
            prop_assert_eq!(cut[0].start, 0);
            prop_assert_eq!(cut[cut.len() - 1].end, at + 2);
            for pair in cut.windows(2) {
                prop_assert!(pair[0].start < pair[1].start && pair[1].start <= pair[0].end && pair[0].end <= pair[1].end, "{:?}", pair);
            }
        }

        /// Read again as texts of their own, the windows have the tokens that the text has there, and overlap as asked. No word is longer
        /// than the stride.
        #[test]
        fn of_a_text_in_words(text in "([a-zA-Z]{1,9}[ ,.\n]{1,2}){0,60}", window in 10_usize..24, stride in 9_usize..24) {
            let stride = stride.min(window);
            let encoder = builtin().unwrap();
            let spans = encoder.spans(&text).unwrap();
            let cut = windows(window, stride).cut(&spans, text.len());
            let tokens = |part: &str| encoder.spans(part).unwrap().len();
            let inside = |part: &Range<usize>| spans.iter().filter(|s| part.contains(&s.start)).count();
            for part in &cut {
                prop_assert!(inside(part) <= window);
                prop_assert_eq!(tokens(&text[part.clone()]), inside(part), "{:?}", &text[part.clone()]);
            }
            for pair in cut.windows(2) {
                prop_assert!(inside(&(pair[0].start..pair[1].start)) <= stride);
            }
        }

        #[test]
        fn of_any_text(text in "(\\PC|[a-z ]|[\u{4e00}-\u{4e20}]|é|İ|ﷺ){0,120}", window in 8_usize..20, stride in 1_usize..20) {
            let encoder = builtin().unwrap();
            for spans in [encoder.spans(&text).unwrap(), lowered_spans(&text, |lowered| encoder.spans(lowered)).unwrap()] {
                let cut = windows(window, stride.min(window)).cut(&spans, text.len());
                prop_assert_eq!(&cut, &naive(&spans, text.len(), window, stride.min(window)));
                for part in cut {
                    prop_assert!(text.get(part.clone()).is_some(), "{:?} of {:?}", part, text);
                }
            }
        }
    }

    #[test]
    fn lower_case_of_another_length_keeps_its_places() {
        // İ has two bytes, its lower case three.
        let text = "İİ ab ΑΣ cd";
        let starts = lowered_spans(text, |lowered| {
            Ok(lowered.split(' ').map(|word| TokenSpan { start: word.as_ptr() as usize - lowered.as_ptr() as usize, word: true }).collect())
        });
        let starts: Vec<&str> = starts.unwrap().iter().map(|span| &text[span.start..]).collect();
        assert_eq!(starts, ["İİ ab ΑΣ cd", "ab ΑΣ cd", "ΑΣ cd", "cd"]);
    }

    #[test]
    fn a_long_word_is_cut_between_its_tokens_and_a_short_one_is_not() {
        let encoder = builtin().unwrap();
        let text = format!("{} unbelievably", "7".repeat(90));
        let spans = encoder.spans(&text).unwrap();
        let cut = windows(8, 4).cut(&spans, text.len());
        assert!(cut.len() > 5, "{cut:?}");
        assert!(cut.iter().all(|part| part.start <= 91 || part.start == text.len()), "{cut:?}");
        let nothing = windows(8, 8).cut(&[], 3);
        assert_eq!((nothing.len(), &nothing[0]), (1, &(0..3)));
    }
}
