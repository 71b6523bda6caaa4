//! `gristmill verify`

use serde::Serialize;
use sqlx::PgPool;

use crate::db;
use crate::db::app::{Finding, FindingKind, Plan};
use crate::db::pipelines::Earlier;

use super::failure::Failure;
use super::session::{self, Asks, Session};
use super::show;

#[derive(Debug, clap::Args)]
#[command(after_help = "Exits with 1 where something is found and not opened.")]
pub(super) struct Args {
    /// Only this pipeline
    pipeline: Option<String>,
    /// Open the jobs of what is found; workers then mend it
    #[arg(long)]
    fix: bool,
    /// Show every finding, not only the first ones
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct Verified {
    findings: Vec<Finding>,
    /// Pipelines that no worker has started with.
    unregistered: Vec<String>,
    /// Pipelines with adopted rows: what these say beside their vectors is the application's own, and not compared.
    adopted: Vec<String>,
    opened: bool,
}

const SLICE: i64 = 2_000;
/// Orphans of one look.
const ORPHANS: i64 = 10_000;
/// Findings that a table shows unless all are asked for.
const SHOWN: usize = 20;

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let names: Vec<String> = args.pipeline.iter().cloned().collect();
    let (_, pool, plans) = session.plans(&names, Asks::Both).await?;
    let mut verified = Verified { findings: Vec::new(), unregistered: Vec::new(), adopted: Vec::new(), opened: false };
    if args.fix {
        session::at_home(&pool).await?;
        session::accepted(&pool, &plans).await?;
    }
    for plan in plans {
        if db::pipelines::find(&pool, &plan.pipeline.name).await?.is_none() {
            verified.unregistered.push(plan.pipeline.name.clone());
            continue;
        }
        if db::pipelines::has_earlier(&pool, &plan.pipeline.name, Earlier::Adopted).await? {
            verified.adopted.push(plan.pipeline.name.clone());
        }
        let findings = look(&pool, &plan).await?;
        if args.fix {
            for slice in findings.chunks(500) {
                db::app::mend(&mut *pool.acquire().await?, &plan, slice).await?;
            }
        }
        verified.findings.extend(findings);
    }
    verified.opened = args.fix && !verified.findings.is_empty();
    let shown = if args.all { usize::MAX } else { SHOWN };
    session.print(&verified, |verified| people(verified, shown))?;
    let unreadable = verified.findings.iter().any(|finding| finding.kind == FindingKind::Unreadable);
    if verified.findings.is_empty() || (verified.opened && !unreadable) { Ok(()) } else { Err(Failure::Said) }
}

async fn look(pool: &PgPool, plan: &Plan) -> sqlx::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut after = None;
    let mut slices = db::app::ClosingIn::new(SLICE);
    loop {
        // A connection for each slice: workers need theirs.
        let mut connection = pool.acquire().await?;
        after = match db::app::verify(&mut connection, plan, after.as_ref(), slices.rows()).await {
            Ok((found, next)) => {
                findings.extend(found);
                next
            }
            Err(error) => {
                if !slices.on(error)? {
                    continue;
                }
                let bad = db::app::next_key(&mut connection, plan, after.as_ref()).await?;
                let pipeline = plan.pipeline.name.clone();
                let finding = |key| Finding { pipeline, key, kind: FindingKind::Unreadable, failed: false };
                findings.extend(bad.clone().map(finding));
                bad
            }
        };
        if after.is_none() {
            break;
        }
    }
    findings.extend(db::app::orphans(&mut *pool.acquire().await?, plan, ORPHANS).await?);
    Ok(findings)
}

fn people(verified: &Verified, shown: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for name in &verified.unregistered {
        lines.push(format!("{name}: no worker has started with it yet, so there is nothing to hold against"));
    }
    if verified.findings.is_empty() {
        lines.push("nothing is wrong: every completed row has its vectors and says so".to_owned());
        lines.extend(verified.adopted.iter().map(|name| {
            format!("{name}: but for adopted rows, which say what they said: adopting writes nothing on them, and only their vectors are looked at")
        }));
        return lines.join("\n");
    }
    let rows = verified.findings.iter().take(shown).map(|finding| {
        let kind = format!("{:?}", finding.kind).to_lowercase();
        vec![finding.pipeline.clone(), finding.key.to_string(), kind]
    });
    lines.push(show::table(&["pipeline", "key", "what"], &[], rows.collect()));
    if verified.findings.len() > shown {
        lines.push(format!("and {} more (--all or --json shows them)", verified.findings.len() - shown));
    }
    let found = show::count(verified.findings.len() as u64, "finding");
    let what = if verified.opened {
        "opened; a worker mends them, but for unreadable rows"
    } else {
        "not opened; --fix opens their jobs"
    };
    lines.push(format!("{found}, {what}"));
    lines.join("\n")
}
