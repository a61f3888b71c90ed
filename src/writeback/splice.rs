//! One shard with weights inside: a Parquet file that begins with the base's own bytes.
//!
//! In: a base shard, its sidecar, and which columns to take. Out: a new Parquet file below a place of its own, `<shard's name without
//! ending>.<hash>.parquet`; the hash is of the base's version, the sidecar and the columns, so a replacement never reuses a path.
//! Guarantees: the base's column chunks, page indexes and bloom filters stay the bytes they were, at the offsets they had, and so does
//! everything that its footer says of them; the sidecar's chunks are copied as bytes too; nothing is decoded. Arrow IPC shards have no
//! column chunks and are encoded anew. A sidecar made for another shard, version or size is an error that names both objects.
//! Memory: two footers, and the spliced columns of one shard.

use super::reencode::reencode;
use super::sidecar::{BASE_SIZE_KEY, BASE_VERSION_KEY};
use super::splice_footer::{AddedColumn, SplicePlan};
use super::spliced_columns::SplicedColumns;
use crate::error::{BoxError, Error, Result};
use crate::shard::{Shard, ShardFormat, read_parquet_footer};
use crate::storage::{Location, Stores};
use bytes::Bytes;
use object_store::ObjectStore;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use std::sync::Arc;

/// Version of the spliced layout, part of the name.
const FORMAT: u32 = 1;
/// Bytes read from the end of an object in the hope that they hold the footer.
const FOOTER_GUESS: u64 = 64 << 10;
/// Length and magic at the end of a Parquet file.
const TRAILER: u64 = 8;
/// Where the sidecar's wanted bytes are this part of it or more, it is read whole: one request instead of many.
const WORTH_WHOLE: u64 = 2;

/// A shard to splice with its sidecar.
#[derive(Debug, Clone)]
pub struct Splice {
    /// The base shard as listed.
    pub shard: Shard,
    /// Its sidecar.
    pub sidecar: Location,
    /// The sidecar's path in the weights table.
    pub sidecar_path: String,
    /// The sidecar's bytes.
    pub sidecar_size: u64,
    /// What is taken from it.
    pub columns: Arc<SplicedColumns>,
}

/// A spliced shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplicedShard {
    /// Path below the place it was written to.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Rows.
    pub rows: u64,
}

impl Splice {
    /// The spliced shard's path: in the folder that the shard has in the corpus.
    pub fn path(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut part = |part: &str| {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        };
        part(&FORMAT.to_string());
        part(&self.shard.version());
        part(&self.sidecar_path);
        for column in self.columns.iter() {
            part(&column.name);
            part(column.field.name());
        }
        let stem = self.shard.name.rsplit_once('.').map_or(self.shard.name.as_str(), |(stem, _)| stem);
        format!("{stem}.{}.parquet", &hasher.finalize().to_hex()[..16])
    }

    /// What the file itself says it was made of.
    fn key_values(&self) -> [(&'static str, String); 4] {
        let columns: Vec<String> = self.columns.iter().map(|column| format!("{}={}", column.name, column.field.name())).collect();
        [
            ("pushpull.spliced.base", self.shard.name.clone()),
            ("pushpull.spliced.base_version", self.shard.version()),
            ("pushpull.spliced.sidecar", self.sidecar_path.clone()),
            ("pushpull.spliced.columns", columns.join(",")),
        ]
    }

    /// The spliced shard where an object of `size` bytes is at its path already, left by a run that did not come to its commit. `None`
    /// where that object does not say that it is this shard's: then it is made again.
    pub async fn unpublished(&self, to: &Location, size: u64) -> Option<SplicedShard> {
        let path = self.path();
        let footer = read_parquet_footer(&to.join(&path), size, PageIndexPolicy::Skip).await.ok()?;
        let found = footer.file_metadata().key_value_metadata()?;
        let says = |(key, value): &(&str, String)| found.contains(&KeyValue::new((*key).to_owned(), value.clone()));
        let rows = u64::try_from(footer.file_metadata().num_rows()).ok()?;
        self.key_values().iter().all(says).then_some(SplicedShard { path, size, rows })
    }

    /// Writes the spliced shard below `to`.
    ///
    /// # Errors
    /// [`Error::Shard`] where the sidecar does not fit, the base was replaced since it was listed, or one of the two is malformed, and
    /// what the stores answer.
    pub async fn write(&self, stores: &Stores, to: &Location) -> Result<SplicedShard> {
        let path = self.path();
        let target = to.join(&path);
        let sidecar = Footer::read(&self.sidecar, self.sidecar_size, None).await.map_err(|e| self.failed("its sidecar", e))?;
        let metadata = ParquetMetaDataReader::decode_metadata(&sidecar.bytes).map_err(|e| self.failed("its sidecar", e.into()))?;
        self.check_fits(&metadata)?;
        let added = self.added(&metadata)?;
        match self.shard.format {
            ShardFormat::Arrow => {
                let (size, rows) = reencode(self, &self.key_values(), &target).await?;
                Ok(SplicedShard { path, size, rows })
            }
            ShardFormat::Parquet => {
                let (size, rows) = self.write_parquet(stores, &sidecar, &added, &target).await?;
                Ok(SplicedShard { path, size, rows })
            }
        }
    }

    async fn write_parquet(&self, stores: &Stores, sidecar: &Footer, added: &[AddedColumn], target: &Location) -> Result<(u64, u64)> {
        let meta = &self.shard.meta;
        let base = Footer::read(&self.shard.location, meta.size, meta.e_tag.as_deref()).await.map_err(|e| self.failed("the shard", e))?;
        let failed = |e: ParquetError| self.failed("the shard beside its sidecar", e.into());
        let plan = SplicePlan::new(&base.bytes, &sidecar.bytes, added, &self.key_values()).map_err(failed)?;
        let (rows, ranges) = (plan.rows().map_err(failed)?, plan.ranges());
        if let Some(outside) = ranges.iter().find(|range| range.end > self.sidecar_size) {
            let outside = format!("bytes {outside:?} lie outside of its {} bytes", self.sidecar_size);
            return Err(self.failed("its sidecar", outside.into()));
        }
        let wanted: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let read = |e| self.sidecar.error("read", e);
        let pieces: Vec<Bytes> = if wanted >= self.sidecar_size / WORTH_WHOLE {
            let whole = self.sidecar.read().await?;
            let cut = |range: &std::ops::Range<u64>| whole.slice(range.start as usize..(range.end as usize).min(whole.len()));
            ranges.iter().filter(|range| range.start <= whole.len() as u64).map(cut).collect()
        } else if ranges.is_empty() {
            Vec::new()
        } else {
            self.sidecar.store().get_ranges(self.sidecar.path(), &ranges).await.map_err(read)?
        };
        if pieces.len() != ranges.len() || pieces.iter().zip(&ranges).any(|(piece, range)| piece.len() as u64 != range.end - range.start) {
            return Err(self.failed("its sidecar", "the store sent fewer bytes than it listed".into()));
        }
        let tail = plan.finish(base.start, &pieces).map_err(failed)?;
        let size = base.start + tail.len() as u64;
        stores.compose(&self.shard.location, meta, base.start, tail.into(), target).await?;
        Ok((size, rows))
    }

    /// The sidecar says which base it was made for.
    fn check_fits(&self, sidecar: &ParquetMetaData) -> Result<()> {
        let key_values = sidecar.file_metadata().key_value_metadata().map(Vec::as_slice).unwrap_or_default();
        let said =
            |key: &str| key_values.iter().find(|entry| entry.key == key).and_then(|entry| entry.value.as_deref()).unwrap_or("nothing");
        let expected = [
            ("pushpull.base", self.shard.name.clone()),
            (BASE_VERSION_KEY, self.shard.version()),
            (BASE_SIZE_KEY, self.shard.meta.size.to_string()),
        ];
        match expected.iter().find(|(key, value)| said(key) != value) {
            None => Ok(()),
            Some((key, value)) => Err(self.failed("its sidecar", format!("it says {key} = {}, the shard {value}", said(key)).into())),
        }
    }

    fn added(&self, sidecar: &ParquetMetaData) -> Result<Vec<AddedColumn>> {
        let fields = sidecar.file_metadata().schema().get_fields();
        let position = |name: &str| fields.iter().position(|field| field.name() == name);
        self.columns
            .iter()
            .map(|column| {
                let leaf = position(&column.name).ok_or_else(|| Error::Column {
                    object: format!("sidecar {} of shard {}", self.sidecar, self.shard.name),
                    column: column.name.clone(),
                    reason: "is missing: an older version wrote this sidecar; leave the column out".into(),
                })?;
                Ok(AddedColumn { leaf, name: column.field.name().clone(), field: Arc::clone(&column.field) })
            })
            .collect()
    }

    pub(super) fn failed(&self, what: &str, source: BoxError) -> Error {
        Error::Shard {
            shard: self.shard.name.clone(),
            row_group: None,
            reason: format!("cannot be spliced with sidecar {}: {what} cannot be used", self.sidecar),
            source: Some(source),
        }
    }
}

/// A Parquet file's footer, not decoded.
#[derive(Debug)]
struct Footer {
    bytes: Bytes,
    /// Where it begins.
    start: u64,
}

impl Footer {
    async fn read(location: &Location, size: u64, etag: Option<&str>) -> std::result::Result<Self, BoxError> {
        let read = |range: std::ops::Range<u64>| async move {
            location.read_range(range, etag).await.map_err(|e| -> BoxError { Box::new(location.error("read", e)) })
        };
        if size < TRAILER {
            return Err(format!("no Parquet file has {size} bytes").into());
        }
        let tail = read(size.saturating_sub(FOOTER_GUESS)..size).await?;
        let (length, magic) = match tail.last_chunk::<8>() {
            Some([a, b, c, d, magic @ ..]) => (u64::from(u32::from_le_bytes([*a, *b, *c, *d])), magic),
            None => return Err("the store sent fewer bytes than it listed".into()),
        };
        match magic {
            b"PAR1" => {}
            b"PARE" => return Err("it is encrypted".into()),
            _ => return Err("it does not end as a Parquet file does".into()),
        }
        let start = size.checked_sub(TRAILER + length).ok_or("its footer is longer than the file")?;
        let in_tail = (tail.len() as u64).checked_sub(TRAILER + length);
        let bytes = match in_tail {
            Some(first) => tail.slice(first as usize..tail.len() - TRAILER as usize),
            None => read(start..size - TRAILER).await?,
        };
        Ok(Self { bytes, start })
    }
}
