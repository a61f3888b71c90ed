//! What a shard's footer says: its columns and how its rows are grouped.

use super::arrow_file::ArrowFile;
use super::listing::{Shard, ShardFormat};
use crate::error::{Error, Result, nearest};
use crate::storage::Location;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::ObjectStoreExt;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::MetadataFetch;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use std::ops::Range;
use std::sync::Arc;

/// A first guess at the size of a Parquet footer, so that most are read with one request.
const FOOTER_GUESS: usize = 32 << 10;

/// A shard's columns and row groups (Parquet) or record batches (Arrow).
#[derive(Debug, Clone)]
pub struct Layout {
    pub(super) kind: Kind,
    rows_per_group: Vec<u64>,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Parquet(ArrowReaderMetadata),
    Arrow(ArrowFile),
}

impl Layout {
    /// Reads the shard's footer; with `page_index` also where each page starts, which lets a reader of few rows skip pages.
    ///
    /// # Errors
    /// [`Error::Shard`] where the footer cannot be understood or read.
    pub async fn load(shard: &Shard, page_index: bool) -> Result<Self> {
        let failed = |reason: &str, source: crate::error::BoxError| unreadable(shard, None, reason, source);
        match shard.format {
            ShardFormat::Parquet => {
                let policy = if page_index { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
                let footer = read_parquet_footer(&shard.location, shard.meta.size, policy)
                    .await
                    .map_err(|e| failed("no readable Parquet footer", Box::new(e)))?;
                let metadata = ArrowReaderMetadata::try_new(Arc::new(footer), ArrowReaderOptions::new())
                    .map_err(|e| failed("a schema that Arrow cannot represent", Box::new(e)))?;
                let groups = metadata.metadata().row_groups();
                let rows_per_group = groups
                    .iter()
                    .map(|group| u64::try_from(group.num_rows()))
                    .collect::<std::result::Result<_, _>>()
                    .map_err(|e| failed("a row group with a negative number of rows", Box::new(e)))?;
                Ok(Self { kind: Kind::Parquet(metadata), rows_per_group })
            }
            ShardFormat::Arrow => {
                let file = ArrowFile::load(shard).await?;
                Ok(Self { rows_per_group: file.rows_per_batch().to_vec(), kind: Kind::Arrow(file) })
            }
        }
    }

    /// Rows of each row group or record batch, in file order; may hold zeros.
    pub fn rows_per_group(&self) -> &[u64] {
        &self.rows_per_group
    }

    /// Rows of the shard.
    pub fn rows(&self) -> u64 {
        self.rows_per_group.iter().sum()
    }

    /// The shard's columns.
    pub fn schema(&self) -> &SchemaRef {
        match &self.kind {
            Kind::Parquet(metadata) => metadata.schema(),
            Kind::Arrow(file) => file.schema(),
        }
    }

    /// A value of a Parquet footer's own key-values, as it was written there.
    pub fn key_value(&self, key: &str) -> Option<&str> {
        let Kind::Parquet(metadata) = &self.kind else { return None };
        let entries = metadata.metadata().file_metadata().key_value_metadata()?;
        entries.iter().find(|entry| entry.key == key)?.value.as_deref()
    }

    /// Positions of `columns` in the schema, in the order asked.
    ///
    /// # Errors
    /// [`Error::Column`] naming the nearest column there is.
    pub fn column_positions(&self, object: &str, columns: &[String]) -> Result<Vec<usize>> {
        let schema = self.schema();
        columns
            .iter()
            .map(|column| {
                schema.index_of(column).map_err(|_| {
                    let names = schema.fields().iter().map(|field| field.name().as_str());
                    let reason = match nearest(column, names.clone()) {
                        Some(name) => format!("is missing; did you mean `{name}`?"),
                        None => format!("is missing; there are: {}", names.collect::<Vec<_>>().join(", ")),
                    };
                    Error::Column { object: object.to_owned(), column: column.clone(), reason }
                })
            })
            .collect()
    }
}

/// The footer of a Parquet object of `size` bytes.
pub(crate) async fn read_parquet_footer(
    location: &Location,
    size: u64,
    policy: PageIndexPolicy,
) -> parquet::errors::Result<ParquetMetaData> {
    let reader = ParquetMetaDataReader::new().with_page_index_policy(policy).with_prefetch_hint(Some(FOOTER_GUESS));
    reader.load_and_finish(Footer(location), size).await
}

/// Fetches the ranges that the footer's reader asks for.
struct Footer<'a>(&'a Location);

impl MetadataFetch for Footer<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        async move {
            self.0.store().get_range(self.0.path(), range).await.map_err(|e| ParquetError::External(Box::new(self.0.error("read", e))))
        }
        .boxed()
    }
}

pub(super) fn unreadable(shard: &Shard, row_group: Option<usize>, reason: &str, source: crate::error::BoxError) -> Error {
    Error::Shard { shard: shard.name.clone(), row_group, reason: reason.to_owned(), source: Some(source) }
}
