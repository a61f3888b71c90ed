//! A running query on its way to the client: no faster than the client takes it, and no longer than the client is there.

use super::service::{DataStream, failed};
use super::snapshot::Snapshots;
use crate::sql::QueryRows;
use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use futures::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tonic::Status;

/// Batches that are ready before the client asks. More would only hold memory.
const BATCHES_AHEAD: usize = 2;

/// The rows as messages. `permit` is held until the query is over: it ran to its end, failed, or nobody wants it any more.
pub(super) fn send(rows: QueryRows, permit: OwnedSemaphorePermit, idle: Duration, snapshots: Arc<Snapshots>) -> DataStream {
    let schema = plain_schema(&rows.schema());
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    let query = tokio::spawn(run(rows, Arc::clone(&schema), sender, permit, idle, snapshots));
    encode(schema, batches(receiver, query))
}

/// Rows that are there already, as messages.
pub(super) fn encode(
    schema: SchemaRef,
    batches: impl futures::Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
) -> DataStream {
    FlightDataEncoderBuilder::new().with_schema(schema).build(batches).map_err(Status::from).boxed()
}

async fn run(
    mut rows: QueryRows,
    schema: SchemaRef,
    sender: mpsc::Sender<RecordBatch>,
    _permit: OwnedSemaphorePermit,
    idle: Duration,
    snapshots: Arc<Snapshots>,
) -> Result<(), Status> {
    let started = Instant::now();
    let mut sent = 0_u64;
    loop {
        let next = tokio::select! {
            biased;
            () = sender.closed() => {
                tracing::info!(rows = sent, seconds = started.elapsed().as_secs_f64(), "query stopped: its client is gone");
                return Ok(());
            }
            next = rows.next() => next,
        };
        let batch = match next {
            Ok(Some(batch)) => plain_batch(&batch, &schema)?,
            Ok(None) => break,
            Err(error) => {
                if error.is_storage() {
                    snapshots.expire().await;
                }
                return Err(failed(&error));
            }
        };
        sent += batch.num_rows() as u64;
        match tokio::time::timeout(idle, sender.send(batch)).await {
            Ok(Ok(())) => {}
            // Its receiver is gone; the next turn says so.
            Ok(Err(_)) => {}
            Err(_) => {
                tracing::warn!(rows = sent, "query stopped: its client took nothing for {} s", idle.as_secs());
                return Err(Status::deadline_exceeded(format!("no rows were taken for {} s: query stopped", idle.as_secs())));
            }
        }
    }
    tracing::info!(rows = sent, seconds = started.elapsed().as_secs_f64(), "query done");
    Ok(())
}

/// What a query's task sends, and after it how the task ended: a result must not look whole when it isn't.
fn batches(
    receiver: mpsc::Receiver<RecordBatch>,
    query: JoinHandle<Result<(), Status>>,
) -> impl futures::Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static {
    stream::unfold((receiver, Some(query)), |(mut receiver, query)| async move {
        if let Some(batch) = receiver.recv().await {
            return Some((Ok(batch), (receiver, query)));
        }
        let status = match query?.await {
            Ok(Ok(())) => return None,
            Ok(Err(status)) => status,
            Err(error) => Status::internal(format!("internal error, please report: query: {error}")),
        };
        Some((Err(FlightError::Tonic(Box::new(status))), (receiver, None)))
    })
}

/// The schema in types that every client knows: text and bytes as such instead of Arrow's newer views of them.
pub(super) fn plain_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<FieldRef> = schema.fields().iter().map(plain_field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn plain_field(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::List(item) => DataType::List(plain_field(item)),
        DataType::LargeList(item) => DataType::LargeList(plain_field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(plain_field(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        _ => return Arc::clone(field),
    };
    Arc::new(Field::clone(field).with_data_type(data_type))
}

fn plain_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, Status> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| match column.data_type() == field.data_type() {
        true => Ok(Arc::clone(column)),
        false => cast(column, field.data_type()),
    });
    let columns = columns.collect::<Result<Vec<_>, _>>();
    let rebuilt = columns.and_then(|columns| {
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
    });
    rebuilt.map_err(|e| Status::internal(format!("internal error, please report: result: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, AsArray, Int32Array, ListArray, StringArray, StringViewArray};
    use arrow::buffer::OffsetBuffer;

    #[test]
    fn views_become_plain_columns_also_inside_lists() {
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a text longer than twelve bytes"), None]));
        let item = Arc::new(Field::new("item", DataType::Utf8View, true));
        let list: ArrayRef = Arc::new(ListArray::new(item, OffsetBuffer::from_lengths([2, 0]), Arc::clone(&texts), None));
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
        let batch = RecordBatch::try_from_iter_with_nullable([("t", texts, true), ("l", list, true), ("n", numbers, true)]).unwrap();
        let schema = plain_schema(&batch.schema());
        let plain = plain_batch(&batch, &schema).unwrap();
        let expected = StringArray::from(vec![Some("a text longer than twelve bytes"), None]);
        assert_eq!(plain.column(0).as_string::<i32>(), &expected);
        assert_eq!(plain.column(1).as_list::<i32>().value(0).as_string::<i32>(), &expected);
        assert_eq!(plain.column(2), batch.column(2));
    }

    #[test]
    fn a_batch_without_columns_keeps_its_rows() {
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(7));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
        assert_eq!(plain_batch(&batch, &plain_schema(&batch.schema())).unwrap().num_rows(), 7);
    }
}
