use std::process::Command;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::time::sleep;

use super::{Injected, Outcome};
use crate::arena::Arena;
use crate::server;

pub async fn terminated(arena: &mut Arena) -> Outcome {
    // It meets the first ones while it starts.
    arena.worker();
    for _ in 0..15 {
        arena.insert(12).await;
        arena
            .sql(
                "select pg_terminate_backend(pid) from pg_stat_activity \
                 where datname = current_database() and application_name like 'gristmill%'",
            )
            .await
            .ok();
        sleep(Duration::from_millis(120)).await;
    }
    arena.healed();
    Ok(())
}

/// Twice, the second time with jobs in hand that wait for the provider.
pub async fn crashed(arena: &mut Arena) -> Outcome {
    arena.insert(100).await;
    arena.worker();
    arena.until_done(5).await?;
    for away in [200, 6_000] {
        server::crash();
        sleep(Duration::from_millis(away)).await;
        server::recover();
        arena.until("select true").await?;
        arena.healed();
        arena.insert(20).await;
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// The worker does not hear of its commits and must neither repeat them nor give their jobs up.
pub async fn unacknowledged(arena: &mut Arena) -> Outcome {
    through_proxy(arena);
    arena.worker();
    arena.insert(5).await;
    arena.until_done(5).await?;
    for _ in 0..4 {
        let cut = arena.proxy.cut();
        arena.proxy.cut_commits(3);
        arena.insert(12).await;
        for _ in 0..400 {
            if arena.proxy.cut() >= cut + 3 {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    if arena.proxy.cut() == 0 {
        return Err(Injected::Failed("no commit was cut".to_owned()));
    }
    arena.healed();
    Ok(())
}

pub async fn slow(arena: &mut Arena) -> Outcome {
    through_proxy(arena);
    arena.proxy.delay(Duration::from_millis(40));
    arena.worker();
    arena.insert(60).await;
    arena.healed();
    Ok(())
}

/// Every connection there is goes dead without a word; new ones work.
pub async fn half_open(arena: &mut Arena) -> Outcome {
    through_proxy(arena);
    arena.worker();
    arena.insert(5).await;
    arena.until_done(5).await?;
    arena.insert(60).await;
    sleep(Duration::from_millis(150)).await;
    arena.proxy.freeze();
    arena.healed();
    arena.insert(20).await;
    Ok(())
}

/// Something on the way goes on to acknowledge a few connections in use and has forgotten them, some before the server heard what was asked;
/// the heartbeat's is whole.
pub async fn forgotten(arena: &mut Arena) -> Outcome {
    freeze_commits(arena, 2, 2).await?;
    arena.healed();
    arena.insert(20).await;
    Ok(())
}

/// Something on the way holds a few connections for ever: that their server died, only those say that are not held.
pub async fn frozen_and_crashed(arena: &mut Arena) -> Outcome {
    freeze_commits(arena, 2, 0).await?;
    server::crash();
    sleep(Duration::from_millis(500)).await;
    server::recover();
    arena.until("select true").await?;
    arena.healed();
    arena.insert(20).await;
    Ok(())
}

async fn freeze_commits(arena: &mut Arena, heard: usize, unheard: usize) -> Outcome {
    through_proxy(arena);
    arena.worker();
    arena.insert(5).await;
    arena.until_done(5).await?;
    arena.proxy.freeze_commits(heard);
    arena.proxy.lose_commits(unheard);
    arena.insert(60).await;
    for _ in 0..400 {
        if arena.proxy.commits_awaited() == 0 {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err(Injected::Failed("some commits were not frozen".to_owned()))
}

/// The way out: a person, or an orchestrator, starts another.
pub async fn half_open_restarted(arena: &mut Arena) -> Outcome {
    half_open(arena).await?;
    sleep(Duration::from_secs(2)).await;
    arena.signal(0, "TERM");
    arena.ended(0).await?;
    arena.worker();
    arena.healed();
    Ok(())
}

/// A transaction that sees the database as it was keeps every dead row.
pub async fn pinned(arena: &mut Arena) -> Outcome {
    let mut old = arena.world.database.connect().await;
    old.execute("begin isolation level repeatable read; select count(*) from gristmill.embedding_jobs").await?;
    arena.worker();
    arena.insert(300).await;
    arena.until_done(300).await?;
    arena.sql("update public.documents set content = content || ' Again.' where content is not null and deleted_at is null").await?;
    arena.healed();
    // It ends when all is quiet, with its connection.
    arena.rest().await;
    old.execute("rollback").await?;
    Ok(())
}

/// Chunks live on a small disk of their own, which somebody fills.
pub async fn full(arena: &mut Arena) -> Outcome {
    let Some(disk) = SmallDisk::mount() else {
        return Err(Injected::Skipped("no tmpfs may be mounted here".to_owned()));
    };
    let space = format!("small_{}", arena.world.database.name);
    let place = disk.0.path().join("space").display().to_string();
    arena.sql(&format!("create tablespace {space} location '{place}'")).await?;
    arena.sql(&format!("alter table public.document_chunks set tablespace {space}")).await?;
    arena.worker();
    arena.insert(5).await;
    arena.until_done(5).await?;
    let filler = disk.0.path().join("filler");
    Command::new("dd")
        .args(["if=/dev/zero", "bs=1k", "status=none"])
        .arg(format!("of={}", filler.display()))
        .stderr(std::process::Stdio::null())
        .status()
        .ok();
    arena.insert(120).await;
    sleep(Duration::from_secs(5)).await;
    let open: i64 = arena.ask("select count(*) from gristmill.embedding_jobs where state not in ('completed')").await?;
    std::fs::remove_file(&filler).map_err(|error| error.to_string())?;
    arena.healed();
    if open == 0 {
        return Err(Injected::Failed("the disk was not full".to_owned()));
    }
    arena.rest().await;
    arena.stop().await?;
    // The tablespace goes with what is in it, before its disk does.
    arena.sql("alter table public.document_chunks set tablespace pg_default").await?;
    let mut admin = PgConnection::connect(&arena.world.database.url).await?;
    admin.execute(AssertSqlSafe(format!("drop tablespace {space}"))).await?;
    Ok(())
}

fn through_proxy(arena: &mut Arena) {
    let (direct, proxied) = (arena.world.database.url.clone(), arena.proxy.url(&arena.world.database.name));
    arena.world.toml = arena.world.toml.replace(&direct, &proxied);
}

/// 2 MB of memory that looks like a disk, with a folder for Postgres; unmounted at the end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = TempDir::with_prefix_in("chaos-", "/tmp").ok()?;
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program)
                .args(arguments)
                .arg(folder.path())
                .stderr(std::process::Stdio::null())
                .status()
                .is_ok_and(|done| done.success())
        };
        if !run("mount", &["-t", "tmpfs", "-o", "size=2m,mode=0755", "tmpfs"]) {
            return None;
        }
        let disk = Self(folder);
        let space = disk.0.path().join("space");
        std::fs::create_dir(&space).ok()?;
        let owner = if Command::new("id").arg("postgres").output().is_ok_and(|found| found.status.success()) {
            "postgres"
        } else {
            "nobody"
        };
        Command::new("chown").arg(owner).arg(&space).status().ok()?;
        Some(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}
