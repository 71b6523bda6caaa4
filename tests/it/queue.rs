//! An application's own job table: read, marked and answered, in whatever shape it is.

use gristmill::app;
use insta::assert_snapshot;
use sqlx::Executor as _;

use crate::applications::{application, configured, reconnected};
use crate::cli::gristmill;
use crate::world::World;

const DREAMS: &str = r#"
[pipelines.dreams]
kind = "embed"
model = "tiny"
existing = "ignore"
max_attempts = 3
[pipelines.dreams.source]
table = "app.dreams"
key = ["id"]
when = "done"
changes = "ignore"
text = "{transcript}"
[pipelines.dreams.queue]
table = "app.jobs"
key = { dream_id = "{id}" }
priority = "priority"
not_before = "scheduled_at?"
status = { column = "status", words = { skipped = "completed" } }
columns = { attempts = "{job.attempts}", error_message = "{job.error}", "started_at|begun_at" = "{job.started}", "completed_at|ended_at" = "{job.finished}" }
[pipelines.dreams.skip]
shorter_than = 5
[pipelines.dreams.chunks]
whole = true
[pipelines.dreams.target]
table = "app.dream_vectors"
parent = { dream_id = "{id}" }
columns = { nth = "{chunk.index}", embedding = "{chunk.vector}" }
"#;

/// The job table as it is in one database; `begun_at` and `ended_at` are what the other calls its times.
const TABLES: &str = "create schema app; \
    create table app.dreams (id uuid primary key default gen_random_uuid(), name text unique, done bool not null default true, transcript text); \
    create table app.dream_vectors (dream_id uuid not null references app.dreams on delete cascade, nth int, embedding vector(8)); \
    create table app.jobs (id bigserial primary key, dream_id uuid not null references app.dreams on delete cascade, \
        status text not null default 'pending' check (status in ('pending', 'processing', 'completed', 'failed')), priority int, \
        attempts int not null default 0 check (attempts between 0 and 3), error_message text, scheduled_at timestamptz, \
        started_at timestamptz, completed_at timestamptz);";

const JOBS: &str = "select concat_ws(' ', d.name, q.status, 'attempts=' || q.attempts, q.error_message, \
        case when q.started_at is not null then 'started' end, case when q.completed_at > q.started_at - interval '1 minute' then 'ended' end, \
        '| job', j.state, 'r' || j.revision, (select count(*) from app.dream_vectors v where v.dream_id = d.id) || ' vectors') \
    from app.jobs q join app.dreams d on d.id = q.dream_id left join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(d.id::text) order by d.name, q.id";

async fn dreams(tables: &str) -> World {
    let world = application(tables, DREAMS).await;
    world.sql("insert into app.dreams (name, done, transcript) values ('a mill', true, 'A mill by the sea.'), ('b none', true, ''), ('c open', false, 'Not done yet.'), ('d long', true, repeat('word ', 50)), ('e later', true, 'Tomorrow night.')").await;
    world
}

async fn ask(world: &World, names: &str) {
    world.sql(&format!("insert into app.jobs (dream_id, priority) select id, 3 from app.dreams where name like any (array[{names}])")).await;
}

#[tokio::test]
async fn rows_that_ask_are_marked_and_answered_with_the_job_s_end() {
    let world = dreams(TABLES).await;
    // Whoever entered the set was worked already, asked or not.
    world.work().await;
    ask(&world, "'a%', 'b%', 'c%', 'd%', 'a%', 'e%'").await;
    world.sql("update app.jobs set scheduled_at = now() + interval '1 day' where dream_id = (select id from app.dreams where name like 'e%')").await;
    world
        .sql("insert into app.jobs (dream_id, priority) select id, 2147483647 from app.dreams where name like 'a%'")
        .await;
    world.work().await;

    assert_snapshot!(world.list(JOBS).await.join("\n"), @r#"
    a mill completed attempts=1 started ended | job completed r2 1 vectors
    a mill completed attempts=1 started ended | job completed r2 1 vectors
    b none completed attempts=0 started ended | job skipped r2 0 vectors
    c open pending attempts=0 | job 0 vectors
    d long failed attempts=1 the text has 50 tokens and must be one vector, but the model takes 20; set chunks.longer to "cut" or "mean", or chunk it started ended | job failed r2 0 vectors
    e later pending attempts=0 | job completed r1 1 vectors
    "#);
    // Nothing asks any more.
    world.work().await;
    assert_eq!(world.value::<i64>("select max(revision) from gristmill.embedding_jobs").await, 2);
}

#[tokio::test]
async fn the_other_shape_of_the_table_is_served_by_the_same_file() {
    let tables = TABLES
        .replace("started_at", "begun_at")
        .replace("completed_at", "ended_at")
        .replace(" scheduled_at timestamptz,", "");
    let world = dreams(&tables).await;
    ask(&world, "'a%'").await;
    world.work().await;
    let row = "select concat_ws(' ', status, attempts, begun_at is not null, ended_at >= begun_at) from app.jobs";
    assert_eq!(world.value::<String>(row).await, "completed 1 t t");
}

#[tokio::test]
async fn a_row_that_asks_again_while_its_job_is_in_hand_opens_a_new_revision() {
    let world = dreams(TABLES).await;
    world.work().await;
    ask(&world, "'a%'").await;
    // The application takes its row in a transaction of its own, so that it cannot be marked.
    let mut connection = world.database.connect().await;
    connection.execute("begin; select from app.jobs for update").await.unwrap();
    let worker = world.start().await;
    worker.idle().await;
    let job = "select concat_ws(' ', state, 'r' || revision) from gristmill.embedding_jobs j join app.dreams d on j.source_key = jsonb_build_array(d.id::text) where name like 'a%'";
    assert_eq!(world.value::<String>("select status from app.jobs").await, "pending");
    connection.execute("commit").await.unwrap();
    world.wait_for("select status = 'completed' from app.jobs").await;
    worker.idle().await;
    worker.stop().await;
    let ended: String = world.value(job).await;
    assert!(ended.starts_with("completed r"), "{ended}");
    let settled = ended.clone();
    world.work().await;
    assert_eq!(world.value::<String>(job).await, settled, "an answered row asks no more");
}

/// The source row may come a moment later; one that never comes must not leave its asker waiting for ever.
#[tokio::test]
async fn a_row_that_asks_for_nothing_that_is_there_waits_a_while_and_is_told() {
    let loose = TABLES.replace(" references app.dreams on delete cascade", "");
    let world = dreams(&loose).await;
    world.work().await;
    let ask = |id: u8| format!("insert into app.jobs (dream_id) values ('00000000-0000-0000-0000-00000000000{id}')");
    for id in 1..=2 {
        world.sql(&ask(id)).await;
    }
    let worker = world.start().await;
    let unmet = "select concat_ws(' ', right(source_key->>0, 1), state, 'r' || revision, error_kind, reason) from gristmill.embedding_jobs \
                 where source_key->>0 like '00000000%' order by 1";
    let asked = "select concat_ws(' ', right(dream_id::text, 1), status, error_message) from app.jobs order by id";
    world.wait_for("select count(*) = 2 from gristmill.embedding_jobs where state = 'waiting'").await;
    assert_snapshot!(world.list(unmet).await.join("\n"), @"
    1 waiting r1 the row that is asked for is not there, and may still come
    2 waiting r1 the row that is asked for is not there, and may still come
    ");
    assert_eq!(world.list(asked).await, ["1 pending", "2 pending"]);

    world
        .sql("insert into app.dreams (id, transcript) values ('00000000-0000-0000-0000-000000000002', 'A late dream.')")
        .await;
    world.wait_for("select status = 'completed' from app.jobs where id = 2").await;
    world.sql("update gristmill.embedding_jobs set run_at = now() where state = 'waiting'").await;
    world.wait_for("select status <> 'pending' from app.jobs where id = 1").await;
    // Whoever asks again for what is not there is told at once.
    world.sql(&ask(1)).await;
    world.wait_for("select count(*) = 2 from app.jobs where status = 'failed'").await;
    worker.idle().await;
    worker.stop().await;

    assert_snapshot!(world.list(asked).await.join("\n"), @"
    1 failed source row is gone
    2 completed
    1 failed source row is gone
    ");
    assert_snapshot!(world.list(unmet).await.join("\n"), @"
    1 cancelled r2 left source row is gone
    2 completed r2
    ");
}

#[tokio::test]
async fn what_cannot_be_the_key_of_a_row_holds_up_nobody_who_asks() {
    let numbered = TABLES
        .replace(" references app.dreams on delete cascade", "")
        .replace("id uuid primary key default gen_random_uuid()", "id int generated always as identity primary key")
        .replace("dream_id uuid", "dream_id bigint");
    let world = dreams(&numbered).await;
    world.sql("insert into app.jobs (dream_id) values (77), (77000000000)").await;
    world.work().await;
    let unmet =
        "select concat_ws(' ', source_key->>0, state) from gristmill.embedding_jobs where source_key->>0 like '77%'";
    assert_eq!(world.list(unmet).await, ["77 waiting"]);
}

#[tokio::test]
async fn a_condition_may_name_a_column_that_the_job_table_has_as_well() {
    let world = dreams(&TABLES.replace("priority int,", "priority int, done boolean,")).await;
    ask(&world, "'a%', 'c%'").await;

    world.work().await;

    let rows =
        "select concat_ws(' ', d.name, q.status) from app.jobs q join app.dreams d on d.id = q.dream_id order by 1";
    assert_eq!(world.list(rows).await, ["a mill completed", "c open pending"]);
}

#[tokio::test]
async fn what_does_not_fit_the_job_table_is_named() {
    let said = async |tables: &str, pipeline: &str| {
        let world = configured(World::new().await, pipeline);
        world.sql(tables).await;
        let world = reconnected(world).await;
        let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
        let misfits = resolved.refused.iter().flat_map(|(_, misfits)| misfits).filter(|misfit| !misfit.warning);
        misfits.map(|misfit| misfit.message.clone()).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(said(TABLES, DREAMS).await, "");
    assert_eq!(said(TABLES, &DREAMS.replace("app.jobs", "app.nowhere?")).await, "");
    assert_snapshot!(said(TABLES, &DREAMS.replace("app.jobs", "app.nowhere")).await, @"there is no table app.nowhere");
    assert_snapshot!(said(TABLES, &DREAMS.replace("skipped = \"completed\"", "skipped = \"skipped\"")).await, @"column status of app.jobs does not take the word `skipped`: constraint jobs_status_check ((status = ANY (ARRAY['pending'::text, 'processing'::text, 'completed'::text, 'failed'::text]))) refuses it");
    assert_snapshot!(said(TABLES, &DREAMS.replace("dream_id = \"{id}\" }\npriority", "dream = \"{nr}\" }\npriority")).await, @"table app.jobs has no column dream; it has id, dream_id, status, priority, attempts, error_message, scheduled_at, started_at, completed_at");
    assert_snapshot!(said(TABLES, &DREAMS.replace("\"priority\"", "\"urgency\"")).await, @"table app.jobs has no column urgency; it has id, dream_id, status, priority, attempts, error_message, scheduled_at, started_at, completed_at");
}

#[tokio::test]
async fn whoever_asks_for_a_row_that_cannot_be_read_hears_of_it_once() {
    let pipelines = DREAMS.replace(
        "text = \"{transcript}\"",
        "text = \"{transcript} {share}\"\nvalues = { share = \"12 / (length(name) - 3)\" }",
    );
    for tables in [
        TABLES.to_owned(),
        // Its own columns may refuse the answer; the word is taken all the same.
        TABLES.replace("error_message text", "error_message text check (error_message is null)"),
    ] {
        let world = application(&tables, &pipelines).await;
        world.sql("insert into app.dreams (name, transcript) values ('bad', 'A mill by the sea.')").await;
        ask(&world, "'bad'").await;
        world.work().await;

        let said = "select concat_ws(' ', q.status, j.state, j.error_kind) from app.jobs q, gristmill.embedding_jobs j";
        assert_eq!(world.list(said).await, ["failed failed constraint"]);
        assert_eq!(world.sweep(None).await, 0, "nobody asks any more");
    }
}

#[tokio::test]
async fn rows_that_ask_without_a_key_are_told_of() {
    let world = dreams(&TABLES.replace("dream_id uuid not null", "dream_id uuid")).await;
    assert!(!gristmill(&world, &["check"]).await.out.contains("have no key"));
    world.sql("insert into app.jobs (dream_id) values (null), (null); insert into app.jobs (dream_id, status) values (null, 'failed')").await;

    let said = gristmill(&world, &["check"]).await.out;

    assert!(said.contains("2 of the rows of app.jobs that ask have no key"), "{said}");
    world.work().await;
    assert_eq!(
        world.list("select distinct status from app.jobs where dream_id is null order by 1").await,
        ["failed", "pending"]
    );
}
