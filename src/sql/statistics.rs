//! Statistics of a shard for the planner: in go footers that are in memory, out come row counts and bounds that may be believed.
//!
//! The planner answers `count(*)`, `min` and `max` from exact statistics and replaces columns that are constant, so whatever could
//! be wrong is left unknown: nested columns, columns read in another type, bounds that not every row group states, and bounds of
//! floating-point base columns, which leave out NaN.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Result as DfResult, ScalarValue, Statistics};
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::file::metadata::ParquetMetaData;

use super::columns::CorpusColumns;
use super::merge::compose;
use super::reader::{Shard, external};

/// Statistics of `shard` over the columns of a scanned file, from its base's footer if `base` and from its sidecar's if that has
/// been read; `None` if the row count is not known.
pub(super) fn shard_statistics(shard: &Shard, columns: &CorpusColumns, base: bool) -> DfResult<Option<Statistics>> {
    let base = shard.base.known_footer().filter(|_| base);
    let sidecar = match shard.sidecar.as_ref().and_then(|s| s.known_footer()) {
        Some(footer) => Some(compose(shard.name(), None, footer, &columns.names).map_err(external)?),
        None => None,
    };
    let base = base.map(|footer| believable(footer, columns, false)).transpose()?;
    let weights = sidecar.map(|footer| believable(&footer, columns, true)).transpose()?;
    let Some(num_rows) = base.as_ref().or(weights.as_ref()).map(|s| s.num_rows) else { return Ok(None) };
    let column = |index: usize| {
        let part = if columns.is_base(index) || shard.sidecar.is_none() { &base } else { &weights };
        part.as_ref().and_then(|s| s.column_statistics.get(index).cloned()).unwrap_or_default()
    };
    let column_statistics = (0..columns.file.fields().len()).map(column).collect();
    Ok(Some(Statistics { num_rows, total_byte_size: Precision::Absent, column_statistics }))
}

fn believable(footer: &ParquetMetaData, columns: &CorpusColumns, ours: bool) -> DfResult<Statistics> {
    let file = footer.file_metadata();
    let found = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())?;
    let mut statistics = DFParquetMetadata::statistics_from_parquet_metadata(footer, &columns.file)?;
    for (field, column) in columns.file.fields().iter().zip(&mut statistics.column_statistics) {
        let same_type = found.field_with_name(field.name()).map_or(true, |f| f.data_type() == field.data_type());
        let floating = matches!(field.data_type(), DataType::Float16 | DataType::Float32 | DataType::Float64);
        if !same_type || field.data_type().is_nested() {
            *column = ColumnStatistics::new_unknown();
        } else if (floating && !ours) || !bounds_are_complete(footer, &found, field.name()) {
            *column = column.clone().to_inexact();
        }
        // No value at all is told by the null count; as a bound it would be taken for one.
        for bound in [&mut column.min_value, &mut column.max_value] {
            if bound.get_value().is_some_and(ScalarValue::is_null) {
                *bound = Precision::Absent;
            }
        }
    }
    Ok(statistics)
}

/// Whether each row group states the bounds of `column` or has nothing but nulls in it.
fn bounds_are_complete(footer: &ParquetMetaData, found: &Schema, column: &str) -> bool {
    if found.field_with_name(column).is_err() {
        return true; // not in this file: all NULL, which the planner is told as such
    }
    let leaves = footer.file_metadata().schema_descr();
    let Some(leaf) = leaves.columns().iter().position(|c| c.path().parts() == [column]) else { return false };
    footer.row_groups().iter().filter(|g| g.num_rows() > 0).all(|group| {
        let chunk = group.column(leaf);
        chunk.statistics().is_some_and(|s| {
            let all_null = s.null_count_opt().is_some_and(|n| i64::try_from(n).is_ok_and(|n| n == chunk.num_values()));
            all_null || (s.null_count_opt().is_some() && s.min_bytes_opt().is_some() && s.max_bytes_opt().is_some())
        })
    })
}

/// Statistics of all files of a scan over its table schema, or unknown ones if a file has none.
pub(super) fn scan_statistics(files: &[Option<Arc<Statistics>>], schema: &Schema) -> DfResult<Statistics> {
    let known: Vec<&Statistics> = files.iter().flatten().map(Arc::as_ref).collect();
    if known.len() < files.len() || known.is_empty() {
        return Ok(Statistics::new_unknown(schema));
    }
    Statistics::try_merge_iter(known, schema)
}
