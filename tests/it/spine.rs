//! The path of a job from the inserted row to the committed vectors.

use insta::assert_snapshot;

use crate::world::World;

#[tokio::test]
async fn an_inserted_row_becomes_vectors() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "The mill grinds what the river brings.").await;

    world.work().await;

    assert_snapshot!(world.state().await, @"note completed | completed attempt=1 chunks=1");
    // As a client of the application reads it.
    let vector: pgvector::Vector = world.value("select embedding from public.document_chunks").await;
    let length = vector.as_slice().iter().map(|value| value * value).sum::<f32>().sqrt();
    assert_eq!(vector.as_slice().len(), 384);
    assert!((length - 1.0).abs() < 1e-5, "{length}");
}

#[tokio::test]
async fn a_change_embeds_again_and_an_unchanged_row_costs_nothing() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "First words.").await;
    world.work().await;
    world.work().await;
    assert_eq!(world.value::<i64>("select count(*) from gristmill.provider_calls").await, 1);

    world.sql("update public.documents set content = 'Other words.'").await;
    world.work().await;

    assert_snapshot!(world.state().await, @"note completed | completed attempt=1 chunks=1");
    let contents = world.list("select content from public.document_chunks").await;
    assert_eq!(contents, ["Other words."]);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.usage_events where meter = 'tokens'").await, 2);
}

#[tokio::test]
async fn old_history_goes_as_fast_as_it_came() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "The wheel turns.").await;
    world.work().await;
    world
        .sql(
            "insert into gristmill.job_attempts (job_id, revision, attempt, ended_at, outcome) \
             select j.id, 1, 1, now() - n * interval '1 day', 'retry' from gristmill.embedding_jobs j, generate_series(29, 12040) n",
        )
        .await;

    let worker = world.start().await;
    // More than a slice: the rest would go a minute later.
    world.wait_for("select count(*) = 1 from gristmill.job_attempts").await;
    worker.stop().await;
}

#[tokio::test]
async fn what_follows_a_begin_that_was_given_up_is_in_no_transaction() {
    let world = World::new().await;
    let mut left = Vec::new();
    for _ in 0..12 {
        left.push(world.pool.acquire().await.expect("the database is there"));
    }
    for connection in &mut left {
        sqlx::raw_sql("begin").execute(&mut **connection).await.expect("it begins");
    }
    drop(left);

    world.sql("create table public.seen ()").await;

    let mut other = world.database.connect().await;
    let seen: bool =
        sqlx::query_scalar("select to_regclass('public.seen') is not null").fetch_one(&mut other).await.unwrap();
    assert!(seen, "the statement stands in a transaction that nobody ends");
}
