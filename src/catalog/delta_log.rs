//! What the Delta tables of a job have in common: opening a log on a store of ours, and telling a race from a failure.

use crate::error::{Error, Result};
use crate::storage::Location;
use deltalake::kernel::transaction::TransactionError;
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake::{DeltaTable, DeltaTableError};
use object_store::ObjectStore;
use object_store::prefix::PrefixStore;
use std::sync::Arc;
use url::Url;

/// How often a commit is tried when other writers commit in between. Each failure means another run succeeded.
pub(super) const COMMIT_ATTEMPTS: u32 = 20;

/// The log at a location, and the table as it is now if there is one. `option` names the location in an error.
///
/// # Errors
/// [`Error::Catalog`] where there is a log that cannot be read, and what the store answers.
pub(super) async fn open_log(location: &Location, option: &str) -> Result<(LogStoreRef, Option<DeltaTable>)> {
    let root = Arc::clone(location.store());
    let prefixed: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(Arc::clone(&root), location.path().clone()));
    // The store is ours whatever the URL; its scheme only says whether listings come sorted, which a local disk's don't.
    let root_url = if location.is_local() { "file:///" } else { "pushpull://lake/" };
    let url = Url::parse(&format!("{root_url}{}/", location.path()))
        .map_err(|e| Error::InvalidOption { name: option.into(), reason: e.to_string() })?;
    // An empty answer must mean "no table" and not "no access": ask the store first, whose errors name their cause.
    let has_log = !location.join("_delta_log").list().await?.is_empty();
    let log = default_logstore(prefixed, root, &url, &StorageConfig::default());
    let table = if has_log { Some(load(location, &log).await?) } else { None };
    Ok((log, table))
}

/// The table's newest version.
pub(super) async fn load(location: &Location, log: &LogStoreRef) -> Result<DeltaTable> {
    let mut table = DeltaTable::new(Arc::clone(log));
    table.load().await.map_err(|e| failed(location, "cannot be read", e))?;
    Ok(table)
}

pub(super) fn failed(location: &Location, reason: &str, error: DeltaTableError) -> Error {
    Error::Catalog { location: location.to_string(), reason: reason.to_owned(), source: Some(Box::new(error)) }
}

/// Whether another writer committed first.
pub(super) fn is_conflict(error: &DeltaTableError) -> bool {
    match error {
        DeltaTableError::VersionAlreadyExists(_) => true,
        DeltaTableError::Transaction { source } => {
            matches!(
                source,
                TransactionError::CommitConflict(_) | TransactionError::VersionAlreadyExists(_) | TransactionError::MaxCommitAttempts(_)
            )
        }
        // Two first runs at once: the loser finds the table there.
        other => other.to_string().contains("already exists"),
    }
}
