//! What a migration, a restore or a person with `psql` does to the tables under a live worker.

use std::process::Command;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::sleep;

use super::{Injected, Outcome};
use crate::arena::{APPLICATION, Arena, BYSTANDERS};
use crate::server;

/// Long enough for jobs to meet what is broken.
const BROKEN: Duration = Duration::from_secs(3);

/// Our own migration is asked for again and again, and the application's tables are altered so that they still fit.
pub async fn altered(arena: &mut Arena) -> Outcome {
    arena.worker();
    arena.insert(20).await;
    arena.until_done(5).await?;
    for statement in [
        "alter table public.documents add column note text, add column extra int not null default 7",
        "create index documents_name on public.documents (name)",
        "create index chunks_words on public.document_chunks using gin (to_tsvector('simple', content))",
        "alter table public.document_chunks alter column section_title type varchar",
        "alter table public.documents drop column note, drop column extra",
        "drop index public.documents_name; drop index public.chunks_words",
    ] {
        arena.insert(12).await;
        let migrate = ["migrate"];
        let (one, other, altered) =
            tokio::join!(arena.command(&migrate), arena.command(&migrate), arena.sql(statement));
        altered?;
        if (one, other) != (Some(0), Some(0)) {
            return Err(Injected::Failed("migrating what is migrated failed".to_owned()));
        }
    }
    arena.healed();
    Ok(())
}

/// Somebody migrated with a newer binary: workers that are there go on, since migrations only add; none of this one starts.
pub async fn newer(arena: &mut Arena) -> Outcome {
    let unknown = "insert into gristmill._sqlx_migrations (version, description, success, checksum, execution_time) \
                   values (9999, 'from the future', true, '\\x00', 0)";
    refused(arena, unknown, "newer than this binary's", "delete from gristmill._sqlx_migrations where version = 9999")
        .await
}

/// A binary of today on a schema of yesterday says what to run.
pub async fn older(arena: &mut Arena) -> Outcome {
    let undone = "create table public.undone as select * from gristmill._sqlx_migrations order by version desc limit 1; \
                  delete from gristmill._sqlx_migrations where version = (select version from public.undone)";
    let done = "insert into gristmill._sqlx_migrations select * from public.undone; drop table public.undone";
    refused(arena, undone, "this binary needs", done).await
}

async fn refused(arena: &mut Arena, broken: &str, words: &str, mended: &str) -> Outcome {
    arena.worker();
    arena.insert(20).await;
    arena.until_done(5).await?;
    arena.sql(broken).await?;
    let refused = arena.worker();
    let ended = arena.ended(refused).await?;
    if ended.success() || arena.said(words) != 1 {
        return Err(Injected::Failed(format!(
            "a worker ended with {ended}, and \"{words}\" was said {} times",
            arena.said(words)
        )));
    }
    arena.insert(40).await;
    arena.until_done(60).await?;
    arena.sql(mended).await?;
    arena.worker();
    arena.insert(20).await;
    arena.healed();
    Ok(())
}

/// The content, the status and then the key become other types, and the key what it was.
pub async fn types(arena: &mut Arena) -> Outcome {
    let key = |name: &str| {
        format!(
            "begin; alter table public.document_chunks drop constraint document_chunks_document_id_fkey; \
             alter table public.documents alter column id type {name} using id::{name}; \
             alter table public.document_chunks alter column document_id type {name} using document_id::{name}; \
             alter table public.document_chunks add constraint document_chunks_document_id_fkey \
             foreign key (document_id) references public.documents (id) on delete cascade; commit"
        )
    };
    arena.worker();
    arena.insert(20).await;
    arena.until_done(5).await?;
    // The starter's own trigger names the column.
    arena
        .sql(
            "begin; drop trigger documents_touch on public.documents; \
             alter table public.documents alter column content type varchar(100000); \
             create trigger documents_touch before update of name, content, storage_path, mime_type, user_id, deleted_at \
             on public.documents for each row execute function public.documents_touch(); commit",
        )
        .await?;
    arena.insert(20).await;
    arena.sql("alter table public.documents alter column processing_status type varchar(20)").await?;
    arena.insert(20).await;
    arena.sql(&key("text")).await?;
    arena
        .sql(
            "insert into public.documents (user_id, name, content) \
             select '00000001-0000-0000-0000-000000000000', 'keyed-' || n, 'zq7canaryzq7 keyed by text ' || n from generate_series(1, 20) n",
        )
        .await?;
    sleep(BROKEN).await;
    arena.sql(&key("uuid")).await?;
    arena.insert(20).await;
    arena.healed();
    Ok(())
}

pub async fn dimensions(arena: &mut Arena) -> Outcome {
    arena.worker();
    arena.insert(20).await;
    arena.until_done(5).await?;
    arena.insert(20).await;
    arena
        .sql(
            "begin; alter table public.document_chunks rename column embedding to small; \
             alter table public.document_chunks alter column small drop not null; \
             alter table public.document_chunks add column embedding vector(768); commit",
        )
        .await?;
    arena.insert(20).await;
    sleep(BROKEN).await;
    arena
        .sql(
            "begin; alter table public.document_chunks drop column embedding; \
             alter table public.document_chunks rename column small to embedding; \
             alter table public.document_chunks alter column embedding set not null; commit",
        )
        .await?;
    arena.healed();
    Ok(())
}

/// What was in it is embedded again at a person's word.
pub async fn target(arena: &mut Arena) -> Outcome {
    arena.worker();
    arena.insert(60).await;
    arena.until_done(20).await?;
    arena
        .sql(
            "begin; create table public.aside (like public.document_chunks including all); \
             insert into public.aside select c.* from public.document_chunks c join public.documents d on d.id = document_id \
             where d.name = 'bystander'; \
             drop table public.document_chunks; commit",
        )
        .await?;
    arena.insert(20).await;
    sleep(BROKEN).await;
    arena
        .sql(
            "begin; alter table public.aside rename to document_chunks; \
             alter table public.document_chunks add foreign key (document_id) references public.documents (id) on delete cascade; commit",
        )
        .await?;
    arena.healed();
    arena.until("select not exists (select from gristmill.embedding_jobs where state <> 'completed')").await?;
    if arena.command(&["jobs", "retry", "--pipeline", "documents", "--state", "completed"]).await != Some(0) {
        return Err(Injected::Failed("what the target lost could not be asked for".to_owned()));
    }
    Ok(())
}

/// Everything is gone, pgvector as well, and made again: the worker says so and ends, and the next one starts with what is there.
pub async fn reset(arena: &mut Arena) -> Outcome {
    arena.insert(60).await;
    let old = arena.worker();
    arena.until_done(10).await?;
    let drop = "begin; lock public.documents in access exclusive mode; drop schema gristmill cascade; drop schema public cascade; \
                create schema public; commit";
    arena.insist(drop).await?;
    sleep(BROKEN).await;
    if arena.command(&["migrate", "--starter"]).await != Some(0) {
        return Err(Injected::Failed("an empty database could not be migrated".to_owned()));
    }
    arena.sql(APPLICATION).await?;
    arena.bystanders = arena.ask(BYSTANDERS).await?;
    arena.files.clear();
    let ended = arena.ended(old).await?;
    if ended.success() || arena.said("is not registered any more") != 1 {
        return Err(Injected::Failed(format!(
            "the worker of the database that was ended with {ended}, and without a word"
        )));
    }
    arena.before_the_books = arena.vendor.requests();
    arena.worker();
    arena.until("select exists (select from gristmill.pipelines where census_done)").await?;
    if arena.command(&["triggers", "install"]).await != Some(0) {
        return Err(Injected::Failed("triggers could not be installed".to_owned()));
    }
    arena.insert(40).await;
    arena.healed();
    Ok(())
}

/// A dump is restored elsewhere while the original works: nothing is sent for the copy until a person says so, and then it is as good.
pub async fn copied(arena: &mut Arena) -> Outcome {
    arena.insert(80).await;
    arena.worker();
    arena.until_done(10).await?;
    let original = arena.world.database.url.clone();
    let name = format!("{}_copy", arena.world.database.name);
    let copy = original.replace(&arena.world.database.name, &name);
    arena.sql(&format!("create database {name}")).await?;
    let dump = format!(
        "'{0}/pg_dump' '{original}' | '{0}/psql' -q -X -v ON_ERROR_STOP=1 '{copy}'",
        server::programs().display()
    );
    let dumped = tokio::task::spawn_blocking(move || Command::new("sh").args(["-c", &dump]).output()).await;
    let dumped = dumped.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    if !dumped.status.success() {
        return Err(Injected::Failed(String::from_utf8_lossy(&dumped.stderr).into_owned()));
    }
    let mut restored = PgConnection::connect(&copy).await?;
    let before = state_of(&mut restored).await?;

    let of_original = arena.world.toml.clone();
    arena.world.toml = of_original.replace(&original, &copy);
    let refused = arena.worker();
    let ended = arena.ended(refused).await?;
    if ended.success() || arena.said("this database is a copy") == 0 || state_of(&mut restored).await? != before {
        return Err(Injected::Failed(format!("a worker on the copy ended with {ended}, or did something before")));
    }

    arena.until("select count(*) = 80 from gristmill.embedding_jobs where state = 'completed'").await?;
    let paid = arena.vendor.requests();
    if arena.command(&["accept", "--database", "--yes"]).await != Some(0) {
        return Err(Injected::Failed("the copy could not be accepted".to_owned()));
    }
    let on_copy = arena.worker();
    for _ in 0..600 {
        let open: i64 =
            ask(&mut restored, "select count(*) from gristmill.embedding_jobs where state <> 'completed'").await?;
        if open == 0 {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    arena.signal(on_copy, "TERM");
    arena.ended(on_copy).await?;
    let wrong: i64 = ask(
        &mut restored,
        "select count(*) from public.documents d where deleted_at is null and (processing_status <> 'completed' or chunk_count is distinct from \
         (select count(*) from public.document_chunks c where c.document_id = d.id))",
    )
    .await?;
    restored.close().await?;
    arena.sql(&format!("drop database {name} with (force)")).await?;
    if wrong > 0 {
        return Err(Injected::Failed(format!("{wrong} rows of the copy are not served")));
    }
    arena.before_the_books += arena.vendor.requests() - paid;
    arena.world.toml = of_original;
    arena.world.config_file();
    arena.insert(20).await;
    arena.healed();
    Ok(())
}

async fn state_of(database: &mut PgConnection) -> sqlx::Result<String> {
    ask(
        database,
        "select concat_ws(' ', (select count(*) from gristmill.provider_calls), (select md5(string_agg(j::text, ' ' order by id)) from gristmill.embedding_jobs j))",
    )
    .await
}

async fn ask<T>(database: &mut PgConnection, query: &str) -> sqlx::Result<T>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(database).await
}
