//! `gristmill forget`

use serde::Serialize;

use crate::db;

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
    ask::confirm(&format!("Forget tenant {} for good?", args.tenant), args.yes)?;
    let forgotten = Forgotten { jobs: db::operate::forget_tenant(&pool, &args.tenant).await? };
    session.print(&forgotten, |done| format!("{} forgotten", show::count(done.jobs, "job")))
}
