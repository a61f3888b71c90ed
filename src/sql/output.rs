//! Query results as text or as a file: in go record batches, out go bytes in one of four formats.

use std::io::Write;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::csv::WriterBuilder as CsvBuilder;
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{LineDelimited, Writer as JsonWriter, WriterBuilder as JsonBuilder};
use arrow::util::pretty::pretty_format_batches_with_schema;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::session::QueryRows;
use crate::error::{BoxError, Error, Result, nearest};

/// Characters of a text that a table for people shows.
pub const TABLE_TEXT: usize = 48;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputFormat {
    /// A table for people, drawn when all rows are known: all rows are held in memory. Texts are cut to one line of
    /// [`TABLE_TEXT`] characters and numbers to four decimals; the other formats hold them whole. The default.
    #[default]
    Table,
    /// Comma-separated values with a header line; NULL is empty. Nested columns cannot be written.
    Csv,
    /// One JSON object a line; every column is present, NULL is `null`.
    Json,
    /// A Parquet file, compressed with Zstandard.
    Parquet,
}

impl FromStr for OutputFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "table" => Ok(Self::Table),
            "csv" => Ok(Self::Csv),
            "json" => Ok(Self::Json),
            "parquet" => Ok(Self::Parquet),
            other => {
                let hint = nearest(other, ["table", "csv", "json", "parquet"]).map(|n| format!(", did you mean `{n}`?"));
                let reason = format!("`{other}` is not one of table, csv, json, parquet{}", hint.unwrap_or_default());
                Err(Error::InvalidOption { name: "format".to_owned(), reason })
            }
        }
    }
}

/// Writes `batches`, all of `schema`, to `writer`. Without rows the header (csv), the empty table or the empty file is written.
///
/// # Errors
/// [`Error::Query`] if a column's type has no form in `format` or if `writer` fails.
pub fn write_batches<W: Write + Send>(format: OutputFormat, schema: &SchemaRef, batches: &[RecordBatch], writer: W) -> Result<()> {
    let mut out = RowWriter::try_new(format, schema, writer)?;
    for batch in batches {
        out.write(batch)?;
    }
    out.finish()
}

/// Writes the rows of a query as they come and returns their number. [`OutputFormat::Table`] holds them until the last has come,
/// the other formats hold one batch (Parquet: one row group).
///
/// # Errors
/// As [`write_batches`] and [`QueryRows::next`].
pub async fn write_rows<W: Write + Send>(format: OutputFormat, mut rows: QueryRows, writer: W) -> Result<u64> {
    let mut out = RowWriter::try_new(format, &rows.schema(), writer)?;
    let mut count = 0;
    while let Some(batch) = rows.next().await? {
        out.write(&batch)?;
        count += batch.num_rows() as u64;
    }
    out.finish()?;
    Ok(count)
}

enum RowWriter<W: Write + Send> {
    Table { schema: SchemaRef, batches: Vec<RecordBatch>, writer: W },
    Csv(Box<arrow::csv::Writer<W>>),
    Json(Box<JsonWriter<W, LineDelimited>>),
    Parquet(Box<ArrowWriter<W>>),
}

impl<W: Write + Send> RowWriter<W> {
    fn try_new(format: OutputFormat, schema: &SchemaRef, writer: W) -> Result<Self> {
        match format {
            OutputFormat::Table => Ok(Self::Table { schema: Arc::clone(schema), batches: vec![], writer }),
            OutputFormat::Csv => {
                if let Some(nested) = schema.fields().iter().find(|f| f.data_type().is_nested() && !is_dictionary(f.data_type())) {
                    let reason = format!("column `{}` is {}, which csv cannot hold: use json", nested.name(), nested.data_type());
                    return Err(Error::Query { reason, source: None });
                }
                let mut csv = CsvBuilder::new().with_header(true).build(writer);
                // An empty batch writes the header, also where no rows follow.
                csv.write(&RecordBatch::new_empty(Arc::clone(schema))).map_err(arrow_error)?;
                Ok(Self::Csv(Box::new(csv)))
            }
            OutputFormat::Json => Ok(Self::Json(Box::new(JsonBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(writer)))),
            OutputFormat::Parquet => {
                let level = ZstdLevel::try_new(3).map_err(parquet_error)?;
                let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
                let parquet = ArrowWriter::try_new(writer, Arc::clone(schema), Some(properties)).map_err(parquet_error)?;
                Ok(Self::Parquet(Box::new(parquet)))
            }
        }
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Self::Table { batches, .. } => {
                batches.push(batch.clone());
                Ok(())
            }
            Self::Csv(csv) => csv.write(batch).map_err(arrow_error),
            Self::Json(json) => json.write(batch).map_err(arrow_error),
            Self::Parquet(parquet) => parquet.write(batch).map_err(parquet_error),
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Table { schema, batches, mut writer } => {
                let shown = batches.iter().map(for_people).collect::<std::result::Result<Vec<_>, _>>().map_err(arrow_error)?;
                let schema = shown.first().map_or(schema, RecordBatch::schema);
                let table = pretty_format_batches_with_schema(schema, &shown).map_err(arrow_error)?;
                writeln!(writer, "{table}").and_then(|()| writer.flush()).map_err(io_error)
            }
            Self::Csv(csv) => csv.into_inner().flush().map_err(io_error),
            Self::Json(mut json) => {
                json.finish().map_err(arrow_error)?;
                json.into_inner().flush().map_err(io_error)
            }
            Self::Parquet(mut parquet) => parquet.finish().map(drop).map_err(parquet_error),
        }
    }
}

/// The same rows with texts and numbers cut to what a person reads.
fn for_people(batch: &RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        let shown: ArrayRef = match column.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                let texts = cast(column, &DataType::LargeUtf8)?;
                Arc::new(texts.as_string::<i64>().iter().map(|text| text.map(one_line)).collect::<StringArray>())
            }
            DataType::Float32 | DataType::Float64 => {
                let numbers = cast(column, &DataType::Float64)?;
                Arc::new(numbers.as_primitive::<Float64Type>().iter().map(|number| number.map(four_decimals)).collect::<StringArray>())
            }
            _ => Arc::clone(column),
        };
        Ok((field.name().clone(), shown, true))
    });
    RecordBatch::try_from_iter_with_nullable(columns.collect::<std::result::Result<Vec<_>, ArrowError>>()?)
}

fn one_line(text: &str) -> String {
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(TABLE_TEXT + 1).collect();
    if line.chars().count() > TABLE_TEXT {
        line.pop();
        line.push('…');
    }
    line
}

/// Small numbers keep their order of magnitude.
fn four_decimals(number: f64) -> String {
    if number == 0.0 || number.abs() >= 1e-3 { format!("{number:.4}") } else { format!("{number:.2e}") }
}

fn is_dictionary(kind: &DataType) -> bool {
    matches!(kind, DataType::Dictionary(..))
}

/// The innermost IO error is kept reachable, so that a caller can tell a closed pipe from a full disk.
fn failed(error: BoxError) -> Error {
    Error::Query { reason: format!("its result cannot be written: {error}"), source: Some(error) }
}

fn io_error(error: std::io::Error) -> Error {
    failed(Box::new(error))
}

fn arrow_error(error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, inner) => io_error(inner),
        other => failed(Box::new(other)),
    }
}

fn parquet_error(error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) => failed(inner),
        other => failed(Box::new(other)),
    }
}
