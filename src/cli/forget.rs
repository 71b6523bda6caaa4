//! `gristmill forget`

use serde::Serialize;

use crate::db::operate;

use super::failure::Failure;
use super::session::Session;
use super::{ask, show};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Refused while rows of the tenant are still in a set. In the ledger the tenant becomes a pseudonym."
)]
pub(super) struct Args {
    /// The tenant, as the rows name it
    #[arg(long)]
    tenant: String,
    /// Only show what is known of the tenant
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Forgotten {
    jobs: i64,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    if args.tenant.is_empty() {
        return Err(Failure::Usage("--tenant is empty: rows of nobody cannot be told from each other".to_owned()));
    }
    let pool = session.database().await?;
    if args.dry_run {
        return session.print(&operate::traces(&pool, &args.tenant).await?, people);
    }
    ask::confirm(&format!("Forget tenant {} for good?", args.tenant), args.yes)?;
    let forgotten = Forgotten { jobs: operate::forget_tenant(&pool, &args.tenant).await? };
    session.print(&forgotten, |done| format!("{} forgotten", show::count(done.jobs, "job")))
}

fn people(traces: &operate::Traces) -> String {
    let jobs = show::count(traces.jobs, "job");
    let lines = show::count(traces.usage_events, "line");
    let still = match traces.jobs_in_a_set {
        0 => String::new(),
        some => format!(
            "\nrefused as long as rows of {} are in a set: delete the rows, and let a worker see that they are gone",
            show::count(some, "job")
        ),
    };
    format!("{jobs} would be forgotten, and {lines} of the ledger get a pseudonym{still}")
}
