use std::path::Path;

use uuid::Uuid;

use super::Outcome;
use crate::arena::Arena;

/// Files that come after their rows: failed with a reason, and served once a person says so.
pub async fn missing(arena: &mut Arena) -> Outcome {
    missing_until_retried(arena).await?;
    arena.command(&["jobs", "retry", "--kind", "file"]).await;
    arena.healed();
    Ok(())
}

/// Some rows have failed for want of their files, which are there by now.
pub async fn missing_until_retried(arena: &mut Arena) -> Outcome {
    let user = Uuid::from_u128(1 << 96);
    let mut late = Vec::new();
    for nth in 0..6 {
        let name = format!("late-{nth}");
        let id = arena.row_of_file(user, &name, &format!("{user}/{name}.txt")).await;
        late.push((id, name));
    }
    arena.worker();
    arena.insert(20).await;
    arena.until("select count(*) = 6 from gristmill.embedding_jobs where state = 'failed' and reason <> ''").await?;
    for (id, name) in late {
        let text = Arena::text(&name, 2);
        arena.world.put(&format!("{user}/{name}.txt"), text.as_bytes());
        arena.files.insert(id, text);
    }
    Ok(())
}

/// The worker dies between its reading of a file and the commit; the next one reads another text.
pub async fn changed(arena: &mut Arena) -> Outcome {
    let user = Uuid::from_u128(2 << 96);
    let mut ids = Vec::new();
    for nth in 0..8 {
        let name = format!("changing-{nth}");
        ids.push((arena.file(user, &name, Arena::text(&name, 3)).await, name));
    }
    let doomed = arena.doomed("before_commit", 1);
    arena.ended(doomed).await?;
    for (id, name) in ids {
        let text = Arena::text(&format!("{name} anew"), 1);
        arena.world.put(&format!("{user}/{name}.txt"), text.as_bytes());
        arena.files.insert(id, text);
    }
    arena.worker();
    arena.healed();
    Ok(())
}

/// Files that crash, starve or bomb their parser fail alone.
pub async fn poison(arena: &mut Arena) -> Outcome {
    let user = Uuid::from_u128(3 << 96);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hostile");
    let files = [
        "deflate-bomb.pdf",
        "nested-arrays.pdf",
        "nested-page-tree.pdf",
        "page-tree-loop.pdf",
        "xref-loop.pdf",
        "zip-bomb.docx",
    ];
    for name in files {
        let path = format!("{user}/{name}");
        arena.world.put(&path, &std::fs::read(folder.join(name)).unwrap());
        let id = arena.row_of_file(user, name, &path).await;
        arena.doubtful.insert(id);
    }
    arena.worker();
    arena.insert(30).await;
    arena.healed();
    Ok(())
}
