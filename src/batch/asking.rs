//! The rows of the application's own job table that asked for a group's jobs: locked with the source rows, answered with the jobs' end.

use std::borrow::Cow;

use sqlx::PgConnection;

use crate::db::app::{self, Answer, Plan, QueuePlan};
use crate::domain::SourceKey;

use super::committer::{End, Verdict, Work};
use super::facts::{JobFacts, Names};
use super::transaction::Going;

/// Locks the rows that asked. A job whose asking row somebody holds joins a later group.
pub(super) async fn lock(
    connection: &mut PgConnection,
    plan: &Plan,
    works: &[&Work],
    verdicts: &mut [Option<Verdict>],
) -> sqlx::Result<()> {
    let Some(queue) = &plan.queue else { return Ok(()) };
    let open: Vec<usize> = (0..works.len()).filter(|&nth| verdicts[nth].is_none()).collect();
    let keys: Vec<&SourceKey> = open.iter().map(|&nth| &works[nth].job.key).collect();
    for nth in app::lock_marked(connection, plan, queue, &keys).await? {
        verdicts[open[nth]] = Some(Verdict::Busy);
    }
    Ok(())
}

/// Says how the jobs ended.
pub(super) async fn answer(connection: &mut PgConnection, plan: &Plan, going: &[Going<'_>]) -> sqlx::Result<()> {
    let Some(queue) = &plan.queue else { return Ok(()) };
    let answers: Vec<Answer<'_>> = going
        .iter()
        .map(|ready| {
            let row = match &ready.work.end {
                End::Done(done) => Some(&*done.row),
                End::Skip { row, .. } | End::Stands { row } => Some(&**row),
                End::Fail { row, .. } => row.as_deref(),
                End::Leave { .. } => None,
            };
            let facts = told(&ready.facts, queue, &ready.work.end);
            let names = Names { plan, job: &ready.work.job, row, facts: &facts };
            Answer {
                key: &ready.work.job.key,
                word: queue.word_of(ready.facts.state).to_owned(),
                values: queue.columns.iter().map(|write| names.column(write, None)).collect(),
            }
        })
        .collect();
    app::answer(connection, plan, queue, &answers).await
}

/// Where a row that left has no word of its own, it is a failure for whoever asked, and says why.
fn told<'a>(facts: &'a JobFacts, queue: &QueuePlan, end: &End) -> Cow<'a, JobFacts> {
    match end {
        End::Leave { .. } if queue.word_of("cancelled") == queue.words.failed => {
            Cow::Owned(JobFacts { error: facts.cause.clone(), ..facts.clone() })
        }
        _ => Cow::Borrowed(facts),
    }
}

/// As [`answer`], for jobs whose rows could not be loaded: then nobody has marked those that ask.
pub(super) async fn answer_unmarked(
    connection: &mut PgConnection,
    plan: &Plan,
    going: &[Going<'_>],
) -> sqlx::Result<()> {
    let Some(queue) = &plan.queue else { return Ok(()) };
    let keys: Vec<&SourceKey> = going.iter().map(|ready| &ready.work.job.key).collect();
    app::mark(connection, plan, queue, &keys).await?;
    answer(connection, plan, going).await
}
