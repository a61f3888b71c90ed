//! Parquet metadata of base and sidecar as of one file: in go two footers, out comes one in which the sidecar's columns follow the
//! base's and the sidecar's bytes follow the base's bytes.
//!
//! Three rules keep the stock reader right. The sidecar's columns come last, because a byte range of the scan owns the row groups
//! whose *first* column starts in it. Page indexes are given for both or for neither, because the page locations inside a
//! sidecar's offset index are relative to the sidecar: an index the reader loaded by itself would point into the wrong object.
//! Row groups without rows are left out, as the sidecar has none for them.

use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema};
use parquet::arrow::{ARROW_SCHEMA_META_KEY, encode_arrow_schema, parquet_to_arrow_schema};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ColumnChunkMetaData, FileMetaData, KeyValue, ParquetMetaData, ParquetMetaDataBuilder, RowGroupMetaData};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type, TypePtr};

use super::columns::ServedNames;
use crate::error::{Error, Result};

/// The base part of a merged file.
#[derive(Debug, Clone, Copy)]
pub(super) struct BasePart<'a> {
    /// Footer of the base shard.
    pub(super) metadata: &'a ParquetMetaData,
    /// Its size in bytes, which is where the sidecar's bytes begin.
    pub(super) size: u64,
}

/// The objects that are put together, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    /// The shard's name.
    pub(super) shard: &'a str,
    /// Path of the base.
    pub(super) base: &'a str,
    /// Path of the sidecar.
    pub(super) sidecar: &'a str,
}

impl Pair<'_> {
    /// An error that names both objects.
    pub(super) fn misfit(&self, row_group: Option<usize>, difference: impl std::fmt::Display) -> Error {
        let reason = format!("sidecar {} does not fit base {}: {difference}", self.sidecar, self.base);
        Error::Shard { shard: self.shard.to_owned(), row_group, reason, source: None }
    }
}

/// Checks that `sidecar` has exactly the base's row groups, those without rows apart.
pub(super) fn check_alignment(pair: Pair<'_>, base: &ParquetMetaData, sidecar: &ParquetMetaData) -> Result<()> {
    let (base, sidecar) = (filled(base), filled(sidecar));
    if base.len() != sidecar.len() {
        return Err(pair.misfit(None, format!("it has {} row groups, the base {}", sidecar.len(), base.len())));
    }
    for ((index, base), (_, sidecar)) in base.iter().zip(&sidecar) {
        if base.num_rows() != sidecar.num_rows() {
            return Err(pair.misfit(Some(*index), format!("it has {} rows, the base {}", sidecar.num_rows(), base.num_rows())));
        }
    }
    Ok(())
}

/// The row groups that have rows, with their places in the file.
pub(super) fn filled(metadata: &ParquetMetaData) -> Vec<(usize, &RowGroupMetaData)> {
    metadata.row_groups().iter().enumerate().filter(|(_, group)| group.num_rows() > 0).collect()
}

/// The sidecar's columns under their served names, behind the base's columns if there is a base. Columns of the sidecar that are
/// not served are left out.
pub(super) fn compose(
    pair: Pair<'_>,
    base: Option<BasePart<'_>>,
    sidecar: &ParquetMetaData,
    names: &ServedNames,
) -> Result<ParquetMetaData> {
    if let Some(base) = base {
        check_alignment(pair, base.metadata, sidecar)?;
    }
    compose_aligned(base, sidecar, names).map_err(|e| Error::Shard {
        shard: pair.shard.to_owned(),
        row_group: None,
        reason: format!("sidecar {} cannot be read beside base {}", pair.sidecar, pair.base),
        source: Some(Box::new(e)),
    })
}

fn compose_aligned(base: Option<BasePart<'_>>, sidecar: &ParquetMetaData, names: &ServedNames) -> ParquetResult<ParquetMetaData> {
    let served = served_columns(sidecar, names)?;
    let shift = base.map_or(Ok(0), |b| i64::try_from(b.size)).map_err(|e| ParquetError::External(Box::new(e)))?;
    let schema = composed_schema(base, sidecar, &served)?;
    let base_indexed = base.is_none_or(|b| is_indexed(b.metadata));
    let indexed = base_indexed && is_indexed(sidecar);

    let base_groups = base.map(|b| filled(b.metadata));
    let mut groups = vec![];
    let (mut offset_index, mut column_index) = (vec![], vec![]);
    for (nth, (side_place, side_group)) in filled(sidecar).into_iter().enumerate() {
        let base_group = base_groups.as_ref().and_then(|groups| groups.get(nth)).copied();
        groups.push(composed_group(&schema, base_group.map(|(_, group)| group), side_group, &served, shift, indexed)?);
        if !indexed {
            continue;
        }
        let (mut offsets, mut columns) = (vec![], vec![]);
        if let Some((base, (place, _))) = base.zip(base_group) {
            let (o, c) = group_indexes(base.metadata, place)?;
            offsets.extend(o.iter().cloned());
            columns.extend(c.iter().cloned());
        }
        let (o, c) = group_indexes(sidecar, side_place)?;
        for column in &served {
            let mut pages = element(o, column.leaf)?.clone();
            for page in &mut pages.page_locations {
                page.offset += shift;
            }
            offsets.push(pages);
            columns.push(element(c, column.leaf)?.clone());
        }
        offset_index.push(offsets);
        column_index.push(columns);
    }

    let main = base.map_or(sidecar, |b| b.metadata).file_metadata();
    let rows = groups.iter().map(RowGroupMetaData::num_rows).sum();
    let created_by = main.created_by().map(str::to_owned);
    let key_values = composed_key_values(base, sidecar, &served)?;
    let file = FileMetaData::new(main.version(), rows, created_by, key_values, schema, None);
    Ok(ParquetMetaDataBuilder::new(file)
        .set_row_groups(groups)
        .set_offset_index(indexed.then_some(offset_index))
        .set_column_index(indexed.then_some(column_index))
        .build())
}

/// A sidecar column that is served.
struct Served {
    leaf: usize,
    name: String,
    kind: TypePtr,
}

fn served_columns(sidecar: &ParquetMetaData, names: &ServedNames) -> ParquetResult<Vec<Served>> {
    let fields = sidecar.file_metadata().schema().get_fields();
    if let Some(nested) = fields.iter().find(|f| !f.is_primitive()) {
        return Err(ParquetError::General(format!("sidecar column `{}` is nested", nested.name())));
    }
    let mut served = vec![];
    for (leaf, field) in fields.iter().enumerate() {
        if let Some(name) = names.of_sidecar(field.name()) {
            served.push(Served { leaf, name: name.to_owned(), kind: renamed(field, name)? });
        }
    }
    Ok(served)
}

fn renamed(field: &TypePtr, name: &str) -> ParquetResult<TypePtr> {
    if field.name() == name {
        return Ok(Arc::clone(field));
    }
    let info = field.get_basic_info();
    let kind = Type::primitive_type_builder(name, field.get_physical_type())
        .with_repetition(info.repetition())
        .with_converted_type(info.converted_type())
        .with_logical_type(info.logical_type_ref().cloned())
        .build()?;
    Ok(Arc::new(kind))
}

fn composed_schema(base: Option<BasePart<'_>>, sidecar: &ParquetMetaData, served: &[Served]) -> ParquetResult<SchemaDescPtr> {
    let root = base.map_or(sidecar, |b| b.metadata).file_metadata().schema();
    let mut fields = base.map_or_else(Vec::new, |b| b.metadata.file_metadata().schema().get_fields().to_vec());
    if let Some(twice) = served.iter().find(|s| fields.iter().any(|f| f.name() == s.name)) {
        return Err(ParquetError::General(format!("column `{}` is in the shard and in the sidecar", twice.name)));
    }
    fields.extend(served.iter().map(|s| Arc::clone(&s.kind)));
    let root = Type::group_type_builder(root.name()).with_fields(fields).build()?;
    Ok(Arc::new(SchemaDescriptor::new(Arc::new(root))))
}

fn is_indexed(metadata: &ParquetMetaData) -> bool {
    metadata.offset_index().is_some() && metadata.column_index().is_some()
}

type GroupIndexes<'a> = (
    &'a [parquet::file::page_index::offset_index::OffsetIndexMetaData],
    &'a [parquet::file::page_index::column_index::ColumnIndexMetaData],
);

fn group_indexes(metadata: &ParquetMetaData, place: usize) -> ParquetResult<GroupIndexes<'_>> {
    let offsets = metadata.offset_index().and_then(|index| index.get(place));
    let columns = metadata.column_index().and_then(|index| index.get(place));
    match (offsets, columns) {
        (Some(offsets), Some(columns)) => Ok((offsets, columns)),
        _ => Err(ParquetError::General(format!("row group {place} has no page index, others have one"))),
    }
}

fn element<T>(items: &[T], index: usize) -> ParquetResult<&T> {
    items.get(index).ok_or_else(|| ParquetError::General(format!("no entry for column {index}")))
}

fn composed_group(
    schema: &SchemaDescPtr,
    base: Option<&RowGroupMetaData>,
    sidecar: &RowGroupMetaData,
    served: &[Served],
    shift: i64,
    indexed: bool,
) -> ParquetResult<RowGroupMetaData> {
    let base_columns = base.map_or(&[][..], RowGroupMetaData::columns);
    let mut columns = vec![];
    for chunk in base_columns {
        columns.push(if indexed { chunk.clone() } else { without_index(chunk)? });
    }
    for column in served {
        let chunk = element(sidecar.columns(), column.leaf)?;
        let descriptor = schema.column(columns.len());
        let moved = ColumnChunkMetaData::builder(descriptor)
            .set_compression(chunk.compression())
            .set_encodings_mask(*chunk.encodings_mask())
            .set_total_compressed_size(chunk.compressed_size())
            .set_total_uncompressed_size(chunk.uncompressed_size())
            .set_num_values(chunk.num_values())
            .set_data_page_offset(chunk.data_page_offset() + shift)
            .set_dictionary_page_offset(chunk.dictionary_page_offset().map(|o| o + shift))
            .set_bloom_filter_offset(chunk.bloom_filter_offset().map(|o| o + shift))
            .set_bloom_filter_length(chunk.bloom_filter_length())
            .set_column_index_offset(chunk.column_index_offset().map(|o| o + shift).filter(|_| indexed))
            .set_column_index_length(chunk.column_index_length().filter(|_| indexed))
            .set_offset_index_offset(chunk.offset_index_offset().map(|o| o + shift).filter(|_| indexed))
            .set_offset_index_length(chunk.offset_index_length().filter(|_| indexed));
        let moved = match chunk.statistics() {
            Some(statistics) => moved.set_statistics(statistics.clone()),
            None => moved,
        };
        columns.push(moved.build()?);
    }
    let bytes = columns.iter().map(ColumnChunkMetaData::uncompressed_size).sum();
    let mut group = RowGroupMetaData::builder(Arc::clone(schema))
        .set_num_rows(sidecar.num_rows())
        .set_total_byte_size(bytes)
        .set_sorting_columns(base.and_then(|b| b.sorting_columns()).cloned())
        .set_column_metadata(columns);
    if let Some(offset) = base.map_or_else(|| sidecar.file_offset(), RowGroupMetaData::file_offset) {
        group = group.set_file_offset(offset);
    }
    if let Some(ordinal) = base.map_or_else(|| sidecar.ordinal(), RowGroupMetaData::ordinal) {
        group = group.set_ordinal(ordinal);
    }
    group.build()
}

fn without_index(chunk: &ColumnChunkMetaData) -> ParquetResult<ColumnChunkMetaData> {
    chunk
        .clone()
        .into_builder()
        .set_column_index_offset(None)
        .set_column_index_length(None)
        .set_offset_index_offset(None)
        .set_offset_index_length(None)
        .build()
}

/// The key-values of the base, with the Arrow schema (if one is stored) extended by the sidecar's columns.
fn composed_key_values(base: Option<BasePart<'_>>, sidecar: &ParquetMetaData, served: &[Served]) -> ParquetResult<Option<Vec<KeyValue>>> {
    let main = base.map_or(sidecar, |b| b.metadata).file_metadata();
    let Some(key_values) = main.key_value_metadata() else { return Ok(None) };
    let mut composed = vec![];
    for entry in key_values {
        if entry.key != ARROW_SCHEMA_META_KEY {
            composed.push(entry.clone());
            continue;
        }
        let (mut fields, metadata) = match base {
            Some(_) => {
                let schema = parquet_to_arrow_schema(main.schema_descr(), Some(key_values))?;
                (schema.fields().to_vec(), schema.metadata().clone())
            }
            None => Default::default(),
        };
        fields.extend(served_fields(sidecar, served)?);
        let schema = Schema::new_with_metadata(fields, metadata);
        composed.push(KeyValue::new(entry.key.clone(), encode_arrow_schema(&schema)));
    }
    Ok(Some(composed))
}

fn served_fields(sidecar: &ParquetMetaData, served: &[Served]) -> ParquetResult<Vec<FieldRef>> {
    let file = sidecar.file_metadata();
    let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())?;
    served.iter().map(|s| Ok(Arc::new(element(schema.fields(), s.leaf)?.as_ref().clone().with_name(&s.name)))).collect()
}
