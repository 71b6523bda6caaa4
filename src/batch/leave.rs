//! The source rows of jobs whose vectors go: what they say of themselves must not outlive the vectors.

use std::collections::HashMap;

use sqlx::{Acquire as _, PgConnection};

use crate::config::OnLeave;
use crate::db;
use crate::db::app::{self, Plan};
use crate::domain::{JobId, SourceKey};

use super::committer::{End, Work};

/// Takes back what the rows of skipped jobs and of jobs that leave say of vectors. The vectors of a row that left go even where the
/// row itself may not be written any more; returns why, for each such job.
pub(super) async fn take_back(
    connection: &mut PgConnection,
    plan: &Plan,
    works: &[&Work],
) -> sqlx::Result<HashMap<JobId, String>> {
    let skipped: Vec<&SourceKey> =
        works.iter().filter(|work| matches!(work.end, End::Skip { .. })).map(|work| &work.job.key).collect();
    app::take_back(connection, plan, &skipped, None).await?;
    let mut refused = HashMap::new();
    if plan.pipeline.on_leave == OnLeave::Keep {
        return Ok(refused);
    }
    let left: Vec<&&Work> = works.iter().filter(|work| matches!(work.end, End::Leave { .. })).collect();
    let keys: Vec<&SourceKey> = left.iter().map(|work| &work.job.key).collect();
    if apart(connection, plan, &keys).await?.is_some() {
        for work in left {
            if let Some(why) = apart(connection, plan, &[&work.job.key]).await? {
                refused.insert(work.job.id, why);
            }
        }
    }
    Ok(refused)
}

/// In a savepoint of its own: what is refused here undoes nothing else. Says why it was refused.
async fn apart(connection: &mut PgConnection, plan: &Plan, keys: &[&SourceKey]) -> sqlx::Result<Option<String>> {
    if keys.is_empty() {
        return Ok(None);
    }
    let words = plan.pipeline.status.as_ref().map(|status| &status.words);
    // Without a word for it, the row waits for nobody's vectors: it has none.
    let word = words.map(|words| words.cancelled.as_ref().unwrap_or(&words.pending).as_str());
    let mut savepoint = connection.begin().await?;
    match app::take_back(&mut savepoint, plan, keys, word).await {
        Ok(()) => savepoint.commit().await.map(|()| None),
        Err(error) if db::is_passing(&error) => Err(error),
        Err(error) => {
            savepoint.rollback().await?;
            Ok(Some(db::describe(&error)))
        }
    }
}
