//! What a statement may do beside reading: in goes its plan, out comes the plan that may run, or why it may not.
//!
//! Only `COPY (…) TO` may ever write, and never below the corpus, the weights table or on a reference file. A file appears when it is
//! whole; a `COPY` that breaks off in the middle of a folder of files leaves those that are whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::prelude::SessionContext;
use url::Url;

use super::reader::external;
use super::session::query_error;
use crate::error::{Error, Result};
use crate::storage::{Location, Stores};

/// Where `COPY` may write: anywhere that a store can be opened, but for what a job lives on.
#[derive(Debug, Clone)]
pub struct WriteTargets {
    stores: Stores,
    kept: Vec<(String, Location)>,
}

impl WriteTargets {
    /// Targets in `stores`; relative paths in a query start at the current directory.
    pub fn new(stores: Stores) -> Self {
        Self { stores, kept: Vec::new() }
    }

    /// Refuses targets at or below `location`, which must be of the same stores; `what` names it in the refusal.
    #[must_use]
    pub fn keep(mut self, what: &str, location: Location) -> Self {
        self.kept.push((what.to_owned(), location));
        self
    }

    /// The target as DataFusion is to write it, whose store it knows from now on.
    fn open(&self, target: &str, context: &SessionContext) -> Result<String> {
        let refused = |reason: String| Error::Query { reason: format!("COPY … TO '{target}': {reason}"), source: None };
        let is_local = !target.contains("://");
        let absolute = match is_local {
            true => std::path::absolute(target).map_err(|e| refused(e.to_string()))?.display().to_string(),
            false => target.to_owned(),
        };
        let location = self.stores.open(&absolute)?;
        for (what, kept) in &self.kept {
            if kept.contains(&location) || (location.is_local() && kept.is_local() && real(&location).starts_with(real(kept))) {
                return Err(refused(format!("this is inside the {what} ({kept}), which a query must not change")));
            }
        }
        if location.is_local() {
            let folder = if target.ends_with('/') { "/" } else { "" };
            return Ok(format!("/{}{folder}", location.path()));
        }
        let url = Url::parse(&absolute).map_err(|e| refused(e.to_string()))?;
        let path = object_store::path::Path::from_url_path(url.path()).map_err(|e| refused(e.to_string()))?;
        if url.scheme().starts_with("http") || &path != location.path() {
            return Err(refused("write to a local path, s3://, gs:// or az://".to_owned()));
        }
        context.register_object_store(&url, Arc::clone(location.store()));
        Ok(absolute)
    }
}

/// The path with links followed as far as it exists.
fn real(location: &Location) -> PathBuf {
    let path = PathBuf::from(format!("/{}", location.path()));
    let existing = path.ancestors().find_map(|ancestor| Some((ancestor.to_owned(), ancestor.canonicalize().ok()?)));
    match existing {
        Some((ancestor, real)) => real.join(path.strip_prefix(&ancestor).unwrap_or(Path::new(""))),
        None => path,
    }
}

/// The plan that may run: the same where it only reads.
pub(super) fn check(plan: LogicalPlan, context: &SessionContext, targets: Option<&WriteTargets>) -> Result<LogicalPlan> {
    plan.apply_with_subqueries(|node| {
        refusal(node, targets.is_some())
            .map_or(Ok(TreeNodeRecursion::Continue), |reason| Err(external(Error::Query { reason, source: None })))
    })
    .map_err(query_error)?;
    let Some(targets) = targets else { return Ok(plan) };
    let opened = plan.transform_down(|node| -> DfResult<Transformed<LogicalPlan>> {
        match node {
            LogicalPlan::Copy(copy) => {
                let output_url = targets.open(&copy.output_url, context).map_err(external)?;
                Ok(Transformed::yes(LogicalPlan::Copy(CopyTo { output_url, ..copy })))
            }
            other => Ok(Transformed::no(other)),
        }
    });
    opened.map(|opened| opened.data).map_err(|e: DataFusionError| query_error(e))
}

fn refusal(node: &LogicalPlan, may_write: bool) -> Option<String> {
    match node {
        LogicalPlan::Copy(_) if !may_write => Some("COPY writes files, which is not allowed here: add --allow-write".to_owned()),
        LogicalPlan::Dml(dml) => Some(format!("{} is not supported: weights are changed by `pushpull run` alone", dml.op)),
        LogicalPlan::Ddl(ddl) => {
            Some(format!("{} is not supported: a query reads the job's tables; name parts of it with `with … as`", ddl.name()))
        }
        LogicalPlan::Statement(statement) => Some(format!("{} is not supported: give one query", statement.name())),
        _ => None,
    }
}
