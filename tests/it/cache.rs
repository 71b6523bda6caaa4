//! Equal texts of one tenant and model are paid once, where a pipeline asks for it.

use gristmill::db::cache::{self, Parked};
use gristmill::domain::{Embedding, JobId};
use insta::assert_snapshot;
use uuid::Uuid;

use crate::cli::gristmill;
use crate::fake_openai::{Answer, FakeOpenAi, Options};
use crate::ledger::{paragraph, paragraphs};
use crate::reconcile::reconciled;
use crate::world::{DIMENSIONS, USER, World};

const OTHER: Uuid = Uuid::from_u128(0xb0b);

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

async fn caching(vendor: &FakeOpenAi) -> World {
    let world = World::with_vendor(vendor)
        .await
        .change("model = \"small\"\nexisting", "model = \"small\"\ncache = true\nexisting");
    world.register().await;
    world
}

/// What each job is charged for.
async fn usage(world: &World) -> String {
    let lines = "select concat_ws(' ', d.name, 'r' || e.revision, e.meter, e.quantity, e.cost) \
                 from gristmill.usage_events e join gristmill.embedding_jobs j on j.id = e.job_id \
                 join public.documents d on j.source_key = jsonb_build_array(d.id::text) order by d.name, e.revision, e.meter";
    world.list(lines).await.join("\n")
}

/// Rows of the cache: for equal texts, and parked.
const KEPT: &str = "select concat_ws(' ', count(*) filter (where reusable), count(*) filter (where not reusable)) from gristmill.vector_cache";

#[tokio::test]
async fn equal_texts_that_come_before_the_first_is_written_are_paid_once() {
    let vendor = vendor();
    let world = caching(&vendor).await;
    world
        .sql(&format!(
            "insert into public.documents (user_id, name, content) \
             select '{USER}', 'row ' || nth, 'The same ' || nth % 3 from generate_series(1, 300) as nth"
        ))
        .await;
    world.work().await;

    assert_eq!(world.states().await, "300 completed");
    assert_eq!([0, 1, 2].map(|nth| vendor.paid(&format!("The same {nth}"))), [1, 1, 1]);
    reconciled(&world).await;
}

#[tokio::test]
async fn equal_texts_of_one_tenant_are_paid_once() {
    let vendor = vendor();
    let world = caching(&vendor).await;
    world.insert("a first", &paragraphs(&["old", "new"])).await;
    world.work().await;
    world.insert("b equal", &paragraphs(&["old", "new"])).await;
    world.insert("c partly", &paragraphs(&["old", "wet"])).await;
    world.insert_for(OTHER, "d another's", &paragraph("old")).await;
    world.work().await;

    assert_snapshot!(world.state().await, @r"
    a first completed | completed attempt=1 chunks=2
    b equal completed | completed attempt=1 chunks=2
    c partly completed | completed attempt=1 chunks=2
    d another's completed | completed attempt=1 chunks=1
    ");
    let paid = ["old", "new", "wet"].map(|word| vendor.paid(&paragraph(word)));
    assert_eq!(paid, [2, 1, 1], "once for each tenant");
    assert_snapshot!(usage(&world).await, @r"
    a first r1 tokens 264 0.00000528
    b equal r1 reused_vectors 2 0
    c partly r1 reused_vectors 1 0
    c partly r1 tokens 132 0.00000264
    d another's r1 tokens 132 0.00000264
    ");
    let vectors = "select count(distinct embedding::text)::int from public.document_chunks";
    assert_eq!(world.value::<i32>(vectors).await, 3, "an equal text has the vector that was paid for");
    assert_snapshot!(reconciled(&world).await, @"exit 0");

    // What is paid for again on purpose is, and is nobody's gift.
    world.sql("select gristmill.retry(j.id, fresh => true) from gristmill.embedding_jobs j join public.documents d on j.source_key = jsonb_build_array(d.id::text) where d.name = 'b equal'").await;
    world.work().await;
    assert_eq!(["old", "new", "wet"].map(|word| vendor.paid(&paragraph(word))), [3, 2, 1]);
    assert_snapshot!(reconciled(&world).await, @"exit 0");
    assert_eq!(world.value::<String>(KEPT).await, "4 0");

    world.sql("delete from public.documents where name <> 'd another''s'").await;
    world.work().await;
    assert_eq!(gristmill(&world, &["forget", "--tenant", &USER.to_string(), "--yes"]).await.code, 0);
    assert_eq!(world.value::<String>(KEPT).await, "1 0", "what was forgotten is in no cache");
}

#[tokio::test]
async fn equal_texts_on_their_way_at_once_are_paid_once() {
    let vendor = vendor();
    let world = caching(&vendor).await;
    for nth in 0..5 {
        world.insert(&format!("note {nth}"), &paragraph("old")).await;
    }
    world.insert("twice in itself", &paragraphs(&["new", "new"])).await;
    let worker = world.start().await;
    worker.idle().await;
    worker.stop().await;

    assert_eq!(["old", "new"].map(|word| vendor.paid(&paragraph(word))), [1, 1]);
    assert_eq!(world.states().await, "6 completed");
    assert_snapshot!(reconciled(&world).await, @"exit 0");
}

#[tokio::test]
async fn whoever_waits_for_an_equal_text_does_not_fail_with_it() {
    let vendor = vendor();
    let world = caching(&vendor).await;
    // The text goes with a poisoned one of the same job, which fails it.
    let poisoned = format!("{}\n\n{}", paragraph("old"), paragraph("POISON"));
    vendor.poison("POISON");
    world.insert("a poisoned", &poisoned).await;
    for nth in 0..3 {
        world.insert(&format!("b note {nth}"), &paragraph("old")).await;
    }
    world.work().await;

    assert_snapshot!(world.state().await, @r"
    a poisoned failed | failed attempt=1 chunks=0 refused the provider refused the text: status 400, invalid_request_error: Rejected by our policy: …
    b note 0 completed | completed attempt=1 chunks=1
    b note 1 completed | completed attempt=1 chunks=1
    b note 2 completed | completed attempt=1 chunks=1
    ");
    // Where the text landed before its neighbour failed their job, nobody is charged for it, and that is said.
    let told = reconciled(&world).await;
    assert!(told.starts_with("exit 0"), "{told}");
}

#[tokio::test]
async fn another_prefix_model_or_dimension_is_another_text() {
    let vendor = vendor();
    let world = caching(&vendor).await;
    let book = world.insert("a", "The mill grinds.").await;
    world.work().await;
    assert_eq!(vendor.requests(), 1);
    let other = world.change("longest = 8000", "longest = 8000\nprefix = \"query: \"");
    assert_eq!(gristmill(&other, &["accept", "documents", "--yes"]).await.code, 0);
    other.work().await;
    assert_eq!(vendor.paid_texts(), ["The mill grinds.", "query: The mill grinds."]);
    // The cache of another model is not asked.
    let other = other.change("name = \"small\"", "name = \"other\"");
    assert_eq!(gristmill(&other, &["accept", "documents", "--yes"]).await.code, 0);
    other.work().await;
    assert_eq!(vendor.requests(), 3);
    let models = "select string_agg(distinct model, ' ' order by model) from gristmill.vector_cache";
    assert_eq!(other.value::<String>(models).await, "vendor/other/384 vendor/small/384");
    assert_eq!(other.state().await, format!("a completed | completed attempt=1 chunks=1"), "{book}");
}

#[tokio::test]
async fn a_pipeline_that_does_not_ask_neither_fills_the_cache_nor_uses_it() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    let book = world.insert("a", "The mill grinds.").await;
    world.work().await;
    assert_eq!(world.value::<String>(KEPT).await, "0 0");

    // Another pipeline's, of the same model.
    let vector = Embedding { vector: vec![1.0; DIMENSIONS], sparse: None };
    let text = <sha2::Sha256 as sha2::Digest>::digest(b"It stands.").into();
    let paid = Parked { tenant: USER.to_string(), job: JobId(1), text, embedding: vector.into(), tokens: 3 };
    cache::share(&world.pool, "vendor/small/384", &[paid]).await.unwrap();
    sqlx::query("update public.documents set content = 'It stands.' where id = $1")
        .bind(book)
        .execute(&world.pool)
        .await
        .unwrap();
    world.work().await;

    assert_eq!(vendor.paid("It stands."), 1, "a job that was tried looks for parked vectors only");
    assert_eq!(world.value::<String>(KEPT).await, "1 0", "and leaves the others where they are");
}

#[tokio::test]
async fn what_is_for_equal_texts_is_not_left_parked_as_well() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("longest = 8000", "longest = 8000\ninputs = 1");
    let world = world.change("kind = \"openai\"", "kind = \"openai\"\nconcurrency = 1");
    let world = world.change("model = \"small\"\nexisting", "model = \"small\"\ncache = true\nexisting");
    world.register().await;
    world.insert("book", &paragraphs(&["old", "new"])).await;
    vendor.script([Answer::good(), Answer::status(503), Answer::status(503), Answer::status(503)]);
    world.work().await;
    assert_eq!(world.value::<String>(KEPT).await, "0 1");

    world.sql("update gristmill.embedding_jobs set run_at = now()").await;
    world.work().await;

    assert_eq!(world.states().await, "1 completed");
    assert_eq!(world.value::<String>(KEPT).await, "2 0");
}

#[tokio::test]
async fn of_several_that_are_parked_a_job_takes_its_own_then_one_that_nobody_will_be_charged_for() {
    let world = World::new().await;
    world.register().await;
    world.insert("book", "Old.").await;
    world.insert("copy", "Old.").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    // Of jobs 1 and 2, which are open, and of two that are over.
    let entry = |job: i64, tokens: u64| Parked {
        tenant: "one".to_owned(),
        job: JobId(job),
        text: [7; 32],
        embedding: Embedding { vector: vec![0.5; 8], sparse: None }.into(),
        tokens,
    };
    cache::park(&world.pool, "m", &[entry(1, 5), entry(2, 6), entry(98, 7), entry(99, 8)]).await.unwrap();
    let find = async |job| {
        let found = cache::find(&world.pool, JobId(job), "one", "m", &[[7; 32]], None, false).await.unwrap();
        found.into_values().map(|kept| (kept.tokens, kept.free)).collect::<Vec<_>>()
    };

    assert_eq!(find(2).await, [(Some(6), false)]);
    assert_eq!(find(1).await, [(Some(5), false)]);
    cache::forget(&world.pool, "m", &[(JobId(1), "one", &[7; 32])]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(find(1).await, [(Some(7), false)], "what it took is its own");
    }
    cache::forget(&world.pool, "m", &[(JobId(1), "one", &[7; 32])]).await.unwrap();
    assert_eq!(find(1).await, [(Some(8), false)]);
    cache::forget(&world.pool, "m", &[(JobId(1), "one", &[7; 32])]).await.unwrap();
    assert_eq!(find(1).await, [(Some(6), true)], "its buyer is open");
    assert_eq!(world.list("select job_id::text from gristmill.vector_cache").await, ["2"]);
}

#[tokio::test]
async fn the_oldest_go_when_the_cache_is_full() {
    let world = World::new().await;
    let entry = |tenant: &str, nth: u8| Parked {
        tenant: tenant.to_owned(),
        job: JobId(1),
        text: [nth; 32],
        embedding: Embedding { vector: vec![0.5; 2_000], sparse: None }.into(),
        tokens: 1,
    };
    for nth in 1..=5 {
        cache::share(&world.pool, "m", &[entry("one", nth)]).await.unwrap();
    }
    cache::park(&world.pool, "m", &[entry("one", 6)]).await.unwrap();
    let left = "select string_agg(get_byte(digest, 0)::text, ' ' order by digest) from gristmill.vector_cache";

    // Each has 8,000 bytes; what is parked does not count.
    assert_eq!(cache::shrink(&world.pool, 1_000_000, 10).await.unwrap(), 0);
    assert_eq!(cache::shrink(&world.pool, 17_000, 2).await.unwrap(), 2);
    assert_eq!(world.value::<String>(left).await, "3 4 5 6");
    assert_eq!(cache::shrink(&world.pool, 17_000, 2).await.unwrap(), 1);
    assert_eq!(world.value::<String>(left).await, "4 5 6");
    assert_eq!(cache::shrink(&world.pool, 17_000, 2).await.unwrap(), 0);
}
