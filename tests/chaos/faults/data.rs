use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;

use super::{Injected, Outcome, files};
use crate::arena::Arena;

/// What a poisoned file is called, and its bytes.
type Poison = fn() -> Vec<(&'static str, Vec<u8>)>;

/// Crash the reader, keep it busy for ever, or have it allocate without end.
pub fn pdfs() -> Vec<(&'static str, Vec<u8>)> {
    fixtures(&["nested-arrays.pdf", "nested-page-tree.pdf", "page-tree-loop.pdf", "xref-loop.pdf", "deflate-bomb.pdf"])
}

/// Little that becomes very much.
pub fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let mut bombs = fixtures(&["zip-bomb.docx", "nested.docx", "nested.html", "entities.html"]);
    bombs.push(("entity-bomb.docx", files::entity_bomb()));
    bombs
}

pub fn pages() -> Vec<(&'static str, Vec<u8>)> {
    vec![("pages.pdf", files::page_tree(100_000))]
}

fn fixtures(names: &[&'static str]) -> Vec<(&'static str, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hostile");
    names.iter().map(|&name| (name, std::fs::read(folder.join(name)).unwrap())).collect()
}

/// Files that crash, starve or bomb their parser fail alone, or are read.
pub async fn poison(arena: &mut Arena, poison: Poison) -> Outcome {
    // A child of a build without optimisations would need most of a minute to find its bomb out.
    arena.world.toml.push_str("[parser]\ncpu = \"10s\"\ntime = \"20s\"\n");
    let user = Uuid::from_u128(3 << 96);
    for (name, bytes) in poison() {
        let path = format!("{user}/{name}");
        arena.world.put(&path, &bytes);
        let id = arena.row_of_file(user, name, &path).await;
        arena.doubtful.insert(id);
    }
    arena.worker();
    arena.insert(30).await;
    arena.healed();
    Ok(())
}

/// Announcements are lost with the connection that hears them, and come several times; nobody polls meanwhile.
pub async fn announced(arena: &mut Arena) -> Outcome {
    arena.change("poll = \"200ms\"", "poll = \"20s\"");
    arena.worker();
    arena.insert(5).await;
    arena.until_done(5).await?;
    for _ in 0..6 {
        let cut: i64 = arena
            .ask(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                 where datname = current_database() and pid <> pg_backend_pid() and query ilike 'listen %'",
            )
            .await?;
        arena.insert(6).await;
        arena.sql("select pg_notify('gristmill_jobs', 'again'), pg_notify('gristmill_jobs', 'and again')").await?;
        if cut == 0 {
            sleep(Duration::from_millis(500)).await;
        }
    }
    let cut = arena.said("announcements are not heard");
    arena.healed();
    if cut > 0 { Ok(()) } else { Err(Injected::Failed("nothing was cut".to_owned())) }
}
