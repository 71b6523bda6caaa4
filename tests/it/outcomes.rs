//! Every outcome of an attempt, as it shows on the job, on the source row, in the timeline, in the target and in the ledger.

use std::time::Duration;

use gristmill::app;
use gristmill::db::app::{TriggerSet, install};
use insta::{allow_duplicates, assert_snapshot};

use crate::fake_openai::{Answer, FakeOpenAi, Options};
use crate::world::{DIMENSIONS, USER, World};

/// A vendor whose vectors fit the starter schema.
pub fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

/// Waits until a condition over the database holds.
pub async fn eventually(world: &World, condition: &str) {
    let waited = tokio::time::timeout(Duration::from_secs(40), async {
        while !world.value::<bool>(&format!("select {condition}")).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "never true: {condition}\n{}", story(world).await);
}

/// All a user could see of every job: the row's mirror, the job, its timeline, the target, the ledger.
pub async fn story(world: &World) -> String {
    world
        .list(
            "select concat_ws(E'\n  ', \
                 case when d.id is null then 'gone' else concat_ws(' ', d.name, d.processing_status, d.error_message) end, \
                 concat_ws(' ', 'job', j.state, 'attempt=' || j.attempt, 'crashes=' || nullif(j.crashes, 0), j.error_kind, j.reason), \
                 (select 'tried ' || string_agg(concat_ws(' ', a.outcome, a.error_kind), ', ' order by a.id) \
                  from gristmill.job_attempts a where a.job_id = j.id), \
                 (select 'chunks ' || string_agg(c.content, ' / ' order by c.chunk_index) \
                  from public.document_chunks c where j.source_key = jsonb_build_array(c.document_id::text)), \
                 (select 'usage ' || string_agg(concat_ws(' ', u.quantity, u.meter), ', ' order by u.revision, u.meter) \
                  from gristmill.usage_events u where u.job_id = j.id)) \
             from gristmill.embedding_jobs j left join public.documents d on j.source_key = jsonb_build_array(d.id::text) \
             order by d.name, j.id",
        )
        .await
        .join("\n")
}

/// Installs the pipeline's triggers.
async fn with_triggers(world: &World) {
    world.register().await;
    let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
    let mut connection = world.pool.acquire().await.expect("the database is there");
    install(&mut connection, &TriggerSet::of(&resolved.plans[0])).await.expect("triggers can be made");
}

#[tokio::test]
async fn done_is_on_the_row_the_job_the_target_and_the_ledger() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The mill grinds what the river brings.").await;

    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    note completed
      job completed attempt=1
      chunks The mill grinds what the river brings.
      usage 9 tokens
    ");
}

#[tokio::test]
async fn what_asks_for_nothing_is_skipped_with_its_reason() {
    let world = World::new().await.change(
        "[pipelines.documents.chunks]",
        "[pipelines.documents.skip]\nshorter_than = 6\nwhen = \"name like 'draft%'\"\n\n[pipelines.documents.chunks]",
    );
    world.register().await;
    world.insert("blank", "  \n ").await;
    world.insert("draft", "Not to be read yet.").await;
    world.insert("emptied", "Something to begin with.").await;
    world.insert("short", "Four.").await;
    world.sql("insert into public.documents (user_id, name, content) values (gen_random_uuid(), 'nothing', '')").await;
    world.work().await;
    world.sql("update public.documents set content = '' where name = 'emptied'").await;

    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    blank skipped
      job skipped attempt=0 skipped there is no text
      tried skip skipped
    draft skipped
      job skipped attempt=0 skipped skip.when holds for the row
      tried skip skipped
    emptied skipped
      job skipped attempt=0 skipped there is no text
      tried skip skipped
      usage 5 tokens
    nothing skipped
      job skipped attempt=0 skipped there is no text
      tried skip skipped
    short skipped
      job skipped attempt=0 skipped the text has only 5 characters
      tried skip skipped
    ");
}

#[tokio::test]
async fn a_row_that_changes_while_it_is_embedded_ends_with_the_vectors_of_its_new_text() {
    for triggers in [false, true] {
        let vendor = vendor();
        let world = World::with_vendor(&vendor).await;
        world.register().await;
        if triggers {
            with_triggers(&world).await;
        }
        world.insert("note", "Before.").await;
        let gate = vendor.hold();
        let worker = world.start().await;
        vendor.arrived(1).await;
        world.sql("update public.documents set content = 'After, and longer.'").await;
        gate.open();

        worker.idle().await;
        worker.stop().await;

        let told = story(&world).await;
        allow_duplicates! {
            assert_snapshot!(told, @r"
            note completed
              job completed attempt=1
              tried stale, done
              chunks After, and longer.
              usage 5 tokens
            ");
        }
        assert_eq!(vendor.paid_texts(), ["Before.", "After, and longer."]);
    }
}

#[tokio::test]
async fn a_row_that_changes_during_every_attempt_waits_instead_of_paying_on() {
    let vendor = vendor();
    let restless = "text = \"{content} {noise}\"\nvalues = { noise = \"case when source.name = 'restless' then clock_timestamp()::text end\" }";
    let world = World::with_vendor(&vendor).await.change("text = \"{content}\"", restless);
    world.register().await;
    world.insert("restless", "One.").await;

    world.work().await;

    let waits = "select concat_ws(' ', state, error_kind, 'attempt=' || attempt, 'stales=' || stales, reason) from gristmill.embedding_jobs";
    let job: String = world.value(waits).await;
    assert_snapshot!(job, @"waiting stale attempt=0 stales=5 the row changed during each of the last 5 attempts; waits for it to rest");
    assert_eq!(vendor.requests(), 5);

    // Another change is one more of what it waits out.
    let due = "select run_at::text from gristmill.embedding_jobs";
    let before: String = world.value(due).await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    assert_eq!((world.value::<String>(waits).await, world.value::<String>(due).await), (job, before));

    // A row that rests is done, and what was counted is forgotten.
    world.sql("update public.documents set name = 'rested'; update gristmill.embedding_jobs set run_at = now()").await;
    world.work().await;
    let done: String = world.value(waits).await;
    assert_snapshot!(done, @"completed attempt=1 stales=0");
}

#[tokio::test]
async fn a_row_that_changes_back_while_it_is_embedded_is_not_paid_for_twice() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    with_triggers(&world).await;
    world.insert("note", "Before.").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    world.sql("update public.documents set content = 'Between.'").await;
    world.sql("update public.documents set content = 'Before.'").await;
    gate.open();

    worker.idle().await;
    worker.stop().await;

    assert_snapshot!(story(&world).await, @r"
    note completed
      job completed attempt=1
      tried stale, done
      chunks Before.
      usage 2 tokens
    ");
    assert_eq!(vendor.paid_texts(), ["Before."]);
}

#[tokio::test]
async fn a_job_that_falls_due_is_claimed_without_waiting_for_the_next_poll() {
    let vendor = vendor();
    vendor.script([Answer::wrong_count()]);
    let world = World::with_vendor(&vendor).await.change("poll = \"200ms\"", "poll = \"1h\"");
    world.register().await;
    world.insert("note", "The mill grinds.").await;

    world.work().await;

    assert_snapshot!(world.state().await, @"note completed | completed attempt=2 chunks=1");
}

#[tokio::test]
async fn a_garbled_answer_burns_an_attempt_and_is_tried_again() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "One.").await;
    vendor.script([Answer::wrong_dimensions()]);

    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    note completed
      job completed attempt=2
      tried retry garbled, done
      chunks One.
      usage 2 tokens
    ");
}

#[tokio::test]
async fn what_came_of_old_content_burns_nothing_of_the_new() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("retry_first = \"100ms\"", "retry_first = \"1s\"");
    with_triggers(&world).await;
    world.insert("note", "Before.").await;
    vendor.script([Answer::wrong_dimensions()]);
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    world.sql("update public.documents set content = 'After.'").await;
    gate.open();

    worker.idle().await;
    worker.stop().await;

    assert_snapshot!(story(&world).await, @r"
    note completed
      job completed attempt=1
      tried retry garbled, done
      chunks After.
      usage 2 tokens
    ");
}

#[tokio::test]
async fn the_pause_after_a_burnt_attempt_is_the_configured_one_with_jitter() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor)
        .await
        .change("retry_first = \"100ms\"", "retry_first = \"100s\"")
        .change("retry_longest = \"1s\"", "retry_longest = \"150s\"");
    world.register().await;
    world.insert("note", "One.").await;
    vendor.always(Answer::zeros());

    let mut pauses = Vec::new();
    for _ in 0..3 {
        world.work().await;
        pauses.push(
            world
                .value::<f64>(
                    "select extract(epoch from run_at - clock_timestamp())::float8 from gristmill.embedding_jobs",
                )
                .await,
        );
        world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    }

    assert!((70.0..125.0).contains(&pauses[0]), "{pauses:?}");
    assert!((107.0..187.5).contains(&pauses[1]), "{pauses:?}");
    assert!((107.0..187.5).contains(&pauses[2]), "{pauses:?}");
}

#[tokio::test]
async fn the_last_burnt_attempt_fails_the_job_with_its_reason() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor)
        .await
        .change("existing = \"backfill\"", "existing = \"backfill\"\nmax_attempts = 3");
    world.register().await;
    world.insert("note", "One.").await;
    vendor.always(Answer::wrong_dimensions());

    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    note failed the provider's answer is not usable: the vector of input 1 of 1 has 383 dimensions instead of 384 (attempt 3 of 3)
      job failed attempt=3 garbled the provider's answer is not usable: the vector of input 1 of 1 has 383 dimensions instead of 384 (attempt 3 of 3)
      tried retry garbled, retry garbled, fail garbled
    ");
}

#[tokio::test]
async fn a_rate_limit_puts_the_job_off_until_the_vendor_says_and_burns_nothing() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "One.").await;
    vendor.script([Answer::status(429).with("retry-after", "30")]);

    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    note pending
      job waiting attempt=0 rate_limited the provider limits the rate
      tried snooze rate_limited
    ");
    let wait: f64 = world
        .value("select extract(epoch from run_at - clock_timestamp())::float8 from gristmill.embedding_jobs")
        .await;
    assert!((20.0..=30.0).contains(&wait), "{wait}");

    // Its time comes, and that of all workers, who were told with it.
    world
        .sql("update gristmill.budgets set shut_until = now(); update gristmill.embedding_jobs set run_at = now()")
        .await;
    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    note completed
      job completed attempt=1
      tried snooze rate_limited, done
      chunks One.
      usage 2 tokens
    ");
}

#[tokio::test]
async fn a_vendor_that_is_away_opens_the_breaker_burns_nothing_and_heals() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    vendor.always(Answer::status(503));
    enqueued(&world, "first", "One.").await;
    let worker = world.start().await;
    eventually(&world, "(select state = 'waiting' from gristmill.embedding_jobs)").await;
    enqueued(&world, "second", "Two.").await;
    eventually(&world, "(select count(*) = 2 from gristmill.embedding_jobs where state = 'waiting')").await;
    let tried = vendor.requests();
    let paused = worker.running.lane_status()[0].paused.clone().map(|(why, _)| why);
    assert_eq!(
        paused.as_deref(),
        Some("the provider is away: status 503, server_error: The server had an error processing your request.")
    );

    enqueued(&world, "third", "Three.").await;
    eventually(&world, "(select count(*) = 3 from gristmill.embedding_jobs where state = 'waiting')").await;
    assert_eq!(vendor.requests(), tried, "a shut lane sends nothing");
    assert_snapshot!(story(&world).await, @r"
    first pending
      job waiting attempt=0 unavailable the provider is away: status 503, server_error: The server had an error processing your request.
      tried snooze unavailable
    second pending
      job waiting attempt=0 unavailable the provider is away: status 503, server_error: The server had an error processing your request.
      tried snooze unavailable
    third pending
      job waiting attempt=0 unavailable the provider is away: status 503, server_error: The server had an error processing your request.
      tried snooze unavailable
    ");

    vendor.always(None);
    eventually(&world, "(select count(*) = 3 from gristmill.embedding_jobs where state = 'completed')").await;
    worker.stop().await;

    assert_snapshot!(story(&world).await, @r"
    first completed
      job completed attempt=1
      tried snooze unavailable, done
      chunks One.
      usage 2 tokens
    second completed
      job completed attempt=1
      tried snooze unavailable, done
      chunks Two.
      usage 2 tokens
    third completed
      job completed attempt=1
      tried snooze unavailable, done
      chunks Three.
      usage 2 tokens
    ");
    assert_eq!(vendor.paid_texts().len(), 3);
}

#[tokio::test]
async fn what_trying_again_would_not_help_fails_and_its_neighbours_finish() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    vendor.poison("POISON");
    world.insert("good", "One.").await;
    world.insert("refused", "A text with POISON in it.").await;
    world.upload("encrypted.pdf", include_bytes!("../fixtures/hostile/encrypted.pdf")).await;
    world.insert_path(&format!("{USER}/missing.txt"), "missing.txt").await;
    world.put("someone-else/secret.txt", b"Not yours.");
    world.insert_path("someone-else/secret.txt", "outside.txt").await;
    world.upload("readable.txt", b"A file that can be read.").await;

    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    encrypted.pdf failed the file is encrypted
      job failed attempt=1 unreadable the file is encrypted
      tried fail unreadable
    good completed
      job completed attempt=1
      chunks One.
      usage 2 tokens
    missing.txt failed 00000000-0000-0000-0000-0000000a11ce/missing.txt in store samples is not there
      job failed attempt=1 file 00000000-0000-0000-0000-0000000a11ce/missing.txt in store samples is not there
      tried fail file
    outside.txt failed the path does not lie below what `within` says
      job failed attempt=1 file the path does not lie below what `within` says
      tried fail file
    readable.txt completed
      job completed attempt=1
      chunks A file that can be read.
      usage 7 tokens
    refused failed the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: …
      job failed attempt=1 refused the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: …
      tried fail refused
    ");
}

#[tokio::test]
async fn a_failure_keeps_what_is_in_the_target() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "One.").await;
    world.work().await;
    vendor.poison("POISON");
    world.sql("update public.documents set content = 'Now with POISON.'").await;

    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    note failed the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: …
      job failed attempt=1 refused the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: …
      tried fail refused
      chunks One.
      usage 2 tokens
    ");
}

#[tokio::test]
async fn a_row_that_leaves_loses_its_vectors() {
    for on_leave in ["delete", "keep"] {
        let vendor = vendor();
        let on_leave_line = format!("existing = \"backfill\"\non_leave = \"{on_leave}\"");
        let world = World::with_vendor(&vendor).await.change("existing = \"backfill\"", &on_leave_line);
        world.register().await;
        world.insert("deleted before", "One.").await;
        world.insert("left before", "Two.").await;
        world.insert("left later", "Three.").await;
        world.insert("stays", "Four.").await;
        with_triggers(&world).await;
        world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
        world.sql("delete from public.documents where name = 'deleted before'").await;
        world.sql("update public.documents set deleted_at = now() where name = 'left before'").await;
        world.work().await;
        world.sql("update public.documents set deleted_at = now() where name = 'left later'").await;

        world.work().await;

        match on_leave {
            "delete" => assert_snapshot!(story(&world).await, @r"
            left before pending
              job cancelled attempt=0 left source row is not in the set
              tried cancel left
            left later pending
              job cancelled attempt=0 left source row is not in the set
              tried cancel left
              usage 2 tokens
            stays completed
              job completed attempt=1
              chunks Four.
              usage 2 tokens
            gone
              job cancelled attempt=0 left source row is gone
              tried cancel left
            "),
            _ => assert_snapshot!(story(&world).await, @r"
            left before pending
              job cancelled attempt=0 left source row is not in the set
              tried cancel left
            left later completed
              job cancelled attempt=0 left source row is not in the set
              tried cancel left
              chunks Three.
              usage 2 tokens
            stays completed
              job completed attempt=1
              chunks Four.
              usage 2 tokens
            gone
              job cancelled attempt=0 left source row is gone
              tried cancel left
            "),
        }
        assert_eq!(vendor.paid_texts().len(), 2, "what has left is not paid for");
    }
}

#[tokio::test]
async fn a_row_that_leaves_while_it_is_embedded_is_cancelled() {
    for triggers in [false, true] {
        let vendor = vendor();
        let world = World::with_vendor(&vendor).await;
        world.register().await;
        if triggers {
            with_triggers(&world).await;
        }
        world.insert("deleted", "One.").await;
        world.insert("left", "Two.").await;
        world.insert("stays", "Three.").await;
        let gate = vendor.hold();
        let worker = world.start().await;
        vendor.arrived(1).await;
        eventually(&world, "(select count(*) = 3 from gristmill.embedding_jobs where state = 'processing')").await;
        world.sql("delete from public.documents where name = 'deleted'").await;
        world.sql("update public.documents set deleted_at = now() where name = 'left'").await;
        gate.open();

        worker.idle().await;
        worker.stop().await;

        let told = story(&world).await;
        allow_duplicates! {
            assert_snapshot!(told, @r"
            left pending
              job cancelled attempt=0 left source row is not in the set
              tried stale, cancel left
            stays completed
              job completed attempt=1
              chunks Three.
              usage 2 tokens
            gone
              job cancelled attempt=0 left source row is gone
              tried stale, cancel left
            ");
        }
    }
}

#[tokio::test]
async fn what_a_person_cancels_stays_as_it_is_until_a_person_opens_it() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("lease = \"10s\"", "lease = \"1500ms\"");
    with_triggers(&world).await;
    world.insert("note", "One.").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    world.sql("select gristmill.cancel(id) from gristmill.embedding_jobs").await;
    worker.running.engine.hands.emptied().await;
    gate.open();
    world.sql("update public.documents set content = 'Two.'").await;
    worker.idle().await;
    worker.stop().await;
    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    note pending
      job cancelled attempt=0 person cancelled by a person
    ");

    world.sql("select gristmill.retry(id) from gristmill.embedding_jobs").await;
    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    note completed
      job completed attempt=1
      chunks Two.
      usage 2 tokens
    ");
}

#[tokio::test]
async fn a_worker_that_has_to_go_hands_its_jobs_back_unburnt() {
    for grace in ["0s", "200ms"] {
        let vendor = vendor();
        let world = World::with_vendor(&vendor).await.change("grace = \"5s\"", &format!("grace = \"{grace}\""));
        world.register().await;
        world.insert("note", "One.").await;
        let gate = vendor.hold();
        let worker = world.start().await;
        vendor.arrived(1).await;

        worker.stop().await;

        let told = story(&world).await;
        allow_duplicates! {
            assert_snapshot!(told, @r"
            note pending
              job pending attempt=0
              tried handback
            ");
        }

        gate.open();
        world.work().await;

        let told = story(&world).await;
        allow_duplicates! {
            assert_snapshot!(told, @r"
            note completed
              job completed attempt=1
              tried handback, done
              chunks One.
              usage 2 tokens
            ");
        }
    }
}

#[tokio::test]
async fn a_worker_that_may_finish_within_its_grace_does() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "One.").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    worker.stop.cancel();
    enqueued(&world, "later", "Two.").await;
    gate.open();

    worker.stop().await;

    assert_snapshot!(story(&world).await, @r"
    later pending
      job pending attempt=0
    note completed
      job completed attempt=1
      chunks One.
      usage 2 tokens
    ");
}

#[tokio::test]
async fn a_worker_told_twice_hands_back_at_once() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("grace = \"5s\"", "grace = \"1h\"");
    world.register().await;
    world.insert("note", "One.").await;
    let _gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    worker.stop.cancel();
    worker.running.engine.give_up.cancel();

    worker.stop().await;

    assert_snapshot!(story(&world).await, @r"
    note pending
      job pending attempt=0
      tried handback
    ");
}

#[tokio::test]
async fn a_job_whose_lease_is_anothers_is_let_alone() {
    for heartbeats in [false, true] {
        let vendor = vendor();
        let lease = if heartbeats { "lease = \"900ms\"" } else { "lease = \"45s\"" };
        let world = World::with_vendor(&vendor).await.change("lease = \"10s\"", lease);
        world.register().await;
        world.insert("note", "One.").await;
        let gate = vendor.hold();
        let worker = world.start().await;
        vendor.arrived(1).await;
        eventually(&world, "(select processing_status = 'processing' from public.documents)").await;
        world
            .sql(
                "update gristmill.embedding_jobs set lease_id = gen_random_uuid(), worker = gen_random_uuid(), \
                 lease_until = now() + interval '1 hour'",
            )
            .await;
        let gate = if heartbeats {
            Some(gate)
        } else {
            drop(gate);
            None
        };

        // With heartbeats, the attempt ends although the vendor still hangs.
        worker.running.engine.hands.emptied().await;
        drop(gate);
        worker.stop().await;

        let told = story(&world).await;
        allow_duplicates! {
            assert_snapshot!(told, @r"
            note processing
              job processing attempt=0
            ");
        }
    }
}

#[tokio::test]
async fn a_job_that_is_given_back_too_late_stays_processing_on_its_row() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("lease = \"10s\"", "lease = \"45s\"");
    world.register().await;
    world.insert("note", "One.").await;
    vendor.script([Answer::status(429).with("retry-after", "30")]);
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    eventually(&world, "(select processing_status = 'processing' from public.documents)").await;
    let taken =
        "update gristmill.embedding_jobs set lease_id = gen_random_uuid(), lease_until = now() + interval '1 hour'";
    world.sql(taken).await;

    drop(gate);
    worker.running.engine.hands.emptied().await;
    worker.stop().await;

    assert_snapshot!(story(&world).await, @r"
    note processing
      job processing attempt=0
    ");
}

#[tokio::test]
async fn a_worker_that_was_away_and_rescued_writes_nothing_when_it_wakes() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "One.").await;
    let gate = vendor.hold();
    let paused = world.change("lease = \"10s\"", "lease = \"45s\"");
    let first = paused.start().await;
    vendor.arrived(1).await;
    paused.sql("update gristmill.embedding_jobs set lease_until = now() - interval '1 second'").await;
    let world = paused.change("lease = \"45s\"", "lease = \"1s\"");
    let second = world.start().await;
    vendor.arrived(2).await;
    gate.open();

    second.idle().await;
    first.running.engine.hands.emptied().await;
    second.stop().await;
    first.stop().await;

    assert_snapshot!(story(&world).await, @r"
    note completed
      job completed attempt=1 crashes=1
      tried crash crashed, done
      chunks One.
      usage 2 tokens
    ");
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 1);
}

/// Leaves jobs as a worker does that was killed with them in hand.
pub async fn killed_in_hand(world: &World, of: &str) {
    world
        .sql(&format!(
            "update gristmill.embedding_jobs set state = 'processing', starts = starts + 1, lease_id = gen_random_uuid(), worker = gen_random_uuid(), \
             lease_until = now() - interval '1 second', started_at = now() \
             where source_key in (select jsonb_build_array(id::text) from public.documents where {of}); \
             update public.documents set processing_status = 'processing' where {of}"
        ))
        .await;
}

pub async fn enqueued(world: &World, name: &str, text: &str) {
    world.insert(name, text).await;
    world.sql(&format!("select gristmill.enqueue('documents', id) from public.documents where name = '{name}'")).await;
}

#[tokio::test]
async fn a_dead_workers_job_is_done_by_another_and_no_attempt_is_burnt() {
    let world = World::new().await.change("lease = \"10s\"", "lease = \"1s\"");
    world.register().await;
    enqueued(&world, "note", "One.").await;
    killed_in_hand(&world, "true").await;

    let worker = world.start().await;
    eventually(&world, "(select state = 'completed' from gristmill.embedding_jobs)").await;
    worker.stop().await;

    assert_snapshot!(story(&world).await, @r"
    note completed
      job completed attempt=1 crashes=1
      tried crash crashed, done
      chunks One.
      usage 2 tokens
    ");
}

#[tokio::test]
async fn from_the_third_crash_on_a_job_has_a_worker_for_itself() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("lease = \"10s\"", "lease = \"1s\"");
    world.register().await;
    enqueued(&world, "suspect", "One.").await;
    world.sql("update gristmill.embedding_jobs set crashes = 2").await;
    killed_in_hand(&world, "true").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    for nth in 0..5 {
        enqueued(&world, &format!("innocent {nth}"), "Two.").await;
    }
    // Longer than it takes to claim what may be claimed.
    tokio::time::sleep(Duration::from_millis(700)).await;
    eventually(&world, "exists (select from public.documents where processing_status = 'processing')").await;

    assert_snapshot!(world.state().await, @r"
    innocent 0 pending | pending attempt=0 chunks=0
    innocent 1 pending | pending attempt=0 chunks=0
    innocent 2 pending | pending attempt=0 chunks=0
    innocent 3 pending | pending attempt=0 chunks=0
    innocent 4 pending | pending attempt=0 chunks=0
    suspect processing | processing attempt=0 chunks=0
    ");
    assert!(world.value::<bool>("select alone from gristmill.embedding_jobs where state = 'processing'").await);

    gate.open();
    worker.idle().await;
    worker.stop().await;

    assert_snapshot!(world.state().await, @r"
    innocent 0 completed | completed attempt=1 chunks=1
    innocent 1 completed | completed attempt=1 chunks=1
    innocent 2 completed | completed attempt=1 chunks=1
    innocent 3 completed | completed attempt=1 chunks=1
    innocent 4 completed | completed attempt=1 chunks=1
    suspect completed | completed attempt=1 chunks=1
    ");
}

#[tokio::test]
async fn a_job_that_was_alone_twice_when_its_worker_died_is_failed() {
    let world = World::new().await.change("lease = \"10s\"", "lease = \"1s\"");
    world.register().await;
    enqueued(&world, "killer", "One.").await;
    world.sql("update gristmill.embedding_jobs set crashes = 4, crashes_alone = 1, alone = true").await;
    killed_in_hand(&world, "true").await;

    let worker = world.start().await;
    eventually(&world, "(select state not in ('processing', 'pending') from gristmill.embedding_jobs)").await;
    worker.stop().await;

    assert_snapshot!(story(&world).await, @r"
    killer failed its worker died five times, the last two with nothing but this job in hand; look at the row, then retry
      job failed attempt=1 crashes=5 crashed its worker died five times, the last two with nothing but this job in hand; look at the row, then retry
      tried crash crashed, fail crashed
    ");
}

#[tokio::test]
async fn an_attempt_past_its_deadline_is_burnt() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor)
        .await
        .change("grace = \"5s\"", "grace = \"5s\"\ndeadline = \"300ms\"")
        .change("existing = \"backfill\"", "existing = \"backfill\"\nmax_attempts = 2");
    world.register().await;
    world.insert("note", "One.").await;
    let gate = vendor.hold();

    world.work().await;

    assert_snapshot!(story(&world).await, @r"
    note failed the attempt took longer than its deadline (attempt 2 of 2)
      job failed attempt=2 deadline the attempt took longer than its deadline (attempt 2 of 2)
      tried retry deadline, fail deadline
    ");
    drop(gate);
}
