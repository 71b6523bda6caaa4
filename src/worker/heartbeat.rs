//! Renews the leases of what is in hand, whatever handlers do, over a connection that nobody else waits for. It is also the first to know
//! when connections went dead without a word, and ends them for everybody; and when our schema was made anew, which ends the worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::batch::Broken;
use crate::db;
use crate::db::server::{self, Backend};

use super::{Engine, pause};

/// How soon after a failure it tries again.
const AGAIN: Duration = Duration::from_millis(500);
/// The longest silence.
const SILENCE: Duration = Duration::from_secs(5);
const DEAD: &str =
    "connections to the database went dead without a word: they are ended, and what was under way is done again";
/// Silence is counted in so many steps: time in which this process was stopped is one of them.
const STEPS: u32 = 10;

/// Renews every third of a lease until `stop`. A connection that breaks or falls silent is replaced at once.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let every = engine.settings.lease / 3;
    let mut line = Line::default();
    let mut is_away = false;
    let mut renewed = Instant::now();
    // At once: a line as old as the other connections fares as they do.
    let mut wait = Duration::ZERO;
    while !due(wait, &engine, &stop).await {
        let patience = if line.slow { every } else { SILENCE.min(every) };
        let error = tokio::select! {
            biased;
            beaten = line.beat(&engine) => match beaten {
                Ok(()) => {
                    line.slow = false;
                    wait = every;
                    engine.outage.found(false);
                    if std::mem::take(&mut is_away) {
                        // The database may have been there for a part of it, or all the while, and our tables not.
                        let since = renewed.elapsed().as_secs();
                        tracing::info!("leases are renewed again, after {since} s without");
                    }
                    renewed = Instant::now();
                    continue;
                }
                Err(error) => {
                    line.connection = None;
                    db::describe(&error)
                }
            },
            () = silence(patience) => {
                line.fell_silent();
                "the database does not answer".to_owned()
            }
        };
        wait = AGAIN.min(every);
        // Once: until it is back there is nothing new to say.
        if !is_away {
            tracing::warn!(jobs = engine.hands.count(), error, "leases could not be renewed; trying until they are");
        }
        is_away = true;
        engine.outage.found(true);
    }
}

/// Waits for the next beat, or until somebody has to know whether the database is away; says whether it is to stop.
async fn due(wait: Duration, engine: &Engine, stop: &CancellationToken) -> bool {
    tokio::select! {
        stopped = pause(wait, stop) => stopped,
        () = engine.outage.asked() => stop.is_cancelled(),
    }
}

async fn silence(length: Duration) {
    for _ in 0..STEPS {
        tokio::time::sleep(length / STEPS).await;
    }
}

/// The connection that leases are renewed over.
#[derive(Default)]
struct Line {
    connection: Option<(PgConnection, Backend)>,
    /// Who was last at the other end of one.
    latest: Option<Backend>,
    /// Who was at the other end of one that said nothing.
    silent: Option<Backend>,
    /// That one was at work.
    slow: bool,
    /// Leases were lost, perhaps as those of a dead worker, in a silence of so long.
    was_away: Option<Duration>,
}

impl Line {
    /// One that said nothing while it was made tells nothing of those that are there.
    fn fell_silent(&mut self) {
        if let Some((_, backend)) = self.connection.take() {
            self.silent = Some(backend);
        }
    }

    async fn beat(&mut self, engine: &Engine) -> sqlx::Result<()> {
        if self.connection.is_none() {
            let mut fresh = db::connect_beside(&engine.pool).await?;
            if let Some(silent) = self.silent {
                self.slow = server::is_at_work(&mut fresh, silent).await?;
                self.silent = None;
                if !self.slow {
                    fresh = end_dead(engine, fresh).await?;
                }
            }
            let backend = server::backend(&mut fresh).await?;
            // A server that was started anew says nothing over connections that something on the way still holds: they are older.
            let replaced = self.latest.replace(backend).and_then(|earlier| backend.replaced(earlier));
            tell_dead(replaced.map_or(0, |since| db::cut_silent(&engine.pool, since)));
            self.connection = Some((fresh, backend));
        }
        let Some((connection, _)) = &mut self.connection else { return Ok(()) };
        tell_dead(db::keep_alive(&engine.pool));
        let held = engine.hands.leases();
        if !held.is_empty() {
            let lost = db::jobs::heartbeat(&mut *connection, &held, engine.settings.lease).await?;
            let lost: Vec<_> = held.into_iter().filter(|(job, _)| lost.contains(job)).collect();
            if !lost.is_empty() {
                self.was_away.get_or_insert_default();
            }
            engine.hands.tell_lost(&lost);
        }
        let names: Vec<String> = engine.pipelines.iter().map(|deps| deps.plan.pipeline.name.clone()).collect();
        if let Some(name) = db::pipelines::unregistered(&mut *connection, &names).await? {
            // Nothing would ever be claimed for it, and nobody would know why.
            engine.vital.end(Broken::Unregistered(name));
        }
        if engine.robbed.swap(false, Ordering::AcqRel) {
            self.was_away.get_or_insert_default();
        }
        let silent = engine.seen(&mut *connection).await?;
        if silent > engine.settings.lease || self.was_away.is_some() {
            // Until nobody writes any of them, the silence to look back on is the longest.
            let silent = silent.max(self.was_away.unwrap_or_default());
            self.was_away = Some(silent);
            self.was_away = acquit(engine, &mut *connection, silent).await?.then_some(silent);
        }
        Ok(())
    }
}

/// Whoever took our jobs for lost counted each as a crash, and we live. Whether some are left that somebody is writing just now.
async fn acquit(engine: &Engine, connection: &mut PgConnection, silent: Duration) -> sqlx::Result<bool> {
    let acquitted = db::attempts::acquit(connection, engine.owner, silent + engine.settings.lease).await?;
    if acquitted.jobs > 0 {
        tracing::info!(
            jobs = acquitted.jobs,
            "this worker was away for longer than its leases: others have its jobs, and it counts as no crash of theirs"
        );
    }
    Ok(acquitted.is_some_left)
}

/// The server has answered, or never heard the question, and we hear nothing: something on the way has forgotten this connection, and the
/// others with it. A statement under way over one of them would wait for ever, and its job with it, since its lease is renewed.
async fn end_dead(engine: &Engine, fresh: PgConnection) -> sqlx::Result<PgConnection> {
    drop(fresh);
    let connections = db::cut(&engine.pool);
    tracing::warn!(connections, "{DEAD}");
    db::connect_beside(&engine.pool).await
}

pub(super) fn tell_dead(connections: usize) {
    if connections > 0 {
        tracing::warn!(connections, "{DEAD}");
    }
}
