//! Arrow arrays in, texts or ready-made vectors out.

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, GenericListArray, OffsetSizeTrait, PrimitiveArray};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type};
use half::f16;
use ndarray::Array2;

use super::views::RowVectors;
use crate::error::{Error, Result};

/// The texts of a string column, row by row, borrowed from the array; none for null.
///
/// Utf8, LargeUtf8, Utf8View and dictionaries of these. A column of type Null (what a JSON or Arrow writer makes of a column
/// without a value) is all null. `object` and `column` only appear in errors.
///
/// # Errors
/// [`Error::Column`] for any other type.
pub fn texts<'a>(object: &str, column: &str, array: &'a dyn Array) -> Result<Vec<Option<&'a str>>> {
    if let Some(dictionary) = array.as_any_dictionary_opt() {
        let values = texts(object, column, dictionary.values().as_ref())?;
        if values.is_empty() {
            return Ok(vec![None; array.len()]);
        }
        let keys = dictionary.normalized_keys();
        let nulls = dictionary.keys().nulls();
        let value =
            |(row, key): (usize, usize)| if nulls.is_some_and(|n| n.is_null(row)) { None } else { values.get(key).copied().flatten() };
        return Ok(keys.into_iter().enumerate().map(value).collect());
    }
    Ok(match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().iter().collect(),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().collect(),
        DataType::Utf8View => array.as_string_view().iter().collect(),
        DataType::Null => vec![None; array.len()],
        other => {
            return Err(wrong(object, column, format!("is {other}; text is read from Utf8, LargeUtf8, Utf8View or a dictionary of them")));
        }
    })
}

/// The vectors of a list column, scaled to unit length; a zero vector stays zero. A null list is a row that is not present.
///
/// FixedSizeList, List or LargeList of f16, f32 or f64. Where every list is null and the type names no size, the vectors have no dimension.
///
/// # Errors
/// [`Error::Column`], with the row counted from 0 in this array, for another type, lists of different lengths or of length 0, and
/// elements that are null or not finite.
pub fn vectors(object: &str, column: &str, array: &dyn Array) -> Result<RowVectors> {
    let lists = match array.data_type() {
        DataType::FixedSizeList(_, _) => Lists::fixed(array.as_fixed_size_list()),
        DataType::List(_) => Lists::offsets(array.as_list::<i32>()),
        DataType::LargeList(_) => Lists::offsets(array.as_list::<i64>()),
        other => {
            return Err(wrong(
                object,
                column,
                format!("is {other}; vectors are read from FixedSizeList, List or LargeList of f16, f32 or f64"),
            ));
        }
    };
    let fail = |reason| wrong(object, column, reason);
    match lists.values.data_type() {
        DataType::Float16 => lists.read::<Float16Type>(f16::to_f64).map_err(fail),
        DataType::Float32 => lists.read::<Float32Type>(f64::from).map_err(fail),
        DataType::Float64 => lists.read::<Float64Type>(|x| x).map_err(fail),
        other => Err(fail(format!("holds lists of {other}; vectors are read from lists of f16, f32 or f64"))),
    }
}

fn wrong(object: &str, column: &str, reason: String) -> Error {
    Error::Column { object: object.to_owned(), column: column.to_owned(), reason }
}

/// A list array of any kind: where each row's elements are, none for a null row.
struct Lists<'a> {
    values: &'a ArrayRef,
    spans: Vec<Option<(usize, usize)>>,
    /// The length the type names.
    size: Option<usize>,
}

impl<'a> Lists<'a> {
    fn fixed(array: &'a FixedSizeListArray) -> Self {
        let size = usize::try_from(array.value_length()).unwrap_or(0);
        let span = |row| array.is_valid(row).then(|| (row * size, size));
        Self { values: array.values(), spans: (0..array.len()).map(span).collect(), size: Some(size) }
    }

    fn offsets<O: OffsetSizeTrait>(array: &'a GenericListArray<O>) -> Self {
        let span = |(row, ends): (usize, &[O])| array.is_valid(row).then(|| (ends[0].as_usize(), (ends[1] - ends[0]).as_usize()));
        Self { values: array.values(), spans: array.value_offsets().windows(2).enumerate().map(span).collect(), size: None }
    }

    fn read<T: ArrowPrimitiveType>(&self, number: impl Fn(T::Native) -> f64) -> Result<RowVectors, String> {
        let values: &PrimitiveArray<T> = self.values.as_primitive();
        let first = self.spans.iter().enumerate().find_map(|(row, span)| span.map(|(_, length)| (row, length)));
        let dims = self.size.or(first.map(|(_, length)| length)).unwrap_or(0);
        let mut vectors = Array2::<f32>::zeros((self.spans.len(), dims));
        for (row, (mut target, span)) in vectors.rows_mut().into_iter().zip(&self.spans).enumerate() {
            let Some((start, length)) = *span else { continue };
            if length != dims {
                let (other, _) = first.unwrap_or_default();
                return Err(format!("has {length} numbers in row {row} and {dims} in row {other}"));
            }
            if length == 0 {
                return Err(format!("has an empty vector in row {row}"));
            }
            if let Some(nulls) = values.nulls()
                && let Some(at) = (0..length).find(|&i| nulls.is_null(start + i))
            {
                return Err(format!("has a null element in row {row}, position {at}"));
            }
            // The length is taken in f64: f64 columns may hold what f32 cannot.
            let elements = &values.values()[start..start + length];
            let largest = elements.iter().map(|&x| number(x).abs()).fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a });
            if !largest.is_finite() {
                return Err(format!("has an element that is not finite in row {row}"));
            }
            if largest > 0.0 {
                // Dividing by the largest first keeps the squares in range.
                let norm = elements.iter().map(|&x| (number(x) / largest).powi(2)).sum::<f64>().sqrt();
                for (to, &from) in target.iter_mut().zip(elements) {
                    *to = (number(from) / largest / norm) as f32;
                }
            }
        }
        Ok(RowVectors { vectors, present: self.spans.iter().map(Option::is_some).collect() })
    }
}
