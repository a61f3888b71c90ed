//! Which shards a command weighs. In: globs on the shard's name, a SQL condition, whether to take stale shards only. Out: the names that
//! meet all of them.
//!
//! A shard is weighed whole, since its weights are one file: a condition must hold for all of its rows or for none.

use super::context::Job;
use super::query::sql_session;
use crate::catalog::Published;
use crate::error::{Error, Result};
use crate::shard::{Listing, Shard};
use crate::sql::{RowsMet, count_rows_met};
use globset::{GlobBuilder, GlobMatcher};
use std::collections::{BTreeMap, BTreeSet};

/// Split shards that an error lists.
const LISTED: usize = 8;

/// What is asked for. The parts combine by "and"; the default is everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Globs (`*` stays inside a folder, `**` crosses folders) or whole names of shards, of which one must match. Empty: any shard.
    pub shards: Vec<String>,
    /// A SQL condition on the columns of the table `corpus`: the corpus's own, `shard`, and the weights as they are stored, as in
    /// `source = 'wiki'` or `model <> 'ab12…'`. A shard is taken where it holds for all of its rows and left where it holds for none; null
    /// does not hold. It must not be volatile (`random()`).
    pub predicate: Option<String>,
    /// Only shards in the table whose content changed or that another model weighed. New shards are left.
    pub stale: bool,
}

/// The shards that a selection takes.
#[derive(Debug, Default)]
pub(super) struct Selected {
    /// `None`: all of them.
    names: Option<BTreeSet<String>>,
}

impl Selected {
    pub(super) fn takes(&self, shard: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(shard))
    }
}

impl Selection {
    /// Whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// The shards of the listing that meet it, where `model` is the one to weigh with.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a glob that matches nothing and for a condition that splits a shard, [`Error::Query`] for one that
    /// cannot be computed, and what the store answers.
    pub(super) async fn apply(
        &self,
        job: &Job,
        listing: &Listing,
        published: &BTreeMap<String, Published>,
        model: Option<&str>,
    ) -> Result<Selected> {
        if self.is_everything() {
            return Ok(Selected::default());
        }
        let mut names = named(&self.shards, listing)?;
        if self.stale {
            let stale = |shard: &&Shard| {
                let of_other = |p: &Published| p.shard_version != shard.version() || Some(p.model.as_str()) != model;
                published.get(&shard.name).is_some_and(of_other)
            };
            let stale: BTreeSet<&str> = listing.shards.iter().filter(stale).map(|shard| shard.name.as_str()).collect();
            names.retain(|name| stale.contains(name.as_str()));
        }
        if let Some(predicate) = self.predicate.as_ref().filter(|_| !names.is_empty()) {
            let session = sql_session(job, rayon::current_num_threads()).await?;
            names = whole(predicate, count_rows_met(&session, predicate, &names).await?)?;
        }
        Ok(Selected { names: Some(names) })
    }
}

/// The shards that one of the patterns matches.
fn named(patterns: &[String], listing: &Listing) -> Result<BTreeSet<String>> {
    let all = || listing.shards.iter().map(|shard| shard.name.as_str());
    if patterns.is_empty() {
        return Ok(all().map(str::to_owned).collect());
    }
    let mut names = BTreeSet::new();
    for pattern in patterns {
        let fault = |reason: String| Error::InvalidOption { name: "--shard".to_owned(), reason };
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        let glob: Option<GlobMatcher> = match glob {
            Ok(glob) => Some(glob.compile_matcher()),
            // A name may hold a bracket that opens no class.
            Err(_) if all().any(|name| name == pattern) => None,
            Err(error) => return Err(fault(format!("{pattern:?}: {}", error.kind()))),
        };
        let before = names.len();
        let matching = all().filter(|name| *name == pattern || glob.as_ref().is_some_and(|glob| glob.is_match(name)));
        let matching: Vec<String> = matching.map(str::to_owned).collect();
        if matching.is_empty() {
            let near = all().min_by_key(|name| strsim::damerau_levenshtein(pattern, name)).unwrap_or_default();
            return Err(fault(format!(
                "{pattern:?} matches none of the {} shards; the nearest name is {near:?} (`*` stays inside a folder, `**/` crosses folders)",
                listing.shards.len()
            )));
        }
        names.extend(matching);
        tracing::debug!(pattern, shards = names.len() - before, "selected by name");
    }
    Ok(names)
}

/// The shards for all of whose rows the condition holds, where it splits none.
fn whole(predicate: &str, counted: BTreeMap<String, RowsMet>) -> Result<BTreeSet<String>> {
    let split: Vec<String> = counted
        .iter()
        .filter(|(_, rows)| rows.met > 0 && rows.met < rows.all)
        .map(|(shard, rows)| format!("shard {shard}: {} of {} rows", rows.met, rows.all))
        .collect();
    if !split.is_empty() {
        let more = split.len().saturating_sub(LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let listed = split.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
        let reason = format!(
            "`{predicate}` holds for a part of the rows only in {listed}{more}; a shard is weighed whole: use --shard, or split it"
        );
        return Err(Error::InvalidOption { name: "--where".to_owned(), reason });
    }
    Ok(counted.into_iter().filter(|(_, rows)| rows.met > 0).map(|(shard, _)| shard).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::ShardFormat;
    use crate::storage::Location;
    use object_store::ObjectMeta;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use std::sync::Arc;

    fn listing(names: &[&str]) -> Listing {
        let root = Location::new(Arc::new(InMemory::new()), Path::from("c"), "memory://c".into());
        let shard = |name: &&str| {
            let location = root.join(name);
            let meta = ObjectMeta {
                location: location.path().clone(),
                last_modified: Default::default(),
                size: 1,
                e_tag: Some("v1".into()),
                version: None,
            };
            Shard { name: (*name).to_owned(), location, meta, format: ShardFormat::Parquet }
        };
        Listing { shards: names.iter().map(shard).collect(), passed_over: 0 }
    }

    #[test]
    fn globs_are_those_of_the_corpus_and_a_name_is_itself() {
        let listing = listing(&["a/1.parquet", "a/2.parquet", "b.parquet", "odd [x.parquet", "q[1].parquet"]);
        let names = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
            named(&patterns, &listing).map(|names| names.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), 5);
        assert_eq!(names(&["*.parquet"]).unwrap(), ["b.parquet", "odd [x.parquet", "q[1].parquet"]);
        assert_eq!(names(&["**/*.parquet"]).unwrap().len(), 5);
        assert_eq!(names(&["a/1.parquet", "a/*", "b*"]).unwrap(), ["a/1.parquet", "a/2.parquet", "b.parquet"]);
        assert_eq!(names(&["odd [x.parquet"]).unwrap(), ["odd [x.parquet"]);
        assert_eq!(names(&["q[1].parquet"]).unwrap(), ["q[1].parquet"]);
        let error = names(&["a/*", "a/3.parquet"]).unwrap_err().to_string();
        assert!(
            error.contains("--shard") && error.contains("\"a/3.parquet\"") && error.contains("nearest name is \"a/1.parquet\""),
            "{error}"
        );
        assert!(names(&["odd [y"]).unwrap_err().to_string().contains("odd [y"));
    }

    #[test]
    fn a_condition_takes_whole_shards_only() {
        let counted = |rows: &[(&str, u64, u64)]| {
            rows.iter().map(|(shard, met, all)| ((*shard).to_owned(), RowsMet { met: *met, all: *all })).collect::<BTreeMap<_, _>>()
        };
        let taken = whole("x", counted(&[("a", 3, 3), ("b", 0, 7), ("c", 1, 1)])).unwrap();
        assert_eq!(taken.into_iter().collect::<Vec<_>>(), ["a", "c"]);
        let error = whole("x > 1", counted(&[("a", 3, 3), ("b", 12, 200), ("c", 1, 2)])).unwrap_err().to_string();
        assert!(error.contains("shard b: 12 of 200 rows, shard c: 1 of 2 rows; a shard is weighed whole"), "{error}");
    }
}
