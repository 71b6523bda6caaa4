//! Rows that become another tenant's, and configurations that look at different columns of a row.

use std::collections::BTreeMap;

use gristmill::db::workers::{self, SignIn};
use gristmill::domain::OwnerId;
use uuid::Uuid;

use crate::cli::{serve, terminate};
use crate::fake_openai::{FakeOpenAi, Options};
use crate::outcomes::eventually;
use crate::world::World;

const OTHER: Uuid = Uuid::from_u128(0xb0b);

/// Whose everything is: the row's chunks, its job, and what was charged.
const WHOSE: &str = "select concat_ws(' ', (select string_agg(distinct right(user_id::text, 5), ',') from public.document_chunks), \
    (select right(tenant, 5) || ' r' || revision from gristmill.embedding_jobs), \
    (select string_agg(right(tenant, 5) || ' ' || quantity, ',' order by id) from gristmill.usage_events))";

/// A world in which nothing but the tenant is read of its column.
async fn world_of(vendor: &FakeOpenAi) -> World {
    let world = World::with_vendor(vendor).await;
    let world = world.change("user_id = \"{user_id}\"", "user_id = \"{tenant}\"");
    let world = world.change("within = \"{user_id}/\"", "within = \"\"");
    world.register().await;
    world
}

async fn hand_on(world: &World) {
    world.sql(&format!("update public.documents set user_id = '{OTHER}'")).await;
}

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: 384, ..Options::default() })
}

#[tokio::test]
async fn a_row_that_is_handed_on_takes_its_chunks_along_and_nothing_is_paid_again() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    world.insert("note", "One.").await;
    world.work().await;
    assert_eq!(world.value::<String>(WHOSE).await, "a11ce a11ce r1 a11ce 2");

    hand_on(&world).await;
    assert_eq!(world.sweep(None).await, 1);
    world.work().await;
    assert_eq!(world.value::<String>(WHOSE).await, "00b0b 00b0b r2 a11ce 2");
    assert_eq!((world.sweep(None).await, vendor.requests()), (0, 1));
}

#[tokio::test]
async fn triggers_see_that_a_row_is_handed_on() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    world.insert("note", "One.").await;
    world.work().await;
    world.install_triggers().await;

    hand_on(&world).await;
    world.work().await;
    assert_eq!(world.value::<String>(WHOSE).await, "00b0b 00b0b r2 a11ce 2");
}

#[tokio::test]
async fn a_row_that_is_handed_on_in_work_is_written_and_charged_to_whom_it_is_now() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    world.insert("note", "One.").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    hand_on(&world).await;
    gate.open();
    worker.idle().await;
    worker.stop().await;
    // The first answer was the other's, and is kept for nobody else.
    assert_eq!(world.value::<String>(WHOSE).await, "00b0b 00b0b r1 00b0b 2");
}

#[tokio::test]
async fn of_workers_that_look_at_different_columns_the_youngest_says_what_a_change_is() {
    const LATER: &str = "update gristmill.workers set started_at = now() + interval '1 hour', seen_at = now() + interval '1 hour' \
        where name = 'younger'";
    const REVISION: &str = "select revision from gristmill.embedding_jobs";
    let world =
        World::new().await.change("sweep = \"1h\"", "sweep = \"20ms\"").change("lease = \"10s\"", "lease = \"1s\"");
    world.register().await;
    let worker = serve(&world);
    world.insert("note", "One.").await;
    eventually(&world, "(select bool_and(state = 'completed') and count(*) = 1 from gristmill.embedding_jobs)").await;
    let younger = OwnerId(Uuid::new_v4());
    let watches = BTreeMap::from([("documents", "something else")]);
    workers::seen(&world.pool, SignIn { owner: younger, name: "younger", slots: 1, watches: &watches }, &[])
        .await
        .unwrap();
    world.sql(LATER).await;
    assert!(!workers::is_superseded(&world.pool, younger, "documents").await.unwrap());

    // The pass that had begun before is over when two heartbeats are, and others have come and gone.
    let beats = "(select seen_at from gristmill.workers where name <> 'younger')";
    for _ in 0..2 {
        let last: String = world.value(&format!("select {beats}::text")).await;
        eventually(&world, &format!("({beats} > '{last}')")).await;
    }
    world.sql("update public.documents set content = 'Two.', updated_at = now()").await;
    for _ in 0..3 {
        let last: String = world.value(&format!("select {beats}::text")).await;
        eventually(&world, &format!("({beats} > '{last}')")).await;
    }
    assert_eq!(world.value::<i64>(REVISION).await, 1);

    workers::stopped(&world.pool, younger).await.unwrap();
    eventually(&world, "(select bool_and(revision = 2 and state = 'completed') from gristmill.embedding_jobs)").await;
    assert_eq!(terminate(worker).await.code, 0);
}
