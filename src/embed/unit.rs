//! Vectors in, vectors of unit length out. Shared by every source of vectors, so that "unit" means one thing.

/// Scales `vector` to unit length, or leaves it where its length is zero. Returns false where the length is not finite.
///
/// The length is summed in f64 in a fixed order: the result does not depend on the machine's vector width.
pub(super) fn normalise(vector: &mut [f32]) -> bool {
    let norm = squared_norm(vector).sqrt();
    if norm > 0.0 && norm.is_finite() {
        let scale = 1.0 / norm;
        for x in vector {
            *x = (f64::from(*x) * scale) as f32;
        }
        return true;
    }
    norm == 0.0
}

/// The sum of squares, in eight interleaved f64 sums added in order.
pub(super) fn squared_norm(vector: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    let chunks = vector.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(x) * f64::from(x);
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_or_zero() {
        let mut v = [3.0, 0.0, 4.0];
        assert!(normalise(&mut v));
        assert_eq!(v, [0.6, 0.0, 0.8]);
        let mut zero = [0.0; 3];
        assert!(normalise(&mut zero));
        assert_eq!(zero, [0.0; 3]);
        assert!(!normalise(&mut [f32::NAN, 1.0]));
        assert!(!normalise(&mut [f32::INFINITY, 1.0]));
    }

    #[test]
    fn neither_huge_nor_tiny_values_lose_the_direction() {
        for scale in [1e-30_f32, 1e30] {
            let mut v = [3.0 * scale, 4.0 * scale];
            assert!(normalise(&mut v));
            assert!((v[0] - 0.6).abs() < 1e-6 && (v[1] - 0.8).abs() < 1e-6);
        }
    }
}
