//! The matrix of faults: breaks one thing after the other under real workers, and prints what came of it.
//!
//! `cargo test --features chaos --test chaos`; `-- --json` for programs, `-- --quick` for one run of the short ones. `CHAOS_RUNS`
//! says how often each is run (3), `CHAOS_ONLY` which (a part of the name).

#![expect(clippy::unwrap_used, reason = "a fault that cannot even be injected ends the matrix")]

mod arena;
#[path = "../it/fake_openai/mod.rs"]
#[expect(dead_code, unused_imports, reason = "shared with the integration tests, which use more of it")]
mod fake_openai;
mod faults;
mod invariants;
#[path = "../it/pgbouncer.rs"]
mod pgbouncer;
#[path = "../it/postgres.rs"]
mod postgres;
mod proxy;
mod server;
#[path = "../it/world.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use more of it")]
mod world;

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use arena::Arena;
use faults::{FAULTS, Fault, Injected};
use invariants::Findings;

/// A killed worker's jobs are to be done again by then.
const RECOVERED_WITHIN: Duration = Duration::from_mins(1);

/// A line of the table.
#[derive(Debug, Serialize)]
struct Line {
    fault: &'static str,
    runs: u32,
    jobs: i64,
    lost: i64,
    duplicates: i64,
    wrong_charges: i64,
    paid_again: i64,
    worst_recovery_seconds: f64,
    verdict: String,
    broken: Vec<String>,
}

fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| asked.iter().any(|asked| asked == word);
    let only = std::env::var("CHAOS_ONLY").unwrap_or_default();
    let quick = has("--quick");
    let runs = std::env::var("CHAOS_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(if quick { 1 } else { 3 });
    server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let chosen = FAULTS.iter().filter(|fault| fault.name.contains(&only) && (fault.quick || !quick));
    let lines: Vec<Line> = chosen.map(|fault| runtime.block_on(line(fault, runs))).collect();
    if has("--json") {
        println!("{}", serde_json::to_string_pretty(&lines).unwrap());
    } else {
        print(&lines);
    }
    let failed = lines.is_empty() || lines.iter().any(|line| line.verdict == "FAILED");
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn line(fault: &Fault, runs: u32) -> Line {
    let mut line = Line {
        fault: fault.name,
        runs: 0,
        jobs: 0,
        lost: 0,
        duplicates: 0,
        wrong_charges: 0,
        paid_again: 0,
        worst_recovery_seconds: 0.0,
        verdict: "held".to_owned(),
        broken: Vec::new(),
    };
    for run in 1..=runs {
        match once(fault, run).await {
            Ok((found, took)) => {
                line.runs += 1;
                line.jobs += found.jobs;
                line.lost += found.lost;
                line.duplicates += found.duplicates;
                line.wrong_charges += found.wrong_charges;
                line.paid_again += found.paid_again;
                line.worst_recovery_seconds = line.worst_recovery_seconds.max(took.as_secs_f64());
                line.broken.extend(found.broken);
            }
            Err(Injected::Skipped(why)) => {
                line.verdict = format!("skipped: {why}");
                break;
            }
            Err(Injected::Failed(why)) => line.broken.push(why),
        }
        eprintln!("{} run {run}: {:.1} s, {:?}", fault.name, line.worst_recovery_seconds, line.broken);
    }
    if !line.broken.is_empty() {
        "FAILED".clone_into(&mut line.verdict);
    }
    line
}

/// One run: inject, wait until it is quiet, stop, look.
async fn once(fault: &Fault, run: u32) -> Result<(Findings, Duration), Injected> {
    let mut arena = Arena::new().await;
    let injected = (fault.inject)(&mut arena).await;
    let kept = std::env::var_os("CHAOS_LOGS").map(std::path::PathBuf::from);
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
    if let Some(folder) = kept {
        std::fs::create_dir_all(&folder).unwrap();
        let name = format!("{}-{run}.log", fault.name.replace(|letter: char| !letter.is_alphanumeric(), "-"));
        std::fs::copy(arena.logs.path().join("workers.log"), folder.join(name)).ok();
    }
    ended
}

fn print(lines: &[Line]) {
    println!("| fault | runs | jobs | lost | duplicates | wrong charges | worst recovery (s) | verdict |");
    println!("|---|---|---|---|---|---|---|---|");
    for line in lines {
        println!(
            "| {} | {} | {} | {} | {} | {} | {:.1} | {} |",
            line.fault,
            line.runs,
            line.jobs,
            line.lost,
            line.duplicates,
            line.wrong_charges,
            line.worst_recovery_seconds,
            line.verdict
        );
        for broken in &line.broken {
            println!("  {broken}");
        }
    }
}
