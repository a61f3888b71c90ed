//! The command line: arguments to a job, a job's result to text and an exit code.
//!
//! Results go to standard output (with `--json` as one object), progress and warnings to standard error. Exit code 0: done; 1: done,
//! but the fit did not converge or shards are quarantined; 2: an error.

mod args;
mod eval_table;
mod explained;
mod progress;
#[cfg(feature = "serve")]
mod serve;
mod text;

use crate::embed::{DistillOptions, distill};
use crate::error::{Error, Result};
use crate::job::{self, Job, RunOptions, RunReport, SpliceOptions, read_model_folder, sql_session};
use crate::sql::{OutputFormat, write_rows};
use crate::storage::Stores;
use args::{Arguments, Command, Format, JobArguments};
use clap::Parser;
use progress::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const FAILED: u8 = 2;

/// Runs the command with the process's arguments.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    progress::log_to_standard_error(arguments.verbose);
    let json = arguments.json;
    match start(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {}", job::with_causes(&error));
            if json {
                // A program that reads standard output finds the reason there as well.
                let _ = print(&format!("{}\n", serde_json::json!({ "error": job::with_causes(&error) })));
            }
            ExitCode::from(FAILED)
        }
    }
}

fn start(arguments: Arguments) -> Result<u8> {
    let threads = arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let internal = |e: &dyn std::fmt::Display| Error::Internal(format!("threads: {e}"));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| internal(&e))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().map_err(|e| internal(&e))?;
    runtime.block_on(dispatch(arguments, threads))
}

async fn dispatch(arguments: Arguments, threads: usize) -> Result<u8> {
    let json = arguments.json;
    match arguments.command {
        Command::Run { of, keep } => finish(&of, &job::run_with(&open(&of).await?, &keep.options()).await?, json, true),
        Command::Fit(of) => finish(&of, &job::fit(&open(&of).await?).await?, json, false),
        Command::Weigh { of, asked, keep } => finish(&of, &job::weigh_with(&open(&of).await?, &asked.options(keep)).await?, json, true),
        Command::Plan { of, asked, keep } => {
            let plan = job::plan_with(&open(&of).await?, &asked.options(keep)).await?;
            print(&if json { to_json(&plan)? } else { text::plan(&plan) })?;
            Ok(0)
        }
        Command::Explain { of, rows, full } => {
            let rows = job::explain(&open(&of).await?, &rows).await?;
            print(&if json { to_json(&serde_json::json!({ "rows": rows }))? } else { explained::explained(&rows, full) })?;
            Ok(0)
        }
        Command::Sql { of, query, file, format, allow_write } => {
            let query = match (query, file) {
                (Some(query), None) => query,
                (None, Some(file)) => std::fs::read_to_string(&file).map_err(|e| Error::Storage {
                    location: file.display().to_string(),
                    action: "read",
                    source: Box::new(e),
                })?,
                _ => return Err(Error::InvalidOption { name: "sql".into(), reason: "give a query, or -f and a file with one".into() }),
            };
            let job = open(&of).await?;
            let mut session = sql_session(&job, threads).await?;
            if allow_write {
                session = session.allow_writing(job::write_targets(&job)?);
            }
            let rows = session.query(&query).await?;
            let format = match (format, json) {
                (Format::Csv, _) => OutputFormat::Csv,
                (Format::Parquet, _) => OutputFormat::Parquet,
                (Format::Json, _) | (Format::Table, true) => OutputFormat::Json,
                (Format::Table, false) => OutputFormat::Table,
            };
            let output = StandardOutput::default();
            match write_rows(format, rows, output.clone()).await {
                Err(_) if output.closed.load(Ordering::Relaxed) => Ok(0),
                written => written.map(|_| 0),
            }
        }
        #[cfg(feature = "serve")]
        Command::Serve { of, asked } => serve::serve(open(&of).await?, asked, threads, json).await,
        Command::Splice { of, to, columns, prune } => {
            let report = job::splice(&open(&of).await?, &SpliceOptions { to, columns, prune }).await?;
            print(&if json { to_json(&report)? } else { text::spliced(&report) })?;
            Ok(0)
        }
        Command::Eval { of, asked } => {
            let report = job::eval(&open(&of).await?, &asked.options()).await?;
            print(&if json { to_json(&report)? } else { eval_table::evaluation(&report) })?;
            Ok(report.exit_code())
        }
        Command::Distill { from, to, dims, lexical_dims } => {
            let stores = Stores::new(".");
            let files = read_model_folder(&from, &stores).await?;
            let target = stores.open(&to)?;
            let progress = Display::new();
            let options = DistillOptions::default().with_dims(dims).with_lexical_dims(lexical_dims);
            let made = tokio::task::spawn_blocking(move || {
                let mut begun = false;
                let made = distill(&from, &files, &options, &mut |done, total| {
                    if !begun {
                        job::Progress::begin(&progress, "embedding tokens", total as u64);
                        begun = true;
                    }
                    job::Progress::advance(&progress, done as u64);
                });
                job::Progress::end(&progress);
                made
            });
            let made = made.await.map_err(|e| Error::Internal(format!("distill: {e}")))??;
            let sizes: Vec<(String, usize)> = made.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect();
            for (name, bytes) in made {
                target.join(&name).write(bytes).await?;
            }
            print(&if json {
                to_json(&serde_json::json!({ "folder": to, "dims": dims, "lexical_dims": lexical_dims, "files": sizes }))?
            } else {
                text::distilled(&to, (dims, lexical_dims), &sizes)
            })?;
            Ok(0)
        }
    }
}

async fn open(of: &JobArguments) -> Result<Job> {
    let defaults = RunOptions::default();
    let options = RunOptions {
        chunk_rows: of.chunk_rows.unwrap_or(defaults.chunk_rows),
        memory: of.memory.map_or(defaults.memory, |memory| memory.as_u64()),
        progress: Arc::new(Display::new()),
    };
    Job::open(&of.job, &of.set, options).await
}

fn finish(of: &JobArguments, report: &RunReport, json: bool, weighed: bool) -> Result<u8> {
    print(&if json { to_json(report)? } else { text::report(&of.as_typed(), report, weighed) })?;
    Ok(report.exit_code())
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::Internal(format!("json: {e}")))?;
    text.push('\n');
    Ok(text)
}

fn print(text: &str) -> Result<()> {
    let mut output = StandardOutput::default();
    let written = output.write_all(text.as_bytes()).or_else(|e| if output.closed.load(Ordering::Relaxed) { Ok(()) } else { Err(e) });
    written.map_err(|e| Error::Storage { location: "standard output".into(), action: "write", source: Box::new(e) })
}

/// Standard output, where a reader that closed the pipe has seen enough: that is no error, and the rest is dropped.
#[derive(Debug, Default, Clone)]
struct StandardOutput {
    closed: Arc<AtomicBool>,
}

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match io::stdout().lock().write(bytes) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.closed.store(true, Ordering::Relaxed);
                Err(e)
            }
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}
