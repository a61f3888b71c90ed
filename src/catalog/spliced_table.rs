//! The table of spliced shards: a Delta Lake table whose data files are whole shards with their weights inside.
//!
//! In: the spliced shards of the whole corpus, and the table's columns. Out: one commit that makes the table hold exactly these files.
//! Memory: the list of files.

use super::delta_log::{COMMIT_ATTEMPTS, failed, is_conflict, load, open_log};
use crate::error::{Error, Result};
use crate::storage::Location;
use arrow::datatypes::{DataType as ArrowType, Field, TimeUnit};
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, ArrayType, DataType, MapType, MetadataExt, PrimitiveType, StructField, StructType};
use deltalake::logstore::LogStoreRef;
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::{DeltaTable, DeltaTableError};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The table property that says of which corpus the table is a splice.
const CORPUS_PROPERTY: &str = "pushpull.spliced.corpus";
const SHARD_TAG: &str = "pushpull.shard";

/// A spliced shard as the log holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct SplicedFile {
    /// Path below the table's URL.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Rows.
    pub rows: u64,
    /// The shard's name in the corpus.
    pub shard: String,
    /// Name of the weight column in it, if it is among the spliced ones.
    pub weight_column: Option<String>,
    /// Smallest and largest weight, if any row has one.
    pub weight_range: Option<(f32, f32)>,
    /// Rows without a weight.
    pub unweighed: u64,
}

/// The columns of the table: the union of the shards' columns, then the spliced ones.
#[derive(Debug, Clone, Default)]
pub struct SplicedSchema {
    fields: Vec<StructField>,
    /// The shard that brought each field, for messages.
    origins: Vec<String>,
}

impl SplicedSchema {
    /// Adds the columns of a shard that are not there yet. A column that some shard lacks is null in its rows.
    ///
    /// # Errors
    /// [`Error::Column`] for a type that Delta tables do not have, and where the same column has another type in an earlier shard: the
    /// files are read as they are, and not every engine converts.
    pub fn add<'a>(&mut self, shard: &str, fields: impl IntoIterator<Item = &'a Field>) -> Result<()> {
        for field in fields {
            let object = || format!("shard {shard}");
            let kind = delta_type(field.data_type()).map_err(|part| Error::Column {
                object: object(),
                column: field.name().clone(),
                reason: format!("has type {}; Delta tables have no {part}: cast it in the corpus", field.data_type()),
            })?;
            let known = self.fields.iter().position(|known| known.name().eq_ignore_ascii_case(field.name()));
            match known.and_then(|place| Some((self.fields.get(place)?, self.origins.get(place)?))) {
                None => {
                    self.fields.push(StructField::new(field.name(), kind, true));
                    self.origins.push(shard.to_owned());
                }
                Some((known, origin)) if known.name() != field.name() => {
                    let reason =
                        format!("differs from `{}` of shard {origin} in case only: Delta tables do not tell them apart", known.name());
                    return Err(Error::Column { object: object(), column: field.name().clone(), reason });
                }
                Some((known, origin)) if *known.data_type() != kind => {
                    let reason = format!("has type {kind} here and {} in shard {origin}: make them one type", known.data_type());
                    return Err(Error::Column { object: object(), column: field.name().clone(), reason });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// The Delta type in which the Parquet form of an Arrow type is read without loss; otherwise what it is that Delta lacks.
fn delta_type(kind: &ArrowType) -> std::result::Result<DataType, String> {
    use PrimitiveType as P;
    let inner = |field: &Field| delta_type(field.data_type());
    Ok(match kind {
        ArrowType::Utf8 | ArrowType::LargeUtf8 | ArrowType::Utf8View => P::String.into(),
        ArrowType::Binary | ArrowType::LargeBinary | ArrowType::BinaryView | ArrowType::FixedSizeBinary(_) => P::Binary.into(),
        ArrowType::Boolean => P::Boolean.into(),
        ArrowType::Int8 => P::Byte.into(),
        ArrowType::Int16 => P::Short.into(),
        ArrowType::Int32 => P::Integer.into(),
        ArrowType::Int64 => P::Long.into(),
        ArrowType::Float32 => P::Float.into(),
        ArrowType::Float64 => P::Double.into(),
        ArrowType::Date32 => P::Date.into(),
        ArrowType::Timestamp(TimeUnit::Nanosecond, _) => return Err("nanoseconds".into()),
        ArrowType::Timestamp(_, Some(_)) => P::Timestamp.into(),
        ArrowType::Timestamp(_, None) => P::TimestampNtz.into(),
        ArrowType::Decimal32(precision, scale) | ArrowType::Decimal64(precision, scale) | ArrowType::Decimal128(precision, scale)
            if *scale >= 0 =>
        {
            DataType::decimal(*precision, scale.unsigned_abs()).map_err(|e| e.to_string())?
        }
        ArrowType::Dictionary(_, value) => delta_type(value)?,
        ArrowType::RunEndEncoded(_, value) => inner(value)?,
        ArrowType::List(item) | ArrowType::LargeList(item) | ArrowType::ListView(item) | ArrowType::LargeListView(item) => {
            ArrayType::new(inner(item)?, true).into()
        }
        ArrowType::FixedSizeList(item, _) => ArrayType::new(inner(item)?, true).into(),
        ArrowType::Struct(fields) => {
            let fields = fields.iter().map(|field| Ok(StructField::new(field.name(), inner(field)?, true)));
            let fields = fields.collect::<std::result::Result<Vec<_>, String>>()?;
            StructType::try_new(fields).map_err(|e| e.to_string())?.into()
        }
        ArrowType::Map(entries, _) => match entries.data_type() {
            ArrowType::Struct(fields) if fields.len() == 2 => MapType::new(inner(&fields[0])?, inner(&fields[1])?, true).into(),
            other => return Err(format!("map of {other}")),
        },
        other => return Err(other.to_string()),
    })
}

/// The table of spliced shards at a URL, which may not exist yet.
#[derive(Debug)]
pub struct SplicedTable {
    location: Location,
    corpus: String,
    log: LogStoreRef,
    table: Option<DeltaTable>,
}

impl SplicedTable {
    /// Opens the table as it is now. `corpus` is the URL of the corpus whose splice it is.
    ///
    /// # Errors
    /// [`Error::Catalog`] where there is another table, or a log that cannot be read, and what the store answers.
    pub async fn open(location: &Location, corpus: &str) -> Result<Self> {
        let (log, table) = open_log(location, "--to").await?;
        let opened = Self { location: location.clone(), corpus: corpus.to_owned(), log, table };
        opened.check_ours()?;
        Ok(opened)
    }

    fn check_ours(&self) -> Result<()> {
        let Some(table) = &self.table else { return Ok(()) };
        let snapshot = table.snapshot().map_err(|e| failed(&self.location, "cannot be read", e))?;
        let reason = match snapshot.metadata().configuration().get(CORPUS_PROPERTY) {
            Some(corpus) if *corpus == self.corpus => return Ok(()),
            Some(corpus) => format!("holds a splice of {corpus}, not of {}; give another --to", self.corpus),
            None => "is a table that `pushpull splice` did not make; give another --to".to_owned(),
        };
        Err(Error::Catalog { location: self.location.to_string(), reason, source: None })
    }

    /// The table's version, or `None` before the first commit.
    pub fn version(&self) -> Option<u64> {
        self.table.as_ref().and_then(DeltaTable::version)
    }

    /// Size and rows of the files in the table, by path.
    ///
    /// # Errors
    /// [`Error::Catalog`] if the log cannot be read.
    pub fn published(&self) -> Result<BTreeMap<String, (u64, u64)>> {
        let Some(table) = &self.table else { return Ok(BTreeMap::new()) };
        let snapshot = table.snapshot().map_err(|e| failed(&self.location, "cannot be read", e))?;
        let entry = |file: deltalake::kernel::LogicalFileView| {
            let rows = file.num_records().unwrap_or_default() as u64;
            (file.path().into_owned(), (u64::try_from(file.size()).unwrap_or_default(), rows))
        };
        Ok(snapshot.log_data().iter().map(entry).collect())
    }

    /// Makes the table hold exactly `files` with columns `schema`, by one commit; gives the number of files removed. Nothing is committed
    /// where it does already.
    ///
    /// # Errors
    /// [`Error::Catalog`] when other writers keep committing in between, and what the store answers.
    pub async fn publish(&mut self, schema: &SplicedSchema, files: &[SplicedFile]) -> Result<usize> {
        for attempt in 0..COMMIT_ATTEMPTS {
            match self.try_publish(schema, files).await {
                Ok(None) => return Ok(0),
                Ok(Some(removed)) => {
                    self.table = Some(load(&self.location, &self.log).await?);
                    return Ok(removed);
                }
                Err(error) if is_conflict(&error) => {
                    tracing::info!(attempt, %error, "another writer committed first; trying again on its version");
                    tokio::time::sleep(Duration::from_millis(50 * u64::from(attempt + 1))).await;
                    self.table = Some(load(&self.location, &self.log).await?);
                    self.check_ours()?;
                }
                Err(error) => return Err(failed(&self.location, "could not be committed", error)),
            }
        }
        Err(Error::Catalog {
            location: self.location.to_string(),
            reason: format!("other writers committed first {COMMIT_ATTEMPTS} times; splice again when they are done"),
            source: None,
        })
    }

    async fn try_publish(&self, schema: &SplicedSchema, files: &[SplicedFile]) -> std::result::Result<Option<usize>, DeltaTableError> {
        let properties = CommitProperties::default().with_max_retries(0);
        let Some(table) = &self.table else {
            return CreateBuilder::new()
                .with_log_store(Arc::clone(&self.log))
                .with_table_name("pushpull_spliced")
                .with_columns(schema.fields.clone())
                .with_raise_if_key_not_exists(false)
                .with_configuration([(CORPUS_PROPERTY, Some(self.corpus.as_str()))])
                .with_save_mode(SaveMode::ErrorIfExists)
                .with_actions(files.iter().map(|file| Action::Add(add(file))))
                .with_commit_properties(properties)
                .await
                .map(|_| Some(0));
        };
        let snapshot = table.snapshot()?;
        let wanted: HashMap<&str, u64> = files.iter().map(|file| (file.path.as_str(), file.size)).collect();
        let mut actions = Vec::new();
        let mut held = HashMap::new();
        for file in snapshot.log_data().iter() {
            let path = file.path().into_owned();
            if !wanted.contains_key(path.as_str()) {
                actions.push(Action::Remove(file.remove_action(true)));
            }
            held.insert(path, u64::try_from(file.size()).unwrap_or_default());
        }
        let removed = actions.len();
        // The same path again is the same file: adding it anew is enough where its size was not known right.
        actions.extend(files.iter().filter(|file| held.get(&file.path) != Some(&file.size)).map(|file| Action::Add(add(file))));
        let columns = StructType::try_new(schema.fields.clone())?;
        if snapshot.metadata().parse_schema()? != columns {
            actions.push(Action::Metadata(snapshot.metadata().clone().with_schema(&columns)?));
        }
        if actions.is_empty() {
            return Ok(None);
        }
        let operation = DeltaOperation::Write { mode: SaveMode::Overwrite, partition_by: None, predicate: None };
        CommitBuilder::from(properties).with_actions(actions).build(Some(snapshot), Arc::clone(&self.log), operation).await?;
        Ok(Some(removed))
    }
}

fn add(file: &SplicedFile) -> Add {
    let mut stats = serde_json::json!({ "numRecords": file.rows, "minValues": {}, "maxValues": {}, "nullCount": {} });
    if let Some(column) = &file.weight_column {
        stats["nullCount"][column] = file.unweighed.into();
        if let Some((least, most)) = file.weight_range {
            stats["minValues"][column] = f64::from(least).into();
            stats["maxValues"][column] = f64::from(most).into();
        }
    }
    Add {
        path: file.path.clone(),
        size: file.size as i64,
        partition_values: HashMap::new(),
        modification_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64),
        data_change: true,
        stats: Some(stats.to_string()),
        tags: Some(HashMap::from([(SHARD_TAG.to_owned(), Some(file.shard.clone()))])),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use object_store::path::Path;

    fn file(shard: &str, version: u32) -> SplicedFile {
        SplicedFile {
            path: format!("lang=en/{shard} {version}.parquet"),
            size: 10 + u64::from(version),
            rows: 5,
            shard: shard.into(),
            weight_column: Some("weight".into()),
            weight_range: Some((0.25, 1.5)),
            unweighed: 1,
        }
    }

    fn schema(fields: &[(&str, ArrowType)]) -> SplicedSchema {
        let mut schema = SplicedSchema::default();
        let fields: Vec<Field> = fields.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect();
        schema.add("s", &fields).unwrap();
        schema
    }

    #[tokio::test]
    async fn one_commit_makes_the_table_hold_exactly_the_given_files() {
        let place = Location::new(Arc::new(InMemory::new()), Path::from("t"), "memory://t".into());
        let open = || SplicedTable::open(&place, "lake/");
        let narrow = schema(&[("text", ArrowType::Utf8), ("weight", ArrowType::Float32)]);
        let mut table = open().await.unwrap();
        assert_eq!(table.publish(&narrow, &[file("a", 1), file("b", 1)]).await.unwrap(), 0);
        assert_eq!(table.version(), Some(0));
        let mut again = open().await.unwrap();
        assert_eq!((again.publish(&narrow, &[file("a", 1), file("b", 1)]).await.unwrap(), again.version()), (0, Some(0)));
        // A changed shard, one that is gone, a new column; the first writer's view is old by now.
        let wide = schema(&[("text", ArrowType::Utf8), ("n", ArrowType::Int64), ("weight", ArrowType::Float32)]);
        assert_eq!(again.publish(&wide, &[file("a", 2)]).await.unwrap(), 2);
        assert_eq!(again.version(), Some(1));
        assert_eq!(table.publish(&wide, &[file("a", 2), file("c", 1)]).await.unwrap(), 0);
        let held: Vec<_> = open().await.unwrap().published().unwrap().into_iter().collect();
        assert_eq!(held, [("lang=en/a 2.parquet".to_owned(), (12, 5)), ("lang=en/c 1.parquet".to_owned(), (11, 5))]);
        let error = SplicedTable::open(&place, "other/").await.unwrap_err().to_string();
        assert!(error.contains("a splice of lake/") && error.contains("other/"), "{error}");
    }

    #[test]
    fn types_without_a_place_in_delta_name_shard_column_and_type() {
        let add = |kind: ArrowType| SplicedSchema::default().add("a/b.parquet", [&Field::new("x", kind, true)]).map_err(|e| e.to_string());
        let item = |kind| Arc::new(Field::new("item", kind, true));
        for kind in [
            ArrowType::Dictionary(Box::new(ArrowType::Int32), Box::new(ArrowType::LargeUtf8)),
            ArrowType::Timestamp(TimeUnit::Second, None),
            ArrowType::Decimal128(20, 4),
            ArrowType::Map(
                Arc::new(Field::new("e", ArrowType::Struct(vec![item(ArrowType::Utf8), item(ArrowType::Int8)].into()), false)),
                false,
            ),
        ] {
            assert_eq!(add(kind), Ok(()));
        }
        for kind in [
            ArrowType::UInt64,
            ArrowType::Float16,
            ArrowType::Timestamp(TimeUnit::Nanosecond, None),
            ArrowType::List(item(ArrowType::Null)),
            ArrowType::Time64(TimeUnit::Microsecond),
        ] {
            let error = add(kind.clone()).unwrap_err();
            assert!(error.contains("a/b.parquet") && error.contains("`x`") && error.contains(&kind.to_string()), "{error}");
        }
        let mut schema = schema(&[("x", ArrowType::Int32)]);
        let error = schema.add("later", [&Field::new("x", ArrowType::Int64, true)]).unwrap_err().to_string();
        assert!(error.contains("later") && error.contains("shard s"), "{error}");
        let error = schema.add("later", [&Field::new("X", ArrowType::Int32, true)]).unwrap_err().to_string();
        assert!(error.contains("case"), "{error}");
    }
}
