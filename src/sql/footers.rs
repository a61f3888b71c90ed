//! What has been read of objects' metadata, by path and entity tag: kept across scans and across tables of one process.
//!
//! In: Parquet footers (with and without page indexes, also those of base and sidecar as one file) and whole small objects. Out: the
//! same, while they are among the last used. Guarantees: an entry belongs to one version of one object of one store; memory stays
//! below the bound, whatever the corpus, apart from entries that scans hold at the time.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::{ObjectMeta, ObjectStore};
use parquet::file::metadata::ParquetMetaData;

use crate::error::Result;

/// Bytes of metadata that are kept by default: the footers of some ten thousand shards of a dozen columns.
pub const DEFAULT_FOOTER_MEMORY: usize = 256 << 20;

/// What an entry takes beside its content.
const OVERHEAD: usize = 512;

/// Footers that were read, the last used ones up to a bound in bytes. Shared by reference.
#[derive(Debug)]
pub struct FooterCache {
    entries: Mutex<Entries>,
    bytes: usize,
}

impl Default for FooterCache {
    fn default() -> Self {
        Self::new(DEFAULT_FOOTER_MEMORY)
    }
}

impl FooterCache {
    /// A cache of at most `bytes`. Default: [`DEFAULT_FOOTER_MEMORY`].
    pub fn new(bytes: usize) -> Self {
        Self { entries: Mutex::default(), bytes }
    }

    /// Bytes held now, as they are estimated.
    pub fn held(&self) -> usize {
        self.lock().held
    }

    pub(super) fn get(&self, key: &Key) -> Option<Cached> {
        self.lock().get(key)
    }

    /// The entry, or what `load` gives. Of many callers that hold the same `turn` one loads and the others wait.
    pub(super) async fn get_or_load<F: Future<Output = Result<Cached>>>(
        &self,
        key: Key,
        turn: &tokio::sync::Mutex<()>,
        load: impl FnOnce() -> F,
    ) -> Result<Cached> {
        if let Some(found) = self.get(&key) {
            return Ok(found);
        }
        let _turn = turn.lock().await;
        if let Some(found) = self.get(&key) {
            return Ok(found);
        }
        let loaded = load().await?;
        self.lock().put(key, loaded.clone(), self.bytes);
        Ok(loaded)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing that is known of one version of an object.
#[derive(Debug, Clone)]
pub(super) struct Key {
    store: Arc<dyn ObjectStore>,
    path: String,
    version: String,
    kind: Kind,
}

/// What is kept of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// All its bytes.
    Whole,
    /// Its footer.
    Footer,
    /// Its footer and page indexes.
    Indexed,
    /// A sidecar's footer with its columns under other names, behind a base's if one is named.
    Composed { base: Option<(String, String)>, names: String },
}

impl Key {
    pub(super) fn new(store: &Arc<dyn ObjectStore>, meta: &ObjectMeta, kind: Kind) -> Self {
        Self { store: Arc::clone(store), path: meta.location.to_string(), version: version(meta), kind }
    }
}

/// What changes when the object does.
pub(super) fn version(meta: &ObjectMeta) -> String {
    match &meta.e_tag {
        Some(tag) => format!("{} {tag}", meta.size),
        None => format!("{} {}", meta.size, meta.last_modified.timestamp_millis()),
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        // The entry holds its store, so no other can come to lie at the same address.
        Arc::ptr_eq(&self.store, &other.store) && self.path == other.path && self.version == other.version && self.kind == other.kind
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.path, &self.version, &self.kind).hash(state);
    }
}

/// The value of an entry.
#[derive(Debug, Clone)]
pub(super) enum Cached {
    /// Of [`Kind::Whole`].
    Bytes(Bytes),
    /// Of the other kinds.
    Metadata(Arc<ParquetMetaData>),
}

impl Cached {
    fn size(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Metadata(metadata) => metadata.memory_size(),
        }
    }
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Arc<Key>, Entry>,
    /// Keys by the time of their last use.
    by_use: BTreeMap<u64, Arc<Key>>,
    uses: u64,
    held: usize,
}

#[derive(Debug)]
struct Entry {
    value: Cached,
    bytes: usize,
    used: u64,
}

impl Entries {
    fn get(&mut self, key: &Key) -> Option<Cached> {
        self.uses += 1;
        let entry = self.by_key.get_mut(key)?;
        if let Some(key) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.uses, key);
        }
        entry.used = self.uses;
        Some(entry.value.clone())
    }

    fn put(&mut self, key: Key, value: Cached, most: usize) {
        let bytes = value.size() + key.path.len() + OVERHEAD;
        if bytes > most {
            return;
        }
        self.uses += 1;
        let key = Arc::new(key);
        let entry = Entry { value, bytes, used: self.uses };
        self.by_use.insert(self.uses, Arc::clone(&key));
        self.held += bytes;
        if let Some(before) = self.by_key.insert(key, entry) {
            self.by_use.remove(&before.used);
            self.held -= before.bytes;
        }
        while self.held > most
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.held -= self.by_key.remove(&oldest).map_or(0, |entry| entry.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use object_store::path::Path;

    fn key(store: &Arc<dyn ObjectStore>, path: &str, tag: &str) -> Key {
        let meta = ObjectMeta {
            location: Path::from(path),
            last_modified: Default::default(),
            size: 9,
            e_tag: Some(tag.to_owned()),
            version: None,
        };
        Key::new(store, &meta, Kind::Whole)
    }

    async fn load(cache: &FooterCache, key: Key, bytes: usize) -> bool {
        let mut loaded = false;
        let flag = &mut loaded;
        let value = async move || {
            *flag = true;
            Ok(Cached::Bytes(vec![0; bytes].into()))
        };
        cache.get_or_load(key, &tokio::sync::Mutex::new(()), value).await.unwrap();
        loaded
    }

    #[tokio::test]
    async fn the_least_used_go_first_and_the_bound_holds() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let cache = FooterCache::new(4000);
        assert!(load(&cache, key(&store, "a", "1"), 1000).await);
        assert!(load(&cache, key(&store, "b", "1"), 1000).await);
        assert!(!load(&cache, key(&store, "a", "1"), 1000).await);
        assert!(load(&cache, key(&store, "c", "1"), 1000).await);
        assert!(cache.held() <= 4000);
        assert!(!load(&cache, key(&store, "a", "1"), 1000).await, "used last");
        assert!(load(&cache, key(&store, "b", "1"), 1000).await, "used least");
        assert!(load(&cache, key(&store, "huge", "1"), 5000).await);
        assert!(load(&cache, key(&store, "huge", "1"), 5000).await, "too large to be kept");
        assert!(cache.held() <= 4000);
    }

    #[tokio::test]
    async fn another_version_or_store_is_another_entry() {
        let (one, two): (Arc<dyn ObjectStore>, Arc<dyn ObjectStore>) = (Arc::new(InMemory::new()), Arc::new(InMemory::new()));
        let cache = FooterCache::default();
        assert!(load(&cache, key(&one, "a", "1"), 10).await);
        assert!(load(&cache, key(&one, "a", "2"), 10).await);
        assert!(load(&cache, key(&two, "a", "1"), 10).await);
        assert!(!load(&cache, key(&one, "a", "1"), 10).await);
    }
}
