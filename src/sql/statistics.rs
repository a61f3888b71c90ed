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

use super::columns::{CorpusColumns, KNOWN, WEIGHT_COLUMNS};
use super::merge::compose;
use super::reader::{Shard, external};

/// Statistics of `shard` over the columns of a scanned file and the constants: its rows and weights as they were published, and what
/// the footers that are in memory say, of the base's if `base`. Only the columns `wanted` are looked up in footers: a corpus may have
/// very many shards.
pub(super) fn shard_statistics(shard: &Shard, columns: &CorpusColumns, wanted: &[usize], base: bool) -> DfResult<Statistics> {
    let base = shard.base.known_footer().filter(|_| base && shard.is_parquet());
    let sidecar = shard.sidecar.as_ref().and_then(|s| s.known_footer());
    let mut statistics = Statistics::new_unknown(&columns.file);
    let of_footer = base.as_ref().and_then(|footer| u64::try_from(footer.file_metadata().num_rows()).ok());
    let rows = of_footer.or(shard.rows).and_then(|rows| usize::try_from(rows).ok());
    statistics.num_rows = rows.map_or(Precision::Absent, Precision::Exact);
    // Without a sidecar the base answers for the weight columns: it has none of them, so they are all NULL.
    let (of_base, of_sidecar): (Vec<_>, Vec<_>) = wanted.iter().partition(|i| columns.is_base(**i) || shard.sidecar.is_none());
    let mut known = vec![];
    if let Some(footer) = &base {
        known.extend(believable(footer, columns, of_base, false)?);
    }
    if let Some(footer) = sidecar.filter(|_| !of_sidecar.is_empty()) {
        let footer = compose(shard.pair().map_err(external)?, None, &footer, &columns.names).map_err(external)?;
        known.extend(believable(&footer, columns, of_sidecar, true)?);
    }
    for (index, column) in known {
        if let Some(place) = statistics.column_statistics.get_mut(index) {
            *place = column;
        }
    }
    published_weights(shard, columns, rows, &mut statistics);
    statistics.column_statistics.extend(shard.constants.iter().map(|value| constant(value, rows)));
    Ok(statistics)
}

/// Adds what the log says of the weights.
fn published_weights(shard: &Shard, columns: &CorpusColumns, rows: Option<usize>, statistics: &mut Statistics) {
    for (name, kind) in WEIGHT_COLUMNS.iter().skip(KNOWN) {
        let place = columns.weight_column(name).map(|index| columns.scan_index(index));
        let Some(column) = place.and_then(|place| statistics.column_statistics.get_mut(place)) else { continue };
        let Some(sidecar) = &shard.listed.sidecar else {
            (column.min_value, column.max_value) = (Precision::Absent, Precision::Absent);
            column.null_count = rows.map_or(Precision::Absent, Precision::Exact);
            continue;
        };
        let unweighed = usize::try_from(sidecar.unweighed).map_or(Precision::Absent, Precision::Exact);
        match *name {
            "weight" => {
                column.null_count = unweighed;
                if let Some((low, high)) = sidecar.weight_range {
                    let bound = |weight: f32| Precision::Exact(ScalarValue::Float32(Some(weight)));
                    (column.min_value, column.max_value) = (bound(low), bound(high));
                }
            }
            "row" => {
                column.null_count = Precision::Exact(0);
                if let Some(last) = sidecar.rows.checked_sub(1).and_then(|last| i64::try_from(last).ok()) {
                    let bound = |row: i64| Precision::Exact(ScalarValue::Int64(Some(row)));
                    (column.min_value, column.max_value) = (bound(0), bound(last));
                }
            }
            _ if *kind == DataType::Float32 => column.null_count = unweighed,
            _ => {}
        }
    }
}

/// A column that has one value in all rows.
fn constant(value: &ScalarValue, rows: Option<usize>) -> ColumnStatistics {
    let mut column = ColumnStatistics::new_unknown();
    match (value.is_null(), rows) {
        (true, _) => column.null_count = rows.map_or(Precision::Absent, Precision::Exact),
        (false, Some(0)) => column.null_count = Precision::Exact(0),
        (false, _) => {
            column.null_count = Precision::Exact(0);
            (column.min_value, column.max_value) = (Precision::Exact(value.clone()), Precision::Exact(value.clone()));
        }
    }
    column
}

/// The statistics of the columns `wanted` (places in a scanned file) as far as `footer` can be believed; `ours`: a sidecar's.
fn believable(
    footer: &ParquetMetaData,
    columns: &CorpusColumns,
    wanted: Vec<usize>,
    ours: bool,
) -> DfResult<impl Iterator<Item = (usize, ColumnStatistics)>> {
    let file = footer.file_metadata();
    let found = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())?;
    let schema = Arc::new(columns.file.project(&wanted)?);
    let mut statistics = DFParquetMetadata::statistics_from_parquet_metadata(footer, &schema)?;
    for (field, column) in schema.fields().iter().zip(&mut statistics.column_statistics) {
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
    Ok(wanted.into_iter().zip(statistics.column_statistics))
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
    let mut merged = Statistics::try_merge_iter(known.iter().copied(), schema)?;
    for (index, column) in merged.column_statistics.iter_mut().enumerate() {
        if let Some((low, high)) = exact_bounds(&known, index) {
            (column.min_value, column.max_value) = (Precision::Exact(low), Precision::Exact(high));
        }
    }
    Ok(merged)
}

/// The bounds of a column over files that all state theirs, those apart that have no value in it.
fn exact_bounds(files: &[&Statistics], index: usize) -> Option<(ScalarValue, ScalarValue)> {
    let mut bounds: Option<(ScalarValue, ScalarValue)> = None;
    for file in files {
        let column = file.column_statistics.get(index)?;
        if let (Precision::Exact(nulls), Precision::Exact(rows)) = (&column.null_count, &file.num_rows)
            && nulls == rows
        {
            continue;
        }
        let (Precision::Exact(low), Precision::Exact(high)) = (&column.min_value, &column.max_value) else { return None };
        bounds = Some(match bounds {
            None => (low.clone(), high.clone()),
            Some((least, most)) => {
                let below = low.partial_cmp(&least)?.is_lt();
                let above = high.partial_cmp(&most)?.is_gt();
                (if below { low.clone() } else { least }, if above { high.clone() } else { most })
            }
        });
    }
    bounds
}
