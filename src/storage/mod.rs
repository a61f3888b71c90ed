//! URL in, object store out: local paths, `file://`, `s3://` (and S3-compatible endpoints), `gs://`, `az://`, and plain
//! `http(s)://` for reading.
//!
//! Guarantees: one client per store and process, so connections are shared; every byte read or sent is counted; an object is visible
//! whole or not at all; credentials come from the environment and appear in no message. Memory: nothing is cached here.

mod compose;
mod credentials;
mod location;
mod metered;
mod server_copy;
mod stores;

pub(crate) use location::relative;
pub use location::{Location, is_glob};
pub use metered::Traffic;
pub use stores::Stores;
