//! Effects of many jobs in one transaction: shared rows first, then effect by effect, with the jobs in the order of tenant and key.

use std::collections::{BTreeMap, HashMap};

use rust_decimal::Decimal;
use sqlx::PgConnection;

use crate::config::{Name, Occasion, Template};
use crate::db::app::{self, EffectPlan, LockedRow, Plan, SharedKeys, SharedPlan};

use super::committer::{End, Verdict, Work};
use super::facts::Names;
use super::transaction::{Going, Refusal};

/// Values of a row by name.
type Values = HashMap<String, Option<String>>;

fn occasion(end: &End) -> Option<Occasion> {
    match end {
        End::Done(_) => Some(Occasion::Done),
        End::Skip { .. } => Some(Occasion::Skipped),
        End::Leave { .. } => Some(Occasion::Left),
        // Who served the row has seen to what belongs to it.
        End::Fail { .. } | End::Stands { .. } => None,
    }
}

/// What a job's effects know of its row: of one that left, what it was at the last commit.
fn row_values<'a>(work: &'a Work, locked: Option<&'a Values>) -> Option<&'a Values> {
    match &work.end {
        End::Leave { .. } => work.job.kept.as_ref().or(locked),
        End::Done(_) | End::Stands { .. } | End::Skip { .. } | End::Fail { .. } => locked,
    }
}

/// Locks the rows that the group's effects share. A job whose row somebody else holds joins a later group, which
/// may have to be patient: a row that is never free would keep its jobs for ever.
pub(super) async fn lock_shared(
    connection: &mut PgConnection,
    plan: &Plan,
    works: &[&Work],
    locked: &HashMap<usize, LockedRow>,
    patient: bool,
    verdicts: &mut [Option<Verdict>],
) -> sqlx::Result<()> {
    let mut keys = SharedKeys::new();
    let mut asked = Vec::new();
    for (nth, work) in works.iter().enumerate().filter(|(nth, _)| verdicts[*nth].is_none()) {
        let values = row_values(work, locked.get(&nth).map(|row| &row.values));
        for shared in shared_of(plan, work) {
            // A key that is null finds no row.
            let Some(key) = shared_key(shared, work, values) else { continue };
            keys.entry(shared.place()).or_default().insert(key.clone());
            asked.push((nth, shared.place(), key));
        }
    }
    for (table, keys) in keys {
        let busy = app::lock_shared(connection, &table, &keys, patient).await?;
        for (nth, _, _) in asked.iter().filter(|(_, of, key)| *of == table && busy.contains(key)) {
            verdicts[*nth] = Some(Verdict::Busy);
        }
    }
    Ok(())
}

fn shared_of<'a>(plan: &'a Plan, work: &Work) -> impl Iterator<Item = &'a SharedPlan> {
    let occasion = occasion(&work.end);
    let runs = move |effect: &&EffectPlan| occasion.is_some_and(|occasion| effect.is_for(occasion));
    plan.effects.iter().filter(runs).filter_map(|effect| effect.shared.as_ref())
}

fn shared_key(shared: &SharedPlan, work: &Work, values: Option<&Values>) -> Option<Vec<String>> {
    let value = |name: &Name| match name {
        Name::Row(name) => values?.get(name)?.clone(),
        Name::Tenant => Some(tenant(work).to_owned()),
        Name::Job(_) | Name::Chunk(_) => None,
    };
    let part = |template: &Template| {
        template.names().into_iter().all(|name| value(name).is_some()).then(|| template.render(value))
    };
    shared.key.iter().map(|(_, template)| part(template)).collect()
}

fn tenant(work: &Work) -> &str {
    match &work.end {
        End::Done(done) => &done.row.tenant,
        End::Skip { row, .. } | End::Stands { row } => &row.tenant,
        End::Fail { row, .. } => row.as_ref().map_or(&work.job.tenant, |row| &row.tenant),
        End::Leave { .. } => &work.job.tenant,
    }
}

/// Runs the effects of a group. What adds up over jobs is summed where the jobs differ in nothing else that an effect on a shared row names,
/// so that such a row is written once.
pub(super) async fn run(connection: &mut PgConnection, plan: &Plan, going: &[Going<'_>]) -> Result<(), Refusal> {
    if plan.effects.is_empty() {
        return Ok(());
    }
    let mut order: Vec<&Going<'_>> = going.iter().collect();
    order.sort_by(|a, b| (tenant(a.work), &a.work.job.key).cmp(&(tenant(b.work), &b.work.job.key)));
    for effect in &plan.effects {
        let jobs = order.iter().filter(|ready| occasion(&ready.work.end).is_some_and(|end| effect.is_for(end)));
        let named = |error| Refusal { error, effect: Some(effect.name.clone()) };
        for values in bindings(plan, effect, jobs) {
            app::run_effect(connection, effect, &values).await.map_err(named)?;
        }
    }
    app::settle(connection).await?;
    Ok(())
}

/// The values of each run of an effect: one for each job, or one for all that share a row and differ only in what adds up.
fn bindings<'g>(
    plan: &Plan,
    effect: &EffectPlan,
    jobs: impl Iterator<Item = &'g &'g Going<'g>>,
) -> Vec<Vec<Option<String>>> {
    let names = &effect.statement.names;
    let mut runs: Vec<Vec<Option<String>>> = Vec::new();
    let mut known: BTreeMap<Vec<Option<String>>, usize> = BTreeMap::new();
    for ready in jobs {
        let row = row_values(ready.work, ready.values.as_ref());
        let values: Vec<Option<String>> = names.iter().map(|name| value(plan, ready, row, name)).collect();
        let Some(shared) = &effect.shared else {
            runs.push(values);
            continue;
        };
        let of_key = shared_key(shared, ready.work, row).into_iter().flatten().map(Some);
        let apart = names.iter().zip(&values).filter(|(name, _)| !app::adds_up(name)).map(|(_, value)| value.clone());
        let same: Vec<Option<String>> = of_key.chain(apart).collect();
        if let Some(&nth) = known.get(&same) {
            let both = runs[nth].iter_mut().zip(values).zip(names);
            both.filter(|(_, name)| app::adds_up(name)).for_each(|((sum, value), _)| add(sum, value.as_ref()));
        } else {
            known.insert(same, runs.len());
            runs.push(values);
        }
    }
    runs
}

fn value(plan: &Plan, ready: &Going<'_>, row: Option<&Values>, name: &Name) -> Option<String> {
    match name {
        Name::Row(name) => row?.get(name)?.clone(),
        Name::Tenant => Some(tenant(ready.work).to_owned()),
        Name::Job(_) => Names { plan, job: &ready.work.job, row: None, facts: &ready.facts }.value(name, None),
        Name::Chunk(_) => None,
    }
}

/// Adds numbers that are written out; what is not known adds nothing.
fn add(sum: &mut Option<String>, value: Option<&String>) {
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<Decimal>().ok());
    *sum = match (number(sum.as_ref()), number(value)) {
        (Some(one), Some(other)) => Some((one + other).to_string()),
        (Some(one), None) | (None, Some(one)) => Some(one.to_string()),
        (None, None) => None,
    };
}

/// What the job keeps of its row for effects that run when the row may be gone.
pub(super) fn kept(plan: &Plan, ready: &Going<'_>) -> Option<serde_json::Value> {
    if plan.kept_names.is_empty() || matches!(ready.work.end, End::Leave { .. }) {
        return None;
    }
    let kept: BTreeMap<&String, &Option<String>> =
        ready.values.as_ref()?.iter().filter(|(name, _)| plan.kept_names.contains(*name)).collect();
    serde_json::to_value(kept).ok()
}
