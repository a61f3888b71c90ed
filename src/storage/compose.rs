//! A new object of the first bytes of one and a tail of one's own, with as little of the old bytes passing through this process as
//! the two places allow.
//!
//! On one local disk the operating system copies (`copy_file_range`); inside one S3 bucket the server copies in parts; between any
//! other two places the bytes are streamed. Guarantees: the old bytes are those of the listed version, or it is an error; the new
//! object appears whole or not at all. Memory: the tail; streaming adds [`PARTS_AT_ONCE`] + 1 parts, of 8 MiB for objects up to 78 GiB.

use super::location::Location;
use super::server_copy::SMALLEST_PART;
use super::stores::Stores;
use crate::error::{Error, Result};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::{GetOptions, MultipartUpload, ObjectMeta, ObjectStoreExt, PutPayload};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::task::JoinSet;

/// Bytes of a streamed part; more where an object would have more than [`MOST_PARTS`].
const PART: u64 = 8 << 20;
/// What the services take.
const MOST_PARTS: u64 = 10_000;
/// Streamed parts under way at a time.
const PARTS_AT_ONCE: usize = 4;

impl Stores {
    /// Makes `target` of the first `keep` bytes of `source`, which must still be the version that `meta` lists, and of `tail`.
    ///
    /// # Errors
    /// [`Error::Storage`] where the source was replaced since it was listed, and what the stores answer.
    pub async fn compose(&self, source: &Location, meta: &ObjectMeta, keep: u64, tail: Bytes, target: &Location) -> Result<()> {
        if source.is_local() && target.is_local() {
            return self.compose_locally(source, meta, keep, tail, target).await;
        }
        if keep >= SMALLEST_PART
            && let Some(server) = self.server_copy(source, target)
        {
            return server.compose(meta, keep, tail.into(), target.path()).await.map_err(|e| match e {
                e @ object_store::Error::Precondition { .. } => source.error("read", e),
                e => target.error("write", e),
            });
        }
        stream(source, meta, keep, tail, target).await
    }

    async fn compose_locally(&self, source: &Location, meta: &ObjectMeta, keep: u64, tail: Bytes, target: &Location) -> Result<()> {
        let disk = LocalFileSystem::new();
        let path = |of: &Location| disk.path_to_filesystem(of.path()).map_err(|e| of.error("open", e));
        let (from, to) = (path(source)?, path(target)?);
        let tail_length = tail.len() as u64;
        let shown = target.to_string();
        // The file is opened between two looks at what lies at the path: if both saw the listed version, that is what was opened.
        same_version(source, meta).await?;
        let file = File::open(&from).map_err(|e| failed(source.to_string(), "read", e))?;
        same_version(source, meta).await?;
        let copied = tokio::task::spawn_blocking(move || copy_file(file, keep, &tail, &to));
        copied.await.map_err(|e| Error::Internal(format!("copying: {e}")))?.map_err(|e| failed(shown, "write", e))?;
        same_version(source, meta).await?;
        self.traffic().copied(keep);
        self.traffic().written(tail_length);
        Ok(())
    }
}

fn failed(location: String, action: &'static str, error: io::Error) -> Error {
    Error::Storage { location, action, source: Box::new(error) }
}

async fn same_version(source: &Location, meta: &ObjectMeta) -> Result<()> {
    let now = source.head().await?;
    if now.size == meta.size && now.e_tag == meta.e_tag {
        return Ok(());
    }
    let error = object_store::Error::Precondition { path: source.path().to_string(), source: "it is another version now".into() };
    Err(source.error("read", error))
}

/// Writes beside the target and renames, so that the target appears whole or not at all.
fn copy_file(from: File, keep: u64, tail: &[u8], to: &FilePath) -> io::Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let staged = staged(to);
    let written = (|| {
        let mut out = File::create(&staged)?;
        // Between two files this is `copy_file_range`: the bytes stay in the kernel, and a file system that shares extents shares them.
        let copied = io::copy(&mut from.take(keep), &mut out)?;
        if copied != keep {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the source ended after {copied} of {keep} bytes")));
        }
        out.write_all(tail)?;
        drop(out);
        std::fs::rename(&staged, to)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    written
}

/// A name that no listing takes for a shard and no other writer has.
fn staged(to: &FilePath) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    to.with_file_name(format!(".{name}.{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Reads and writes at the same time, part by part.
async fn stream(source: &Location, meta: &ObjectMeta, keep: u64, tail: Bytes, target: &Location) -> Result<()> {
    let total = keep + tail.len() as u64;
    if total <= PART {
        let mut whole = BytesMut::with_capacity(total as usize);
        if keep > 0 {
            whole.extend_from_slice(&source.read_range(0..keep, meta.e_tag.as_deref()).await.map_err(|e| source.error("read", e))?);
        }
        whole.extend_from_slice(&tail);
        return target.write(whole.freeze()).await;
    }
    let mut upload = target.store().put_multipart(target.path()).await.map_err(|e| target.error("write", e))?;
    let part = PART.max(total.div_ceil(MOST_PARTS));
    let done = stream_parts(source, meta, keep, tail, target, upload.as_mut(), part as usize).await;
    if done.is_err()
        && let Err(error) = upload.abort().await
    {
        tracing::debug!(%target, %error, "an abandoned upload was not cleaned up");
    }
    done
}

async fn stream_parts(
    source: &Location,
    meta: &ObjectMeta,
    keep: u64,
    tail: Bytes,
    target: &Location,
    upload: &mut dyn MultipartUpload,
    part: usize,
) -> Result<()> {
    let if_match = meta.e_tag.clone().filter(|etag| !etag.starts_with("W/"));
    let options = GetOptions { range: Some((0..keep).into()), if_match, ..GetOptions::default() };
    let answer = source.store().get_opts(source.path(), options).await.map_err(|e| source.error("read", e))?;
    let mut incoming = answer.into_stream().chain(futures::stream::iter([Ok(tail)]));
    let mut under_way = JoinSet::new();
    let mut pending = BytesMut::with_capacity(part);
    while let Some(bytes) = incoming.next().await {
        let mut bytes = bytes.map_err(|e| source.error("read", e))?;
        while !bytes.is_empty() {
            pending.extend_from_slice(&bytes.split_to(bytes.len().min(part - pending.len())));
            if pending.len() == part {
                let full = std::mem::replace(&mut pending, BytesMut::with_capacity(part)).freeze();
                send(&mut under_way, upload, full, target).await?;
            }
        }
    }
    if !pending.is_empty() {
        send(&mut under_way, upload, pending.freeze(), target).await?;
    }
    while let Some(sent) = under_way.join_next().await {
        sent_part(sent, target)?;
    }
    upload.complete().await.map(drop).map_err(|e| target.error("write", e))
}

type SentPart = std::result::Result<object_store::Result<()>, tokio::task::JoinError>;

async fn send(
    under_way: &mut JoinSet<object_store::Result<()>>,
    upload: &mut dyn MultipartUpload,
    bytes: Bytes,
    target: &Location,
) -> Result<()> {
    if under_way.len() >= PARTS_AT_ONCE
        && let Some(sent) = under_way.join_next().await
    {
        sent_part(sent, target)?;
    }
    under_way.spawn(upload.put_part(PutPayload::from_bytes(bytes)));
    Ok(())
}

fn sent_part(sent: SentPart, target: &Location) -> Result<()> {
    sent.map_err(|e| Error::Internal(format!("sending a part: {e}")))?.map_err(|e| target.error("write", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use std::sync::Arc;

    fn noise(length: usize) -> Bytes {
        (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>().into()
    }

    #[tokio::test]
    async fn a_file_is_composed_whole_and_only_of_the_listed_version() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.bin"), noise(3_000_000)).unwrap();
        let stores = Stores::new(dir.path());
        let (source, target) = (stores.open("a.bin").unwrap(), stores.open("new/folder/b.bin").unwrap());
        let meta = source.head().await.unwrap();
        stores.compose(&source, &meta, 2_000_000, "tail".into(), &target).await.unwrap();
        let made = target.read().await.unwrap();
        assert!(made[..2_000_000] == noise(3_000_000)[..2_000_000] && &made[2_000_000..] == b"tail");
        assert_eq!((stores.traffic().bytes_copied(), stores.traffic().bytes_written()), (2_000_000, 4));
        assert_eq!(std::fs::read_dir(dir.path().join("new/folder")).unwrap().count(), 1);

        std::fs::write(dir.path().join("a.bin"), noise(3_000_001)).unwrap();
        let error = stores.compose(&source, &meta, 2_000_000, "tail".into(), &stores.open("c.bin").unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("a.bin") && error.to_string().contains("replaced"), "{error}");
        assert!(!dir.path().join("c.bin").exists());
    }

    #[tokio::test]
    async fn between_stores_bytes_are_streamed_in_parts() {
        let stores = Stores::new(".");
        let place = |name: &str| Location::new(Arc::new(InMemory::new()), Path::from(name), format!("memory://{name}"));
        for (length, keep) in [(100, 60), (20 << 20, (17 << 20) + 3), (16 << 20, 16 << 20), (10, 0)] {
            let (source, target) = (place("a"), place("b"));
            source.write(noise(length)).await.unwrap();
            let meta = source.head().await.unwrap();
            stores.compose(&source, &meta, keep as u64, "the tail".into(), &target).await.unwrap();
            let made = target.read().await.unwrap();
            assert!(made[..keep] == noise(length)[..keep] && &made[keep..] == b"the tail", "{length} {keep}");
            let stale = ObjectMeta { e_tag: Some("another".into()), ..meta };
            let again = stores.compose(&source, &stale, keep as u64, "x".into(), &place("c")).await;
            assert_eq!(again.is_err(), keep > 0);
        }
    }
}
