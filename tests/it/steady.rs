//! What a commit need not ask of a row again, and what it must.

use gristmill::app;

use crate::world::World;

/// A trigger that has a say in what is written to a table.
const MEDDLES: &str = "create function public.meddle() returns trigger language plpgsql as \
    $$ begin new.content = upper(new.content); return new; end $$; \
    create trigger meddle before update on public.documents for each row execute function public.meddle()";

/// Whether the content goes by the row's version, and whether commits spare it.
async fn steady(world: &World) -> (bool, bool) {
    let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
    let steady = resolved.plans[0].steady;
    (steady.versioned, steady.spared)
}

#[tokio::test]
async fn content_is_asked_again_where_more_than_its_row_makes_it_or_a_commit_may_change_it() {
    let world = World::new().await;
    let text = "text = \"{content}\"";
    let value = "text = \"{title}\"\nvalues = { title = \"(select max(content) from public.documents)\" }";
    assert_eq!(steady(&world).await, (true, true));

    let world = world.change(text, value);
    assert_eq!(steady(&world).await, (false, false));
    let world = world.change(value, text).change("chunk_count = \"{job.chunks}\"", "content = \"{job.chunks}\"");
    assert_eq!(steady(&world).await, (true, false));
    let world = world.change("content = \"{job.chunks}\"", "chunk_count = \"{job.chunks}\"");
    let needs = "changed_at = \"updated_at\"\nneeds = \"processing_status = 'pending'\"";
    let world = world.change("changed_at = \"updated_at\"", needs);
    assert_eq!(steady(&world).await, (true, false));

    let world = world.change(needs, "changed_at = \"updated_at\"");
    assert_eq!(steady(&world).await, (true, true));
    world.sql(MEDDLES).await;
    assert_eq!(steady(&world).await, (true, false));
}

#[tokio::test]
async fn what_a_trigger_makes_of_a_commit_does_not_look_like_a_change() {
    let world = World::new().await;
    world.sql(MEDDLES).await;
    world.register().await;
    world.insert("note", "The wheel turns.").await;
    world.work().await;

    assert_eq!(world.value::<String>("select content from public.documents").await, "THE WHEEL TURNS.");
    assert_eq!(world.sweep(None).await, 0);
}

#[tokio::test]
async fn small_rows_and_large_ones_are_loaded_together() {
    let world = World::new().await;
    world.register().await;
    world.insert("small", "The wheel turns.").await;
    world.insert("large", &"The stone grinds. ".repeat(2_000)).await;
    world.insert("none", "").await;
    world.work().await;

    let read = "select concat_ws(' ', d.name, j.state, (select sum(length(content)) from public.document_chunks c where c.document_id = d.id)) \
                from public.documents d join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(d.id::text) order by d.name";
    insta::assert_snapshot!(world.list(read).await.join("\n"), @"
    large completed 35928
    none skipped
    small completed 16
    ");
}
