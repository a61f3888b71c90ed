//! The k-th highest weight of a table: in go the weights, streamed; out comes one of them, exactly.
//!
//! Two passes over 32-bit keys whose order is that of the floats. The first counts rows by the upper 16 bits and finds the 65,536th part
//! of the number line in which the k-th weight is; the second counts the rows of that part by their lower 16 bits, reading no more of the table than
//! what may be in it. Memory: 2 × 65,536 counters, whatever the rows.

/// Counters of a pass: one for each value of 16 bits.
const BUCKETS: usize = 1 << 16;

/// Rows counted by 16 bits of their key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counts(Vec<u64>);

impl Counts {
    pub(super) fn new() -> Self {
        Self(vec![0; BUCKETS])
    }

    /// Counts by the upper half of the key.
    pub(super) fn add_coarse(&mut self, weight: f32) {
        self.add(key(weight) >> 16);
    }

    /// Counts by the lower half of the key, if the upper is that of the part.
    pub(super) fn add_fine(&mut self, part: Part, weight: f32) {
        let key = key(weight);
        if key >> 16 == part.0 {
            self.add(key & 0xffff);
        }
    }

    fn add(&mut self, bucket: u32) {
        if let Some(count) = self.0.get_mut(bucket as usize) {
            *count += 1;
        }
    }

    /// The bucket of the k-th highest, and its place among that bucket's own rows; `None` if there are fewer than k rows or k is 0.
    fn find(&self, k: u64) -> Option<(u32, u64)> {
        let mut left = k.checked_sub(1)?;
        for (bucket, &count) in self.0.iter().enumerate().rev() {
            if left < count {
                return Some((u32::try_from(bucket).ok()?, left + 1));
            }
            left -= count;
        }
        None
    }

    /// From coarse counts: the part that holds the k-th highest weight (k from 1), and its place in that part.
    pub(super) fn part_of(&self, k: u64) -> Option<(Part, u64)> {
        self.find(k).map(|(bucket, place)| (Part(bucket), place))
    }

    /// From the fine counts of a part: the weight at a place in it.
    pub(super) fn weight_at(&self, part: Part, place: u64) -> Option<f32> {
        self.find(place).map(|(low, _)| weight(part.0 << 16 | low))
    }
}

/// The weights whose keys have one upper half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part(u32);

impl Part {
    /// The lowest and the highest of them.
    pub(super) fn bounds(self) -> (f32, f32) {
        (weight(self.0 << 16), weight(self.0 << 16 | 0xffff))
    }
}

/// Bits in the order of the floats: negative ones are turned over.
fn key(weight: f32) -> u32 {
    let bits = weight.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn weight(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// Of `rows` rows the share `keep` as a whole number, rounded down. A product that misses a whole number by the rounding of the product
/// alone is that number: 0.29 of 100 rows are 29.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "0 ≤ product ≤ rows < 2^53")]
pub(super) fn kept_rows(keep: f64, rows: u64) -> u64 {
    let product = keep * rows as f64;
    let whole = product.round();
    let kept = if (product - whole).abs() <= 4.0 * f64::EPSILON * whole { whole } else { product.floor() };
    (kept as u64).min(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(weights: &[f32], k: u64) -> Option<f32> {
        let mut coarse = Counts::new();
        weights.iter().for_each(|w| coarse.add_coarse(*w));
        let (part, place) = coarse.part_of(k)?;
        let (low, high) = part.bounds();
        let mut fine = Counts::new();
        // As a scan would: what is certainly outside is not looked at.
        weights.iter().filter(|w| **w >= low && **w <= high).for_each(|w| fine.add_fine(part, *w));
        fine.weight_at(part, place)
    }

    proptest! {
        /// Against sorting.
        #[test]
        fn the_kth_highest_is_that_of_sorting(
            weights in prop::collection::vec(prop_oneof![0f32..4.0, Just(1.0f32), 0.999f32..1.001, Just(0.0f32), Just(f32::MAX), 0f32..1e-38], 1..300),
            place in 0.0f64..1.0,
        ) {
            let mut sorted = weights.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let k = (place * weights.len() as f64) as usize;
            prop_assert_eq!(select(&weights, k as u64 + 1).map(f32::to_bits), Some(sorted[k].to_bits()));
        }

        #[test]
        fn keys_keep_the_order(a in any::<f32>(), b in any::<f32>()) {
            prop_assert_eq!(key(a).cmp(&key(b)), a.total_cmp(&b));
            prop_assert_eq!(weight(key(a)).to_bits(), a.to_bits());
        }

        #[test]
        fn a_share_in_hundredths_is_exact(percent in 0u64..=100, rows in 0u64..10_000_000_000) {
            prop_assert_eq!(kept_rows(percent as f64 / 100.0, rows), rows * percent / 100);
        }
    }

    #[test]
    fn none_of_nothing() {
        assert_eq!(select(&[], 1), None);
        assert_eq!(select(&[1.0], 0), None);
        assert_eq!(select(&[1.0], 2), None);
    }
}
