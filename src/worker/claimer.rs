//! Claims work: as much as fits, fair over tenants, and never more.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::mpsc;

use crate::db;
use crate::db::claims::{self, Claimed, Claimer, Cursor, Share};
use crate::domain::{ClaimedJob, SourceKey};
use crate::failpoint::{self, Point};
use crate::jobs::Deps;
use crate::telemetry;

use super::Engine;
use super::ring::{LOOK_EVERY, Ring};
use super::words;

/// Tenants of one look.
const LOOK: usize = 1_000;
/// With work waiting, a claim is worth it when this part of the slots is free, or after this long.
const WORTH: usize = 4;
const GATHER: Duration = Duration::from_millis(4);
/// The first pause after a claim that the database did not take, or that found all jobs held; it doubles up to the usual pause.
const FIRST: Duration = Duration::from_millis(100);
/// How often jobs are looked for whose workers died.
const CRASHED_EVERY: Duration = Duration::from_secs(1);

/// Claims until `stop`; dropping `sender` tells the runner that nothing more will come.
pub(super) async fn run(engine: Arc<Engine>, sender: mpsc::Sender<ClaimedJob>) {
    let mut rings: Vec<Ring> = engine.pipelines.iter().map(|_| Ring::new()).collect();
    let mut first = 0;
    let mut crashed_at: Option<Instant> = None;
    let mut quiet = Quiet::default();
    let mut next = FIRST;
    let mut looked_at: Option<Instant> = None;
    while !engine.stop.is_cancelled() {
        room(&engine, &rings, &quiet, looked_at).await;
        if engine.stop.is_cancelled() {
            break;
        }
        // Armed before the look: what is announced during it is not missed.
        let woken = engine.wake.notified();
        let mut claimed = 0;
        let (mut away, mut held) = (false, false);
        let crashed = crashed_at.is_none_or(|at| at.elapsed() > CRASHED_EVERY);
        tokio::select! {
            told = engine.remembered.tell(&engine.claims) => away |= told.is_err(),
            () = engine.stop.cancelled() => break,
        }
        let due = if away { 0 } else { rings.len() };
        for nth in 0..due {
            let nth = (first + nth) % rings.len();
            let deps = &engine.pipelines[nth];
            if deps.fit.misfit().is_some() {
                continue;
            }
            // Only a statement under way is waited for when we stop, not a database that is away.
            let connection = tokio::select! {
                connection = engine.claims.acquire() => connection,
                () = engine.stop.cancelled() => break,
            };
            let claimed_now = match connection {
                Ok(mut connection) => claim(&engine, &mut connection, deps, &mut rings[nth], &mut quiet, crashed).await,
                Err(error) => Err(error),
            };
            match claimed_now {
                Ok(Taken { jobs, is_rest_held }) => {
                    claimed += jobs.len();
                    held |= is_rest_held;
                    hand_on(&engine, deps, jobs, &sender).await;
                }
                Err(error) => {
                    failed(&engine, deps, &error).await;
                    away = true;
                }
            }
        }
        first = (first + 1) % rings.len().max(1);
        if crashed {
            crashed_at = Some(Instant::now());
        }
        looked_at = Some(Instant::now());
        // Where nothing is left but for newcomers, others may have work, and wait for room.
        if (claimed > 0 || engine.hands.spare() == 0) && !away {
            continue;
        }
        let soon = away || held;
        let wait = if soon { next } else { engine.settings.poll };
        next = if soon { (next * 2).min(engine.settings.poll) } else { FIRST };
        tokio::select! {
            () = woken, if !away => rings.iter_mut().for_each(Ring::forget_cursors),
            () = tokio::time::sleep(wait) => rings.iter_mut().for_each(Ring::forget_cursors),
            () = engine.stop.cancelled() => {}
        }
    }
}

async fn failed(engine: &Engine, deps: &Deps, error: &sqlx::Error) {
    let (pipeline, said) = (&deps.plan.pipeline.name, db::describe(error));
    let is_away = tokio::select! {
        is_away = engine.outage.is_on() => is_away,
        () = engine.stop.cancelled() => return,
    };
    if is_away {
        tracing::debug!(pipeline, error = said, "claiming failed");
    } else {
        tracing::warn!(pipeline, error = said, "claiming failed");
    }
}

/// Waits until a claim is worth its statement. With room for newcomers alone it is when one is known, or may have come.
async fn room(engine: &Engine, rings: &[Ring], quiet: &Quiet, looked_at: Option<Instant>) {
    let (hands, worth) = (&engine.hands, (engine.settings.slots / WORTH).max(1));
    let mut waited = false;
    let mut asked = None;
    while hands.has_lonely() || hands.spare() < worth {
        if waited && !hands.has_lonely() {
            let (spare, free) = (hands.spare(), hands.free());
            let is_time = || looked_at.is_none_or(|at| at.elapsed() > LOOK_EVERY);
            // Until a job ends the answer stays the same.
            let has_ended = asked.replace(free) != Some(free);
            let is_known = || has_ended && knows_newcomers(engine, rings, quiet);
            if spare > 0 || free > 0 && (is_time() || is_known()) {
                return;
            }
        }
        tokio::select! {
            () = hands.freed() => {}
            () = tokio::time::sleep(GATHER) => waited = true,
            () = engine.stop.cancelled() => return,
        }
    }
}

/// Whether a tenant is known that has work and nothing in hand.
fn knows_newcomers(engine: &Engine, rings: &[Ring], quiet: &Quiet) -> bool {
    let is_known = |(deps, ring): (&Deps, &Ring)| {
        let in_hand = engine.hands.tenants(&deps.plan.pipeline.name);
        deps.fit.misfit().is_none() && ring.has(|tenant| !in_hand.contains(tenant))
    };
    !quiet.is_made(engine) && engine.pipelines.iter().zip(rings).any(is_known)
}

/// What a claim brought.
#[derive(Default)]
struct Taken {
    jobs: Vec<Claimed>,
    /// Nothing, though jobs are pending: somebody holds their rows, or their pipeline is paused.
    is_rest_held: bool,
}

async fn claim(
    engine: &Engine,
    connection: &mut PgConnection,
    deps: &Deps,
    ring: &mut Ring,
    quiet: &mut Quiet,
    crashed: bool,
) -> sqlx::Result<Taken> {
    let by = Claimer {
        pipeline: &deps.plan.pipeline.name,
        generation: &deps.plan.generation,
        owner: engine.owner,
        lease: engine.settings.lease,
    };
    if crashed || quiet.is_made(engine) {
        let jobs = claim_crashed(engine, &mut *connection, by, quiet).await?;
        if !jobs.is_empty() {
            return Ok(Taken { jobs, is_rest_held: false });
        }
    }
    let (free, spare) = (engine.hands.free(), engine.hands.spare());
    if free == 0 || engine.hands.has_lonely() || quiet.is_made(engine) {
        return Ok(Taken::default());
    }
    if ring.wants_look(LOOK) {
        let after = ring.after.take();
        let mut tenants = claims::tenants(&mut *connection, by.pipeline, after.as_deref(), wide(LOOK)).await?;
        if tenants.is_empty() && after.is_some() {
            tenants = claims::tenants(&mut *connection, by.pipeline, None, wide(LOOK)).await?;
        }
        ring.refill(tenants, LOOK);
    }
    let (mut turn, most) = if spare > 0 {
        (ring.turn(|_| true), spare)
    } else {
        let in_hand = engine.hands.tenants(by.pipeline);
        (ring.turn(|tenant| !in_hand.contains(tenant)), free)
    };
    if turn.is_empty() {
        return Ok(Taken::default());
    }
    share_out(&mut turn, &deps.plan.pipeline.source.weights, most, spare > 0);
    let mut claimed = claims::claim(&mut *connection, by, &turn, wide(most)).await?;
    let has_passed = turn.iter().any(|share| share.cursor != Cursor::START);
    if claimed.is_empty() && has_passed {
        // What somebody held was passed over, and lies behind the cursors: a sweep, or an application that opens many at once.
        ring.forget_cursors();
        for share in &mut turn {
            share.cursor = Cursor::START;
        }
        claimed = claims::claim(&mut *connection, by, &turn, wide(most)).await?;
    }
    ring.settle(&turn, &claimed, claimed.len() >= most);
    Ok(Taken { is_rest_held: claimed.is_empty(), jobs: claimed })
}

/// Says how many of `most` are each tenant's, by its weight; newcomers leave as much to those that come after them.
fn share_out(turn: &mut [Share], weights: &BTreeMap<String, u16>, most: usize, to_all: bool) {
    let weight = |share: &Share| weights.get(&share.tenant).map_or(1, |weight| usize::from(*weight));
    let sum: usize = turn.iter().map(weight).sum();
    let one = most.div_ceil(sum * if to_all { 1 } else { 2 });
    for share in turn {
        share.most = one * weight(share);
    }
}

/// A job that must be alone waits for a moment when nothing is in hand; where none comes by itself, one is made.
#[derive(Debug, Default)]
struct Quiet {
    /// Since when such a job of each pipeline was seen waiting.
    since: HashMap<String, Instant>,
}

impl Quiet {
    /// Whether one has waited for a lease: nothing else is claimed until it is in hand, here or elsewhere.
    fn is_made(&self, engine: &Engine) -> bool {
        self.since.values().any(|since| since.elapsed() > engine.settings.lease)
    }

    fn note(&mut self, pipeline: &str, waits: bool) {
        if waits {
            self.since.entry(pipeline.to_owned()).or_insert_with(Instant::now);
        } else {
            self.since.remove(pipeline);
        }
    }
}

/// Jobs whose workers died go a few at a time, from the third crash on alone.
async fn claim_crashed(
    engine: &Engine,
    connection: &mut PgConnection,
    by: Claimer<'_>,
    quiet: &mut Quiet,
) -> sqlx::Result<Vec<Claimed>> {
    let waiting = claims::crashed(&mut *connection, by).await?;
    if waiting.lonely && engine.hands.count() == 0 {
        let jobs = claims::claim_crashed(&mut *connection, by, claims::ALONE, 1).await?;
        if !jobs.is_empty() {
            quiet.note(by.pipeline, false);
            return Ok(jobs);
        }
    }
    quiet.note(by.pipeline, waiting.lonely);
    if !waiting.others || quiet.is_made(engine) {
        return Ok(Vec::new());
    }
    for crashes in 1..claims::ALONE {
        let beside = engine.hands.free_for_crashed(crashes).min(engine.hands.spare());
        if beside > 0 {
            let jobs = claims::claim_crashed(&mut *connection, by, crashes, wide(beside)).await?;
            if !jobs.is_empty() {
                return Ok(jobs);
            }
        }
    }
    Ok(Vec::new())
}

/// Gives the jobs to the runner, and notes which rows may have to say that they are worked on.
async fn hand_on(engine: &Engine, deps: &Deps, mut claimed: Vec<Claimed>, sender: &mpsc::Sender<ClaimedJob>) {
    if claimed.is_empty() {
        return;
    }
    for one in &claimed {
        engine.hands.take(&one.job);
    }
    failpoint::reach(Point::Claimed);
    telemetry::claimed(&deps.plan.pipeline.name, claimed.len());
    ask_needs(engine, deps, &mut claimed).await;
    for one in claimed {
        words::owe(engine, deps, &one.job);
        // The channel holds as many as there are slots, so this never waits; a closed one means that we are stopping.
        if let Err(refused) = sender.send(one.job).await {
            let job = refused.0;
            engine.hands.forgive_word(job.id, job.lease);
            engine.releases.hand_back(&job);
        }
    }
}

/// Asks rows that asked for themselves whether they still do, before our own word may stand on them. A job that was tried before may have
/// left that word there.
async fn ask_needs(engine: &Engine, deps: &Deps, claimed: &mut [Claimed]) {
    let mut asked: Vec<&mut Claimed> =
        claimed.iter_mut().filter(|one| one.job.by_need && one.job.starts == 1).collect();
    if asked.is_empty() {
        return;
    }
    let plan = deps.fit.plan();
    let keys: Vec<SourceKey> = asked.iter().map(|one| one.job.key.clone()).collect();
    let needs = async {
        let mut connection = engine.pool.acquire().await?;
        db::app::reread(&mut connection, &plan, &keys.iter().collect::<Vec<_>>()).await
    };
    match needs.await {
        Ok(needs) => needs.into_iter().for_each(|(nth, _, needs)| asked[nth].job.need_ended = !needs),
        // Then their jobs are worked, and what did not change costs nothing.
        Err(error) => tracing::debug!(error = db::describe(&error), "rows could not be asked for their need"),
    }
}

fn wide(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_shared_out_by_weight_and_leaves_nobody_out() {
        let shares = |most: usize, to_all: bool| {
            let share = |tenant: &str| Share { tenant: tenant.to_owned(), cursor: Cursor::START, most: 0 };
            let mut turn = ["heavy", "one", "other"].map(share);
            share_out(&mut turn, &BTreeMap::from([("heavy".to_owned(), 3), ("absent".to_owned(), 9)]), most, to_all);
            turn.map(|share| share.most)
        };
        assert_eq!(shares(100, true), [60, 20, 20]);
        assert_eq!(shares(100, false), [30, 10, 10]);
        assert_eq!(shares(2, true), [3, 1, 1]);
    }
}
