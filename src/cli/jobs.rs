//! `gristmill jobs`

use std::time::Duration;

use serde::Serialize;
use sqlx::PgPool;

use crate::db::attempts;
use crate::db::operate::{self, Filter, Job, Wish};
use crate::domain::{ErrorKind, JobId, JobState};

use super::ask::Which;
use super::failure::Failure;
use super::session::{self, Session};
use super::{cost, show};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gristmill jobs list --state failed --since 2h\n  \
                        gristmill jobs retry --kind rate_limited --dry-run\n  gristmill jobs show 42")]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List jobs, newest first
    List(List),
    /// Everything about one job, its attempts included
    Show(Show),
    /// Open finished jobs again, and let waiting ones go at once
    Retry(Retry),
    /// Cancel jobs that are not finished; only a person opens them again
    Cancel(Cancel),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    which: Which,
    /// Most jobs to list
    #[arg(long, default_value_t = 50)]
    limit: i64,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// The job's number
    id: i64,
}

#[derive(Debug, clap::Args)]
struct Retry {
    #[command(flatten)]
    which: Which,
    /// Only say which jobs those are and what they would cost
    #[arg(long)]
    dry_run: bool,
    /// Embed everything again, not only what changed
    #[arg(long)]
    fresh: bool,
}

#[derive(Debug, clap::Args)]
struct Cancel {
    #[command(flatten)]
    which: Which,
    /// Only say which jobs those are
    #[arg(long)]
    dry_run: bool,
}

/// Numbers of jobs that a line for people names.
const NUMBERS: usize = 20;
/// Jobs that one statement opens or cancels.
const SLICE: i64 = 500;
/// Pauses before jobs are tried that somebody held.
const BUSY: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1)];

pub(super) async fn run(session: &Session, args: Args) -> Result<(), Failure> {
    match args.what {
        What::List(list) => self::list(session, list).await,
        What::Show(show) => self::show(session, show.id).await,
        What::Retry(retry) => self::retry(session, retry).await,
        What::Cancel(cancel) => self::cancel(session, cancel).await,
    }
}

async fn list(session: &Session, mut list: List) -> Result<(), Failure> {
    let config = session.config_for_database()?;
    let pool = crate::app::connect(&config).await?;
    list.which.exist(&pool).await?;
    list.which.spell(&config, &pool).await?;
    let jobs = operate::list(&pool, &list.which.filter(), list.limit).await?;
    session.print(&jobs, |jobs| {
        let header = ["id", "pipeline", "key", "tenant", "state", "attempt", "chunks", "tokens", "ms", "when", "why"];
        let rows = jobs.iter().map(|job| {
            vec![
                job.id.to_string(),
                job.pipeline.clone(),
                job.key.0.to_string(),
                job.tenant.clone(),
                job.state.clone(),
                format!("{}/{}", job.attempt, job.max_attempts),
                show::maybe(job.chunks),
                show::maybe(job.tokens),
                show::maybe(job.ms),
                show::moment(job.finished_at.unwrap_or(job.opened_at)),
                why(job),
            ]
        });
        show::table(&header, &["id", "attempt", "chunks", "tokens", "ms"], rows.collect())
    })
}

fn why(job: &Job) -> String {
    match (&job.error_kind, &job.reason) {
        (Some(kind), Some(reason)) => format!("{kind}: {reason}"),
        (kind, reason) => kind.clone().or_else(|| reason.clone()).unwrap_or_default(),
    }
}

/// A job with its timeline.
#[derive(Debug, Serialize)]
struct Story {
    #[serde(flatten)]
    job: Job,
    attempts: Vec<attempts::Attempt>,
}

async fn show(session: &Session, id: i64) -> Result<(), Failure> {
    let pool = session.database().await?;
    let filter = Filter { ids: Some(vec![id]), ..Filter::default() };
    let job = operate::list(&pool, &filter, 1).await?.into_iter().next();
    let job = job.ok_or_else(|| Failure::Failed(format!("there is no job {id}")))?;
    let mut attempts = attempts::of(&pool, JobId(id)).await?;
    attempts.extend(last_word(&job, &attempts));
    session.print(&Story { job, attempts }, people)
}

/// The attempt that completed a job at once: the job row alone tells of it. An adopted job had none.
fn last_word(job: &Job, told: &[attempts::Attempt]) -> Option<attempts::Attempt> {
    let ended_at = job.finished_at.filter(|_| job.state == JobState::Completed.word() && job.attempt > 0)?;
    let is_told = told.iter().any(|attempt| attempt.revision == job.revision && attempt.outcome == "done");
    (!is_told).then(|| attempts::Attempt {
        revision: job.revision,
        attempt: job.attempt,
        started_at: job.started_at,
        ended_at,
        outcome: "done".to_owned(),
        error_kind: None,
        reason: None,
    })
}

fn people(story: &Story) -> String {
    let job = &story.job;
    let facts = [
        ("job", format!("{} of pipeline {}", job.id, job.pipeline)),
        ("key", job.key.0.to_string()),
        ("tenant", job.tenant.clone()),
        ("state", job.state.clone()),
        ("why", why(job)),
        ("stage", show::maybe(job.stage.as_ref())),
        ("status on the row", show::maybe(job.mirror_error.as_ref())),
        ("revision", job.revision.to_string()),
        ("attempts", format!("{} of {}", job.attempt, job.max_attempts)),
        ("crashes", job.crashes.to_string()),
        ("pages", show::maybe(job.pages)),
        ("chunks", show::maybe(job.chunks)),
        ("tokens", show::maybe(job.tokens)),
        ("reader", show::maybe(job.reader.as_ref())),
        ("milliseconds", show::maybe(job.ms)),
        ("due", job.run_at.filter(|_| job.state == JobState::Waiting.word()).map(show::moment).unwrap_or_default()),
        ("opened", show::moment(job.opened_at)),
        ("finished", job.finished_at.map(show::moment).unwrap_or_default()),
    ];
    let said = facts.into_iter().filter(|(_, value)| !value.is_empty());
    let rows = said.map(|(name, value)| vec![name.to_owned(), value]).collect();
    let mut text = show::table(&["what", "value"], &[], rows);
    if story.attempts.is_empty() {
        return format!("{text}\nno attempt is on record");
    }
    let rows = story.attempts.iter().map(|attempt| {
        vec![
            attempt.revision.to_string(),
            attempt.attempt.to_string(),
            attempt.started_at.map(show::moment).unwrap_or_default(),
            show::moment(attempt.ended_at),
            attempt.outcome.clone(),
            show::maybe(attempt.error_kind.as_ref()),
            show::maybe(attempt.reason.as_ref()),
        ]
    });
    let header = ["revision", "attempt", "started", "ended", "outcome", "kind", "why"];
    text.push('\n');
    text.push_str(&show::table(&header, &["revision", "attempt"], rows.collect()));
    text
}

#[derive(Debug, Serialize)]
struct Retried {
    would_open: Vec<cost::Share>,
    /// The numbers of these jobs.
    would_open_jobs: Vec<i64>,
    opened: usize,
    opened_jobs: Vec<i64>,
}

async fn retry(session: &Session, mut retry: Retry) -> Result<(), Failure> {
    retry.which.some()?;
    let config = session.config_for_database()?;
    let pool = crate::app::connect(&config).await?;
    retry.which.exist(&pool).await?;
    retry.which.spell(&config, &pool).await?;
    let filter = retry.which.filter();
    accepted(session, &pool, &filter).await?;
    if retry.dry_run {
        let shares = cost::of_retry(&pool, &config, &filter).await?;
        let jobs = matching(&pool, &filter, Wish::Retry).await?;
        let told = Retried { would_open: shares, would_open_jobs: jobs, opened: 0, opened_jobs: Vec::new() };
        return session.print(&told, |retried| {
            if retried.would_open.is_empty() {
                return "no job matches that could be opened".to_owned();
            }
            let note =
                if retry.fresh { "everything is paid again" } else { "chunks that did not change are not paid again" };
            let jobs = numbers(&retried.would_open_jobs);
            format!("{}\n{note}\njobs: {jobs}", cost::table(&retried.would_open))
        });
    }
    session::refuse_copy(&pool).await?;
    let opened = in_slices(&pool, &filter, Wish::Retry, retry.fresh).await?;
    if opened.is_empty() && !retry.which.ids.is_empty() {
        return Err(Failure::Failed("none of these jobs is finished or waiting: there is nothing to retry".to_owned()));
    }
    let told =
        Retried { would_open: Vec::new(), would_open_jobs: Vec::new(), opened: opened.len(), opened_jobs: opened };
    session.print(&told, |retried| format!("{} opened", show::count(retried.opened as u64, "job")))
}

/// The first of these numbers; `--json` has them all.
fn numbers(jobs: &[i64]) -> String {
    let numbers: Vec<String> = jobs.iter().take(NUMBERS).map(ToString::to_string).collect();
    let more = if jobs.len() > NUMBERS { ", …" } else { "" };
    format!("{}{more}", numbers.join(", "))
}

/// Numbers of all jobs that match and that a wish is for.
async fn matching(pool: &PgPool, filter: &Filter, wish: Wish) -> sqlx::Result<Vec<i64>> {
    let mut all = Vec::new();
    loop {
        let slice = operate::matching(pool, filter, wish, all.last().copied().unwrap_or(0), SLICE).await?;
        if slice.is_empty() {
            return Ok(all);
        }
        all.extend(slice);
    }
}

/// Refuses where jobs that match would be paid for under a generation that nobody has accepted. Without the whole configuration
/// nobody can tell, and the worker that claims them holds the promise.
async fn accepted(session: &Session, pool: &PgPool, filter: &Filter) -> Result<(), Failure> {
    let Ok(config) = session.config() else { return Ok(()) };
    let mut meant = Vec::new();
    for plan in crate::app::resolve(pool, &config).await?.plans {
        let name = &plan.pipeline.name;
        let asked = filter.pipeline.as_ref().is_none_or(|asked| asked == name);
        let filter = Filter { pipeline: Some(name.clone()), ..filter.clone() };
        if asked && operate::count(pool, &filter).await?.jobs > 0 {
            meant.push(plan);
        }
    }
    session::accepted(pool, &meant).await
}

/// Opens or cancels the jobs that match at the beginning, slice by slice: what was opened may match again. What somebody holds is
/// tried again a few times, and then said.
async fn in_slices(pool: &PgPool, filter: &Filter, wish: Wish, fresh: bool) -> Result<Vec<i64>, Failure> {
    let mut done = Vec::new();
    let mut busy = 0;
    let mut after = 0;
    loop {
        let mut left = operate::matching(pool, filter, wish, after, SLICE).await?;
        let Some(last) = left.last() else { break };
        after = *last;
        for wait in BUSY {
            tokio::time::sleep(wait).await;
            let through = match wish {
                Wish::Retry => operate::retry(pool, &left, fresh).await?,
                Wish::Cancel => operate::cancel(pool, &left).await?,
            };
            left.retain(|id| !through.contains(id));
            done.extend(through);
            let still = Filter { ids: Some(left), ..filter.clone() };
            left = operate::matching(pool, &still, wish, 0, SLICE).await?;
            if left.is_empty() {
                break;
            }
        }
        busy += left.len();
    }
    if busy > 0 {
        eprintln!(
            "note: {} left as they are, since somebody holds them just now: say it again",
            show::count(busy as u64, "job")
        );
    }
    if wish == Wish::Retry && filter.states.is_none() && filter.error_kind.is_none() {
        let states = Some(vec![JobState::Waiting.word().to_owned()]);
        let kind = Some(ErrorKind::Unaccepted.word().to_owned());
        let held = Filter { states, error_kind: kind, ..filter.clone() };
        if !operate::list(pool, &held, 1).await?.is_empty() {
            eprintln!("note: rows that were there before wait for `gristmill accept PIPELINE`");
        }
    }
    Ok(done)
}

#[derive(Debug, Serialize)]
struct Cancelled {
    would_cancel: Vec<i64>,
    cancelled: Vec<i64>,
}

async fn cancel(session: &Session, mut cancel: Cancel) -> Result<(), Failure> {
    cancel.which.some()?;
    let config = session.config_for_database()?;
    let pool = crate::app::connect(&config).await?;
    cancel.which.exist(&pool).await?;
    cancel.which.spell(&config, &pool).await?;
    let filter = cancel.which.filter();
    let found = operate::unfinished(&pool, &filter).await?;
    if found.is_empty() && !cancel.which.ids.is_empty() {
        return Err(Failure::Failed("all of these jobs are finished: there is nothing to cancel".to_owned()));
    }
    if cancel.dry_run {
        let told = Cancelled { would_cancel: found, cancelled: Vec::new() };
        return session.print(&told, |told| {
            let numbers = numbers(&told.would_cancel);
            let list = if numbers.is_empty() { String::new() } else { format!(": {numbers}") };
            format!("{} would be cancelled{list}", show::count(told.would_cancel.len() as u64, "job"))
        });
    }
    let done = Cancelled { would_cancel: Vec::new(), cancelled: in_slices(&pool, &filter, Wish::Cancel, false).await? };
    session.print(&done, |done| format!("{} cancelled", show::count(done.cancelled.len() as u64, "job")))
}
