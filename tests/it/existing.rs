//! Rows that were there before us, and what a person has to say before anything is paid for them.

use std::sync::Arc;

use gristmill::app::{self, Readiness};
use gristmill::db;
use gristmill::db::app::Plan;
use insta::assert_snapshot;
use tokio_util::sync::CancellationToken;

use crate::cli::gristmill;
use crate::fake_openai::{FakeOpenAi, Options};
use crate::world::{USER, World};

/// A vendor whose vectors fit the starter schema.
fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: 384, ..Options::default() })
}

/// 300 documents of an older worker: of every ten, six have all their vectors, and one each has no chunk, a vector that is null,
/// one of zeros, and one good chunk beside one without a vector.
async fn insert_old_rows(world: &World) {
    world
        .sql(&format!(
            "alter table public.document_chunks alter embedding drop not null; \
             insert into public.documents (id, user_id, name, content) \
             select ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, '{USER}', n::text, 'Old text ' || n || '.' \
             from generate_series(0, 299) n; \
             insert into public.document_chunks (document_id, user_id, chunk_index, content, token_count, embedding) \
             select d.id, d.user_id, c, 'Old chunk.', 3, case \
                 when d.name::int % 10 = 7 or (d.name::int % 10 = 9 and c = 1) then null \
                 when d.name::int % 10 = 8 then array_fill(0::real, array[384])::vector \
                 else array_fill(0.5::real, array[384])::vector end \
             from public.documents d, generate_series(0, 1) c where d.name::int % 10 <> 6"
        ))
        .await;
}

/// How many jobs stand how.
async fn standing(world: &World) -> String {
    world
        .list(
            "select concat_ws(' ', count(*), state, error_kind, reason) from gristmill.embedding_jobs \
             group by state, error_kind, reason order by state, error_kind",
        )
        .await
        .join("\n")
}

async fn accept(world: &World) -> u64 {
    let mut opened = 0;
    loop {
        match db::pipelines::accept_rows(&world.pool, "documents", 7).await.expect("the database is there") {
            0 => return opened,
            more => opened += more,
        }
    }
}

async fn register(world: &World, plan: &Plan) -> Readiness {
    app::register(&world.pool, plan, 32, &|| false).await.expect("the database is there")
}

async fn plan(world: &World) -> Arc<Plan> {
    world.plans().await.remove(0)
}

#[tokio::test]
async fn adopted_rows_with_valid_vectors_are_done_and_the_rest_waits_for_a_word() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("existing = \"backfill\"", "existing = \"adopt\"");
    insert_old_rows(&world).await;

    world.work().await;

    assert_snapshot!(standing(&world).await, @"
    180 completed
    120 waiting unaccepted was there before; waits for `gristmill accept`
    ");
    assert_eq!(vendor.requests(), 0);
    let plan = plan(&world).await;
    let unpaid = db::pipelines::unpaid(&world.pool, "documents", &plan.generation).await.expect("it counts");
    assert_eq!((unpaid.held, unpaid.old), (120, 0));
    let guess = app::estimate(&world.config(), &world.pool, &plan).await.expect("it estimates");
    // "Old text 7.", "Old text 17.", "Old text 117.": five tokens each, whatever else the row has.
    assert_eq!((guess.rows, guess.sampled, guess.tokens, guess.files), (120, 120, 600, 0));

    // What is new flows at once, what is held does not.
    world.insert("new", "New text.").await;
    world.work().await;
    assert_eq!(vendor.paid_texts(), ["New text."]);

    assert_eq!(accept(&world).await, 120);
    world.work().await;
    assert_snapshot!(standing(&world).await, @"301 completed");
    let mut paid = vendor.paid_texts();
    paid.sort_unstable();
    let mut wanted = world.list("select content from public.documents where name = 'new' or name::int % 10 in (6, 7, 8, 9) order by content").await;
    wanted.sort_unstable();
    assert_eq!(paid, wanted);
    // The adopted keep what they had, the others have one valid chunk each.
    assert_eq!(
        world.value::<i64>("select count(*) from public.document_chunks where content = 'Old chunk.'").await,
        360
    );
    assert_eq!(
        world.value::<i64>("select count(*) from public.document_chunks where content <> 'Old chunk.' and vector_norm(embedding) > 0.9").await,
        121
    );
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 481);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.usage_events").await, 121);

    // An adopted row that changes is embedded like any other.
    world.sql("update public.documents set content = 'Changed.' where name = '0'").await;
    world.work().await;
    assert_eq!(world.list("select c.content from public.document_chunks c join public.documents d on d.id = document_id where d.name = '0'").await, ["Changed."]);
}

#[tokio::test]
async fn a_backfill_waits_for_a_word_as_a_whole() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    insert_old_rows(&world).await;

    world.work().await;

    assert_snapshot!(standing(&world).await, @"300 waiting unaccepted was there before; waits for `gristmill accept`");
    assert_eq!(vendor.requests(), 0);
    assert_eq!(accept(&world).await, 300);
    world.work().await;
    assert_snapshot!(standing(&world).await, @"300 completed");
    assert_eq!(vendor.paid_texts().len(), 300);
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 300);
}

#[tokio::test]
async fn a_held_row_that_is_deleted_is_not_asked_about() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    insert_old_rows(&world).await;
    world.work().await;

    world.sql("delete from public.documents where name::int > 1").await;
    world.work().await;

    assert_snapshot!(standing(&world).await, @"
    298 cancelled left source row is gone
    2 waiting unaccepted was there before; waits for `gristmill accept`
    ");
    assert_eq!(vendor.requests(), 0);
}

#[tokio::test]
async fn ignored_rows_are_skipped_until_they_change() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("existing = \"backfill\"", "existing = \"ignore\"");
    insert_old_rows(&world).await;

    world.work().await;
    assert_snapshot!(standing(&world).await, @r#"300 skipped skipped was there before, and existing = "ignore""#);
    assert_eq!(vendor.requests(), 0);

    world.sql("update public.documents set content = 'Changed.' where name = '17'").await;
    world.work().await;
    assert_eq!(vendor.paid_texts(), ["Changed."]);
}

#[tokio::test]
async fn a_pipeline_whose_rows_nobody_spoke_of_does_not_start() {
    let world = World::new().await.change("existing = \"backfill\"", "");
    world.insert("old", "Old text.").await;

    let refused =
        app::start(&world.config(), &world.pool, CancellationToken::new()).await.err().expect("it does not start");

    assert_snapshot!(refused, @r#"
    no pipeline fits this database:
    documents: rows were there before it: say `existing = "adopt"`, "backfill" or "ignore" under [pipelines.documents]
    "#);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.embedding_jobs").await, 0);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.pipelines").await, 0);
}

#[tokio::test]
async fn where_no_row_was_there_nothing_has_to_be_said() {
    let world = World::new().await.change("existing = \"backfill\"", "");
    world.work().await;

    world.insert("new", "New text.").await;
    world.work().await;

    assert_snapshot!(world.state().await, @"new completed | completed attempt=1 chunks=1");
}

#[tokio::test]
async fn another_generation_waits_for_a_word_and_then_embeds_everything_again() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    for name in ["one", "two", "three"] {
        world.insert(name, "The mill grinds what the river brings.").await;
    }
    world.work().await;
    assert_eq!(vendor.paid_texts().len(), 3);

    let world = world.change("tokens = 200", "tokens = 190");
    let newer = plan(&world).await;
    let refused = app::start(&world.config(), &world.pool, CancellationToken::new()).await.err().expect("it waits");
    assert_snapshot!(refused, @"
    no pipeline fits this database:
    documents: its model, chunking or templates changed; 3 rows would be embedded again: see and allow it with `gristmill accept documents`
    ");
    world.insert("four", "A new row waits as well: nobody embeds it with the old settings.").await;

    db::pipelines::accept_generation(&world.pool, "documents", &newer.generation).await.expect("it is accepted");
    while db::pipelines::open_generation(&world.pool, "documents", &newer.generation, 2).await.expect("it opens") > 0 {}
    assert_eq!(register(&world, &newer).await, Readiness::Ready);
    world.work().await;

    assert_eq!(vendor.paid_texts().len(), 7);
    assert_snapshot!(standing(&world).await, @"4 completed");
    assert_eq!(
        world.list("select distinct generation from gristmill.embedding_jobs").await,
        [newer.generation.as_str()]
    );

    // A worker of the old generation is refused in turn.
    let world = world.change("tokens = 190", "tokens = 200");
    let older = plan(&world).await;
    assert_eq!(register(&world, &older).await, Readiness::NewGeneration { rows: 4 });
}

#[tokio::test]
async fn an_adopted_row_that_asks_for_itself_is_not_paid_unasked() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor)
        .await
        .change("existing = \"backfill\"", "existing = \"adopt\"")
        .change("changed_at = \"updated_at\"", "needs = \"processing_status = 'pending'\"");
    insert_old_rows(&world).await;

    world.work().await;
    assert_eq!(world.sweep(None).await, 0);

    assert_eq!(vendor.requests(), 0);
    assert_snapshot!(standing(&world).await, @"
    180 completed
    120 waiting unaccepted was there before; waits for `gristmill accept`
    ");
}

#[tokio::test]
async fn another_word_for_rows_that_were_there_before_is_said_to_come_too_late() {
    let world = World::new().await;
    world.insert("old", "Old text.").await;
    world.register().await;
    let said = async |world: &World| {
        let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
        let late = app::late_words(&world.pool, &resolved.plans).await.expect("the database is there");
        late.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(said(&world).await, "");

    let world = world.change("existing = \"backfill\"", "existing = \"ignore\"");
    assert_snapshot!(said(&world).await, @r#"workers.toml:36: pipelines.documents: existing was "backfill" when the rows that were there before got their jobs, and "ignore" changes nothing of that: `gristmill jobs cancel --pipeline documents --kind unaccepted` gives up those that wait"#);
    world.register().await;
    assert_eq!(standing(&world).await, "1 waiting unaccepted was there before; waits for `gristmill accept`");

    let world = world.change("existing = \"ignore\"", "existing = \"adopt\"");
    assert_snapshot!(said(&world).await, @r#"workers.toml:36: pipelines.documents: existing was "backfill" when the rows that were there before got their jobs, and "adopt" changes nothing of that: `gristmill accept documents` opens those that wait"#);
    let checked = gristmill(&world, &["check"]).await.ok().out;
    assert!(checked.contains("existing was"), "{checked}");
}

#[tokio::test]
async fn the_bill_is_judged_by_a_sample_that_is_cut_and_counted_as_a_job_would() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world
        .sql(&format!(
            "insert into public.documents (user_id, name, content, storage_path) \
             select '{USER}', n::text, case when n % 4 > 0 then repeat('The mill grinds. ', n % 4) end, case when n % 4 = 0 then 'x' end \
             from generate_series(1, 1200) n"
        ))
        .await;
    register(&world, &*plan(&world).await).await;

    let guess = app::estimate(&world.config(), &world.pool, &*plan(&world).await).await.expect("it estimates");

    assert_eq!((guess.rows, guess.sampled), (1_200, 500));
    // A quarter are files; a sentence has five tokens, and the others have two on average.
    assert!((200..400).contains(&guess.files), "{guess:?}");
    assert!((7_000..11_000).contains(&guess.tokens), "{guess:?}");
}

/// Rows of the starter pipeline that `backfill` names, as a program reads it.
async fn backfill(world: &World, arguments: &[&str]) -> serde_json::Value {
    let all: Vec<&str> = ["--json", "backfill", "documents"].iter().chain(arguments).copied().collect();
    let ended = gristmill(world, &all).await.ok();
    serde_json::from_str(&ended.out).expect("JSON")
}

#[tokio::test]
async fn a_backfill_opens_what_was_ignored_held_or_never_seen_and_says_first_what_it_costs() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("existing = \"backfill\"", "existing = \"ignore\"");
    insert_old_rows(&world).await;
    world.register().await;
    world
        .sql(&format!(
            "insert into public.documents (user_id, name, content) select '{USER}', 'late ' || n, 'Late text.' from generate_series(1, 40) n; \
             insert into public.documents (user_id, name, content) values (gen_random_uuid(), 'other', 'Another''s text.'); \
             update gristmill.embedding_jobs set started_at = now() where id = (select min(id) from gristmill.embedding_jobs)"
        ))
        .await;
    let before = standing(&world).await;

    let bill = backfill(&world, &["--dry-run"]).await;
    assert_eq!((&bill["rows"], &bill["opened"]), (&340.into(), &0.into()), "{bill}");
    assert!((1_500..2_500).contains(&bill["tokens_estimated"].as_i64().unwrap()), "{bill}");
    assert!(bill["usd_estimated"].is_string(), "{bill}");
    assert_eq!(standing(&world).await, before, "a look changes nothing");
    let refused = gristmill(&world, &["backfill", "documents", "--where", "nope > 1"]).await;
    assert!(refused.code == 1 && refused.err.contains("nope"), "{}", refused.err);

    let odd =
        ["backfill", "documents", "--yes", "--where", "(case when name = 'late 7' then 'seven' else '7' end)::int = 7"];
    let refused = gristmill(&world, &odd).await;
    let late: String = world.value("select id::text from public.documents where name = 'late 7'").await;
    assert!(
        refused.code == 1 && refused.err.contains(&late) && refused.err.contains("'seven' else"),
        "{}",
        refused.err
    );
    assert_eq!(standing(&world).await, before, "none of the rows before it is opened either");
    for (condition, why) in [
        ("1 / (length(name) - 6) > 0", "a division by zero (22012)"),
        ("name ~ ('(' || left(name, 0))", "an expression fails on a value (2201B)"),
        ("name::int > 0", "a value does not fit its column (22P02)"),
    ] {
        let refused = gristmill(&world, &["backfill", "documents", "--dry-run", "--where", condition]).await;
        assert!(refused.code == 1 && refused.err.contains(why), "{}", refused.err);
    }

    let some = backfill(&world, &["--yes", "--slice", "7", "--where", "source.name like 'late %' -- only these"]).await;
    assert_eq!((&some["rows"], &some["opened"]), (&40.into(), &40.into()), "{some}");
    let one = backfill(&world, &["--yes", "--tenant", &USER.to_string()]).await;
    assert_eq!(one["opened"], 299, "{one}");
    assert_eq!(backfill(&world, &["--dry-run"]).await["rows"], 1);
    assert_eq!(
        world.list("select distinct priority::text from gristmill.embedding_jobs where state = 'pending'").await,
        ["-10"]
    );

    world.work().await;
    assert_snapshot!(standing(&world).await, @r#"
    340 completed
    1 skipped skipped was there before, and existing = "ignore"
    "#);
    assert_eq!(vendor.paid_texts().len(), 340);
    // What a person opened in bulk goes behind what is new, once: a change is new.
    world.sql("update public.documents set content = 'Changed.', updated_at = now() where name = 'late 1'").await;
    world.sweep(None).await;
    assert_eq!(world.list("select priority::text from gristmill.embedding_jobs where state = 'pending'").await, ["0"]);
}

#[tokio::test]
async fn a_backfill_adopts_vectors_that_came_with_their_rows_and_opens_what_waits() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("existing = \"backfill\"", "existing = \"adopt\"");
    world.insert("1006", "Held text.").await;
    world.register().await;
    insert_old_rows(&world).await;

    let bill = backfill(&world, &["--dry-run"]).await;
    assert_eq!((&bill["rows"], &bill["rows_adopted"]), (&121.into(), &180.into()), "{bill}");
    let done = backfill(&world, &["--yes"]).await;
    assert_eq!((&done["opened"], &done["rows_adopted"]), (&121.into(), &180.into()), "{done}");

    assert_snapshot!(standing(&world).await, @"
    180 completed
    121 pending
    ");
    assert_eq!(vendor.requests(), 0);
    // Held rows and the generation are `accept`'s; here nothing is left to it.
    assert_eq!(accept(&world).await, 0);
    assert_eq!(backfill(&world, &["--dry-run"]).await["rows"], 0);
}

#[tokio::test]
async fn rows_that_are_accepted_in_bulk_go_behind_new_ones() {
    let world = World::new().await;
    world.insert_sentences(5).await;
    world.register().await;
    accept(&world).await;
    world.insert("new", "New text.").await;
    world.sweep(None).await;

    let order = "select d.name from gristmill.embedding_jobs j join public.documents d on j.source_key = jsonb_build_array(d.id::text) \
                 where state = 'pending' order by -priority, run_at, j.id limit 1";
    assert_eq!(world.list(order).await, ["new"]);
}

#[tokio::test]
async fn another_word_is_not_too_late_where_no_row_was_there_before() {
    let said = async |world: &World| gristmill(world, &["check"]).await.out.contains("existing was");
    let world = World::new().await.change("existing = \"backfill\"", "existing = \"adopt\"");
    world.register().await;
    world.insert("new", "New text.").await;
    world.work().await;
    let world = world.change("existing = \"adopt\"", "existing = \"backfill\"");
    assert!(!said(&world).await, "nothing was adopted");

    let world = World::new().await.change("existing = \"backfill\"", "existing = \"ignore\"");
    world.register().await;
    let world = world.change("existing = \"ignore\"", "existing = \"backfill\"");
    assert!(!said(&world).await, "nothing was ignored");

    let world = World::new().await;
    world.insert("old", "Old text.").await;
    world.register().await;
    gristmill(&world, &["accept", "documents", "--yes"]).await.ok();
    world.work().await;
    let world = world.change("existing = \"backfill\"", "existing = \"adopt\"");
    assert!(!said(&world).await, "none waits any more");

    let world = World::new().await.change("existing = \"backfill\"", "existing = \"ignore\"");
    world.insert("old", "Old text.").await;
    world.register().await;
    let world = world.change("existing = \"ignore\"", "existing = \"backfill\"");
    assert!(said(&world).await, "one is ignored");
}

#[tokio::test]
async fn a_look_at_a_backfill_of_a_new_pipeline_counts_what_will_be_adopted_and_leaves_nothing_behind() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("existing = \"backfill\"", "existing = \"adopt\"");
    insert_old_rows(&world).await;

    let bill = backfill(&world, &["--dry-run"]).await;
    assert_eq!((&bill["rows"], &bill["rows_adopted"]), (&120.into(), &180.into()), "{bill}");
    let left = "select (select count(*) from gristmill.pipelines) + (select count(*) from gristmill.embedding_jobs)";
    assert_eq!(world.value::<i64>(left).await, 0, "a look changes nothing");

    let done = backfill(&world, &["--yes"]).await;
    assert_eq!((&done["opened"], &done["rows_adopted"]), (&120.into(), &180.into()), "{done}");
    assert_snapshot!(standing(&world).await, @"
    180 completed
    120 pending
    ");

    let world = World::new().await.change("existing = \"backfill\"", "");
    world.insert("old", "Old text.").await;
    let refused = gristmill(&world, &["backfill", "documents", "--dry-run"]).await;
    assert!(refused.code == 1 && refused.err.contains("say `existing = "), "{}", refused.err);
}

#[tokio::test]
async fn adopting_writes_nothing_on_a_row_and_verify_says_so() {
    let world = World::new().await.change("existing = \"backfill\"", "existing = \"adopt\"");
    insert_old_rows(&world).await;
    world.sql("delete from public.documents where name::int % 10 in (6, 7, 8, 9)").await;
    world.work().await;
    assert_eq!(world.list("select distinct processing_status from public.documents").await, ["pending"]);

    let said = gristmill(&world, &["verify"]).await.ok().out;
    assert_snapshot!(said, @"
    nothing is wrong: every completed row has its vectors and says so
    documents: but for adopted rows, which say what they said: adopting writes nothing on them, and only their vectors are looked at
    ");
    let said = gristmill(&world, &["verify", "--json"]).await.ok().json();
    assert_eq!(said["adopted"], serde_json::json!(["documents"]));
}
