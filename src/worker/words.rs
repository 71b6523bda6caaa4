//! Says on source rows that they are worked on. An attempt that is soon over writes its end at once: a word in between would cost as much
//! as that, and nobody would have seen it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::db;
use crate::db::app::{Plan, QueuePlan, WorkedOn};
use crate::domain::{ClaimedJob, SourceKey};
use crate::jobs::Deps;

use super::Engine;

/// An attempt that takes longer shows on its row.
const SHOWN_AFTER: Duration = Duration::from_millis(300);
/// Words that fall due this far apart are written together.
const TOGETHER: Duration = Duration::from_millis(50);
/// For how long a word is tried.
const PATIENCE: Duration = Duration::from_secs(5);

/// Notes that a claimed job's row has to say so, if its attempt is not over before. Somebody else has served a row whose need has ended.
pub(super) fn owe(engine: &Engine, deps: &Deps, job: &ClaimedJob) {
    let has_word = deps.plan.status.as_ref().is_some_and(|status| status.column.is_some());
    if has_word && !job.need_ended {
        let due = Instant::now() + SHOWN_AFTER;
        engine.hands.owe_word((job.id, job.lease), job.key.clone(), due);
    }
}

/// Writes what is owed until `stop`.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    loop {
        let wait = engine.hands.next_word().map(|due| due.saturating_duration_since(Instant::now()) + TOGETHER);
        tokio::select! {
            () = engine.hands.owing(), if wait.is_none() => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {
                // Jobs on their way back have their word taken back: not while it is being written.
                let _speaking = engine.speaking.lock().await;
                for (pipeline, rows) in engine.hands.words_due(Instant::now()) {
                    if let Some(deps) = engine.deps(&pipeline)
                        && let Some(status) = &deps.plan.pipeline.status
                    {
                        let rows: Vec<&WorkedOn> = rows.iter().collect();
                        say(&engine, &deps.fit.plan(), Rows::InHand(&rows), &status.words.processing).await;
                    }
                }
            }
            () = stop.cancelled() => return,
        }
    }
}

/// Rows that are to get a word.
#[derive(Clone, Copy)]
pub(super) enum Rows<'r> {
    /// Those whose jobs are in hand, under these leases.
    InHand(&'r [&'r WorkedOn]),
    /// Those that have one of these words.
    With(&'r [&'r str], &'r [&'r SourceKey]),
    /// The rows of the application's own job table that ask for these keys, and have one of these words.
    Asking(&'r QueuePlan, &'r [&'r str], &'r [&'r SourceKey]),
}

impl Rows<'_> {
    fn halves(self) -> Option<[Self; 2]> {
        fn cut<R>(rows: &[R]) -> Option<[&[R]; 2]> {
            (rows.len() > 1).then(|| rows.split_at(rows.len() / 2).into())
        }
        match self {
            Self::InHand(rows) => Some(cut(rows)?.map(Self::InHand)),
            Self::With(words, keys) => Some(cut(keys)?.map(|keys| Self::With(words, keys))),
            Self::Asking(queue, words, keys) => Some(cut(keys)?.map(|keys| Self::Asking(queue, words, keys))),
        }
    }

    async fn get(self, connection: &mut PgConnection, plan: &Plan, word: &str) -> sqlx::Result<()> {
        match self {
            Self::InHand(rows) => db::app::mirror_in_hand(connection, plan, rows, word).await,
            Self::With(words, keys) => db::app::mirror(connection, plan, keys, word, words).await,
            Self::Asking(queue, words, keys) => {
                db::app::mirror_asking(connection, plan, queue, keys, word, words).await
            }
        }
    }
}

/// Writes a word on rows, best effort, since nothing depends on it. A key that does not fit its column, or a row that may not be written,
/// is nobody else's trouble: what is refused is halved.
pub(super) async fn say(engine: &Engine, plan: &Plan, rows: Rows<'_>, word: &str) {
    let written = async {
        let mut connection = engine.pool.acquire().await?;
        let mut stack = vec![rows];
        while let Some(rows) = stack.pop() {
            match (rows.get(&mut connection, plan, word).await, rows.halves()) {
                (Ok(()), _) => {}
                (Err(error), _) if db::is_passing(&error) => return Err(error),
                (Err(_), Some(halves)) => stack.extend(halves),
                (Err(error), None) => {
                    tracing::debug!(error = db::describe(&error), word, "the status could not be mirrored");
                }
            }
        }
        Ok(())
    };
    // A pool that is drained must not hold claims up.
    match tokio::time::timeout(PATIENCE, written).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = db::describe(&error), word, "the status could not be mirrored"),
        Err(_) => tracing::debug!(word, "the status could not be mirrored in time"),
    }
}
