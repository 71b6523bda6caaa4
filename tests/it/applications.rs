//! Applications' own schemas: what we are asked to read and write, respected as it is, and named where it does not fit.

use gristmill::app;
use gristmill::db;
use insta::assert_snapshot;
use sqlx::{Connection as _, Executor as _};

use crate::world::World;

/// A model small enough to look at, and one text of at most 20 tokens.
const MODELS: &str = r#"
[models.tiny]
provider = "vendor"
name = "tiny"
dimensions = 8
longest = 20

[[prices]]
model = "tiny"
meter = "tokens"
usd = "0.00000002"
from = 2026-01-01
"#;

/// A world with an application's own tables and pipelines, registered while the tables are empty.
pub async fn application(schema: &str, pipelines: &str) -> World {
    let world = configured(World::new().await, pipelines);
    world.sql(schema).await;
    let world = reconnected(world).await;
    world.register().await;
    world
}

pub fn configured(mut world: World, pipelines: &str) -> World {
    let ours = world.toml.find("[pipelines.documents]").expect("the pipelines come last");
    world.toml.truncate(ours);
    world.toml.push_str(MODELS);
    world.toml.push_str(pipelines);
    world
}

/// Sessions are pinned to the schema in which pgvector was when they were opened.
pub async fn reconnected(mut world: World) -> World {
    world.pool = db::connect(&world.config().database).await.expect("the database is there");
    world
}

pub const NOTES: &str = r#"
[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "backfill"
[pipelines.notes.source]
table = "app.notes"
key = ["id"]
text = "{body}"
[pipelines.notes.chunks]
tokens = 12
overlap = 0
[pipelines.notes.target]
table = "app.note_chunks"
parent = { note_id = "{id}" }
columns = { nth = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}" }
"#;

pub const NOTE_TABLES: &str = "create schema app; create table app.notes (id bigint generated always as identity primary key, body text); \
    create table app.note_chunks (note_id bigint not null, nth int not null, body text not null, embedding vector(8) not null);";

/// Each state of jobs with its key and trouble.
async fn keys(world: &World) -> String {
    let query = "select concat_ws(' ', source_key, state, error_kind) from gristmill.embedding_jobs order by pipeline, source_key";
    world.list(query).await.join("\n")
}

#[tokio::test]
async fn pgvector_may_live_in_a_schema_of_extensions() {
    let world = World::new().await;
    world
        .sql("drop extension vector cascade; create schema extensions; create extension vector schema extensions")
        .await;
    let world = configured(world, NOTES);
    world.sql(&NOTE_TABLES.replace("vector(8)", "extensions.vector(8)")).await;
    let world = reconnected(world).await;
    world.register().await;
    world.install_triggers().await;
    world.sql("insert into app.notes (body) values ('The mill grinds.')").await;

    world.work().await;

    let chunks = "select concat_ws(' ', note_id, nth, body, extensions.vector_dims(embedding)) from app.note_chunks";
    assert_eq!(world.list(chunks).await, ["1 0 The mill grinds. 8"]);
    assert_eq!(keys(&world).await, r#"["1"] completed"#);
}

#[tokio::test]
async fn half_vectors_and_vectors_without_dimensions_are_filled_with_the_model_s() {
    let both = format!(
        "{NOTES}{}",
        NOTES.replace("pipelines.notes", "pipelines.loose").replace("app.note_chunks", "app.loose_chunks")
    );
    let world = application(
        &format!(
            "{}; create table app.loose_chunks (note_id bigint, nth int, body text, embedding vector)",
            NOTE_TABLES.replace("vector(8)", "halfvec(8)")
        ),
        &both,
    )
    .await;
    world.sql("insert into app.notes (body) values ('The mill grinds.')").await;

    world.work().await;
    world.work().await;

    assert_eq!(
        world.value::<i64>("select count(*) from app.note_chunks where l2_norm(embedding) between 0.99 and 1.01").await,
        1
    );
    assert_eq!(world.value::<i64>("select count(*) from app.loose_chunks where vector_dims(embedding) = 8").await, 1);
    let near = "select embedding::vector <-> (select embedding from app.loose_chunks) < 0.01 from app.note_chunks";
    assert!(world.value::<bool>(near).await);
}

/// A row that asks for itself, whose vector is its own.
const MESSAGES: &str = r#"
[pipelines.messages]
kind = "embed"
model = "tiny"
existing = "backfill"
[pipelines.messages.source]
table = "app.messages"
key = ["id"]
needs = "embedding is null"
text = "{content}"
[pipelines.messages.chunks]
whole = true
[pipelines.messages.target]
columns = { embedding = "{chunk.vector}" }
"#;

const MESSAGE_TABLE: &str = "create schema app; create table app.messages (id bigint generated always as identity primary key, \
    content text, seen bool default false, embedding vector(8));";

async fn messages(world: &World) -> String {
    world
        .list(
            "select concat_ws(' ', m.id, case when embedding is null then 'null' else 'vector' end, j.state, 'r' || j.revision, j.error_kind) \
             from app.messages m left join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(m.id::text) order by m.id",
        )
        .await
        .join("\n")
}

#[tokio::test]
async fn a_row_that_asks_for_itself_is_worked_when_it_asks() {
    let world = application(MESSAGE_TABLE, MESSAGES).await;
    let long = "word ".repeat(30);
    world
        .sql(&format!(
            "insert into app.messages (content, embedding) values ('Hello.', null), ('', null), ('{long}', null), \
                 ('By somebody else.', array_fill(1, array[8])::vector)"
        ))
        .await;

    world.work().await;
    let first = "
    1 vector completed r1
    2 null skipped r1 skipped
    3 null failed r1 refused
    4 vector
    ";
    assert_snapshot!(messages(&world).await, @"
    1 vector completed r1
    2 null skipped r1 skipped
    3 null failed r1 refused
    4 vector
    ");

    // A need that stands after a failure or a skip asks no more, nor does a write beside the content.
    world.sql("update app.messages set seen = true").await;
    world.work().await;
    assert_eq!(messages(&world).await.trim(), first.trim().replace("\n    ", "\n"));

    // It comes back, or the content changes.
    world.sql("update app.messages set embedding = null where id in (1, 4); update app.messages set content = 'Short.' where id = 3").await;
    world.sql("update app.messages set content = 'Something.' where id = 2").await;
    world.work().await;
    assert_snapshot!(messages(&world).await, @"
    1 vector completed r2
    2 vector completed r2
    3 vector completed r2
    4 vector completed r1
    ");
    assert_eq!(world.sweep(None).await, 0);
}

#[tokio::test]
async fn triggers_announce_needs_as_well() {
    let world = application(MESSAGE_TABLE, MESSAGES).await;
    world.install_triggers().await;
    let mut connection = world.database.connect().await;
    connection.execute("insert into app.messages (content, embedding) values ('Hello.', null), ('Known.', array_fill(1, array[8])::vector)").await.expect("it holds");
    assert_snapshot!(messages(&world).await, @"
    1 null pending r1
    2 vector
    ");
    world.work().await;

    // Content opens the row even without its need; the need alone does, too; the rest does not.
    connection.execute("update app.messages set content = 'Other.' where id = 2").await.expect("it holds");
    connection.execute("update app.messages set embedding = null where id = 1").await.expect("it holds");
    connection.execute("update app.messages set seen = true").await.expect("it holds");
    assert_snapshot!(messages(&world).await, @"
    1 null pending r2
    2 vector pending r1
    ");
    world.work().await;
    assert_snapshot!(messages(&world).await, @"
    1 vector completed r2
    2 vector completed r1
    ");
}

#[tokio::test]
async fn a_row_that_the_application_served_itself_within_the_grace_is_done_unpaid() {
    let pipeline = MESSAGES.replace("needs = \"embedding is null\"", "needs = \"not seen\"\ngrace = \"1h\"");
    for triggers in [false, true] {
        let world = application(MESSAGE_TABLE, &pipeline).await;
        if triggers {
            world.install_triggers().await;
        }
        world.sql("insert into app.messages (content) values ('Served.'), ('Half served.'), ('Not served.'), ('Served and edited.'), ('Asked for by name.')").await;
        world.sweep(None).await;
        world.sql("update app.messages set seen = true, embedding = array_fill(1, array[8])::vector where id in (1, 4, 5)").await;
        world.sql("update app.messages set seen = true where id = 2; select gristmill.enqueue('messages', 5)").await;
        // The grace is over.
        world.sql("update gristmill.embedding_jobs set state = 'pending', run_at = now()").await;
        world.work().await;
        let ones = "select concat_ws(' ', m.id, embedding = array_fill(1, array[8])::vector, (select count(*) from gristmill.usage_events where job_id = j.id)) \
             from app.messages m join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(m.id::text) order by m.id";
        assert_eq!(world.list(ones).await, ["1 t 0", "2 f 1", "3 f 1", "4 t 0", "5 f 1"], "triggers: {triggers}");

        // It asks again, and this time nobody else does it; and a change of content is paid for.
        world.sql("update app.messages set seen = false where id = 1; update app.messages set content = 'Edited.' where id = 4").await;
        world.sweep(None).await;
        world
            .sql("update gristmill.embedding_jobs set state = 'pending', run_at = now() where state = 'waiting'")
            .await;
        world.work().await;
        assert_eq!(world.list(ones).await[3], if triggers { "4 f 1" } else { "4 t 0" });
        assert_eq!(world.states().await, "5 completed");
    }
}

#[tokio::test]
async fn a_need_that_our_success_does_not_answer_does_not_loop() {
    let world = application(MESSAGE_TABLE, &MESSAGES.replace("embedding is null", "not seen")).await;
    world.sql("insert into app.messages (content) values ('Hello.')").await;
    world.work().await;
    assert_snapshot!(messages(&world).await, @"1 vector completed r1");

    assert_eq!(world.sweep(None).await, 0);
    world.sql("update app.messages set content = 'Other.'").await;
    assert_eq!(world.sweep(None).await, 1);
    world.work().await;
    assert_snapshot!(messages(&world).await, @"1 vector completed r2");
    assert_eq!(world.sweep(None).await, 0);
}

#[tokio::test]
async fn rows_with_keys_of_several_columns_are_found_in_slices_of_any_size() {
    let pipeline = NOTES
        .replace(r#"key = ["id"]"#, r#"key = ["site", "number"]"#)
        .replace(r#"parent = { note_id = "{id}" }"#, r#"parent = { note_site = "{site}", note_number = "{number}" }"#);
    let world = configured(World::new().await, &pipeline).change("sweep = \"1h\"", "sweep = \"1h\"\nsweep_rows = 3");
    world
        .sql(
            "create schema app; create table app.notes (site text, number int, body text, primary key (number, site)); \
             create table app.note_chunks (note_site text, note_number int, nth int, body text, embedding vector(8)); \
             insert into app.notes select site, number, site || number from unnest(array['a,b', 'north', 'süd \"x\"']) site, generate_series(9, 12) number",
        )
        .await;
    world.register().await;
    while db::pipelines::accept_rows(&world.pool, "notes", 5).await.expect("it opens") > 0 {}
    world.work().await;
    world.sql("insert into app.notes select 'west', number, 'west' || number from generate_series(1, 7) number").await;
    world.sql("delete from app.notes where number = 10; update app.notes set body = 'Changed.' where number = 11 and site = 'north'").await;
    world.sql(r#"select gristmill.enqueue('notes', '["north", 11]'::jsonb)"#).await;
    world.work().await;

    let chunks =
        "select concat_ws(' ', note_site, note_number, body) from app.note_chunks order by note_site, note_number";
    assert_snapshot!(world.list(chunks).await.join("\n"), @r#"
    a,b 9 a,b9
    a,b 11 a,b11
    a,b 12 a,b12
    north 9 north9
    north 11 Changed.
    north 12 north12
    süd "x" 9 süd "x"9
    süd "x" 11 süd "x"11
    süd "x" 12 süd "x"12
    west 1 west1
    west 2 west2
    west 3 west3
    west 4 west4
    west 5 west5
    west 6 west6
    west 7 west7
    "#);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.embedding_jobs where state = 'cancelled'").await, 3);
}

#[tokio::test]
async fn conditions_may_use_columns_that_are_named_like_ours() {
    let pipeline = NOTES.replace(
        "text = \"{body}\"",
        "text = \"{body}\"\ntenant = \"coalesce(tenant, 'nobody')\"\nchanged_at = \"created_at\"\n\
         when = \"state = 'published' and priority > 0 and created_at < 'infinity' and chunks is null and reason is null\"",
    );
    let world = application(
        "create schema app; create table app.notes (id int primary key, body text, state text, priority int, tenant text, chunks int, reason text, \
             created_at timestamptz default now()); \
         create table app.note_chunks (note_id int, nth int, body text, embedding vector(8))",
        &pipeline,
    )
    .await;
    world.install_triggers().await;
    world.sql("insert into app.notes values (1, 'One.', 'published', 1, 'a'), (2, 'Two.', 'draft', 1, null), (3, 'Three.', 'published', 0, null)").await;
    world.work().await;
    assert_eq!(keys(&world).await, r#"["1"] completed"#);

    world.sql("drop trigger gristmill_notes_update on app.notes; update app.notes set state = 'published', priority = 2; update app.notes set state = 'draft' where id = 1").await;
    world.work().await;
    assert_snapshot!(keys(&world).await, @r#"
    ["1"] cancelled left
    ["2"] completed
    ["3"] completed
    "#);
    assert_eq!(world.list("select body from app.note_chunks order by 1").await, ["Three.", "Two."]);
    assert_eq!(world.list("select distinct tenant from gristmill.embedding_jobs order by 1").await, ["a", "nobody"]);
    let mut connection = world.pool.acquire().await.expect("it is there");
    let (findings, _) =
        db::app::verify(&mut connection, &world.plans().await[0], None, 100).await.expect("it verifies");
    assert!(findings.is_empty(), "{findings:?}");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_holds_up_nobody_else_s() {
    let pipeline =
        NOTES.replace("text = \"{body}\"", "text = \"{body} {size}\"\nvalues = { size = \"(info->>'size')::int\" }");
    let world = configured(World::new().await, &pipeline);
    world
        .sql(&format!(
            "{NOTE_TABLES} alter table app.notes add info jsonb; insert into app.notes (body, info) \
             select 'Note ' || n, jsonb_build_object('size', case when n in (3, 11) then 'large' else '5' end) from generate_series(1, 12) n"
        ))
        .await;
    world.register().await;
    while db::pipelines::accept_rows(&world.pool, "notes", 100).await.expect("it opens") > 0 {}
    world.sql("insert into app.notes (body, info) values ('Note 13', '{\"size\": \"huge\"}'), ('Note 14', '{}')").await;

    world.work().await;
    world.work().await;

    let bad = "select concat_ws(' ', source_key, state, 'r' || revision, error_kind, reason) from gristmill.embedding_jobs where state <> 'completed' order by id";
    assert_snapshot!(world.list(bad).await.join("\n"), @r#"
    ["11"] failed r1 constraint the row cannot be read: a value does not fit its column (22P02)
    ["13"] failed r1 constraint the row cannot be read: a value does not fit its column (22P02)
    ["3"] failed r1 constraint the row cannot be read: a value does not fit its column (22P02)
    "#);
    assert_eq!(world.value::<i64>("select count(distinct note_id) from app.note_chunks").await, 11);
}

#[tokio::test]
async fn triggers_of_another_configuration_do_not_count_as_installed() {
    let world = application(NOTE_TABLES, NOTES).await;
    let heard = async |world: &World| {
        let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
        resolved.warnings.iter().map(|warning| warning.message.clone()).collect::<Vec<_>>().join("\n")
    };
    world.install_triggers().await;
    assert_eq!(heard(&world).await, "");

    let world = world.change("text = \"{body}\"", "text = \"{body}\"\nwhen = \"body <> ''\"");
    assert_snapshot!(heard(&world).await, @"changes of content are seen only by triggers: set source.changed_at, or run `gristmill triggers install`");
    world.install_triggers().await;
    assert_eq!(heard(&world).await, "");
}

#[tokio::test]
async fn the_status_is_told_in_the_application_s_own_words() {
    let status = r#"
[pipelines.notes.status]
column = "progress"
words = { pending = "new", processing = "busy", completed = "done", failed = "broken", skipped = "" }
columns = { "trouble?" = "{job.error}", "nowhere?" = "{job.finished}" }
"#;
    let world = application(
        "create schema app; create type app.progress as enum ('new', 'busy', 'done', 'broken'); \
         create table app.notes (id int primary key, body text, progress app.progress not null default 'new', trouble text); \
         create table app.note_chunks (note_id int, nth int check (nth < 2), body text, embedding vector(8))",
        &format!("{NOTES}{status}"),
    )
    .await;
    let long = "Paragraph of some words.\n\n".repeat(20);
    world.sql(&format!("insert into app.notes values (1, 'One.'), (2, ''), (3, '{long}')")).await;
    world.work().await;

    assert_snapshot!(world.list("select concat_ws(' | ', id, progress, trouble) from app.notes order by id").await.join("\n"), @"
    1 | done
    2 | new
    3 | broken | the database refused the write: constraint note_chunks_nth_check of table note_chunks refused the row
    ");
}

#[tokio::test]
async fn a_value_goes_to_the_column_that_is_there_or_into_jsonb() {
    let pipeline = NOTES
        .replace(
            r#"columns = { nth = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}" }"#,
            r#"columns = { nth = "{chunk.index}", "body|text" = "{chunk.text}", embedding = "{chunk.vector}", "user_id?" = "{owner}", "page|meta.page" = "{chunk.page}", "size|meta.size" = "{chunk.tokens}", meta = { title = "{title}", owner = "{owner}" } }"#,
        )
        .replace("[pipelines.notes.chunks]", "[pipelines.notes.write]\ninfo = { chunks = \"{job.chunks}\", pages = \"{job.pages}\" }\n[pipelines.notes.chunks]");
    let world = application(
        "create schema app; create table app.notes (id int primary key, title text, owner int, body text, info jsonb); \
         create table app.note_chunks (note_id int, nth int, text text, embedding vector(8), meta jsonb not null default '{}')",
        &pipeline,
    )
    .await;
    world
        .sql(
            r#"insert into app.notes values (1, 'A "title"', 7, 'One.', '{"theirs": [1], "chunks": 99, "pages": 3}'), (2, null, 8, 'Two.', null), (3, 'C', null, 'Three.', '[1]')"#,
        )
        .await;
    world.work().await;

    assert_snapshot!(world.list("select concat_ws(' ', note_id, nth, text, meta) from app.note_chunks order by note_id").await.join("\n"), @r#"
    1 0 One. {"size": 2, "owner": 7, "title": "A \"title\""}
    2 0 Two. {"size": 2, "owner": 8}
    3 0 Three. {"size": 2, "title": "C"}
    "#);
    assert_snapshot!(world.list("select concat_ws(' ', id, info) from app.notes order by id").await.join("\n"), @r#"
    1 {"chunks": 1, "theirs": [1]}
    2 {"chunks": 1}
    3 [1]
    "#);

    // Metadata of a chunk that stays is brought up to date, and what others put there is kept.
    world.sql(r#"update app.note_chunks set meta = meta || '{"theirs": true}'; update app.notes set title = 'B' where id = 1; select gristmill.enqueue('notes', 1)"#).await;
    world.work().await;
    let meta = world.list("select meta::text from app.note_chunks where note_id = 1").await.join("\n");
    assert_snapshot!(meta, @r#"{"size": 2, "owner": 7, "title": "B", "theirs": true}"#);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.provider_calls").await, 1);
}

#[tokio::test]
async fn chunks_of_another_version_are_not_ours_to_touch() {
    let pipeline = NOTES
        .replace(r#"parent = { note_id = "{id}" }"#, "parent = { note_id = \"{id}\" }\nversion = { made_by = \"v2\" }");
    let world = application(
        "create schema app; create table app.notes (id int primary key, body text); \
         create table app.note_chunks (note_id int, nth int, body text, embedding vector(8), made_by text, unique (note_id, made_by, nth)); \
         insert into app.note_chunks values (1, 0, 'Theirs.', null, 'v1')",
        &pipeline,
    )
    .await;
    let chunks = "select concat_ws(' ', note_id, nth, body, made_by) from app.note_chunks order by made_by, note_id";
    world.sql("insert into app.notes values (1, 'Ours.')").await;
    world.work().await;
    assert_eq!(world.list(chunks).await, ["1 0 Theirs. v1", "1 0 Ours. v2"]);
    world.sql("update app.notes set body = 'Ours again.'; select gristmill.enqueue('notes', 1)").await;
    world.work().await;
    assert_eq!(world.list(chunks).await, ["1 0 Theirs. v1", "1 0 Ours again. v2"]);
    world.sql("delete from app.notes").await;
    world.work().await;
    assert_eq!(world.list(chunks).await, ["1 0 Theirs. v1"]);
}

/// Edits a text of ten paragraphs at its front, its middle and its end; what stays keeps its row and is not paid again.
async fn edits(target: &str) {
    let world = application(
        &format!("create schema app; create table app.notes (id int primary key, body text); {target}"),
        NOTES,
    )
    .await;
    let paragraphs = |numbers: &[u32]| {
        let lines: Vec<String> = numbers.iter().map(|n| format!("Paragraph number {n} speaks of grain.")).collect();
        lines.join("\n\n")
    };
    let edit = async |numbers: &[u32]| {
        world
            .sql(&format!(
                "insert into app.notes values (1, '{0}') on conflict (id) do update set body = '{0}'",
                paragraphs(numbers)
            ))
            .await;
        world.sql("select gristmill.enqueue('notes', 1)").await;
        world.work().await;
        assert_eq!(keys(&world).await, r#"["1"] completed"#);
        let indexes = world.list("select nth::text from app.note_chunks order by note_chunks.nth").await;
        assert_eq!(indexes, (0..numbers.len()).map(|nth| nth.to_string()).collect::<Vec<_>>());
        world.list("select regexp_replace(body, '\\D', '', 'g') || ' ' || id from app.note_chunks order by nth").await
    };
    let paid = "select coalesce(sum(inputs), 0)::bigint from gristmill.provider_calls";
    let before = edit(&[1, 2, 3, 4, 5, 6, 7, 8, 9]).await;
    assert_eq!(world.value::<i64>(paid).await, 9);

    let after = edit(&[10, 1, 2, 3, 4, 5, 6, 7, 8, 9]).await;
    assert_eq!(after[1..], before);
    assert_eq!(world.value::<i64>(paid).await, 10);

    let swapped = edit(&[9, 10, 1, 2, 3, 4, 6, 7, 11]).await;
    let mut kept = swapped[..8].to_vec();
    kept.sort_unstable();
    let mut wanted: Vec<String> =
        after.iter().filter(|row| !row.starts_with("5 ") && !row.starts_with("8 ")).cloned().collect();
    wanted.sort_unstable();
    assert_eq!(kept, wanted);
    assert_eq!(world.value::<i64>(paid).await, 11);
}

#[tokio::test]
async fn chunks_that_move_keep_their_rows_without_a_unique_key() {
    edits("create table app.note_chunks (id uuid default gen_random_uuid(), note_id int, nth int, body text, embedding vector(8))").await;
}

#[tokio::test]
async fn chunks_that_move_keep_their_rows_under_a_unique_key() {
    edits(
        "create table app.note_chunks (id uuid primary key default gen_random_uuid(), note_id int references app.notes, nth int check (nth >= 0), \
             body text, embedding vector(8), unique (note_id, nth))",
    )
    .await;
}

#[tokio::test]
async fn chunks_that_move_keep_their_rows_where_indexes_are_small() {
    edits("create table app.note_chunks (id bigserial, note_id int, nth smallint, body text, embedding vector(8), unique (note_id, nth))").await;
}

#[tokio::test]
async fn chunks_that_move_keep_their_rows_in_partitions() {
    edits(
        "create table app.note_chunks (id uuid default gen_random_uuid(), note_id int, nth int, body text, embedding vector(8)) partition by hash (nth); \
         create table app.chunks_0 partition of app.note_chunks for values with (modulus 3, remainder 0); \
         create table app.chunks_1 partition of app.note_chunks for values with (modulus 3, remainder 1); \
         create table app.chunks_2 partition of app.note_chunks for values with (modulus 3, remainder 2)",
    )
    .await;
}

#[tokio::test]
async fn names_are_taken_as_they_are_written() {
    let pipeline = r#"
[pipelines.Ödd-name]
kind = "embed"
"#;
    assert!(std::panic::catch_unwind(|| configured_only(pipeline)).is_err(), "a pipeline's name is plain");

    let world = application(
        "create schema \"App\"; create table \"App\".\"Order Items\" (\"Id No\" int primary key, \"select\" text); \
         create table \"App\".\"order\" (\"group\" int, \"Nth\" int, \"from\" text, \"Vec tor\" vector(8), unique (\"group\", \"Nth\"))",
        r#"
[pipelines.odd]
kind = "embed"
model = "tiny"
existing = "backfill"
source = { table = "App.Order Items", key = ["Id No"], text = "{select}" }
chunks = { tokens = 12, overlap = 0 }
target = { table = "App.order", parent = { group = "{Id No}" }, columns = { Nth = "{chunk.index}", from = "{chunk.text}", "Vec tor" = "{chunk.vector}" } }
"#,
    )
    .await;
    world.install_triggers().await;
    world.sql("insert into \"App\".\"Order Items\" values (1, 'One.')").await;
    world.work().await;
    world.sql("update \"App\".\"Order Items\" set \"select\" = 'Two.'").await;
    world.work().await;
    assert_eq!(world.list("select \"from\" from \"App\".\"order\"").await, ["Two."]);
}

fn configured_only(pipelines: &str) {
    let config = gristmill::config::Config::read("workers.toml", pipelines, &|_| None);
    assert!(config.is_ok());
}

/// What does not fit, each with its place in the configuration.
pub async fn misfits(world: &World) -> String {
    let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
    let said = resolved.refused.iter().flat_map(|(_, misfits)| misfits).filter(|misfit| !misfit.warning);
    said.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

pub async fn misfit(schema: &str, pipelines: &str) -> String {
    let world = configured(World::new().await, pipelines);
    world.sql(schema).await;
    misfits(&reconnected(world).await).await
}

#[tokio::test]
async fn what_does_not_fit_is_named_with_its_place() {
    let status = "[pipelines.notes.status]\ncolumn = \"state\"\nwords = { processing = \"busy\", skipped = \"\" }\n";
    let enums =
        "create type progress as enum ('pending', 'completed', 'failed'); alter table app.notes add state progress";
    let without_pgvector = "drop extension vector cascade; create schema app; create table app.notes (id int primary key, body text); \
        create table app.note_chunks (note_id int, nth int, body text, embedding real[])";
    let more = |keys: &str| NOTES.replace("key = [\"id\"]", &format!("key = [\"id\"]\n{keys}"));
    let checks = "alter table app.notes add state text check (state in ('pending', 'busy', 'completed')), \
        add check (state <> 'busy' or body <> '')";
    let domain = "create domain app.progress as text check (value in ('pending', 'busy', 'failed')); alter table app.notes add state app.progress";
    let numbers = "alter table app.notes add made int, add changed bigint";
    let cases: [(&str, String, String); 17] = [
        ("no source", String::new(), NOTES.to_owned()),
        ("no target", NOTE_TABLES.replace("app.note_chunks", "app.other"), NOTES.to_owned()),
        ("no columns", NOTE_TABLES.to_owned(), NOTES.replace("{body}", "{bodi}").replace("nth =", "n =")),
        ("other dimensions", NOTE_TABLES.replace("vector(8)", "vector(9)"), NOTES.to_owned()),
        ("no vector", NOTE_TABLES.replace("embedding vector(8)", "embedding real[]"), NOTES.to_owned()),
        ("more columns", NOTE_TABLES.replace("nth int", "owner int not null, nth int"), NOTES.to_owned()),
        ("a typo in a condition", NOTE_TABLES.to_owned(), more("when = \"delete_at is null\"")),
        ("no changed_at", NOTE_TABLES.to_owned(), more("changed_at = \"updated_at\"\norder = \"created\"")),
        (
            "times that are none",
            format!("{NOTE_TABLES}; {numbers}"),
            more("changed_at = \"changed\"\norder = \"made\""),
        ),
        (
            "a value that is called like a column",
            NOTE_TABLES.to_owned(),
            more("when = \"body <> ''\"\nvalues = { body = \"upper(source.body)\" }"),
        ),
        (
            "a key that may be null",
            format!(
                "{NOTE_TABLES}; alter table app.notes drop constraint notes_pkey, alter id drop identity, alter id drop not null"
            ),
            NOTES.to_owned(),
        ),
        (
            "a short column",
            format!("{NOTE_TABLES}; alter table app.notes add state varchar(8)"),
            format!("{NOTES}{status}"),
        ),
        ("a word", format!("{NOTE_TABLES}; {enums}"), format!("{NOTES}{status}")),
        ("a check", format!("{NOTE_TABLES}; {checks}"), format!("{NOTES}{status}")),
        ("a domain", format!("{NOTE_TABLES}; {domain}"), format!("{NOTES}{status}")),
        ("no pgvector", without_pgvector.to_owned(), NOTES.to_owned()),
        ("nothing", NOTE_TABLES.to_owned(), NOTES.to_owned()),
    ];
    let mut said = Vec::new();
    for (case, schema, pipelines) in cases {
        said.push(format!("# {case}\n{}", misfit(&schema, &pipelines).await));
    }
    assert_snapshot!(said.join("\n"), @r#"
    # no source
    workers.toml:53: pipelines.notes.source: there is no table app.notes
    # no target
    workers.toml:60: pipelines.notes.target: there is no table app.note_chunks
    # no columns
    workers.toml:56: pipelines.notes.source.text: {bodi} is neither a column of app.notes nor one of source.values; it has id, body
    workers.toml:63: pipelines.notes.target.columns.n: table app.note_chunks has no column n; it has note_id, nth, body, embedding
    workers.toml:60: pipelines.notes.target: target.columns must map {chunk.index} to a column: chunks are told apart by it
    # other dimensions
    workers.toml:60: pipelines.notes.target: column embedding holds 9 dimensions; tiny has 8
    # no vector
    workers.toml:60: pipelines.notes.target: column embedding is _float4; vectors go into vector or halfvec
    # more columns
    workers.toml:60: pipelines.notes.target: column owner of app.note_chunks must have a value, and target.columns gives it none; a default may
    # a typo in a condition
    workers.toml:56: pipelines.notes.source.when: Postgres says: column "delete_at" does not exist
    # no changed_at
    workers.toml:56: pipelines.notes.source.changed_at: table app.notes has no column updated_at; it has id, body
    workers.toml:57: pipelines.notes.source.order: table app.notes has no column created; it has id, body
    # times that are none
    workers.toml:56: pipelines.notes.source.changed_at: column changed of app.notes is no time, and has to be one
    workers.toml:57: pipelines.notes.source.order: column made of app.notes is no time, and has to be one
    # a value that is called like a column
    workers.toml:56: pipelines.notes.source.when: Postgres says: column reference "body" is ambiguous
    # a key that may be null
    workers.toml:55: pipelines.notes.source.key: column id of app.notes may be null, and such a row has no key
        to mend it: alter table "app"."notes" alter column "id" set not null;
    workers.toml:55: pipelines.notes.source.key: no unique index of app.notes holds nothing but id (a partial one does not count): two rows of one key would get each other's vectors; name the primary key, or make the key unique
        to mend it: alter table "app"."notes" add unique ("id");
    # a short column
    workers.toml:64: pipelines.notes.status: column state of app.notes does not take the word `completed`: it holds 8 characters
    # a word
    workers.toml:64: pipelines.notes.status: type progress has no word `busy`; it has pending, completed, failed
        to mend it: alter type "public"."progress" add value 'busy';
    # a check
    workers.toml:64: pipelines.notes.status: column state of app.notes does not take the word `failed`: constraint notes_state_check ((state = ANY (ARRAY['pending'::text, 'busy'::text, 'completed'::text]))) refuses it
    # a domain
    workers.toml:64: pipelines.notes.status: column state of app.notes does not take the word `completed`: constraint progress_check of type progress refuses it
    # no pgvector
    workers.toml:60: pipelines.notes.target: this database has no pgvector
        to mend it: create extension vector;
    # nothing
    "#);
}

/// Roles are shared by all databases of the server: made once, never dropped.
pub const WORKER: &str = "do $$ begin create role gristmill_test_worker; exception when duplicate_object or unique_violation then null; end $$; ";

/// The same world, seen by a role that is neither superuser nor owner of anything.
pub async fn as_worker(world: World) -> World {
    as_role(world, "gristmill_test_worker").await
}

pub async fn as_role(mut world: World, role: &str) -> World {
    world.toml = world.toml_as(role);
    reconnected(world).await
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_with_the_statement_that_gives_it() {
    let world = configured(World::new().await, NOTES);
    world.sql(&format!("{WORKER}{NOTE_TABLES}")).await;
    let owner = world.pool.clone();
    let give = async |statement: &str| {
        owner.execute(sqlx::AssertSqlSafe(statement.to_owned())).await.expect("it may");
    };
    give("grant usage on schema gristmill to gristmill_test_worker; ").await;
    let world = as_worker(world).await;

    let mut said = vec![misfits(&world).await];
    give("grant usage on schema app to gristmill_test_worker").await;
    give("grant select on app.notes to gristmill_test_worker").await;
    give("grant select, insert, update on app.note_chunks to gristmill_test_worker").await;
    said.push(misfits(&world).await);
    give("grant update (id) on app.notes to gristmill_test_worker").await;
    give("grant delete on app.note_chunks to gristmill_test_worker").await;
    said.push(misfits(&world).await);
    give("alter table app.notes enable row level security").await;
    said.push(misfits(&world).await);
    assert_snapshot!(said.join("\n---\n"), @r#"
    workers.toml:53: pipelines.notes.source: this role may not use schema app
        to mend it: grant usage on schema "app" to "gristmill_test_worker";
    workers.toml:53: pipelines.notes.source: this role may not select app.notes
        to mend it: grant select on "app"."notes" to "gristmill_test_worker";
    workers.toml:60: pipelines.notes.target: this role may not select, insert, update, delete app.note_chunks
        to mend it: grant select, insert, update, delete on "app"."note_chunks" to "gristmill_test_worker";
    workers.toml:53: pipelines.notes.source: this role may not lock rows of app.notes
        to mend it: grant update ("id") on "app"."notes" to "gristmill_test_worker";
    ---
    workers.toml:60: pipelines.notes.target: this role may not delete app.note_chunks
        to mend it: grant delete on "app"."note_chunks" to "gristmill_test_worker";
    workers.toml:53: pipelines.notes.source: this role may not lock rows of app.notes
        to mend it: grant update ("id") on "app"."notes" to "gristmill_test_worker";
    ---

    ---
    workers.toml:53: pipelines.notes.source: row security of app.notes hides rows from this role
        to mend it: alter role "gristmill_test_worker" bypassrls;
    "#);
}

/// What a worker's role needs, and more.
const GRANTS: &str = "
grant usage on schema gristmill to gristmill_test_worker;
grant select, insert, update, delete on all tables in schema gristmill to gristmill_test_worker;
grant execute on all functions in schema gristmill to gristmill_test_worker;
grant usage on schema app to gristmill_test_worker;
grant select, update on app.notes to gristmill_test_worker;
grant select, insert, update, delete on app.note_chunks to gristmill_test_worker;
";

#[tokio::test]
async fn a_worker_needs_no_more_than_a_few_grants() {
    let world = configured(World::new().await, NOTES);
    world.sql(&format!("{WORKER}{NOTE_TABLES}{GRANTS}")).await;
    let owner = world.pool.clone();
    let world = as_worker(world).await;
    app::check_schema(&world.pool).await.expect("it may look");
    assert_eq!(world.value::<String>("select current_user::text").await, "gristmill_test_worker");
    world.register().await;
    owner.execute("insert into app.notes (body) values ('One.'), (''), ('Three.')").await.expect("it holds");

    world.work().await;
    owner
        .execute("update app.notes set body = 'Again.' where id = 3; delete from app.notes where id = 1")
        .await
        .expect("it holds");
    owner.execute("select gristmill.enqueue('notes', 3)").await.expect("it holds");
    world.work().await;

    assert_eq!(keys(&world).await, "[\"1\"] cancelled left\n[\"2\"] skipped skipped\n[\"3\"] completed");
    assert_eq!(world.list("select body from app.note_chunks").await, ["Again."]);
    let mut plain = sqlx::PgConnection::connect(&world.database.url).await.expect("it is there");
    let usage: i64 = sqlx::query_scalar("select count(*) from gristmill.usage_events")
        .fetch_one(&mut plain)
        .await
        .expect("it counts");
    assert_eq!(usage, 3);
}
