//! Progress and logs on standard error: a bar where a person watches, lines otherwise.

use crate::job::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;

/// How often a stage reports itself where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Sends this crate's warnings (with `verbose` more) to standard error.
pub(super) fn log_to_standard_error(verbose: u8) {
    let level = match verbose {
        0 => "pushpull=warn",
        1 => "pushpull=info,warn",
        _ => "pushpull=debug,info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}

#[derive(Debug)]
struct Stage {
    name: String,
    total: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

/// Shows the stages of a run.
#[derive(Debug)]
pub(super) struct Display {
    terminal: bool,
    stage: Mutex<Option<Stage>>,
}

impl Display {
    pub(super) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), stage: Mutex::new(None) }
    }

    fn with_stage(&self, act: impl FnOnce(&mut Option<Stage>)) {
        act(&mut self.stage.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Display {
    fn begin(&self, name: &str, total: u64) {
        self.end();
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::with_draw_target((total > 0).then_some(total), ProgressDrawTarget::stderr());
            let template =
                if total > 0 { "{msg:24} {bar:32} {human_pos}/{human_len} {per_sec}" } else { "{msg:24} {spinner} {human_pos} {per_sec}" };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar
        });
        let now = Instant::now();
        self.with_stage(|stage| *stage = Some(Stage { name: name.to_owned(), total, done: 0, started: now, last_line: now, bar }));
    }

    fn advance(&self, done: u64) {
        self.with_stage(|stage| {
            let Some(stage) = stage else { return };
            stage.done = done;
            match &stage.bar {
                Some(bar) => bar.set_position(done),
                None if stage.last_line.elapsed() >= LINE_EVERY => {
                    stage.last_line = Instant::now();
                    let of = if stage.total > 0 { format!(" of {}", stage.total) } else { String::new() };
                    eprintln!("{}: {done}{of}", stage.name);
                }
                None => {}
            }
        });
    }

    fn end(&self) {
        self.with_stage(|stage| {
            let Some(stage) = stage.take() else { return };
            match stage.bar {
                Some(bar) => bar.finish_and_clear(),
                None => eprintln!("{}: {} in {:.1} s", stage.name, stage.done, stage.started.elapsed().as_secs_f64()),
            }
        });
    }
}
