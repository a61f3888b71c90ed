//! What drivers ask about a server: its tables, what its SQL can do, and the keys it doesn't have.

use super::rows::plain_schema;
use crate::sql::SqlSession;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::error::Result as FlightResult;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetTables, Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity,
    SqlSupportedTransaction, XdbcDataType,
};
use datafusion::datasource::TableType;
use datafusion::error::Result as QueryResult;
use std::sync::Arc;

const TABLE: &str = "TABLE";
const VIEW: &str = "VIEW";

/// A table by its full name.
struct NamedTable {
    catalog: String,
    schema: String,
    name: String,
    kind: &'static str,
    columns: SchemaRef,
}

/// The session's tables. `information_schema` is there for queries, but not listed.
async fn named_tables(session: &SqlSession) -> QueryResult<Vec<NamedTable>> {
    let context = session.context();
    let mut tables = Vec::new();
    for (catalog, schema) in schema_names(session) {
        let Some(provider) = context.catalog(&catalog).and_then(|catalog| catalog.schema(&schema)) else { continue };
        for name in provider.table_names() {
            let Some(table) = provider.table(&name).await? else { continue };
            let kind = if table.table_type() == TableType::View { VIEW } else { TABLE };
            let columns = plain_schema(&table.schema());
            tables.push(NamedTable { catalog: catalog.clone(), schema: schema.clone(), name, kind, columns });
        }
    }
    Ok(tables)
}

fn schema_names(session: &SqlSession) -> Vec<(String, String)> {
    let context = session.context();
    let of = |catalog: String| {
        let schemas = context.catalog(&catalog).map(|provider| provider.schema_names()).unwrap_or_default();
        schemas.into_iter().map(move |schema| (catalog.clone(), schema))
    };
    context.catalog_names().into_iter().flat_map(of).collect()
}

pub(super) fn catalogs(asked: CommandGetCatalogs, session: &SqlSession) -> FlightResult<RecordBatch> {
    let mut builder = asked.into_builder();
    session.context().catalog_names().into_iter().for_each(|name| builder.append(name));
    builder.build()
}

pub(super) fn schemas(asked: CommandGetDbSchemas, session: &SqlSession) -> FlightResult<RecordBatch> {
    let mut builder = asked.into_builder();
    schema_names(session).into_iter().for_each(|(catalog, schema)| builder.append(catalog, schema));
    builder.build()
}

pub(super) async fn tables(asked: CommandGetTables, session: &SqlSession) -> FlightResult<RecordBatch> {
    let mut builder = asked.into_builder();
    let named = named_tables(session).await.map_err(|e| arrow_flight::error::FlightError::ExternalError(Box::new(e)))?;
    for table in named {
        builder.append(table.catalog, table.schema, table.name, table.kind, &table.columns)?;
    }
    builder.build()
}

/// The columns of an answer about primary keys, in the protocol's order.
pub(super) fn primary_key_columns() -> SchemaRef {
    let fields = vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ];
    Arc::new(Schema::new(fields))
}

/// The columns of an answer about foreign keys, in the protocol's order.
pub(super) fn foreign_key_columns() -> SchemaRef {
    let side = |side: &str| {
        [("catalog_name", true), ("db_schema_name", true), ("table_name", false), ("column_name", false)]
            .map(|(name, nullable)| Field::new(format!("{side}_{name}"), DataType::Utf8, nullable))
    };
    let rest = [
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ];
    Arc::new(Schema::new(side("pk").into_iter().chain(side("fk")).chain(rest).collect::<Vec<_>>()))
}

/// The kinds of tables.
pub(super) fn table_types() -> FlightResult<RecordBatch> {
    let kinds: ArrayRef = Arc::new(arrow::array::StringArray::from(vec![TABLE, VIEW]));
    let schema = Schema::new(vec![Field::new("table_type", DataType::Utf8, false)]);
    Ok(RecordBatch::try_new(Arc::new(schema), vec![kinds])?)
}

/// What this server is and what its SQL can do.
pub(super) fn sql_info() -> FlightResult<SqlInfoData> {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "pushpull");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, true);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    info.append(SqlInfo::FlightSqlServerCancel, false);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, false);
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
    info.append(SqlInfo::FlightSqlServerTransactionTimeout, 0_i32);
    info.append(SqlInfo::SqlDdlCatalog, false);
    info.append(SqlInfo::SqlDdlSchema, false);
    info.append(SqlInfo::SqlDdlTable, false);
    info.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.append(SqlInfo::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32);
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedAtEnd as i32);
    info.append(SqlInfo::SqlSupportsColumnAliasing, true);
    info.append(SqlInfo::SqlNullPlusNullIsNull, true);
    info.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
    info.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
    info.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
    info.append(SqlInfo::SqlSupportsNonNullableColumns, true);
    info.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
    info.append(SqlInfo::SqlSchemaTerm, "schema");
    info.append(SqlInfo::SqlCatalogTerm, "catalog");
    info.append(SqlInfo::SqlCatalogAtStart, true);
    info.append(SqlInfo::SqlTransactionsSupported, false);
    info.append(SqlInfo::SqlBatchUpdatesSupported, false);
    info.append(SqlInfo::SqlSavepointsSupported, false);
    info.append(SqlInfo::SqlNamedParametersSupported, false);
    info.append(SqlInfo::SqlSelectForUpdateSupported, false);
    info.append(SqlInfo::SqlStoredProceduresSupported, false);
    info.build()
}

/// The types of the tables' columns under the names and numbers that ODBC and JDBC have for them.
pub(super) fn types() -> FlightResult<XdbcTypeInfoData> {
    use XdbcDataType::{XdbcBigint, XdbcBit, XdbcDate, XdbcDouble, XdbcInteger, XdbcReal, XdbcTimestamp, XdbcVarbinary, XdbcVarchar};
    let mut builder = XdbcTypeInfoDataBuilder::new();
    let quoted = Some("'");
    for (name, data_type, size, quote, radix) in [
        ("BIGINT", XdbcBigint, 64, None, Some(2)),
        ("BOOLEAN", XdbcBit, 1, None, None),
        ("DATE", XdbcDate, 10, quoted, None),
        ("DOUBLE", XdbcDouble, 53, None, Some(2)),
        ("INTEGER", XdbcInteger, 32, None, Some(2)),
        ("REAL", XdbcReal, 24, None, Some(2)),
        ("TIMESTAMP", XdbcTimestamp, 29, quoted, None),
        ("VARBINARY", XdbcVarbinary, i32::MAX, quoted, None),
        ("VARCHAR", XdbcVarchar, i32::MAX, quoted, None),
    ] {
        builder.append(XdbcTypeInfo {
            type_name: name.into(),
            data_type,
            sql_data_type: data_type,
            column_size: Some(size),
            literal_prefix: quote.map(Into::into),
            literal_suffix: quote.map(Into::into),
            nullable: Nullable::NullabilityNullable,
            case_sensitive: data_type == XdbcVarchar,
            searchable: Searchable::Full,
            num_prec_radix: radix,
            unsigned_attribute: radix.map(|_| false),
            local_type_name: Some(name.into()),
            ..XdbcTypeInfo::default()
        });
    }
    builder.build()
}
