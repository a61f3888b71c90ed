//! What is published: the weights table's transaction log, the fitted models and the run reports.
//!
//! In: receipts of written sidecars, models, reports. Out: one commit per run on a Delta Lake table whose data files are the
//! sidecars; `_models/<digest>.safetensors` and `_runs/<version>-<digest>.json`, immutable and named by their content.
//! Guarantees: the log is the only commit point, so a sidecar that is not in it does not exist; a commit is whole or absent; two
//! runs at once both succeed or one says so. Memory: the list of published shards.

mod delta_log;
mod hygiene;
mod model_file;
mod run_file;
mod spliced_table;
mod weights_table;

pub use hygiene::{Finding, FindingItem, FindingKind, Hygiene, Level, Side};
pub use model_file::{MODEL_FORMAT, ModelCard, StoredModel};
pub use run_file::{list_runs, write_run};
pub use spliced_table::{SplicedFile, SplicedSchema, SplicedTable};
pub use weights_table::{Publication, Published, WeightsTable};
