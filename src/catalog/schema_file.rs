//! The columns of base shards as immutable files, so that a table over the shards is planned without opening one of them.
//!
//! In: the Arrow schema of a shard as it is weighed. Out: `_schemas/<digest>.arrow`, an Arrow IPC stream without batches, which
//! every Arrow library reads; the log names the digest with each sidecar. Shards with the same columns share a file: what differs
//! from file to file (the schema's own metadata, as pandas writes it) is left out. Memory: the schemas.

use crate::error::{Error, Result};
use crate::storage::Location;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Engines that vacuum a Delta table leave names that start with `_` alone.
const FOLDER: &str = "_schemas";
/// Files read at a time.
const AT_A_TIME: usize = 16;

/// A shard's columns, encoded, and the digest they are named by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSchema {
    /// Hex BLAKE3 of the bytes, the first 32 digits.
    pub digest: String,
    bytes: Vec<u8>,
}

impl StoredSchema {
    /// Encodes the columns of `schema`; its own metadata is left out, that of its fields is kept.
    ///
    /// # Errors
    /// [`Error::Internal`] if Arrow cannot encode it.
    pub fn try_new(schema: &Schema) -> Result<Self> {
        let failed = |e: arrow::error::ArrowError| Error::Internal(format!("schema file: {e}"));
        let columns = Schema::new(schema.fields().clone());
        let mut bytes = Vec::new();
        StreamWriter::try_new(&mut bytes, &columns).and_then(|mut writer| writer.finish()).map_err(failed)?;
        Ok(Self { digest: digest(&bytes), bytes })
    }

    /// Writes the file below `output`; one that is there already has this content.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn write(&self, output: &Location) -> Result<()> {
        place(output, &self.digest).write_immutable(self.bytes.clone()).await
    }

    /// Reads the schemas with these digests. One that is missing or damaged is left out with a warning: the shards' footers say the
    /// same.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn read_all(output: &Location, digests: BTreeSet<String>) -> Result<HashMap<String, SchemaRef>> {
        let read = stream::iter(digests).map(|digest| async move {
            match read(output, &digest).await {
                Ok(schema) => Ok(Some((digest, schema))),
                Err(error @ (Error::NotFound { .. } | Error::Catalog { .. })) => {
                    tracing::warn!(%error, "columns are read from the shards' footers instead");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        });
        read.buffer_unordered(AT_A_TIME).try_filter_map(|found| async move { Ok(found) }).try_collect().await
    }
}

async fn read(output: &Location, expected: &str) -> Result<SchemaRef> {
    let place = place(output, expected);
    let bytes = place.read().await?;
    if digest(&bytes) != expected {
        let reason = "its content does not have the digest it is named by: it is damaged".to_owned();
        return Err(Error::Catalog { location: place.to_string(), reason, source: None });
    }
    let reader = StreamReader::try_new(bytes.as_ref(), None).map_err(|e| Error::Catalog {
        location: place.to_string(),
        reason: "is not an Arrow stream".to_owned(),
        source: Some(Box::new(e)),
    })?;
    Ok(reader.schema())
}

fn place(output: &Location, digest: &str) -> Location {
    output.join(&format!("{FOLDER}/{digest}.arrow"))
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..32].to_owned()
}

/// Writes each schema that it meets once.
#[derive(Debug, Default)]
pub struct SchemaWriter {
    /// The last one met, which nearly every shard shares with the one before.
    last: Option<(SchemaRef, String)>,
    written: BTreeSet<String>,
}

impl SchemaWriter {
    /// The digest of `schema`, whose file is there when this returns.
    ///
    /// # Errors
    /// As [`StoredSchema::try_new`] and [`StoredSchema::write`].
    pub async fn put(&mut self, schema: &SchemaRef, output: &Location) -> Result<String> {
        if let Some((last, digest)) = &self.last
            && last.fields() == schema.fields()
        {
            return Ok(digest.clone());
        }
        let stored = StoredSchema::try_new(schema)?;
        if self.written.insert(stored.digest.clone()) {
            stored.write(output).await?;
        }
        self.last = Some((Arc::clone(schema), stored.digest.clone()));
        Ok(stored.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{DataType, Field};
    use object_store::memory::InMemory;
    use object_store::path::Path;

    fn memory() -> Location {
        Location::new(Arc::new(InMemory::new()), Path::from("out"), "memory://out".into())
    }

    fn schema(columns: &[&str], pandas: &str) -> SchemaRef {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let fields = columns.iter().map(|name| Field::new(*name, dictionary.clone(), true)).collect::<Vec<_>>();
        Arc::new(Schema::new_with_metadata(fields, [("pandas".to_owned(), pandas.to_owned())].into()))
    }

    #[tokio::test]
    async fn the_same_columns_are_one_file_and_come_back() {
        let output = memory();
        let mut writer = SchemaWriter::default();
        let a = writer.put(&schema(&["text"], "1"), &output).await.unwrap();
        let b = writer.put(&schema(&["text"], "2"), &output).await.unwrap();
        let c = writer.put(&schema(&["text", "id"], "1"), &output).await.unwrap();
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(output.list().await.unwrap().len(), 2);
        let read = StoredSchema::read_all(&output, [a.clone(), c.clone()].into()).await.unwrap();
        assert_eq!(read[&c].fields(), schema(&["text", "id"], "").fields());
        assert_eq!(read[&a].fields().len(), 1);
    }

    #[tokio::test]
    async fn what_is_missing_or_damaged_is_left_out() {
        let output = memory();
        let stored = StoredSchema::try_new(&schema(&["text"], "")).unwrap();
        place(&output, &stored.digest).write("something else").await.unwrap();
        let read = StoredSchema::read_all(&output, [stored.digest, "0".repeat(32)].into()).await.unwrap();
        assert!(read.is_empty());
    }
}
