use std::time::Duration;

use tokio::time::sleep;

use super::Outcome;
use crate::arena::{Arena, SECRET};
use crate::fake_openai::{Answer, Spoilt};

pub fn hurried() -> Answer {
    Answer::status(429).with("retry-after", "1")
}

pub fn limited() -> Answer {
    Answer::status(429)
}

pub fn broken() -> Answer {
    Answer::status(500)
}

pub fn truncated() -> Answer {
    Answer::cut_off()
}

pub fn page() -> Answer {
    Answer::html()
}

pub fn short() -> Answer {
    Answer::wrong_count()
}

pub fn not_finite() -> Answer {
    Answer::vectors(Spoilt::OneNotFinite)
}

/// So many bad answers in a row, and then as usual.
pub async fn scripted(arena: &mut Arena, answer: fn() -> Answer, times: usize) -> Outcome {
    arena.vendor.script((0..times).map(|_| answer()));
    arena.worker();
    arena.insert(40).await;
    for _ in 0..300 {
        if arena.vendor.requests() > times {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    arena.healed();
    Ok(())
}

/// The key is refused until a person has mended it and said so.
pub async fn unauthorized(arena: &mut Arena) -> Outcome {
    arena.vendor.always(Answer::unauthorized(SECRET));
    let worker = arena.worker();
    arena.insert(40).await;
    arena.until("select count(*) = 40 from gristmill.embedding_jobs where error_kind = 'credential'").await?;
    arena.vendor.always(None);
    arena.signal(worker, "TERM");
    arena.ended(worker).await?;
    arena.worker();
    arena.command(&["jobs", "retry", "--kind", "credential"]).await;
    arena.healed();
    Ok(())
}

/// Jobs that wait for their answer for longer than a lease stay in hand.
pub async fn silent(arena: &mut Arena) -> Outcome {
    let gate = arena.vendor.hold();
    arena.worker();
    arena.insert(30).await;
    arena.vendor.arrived(1).await;
    sleep(Duration::from_secs(9)).await;
    gate.open();
    arena.healed();
    arena.until_done(30).await?;
    let again: i64 = arena.ask("select count(*) from gristmill.embedding_jobs where starts > 1").await?;
    if again > 0 {
        return Err(format!("{again} jobs were taken from a worker that was there").into());
    }
    Ok(())
}
