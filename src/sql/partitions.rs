//! Columns from the names of folders: in go the shards' names, out come the keys of hive-style folders and each shard's values.
//!
//! `source=web/year=2024/part.parquet` has `source` = `web` and `year` = 2024. Values are percent-decoded;
//! `__HIVE_DEFAULT_PARTITION__` is NULL, as is a key that a shard's folders lack. A column is of 64-bit integers if every value is
//! one as a number is written (no leading zero, no plus sign), else of text: with a folder `year=unknown` the years are text.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;

/// How engines of the Hive family write a NULL.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// The keys of a corpus's folders and their values.
#[derive(Debug, Default)]
pub(super) struct FolderKeys {
    /// One column a key, in the order in which the keys are met.
    pub(super) columns: Vec<FieldRef>,
    /// The values of each shard, in the order of `columns`.
    pub(super) values: Vec<Vec<ScalarValue>>,
}

impl FolderKeys {
    /// Reads the folders of `shards` (names relative to the corpus).
    pub(super) fn of<'a>(shards: impl IntoIterator<Item = &'a str>) -> Self {
        let found: Vec<Vec<(String, Option<String>)>> = shards.into_iter().map(pairs).collect();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut keys: Vec<&str> = vec![];
        let mut numbers: Vec<bool> = vec![];
        for (key, value) in found.iter().flatten() {
            let place = *places.entry(key).or_insert_with(|| {
                keys.push(key);
                numbers.push(true);
                keys.len() - 1
            });
            numbers[place] &= value.as_ref().is_none_or(|value| number(value).is_some());
        }
        let kind = |number: &bool| if *number { DataType::Int64 } else { DataType::Utf8 };
        let columns = keys.iter().zip(&numbers).map(|(key, number)| Arc::new(Field::new(*key, kind(number), true)) as FieldRef).collect();
        let values = found.iter().map(|pairs| {
            // The deepest folder counts where a key is there twice.
            let value = |key: &str| pairs.iter().rev().find(|(found, _)| found == key).and_then(|(_, value)| value.clone());
            let scalar = |(key, is_number): (&&str, &bool)| match *is_number {
                true => ScalarValue::Int64(value(key).as_deref().and_then(number)),
                false => ScalarValue::Utf8(value(key)),
            };
            keys.iter().zip(&numbers).map(scalar).collect()
        });
        Self { values: values.collect(), columns }
    }
}

/// The keys and values of a shard's folders, outermost first.
fn pairs(shard: &str) -> Vec<(String, Option<String>)> {
    let folders = shard.rsplit_once('/').map_or("", |(folders, _)| folders);
    let pair = |folder: &str| {
        let (key, value) = folder.split_once('=').filter(|(key, _)| !key.is_empty())?;
        Some((decoded(key), (value != NULL).then(|| decoded(value))))
    };
    folders.split('/').filter_map(pair).collect()
}

/// The number, if it is written as numbers are.
fn number(text: &str) -> Option<i64> {
    text.parse().ok().filter(|number: &i64| number.to_string() == text)
}

/// Percent-decoded; as it is where that is no UTF-8.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = text.get(at + 1..at + 3).filter(|code| byte == b'%' && code.bytes().all(|b| b.is_ascii_hexdigit()));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) => {
                out.push(code);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> ScalarValue {
        ScalarValue::Utf8(Some(value.to_owned()))
    }

    #[test]
    fn keys_values_and_types() {
        let keys = FolderKeys::of([
            "source=a%20b%2Fc/year=2024/part-0.parquet",
            "source=__HIVE_DEFAULT_PARTITION__/year=-1/x=1.parquet",
            "plain/part.parquet",
            "year=7/source=%zz/code=007/odd%/=x/p.parquet",
        ]);
        let columns: Vec<_> = keys.columns.iter().map(|f| (f.name().as_str(), f.data_type().clone())).collect();
        assert_eq!(columns, [("source", DataType::Utf8), ("year", DataType::Int64), ("code", DataType::Utf8)]);
        assert_eq!(keys.values[0], [text("a b/c"), ScalarValue::Int64(Some(2024)), ScalarValue::Utf8(None)]);
        assert_eq!(keys.values[1], [ScalarValue::Utf8(None), ScalarValue::Int64(Some(-1)), ScalarValue::Utf8(None)]);
        assert_eq!(keys.values[2], [ScalarValue::Utf8(None), ScalarValue::Int64(None), ScalarValue::Utf8(None)]);
        assert_eq!(keys.values[3], [text("%zz"), ScalarValue::Int64(Some(7)), text("007")]);
    }

    #[test]
    fn one_value_that_is_no_number_makes_text_of_all() {
        let keys = FolderKeys::of(["y=1/a", "y=01/b", "y=1/y=2/c"]);
        assert_eq!(keys.columns[0].data_type(), &DataType::Utf8);
        assert_eq!(keys.values.concat(), [text("1"), text("01"), text("2")]);
        let none = FolderKeys::of(["a.parquet", "b/c.parquet"]);
        assert!(none.columns.is_empty() && none.values == [vec![], vec![]]);
    }

    #[test]
    fn what_is_no_utf8_stays_as_it_is() {
        assert_eq!(
            (decoded("%C3%A9"), decoded("%ff"), decoded("100%"), decoded("é%41")),
            ("é".into(), "%ff".into(), "100%".into(), "éA".into())
        );
    }
}
