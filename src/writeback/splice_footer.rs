//! The footer of a spliced shard: the base's own, byte for byte, with columns of the sidecar added.
//!
//! In: the encoded footers of a base shard and of its sidecar, and which columns to take under which names. Out: which bytes of the
//! sidecar are needed, and, given them, everything that follows the base's bytes in the new file. Nothing is decoded but the few
//! fields that change: the schema's list, the row groups' lists of columns and totals, the key-values. Row groups without rows are
//! left out, as the sidecar has none for them.

use super::thrift::{BINARY, Fields, I32, I64, LIST, STRUCT, binary, binary_content, int, items, list, malformed, shift};
use arrow::datatypes::{FieldRef, Schema};
use arrow::ipc::{convert::fb_to_schema, root_as_message};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, encode_arrow_schema};
use parquet::errors::{ParquetError, Result};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Fields of the format's structs, by the names of the specification.
mod file {
    pub(super) const SCHEMA: i16 = 2;
    pub(super) const ROW_GROUPS: i16 = 4;
    pub(super) const NUM_ROWS: i16 = 3;
    pub(super) const KEY_VALUES: i16 = 5;
    pub(super) const COLUMN_ORDERS: i16 = 7;
    pub(super) const ENCRYPTION: i16 = 8;
}
mod group {
    pub(super) const COLUMNS: i16 = 1;
    pub(super) const TOTAL_BYTES: i16 = 2;
    pub(super) const NUM_ROWS: i16 = 3;
    pub(super) const TOTAL_COMPRESSED: i16 = 6;
}
mod chunk {
    pub(super) const FILE_OFFSET: i16 = 2;
    pub(super) const METADATA: i16 = 3;
    pub(super) const OFFSET_INDEX_OFFSET: i16 = 4;
    pub(super) const OFFSET_INDEX_LENGTH: i16 = 5;
    pub(super) const COLUMN_INDEX_OFFSET: i16 = 6;
    pub(super) const COLUMN_INDEX_LENGTH: i16 = 7;
}
mod column {
    pub(super) const PATH: i16 = 3;
    pub(super) const UNCOMPRESSED: i16 = 6;
    pub(super) const COMPRESSED: i16 = 7;
    pub(super) const DATA_OFFSET: i16 = 9;
    pub(super) const INDEX_OFFSET: i16 = 10;
    pub(super) const DICTIONARY_OFFSET: i16 = 11;
    pub(super) const BLOOM_OFFSET: i16 = 14;
    pub(super) const BLOOM_LENGTH: i16 = 15;
}
mod element {
    pub(super) const NAME: i16 = 4;
    pub(super) const CHILDREN: i16 = 5;
}
mod key_value {
    pub(super) const KEY: i16 = 1;
    pub(super) const VALUE: i16 = 2;
}
/// The union value TYPE_ORDER: values are ordered as their type says.
const TYPE_DEFINED_ORDER: [u8; 3] = [0x1c, 0, 0];

/// A sidecar column that goes into the spliced shard.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AddedColumn {
    /// Its position in the sidecar.
    pub(super) leaf: usize,
    /// Its name in the spliced shard.
    pub(super) name: String,
    /// Its Arrow field in the spliced shard.
    pub(super) field: FieldRef,
}

/// A piece of the sidecar that the new file repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Chunk,
    ColumnIndex,
    OffsetIndex,
}

/// What becomes the new file's end once the sidecar's bytes are there.
#[derive(Debug)]
pub(super) struct SplicePlan<'a> {
    footer: Fields<'a>,
    groups: Vec<Fields<'a>>,
    /// The chunks to add, by row group and column.
    added: Vec<Vec<Fields<'a>>>,
    names: Vec<String>,
    /// Where each piece lies in the sidecar, in the order in which the new file has them: chunks, then indexes.
    pieces: Vec<(Piece, usize, usize, Range<u64>)>,
}

impl<'a> SplicePlan<'a> {
    /// Plans a splice. `key_values` are added to the base's, replacing those of the same key.
    pub(super) fn new(base: &'a [u8], sidecar: &'a [u8], columns: &[AddedColumn], key_values: &[(&str, String)]) -> Result<Self> {
        let mut footer = Fields::parse(base)?;
        let side = Fields::parse(sidecar)?;
        if footer.has(file::ENCRYPTION) {
            return Err(ParquetError::General("it is encrypted".into()));
        }
        add_to_schema(&mut footer, &side, columns)?;
        add_to_key_values(&mut footer, columns, key_values)?;
        if let Some(orders) = footer.get(file::COLUMN_ORDERS, LIST)? {
            let orders = items(orders)?.into_iter().map(<[u8]>::to_vec).chain(columns.iter().map(|_| TYPE_DEFINED_ORDER.to_vec()));
            let orders = list(STRUCT, &orders.collect::<Vec<_>>());
            footer.set(file::COLUMN_ORDERS, LIST, orders);
        }
        let groups = filled_groups(base)?;
        let side_groups = filled_groups(sidecar)?;
        check_rows(&groups, &side_groups)?;
        let rows = groups.iter().map(|(_, _, rows)| rows).sum();
        footer.set(file::NUM_ROWS, I64, int(rows));

        let mut indexed = true;
        for (_, group, _) in &groups {
            for chunk in items(group.required(group::COLUMNS, LIST)?)? {
                indexed &= Fields::parse(chunk)?.has(chunk::OFFSET_INDEX_OFFSET);
            }
        }
        let (mut added, mut chunks, mut indexes) = (Vec::new(), Vec::new(), Vec::new());
        for (nth, (_, group, _)) in side_groups.iter().enumerate() {
            let found = items(group.parsed(group::COLUMNS, LIST)?)?;
            let mut of_group = Vec::new();
            for (place, wanted) in columns.iter().enumerate() {
                let bytes = *found.get(wanted.leaf).ok_or_else(|| malformed(format!("no column {}", wanted.leaf)))?;
                let chunk = Fields::parse(bytes)?;
                chunks.push((Piece::Chunk, nth, place, chunk_range(&chunk)?));
                for (piece, offset, length) in [
                    (Piece::ColumnIndex, chunk::COLUMN_INDEX_OFFSET, chunk::COLUMN_INDEX_LENGTH),
                    (Piece::OffsetIndex, chunk::OFFSET_INDEX_OFFSET, chunk::OFFSET_INDEX_LENGTH),
                ] {
                    if let (true, Some(offset), Some(length)) = (indexed, chunk.int(offset, I64)?, chunk.int(length, I32)?) {
                        indexes.push((piece, nth, place, range(offset, length)?));
                    }
                }
                of_group.push(chunk);
            }
            added.push(of_group);
        }
        // As writers do it: all column indexes, then all offset indexes.
        indexes.sort_by_key(|(piece, ..)| *piece == Piece::OffsetIndex);
        let names = columns.iter().map(|column| column.name.clone()).collect();
        let groups = groups.into_iter().map(|(_, group, _)| group).collect();
        Ok(Self { footer, groups, added, names, pieces: chunks.into_iter().chain(indexes).collect() })
    }

    /// The ranges of the sidecar that [`finish`](Self::finish) wants, in its order.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        self.pieces.iter().map(|(.., range)| range.clone()).collect()
    }

    /// Rows of the shard.
    pub(super) fn rows(&self) -> Result<u64> {
        let rows = self.footer.int(file::NUM_ROWS, I64)?;
        rows.and_then(|rows| u64::try_from(rows).ok()).ok_or_else(|| malformed("no number of rows".into()))
    }

    /// Everything that follows the first `keep` bytes of the base: the sidecar's chunks and indexes, the footer and its length.
    pub(super) fn finish<T: AsRef<[u8]>>(mut self, keep: u64, bytes: &[T]) -> Result<Vec<u8>> {
        let mut tail = Vec::with_capacity(bytes.iter().map(|b| b.as_ref().len()).sum());
        for chunk in self.added.iter_mut().flatten() {
            for index in [chunk::OFFSET_INDEX_OFFSET, chunk::OFFSET_INDEX_LENGTH, chunk::COLUMN_INDEX_OFFSET, chunk::COLUMN_INDEX_LENGTH] {
                chunk.remove(index);
            }
        }
        // How far each chunk moves: page locations in its offset index move with it.
        let mut moves = vec![vec![0i64; self.names.len()]; self.added.len()];
        for ((piece, nth, place, from), bytes) in self.pieces.iter().zip(bytes) {
            let (nth, place, bytes) = (*nth, *place, bytes.as_ref());
            let at = offset(keep + tail.len() as u64)?;
            let no_place = || malformed("a piece without a place".into());
            let chunk = self.added.get_mut(nth).and_then(|group| group.get_mut(place)).ok_or_else(no_place)?;
            let moved = moves.get_mut(nth).and_then(|group| group.get_mut(place)).ok_or_else(no_place)?;
            match piece {
                Piece::Chunk => {
                    *moved = at - offset(from.start)?;
                    let name = self.names.get(place).ok_or_else(no_place)?;
                    *chunk = moved_chunk(chunk, *moved, name)?;
                    tail.extend_from_slice(bytes);
                }
                Piece::ColumnIndex => {
                    chunk.set(chunk::COLUMN_INDEX_OFFSET, I64, int(at));
                    chunk.set(chunk::COLUMN_INDEX_LENGTH, I32, int(offset(bytes.len() as u64)?));
                    tail.extend_from_slice(bytes);
                }
                Piece::OffsetIndex => {
                    let index = moved_index(bytes, *moved)?;
                    chunk.set(chunk::OFFSET_INDEX_OFFSET, I64, int(at));
                    chunk.set(chunk::OFFSET_INDEX_LENGTH, I32, int(offset(index.len() as u64)?));
                    tail.extend_from_slice(&index);
                }
            }
        }
        let groups = self.groups.iter_mut().zip(&self.added).map(|(group, added)| extended(group, added)).collect::<Result<Vec<_>>>()?;
        self.footer.set(file::ROW_GROUPS, LIST, list(STRUCT, &groups));
        let footer = self.footer.encode();
        let length = u32::try_from(footer.len()).map_err(|_| malformed("a footer of more than 4 GiB".into()))?;
        tail.extend_from_slice(&footer);
        tail.extend_from_slice(&length.to_le_bytes());
        tail.extend_from_slice(b"PAR1");
        Ok(tail)
    }
}

type FilledGroup<'a> = (usize, Fields<'a>, i64);

/// Place, fields and row count of each row group that has rows.
fn filled_groups(footer: &[u8]) -> Result<Vec<FilledGroup<'_>>> {
    let fields = Fields::parse(footer)?;
    let mut filled = Vec::new();
    for (place, group) in items(fields.parsed(file::ROW_GROUPS, LIST)?)?.into_iter().enumerate() {
        let group = Fields::parse(group)?;
        let rows = group.int(group::NUM_ROWS, I64)?.ok_or_else(|| malformed(format!("row group {place} has no number of rows")))?;
        if rows > 0 {
            filled.push((place, group, rows));
        }
    }
    Ok(filled)
}

fn check_rows(base: &[FilledGroup<'_>], sidecar: &[FilledGroup<'_>]) -> Result<()> {
    if base.len() != sidecar.len() {
        return Err(ParquetError::General(format!("the sidecar has {} row groups, the shard {}", sidecar.len(), base.len())));
    }
    match base.iter().zip(sidecar).find(|((.., base), (.., sidecar))| base != sidecar) {
        None => Ok(()),
        Some(((place, _, base), (.., sidecar))) => {
            Err(ParquetError::General(format!("row group {place}: the sidecar has {sidecar} rows, the shard {base}")))
        }
    }
}

fn add_to_schema(footer: &mut Fields<'_>, side: &Fields<'_>, columns: &[AddedColumn]) -> Result<()> {
    let mut elements: Vec<Vec<u8>> = items(footer.required(file::SCHEMA, LIST)?)?.into_iter().map(<[u8]>::to_vec).collect();
    let added = items(side.required(file::SCHEMA, LIST)?)?;
    // A sidecar is flat: its leaves follow the root.
    if added.iter().skip(1).any(|element| Fields::parse(element).is_ok_and(|element| element.has(element::CHILDREN))) {
        return Err(ParquetError::General("the sidecar has nested columns".into()));
    }
    let root = elements.first_mut().ok_or_else(|| malformed("no schema".into()))?;
    let mut fields = Fields::parse(root)?;
    let children = fields.int(element::CHILDREN, I32)?.unwrap_or(0) + columns.len() as i64;
    fields.set(element::CHILDREN, I32, int(children));
    let encoded = fields.encode();
    *root = encoded;
    for column in columns {
        let mut element = Fields::parse(added.get(column.leaf + 1).ok_or_else(|| malformed(format!("no column {}", column.leaf)))?)?;
        element.set(element::NAME, BINARY, binary(column.name.as_bytes()));
        elements.push(element.encode());
    }
    footer.set(file::SCHEMA, LIST, list(STRUCT, &elements));
    Ok(())
}

fn add_to_key_values(footer: &mut Fields<'_>, columns: &[AddedColumn], added: &[(&str, String)]) -> Result<()> {
    let mut entries = Vec::new();
    for entry in footer.get(file::KEY_VALUES, LIST)?.map(items).transpose()?.unwrap_or_default() {
        let mut fields = Fields::parse(entry)?;
        let key = binary_content(fields.required(key_value::KEY, BINARY)?)?;
        if key == ARROW_SCHEMA_META_KEY.as_bytes()
            && let Some(value) = fields.get(key_value::VALUE, BINARY)?
        {
            let schema = extended_arrow_schema(binary_content(value)?, columns)?;
            fields.set(key_value::VALUE, BINARY, binary(schema.as_bytes()));
        } else if added.iter().any(|(name, _)| name.as_bytes() == key) {
            continue;
        }
        entries.push(fields.encode());
    }
    for (key, value) in added {
        let mut entry = Fields::default();
        entry.set(key_value::KEY, BINARY, binary(key.as_bytes()));
        entry.set(key_value::VALUE, BINARY, binary(value.as_bytes()));
        entries.push(entry.encode());
    }
    footer.set(file::KEY_VALUES, LIST, list(STRUCT, &entries));
    Ok(())
}

/// The stored Arrow schema with the new fields; its own fields and metadata stay.
fn extended_arrow_schema(stored: &[u8], columns: &[AddedColumn]) -> Result<String> {
    let unreadable = |reason: String| ParquetError::General(format!("its stored Arrow schema cannot be read: {reason}"));
    let bytes = BASE64_STANDARD.decode(stored).map_err(|e| unreadable(e.to_string()))?;
    let message = if bytes.starts_with(&[0xff; 4]) { bytes.get(8..).unwrap_or_default() } else { &bytes };
    let message = root_as_message(message).map_err(|e| unreadable(e.to_string()))?;
    let schema = message.header_as_schema().ok_or_else(|| unreadable("it is another message".into()))?;
    let schema =
        catch_unwind(AssertUnwindSafe(|| fb_to_schema(schema))).map_err(|_| unreadable("it has types that are not known".into()))?;
    let fields: Vec<FieldRef> = schema.fields().iter().cloned().chain(columns.iter().map(|column| column.field.clone())).collect();
    Ok(encode_arrow_schema(&Schema::new_with_metadata(fields, schema.metadata().clone())))
}

fn chunk_range(chunk: &Fields<'_>) -> Result<Range<u64>> {
    let metadata = Fields::parse(chunk.required(chunk::METADATA, STRUCT)?)?;
    let missing = || malformed("a column without its place".into());
    let data = metadata.int(column::DATA_OFFSET, I64)?.ok_or_else(missing)?;
    let start = metadata.int(column::DICTIONARY_OFFSET, I64)?.filter(|&start| start > 0).map_or(data, |start| start.min(data));
    range(start, metadata.int(column::COMPRESSED, I64)?.ok_or_else(missing)?)
}

fn range(start: i64, length: i64) -> Result<Range<u64>> {
    let range =
        u64::try_from(start).ok().zip(u64::try_from(length).ok()).and_then(|(start, length)| Some(start..start.checked_add(length)?));
    range.ok_or_else(|| malformed(format!("bytes {start} and {length} more")))
}

fn offset(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| malformed(format!("offset {value}")))
}

fn moved_chunk<'a>(chunk: &Fields<'a>, by: i64, name: &str) -> Result<Fields<'a>> {
    let mut chunk = chunk.clone();
    let mut metadata = Fields::parse(chunk.required(chunk::METADATA, STRUCT)?)?;
    for id in [column::DATA_OFFSET, column::INDEX_OFFSET, column::DICTIONARY_OFFSET] {
        shift(&mut metadata, id, by)?;
    }
    metadata.set(column::PATH, LIST, list(BINARY, &[binary(name.as_bytes())]));
    // A bloom filter lies apart from the chunk and is not taken along; sidecars have none.
    metadata.remove(column::BLOOM_OFFSET);
    metadata.remove(column::BLOOM_LENGTH);
    let metadata = metadata.encode();
    chunk.set(chunk::METADATA, STRUCT, metadata);
    // The offset of a copy of the metadata in the file, which nobody writes: 0 says so.
    chunk.set(chunk::FILE_OFFSET, I64, int(0));
    Ok(chunk)
}

/// An offset index whose pages moved.
fn moved_index(index: &[u8], by: i64) -> Result<Vec<u8>> {
    const LOCATIONS: i16 = 1;
    const LOCATION_OFFSET: i16 = 1;
    let mut fields = Fields::parse(index)?;
    let mut moved = Vec::new();
    for location in items(fields.required(LOCATIONS, LIST)?)? {
        let mut location = Fields::parse(location)?;
        shift(&mut location, LOCATION_OFFSET, by)?;
        moved.push(location.encode());
    }
    fields.set(LOCATIONS, LIST, list(STRUCT, &moved));
    Ok(fields.encode())
}

/// A row group of the base with the added chunks behind its own.
fn extended(group: &mut Fields<'_>, added: &[Fields<'_>]) -> Result<Vec<u8>> {
    let mut columns: Vec<Vec<u8>> = items(group.required(group::COLUMNS, LIST)?)?.into_iter().map(<[u8]>::to_vec).collect();
    let (mut uncompressed, mut compressed) = (0, 0);
    for chunk in added {
        let metadata = Fields::parse(chunk.required(chunk::METADATA, STRUCT)?)?;
        uncompressed += metadata.int(column::UNCOMPRESSED, I64)?.unwrap_or(0);
        compressed += metadata.int(column::COMPRESSED, I64)?.unwrap_or(0);
        columns.push(chunk.encode());
    }
    group.set(group::COLUMNS, LIST, list(STRUCT, &columns));
    for (id, more) in [(group::TOTAL_BYTES, uncompressed), (group::TOTAL_COMPRESSED, compressed)] {
        shift(group, id, more)?;
    }
    Ok(group.encode())
}
