//! Results in words.

use super::args::quoted;
use crate::catalog::Level;
use crate::job::{Plan, RunReport, ShardState, SpliceReport, WeighedRow};
use crate::transport::Certificate;
use bytesize::ByteSize;
use std::fmt::Write;

/// A run for a person: what happened, the rows at both ends, what to type next. `job` is how the job was named on the command line,
/// `weighed` whether the command weighs.
pub(super) fn report(job: &str, report: &RunReport, weighed: bool) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<10} {text}");
    };
    if weighed {
        let without = match report.rows_without_text {
            0 => String::new(),
            n => format!(" ({n} without text, which have no weight)"),
        };
        line("corpus", format!("{} rows{without}", report.rows));
        let counts = report.shards;
        let mut fates = format!("{} weighed, {} unchanged", counts.weighed, counts.unchanged);
        for (n, fate) in [(counts.removed, "removed"), (counts.quarantined, "quarantined")] {
            if n > 0 {
                let _ = write!(fates, ", {n} {fate}");
            }
        }
        line("shards", fates);
    }
    for bad in &report.quarantined {
        line("", format!("quarantined: {}", bad.reason));
    }
    let state = if report.converged { "converged" } else { "NOT converged" };
    let origin = if report.fitted { "fitted now" } else { "fitted before" };
    line("model", format!("{} ({origin} on {} rows, {state})", report.model, report.sample_rows));
    if let Some(reason) = &report.why_not {
        line("", reason.clone());
    }
    line("", format!("epsilon {:.4}, push {}, prior {:.4}, temperature {:.4}", report.epsilon, report.push, report.prior, report.tau));
    line("residuals", format!("safe {:.1e}, harm {:.1e}", report.residuals.safe, report.residuals.harm));
    if let (Some(held_out), Some(noise)) = (report.held_out, report.held_out_noise) {
        line(
            "held out",
            format!(
                "safe {:.2}, harm {:.2}; sampling noise alone makes {:.2} and {:.2}",
                held_out.safe, held_out.harm, noise.safe, noise.harm
            ),
        );
    }
    let Certificate { rows, gap, stability, joint_rate, .. } = report.certificate;
    // Measured on no row it says nothing.
    if rows > 0 {
        let held = match joint_rate {
            _ if report.push == 0.0 => "nothing is pushed".to_owned(),
            rate if rate < 1.0 => format!("a strict local optimum, joint rate {rate:.3} (push alone: stability {stability:.2})"),
            rate => format!("NOT a local optimum, joint rate {rate:.3} (push alone: stability {stability:.2}); below 1 it would be"),
        };
        let oscillated = if report.oscillated { "; it oscillated during the fit" } else { "" };
        line("certified", format!("gap to safe {:.1e}, to harm {:.1e}; {held}{oscillated}", gap.safe, gap.harm));
    }
    let cost = report.transport_cost;
    line(
        "transport",
        format!("to safe {:.4} -> {:.4}, to harm {:.4} -> {:.4}", cost.safe.before, cost.safe.after, cost.harm.before, cost.harm.after),
    );
    let of = if weighed { "" } else { " on the sample" };
    line("weights", format!("mean {:.4}, effective sample size {:.1} %{of}", report.mean_weight, 100.0 * report.ess));
    let seconds = report.seconds;
    line(
        "read",
        format!("{} in {:.1} s (fit {:.1} s, weigh {:.1} s)", ByteSize(report.bytes_read), seconds.total, seconds.fit, seconds.weigh),
    );
    if let Some(version) = report.version {
        line("table", format!("version {version}"));
    }
    for hint in &report.hints {
        line("hint", hint.clone());
    }
    let mut name = "references";
    for finding in report.hygiene.findings.iter().filter(|finding| finding.level == Level::Warning) {
        line(name, finding.message.clone());
        name = "";
    }
    let notes = report.hygiene.findings.iter().filter(|finding| finding.level == Level::Note);
    let notes: Vec<String> = notes.map(|finding| format!("{} {} {}", finding.count, finding.side.name(), finding.finding.name())).collect();
    if !notes.is_empty() {
        line(name, format!("noted as well (table `hygiene`): {}", notes.join(", ")));
    }
    rows_of(&mut out, "most weight", &report.most, |row| &row.safe_ref);
    rows_of(&mut out, "least weight", &report.least, |row| &row.harm_ref);
    let _ = writeln!(out, "\nnext");
    if weighed {
        let _ = writeln!(out, "  pushpull sql {job} -f queries/best_80_percent.sql");
        let _ = writeln!(out, "  pushpull sql {job} -f queries/most_down_weighted.sql");
        if let Some(row) = report.least.first() {
            let _ = writeln!(out, "  pushpull explain {job} --row {}", quoted(&format!("{}:{}", row.shard, row.row)));
        }
    } else {
        let _ = writeln!(out, "  pushpull weigh {job}");
    }
    out
}

fn rows_of(out: &mut String, title: &str, rows: &[WeighedRow], near: impl Fn(&WeighedRow) -> &String) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}");
    for row in rows {
        let _ = writeln!(out, "  {:<8} {}:{}  near {}  {}", short(f64::from(row.weight)), row.shard, row.row, near(row), row.excerpt);
    }
}

/// Three digits that say something, whatever the size.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if !(1e-4..1e4).contains(&v) => format!("{value:.2e}"),
        v if v < 1e-3 => format!("{value:.6}"),
        v if v < 1e-2 => format!("{value:.5}"),
        v if v < 1e-1 => format!("{value:.4}"),
        v if v < 1.0 => format!("{value:.3}"),
        v if v < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.1}"),
    }
}

/// A plan for a person.
pub(super) fn plan(plan: &Plan) -> String {
    let mut out = String::new();
    for shard in plan.shards.iter().filter(|shard| shard.state != ShardState::Unchanged) {
        let what = match shard.state {
            ShardState::New => "new",
            ShardState::Changed => "changed",
            ShardState::Unchanged => "unchanged",
            ShardState::Gone => "gone",
        };
        let _ = writeln!(out, "{what:<10} {:>10}  {}", ByteSize(shard.bytes).to_string(), shard.shard);
    }
    let count = |state| plan.count(state);
    let _ = writeln!(
        out,
        "shards     {} new, {} changed, {} unchanged, {} gone; {} other objects passed over",
        count(ShardState::New),
        count(ShardState::Changed),
        count(ShardState::Unchanged),
        count(ShardState::Gone),
        plan.passed_over
    );
    let model = match &plan.model {
        Some(model) => format!("{model} is used"),
        None => "none for this job yet: a run fits one".to_owned(),
    };
    let _ = writeln!(out, "model      {model}");
    let _ = writeln!(out, "to weigh   {} of shards, of which only the needed columns are read", ByteSize(plan.bytes_to_weigh));
    out
}

/// A splice for a person: what was made, what was sent, how to read it.
pub(super) fn spliced(report: &SpliceReport) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<10} {text}");
    };
    let counts = report.shards;
    let mut fates = format!("{} spliced, {} unchanged", counts.spliced, counts.unchanged);
    for (n, fate) in [(counts.reencoded, "Arrow shards encoded as Parquet"), (counts.removed, "removed")] {
        if n > 0 {
            let _ = write!(fates, ", {n} {fate}");
        }
    }
    line("shards", fates);
    line("rows", report.rows.to_string());
    let columns = report.columns.iter().map(|served| match served.column == served.name {
        true => served.name.clone(),
        false => format!("{} (as {}: the corpus has that name)", served.column, served.name),
    });
    line("columns", columns.collect::<Vec<_>>().join(", "));
    let copied = match (report.bytes_copied_by_server, report.bytes_copied_on_disk) {
        (0, 0) => String::new(),
        (0, disk) => format!(", {} copied on disk", ByteSize(disk)),
        (server, _) => format!(", {} copied by the server", ByteSize(server)),
    };
    line(
        "sent",
        format!(
            "{} for a corpus of {}{copied}; {} requests in {:.1} s",
            ByteSize(report.bytes_sent),
            ByteSize(report.corpus_bytes),
            report.requests,
            report.seconds
        ),
    );
    if let Some(version) = report.version {
        line("table", format!("version {version} at {}", report.to));
    }
    if report.files_pruned > 0 {
        line("pruned", format!("{} files of older versions", report.files_pruned));
    }
    let name = report.columns.first().map_or("weight", |served| served.name.as_str());
    let _ = writeln!(out, "\nnext");
    let _ = writeln!(out, "  duckdb -c {}", quoted(&format!("select avg({name}) from delta_scan('{}')", report.to)));
    let _ = writeln!(
        out,
        "  python -c {}",
        quoted(&format!("import deltalake; print(deltalake.DeltaTable(\"{}\").to_pyarrow_table())", report.to))
    );
    out
}

/// What distilling wrote.
pub(super) fn distilled(folder: &str, dims: usize, files: &[(String, usize)]) -> String {
    let mut out = format!("{folder}: a static embedder of {dims} dimensions\n");
    for (name, size) in files {
        let _ = writeln!(out, "  {name:<20} {}", ByteSize(*size as u64));
    }
    out
}
