//! Which rows the potentials are fitted on: a uniform sample over all shards, drawn without reading them.
//!
//! Every row has a pseudo-random rank that depends on the seed, the shard's name and the row's position alone, and the rows of the
//! lowest ranks are taken. That is reservoir sampling by priority: it needs one pass, the order of the shards does not matter,
//! and a row that is in the sample of a corpus stays in it when shards with higher ranks are added.

use std::collections::BinaryHeap;

/// A shard as the sample sees it.
#[derive(Debug, Clone, Copy)]
pub struct SampledShard<'a> {
    /// The shard's name.
    pub name: &'a str,
    /// Its rows.
    pub rows: u64,
}

/// The sampled rows of each shard, sorted; `None` where all are taken. Memory: 24 bytes a sampled row.
pub fn draw(shards: &[SampledShard<'_>], sample_rows: usize, seed: u64) -> Vec<Option<Vec<u64>>> {
    let total: u64 = shards.iter().map(|shard| shard.rows).sum();
    if total <= sample_rows as u64 {
        return vec![None; shards.len()];
    }
    let mut lowest: BinaryHeap<(u64, usize, u64)> = BinaryHeap::with_capacity(sample_rows + 1);
    for (index, shard) in shards.iter().enumerate() {
        let key = shard_key(shard.name, seed);
        for row in 0..shard.rows {
            let entry = (rank(key, row), index, row);
            if lowest.len() < sample_rows {
                lowest.push(entry);
            } else if lowest.peek().is_some_and(|highest| entry < *highest) {
                lowest.pop();
                lowest.push(entry);
            }
        }
    }
    let mut rows: Vec<Vec<u64>> = vec![Vec::new(); shards.len()];
    for (_, index, row) in lowest {
        rows[index].push(row);
    }
    rows.into_iter()
        .map(|mut rows| {
            rows.sort_unstable();
            Some(rows)
        })
        .collect()
}

/// What every rank of a shard's rows depends on beside the row.
pub(super) fn shard_key(name: &str, seed: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// SplitMix64's output function (Steele, Lea, Flood 2014) over a Weyl sequence: cheap enough for every row of a huge corpus.
pub(super) fn rank(key: u64, row: u64) -> u64 {
    let mut z = key.wrapping_add(row.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn taken<'a>(shards: &[SampledShard<'a>], k: usize, seed: u64) -> HashMap<&'a str, Vec<u64>> {
        let drawn = draw(shards, k, seed);
        shards.iter().zip(drawn).map(|(shard, rows)| (shard.name, rows.unwrap_or_else(|| (0..shard.rows).collect()))).collect()
    }

    #[test]
    fn the_sample_is_uniform_and_knows_no_order() {
        let shards = [SampledShard { name: "a", rows: 1000 }, SampledShard { name: "b", rows: 9000 }, SampledShard { name: "c", rows: 0 }];
        let mut reversed = shards;
        reversed.reverse();
        let sample = taken(&shards, 1000, 7);
        assert_eq!(sample, taken(&reversed, 1000, 7));
        assert_ne!(sample, taken(&shards, 1000, 8));
        assert_eq!(sample.values().map(Vec::len).sum::<usize>(), 1000);
        // 100 rows of `a` are expected; five standard deviations of the hypergeometric draw are 45.
        assert!((55..=145).contains(&sample["a"].len()), "{}", sample["a"].len());
        let below_half = sample["b"].iter().filter(|&&row| row < 4500).count();
        assert!((375..=525).contains(&below_half), "{below_half}");
    }

    #[test]
    fn a_small_corpus_is_taken_whole() {
        assert_eq!(draw(&[SampledShard { name: "a", rows: 10 }], 10, 0), [None]);
    }
}
