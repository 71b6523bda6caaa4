//! `gristmill usage`

use std::collections::BTreeMap;

use clap::ValueEnum;
use rust_decimal::Decimal;
use serde::Serialize;
use time::OffsetDateTime;

use crate::db::usage::{self, Calls, Total};

use super::failure::Failure;
use super::session::Session;
use super::{ask, reconcile, show};

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  gristmill usage --since 7d --by tenant,model\n  gristmill usage reconcile"
)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<String>,
    /// Since when: a length of time like 30d, or a day like 2026-01-01
    #[arg(long, default_value = "30d", value_parser = ask::since)]
    since: OffsetDateTime,
    /// What to add up by
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["day", "tenant", "model"])]
    by: Vec<By>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Hold the ledger against the calls that were paid and the jobs that were done; exit code 1 where it does not add up
    Reconcile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// Calendar days, UTC
    Day,
    /// Whose rows
    Tenant,
    /// Pipelines
    Pipeline,
    /// Providers
    Provider,
    /// Models
    Model,
}

impl By {
    fn word(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Tenant => "tenant",
            Self::Pipeline => "pipeline",
            Self::Provider => "provider",
            Self::Model => "model",
        }
    }

    fn of(self, total: &Total) -> String {
        match self {
            Self::Day => total.day.date().to_string(),
            Self::Tenant => total.tenant.clone(),
            Self::Pipeline => total.pipeline.clone(),
            Self::Provider => total.provider.clone(),
            Self::Model => total.model.clone(),
        }
    }
}

/// The ledger added up.
#[derive(Debug, Serialize)]
pub(super) struct Ledger {
    usage: Vec<Line>,
    calls: Vec<Calls>,
}

#[derive(Debug, Clone, Serialize)]
struct Line {
    #[serde(flatten)]
    by: serde_json::Map<String, serde_json::Value>,
    meter: String,
    quantity: Decimal,
    unit: String,
    /// None where no event had a price.
    usd: Option<Decimal>,
    /// Events whose price was not known.
    unpriced: i64,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    if let Some(What::Reconcile) = args.what {
        return reconcile::run(session).await;
    }
    let pool = session.database().await?;
    let mut by = args.by.clone();
    let mut seen = Vec::new();
    by.retain(|one| {
        !seen.contains(one) && {
            seen.push(*one);
            true
        }
    });
    let ledger = read(&pool, args.since, args.tenant.as_deref(), &by).await?;
    session.print(&ledger, |ledger| people(ledger, &by))
}

/// The whole ledger of a database, as the demo shows it.
pub(super) async fn everything(pool: &sqlx::PgPool) -> Result<String, Failure> {
    let by = [By::Tenant, By::Model];
    let ledger = read(pool, OffsetDateTime::UNIX_EPOCH, None, &by).await?;
    Ok(people(&ledger, &by))
}

async fn read(pool: &sqlx::PgPool, since: OffsetDateTime, tenant: Option<&str>, by: &[By]) -> sqlx::Result<Ledger> {
    // Usage is kept by days.
    let first_day = since.replace_time(time::Time::MIDNIGHT);
    let totals = usage::totals(pool, first_day, tenant).await?;
    let calls = usage::calls(pool, since, tenant).await?;
    Ok(Ledger { usage: add_up(&totals, by), calls })
}

fn add_up(totals: &[Total], by: &[By]) -> Vec<Line> {
    let mut lines: BTreeMap<Vec<String>, Line> = BTreeMap::new();
    for total in totals {
        let mut key: Vec<String> = by.iter().map(|by| by.of(total)).collect();
        let names = by.iter().map(|by| by.word().to_owned()).zip(key.iter().cloned().map(serde_json::Value::from));
        let fresh = Line {
            by: names.collect(),
            meter: total.meter.clone(),
            quantity: Decimal::ZERO,
            unit: total.unit.clone(),
            usd: None,
            unpriced: 0,
        };
        key.extend([total.meter.clone(), total.unit.clone()]);
        let line = lines.entry(key).or_insert(fresh);
        line.quantity += total.quantity;
        line.unpriced += total.unpriced;
        line.usd = match (line.usd, total.cost) {
            (Some(sum), Some(cost)) => Some(sum + cost),
            (sum, cost) => sum.or(cost),
        };
    }
    lines.into_values().collect()
}

fn people(ledger: &Ledger, by: &[By]) -> String {
    let mut header: Vec<&str> = by.iter().map(|by| by.word()).collect();
    header.extend(["meter", "quantity", "cost"]);
    let rows = ledger.usage.iter().map(|line| {
        let mut row: Vec<String> =
            line.by.values().map(|value| value.as_str().unwrap_or_default().to_owned()).collect();
        let unpriced = match line.unpriced {
            0 => String::new(),
            events => format!(" ({} without a price)", show::count(events, "event")),
        };
        row.extend([
            line.meter.clone(),
            format!("{} {}", line.quantity.normalize(), line.unit),
            format!("{}{unpriced}", show::usd(line.usd)),
        ]);
        row
    });
    let mut text = if ledger.usage.is_empty() {
        "no usage was booked".to_owned()
    } else {
        show::table(&header, &["quantity", "cost"], rows.collect())
    };
    if !ledger.calls.is_empty() {
        let rows = ledger.calls.iter().map(|call| {
            vec![
                call.provider.clone(),
                call.model.clone(),
                call.purpose.clone(),
                call.outcome.clone(),
                call.calls.to_string(),
                call.inputs.to_string(),
                call.tokens.to_string(),
                if call.outcome == "paid" { show::usd(call.cost) } else { show::maybe(call.cost) },
            ]
        });
        let header = ["provider", "model", "for", "calls that were", "calls", "texts", "tokens", "cost"];
        text = format!("{text}\n{}", show::table(&header, &["calls", "texts", "tokens", "cost"], rows.collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(tenant: &str, quantity: i64, cost: Option<&str>) -> Total {
        Total {
            day: OffsetDateTime::UNIX_EPOCH,
            tenant: tenant.to_owned(),
            pipeline: "p".to_owned(),
            provider: "x".to_owned(),
            model: "m".to_owned(),
            meter: "tokens".to_owned(),
            unit: "tokens".to_owned(),
            quantity: quantity.into(),
            cost: cost.map(|cost| cost.parse().unwrap()),
            unpriced: i64::from(cost.is_none()),
        }
    }

    #[test]
    fn usage_is_added_up_exactly_and_what_has_no_price_is_said() {
        let totals = [total("a", 1, Some("0.1")), total("a", 2, Some("0.2")), total("b", 4, None)];
        let lines = add_up(&totals, &[By::Tenant]);
        let shown: Vec<_> = lines.iter().map(|line| (line.quantity.to_string(), line.usd, line.unpriced)).collect();
        let cost: Decimal = "0.3".parse().unwrap();
        assert_eq!(shown, [("3".to_owned(), Some(cost), 0), ("4".to_owned(), None, 1)]);
    }
}
