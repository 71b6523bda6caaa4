//! The faults. Each injects and says when it is over; what must hold afterwards is `invariants`.

mod application;
mod data;
mod database;
mod files;
mod mixed;
mod operators;
mod pooler;
mod provider;
mod schema;
mod storage;
mod worker;

use std::pin::Pin;

use crate::arena::Arena;
use crate::storehouse::Trouble;

/// Why there is nothing to look at.
pub enum Injected {
    /// This machine lacks what the fault needs.
    Skipped(String),
    Failed(String),
}

impl From<String> for Injected {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl From<sqlx::Error> for Injected {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(format!("the fault could not be injected: {error}"))
    }
}

type Outcome = Result<(), Injected>;
type Injecting<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

pub struct Fault {
    pub name: &'static str,
    /// Short enough for every run of the tests.
    pub quick: bool,
    pub inject: for<'a> fn(&'a mut Arena) -> Injecting<'a>,
}

macro_rules! faults {
    ($($name:literal $quick:literal $path:path $(, $argument:expr)*;)*) => {
        &[$(Fault { name: $name, quick: $quick, inject: |arena| Box::pin($path(arena $(, $argument)*)) }),*]
    };
}

pub const FAULTS: &[Fault] = faults! {
    "nothing" true worker::nothing;
    "worker: dies, claimed" false worker::dies_at, "claimed";
    "worker: dies, file fetched" false worker::dies_at, "fetched";
    "worker: dies, text extracted" false worker::dies_at, "extracted";
    "worker: dies, provider answered" false worker::dies_at, "answered";
    "worker: dies before commit" true worker::dies_at, "before_commit";
    "worker: dies after commit" false worker::dies_at, "after_commit";
    "worker: panics, claimed" false worker::panics_at, "claimed";
    "worker: panics, row loaded" false worker::panics_at, "loaded";
    "worker: panics, file fetched" false worker::panics_at, "fetched";
    "worker: panics, text extracted" false worker::panics_at, "extracted";
    "worker: panics, provider answered" false worker::panics_at, "answered";
    "worker: panics in the commit" false worker::panics_at, "writing";
    "worker: panics before commit" false worker::panics_at, "before_commit";
    "worker: panics after commit" false worker::panics_at, "after_commit";
    "worker: kill -9 at random" true worker::killed;
    "worker: kill -9 at random, 170 times a run" false worker::killed_often, 170;
    "worker: killed, next of the same name" false worker::same_name;
    "worker: out of memory" false worker::out_of_memory;
    "worker: SIGSTOP beyond the lease, CONT" false worker::stopped;
    "worker: SIGSTOP at the commit, CONT" true worker::stopped_at_commit;
    "worker: SIGSTOP, CONT, six times on the same job" false worker::stopped_often;
    "worker: SIGTERM under load" false worker::terminated, 1;
    "worker: SIGTERM twice under load" false worker::terminated, 2;
    "everything at once, 100 steps" false mixed::everything, 100;
    "database: pg_terminate_backend storm" true database::terminated;
    "database: immediate stop and start" true database::crashed;
    "database: connections in use forgotten on the way" false database::forgotten;
    "database: COMMITs frozen on the way, then immediate stop and start" false database::frozen_and_crashed;
    "database: acknowledgement of COMMIT lost" true database::unacknowledged;
    "database: 40 ms each way" false database::slow;
    "database: connections half open" false database::half_open;
    "database: connections half open, worker restarted" false database::half_open_restarted;
    "database: old transaction pins vacuum" false database::pinned;
    "database: disk full" false database::full;
    "pooler: PgBouncer in session mode, storm" false pooler::session;
    "pooler: PgBouncer in transaction mode, refused" false pooler::transaction;
    "pooler: PgBouncer killed and started" false pooler::killed;
    "schema: migrate again, tables altered at work" true schema::altered;
    "schema: newer than the binary" false schema::newer;
    "schema: older than the binary" false schema::older;
    "schema: content, status and key change type" false schema::types;
    "schema: vectors of another dimension, and back" false schema::dimensions;
    "schema: target dropped and made again" false schema::target;
    "schema: database reset, live worker" false schema::reset;
    "schema: a copy beside the original" false schema::copied;
    "provider: 429 with Retry-After" false provider::scripted, provider::hurried, 8;
    "provider: 429 without Retry-After" false provider::scripted, provider::limited, 8;
    "provider: burst of 500" false provider::scripted, provider::broken, 8;
    "provider: truncated JSON" false provider::scripted, provider::truncated, 5;
    "provider: HTML with status 200" false provider::scripted, provider::page, 5;
    "provider: empty body" false provider::scripted, provider::empty, 5;
    "provider: one vector too few" false provider::scripted, provider::short, 5;
    "provider: vectors with NaN" true provider::scripted, provider::not_finite, 5;
    "provider: vectors of zeros" false provider::scripted, provider::zeros, 5;
    "provider: one vector too short" false provider::scripted, provider::uneven, 5;
    "provider: one index twice" false provider::scripted, provider::twice, 5;
    "provider: indexes shuffled" true provider::scripted, provider::shuffled, 8;
    "provider: 401, then mended" false provider::unauthorized, provider::refused;
    "provider: quota exhausted, then paid" false provider::unauthorized, provider::unpaid;
    "provider: no connection" false provider::unreachable;
    "provider: no answer, then a byte a second" false provider::too_slow, 4;
    "provider: first byte after two leases" false provider::silent;
    "storage: 404, uploaded later" false storage::missing;
    "storage: content changes between attempts" true storage::changed;
    "storage: body cut short" false storage::passing, Trouble::Short;
    "storage: burst of 503" false storage::passing, Trouble::Busy;
    "storage: permission denied, then given" false storage::denied, Trouble::Denied;
    "storage: enormous files" false storage::enormous;
    "storage: redirect into this machine" false storage::redirected;
    "data: PDFs that crash, loop, allocate" false data::poison, data::pdfs;
    "data: zip and entity bombs" false data::poison, data::bombs;
    "data: 100,000 pages" false data::poison, data::pages;
    "data: NOTIFY lost and doubled" true data::announced;
    "application: changes and deletes in every stage" true application::restless;
    "application: bulk load past triggers" true application::bulk;
    "application: drop schema gristmill, live worker" true application::dropped;
    "data: flood of NOTIFY" false application::flooded;
    "operators: two retry the same job" true operators::two_retry;
    "operators: new configuration, old worker runs on" true operators::rolled;
    "operators: pause during work, resume" true operators::paused;
    "operators: other settings, workers replaced one by one" false operators::replaced;
    "clock: worker 90 minutes fast" false operators::clock, "+90m";
    "clock: worker 90 minutes slow" false operators::clock, "-90m";
};
