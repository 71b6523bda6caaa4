use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

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

/// What is in hand ends, nothing more begins, and all goes on after a person's word.
pub async fn paused(arena: &mut Arena) -> Outcome {
    arena.insert(200).await;
    arena.worker();
    arena.worker();
    arena.until_done(20).await?;
    if arena.command(&["pause", "documents", "--reason", "a person looks"]).await != Some(0) {
        return Err(Injected::Failed("the pipeline could not be paused".to_owned()));
    }
    arena.until("select not exists (select from gristmill.embedding_jobs where state = 'processing')").await?;
    let served: i64 = arena.ask("select count(*) from public.served").await?;
    arena.insert(20).await;
    sleep(Duration::from_secs(5)).await;
    let more: i64 = arena.ask("select count(*) from public.served").await?;
    if more > served {
        return Err(Injected::Failed(format!("{} jobs were done while paused", more - served)));
    }
    if served == 200 {
        return Err(Injected::Failed("all was done before the pause".to_owned()));
    }
    arena.command(&["resume", "documents"]).await;
    arena.healed();
    Ok(())
}

/// Three workers, one after the other, are replaced by ones with other settings, under load.
pub async fn replaced(arena: &mut Arena) -> Outcome {
    let old: Vec<usize> = (0..3).map(|_| arena.worker()).collect();
    arena.insert(60).await;
    arena.until_done(10).await?;
    arena.change("slots = 16", "slots = 5");
    arena.change("linger = \"5ms\"", "linger = \"20ms\"");
    for worker in old {
        arena.insert(20).await;
        arena.signal(worker, "TERM");
        let status = arena.ended(worker).await?;
        if !status.success() {
            return Err(Injected::Failed(format!("told to stop, the worker ended with {status}")));
        }
        arena.worker();
    }
    arena.healed();
    Ok(())
}

const FAKETIME: &[&str] =
    &["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"];

/// A worker whose clock is wrong serves, sees changes that no trigger told, and takes nothing from one whose clock is right.
pub async fn clock(arena: &mut Arena, offset: &str) -> Outcome {
    let Some(library) = FAKETIME.iter().find(|library| Path::new(library).exists()) else {
        return Err(Injected::Skipped("needs libfaketime".to_owned()));
    };
    arena.insert(30).await;
    let wrong = [("LD_PRELOAD", *library), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    arena.worker_with(&[], &wrong);
    arena.until_done(30).await?;
    // Passes after the first look only at what changed since.
    sleep(Duration::from_secs(3)).await;
    arena
        .sql(
            "begin; set local session_replication_role = replica; \
             update public.documents set content = content || ' Changed unheard.', updated_at = clock_timestamp() \
             where content is not null and deleted_at is null; commit",
        )
        .await?;
    arena
        .until(
            "select count(*) = 20 from public.documents d where exists \
             (select from public.document_chunks c where c.document_id = d.id and c.content like '%Changed unheard.')",
        )
        .await?;
    let gate = arena.vendor.hold();
    let arrived = arena.vendor.requests();
    arena.insert(20).await;
    arena.vendor.arrived(arrived + 1).await;
    arena.worker();
    // Two leases.
    sleep(Duration::from_secs(8)).await;
    gate.open();
    arena.insert(10).await;
    arena.until_done(80).await?;
    let again: i64 = arena.ask("select count(*) from gristmill.embedding_jobs where crashes > 0").await?;
    if again > 0 {
        return Err(Injected::Failed(format!("{again} jobs were taken from a worker that was there")));
    }
    arena.healed();
    Ok(())
}
