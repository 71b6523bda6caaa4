//! Floor 6: the only place that wires things together, and the order of shutdown.

mod bill;
mod keyless;
mod lanes;
mod late;
mod models;
mod prices;
mod question;
mod rivals;

use std::sync::Arc;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::batch::{Batcher, CeilingOf, Committer, FairSlots, Fit, LaneStatus, Loader, Memory, SpeechLane, Vital};
use crate::config::{Config, Existing};
use crate::console::Watched;
use crate::db;
use crate::db::app::{Misfit, Plan, Purpose};
use crate::db::migrate::{self, Set};
use crate::db::pipelines::Registration;
use crate::domain::{OwnerId, SourceKey};
use crate::embedded::{self, Artifact};
use crate::extract::Extractor;
use crate::files::{Files, FilesError};
use crate::jobs::Deps;
use crate::net;
use crate::telemetry::Metrics;
use crate::worker::{Deliverer, Engine, Parts};

pub use bill::{Estimate, estimate, estimate_of, thinned};
pub use keyless::keyless_rows;
use lanes::Lanes;
pub use late::late_words;
pub use models::{Asked, ask, check_folder};
pub use prices::{KnownPrices, UnitPrice};
pub use question::{Question, means};

/// Why nothing can start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Connect(#[from] db::ConnectError),
    #[error("the database is away or refuses: {}", db::describe(.0))]
    Database(#[from] sqlx::Error),
    #[error("schema gristmill is not there")]
    NotMigrated,
    #[error("schema gristmill is at version {found}, this binary needs {wanted}")]
    OldSchema { found: i64, wanted: i64 },
    #[error("schema gristmill is at version {found}, newer than this binary's {wanted}")]
    NewSchema { found: i64, wanted: i64 },
    #[error("this database is a copy of the one gristmill was set up in")]
    Copied,
    #[error("no pipeline fits this database:\n{0}")]
    NothingFits(String),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Net(#[from] net::NetError),
    #[error("{0}")]
    Parser(String),
    #[error("model {model} cannot be loaded: {reason}")]
    Model { model: String, reason: String },
}

impl StartError {
    /// What a person does about it, where that does not depend on what else it says.
    pub fn way_out(&self) -> Option<&'static str> {
        match self {
            Self::NotMigrated | Self::OldSchema { .. } => Some("run `gristmill migrate`"),
            Self::NewSchema { .. } => Some("update the binary"),
            Self::Copied => Some("if it is meant to run here, say `gristmill accept --database`"),
            Self::Connect(_)
            | Self::Database(_)
            | Self::NothingFits(_)
            | Self::Files(_)
            | Self::Net(_)
            | Self::Parser(_)
            | Self::Model { .. } => None,
        }
    }

    /// Whether the same start may go well in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect(db::ConnectError::Away(error)) | Self::Database(error) => db::may_start_soon(error),
            Self::Connect(db::ConnectError::Address | db::ConnectError::TransactionPooling)
            | Self::NotMigrated
            | Self::OldSchema { .. }
            | Self::NewSchema { .. }
            | Self::Copied
            | Self::NothingFits(_)
            | Self::Files(_)
            | Self::Net(_)
            | Self::Parser(_)
            | Self::Model { .. } => false,
        }
    }
}

/// The configuration held against the database.
#[derive(Debug)]
pub struct Resolved {
    /// Pipelines that fit, in the configuration's order.
    pub plans: Vec<Arc<Plan>>,
    pub warnings: Vec<Misfit>,
    /// Pipelines that do not, with why; optional ones are left out quietly.
    pub refused: Vec<(String, Vec<Misfit>)>,
    pub left_out: Vec<(String, Vec<Misfit>)>,
}

/// Connects, and asks that the schema is the one this binary knows.
///
/// # Errors
/// See [`StartError`].
pub async fn connect(config: &Config) -> Result<PgPool, StartError> {
    let pool = db::connect(&config.database).await?;
    check_schema(&pool).await?;
    Ok(pool)
}

/// Whether the schema is there and of this binary's version.
///
/// # Errors
/// See [`StartError`].
pub async fn check_schema(pool: &PgPool) -> Result<(), StartError> {
    let wanted = Set::Ours.newest();
    match migrate::applied(pool, Set::Ours).await? {
        None => Err(StartError::NotMigrated),
        Some(found) if found < wanted => Err(StartError::OldSchema { found, wanted }),
        Some(found) if found > wanted => Err(StartError::NewSchema { found, wanted }),
        Some(_) => Ok(()),
    }
}

/// Resolves every pipeline against the catalogue.
///
/// # Errors
/// The database is away.
pub async fn resolve(pool: &PgPool, config: &Config) -> sqlx::Result<Resolved> {
    resolve_for(pool, config, Purpose::Work).await
}

/// [`resolve`] for a purpose.
///
/// # Errors
/// The database is away.
pub async fn resolve_for(pool: &PgPool, config: &Config, purpose: Purpose) -> sqlx::Result<Resolved> {
    let mut connection = pool.acquire().await?;
    let mut resolved = Resolved { plans: Vec::new(), warnings: Vec::new(), refused: Vec::new(), left_out: Vec::new() };
    for pipeline in &config.pipelines {
        match db::app::resolve(&mut connection, config, pipeline, purpose).await? {
            Ok((plan, warnings)) => {
                let triggers = db::app::installed(&mut connection, &plan).await?;
                // With all three triggers in place, changes are seen.
                let seen = triggers.len() == 3;
                resolved.warnings.extend(
                    warnings.into_iter().filter(|warning| !(seen && warning.message.contains("triggers install"))),
                );
                resolved.plans.push(Arc::new(plan));
            }
            Err(mut misfits) => {
                // Nobody knows yet whether these are true.
                misfits.retain(|misfit| !misfit.warning);
                let unfit = if pipeline.optional { &mut resolved.left_out } else { &mut resolved.refused };
                unfit.push((pipeline.name.clone(), misfits));
            }
        }
    }
    resolved.warnings.extend(rivals::rivals(&resolved.plans));
    Ok(resolved)
}

/// Makes the target that a pipeline lacks, where it is ours to make, as a worker does when it starts.
///
/// # Errors
/// The database is away, or this role may not.
pub async fn make_target(pool: &PgPool, plan: Arc<Plan>) -> sqlx::Result<Arc<Plan>> {
    let Some(creation) = &plan.create else { return Ok(plan) };
    db::app::create(&mut *pool.acquire().await?, &plan.pipeline, creation).await?;
    let mut made = Plan::clone(&plan);
    made.create = None;
    Ok(Arc::new(made))
}

/// How a pipeline stands before its first claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Rows were there before, and the configuration does not say what becomes of them.
    SayExisting,
    /// Vectors of another generation wait for `accept`.
    NewGeneration {
        rows: i64,
    },
}

/// Registers a pipeline, gives the rows that were there before their jobs, and says whether work may begin. `stopped` ends a long
/// census between two slices.
///
/// # Errors
/// The database is away or refuses.
pub async fn register(
    pool: &PgPool,
    plan: &Plan,
    slice: i64,
    stopped: &(dyn Fn() -> bool + Sync),
) -> sqlx::Result<Readiness> {
    if readiness(pool, plan).await? == Readiness::SayExisting {
        return Ok(Readiness::SayExisting);
    }
    let pipeline = &plan.pipeline;
    let source_table = pipeline.source.table.to_string();
    let registration = Registration {
        name: &pipeline.name,
        generation: &plan.generation,
        source_table: &source_table,
        max_attempts: pipeline.max_attempts,
        grace: pipeline.source.grace,
        notify: pipeline.notify,
        existing: pipeline.existing.map(word),
        channel: pipeline.signal.notify.as_deref(),
        webhook: pipeline.signal.webhook.is_some(),
        ceiling: pipeline.ceiling.is_some(),
    };
    db::pipelines::register(pool, registration).await?;
    let Some(registered) = db::pipelines::find(pool, &pipeline.name).await? else { return Ok(Readiness::SayExisting) };
    if registered.generation != plan.generation {
        if let Some(rows) = new_generation(pool, plan).await? {
            return Ok(Readiness::NewGeneration { rows });
        }
        // Nothing was embedded yet: there is nothing to ask a person about.
        db::pipelines::accept_generation(pool, &pipeline.name, &plan.generation).await?;
    }
    match pipeline.existing {
        Some(existing) if !registered.census_done => {
            take_census(pool, plan, existing, registered.census_after.map(|key| key.0), slice, stopped).await?;
        }
        // Nothing was said because no row was there: whatever came since is new.
        None if !registered.census_done => db::pipelines::census(pool, &pipeline.name, None, true).await?,
        Some(_) | None => {}
    }
    Ok(Readiness::Ready)
}

/// What [`register`] would come to, with nothing written.
///
/// # Errors
/// The database is away or refuses.
pub async fn readiness(pool: &PgPool, plan: &Plan) -> sqlx::Result<Readiness> {
    let known = db::pipelines::find(pool, &plan.pipeline.name).await?;
    if known.is_none() && plan.pipeline.existing.is_none() && has_rows(pool, plan).await? {
        return Ok(Readiness::SayExisting);
    }
    let new = new_generation(pool, plan).await?;
    Ok(new.map_or(Readiness::Ready, |rows| Readiness::NewGeneration { rows }))
}

/// How many rows have vectors, where the pipeline is registered with another generation.
///
/// # Errors
/// The database is away.
pub async fn new_generation(pool: &PgPool, plan: &Plan) -> sqlx::Result<Option<i64>> {
    let registered = db::pipelines::find(pool, &plan.pipeline.name).await?;
    if registered.is_none_or(|registered| registered.generation == plan.generation) {
        return Ok(None);
    }
    // Whatever state its job is in: a row that was opened again after an `accept` must not let the old generation back in.
    let rows = db::pipelines::embedded(pool, &plan.pipeline.name).await?;
    Ok(Some(rows).filter(|rows| *rows > 0))
}

async fn take_census(
    pool: &PgPool,
    plan: &Plan,
    existing: Existing,
    mut after: Option<SourceKey>,
    slice: i64,
    stopped: &(dyn Fn() -> bool + Sync),
) -> sqlx::Result<()> {
    let mut slices = db::app::ClosingIn::new(slice);
    loop {
        let mut connection = pool.acquire().await?;
        after = match db::app::census(&mut connection, plan, existing, after.as_ref(), slices.rows()).await {
            Ok(census) => census.slice.after,
            Err(error) => {
                if !slices.on(error)? {
                    continue;
                }
                // The sweep opens it, and its attempt says what is wrong with it.
                db::app::next_key(&mut connection, plan, after.as_ref()).await?
            }
        };
        db::pipelines::census(&mut *connection, &plan.pipeline.name, after.as_ref(), after.is_none()).await?;
        if after.is_none() || stopped() {
            return Ok(());
        }
    }
}

fn word(existing: Existing) -> &'static str {
    match existing {
        Existing::Adopt => "adopt",
        Existing::Backfill => "backfill",
        Existing::Ignore => "ignore",
    }
}

/// Whether any row is in the pipeline's set.
///
/// # Errors
/// The database is away or refuses.
pub async fn has_rows(pool: &PgPool, plan: &Plan) -> sqlx::Result<bool> {
    let mut connection = pool.acquire().await?;
    db::app::has_rows(&mut connection, plan).await
}

/// Everything a running worker consists of.
pub struct Running {
    pub engine: Arc<Engine>,
    pub lanes: Vec<Batcher>,
    /// The lanes of models that transcribe.
    pub speech: Vec<SpeechLane>,
    /// The connections of statements over keys; with few connections these are all there are.
    pub keyed: PgPool,
    pub refused: Vec<(String, String)>,
}

impl Running {
    /// How each lane is.
    pub fn lane_status(&self) -> Vec<LaneStatus> {
        (self.engine.lanes)()
    }

    /// What the console shows of it.
    pub fn watched(&self, metrics: Metrics) -> Watched {
        let [watched, lanes, away, engine] = std::array::from_fn(|_| Arc::clone(&self.engine));
        let plans = self.engine.pipelines.iter().map(|deps| &deps.plan);
        Watched {
            pool: self.engine.pool.clone(),
            metrics,
            refused: self.refused.clone(),
            misfits: Box::new(move || watched.misfits()),
            pipelines: plans.map(|plan| (plan.pipeline.name.clone(), plan.generation.clone())).collect(),
            webhooks: self.engine.deliverers.iter().map(|one| one.pipeline().to_owned()).collect(),
            lanes: Box::new(move || (lanes.lanes)()),
            stopping: self.engine.stop.clone(),
            is_away: Box::new(move || {
                let engine = Arc::clone(&away);
                Box::pin(async move { engine.outage.is_on().await })
            }),
            hands: Box::new(move || (engine.hands.count(), engine.settings.slots)),
        }
    }
}

fn status(lanes: &[Batcher], speech: &[SpeechLane]) -> Vec<LaneStatus> {
    lanes.iter().flat_map(Batcher::status).chain(speech.iter().flat_map(SpeechLane::status)).collect()
}

/// Checks, registers and wires everything up to an engine that is ready to run.
///
/// # Errors
/// See [`StartError`].
pub async fn start(config: &Config, pool: &PgPool, stop: CancellationToken) -> Result<Running, StartError> {
    start_with(config, pool, stop, Extractor::new(parser_settings(config))).await
}

/// [`start`] with an extractor of the caller's: in a program that is no `gristmill`, parser children are another program.
///
/// # Errors
/// See [`StartError`].
pub async fn start_with(
    config: &Config,
    pool: &PgPool,
    stop: CancellationToken,
    extractor: Extractor,
) -> Result<Running, StartError> {
    if !db::pipelines::is_at_home(pool).await? {
        return Err(StartError::Copied);
    }
    Extractor::check(&config.parser).map_err(StartError::Parser)?;
    let resolved = resolve(pool, config).await?;
    let late = late_words(pool, &resolved.plans).await?;
    let keyless = keyless_rows(pool, &resolved.plans).await?;
    for warning in resolved.warnings.iter().chain(&late).chain(&keyless) {
        tracing::warn!("{warning}");
    }
    let mut refused: Vec<(String, String)> =
        resolved.refused.iter().map(|(name, misfits)| (name.clone(), lines(misfits))).collect();
    for (name, misfits) in &resolved.left_out {
        tracing::info!(job.pipeline = name, "left out, since it is optional and does not fit: {}", lines(misfits));
    }
    let mut plans = Vec::new();
    for plan in resolved.plans {
        if plan.create.is_some() {
            tracing::info!(job.pipeline = plan.pipeline.name, "making its target");
        }
        let plan = make_target(pool, plan).await?;
        match register(pool, &plan, config.worker.sweep_rows, &|| stop.is_cancelled()).await? {
            Readiness::Ready => plans.push(plan),
            other => refused.push((plan.pipeline.name.clone(), say(&plan.pipeline.name, &other))),
        }
    }
    for (name, why) in &refused {
        tracing::error!(job.pipeline = name, "this pipeline does not run: {why}");
    }
    if plans.is_empty() {
        let why: Vec<String> = refused.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        return Err(StartError::NothingFits(why.join("\n")));
    }
    wire(config, pool, plans, refused, extractor, stop).await
}

/// What a person has to say before a pipeline runs.
pub fn say(pipeline: &str, readiness: &Readiness) -> String {
    match readiness {
        Readiness::Ready => "ready".to_owned(),
        Readiness::SayExisting => format!(
            "rows were there before it: say `existing = \"adopt\"`, \"backfill\" or \"ignore\" under [pipelines.{pipeline}]"
        ),
        Readiness::NewGeneration { rows } => format!(
            "its model, chunking or templates changed; {rows} rows would be embedded again: see and allow it with `gristmill accept {pipeline}`"
        ),
    }
}

fn lines(misfits: &[Misfit]) -> String {
    misfits.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

async fn wire(
    config: &Config,
    pool: &PgPool,
    plans: Vec<Arc<Plan>>,
    refused: Vec<(String, String)>,
    extractor: Extractor,
    stop: CancellationToken,
) -> Result<Running, StartError> {
    let owner = OwnerId::fresh();
    let files = Arc::new(Files::open(&config.stores)?);
    let memory = Memory::new(config.worker.memory);
    let slots = |at_once: usize| FairSlots::new(u64::try_from(at_once).unwrap_or(u64::MAX));
    let parsers = slots(config.parser.processes);
    let cutters = slots(std::thread::available_parallelism().map_or(1, usize::from));
    let vital = Vital::default();
    let shared_config = Arc::new(config.clone());
    let kept = db::connect_kept(pool, &config.database).await?;
    let keyed = kept.as_ref().map_or(pool, |kept| &kept.keyed).clone();
    let mut lanes = Lanes::open(config, (pool, &keyed), owner, &vital).await?;
    let mut pipelines = Vec::new();
    let mut deliverers = Vec::new();
    for plan in plans {
        if let Some(webhook) = &plan.pipeline.signal.webhook {
            deliverers.push(Deliverer::new(plan.pipeline.name.clone(), webhook.clone())?);
        }
        let fit = Fit::new(pool.clone(), Arc::clone(&shared_config), Arc::clone(&plan));
        pipelines.push(Deps {
            pool: pool.clone(),
            means: lanes.means(&plan).await?,
            loader: Loader::start(pool.clone(), keyed.clone(), fit.clone(), memory.clone(), &vital),
            committer: Committer::start(pool.clone(), keyed.clone(), fit.clone(), &vital),
            files: Arc::clone(&files),
            extractor: extractor.clone(),
            parsers: parsers.clone(),
            cutters: cutters.clone(),
            memory: memory.clone(),
            ceiling: ceiling_of(&plan),
            fit,
            plan,
        });
    }
    let (batchers, speech) = (lanes.batchers(), lanes.speech());
    let lanes = {
        let (batchers, speech) = (batchers.clone(), speech.clone());
        Box::new(move || status(&batchers, &speech))
    };
    let parts = Parts { kept, pipelines, deliverers, lanes };
    let engine = Engine::new(pool.clone(), owner, config.worker.clone(), parts, vital, stop);
    Ok(Running { engine, lanes: batchers, speech, keyed, refused })
}

/// The ceiling of money of a pipeline, where it has one.
fn ceiling_of(plan: &Plan) -> Option<Arc<CeilingOf>> {
    let ceiling = plan.pipeline.ceiling.clone()?;
    Some(Arc::new(CeilingOf { pipeline: plan.pipeline.name.clone(), ceiling }))
}

/// The parser's settings with libpdfium found: configured, cached, or none (then unpdf reads PDF).
pub fn parser_settings(config: &Config) -> crate::config::Parser {
    let mut settings = config.parser.clone();
    if settings.pdfium.is_none() {
        settings.pdfium = embedded::cached(Artifact::Pdfium);
    }
    settings
}
