//! The command line: arguments to a job, a job's result to text and an exit code.
//!
//! Results go to standard output (with `--json` as one object), progress and warnings to standard error. Exit code 0: done; 1: done,
//! but the fit did not converge or shards are quarantined; 2: an error, nothing was committed.

mod args;
mod progress;
mod text;

use crate::embed::{DistillOptions, distill};
use crate::error::{Error, Result};
use crate::job::{self, Job, RunOptions, RunReport, read_model_folder, sql_session};
use crate::sql::{OutputFormat, write_rows};
use crate::storage::Stores;
use args::{Arguments, Command, Format, JobArguments};
use clap::Parser;
use progress::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

const FAILED: u8 = 2;

/// Runs the command with the process's arguments.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    progress::log_to_standard_error(arguments.verbose);
    let json = arguments.json;
    match start(arguments) {
        Ok(code) => ExitCode::from(code),
        // A reader that closed the pipe has seen enough: that is no error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
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
        Command::Run(of) => finish(&of, &job::run(&open(&of).await?).await?, json),
        Command::Fit(of) => finish(&of, &job::fit(&open(&of).await?).await?, json),
        Command::Weigh(of) => finish(&of, &job::weigh(&open(&of).await?).await?, json),
        Command::Plan(of) => {
            let plan = job::plan(&open(&of).await?).await?;
            print(&if json { to_json(&plan)? } else { text::plan(&plan) })?;
            Ok(0)
        }
        Command::Sql { of, query, file, format } => {
            let query = match (query, file) {
                (Some(query), None) => query,
                (None, Some(file)) => std::fs::read_to_string(&file).map_err(|e| Error::Storage {
                    location: file.display().to_string(),
                    action: "read",
                    source: Box::new(e),
                })?,
                _ => return Err(Error::InvalidOption { name: "sql".into(), reason: "give a query, or -f and a file with one".into() }),
            };
            let session = sql_session(&open(&of).await?, threads).await?;
            let rows = session.query(&query).await?;
            let format = match (format, json) {
                (Format::Csv, _) => OutputFormat::Csv,
                (Format::Parquet, _) => OutputFormat::Parquet,
                (Format::Json, _) | (Format::Table, true) => OutputFormat::Json,
                (Format::Table, false) => OutputFormat::Table,
            };
            write_rows(format, rows, io::stdout()).await?;
            Ok(0)
        }
        Command::Distill { from, to, dims } => {
            let stores = Stores::new(".");
            let files = read_model_folder(&from, &stores).await?;
            let target = stores.open(&to)?;
            let progress = Display::new();
            let options = DistillOptions::default().with_dims(dims);
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
                to_json(&serde_json::json!({ "folder": to, "dims": dims, "files": sizes }))?
            } else {
                text::distilled(&to, dims, &sizes)
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

fn finish(of: &JobArguments, report: &RunReport, json: bool) -> Result<u8> {
    print(&if json { to_json(report)? } else { text::report(&of.as_typed(), report) })?;
    Ok(report.exit_code())
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::Internal(format!("json: {e}")))?;
    text.push('\n');
    Ok(text)
}

fn print(text: &str) -> Result<()> {
    io::stdout().lock().write_all(text.as_bytes()).map_err(|e| Error::Storage {
        location: "standard output".into(),
        action: "write",
        source: Box::new(e),
    })
}

fn is_broken_pipe(error: &Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    false
}
