//! What a provider allows is shared by all workers, and each credential has its own.

use std::time::{Duration, Instant};

use gristmill::db::budgets::{self, Cost};
use uuid::Uuid;

use crate::fake_openai::{Answer, FakeOpenAi, Options};
use crate::world::{DIMENSIONS, USER, World};

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

/// A world of that vendor, where each text is a request, with more keys in the provider's section.
async fn world_of(vendor: &FakeOpenAi, keys: &str) -> World {
    let world = World::with_vendor(vendor).await;
    let world = world.change("longest = 8000", "longest = 8000\ninputs = 1");
    world.change("kind = \"openai\"", &format!("kind = \"openai\"\n{keys}"))
}

const BURST: Duration = Duration::from_millis(600);
const PATIENCE: Duration = Duration::from_secs(5);

async fn take(world: &World, credential: &str, requests_ms: u64, tokens_ms: u64) -> f64 {
    let cost = Cost { requests: Duration::from_millis(requests_ms), tokens: Duration::from_millis(tokens_ms) };
    budgets::take(&world.pool, "vendor", credential, cost, BURST, PATIENCE).await.unwrap()
}

#[tokio::test]
async fn moments_are_given_at_the_allowed_rate_and_never_hoarded() {
    let world = World::new().await;
    let began = Instant::now();
    for nth in 0..10_i32 {
        let lead = take(&world, "a", 100, 0).await;
        let most = 0.1 * f64::from(nth) - 0.6;
        let least = (most - began.elapsed().as_secs_f64()).max(-0.6);
        assert!((least..=most + 1e-6).contains(&lead), "{nth}: {lead} is not within {least} and {most}");
    }
    // Another credential has its own.
    assert!(take(&world, "b", 100, 0).await < -0.59);
}

#[tokio::test]
async fn what_nobody_asks_for_any_more_is_removed() {
    let world = World::new().await;
    take(&world, "used", 100, 0).await;
    budgets::shut(&world.pool, "vendor", "shut", Duration::from_mins(1)).await.unwrap();
    world.sql("insert into gristmill.budgets (provider, credential, tokens_until) values ('vendor', 'old', now() - interval '2 days')").await;
    assert_eq!(budgets::prune(&world.pool, Duration::from_hours(24)).await.unwrap(), 1);
    let left = world.list("select credential from gristmill.budgets order by 1").await;
    assert_eq!(left, ["shut", "used"]);
}

#[tokio::test]
async fn what_is_larger_than_any_bucket_passes_and_the_next_waits_for_it() {
    let world = World::new().await;
    let began = Instant::now();
    assert!(take(&world, "a", 10, 60_000).await < 0.0);
    let leads = [take(&world, "a", 10, 10).await, take(&world, "a", 10, 10).await];
    let elapsed = began.elapsed().as_secs_f64();
    // Too far away: neither got a moment, so the second is no later than the first.
    assert!(leads.iter().all(|lead| (59.4 - elapsed..=59.4).contains(lead)), "{leads:?}");
}

#[tokio::test]
async fn workers_together_keep_what_is_configured() {
    let vendor = vendor();
    let world = world_of(&vendor, "requests_per_minute = 1200").await;
    world.register().await;
    world.insert_sentences(40).await;

    let began: String = world.value("select clock_timestamp()::text").await;
    // The first has not done them all before the second is there.
    let gate = vendor.hold();
    let (one, two) = (world.start().await, world.start().await);
    gate.open();
    one.idle().await;
    two.idle().await;
    one.stop().await;
    two.stop().await;

    assert_eq!(world.states().await, "40 completed");
    assert!(vendor.seen().iter().all(|seen| seen.status == Some(200)));
    // One each 50 ms; what went by unused may be made up for within 600 ms. From before the first
    // was asked for: slow machines are later, never sooner.
    let too_soon: i64 = world
        .value(&format!(
            "select count(*) from (select extract(epoch from started_at - '{began}') as after, \
             row_number() over (order by started_at) as nth from gristmill.provider_calls) as call \
             where after < (nth - 1) * 0.05 - 0.6"
        ))
        .await;
    assert_eq!(too_soon, 0);
    let workers: i64 = world.value("select count(distinct worker) from gristmill.provider_calls").await;
    assert_eq!(workers, 2);
}

#[tokio::test]
async fn a_limit_that_nobody_tells_is_found_out_by_all_workers_together() {
    let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, most_a_second: Some(60), ..Options::default() });
    let world = world_of(&vendor, "").await;
    world.register().await;
    world.insert_sentences(400).await;

    let (one, two) = (world.start().await, world.start().await);
    one.idle().await;
    two.idle().await;
    one.stop().await;
    two.stop().await;

    assert_eq!(world.states().await, "400 completed");
    // What it takes to find out is refused more often. Of what follows a few of a hundred are, more on a machine that stumbles, and 59 where
    // nobody learns.
    let later: Vec<_> = vendor.seen().into_iter().skip(100).collect();
    let refused = later.iter().filter(|seen| seen.status == Some(429)).count();
    assert!(refused * 4 < later.len(), "{refused} of {}", later.len());
    let workers: i64 = world.value("select count(distinct worker) from gristmill.provider_calls").await;
    assert_eq!(workers, 2);
}

#[tokio::test]
async fn a_learnt_pace_slows_all_down_once_for_each_overload_and_is_forgotten_again() {
    let world = World::new().await;
    let lower = async |age: Duration| {
        budgets::lower_pace(&world.pool, "vendor", "a", age, Duration::from_millis(300)).await.unwrap();
        world.value::<i64>("select round(extract(milliseconds from pace))::bigint from gristmill.budgets").await
    };
    let now = Duration::ZERO;
    assert_eq!(lower(now).await, 400);
    // Both were under way when it was lowered.
    assert_eq!([lower(now).await, lower(Duration::from_hours(1)).await], [400, 400]);
    // Refused again right after the pause: by half.
    world.sql("update gristmill.budgets set paced_from = clock_timestamp()").await;
    assert_eq!(lower(now).await, 800);
    // It went well for a while, then not.
    world.sql("update gristmill.budgets set paced_from = clock_timestamp() - interval '1 hour'").await;
    assert_eq!(lower(now).await, 1_067);
    // And however often, no further than that an outage is over when it is over.
    world.sql("update gristmill.budgets set paced_from = clock_timestamp()").await;
    assert_eq!(lower(now).await, 2_000);

    let reset = "update gristmill.budgets set pace = '21 ms', refused_pace = '16 ms', shut_until = '-infinity'";
    world.sql(reset).await;
    let pace = "select coalesce(round(extract(milliseconds from pace))::bigint, -1) from gristmill.budgets";
    let mut paces = Vec::new();
    while paces.last() != Some(&-1) && paces.len() < 1_000 {
        // As though each had to wait for its moment.
        world.sql("update gristmill.budgets set requests_until = clock_timestamp() + interval '1 second'").await;
        assert!(take(&world, "a", 0, 0).await > 0.0);
        paces.push(world.value::<i64>(pace).await);
    }
    assert!(paces[..paces.len() - 1].is_sorted_by(|before, after| before >= after), "{paces:?}");
    // Back to where it was refused slowly, and soon where it is not any more.
    let back = paces.iter().position(|&pace| pace < 16).unwrap();
    assert!((40..60).contains(&back) && (130..160).contains(&paces.len()), "{back} of {}", paces.len());
    // Who does not have to wait learns nothing of it.
    world.sql(reset).await;
    world.sql("update gristmill.budgets set requests_until = '-infinity'").await;
    take(&world, "a", 0, 0).await;
    assert_eq!(world.value::<i64>(pace).await, 21);
}

#[tokio::test]
async fn tokens_are_counted_too() {
    let vendor = vendor();
    let world = world_of(&vendor, "tokens_per_minute = 600").await;
    world.register().await;
    world.insert("long", &"The mill grinds the corn of the village. ".repeat(15)).await;
    let worker = world.start().await;
    worker.idle().await;
    world.insert("short", "The mill grinds.").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents where name = 'short'").await;
    worker.idle().await;
    worker.stop().await;

    // A tenth of a minute's tokens and more were sent at once; what comes next waits for longer than a request may.
    assert_eq!(world.states().await, "1 completed\n1 waiting rate_limited");
    assert_eq!(vendor.requests(), 1);
}

#[tokio::test]
async fn what_waits_for_its_moment_is_not_sent_to_a_lane_that_has_shut() {
    let vendor = vendor();
    vendor.always(Answer::unauthorized("sk-canary-secret"));
    let world = world_of(&vendor, "requests_per_minute = 60").await;
    world.register().await;
    world.insert_sentences(16).await;

    world.work().await;

    assert_eq!(world.states().await, "16 waiting credential");
    assert!(vendor.requests() <= 2, "{} requests", vendor.requests());
}

#[tokio::test]
async fn a_pause_that_one_worker_was_told_holds_for_all() {
    for answer in [
        Answer::status(429).with("retry-after", "60"),
        Answer::good().with("x-ratelimit-remaining-tokens", "0").with("x-ratelimit-reset-tokens", "1m0s"),
    ] {
        let vendor = vendor();
        let world = world_of(&vendor, "").await;
        world.register().await;
        vendor.script([answer]);
        world.insert("one", "The mill grinds.").await;
        world.work().await;
        world.insert("two", "The wheel turns.").await;
        world.work().await;

        let two = "select state || ' ' || error_kind from gristmill.embedding_jobs order by id desc limit 1";
        assert_eq!((world.value::<String>(two).await.as_str(), vendor.requests()), ("waiting rate_limited", 1));
        let booked: i64 = world.value("select count(*) from gristmill.provider_calls").await;
        assert_eq!(booked, 1, "a call that was not made is on the books");
    }
}

#[tokio::test]
async fn limits_that_answers_tell_are_kept_and_nothing_is_asked_where_there_are_none() {
    let vendor = vendor();
    let world = world_of(&vendor, "").await;
    world.register().await;
    world.insert_sentences(3).await;
    world.work().await;
    let kept = "select coalesce(string_agg(provider || ' ' || length(credential), ','), 'none') from gristmill.budgets";
    assert_eq!(world.value::<String>(kept).await, "none");

    vendor.always(Answer::good().with("x-ratelimit-limit-requests", "6000"));
    let worker = world.start().await;
    for name in ["four", "five"] {
        world.insert(name, &format!("Sentence {name} of the mill.")).await;
        world
            .sql("select gristmill.enqueue('documents', id) from public.documents order by created_at desc limit 1")
            .await;
        worker.idle().await;
    }
    worker.stop().await;
    assert_eq!(world.states().await, "5 completed");
    assert_eq!(world.value::<String>(kept).await, "vendor 16");
}

#[tokio::test]
async fn a_told_limit_below_what_was_just_let_through_is_not_believed() {
    let vendor = vendor();
    let world = world_of(&vendor, "concurrency = 1").await;
    world.register().await;
    let absurd = Answer::good().with("x-ratelimit-limit-tokens", "1").with("x-ratelimit-remaining-tokens", "0");
    vendor.always(absurd.with("x-ratelimit-reset-tokens", "1ms"));
    world.insert_sentences(4).await;

    world.work().await;

    // Believed, one of them would wait for minutes.
    assert_eq!((world.states().await.as_str(), vendor.requests()), ("4 completed", 4));
}

#[tokio::test]
async fn a_vendor_that_takes_four_at_once_is_soon_sent_no_more() {
    let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, most_at_once: 4, ..Options::default() });
    let world = world_of(&vendor, "concurrency = 64").await.change("slots = 16", "slots = 256");
    world.register().await;
    world.insert_sentences(150).await;
    let held = vendor.hold();
    let worker = world.start().await;
    // As many as a lane begins with: half of them are refused on the spot, three times each. A lane that did not learn would have sent
    // all it may by then.
    tokio::time::timeout(Duration::from_secs(20), async {
        vendor.arrived(16).await;
        vendor.answered(12).await;
    })
    .await
    .expect("requests arrive");
    assert_eq!(world.value::<i64>("select count(*) from gristmill.provider_calls").await, 16);
    held.open();
    worker.idle().await;
    worker.stop().await;

    assert_eq!(world.states().await, "150 completed");
    let refused = vendor.seen().iter().filter(|seen| seen.status == Some(429)).count();
    assert!((12..=16).contains(&refused) && vendor.most_in_flight() <= 8, "{refused} of {}", vendor.requests());
}

#[tokio::test]
async fn a_tenant_with_a_key_of_its_own_shares_neither_requests_nor_pauses() {
    let vendor = FakeOpenAi::start(Options {
        dimensions: DIMENSIONS,
        key: Some("sk-canary-secret".to_owned()),
        ..Options::default()
    });
    let acme = Uuid::from_u128(0xacce);
    let keys = format!("keys = {{ \"{acme}\" = \"sk-acme-canary\" }}");
    let world = world_of(&vendor, &keys).await.change("inputs = 1", "inputs = 100");
    world.register().await;
    for nth in 0..5 {
        world.insert_for(acme, "acme", &format!("Acme has sentence {nth}.")).await;
        world.insert_for(USER, "others", &format!("Others have sentence {nth}.")).await;
    }

    let worker = world.start().await;
    worker.idle().await;
    let lanes = worker.running.lane_status();
    worker.stop().await;

    assert_eq!(world.states().await, "5 completed\n5 waiting credential");
    for seen in vendor.seen() {
        let key = if seen.texts[0].starts_with("Acme") { "Bearer sk-acme-canary" } else { "Bearer sk-canary-secret" };
        assert_eq!(seen.authorization.as_deref(), Some(key));
        assert!(seen.texts.iter().all(|text| text[..4] == seen.texts[0][..4]), "{:?}", seen.texts);
    }
    let paused: Vec<_> = lanes.iter().map(|lane| (lane.name(), lane.paused.is_some())).collect();
    assert_eq!(paused, [("vendor/small".to_owned(), false), (format!("vendor/small of {acme}"), true)]);
    let ours = "select concat_ws(' ', j, a) from gristmill.embedding_jobs j full join gristmill.job_attempts a on a.job_id = j.id";
    let said = format!("{:?} {lanes:?}", world.list(ours).await);
    assert!(!said.contains("acme-canary") && !said.contains("canary-secret"), "{said}");
}

#[tokio::test]
async fn tenants_can_be_kept_apart() {
    let vendor = vendor();
    let world = world_of(&vendor, "pack_across_tenants = false").await.change("inputs = 1", "inputs = 100");
    world.register().await;
    for nth in 0..30_u128 {
        let tenant = nth % 3;
        world.insert_for(Uuid::from_u128(tenant + 1), "row", &format!("{tenant} has sentence {nth}.")).await;
    }

    world.work().await;

    assert_eq!(world.states().await, "30 completed");
    let mixed = vendor.seen().into_iter().filter(|seen| seen.texts.iter().any(|text| text[..1] != seen.texts[0][..1]));
    assert_eq!(mixed.count(), 0);
    assert!(vendor.requests() < 30, "{} requests", vendor.requests());
}

#[tokio::test]
async fn a_text_that_came_alone_is_not_blamed_for_a_provider_that_takes_none() {
    let vendor = vendor();
    vendor.always(Answer::refused("input must be a token array"));
    let world = world_of(&vendor, "").await;
    world.register().await;
    world.insert_sentences(1).await;
    world.work().await;
    assert_eq!(world.states().await, "1 waiting misconfigured");
}
