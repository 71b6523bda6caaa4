use std::time::Duration;

use serde::Serialize;

use crate::batch::LaneStatus;
use crate::db;
use crate::db::migrate::{self, Set};

use super::Watched;

/// Whether everything that was configured works.
#[derive(Debug, Clone, Serialize)]
pub struct Readiness {
    /// Nothing is wrong, or only with what one of several tenants brought itself: an orchestrator can do nothing about their keys, and
    /// the other tenants want this worker.
    pub ready: bool,
    /// What does not, each named.
    pub problems: Vec<Problem>,
    pub pipelines: Vec<String>,
    pub lanes: Vec<LaneStatus>,
}

/// One thing that does not work.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Problem {
    /// `worker`, `database`, `schema`, `pipeline` or `lane`.
    pub what: &'static str,
    pub name: String,
    pub why: String,
}

/// Whether the database answers within `patience`.
pub(super) async fn answers(watched: &Watched, patience: Duration) -> Result<(), String> {
    match tokio::time::timeout(patience, db::server::now(&watched.pool)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(db::describe(&error)),
        Err(_) => Err("does not answer".to_owned()),
    }
}

/// A worker that was told to stop wants nothing more; nothing needs to be asked for that.
pub(super) fn stopping(watched: &Watched) -> Readiness {
    let problem = problem("worker", "", "is stopping: it finishes or hands back what is in hand".to_owned());
    readiness(watched, vec![problem], Vec::new(), (watched.lanes)())
}

/// Asks everything once; a database that does not answer within `patience` is away.
pub(super) async fn look(watched: &Watched, patience: Duration) -> Readiness {
    let mut problems = match tokio::time::timeout(patience, of_database(watched)).await {
        Ok(Ok(problems)) => problems,
        Ok(Err(error)) => vec![problem("database", "", db::describe(&error))],
        Err(_) => vec![problem("database", "", "does not answer".to_owned())],
    };
    problems.extend(watched.refused.iter().map(|(name, why)| problem("pipeline", name, why.clone())));
    problems.extend((watched.misfits)().into_iter().map(|(name, why)| problem("pipeline", &name, why)));
    let lanes = (watched.lanes)();
    let mut of_tenants = Vec::new();
    for lane in &lanes {
        if let Some((why, seconds)) = &lane.paused {
            let problem = problem("lane", &lane.name(), format!("{why}; tried again in {seconds} s"));
            if lane.tenants.is_empty() { problems.push(problem) } else { of_tenants.push(problem) }
        }
    }
    readiness(watched, problems, of_tenants, lanes)
}

fn readiness(
    watched: &Watched,
    mut problems: Vec<Problem>,
    of_tenants: Vec<Problem>,
    lanes: Vec<LaneStatus>,
) -> Readiness {
    let pipelines = watched.pipelines.iter().map(|(name, _)| name.clone()).collect();
    let ready = problems.is_empty();
    problems.extend(of_tenants);
    Readiness { ready, problems, pipelines, lanes }
}

fn problem(what: &'static str, name: &str, why: String) -> Problem {
    Problem { what, name: name.to_owned(), why }
}

async fn of_database(watched: &Watched) -> sqlx::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let (found, known) = (migrate::applied(&watched.pool, Set::Ours).await?, Set::Ours.newest());
    if found != Some(known) {
        let found = found.map_or_else(|| "missing".to_owned(), |version| format!("at version {version}"));
        let why = format!("schema gristmill is {found}, this binary knows version {known}: run `gristmill migrate`");
        problems.push(problem("schema", "gristmill", why));
        return Ok(problems);
    }
    let registered = db::pipelines::all(&watched.pool).await?;
    for (name, _) in &watched.pipelines {
        if registered.iter().all(|pipeline| pipeline.name != *name) {
            let why = "is not registered any more, since the schema was made anew: start the worker again";
            problems.push(problem("pipeline", name, why.to_owned()));
        }
    }
    for pipeline in registered {
        let Some((_, generation)) = watched.pipelines.iter().find(|(name, _)| *name == pipeline.name) else { continue };
        if *generation != pipeline.generation {
            let why =
                "another generation was accepted: this worker claims nothing of it; give it the new configuration";
            problems.push(problem("pipeline", &pipeline.name, why.to_owned()));
        }
        if pipeline.paused_at.is_some() {
            let why = pipeline.paused_reason.unwrap_or_else(|| "no reason was given".to_owned());
            problems.push(problem("pipeline", &pipeline.name, format!("paused: {why}")));
        }
    }
    Ok(problems)
}
