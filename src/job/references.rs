//! The two reference files: rows with an id, a mass, a category and the corpus's columns.

use super::contents::contents_of;
use super::encoder::{RowColumns, RowEncoder};
use crate::error::{Error, Result, nearest};
use crate::shard::ShardFormat;
use crate::storage::Location;
use crate::transport::ReferenceSet;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::ipc::reader::FileReader;
use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema_from_seekable;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;

pub use crate::catalog::Side;

/// One reference file, read and not yet embedded.
#[derive(Debug, Clone)]
pub struct ReferenceRows {
    /// The set.
    pub side: Side,
    /// The file.
    pub location: String,
    /// Hex BLAKE3 of the file's bytes.
    pub digest: String,
    /// Each row's `id`, or `safe-<row>` where the file has no such column. Unique.
    pub ids: Vec<String>,
    /// Each row's `mass`, or 1.
    pub masses: Vec<f64>,
    /// Each row's `category`, where there is one.
    pub categories: Vec<Option<String>>,
    /// The columns that are embedded: the views, and then the fallback where the file has it.
    pub batch: RecordBatch,
    /// How many of them are views.
    pub views: usize,
}

impl ReferenceRows {
    /// Reads one file: Parquet, Arrow or JSON lines, told by its ending (anything else is read as JSON lines).
    ///
    /// # Errors
    /// [`Error::References`] for a file that cannot be parsed, has no rows or an unusable mass, [`Error::Column`] for a column
    /// that is missing.
    pub async fn read(side: Side, location: &Location, columns: &RowColumns) -> Result<Self> {
        let bytes = location.read().await?;
        Self::parse(side, &location.to_string(), bytes, columns)
    }

    fn parse(side: Side, location: &str, bytes: Bytes, columns: &RowColumns) -> Result<Self> {
        let failed = |reason: String| Error::References { location: location.to_owned(), reason };
        let digest = blake3::hash(&bytes).to_hex()[..32].to_owned();
        let (schema, batches) = decode(location, bytes).map_err(|e| failed(format!("cannot be read: {e}")))?;
        let table = concat_batches(&schema, &batches).map_err(|e| failed(e.to_string()))?;
        if table.num_rows() == 0 {
            return Err(failed("has no rows; a reference set needs at least one".into()));
        }
        let ids = ids(side, &table).map_err(&failed)?;
        let masses = masses(&table).map_err(&failed)?;
        let categories = match table.column_by_name("category") {
            Some(column) => strings(column).map_err(|e| failed(format!("column `category`: {e}")))?,
            None => vec![None; table.num_rows()],
        };
        let mut positions = Vec::new();
        for column in columns.views() {
            positions.push(schema.index_of(column).map_err(|_| missing(location, column, &schema))?);
        }
        // A reference file without plain documents has no use for the fallback.
        positions.extend(columns.fallback().and_then(|column| schema.index_of(column).ok()));
        let batch = table.project(&positions).map_err(|e| failed(e.to_string()))?;
        Ok(Self { side, location: location.to_owned(), digest, ids, masses, categories, batch, views: columns.views().len() })
    }

    /// Embeds the rows.
    ///
    /// # Errors
    /// [`Error::References`] for a row without text.
    pub fn embed(&self, encoder: &RowEncoder) -> Result<ReferenceSet> {
        let rows = encoder.encode(&self.location, &self.batch)?;
        let without: Vec<&str> = self.ids.iter().zip(&rows.present).filter(|(_, present)| !**present).map(|(id, _)| id.as_str()).collect();
        if !without.is_empty() {
            let reason = format!("{} without any text ({}): remove them", count(without.len(), "row"), some_of(&without));
            return Err(Error::References { location: self.location.clone(), reason });
        }
        ReferenceSet::try_new(rows.vectors, self.masses.clone())
            .map_err(|e| Error::References { location: self.location.clone(), reason: e.to_string() })
    }

    /// One text for a person: the texts that are embedded, a line each. Empty where the columns are vectors.
    pub fn text(&self, row: usize) -> String {
        let text = |column: &ArrayRef| strings(&column.slice(row, 1)).ok()?.pop()?;
        let (views, fallback) = self.batch.columns().split_at(self.views.min(self.batch.num_columns()));
        let texts: Vec<String> = views.iter().filter_map(text).collect();
        if texts.is_empty() { fallback.iter().find_map(text).unwrap_or_default() } else { texts.join("\n") }
    }
}

/// Refuses rows that are in both sets. What else is wrong with them is told after the fit, see `hygiene`.
///
/// # Errors
/// [`Error::References`] with their number and ids.
pub fn check_disjoint(safe: &ReferenceRows, harm: &ReferenceRows, columns: &RowColumns) -> Result<()> {
    let (in_safe, in_harm) = (contents_of(safe, columns)?, contents_of(harm, columns)?);
    let safe_ids: HashMap<_, _> = in_safe.iter().zip(&safe.ids).collect();
    let both: Vec<String> = in_harm
        .iter()
        .zip(&harm.ids)
        // A row without text is refused when it is embedded.
        .filter(|(content, _)| !content.is_empty())
        .filter_map(|(content, id)| safe_ids.get(content).map(|safe_id| format!("{id} = {safe_id}")))
        .collect();
    if both.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = both.iter().map(String::as_str).collect();
    let reason = format!("{} also in {}: {}; a row cannot be safe and harmful", count(both.len(), "row"), safe.location, some_of(&shown));
    Err(Error::References { location: harm.location.clone(), reason })
}

fn decode(location: &str, bytes: Bytes) -> std::result::Result<(SchemaRef, Vec<RecordBatch>), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    match ShardFormat::of(location) {
        Some(ShardFormat::Parquet) => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| text(&e))?;
            let schema = Arc::clone(reader.schema());
            let batches = reader.build().map_err(|e| text(&e))?.collect::<std::result::Result<_, _>>().map_err(|e| text(&e))?;
            Ok((schema, batches))
        }
        Some(ShardFormat::Arrow) => {
            let reader = FileReader::try_new(Cursor::new(bytes), None).map_err(|e| text(&e))?;
            let schema = reader.schema();
            Ok((schema, reader.collect::<std::result::Result<_, _>>().map_err(|e| text(&e))?))
        }
        None => {
            if bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok((Arc::new(arrow::datatypes::Schema::empty()), Vec::new()));
            }
            let mut lines = Cursor::new(&bytes);
            let (schema, _) = infer_json_schema_from_seekable(&mut lines, None).map_err(|e| text(&e))?;
            let schema = Arc::new(schema);
            let reader = ReaderBuilder::new(Arc::clone(&schema)).build(Cursor::new(&bytes)).map_err(|e| text(&e))?;
            Ok((schema, reader.collect::<std::result::Result<_, _>>().map_err(|e| text(&e))?))
        }
    }
}

fn ids(side: Side, table: &RecordBatch) -> std::result::Result<Vec<String>, String> {
    let Some(column) = table.column_by_name("id") else {
        return Ok((0..table.num_rows()).map(|row| format!("{}-{row}", side.name())).collect());
    };
    let ids = strings(column).map_err(|e| format!("column `id`: {e}"))?;
    let ids: Option<Vec<String>> = ids.into_iter().collect();
    let ids = ids.ok_or("column `id` has nulls")?;
    let mut seen = HashMap::new();
    for (row, id) in ids.iter().enumerate() {
        if let Some(first) = seen.insert(id, row) {
            return Err(format!("rows {first} and {row} have the same id {id:?}"));
        }
    }
    Ok(ids)
}

fn masses(table: &RecordBatch) -> std::result::Result<Vec<f64>, String> {
    let Some(column) = table.column_by_name("mass") else { return Ok(vec![1.0; table.num_rows()]) };
    let column = cast(column, &DataType::Float64).map_err(|e| format!("column `mass`: {e}"))?;
    let masses = column.as_primitive::<Float64Type>();
    (0..masses.len())
        .map(|row| match masses.is_valid(row).then(|| masses.value(row)) {
            Some(mass) if mass.is_finite() && mass > 0.0 => Ok(mass),
            found => Err(format!("row {row} has mass {found:?}; a mass is a positive number")),
        })
        .collect()
}

fn strings(column: &ArrayRef) -> std::result::Result<Vec<Option<String>>, String> {
    let column = cast(column, &DataType::Utf8).map_err(|e| e.to_string())?;
    Ok(column.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect())
}

fn missing(location: &str, column: &str, schema: &SchemaRef) -> Error {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let reason = match nearest(column, names.iter().copied()) {
        Some(name) => format!("is missing; did you mean `{name}`? References need the corpus's columns"),
        None => format!("is missing; references need the corpus's columns, there are: {}", names.join(", ")),
    };
    Error::Column { object: format!("references {location}"), column: column.to_owned(), reason }
}

pub(super) fn some_of(names: &[&str]) -> String {
    let shown = names[..names.len().min(5)].join(", ");
    if names.len() > 5 { format!("{shown}, …") } else { shown }
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun} is") } else { format!("{n} {noun}s are") }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn encoder(columns: &str) -> RowEncoder {
        let job = format!("[corpus]\nurl='c'\n{columns}\n[references]\nsafe='s'\nharm='h'\n[output]\nurl='o'");
        let job = super::super::file::JobFile::parse(&job, &[]).unwrap();
        RowEncoder::load(&job, &crate::storage::Stores::new(".")).await.unwrap()
    }

    fn read(side: Side, lines: &str, encoder: &RowEncoder) -> Result<ReferenceRows> {
        ReferenceRows::parse(side, "refs.jsonl", Bytes::from(lines.to_owned()), encoder.columns())
    }

    #[tokio::test]
    async fn json_lines_with_ids_masses_and_categories() {
        let encoder = encoder("text=['prompt','response']").await;
        let rows = read(
            Side::Safe,
            "{\"id\": 7, \"prompt\": \"hello\", \"response\": \"hi\", \"mass\": 2, \"category\": \"greeting\"}\n{\"id\": 8, \"prompt\": \"a\", \"response\": null, \"mass\": 1.5}\n",
            &encoder,
        )
        .unwrap();
        assert_eq!((rows.ids.clone(), rows.masses.clone()), (vec!["7".to_owned(), "8".to_owned()], vec![2.0, 1.5]));
        assert_eq!(rows.categories, [Some("greeting".to_owned()), None]);
        assert_eq!(rows.text(0), "hello\nhi");
        assert_eq!(rows.embed(&encoder).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named() {
        let encoder = encoder("text=['prompt','response']").await;
        let error = |lines: &str| read(Side::Harm, lines, &encoder).unwrap_err().to_string();
        assert!(error("").contains("no rows"));
        assert!(error("{\"promt\": \"a\", \"response\": \"b\"}").contains("did you mean `promt`"));
        assert!(error("{\"prompt\": \"a\", \"response\": \"b\", \"mass\": 0}").contains("mass"));
        assert!(
            error("{\"prompt\": \"a\", \"response\": \"b\", \"id\": 1}\n{\"prompt\": \"c\", \"response\": \"b\", \"id\": 1}")
                .contains("same id")
        );
        assert!(error("{\"prompt\": ").contains("cannot be read"));
        let empty = read(
            Side::Harm,
            "{\"prompt\": null, \"response\": null, \"id\": \"x9\"}\n{\"prompt\": \"a\", \"response\": \"b\", \"id\": \"x8\"}",
            &encoder,
        )
        .unwrap();
        assert!(empty.embed(&encoder).unwrap_err().to_string().contains("x9"));
    }

    #[tokio::test]
    async fn a_row_on_both_sides_is_refused_with_its_ids() {
        let encoder = encoder("text=['prompt','response']").await;
        let safe = read(
            Side::Safe,
            "{\"prompt\": \"a\", \"response\": \"b\", \"id\": \"s\"}\n{\"prompt\": \"a\", \"response\": \"c\", \"id\": \"t\"}",
            &encoder,
        )
        .unwrap();
        let harm = read(Side::Harm, "{\"prompt\": \"a \", \"response\": \"c\", \"id\": \"h\"}", &encoder).unwrap();
        let error = check_disjoint(&safe, &harm, encoder.columns()).unwrap_err().to_string();
        assert!(error.contains("h = t") && error.contains("1 row is"), "{error}");
    }
}
