//! `weight_cutoff(keep)`: the weight from which on a share of the rows is kept. In go the weights of the corpus, out comes one number.
//!
//! Of the n rows of `corpus` that have a weight, `where weight >= weight_cutoff(keep)` keeps the k = ⌊keep · n⌋ with the highest weights,
//! and every further row whose weight equals the last one's: the cutoff is the k-th highest weight itself. It is +∞ where k is 0,
//! and null where no row has a weight.
//!
//! With a constant share it is computed while the query is planned and stands in the plan as a number, so that files, row groups and
//! pages below it are skipped. It reads the sidecars' weights twice, the second time only what may hold the cut; another share in the
//! same session saves the first pass. Memory: see [`selection`](crate::sql::selection).

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{AsArray, Float32Array};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::{Result as DfResult, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast, col, lit};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use tokio::sync::OnceCell;

use super::wait;
use crate::sql::selection::{Counts, kept_rows};
use crate::sql::sidecars::SidecarTable;

/// The function over the weights of one table.
pub(in crate::sql) fn function(weights: Arc<SidecarTable>) -> ScalarUDF {
    let ranks = Arc::new(Ranks { weights, coarse: OnceCell::new(), known: Mutex::default() });
    ScalarUDF::new_from_impl(WeightCutoff { ranks, signature: Signature::exact(vec![DataType::Float64], Volatility::Stable) })
}

/// What is known of the order of a table's weights.
#[derive(Debug)]
struct Ranks {
    weights: Arc<SidecarTable>,
    coarse: OnceCell<Counts>,
    /// Cutoffs by the bits of their share.
    known: Mutex<HashMap<u64, Option<f32>>>,
}

impl Ranks {
    async fn cutoff(&self, keep: f64) -> DfResult<Option<f32>> {
        if !(0.0..=1.0).contains(&keep) {
            return plan_err!("weight_cutoff({keep}): the share of rows to keep is between 0 and 1");
        }
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&keep.to_bits()) {
            return Ok(*known);
        }
        let rows = self.weights.weighed().await?;
        let cutoff = match kept_rows(keep, rows) {
            _ if rows == 0 => None,
            0 => Some(f32::INFINITY),
            k => Some(self.kth_highest(k).await?),
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(keep.to_bits(), cutoff);
        Ok(cutoff)
    }

    async fn kth_highest(&self, k: u64) -> DfResult<f32> {
        let coarse = self.coarse.get_or_try_init(|| async {
            let mut counts = Counts::new();
            self.each(None, |weight| counts.add_coarse(weight)).await?;
            Ok::<_, datafusion::common::DataFusionError>(counts)
        });
        let Some((part, place)) = coarse.await?.part_of(k) else {
            return exec_err!("weight_cutoff: the log counts more weights than the sidecars hold; run `pushpull run` again");
        };
        let mut fine = Counts::new();
        self.each(Some(part.bounds()), |weight| fine.add_fine(part, weight)).await?;
        match fine.weight_at(part, place) {
            Some(weight) => Ok(weight),
            None => exec_err!("weight_cutoff: the sidecars changed while they were read"),
        }
    }

    /// Calls `visit` with every weight, or with every one within bounds and perhaps some beyond.
    async fn each(&self, bounds: Option<(f32, f32)>, mut visit: impl FnMut(f32)) -> DfResult<()> {
        let mut config = SessionConfig::new();
        config.options_mut().execution.collect_statistics = false;
        let mut frame = SessionContext::new_with_config(config).read_table(Arc::clone(&self.weights) as _)?;
        if let Some((low, high)) = bounds {
            frame = frame.filter(col("weight").gt_eq(lit(low)).and(col("weight").lt_eq(lit(high))))?;
        }
        let mut batches = frame.select_columns(&["weight"])?.execute_stream().await?;
        while let Some(batch) = batches.try_next().await? {
            batch.column(0).as_primitive::<Float32Type>().iter().flatten().for_each(&mut visit);
        }
        Ok(())
    }

    fn wait_for(&self, keep: f64) -> DfResult<Option<f32>> {
        wait(self.cutoff(keep))?
    }
}

#[derive(Debug)]
struct WeightCutoff {
    ranks: Arc<Ranks>,
    signature: Signature,
}

impl PartialEq for WeightCutoff {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.ranks, &other.ranks)
    }
}

impl Eq for WeightCutoff {}

impl Hash for WeightCutoff {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.ranks).hash(state);
    }
}

impl ScalarUDFImpl for WeightCutoff {
    fn name(&self) -> &str {
        "weight_cutoff"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Float32)
    }

    fn simplify(&self, args: Vec<Expr>, _: &SimplifyContext) -> DfResult<ExprSimplifyResult> {
        match &args[..] {
            [Expr::Literal(ScalarValue::Float64(Some(keep)), _)] => {
                let cutoff = ScalarValue::Float32(self.ranks.wait_for(*keep)?);
                Ok(ExprSimplifyResult::Simplified(match cutoff.is_null() {
                    // A literal null would lose the type that the plan has by now.
                    true => cast(lit(ScalarValue::Null), DataType::Float32),
                    false => lit(cutoff),
                }))
            }
            _ => Ok(ExprSimplifyResult::Original(args)),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [keep] = &arrays[..] else { return exec_err!("weight_cutoff(keep) takes one value") };
        let keep = keep.as_primitive::<Float64Type>();
        let cutoffs = keep.iter().map(|keep| keep.map_or(Ok(None), |keep| self.ranks.wait_for(keep)));
        Ok(ColumnarValue::Array(Arc::new(cutoffs.collect::<DfResult<Float32Array>>()?)))
    }
}
