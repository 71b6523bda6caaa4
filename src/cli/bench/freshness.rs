//! From an insert to its vector, with a worker that has nothing else to do.

use std::time::{Duration, Instant};

use crate::db;
use crate::db::bench::{Batch, Row};

use super::super::failure::Failure;
use super::Bed;
use super::end_to_end::DIMENSIONS;
use super::figure::{Figure, Target, percentile};
use super::provider::{self, Knobs};
use super::rig::Rig;
use super::texts;
use super::worker::{PIPELINE, Setup};

const INSERTS: usize = 300;
const FEW: usize = 30;
/// From one look at the vector to the next.
const AGAIN: Duration = Duration::from_micros(200);
/// From one vector to the next insert: from this to twice this.
const APART: Duration = Duration::from_millis(10);
const BYTES: usize = 400;

/// One insert after another, each in a transaction of its own, as an application makes them; the trigger announces it.
pub(super) async fn run(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let inserts = if bed.quick { FEW } else { INSERTS };
    let (mut halves, mut slowest, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bed.rounds {
        let floor = percentile(&by_hand(bed, inserts).await?, 50);
        let waits = by_worker(bed, inserts).await?;
        let (half, slow) = (percentile(&waits, 50), percentile(&waits, 99));
        bed.say(&format!("  p50 {half:.1} ms, p99 {slow:.1} ms; by hand p50 {floor:.1} ms"));
        floors.push(floor);
        halves.push(half);
        slowest.push(slow);
    }
    Ok(vec![
        Figure::beside("freshness: insert to vector, p50", "ms", &halves, &floors).held_to(Target::RatioAtMost(2.0)),
        Figure::of("freshness: insert to vector, p99", "ms", &slowest).held_to(Target::AtMost(100.0)),
    ])
}

#[expect(
    clippy::disallowed_methods,
    reason = "the runtime's timers tick once a millisecond, which is most of what is measured"
)]
fn a_moment() {
    std::thread::sleep(AGAIN);
}

/// Milliseconds from before each insert until its vector is seen.
async fn by_worker(bed: &Bed, inserts: usize) -> Result<Vec<f64>, Failure> {
    let mut rig = Rig::build(bed, &Setup::of(bed.slots), Knobs::default()).await?;
    rig.workers[0].install_triggers().await?;
    // Also what is asked while it works is to cost little.
    let mut connection = rig.field.pool.acquire().await?;
    db::bench::keep_plans(&mut connection).await?;
    let mut waits = Vec::new();
    for (id, content) in (1..).zip(texts::texts(inserts, BYTES)) {
        let began = Instant::now();
        db::bench::insert(&mut connection, &[row(id, content)]).await?;
        while !db::bench::has_vector(&mut connection, id).await? {
            rig.check(began)?;
            tokio::task::spawn_blocking(a_moment).await.ok();
        }
        waits.push(milliseconds(began));
        tokio::time::sleep(APART + APART * u32::try_from(id % 10).unwrap_or_default() / 10).await;
    }
    drop(connection);
    rig.leave().await?;
    Ok(waits)
}

/// Milliseconds that an insert, a claim and the commit of a chunk take by hand, one after another.
async fn by_hand(bed: &Bed, inserts: usize) -> Result<Vec<f64>, Failure> {
    let field = bed.ground.field(DIMENSIONS).await?;
    db::bench::register(&field.pool, PIPELINE).await?;
    let vectors = provider::vectors(DIMENSIONS);
    let contents = texts::texts(inserts, BYTES);
    let mut connection = field.pool.acquire().await?;
    db::bench::keep_plans(&mut connection).await?;
    let mut waits = Vec::new();
    for (id, content) in (1..).zip(&contents) {
        let began = Instant::now();
        db::bench::insert(&mut connection, &[row(id, content.clone())]).await?;
        db::bench::open_one(&mut connection, PIPELINE, id).await?;
        let batch = Batch { first_id: id, contents: std::slice::from_ref(content), vectors: &vectors, tokens: 100 };
        db::bench::write(&mut connection, PIPELINE, batch).await?;
        waits.push(milliseconds(began));
    }
    drop(connection);
    field.leave().await?;
    Ok(waits)
}

fn row(id: i64, content: String) -> Row {
    Row { id, tenant: "one".to_owned(), content, path: None }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}
