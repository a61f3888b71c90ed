//! The one error type of the crate. Every variant names the object it is about (shard, column, option, reference file), keeps
//! its cause, and its text says what to do where that is known. Not converging is a result (see `transport`), never an error.

use thiserror::Error;

/// The cause of an [`enum@Error`], kept as `source()`.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// `Result` with the crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what the caller can do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// An object or a prefix does not exist.
    #[error("{location}: not found{}", hint(.help))]
    NotFound {
        /// URL or path of the object.
        location: String,
        /// What to check or change; may be empty.
        help: String,
    },

    /// The store refused: missing, wrong or insufficient credentials.
    #[error("{location}: permission denied{}", hint(.help))]
    PermissionDenied {
        /// URL or path of the object.
        location: String,
        /// What to check or change; may be empty.
        help: String,
        /// What the store answered.
        #[source]
        source: BoxError,
    },

    /// A URL or path that cannot be opened: malformed, of an unknown scheme, or without credentials.
    #[error("{location}: {reason}")]
    Location {
        /// The URL or path, without credentials.
        location: String,
        /// What is wrong and what to set or change.
        reason: String,
    },

    /// Any other failure of an object store.
    #[error("{location}: could not {action}")]
    Storage {
        /// URL or path of the object.
        location: String,
        /// What was being done: "read", "list", "write".
        action: &'static str,
        /// What the store answered.
        #[source]
        source: BoxError,
    },

    /// A shard that cannot be read. Such a shard is quarantined; the others go on.
    #[error("shard {shard}{}: {reason}", row_group_suffix(.row_group))]
    Shard {
        /// The shard's path relative to the corpus URL.
        shard: String,
        /// Row group (Parquet) or record batch (Arrow), counted from 0, where known.
        row_group: Option<usize>,
        /// What is wrong.
        reason: String,
        /// The reader's own error.
        #[source]
        source: Option<BoxError>,
    },

    /// A column that is missing or has a type that cannot be used.
    #[error("{object}: column `{column}` {reason}")]
    Column {
        /// The shard or file.
        object: String,
        /// The column as the job names it.
        column: String,
        /// What is wrong, with the nearest existing column where there is one.
        reason: String,
    },

    /// A reference set that cannot be used.
    #[error("references {location}: {reason}")]
    References {
        /// URL or path of the reference file, or the side (`safe`, `harm`).
        location: String,
        /// What is wrong and what to change.
        reason: String,
    },

    /// An embedding model that cannot be loaded or run.
    #[error("model {location}: {reason}")]
    Model {
        /// Folder or URL of the model, or `builtin`.
        location: String,
        /// What is wrong.
        reason: String,
        /// The loader's own error.
        #[source]
        source: Option<BoxError>,
    },

    /// An option whose value cannot be used.
    #[error("option `{name}`: {reason}")]
    InvalidOption {
        /// The key as the job file or the command line spells it.
        name: String,
        /// What is allowed.
        reason: String,
    },

    /// The job file cannot be read or understood.
    #[error("{location}: {reason}")]
    JobFile {
        /// Path of the job file.
        location: String,
        /// What is wrong, with the nearest known key where there is one.
        reason: String,
    },

    /// The weights table or a fitted model beside it cannot be read or changed.
    #[error("weights table {location}: {reason}")]
    Catalog {
        /// URL of the table.
        location: String,
        /// What is wrong.
        reason: String,
        /// The table format's own error.
        #[source]
        source: Option<BoxError>,
    },

    /// A query that cannot be planned or run.
    #[error("query: {reason}")]
    Query {
        /// The engine's message.
        reason: String,
        /// The engine's own error.
        #[source]
        source: Option<BoxError>,
    },

    /// A broken promise inside pushpull: a bug to report.
    #[error("internal error, please report: {0}")]
    Internal(String),
}

impl Error {
    /// Whether a store's answer is at the bottom of it: no access, an outage, an object that was replaced. Trying again may help.
    pub fn is_storage(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if matches!(
                error.downcast_ref::<Error>(),
                Some(Error::Storage { .. } | Error::PermissionDenied { .. } | Error::NotFound { .. })
            ) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

fn hint(help: &str) -> String {
    if help.is_empty() { String::new() } else { format!(" ({help})") }
}

fn row_group_suffix(row_group: &Option<usize>) -> String {
    row_group.map(|g| format!(", row group {g}")).unwrap_or_default()
}

/// The name among `known` that is closest to `name`, if any is close enough to be a likely slip.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(d, k)| *d <= 1 + name.len().min(k.len()) / 3)
        .min()
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_far() {
        assert_eq!(nearest("promt", ["prompt", "response"]), Some("prompt"));
        assert_eq!(nearest("Response", ["prompt", "response"]), Some("response"));
        assert_eq!(nearest("vector", ["prompt", "response"]), None);
    }
}
