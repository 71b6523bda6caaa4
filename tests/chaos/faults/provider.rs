use std::time::Duration;

use tokio::time::sleep;

use super::Outcome;
use crate::arena::{Arena, SECRET};
use crate::fake_openai::{Answer, Spoilt};
use crate::wall::Wall;

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

pub fn empty() -> Answer {
    Answer::empty()
}

pub fn uneven() -> Answer {
    Answer::wrong_dimensions()
}

pub fn zeros() -> Answer {
    Answer::zeros()
}

pub fn shuffled() -> Answer {
    Answer::shuffled()
}

pub fn twice() -> Answer {
    Answer::repeated_index()
}

pub fn refused() -> Answer {
    Answer::unauthorized(SECRET)
}

pub fn unpaid() -> Answer {
    Answer::insufficient_quota()
}

/// So many bad answers in a row, and then as usual.
pub async fn scripted(arena: &mut Arena, answer: fn() -> Answer, times: usize) -> Outcome {
    arena.vendor.script((0..times).map(|_| answer()));
    arena.worker();
    arena.insert(40).await;
    // It is well again once the last bad answer was given.
    for _ in 0..1_500 {
        if arena.vendor.requests() >= times {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    arena.healed();
    Ok(())
}

/// So many requests in a row are not answered within what the configuration allows, in one way or another.
pub async fn too_slow(arena: &mut Arena, times: usize) -> Outcome {
    impatient(arena);
    arena.vendor.script((0..times).map(|_| Answer::dripping()));
    let gate = arena.vendor.hold();
    arena.worker();
    arena.insert(40).await;
    sleep(Duration::from_secs(5)).await;
    gate.open();
    for _ in 0..400 {
        if arena.vendor.requests() > times {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    arena.healed();
    Ok(())
}

/// The provider's address takes no connection for a while.
pub async fn unreachable(arena: &mut Arena) -> Outcome {
    impatient(arena);
    let wall = Wall::build().await.map_err(|error| error.to_string())?;
    let direct = arena.vendor.url();
    arena.change(direct.as_str(), &format!("http://{}/v1", wall.address));
    arena.worker();
    arena.insert(40).await;
    arena.until("select count(*) > 0 from gristmill.embedding_jobs where error_kind = 'unavailable'").await?;
    let host = direct.host_str().unwrap_or_default();
    wall.open(format!("{host}:{}", direct.port().unwrap_or_default()).parse().unwrap());
    arena.healed();
    Ok(())
}

fn impatient(arena: &mut Arena) {
    let key = format!("key = \"{SECRET}\"");
    arena.change(&key, &format!("{key}\ntimeout = \"2s\""));
}

/// The key is refused, or has no money left, until a person has mended it and said so.
pub async fn unauthorized(arena: &mut Arena, answer: fn() -> Answer) -> Outcome {
    arena.vendor.always(answer());
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
