//! A place in an object store: an object, a prefix or a glob, with its store and the name it is shown by.

use crate::error::{Error, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::{Path, PathPart};
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A place in an object store. Cheap to clone. Displays as the user wrote it.
#[derive(Debug, Clone)]
pub struct Location {
    store: Arc<dyn ObjectStore>,
    path: Path,
    url: String,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Location {
    /// A location in a store that the caller built.
    pub fn new(store: Arc<dyn ObjectStore>, path: Path, url: String) -> Self {
        Self { store, path, url }
    }

    /// The store's client.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The path inside the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A place below this one; `relative` is `/`-separated and spelled as a listing spells it.
    pub fn join(&self, relative: &str) -> Self {
        // Parsed, not converted: converting would escape characters that the key really has.
        let part = |text| PathPart::parse(text).unwrap_or_else(|_| PathPart::from(text));
        let path = relative.split('/').filter(|part| !part.is_empty()).fold(self.path.clone(), |path, text| path.join(part(text)));
        Self { store: Arc::clone(&self.store), path, url: format!("{}/{relative}", self.url.trim_end_matches('/')) }
    }

    /// Whether `other` is in the same store at or below this place.
    pub fn contains(&self, other: &Location) -> bool {
        Arc::ptr_eq(&self.store, &other.store) && other.path.prefix_matches(&self.path)
    }

    /// Size, time and etag of the object.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no such object, and the store's other answers.
    pub async fn head(&self) -> Result<ObjectMeta> {
        self.store.head(&self.path).await.map_err(|e| self.error("read", e))
    }

    /// A part of the object as it was listed: with an etag, an object that was replaced since is an error and not other bytes.
    ///
    /// # Errors
    /// As [`head`](Self::head), and the store's answer that the object changed.
    pub async fn read_range(&self, range: Range<u64>, etag: Option<&str>) -> object_store::Result<Bytes> {
        // A weak etag never matches by the rules of HTTP.
        let if_match = etag.filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
        let options = GetOptions { range: Some(range.into()), if_match, ..GetOptions::default() };
        self.store.get_opts(&self.path, options).await?.bytes().await
    }

    /// The whole object.
    ///
    /// # Errors
    /// As [`head`](Self::head).
    pub async fn read(&self) -> Result<Bytes> {
        let result = self.store.get(&self.path).await.map_err(|e| self.error("read", e))?;
        result.bytes().await.map_err(|e| self.error("read", e))
    }

    /// Every object below this prefix, sorted by path.
    ///
    /// # Errors
    /// What the store answers. A prefix without objects is an empty list.
    pub async fn list(&self) -> Result<Vec<ObjectMeta>> {
        let listed = self.store.list(Some(&self.path)).try_collect::<Vec<_>>().await;
        let mut objects = match listed {
            Err(object_store::Error::NotFound { .. }) if self.is_local() => Vec::new(),
            other => other.map_err(|e| self.error("list", e))?,
        };
        objects.sort_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
        Ok(objects)
    }

    /// Writes the object whole, replacing what was there.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn write(&self, bytes: impl Into<PutPayload>) -> Result<()> {
        self.store.put(&self.path, bytes.into()).await.map(drop).map_err(|e| self.error("write", e))
    }

    /// Writes an object whose name is derived from its content; one that exists already has that content.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn write_immutable(&self, bytes: impl Into<PutPayload>) -> Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&self.path, bytes.into(), options).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(e) => Err(self.error("write", e)),
        }
    }

    /// Reads every object below this prefix for which `wanted` holds, by its path relative to the prefix.
    ///
    /// # Errors
    /// As [`list`](Self::list) and [`read`](Self::read).
    pub async fn read_all(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Bytes)>> {
        let mut names = Vec::new();
        for object in self.list().await? {
            if let Some(name) = relative(&self.path, &object.location).filter(|name| wanted(name)) {
                names.push(name);
            }
        }
        futures::stream::iter(names.into_iter().map(|name| async move {
            let bytes = self.join(&name).read().await?;
            Ok((name, bytes))
        }))
        .buffered(4)
        .try_collect()
        .await
    }

    /// Names this place in an answer of the store, with what to do about it.
    pub fn error(&self, action: &'static str, error: object_store::Error) -> Error {
        use object_store::Error as Store;
        let location = self.url.clone();
        let status = status_of(&error);
        match (&error, status) {
            (Store::NotFound { .. }, _) | (_, Some(404)) => {
                let help = if error.to_string().contains("NoSuchBucket") {
                    "there is no such bucket"
                } else if self.is_local() {
                    "no such file or folder"
                } else {
                    "no such object; check the URL"
                };
                Error::NotFound { location, help: help.into() }
            }
            (Store::PermissionDenied { .. } | Store::Unauthenticated { .. }, _) | (_, Some(401 | 403)) => Error::PermissionDenied {
                location,
                help: format!("the credentials in the environment are wrong, or may not {action} here"),
                source: Box::new(error),
            },
            (Store::Precondition { .. }, _) => {
                Error::Storage { location, action: "read it to the end: it was replaced meanwhile", source: Box::new(error) }
            }
            _ => Error::Storage { location, action, source: Box::new(error) },
        }
    }

    /// Whether the place is on a local disk.
    pub fn is_local(&self) -> bool {
        !self.url.contains("://") || self.url.starts_with("file://")
    }
}

/// The HTTP status behind an answer that the client has no name for (a listing's, for one); it is only told in words.
fn status_of(error: &object_store::Error) -> Option<u16> {
    let text = error.to_string();
    let (_, status) = text.split_once("non-2xx status code: ")?;
    status.get(..3)?.parse().ok()
}

/// Whether the text holds a glob character.
pub fn is_glob(text: &str) -> bool {
    // A web server lists nothing, and a `?` there begins a query.
    !["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) && text.contains(['*', '?', '[', '{'])
}

/// `path` relative to `prefix`, or `None` where it is not below it.
pub(crate) fn relative(prefix: &Path, path: &Path) -> Option<String> {
    let parts: Vec<_> = path.prefix_match(prefix)?.map(|part| part.as_ref().to_owned()).collect();
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn immutable_objects_are_written_once() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let place = Location::new(store, Path::from("models"), "memory://models".into()).join("a/b.bin");
        let odd = place.join("ts=00%3A00 [x]~#/part.parquet");
        assert_eq!(odd.path(), &Path::parse("models/a/b.bin/ts=00%3A00 [x]~#/part.parquet").unwrap());
        place.write_immutable("one").await.unwrap();
        place.write_immutable("two").await.unwrap();
        assert_eq!(place.read().await.unwrap(), "one");
        assert_eq!(place.path().as_ref(), "models/a/b.bin");
    }

    #[test]
    fn globs_are_told_from_queries() {
        assert!(is_glob("http-logs/*.parquet") && is_glob("s3://lake/a?b"));
        assert!(!is_glob("https://host/part.parquet?x=1") && !is_glob("lake/part.parquet"));
    }

    #[test]
    fn an_answer_in_words_is_understood() {
        let place = Location::new(Arc::new(InMemory::new()), Path::from("x"), "s3://lake/x/".into());
        let generic = |text: &str| object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
        let missing = place.error("list", generic("Server returned non-2xx status code: 404 Not Found: <Code>NoSuchBucket</Code>"));
        assert!(matches!(&missing, Error::NotFound { help, .. } if help.contains("bucket")), "{missing}");
        let denied = place.error("list", generic("Server returned non-2xx status code: 403 Forbidden: <Code>AccessDenied</Code>"));
        assert!(matches!(denied, Error::PermissionDenied { .. }));
        assert!(matches!(place.error("list", generic("connection reset")), Error::Storage { .. }));
    }

    #[tokio::test]
    async fn a_missing_object_is_named() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let place = Location::new(store, Path::from("x"), "memory://x".into());
        assert!(matches!(place.read().await, Err(Error::NotFound { location, .. }) if location == "memory://x"));
        assert!(place.list().await.unwrap().is_empty());
    }
}
