//! The calls of Flight SQL: statements, prepared statements, metadata. Everything that would write is refused.

use super::auth::Token;
use super::handle::Handle;
use super::metadata;
use super::rows::{self, plain_schema};
use super::snapshot::Snapshots;
use crate::error::Error;
use crate::job::with_causes;
use crate::sql::{Prepared, SqlSession};
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::error::FlightError;
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionBeginTransactionRequest, ActionBeginTransactionResult, ActionCancelQueryRequest, ActionCancelQueryResult,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, CommandGetCatalogs,
    CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys,
    CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo, CommandPreparedStatementQuery,
    CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery, CommandStatementUpdate, DoPutPreparedStatementResult,
    ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage, SchemaAsIpc, Ticket,
};
use bytes::Bytes;
use datafusion::common::DataFusionError;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};

/// Messages of one answer.
pub(super) type DataStream = BoxStream<'static, Result<FlightData, Status>>;

/// How long a query waits for its turn.
const TURN: Duration = Duration::from_secs(60);
/// Bytes of an error that reach the client: a message travels in a header, and clients refuse large ones.
const LONGEST_MESSAGE: usize = 3000;
/// The protocol's number for "cannot be cancelled this way".
const NOT_CANCELLABLE: i32 = 3;
const NO_TRANSACTIONS: &str = "there are no transactions here: this server only reads";
const READS_ONLY: &str = "this server only reads: weights are written by `pushpull run`";

/// An error as a client sees it.
pub(super) fn failed(error: &Error) -> Status {
    let mut text = with_causes(error);
    if text.len() > LONGEST_MESSAGE {
        text.truncate((0..=LONGEST_MESSAGE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default());
        text.push_str(" …");
    }
    match error {
        _ if out_of_memory(error) => Status::resource_exhausted(text),
        Error::Query { .. } | Error::InvalidOption { .. } => Status::invalid_argument(text),
        _ if error.is_storage() => Status::unavailable(text),
        Error::Internal(_) => Status::internal(text),
        _ => Status::failed_precondition(text),
    }
}

fn out_of_memory(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(DataFusionError::ResourcesExhausted(_))) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn internal(error: &dyn std::fmt::Display) -> Status {
    Status::internal(format!("internal error, please report: {error}"))
}

/// Answers calls about one job.
pub(super) struct Service {
    snapshots: Arc<Snapshots>,
    token: Option<Token>,
    idle: Duration,
    queries: usize,
    turns: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(snapshots: Arc<Snapshots>, token: Option<Token>, idle: Duration, queries: usize) -> Self {
        Self { snapshots, token, idle, queries, turns: Arc::new(Semaphore::new(queries)) }
    }

    async fn session(&self) -> Result<Arc<SqlSession>, Status> {
        self.snapshots.current().await.map_err(|e| failed(&e))
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Status> {
        let waited = tokio::time::timeout(TURN, Arc::clone(&self.turns).acquire_owned()).await;
        let refused = || {
            let text = format!("{} queries are running and none ended in {} s; try again later", self.queries, TURN.as_secs());
            Status::resource_exhausted(text)
        };
        waited.map_err(|_| refused())?.map_err(|e| internal(&e))
    }

    async fn run(&self, statement: Handle) -> Result<Response<DataStream>, Status> {
        let turn = self.turn().await?;
        let prepared = statement.plan(&*self.session().await?).await?;
        let rows = match prepared.run().await {
            Ok(rows) => rows,
            Err(error) => {
                if error.is_storage() {
                    self.snapshots.expire().await;
                }
                return Err(failed(&error));
            }
        };
        Ok(Response::new(rows::send(rows, turn, self.idle, Arc::clone(&self.snapshots))))
    }
}

/// Where and how the answer to a command is fetched: with the command itself as the ticket, from the server that was asked.
fn info(schema: &Schema, ticket: impl Into<Bytes>, descriptor: FlightDescriptor) -> Result<Response<FlightInfo>, Status> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket { ticket: ticket.into() });
    let info = FlightInfo::new().try_with_schema(schema).map_err(|e| internal(&e))?;
    Ok(Response::new(info.with_endpoint(endpoint).with_descriptor(descriptor)))
}

fn command_info(
    schema: &Schema,
    command: &impl ProstMessageExt,
    request: Request<FlightDescriptor>,
) -> Result<Response<FlightInfo>, Status> {
    info(schema, command.as_any().encode_to_vec(), request.into_inner())
}

fn one_batch(batch: Result<RecordBatch, FlightError>) -> Result<Response<DataStream>, Status> {
    let batch = batch.map_err(|e| internal(&e))?;
    Ok(Response::new(rows::encode(batch.schema(), stream::iter([Ok(batch)]))))
}

fn no_rows(schema: SchemaRef) -> Response<DataStream> {
    Response::new(rows::encode(schema, stream::empty()))
}

fn schema_bytes(schema: &Schema) -> Result<Bytes, Status> {
    let message: IpcMessage = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into().map_err(|e| internal(&e))?;
    Ok(message.0)
}

fn outside_transactions(transaction: Option<&Bytes>) -> Result<(), Status> {
    match transaction {
        None => Ok(()),
        Some(_) => Err(Status::invalid_argument(NO_TRANSACTIONS)),
    }
}

/// What the client is told about a statement's parameters: nothing if there are none, as the protocol says.
fn parameter_bytes(prepared: &Prepared) -> Result<Bytes, Status> {
    let parameters = prepared.parameters().map_err(|e| failed(&e))?;
    if parameters.fields().is_empty() { Ok(Bytes::new()) } else { schema_bytes(&parameters) }
}

#[tonic::async_trait]
impl FlightSqlService for Service {
    type FlightService = Service;

    async fn do_handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<BoxStream<'static, Result<HandshakeResponse, Status>>>, Status> {
        // Whoever comes here has shown the token already (see `Gate`), or none is asked for.
        let mut response = Response::new(stream::iter([Ok(HandshakeResponse::default())]).boxed());
        let token = self.token.as_ref().map_or("none", Token::text);
        let header = format!("Bearer {token}").parse().map_err(|e| internal(&e))?;
        response.metadata_mut().insert("authorization", header);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        outside_transactions(query.transaction_id.as_ref())?;
        let statement = Handle::new(query.query);
        let schema = statement.plan(&*self.session().await?).await?.schema();
        let ticket = TicketStatementQuery { statement_handle: statement.bytes() };
        command_info(&plain_schema(&schema), &ticket, request)
    }

    async fn do_get_statement(&self, ticket: TicketStatementQuery, _request: Request<Ticket>) -> Result<Response<DataStream>, Status> {
        self.run(Handle::read(&ticket.statement_handle)?).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        outside_transactions(query.transaction_id.as_ref())?;
        let statement = Handle::new(query.query);
        let prepared = statement.plan(&*self.session().await?).await?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: statement.bytes(),
            dataset_schema: schema_bytes(&plain_schema(&prepared.schema()))?,
            parameter_schema: parameter_bytes(&prepared)?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        _query: ActionClosePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        Ok(())
    }

    async fn do_action_begin_transaction(
        &self,
        _query: ActionBeginTransactionRequest,
        _request: Request<Action>,
    ) -> Result<ActionBeginTransactionResult, Status> {
        Err(Status::unimplemented(NO_TRANSACTIONS))
    }

    async fn do_action_cancel_query(
        &self,
        _query: ActionCancelQueryRequest,
        _request: Request<Action>,
    ) -> Result<ActionCancelQueryResult, Status> {
        // A query is a stream and nothing else: closing the stream stops it.
        Ok(ActionCancelQueryResult { result: NOT_CANCELLABLE })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let prepared = Handle::read(&query.prepared_statement_handle)?.plan(&*self.session().await?).await?;
        command_info(&plain_schema(&prepared.schema()), &query, request)
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        _request: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        self.run(Handle::read(&query.prepared_statement_handle)?).await
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let statement = Handle::read(&query.prepared_statement_handle)?;
        let data = request.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
        let values = arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(data);
        let values: Vec<RecordBatch> = values.try_collect().await.map_err(Status::from)?;
        let bound = statement.bind(&values)?;
        // What cannot be bound is said now.
        bound.plan(&*self.session().await?).await?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(bound.bytes()) })
    }

    async fn do_put_statement_update(
        &self,
        _ticket: CommandStatementUpdate,
        _request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        Err(Status::invalid_argument(READS_ONLY))
    }

    async fn do_put_statement_ingest(
        &self,
        _ticket: CommandStatementIngest,
        _request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        Err(Status::invalid_argument(READS_ONLY))
    }

    async fn do_put_prepared_statement_update(
        &self,
        _query: CommandPreparedStatementUpdate,
        _request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        Err(Status::invalid_argument(READS_ONLY))
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&query.into_builder().schema(), &query, request)
    }

    async fn do_get_catalogs(&self, query: CommandGetCatalogs, _request: Request<Ticket>) -> Result<Response<DataStream>, Status> {
        one_batch(metadata::catalogs(query, &*self.session().await?))
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&query.clone().into_builder().schema(), &query, request)
    }

    async fn do_get_schemas(&self, query: CommandGetDbSchemas, _request: Request<Ticket>) -> Result<Response<DataStream>, Status> {
        one_batch(metadata::schemas(query, &*self.session().await?))
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&query.clone().into_builder().schema(), &query, request)
    }

    async fn do_get_tables(&self, query: CommandGetTables, _request: Request<Ticket>) -> Result<Response<DataStream>, Status> {
        one_batch(metadata::tables(query, &*self.session().await?).await)
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::table_types().map_err(|e| internal(&e))?.schema(), &query, request)
    }

    async fn do_get_table_types(&self, _query: CommandGetTableTypes, _request: Request<Ticket>) -> Result<Response<DataStream>, Status> {
        one_batch(metadata::table_types())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::sql_info().map_err(|e| internal(&e))?.schema(), &query, request)
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _request: Request<Ticket>) -> Result<Response<DataStream>, Status> {
        one_batch(metadata::sql_info().and_then(|info| query.into_builder(&info).build()))
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::types().map_err(|e| internal(&e))?.schema(), &query, request)
    }

    async fn do_get_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        _request: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        one_batch(metadata::types().and_then(|types| query.into_builder(&types).build()))
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::primary_key_columns(), &query, request)
    }

    async fn do_get_primary_keys(&self, _query: CommandGetPrimaryKeys, _request: Request<Ticket>) -> Result<Response<DataStream>, Status> {
        Ok(no_rows(metadata::primary_key_columns()))
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::foreign_key_columns(), &query, request)
    }

    async fn do_get_exported_keys(
        &self,
        _query: CommandGetExportedKeys,
        _request: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        Ok(no_rows(metadata::foreign_key_columns()))
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::foreign_key_columns(), &query, request)
    }

    async fn do_get_imported_keys(
        &self,
        _query: CommandGetImportedKeys,
        _request: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        Ok(no_rows(metadata::foreign_key_columns()))
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::foreign_key_columns(), &query, request)
    }

    async fn do_get_cross_reference(
        &self,
        _query: CommandGetCrossReference,
        _request: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        Ok(no_rows(metadata::foreign_key_columns()))
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn an_error_has_the_code_that_says_what_to_do() {
        let query = |source: Option<DataFusionError>| Error::Query { reason: "r".into(), source: source.map(|e| Box::new(e) as _) };
        assert_eq!(failed(&query(None)).code(), Code::InvalidArgument);
        let exhausted = DataFusionError::ResourcesExhausted("pool".into()).context("sort");
        assert_eq!(failed(&query(Some(exhausted))).code(), Code::ResourceExhausted);
        let outage = Error::Storage { location: "s3://x".into(), action: "read", source: "reset".into() };
        let shard = |source: Error| Error::Shard { shard: "a".into(), row_group: None, reason: "r".into(), source: Some(Box::new(source)) };
        assert_eq!(failed(&shard(outage)).code(), Code::Unavailable);
        assert_eq!(failed(&shard(query(None))).code(), Code::FailedPrecondition);
        assert_eq!(failed(&Error::Internal("x".into())).code(), Code::Internal);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let status = failed(&Error::Query { reason: "é".repeat(LONGEST_MESSAGE), source: None });
        assert!(status.message().len() <= LONGEST_MESSAGE + " …".len());
        assert!(status.message().ends_with("é …"));
    }
}
