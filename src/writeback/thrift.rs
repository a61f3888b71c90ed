//! Thrift's compact protocol, opened one level at a time: what is not looked into stays the very bytes it was. A Parquet footer is
//! edited with it, so fields that no library here knows survive.

use parquet::errors::{ParquetError, Result};
use std::borrow::Cow;

/// Type codes of the compact protocol.
pub(super) const I32: u8 = 5;
pub(super) const I64: u8 = 6;
pub(super) const BINARY: u8 = 8;
pub(super) const LIST: u8 = 9;
pub(super) const STRUCT: u8 = 12;

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const DOUBLE: u8 = 7;
const SET: u8 = 10;
const MAP: u8 = 11;
const UUID: u8 = 13;

/// Parquet nests far less; a hostile footer must not exhaust the stack.
const DEEPEST: usize = 64;

/// The fields of one struct, in order; values are encoded bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields<'a>(Vec<(i16, u8, Cow<'a, [u8]>)>);

impl<'a> Fields<'a> {
    /// Reads one struct from the front of `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut rest = Reader(bytes);
        let mut fields = Vec::new();
        let mut last = 0i16;
        while let Some((id, kind)) = rest.field(last)? {
            let start = rest.0;
            rest.skip(kind, DEEPEST)?;
            fields.push((id, kind, Cow::Borrowed(&start[..start.len() - rest.0.len()])));
            last = id;
        }
        Ok(Self(fields))
    }

    /// The encoded value of a field of the given type.
    pub(super) fn get(&self, id: i16, kind: u8) -> Result<Option<&[u8]>> {
        match self.0.iter().find(|(field, ..)| *field == id) {
            None => Ok(None),
            Some((_, found, value)) if *found == kind => Ok(Some(value)),
            Some((_, found, _)) => Err(malformed(format!("field {id} has type {found}, not {kind}"))),
        }
    }

    /// The value of a field as it was parsed, for as long as the parsed bytes live.
    pub(super) fn parsed(&self, id: i16, kind: u8) -> Result<&'a [u8]> {
        match self.0.iter().find(|(field, ..)| *field == id) {
            Some((_, found, Cow::Borrowed(value))) if *found == kind => Ok(value),
            _ => Err(malformed(format!("field {id} is missing or of another type"))),
        }
    }

    pub(super) fn has(&self, id: i16) -> bool {
        self.0.iter().any(|(field, ..)| *field == id)
    }

    /// As [`get`](Self::get), where the field must be there.
    pub(super) fn required(&self, id: i16, kind: u8) -> Result<&[u8]> {
        self.get(id, kind)?.ok_or_else(|| malformed(format!("field {id} is missing")))
    }

    /// The integer in a field.
    pub(super) fn int(&self, id: i16, kind: u8) -> Result<Option<i64>> {
        self.get(id, kind)?.map(|value| Reader(value).zigzag()).transpose()
    }

    /// Sets a field, at its place by number.
    pub(super) fn set(&mut self, id: i16, kind: u8, value: impl Into<Cow<'a, [u8]>>) {
        let value = (id, kind, value.into());
        match self.0.iter_mut().find(|(field, ..)| *field == id) {
            Some(slot) => *slot = value,
            None => self.0.insert(self.0.partition_point(|(field, ..)| *field < id), value),
        }
    }

    pub(super) fn remove(&mut self, id: i16) {
        self.0.retain(|(field, ..)| *field != id);
    }

    /// The struct's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut last = 0i16;
        for (id, kind, value) in &self.0 {
            match i32::from(*id) - i32::from(last) {
                delta @ 1..=15 => out.push((delta as u8) << 4 | kind),
                _ => {
                    out.push(*kind);
                    zigzag(&mut out, i64::from(*id));
                }
            }
            out.extend_from_slice(value);
            last = *id;
        }
        out.push(0);
        out
    }
}

/// The encoded elements of a list.
pub(super) fn items(value: &[u8]) -> Result<Vec<&[u8]>> {
    let mut rest = Reader(value);
    let (kind, count) = rest.list()?;
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        let start = rest.0;
        rest.element(kind, DEEPEST)?;
        items.push(&start[..start.len() - rest.0.len()]);
    }
    Ok(items)
}

/// A list of encoded elements.
pub(super) fn list<T: AsRef<[u8]>>(kind: u8, items: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    match items.len() {
        few @ 0..=14 => out.push((few as u8) << 4 | kind),
        many => {
            out.push(0xf0 | kind);
            varint(&mut out, many as u64);
        }
    }
    items.iter().for_each(|item| out.extend_from_slice(item.as_ref()));
    out
}

/// An encoded integer.
pub(super) fn int(value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    zigzag(&mut out, value);
    out
}

/// An encoded string.
pub(super) fn binary(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 5);
    varint(&mut out, value.len() as u64);
    out.extend_from_slice(value);
    out
}

/// The content of an encoded string.
pub(super) fn binary_content(value: &[u8]) -> Result<&[u8]> {
    let mut rest = Reader(value);
    let length = rest.varint()?;
    rest.take(length)
}

/// Shifts the offset in field `id`; what is not there stays so.
pub(super) fn shift(fields: &mut Fields<'_>, id: i16, by: i64) -> Result<()> {
    if let Some(offset) = fields.int(id, I64)? {
        let moved =
            offset.checked_add(by).filter(|moved| *moved >= 0).ok_or_else(|| malformed(format!("offset {offset} in field {id}")))?;
        fields.set(id, I64, int(moved));
    }
    Ok(())
}

pub(super) fn malformed(what: String) -> ParquetError {
    ParquetError::General(format!("malformed metadata: {what}"))
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(out: &mut Vec<u8>, value: i64) {
    varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8> {
        let (first, rest) = self.0.split_first().ok_or_else(|| malformed("it ends early".into()))?;
        self.0 = rest;
        Ok(*first)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len());
        let (taken, rest) = self.0.split_at(length.ok_or_else(|| malformed("it ends early".into()))?);
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number of more than 64 bits".into()))
    }

    fn zigzag(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Number and type of the next field; `None` at the end of the struct.
    fn field(&mut self, last: i16) -> Result<Option<(i16, u8)>> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        let id = match head >> 4 {
            0 => i16::try_from(self.zigzag()?).map_err(|_| malformed("a field number".into()))?,
            delta => last.checked_add(i16::from(delta)).ok_or_else(|| malformed("a field number".into()))?,
        };
        Ok(Some((id, head & 0x0f)))
    }

    fn list(&mut self) -> Result<(u8, usize)> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            few => u64::from(few),
        };
        // Every element has a byte at least, so a count beyond them is a lie.
        let count = usize::try_from(count).ok().filter(|count| *count <= self.0.len());
        Ok((head & 0x0f, count.ok_or_else(|| malformed("a list longer than the footer".into()))?))
    }

    /// Skips an element of a list, a set or a map, where a truth value is a byte of its own.
    fn element(&mut self, kind: u8, depth: usize) -> Result<()> {
        match kind {
            TRUE | FALSE => self.byte().map(drop),
            other => self.skip(other, depth),
        }
    }

    /// Skips the value of a field.
    fn skip(&mut self, kind: u8, depth: usize) -> Result<()> {
        let depth = depth.checked_sub(1).ok_or_else(|| malformed("it nests too deep".into()))?;
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.byte().map(drop),
            I16 | I32 | I64 => self.varint().map(drop),
            DOUBLE => self.take(8).map(drop),
            UUID => self.take(16).map(drop),
            BINARY => {
                let length = self.varint()?;
                self.take(length).map(drop)
            }
            LIST | SET => {
                let (kind, count) = self.list()?;
                (0..count).try_for_each(|_| self.element(kind, depth))
            }
            MAP => {
                let count = self.varint()?;
                if count == 0 {
                    return Ok(());
                }
                let kinds = self.byte()?;
                (0..count).try_for_each(|_| {
                    self.element(kinds >> 4, depth)?;
                    self.element(kinds & 0x0f, depth)
                })
            }
            STRUCT => {
                let mut last = 0;
                while let Some((id, kind)) = self.field(last)? {
                    self.skip(kind, depth)?;
                    last = id;
                }
                Ok(())
            }
            other => Err(malformed(format!("unknown type {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_looked_into_stays_the_same_bytes() {
        let mut inner = Fields::default();
        inner.set(1, I64, int(-5));
        inner.set(40, BINARY, binary(b"far"));
        inner.set(41, TRUE, &[][..]);
        let inner = inner.encode();
        let mut outer = Fields::default();
        outer.set(7, LIST, list(STRUCT, &vec![inner.clone(); 20]));
        outer.set(2, STRUCT, inner.clone());
        outer.set(3, MAP, [&[2, 0x85][..], &binary(b"a"), &int(1), &binary(b"b"), &int(-1)].concat());
        outer.set(9, LIST, list(TRUE, &[[1u8], [2], [0]]));
        outer.set(10, DOUBLE, 1.5f64.to_le_bytes().to_vec());
        let bytes = outer.encode();
        let parsed = Fields::parse(&bytes).unwrap();
        assert_eq!(parsed.encode(), bytes);
        assert_eq!(items(parsed.required(7, LIST).unwrap()).unwrap(), vec![&inner[..]; 20]);
        let inner = Fields::parse(parsed.required(2, STRUCT).unwrap()).unwrap();
        assert_eq!((inner.int(1, I64).unwrap(), binary_content(inner.required(40, BINARY).unwrap()).unwrap()), (Some(-5), &b"far"[..]));
        assert!(inner.has(41) && parsed.get(9, I64).is_err() && parsed.required(8, I64).is_err());
    }

    proptest! {
        #[test]
        fn numbers_come_back(value in any::<i64>()) {
            let mut fields = Fields::default();
            fields.set(1, I64, int(value));
            prop_assert_eq!(Fields::parse(&fields.encode()).unwrap().int(1, I64).unwrap(), Some(value));
        }

        #[test]
        fn noise_is_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(fields) = Fields::parse(&bytes) {
                prop_assert_eq!(Fields::parse(&fields.encode()).unwrap().encode(), fields.encode());
            }
            let _ = items(&bytes);
        }
    }
}
