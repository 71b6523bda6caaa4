//! Finds what triggers missed, in bounded slices, and gives the rows that were there before us their jobs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::types::time::OffsetDateTime;

use crate::config;
use crate::db;
use crate::db::app::{self, Plan};
use crate::domain::SourceKey;
use crate::jobs::Deps;

use super::acknowledger::{Mirrored, mirror};
use super::{Engine, asker, pause};

/// The breath between two slices: a sweep must not crowd out work.
const BREATH: Duration = Duration::from_millis(20);
/// A transaction of the application that set `changed_at` may commit this much later.
const LATE: time::Duration = time::Duration::HOUR;

/// Cancelled jobs of one look.
const CANCELLED: i64 = 500;
/// A failed pass is tried again after this; the pause doubles up to the usual one.
const AGAIN: Duration = Duration::from_millis(200);

/// How the sweeps go, pipeline by pipeline.
#[derive(Debug, Default)]
pub struct Progress(Mutex<BTreeMap<String, Swept>>);

#[derive(Debug, Default)]
struct Swept {
    once: bool,
    failures: u32,
    error: String,
}

/// A pipeline whose sweep fails, again and again.
#[derive(Debug)]
pub struct Trouble {
    pub pipeline: String,
    pub failures: u32,
    pub error: String,
}

impl Progress {
    /// How many pipelines have had a whole sweep.
    pub fn passes(&self) -> usize {
        self.lock().values().filter(|swept| swept.once).count()
    }

    /// The pipeline whose sweep has failed most often in a row.
    pub fn trouble(&self) -> Option<Trouble> {
        let all = self.lock();
        let (pipeline, worst) = all.iter().max_by_key(|(_, swept)| swept.failures)?;
        (worst.failures > 0).then(|| Trouble {
            pipeline: pipeline.clone(),
            failures: worst.failures,
            error: worst.error.clone(),
        })
    }

    fn note(&self, pipeline: &str, outcome: Result<(), String>) {
        let mut all = self.lock();
        let swept = all.entry(pipeline.to_owned()).or_default();
        match outcome {
            Ok(()) => *swept = Swept { once: true, ..Swept::default() },
            Err(error) => *swept = Swept { once: swept.once, failures: swept.failures.saturating_add(1), error },
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Swept>> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

/// Sweeps every pipeline, pass after pass, until `stop`; after a failure sooner than usual.
pub(super) async fn run(engine: Arc<Engine>) {
    let mut since: Vec<Option<OffsetDateTime>> = vec![None; engine.pipelines.len()];
    loop {
        for (deps, since) in engine.pipelines.iter().zip(&mut since) {
            if deps.fit.misfit().is_none() {
                sweep(&engine, deps, since).await;
            }
        }
        let usual = engine.settings.sweep;
        let wait = match engine.swept.trouble() {
            None => usual,
            Some(trouble) => AGAIN.saturating_mul(1 << trouble.failures.min(20)).min(usual),
        };
        if pause(wait, &engine.stop).await {
            return;
        }
    }
}

async fn sweep(engine: &Engine, deps: &Deps, since: &mut Option<OffsetDateTime>) {
    let name = &deps.plan.pipeline.name;
    let swept = async {
        // Rows are dated by the database's clock; ours may be hours off.
        let began = db::server::now(&engine.pool).await?;
        let stopped = || engine.stop.is_cancelled();
        if db::workers::is_superseded(&engine.pool, engine.owner, name).await? {
            return Ok(None);
        }
        let opened = pass(&engine.pool, &deps.fit.plan(), &engine.settings, *since, &stopped).await?;
        Ok(Some((began, opened)))
    };
    match swept.await {
        Ok(None) => {
            tracing::debug!(
                job.pipeline = name,
                "a worker that started later looks at other columns: the sweep is its"
            );
            engine.swept.note(name, Ok(()));
        }
        Ok(Some((began, opened))) => {
            *since = Some(began - LATE);
            mirror_cancelled(engine, deps).await;
            engine.swept.note(name, Ok(()));
            if opened > 0 {
                tracing::info!(job.pipeline = name, opened, "the sweep opened jobs");
                engine.wake.notify_waiters();
            }
        }
        Err(error) => {
            if db::may_be_migrated(&error)
                && let Err(error) = deps.fit.look().await
            {
                tracing::debug!(error = db::describe(&error), "the catalogue could not be asked");
            }
            let said = db::describe(&error);
            if engine.outage.is_on().await {
                tracing::debug!(job.pipeline = name, error = said, "the sweep failed");
            } else {
                tracing::warn!(job.pipeline = name, error = said, "the sweep failed");
            }
            engine.swept.note(name, Err(said));
        }
    }
}

/// Jobs that a person cancelled while nobody had them in hand: their rows say so as well, where the application has a word for it; where
/// it has none, they no longer say what a worker wrote there that has died since.
async fn mirror_cancelled(engine: &Engine, deps: &Deps) {
    let status = deps.plan.pipeline.status.as_ref();
    let is_mirrored = status.is_some() || deps.plan.queue.is_some();
    let word = status.and_then(|status| status.words.cancelled.as_ref());
    let what = if word.is_some() { Mirrored::Cancelled } else { Mirrored::Released };
    let mut after = 0;
    while is_mirrored && !engine.stop.is_cancelled() {
        let slice = db::operate::cancelled_by_a_person(&engine.pool, &deps.plan.pipeline.name, after, CANCELLED).await;
        let Ok(slice) = slice else { return };
        let Some((last, _)) = slice.last() else { return };
        after = *last;
        let keys: Vec<&SourceKey> = slice.iter().map(|(_, key)| key).collect();
        mirror(engine, deps, &keys, what).await;
    }
}

/// One pass over a pipeline: the rows of its set, then the jobs whose rows left. Returns how many jobs it opened.
///
/// # Errors
/// The database is away or refuses.
pub async fn pass(
    pool: &PgPool,
    plan: &Plan,
    settings: &config::Worker,
    since: Option<OffsetDateTime>,
    stopped: &(dyn Fn() -> bool + Sync),
) -> sqlx::Result<i64> {
    let registered = db::pipelines::find(pool, &plan.pipeline.name).await?;
    let ours = registered.is_some_and(|registered| registered.generation == plan.generation && registered.census_done);
    if !ours {
        return Ok(0);
    }
    let mut opened = asker::look(pool, plan).await?;
    let mut after = None;
    let mut slices = app::ClosingIn::new(settings.sweep_rows);
    while !stopped() {
        let mut connection = pool.acquire().await?;
        match app::sweep_set(&mut connection, plan, after.as_ref(), since, slices.rows()).await {
            Ok(slice) => {
                opened += slice.opened;
                after = slice.after;
            }
            Err(error) => {
                if !slices.on(error)? {
                    continue;
                }
                after = app::next_key(&mut connection, plan, after.as_ref()).await?;
                if let Some(bad) = &after {
                    opened += app::open_unreadable(&mut connection, plan, bad).await?;
                }
            }
        }
        drop(connection);
        if after.is_none() {
            break;
        }
        tokio::time::sleep(BREATH).await;
    }
    Ok(opened + leavers(pool, plan, settings, stopped).await?)
}

/// The jobs whose rows left.
async fn leavers(
    pool: &PgPool,
    plan: &Plan,
    settings: &config::Worker,
    stopped: &(dyn Fn() -> bool + Sync),
) -> sqlx::Result<i64> {
    let mut opened = 0;
    let mut after = 0;
    let mut slices = app::ClosingIn::new(settings.sweep_rows);
    while !stopped() {
        let mut connection = pool.acquire().await?;
        let next = match app::sweep_leavers(&mut connection, plan, after, slices.rows()).await {
            Ok((more, next)) => {
                opened += more;
                next
            }
            Err(error) => {
                if !slices.on(error)? {
                    continue;
                }
                // Whether a row that cannot be read is in the set, nobody knows: it stays as it is.
                app::next_leaver(&mut connection, plan, after).await?
            }
        };
        drop(connection);
        let Some(next) = next else { break };
        after = next;
        tokio::time::sleep(BREATH).await;
    }
    Ok(opened)
}
