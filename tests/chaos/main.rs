//! The matrix of faults: breaks one thing after the other under real workers, and prints what came of it.
//!
//! `cargo test --features chaos --test chaos`; `-- --json` for programs, `-- --quick` for one run of the short ones. `CHAOS_RUNS`
//! says how often each is run (3), `CHAOS_JOBS` how many beside each other (3), `CHAOS_ONLY` which (parts of names, by commas),
//! `CHAOS_FROM` with which it begins, where an earlier matrix was cut short. Each line is said on standard error when it is known.
//!
//! The short ones run with the integration tests as well (`tests/it/survival.rs`).

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
mod run;
mod server;
mod storehouse;
mod wall;
#[path = "../it/world.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use more of it")]
mod world;

use std::process::ExitCode;

use faults::{FAULTS, Fault};

fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| asked.iter().any(|asked| asked == word);
    let quick = has("--quick");
    let runs = number("CHAOS_RUNS", if quick { 1 } else { 3 });
    let chosen = chosen(quick);
    server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lines = runtime.block_on(run::matrix(&chosen, runs, number("CHAOS_JOBS", 3)));
    if has("--json") {
        println!("{}", serde_json::to_string_pretty(&lines).unwrap());
    } else {
        println!("| fault | runs | jobs | lost | duplicates | wrong charges | worst recovery (s) | verdict |");
        println!("|---|---|---|---|---|---|---|---|");
        for line in &lines {
            println!("{line}");
        }
    }
    let failed = lines.is_empty() || lines.iter().any(|line| line.verdict == "FAILED");
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The faults that the environment asks for.
fn chosen(quick: bool) -> Vec<&'static Fault> {
    let only = std::env::var("CHAOS_ONLY").unwrap_or_default();
    let from = std::env::var("CHAOS_FROM").unwrap_or_default();
    let asked = |fault: &&Fault| only.split(',').any(|part| fault.name.contains(part.trim()));
    FAULTS
        .iter()
        .skip_while(|fault| !fault.name.contains(&from))
        .filter(asked)
        .filter(|fault| fault.quick || !quick)
        .collect()
}

fn number<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|said| said.parse().ok()).unwrap_or(otherwise)
}
