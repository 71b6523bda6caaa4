use super::{Injected, Outcome};
use crate::arena::Arena;
use crate::faults::storage;

/// Both are told yes; the jobs are opened and charged once.
pub async fn two_retry(arena: &mut Arena) -> Outcome {
    arena.insert(20).await;
    storage::missing_until_retried(arena).await?;
    let retry = ["jobs", "retry", "--kind", "file"];
    tokio::join!(arena.command(&retry), arena.command(&retry));
    arena.healed();
    Ok(())
}

/// The new worker does not start without a person's word, the old one stops claiming at it: no document mixes both.
pub async fn rolled(arena: &mut Arena) -> Outcome {
    arena.insert(60).await;
    arena.worker();
    arena.until_done(20).await?;
    arena.world.toml = arena.world.toml.replace("tokens = 200", "tokens = 60");
    let refused = arena.worker();
    arena.insert(40).await;
    if arena.ended(refused).await?.success() {
        return Err(Injected::Failed("a worker with another generation ended well without a person's word".to_owned()));
    }
    if arena.command(&["accept", "documents", "--yes"]).await != Some(0) {
        return Err(Injected::Failed("the new generation could not be accepted".to_owned()));
    }
    // As an orchestrator would.
    arena.worker();
    arena.healed();
    arena.insert(20).await;
    arena.until("select not exists (select from gristmill.embedding_jobs where state in ('pending', 'waiting', 'processing'))").await?;
    let mixed: i64 = arena
        .ask(
            "select count(*) from gristmill.embedding_jobs j join gristmill.pipelines p on p.name = j.pipeline \
             where j.state = 'completed' and j.generation <> p.generation",
        )
        .await?;
    let long: i64 = arena.ask("select count(*) from public.document_chunks where token_count > 60").await?;
    if mixed + long > 0 {
        return Err(Injected::Failed(format!("{mixed} jobs and {long} chunks are of the old generation")));
    }
    Ok(())
}

pub async fn clock(_arena: &mut Arena) -> Outcome {
    Err(Injected::Skipped("it needs libfaketime, and is not written yet".to_owned()))
}
