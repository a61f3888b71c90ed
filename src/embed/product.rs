//! Two matrices in, their product out, on the calling thread: the one place that calls `gemm`.

use crate::error::{Error, Result};

/// What `gemm` multiplies here.
pub(super) trait Float: Copy + 'static {
    const ZERO: Self;
    const ONE: Self;
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub(super) numbers: &'a [T],
    pub(super) offset: usize,
    /// From one row to the next.
    pub(super) row: usize,
    /// From one column to the next.
    pub(super) column: usize,
}

impl<T> Matrix<'_, T> {
    fn covers(&self, rows: usize, columns: usize) -> bool {
        rows > 0 && columns > 0 && self.offset + (rows - 1) * self.row + (columns - 1) * self.column < self.numbers.len()
    }
}

/// `target = left · right`, m × n over k, on the calling thread. `target` is written row by row from (offset, distance of rows).
///
/// Where m and n are at least 2, one of them is above 64 and `right` is stored row by row (`column` is 1), an element's bits depend on its row of `left`, its column
/// of `right` and the processor only: `gemm` then sums over k in an order that depends on k alone. It has other
/// orders for a single row or column, for small products of a row-by-row `left` and a column-by-column `right`, and other blocks of k
/// where both m and n are at most 64.
///
/// # Errors
/// [`Error::Internal`] where a matrix reaches outside its slice.
pub(super) fn product<T: Float>(
    [m, n, k]: [usize; 3],
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    target: &mut [T],
    (offset, row): (usize, usize),
) -> Result<()> {
    let whole = Matrix { numbers: target, offset, row, column: 1 };
    if !left.covers(m, k) || !right.covers(k, n) || !whole.covers(m, n) || row < n {
        return Err(Error::Internal(format!("a product of {m} × {n} over {k} reaches outside its matrices")));
    }
    // SAFETY: the three matrices lie inside their slices (checked above), `target` is borrowed mutably and so overlaps neither
    // of the others, its rows do not overlap (`row >= n`), and the strides are slice offsets, which fit isize.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.as_mut_ptr().add(offset),
            1,
            row as isize,
            false,
            left.numbers.as_ptr().add(left.offset),
            left.column as isize,
            left.row as isize,
            right.numbers.as_ptr().add(right.offset),
            right.column as isize,
            right.row as isize,
            T::ZERO,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_outside_its_matrix_is_refused() {
        let a = [1.0; 6];
        let m = |row, column| Matrix { numbers: &a, offset: 0, row, column };
        let mut out = [0.0; 4];
        assert!(product([2, 2, 3], m(3, 1), m(2, 1), &mut out, (0, 2)).is_ok());
        assert_eq!(out, [3.0; 4]);
        assert!(product([2, 2, 4], m(4, 1), m(2, 1), &mut out, (0, 2)).is_err());
        assert!(product([3, 2, 2], m(2, 1), m(2, 1), &mut out, (0, 2)).is_err());
    }

    #[test]
    fn an_element_does_not_depend_on_the_other_rows() {
        for (n, k) in [(96, 384), (72, 700), (96, 1536), (1152, 384)] {
            let noise = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 / 1000.0 - 1.0;
            let left: Vec<f32> = (0..300 * k).map(noise).collect();
            let right: Vec<f32> = (0..n * k).map(|i| noise(i + 77)).collect();
            let all = |first: usize, m: usize| {
                let mut out = vec![0.0; m * n];
                let left = Matrix { numbers: &left, offset: first * k, row: k, column: 1 };
                let right = Matrix { numbers: &right, offset: 0, row: n, column: 1 };
                product([m, n, k], left, right, &mut out, (0, n)).unwrap();
                out
            };
            let whole = all(0, 300);
            for m in (2..80).step_by(5).chain([3, 4, 127, 128, 129, 256, 257]) {
                for first in [0, 1, 5, 43] {
                    assert_eq!(all(first, m), whole[first * n..(first + m) * n], "{m} rows from {first}");
                }
            }
        }
    }
}
