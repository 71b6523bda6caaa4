//! Says on source rows that they are worked on. An attempt that is soon over writes its end at once: a word in between would cost as much
//! as that, and nobody would have seen it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::StatusWords;
use crate::db;
use crate::db::app::{Plan, WorkedOn};
use crate::domain::ClaimedJob;
use crate::jobs::Deps;

use super::Engine;

/// An attempt that takes longer shows on its row.
const SHOWN_AFTER: Duration = Duration::from_millis(300);
/// Words that fall due this far apart are written together.
const TOGETHER: Duration = Duration::from_millis(50);

/// Notes that a claimed job's row has to say so, if its attempt is not over before. Somebody else has served a row whose need has ended.
pub(super) fn owe(engine: &Engine, deps: &Deps, job: &ClaimedJob) {
    let has_word = deps.plan.status.as_ref().is_some_and(|status| status.column.is_some());
    if has_word && !job.need_ended {
        let due = Instant::now() + SHOWN_AFTER;
        engine.hands.owe_word((job.id, job.lease), &job.pipeline, job.key.clone(), due);
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
                    if let Some(deps) = engine.deps(&pipeline) {
                        let word = |words: &StatusWords| words.processing.clone();
                        say(&engine, &deps.fit.plan(), &rows.iter().collect::<Vec<_>>(), word).await;
                    }
                }
            }
            () = stop.cancelled() => return,
        }
    }
}

/// Sets one of the pipeline's words on rows whose jobs are in hand. Best effort, since nothing depends on it. A key that does not fit its
/// column, or a row that may not be written, is nobody else's trouble: what is refused is halved.
pub(super) async fn say(engine: &Engine, plan: &Plan, rows: &[&WorkedOn], which: impl Fn(&StatusWords) -> String) {
    let Some(word) = plan.pipeline.status.as_ref().map(|status| which(&status.words)) else { return };
    let written = async {
        let mut connection = engine.pool.acquire().await?;
        let mut stack = vec![rows];
        while let Some(rows) = stack.pop() {
            match db::app::mirror_in_hand(&mut connection, plan, rows, &word).await {
                Err(error) if db::is_passing(&error) => return Err(error),
                Err(_) if rows.len() > 1 => stack.extend(<[_; 2]>::from(rows.split_at(rows.len() / 2))),
                Err(error) => tracing::debug!(error = db::describe(&error), word, "the status could not be mirrored"),
                Ok(()) => {}
            }
        }
        Ok(())
    };
    match tokio::time::timeout(Duration::from_secs(5), written).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = db::describe(&error), word, "the status could not be mirrored"),
        Err(_) => tracing::debug!(word, "the status could not be mirrored in time"),
    }
}
