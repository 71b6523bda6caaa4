//! The short faults of the matrix in `tests/chaos`, once each: real workers, really killed. Those that need the feature `chaos`, or
//! a server of their own, are left to the matrix itself.

use crate::faults::{FAULTS, Fault};
use crate::run::{self, ALONE};

/// They wait more than they work.
const AT_ONCE: usize = 4;

#[tokio::test]
async fn short_faults_are_survived() {
    let quick: Vec<&Fault> = FAULTS.iter().filter(|fault| fault.quick && !ALONE.contains(&fault.name)).collect();

    let lines = run::matrix(&quick, 1, AT_ONCE).await;

    let table: Vec<String> = lines.iter().map(ToString::to_string).collect();
    assert!(lines.iter().all(|line| line.verdict != "FAILED"), "\n{}", table.join("\n"));
    let held = lines.iter().filter(|line| line.verdict == "held").count();
    assert!(held >= 10, "too little of it could be run here:\n{}", table.join("\n"));
}
