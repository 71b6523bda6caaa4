//! Several workers at one provider: as many requests as each may send, and no more than the provider takes.

use std::time::Duration;

use crate::db;

use super::super::failure::Failure;
use super::Bed;
use super::figure::{Figure, Target};
use super::provider::Knobs;
use super::rig::{self, Rig, float, real};
use super::texts;
use super::worker::Setup;

const WORKERS: [usize; 3] = [1, 2, 4];
/// One request at once of each worker, five in a second.
const LATENCY: Duration = Duration::from_millis(200);
const INPUTS: usize = 10;
/// Requests in a minute that the provider takes where it has a limit: half of what four workers would send.
const LIMIT: u32 = 600;
/// A minute may hold 2 % more, however they lie in it.
const OVER: f64 = 0.02;

/// Each worker waits for the provider most of its time.
pub(super) async fn run(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let each = bed.rows.div_ceil(20).max(INPUTS);
    let mut rates = vec![Vec::new(); WORKERS.len()];
    for _ in 0..bed.rounds {
        for (rates, workers) in rates.iter_mut().zip(WORKERS) {
            let (seconds, _) = together(bed, workers, each * workers, None).await?;
            bed.say(&format!("  {workers}: {:.0} rows/s", real(each * workers) / seconds));
            rates.push(real(each * workers) / seconds);
        }
    }
    let alone = rates[0].clone();
    let mut figures = vec![Figure::of("scaling: 1 worker", "rows/s", &alone)];
    for (rates, workers) in rates.iter().zip(WORKERS).skip(1) {
        let linear: Vec<f64> = alone.iter().map(|rate| rate * real(workers)).collect();
        let figure = Figure::beside(&format!("scaling: {workers} workers"), "rows/s", rates, &linear);
        figures.push(figure.held_to(Target::RatioAtLeast(0.95)));
    }
    figures.extend(limited(bed, each * 4).await?);
    Ok(figures)
}

/// Four workers, and a provider that takes half of what they would send, which they are told.
async fn limited(bed: &Bed, rows: usize) -> Result<[Figure; 2], Failure> {
    let (mut sent, mut refused, mut allowed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bed.rounds {
        let (seconds, counted) = together(bed, 4, rows, Some(LIMIT)).await?;
        let minutes = seconds / 60.0;
        sent.push(float(counted.requests) / minutes);
        // In a run of seconds what a whole minute may have too many weighs all the more.
        allowed.push(f64::from(LIMIT) * (minutes.max(1.0) * OVER + minutes) / minutes);
        refused.push(float(counted.limited) / float(counted.requests) * 100.0);
    }
    Ok([
        Figure::beside("scaling: requests sent, beside the limit and 2 % of a minute's", "1/min", &sent, &allowed)
            .held_to(Target::RatioAtMost(1.0)),
        Figure::of("scaling: of these answered with 429", "%", &refused).held_to(Target::AtMost(2.0)),
    ])
}

async fn together(
    bed: &Bed,
    workers: usize,
    rows: usize,
    limit: Option<u32>,
) -> Result<(f64, super::provider::Counted), Failure> {
    let knobs = Knobs { requests_per_minute: limit, ..Knobs::slow(LATENCY) };
    let alike = Setup::of(bed.slots.min(64));
    let setup = Setup { concurrency: 1, inputs: INPUTS, requests_per_minute: limit, dimensions: 64, ..alike };
    let mut rig = Rig::build(bed, &setup, knobs).await?;
    for _ in 1..workers {
        rig.join(&setup).await?;
    }
    rig.lay(&rig::rows(texts::texts(rows, 200))).await?;
    let seconds = rig.go(rows).await?;
    let counted = rig.provider.counted();
    rig::whole(rows, &db::bench::written(&rig.field.pool).await?)?;
    rig.leave().await?;
    Ok((seconds, counted))
}
