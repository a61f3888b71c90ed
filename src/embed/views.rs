//! The text columns of a row in, one unit vector a row out.

use std::collections::HashMap;

use ndarray::{Array2, ArrayView1, ArrayViewMut1, s};

use super::{Encoder, unit};
use crate::error::{Error, Result};

/// One vector a row, and whether the row has one.
#[derive(Debug, Clone, PartialEq)]
pub struct RowVectors {
    /// Rows × dimensions. A row is of unit length, or all zero: where [`present`](Self::present) is false, and where its texts have
    /// no token the model knows (or its ready-made vector was zero).
    pub vectors: Array2<f32>,
    /// Whether the row has any text (or vector) at all. Where false, its weight is null.
    pub present: Vec<bool>,
}

/// Embeds each view of every row and joins them: the concatenation of the views' unit vectors, divided by √views, so that
/// the cosine of two rows is the mean of their views' cosines.
///
/// * `views[v][i]` is row i's text in view v. A null view is a zero vector; so is a text without a known token. The row is then
///   scaled back to unit length: the views that are there count in full.
/// * A row where every view is null takes `fallback[i]` in the **last** view (what a model would learn to say). An empty text is not null.
/// * No text and no fallback text: `present` is false and the row is zero.
///
/// Every distinct text is encoded once; no text is copied. Vectors have `views.len() × encoder.dims()` dimensions.
///
/// # Errors
/// What [`Encoder::encode`] returns; [`Error::Internal`] where the columns differ in length or there is no view.
pub fn embed_views(encoder: &dyn Encoder, views: &[Vec<Option<&str>>], fallback: Option<&[Option<&str>]>) -> Result<RowVectors> {
    let RowTexts { texts, places, present } = RowTexts::of(views, fallback)?;
    let dims = encoder.dims();
    let encoded = encoder.encode(&texts)?;
    let mut vectors = Array2::<f32>::zeros((present.len(), dims * views.len()));
    for Place { row, view, text, .. } in places {
        let from: ArrayView1<'_, f32> = encoded.row(text);
        vectors.slice_mut(s![row, view * dims..(view + 1) * dims]).assign(&from);
    }
    vectors.rows_mut().into_iter().try_for_each(join_views)?;
    Ok(RowVectors { vectors, present })
}

/// Scales the concatenation of a row's views to unit length: the division by √views, and where views are missing by the root of
/// those there.
pub(super) fn join_views(mut row: ArrayViewMut1<'_, f32>) -> Result<()> {
    if row.as_slice_mut().is_some_and(unit::normalise) {
        return Ok(());
    }
    Err(Error::Internal("an encoder gave a vector that is not finite".to_owned()))
}

/// The distinct texts of some rows and where each goes: repeated prompts are common, and encoding costs more than finding out.
pub(super) struct RowTexts<'t> {
    /// Every distinct text, in the order of its first row.
    pub(super) texts: Vec<&'t str>,
    /// By row, then by view.
    pub(super) places: Vec<Place>,
    /// Whether a row has any text.
    pub(super) present: Vec<bool>,
}

/// A text in a view of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) view: usize,
    /// The column it comes from: its view, or the number of views for the fallback.
    pub(super) column: usize,
    /// Index of the text.
    pub(super) text: usize,
}

impl<'t> RowTexts<'t> {
    /// # Errors
    /// [`Error::Internal`] where the columns differ in length or there is no view.
    pub(super) fn of(views: &[Vec<Option<&'t str>>], fallback: Option<&[Option<&'t str>]>) -> Result<Self> {
        let Some(rows) = views.first().map(Vec::len) else {
            return Err(Error::Internal("no view to embed".to_owned()));
        };
        let mut lengths = views.iter().map(Vec::len).chain(fallback.map(<[_]>::len));
        if let Some(other) = lengths.find(|&n| n != rows) {
            return Err(Error::Internal(format!("views of {rows} and {other} rows")));
        }
        let last = views.len() - 1;
        let mut known: HashMap<&str, usize> = HashMap::new();
        let mut found = Self { texts: Vec::new(), places: Vec::new(), present: vec![false; rows] };
        for row in 0..rows {
            let mut place = |view: usize, column: usize, text: Option<&'t str>| {
                let Some(text) = text else { return };
                let at = *known.entry(text).or_insert_with(|| {
                    found.texts.push(text);
                    found.texts.len() - 1
                });
                found.places.push(Place { row, view, column, text: at });
                found.present[row] = true;
            };
            for (view, column) in views.iter().enumerate() {
                place(view, view, column[row]);
            }
            if let Some(fallback) = fallback
                && views.iter().all(|column| column[row].is_none())
            {
                place(last, views.len(), fallback[row]);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::TokenSpan;
    use super::*;

    /// Two dimensions: a text's first byte decides its direction; `?` is unknown.
    #[derive(Debug)]
    struct Letters;

    impl Encoder for Letters {
        fn dims(&self) -> usize {
            2
        }

        fn fingerprint(&self) -> &str {
            "letters"
        }

        fn max_tokens(&self) -> Option<usize> {
            None
        }

        fn spans(&self, _text: &str) -> Result<Vec<TokenSpan>> {
            Err(Error::Internal("nobody cuts these texts".to_owned()))
        }

        fn encode(&self, texts: &[&str]) -> Result<Array2<f32>> {
            let mut seen = texts.to_vec();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), texts.len(), "each distinct text once");
            let mut rows = Array2::zeros((texts.len(), 2));
            for (mut row, text) in rows.rows_mut().into_iter().zip(texts) {
                match text.as_bytes().first() {
                    Some(b'a') => row[0] = 1.0,
                    Some(b'b') => row[1] = 1.0,
                    _ => {}
                }
            }
            Ok(rows)
        }
    }

    fn close(row: ArrayView1<'_, f32>, expected: &[f32]) {
        assert_eq!(row.len(), expected.len());
        for (x, y) in row.iter().zip(expected) {
            assert!((x - y).abs() < 1e-6, "{row} and {expected:?}");
        }
    }

    #[test]
    fn views_are_joined_and_nulls_are_renormalised() {
        let half = std::f32::consts::FRAC_1_SQRT_2;
        let prompts = vec![Some("a"), None, Some("a"), None, None, Some("?")];
        let answers = vec![Some("b"), Some("b"), None, None, None, Some("b")];
        let fallback = vec![Some("a"), Some("a"), Some("b"), Some("a"), None, None];
        let got = embed_views(&Letters, &[prompts, answers], Some(&fallback)).unwrap();
        assert_eq!(got.present, [true, true, true, true, false, true]);
        close(got.vectors.row(0), &[half, 0.0, 0.0, half]);
        close(got.vectors.row(1), &[0.0, 0.0, 0.0, 1.0]);
        close(got.vectors.row(2), &[1.0, 0.0, 0.0, 0.0]);
        close(got.vectors.row(3), &[0.0, 0.0, 1.0, 0.0]);
        close(got.vectors.row(4), &[0.0; 4]);
        close(got.vectors.row(5), &[0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn an_empty_text_is_a_text() {
        let got = embed_views(&Letters, &[vec![Some(""), None]], Some(&[Some("a"), None])).unwrap();
        assert_eq!(got.present, [true, false]);
        close(got.vectors.row(0), &[0.0, 0.0]);
    }

    #[test]
    fn no_rows_and_uneven_columns() {
        let got = embed_views(&Letters, &[vec![], vec![]], None).unwrap();
        assert_eq!((got.vectors.dim(), got.present.len()), ((0, 4), 0));
        assert!(embed_views(&Letters, &[], None).is_err());
        assert!(embed_views(&Letters, &[vec![None], vec![]], None).is_err());
        assert!(embed_views(&Letters, &[vec![None]], Some(&[])).is_err());
    }
}
