//! The SQL functions of a session.
//!
//! * [`sampling`]: `sample_key`, `resample_count`. Values of their arguments alone, in every [`SqlSession`](super::SqlSession).
//! * [`cutoff`]: `weight_cutoff(keep)`. From the weights of a table; exact.
//! * [`weigh`]: `push_pull_weight(text…)`, `push_pull_explain(text…)`. From a job's model, which is loaded when a query first needs it.

pub(super) mod cutoff;
pub(super) mod sampling;
pub(super) mod weigh;

use std::future::Future;

use datafusion::common::{DataFusionError, Result as DfResult};
use tokio::runtime::{Builder, Handle, RuntimeFlavor};

/// Waits for `future` inside a function that DataFusion calls from a thread of its own choice: planning and expressions are not async.
fn wait<T: Send>(future: impl Future<Output = T> + Send) -> DfResult<T> {
    match Handle::try_current() {
        // The runtime's other tasks move to another thread meanwhile.
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => Ok(tokio::task::block_in_place(|| handle.block_on(future))),
        // A runtime of one thread would wait for itself.
        _ => std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Ok(Builder::new_current_thread().enable_all().build()?.block_on(future)));
            waiting.join().unwrap_or_else(|_| Err(DataFusionError::Internal("a thread that read for a function panicked".to_owned())))
        }),
    }
}
