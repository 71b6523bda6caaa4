//! What a commit writes, and what it leaves alone.

use insta::assert_snapshot;
use uuid::Uuid;

use crate::fake_openai::{FakeOpenAi, Options};
use crate::ledger::paragraph;
use crate::outcomes::eventually;
use crate::world::{DIMENSIONS, World};

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

const CHUNKS: &str = "select id::text from public.document_chunks order by chunk_index";

fn forty() -> Vec<String> {
    (0..40).map(|nth| paragraph(&format!("{}{}", ["old", "new", "far", "wet", "dry"][nth % 5], nth))).collect()
}

#[tokio::test]
async fn an_edit_of_one_paragraph_of_forty_keeps_the_other_chunks_and_pays_one_input() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    let mut paragraphs = forty();
    world.insert("book", &paragraphs.join("\n\n")).await;
    world.work().await;
    let before = world.list(CHUNKS).await;
    let inputs = vendor.seen().len();

    paragraphs[17] = paragraph("edited");
    sqlx::query("update public.documents set content = $1")
        .bind(paragraphs.join("\n\n"))
        .execute(&world.pool)
        .await
        .unwrap();
    world.work().await;

    let after = world.list(CHUNKS).await;
    let kept = after.iter().filter(|id| before.contains(id)).count();
    assert_eq!((before.len(), after.len(), kept, vendor.seen().len() - inputs), (40, 40, 39, 1));
    let usage = world.list("select concat_ws(' ', 'r' || revision, meter, quantity) from gristmill.usage_events order by revision, meter").await;
    assert_eq!(usage.len(), 3, "{usage:?}");
    assert_eq!(usage[1], "r2 reused_vectors 39");
}

#[tokio::test]
async fn a_paragraph_at_the_front_moves_the_others_and_keeps_them() {
    let world = World::new().await;
    world.register().await;
    let mut paragraphs = forty();
    world.insert("book", &paragraphs.join("\n\n")).await;
    world.work().await;
    let before = world.list(CHUNKS).await;

    paragraphs.insert(0, paragraph("front"));
    sqlx::query("update public.documents set content = $1")
        .bind(paragraphs.join("\n\n"))
        .execute(&world.pool)
        .await
        .unwrap();
    world.work().await;

    assert_eq!(world.list(CHUNKS).await[1..], before);
}

#[tokio::test]
async fn a_row_that_a_constraint_refuses_fails_alone_and_without_its_text() {
    let world = World::new().await;
    world.register().await;
    world.sql("alter table public.document_chunks add constraint no_poison check (content not like '%poison%')").await;
    for nth in 0..20 {
        world.insert(&format!("row {nth:02}"), "Good grain.").await;
    }
    world.insert("row 99", "A poison text.").await;

    world.work().await;

    let state = world.state().await;
    assert_eq!(state.matches("completed | completed").count(), 20);
    assert_snapshot!(state.lines().last().unwrap_or_default(), @"row 99 failed | failed attempt=1 chunks=0 constraint the database refused the write: constraint no_poison of table document_chunks refused the row");
}

#[tokio::test]
async fn a_trigger_of_the_application_that_refuses_is_named_without_its_words() {
    let world = World::new().await;
    world.register().await;
    world
        .sql(
            "create function public.no_flour() returns trigger language plpgsql as \
             $$ begin raise exception 'not this: %', new.content; end $$; \
             create trigger no_flour before insert on public.document_chunks for each row execute function public.no_flour()",
        )
        .await;
    world.insert("row", "A canary in the flour.").await;

    world.work().await;

    assert_snapshot!(world.state().await, @"row failed | failed attempt=1 chunks=0 constraint the database refused the write: PL/pgSQL function no_flour() line 1 at RAISE refused");
}

#[tokio::test]
async fn a_failure_stands_even_if_its_mirror_is_refused() {
    let world = World::new().await;
    world.register().await;
    world.sql("alter table public.documents add constraint no_failures check (processing_status <> 'failed' or name = '')").await;
    world.insert_path("nobody/else.txt", "stray").await;

    world.work().await;

    let job = "select concat_ws(' ', state, error_kind, mirror_error) from gristmill.embedding_jobs";
    assert_snapshot!(world.value::<String>(job).await, @"failed file the database refused the write: constraint no_failures of table documents refused the row");
    assert_eq!(world.value::<String>("select processing_status from public.documents").await, "pending");
}

#[tokio::test]
async fn a_chunk_that_somebody_holds_keeps_only_its_own_row_waiting() {
    let world = World::new().await;
    world.register().await;
    world.insert_sentences(20).await;
    world.work().await;
    let mut holder = world.database.connect().await;
    let hold = "begin; select from public.document_chunks c join public.documents d on d.id = c.document_id \
                where d.name = 'row 007' for update of c";
    sqlx::raw_sql(hold).execute(&mut holder).await.unwrap();
    world.sql("update public.documents set content = 'New. ' || content, updated_at = now()").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    let worker = world.start().await;

    eventually(
        &world,
        "(select count(*) = 19 from gristmill.embedding_jobs where state = 'completed' and revision = 2)",
    )
    .await;
    let tried = "select distinct outcome from gristmill.job_attempts where revision = 2 and job_id <> \
                 (select j.id from gristmill.embedding_jobs j where state <> 'completed')";
    assert_eq!(world.list(tried).await, Vec::<String>::new(), "jobs beside it were put off");
    sqlx::raw_sql("rollback").execute(&mut holder).await.unwrap();
    eventually(&world, "(select bool_and(state = 'completed' and attempt = 1) from gristmill.embedding_jobs)").await;
    worker.stop().await;

    let texts = "select count(*)::text from public.document_chunks where content like 'New. %'";
    assert_eq!(world.list(texts).await, ["20"]);
}

/// A plan that was made while a table was empty would read all of it, however large it has become.
#[tokio::test]
async fn statements_are_planned_for_the_tables_as_they_are() {
    let world = World::new().await;
    let mut session = world.pool.acquire().await.unwrap();
    let statement = "select count(*) from public.document_chunks where document_id = $1";
    for _ in 0..8 {
        let found: i64 = sqlx::query_scalar(statement).bind(Uuid::nil()).fetch_one(&mut *session).await.unwrap();
        assert_eq!(found, 0);
    }
    let plans: (i64, i64) =
        sqlx::query_as("select generic_plans, custom_plans from pg_prepared_statements where statement = $1")
            .bind(statement)
            .fetch_one(&mut *session)
            .await
            .unwrap();
    assert_eq!(plans, (0, 8));
}
