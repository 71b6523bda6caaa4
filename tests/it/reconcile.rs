//! The ledger adds up after whatever may happen to a job; what happened to the ledger itself is named.

use std::time::Duration;

use gristmill::db::calls;
use insta::assert_snapshot;
use serde_json::Value;

use crate::cli::gristmill;
use crate::engine::Process;
use crate::fake_openai::{Answer, FakeOpenAi, Options};
use crate::ledger::{paragraph, paragraphs};
use crate::outcomes::eventually;
use crate::world::{DIMENSIONS, World};

/// A vendor that counts otherwise than we do.
fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, added_tokens: 3, ..Options::default() })
}

/// Each text in a request of its own, one after the other.
async fn singly(vendor: &FakeOpenAi) -> World {
    let world = World::with_vendor(vendor).await.change("longest = 8000", "longest = 8000\ninputs = 1");
    let world = world.change("kind = \"openai\"", "kind = \"openai\"\nconcurrency = 1");
    world.register().await;
    world
}

/// The exit code, and each difference on a line.
pub async fn reconciled(world: &World) -> String {
    let ran = gristmill(world, &["usage", "reconcile", "--json"]).await;
    let told = ran.json();
    assert_eq!(told["adds_up"], Value::Bool(ran.code == 0), "{}", ran.out);
    let line = |difference: &Value| {
        let fault = if difference["fault"] == true { "FAULT " } else { "" };
        let quantity = difference["quantity"].as_str().unwrap_or_default();
        format!("\n{fault}{quantity} {} {}", difference["reason"].as_str().unwrap_or_default(), difference["jobs"])
    };
    let lines: Vec<String> = told["differences"].as_array().into_iter().flatten().map(line).collect();
    format!("exit {}{}", ran.code, lines.concat())
}

const BOTH: &str = "select concat_ws(' ', sum(tokens), sum(cost)) from gristmill.provider_calls \
                    union all select concat_ws(' ', sum(quantity), sum(cost)) from gristmill.usage_events where meter = 'tokens'";

#[tokio::test]
async fn retries_and_reuse_leave_no_difference() {
    let vendor = vendor();
    let world = singly(&vendor).await;
    world.insert("book", &paragraphs(&["old", "new", "far"])).await;
    vendor.script([Answer::good(), Answer::status(503), Answer::status(503), Answer::status(503)]);
    world.work().await;
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    135 in flight: the job is open, or its call has no answer yet [1]
    ");
    world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    world.work().await;
    for words in [["old", "wet", "far"], ["old", "wet", "hot"]] {
        sqlx::query("update public.documents set content = $1")
            .bind(paragraphs(&words))
            .execute(&world.pool)
            .await
            .unwrap();
        world.work().await;
    }

    assert_eq!(world.states().await, "1 completed");
    assert_eq!(vendor.paid(&paragraph("old")), 1);
    assert_eq!(reconciled(&world).await, "exit 0");
    let both = world.list(BOTH).await;
    assert_eq!(both[0], both[1]);
    let reused: i64 = world.value("select count(*) from gristmill.usage_events where meter = 'reused_vectors'").await;
    assert_eq!(reused, 2);
}

#[tokio::test]
async fn texts_of_one_job_between_those_of_others_are_charged_as_they_were_paid() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("linger = \"5ms\"", "linger = \"100ms\"");
    world.register().await;
    for nth in 0..5 {
        world.insert(&format!("book {nth}"), &paragraphs(&["old", "new", "far"][..=nth % 3])).await;
    }

    world.work().await;

    assert!(vendor.requests() < 5, "nothing was packed");
    assert_eq!(reconciled(&world).await, "exit 0");
}

#[tokio::test]
async fn what_changed_before_it_was_written_is_paid_and_said() {
    let vendor = vendor();
    let world = singly(&vendor).await;
    world.insert("note", "Before.").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    0 in flight: the job is open, or its call has no answer yet [1]
    ");
    world.sql("update public.documents set content = 'After, and longer.'").await;
    gate.open();
    worker.idle().await;
    worker.stop().await;
    assert_eq!(world.states().await, "1 completed");
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    5 paid by an attempt whose answer could not be used or written [1]
    ");

    // It comes back: then it is charged, from what was parked.
    world.sql("update public.documents set content = 'Before.'").await;
    world.work().await;
    assert_eq!(vendor.paid_texts(), ["Before.", "After, and longer."]);
    assert_eq!(reconciled(&world).await, "exit 0");
    let both = world.list(BOTH).await;
    assert_eq!(both[0], both[1]);
}

#[tokio::test]
async fn what_a_later_revision_charged_for_an_earlier_one_is_no_difference() {
    let vendor = vendor();
    let world = singly(&vendor).await;
    world.sql("alter table public.document_chunks add constraint none check (content = '')").await;
    world.insert("book", &paragraphs(&["old", "new", "far"])).await;
    world.work().await;
    assert_eq!(world.states().await, "1 failed constraint");
    sqlx::query("update public.documents set content = $1")
        .bind(paragraphs(&["old", "wet", "far"]))
        .execute(&world.pool)
        .await
        .unwrap();
    world.sql("alter table public.document_chunks drop constraint none").await;
    world.work().await;

    // Of the paragraph that went nobody had anything.
    assert_eq!((world.states().await.as_str(), vendor.requests()), ("1 completed", 4));
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    135 paid for content that changed before it could be written [1]
    ");
}

#[tokio::test]
async fn answers_of_no_use_and_rows_that_end_without_vectors_are_said() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    vendor.script([Answer::wrong_dimensions()]);
    world.work().await;
    world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    world.work().await;
    assert_eq!(world.states().await, "1 completed");
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    8 paid by an attempt whose answer could not be used or written [1]
    ");
}

#[tokio::test]
async fn answers_of_no_use_stay_so_when_a_person_has_their_jobs_retried() {
    let vendor = vendor();
    let world = singly(&vendor).await;
    for name in ["one", "two", "three"] {
        world.insert(name, &format!("The mill grinds {name}.")).await;
    }
    vendor.always(Answer::wrong_dimensions());
    world.work().await;
    assert_eq!(world.states().await, "3 waiting misconfigured");
    vendor.always(Answer::good());
    gristmill(&world, &["jobs", "retry", "--kind", "misconfigured"]).await.ok();
    world.work().await;
    assert_eq!(world.states().await, "3 completed");
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    27 paid by an attempt whose answer could not be used or written [1,2,3]
    ");
}

#[tokio::test]
async fn a_process_killed_between_call_and_commit_leaves_an_unknown_call_and_no_more() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("lease = \"10s\"", "lease = \"1s\"");
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    let gate = vendor.hold();
    let mut first = Process::start(&world, &[]);
    vendor.arrived(1).await;
    first.kill();
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    0 in flight: the job is open, or its call has no answer yet [1]
    ");
    gate.open();
    let worker = world.start().await;
    eventually(&world, "(select bool_and(state = 'completed') from gristmill.embedding_jobs)").await;
    worker.stop().await;
    world
        .sql(
            "update gristmill.provider_calls set started_at = now() - interval '1 hour' where outcome = 'intent'; \
             update gristmill.workers set seen_at = now() - interval '1 hour'",
        )
        .await;
    // Unless the worker has noticed by itself.
    calls::mark_unknown(&world.pool, Duration::from_secs(30)).await.unwrap();

    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    0 unknown call: nobody knows whether the provider counted it [1]
    ");
    let both = world.list(BOTH).await;
    assert_eq!(both[0], both[1]);
}

#[tokio::test]
async fn lines_older_than_their_calls_and_lines_without_a_price_are_said() {
    let vendor = vendor();
    let price = "[[prices]]\nmodel = \"small\"\nmeter = \"tokens\"\nusd = \"0.00000002\"\nfrom = 2026-01-01\n";
    let world = World::with_vendor(&vendor).await.change(price, "");
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
     price unknown: add it under [[prices]] [1]
    ");

    world.sql("delete from gristmill.provider_calls").await;
    assert_snapshot!(reconciled(&world).await, @r"
    exit 1
    FAULT -8 charged, and not paid for [1]
     price unknown: add it under [[prices]] [1]
    ");
    tamper(&world, "update gristmill.usage_events set at = now() - interval '40 days'").await;
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    -8 the calls are pruned by age [1]
     price unknown: add it under [[prices]] [1]
    ");
}

/// As somebody may who owns the ledger.
async fn tamper(world: &World, how: &str) {
    world
        .sql(&format!(
            "alter table gristmill.usage_events disable trigger user; {how}; alter table gristmill.usage_events enable trigger user"
        ))
        .await;
}

#[tokio::test]
async fn a_ledger_that_was_tampered_with_is_named_with_its_jobs() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("linger = \"5ms\"", "linger = \"300ms\"");
    world.register().await;
    for name in ["one", "two", "three"] {
        world.insert(name, "The mill grinds.").await;
    }
    world.work().await;
    world.sql("create table public.saved as table gristmill.usage_events").await;
    world.sql("create table public.shares as table gristmill.provider_call_jobs").await;
    assert_eq!(reconciled(&world).await, "exit 0");

    let mut said = Vec::new();
    for how in [
        "update gristmill.usage_events set cost = cost * 2 where job_id = 2",
        "update gristmill.usage_events set quantity = quantity + 1, cost = cost * (quantity + 1) / quantity where job_id = 2",
        "update gristmill.usage_events set quantity = quantity - 1, cost = null, price_id = null where job_id = 2",
        "delete from gristmill.usage_events where job_id = 2",
        "delete from gristmill.usage_events where job_id = 2; delete from gristmill.provider_call_jobs where job_id = 2",
        "update gristmill.usage_events set tenant = 'another' where job_id = 2",
        "update gristmill.usage_events set revision = 7 where job_id = 2",
        "update gristmill.provider_call_jobs set tokens = tokens + 1 where job_id = 2",
    ] {
        tamper(&world, how).await;
        said.push(format!("# {how}\n{}", reconciled(&world).await));
        tamper(
            &world,
            "delete from gristmill.usage_events; insert into gristmill.usage_events overriding system value table public.saved; \
             delete from gristmill.provider_call_jobs; insert into gristmill.provider_call_jobs table public.shares",
        )
        .await;
    }
    assert_snapshot!(said.join("\n"), @r"
    # update gristmill.usage_events set cost = cost * 2 where job_id = 2
    exit 1
    FAULT  the cost is not quantity times price [2]
    # update gristmill.usage_events set quantity = quantity + 1, cost = cost * (quantity + 1) / quantity where job_id = 2
    exit 1
    FAULT -1 charged, and not paid for [2]
    # update gristmill.usage_events set quantity = quantity - 1, cost = null, price_id = null where job_id = 2
    exit 1
    FAULT 1 paid and completed, and not charged [2]
     price unknown: add it under [[prices]] [2]
    # delete from gristmill.usage_events where job_id = 2
    exit 1
    FAULT 8 paid and completed, and not charged [2]
    # delete from gristmill.usage_events where job_id = 2; delete from gristmill.provider_call_jobs where job_id = 2
    exit 1
    FAULT 0 paid and completed, and not charged [2]
    FAULT  the jobs' parts of a call are not the call's whole [1,3]
    # update gristmill.usage_events set tenant = 'another' where job_id = 2
    exit 1
    FAULT 8 paid and completed, and not charged [2]
    FAULT -8 charged, and not paid for [2]
    # update gristmill.usage_events set revision = 7 where job_id = 2
    exit 1
    FAULT 8 paid and completed, and not charged [2]
    FAULT -8 the job never had this revision [2]
    # update gristmill.provider_call_jobs set tokens = tokens + 1 where job_id = 2
    exit 1
    FAULT 1 paid and completed, and not charged [2]
    FAULT  the jobs' parts of a call are not the call's whole [1,2,3]
    ");

    tamper(&world, "delete from gristmill.usage_events where job_id = 2").await;
    let people = gristmill(&world, &["usage", "reconcile"]).await;
    assert_eq!(people.code, 1);
    assert!(people.out.contains("FAULT") && people.out.contains("(jobs 2)"), "{}", people.out);
}

#[tokio::test]
async fn what_a_crash_of_the_server_made_somebody_pay_again_is_said() {
    let vendor = vendor();
    let world = singly(&vendor).await;
    world.insert("note", "Once.").await;
    world.work().await;
    world
        .sql(
            "with again as (
                 insert into gristmill.provider_calls (id, worker, provider, model, inputs, tokens_estimated, finished_at, outcome, tokens, price_id, cost)
                 select gen_random_uuid(), worker, provider, model, inputs, tokens_estimated, finished_at, outcome, tokens, price_id, cost
                 from gristmill.provider_calls returning id
             )
             insert into gristmill.provider_call_jobs (call_id, job_id, revision, tenant, inputs, tokens, cost)
             select again.id, job_id, revision, tenant, share.inputs, tokens, cost from again, gristmill.provider_call_jobs as share",
        )
        .await;
    assert_snapshot!(reconciled(&world).await, @r"
    exit 1
    FAULT 5 paid and completed, and not charged [1]
    ");
    world.sql("update gristmill.embedding_jobs set starts = 2").await;
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    5 paid by an attempt whose answer could not be used or written [1]
    ");
}

#[tokio::test]
async fn what_was_paid_under_a_claim_that_a_crash_of_the_server_forgot_is_not_paid_again() {
    let vendor = vendor();
    let world = singly(&vendor).await;
    world.insert("note", "Once.").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    let forgotten = "update gristmill.embedding_jobs set state = 'pending', starts = 0, lease_id = null, lease_until = null, worker = null, \
                     started_at = null, run_at = now() + interval '1 hour'";
    world.sql(forgotten).await;
    gate.open();
    eventually(&world, "(select starts = 1 from gristmill.embedding_jobs)").await;
    world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    worker.idle().await;
    worker.stop().await;

    assert_eq!((world.states().await, vendor.requests()), ("1 completed".to_owned(), 1));
    assert_eq!(reconciled(&world).await, "exit 0");
}
