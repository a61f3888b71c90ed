//! `push_pull_weight(text…)` and `push_pull_explain(text…)`: any text in a query to the weight it would have as a row of the corpus.
//!
//! The arguments are the columns that the job embeds, in its order; a fallback for rows where all of them are null may follow. Nulls count
//! as in weighing. A weight is the same to the bit as the one in the table for a row of these texts and the same model. Memory: what a
//! batch of the query takes in embedding, once in each of its partitions.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array, RecordBatch, RecordBatchOptions, StringArray, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use datafusion::common::{Result as DfResult, ScalarValue, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use super::wait;
use crate::error::Result;
use crate::sql::reader::external;
use crate::transport::RowWeight;
use crate::writeback::{ReferenceIds, SidecarRow};

/// Weighs rows that a query makes.
pub trait RowWeigher: fmt::Debug + Send + Sync {
    /// One entry a row, `None` where there is nothing to embed. The batch has the columns of [`TextArguments`], or these without the
    /// fallback; `function` is named in errors.
    ///
    /// # Errors
    /// A value that cannot be embedded.
    fn weigh(&self, function: &str, batch: &RecordBatch) -> Result<Vec<Option<SidecarRow>>>;

    /// Names of the references, by the index in a row.
    fn references(&self) -> &ReferenceIds;

    /// Names of the columns, by the number in a row's window.
    fn window_columns(&self) -> &[String];
}

/// What the functions take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextArguments {
    /// The columns that the job embeds, in its order.
    pub columns: Vec<String>,
    /// Embedded instead where all of them are null; may be left out of a call.
    pub fallback: Option<String>,
    /// Whether they are text; otherwise the one column is a list of numbers.
    pub is_text: bool,
}

impl TextArguments {
    fn call(&self, name: &str) -> String {
        let all = self.columns.join(", ");
        match &self.fallback {
            Some(fallback) => format!("{name}({all}), or {name}({all}, {fallback}) with what stands in where all of these are null"),
            None => format!("{name}({all})"),
        }
    }
}

/// Opens the model when it is first needed.
pub type LoadWeigher = dyn Fn() -> BoxFuture<'static, Result<Arc<dyn RowWeigher>>> + Send + Sync;

/// A model that is loaded once, by the first query that weighs.
pub struct LazyWeigher {
    arguments: TextArguments,
    load: Box<LoadWeigher>,
    loaded: OnceCell<Arc<dyn RowWeigher>>,
}

impl fmt::Debug for LazyWeigher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyWeigher").field("arguments", &self.arguments).finish_non_exhaustive()
    }
}

impl LazyWeigher {
    /// A weigher of these arguments; `load` is called once, unless it fails.
    pub fn new(
        arguments: TextArguments,
        load: impl Fn() -> BoxFuture<'static, Result<Arc<dyn RowWeigher>>> + Send + Sync + 'static,
    ) -> Self {
        Self { arguments, load: Box::new(load), loaded: OnceCell::new() }
    }

    fn get(&self) -> DfResult<Arc<dyn RowWeigher>> {
        match self.loaded.get() {
            Some(loaded) => Ok(Arc::clone(loaded)),
            None => wait(self.loaded.get_or_try_init(|| (self.load)()))?.cloned().map_err(external),
        }
    }
}

/// Both functions over one model.
pub(in crate::sql) fn functions(weigher: &Arc<LazyWeigher>) -> [ScalarUDF; 2] {
    [Answer::Weight, Answer::Explanation].map(|answer| {
        // Stable and not immutable: the planner must not weigh, and another session may have another model.
        let signature = Signature::user_defined(Volatility::Stable);
        ScalarUDF::new_from_impl(PushPull { answer, weigher: Arc::clone(weigher), signature })
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    Weight,
    Explanation,
}

#[derive(Debug)]
struct PushPull {
    answer: Answer,
    weigher: Arc<LazyWeigher>,
    signature: Signature,
}

impl PartialEq for PushPull {
    fn eq(&self, other: &Self) -> bool {
        self.answer == other.answer && Arc::ptr_eq(&self.weigher, &other.weigher)
    }
}

impl Eq for PushPull {}

impl Hash for PushPull {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.answer.hash(state);
        Arc::as_ptr(&self.weigher).hash(state);
    }
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_text(values),
        other => matches!(other, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null),
    }
}

fn is_vector(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => item.data_type().is_floating(),
        _ => false,
    }
}

fn explanation() -> Fields {
    let number = |name: &str| Field::new(name, DataType::Float32, true);
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    Fields::from(vec![
        number("weight"),
        number("pull"),
        number("push"),
        number("prior"),
        text("safe_ref"),
        text("harm_ref"),
        Field::new("window", DataType::Int64, true),
        text("window_view"),
    ])
}

impl ScalarUDFImpl for PushPull {
    fn name(&self) -> &str {
        match self.answer {
            Answer::Weight => "push_pull_weight",
            Answer::Explanation => "push_pull_explain",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, found: &[DataType]) -> DfResult<Vec<DataType>> {
        let wanted = &self.weigher.arguments;
        let views = wanted.columns.len();
        if found.len() != views && !(found.len() == views + 1 && wanted.fallback.is_some()) {
            return plan_err!("this job takes {}; {} given", wanted.call(self.name()), found.len());
        }
        for (kind, column) in found.iter().zip(wanted.columns.iter().chain(&wanted.fallback)) {
            if wanted.is_text && !is_text(kind) {
                return plan_err!("{} takes text for `{column}`, not {kind}: cast it to text", self.name());
            }
            if !wanted.is_text && !is_vector(kind) {
                return plan_err!("{} takes a list of floats for `{column}`, the job's vectors, not {kind}", self.name());
            }
        }
        Ok(found.to_vec())
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(match self.answer {
            Answer::Weight => DataType::Float32,
            Answer::Explanation => DataType::Struct(explanation()),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let count = if constant { 1 } else { args.number_rows };
        let arrays = args.args.into_iter().map(|arg| arg.into_array(count)).collect::<DfResult<Vec<ArrayRef>>>()?;
        let arguments = &self.weigher.arguments;
        let names = arguments.columns.iter().chain(&arguments.fallback);
        let fields: Vec<Field> = names.zip(&arrays).map(|(name, array)| Field::new(name, array.data_type().clone(), true)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?;
        let weigher = self.weigher.get()?;
        let rows = weigher.weigh(self.name(), &batch).map_err(external)?;
        let answer = match self.answer {
            Answer::Weight => number(&rows, |row| row.weight),
            Answer::Explanation => explained(&rows, weigher.as_ref())?,
        };
        Ok(match constant {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&answer, 0)?),
            false => ColumnarValue::Array(answer),
        })
    }
}

fn number(rows: &[Option<SidecarRow>], of: fn(&RowWeight) -> f32) -> ArrayRef {
    Arc::new(rows.iter().map(|row| row.as_ref().map(|row| of(&row.weight))).collect::<Float32Array>())
}

fn explained(rows: &[Option<SidecarRow>], weigher: &dyn RowWeigher) -> DfResult<ArrayRef> {
    let ids = weigher.references();
    let name = |names: &[String], index: u32| names.get(index as usize).cloned();
    let text = |of: &dyn Fn(&SidecarRow) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(|row| row.as_ref().and_then(of)).collect::<StringArray>())
    };
    let columns = vec![
        number(rows, |row| row.weight),
        number(rows, |row| row.pull),
        number(rows, |row| row.push),
        number(rows, |row| row.prior),
        text(&|row| name(&ids.safe, row.weight.safe_ref)),
        text(&|row| name(&ids.harm, row.weight.harm_ref)),
        Arc::new(rows.iter().map(|row| row.and_then(|row| row.window).map(|w| w.offset as i64)).collect::<Int64Array>()),
        text(&|row| row.window.and_then(|w| weigher.window_columns().get(w.column).cloned())),
    ];
    let nulls = NullBuffer::from_iter(rows.iter().map(Option::is_some));
    Ok(Arc::new(StructArray::try_new(explanation(), columns, Some(nulls))?))
}
