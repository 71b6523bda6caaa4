//! `gristmill forget`

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::{PgConnection, PgPool};

use crate::app;
use crate::config::Config;
use crate::db;
use crate::db::app::forget::{Erased, erase};
use crate::db::operate;
use crate::domain::SourceKey;

use super::failure::Failure;
use super::session::Session;
use super::{ask, show};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Refused while their rows are still in a set. In the ledger a tenant becomes a pseudonym.\n\nExamples:\n  \
                        gristmill forget --tenant 6f1c…\n  gristmill forget documents 7a2b…"
)]
pub(super) struct Args {
    /// The tenant, as the rows name it
    #[arg(long, conflicts_with_all = ["pipeline", "keys"], required_unless_present = "pipeline")]
    tenant: Option<String>,
    /// The pipeline, where single rows are forgotten
    #[arg(requires = "keys")]
    pipeline: Option<String>,
    /// Keys of rows; of several columns a JSON array
    #[arg(value_parser = ask::key)]
    keys: Vec<SourceKey>,
    /// Only show what is known of them
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Forgotten {
    jobs: i64,
    /// What keeps its numbers under a pseudonym.
    usage_events: i64,
    searches: i64,
    /// Keys that no job has.
    unknown: Vec<SourceKey>,
}

impl Forgotten {
    fn people(&self, tenant: Option<&str>) -> String {
        let jobs = show::count(self.jobs, "job");
        let lines = show::count(self.usage_events, "line");
        let searches = show::count(self.searches, "paid search call");
        let mut said: Vec<String> = self.unknown.iter().map(nothing_of_row).collect();
        match (tenant, self.jobs, self.usage_events + self.searches) {
            (Some(tenant), 0, 0) => said.push(nothing_of_tenant(tenant)),
            (None, 0, _) => {}
            (_, _, 0) => said.push(format!("{jobs} forgotten")),
            _ => said.push(format!("{jobs} forgotten; {lines} of the ledger and {searches} have a pseudonym now")),
        }
        said.join("\n")
    }
}

fn nothing_of_row(key: &SourceKey) -> String {
    format!("nothing is known of {key}: no job has that key")
}

fn nothing_of_tenant(tenant: &str) -> String {
    format!("nothing is known of tenant {tenant}")
}

/// A row that is meant: its key as its job is known by, and as it was given, since an application that announced it so left a job of that
/// spelling.
struct Meant {
    written: SourceKey,
    given: SourceKey,
}

impl Meant {
    fn spellings(&self) -> impl Iterator<Item = &SourceKey> {
        std::iter::once(&self.written).chain(Some(&self.given).filter(|given| **given != self.written))
    }
}

/// Keys of jobs, by pipeline.
type Keys = BTreeMap<String, Vec<SourceKey>>;

/// Keys whose chunks are removed in one statement.
const SLICE: usize = 500;

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    if args.tenant.as_ref().is_some_and(String::is_empty) {
        return Err(Failure::Usage("--tenant is empty: rows of nobody cannot be told from each other".to_owned()));
    }
    let config = session.config_for_database()?;
    let pool = app::connect(&config).await?;
    if let Some(pipeline) = &args.pipeline {
        ask::registered(&pool, pipeline).await?;
    }
    let mut meant = Vec::new();
    for key in &args.keys {
        let written = ask::written(&config, &pool, args.pipeline.as_deref().unwrap_or_default(), key).await;
        let written = written.map_err(|failure| failure.and("nothing was forgotten"))?;
        meant.push(Meant { written, given: key.clone() });
    }
    if args.dry_run {
        let traces = match (&args.tenant, &args.pipeline) {
            (Some(tenant), _) => operate::traces(&pool, tenant).await?,
            (None, pipeline) => {
                let keys: Vec<SourceKey> = meant.iter().flat_map(Meant::spellings).cloned().collect();
                operate::traces_of_keys(&pool, pipeline.as_deref().unwrap_or_default(), &keys).await?
            }
        };
        return session.print(&traces, |traces| people(traces, args.tenant.as_deref()));
    }
    let what = match (&args.tenant, &args.pipeline) {
        (Some(tenant), _) => format!("tenant {tenant}"),
        (None, pipeline) => {
            let rows = show::count(args.keys.len() as u64, "row");
            format!("{rows} of {}", pipeline.as_deref().unwrap_or_default())
        }
    };
    ask::confirm(&format!("Forget {what} for good?"), args.yes)?;
    let forgotten = forget(&config, &pool, args, &meant).await?;
    session.print(&forgotten, |forgotten| forgotten.people(args.tenant.as_deref()))
}

/// In one transaction: what is known, and what is left in targets that were made for it.
async fn forget(config: &Config, pool: &PgPool, args: &Args, meant: &[Meant]) -> Result<Forgotten, Failure> {
    let mut keys = Keys::new();
    let mut forgotten = Forgotten { jobs: 0, usage_events: 0, searches: 0, unknown: Vec::new() };
    let mut transaction = pool.begin().await?;
    if let Some(tenant) = &args.tenant {
        let traces = operate::traces(&mut *transaction, tenant).await?;
        forgotten.usage_events = traces.usage_events;
        forgotten.searches = traces.searches;
        for (pipeline, key) in operate::keys_of_tenant(&mut *transaction, tenant).await? {
            keys.entry(pipeline).or_default().push(key);
        }
        forgotten.jobs = operate::forget_tenant(&mut *transaction, tenant).await?;
    } else if let Some(pipeline) = &args.pipeline {
        for row in meant {
            let mut jobs = 0;
            for key in row.spellings() {
                jobs += operate::forget_key(&mut *transaction, pipeline, key).await?;
            }
            forgotten.jobs += jobs;
            forgotten.unknown.extend((jobs == 0).then(|| row.given.clone()));
        }
        keys.insert(pipeline.clone(), meant.iter().map(|row| row.written.clone()).collect());
    }
    clear_targets(config, &mut transaction, &keys).await?;
    transaction.commit().await?;
    Ok(forgotten)
}

/// A target of ours may have kept the chunks of rows that left (`on_leave = "keep"`). An application's own tables are its own to erase.
async fn clear_targets(config: &Config, connection: &mut PgConnection, keys: &Keys) -> Result<(), Failure> {
    let made = config.pipelines.iter().filter(|pipeline| pipeline.target.create);
    for pipeline in made {
        let Some(keys) = keys.get(&pipeline.name) else { continue };
        let undone = |why: String| Failure::Failed(format!("nothing was forgotten: {why}"));
        let name = &pipeline.name;
        for slice in keys.chunks(SLICE) {
            match erase(connection, pipeline, slice).await {
                Ok(Erased::All) => {}
                Ok(Erased::Held) => {
                    return Err(undone(format!("somebody holds chunks of pipeline {name}; try again")));
                }
                Ok(Erased::Unfit(misfits)) => {
                    let unfit: Vec<String> = misfits.iter().map(ToString::to_string).collect();
                    return Err(undone(format!("the target of pipeline {name} does not fit:\n{}", unfit.join("\n"))));
                }
                Err(error) if db::is_forbidden(&error) => {
                    let said = db::describe(&error);
                    let failure = undone(format!("this role may not remove chunks of pipeline {name} ({said})"));
                    return Err(failure.and("`gristmill grants --for migrator` prints what it lacks"));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn people(traces: &operate::Traces, tenant: Option<&str>) -> String {
    match (tenant, traces.jobs, traces.usage_events + traces.searches) {
        (Some(tenant), 0, 0) => return nothing_of_tenant(tenant),
        (None, 0, _) => return "nothing is known of these rows: no job has such a key".to_owned(),
        _ => {}
    }
    let jobs = show::count(traces.jobs, "job");
    let lines = show::count(traces.usage_events, "line");
    let searches = show::count(traces.searches, "paid search call");
    let still = match traces.jobs_in_a_set {
        0 => String::new(),
        some => format!(
            "\nrefused as long as rows of {} are in a set: delete the rows, and let a worker see that they are gone",
            show::count(some, "job")
        ),
    };
    let ledger = if tenant.is_some() {
        format!("{lines} of the ledger and {searches} get a pseudonym")
    } else {
        let verb = if traces.usage_events == 1 { "stays" } else { "stay" };
        format!("{lines} of the ledger {verb}, with the job's number alone")
    };
    format!("{jobs} would be forgotten, and {ledger}{still}")
}
