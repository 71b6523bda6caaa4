use std::process::{Command, Stdio};
use std::time::Duration;

use sqlx::Executor as _;
use tokio::time::sleep;

use uuid::Uuid;

use super::{Injected, Outcome};
use crate::arena::Arena;
use crate::run::RECOVERED_WITHIN;

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
        let doomed = arena.doomed(place, passage)?;
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

/// Panics in the middle of the work. The worker goes on, or ends as a whole and is started again, as by an orchestrator.
pub async fn panics_at(arena: &mut Arena, place: &str) -> Outcome {
    arena.insert(40).await;
    // What is passed by every job, and what by many at once.
    let nth = if ["loaded", "fetched", "extracted"].contains(&place) { 4 } else { 1 };
    let first = arena.panicking(place, nth)?;
    for _ in 0..200 {
        sleep(Duration::from_millis(100)).await;
        if arena.has_ended(first) || arena.is_at_rest().await {
            break;
        }
    }
    if arena.said("a part panicked") == 0 {
        return Err(Injected::Failed("nothing panicked".to_owned()));
    }
    arena.worker();
    arena.insert(10).await;
    arena.healed();
    Ok(())
}

/// Killed so often, at whatever moment, each with another at its side that is killed as soon; now and then it is quiet.
pub async fn killed_often(arena: &mut Arena, times: u32) -> Outcome {
    let mut older = arena.worker();
    for nth in 1..=times {
        let newer = arena.worker();
        arena.insert(2).await;
        let moment = u64::try_from(Uuid::new_v4().as_u128() % 600).unwrap_or_default();
        sleep(Duration::from_millis(50 + moment)).await;
        arena.kill(older);
        older = newer;
        if nth.is_multiple_of(34) {
            arena.healed();
            let took = arena.rest().await;
            if took > RECOVERED_WITHIN {
                return Err(Injected::Failed(format!("I7 recovered after {:.0} s", took.as_secs_f64())));
            }
        }
    }
    Ok(())
}

/// In a container the next worker has the host's name and process number of the one that was killed, whose leases still run.
pub async fn same_name(arena: &mut Arena) -> Outcome {
    let namespace = ["unshare", "--pid", "--fork", "--kill-child"];
    let tried = Command::new(namespace[0]).args(&namespace[1..]).arg("true").stderr(Stdio::null()).status();
    if !tried.is_ok_and(|done| done.success()) {
        return Err(Injected::Skipped("no process namespace may be made here".to_owned()));
    }
    let gate = arena.vendor.hold();
    let first = arena.worker_with(&namespace, &[]);
    arena.insert(30).await;
    arena.until("select count(*) >= 15 from gristmill.embedding_jobs where state = 'processing'").await?;
    arena.vendor.arrived(1).await;
    arena.kill(first);
    let second = arena.worker_with(&namespace, &[]);
    gate.open();
    arena.until_done(30).await?;
    let alike: bool = arena.ask("select count(*) = 2 and count(distinct name) = 1 from gristmill.workers").await?;
    if !alike {
        return Err(Injected::Failed("the workers did not have the same name".to_owned()));
    }
    // What wraps it passes no signal on.
    arena.kill(second);
    arena.insert(5).await;
    arena.worker();
    arena.healed();
    Ok(())
}

/// A row that takes more memory than there is kills every worker that reads it, until it is found out; the others' rows are served.
pub async fn out_of_memory(arena: &mut Arena) -> Outcome {
    arena.insert(5).await;
    let free = arena.worker_with(&[], &[("MALLOC_ARENA_MAX", "1")]);
    arena.until_done(5).await?;
    let used = arena.address_space(free)?;
    arena.signal(free, "TERM");
    arena.ended(free).await?;
    let user = Uuid::from_u128(1 << 96);
    let huge: Uuid = sqlx::query_scalar(
        "insert into public.documents (user_id, name, content) values ($1, 'huge', repeat('All is grist. ', 12 * 1024 * 1024)) returning id",
    )
    .bind(user)
    .fetch_one(&arena.world.pool)
    .await?;
    arena.hopeless.insert(huge);
    arena.insert(40).await;
    let limit = format!("ulimit -v {}; exec \"$@\"", used / 1024 + 192 * 1024);
    for _ in 0..20 {
        let worker = arena.worker_with(&["sh", "-c", &limit, "sh"], &[("MALLOC_ARENA_MAX", "1")]);
        while !arena.has_ended(worker) {
            if arena.is_at_rest().await {
                arena.healed();
                let found = arena.said("memory allocation of") > 0;
                return if found { Ok(()) } else { Err(Injected::Failed("no memory was lacking".to_owned())) };
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    Err(Injected::Failed("worker after worker died of the same row".to_owned()))
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

/// Whoever has the job is stopped beyond its lease, comes back, and finds it with the other: no job's fault.
pub async fn stopped_often(arena: &mut Arena) -> Outcome {
    let gate = arena.vendor.hold();
    let mut holder = arena.worker();
    arena.insert(1).await;
    arena.vendor.arrived(1).await;
    let mut other = arena.worker();
    for nth in 2..8 {
        arena.signal(holder, "STOP");
        arena.vendor.arrived(nth).await;
        arena.signal(holder, "CONT");
        arena.until("select crashes = 0 from gristmill.embedding_jobs").await?;
        (holder, other) = (other, holder);
    }
    gate.open();
    arena.healed();
    Ok(())
}

/// A worker that sleeps with its commits at the door: only the lease tells that they are not its own any more.
pub async fn stopped_at_commit(arena: &mut Arena) -> Outcome {
    arena.insert(30).await;
    let mut holder = arena.world.database.connect().await;
    holder.execute("begin; select from public.documents for update").await?;
    let sleeper = arena.worker();
    arena.vendor.answered(1).await;
    arena.until("select count(*) >= 15 from gristmill.embedding_jobs where state = 'processing'").await?;
    while arena.vendor.paid_texts().len() < 15 {
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
