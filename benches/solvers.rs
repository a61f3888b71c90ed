//! Our side of `benches/solvers.py`, which compares pushpull with the solvers of POT and OTT: `cargo bench --bench solvers -- FOLDER`.
//!
//! FOLDER holds `problem.json` and the unit vectors `sample.f32`, `safe.f32` and `harm.f32` (little-endian float32, row-major). Every task of
//! the problem is fitted over all rows; potentials, weights and times go to `result.json`. Without a folder nothing happens.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark fails by panicking")]

use ndarray::Array2;
use pushpull::transport::{DEFAULT_MINIBATCH_ROWS, FitPhase, ReferenceSet, Temperature, TransportOptions, fit};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

fn vectors(folder: &Path, name: &str, dims: usize) -> Array2<f32> {
    let path = folder.join(format!("{name}.f32"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Array2::from_shape_vec((values.len() / dims, dims), values).unwrap()
}

fn main() {
    let Some(folder) = std::env::args().skip(1).find(|a| !a.starts_with("--")).map(PathBuf::from) else {
        println!("needs the folder that benches/solvers.py makes; run that");
        return;
    };
    let problem: Value = serde_json::from_slice(&std::fs::read(folder.join("problem.json")).unwrap()).unwrap();
    let dims = usize::try_from(problem["dims"].as_u64().unwrap()).unwrap();
    let sample = vectors(&folder, "sample", dims);
    let references = |name| ReferenceSet::uniform(vectors(&folder, name, dims)).unwrap();
    let (safe, harm) = (references("safe"), references("harm"));
    let number = |task: &Value, key: &str| task[key].as_f64().unwrap();
    let count = |task: &Value, key: &str| usize::try_from(task[key].as_u64().unwrap()).unwrap();
    let mut results = Vec::new();
    for task in problem["tasks"].as_array().unwrap() {
        let mut options = TransportOptions::default()
            .with_epsilon(number(task, "epsilon"))
            .with_push(number(task, "push"))
            .with_prior(0.0)
            .with_temperature(Temperature::Fixed(number(task, "tau")))
            .with_held_out(0.0)
            .with_threshold(number(task, "threshold"))
            .with_max_steps(count(task, "max_steps"));
        options.epochs = count(task, "epochs");
        // The potentials are done when the transport costs begin, which no other solver here reports.
        let start = Instant::now();
        let mut solved = None;
        let fitted = fit(sample.view(), &safe, &harm, &options, None, &mut |at| {
            if at.phase == FitPhase::Costs && solved.is_none() {
                solved = Some(start.elapsed().as_secs_f64());
            }
        })
        .unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let (model, report) = (&fitted.model, &fitted.report);
        let weights: Vec<f32> = model.weigh(sample.view()).unwrap().iter().map(|w| w.weight).collect();
        results.push(json!({
            "task": task["name"], "seconds_to_potentials": solved, "seconds": seconds, "report": report,
            "samples": usize::try_from(report.online_steps).unwrap() * DEFAULT_MINIBATCH_ROWS.min(sample.nrows()) + report.steps * sample.nrows(),
            "safe_potential": model.safe_potential, "harm_potential": model.harm_potential, "weights": weights,
        }));
    }
    let result = json!({ "version": env!("CARGO_PKG_VERSION"), "results": results });
    std::fs::write(folder.join("result.json"), serde_json::to_vec(&result).unwrap()).unwrap();
}
