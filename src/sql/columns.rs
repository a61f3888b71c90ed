//! The columns of the table `corpus`: in go the schemas of the base shards, out comes one table schema and the names under which
//! the weight columns are served.

use std::sync::Arc;

use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

use crate::error::{Error, Result};
use crate::writeback::free_name;

/// The weight columns and their types, in the order in which they follow the base columns. All are nullable except `shard`.
pub const WEIGHT_COLUMNS: [(&str, DataType); 12] = [
    ("shard", DataType::Utf8),
    ("shard_version", DataType::Utf8),
    ("model", DataType::Utf8),
    ("row", DataType::Int64),
    ("weight", DataType::Float32),
    ("pull", DataType::Float32),
    ("push", DataType::Float32),
    ("prior", DataType::Float32),
    ("safe_ref", DataType::Utf8),
    ("harm_ref", DataType::Utf8),
    ("window", DataType::Int64),
    ("window_view", DataType::Utf8),
];

/// Position of `shard` in [`WEIGHT_COLUMNS`]: the one weight column that is not read but known from the listing.
const SHARD: usize = 0;

/// Where a column of the table comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A column of the base shards.
    Base,
    /// The shard's name, constant in a shard.
    ShardName,
    /// A column of the sidecars.
    Sidecar,
}

/// The names under which the weight columns are served, in the order of [`WEIGHT_COLUMNS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServedNames(Vec<String>);

impl ServedNames {
    fn beside(base: &[FieldRef]) -> Self {
        let free = |name: &str| free_name(name, |name| base.iter().any(|f| f.name() == name));
        Self(WEIGHT_COLUMNS.iter().map(|(name, _)| free(name)).collect())
    }

    /// The served name of the sidecar's column `name`; `None` if that column is not read from sidecars.
    pub(super) fn of_sidecar(&self, name: &str) -> Option<&str> {
        let index = WEIGHT_COLUMNS.iter().position(|(known, _)| *known == name)?;
        (index != SHARD).then(|| self.0[index].as_str())
    }
}

/// The columns of the table.
#[derive(Debug, Clone)]
pub(super) struct CorpusColumns {
    /// What a query sees: base columns, then weight columns.
    pub(super) table: SchemaRef,
    /// What a scanned file may hold: `table` without the shard's name.
    pub(super) file: SchemaRef,
    /// The shard's name, as a column.
    pub(super) shard: FieldRef,
    /// Names of the weight columns.
    pub(super) names: ServedNames,
    base: usize,
}

impl CorpusColumns {
    /// The union of `shards` (name and schema): the first shard that has a column decides its place; its type is the first's,
    /// or a wider one if a later shard needs it.
    pub(super) fn union<'a>(shards: impl IntoIterator<Item = (&'a str, SchemaRef)>) -> Result<Self> {
        let mut base: Vec<FieldRef> = vec![];
        for (seen, (shard, schema)) in shards.into_iter().enumerate() {
            for field in base.iter_mut() {
                if schema.field_with_name(field.name()).is_err() {
                    *field = nullable(field);
                }
            }
            for field in schema.fields() {
                match base.iter_mut().find(|f| f.name() == field.name()) {
                    Some(known) => *known = widen(known, field, shard)?,
                    None if seen > 0 => base.push(nullable(field)),
                    None => base.push(Arc::clone(field)),
                }
            }
        }
        let names = ServedNames::beside(&base);
        let weights: Vec<FieldRef> = WEIGHT_COLUMNS
            .iter()
            .zip(&names.0)
            .enumerate()
            .map(|(i, ((_, kind), name))| Arc::new(Field::new(name, kind.clone(), i != SHARD)))
            .collect();
        let shard = Arc::clone(&weights[SHARD]);
        let fields = |skip: Option<usize>| {
            let weights = weights.iter().enumerate().filter(move |(i, _)| Some(*i) != skip).map(|(_, f)| f);
            Arc::new(Schema::new(base.iter().chain(weights).cloned().collect::<Vec<_>>()))
        };
        Ok(Self { table: fields(None), file: fields(Some(SHARD)), shard, names, base: base.len() })
    }

    /// Where column `index` of the table comes from.
    pub(super) fn origin(&self, index: usize) -> Origin {
        match index.checked_sub(self.base) {
            None => Origin::Base,
            Some(SHARD) => Origin::ShardName,
            Some(_) => Origin::Sidecar,
        }
    }

    /// Whether column `index` of `file` is a base column.
    pub(super) fn is_base(&self, index: usize) -> bool {
        index < self.base
    }

    /// The position of table column `index` when `shard` comes after all columns of `file`, as DataFusion wants constants.
    pub(super) fn scan_index(&self, index: usize) -> usize {
        match index.checked_sub(self.base) {
            None => index,
            Some(SHARD) => self.file.fields().len(),
            Some(_) => index - 1,
        }
    }
}

fn nullable(field: &FieldRef) -> FieldRef {
    if field.is_nullable() { Arc::clone(field) } else { Arc::new(field.as_ref().clone().with_nullable(true)) }
}

fn widen(known: &FieldRef, other: &FieldRef, shard: &str) -> Result<FieldRef> {
    let field = if other.is_nullable() { nullable(known) } else { Arc::clone(known) };
    if known.data_type() == other.data_type() {
        return Ok(field);
    }
    let nested = |field: &FieldRef| field.data_type().is_nested();
    if nested(known) && nested(other) {
        return Ok(field); // the scan adapts nested types field by field
    }
    let wider = wider_type(known.data_type(), other.data_type());
    let fits = |field: &FieldRef| can_cast_types(field.data_type(), &wider);
    if nested(known) || nested(other) || !fits(known) || !fits(other) {
        return Err(Error::Column {
            object: format!("shard {shard}"),
            column: known.name().clone(),
            reason: format!("is {} here and {} in earlier shards", other.data_type(), known.data_type()),
        });
    }
    Ok(Arc::new(field.as_ref().clone().with_data_type(wider)))
}

/// A type that holds the values of both, where that is simple to say; else the first.
fn wider_type(a: &DataType, b: &DataType) -> DataType {
    use DataType::{Dictionary, Float32, Float64, Int64, LargeUtf8, Null, Utf8, Utf8View};
    match (a, b) {
        (Null, other) | (other, Null) => other.clone(),
        (Dictionary(_, value), other) | (other, Dictionary(_, value)) => match other {
            Dictionary(_, second) => wider_type(value, second),
            other => wider_type(value, other),
        },
        (Utf8 | Utf8View, LargeUtf8) | (LargeUtf8, Utf8 | Utf8View) => LargeUtf8,
        (Utf8View, Utf8) | (Utf8, Utf8View) => Utf8,
        (a, b) if a.is_integer() && b.is_integer() => {
            let signed_differs = a.is_signed_integer() != b.is_signed_integer();
            let width = |t: &DataType| t.primitive_width().unwrap_or(8);
            if signed_differs {
                Int64
            } else if width(b) > width(a) {
                b.clone()
            } else {
                a.clone()
            }
        }
        (Float32, Float64) | (Float64, Float32) => Float64,
        (text @ (Utf8 | LargeUtf8 | Utf8View), _) | (_, text @ (Utf8 | LargeUtf8 | Utf8View)) => text.clone(),
        (a, b) if (a.is_integer() && b.is_floating()) || (a.is_floating() && b.is_integer()) => Float64,
        (a, _) => a.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
        Arc::new(Schema::new(fields.iter().map(|(n, t)| Field::new(*n, t.clone(), false)).collect::<Vec<_>>()))
    }

    #[test]
    fn first_shard_decides_order_and_later_ones_widen() {
        let a = schema(&[("text", DataType::Utf8), ("n", DataType::Int32)]);
        let b = schema(&[("n", DataType::Int64), ("text", DataType::LargeUtf8), ("extra", DataType::Boolean)]);
        let columns = CorpusColumns::union([("a", a), ("b", b)]).unwrap();
        let seen: Vec<_> = columns.table.fields()[..3].iter().map(|f| (f.name().as_str(), f.data_type(), f.is_nullable())).collect();
        assert_eq!(seen, [("text", &DataType::LargeUtf8, false), ("n", &DataType::Int64, false), ("extra", &DataType::Boolean, true)]);
        assert_eq!(columns.table.field(3).name(), "shard");
        assert_eq!(columns.table.field(14).name(), "window_view");
        assert_eq!((columns.scan_index(2), columns.scan_index(3), columns.scan_index(4)), (2, 14, 3));
    }

    #[test]
    fn a_base_column_keeps_its_name() {
        let columns = CorpusColumns::union([("a", schema(&[("weight", DataType::Utf8), ("pushpull_weight", DataType::Utf8)]))]).unwrap();
        assert_eq!(columns.names.of_sidecar("weight"), Some("pushpull_pushpull_weight"));
        assert_eq!(columns.names.of_sidecar("pull"), Some("pull"));
        assert_eq!(columns.names.of_sidecar("shard"), None);
        assert_eq!(columns.names.of_sidecar("anything"), None);
    }

    #[test]
    fn types_that_do_not_fit_name_shard_and_column() {
        let list = DataType::new_list(DataType::Int32, true);
        let err = CorpusColumns::union([("a", schema(&[("x", list)])), ("b", schema(&[("x", DataType::Boolean)]))]).unwrap_err();
        assert!(err.to_string().contains("shard b: column `x`"), "{err}");
    }
}
