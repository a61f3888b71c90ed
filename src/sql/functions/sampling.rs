//! Sampling by weight: in go a weight, a seed and a row's place, out come a key to sort by or a number of copies.
//!
//! Both draw one number `u` in (0, 1) from a hash of seed, shard and row. So a row's draw is the same in every query, whatever the
//! threads, the order of rows and the other rows of the table.
//!
//! * `sample_key(weight, seed, shard, row)`: `ln(weight) − ln(−ln u)`. The n rows with the highest keys are a weighted sample of n rows
//!   without replacement (Gumbel's form of Efraimidis and Spirakis, *Weighted random sampling with a reservoir*, 2006): each next
//!   row is drawn from those left with a probability proportional to its weight. Weight 0 gives −∞.
//! * `resample_count(weight, seed, shard, row)`: `⌊weight + u⌋`, a number of copies whose mean over seeds is the weight. One pass, no
//!   sorting; no row has a whole copy more or less than its weight.

use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::common::{Result as DfResult, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

/// Both functions.
pub(in crate::sql) fn functions() -> [ScalarUDF; 2] {
    [Draw::SampleKey, Draw::ResampleCount].map(|draw| ScalarUDF::new_from_impl(Sampling::new(draw)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Draw {
    SampleKey,
    ResampleCount,
}

impl Draw {
    fn name(self) -> &'static str {
        match self {
            Self::SampleKey => "sample_key",
            Self::ResampleCount => "resample_count",
        }
    }

    /// What the two draws of a row are told apart by: a row with a high key must not have more copies for that.
    fn salt(self) -> u64 {
        match self {
            Self::SampleKey => 0x70a5_5c01_e3b7_4f21,
            Self::ResampleCount => 0x1b87_3593_cc9e_2d51,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Sampling {
    draw: Draw,
    signature: Signature,
}

impl Sampling {
    fn new(draw: Draw) -> Self {
        let arguments = vec![DataType::Float64, DataType::Int64, DataType::Utf8, DataType::Int64];
        Self { draw, signature: Signature::exact(arguments, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Sampling {
    fn name(&self) -> &str {
        self.draw.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(match self.draw {
            Draw::SampleKey => DataType::Float64,
            Draw::ResampleCount => DataType::Int64,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [weights, seeds, shards, rows] = &arrays[..] else {
            return exec_err!("{}(weight, seed, shard, row) takes four values", self.name());
        };
        let (weights, seeds, rows) =
            (weights.as_primitive::<Float64Type>(), seeds.as_primitive::<Int64Type>(), rows.as_primitive::<Int64Type>());
        let shards = shards.as_string::<i32>();
        let mut uniform = Uniform::new(self.draw.salt());
        let draws = (0..weights.len()).map(|i| {
            if weights.is_null(i) || seeds.is_null(i) || shards.is_null(i) || rows.is_null(i) {
                return Ok(None);
            }
            let weight = weights.value(i);
            if !(weight >= 0.0 && weight.is_finite()) {
                return exec_err!(
                    "{}: weight {weight} in row {} of {}; a weight is finite and at least 0",
                    self.name(),
                    rows.value(i),
                    shards.value(i)
                );
            }
            Ok(Some((weight, uniform.of(seeds.value(i), shards.value(i), rows.value(i)))))
        });
        let drawn: ArrayRef = match self.draw {
            Draw::SampleKey => {
                Arc::new(draws.map(|d| Ok(d?.map(|(weight, u)| gumbel_key(weight, u)))).collect::<DfResult<Float64Array>>()?)
            }
            Draw::ResampleCount => Arc::new(draws.map(|d| Ok(d?.map(|(weight, u)| copies(weight, u)))).collect::<DfResult<Int64Array>>()?),
        };
        Ok(ColumnarValue::Array(drawn))
    }
}

fn gumbel_key(weight: f64, u: f64) -> f64 {
    weight.ln() - (-u.ln()).ln()
}

#[expect(clippy::cast_possible_truncation, reason = "a number of copies past i64 is i64's largest")]
fn copies(weight: f64, u: f64) -> i64 {
    (weight + u).floor() as i64
}

/// Numbers in (0, 1) from a seed and a row's place, by hashes that are fixed for good: BLAKE3 of the shard's name, then SplitMix64.
struct Uniform {
    salt: u64,
    /// The last shard and its hash: rows come shard by shard.
    shard: Option<(String, u64)>,
}

impl Uniform {
    fn new(salt: u64) -> Self {
        Self { salt, shard: None }
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "52 bits fit an f64; a seed and a row are taken as bits")]
    fn of(&mut self, seed: i64, shard: &str, row: i64) -> f64 {
        let hash = match &self.shard {
            Some((known, hash)) if known == shard => *hash,
            _ => {
                let hash = blake3::hash(shard.as_bytes()).as_bytes().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte));
                self.shard = Some((shard.to_owned(), hash));
                hash
            }
        };
        let bits = mix(mix(mix(seed as u64 ^ self.salt) ^ hash) ^ row as u64);
        // The middles of 2^52 equal parts: neither 0 nor 1.
        ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }
}

/// One step of SplitMix64 (Steele, Lea and Flood, 2014): a bijection whose every output bit depends on every input bit.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pearson's statistic over `bins` equal parts; its mean is `bins − 1` and its standard deviation √(2·(bins − 1)).
    fn chi_square(numbers: impl Iterator<Item = f64>, bins: usize) -> f64 {
        let mut counts = vec![0.0; bins];
        let mut all = 0.0;
        for u in numbers {
            assert!(u > 0.0 && u < 1.0);
            counts[(u * bins as f64) as usize] += 1.0;
            all += 1.0;
        }
        let expected = all / bins as f64;
        counts.iter().map(|c| (c - expected) * (c - expected) / expected).sum()
    }

    #[test]
    fn draws_are_uniform_over_rows_seeds_and_shards() {
        let bins = 256;
        let most = 255.0 + 5.0 * (2.0f64 * 255.0).sqrt();
        for draw in [Draw::SampleKey, Draw::ResampleCount] {
            let mut uniform = Uniform::new(draw.salt());
            assert!(chi_square((0..100_000).map(|row| uniform.of(7, "part-0.parquet", row)), bins) < most);
            assert!(chi_square((0..100_000).map(|seed| uniform.of(seed, "part-0.parquet", 3)), bins) < most);
            assert!(chi_square((0..100_000).map(|n| uniform.of(7, &format!("part-{n}"), 3)), bins) < most);
        }
    }

    #[test]
    fn neighbours_are_not_correlated() {
        let mut uniform = Uniform::new(1);
        let n = 100_000;
        let draws: Vec<f64> = (0..n).map(|row| uniform.of(0, "s", row)).collect();
        let mut other = Uniform::new(2);
        let salted: Vec<f64> = (0..n).map(|row| other.of(0, "s", row)).collect();
        let correlation = |a: &[f64], b: &[f64]| 12.0 * a.iter().zip(b).map(|(a, b)| (a - 0.5) * (b - 0.5)).sum::<f64>() / a.len() as f64;
        let five_sigma = 5.0 / (n as f64).sqrt();
        assert!(correlation(&draws[1..], &draws[..draws.len() - 1]).abs() < five_sigma);
        assert!(correlation(&draws, &salted).abs() < five_sigma);
    }

    #[test]
    fn the_first_of_a_sample_is_drawn_by_weight() {
        let weights = [0.5, 1.0, 2.5, 6.0, 0.0];
        let (seeds, all) = (40_000, 10.0);
        let mut uniform = Uniform::new(Draw::SampleKey.salt());
        let (mut first, mut in_two) = ([0.0; 5], [0.0; 5]);
        for seed in 0..seeds {
            let mut keys: Vec<(f64, usize)> =
                weights.iter().enumerate().map(|(row, w)| (gumbel_key(*w, uniform.of(seed, "s", row as i64)), row)).collect();
            keys.sort_by(|a, b| b.0.total_cmp(&a.0));
            first[keys[0].1] += 1.0;
            keys[..2].iter().for_each(|(_, row)| in_two[*row] += 1.0);
        }
        for row in 0..5 {
            let p = weights[row] / all;
            // Without replacement: the second is drawn from what the first leaves.
            let second: f64 = (0..5).filter(|&o| o != row).map(|o| weights[o] / all * weights[row] / (all - weights[o])).sum();
            for (found, p) in [(first[row], p), (in_two[row], p + second)] {
                let sigma = (seeds as f64 * p * (1.0 - p)).sqrt();
                assert!((found - seeds as f64 * p).abs() <= 5.0 * sigma, "row {row}: {found} of {seeds}, expected {p}");
            }
        }
    }

    #[test]
    fn copies_are_the_weight_on_average_and_never_a_whole_one_off() {
        let mut uniform = Uniform::new(Draw::ResampleCount.salt());
        for weight in [0.0, 0.2, 0.999, 1.0, 2.75] {
            let n = 50_000;
            let counts: Vec<f64> = (0..n).map(|seed| copies(weight, uniform.of(seed, "s", 1)) as f64).collect();
            assert!(counts.iter().all(|c| (c - weight).abs() < 1.0));
            let mean = counts.iter().sum::<f64>() / n as f64;
            assert!((mean - weight).abs() <= 5.0 * 0.5 / (n as f64).sqrt(), "{weight}: {mean}");
        }
    }

    #[test]
    fn a_draw_is_pinned_for_good() {
        let mut uniform = Uniform::new(Draw::SampleKey.salt());
        let found = uniform.of(42, "nested/part-0002.parquet", 17);
        assert_eq!(found, uniform.of(42, "nested/part-0002.parquet", 17));
        assert_ne!(found, uniform.of(43, "nested/part-0002.parquet", 17));
        assert_ne!(found, uniform.of(42, "nested/part-0003.parquet", 17));
        assert_ne!(found, uniform.of(42, "nested/part-0002.parquet", 18));
    }
}
