//! The columns of the table `corpus`: in go the schemas of the base shards and the keys of their folders, out comes one table schema
//! and the names under which what the base has not is served.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

use super::MissingColumn;
use crate::error::{Error, Result};
use crate::writeback::free_name;

/// The weight columns and their types, in the order in which they follow the base columns. All are nullable except `shard`. The
/// first three are the same in every row of a shard: they are known from the listing and the log and never read.
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

/// How many of [`WEIGHT_COLUMNS`], the first ones, are the same in every row of a shard.
pub(super) const KNOWN: usize = 3;

/// Where a column of the table comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A column of the base shards.
    Base,
    /// The same in every row of a shard, and known without opening it: its place among [`CorpusColumns::constants`].
    Constant(usize),
    /// A column of the sidecars.
    Sidecar,
}

/// The names under which the weight columns are served, in the order of [`WEIGHT_COLUMNS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServedNames(Vec<String>);

impl ServedNames {
    /// The served name of the sidecar's column `name`; `None` if that column is not read from sidecars.
    pub(super) fn of_sidecar(&self, name: &str) -> Option<&str> {
        let index = WEIGHT_COLUMNS.iter().position(|(known, _)| *known == name)?;
        (index >= KNOWN).then(|| self.0[index].as_str())
    }

    /// All of them, to tell one table's from another's.
    pub(super) fn joined(&self) -> String {
        self.0.join(",")
    }
}

fn is_taken(taken: &[FieldRef], name: &str) -> bool {
    taken.iter().any(|field| field.name() == name)
}

/// The columns of the table.
#[derive(Debug, Clone)]
pub(super) struct CorpusColumns {
    /// What a query sees: base columns, folder keys, then weight columns.
    pub(super) table: SchemaRef,
    /// What a scanned file may hold: `table` without the constants.
    pub(super) file: SchemaRef,
    /// The columns that are the same in every row of a shard: folder keys, then the first [`KNOWN`] weight columns.
    pub(super) constants: Vec<FieldRef>,
    /// Names of the weight columns.
    pub(super) names: ServedNames,
    /// Base columns that some shards lack.
    pub(super) missing: Vec<MissingColumn>,
    base: usize,
    keys: usize,
}

impl CorpusColumns {
    /// The union of `shards` (name and schema): the first shard that has a column decides its place; its type is the first's,
    /// or a wider one if a later shard needs it. `keys` are the columns of hive-style folders.
    pub(super) fn union<'a>(shards: impl IntoIterator<Item = (&'a str, SchemaRef)>, keys: &[FieldRef]) -> Result<Self> {
        let kinds = distinct(shards);
        let mut base: Vec<FieldRef> = vec![];
        let mut places: HashMap<String, usize> = HashMap::new();
        for (seen, kind) in kinds.iter().enumerate() {
            for field in base.iter_mut().filter(|field| kind.schema.field_with_name(field.name()).is_err()) {
                *field = nullable(field);
            }
            for field in kind.schema.fields() {
                match places.get(field.name()) {
                    Some(&place) => base[place] = widen(&base[place], field, kind.first)?,
                    None => {
                        places.insert(field.name().clone(), base.len());
                        base.push(if seen > 0 { nullable(field) } else { Arc::clone(field) });
                    }
                }
            }
        }
        let missing = base.iter().filter_map(|field| missing_in(field.name(), &kinds)).collect();
        let mut taken = base.clone();
        for key in keys {
            taken.push(Arc::new(key.as_ref().clone().with_name(free_name(key.name(), |name| is_taken(&taken, name)))));
        }
        let names = ServedNames(WEIGHT_COLUMNS.iter().map(|(name, _)| free_name(name, |name| is_taken(&taken, name))).collect());
        let weights: Vec<FieldRef> = WEIGHT_COLUMNS
            .iter()
            .zip(&names.0)
            .enumerate()
            .map(|(i, ((_, kind), name))| Arc::new(Field::new(name, kind.clone(), i != 0)))
            .collect();
        let (known, read) = weights.split_at(KNOWN);
        let constants = taken[base.len()..].iter().chain(known).cloned().collect();
        let file = Arc::new(Schema::new(base.iter().chain(read).cloned().collect::<Vec<_>>()));
        let table = Arc::new(Schema::new(taken.iter().chain(&weights).cloned().collect::<Vec<_>>()));
        Ok(Self { table, file, constants, names, missing, base: base.len(), keys: keys.len() })
    }

    /// Where column `index` of the table comes from.
    pub(super) fn origin(&self, index: usize) -> Origin {
        match index.checked_sub(self.base) {
            None => Origin::Base,
            Some(constant) if constant < self.constants.len() => Origin::Constant(constant),
            Some(_) => Origin::Sidecar,
        }
    }

    /// Whether column `index` of `file` is a base column.
    pub(super) fn is_base(&self, index: usize) -> bool {
        index < self.base
    }

    /// The position of table column `index` when the constants come after all columns of `file`, as DataFusion wants them.
    pub(super) fn scan_index(&self, index: usize) -> usize {
        match self.origin(index) {
            Origin::Base => index,
            Origin::Constant(place) => self.file.fields().len() + place,
            Origin::Sidecar => index - self.constants.len(),
        }
    }

    /// The position of the weight column `name` (as [`WEIGHT_COLUMNS`] has it) in the table.
    pub(super) fn weight_column(&self, name: &str) -> Option<usize> {
        Some(self.base + self.keys + WEIGHT_COLUMNS.iter().position(|(known, _)| *known == name)?)
    }
}

/// Shards with the same columns.
struct Kind<'a> {
    schema: SchemaRef,
    first: &'a str,
    shards: usize,
}

/// The kinds of shards there are, in the order in which they are met: a corpus has very many shards and few kinds.
fn distinct<'a>(shards: impl IntoIterator<Item = (&'a str, SchemaRef)>) -> Vec<Kind<'a>> {
    let mut kinds: Vec<Kind<'a>> = vec![];
    let mut last = 0;
    for (first, schema) in shards {
        let same = |kind: &Kind<'_>| Arc::ptr_eq(&kind.schema, &schema) || kind.schema.fields() == schema.fields();
        if !kinds.get(last).is_some_and(same) {
            last = kinds.iter().position(same).unwrap_or(kinds.len());
        }
        match kinds.get_mut(last) {
            Some(kind) => kind.shards += 1,
            None => kinds.push(Kind { schema, first, shards: 1 }),
        }
    }
    kinds
}

fn missing_in(column: &str, kinds: &[Kind<'_>]) -> Option<MissingColumn> {
    let mut lacking = kinds.iter().filter(|kind| kind.schema.field_with_name(column).is_err()).peekable();
    let first = lacking.peek()?.first.to_owned();
    Some(MissingColumn { column: column.to_owned(), shards: lacking.map(|kind| kind.shards).sum(), first })
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
        let columns = CorpusColumns::union([("a", a), ("b", b)], &[]).unwrap();
        let seen: Vec<_> = columns.table.fields()[..3].iter().map(|f| (f.name().as_str(), f.data_type(), f.is_nullable())).collect();
        assert_eq!(seen, [("text", &DataType::LargeUtf8, false), ("n", &DataType::Int64, false), ("extra", &DataType::Boolean, true)]);
        assert_eq!(columns.table.field(3).name(), "shard");
        assert_eq!(columns.table.field(14).name(), "window_view");
        // Three base columns, nine of the sidecars, then the constants.
        assert_eq!([2, 3, 5, 6, 14].map(|index| columns.scan_index(index)), [2, 12, 14, 3, 11]);
        assert_eq!(columns.weight_column("weight"), Some(7));
        let missing: Vec<_> = columns.missing.iter().map(|m| (m.column.as_str(), m.shards, m.first.as_str())).collect();
        assert_eq!(missing, [("extra", 1, "a")]);
    }

    #[test]
    fn a_base_column_keeps_its_name() {
        let columns =
            CorpusColumns::union([("a", schema(&[("weight", DataType::Utf8), ("pushpull_weight", DataType::Utf8)]))], &[]).unwrap();
        assert_eq!(columns.names.of_sidecar("weight"), Some("pushpull_pushpull_weight"));
        assert_eq!(columns.names.of_sidecar("pull"), Some("pull"));
        assert_eq!(columns.names.of_sidecar("shard"), None);
        assert_eq!(columns.names.of_sidecar("model"), None);
        assert_eq!(columns.names.of_sidecar("anything"), None);
    }

    #[test]
    fn types_that_do_not_fit_name_shard_and_column() {
        let list = DataType::new_list(DataType::Int32, true);
        let err = CorpusColumns::union([("a", schema(&[("x", list)])), ("b", schema(&[("x", DataType::Boolean)]))], &[]).unwrap_err();
        assert!(err.to_string().contains("shard b: column `x`"), "{err}");
    }

    #[test]
    fn folder_keys_follow_the_base_and_give_way_to_it() {
        let key = |name: &str| Arc::new(Field::new(name, DataType::Utf8, true));
        let base = schema(&[("text", DataType::Utf8), ("source", DataType::Utf8)]);
        let columns = CorpusColumns::union([("a", base)], &[key("source"), key("model")]).unwrap();
        let names: Vec<_> = columns.table.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names[..7], ["text", "source", "pushpull_source", "model", "shard", "shard_version", "pushpull_model"]);
        assert_eq!((columns.origin(1), columns.origin(2), columns.origin(6)), (Origin::Base, Origin::Constant(0), Origin::Constant(4)));
        assert_eq!((columns.origin(7), columns.scan_index(7)), (Origin::Sidecar, 2));
    }
}
