use std::time::Duration;

use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::time::sleep;

use super::{Injected, Outcome};
use crate::arena::Arena;

/// While workers work, rows are changed, deleted, soft-deleted and brought back, whatever stage their jobs are in.
pub async fn restless(arena: &mut Arena) -> Outcome {
    arena.worker();
    arena.worker();
    for round in 0..30 {
        let gate = (round % 3 == 0).then(|| arena.vendor.hold());
        let fresh = arena.insert(6).await;
        sleep(Duration::from_millis(20 * (round % 7))).await;
        // Of the newest and of some that may be done.
        arena
            .sql(
                "update public.documents set content = content || ' Changed.' where content is not null and deleted_at is null and random() < 0.05; \
                 update public.documents set deleted_at = now() where deleted_at is null and random() < 0.03; \
                 update public.documents set deleted_at = null where deleted_at is not null and name <> 'bystander' and random() < 0.3; \
                 delete from public.documents where name <> 'bystander' and random() < 0.02",
            )
            .await?;
        let (changed, gone) = (fresh[1], fresh[2]);
        sqlx::query("update public.documents set content = 'zq7canaryzq7 Quite another text.', storage_path = null where id = $1")
            .bind(changed)
            .execute(&arena.world.pool)
            .await?;
        sqlx::query("delete from public.documents where id = $1").bind(gone).execute(&arena.world.pool).await?;
        drop(gate);
    }
    arena.healed();
    Ok(())
}

/// A restore or a bulk load fires no trigger: the sweep finds what it brought and what it changed.
pub async fn bulk(arena: &mut Arena) -> Outcome {
    arena.insert(30).await;
    arena.worker();
    arena.until_done(30).await?;
    let mut loader = arena.world.database.connect().await;
    loader
        .execute(
            "set session_replication_role = replica; \
             insert into public.documents (user_id, name, content) \
             select ('0000000' || 1 + n % 3 || '-0000-0000-0000-000000000000')::uuid, 'bulk-' || n, 'zq7canaryzq7 bulk ' || n from generate_series(1, 150) n; \
             update public.documents set content = content || ' Loaded anew.', updated_at = clock_timestamp() \
             where content is not null and deleted_at is null and name like 'text-%'",
        )
        .await?;
    arena.healed();
    arena
        .until(
            "select count(*) = 150 from public.documents where name like 'bulk-%' and processing_status = 'completed'",
        )
        .await?;
    Ok(())
}

/// Everything of ours is gone while a worker works; it is made again, and a person accepts what that costs.
pub async fn dropped(arena: &mut Arena) -> Outcome {
    arena.insert(120).await;
    let old = arena.worker();
    arena.until_done(20).await?;
    // What the application was told before belongs to books that are gone.
    let drop = "begin; lock public.documents in access exclusive mode; drop schema gristmill cascade; truncate public.served; \
                update public.tallies set served = 0; commit";
    arena.insist(drop).await?;
    sleep(Duration::from_secs(3)).await;
    arena.signal(old, "TERM");
    arena.ended(old).await?;
    arena.before_the_books = arena.vendor.requests();
    for words in [&["migrate"][..], &["triggers", "install"]] {
        if arena.command(words).await != Some(0) {
            return Err(Injected::Failed(format!("{words:?} failed after the schema was dropped")));
        }
    }
    arena.worker();
    arena.until("select exists (select from gristmill.pipelines where census_done)").await?;
    if arena.command(&["accept", "documents", "--yes"]).await != Some(0) {
        return Err(Injected::Failed("the rows that were there before could not be accepted".to_owned()));
    }
    arena.healed();
    Ok(())
}

/// Announcements that mean nothing, by the ten thousand.
pub async fn flooded(arena: &mut Arena) -> Outcome {
    arena.worker();
    let mut floods = Vec::new();
    for _ in 0..2 {
        let mut noisy = PgConnection::connect(&arena.world.database.url).await?;
        floods.push(tokio::spawn(async move {
            for _ in 0..40 {
                noisy.execute("do $$ begin for n in 1..500 loop perform pg_notify('gristmill_jobs', n::text); end loop; end $$").await.ok();
            }
        }));
    }
    arena.insert(60).await;
    for flood in floods {
        flood.await.ok();
    }
    arena.healed();
    Ok(())
}
