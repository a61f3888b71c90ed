//! Makes joins give way: in goes a physical plan, out comes the same plan in which every operator that can make many rows of few hands the
//! thread back from time to time.
//!
//! DataFusion 55 lets leaves and exchanges do so. A join with a large build side and a few probe rows reads no leaf for minutes, and
//! until it does its task notices neither that it was cancelled nor that its client is gone.

use std::sync::Arc;

use datafusion::common::Result as DfResult;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;

/// Operators that may put out far more batches than they take in.
const MULTIPLYING: [&str; 5] = ["CrossJoinExec", "HashJoinExec", "NestedLoopJoinExec", "SortMergeJoinExec", "UnnestExec"];

/// Wraps [`MULTIPLYING`] operators; to be the last rule.
#[derive(Debug)]
pub(super) struct JoinsGiveWay;

impl PhysicalOptimizerRule for JoinsGiveWay {
    fn name(&self) -> &str {
        "JoinsGiveWay"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> DfResult<Arc<dyn ExecutionPlan>> {
        let wrap = |plan: Arc<dyn ExecutionPlan>| {
            Ok(match MULTIPLYING.contains(&plan.name()) {
                true => Transformed::yes(Arc::new(CooperativeExec::new(plan)) as Arc<dyn ExecutionPlan>),
                false => Transformed::no(plan),
            })
        };
        plan.transform_up(wrap).data()
    }
}
