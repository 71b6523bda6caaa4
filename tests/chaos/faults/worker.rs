use std::time::Duration;

use sqlx::Executor as _;
use tokio::time::sleep;

use super::Outcome;
use crate::arena::Arena;

/// The control: what the table looks like when all goes well.
pub async fn nothing(arena: &mut Arena) -> Outcome {
    arena.worker();
    arena.insert(60).await;
    arena.healed();
    Ok(())
}

/// Worker after worker dies at the same place, each with new work in hand.
pub async fn dies_at(arena: &mut Arena, place: &str) -> Outcome {
    for nth in 1..=4 {
        arena.insert(12).await;
        // Files and texts are one by one; the others are reached by a few requests and commits.
        let passage = if ["fetched", "extracted"].contains(&place) { nth } else { 1 };
        let doomed = arena.doomed(place, passage);
        let status = arena.ended(doomed).await?;
        if status.code().is_some() {
            return Err(format!("the worker ended with {status} instead of dying").into());
        }
    }
    arena.worker();
    arena.healed();
    Ok(())
}

/// Killed from outside, at whatever moment, with another worker at its side.
pub async fn killed(arena: &mut Arena) -> Outcome {
    arena.insert(60).await;
    arena.worker();
    for after in [300, 450, 600, 750, 900] {
        let other = arena.worker();
        arena.insert(20).await;
        sleep(Duration::from_millis(after)).await;
        arena.kill(other);
    }
    arena.healed();
    Ok(())
}

/// A worker that sleeps with answers on their way finds its jobs done by another.
pub async fn stopped(arena: &mut Arena) -> Outcome {
    let gate = arena.vendor.hold();
    let sleeper = arena.worker();
    arena.insert(30).await;
    arena.vendor.arrived(1).await;
    arena.signal(sleeper, "STOP");
    gate.open();
    arena.worker();
    arena.until("select count(*) = 30 from gristmill.embedding_jobs where state = 'completed'").await?;
    arena.signal(sleeper, "CONT");
    arena.healed();
    sleep(Duration::from_secs(2)).await;
    arena.insert(10).await;
    Ok(())
}

/// A worker that sleeps with its commits at the door: only the lease tells that they are not its own any more.
pub async fn stopped_at_commit(arena: &mut Arena) -> Outcome {
    arena.insert(30).await;
    let mut holder = arena.world.database.connect().await;
    holder.execute("begin; select from public.documents for update").await?;
    let sleeper = arena.worker();
    arena.vendor.answered(1).await;
    arena.until("select count(*) >= 16 from gristmill.embedding_jobs where state = 'processing'").await?;
    while arena.vendor.paid_texts().len() < 16 {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_millis(100)).await;
    arena.signal(sleeper, "STOP");
    holder.execute("rollback").await?;
    arena.worker();
    arena.until("select count(*) = 30 from gristmill.embedding_jobs where state = 'completed'").await?;
    arena.signal(sleeper, "CONT");
    arena.healed();
    sleep(Duration::from_secs(3)).await;
    Ok(())
}

pub async fn terminated(arena: &mut Arena, times: u32) -> Outcome {
    arena.insert(200).await;
    let first = arena.worker();
    arena.until_done(20).await?;
    for _ in 0..times {
        arena.signal(first, "TERM");
    }
    let status = arena.ended(first).await?;
    if !status.success() {
        return Err(format!("told to stop, the worker ended with {status}").into());
    }
    let held: i64 = arena.ask("select count(*) from gristmill.embedding_jobs where state = 'processing'").await?;
    if held > 0 {
        return Err(format!("{held} jobs were neither finished nor handed back").into());
    }
    arena.worker();
    arena.healed();
    Ok(())
}
