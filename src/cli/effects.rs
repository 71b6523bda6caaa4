//! `gristmill effects`

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::sync::Arc;

use serde::Serialize;
use sqlx::PgPool;

use crate::batch;
use crate::db::app::Plan;
use crate::db::operate;
use crate::domain::{JobId, SourceKey};

use super::failure::Failure;
use super::session::{self, Asks, Session};
use super::show;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "For effects with repeatable = true, whose other tables changed: nothing is embedded, nothing is paid.\n\
                        Exits with 1 where it was refused or held for some rows; running it again is harmless.\n\
                        Example: gristmill effects dreams themes --dry-run"
)]
pub(super) struct Args {
    /// The pipeline
    pipeline: String,
    /// The effect's name
    name: String,
    /// Only say for how many rows it would run, and what it writes
    #[arg(long)]
    dry_run: bool,
}

/// Rows of one transaction.
const GROUP: i64 = 64;
/// Rows that a table shows; `--json` shows all.
const SHOWN: usize = 50;

#[derive(Debug, Serialize)]
struct Report {
    pipeline: String,
    effect: String,
    writes: BTreeSet<String>,
    /// Rows whose jobs were completed at the start.
    rows: i64,
    dry_run: bool,
    ran: usize,
    /// Rows that changed meanwhile: their own jobs run it.
    moved: usize,
    busy: Vec<SourceKey>,
    refused: Vec<Refused>,
}

#[derive(Debug, Serialize)]
struct Refused {
    key: SourceKey,
    why: String,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let (_, pool, plan) = session.plan(&args.pipeline, Asks::Both).await?;
    let plan = alone(&plan, &args.name)?;
    if !args.dry_run {
        session::at_home(&pool).await?;
    }
    let mut report = Report {
        pipeline: plan.pipeline.name.clone(),
        effect: args.name.clone(),
        writes: plan.effects.iter().flat_map(|effect| effect.writes.clone()).collect(),
        rows: operate::count_done(&pool, &plan.pipeline.name, &plan.generation).await?,
        dry_run: args.dry_run,
        ran: 0,
        moved: 0,
        busy: Vec::new(),
        refused: Vec::new(),
    };
    if !args.dry_run {
        let watched = std::io::stderr().is_terminal() && !session.json;
        repeat(&pool, &plan, &mut report, watched).await?;
    }
    session.print(&report, people)?;
    if report.busy.is_empty() && report.refused.is_empty() { Ok(()) } else { Err(Failure::Said) }
}

async fn repeat(pool: &PgPool, plan: &Plan, report: &mut Report, watched: bool) -> sqlx::Result<()> {
    let mut after = JobId(0);
    loop {
        let jobs = operate::done(pool, &plan.pipeline.name, &plan.generation, after, GROUP).await?;
        let Some(last) = jobs.last() else { break };
        after = last.id;
        let repeated = batch::repeat(pool, plan, jobs).await?;
        report.ran += repeated.ran;
        report.moved += repeated.moved;
        report.busy.extend(repeated.busy);
        report.refused.extend(repeated.refused.into_iter().map(|(key, why)| Refused { key, why }));
        if watched {
            eprint!("\r{} of {}", report.ran, show::count(report.rows, "row"));
        }
    }
    if watched {
        eprintln!();
    }
    Ok(())
}

/// The plan with this one effect.
fn alone(plan: &Plan, name: &str) -> Result<Arc<Plan>, Failure> {
    let pipeline = &plan.pipeline.name;
    let Some(configured) = plan.pipeline.effects.iter().find(|effect| effect.name == name) else {
        let names: Vec<&str> = plan.pipeline.effects.iter().map(|effect| effect.name.as_str()).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Failure::Usage(format!("pipeline {pipeline} has no effect {name}; it has {known}")));
    };
    if !configured.repeatable {
        return Err(Failure::Usage(format!(
            "{}: effect {name} may not be run again; set repeatable = true if doing it twice is harmless",
            configured.place
        )));
    }
    let Some(effect) = plan.effects.iter().find(|effect| effect.name == name) else {
        let why = "is left out, since it does not fit this database: see `gristmill check`";
        return Err(Failure::Failed(format!("effect {name} of pipeline {pipeline} {why}")));
    };
    let mut alone = plan.clone();
    alone.effects = vec![effect.clone()];
    Ok(Arc::new(alone))
}

fn people(report: &Report) -> String {
    let rows = show::count(report.rows, "row");
    let writes: Vec<&str> = report.writes.iter().map(String::as_str).collect();
    if report.dry_run {
        let writes = if writes.is_empty() { "nothing that can be told".to_owned() } else { writes.join(", ") };
        return format!("{}: effect {} would run for {rows}; it writes: {writes}", report.pipeline, report.effect);
    }
    let mut lines = vec![format!("{}: effect {} ran for {} of {rows}", report.pipeline, report.effect, report.ran)];
    if report.moved > 0 {
        lines.push(format!("{} changed meanwhile; their own jobs run it", show::count(report.moved as u64, "row")));
    }
    let refused = report.refused.iter().map(|one| format!("{}: {}", one.key, one.why));
    let busy = report.busy.iter().map(|key| format!("{key}: held by somebody; run it again"));
    let troubles: Vec<String> = refused.chain(busy).collect();
    lines.extend(troubles.iter().take(SHOWN).cloned());
    if troubles.len() > SHOWN {
        lines.push(format!("and {} more (--json shows all)", troubles.len() - SHOWN));
    }
    lines.join("\n")
}
