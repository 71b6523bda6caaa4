//! Every change of a job's row, as a trigger in the test's database writes it down, replayed with the model's steps.

use std::collections::HashMap;

use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Row as _, types::Uuid};

use super::Seen;
use crate::model::job::{Job, Limits, Phase};
use crate::world::World;

/// The engine's numbers: the configuration's, `db::claims::ALONE`, `jobs::start::CRASHES_ALONE`.
const LIMITS: Limits = Limits { attempts: 5, alone: 3, crashes_alone: 2 };

/// `role` is the worker's own, by whatever function the row is written.
const TABLES: &str = "
    create schema machine;
    create table machine.log (nth bigint generated always as identity primary key, job bigint not null, who text not null,
        began timestamptz not null, at timestamptz not null, old jsonb, new jsonb);
    create function machine.note() returns trigger language plpgsql security definer set search_path = '' as $$
    begin
        insert into machine.log (job, who, began, at, old, new) values (coalesce(new.id, old.id), current_setting('role'), now(),
            clock_timestamp(), to_jsonb(old), to_jsonb(new));
        return null;
    end $$;
    create trigger machine_note after insert or update or delete on gristmill.embedding_jobs
        for each row execute function machine.note();";

pub async fn install(world: &World) {
    world.sql(TABLES).await;
}

/// A job's row as it stood.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
struct Stood {
    state: String,
    revision: u8,
    attempt: u8,
    crashes: u8,
    crashes_alone: u8,
    alone: bool,
    lease_id: Option<Uuid>,
    #[serde(with = "time::serde::iso8601::option")]
    lease_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::iso8601")]
    run_at: OffsetDateTime,
    error_kind: Option<String>,
}

impl Stood {
    fn phase(&self) -> Phase {
        match self.state.as_str() {
            "waiting" | "pending" => Phase::Pending,
            "processing" => Phase::Processing,
            "completed" => Phase::Completed,
            "failed" => Phase::Failed,
            _ => Phase::Ended,
        }
    }
}

/// A line of the log.
struct Line {
    who: String,
    began: OffsetDateTime,
    at: OffsetDateTime,
    old: Stood,
    new: Stood,
}

/// A job on its way, and the worker that has it in hand.
struct Known {
    job: Job,
    holder: String,
    claimed_for: u8,
}

/// Holds the log against the model; which steps were seen how often.
pub async fn replay(world: &World) -> Result<Seen, String> {
    let rows = sqlx::query("select job, who, began, at, old, new from machine.log order by nth")
        .fetch_all(&world.pool)
        .await
        .map_err(|error| error.to_string())?;
    let mut known: HashMap<i64, Known> = HashMap::new();
    let mut seen = Seen::new();
    for row in rows {
        let (job, who): (i64, String) = (row.get("job"), row.get("who"));
        let (old, new): (Option<Json<Stood>>, Option<Json<Stood>>) = (row.get("old"), row.get("new"));
        let Some(Json(new)) = new else { return Err(format!("job {job} was deleted")) };
        let Some(Json(old)) = old else {
            known.insert(job, born(&new).ok_or_else(|| format!("job {job} was born as {new:?}"))?);
            continue;
        };
        let line = Line { who, began: row.get("began"), at: row.get("at"), old, new };
        let known = known.get_mut(&job).ok_or_else(|| format!("job {job} came from nowhere"))?;
        let Some((word, next)) = step(known, &line) else {
            let Line { who, old, new, .. } = line;
            return Err(format!(
                "job {job}, held by {}: the model has no step by {who}\nfrom {old:?}\nto   {new:?}",
                known.holder
            ));
        };
        *seen.entry(word).or_default() += 1;
        *known = next;
    }
    charges(world, &known).await?;
    Ok(seen)
}

fn born(new: &Stood) -> Option<Known> {
    let mut job = Job::new();
    job.revision = new.revision;
    let known = Known { job, holder: String::new(), claimed_for: 0 };
    (new.revision == 1 && is(&known.job, new)).then_some(known)
}

/// Whether the model's job is what the row says.
fn is(job: &Job, row: &Stood) -> bool {
    let numbers = (job.phase, job.revision, job.attempt, job.crashes, job.crashes_alone);
    numbers == (row.phase(), row.revision, row.attempt, row.crashes, row.crashes_alone)
        && (job.phase != Phase::Processing || job.alone == row.alone)
        && (job.phase == Phase::Processing) == row.lease_id.is_some()
}

/// The step of the model that the line is, and what is known after it.
fn step(known: &Known, line: &Line) -> Option<(&'static str, Known)> {
    let Line { who, began, at, old, new } = line;
    let mut job = known.job.clone();
    // The deadline may have passed, or been put off, since the last line.
    job.is_good = old.lease_until.is_some_and(|until| until > *at);
    let with = |change: &dyn Fn(&mut Job) -> Option<()>| {
        let mut job = job.clone();
        change(&mut job)?;
        is(&job, new).then_some(job)
    };
    let by = |change: &dyn Fn(&mut Job)| {
        with(&|job| {
            change(job);
            Some(())
        })
    };
    let same = |job| Known { job, holder: known.holder.clone(), claimed_for: known.claimed_for };
    let same_lease = old.lease_id == new.lease_id;
    if old.state == "pending" && new.lease_id.is_some() {
        let job = with(&|job| job.claim(LIMITS))?;
        return Some(("claim", Known { job, holder: who.clone(), claimed_for: new.revision }));
    }
    if same_lease && old.revision == new.revision && is(&job, new) {
        let promoted = old.state == "waiting" && new.state == "pending";
        let beaten = old.lease_until < new.lease_until && old.lease_id.is_some();
        // A lease is renewed by who has it, and a job is promoted when it is due. Time itself is the test's to move.
        let may = (!beaten || *who == known.holder || who == "none") && (!promoted || old.run_at <= *at);
        return may.then(|| (if beaten { "beat" } else { "nothing" }, same(job)));
    }
    if same_lease && let Some(job) = with(&|job| job.acquit(LIMITS)) {
        return Some(("acquit", same(job)));
    }
    if same_lease && let Some(job) = by(&Job::change) {
        return Some(("change", same(job)));
    }
    let by_person = new.state == "cancelled" && new.error_kind.as_deref() == Some("person");
    if by_person && let Some(job) = with(&Job::cancel) {
        return Some(("cancel", same(job)));
    }
    if new.state == "pending"
        && let Some(job) = with(&Job::rescue)
    {
        return Some(("rescue", same(job)));
    }
    // What is left are ends of an attempt: by who has it in hand, under a lease that was good when the transaction began.
    if old.state != "processing" || *who != known.holder || old.lease_until.is_none_or(|until| until <= *began) {
        return None;
    }
    let revision = known.claimed_for;
    let now = old.revision == revision;
    let to_blame = now && job.is_to_blame(LIMITS);
    let crashed = new.error_kind.as_deref() == Some("crashed");
    let found = |word, job: Option<Job>| job.map(|job| (word, same(job)));
    found("complete", by(&|job| job.complete(revision, 0)).filter(|_| now))
        .or_else(|| found("give up", by(&Job::fail).filter(|_| to_blame && crashed)))
        .or_else(|| found("fail", by(&Job::fail).filter(|_| now && !crashed)))
        .or_else(|| found("end", by(&|job| job.end(Phase::Ended)).filter(|_| now)))
        .or_else(|| found("put back", by(&Job::put_back)))
        .or_else(|| found("burn", by(&|job| job.burn(revision, LIMITS)).filter(|_| new.state == "waiting")))
}

/// What is in the ledger was completed under that revision, once.
async fn charges(world: &World, known: &HashMap<i64, Known>) -> Result<(), String> {
    let rows: Vec<(i64, i64)> =
        sqlx::query_as("select job_id, revision from gristmill.usage_events where meter = 'tokens'")
            .fetch_all(&world.pool)
            .await
            .map_err(|error| error.to_string())?;
    for (job, revision) in rows {
        let charges = known.get(&job).and_then(|known| known.job.charges.get(usize::try_from(revision).ok()?).copied());
        if charges != Some(1) {
            return Err(format!(
                "job {job} is charged for revision {revision}, which was completed {} times",
                charges.unwrap_or(0)
            ));
        }
    }
    Ok(())
}
