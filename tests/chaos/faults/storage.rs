use uuid::Uuid;

use super::{Injected, Outcome};
use crate::arena::{Arena, SECRET};
use crate::storehouse::{Storehouse, Trouble};

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
    let doomed = arena.doomed("before_commit", 1)?;
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

/// The worker's files come over HTTP from now on.
async fn over_http(arena: &mut Arena) -> Storehouse {
    let (storehouse, address) = Storehouse::open(arena.world.files.path().to_owned()).await;
    let local = format!("kind = \"local\"\nroot = \"{}\"", arena.world.files.path().display());
    let remote = format!("kind = \"supabase\"\nurl = \"http://{address}\"\nkey = \"{SECRET}\"\nbucket = \"files\"");
    arena.change(&local, &remote);
    storehouse
}

/// For as long as three requests the store has a trouble that passes by itself.
pub async fn passing(arena: &mut Arena, trouble: Trouble) -> Outcome {
    let storehouse = over_http(arena).await;
    storehouse.trouble(Some(trouble));
    arena.worker();
    arena.insert(30).await;
    arena.until("select count(*) = 20 from gristmill.embedding_jobs where state = 'completed'").await?;
    arena.until("select count(*) = 10 from gristmill.embedding_jobs where error_kind = 'store'").await?;
    storehouse.trouble(None);
    arena.healed();
    Ok(())
}

/// Files that may not be read fail with that reason, and are served once a person has given the right and said so.
pub async fn denied(arena: &mut Arena, trouble: Trouble) -> Outcome {
    let storehouse = over_http(arena).await;
    storehouse.trouble(Some(trouble));
    arena.worker();
    arena.insert(30).await;
    arena
        .until("select count(*) = 10 from gristmill.embedding_jobs where state = 'failed' and error_kind = 'store'")
        .await?;
    storehouse.trouble(None);
    arena.command(&["jobs", "retry", "--kind", "store"]).await;
    arena.healed();
    Ok(())
}

/// The store sends the worker, with its key in hand, to an address of this machine, which must not hear of it.
pub async fn redirected(arena: &mut Arena) -> Outcome {
    let (inside, address) = Storehouse::open(arena.world.files.path().to_owned()).await;
    denied(arena, Trouble::Redirect(format!("http://{address}/latest/meta-data"))).await?;
    match inside.asked() {
        0 => Ok(()),
        asked => Err(Injected::Failed(format!("{asked} requests went where the store sent them"))),
    }
}

/// One never ends, one is longer than a disk: both are refused, alone.
pub async fn enormous(arena: &mut Arena) -> Outcome {
    let user = Uuid::from_u128(1 << 96);
    let path = format!("{user}/sparse.txt");
    arena.world.put(&path, b"");
    let sparse = std::fs::OpenOptions::new().write(true).open(arena.world.files.path().join(&path));
    sparse.and_then(|file| file.set_len(1 << 40)).map_err(|error| error.to_string())?;
    let id = arena.row_of_file(user, "sparse", &path).await;
    arena.hopeless.insert(id);
    let worker = arena.worker();
    arena.insert(15).await;
    arena.until("select count(*) = 16 from gristmill.embedding_jobs where state in ('completed', 'failed')").await?;
    arena.signal(worker, "TERM");
    arena.ended(worker).await?;
    let storehouse = over_http(arena).await;
    storehouse.trouble(Some(Trouble::Enormous));
    let path = format!("{user}/endless.txt");
    arena.world.put(&path, b"It never ends.");
    let id = arena.row_of_file(user, "endless", &path).await;
    arena.hopeless.insert(id);
    arena.worker();
    arena.until("select count(*) = 2 from gristmill.embedding_jobs where state = 'failed'").await?;
    storehouse.trouble(None);
    arena.insert(15).await;
    arena.healed();
    Ok(())
}
