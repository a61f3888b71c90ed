//! A sidecar's own rows: in go record batches of its columns, out come the rows as they were written, for new weights from stored numbers.

use super::sidecar::{ReferenceIds, SidecarRow};
use crate::embed::WindowPlace;
use crate::error::{Error, Result};
use crate::transport::RowWeight;
use arrow::array::{Array, AsArray, Float32Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Int64Type};
use std::collections::HashMap;

/// The columns a score is made of, as [`stored_terms`] takes them.
pub const TERM_COLUMNS: [&str; 3] = ["pull", "push", "prior"];
/// The columns of a whole row but its place, as [`StoredRows::decode`] takes them.
pub const STORED_ROW_COLUMNS: [&str; 8] = ["weight", "pull", "push", "prior", "safe_ref", "harm_ref", "window", "window_view"];

/// Pull, push and prior of rows whose columns are [`TERM_COLUMNS`]; `None` for a row without text.
///
/// # Errors
/// [`Error::Column`] naming `object` where a column is no f32.
pub fn stored_terms(object: &str, batch: &RecordBatch) -> Result<Vec<Option<[f32; 3]>>> {
    let columns = [number(object, batch, 0)?, number(object, batch, 1)?, number(object, batch, 2)?];
    let row = |row: usize| columns[0].is_valid(row).then(|| [0, 1, 2].map(|term| columns[term].value(row)));
    Ok((0..batch.num_rows()).map(row).collect())
}

/// Turns the names in sidecars back into positions.
#[derive(Debug)]
pub struct StoredRows {
    safe: HashMap<String, u32>,
    harm: HashMap<String, u32>,
    columns: HashMap<String, usize>,
}

impl StoredRows {
    /// For sidecars whose references have these names and whose windows are in these columns, both as for the writer.
    pub fn new(ids: &ReferenceIds, columns: &[String]) -> Self {
        let positions = |names: &[String]| names.iter().cloned().zip(0..).collect();
        Self { safe: positions(&ids.safe), harm: positions(&ids.harm), columns: columns.iter().cloned().zip(0..).collect() }
    }

    /// The rows of a batch whose columns are [`STORED_ROW_COLUMNS`], each as it was written; `None` for a row without text.
    ///
    /// # Errors
    /// [`Error::Column`] naming `object` for a column of another type and for a name that is unknown.
    pub fn decode(&self, object: &str, batch: &RecordBatch) -> Result<Vec<Option<SidecarRow>>> {
        let [weight, pull, push, prior] =
            [number(object, batch, 0)?, number(object, batch, 1)?, number(object, batch, 2)?, number(object, batch, 3)?];
        let (safe, harm, views) = (text(object, batch, 4)?, text(object, batch, 5)?, text(object, batch, 7)?);
        let windows = batch.column(6).as_primitive_opt::<Int64Type>().ok_or_else(|| unusable(object, 6, batch.column(6).data_type()))?;
        let known = |at: usize, place: Option<u32>, name: &str| {
            place.ok_or_else(|| Error::Column {
                object: object.to_owned(),
                column: STORED_ROW_COLUMNS[at].to_owned(),
                reason: format!("names {name:?}, which the model does not know"),
            })
        };
        let mut rows = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            if pull.is_null(row) {
                rows.push(None);
                continue;
            }
            let window = match views.is_valid(row) && windows.is_valid(row) {
                true => {
                    let column = self.columns.get(views.value(row)).copied();
                    let column = known(7, column.and_then(|column| u32::try_from(column).ok()), views.value(row))? as usize;
                    Some(WindowPlace { column, offset: usize::try_from(windows.value(row)).unwrap_or_default() })
                }
                false => None,
            };
            let weight = RowWeight {
                weight: weight.value(row),
                pull: pull.value(row),
                push: push.value(row),
                prior: prior.value(row),
                safe_ref: known(4, self.safe.get(safe.value(row)).copied(), safe.value(row))?,
                harm_ref: known(5, self.harm.get(harm.value(row)).copied(), harm.value(row))?,
            };
            rows.push(Some(SidecarRow { weight, window }));
        }
        Ok(rows)
    }
}

fn number<'a>(object: &str, batch: &'a RecordBatch, at: usize) -> Result<&'a Float32Array> {
    let column = batch.column(at);
    column.as_primitive_opt::<Float32Type>().ok_or_else(|| Error::Column {
        object: object.to_owned(),
        column: batch.schema().field(at).name().clone(),
        reason: format!("is {}, not a f32", column.data_type()),
    })
}

fn text(object: &str, batch: &RecordBatch, at: usize) -> Result<StringArray> {
    let column = cast(batch.column(at), &DataType::Utf8).map_err(|_| unusable(object, at, batch.column(at).data_type()))?;
    Ok(column.as_string::<i32>().clone())
}

fn unusable(object: &str, at: usize, kind: &DataType) -> Error {
    Error::Column {
        object: object.to_owned(),
        column: STORED_ROW_COLUMNS[at].to_owned(),
        reason: format!("is {kind}, not what a sidecar has there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Location;
    use crate::writeback::{SidecarIdentity, SidecarWriter, sidecar_schema};
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn ids() -> ReferenceIds {
        ReferenceIds { safe: (0..3).map(|i| format!("s{i}")).collect(), harm: (0..4).map(|i| format!("h{i}")).collect() }
    }

    fn rows() -> impl Strategy<Value = Vec<Option<SidecarRow>>> {
        let weight = (0f32..9.0, -2f32..2.0, -2f32..2.0, 0f32..1.0, 0u32..3, 0u32..4)
            .prop_map(|(weight, pull, push, prior, safe_ref, harm_ref)| RowWeight { weight, pull, push, prior, safe_ref, harm_ref });
        let window = proptest::option::of((0usize..2, 0usize..5000)).prop_map(|w| w.map(|(column, offset)| WindowPlace { column, offset }));
        let row = proptest::option::weighted(0.9, (weight, window).prop_map(|(weight, window)| SidecarRow { weight, window }));
        proptest::collection::vec(row, 0..200)
    }

    async fn written(rows: &[Option<SidecarRow>]) -> RecordBatch {
        let output = Location::new(Arc::new(InMemory::new()), Path::from("out"), "memory://out".into());
        let identity = SidecarIdentity { shard: "a".into(), shard_version: "v".into(), shard_size: 9, model: "m".into() };
        let columns = Arc::from(["prompt".to_owned(), "text".to_owned()]);
        let mut writer = SidecarWriter::try_new(&output, identity, &[rows.len() as u64], Arc::new(ids()), columns).unwrap();
        writer.write(rows).await.unwrap();
        let receipt = writer.finish().await.unwrap();
        let bytes = output.join(&receipt.path).read().await.unwrap();
        let batches: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap().map(Result::unwrap).collect();
        arrow::compute::concat_batches(&sidecar_schema(), &batches).unwrap()
    }

    fn projected(batch: &RecordBatch, names: &[&str]) -> RecordBatch {
        batch.project(&names.iter().map(|name| batch.schema().index_of(name).unwrap()).collect::<Vec<_>>()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn rows_come_back_as_they_were_written(rows in rows()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let batch = runtime.block_on(written(&rows));
            let stored = StoredRows::new(&ids(), &["prompt".to_owned(), "text".to_owned()]);
            prop_assert_eq!(&stored.decode("a", &projected(&batch, &STORED_ROW_COLUMNS)).unwrap(), &rows);
            let terms = stored_terms("a", &projected(&batch, &TERM_COLUMNS)).unwrap();
            let expected: Vec<_> = rows.iter().map(|r| r.map(|r| [r.weight.pull, r.weight.push, r.weight.prior])).collect();
            prop_assert_eq!(terms, expected);
        }
    }

    #[tokio::test]
    async fn names_of_another_model_are_refused() {
        let weight = RowWeight { weight: 1.0, pull: 0.0, push: 0.0, prior: 0.0, safe_ref: 2, harm_ref: 3 };
        let batch = written(&[Some(SidecarRow { weight, window: None })]).await;
        let other = ReferenceIds { safe: vec!["s0".into()], harm: ids().harm };
        let error = StoredRows::new(&other, &[]).decode("x", &projected(&batch, &STORED_ROW_COLUMNS)).unwrap_err().to_string();
        assert!(error.contains("x: column `safe_ref` names \"s2\""), "{error}");
        let shuffled = projected(&batch, &["safe_ref", "pull", "push", "prior", "safe_ref", "harm_ref", "window", "window_view"]);
        assert!(StoredRows::new(&ids(), &[]).decode("x", &shuffled).unwrap_err().to_string().contains("safe_ref"));
    }
}
