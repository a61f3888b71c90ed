//! What a prepared statement's handle holds: the statement and the values bound to it. The client keeps it, the server does not.

use super::service::failed;
use crate::sql::{Prepared, SqlSession};
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use prost::Message;
use tonic::Status;

/// A statement on its way between client and server.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Handle {
    /// The SQL.
    #[prost(string, tag = "1")]
    pub(super) sql: String,
    /// One row of values for its parameters, as an Arrow IPC stream; empty if none are bound.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) values: Bytes,
}

impl Handle {
    pub(super) fn new(sql: String) -> Self {
        Self { sql, values: Bytes::new() }
    }

    /// # Errors
    /// For bytes that this server never gave out.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Status> {
        Self::decode(bytes).map_err(|_| Status::invalid_argument("this is no statement that this server prepared: prepare it again"))
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// The same statement with these values.
    ///
    /// # Errors
    /// For batches of different schemas.
    pub(super) fn bind(self, batches: &[RecordBatch]) -> Result<Self, Status> {
        let Some(first) = batches.first() else { return Ok(self) };
        let all = concat_batches(first.schema_ref(), batches).map_err(bad)?;
        let mut writer = StreamWriter::try_new(Vec::new(), all.schema_ref()).map_err(bad)?;
        writer.write(&all).map_err(bad)?;
        Ok(Self { values: writer.into_inner().map_err(bad)?.into(), ..self })
    }

    /// Plans the statement, with its values if there are any.
    ///
    /// # Errors
    /// What [`SqlSession::prepare`] and [`Prepared::bind`] answer.
    pub(super) async fn plan(&self, session: &SqlSession) -> Result<Prepared, Status> {
        let prepared = session.prepare(&self.sql).await.map_err(|e| failed(&e))?;
        if self.values.is_empty() {
            return Ok(prepared);
        }
        let mut reader = StreamReader::try_new(&self.values[..], None).map_err(bad)?;
        let Some(values) = reader.next().transpose().map_err(bad)? else { return Ok(prepared) };
        prepared.bind(&values).map_err(|e| failed(&e))
    }
}

fn bad(error: ArrowError) -> Status {
    Status::invalid_argument(format!("values for parameters: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int32Array};
    use proptest::prelude::*;
    use std::sync::Arc;

    #[test]
    fn a_handle_holds_statement_and_values() {
        let column: ArrayRef = Arc::new(Int32Array::from(vec![7]));
        let values = RecordBatch::try_from_iter([("$1", column)]).unwrap();
        let handle = Handle::new("select $1".into()).bind(std::slice::from_ref(&values)).unwrap();
        let read = Handle::read(&handle.bytes()).unwrap();
        assert_eq!(read.sql, "select $1");
        let mut reader = StreamReader::try_new(&read.values[..], None).unwrap();
        assert_eq!(reader.next().unwrap().unwrap(), values);
        assert_eq!(Handle::new("select 1".into()).bind(&[]).unwrap(), Handle::new("select 1".into()));
    }

    #[tokio::test]
    async fn foreign_bytes_are_an_error() {
        let session = SqlSession::new(1);
        let values = Bytes::from_static(b"no arrow stream");
        let handle = Handle { sql: "select $1".into(), values };
        assert_eq!(handle.plan(&session).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Err(status) = Handle::read(&bytes) {
                prop_assert_eq!(status.code(), tonic::Code::InvalidArgument);
            }
        }
    }
}
