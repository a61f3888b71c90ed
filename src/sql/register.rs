//! Tables and functions of a job in any DataFusion session.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::prelude::SessionContext;

use super::functions::weigh::LazyWeigher;
use super::functions::{cutoff, sampling, weigh};
use super::session::query_error;
use super::sidecars::{SidecarTable, WeightsAt};
use crate::catalog::Published;
use crate::error::Result;
use crate::storage::Location;

/// What SQL shows of a job.
pub struct SqlTables {
    /// The table `corpus`.
    pub corpus: Arc<dyn TableProvider>,
    /// Where the weights table is.
    pub output: Location,
    /// Every published sidecar: the table `weights`.
    pub published: Vec<Published>,
    /// The sidecars of shards that are in the corpus, over whose rows `weight_cutoff` is.
    pub in_corpus: Vec<Published>,
    /// Further tables, by name.
    pub others: Vec<(String, Arc<dyn TableProvider>)>,
    /// The current model.
    pub weigher: LazyWeigher,
}

impl std::fmt::Debug for SqlTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlTables").field("output", &self.output.to_string()).finish_non_exhaustive()
    }
}

/// What has tables to show: a [`Job`](crate::job::Job).
#[async_trait]
pub trait SqlSource: Sync {
    /// The tables as they are now.
    ///
    /// # Errors
    /// What the corpus, the log and the store answer.
    async fn sql_tables(&self) -> Result<SqlTables>;
}

/// Makes the tables of `source` as they are now (`corpus`, `weights`, `references`, `shards`, `runs`, `models`, `hygiene`) and its functions
/// (`push_pull_weight`, `push_pull_explain`, `weight_cutoff`, `weights_at`, `sample_key`, `resample_count`) known to a session of your own,
/// in its default schema; tables of these names are replaced. Register again to see later runs.
///
/// Switches the session's option `optimizer.enable_aggregate_dynamic_filter_pushdown` off: with it DataFusion 55 may lose the `min` or
/// `max` of a column that some shards lack (datafusion issue 25147). The order of nulls is the session's own: by DataFusion's default
/// `order by weight desc` gives rows without a weight first. What queries may write is the session's owner's to decide, too.
///
/// Use it in a runtime of several threads: `weight_cutoff` and the first `push_pull_weight` wait for IO where DataFusion doesn't, and
/// in a runtime of one thread that needs a thread of its own.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use datafusion::prelude::SessionContext;
/// use pushpull::job::{Job, RunOptions};
///
/// let job = Job::open("job.toml", &[], RunOptions::default()).await?;
/// let context = SessionContext::new();
/// pushpull::sql::register(&context, &job).await?;
/// context.sql("select * from corpus where weight >= weight_cutoff(0.8)").await?.show().await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Catalog`](crate::error::Error::Catalog) before the first run, and as [`SqlSource::sql_tables`].
pub async fn register<S: SqlSource + ?Sized>(context: &SessionContext, source: &S) -> Result<()> {
    let tables = source.sql_tables().await?;
    context.state_ref().write().config_mut().options_mut().optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    let weights = Arc::new(SidecarTable::new(tables.output.clone(), tables.published));
    let in_corpus = Arc::new(SidecarTable::new(tables.output.clone(), tables.in_corpus));
    let named = [("corpus".to_owned(), tables.corpus), ("weights".to_owned(), weights as Arc<dyn TableProvider>)];
    for (name, table) in named.into_iter().chain(tables.others) {
        register_table(context, &name, table)?;
    }
    register_plain_functions(context);
    weigh::functions(&Arc::new(tables.weigher)).into_iter().for_each(|function| context.register_udf(function));
    context.register_udf(cutoff::function(in_corpus));
    context.register_udtf("weights_at", Arc::new(WeightsAt(tables.output)));
    Ok(())
}

/// Replaces a table of that name.
pub(super) fn register_table(context: &SessionContext, name: &str, table: Arc<dyn TableProvider>) -> Result<()> {
    let reference = TableReference::bare(name);
    context.deregister_table(reference.clone()).map_err(query_error)?;
    context.register_table(reference, table).map_err(query_error)?;
    Ok(())
}

/// The functions that need no job.
pub(super) fn register_plain_functions(context: &SessionContext) {
    sampling::functions().into_iter().for_each(|function| context.register_udf(function));
}
