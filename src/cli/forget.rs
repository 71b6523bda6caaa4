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
}

impl Forgotten {
    fn people(&self) -> String {
        let jobs = show::count(self.jobs, "job");
        let lines = show::count(self.usage_events, "line");
        let searches = show::count(self.searches, "paid search call");
        match (self.usage_events, self.searches) {
            (0, 0) => format!("{jobs} forgotten"),
            _ => format!("{jobs} forgotten; {lines} of the ledger and {searches} have a pseudonym now"),
        }
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
    if args.dry_run {
        let traces = match (&args.tenant, &args.pipeline) {
            (Some(tenant), _) => operate::traces(&pool, tenant).await?,
            (None, pipeline) => {
                operate::traces_of_keys(&pool, pipeline.as_deref().unwrap_or_default(), &args.keys).await?
            }
        };
        return session.print(&traces, |traces| people(traces, args.tenant.is_some()));
    }
    let what = match (&args.tenant, &args.pipeline) {
        (Some(tenant), _) => format!("tenant {tenant}"),
        (None, pipeline) => {
            let rows = show::count(args.keys.len() as u64, "row");
            format!("{rows} of {}", pipeline.as_deref().unwrap_or_default())
        }
    };
    ask::confirm(&format!("Forget {what} for good?"), args.yes)?;
    let forgotten = forget(&config, &pool, args).await?;
    session.print(&forgotten, Forgotten::people)
}

/// In one transaction: what is known, and what is left in targets that were made for it.
async fn forget(config: &Config, pool: &PgPool, args: &Args) -> Result<Forgotten, Failure> {
    let mut keys = Keys::new();
    let mut forgotten = Forgotten { jobs: 0, usage_events: 0, searches: 0 };
    let mut transaction = pool.begin().await?;
    if let Some(tenant) = &args.tenant {
        let traces = operate::traces(&mut *transaction, tenant).await?;
        forgotten = Forgotten { jobs: 0, usage_events: traces.usage_events, searches: traces.searches };
        for (pipeline, key) in operate::keys_of_tenant(&mut *transaction, tenant).await? {
            keys.entry(pipeline).or_default().push(key);
        }
        forgotten.jobs = operate::forget_tenant(&mut *transaction, tenant).await?;
    } else if let Some(pipeline) = &args.pipeline {
        for key in &args.keys {
            forgotten.jobs += operate::forget_key(&mut *transaction, pipeline, key).await?;
        }
        keys.insert(pipeline.clone(), args.keys.clone());
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

fn people(traces: &operate::Traces, is_tenant: bool) -> String {
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
    let ledger = if is_tenant {
        format!("{lines} of the ledger and {searches} get a pseudonym")
    } else {
        format!("{lines} of the ledger stay, with the job's number alone")
    };
    format!("{jobs} would be forgotten, and {ledger}{still}")
}
