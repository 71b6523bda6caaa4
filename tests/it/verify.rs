//! `gristmill verify` and `gristmill jobs`: what a person finds, mends and opens, and what waits for another word first.

use insta::assert_snapshot;
use sqlx::Executor as _;

use crate::cli::gristmill;
use crate::fake_openai::{FakeOpenAi, Options};
use crate::world::{DIMENSIONS, World};

/// What `verify` finds: the name of the row and what is wrong.
async fn findings(world: &World, arguments: &[&str]) -> String {
    let ran = gristmill(world, &[&["verify", "--json"], arguments].concat()).await;
    let mut lines = Vec::new();
    for finding in ran.json()["findings"].as_array().expect("a list") {
        let key = finding["key"][0].as_str().expect("a key");
        let name = world.list(&format!("select name from public.documents where id::text = '{key}'")).await;
        lines.push(format!(
            "{} {}",
            name.first().map_or("nobody", String::as_str),
            finding["kind"].as_str().unwrap_or_default()
        ));
    }
    lines.sort_unstable();
    format!("{}\nexit code {}", lines.join("\n"), ran.code)
}

const PAID: &str = "select count(*) from gristmill.provider_calls";

#[tokio::test]
async fn everything_that_is_not_as_it_should_be_is_found_and_mended() {
    let world = World::new().await;
    world.sql("alter table public.document_chunks drop constraint document_chunks_document_id_fkey").await;
    world.register().await;
    for name in ["altered", "count", "extra", "failed", "gone", "invalid", "left", "missing", "stale", "status", "well"]
    {
        world.insert(name, &format!("The text of {name}.")).await;
    }
    world.sql("update public.documents set content = null, storage_path = 'nowhere/x.txt' where name = 'failed'").await;
    world.work().await;
    assert_snapshot!(findings(&world, &[]).await, @"

    exit code 0
    ");
    let of = |name: &str| format!("where document_id = (select id from public.documents where name = '{name}')");
    for statement in [
        format!("update public.document_chunks set content = 'Something else.' {}", of("altered")),
        format!(
            "insert into public.document_chunks (document_id, user_id, chunk_index, content, token_count, embedding) \
             select document_id, user_id, 1, 'More.', 1, embedding from public.document_chunks {}",
            of("extra")
        ),
        format!(
            "update public.document_chunks set embedding = array_fill(0::real, array[384])::vector {}",
            of("invalid")
        ),
        format!("delete from public.document_chunks {}", of("missing")),
        "update public.documents set chunk_count = 7 where name = 'count'".to_owned(),
        "update public.documents set processing_status = 'completed' where name = 'failed'".to_owned(),
        "update public.documents set processing_status = 'pending' where name = 'status'".to_owned(),
        "update public.documents set content = 'Other.' where name = 'stale'".to_owned(),
        "update public.documents set deleted_at = now() where name = 'left'".to_owned(),
        "delete from public.documents where name = 'gone'".to_owned(),
    ] {
        world.sql(&statement).await;
    }

    assert_snapshot!(findings(&world, &[]).await, @"
    altered altered
    count status
    extra extra
    failed status
    invalid invalid
    left orphaned
    missing missing
    nobody orphaned
    stale stale
    status status
    exit code 1
    ");
    let paid = world.value::<i64>(PAID).await;
    findings(&world, &["--fix"]).await;
    assert_snapshot!(world.states().await, @"
    1 completed
    1 failed file
    9 pending
    ");
    world.work().await;

    assert_snapshot!(findings(&world, &[]).await, @"

    exit code 0
    ");
    // Four texts have no vector that could be kept, and a failed job was not tried again.
    let texts = "select coalesce(sum(inputs), 0)::bigint from gristmill.provider_calls";
    assert!(world.value::<i64>(PAID).await > paid);
    assert_eq!(world.value::<i64>(texts).await, 10 + 4);
    assert_eq!(world.list("select concat_ws(' ', processing_status, chunk_count) from public.documents where name in ('count', 'failed', 'status') order by name").await, ["completed 1", "failed", "completed 1"]);
}

#[tokio::test]
async fn every_column_that_row_and_job_know_is_held_against_them() {
    let world = World::new()
        .await
        .change("overlap = 0", "overlap = 0\nembed = \"{name}\\n{chunk.section}\\n{chunk.text}\"")
        .change(
            "name = \"{name}\", start",
            "name = \"{name}\", of = \"{name}, {chunk.index} of {job.chunks}\", chunks = \"{job.chunks}\", start",
        );
    world.register().await;
    for name in ["altered", "emptied", "keyed", "owned", "paged", "rekeyed", "well"] {
        world.insert(name, &format!("The text of {name}.")).await;
    }
    world.work().await;
    assert_snapshot!(findings(&world, &[]).await, @"

    exit code 0
    ");
    let chunks = "select string_agg(concat_ws(' ', user_id, metadata, md5(content), embedding), '; ' order by document_id) from public.document_chunks";
    let before = world.value::<String>(chunks).await;
    for (name, change) in [
        ("altered", "content = 'Something else.'"),
        ("emptied", "metadata = '{}'"),
        ("keyed", "metadata = metadata || '{\"of\": \"nobody\", \"theirs\": 1}'"),
        ("owned", "user_id = gen_random_uuid()"),
        ("rekeyed", "metadata = metadata || '{\"chunks\": \"1\"}'"),
    ] {
        world.sql(&format!("update public.document_chunks set {change} where document_id = (select id from public.documents where name = '{name}')")).await;
    }
    world.sql("update public.documents set page_count = 9 where name = 'paged'; update public.documents set token_count = token_count + 1 where name = 'well'").await;

    assert_snapshot!(findings(&world, &[]).await, @"
    altered altered
    emptied metadata
    keyed metadata
    owned metadata
    paged status
    rekeyed metadata
    well status
    exit code 1
    ");
    findings(&world, &["--fix"]).await;
    world.work().await;

    assert_snapshot!(findings(&world, &[]).await, @"

    exit code 0
    ");
    let texts = "select coalesce(sum(inputs), 0)::bigint from gristmill.provider_calls";
    assert_eq!(world.value::<i64>(texts).await, 7 + 1, "only the text that was altered is paid for");
    // What the application keeps beside ours stays.
    let theirs = "update public.document_chunks set metadata = metadata - 'theirs' where metadata ? 'theirs'";
    world.sql(theirs).await;
    assert_eq!(world.value::<String>(chunks).await, before);
}

/// A row's value of today is no guide to what was written where the pipeline itself has changed it since, and where the application
/// says that what it has is right.
#[tokio::test]
async fn what_was_not_written_by_us_or_before_us_is_no_finding() {
    let world = World::new()
        .await
        .change("existing = \"backfill\"", "existing = \"adopt\"")
        .change("name = \"{name}\", start", "name = \"{name}\", then = \"{processing_status}\", start");
    world.insert("theirs", "The text of theirs.").await;
    world
        .sql(
            "insert into public.document_chunks (document_id, user_id, chunk_index, content, token_count, embedding) \
             select id, user_id, 0, content, 1, array_fill(0.1::real, array[384])::vector from public.documents",
        )
        .await;
    world.register().await;
    world.insert("ours", "The text of ours.").await;
    world.work().await;

    assert_eq!(world.states().await, "2 completed");
    assert_snapshot!(findings(&world, &[]).await, @"

    exit code 0
    ");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_named_and_the_others_are_looked_at() {
    let world = World::new().await.change(
        "text = \"{content}\"",
        "text = \"{content}{part}\"\nvalues = { part = \"case when name = 'bad' then (1 / (length(name) - 3))::text else '' end\" }",
    );
    world.register().await;
    for name in ["good", "lost", "well"] {
        world.insert(name, "The wheel turns.").await;
    }
    world.work().await;
    world.sql("update public.documents set name = 'bad' where name = 'good'").await;
    world.sql("delete from public.document_chunks where document_id in (select id from public.documents where name = 'lost')").await;

    assert_snapshot!(findings(&world, &[]).await, @"
    bad unreadable
    lost missing
    exit code 1
    ");
    assert_snapshot!(findings(&world, &["--fix"]).await, @"
    bad unreadable
    lost missing
    exit code 1
    ");
    world.work().await;
    assert_snapshot!(findings(&world, &[]).await, @"
    bad unreadable
    exit code 1
    ");
}

#[tokio::test]
async fn nothing_is_opened_under_a_generation_that_nobody_accepted() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "The wheel turns.").await;
    world.work().await;
    let world = world.change("tokens = 200", "tokens = 100");

    for command in [&["verify", "--fix"][..], &["jobs", "retry", "--pipeline", "documents"], &["jobs", "retry", "1"]] {
        let ran = gristmill(&world, command).await;
        assert!(ran.code == 1 && ran.err.contains("gristmill accept documents"), "{command:?} {} {}", ran.out, ran.err);
    }

    assert_snapshot!(world.states().await, @"1 completed");
    gristmill(&world, &["accept", "documents", "--yes"]).await.ok();
    gristmill(&world, &["jobs", "retry", "--pipeline", "documents"]).await.ok();
}

#[tokio::test]
async fn a_retry_does_not_open_rows_that_wait_for_a_word() {
    let world = World::new().await;
    world.insert("old", "This row was there before.").await;
    world.register().await;
    world.insert("new", "This one was not.").await;
    world.work().await;
    let held = "1 completed\n1 waiting unaccepted";
    assert_eq!(world.states().await, held);

    for which in [&["--pipeline", "documents"][..], &["--state", "waiting"], &["--kind", "unaccepted"]] {
        gristmill(&world, &[&["jobs", "retry"], which].concat()).await.ok();
        world.work().await;
        assert_eq!(world.states().await, held, "{which:?}");
    }
    let told = gristmill(&world, &["jobs", "retry", "--pipeline", "documents"]).await.ok();
    assert!(told.err.contains("gristmill accept"), "{}", told.err);
}

#[tokio::test]
async fn jobs_that_somebody_holds_are_passed_over_and_said() {
    let world = World::new().await;
    world.register().await;
    world.insert_sentences(3).await;
    world.sweep(None).await;
    let mut holder = world.database.connect().await;
    holder.execute("begin; select from gristmill.embedding_jobs where id = 2 for update").await.expect("it locks");

    let cancelled = gristmill(&world, &["jobs", "cancel", "--pipeline", "documents", "--json"]).await.ok();
    assert_eq!(cancelled.json()["cancelled"].as_array().map(Vec::len), Some(2));
    assert!(cancelled.err.contains("1 job left as they are"), "{}", cancelled.err);
    let retried = gristmill(&world, &["jobs", "retry", "--pipeline", "documents", "--json"]).await.ok();
    assert_eq!(retried.json()["opened"], 2);

    holder.execute("rollback").await.expect("it ends");
    let cancelled = gristmill(&world, &["jobs", "cancel", "--pipeline", "documents", "--json"]).await.ok();
    assert_eq!(cancelled.json()["cancelled"].as_array().map(Vec::len), Some(3));
}

/// A worker that still has the old configuration comes back while the accepted rows wait: it must not undo the acceptance.
#[tokio::test]
async fn an_old_configuration_does_not_undo_an_accept() {
    let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() });
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The wheel turns.").await;
    world.work().await;
    let world = world.change("tokens = 200", "tokens = 100");
    gristmill(&world, &["accept", "documents", "--yes"]).await.ok();
    let accepted = "select generation from gristmill.pipelines";
    let newer = world.value::<String>(accepted).await;
    assert_snapshot!(world.states().await, @"1 pending");

    let world = world.change("tokens = 100", "tokens = 200");
    let refused = gristmill(&world, &["run", "--once"]).await;

    assert!(refused.code == 1 && refused.err.contains("gristmill accept documents"), "{}", refused.err);
    assert_eq!(world.value::<String>(accepted).await, newer);
    assert_eq!(vendor.paid_texts().len(), 1);
}
