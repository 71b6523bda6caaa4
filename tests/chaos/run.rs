//! Runs faults, some beside each other, and makes a line of the table of each.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use serde::Serialize;

use crate::arena::Arena;
use crate::faults::{Fault, Injected};
use crate::invariants::{self, Findings};

/// A killed worker's jobs are to be done again by then.
pub const RECOVERED_WITHIN: Duration = Duration::from_mins(1);

/// Faults of the server that all others share: nothing else runs beside them.
pub const ALONE: &[&str] =
    &["database: immediate stop and start", "database: COMMITs frozen on the way, then immediate stop and start"];

/// A line of the table.
#[derive(Debug, Serialize)]
pub struct Line {
    pub fault: &'static str,
    pub runs: u32,
    pub jobs: i64,
    pub lost: i64,
    pub duplicates: i64,
    pub wrong_charges: i64,
    pub paid_again: i64,
    pub worst_recovery_seconds: f64,
    pub verdict: String,
    pub broken: Vec<String>,
}

type Ran = Result<(Findings, Duration), Injected>;

/// Runs each fault so often, so many at once; a line is said on standard error when it is known.
pub async fn matrix(faults: &[&Fault], runs: u32, at_once: usize) -> Vec<Line> {
    let mut lines: Vec<Line> = faults.iter().map(|fault| Line::new(fault.name)).collect();
    let mut left = vec![runs; faults.len()];
    let (alone, beside): (Vec<usize>, Vec<usize>) =
        (0..faults.len()).partition(|&nth| ALONE.contains(&faults[nth].name));
    for (these, at_once) in [(beside, at_once), (alone, 1)] {
        let runs = these.into_iter().flat_map(|nth| (1..=runs).map(move |run| (nth, run)));
        let mut ran = stream::iter(runs)
            .map(|(nth, run)| async move { (nth, once(faults[nth], run).await) })
            .buffer_unordered(at_once.max(1));
        while let Some((nth, outcome)) = ran.next().await {
            lines[nth].add(outcome);
            left[nth] -= 1;
            if left[nth] == 0 {
                eprintln!("{}", lines[nth]);
            }
        }
    }
    lines
}

impl Line {
    fn new(fault: &'static str) -> Self {
        Self {
            fault,
            runs: 0,
            jobs: 0,
            lost: 0,
            duplicates: 0,
            wrong_charges: 0,
            paid_again: 0,
            worst_recovery_seconds: 0.0,
            verdict: "held".to_owned(),
            broken: Vec::new(),
        }
    }

    fn add(&mut self, outcome: Ran) {
        match outcome {
            Ok((found, took)) => {
                self.runs += 1;
                self.jobs += found.jobs;
                self.lost += found.lost;
                self.duplicates += found.duplicates;
                self.wrong_charges += found.wrong_charges;
                self.paid_again += found.paid_again;
                self.worst_recovery_seconds = self.worst_recovery_seconds.max(took.as_secs_f64());
                self.broken.extend(found.broken);
            }
            Err(Injected::Skipped(why)) => self.verdict = format!("skipped: {why}"),
            Err(Injected::Failed(why)) => self.broken.push(why),
        }
        if !self.broken.is_empty() {
            "FAILED".clone_into(&mut self.verdict);
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { fault, runs, jobs, lost, duplicates, wrong_charges, worst_recovery_seconds, verdict, .. } = self;
        write!(
            f,
            "| {fault} | {runs} | {jobs} | {lost} | {duplicates} | {wrong_charges} | {worst_recovery_seconds:.1} | {verdict} |"
        )?;
        for broken in &self.broken {
            write!(f, "\n  {broken}")?;
        }
        Ok(())
    }
}

/// One run: inject, wait until it is quiet, stop, look.
async fn once(fault: &Fault, run: u32) -> Ran {
    let mut arena = Arena::new().await;
    let injected = (fault.inject)(&mut arena).await;
    let ended = async {
        injected?;
        let took = arena.rest().await;
        arena.stop().await?;
        let mut found = invariants::check(&arena).await.map_err(|error| Injected::Failed(error.to_string()))?;
        if took > RECOVERED_WITHIN {
            found.broken.push(format!("I7 recovered after {:.0} s", took.as_secs_f64()));
        }
        Ok((found, took))
    }
    .await;
    if let Some(folder) = std::env::var_os("CHAOS_LOGS").map(PathBuf::from) {
        std::fs::create_dir_all(&folder).unwrap();
        let name = format!("{}-{run}.log", fault.name.replace(|letter: char| !letter.is_alphanumeric(), "-"));
        std::fs::copy(arena.logs.path().join("workers.log"), folder.join(name)).ok();
    }
    ended
}
