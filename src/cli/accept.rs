//! `gristmill accept`

use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::PgPool;

use crate::app::{self, Readiness};
use crate::db;
use crate::db::app::Plan;

use super::failure::Failure;
use super::session::{self, Asks, Session};
use super::{ask, cost, show};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gristmill accept documents --dry-run\n  gristmill accept documents --yes\n  \
                        gristmill accept --database      workers may run in this copy of a database")]
pub(super) struct Args {
    /// The pipeline
    #[arg(required_unless_present = "database")]
    pipeline: Option<String>,
    /// Only show what would be paid for
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// This database is a copy (a restored dump, a branch), and workers are meant to run in it
    #[arg(long)]
    database: bool,
}

/// Rows of one slice: each is a transaction of its own, so that nothing is locked for long.
const SLICE: i64 = 1_000;

#[derive(Debug, Serialize)]
struct Bill {
    pipeline: String,
    model: String,
    /// Rows that were there before and wait for a person's word.
    rows_held: i64,
    /// Rows whose vectors are of another generation.
    rows_of_old_generation: i64,
    /// Rows that are open already and would be embedded under the new generation.
    rows_open: i64,
    /// Judged by so many of them, cut and counted as a job would.
    rows_sampled: i64,
    tokens_estimated: i64,
    /// Rows whose content is a file: nobody knows before it is read.
    files_of_unknown_tokens: i64,
    /// Recordings: what they cost is known when they were heard.
    is_audio: bool,
    /// None where it, or the price, is not known.
    usd_estimated: Option<Decimal>,
    accepted: bool,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    if args.database {
        settle(session, args).await?;
    }
    let Some(name) = &args.pipeline else { return Ok(()) };
    let (config, pool, plan) = session.plan(name, Asks::Source).await?;
    if !args.dry_run {
        session::at_home(&pool).await?;
    }
    // Rows that were there before are counted by giving each its job.
    let readiness = app::register(&pool, &plan, config.worker.sweep_rows, &|| false).await?;
    if readiness == Readiness::SayExisting {
        return Err(Failure::Failed(app::say(name, &readiness)));
    }
    let unpaid = db::pipelines::unpaid(&pool, name, &plan.generation).await?;
    let estimate = app::estimate(&config, &pool, &plan).await?;
    let mut bill = Bill {
        pipeline: name.clone(),
        model: plan.model.name.clone(),
        rows_held: unpaid.held,
        rows_of_old_generation: unpaid.old,
        rows_open: unpaid.open,
        rows_sampled: estimate.sampled,
        tokens_estimated: estimate.tokens,
        files_of_unknown_tokens: estimate.files,
        is_audio: plan.model.speech.is_some(),
        usd_estimated: cost::of_tokens(&app::KnownPrices::read(&config, &pool).await?, &plan.model, estimate.tokens),
        accepted: false,
    };
    if args.dry_run || (bill.is_empty() && readiness == Readiness::Ready) {
        return session.print(&bill, people);
    }
    if !session.json {
        show::out(&people(&bill))?;
    }
    ask::confirm("Go on?", args.yes)?;
    let opened = accept(&pool, &plan).await?;
    bill.accepted = true;
    session.print(&bill, |_| format!("accepted; {} opened", show::count(opened, "job")))
}

impl Bill {
    fn is_empty(&self) -> bool {
        self.rows_held == 0 && self.rows_of_old_generation == 0 && self.rows_open == 0
    }
}

fn people(bill: &Bill) -> String {
    if bill.is_empty() {
        return format!("{}: nothing waits for your word", bill.pipeline);
    }
    let mut tokens = format!("about {}, judged by {}", bill.tokens_estimated, show::count(bill.rows_sampled, "row"));
    if bill.files_of_unknown_tokens > 0 {
        tokens = format!(
            "{tokens}, and those of {}, unknown before they are read",
            show::count(bill.files_of_unknown_tokens, "file")
        );
    }
    let mut rows = vec![
        vec!["pipeline".to_owned(), bill.pipeline.clone()],
        vec!["model".to_owned(), bill.model.clone()],
        vec!["rows that were there before".to_owned(), bill.rows_held.to_string()],
        vec!["rows with vectors of another generation".to_owned(), bill.rows_of_old_generation.to_string()],
        vec!["rows that are open already".to_owned(), bill.rows_open.to_string()],
    ];
    if bill.is_audio {
        rows.push(vec!["cost".to_owned(), "not known before the sound is measured".to_owned()]);
    } else {
        rows.push(vec!["tokens".to_owned(), tokens]);
        rows.push(vec!["cost".to_owned(), show::usd(bill.usd_estimated)]);
    }
    show::table(&["what", "how much"], &[], rows)
}

async fn accept(pool: &PgPool, plan: &Plan) -> sqlx::Result<i64> {
    let name = &plan.pipeline.name;
    db::pipelines::accept_generation(pool, name, &plan.generation).await?;
    let mut opened = 0;
    loop {
        let held = db::pipelines::accept_rows(pool, name, SLICE).await?;
        let old = db::pipelines::open_generation(pool, name, &plan.generation, SLICE).await?;
        if held + old == 0 {
            return Ok(opened);
        }
        opened += i64::try_from(held + old).unwrap_or(i64::MAX);
    }
}

async fn settle(session: &Session, args: &Args) -> Result<(), Failure> {
    let pool = session.database().await?;
    let at_home = db::pipelines::is_at_home(&pool).await?;
    if !at_home && !args.dry_run {
        ask::confirm("This database is a copy. Let workers embed and pay in it, too?", args.yes)?;
        db::pipelines::settle_here(&pool).await?;
    }
    let said = match (at_home, args.dry_run) {
        (true, _) => "workers may run in this database already",
        (false, false) => "workers may run in this database now",
        (false, true) => "this database is a copy; workers stay away from it until `gristmill accept --database`",
    };
    if session.json && args.pipeline.is_some() {
        // One document: that of the pipeline.
        return Ok(());
    }
    session.print(&serde_json::json!({ "workers_may_run": at_home || !args.dry_run }), |_| said.to_owned())
}
