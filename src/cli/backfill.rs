//! `gristmill backfill`

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::PgPool;

use crate::app::{self, Readiness};
use crate::db;
use crate::db::app::{ClosingIn, Plan, Unworked, Wanted};
use crate::domain::SourceKey;

use super::failure::Failure;
use super::session::{self, Asks, Session};
use super::{ask, cost, show};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Opens rows of the set that have no job yet, that wait for `accept`, or that existing = \"ignore\" passed over. Where\n\
                        existing = \"adopt\", rows without a job that have valid vectors are done, unpaid. Stopped, it goes on where it was.\n\n\
                        Examples:\n  gristmill backfill documents --dry-run\n  \
                        gristmill backfill documents --where \"source.created_at > now() - interval '1 year'\" --yes"
)]
pub(super) struct Args {
    /// The pipeline
    pipeline: String,
    /// Only rows of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only rows for which this holds: SQL over the row, which is called `source`
    #[arg(long = "where", value_name = "SQL")]
    condition: Option<String>,
    /// Rows opened in one transaction
    #[arg(long, value_name = "ROWS", default_value_t = 1_000, value_parser = clap::value_parser!(i64).range(1..=50_000))]
    slice: i64,
    /// Higher goes first, within its tenant; what an application inserts or changes has 0
    #[arg(long, default_value_t = db::pipelines::BEHIND, allow_negative_numbers = true)]
    priority: i32,
    /// Only show what would be opened and what it would cost
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Rows counted in one statement, and how many of each such slice may be judged by.
const COUNTED: i64 = 5_000;
const SAMPLED: i64 = 50;
/// Width of the bar.
const BAR: usize = 24;

#[derive(Debug, Serialize)]
struct Backfill {
    pipeline: String,
    model: String,
    /// Rows that would be opened.
    rows: i64,
    /// Rows whose vectors are taken as they are.
    rows_adopted: i64,
    /// Judged by so many of them, cut and counted as a job would.
    rows_sampled: i64,
    tokens_estimated: i64,
    /// Rows whose content is a file: nobody knows before it is read.
    files_of_unknown_tokens: i64,
    /// None where the price is not known.
    usd_estimated: Option<Decimal>,
    dry_run: bool,
    opened: i64,
    seconds: f64,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let (config, pool, plan) = session.plan(&args.pipeline, Asks::Source).await?;
    if !args.dry_run {
        session::at_home(&pool).await?;
    }
    // Before rows that were there before get their jobs: those that are adopted then are on the bill as well.
    let readiness = app::readiness(&pool, &plan).await?;
    if readiness != Readiness::Ready {
        return Err(Failure::Failed(app::say(&args.pipeline, &readiness)));
    }
    let wanted = Wanted { tenant: args.tenant.clone(), condition: args.condition.clone() };
    let found = count(&pool, &plan, &wanted).await?;
    let estimate = app::estimate_of(&config, &pool, &plan, found.rows, &found.sample).await?;
    let mut backfill = Backfill {
        pipeline: args.pipeline.clone(),
        model: plan.model.name.clone(),
        rows: found.rows,
        rows_adopted: found.adopted,
        rows_sampled: estimate.sampled,
        tokens_estimated: estimate.tokens,
        files_of_unknown_tokens: estimate.files,
        usd_estimated: cost::of_tokens(&app::KnownPrices::read(&config, &pool).await?, &plan.model, estimate.tokens),
        dry_run: args.dry_run,
        opened: 0,
        seconds: 0.0,
    };
    if args.dry_run || found.rows + found.adopted == 0 {
        return session.print(&backfill, bill);
    }
    if !session.json {
        show::out(&bill(&backfill))?;
    }
    ask::confirm("Go on?", args.yes)?;
    let began = Instant::now();
    let registered = db::pipelines::find(&pool, &args.pipeline).await?;
    let readiness = app::register(&pool, &plan, config.worker.sweep_rows, &|| false).await?;
    if readiness != Readiness::Ready {
        return Err(Failure::Failed(app::say(&args.pipeline, &readiness)));
    }
    let done = open(&pool, &plan, &wanted, args, Bar::new(found.rows + found.adopted, session.json)).await?;
    backfill.opened = done.rows;
    if registered.is_some_and(|registered| registered.census_done) {
        backfill.rows_adopted = done.adopted;
    }
    backfill.seconds = began.elapsed().as_secs_f64();
    session.print(&backfill, |done| said(done, found.rows))
}

/// Counts slice by slice, so that no statement lasts long; the sample is thinned out in the end.
async fn count(pool: &PgPool, plan: &Plan, wanted: &Wanted) -> Result<Unworked, Failure> {
    let mut found = Unworked { rows: 0, sample: Vec::new(), adopted: 0, after: None };
    let mut slices = ClosingIn::new(COUNTED);
    let mut connection = pool.acquire().await?;
    loop {
        let (after, rows) = (found.after.clone(), slices.rows());
        found.after = match db::app::count_unworked(&mut connection, plan, wanted, after.as_ref(), rows, SAMPLED).await
        {
            Ok(slice) => {
                found.rows += slice.rows;
                found.adopted += slice.adopted;
                found.sample.extend(slice.sample);
                slice.after
            }
            Err(error) => match pass_by(&mut slices, &mut connection, (plan, wanted), error, after.as_ref()).await? {
                Some(next) => next,
                None => continue,
            },
        };
        if found.after.is_none() {
            found.sample = app::thinned(found.sample);
            return Ok(found);
        }
    }
}

/// The key behind a row that cannot be read, which the sweep opens; none where a smaller slice is worth a try. A row on which the person's
/// own condition fails is nobody else's: whether it was meant, the person has to say.
async fn pass_by(
    slices: &mut ClosingIn,
    connection: &mut sqlx::PgConnection,
    (plan, wanted): (&Plan, &Wanted),
    error: sqlx::Error,
    after: Option<&SourceKey>,
) -> Result<Option<Option<SourceKey>>, Failure> {
    if !slices.on(error)? {
        return Ok(None);
    }
    if let Some(condition) = &wanted.condition
        && let Some((key, error)) = db::app::condition_fails_on(connection, plan, condition, after).await?
    {
        let why = db::describe(&error);
        return Err(Failure::Failed(format!(
            "--where {condition:?} fails on the row {key}: {why}; no row behind it was opened"
        )));
    }
    Ok(Some(db::app::next_key(connection, plan, after).await?))
}

async fn open(pool: &PgPool, plan: &Plan, wanted: &Wanted, args: &Args, bar: Bar) -> Result<Unworked, Failure> {
    let mut done = Unworked { rows: 0, sample: Vec::new(), adopted: 0, after: None };
    let mut slices = ClosingIn::new(args.slice);
    let mut connection = pool.acquire().await?;
    loop {
        let (after, rows) = (done.after.clone(), slices.rows());
        let opened = db::app::open_unworked(&mut connection, plan, wanted, after.as_ref(), rows, args.priority).await;
        done.after = match opened {
            Ok(slice) => {
                done.rows += slice.rows;
                done.adopted += slice.adopted;
                slice.after
            }
            Err(error) => match pass_by(&mut slices, &mut connection, (plan, wanted), error, after.as_ref()).await? {
                Some(next) => next,
                None => continue,
            },
        };
        bar.show(done.rows + done.adopted);
        if done.after.is_none() {
            bar.end();
            return Ok(done);
        }
    }
}

fn bill(backfill: &Backfill) -> String {
    if backfill.rows + backfill.rows_adopted == 0 {
        return format!("{}: no such row waits for its first attempt", backfill.pipeline);
    }
    let mut tokens =
        format!("about {}, judged by {}", backfill.tokens_estimated, show::count(backfill.rows_sampled, "row"));
    if backfill.files_of_unknown_tokens > 0 {
        let files = show::count(backfill.files_of_unknown_tokens, "file");
        tokens = format!("{tokens}, and those of {files}, unknown before they are read");
    }
    let rows = vec![
        vec!["pipeline".to_owned(), backfill.pipeline.clone()],
        vec!["model".to_owned(), backfill.model.clone()],
        vec!["rows to open".to_owned(), backfill.rows.to_string()],
        vec!["rows whose vectors are adopted".to_owned(), backfill.rows_adopted.to_string()],
        vec!["tokens".to_owned(), tokens],
        vec!["cost".to_owned(), show::usd(backfill.usd_estimated)],
    ];
    show::table(&["what", "how much"], &[], rows)
}

fn said(done: &Backfill, rows: i64) -> String {
    let opened = format!("{} opened in {}", show::count(done.opened, "job"), show::seconds(done.seconds));
    if done.opened < rows {
        let left = show::count(rows - done.opened, "row");
        return format!("{opened}; {left} were taken or held by somebody meanwhile: run it again to see to them");
    }
    opened
}

/// How far it is: one line that is written again and again, at a terminal only.
struct Bar {
    all: i64,
    began: Instant,
    watched: bool,
}

impl Bar {
    fn new(all: i64, quiet: bool) -> Self {
        Self { all, began: Instant::now(), watched: !quiet && std::io::stderr().is_terminal() }
    }

    fn show(&self, done: i64) {
        if self.watched {
            eprint!("\r\x1b[2K{}", line(done, self.all, self.began.elapsed()));
        }
    }

    fn end(&self) {
        if self.watched {
            eprintln!();
        }
    }
}

/// `[######··] 750 of 1000 rows, 250/s, 1 s left`
fn line(done: i64, all: i64, took: Duration) -> String {
    let done = done.clamp(0, all);
    let full = usize::try_from(i128::from(done) * BAR as i128 / i128::from(all.max(1))).unwrap_or(BAR);
    let bar = format!("{}{}", "#".repeat(full), "·".repeat(BAR.saturating_sub(full)));
    #[expect(clippy::cast_precision_loss, reason = "rows are counted far below 2^52")]
    let (rate, left) = (done as f64 / took.as_secs_f64().max(0.001), (all - done) as f64);
    let left = if done > 0 { show::seconds(left / rate) } else { "unknown time".to_owned() };
    format!("[{bar}] {done} of {}, {rate:.0}/s, {left} left", show::count(all, "row"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_tells_rate_and_time_left() {
        let at = |done, seconds| line(done, 1_000, Duration::from_secs(seconds));
        assert_eq!(at(750, 3), "[##################······] 750 of 1000 rows, 250/s, 1 s left");
        assert_eq!(at(0, 0), "[························] 0 of 1000 rows, 0/s, unknown time left");
        // Rows that came meanwhile are opened as well.
        assert_eq!(at(1_200, 4), "[########################] 1000 of 1000 rows, 250/s, 0 s left");
    }
}
