//! The arguments.

use crate::job::{EvalOptions, RowAddress, Selection, WeighOptions};
use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Safety weights for text corpora in a data lake, by push-pull optimal transport.
#[derive(Debug, Parser)]
#[command(name = "pushpull", version, about, arg_required_else_help = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Print JSON to standard output: one object (`sql`: one a row).
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Threads for computing [default: every core]. No result depends on it.
    #[arg(long, global = true, value_parser = at_least_one)]
    pub(super) threads: Option<usize>,
    /// Say more on standard error (twice: everything). RUST_LOG is obeyed as well.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Fit if there is no model, weigh what is new or changed, commit. Safe to repeat.
    Run {
        #[command(flatten)]
        of: JobArguments,
        #[command(flatten)]
        keep: KeepArguments,
    },
    /// Learn the potentials only.
    Fit(JobArguments),
    /// Apply the current model, or an earlier one, to what is new or changed, or to a part of it; commit.
    ///
    /// With --shard, --where or --stale the other shards keep the weights they have, by the model that gave them (column `model`), and
    /// nothing is removed from the table. A later `run` brings every shard to the job's own model.
    Weigh {
        #[command(flatten)]
        of: JobArguments,
        #[command(flatten)]
        asked: WeighArguments,
        #[command(flatten)]
        keep: KeepArguments,
    },
    /// Show what a run would do, or a `weigh` with these options; write nothing.
    Plan {
        #[command(flatten)]
        of: JobArguments,
        #[command(flatten)]
        asked: WeighArguments,
        #[command(flatten)]
        keep: KeepArguments,
    },
    /// Show why a row has its weight: its terms, its views, the references that matter most for it; write nothing.
    Explain {
        #[command(flatten)]
        of: JobArguments,
        /// The row: a shard's name (or the end of it) and the position in it, from 0. Can be repeated.
        #[arg(long = "row", value_name = "SHARD:ROW", required = true)]
        rows: Vec<RowAddress>,
        /// Show whole texts.
        #[arg(long)]
        full: bool,
    },
    /// Query corpus and weights: tables `corpus`, `weights`, `references`, `shards`, `runs`, `models`, `hygiene`.
    Sql {
        #[command(flatten)]
        of: JobArguments,
        /// The query.
        #[arg(conflicts_with = "file", required_unless_present = "file")]
        query: Option<String>,
        /// A file with the query.
        #[arg(short, long)]
        file: Option<PathBuf>,
        /// How rows are printed; json is one object a line.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Let the query write files: COPY (SELECT …) TO 's3://…' or a local path, as parquet, csv or json. Never into the corpus or the
        /// weights table.
        #[arg(long)]
        allow_write: bool,
    },
    /// Serve the same tables to BI tools and other programs over Arrow Flight SQL; they can only read.
    #[cfg(feature = "serve")]
    Serve {
        #[command(flatten)]
        of: JobArguments,
        #[command(flatten)]
        asked: super::serve::ServeArguments,
    },
    /// Write the shards anew with the weight inside, for engines that read plain Parquet: old bytes are copied, never decoded.
    Splice {
        #[command(flatten)]
        of: JobArguments,
        /// Folder or URL of the table of spliced shards (Delta Lake), beside the corpus and the weights.
        #[arg(long, value_name = "URL")]
        to: String,
        /// Weight columns to put in: of `shard`, `shard_version`, `model`, `row`, `weight`, `pull`, `push`, `prior`, `safe_ref`,
        /// `harm_ref`, `window`, `window_view`.
        #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values_t = crate::writeback::DEFAULT_SPLICED_COLUMNS.map(str::to_owned))]
        columns: Vec<String>,
        /// Delete files that the table no longer holds, so that `*.parquet` finds each row once. Readers of older versions of the table
        /// lose them; no other splice to the same place may be under way.
        #[arg(long)]
        prune: bool,
    },
    /// Compare the weights with simpler scores on rows with labels; write nothing.
    Eval {
        #[command(flatten)]
        of: JobArguments,
        #[command(flatten)]
        asked: EvalArguments,
    },
    /// Make a static embedder (model2vec layout) from a sentence-transformers folder of the BERT family, on a CPU.
    Distill {
        /// Folder or URL of the sentence-transformers model.
        #[arg(long)]
        from: String,
        /// Folder or URL to write.
        #[arg(long)]
        to: String,
        /// Principal components kept.
        #[arg(long, default_value_t = crate::embed::DEFAULT_DISTILL_DIMS)]
        dims: usize,
        /// Dimensions beside them that say which tokens a text has, whatever they mean; 0 for none.
        #[arg(long, default_value_t = crate::embed::DEFAULT_LEXICAL_DIMS)]
        lexical_dims: usize,
    },
}

#[derive(Debug, Args)]
pub(super) struct EvalArguments {
    /// The column with the labels. It is used for measuring only, never for fitting.
    #[arg(long, value_name = "COLUMN")]
    label: String,
    /// The label of harmful rows. Repeated, these labels are one class.
    #[arg(long, value_name = "VALUE", required = true)]
    positive: Vec<String>,
    /// A label to tell them from, a column of its own. Can be repeated [default: every other label].
    #[arg(long, value_name = "VALUE")]
    negative: Vec<String>,
    /// Score only rows for which this SQL condition on the corpus's columns holds, as in `source = 'wiki'`. What is fitted on stays.
    #[arg(long = "where", value_name = "CONDITION")]
    predicate: Option<String>,
    /// Most rows scored: a uniform sample of those with these labels.
    #[arg(long, value_name = "ROWS", default_value_t = crate::job::DEFAULT_EVAL_ROWS, value_parser = at_least_one)]
    rows: usize,
    /// Resamples of the bootstrap behind the intervals.
    #[arg(long, value_name = "N", default_value_t = crate::eval::DEFAULT_RESAMPLES, value_parser = at_least_one)]
    bootstrap: usize,
}

impl EvalArguments {
    pub(super) fn options(self) -> EvalOptions {
        EvalOptions {
            label: self.label,
            positive: self.positive,
            negative: self.negative,
            predicate: self.predicate,
            rows: self.rows,
            resamples: self.bootstrap,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct WeighArguments {
    /// Only shards with this name, or whose name matches this glob: `*` stays inside a folder, `**` crosses folders. Can be repeated: one
    /// of them must match.
    #[arg(long = "shard", value_name = "GLOB")]
    shards: Vec<String>,
    /// Only shards for all of whose rows this SQL condition on the columns of `corpus` holds, as in "source = 'wiki'". The columns are the
    /// corpus's own, `shard`, and the stored weights, as in "model = 'DIGEST'". A shard where it holds for a part of the rows is refused.
    #[arg(long = "where", value_name = "CONDITION")]
    predicate: Option<String>,
    /// Only shards in the table that changed or that another model weighed; new ones are left.
    #[arg(long)]
    stale: bool,
    /// Weigh with this stored model; the beginning of its digest is enough. Without a selection it becomes the table's current one: the way
    /// back to an earlier model. Its embedder, columns and windows must be the job's; references and [transport] may have changed, and a
    /// later `run` goes by those.
    #[arg(long, value_name = "DIGEST")]
    model: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct KeepArguments {
    /// Where only push or temperature changed: keep the current model's potentials and compute the weights from the numbers in the sidecars,
    /// without reading or embedding the corpus; the temperature is found over all rows of the table. It stands in for a fit, whose
    /// potentials would follow push and temperature: it is good for a changed temperature and rougher the more push changes. Later runs of
    /// this job use the derived model and do not fit; `fit` does. New and changed shards are read and weighed.
    #[arg(long)]
    keep_potentials: bool,
}

impl KeepArguments {
    pub(super) fn options(self) -> WeighOptions {
        WeighOptions { keep_potentials: self.keep_potentials, ..WeighOptions::default() }
    }
}

impl WeighArguments {
    pub(super) fn options(self, keep: KeepArguments) -> WeighOptions {
        let selection = Selection { shards: self.shards, predicate: self.predicate, stale: self.stale };
        WeighOptions { selection, model: self.model, ..keep.options() }
    }
}

#[derive(Debug, Args)]
pub(super) struct JobArguments {
    /// The job file (TOML).
    #[arg(value_name = "JOB.toml")]
    pub(super) job: String,
    /// Override a value of the job file, as in `--set transport.push=0.5`. Can be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Memory for decoded rows and reads ahead [default: 2GiB].
    #[arg(long, value_name = "SIZE")]
    pub(super) memory: Option<ByteSize>,
    /// Most rows computed on at once [default: 4096]. No result depends on it.
    #[arg(long, value_name = "ROWS", value_parser = at_least_one)]
    pub(super) chunk_rows: Option<usize>,
}

impl JobArguments {
    /// The job and its overrides as they would be typed again.
    pub(super) fn as_typed(&self) -> String {
        let sets = self.set.iter().map(|set| format!(" --set {}", quoted(set)));
        quoted(&self.job) + &sets.collect::<String>()
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Table,
    Csv,
    Json,
    Parquet,
}

/// A word as a shell takes it.
pub(super) fn quoted(text: &str) -> String {
    match text.chars().all(|c| c.is_ascii_alphanumeric() || "=._-/:".contains(c)) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(e) => Err(format!("{e}")),
    }
}
