//! Which objects under a corpus URL are shards.

use crate::error::{Error, Result};
use crate::storage::{Location, Stores, is_glob};
use globset::{GlobBuilder, GlobMatcher};
use object_store::ObjectMeta;
use std::collections::BTreeSet;

/// How a shard's rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShardFormat {
    /// Apache Parquet: `.parquet`, `.parq`, `.pq`.
    Parquet,
    /// An Arrow IPC file: `.arrow`, `.feather`, `.ipc`.
    Arrow,
}

impl ShardFormat {
    /// The format that a file name's ending announces.
    pub fn of(name: &str) -> Option<Self> {
        let (_, ending) = name.rsplit_once('.')?;
        match ending.to_ascii_lowercase().as_str() {
            "parquet" | "parq" | "pq" => Some(Self::Parquet),
            "arrow" | "feather" | "ipc" => Some(Self::Arrow),
            _ => None,
        }
    }
}

/// One object of the corpus.
#[derive(Debug, Clone)]
pub struct Shard {
    /// Path relative to the corpus prefix, `/`-separated: the shard's name everywhere, the same wherever the corpus is mounted.
    pub name: String,
    /// Where it is.
    pub location: Location,
    /// Size, time and etag as listed.
    pub meta: ObjectMeta,
    /// How its rows are stored.
    pub format: ShardFormat,
}

impl Shard {
    /// What changes when the shard's content does: the store's etag, or size and time where it has none.
    pub fn version(&self) -> String {
        match &self.meta.e_tag {
            Some(etag) => etag.trim_matches('"').to_owned(),
            None => format!("{}-{}", self.meta.size, self.meta.last_modified.timestamp_millis()),
        }
    }
}

/// What is under a corpus URL.
#[derive(Debug, Default)]
pub struct Listing {
    /// The shards, sorted by name.
    pub shards: Vec<Shard>,
    /// Objects that are no shards: markers, logs, hidden files, other formats, and what pushpull itself wrote.
    pub passed_over: usize,
}

impl Listing {
    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.meta.size).sum()
    }
}

/// Lists the shards under `url`: one file, a glob (`**` crosses folders, `*` does not), or a prefix with everything below it.
///
/// Passed over: names of which any part below the prefix starts with `_` or `.`, names whose ending is no shard's, everything at
/// or below `output` (so weights may live inside the corpus), and everything in a folder that holds another weights table.
///
/// # Errors
/// [`Error::NotFound`] when there is no shard, and what the store answers.
pub async fn list_shards(stores: &Stores, url: &str, output: Option<&Location>) -> Result<Listing> {
    let (prefix, glob) = split_glob(url)?;
    let root = stores.open(&prefix)?;
    if glob.is_none()
        && let Some(format) = ShardFormat::of(root.path().filename().unwrap_or_default())
    {
        match root.head().await {
            Ok(meta) => {
                let name = root.path().filename().unwrap_or_default().to_owned();
                return Ok(Listing { shards: vec![Shard { name, location: root, meta, format }], passed_over: 0 });
            }
            // A folder may be named like a file.
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let objects = root.list().await?;
    let named = |meta: &ObjectMeta| crate::storage::relative(root.path(), &meta.location);
    let names: Vec<String> = objects.iter().filter_map(named).collect();
    let logs: BTreeSet<&str> = names.iter().filter_map(|name| Some(name.split_once("_delta_log/")?.0)).collect();
    let tables: BTreeSet<&str> = names.iter().filter_map(|name| weights_table(name)).filter(|folder| logs.contains(folder)).collect();
    let mut listing = Listing::default();
    for meta in objects {
        let Some(name) = named(&meta) else { continue };
        let location = root.join(&name);
        let hidden = name.split('/').any(|part| part.starts_with(['_', '.']));
        let written = output.is_some_and(|o| o.contains(&location) && !o.path().as_ref().is_empty())
            || tables.iter().any(|table| name.starts_with(table));
        let matches = glob.as_ref().is_none_or(|glob| glob.is_match(&name));
        match ShardFormat::of(&name) {
            Some(format) if !hidden && !written && matches => listing.shards.push(Shard { name, location, meta, format }),
            _ => listing.passed_over += 1,
        }
    }
    if listing.shards.is_empty() {
        let help = match (listing.passed_over, &glob) {
            (0, _) => "nothing there; check corpus.url".to_owned(),
            (n, Some(glob)) => format!("no shard matches {}; {n} other objects", glob.glob()),
            (n, None) => format!("no .parquet or .arrow shard among {n} objects"),
        };
        return Err(Error::NotFound { location: url.to_owned(), help });
    }
    listing.shards.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(listing)
}

/// The folder (with its `/`) that a fitted model lies in; with a transaction log beside it, it is a weights table.
fn weights_table(name: &str) -> Option<&str> {
    let (folder, file) = name.rsplit_once("_models/")?;
    (folder.ends_with('/') && !file.contains('/') && file.ends_with(".safetensors")).then_some(folder)
}

/// The place that holds every shard of the corpus at `url`: its prefix, or the part before a glob's first pattern.
///
/// # Errors
/// A glob or a URL that cannot be understood.
pub(crate) fn corpus_root(stores: &Stores, url: &str) -> Result<Location> {
    stores.open(&split_glob(url)?.0)
}

fn split_glob(url: &str) -> Result<(String, Option<GlobMatcher>)> {
    if !is_glob(url) {
        return Ok((url.to_owned(), None));
    }
    let first = url.find(['*', '?', '[', '{']).unwrap_or(url.len());
    let cut = url[..first].rfind('/').map_or(0, |slash| slash + 1);
    let glob = GlobBuilder::new(&url[cut..])
        .literal_separator(true)
        .build()
        .map_err(|e| Error::InvalidOption { name: "corpus.url".into(), reason: format!("{url}: {}", e.kind()) })?;
    Ok((url[..cut].to_owned(), Some(glob.compile_matcher())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(dir: &std::path::Path, names: &[&str]) {
        for name in names {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
    }

    async fn names(dir: &std::path::Path, url: &str, output: Option<&str>) -> Vec<String> {
        let stores = Stores::new(dir);
        let output = output.map(|o| stores.open(o).unwrap());
        list_shards(&stores, url, output.as_ref()).await.unwrap().shards.into_iter().map(|s| s.name).collect()
    }

    #[tokio::test]
    async fn markers_logs_and_own_output_are_no_shards() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &[
                "lake/b/part-1.parquet",
                "lake/a/part-2.arrow",
                "lake/_SUCCESS",
                "lake/_delta_log/1.parquet",
                "lake/.part.parquet.crc",
                "lake/.hidden/x.parquet",
                "lake/notes.txt",
                "lake/weights/data/1/2.parquet",
                "lake/old-weights/_models/abc.safetensors",
                "lake/old-weights/_delta_log/0.json",
                "lake/old-weights/data/1/2.parquet",
            ],
        );
        let both = ["a/part-2.arrow", "b/part-1.parquet"];
        assert_eq!(names(dir.path(), "lake/", Some("lake/weights/")).await, both);
        assert_eq!(names(dir.path(), "lake", Some("lake/weights")).await, both);
        assert_eq!(names(dir.path(), "lake/*/part-?.parquet", None).await, ["b/part-1.parquet"]);
        assert_eq!(names(dir.path(), "lake/{a,b}/*", None).await, both);
        assert_eq!(names(dir.path(), "lake/b/part-1.parquet", None).await, ["part-1.parquet"]);
    }

    #[tokio::test]
    async fn no_shard_is_an_error_that_says_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["lake/notes.txt"]);
        let stores = Stores::new(dir.path());
        let error = list_shards(&stores, "lake/", None).await.unwrap_err().to_string();
        assert!(error.contains("lake/") && error.contains("1 objects"), "{error}");
        let error = list_shards(&stores, "nowhere/", None).await.unwrap_err().to_string();
        assert!(error.contains("nowhere/") && error.contains("corpus.url"), "{error}");
    }
}
