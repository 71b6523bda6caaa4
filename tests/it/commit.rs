//! What a commit writes, and what it leaves alone.

use insta::assert_snapshot;

use crate::fake_openai::{FakeOpenAi, Options};
use crate::ledger::paragraph;
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
async fn a_failure_stands_even_if_its_mirror_is_refused() {
    let world = World::new().await;
    world.register().await;
    world.sql("alter table public.documents add constraint no_failures check (processing_status <> 'failed')").await;
    world.insert_path("nobody/else.txt", "stray").await;

    world.work().await;

    let job = "select concat_ws(' ', state, error_kind, mirror_error) from gristmill.embedding_jobs";
    assert_snapshot!(world.value::<String>(job).await, @"failed file the database refused the write: constraint no_failures of table documents refused the row");
}
