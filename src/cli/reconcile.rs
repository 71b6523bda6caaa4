//! `gristmill usage reconcile`

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::Serialize;
use time::OffsetDateTime;

use crate::config::Meter;
use crate::db::reconcile::{self, Doubt, Entry};

use super::failure::Failure;
use super::session::Session;
use super::show;

/// Jobs that are named for one reason.
const MOST: i32 = 100;

/// What the ledger, the paid calls and the jobs say of each other.
#[derive(Debug, Serialize)]
struct Reconciliation {
    /// Lines from before may rest on calls whose details are pruned.
    #[serde(with = "time::serde::rfc3339")]
    calls_since: OffsetDateTime,
    adds_up: bool,
    tenants: Vec<Account>,
    differences: Vec<Difference>,
}

/// What one tenant was charged, and what was paid for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Account {
    tenant: String,
    provider: String,
    model: String,
    unit: &'static str,
    charged: Decimal,
    paid: Decimal,
    charged_usd: Option<Decimal>,
    paid_usd: Option<Decimal>,
}

/// Something that is not the same on both sides, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Difference {
    tenant: String,
    provider: String,
    model: String,
    /// Nothing explains it.
    fault: bool,
    reason: String,
    /// Paid, and not charged; below 0 charged, and not paid. None where it is not about how much.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<Decimal>,
    unit: &'static str,
    /// Jobs and their revisions, or searches.
    count: i64,
    /// The first hundred.
    jobs: Vec<i64>,
}

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let config = session.config_for_database()?;
    let pool = crate::app::connect(&config).await?;
    // A line may rest on a vector that was parked as long as that is allowed.
    let kept = config.worker.keep_history.saturating_sub(config.worker.keep_cache);
    // One moment for both: what a worker writes between them would be a difference.
    let mut moment = pool.begin().await?;
    reconcile::one_moment(&mut moment).await?;
    let since = crate::db::server::now(&mut *moment).await? - kept;
    let entries = reconcile::entries(&mut *moment, since, MOST).await?;
    let doubts = reconcile::doubts(&mut *moment, MOST).await?;
    moment.rollback().await?;
    let found = judge(since, &entries, &doubts);
    session.print(&found, people)?;
    if found.adds_up { Ok(()) } else { Err(Failure::Said) }
}

fn judge(since: OffsetDateTime, entries: &[Entry], doubts: &[Doubt]) -> Reconciliation {
    let mut accounts: BTreeMap<[&str; 4], Vec<&Entry>> = BTreeMap::new();
    // A completed job of which there is neither a line nor a call has no model.
    for entry in entries.iter().filter(|entry| !entry.model.is_empty()) {
        accounts.entry([&entry.tenant, &entry.provider, &entry.model, &entry.meter]).or_default().push(entry);
    }
    let mut differences: Vec<Difference> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.reason != "settled") {
        let of = accounts.get(&[&*entry.tenant, &*entry.provider, &*entry.model, &*entry.meter]);
        // A call of which nobody knows may have been paid, and its answer kept.
        let left: Decimal = of
            .into_iter()
            .flatten()
            // A question's vector is nobody's.
            .filter(|other| other.reason != "search")
            .map(|other| other.unknown + if leaves(&other.reason) { other.paid - other.charged } else { Decimal::ZERO })
            .sum();
        let short = entry.charged - entry.paid;
        let fault = match entry.reason.as_str() {
            "kept" => short > left,
            reason => is_fault(reason),
        };
        differences.push(Difference {
            tenant: entry.tenant.clone(),
            provider: entry.provider.clone(),
            model: entry.model.clone(),
            fault,
            reason: say(&entry.reason, fault).to_owned(),
            quantity: Some(amount(&entry.meter, -short)),
            unit: unit(&entry.meter),
            count: entry.count,
            jobs: entry.jobs.clone(),
        });
    }
    differences.extend(doubts.iter().map(|doubt| Difference {
        tenant: doubt.tenant.clone(),
        provider: doubt.provider.clone(),
        model: doubt.model.clone(),
        fault: is_fault(&doubt.reason),
        reason: say(&doubt.reason, is_fault(&doubt.reason)).to_owned(),
        quantity: None,
        unit: unit(&doubt.meter),
        count: doubt.count,
        jobs: doubt.jobs.clone(),
    }));
    differences.sort_by_key(|difference| !difference.fault);
    Reconciliation {
        calls_since: since,
        adds_up: differences.iter().all(|difference| !difference.fault),
        tenants: accounts.values().filter_map(|entries| account(entries)).collect(),
        differences,
    }
}

fn account(entries: &[&Entry]) -> Option<Account> {
    let first = entries.first()?;
    let usd =
        |of: fn(&Entry) -> Option<Decimal>| entries.iter().filter_map(|entry| of(entry)).reduce(|sum, cost| sum + cost);
    Some(Account {
        tenant: first.tenant.clone(),
        provider: first.provider.clone(),
        model: first.model.clone(),
        unit: unit(&first.meter),
        charged: amount(&first.meter, entries.iter().map(|entry| entry.charged).sum()),
        paid: amount(&first.meter, entries.iter().map(|entry| entry.paid).sum()),
        charged_usd: usd(|entry| entry.charged_usd),
        paid_usd: usd(|entry| entry.paid_usd),
    })
}

/// Sound is compared in milliseconds, and told in seconds.
fn amount(meter: &str, amount: Decimal) -> Decimal {
    if meter == Meter::AudioMinutes.word() { (amount / Decimal::from(1000)).normalize() } else { amount.normalize() }
}

fn unit(meter: &str) -> &'static str {
    if meter == Meter::AudioMinutes.word() { "second" } else { "token" }
}

/// What was paid for these may have been charged with another job or revision.
fn leaves(reason: &str) -> bool {
    ["forgotten", "in_flight", "overtaken", "ended", "not_written"].contains(&reason)
}

fn is_fault(reason: &str) -> bool {
    ["not_charged", "not_paid", "unknown_revision", "wrong_cost", "wrong_parts"].contains(&reason)
}

fn say(reason: &str, fault: bool) -> &'static str {
    match (reason, fault) {
        ("in_flight", _) => "in flight: the job is open, or its call has no answer yet",
        ("unknown_call", _) => "unknown call: nobody knows whether the provider counted it",
        ("overtaken", _) => "paid for content that changed before it could be written",
        ("ended", _) => "paid, and the job ended without vectors",
        ("not_written", _) => "paid by an attempt whose answer could not be used or written",
        ("search", _) => "searches, which nobody is charged for",
        ("forgotten", _) => "the job is forgotten",
        ("pruned", _) => "the calls are pruned by age",
        ("kept", false) => "bought by an earlier try, or with another row of the tenant",
        ("kept", true) => "charged, and more than ever was paid for this tenant",
        ("price_unknown", _) => "price unknown: add it under [[prices]]",
        ("not_charged", _) => "paid and completed, and not charged",
        ("not_paid", _) => "charged, and not paid for",
        ("unknown_revision", _) => "the job never had this revision",
        ("wrong_cost", _) => "the cost is not quantity times price",
        ("wrong_parts", _) => "the jobs' parts of a call are not the call's whole",
        _ => "not explained",
    }
}

fn people(found: &Reconciliation) -> String {
    let rows = found.tenants.iter().map(|account| {
        vec![
            account.tenant.clone(),
            format!("{}/{}", account.provider, account.model),
            show::count_of(account.charged, account.unit),
            show::count_of(account.paid, account.unit),
            show::maybe(account.charged_usd.map(|usd| usd.normalize())),
            show::maybe(account.paid_usd.map(|usd| usd.normalize())),
        ]
    });
    let header = ["tenant", "model", "charged", "paid", "charged USD", "paid USD"];
    let mut text = if found.tenants.is_empty() {
        "nothing was paid and nothing was charged".to_owned()
    } else {
        show::table(&header, &header[2..], rows.collect())
    };
    for difference in &found.differences {
        text = format!("{text}\n{}", line(difference));
    }
    let verdict = if found.adds_up { "it adds up" } else { "it does not add up: see the lines marked FAULT" };
    format!("{text}\n{verdict} (calls since {})", show::moment(found.calls_since))
}

fn line(difference: &Difference) -> String {
    let mark = if difference.fault { "FAULT    " } else { "explained" };
    let how_much = match difference.quantity {
        Some(quantity) if quantity.is_sign_negative() => {
            format!("{} more charged than paid: ", show::count_of(-quantity, difference.unit))
        }
        Some(quantity) if !quantity.is_zero() => {
            format!("{} more paid than charged: ", show::count_of(quantity, difference.unit))
        }
        Some(_) | None => String::new(),
    };
    let shown: Vec<String> = difference.jobs.iter().take(10).map(ToString::to_string).collect();
    let more = if difference.jobs.len() > shown.len() { ", …" } else { "" };
    let jobs = if shown.is_empty() { String::new() } else { format!(" (jobs {}{more})", shown.join(", ")) };
    let tenant = if difference.tenant.is_empty() { "no tenant" } else { &difference.tenant };
    format!("{mark} {tenant} {}: {how_much}{}{jobs}", difference.model, difference.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tenant: &str, reason: &str, charged: i64, paid: i64) -> Entry {
        Entry {
            tenant: tenant.to_owned(),
            provider: "x".to_owned(),
            model: "m".to_owned(),
            meter: "tokens".to_owned(),
            reason: reason.to_owned(),
            charged: charged.into(),
            paid: paid.into(),
            charged_usd: None,
            paid_usd: None,
            unknown: Decimal::ZERO,
            count: 1,
            jobs: vec![7],
        }
    }

    fn adds_up(entries: &[Entry]) -> bool {
        judge(OffsetDateTime::UNIX_EPOCH, entries, &[]).adds_up
    }

    #[test]
    fn what_was_kept_is_charged_as_far_as_it_was_paid_for_the_same_tenant() {
        assert!(adds_up(&[entry("a", "settled", 5, 5), entry("a", "overtaken", 0, 7), entry("a", "kept", 9, 2)]));
        assert!(!adds_up(&[entry("a", "settled", 5, 5), entry("a", "overtaken", 0, 7), entry("a", "kept", 10, 2)]));
        assert!(!adds_up(&[entry("b", "overtaken", 0, 7), entry("a", "kept", 9, 2)]));
        assert!(!adds_up(&[entry("a", "not_charged", 0, 7), entry("a", "kept", 9, 2)]));
        let unknown = |tokens: i64| Entry { unknown: tokens.into(), ..entry("a", "unknown_call", 0, 0) };
        assert!(adds_up(&[unknown(7), entry("a", "kept", 9, 2)]));
        assert!(!adds_up(&[unknown(6), entry("a", "kept", 9, 2)]));
        let search = Entry { unknown: 7.into(), ..entry("a", "search", 0, 7) };
        assert!(adds_up(std::slice::from_ref(&search)));
        assert!(!adds_up(&[search, entry("a", "kept", 9, 2)]));
    }

    #[test]
    fn sound_is_told_in_seconds() {
        assert_eq!(amount("audio_minutes", 3_550.into()).to_string(), "3.55");
        assert_eq!(amount("tokens", 3_550.into()).to_string(), "3550");
    }
}
