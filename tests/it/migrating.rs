//! The application's tables change under a running worker: no job is failed for it.

use insta::assert_snapshot;

use crate::outcomes::{eventually, story, vendor};
use crate::world::World;

/// Lets what waits go at once.
const DUE: &str = "update gristmill.embedding_jobs set run_at = now() where state = 'waiting'";

/// Applies a migration that breaks the pipeline while it works, and then one that mends it. Returns what was said of the misfit.
async fn broken_and_mended(broken: &str, mended: &str) -> String {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    let worker = world.start().await;
    worker.idle().await;
    world.insert("note", "One.").await;
    world.insert("other", "Two.").await;
    world.sql(broken).await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;

    eventually(&world, "(select bool_and(state = 'waiting' and error_kind = 'misfit') from gristmill.embedding_jobs)")
        .await;
    let misfits = worker.running.engine.misfits();
    // Nothing more is claimed until the tables fit again.
    world.sql(DUE).await;
    world.sql(mended).await;
    eventually(&world, "(select bool_and(state = 'completed') from gristmill.embedding_jobs)").await;
    assert!(worker.running.engine.misfits().is_empty());
    worker.stop().await;

    let tried = world.list("select outcome from gristmill.job_attempts group by outcome order by outcome").await;
    assert_eq!(tried, ["done", "snooze"], "{broken}");
    assert_eq!(vendor.paid_texts().len(), 2, "{broken}");
    assert_eq!(misfits.len(), 1);
    misfits.into_iter().map(|(name, why)| format!("{name}: {why}")).collect()
}

#[tokio::test]
async fn a_source_column_that_is_renamed_pauses_its_pipeline_until_it_is_back() {
    let said = broken_and_mended(
        "alter table public.documents rename column content to body",
        "alter table public.documents rename column body to content",
    )
    .await;

    assert_snapshot!(said, @"documents: workers.toml:49: pipelines.documents.source.text: {content} is neither a column of public.documents nor one of source.values; it has id, user_id, name, body, storage_path, mime_type, processing_status, error_message, page_count, chunk_count, token_count, processed_at, deleted_at, created_at, updated_at");
}

#[tokio::test]
async fn a_target_that_is_gone_pauses_its_pipeline_until_it_is_back() {
    let said = broken_and_mended(
        "alter table public.document_chunks rename to chunks_v2",
        "alter table public.chunks_v2 rename to document_chunks",
    )
    .await;

    assert_snapshot!(said, @"documents: workers.toml:63: pipelines.documents.target: there is no table public.document_chunks");
}

#[tokio::test]
async fn a_vector_column_of_other_dimensions_pauses_its_pipeline() {
    let said = broken_and_mended(
        "alter table public.document_chunks alter column embedding type vector(768)",
        "alter table public.document_chunks alter column embedding type vector(384)",
    )
    .await;

    assert_snapshot!(said, @"documents: workers.toml:63: pipelines.documents.target: column embedding holds 768 dimensions; small has 384");
}

#[tokio::test]
async fn a_new_column_that_must_have_a_value_pauses_its_pipeline() {
    let said = broken_and_mended(
        "alter table public.document_chunks add column language text not null",
        "alter table public.document_chunks alter column language drop not null",
    )
    .await;

    assert_snapshot!(said, @"documents: workers.toml:63: pipelines.documents.target: column language of public.document_chunks must have a value, and target.columns gives it none; a default may");
}

#[tokio::test]
async fn a_key_of_another_type_that_fits_as_well_is_used_without_a_pause() {
    let world = World::new().await;
    world.register().await;
    let worker = world.start().await;
    worker.idle().await;
    world
        .sql(
            "alter table public.document_chunks drop constraint document_chunks_document_id_fkey; \
             alter table public.documents alter column id type text; \
             alter table public.document_chunks alter column document_id type text",
        )
        .await;
    world.sql("insert into public.documents (user_id, name, content) values (gen_random_uuid(), 'note', 'One.')").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    worker.idle().await;
    worker.stop().await;

    assert_snapshot!(story(&world).await, @r"
    note completed
      job completed attempt=1
      chunks One.
      usage 2 tokens
    ");
}

#[tokio::test]
async fn a_row_that_is_to_blame_fails_while_the_tables_fit() {
    let world = World::new()
        .await
        .change("text = \"{content}\"", "text = \"{number}\"\nvalues = { number = \"source.content::int\" }");
    world.register().await;
    world.insert("bad", "one").await;
    world.insert("good", "1").await;

    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    bad failed the row cannot be read: a value does not fit its column (22P02)
      job failed attempt=1 constraint the row cannot be read: a value does not fit its column (22P02)
      tried fail constraint
    good completed
      job completed attempt=1
      chunks 1
      usage 1 tokens
    ");
}
