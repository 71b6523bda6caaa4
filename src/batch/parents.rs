//! The rows that new chunks will refer to: locked before anything is written.

use sqlx::PgConnection;

use crate::db::app::{self, ParentPlan, Plan, SharedKeys};

use super::committer::{End, Verdict, Work};
use super::facts::Names;

/// Locks them by table and key. A job one of whose rows somebody holds joins a later group.
pub(super) async fn lock(
    connection: &mut PgConnection,
    plan: &Plan,
    works: &[&Work],
    verdicts: &mut [Option<Verdict>],
) -> sqlx::Result<()> {
    let mut keys = SharedKeys::new();
    let mut asked = Vec::new();
    for (nth, work) in works.iter().enumerate().filter(|(nth, _)| verdicts[*nth].is_none()) {
        for parent in &plan.parents {
            // A key that is null refers to nothing.
            let Some(key) = key_of(parent, plan, work) else { continue };
            keys.entry(parent.table.clone()).or_default().insert(key.clone());
            asked.push((nth, &parent.table, key));
        }
    }
    for (table, keys) in keys {
        let busy = app::lock_parents(connection, &table, &keys).await?;
        for (nth, _, _) in asked.iter().filter(|(_, of, key)| **of == table && busy.contains(key)) {
            verdicts[*nth] = Some(Verdict::Busy);
        }
    }
    Ok(())
}

fn key_of(parent: &ParentPlan, plan: &Plan, work: &Work) -> Option<Vec<String>> {
    let End::Done(done) = &work.end else { return None };
    let names = Names { plan, job: &work.job, row: Some(&done.row), facts: &work.facts };
    parent.key.iter().map(|template| names.render(template, None)).collect()
}
