//! Rows that are done, opened again: what did not change is not paid for.

use super::super::failure::Failure;
use super::Bed;
use super::figure::{Figure, Target};
use super::provider::Knobs;
use super::rig::{self, Rig, float, real};
use super::texts;
use super::worker::{PIPELINE, Setup};
use crate::db;

const BYTES: usize = 1_600;
/// One row in so many changes.
const CHANGED: usize = 100;

pub(super) async fn run(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let (mut unchanged, mut changed, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bed.rounds {
        let mut rig = Rig::build(bed, &Setup::of(bed.slots), Knobs::default()).await?;
        rig.lay(&rig::rows(texts::texts(bed.rows, BYTES))).await?;
        rig.go(bed.rows).await?;
        let (seconds, inputs) = again(&mut rig).await?;
        rates.push(real(bed.rows) / seconds);
        unchanged.push(inputs / real(bed.rows) * 100.0);
        rig.pause().await?;
        db::bench::change(&rig.field.pool, i64::try_from(CHANGED).unwrap_or(i64::MAX)).await?;
        let (_, inputs) = again(&mut rig).await?;
        changed.push(inputs / real(bed.rows) * 100.0);
        bed.say(&format!("  {:.0} rows/s unchanged", real(bed.rows) / seconds));
        rig.leave().await?;
    }
    let share = 100.0 / real(CHANGED);
    Ok(vec![
        Figure::of("again: inputs paid for unchanged rows", "%", &unchanged).held_to(Target::AtMost(0.0)),
        Figure::of("again: inputs paid with 1 % changed", "%", &changed).held_to(Target::AtMost(share)),
        Figure::of("again: unchanged rows", "rows/s", &rates),
    ])
}

/// Opens every job again; seconds, and inputs that were paid.
async fn again(rig: &mut Rig) -> Result<(f64, f64), Failure> {
    let before = rig.provider.counted().inputs;
    rig.pause().await?;
    db::bench::open(&rig.field.pool, PIPELINE).await?;
    db::bench::settle(&rig.field.pool).await?;
    rig.rest().await;
    let seconds = rig.go(0).await?;
    Ok((seconds, float(rig.provider.counted().inputs - before)))
}
