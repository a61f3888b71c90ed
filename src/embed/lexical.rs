//! Token ids in, a vector of which tokens a text has out: the part of a static vector that knows words and not their meaning.
//!
//! Each token has a code of ±1 in every dimension, and a text's vector is the sum of its tokens' codes. The inner product of two such
//! vectors is that of the texts' token counts, up to noise of `1/√dims` (Achlioptas 2003, *Database-friendly random projections*). A table
//! distilled from a transformer sends words of like meaning to like places, and with them a refusal and what it refuses; the words
//! tell them apart.
//!
//! Codes come from the token's id alone (SplitMix64's output function, Steele, Lea and Flood 2014), so no file holds them and every machine
//! has the same. Memory: one byte a token and dimension.

use super::static_table::add_int8;

/// Most dimensions a configuration may ask for: noise falls with the root, memory and time grow in proportion.
pub(super) const MAX_LEXICAL_DIMS: usize = 4096;

/// The codes of a vocabulary.
#[derive(Debug)]
pub(super) struct LexicalCodes {
    signs: Vec<i8>,
    dims: usize,
}

impl LexicalCodes {
    /// The codes of tokens `0..vocabulary`, `dims` signs each.
    pub(super) fn new(vocabulary: usize, dims: usize) -> Self {
        let mut signs = Vec::with_capacity(vocabulary * dims);
        for token in 0..vocabulary as u64 {
            for block in 0..dims.div_ceil(64) as u64 {
                let bits = mix((token << 8 | block).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let end = dims.min((block as usize + 1) * 64) - block as usize * 64;
                signs.extend((0..end).map(|bit| if bits >> bit & 1 == 1 { 1 } else { -1 }));
            }
        }
        Self { signs, dims }
    }

    pub(super) fn dims(&self) -> usize {
        self.dims
    }

    /// `sum += code of the token`. Sums of fewer than 2²⁴ tokens are exact.
    pub(super) fn add(&self, sum: &mut [f32], token: usize) {
        if let Some(code) = self.signs.get(token * self.dims..(token + 1) * self.dims) {
            add_int8(sum, code, 1.0);
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_products_are_those_of_token_counts() {
        let codes = LexicalCodes::new(1000, 512);
        let vector = |tokens: &[usize]| {
            let mut sum = vec![0.0; 512];
            tokens.iter().for_each(|token| codes.add(&mut sum, *token));
            sum
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>() / 512.0;
        let (a, b) = (vector(&[1, 2, 3, 4, 4, 500]), vector(&[4, 500, 7, 8, 999]));
        // Counts: 8 with itself, 2·1 + 1·1 with the other; noise of 512 signs is 1/√512 a pair of tokens.
        assert!((dot(&a, &a) - 8.0).abs() < 1.5 && (dot(&a, &b) - 3.0).abs() < 1.0, "{} {}", dot(&a, &a), dot(&a, &b));
    }

    #[test]
    fn codes_are_balanced_distinct_and_known() {
        for dims in [1, 63, 64, 65, 128] {
            let codes = LexicalCodes::new(300, dims);
            assert_eq!((codes.signs.len(), codes.dims()), (300 * dims, dims));
        }
        let codes = LexicalCodes::new(300, 128);
        let ones = codes.signs.iter().filter(|s| **s == 1).count() as f64 / codes.signs.len() as f64;
        assert!((ones - 0.5).abs() < 0.01, "{ones}");
        let mut lines: Vec<&[i8]> = codes.signs.chunks(128).collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 300);
        // The first bits of token 1, so that no change of the code goes unnoticed: vectors of stored models depend on them.
        assert_eq!(codes.signs[128..136], FIRST_OF_TOKEN_1);
    }

    const FIRST_OF_TOKEN_1: [i8; 8] = [-1, 1, 1, 1, 1, -1, -1, 1];
}
