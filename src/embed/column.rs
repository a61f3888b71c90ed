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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        DictionaryArray, FixedSizeListBuilder, Float16Builder, Float32Builder, Float64Builder, Int32Array, LargeListBuilder,
        LargeStringArray, ListBuilder, NullArray, StringArray, StringViewArray,
    };
    use arrow::datatypes::{Int8Type, Int32Type, UInt16Type};

    use super::*;

    const WORDS: [Option<&str>; 4] = [Some("one"), None, Some(""), Some("a longer text, past the inline length of a view")];

    #[test]
    fn texts_of_each_type() {
        let strings = StringArray::from_iter(WORDS);
        let arrays: [ArrayRef; 6] = [
            Arc::new(strings.clone()),
            Arc::new(LargeStringArray::from_iter(WORDS)),
            Arc::new(StringViewArray::from_iter(WORDS)),
            Arc::new(DictionaryArray::<Int32Type>::from_iter(WORDS)),
            Arc::new(DictionaryArray::<UInt16Type>::from_iter(WORDS)),
            // Null by value and not by key.
            Arc::new(DictionaryArray::<Int8Type>::new(vec![0_i8, 1, 2, 3].into(), Arc::new(strings))),
        ];
        for array in &arrays {
            assert_eq!(texts("shard", "text", array.as_ref()).unwrap(), WORDS, "{}", array.data_type());
            let part = array.slice(1, 2);
            assert_eq!(texts("shard", "text", part.as_ref()).unwrap(), WORDS[1..3], "a slice of {}", array.data_type());
        }
        assert_eq!(texts("shard", "text", &NullArray::new(2)).unwrap(), [None, None]);
        let empty = DictionaryArray::<Int32Type>::from_iter([None::<&str>, None]);
        assert_eq!(texts("shard", "text", &empty).unwrap(), [None, None]);
    }

    #[test]
    fn other_types_are_refused_by_name() {
        let message = texts("s3://lake/a.parquet", "n", &Int32Array::from(vec![1])).unwrap_err().to_string();
        assert!(message.starts_with("s3://lake/a.parquet: column `n` is Int32; "), "{message}");
        let message = vectors("a", "n", &Int32Array::from(vec![1])).unwrap_err().to_string();
        assert!(message.contains("FixedSizeList"), "{message}");
        let lists = ListBuilder::new(arrow::array::Int32Builder::new()).finish();
        assert!(vectors("a", "n", &lists).unwrap_err().to_string().contains("lists of Int32"));
    }

    /// Builds `[[3, 4], null, [0, 0], [-1, 0]]` with any builder.
    macro_rules! lists {
        ($builder:expr, $number:expr) => {{
            let mut builder = $builder;
            for row in [Some([3.0, 4.0]), None, Some([0.0, 0.0]), Some([-1.0, 0.0])] {
                for x in row.unwrap_or_default() {
                    builder.values().append_value($number(x));
                }
                builder.append(row.is_some());
            }
            Arc::new(builder.finish()) as ArrayRef
        }};
    }

    #[test]
    fn vectors_of_each_type() {
        let arrays = [
            lists!(FixedSizeListBuilder::new(Float16Builder::new(), 2), f16::from_f32),
            lists!(FixedSizeListBuilder::new(Float32Builder::new(), 2), |x| x),
            lists!(FixedSizeListBuilder::new(Float64Builder::new(), 2), f64::from),
            lists!(ListBuilder::new(Float16Builder::new()), f16::from_f32),
            lists!(ListBuilder::new(Float32Builder::new()), |x| x),
            lists!(ListBuilder::new(Float64Builder::new()), f64::from),
            lists!(LargeListBuilder::new(Float16Builder::new()), f16::from_f32),
            lists!(LargeListBuilder::new(Float32Builder::new()), |x| x),
            lists!(LargeListBuilder::new(Float64Builder::new()), f64::from),
        ];
        for array in arrays {
            // Those of variable size carry elements under their null row; they are not looked at.
            let whole = vectors("shard", "vector", array.as_ref()).unwrap();
            assert_eq!(whole.present, [true, false, true, true]);
            assert_eq!(whole.vectors, ndarray::array![[0.6, 0.8], [0.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], "{}", array.data_type());
            let part = vectors("shard", "vector", array.slice(1, 3).as_ref()).unwrap();
            assert_eq!(part.present, [false, true, true]);
            assert_eq!(part.vectors, ndarray::array![[0.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]);
        }
    }

    fn list(rows: &[&[Option<f64>]]) -> ArrayRef {
        let mut builder = ListBuilder::new(Float64Builder::new());
        for row in rows {
            row.iter().for_each(|x| builder.values().append_option(*x));
            builder.append(true);
        }
        Arc::new(builder.finish())
    }

    #[test]
    fn bad_vectors_name_their_row() {
        let good: &[Option<f64>] = &[Some(1.0), Some(2.0)];
        for (bad, what) in [
            (&[Some(1.0)][..], "1 numbers in row 1 and 2 in row 0"),
            (&[Some(1.0), None], "null element in row 1, position 1"),
            (&[Some(1.0), Some(f64::NAN)], "not finite in row 1"),
            (&[Some(f64::NAN), Some(1.0)], "not finite in row 1"),
            (&[Some(f64::NEG_INFINITY), Some(1.0)], "not finite in row 1"),
        ] {
            let message = vectors("a.parquet", "v", list(&[good, bad]).as_ref()).unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
        assert!(vectors("a.parquet", "v", list(&[&[]]).as_ref()).unwrap_err().to_string().contains("empty vector in row 0"));
    }

    #[test]
    fn values_f32_cannot_hold_keep_their_direction() {
        let got = vectors("a", "v", list(&[&[Some(3e300), Some(4e300)], &[Some(3e-300), Some(4e-300)]]).as_ref()).unwrap();
        assert_eq!(got.vectors, ndarray::array![[0.6, 0.8], [0.6, 0.8]]);
    }

    #[test]
    fn no_vector_at_all() {
        let mut builder = ListBuilder::new(Float32Builder::new());
        builder.append(false);
        let got = vectors("a", "v", &builder.finish()).unwrap();
        assert_eq!((got.vectors.dim(), got.present), ((1, 0), vec![false]));
    }
}
