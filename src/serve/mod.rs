//! Corpus and weights for other programs: an Arrow Flight SQL server over the job's tables.
//!
//! **In**: an opened [`Job`](crate::job::Job) and queries over gRPC. **Out**: record batches, as they are found. ADBC and JDBC drivers
//! speak this protocol, and with them Python, R, Go, Java and most BI tools.
//!
//! **Guaranteed**
//! * Nothing can be written: every statement but a query is refused.
//! * A query sees corpus and weights as they were at most [`ServeOptions::refresh`] before it began, and keeps that view to its end,
//!   whatever is committed meanwhile. A shard that is replaced under a running query is an error, never another shard's rows.
//! * The server holds no state for a client. A ticket is the statement itself, a prepared statement's handle is the statement and
//!   the values bound to it: both are good on any server of the same job, and nothing has to be closed.
//! * Without a [`Token`] only addresses of the machine itself can be bound. With one, every call needs it.
//! * A client that goes away stops its query; so does one that takes nothing for [`ServeOptions::idle`].
//!
//! **Memory**: one budget (the job's) over all queries, for what they collect; beside it each running query holds a few decoded
//! batches. At most [`ServeOptions::queries`] run at once, others wait. The tables' footers are held once a view.

mod auth;
mod handle;
mod metadata;
mod rows;
mod server;
mod service;
mod snapshot;

pub use auth::{TOKEN_VARIABLE, Token};
pub use server::{DEFAULT_DRAIN, DEFAULT_IDLE, DEFAULT_LISTEN, DEFAULT_QUERIES, DEFAULT_REFRESH, ServeOptions, Server};
