//! PgBouncer between worker and server, where one is installed.

use std::time::Duration;

use tokio::time::sleep;

use super::{Injected, Outcome, database};
use crate::arena::Arena;
use crate::pgbouncer::{MISSING, PgBouncer};

/// Through a pooler in session mode the storm is as it is without.
pub async fn session(arena: &mut Arena) -> Outcome {
    through_pooler(arena, "session").await?;
    database::terminated(arena).await
}

/// In transaction mode sessions are mixed up: no worker starts, and nothing is written before one comes that reaches the server.
pub async fn transaction(arena: &mut Arena) -> Outcome {
    let direct = arena.world.toml.clone();
    through_pooler(arena, "transaction").await?;
    arena.insert(30).await;
    for _ in 0..5 {
        let refused = arena.worker();
        if arena.ended(refused).await?.success() {
            return Err(Injected::Failed("a worker behind a transaction pooler ended well".to_owned()));
        }
    }
    let said = arena.said("the database is reached through a transaction pooler");
    let touched: i64 =
        arena.ask("select count(*) from gristmill.embedding_jobs where starts > 0 or state <> 'pending'").await?;
    if said != 5 || touched > 0 {
        return Err(Injected::Failed(format!("refused by name {said} times of 5, {touched} jobs were touched")));
    }
    arena.world.toml = direct;
    arena.worker();
    arena.healed();
    Ok(())
}

/// The pooler dies under a worker at work, twice, and comes back.
pub async fn killed(arena: &mut Arena) -> Outcome {
    through_pooler(arena, "session").await?;
    arena.worker();
    arena.insert(60).await;
    arena.until_done(5).await?;
    for away in [100, 4_000] {
        arena.insert(30).await;
        sleep(Duration::from_millis(100)).await;
        if let Some(pooler) = &mut arena.pooler {
            pooler.kill();
            sleep(Duration::from_millis(away)).await;
            pooler.again().await;
        }
        arena.healed();
    }
    arena.insert(20).await;
    Ok(())
}

async fn through_pooler(arena: &mut Arena, mode: &str) -> Outcome {
    let direct = arena.world.database.url.clone();
    let Some(pooler) = PgBouncer::start(&direct, mode).await else {
        return Err(Injected::Skipped(MISSING.to_owned()));
    };
    arena.world.toml = arena.world.toml.replace(&direct, &pooler.url(&arena.world.database.name));
    arena.pooler = Some(pooler);
    Ok(())
}
