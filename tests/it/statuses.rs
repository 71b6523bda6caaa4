//! What a source row says of itself is true: also once its vectors are gone, and where a person wants no more of it.

use gristmill::db::app::{WorkedOn, mirror_in_hand};
use gristmill::domain::{LeaseId, SourceKey};
use insta::assert_snapshot;
use uuid::Uuid;

use crate::fake_openai::{Answer, FakeOpenAi, Options};
use crate::outcomes::{enqueued, eventually, killed_in_hand};
use crate::world::{DIMENSIONS, World};

const WITH_A_WORD: &str = "alter table public.documents drop constraint documents_processing_status_check";

/// Some row says that it is worked on.
const SAYS_SO: &str = "exists (select from public.documents where processing_status = 'processing')";

/// Each document: what it says of itself, and what its job says.
async fn said(world: &World) -> String {
    world
        .list(
            "select concat_ws(' ', d.name, d.processing_status, d.chunk_count, '|', j.state, j.error_kind, j.mirror_error) \
             from public.documents d join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(d.id::text) order by d.name",
        )
        .await
        .join("\n")
}

#[tokio::test]
async fn a_row_that_left_does_not_claim_the_vectors_that_went() {
    let world = World::new().await;
    world.register().await;
    world.insert("left", "The wheel turns.").await;
    world.insert("stays", "The stone grinds.").await;
    world.work().await;

    world.sql("update public.documents set deleted_at = now() where name = 'left'").await;
    world.work().await;
    assert_snapshot!(said(&world).await, @"
    left pending 0 | cancelled left
    stays completed 1 | completed
    ");
    assert_eq!(world.sweep(None).await, 0);

    world.sql("update public.documents set deleted_at = null; update public.documents set content = '' where name = 'stays'").await;
    world.work().await;
    assert_snapshot!(said(&world).await, @"
    left completed 1 | completed
    stays skipped 0 | skipped skipped
    ");
}

#[tokio::test]
async fn a_row_that_left_gets_the_word_that_the_application_has_for_it_and_keeps_one_of_its_own() {
    let world =
        World::new().await.change("skipped = \"skipped\" }", "skipped = \"skipped\", cancelled = \"withdrawn\" }");
    world.sql(WITH_A_WORD).await;
    world.register().await;
    world.insert("left", "The wheel turns.").await;
    world.insert("own", "The stone grinds.").await;
    world.work().await;

    world
        .sql("update public.documents set deleted_at = now(), processing_status = case name when 'own' then 'archived' else processing_status end")
        .await;
    world.work().await;

    assert_snapshot!(said(&world).await, @"
    left withdrawn 0 | cancelled left
    own archived 0 | cancelled left
    ");
}

#[tokio::test]
async fn a_row_that_asks_for_itself_and_comes_back_gets_its_vectors_back() {
    let world = World::new().await.change("changed_at = \"updated_at\"", "needs = \"processing_status = 'pending'\"");
    world.register().await;
    world.insert("note", "The wheel turns.").await;
    world.work().await;
    world.sql("update public.documents set deleted_at = now()").await;
    world.work().await;

    world.sql("update public.documents set deleted_at = null").await;
    world.work().await;

    assert_snapshot!(said(&world).await, @"note completed 1 | completed");
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 1);
}

#[tokio::test]
async fn vectors_of_a_row_that_left_go_even_where_the_row_may_not_be_written() {
    let world = World::new().await;
    world.register().await;
    for name in ["one", "shut", "two"] {
        world.insert(name, "The wheel turns.").await;
    }
    world.work().await;
    world.sql("update public.documents set deleted_at = now()").await;
    world
        .sql(
            "create function public.shut() returns trigger language plpgsql as $$ begin raise 'deleted rows are shut'; end $$; \
             create trigger shut before update on public.documents for each row when (old.name = 'shut') execute function public.shut()",
        )
        .await;

    world.work().await;

    assert_snapshot!(said(&world).await, @"
    one pending 0 | cancelled left
    shut completed 1 | cancelled left PL/pgSQL function shut() line 1 at RAISE refused
    two pending 0 | cancelled left
    ");
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 0);
}

#[tokio::test]
async fn the_row_of_a_job_that_a_person_cancelled_says_so() {
    let world =
        World::new().await.change("skipped = \"skipped\" }", "skipped = \"skipped\", cancelled = \"cancelled\" }");
    world.sql(WITH_A_WORD).await;
    world.register().await;
    world.insert("done", "The stone grinds.").await;
    world.work().await;
    world.insert("note", "The wheel turns.").await;
    world.sweep(None).await;
    world.sql("select gristmill.enqueue('documents', 'no uuid'); select gristmill.cancel(id) from gristmill.embedding_jobs").await;
    assert_snapshot!(said(&world).await, @"
    done completed 1 | completed
    note pending | cancelled person
    ");

    world.work().await;

    assert_snapshot!(said(&world).await, @"
    done completed 1 | completed
    note cancelled | cancelled person
    ");
}

#[tokio::test]
async fn a_row_cancelled_after_its_worker_died_does_not_say_that_it_is_worked_on() {
    let world = World::new().await;
    world.register().await;
    enqueued(&world, "note", "The wheel turns.").await;
    killed_in_hand(&world, "true").await;
    world.sql("select gristmill.cancel(id) from gristmill.embedding_jobs").await;
    assert_snapshot!(said(&world).await, @"note processing | cancelled person");

    world.work().await;

    assert_snapshot!(said(&world).await, @"note pending | cancelled person");
}

#[tokio::test]
async fn a_row_whose_write_was_refused_loses_its_old_vectors_when_it_leaves() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "The wheel turns.").await;
    world.work().await;
    world.sql("alter table public.document_chunks add constraint no_poison check (content not like '%poison%')").await;
    world.sql("update public.documents set content = 'A poison text.'; select gristmill.enqueue('documents', id) from public.documents; select gristmill.enqueue('documents', 'no uuid')").await;
    world.work().await;
    assert_snapshot!(said(&world).await, @"note failed 1 | failed constraint");

    world.sql("update public.documents set deleted_at = now()").await;
    world.work().await;

    assert_snapshot!(said(&world).await, @"note pending 0 | cancelled left");
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 0);
    assert_snapshot!(world.states().await, @"
    1 cancelled left
    1 failed constraint
    ");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_says_that_it_failed() {
    let world = World::new().await.change(
        "text = \"{content}\"",
        "text = \"{content} {share}\"\nvalues = { share = \"12 / (length(name) - 3)\" }",
    );
    world.register().await;
    world.insert("bad", "The wheel turns.").await;
    world.insert("good", "The stone grinds.").await;

    world.work().await;

    assert_snapshot!(said(&world).await, @"
    bad failed | failed constraint
    good completed 1 | completed
    ");
    assert_snapshot!(world.value::<String>("select error_message from public.documents where name = 'bad'").await, @"the row cannot be read: a division by zero (22012)");
}

#[tokio::test]
async fn a_key_that_fits_no_row_keeps_no_word_from_the_rows_beside_it() {
    let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() });
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The wheel turns.").await;
    world.sweep(None).await;
    world.sql("select gristmill.enqueue('documents', 'no uuid')").await;

    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    eventually(&world, SAYS_SO).await;
    let under_way = said(&world).await;
    drop(gate);
    worker.idle().await;
    worker.stop().await;

    assert_eq!(under_way, "note processing | processing");
    assert_snapshot!(world.states().await, @"
    1 completed
    1 failed constraint
    ");
}

#[tokio::test]
async fn what_went_wrong_is_cut_to_what_its_column_holds() {
    let world = World::new().await;
    world.sql("alter table public.documents alter error_message type varchar(20)").await;
    world.register().await;
    world.insert_path("nobody/else.txt", "stray").await;
    world.work().await;

    assert_snapshot!(said(&world).await, @"stray failed | failed file");
    let error = world.value::<String>("select error_message from public.documents").await;
    assert_eq!(error, world.value::<String>("select left(reason, 20) from gristmill.embedding_jobs").await);
}

#[tokio::test]
async fn a_row_that_may_not_say_why_says_at_least_that() {
    let world = World::new().await;
    world.sql("alter table public.documents add check (error_message is null)").await;
    world.register().await;
    world.insert_path("nobody/else.txt", "stray").await;
    world.work().await;

    assert_snapshot!(said(&world).await, @"stray failed | failed file the database refused the write: constraint documents_error_message_check of table documents refused the row");
}

#[tokio::test]
async fn a_row_whose_job_is_over_or_another_s_keeps_its_word() {
    let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() });
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The wheel turns.").await;
    world.sweep(None).await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    eventually(&world, SAYS_SO).await;
    let (job, lease) = worker.running.engine.hands.leases()[0];
    let key = SourceKey(vec![world.value("select id::text from public.documents").await]);
    let ours = WorkedOn { job, lease, key };
    let theirs = WorkedOn { lease: LeaseId(Uuid::nil()), ..ours.clone() };
    let plan = worker.running.engine.pipelines[0].fit.plan();
    let mut connection = world.pool.acquire().await.unwrap();

    world.sql("update public.documents set processing_status = 'pending'").await;
    mirror_in_hand(&mut connection, &plan, &[&theirs], "processing").await.unwrap();
    assert_eq!(said(&world).await, "note pending | processing");
    mirror_in_hand(&mut connection, &plan, &[&ours], "processing").await.unwrap();
    assert_eq!(said(&world).await, "note processing | processing");

    gate.open();
    worker.idle().await;
    mirror_in_hand(&mut connection, &plan, &[&ours], "processing").await.unwrap();
    worker.stop().await;
    assert_eq!(said(&world).await, "note completed 1 | completed");
}

#[tokio::test]
async fn a_row_whose_job_has_to_wait_says_so_whatever_it_said_before() {
    let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() });
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The wheel turns.").await;
    world.work().await;
    assert_eq!(said(&world).await, "note completed 1 | completed");
    world.sql("update public.documents set content = 'The stone grinds.'").await;
    vendor.script([Answer::status(429).with("retry-after", "3600")]);
    world.work().await;
    assert_eq!(said(&world).await, "note pending 1 | waiting rate_limited");
}
