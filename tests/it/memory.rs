//! What is in memory at once is bounded before it is loaded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use gristmill::app;
use gristmill::batch::{Fit, Loader, Memory, Vital};
use gristmill::config::Name;
use gristmill::domain::SourceKey;
use insta::assert_snapshot;

use crate::applications::{NOTES, application};
use crate::fake_openai::vector_of;
use crate::outcomes::vendor;
use crate::world::{DIMENSIONS, World};

const KIB: u64 = 1024;

/// Loads every row at once, holds each for a round trip, and says how many bytes of content each row saw loaded at most while it was.
async fn most_beside(world: &World, memory: u64) -> BTreeMap<u64, u64> {
    let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
    let loader = {
        let fit = Fit::new(world.pool.clone(), Arc::new(world.config()), Arc::clone(&resolved.plans[0]));
        Loader::start(world.pool.clone(), world.pool.clone(), fit, Memory::new(memory), &Vital::default())
    };
    let in_memory = AtomicU64::new(0);
    let ids = world.list("select id::text from public.documents order by octet_length(content), id").await;
    let keys: Vec<SourceKey> = ids.into_iter().map(|id| SourceKey(vec![id])).collect();
    let seen = join_all(keys.iter().map(async |key| {
        let loaded = loader.load("", key, false).await.expect("the row can be read");
        let row = loaded.row.expect("the row is there");
        let bytes = row.value(&Name::Row("content".to_owned())).map_or(0, |text| text.len() as u64);
        in_memory.fetch_add(bytes, Ordering::AcqRel);
        let mut most = in_memory.load(Ordering::Acquire);
        // Whoever is loaded beside this one has been counted after a round trip, and perhaps another.
        for _ in 0..2 {
            world.sql("select 1").await;
            most = most.max(in_memory.load(Ordering::Acquire));
        }
        in_memory.fetch_sub(bytes, Ordering::AcqRel);
        drop(loaded.weight);
        (bytes, most)
    }))
    .await;
    seen.into_iter().fold(BTreeMap::new(), |mut most, (bytes, beside)| {
        let kept: &mut u64 = most.entry(bytes).or_default();
        *kept = beside.max(*kept);
        most
    })
}

#[tokio::test]
async fn rows_are_loaded_when_they_fit_into_memory_and_a_larger_one_alone() {
    let world = World::new().await;
    world.register().await;
    let (usual, giant) = (64 * KIB, 4096 * KIB);
    world
        .sql(&format!(
            "insert into public.documents (user_id, name, content) \
             select gen_random_uuid(), nth, repeat('mill ', {usual} / 5) || repeat('.', {usual} % 5) from generate_series(1, 60) as nth; \
             insert into public.documents (user_id, name, content) select gen_random_uuid(), 'giant', repeat('m', {giant})"
        ))
        .await;
    let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
    let five = 5 * Memory::new(u64::MAX).weight_of_text(&resolved.plans[0], usual + KIB);

    let most = most_beside(&world, five).await;

    assert_eq!(most.keys().copied().collect::<Vec<_>>(), [usual, giant]);
    assert_eq!(most[&giant], giant, "something was loaded beside the giant");
    assert!(most[&usual] <= 5 * usual, "{} of {usual} bytes were loaded at once", most[&usual] / usual);
    // And as many as fit are.
    assert!(most[&usual] >= 4 * usual, "{} of {usual} bytes were loaded at once", most[&usual] / usual);
}

#[tokio::test]
async fn texts_and_files_larger_than_all_memory_are_done_one_by_one() {
    let world = World::new().await.change("listen = \"off\"", "memory = \"64 KiB\"\nlisten = \"off\"");
    world.register().await;
    let text = "The mill grinds what the river brings. ".repeat(4_000);
    for nth in 0..6 {
        world.insert(&format!("text {nth}"), &text).await;
        world.upload(&format!("file {nth}.txt"), text.as_bytes()).await;
    }

    world.work().await;

    assert_snapshot!(world.states().await, @"12 completed");
}

#[tokio::test]
async fn vectors_that_were_put_in_a_file_come_back_to_their_own_chunks() {
    // An eighth of it is five vectors.
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("listen = \"off\"", "memory = \"64 KiB\"\nlisten = \"off\"");
    world.register().await;
    let text: String = (0..6_000).map(|nth| format!("Sentence {nth} of the mill. ")).collect();
    world.insert("large", &text).await;

    world.work().await;

    assert_snapshot!(world.states().await, @"1 completed");
    let chunks: Vec<(String, Vec<f32>)> =
        sqlx::query_as("select content, embedding::float4[] from public.document_chunks order by chunk_index")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    assert!(chunks.len() > 60, "{} chunks", chunks.len());
    for (text, vector) in &chunks {
        let wanted = vector_of(text, DIMENSIONS);
        assert!(vector.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{text}");
    }
}

#[tokio::test]
async fn files_that_weigh_more_than_was_taken_for_them_wait_holding_none() {
    // As many fit by their size as slots are there, but only three or so as texts.
    let world = World::new()
        .await
        .change("listen = \"off\"", "memory = \"1 MiB\"\nlisten = \"off\"")
        .change("kind = \"local\"", "kind = \"local\"\nlargest = \"64 KiB\"");
    world.register().await;
    let text = "The mill grinds what the river brings. ".repeat(1_600);
    for nth in 0..16 {
        world.upload(&format!("file {nth}.txt"), text.as_bytes()).await;
    }

    world.work().await;

    assert_snapshot!(world.states().await, @"16 completed");
}

#[tokio::test]
async fn a_column_that_is_copied_into_each_chunk_is_written_a_few_at_a_time() {
    let pipeline = NOTES.replace("columns = { nth", r#"columns = { title = "{title}", nth"#);
    let world = application(
        "create schema app; create table app.notes (id int primary key, title text, body text); \
         create table app.note_chunks (id bigint generated always as identity, note_id int, nth int, title text, body text, embedding vector(8), \
             unique (note_id, nth)); \
         create table app.statements (bytes bigint); \
         create function app.note() returns trigger language plpgsql as \
             $$ begin insert into app.statements select sum(octet_length(title)) from written; return null; end $$; \
         create trigger note after insert on app.note_chunks referencing new table as written for each statement execute function app.note()",
        &pipeline,
    )
    .await;
    let title = 300 * KIB;
    let body = |from: u32| (from..60).map(|nth| format!("Paragraph {nth} of some words.\n\n")).collect::<String>();
    world
        .sql(&format!("insert into app.notes values (1, repeat('m', {title}), '{}'), (2, 'Short.', 'One.')", body(10)))
        .await;
    world.work().await;

    let chunks = "select concat_ws(' ', count(*), count(distinct nth), max(nth), min(octet_length(title)), left(min(title), 1)) \
                  from app.note_chunks where note_id = 1";
    let written: i64 = world.value("select count(*) from app.note_chunks where note_id = 1").await;
    assert!(written > 20, "{written}");
    assert_eq!(world.list(chunks).await, [format!("{written} {written} {} {title} m", written - 1)]);
    let most: i64 = world.value("select max(bytes) from app.statements").await;
    assert!(most > 0 && most.unsigned_abs() <= 5 * title, "{most} bytes in one statement");

    // Chunks that stay, and move, are brought up to date as they were written.
    world.sql("create table app.before as select id from app.note_chunks where note_id = 1").await;
    world
        .sql(&format!(
            "update app.notes set title = repeat('n', {title}), body = '{}' where id = 1; select gristmill.enqueue('notes', 1)",
            body(0)
        ))
        .await;
    world.work().await;

    let now: i64 = world.value("select count(*) from app.note_chunks where note_id = 1").await;
    assert_eq!(world.list(chunks).await, [format!("{now} {now} {} {title} n", now - 1)]);
    let kept: i64 = world.value("select count(*) from app.note_chunks join app.before using (id)").await;
    assert!(now > written && kept * 10 > written * 7, "{kept} of {written} stayed, {now} now");
}
