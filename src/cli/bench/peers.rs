//! Other systems on the same rows, beside the same provider and Postgres, in turn with Gristmill.
//!
//! A peer is a program: `PEER prepare` sets it up over `bench.documents (id, content)`, `PEER run` embeds every row and ends, and
//! `PEER count` prints how many rows have their vectors. `DATABASE_URL`, `OPENAI_BASE_URL` and `OPENAI_API_KEY` say where.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::db;

use super::super::failure::Failure;
use super::Bed;
use super::end_to_end::{BYTES, DIMENSIONS, MEBIBYTE, by_worker};
use super::figure::Figure;
use super::ground::Field;
use super::provider::{Knobs, Loopback};
use super::rig::{self, real};
use super::texts;
use super::worker::{Setup, peak_memory, processor_time};

/// Of the rows of other benches one in so many: a peer may make fifty in a second.
const ONE_IN: usize = 10;

pub(super) async fn run(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    if bed.peers.is_empty() {
        bed.say("  none is named; see --peer");
        return Ok(Vec::new());
    }
    let rows = bed.rows.div_ceil(ONE_IN);
    let mut ours = Vec::new();
    let mut theirs: Vec<Vec<Cost>> = vec![Vec::new(); bed.peers.len()];
    for _ in 0..bed.rounds {
        let run = by_worker(bed, &Setup::of(bed.slots), Knobs::default(), rows).await?;
        let memory = run.peak_bytes / MEBIBYTE;
        ours.push(Cost { rate: run.rows / run.seconds, processor: run.processor_ms / run.rows, memory });
        for (peer, costs) in bed.peers.iter().zip(&mut theirs) {
            costs.push(by_peer(bed, peer, rows).await?);
        }
    }
    let mut figures = Vec::new();
    for (peer, costs) in bed.peers.iter().zip(&theirs) {
        let name = peer.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let beside = |what: &str, unit: &'static str, of: fn(&Cost) -> f64| {
            let each = |costs: &[Cost]| costs.iter().map(of).collect::<Vec<f64>>();
            Figure::beside(&format!("{name}{what}, beside Gristmill"), unit, &each(costs), &each(&ours))
        };
        figures.push(beside("", "rows/s", |cost| cost.rate));
        figures.push(beside(": processor time", "ms/row", |cost| cost.processor));
        figures.push(beside(": peak memory", "MiB", |cost| cost.memory));
    }
    Ok(figures)
}

#[derive(Debug, Clone, Copy)]
struct Cost {
    rate: f64,
    /// Milliseconds a row.
    processor: f64,
    /// Mebibytes.
    memory: f64,
}

async fn by_peer(bed: &Bed, peer: &Path, rows: usize) -> Result<Cost, Failure> {
    let field = bed.ground.field(DIMENSIONS).await?;
    let provider = Loopback::start(Knobs::default(), DIMENSIONS).await?;
    db::bench::insert(&mut *field.pool.acquire().await?, &rig::rows(texts::texts(rows, BYTES))).await?;
    told(peer, "prepare", &field, &provider).await?;
    db::bench::settle(&field.pool).await?;

    // Its start counts: what it has read before it first asks the provider is work.
    let began = Instant::now();
    let mut child = command(peer, "run", &field, &provider).spawn().map_err(|error| not_run(peer, &error))?;
    let process = child.id().unwrap_or_default();
    let (mut processor, mut memory) = (Duration::ZERO, 0);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let tree = tree(process);
        processor = processor.max(tree.iter().map(|&one| processor_time(one)).sum());
        memory = memory.max(tree.iter().map(|&one| peak_memory(one)).sum());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let seconds = began.elapsed().as_secs_f64();
    if !status.success() {
        return Err(Failure::Failed(format!("{} run has ended ({status})", peer.display())));
    }
    let count = told(peer, "count", &field, &provider).await?;
    if count.trim() != rows.to_string() {
        return Err(Failure::Failed(format!(
            "{} has made vectors for {} of {rows} rows",
            peer.display(),
            count.trim()
        )));
    }
    field.leave().await?;
    let cost = Cost {
        rate: real(rows) / seconds,
        processor: processor.as_secs_f64() * 1_000.0 / real(rows),
        memory: rig::float(memory) / MEBIBYTE,
    };
    bed.say(&format!(
        "  {}: {:.0} rows/s, {:.2} ms/row, {:.0} MiB; {} requests",
        peer.display(),
        cost.rate,
        cost.processor,
        cost.memory,
        provider.counted().requests
    ));
    Ok(cost)
}

fn command(peer: &Path, what: &str, field: &Field, provider: &Loopback) -> Command {
    let mut command = Command::new(peer);
    command.arg(what).env("DATABASE_URL", &field.url).env("OPENAI_BASE_URL", provider.url());
    command.env("OPENAI_API_KEY", "sk-bench").stdin(std::process::Stdio::null()).kill_on_drop(true);
    command.stdout(std::process::Stdio::null());
    command
}

/// What a peer says.
async fn told(peer: &Path, what: &str, field: &Field, provider: &Loopback) -> Result<String, Failure> {
    let mut command = command(peer, what, field, provider);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let output = command.output().await.map_err(|error| not_run(peer, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::Failed(format!("{} {what} failed: {words}", peer.display())))
}

fn not_run(peer: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("--peer {}: {error}", peer.display()))
}

/// A process and its descendants.
fn tree(process: u32) -> Vec<u32> {
    let children = PathBuf::from(format!("/proc/{process}/task/{process}/children"));
    let children = fs::read_to_string(children).unwrap_or_default();
    let below = children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(tree);
    std::iter::once(process).chain(below).collect()
}
