//! Every file in `queries/` runs on the quick start and answers what it did when its snapshot was reviewed.

use crate::support::{Lake, text};
use std::fs;
use std::path::Path;

/// Weights move in their last digits with the processor's instructions; texts and counts don't.
const TOLERANCE: f64 = 0.02;

#[test]
fn every_query_has_a_snapshot_and_keeps_to_it() {
    let lake = Lake::new();
    lake.json(&["run", "job.toml"], 0);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let snapshots = root.join("tests/it/snapshots");
    let mut names: Vec<_> = fs::read_dir(root.join("queries")).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(names.len() >= 5);
    for query in names {
        let output = lake.pushpull(&["sql", "job.toml", "-f", query.to_str().unwrap(), "--format", "csv"]);
        assert!(output.status.success(), "{query:?}: {}", text(&output.stderr));
        let rows = shortened(&text(&output.stdout));
        let snapshot = snapshots.join(query.file_stem().unwrap()).with_extension("csv");
        if std::env::var_os("PUSHPULL_UPDATE_SNAPSHOTS").is_some() {
            fs::create_dir_all(&snapshots).unwrap();
            fs::write(&snapshot, &rows).unwrap();
        }
        let expected = fs::read_to_string(&snapshot)
            .unwrap_or_else(|_| panic!("{snapshot:?} is missing: set PUSHPULL_UPDATE_SNAPSHOTS=1 and review it"));
        same(&query, &rows, &expected);
    }
}

/// The header, the number of rows, and the first twelve.
fn shortened(csv: &str) -> String {
    let lines: Vec<&str> = csv.lines().collect();
    let mut kept: Vec<String> = lines.iter().take(13).map(|line| line.to_string()).collect();
    kept.push(format!("rows,{}", lines.len().saturating_sub(1)));
    kept.join("\n") + "\n"
}

fn same(query: &Path, found: &str, expected: &str) {
    let (found_lines, expected_lines): (Vec<_>, Vec<_>) = (found.lines().collect(), expected.lines().collect());
    assert_eq!(found_lines.len(), expected_lines.len(), "{query:?}\n{found}");
    for (line, wanted) in found_lines.iter().zip(expected_lines) {
        let (cells, wanted_cells): (Vec<_>, Vec<_>) = (line.split(',').collect(), wanted.split(',').collect());
        assert_eq!(cells.len(), wanted_cells.len(), "{query:?}\n{line}\n{wanted}");
        for (cell, wanted_cell) in cells.iter().zip(wanted_cells) {
            match (cell.parse::<f64>(), wanted_cell.parse::<f64>()) {
                (Ok(a), Ok(b)) if cell.contains('.') => {
                    assert!((a - b).abs() <= TOLERANCE * b.abs().max(0.05), "{query:?}\n{line}\n{wanted}")
                }
                _ => assert_eq!(*cell, wanted_cell, "{query:?}\n{line}\n{wanted}"),
            }
        }
    }
}
