//! `gristmill status`

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;
use sqlx::PgPool;

use crate::app;
use crate::config::Config;
use crate::db;
use crate::db::backlog::Left;
use crate::db::outbox::Undelivered;
use crate::db::workers::PausedLane;
use crate::domain::JobState;

use super::failure::Failure;
use super::session::Session;
use super::show;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Count completed, skipped and cancelled jobs as well: this reads the whole table of jobs
    #[arg(long)]
    all: bool,
}

/// Said instead of asking for workers, which would not start.
const COPY: &str = "this database is a copy of the one gristmill was set up in: no worker starts, and nothing that is paid for is done, \
                    before `gristmill accept --database`";

const UNREGISTERED: &str = "no worker has started with it yet";

#[derive(Debug, Serialize)]
struct Status {
    /// Of another database, and nobody has said that workers may run in it.
    unconfirmed_copy: bool,
    pipelines: Vec<Pipeline>,
    /// Jobs that are neither finished nor in hand, by reason.
    left: Vec<Left>,
    workers: Vec<Worker>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Pipeline {
    name: String,
    /// `ready`, `copy`, `paused`, `counting`, `new generation`, `unregistered` or `does not fit`.
    standing: &'static str,
    why: Option<String>,
    /// Completed, skipped and cancelled ones with `--all` only.
    jobs: BTreeMap<&'static str, i64>,
    /// Rows that wait for `gristmill accept`; also counted as waiting.
    held: i64,
    /// How long the oldest unfinished job has been due.
    oldest_seconds: Option<f64>,
    /// Where some are not delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    webhooks: Option<Undelivered>,
}

#[derive(Debug, Serialize)]
struct Worker {
    name: String,
    version: String,
    slots: i32,
    in_hand: i64,
    seen_seconds: f64,
    /// It did not sign out, and has not been seen for longer than one that lives is silent.
    gone: bool,
    /// Lanes through which it sends nothing for a while.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    paused_lanes: Vec<PausedLane>,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let pool = session.database().await?;
    let counted: Vec<JobState> = JobState::ALL.into_iter().filter(|state| args.all || is_backlog(*state)).collect();
    let mut status = Status {
        unconfirmed_copy: !db::pipelines::is_noted_here(&pool).await?,
        pipelines: registered(&pool, &counted).await?,
        left: db::backlog::left(&pool, None).await?,
        workers: workers(&pool).await?,
        notes: Vec::new(),
    };
    compare(session, &pool, &counted, &mut status).await?;
    if status.unconfirmed_copy {
        // What else stands in the way is said as it is.
        for pipeline in status.pipelines.iter_mut().filter(|pipeline| pipeline.standing == "ready") {
            pipeline.standing = "copy";
        }
    }
    session.print(&status, |status| people(status, &counted))
}

/// Whether somebody may still have to see to jobs of this state: these are cheap to count.
fn is_backlog(state: JobState) -> bool {
    !state.is_finished() || state == JobState::Failed
}

async fn registered(pool: &PgPool, counted: &[JobState]) -> Result<Vec<Pipeline>, Failure> {
    let mut backlog = db::backlog::backlog(pool).await?;
    if !counted.iter().copied().all(is_backlog) {
        backlog.extend(db::backlog::ended(pool).await?);
    }
    let mut webhooks: HashMap<String, Undelivered> =
        db::outbox::undelivered(pool).await?.into_iter().map(|line| (line.pipeline.clone(), line)).collect();
    let mut pipelines = Vec::new();
    for found in db::pipelines::all(pool).await? {
        let lines: Vec<_> = backlog.iter().filter(|line| line.pipeline == found.name).collect();
        let of = |state: JobState| lines.iter().find(|line| line.state == state.word()).map_or(0, |line| line.jobs);
        let oldest = lines
            .iter()
            .filter_map(|line| line.oldest_seconds)
            .fold(None, |oldest: Option<f64>, age| Some(oldest.map_or(age, |oldest| oldest.max(age))));
        let (standing, why) = if found.paused_at.is_some() {
            ("paused", found.paused_reason)
        } else if found.census_done {
            ("ready", None)
        } else {
            ("counting", Some("rows that were there before are being counted".to_owned()))
        };
        pipelines.push(Pipeline {
            standing,
            why,
            jobs: counted.iter().map(|state| (state.word(), of(*state))).collect(),
            held: db::pipelines::held(pool, &found.name).await?,
            oldest_seconds: oldest,
            webhooks: webhooks.remove(&found.name),
            name: found.name,
        });
    }
    Ok(pipelines)
}

async fn workers(pool: &PgPool) -> sqlx::Result<Vec<Worker>> {
    let recent = db::workers::recent(pool).await?.into_iter();
    let worker = |worker: db::workers::Seen| Worker {
        gone: worker.is_gone(),
        paused_lanes: still_paused(worker.paused_lanes.0, worker.seen_seconds),
        name: worker.name,
        version: worker.version,
        slots: worker.slots,
        in_hand: worker.in_hand,
        seen_seconds: worker.seen_seconds,
    };
    Ok(recent.map(worker).collect())
}

/// What a worker said of its lanes is as old as its last word.
fn still_paused(lanes: Vec<PausedLane>, age_seconds: f64) -> Vec<PausedLane> {
    let age = Duration::try_from_secs_f64(age_seconds).unwrap_or_default().as_secs();
    let later = |lane: PausedLane| PausedLane { seconds: lane.seconds.saturating_sub(age), ..lane };
    lanes.into_iter().map(later).collect()
}

/// Holds what is registered against the configuration, where that one is complete here.
async fn compare(session: &Session, pool: &PgPool, counted: &[JobState], status: &mut Status) -> Result<(), Failure> {
    let Ok(config) = session.config() else {
        status.notes.push(
            "the configuration lacks something here, so nothing is said of generations; see `gristmill check`"
                .to_owned(),
        );
        return Ok(());
    };
    let resolved = app::resolve(pool, &config).await?;
    let known = db::pipelines::all(pool).await?;
    let mut unseen = Vec::new();
    let mut set =
        |name: &str, standing, why: Option<String>| match status.pipelines.iter_mut().find(|one| one.name == name) {
            // Paused is what a person said, and stays.
            Some(pipeline) if pipeline.standing != "paused" => (pipeline.standing, pipeline.why) = (standing, why),
            Some(_) => {}
            None => status.pipelines.push(Pipeline {
                name: name.to_owned(),
                standing,
                why,
                jobs: counted.iter().map(|state| (state.word(), 0)).collect(),
                held: 0,
                oldest_seconds: None,
                webhooks: None,
            }),
        };
    for plan in &resolved.plans {
        let name = &plan.pipeline.name;
        match known.iter().find(|registered| registered.name == *name) {
            None => set(name, "unregistered", Some(UNREGISTERED.to_owned())),
            Some(registered) if registered.generation != plan.generation => {
                set(name, "new generation", Some(another_generation(name)));
            }
            Some(_) => {}
        }
    }
    for (name, misfits) in &resolved.refused {
        if let Some(lack) = misfits.iter().find(|misfit| misfit.of_role) {
            // What is said beside it may follow from it: nothing of it is the pipeline's own standing.
            match known.iter().find(|registered| registered.name == *name) {
                None => set(name, "unregistered", Some(UNREGISTERED.to_owned())),
                Some(registered) if !is_of(&config, name, &registered.generation) => {
                    set(name, "new generation", Some(another_generation(name)));
                }
                Some(_) => {}
            }
            unseen.push(format!("{name} ({})", lack.message));
            continue;
        }
        let why = misfits.iter().map(|misfit| misfit.message.clone()).collect::<Vec<_>>().join("; ");
        set(name, "does not fit", Some(why));
    }
    if !unseen.is_empty() {
        let unseen = unseen.join(", ");
        status.notes.push(format!("not held against the tables, which is for the worker's role to do: {unseen}"));
    }
    Ok(())
}

/// Whether a generation is that of one of a pipeline's models; which of these fits the column, only a plan knows.
fn is_of(config: &Config, pipeline: &str, generation: &str) -> bool {
    let Some(pipeline) = config.pipeline(pipeline) else { return false };
    pipeline.models.iter().filter_map(|label| config.models.get(label)).any(|model| {
        let provider = config.providers.get(&model.provider);
        provider.is_some_and(|provider| pipeline.generation(model, provider) == generation)
    })
}

fn another_generation(pipeline: &str) -> String {
    format!("its vectors are of another one: see `gristmill accept {pipeline}`")
}

fn people(status: &Status, counted: &[JobState]) -> String {
    let states: Vec<&str> = counted.iter().copied().map(JobState::word).collect();
    let mut header = vec!["pipeline", "standing"];
    header.extend(&states);
    header.extend(["held", "oldest"]);
    let rows = status.pipelines.iter().map(|pipeline| {
        let standing = match &pipeline.why {
            Some(why) => format!("{}: {why}", pipeline.standing),
            None => pipeline.standing.to_owned(),
        };
        let mut row = vec![pipeline.name.clone(), standing];
        row.extend(states.iter().map(|state| show::maybe(pipeline.jobs.get(state))));
        row.extend([pipeline.held.to_string(), pipeline.oldest_seconds.map_or_else(String::new, show::seconds)]);
        row
    });
    let numbers: Vec<&str> = header[2..].to_vec();
    let mut text = show::table(&header, &numbers, rows.collect());
    let workers = status.workers.iter().map(|worker| {
        vec![
            worker.name.clone(),
            worker.version.clone(),
            format!("{} of {}", worker.in_hand, worker.slots),
            seen(worker),
        ]
    });
    text.push('\n');
    for left in status.left.iter().filter(|left| left.why != "pending") {
        text.push_str(&format!("{}\n", show::left(left)));
    }
    if !status.workers.is_empty() {
        text.push_str(&show::table(&["worker", "version", "in hand", "seen"], &["in hand", "seen"], workers.collect()));
    }
    let line = if status.workers.is_empty() { "" } else { "\n" };
    if status.unconfirmed_copy {
        text.push_str(&format!("{line}{COPY}"));
    } else if status.workers.iter().all(|worker| worker.gone) {
        text.push_str(&format!("{line}no worker is alive: start one with `gristmill run`"));
    }
    for worker in status.workers.iter().filter(|worker| !worker.gone) {
        for lane in &worker.paused_lanes {
            let PausedLane { provider, model, tenants, why, seconds } = lane;
            let of = if tenants.is_empty() { String::new() } else { format!(" of {}", tenants.join(", ")) };
            let name = &worker.name;
            text = format!("{text}\n{name}: lane {provider}/{model}{of} is paused: {why}; tried again in {seconds} s");
        }
    }
    for pipeline in &status.pipelines {
        if let Some(webhooks) = &pipeline.webhooks {
            text = format!("{text}\n{}: {}", pipeline.name, undelivered(&pipeline.name, webhooks));
        }
    }
    for note in &status.notes {
        text = format!("{text}\nnote: {note}");
    }
    text
}

fn seen(worker: &Worker) -> String {
    let ago = show::seconds(worker.seen_seconds);
    if worker.gone { format!("gone, last seen {ago} ago") } else { format!("{ago} ago") }
}

fn undelivered(pipeline: &str, webhooks: &Undelivered) -> String {
    let mut parts = Vec::new();
    if webhooks.waiting > 0 {
        let oldest = show::seconds(webhooks.oldest_seconds.unwrap_or_default());
        parts.push(format!("{} not delivered yet, the oldest for {oldest}", show::count(webhooks.waiting, "webhook")));
    }
    if webhooks.failed > 0 {
        let failed = show::count(webhooks.failed, "webhook");
        parts.push(format!("{failed} given up; `select gristmill.redeliver('{pipeline}')` tries again"));
    }
    parts.extend(webhooks.error.clone());
    parts.join("; ")
}
