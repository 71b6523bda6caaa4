//! Floor 5: the engine. Claimer, heartbeat, keeper of connections, acknowledger, rescuer, sweeper, fitter, listener and deliverers
//! are tasks of their own, free of apalis types; `backend` is the thin apalis backend over them. No other module names apalis.

mod acknowledger;
mod asker;
mod attempt;
mod backend;
mod claimer;
mod deliverer;
mod fitter;
mod hands;
mod heartbeat;
mod keeper;
mod listener;
mod outage;
mod remembered;
mod rescuer;
mod ring;
mod sweeper;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::{PgExecutor, PgPool};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch::{Broken, LaneStatus, Vital};
use crate::config;
use crate::db;
use crate::db::KeptPlans;
use crate::db::workers::{PausedLane, SignIn};
use crate::domain::OwnerId;
use crate::jobs::Deps;

pub use deliverer::Deliverer;
pub use hands::Hands;
pub use sweeper::{Progress, Trouble, pass};

/// How long jobs may take to be handed back once the grace is over.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long signing out may take: a worker that is silent is forgotten as well.
const SIGN_OUT: Duration = Duration::from_secs(1);

/// How each lane is, when asked.
pub type Lanes = Box<dyn Fn() -> Vec<LaneStatus> + Send + Sync>;

/// What an engine has to work on and with.
pub struct Parts {
    /// Pools beside the first, where there are connections enough.
    pub kept: Option<KeptPlans>,
    pub pipelines: Vec<Deps>,
    /// Of the pipelines that have a webhook.
    pub deliverers: Vec<Deliverer>,
    pub lanes: Lanes,
}

/// What every task of the engine works with.
pub struct Engine {
    pub pool: PgPool,
    /// For claims; with few connections the same.
    pub claims: PgPool,
    /// All there are.
    pools: Vec<PgPool>,
    pub owner: OwnerId,
    /// Host and process, for people.
    pub name: String,
    pub settings: config::Worker,
    pub pipelines: Vec<Deps>,
    pub deliverers: Vec<Deliverer>,
    pub lanes: Lanes,
    /// The tasks of this engine and of its pipelines.
    pub vital: Vital,
    pub hands: Hands,
    /// Rung when there may be work: an announcement, a promotion, a release.
    pub wake: Notify,
    /// Claim nothing more.
    pub stop: CancellationToken,
    /// Hand back what is in hand.
    pub give_up: CancellationToken,
    pub releases: acknowledger::Releases,
    remembered: remembered::Remembered,
    /// Held while words of jobs in hand are written, or taken back.
    speaking: Mutex<()>,
    pub outage: outage::Outage,
    hearing: keeper::Hearing,
    /// A job that was to be given back has been taken for a dead worker's.
    robbed: AtomicBool,
    /// How the sweeps of every pipeline go.
    pub swept: Progress,
}

impl Engine {
    /// Puts the parts together; [`Engine::run`] starts them.
    pub fn new(
        pool: PgPool,
        owner: OwnerId,
        settings: config::Worker,
        parts: Parts,
        vital: Vital,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let Parts { kept, pipelines, deliverers, lanes } = parts;
        let has_tenants = |deps: &Deps| deps.plan.pipeline.source.tenant.is_some();
        let is_shared = pipelines.len() > 1 || pipelines.iter().any(has_tenants);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Arc::new(Self {
            name: format!("{}:{}", if host.trim().is_empty() { "worker" } else { host.trim() }, std::process::id()),
            hands: Hands::new(settings.slots, is_shared),
            wake: Notify::new(),
            give_up: CancellationToken::new(),
            releases: acknowledger::Releases::new(),
            remembered: remembered::Remembered::default(),
            speaking: Mutex::default(),
            outage: outage::Outage::default(),
            hearing: keeper::Hearing::default(),
            robbed: AtomicBool::default(),
            swept: Progress::default(),
            claims: kept.as_ref().map_or(&pool, |kept| &kept.claims).clone(),
            pools: [pool.clone()]
                .into_iter()
                .chain(kept.into_iter().flat_map(|kept| [kept.keyed, kept.claims]))
                .collect(),
            pool,
            owner,
            settings,
            pipelines,
            deliverers,
            lanes,
            vital,
            stop,
        })
    }

    /// The pipelines that do not fit their tables any more, with why.
    pub fn misfits(&self) -> Vec<(String, String)> {
        let name = |deps: &Deps| deps.plan.pipeline.name.clone();
        self.pipelines.iter().filter_map(|deps| Some((name(deps), deps.fit.misfit()?))).collect()
    }

    /// The pipeline of that name.
    pub fn deps(&self, pipeline: &str) -> Option<&Deps> {
        self.pipelines.iter().find(|deps| deps.plan.pipeline.name == pipeline)
    }

    /// Runs until `stop`, then finishes or hands back what is in hand, within the grace.
    ///
    /// # Errors
    /// apalis gave up, which it does only when its backend does; or one of the parts panicked, or our schema was made anew:
    /// then what is in hand is handed back at once, since an orchestrator starts a whole worker instead.
    pub async fn run(self: &Arc<Self>) -> Result<(), EngineError> {
        db::patiently(|| self.seen(&self.pool)).await?;
        let tasks = TaskTracker::new();
        // These go on while jobs are in hand: leases must be kept and releases written until the last one is out.
        let late = CancellationToken::new();
        let outcome = tokio::select! {
            outcome = self.work(&tasks, &late) => outcome,
            () = self.out_of_time() => {
                tracing::warn!(jobs = self.hands.count(), "ended late; leases of jobs in hand end by themselves");
                late.cancel();
                Ok(())
            }
        };
        self.vital.broken().map_or(outcome, |broken| Err(EngineError::Broken(broken.clone())))
    }

    /// Says that this worker is there, and which of its lanes are paused; for how long it had not.
    async fn seen(&self, db: impl PgExecutor<'_>) -> sqlx::Result<Duration> {
        let paused = |lane: LaneStatus| {
            let (why, seconds) = lane.paused?;
            Some(PausedLane { provider: lane.provider, model: lane.model, tenants: lane.tenants, why, seconds })
        };
        let paused: Vec<PausedLane> = (self.lanes)().into_iter().filter_map(paused).collect();
        let slots = i32::try_from(self.settings.slots).unwrap_or(i32::MAX);
        let plans = self.pipelines.iter().map(|deps| &deps.plan);
        let watches: BTreeMap<_, _> = plans.map(|plan| (plan.pipeline.name.as_str(), plan.watched.as_str())).collect();
        let worker = SignIn { owner: self.owner, name: &self.name, slots, watches: &watches };
        db::workers::seen(db, worker, &paused).await
    }

    /// A part that panicked ends the whole.
    async fn end_when_broken(self: Arc<Self>) {
        tokio::select! {
            () = self.vital.breaks() => {
                self.stop.cancel();
                self.give_up.cancel();
            }
            () = self.stop.cancelled() => {}
        }
    }

    async fn work(self: &Arc<Self>, tasks: &TaskTracker, late: &CancellationToken) -> Result<(), EngineError> {
        let (sender, claimed) = mpsc::channel(self.settings.slots);
        let vital = || self.vital.clone();
        tasks.spawn(vital().watch("heartbeat", heartbeat::run(Arc::clone(self), late.clone())));
        tasks.spawn(vital().watch("keeper", keeper::run(Arc::clone(self), late.clone())));
        tasks.spawn(vital().watch("acknowledger", acknowledger::run(Arc::clone(self), late.clone())));
        tasks.spawn(vital().watch("words", words::run(Arc::clone(self), late.clone())));
        tasks.spawn(vital().watch("claimer", claimer::run(Arc::clone(self), sender)));
        // What these do may end at any statement: others, or the next start, go on with it.
        tasks.spawn(vital().watch("rescuer", until(self.stop.clone(), rescuer::run(Arc::clone(self)))));
        tasks.spawn(vital().watch("asker", until(self.stop.clone(), asker::run(Arc::clone(self)))));
        tasks.spawn(vital().watch("sweeper", until(self.stop.clone(), sweeper::run(Arc::clone(self)))));
        tasks.spawn(vital().watch("fitter", until(self.stop.clone(), fitter::run(Arc::clone(self)))));
        tasks.spawn(vital().watch("listener", until(self.stop.clone(), listener::run(Arc::clone(self)))));
        for nth in 0..self.deliverers.len() {
            tasks.spawn(vital().watch("deliverer", deliverer::run(Arc::clone(self), nth, late.clone())));
        }
        tasks.spawn(Arc::clone(self).end_grace());
        tasks.spawn(Arc::clone(self).end_when_broken());
        let outcome = backend::run_worker(Arc::clone(self), claimed).await;
        self.stop.cancel();
        self.hands.emptied().await;
        self.releases.flushed().await;
        late.cancel();
        tasks.close();
        tasks.wait().await;
        let sign_out = async {
            self.remembered.tell(&self.pool).await?;
            db::workers::stopped(&self.pool, self.owner).await
        };
        match tokio::time::timeout(SIGN_OUT, sign_out).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = db::describe(&error), "the worker could not sign out"),
            Err(_) => tracing::debug!("the worker could not sign out in time"),
        }
        outcome
    }

    /// A database that does not answer must not keep a worker that was told to go.
    async fn out_of_time(&self) {
        self.stop.cancelled().await;
        tokio::select! {
            () = tokio::time::sleep(self.settings.grace) => {}
            () = self.give_up.cancelled() => {}
        }
        tokio::time::sleep(LAST_WORDS).await;
    }

    /// After `stop`, waits for the grace and then asks every attempt to hand its job back.
    async fn end_grace(self: Arc<Self>) {
        self.stop.cancelled().await;
        tokio::select! {
            () = tokio::time::sleep(self.settings.grace) => {
                tracing::info!(jobs = self.hands.count(), "the grace is over: handing back");
                self.give_up.cancel();
            }
            () = self.give_up.cancelled() => {}
            () = self.hands.emptied() => {}
        }
    }
}

/// Why the engine ended on its own.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the database is away")]
    Database(#[from] sqlx::Error),
    #[error("the job runner stopped: {0}")]
    Runner(String),
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Waits, or until the token is cancelled; says whether it was.
pub(crate) async fn pause(length: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(length) => false,
        () = stop.cancelled() => true,
    }
}

/// A task that ends at once when the token is cancelled.
async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    stop.run_until_cancelled_owned(task).await;
}
