//! Texts of many jobs share requests; what is wrong with one of them, or with the vendor, stays where it belongs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;
use gristmill::batch::{Batcher, EmbedFailure, Keyed, Landing, LaneSettings, OfJob, Text, Vital};
use gristmill::config::Allowance;
use gristmill::domain::{JobId, OwnerId, Revision};
use gristmill::providers::{Embedded, Embedder, ProviderError};
use insta::assert_snapshot;

use crate::cli::gristmill;
use crate::fairness::{Mill, of_job};
use crate::fake_openai::{Answer, FakeOpenAi, Options, Spoilt, tokens_of, vector_of};
use crate::world::{DIMENSIONS, USER, World};

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

/// What jobs, their timelines and the books say, in lower case.
async fn everything_of_ours(world: &World) -> String {
    let said = "select concat_ws(' ', j, a, c) from gristmill.embedding_jobs j \
         full join gristmill.job_attempts a on a.job_id = j.id full join gristmill.provider_calls c on false";
    world.list(said).await.join("\n").to_lowercase()
}

/// A world of that vendor with room for many jobs at once.
async fn world_of(vendor: &FakeOpenAi) -> World {
    let world = World::with_vendor(vendor).await;
    world.change("slots = 16", "slots = 512").change("linger = \"5ms\"", "linger = \"50ms\"")
}

#[tokio::test]
async fn hundreds_of_sentences_become_few_requests() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    world.register().await;
    world.insert_sentences(300).await;

    world.work().await;

    assert_snapshot!(world.states().await, @"300 completed");
    let mut texts = vendor.paid_texts();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 300);
    let sizes: Vec<usize> = vendor.seen().iter().map(|seen| seen.texts.len()).collect();
    assert!(sizes.len() <= 6 && sizes.iter().any(|&size| size >= 100), "{sizes:?}");
}

#[tokio::test]
async fn the_vendor_s_own_limits_are_kept() {
    let vendor = vendor();
    let world = world_of(&vendor).await.change("slots = 512", "slots = 3000");
    world.register().await;
    world.insert_sentences(2_500).await;

    world.work().await;

    assert_snapshot!(world.states().await, @"2500 completed");
    assert!(vendor.seen().iter().all(|seen| seen.status == Some(200)), "a request was refused");
}

#[tokio::test]
async fn configured_limits_of_inputs_and_tokens_are_kept() {
    let vendor = vendor();
    let limits = "longest = 200\ninputs = 10\ntokens = 200";
    let world = world_of(&vendor).await.change("longest = 8000", limits);
    world.register().await;
    world.insert_sentences(60).await;
    for nth in 0..5 {
        world.insert(&format!("long {nth}"), &format!("Flour number {nth}. ").repeat(24)).await;
    }

    world.work().await;

    assert_snapshot!(world.states().await, @"65 completed");
    for seen in vendor.seen() {
        let tokens: usize = seen.texts.iter().map(|text| tokens_of(text)).sum();
        assert!(seen.texts.len() <= 10 && tokens <= 200, "{} inputs of {tokens} tokens", seen.texts.len());
    }
    assert_eq!(vendor.paid_texts().len(), 65);
}

#[tokio::test]
async fn a_poisoned_text_fails_alone() {
    let vendor = vendor();
    vendor.poison("POISON");
    let world = world_of(&vendor).await;
    world.register().await;
    world.insert_sentences(99).await;
    world.insert("poisoned", "A sentence with POISON in it.").await;

    world.work().await;

    assert_snapshot!(world.states().await, @"
    1 failed refused
    99 completed
    ");
    let reason: String = world.value("select reason from gristmill.embedding_jobs where state = 'failed'").await;
    assert_snapshot!(reason, @"the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …. The text was: …");
    assert!(!everything_of_ours(&world).await.contains("poison"), "a text's word is stored");
    // Halving a hundred texts takes fourteen requests; each neighbour is paid once.
    assert!(vendor.requests() <= 20, "{} requests", vendor.requests());
    assert_eq!(vendor.paid_texts().len(), 99);
}

#[tokio::test]
async fn poisoned_neighbours_fail_alone_too() {
    let vendor = vendor();
    vendor.poison("POISON");
    let world = world_of(&vendor).await;
    world.register().await;
    // Their keys come first, so they stand beside each other in a request.
    world
        .sql(&format!(
            "insert into public.documents (id, user_id, name, content) \
             select lpad(nth::text, 32, '0')::uuid, '{USER}', 'poisoned', format('Sentence %s with POISON in it.', nth) \
             from generate_series(1, 10) as nth"
        ))
        .await;
    world.insert_sentences(90).await;

    world.work().await;

    assert_snapshot!(world.states().await, @"
    10 failed refused
    90 completed
    ");
    // Some requests held nothing but poison: whether the vendor takes anything at all was asked with a text of our own.
    let (ours, rows): (Vec<_>, Vec<_>) =
        vendor.paid_texts().into_iter().partition(|text| text.starts_with("The quick brown fox"));
    assert_eq!(rows.len(), 90);
    assert!(ours.len() <= 3, "{}", ours.len());
}

#[tokio::test]
async fn a_provider_that_refuses_everything_shuts_its_lane_after_few_requests() {
    let vendor = vendor();
    vendor.always(Answer::refused("input must be a token array"));
    let world = world_of(&vendor).await;
    world.register().await;
    world.insert_sentences(200).await;

    let worker = world.start().await;
    worker.idle().await;
    let lanes = worker.running.lane_status();
    worker.stop().await;

    assert_snapshot!(world.states().await, @"200 waiting misconfigured");
    let (paused, seconds) = lanes[0].paused.clone().expect("the lane is paused");
    assert_snapshot!(paused, @"the provider cannot be used as configured: status 400, invalid_request_error: input must be a token array");
    assert!(seconds > 240, "{seconds}");
    // Eight to a single text, four to those beside it, and one with a text of our own; a request that was under way beside it may double that.
    assert!(vendor.requests() <= 20, "{} requests", vendor.requests());
    let burnt: i64 = world.value("select count(*) from gristmill.embedding_jobs where attempt > 0").await;
    assert_eq!(burnt, 0);
}

#[tokio::test]
async fn two_refused_texts_do_not_shut_the_lane() {
    let vendor = vendor();
    vendor.poison("POISON");
    let world = world_of(&vendor).await;
    world.register().await;
    world.insert("one", "POISON in a sentence.").await;
    world.insert("two", &"A paragraph with POISON in it. ".repeat(100)).await;

    let worker = world.start().await;
    worker.idle().await;
    let lanes = worker.running.lane_status();
    worker.stop().await;

    assert_eq!((world.states().await.as_str(), &lanes[0].paused), ("2 failed refused", &None));
}

/// Panics over a text that says so, and forgets the vectors of others.
struct Clumsy;

#[async_trait::async_trait]
impl Embedder for Clumsy {
    async fn embed(&self, texts: &[String]) -> Result<Embedded, ProviderError> {
        tokio::task::yield_now().await;
        assert!(!texts.iter().any(|text| text.contains("PANIC")), "on purpose");
        let kept = texts.iter().filter(|text| !text.contains("FORGOTTEN"));
        Ok(Embedded { vectors: kept.map(|text| Ok(vector_of(text, 8).into())).collect(), ..Embedded::default() })
    }
}

#[tokio::test]
async fn a_driver_that_panics_over_a_text_fails_its_job_alone_and_the_lane_goes_on() {
    let world = World::new().await;
    let settings = LaneSettings {
        provider: "clumsy".to_owned(),
        model: "clumsy".to_owned(),
        dimensions: 8,
        sparse: false,
        inputs: 100,
        tokens: 1_000,
        concurrency: 2,
        allowance: Allowance::default(),
        pack_across_tenants: true,
        linger: Duration::from_millis(20),
        vectors_in_memory: u64::MAX,
        prices: Vec::new(),
    };
    let driver: Arc<dyn Embedder> = Arc::new(Clumsy);
    let keyed = Keyed { credential: String::new(), tenants: Vec::new(), driver };
    let batcher = Batcher::start(
        world.pool.clone(),
        &world.pool,
        OwnerId::fresh(),
        settings,
        keyed,
        Vec::new(),
        &Vital::default(),
    );
    let embed = async |id: i64, text: &str| {
        let of = OfJob {
            id: JobId(id),
            revision: Revision(1),
            tenant: String::new(),
            tried: false,
            parked_since: None,
            cached: false,
            ceiling: None,
        };
        batcher
            .embed(&of, &[Text { text, tokens: 3 }], batcher.expect(), &mut Landing::default())
            .await
            .map(|paid| paid.vectors.len())
    };

    let (panic, one, two) = tokio::join!(embed(1, "Do not PANIC."), embed(2, "One."), embed(3, "Two."));

    let blamed = Err(EmbedFailure::Garbled("the worker panicked over the request; its log says where".to_owned()));
    assert_eq!((panic, one, two), (blamed, Ok(1), Ok(1)));
    let calls = world.list("select concat_ws(' ', outcome, error_kind) from gristmill.provider_calls order by 1").await;
    assert!(calls.iter().any(|call| call == "unknown panicked") && !calls.contains(&"intent".to_owned()), "{calls:?}");
    // What has no answer for a reason that nobody knows is put off, not burnt.
    assert_eq!(embed(4, "FORGOTTEN").await, Err(EmbedFailure::Lost { after: Duration::from_secs(10) }));
    assert_eq!(embed(5, "Three.").await, Ok(1));
}

#[tokio::test]
async fn a_bad_vector_fails_its_own_job_only() {
    for (how, want, requests) in [
        (Spoilt::OneNotFinite, "is not finite", 3),
        (Spoilt::OneZero, "zero", 3),
        (Spoilt::OneShort, "383", 3),
        // Whose vector is missing cannot be seen: halving finds it.
        (Spoilt::OneMissing, "0 vectors for 1 texts", 12),
    ] {
        let vendor = vendor();
        vendor.spoil("SPOILT", how);
        let world =
            world_of(&vendor).await.change("existing = \"backfill\"", "existing = \"backfill\"\nmax_attempts = 2");
        world.register().await;
        world.insert_sentences(20).await;
        world.insert("spoilt", "A sentence that is SPOILT.").await;

        world.work().await;

        assert_eq!(world.states().await, "1 failed garbled\n20 completed", "{how:?}");
        let reason: String = world.value("select reason from gristmill.embedding_jobs where state = 'failed'").await;
        assert!(reason.contains(want) && !reason.contains("SPOILT"), "{how:?}: {reason}");
        assert!(vendor.requests() <= requests, "{how:?}: {} requests", vendor.requests());
    }
}

#[tokio::test]
async fn what_was_paid_beside_a_bad_vector_is_not_paid_again() {
    let vendor = vendor();
    vendor.spoil("SPOILT", Spoilt::OneNotFinite);
    let world = world_of(&vendor).await.change("existing = \"backfill\"", "existing = \"backfill\"\nmax_attempts = 3");
    world.register().await;
    let good = "The mill grinds the corn of the village. ".repeat(20);
    world.insert("spoilt", &format!("{good}\n\n{}", "What is SPOILT stays so. ".repeat(20))).await;

    world.work().await;

    assert_eq!(world.states().await, "1 failed garbled");
    let (mut spoilt, mut good): (Vec<String>, Vec<String>) =
        vendor.paid_texts().into_iter().partition(|text| text.contains("SPOILT"));
    let paid = (spoilt.len(), good.len());
    for texts in [&mut spoilt, &mut good] {
        texts.sort();
        texts.dedup();
    }
    assert_eq!(paid, (3 * spoilt.len(), good.len()), "{good:?}");
    assert!(!good.is_empty() && !spoilt.is_empty());
}

#[tokio::test]
async fn a_provider_that_garbles_everything_shuts_its_lane_after_few_requests() {
    for (answer, why, requests) in [
        (Answer::vectors(Spoilt::AllShort), "has 383 dimensions instead of 384", 2),
        (Answer::vectors(Spoilt::AllNotFinite), "has a value that is not finite", 2),
        (Answer::wrong_count(), "0 vectors for 1 texts", 14),
    ] {
        let vendor = vendor();
        vendor.always(answer);
        let world = world_of(&vendor).await;
        world.register().await;
        world.insert_sentences(100).await;

        let worker = world.start().await;
        worker.idle().await;
        let lanes = worker.running.lane_status();
        worker.stop().await;

        assert_eq!(world.states().await, "100 waiting misconfigured", "{why}");
        let (paused, seconds) = lanes[0].paused.clone().expect("the lane is paused");
        assert!(paused.starts_with("the provider cannot be used as configured: ") && paused.contains(why), "{paused}");
        assert!(seconds > 240, "{seconds}");
        assert!(vendor.requests() <= requests, "{why}: {} requests", vendor.requests());
        let burnt: i64 = world.value("select count(*) from gristmill.embedding_jobs where attempt > 0").await;
        assert!(burnt <= 2, "{why}: {burnt} attempts burnt");
    }
}

#[tokio::test]
async fn texts_that_are_bad_together_do_not_shut_the_lane_for_good_ones() {
    let vendor = vendor();
    vendor.spoil("row", Spoilt::OneNotFinite);
    let world = world_of(&vendor).await.change("existing = \"backfill\"", "existing = \"backfill\"\nmax_attempts = 2");
    world.register().await;
    // With nothing else in the lane they are at fault themselves, until a third agrees.
    world.insert("one", "Of this row there is no vector.").await;
    world.insert("two", "Nor of this row.").await;
    let worker = world.start().await;
    worker.idle().await;
    world.insert_sentences(20).await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents where name like 'row%'").await;
    worker.idle().await;
    worker.stop().await;

    assert_eq!(world.states().await, "2 failed garbled\n20 completed");
}

#[tokio::test]
async fn answers_that_are_none_are_asked_for_again() {
    let vendor = vendor();
    vendor.script([Answer::wrong_count(), Answer::html(), Answer::empty()]);
    let world = world_of(&vendor).await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;

    world.work().await;

    assert_snapshot!(world.state().await, @"note completed | completed attempt=2 chunks=1");
    assert_eq!(vendor.requests(), 4);
}

#[tokio::test]
async fn a_web_page_in_place_of_answers_is_not_asked_for_once_per_text() {
    let vendor = vendor();
    vendor.always(Answer::html());
    let world = world_of(&vendor).await;
    world.register().await;
    world.insert_sentences(200).await;

    world.work().await;

    assert_snapshot!(world.states().await, @"200 waiting unavailable");
    assert!(vendor.requests() <= 20, "{} requests", vendor.requests());
    let burnt: i64 = world.value("select count(*) from gristmill.embedding_jobs where attempt > 0").await;
    assert_eq!(burnt, 0);
}

#[tokio::test]
async fn a_refused_credential_pauses_the_lane_and_burns_nothing() {
    for answer in [Answer::insufficient_quota(), Answer::unauthorized("sk-canary-secret")] {
        let vendor = vendor();
        vendor.always(answer.clone());
        let world = world_of(&vendor).await.change("longest = 8000", "longest = 8000\ninputs = 10");
        world.register().await;
        world.insert_sentences(200).await;

        let worker = world.start().await;
        worker.idle().await;
        let lanes = worker.running.lane_status();
        worker.stop().await;

        assert_eq!(world.states().await, "200 waiting credential");
        let due: bool = world
            .value(
                "select bool_and(attempt = 0 and run_at > now() + interval '4 minutes') from gristmill.embedding_jobs",
            )
            .await;
        assert!(due, "an attempt was burnt, or a job comes back too soon");
        let (why, seconds) = lanes[0].paused.clone().expect("the lane is paused");
        assert!(why.starts_with("the provider refuses the credential: ") && !why.contains("sk-canary"), "{why}");
        assert!(seconds > 240, "{seconds}");
        // One for each request that was under way.
        assert!(vendor.requests() <= 8, "{} requests", vendor.requests());
    }
}

#[tokio::test]
async fn a_rate_limit_without_a_time_is_waited_out() {
    let vendor = vendor();
    vendor.script([Answer::status(429)]);
    let world = world_of(&vendor).await;
    world.register().await;
    world.insert_sentences(50).await;

    world.work().await;

    assert_snapshot!(world.states().await, @"50 completed");
    let attempts: Vec<String> =
        world.list("select distinct (attempt || ' of ' || starts) from gristmill.embedding_jobs").await;
    assert_eq!(attempts, ["1 of 1"]);
    assert!(vendor.requests() <= 4, "{} requests", vendor.requests());
}

#[tokio::test]
async fn a_long_rate_limit_puts_jobs_back_untouched() {
    let vendor = vendor();
    vendor.always(Answer::status(429).with("retry-after", "60"));
    let world = world_of(&vendor).await;
    world.register().await;
    world.insert_sentences(50).await;

    world.work().await;

    assert_snapshot!(world.states().await, @"50 waiting rate_limited");
    let due: bool = world
        .value("select bool_and(attempt = 0 and run_at between now() + interval '50 seconds' and now() + interval '61 seconds') from gristmill.embedding_jobs")
        .await;
    assert!(due, "an attempt was burnt, or the vendor's time is not kept");
}

#[tokio::test]
async fn an_outage_opens_the_breaker_for_one_pause() {
    let vendor = vendor();
    vendor.always(Answer::status(503));
    let world = world_of(&vendor).await.change("longest = 8000", "longest = 8000\ninputs = 10");
    world.register().await;
    world.insert_sentences(200).await;

    let worker = world.start().await;
    worker.idle().await;
    let lanes = worker.running.lane_status();
    worker.stop().await;

    assert_snapshot!(world.states().await, @"200 waiting unavailable");
    // What was under way when it opened, and no more.
    assert!(vendor.requests() <= 16, "{} requests", vendor.requests());
    let (_, seconds) = lanes[0].paused.clone().expect("the lane is paused");
    assert!(seconds <= 10, "many failures at once count as one outage, not as {seconds} s");
    let latest: bool = world
        .value("select max(run_at) < now() + interval '15 seconds' and max(attempt) = 0 from gristmill.embedding_jobs")
        .await;
    assert!(latest);
}

#[tokio::test]
async fn a_lone_job_does_not_wait_for_company() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("linger = \"5ms\"", "linger = \"1h\"");
    world.register().await;
    let worker = world.start().await;
    world.insert("note", "The mill grinds.").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;

    tokio::time::timeout(Duration::from_secs(10), vendor.answered(1)).await.expect("the request goes");
    worker.idle().await;
    worker.stop().await;

    assert_snapshot!(world.state().await, @"note completed | completed attempt=1 chunks=1");
}

#[tokio::test]
async fn a_count_of_tokens_that_the_texts_cannot_have_is_not_booked() {
    let vector = vector_of("Two words.", DIMENSIONS);
    for count in [i64::MAX, -7] {
        let vendor = vendor();
        let world = World::with_vendor(&vendor).await;
        world.register().await;
        vendor.always(Answer::body(&format!(
            r#"{{"data": [{{"index": 0, "embedding": {vector:?}}}], "usage": {{"prompt_tokens": {count}, "total_tokens": {count}}}}}"#,
        )));
        world.insert("note", "Two words.").await;
        world.work().await;

        let booked = world.value::<i64>("select coalesce(sum(quantity), 0)::bigint from gristmill.usage_events").await;
        assert!((1..20).contains(&booked), "{booked} for {count}");
        assert_eq!(vendor.requests(), 1, "a good vector is bought once");
    }
}

#[tokio::test]
async fn a_call_whose_answer_never_came_is_unknown_to_the_books_and_one_that_was_refused_is_not() {
    for (answer, booked) in [
        (Answer::hang_up(), "unknown no_answer tokens=?"),
        (Answer::cut_off(), "unknown no_answer tokens=?"),
        (Answer::status(503), "failed unavailable tokens=0"),
    ] {
        let vendor = vendor();
        let world = World::with_vendor(&vendor).await;
        world.register().await;
        vendor.script([answer]);
        world.insert("note", "Two words.").await;
        world.work().await;

        let calls = "select concat_ws(' ', outcome, error_kind, 'tokens=' || coalesce(tokens::text, '?')) \
            from gristmill.provider_calls order by started_at limit 1";
        assert_eq!(world.value::<String>(calls).await, booked);
        assert_eq!(world.states().await, "1 completed");
    }
}

#[tokio::test]
async fn an_answer_whose_vectors_are_of_no_use_is_logged_once_without_a_text() {
    let vendor = vendor();
    vendor.script([Answer::zeros()]);
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "Canaries sing.").await;

    let ran = gristmill(&world, &["run", "--once"]).await;

    let told: Vec<&str> = ran.err.lines().filter(|line| line.contains("a provider request failed")).collect();
    assert_eq!(told.len(), 1, "{}", ran.err);
    assert!(told[0].contains("the vector of input 1 of 1 "), "{}", told[0]);
    assert!(!ran.err.contains("Canaries"), "{}", ran.err);
}

#[tokio::test]
async fn what_has_landed_for_a_call_that_is_broken_off_is_kept() {
    let mut mill = Mill::new(true).await;
    let batcher = mill.batcher.clone();
    let (one, other) = (of_job(1, "one"), of_job(2, "other"));
    let text = |text| [Text { text, tokens: 1 }];
    let (ones, others) = (text("one"), text("other"));
    let (mut landing, mut elsewhere) = (Landing::default(), Landing::default());
    let mut call = Box::pin(batcher.embed(&one, &ones, batcher.expect(), &mut landing));
    assert!(poll!(call.as_mut()).is_pending());
    assert_eq!(mill.next().await, ["one"]);
    let mut next = Box::pin(batcher.embed(&other, &others, batcher.expect(), &mut elsewhere));
    assert!(poll!(next.as_mut()).is_pending());

    // The next request goes when the answer to this one has been handed out; nobody has looked at it.
    mill.answers.add_permits(1);
    assert_eq!(mill.next().await, ["other"]);
    drop(call);
    batcher.park_landed(one.id, &one.tenant, landing).await;

    let parked = "select string_agg(concat_ws(' ', job_id, tenant), ', ') from gristmill.vector_cache";
    assert_eq!(mill.world.value::<String>(parked).await, "1 one");
    mill.answers.add_permits(1);
    assert_eq!(next.await.unwrap().vectors.len(), 1);
}
