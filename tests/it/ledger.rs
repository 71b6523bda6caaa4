//! Every paid call is on the books, each job's part of it, and what its customer is charged.

use std::time::Duration;

use gristmill::db::calls::{self, Intent, Share};
use gristmill::domain::{JobId, OwnerId, Revision};
use insta::assert_snapshot;
use uuid::Uuid;

use crate::fake_openai::{Answer, FakeOpenAi, Options};
use crate::outcomes::eventually;
use crate::reconcile::reconciled;
use crate::world::{DIMENSIONS, World};

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

const CALLS: &str = "select concat_ws(' ', outcome, error_kind, 'inputs=' || inputs, 'tokens=' || tokens, 'cost=' || cost) \
                     from gristmill.provider_calls order by started_at, outcome";
const USAGE: &str = "select concat_ws(' ', 'r' || revision, meter, quantity, unit, 'cost=' || coalesce(cost::text, 'unknown')) \
                     from gristmill.usage_events order by job_id, revision, meter";

/// A text of so many paragraphs, each a chunk of its own.
pub fn paragraphs(words: &[&str]) -> String {
    words.iter().map(|word| paragraph(word)).collect::<Vec<_>>().join("\n\n")
}

/// A hundred and ten words: with 200 tokens to a chunk, two of these never share one.
pub fn paragraph(word: &str) -> String {
    let sentence = format!("The {word} mill grinds what the {word} river brings. ");
    sentence.repeat(12).trim_end().to_owned()
}

#[tokio::test]
async fn a_call_is_on_the_books_before_it_is_made() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;

    assert_eq!(world.list(CALLS).await, ["intent inputs=1"]);
    let shares = world.list("select concat_ws(' ', inputs, tokens, cost) from gristmill.provider_call_jobs").await;
    assert_eq!(shares, ["1 5"]);

    gate.open();
    worker.idle().await;
    worker.stop().await;
    assert_eq!(world.list(CALLS).await, ["paid inputs=1 tokens=5 cost=0.00000010"]);
}

#[tokio::test]
async fn the_parts_of_a_packed_call_sum_to_the_whole() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("linger = \"5ms\"", "linger = \"50ms\"");
    world.register().await;
    for nth in 0..7 {
        world.insert(&format!("row {nth}"), &"One more mill. ".repeat(nth + 1)).await;
    }

    world.work().await;

    assert!(vendor.requests() < 7, "nothing was packed");
    let wrong: i64 = world
        .value(
            "select count(*) from gristmill.provider_calls as call where (tokens::numeric, cost) is distinct from \
                 (select row (sum(tokens), sum(cost)) from gristmill.provider_call_jobs as share where share.call_id = call.id)",
        )
        .await;
    assert_eq!(wrong, 0);
    let sums = "select concat_ws(' ', sum(tokens), sum(cost)) from gristmill.provider_calls \
                union all select concat_ws(' ', sum(quantity), sum(cost)) from gristmill.usage_events";
    let sums = world.list(sums).await;
    assert_eq!(sums[0], sums[1], "what was paid and what is charged");
}

#[tokio::test]
async fn usage_is_booked_once_per_revision_in_exact_decimals() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    world.sql("update public.documents set content = 'The mill grinds again.'").await;
    world.work().await;

    assert_snapshot!(world.list(USAGE).await.join("\n"), @r#"
    r1 tokens 5 token cost=0.00000010
    r2 tokens 6 token cost=0.00000012
    "#);
}

#[tokio::test]
async fn an_unknown_price_is_no_cost_rather_than_nothing() {
    let vendor = vendor();
    let price = "[[prices]]\nmodel = \"small\"\nmeter = \"tokens\"\nusd = \"0.00000002\"\nfrom = 2026-01-01\n";
    let world = World::with_vendor(&vendor).await.change(price, "");
    world.register().await;
    world.insert("note", "The mill grinds.").await;

    world.work().await;

    assert_snapshot!(world.list(USAGE).await.join("\n"), @"r1 tokens 5 token cost=unknown");
    assert_eq!(world.list(CALLS).await, ["paid inputs=1 tokens=5"]);
}

#[tokio::test]
async fn what_embeds_nothing_books_nothing() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    world.sql("update public.documents set name = 'renamed'").await;
    world.work().await;
    world.sql("select gristmill.retry(id) from gristmill.embedding_jobs").await;
    world.work().await;

    let revisions: i64 = world.value("select revision from gristmill.embedding_jobs").await;
    assert_eq!((revisions, vendor.requests()), (3, 1));
    assert_eq!(world.list(USAGE).await.len(), 1);
    let name: String = world.value("select metadata->>'name' from public.document_chunks").await;
    assert_eq!(name, "renamed");
}

#[tokio::test]
async fn a_fresh_retry_pays_for_all_again_once() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("longest = 8000", "longest = 8000\ninputs = 1");
    world.register().await;
    world.insert("book", &paragraphs(&["old", "new", "far"])).await;
    world.work().await;
    world.sql("select gristmill.retry(id, fresh => true) from gristmill.embedding_jobs").await;
    world.work().await;
    world.sql("select gristmill.retry(id) from gristmill.embedding_jobs").await;
    world.work().await;

    assert_snapshot!(world.state().await, @"book completed | completed attempt=1 chunks=3");
    let paid: Vec<usize> = ["old", "new", "far"].map(|word| vendor.paid(&paragraph(word))).to_vec();
    assert_eq!(paid, [2, 2, 2]);
    assert_snapshot!(world.list(USAGE).await.join("\n"), @r#"
    r1 tokens 396 token cost=0.00000792
    r2 tokens 396 token cost=0.00000792
    "#);
}

#[tokio::test]
async fn a_fresh_retry_is_not_answered_by_what_was_parked_before_it() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("longest = 8000", "longest = 8000\ninputs = 1");
    let world = world.change("kind = \"openai\"", "kind = \"openai\"\nconcurrency = 1");
    world.register().await;
    world.insert("book", &paragraphs(&["old", "new", "far"])).await;
    let away = || [Answer::status(503), Answer::status(503), Answer::status(503)];
    let due = "update gristmill.embedding_jobs set run_at = now()";
    let parked = "select count(*) from gristmill.vector_cache";

    vendor.script([Answer::good()]);
    vendor.script(away());
    world.work().await;
    assert_eq!((vendor.paid_texts().len(), world.value::<i64>(parked).await), (1, 1));

    // The provider is away at the first try, and again after one vector at the second.
    world.sql("select gristmill.retry(id, fresh => true) from gristmill.embedding_jobs").await;
    vendor.script(away());
    world.work().await;
    vendor.script([Answer::good()]);
    vendor.script(away());
    world.sql(due).await;
    world.work().await;
    assert_eq!(vendor.paid_texts().len(), 2);
    world.sql(due).await;
    world.work().await;

    assert_snapshot!(world.state().await, @"book completed | completed attempt=1 chunks=3");
    let paid: Vec<usize> = ["old", "new", "far"].map(|word| vendor.paid(&paragraph(word))).to_vec();
    assert_eq!(paid, [2, 1, 1]);
    assert_eq!(world.value::<i64>(parked).await, 0);
}

#[tokio::test]
async fn vectors_of_a_failed_attempt_are_not_bought_again() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("longest = 8000", "longest = 8000\ninputs = 1");
    let world = world.change("kind = \"openai\"", "kind = \"openai\"\nconcurrency = 1");
    world.register().await;
    world.insert("book", &paragraphs(&["old", "new", "far"])).await;
    vendor.script([Answer::good(), Answer::status(503), Answer::status(503), Answer::status(503)]);
    world.work().await;
    assert_snapshot!(world.state().await, @"book pending | waiting attempt=0 chunks=0 unavailable the provider is away: status 503, server_error: The server had an error processing your request.");
    let parked: i64 = world.value("select count(*) from gristmill.vector_cache").await;
    assert!(parked >= 1);

    world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    world.work().await;

    assert_snapshot!(world.state().await, @"book completed | completed attempt=1 chunks=3");
    let paid: Vec<usize> = ["old", "new", "far"].map(|word| vendor.paid(&paragraph(word))).to_vec();
    assert_eq!(paid, [1, 1, 1]);
    let sums = "select sum(tokens)::text from gristmill.provider_calls union all select sum(quantity)::text from gristmill.usage_events";
    let sums = world.list(sums).await;
    assert_eq!(sums[0], sums[1], "what was paid and what is charged");
    assert_eq!(world.value::<i64>("select count(*) from gristmill.vector_cache").await, 0);
}

#[tokio::test]
async fn what_two_jobs_find_parked_is_charged_once() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("longest = 8000", "longest = 8000\ninputs = 1");
    let world = world.change("kind = \"openai\"", "kind = \"openai\"\nconcurrency = 2");
    world.register().await;
    for name in ["book", "copy"] {
        world.insert(name, &paragraphs(&["old", "new"])).await;
    }
    vendor.script([Answer::good()]);
    vendor.always(Answer::status(503));
    world.work().await;
    assert_eq!(world.value::<i64>("select count(*) from gristmill.vector_cache where not reusable").await, 1);
    assert_eq!(world.states().await, "2 waiting unavailable");

    // Each finds the one that is parked and asks for the other, before either is written.
    let (asked, gate) = (vendor.requests(), vendor.hold());
    vendor.always(None);
    world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    let worker = world.start().await;
    vendor.arrived(asked + 2).await;
    gate.open();
    worker.idle().await;
    worker.stop().await;

    assert_eq!((world.states().await.as_str(), vendor.requests() - asked), ("2 completed", 2));
    let lines = world
        .list("select concat_ws(' ', meter, sum(quantity)) from gristmill.usage_events group by meter order by meter")
        .await;
    let paid: i64 = world.value("select sum(tokens)::bigint from gristmill.provider_calls").await;
    assert_eq!(lines, ["reused_vectors 1".to_owned(), format!("tokens {paid}")]);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.vector_cache").await, 0);
    assert_snapshot!(reconciled(&world).await, @"exit 0");
}

#[tokio::test]
async fn what_two_jobs_paid_for_an_equal_text_and_could_not_write_is_each_one_s_own() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("linger = \"5ms\"", "linger = \"300ms\"");
    world.register().await;
    world.sql("alter table public.document_chunks add constraint no_mill check (content not like '%mill%')").await;
    for name in ["book", "copy"] {
        world.insert(name, "The mill grinds.").await;
    }
    world.work().await;
    assert_eq!((world.states().await.as_str(), vendor.requests()), ("2 failed constraint", 1));
    world.sql("alter table public.document_chunks drop constraint no_mill").await;

    for _ in 0..2 {
        world.sql("select gristmill.retry(min(id)) from gristmill.embedding_jobs where state = 'failed'").await;
        world.work().await;
    }

    assert_eq!((world.states().await.as_str(), vendor.requests()), ("2 completed", 1));
    let charged =
        "select concat_ws(' ', job_id, 'r' || revision, meter, quantity) from gristmill.usage_events order by job_id";
    assert_eq!(world.list(charged).await, ["1 r2 tokens 5", "2 r2 tokens 5"]);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.vector_cache").await, 0);
    assert_snapshot!(reconciled(&world).await, @"exit 0");
}

#[tokio::test]
async fn what_a_job_left_parked_is_charged_to_who_writes_it() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("longest = 8000", "longest = 8000\ninputs = 1");
    let world = world.change("kind = \"openai\"", "kind = \"openai\"\nconcurrency = 1");
    world.register().await;
    world.insert("book", &paragraphs(&["old", "new"])).await;
    vendor.script([Answer::good()]);
    vendor.always(Answer::status(503));
    world.work().await;
    vendor.always(None);
    world.sql("select gristmill.cancel(id) from gristmill.embedding_jobs").await;

    // Of a job that was tried, too: it looks for what is parked.
    world.insert("copy", &paragraphs(&["old", "new"])).await;
    vendor.script([Answer::status(503), Answer::status(503), Answer::status(503)]);
    world.work().await;
    world.sql("update gristmill.embedding_jobs set run_at = now() where state = 'waiting'").await;
    world.work().await;

    let ended = "select string_agg(state, ' ' order by id) from gristmill.embedding_jobs";
    assert_eq!(world.value::<String>(ended).await, "cancelled completed");
    let sums = "select sum(tokens)::text from gristmill.provider_calls union all select sum(quantity)::text from gristmill.usage_events";
    let sums = world.list(sums).await;
    assert_eq!(sums[0], sums[1], "what was paid and what is charged");
}

#[tokio::test]
async fn a_text_that_comes_back_is_charged_as_often_as_it_was_paid() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("longest = 8000", "longest = 8000\ninputs = 1");
    world.register().await;
    let (first, second) = (paragraphs(&["old", "new", "far"]), paragraphs(&["wet", "dry", "hot"]));
    let book = world.insert("book", &first).await;
    for text in [second, first] {
        world.work().await;
        sqlx::query("update public.documents set content = $2 where id = $1")
            .bind(book)
            .bind(text)
            .execute(&world.pool)
            .await
            .unwrap();
    }
    world.work().await;

    let sums = "select sum(tokens)::text from gristmill.provider_calls union all select sum(quantity)::text from gristmill.usage_events";
    let sums = world.list(sums).await;
    assert_eq!(sums[0], sums[1], "what was paid and what is charged");
}

#[tokio::test]
async fn calls_of_a_dead_worker_become_unknown_and_those_of_a_living_one_stay() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    let share = Share { job: JobId(7), revision: Revision(1), tenant: String::new(), inputs: 3, tokens: 30 };
    let intent = Intent {
        credential: String::new(),
        id: Uuid::new_v4(),
        provider: "vendor".to_owned(),
        model: "small".to_owned(),
        seconds: None,
        shares: vec![share],
    };
    let mut connection = world.pool.acquire().await.unwrap();
    calls::intend(&mut connection, OwnerId::fresh(), &intent).await.unwrap();
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    world.sql("update gristmill.provider_calls set started_at = now() - interval '1 hour'").await;

    let marked = calls::mark_unknown(&world.pool, Duration::from_secs(30)).await.unwrap();

    assert_eq!(marked, 1);
    assert_eq!(world.list(CALLS).await, ["intent inputs=1", "unknown inputs=3"]);
    gate.open();
    worker.idle().await;
    worker.stop().await;
    assert_eq!(world.list(CALLS).await, ["paid inputs=1 tokens=5 cost=0.00000010", "unknown inputs=3"]);
}

#[tokio::test]
async fn of_dated_prices_the_one_of_the_day_holds_and_what_is_booked_stays() {
    let vendor = vendor();
    let dated = |usd: &str, from: &str| format!("[[prices]]\nmodel = \"small\"\nusd = \"{usd}\"\nfrom = {from}\n");
    let prices = [dated("0.001", "2020-01-01"), dated("0.002", "2021-01-01"), dated("0.003", "2999-01-01")].concat();
    let price = "[[prices]]\nmodel = \"small\"\nmeter = \"tokens\"\nusd = \"0.00000002\"\nfrom = 2026-01-01\n";
    let world = World::with_vendor(&vendor).await.change(price, &prices);
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    assert_snapshot!(world.list(USAGE).await.join("\n"), @"r1 tokens 5 token cost=0.010");

    // One that nothing was booked under is corrected; the other stands.
    let world = world.change("\"0.001\"", "\"0.0015\"").change("\"0.002\"", "\"0.0025\"");
    world.insert("other", "The mill grinds.").await;
    world.work().await;

    let prices =
        world.list("select concat_ws(' ', usd, valid_from::date) from gristmill.prices order by valid_from").await;
    assert_eq!(prices, ["0.0015 2020-01-01", "0.002 2021-01-01", "0.003 2999-01-01"]);
    assert_snapshot!(world.list(USAGE).await.join("\n"), @r#"
    r1 tokens 5 token cost=0.010
    r1 tokens 5 token cost=0.010
    "#);
}

#[tokio::test]
async fn a_text_in_parts_is_bought_once_though_its_row_was_busy() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    let world = world
        .change("longest = 8000", "longest = 100")
        .change("tokens = 200\noverlap = 0", "whole = true\nlonger = \"mean\"")
        .change("retry_first = \"100ms\"", "retry_first = \"100ms\"\ndeadline = \"20s\"");
    world.register().await;
    world.insert("book", &paragraphs(&["old", "new", "far"])).await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    let mut holder = world.database.connect().await;
    sqlx::raw_sql("begin; select * from public.documents for update").execute(&mut holder).await.unwrap();
    gate.open();
    let parked = "select count(*) > 1 from gristmill.vector_cache";
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !world.value::<bool>(parked).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("the parts are parked");
    sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    world.sql("update gristmill.embedding_jobs set run_at = now() where state = 'waiting'").await;
    worker.idle().await;
    worker.stop().await;

    assert_snapshot!(world.state().await, @"book completed | completed attempt=1 chunks=1");
    let sums = "select sum(tokens)::text from gristmill.provider_calls union all select sum(quantity)::text from gristmill.usage_events";
    let sums = world.list(sums).await;
    assert_eq!(sums[0], sums[1], "what was paid and what is charged");
}

#[tokio::test]
async fn what_a_worker_paid_for_and_could_not_write_before_it_had_to_go_is_bought_once() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("grace = \"5s\"", "grace = \"1h\"");
    world.register().await;
    world.insert("note", "One.").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    let mut holder = world.database.connect().await;
    sqlx::raw_sql("begin; select * from public.documents for update").execute(&mut holder).await.unwrap();
    gate.open();
    // The answer is here, and its commit finds the row busy.
    eventually(&world, "exists (select from gristmill.provider_calls where outcome = 'paid')").await;
    worker.stop.cancel();
    worker.running.engine.give_up.cancel();
    worker.stop().await;

    assert_eq!(world.states().await, "1 pending");
    // The line of the call is written before its vectors are handed out.
    eventually(&world, "(select count(*) = 1 from gristmill.vector_cache)").await;
    sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    world.work().await;
    assert_eq!(world.states().await, "1 completed");
    assert_eq!(vendor.paid_texts(), ["One."]);
}
