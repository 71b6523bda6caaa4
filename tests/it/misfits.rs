//! What every job would fail by, or be paid for again and again, is named before the first claim.

use gristmill::app;
use insta::assert_snapshot;

use crate::applications::{NOTE_TABLES, NOTES, application, configured, misfit, reconnected};
use crate::cli::gristmill;
use crate::world::World;

/// A row that has its vector on itself, and its own status.
const NOTE: &str = "create schema app; create table app.notes (id int primary key, title text, body text, state text, done timestamptz, \
    words int, meta jsonb, emb vector(8))";

fn note(source: &str) -> String {
    format!(
        r#"
[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "backfill"
chunks = {{ whole = true }}
target = {{ columns = {{ emb = "{{chunk.vector}}" }} }}
write = {{ words = "{{job.words}}", meta = {{ chunks = "{{job.chunks}}" }} }}
status = {{ column = "state", words = {{ skipped = "" }}, columns = {{ done = "{{job.finished}}" }} }}
[pipelines.notes.source]
table = "app.notes"
key = ["id"]
text = "{{body}}"
{source}
"#
    )
}

#[tokio::test]
async fn a_set_that_depends_on_what_the_pipeline_writes_is_refused() {
    let refused = [
        "when = \"emb is null\"",
        "when = \"words is null and title <> ''\"",
        "when = \"source.done is null or body = 'emb'\"",
        "when = \"state = 'new'\"",
        "when = \"state <> 'completed'\"",
        "when = \"mark = 'x'\"\nvalues = { mark = \"coalesce(source.state, body)\" }",
    ];
    let mut said = Vec::new();
    for source in refused {
        said.push(format!("# {source}\n{}", misfit(NOTE, &note(source)).await));
    }
    assert_snapshot!(said.join("\n"), @r#"
    # when = "emb is null"
    workers.toml:61: pipelines.notes.source.when: depends on column emb, which this pipeline writes: a row would leave the set with its own commit, lose its vectors and be paid for again; what a row asks for itself with belongs under `needs`
    # when = "words is null and title <> ''"
    workers.toml:61: pipelines.notes.source.when: depends on column words, which this pipeline writes: a row would leave the set with its own commit, lose its vectors and be paid for again; what a row asks for itself with belongs under `needs`
    # when = "source.done is null or body = 'emb'"
    workers.toml:61: pipelines.notes.source.when: depends on column done, which this pipeline writes: a row would leave the set with its own commit, lose its vectors and be paid for again; what a row asks for itself with belongs under `needs`
    # when = "state = 'new'"
    workers.toml:61: pipelines.notes.source.when: depends on column state, which this pipeline writes: a row would leave the set with its own commit, lose its vectors and be paid for again; what a row asks for itself with belongs under `needs`
    # when = "state <> 'completed'"
    workers.toml:61: pipelines.notes.source.when: depends on column state, which this pipeline writes: a row would leave the set with its own commit, lose its vectors and be paid for again; what a row asks for itself with belongs under `needs`
    # when = "mark = 'x'"
    values = { mark = "coalesce(source.state, body)" }
    workers.toml:61: pipelines.notes.source.when: depends on column state, which this pipeline writes: a row would leave the set with its own commit, lose its vectors and be paid for again; what a row asks for itself with belongs under `needs`
    "#);

    for fits in [
        "when = \"title <> 'emb' and meta->>'kind' = 'note'\"",
        // None of our words moves a row out of the set.
        "when = \"state <> 'archived' and title <> ''\"",
        "when = \"state is distinct from 'archived'\"",
        "needs = \"emb is null and state = 'new'\"",
        // A value beside it that the condition does not use.
        "when = \"mark = 'x'\"\nvalues = { mark = \"upper(title)\", other = \"source.state\" }",
        "when = \"exists (select from app.notes as emb where emb.title = source.body)\"",
        "when = \"to_jsonb(source) ? 'title'\"",
    ] {
        assert_eq!(misfit(NOTE, &note(fits)).await, "", "{fits}");
    }
}

#[tokio::test]
async fn a_set_that_depends_on_its_own_chunks_is_refused() {
    let when = "key = [\"id\"]\nwhen = \"not exists (select from app.note_chunks c where c.note_id = source.id)\"";
    let said = misfit(NOTE_TABLES, &NOTES.replace("key = [\"id\"]", when)).await;
    assert_snapshot!(said, @r#"workers.toml:56: pipelines.notes.source.when: depends on table "app"."note_chunks", which this pipeline writes: a row would leave the set with its own commit, lose its vectors and be paid for again; what a row asks for itself with belongs under `needs`"#);
}

#[tokio::test]
async fn a_key_that_rows_may_share_is_refused() {
    let table = |keys: &str| {
        format!(
            "create schema app; create table app.notes (id int not null, part int not null, body text, deleted_at date{keys}); \
             create table app.note_chunks (note_id bigint not null, nth int not null, body text not null, embedding vector(8) not null)"
        )
    };
    let partitioned = "create schema app; create table app.notes (id int not null, body text, primary key (id)) partition by range (id); \
        create table app.note_chunks (note_id bigint not null, nth int not null, body text not null, embedding vector(8) not null)";
    let mut said = Vec::new();
    for schema in [
        table(""),
        table(", unique (id, part)"),
        format!("{}; create unique index on app.notes (id) where deleted_at is null", table("")),
        format!("{}; create unique index on app.notes (abs(id))", table("")),
    ] {
        said.push(misfit(&schema, NOTES).await);
    }
    said.dedup();
    assert_snapshot!(said.join("\n"), @r#"
    workers.toml:55: pipelines.notes.source.key: no unique index of app.notes holds nothing but id (a partial one does not count): two rows of one key would get each other's vectors; name the primary key, or make the key unique
        to mend it: alter table "app"."notes" add unique ("id");
    "#);

    let both = NOTES.replace("key = [\"id\"]", "key = [\"id\", \"part\"]");
    for (schema, pipeline) in [
        (table(", unique (id) deferrable initially deferred"), NOTES),
        (format!("{}; create unique index on app.notes (id) include (part)", table("")), NOTES),
        (partitioned.to_owned(), NOTES),
        (table(", unique (id)"), &both),
        (table(", unique (part, id)"), &both),
    ] {
        assert_eq!(misfit(&schema, pipeline).await, "", "{schema}");
    }
}

#[tokio::test]
async fn values_that_no_column_of_that_type_takes_are_refused() {
    let more = "create schema app; create table app.notes (id int primary key, body text, at timestamptz, made smallint, flag boolean, \
        who uuid, list text[], day date, count numeric); \
        create table app.note_chunks (note_id bigint not null, nth int not null check (nth > 0), body text, made smallint, embedding vector(8) not null)";
    let pipeline = NOTES.replace("embedding =", "made = \"{at}\", embedding =")
        + "[pipelines.notes.write]\nmade = \"{job.finished}\"\nflag = \"{job.model}\"\nwho = \"{job.id}\"\nlist = \"{job.chunks}\"\n";
    assert_snapshot!(misfit(more, &pipeline).await, @"
    workers.toml:63: pipelines.notes.target.columns.made: column made is int2, and no {at} fits that
    workers.toml:65: pipelines.notes.write.made: column made is int2, and no {job.finished} fits that
    workers.toml:66: pipelines.notes.write.flag: column flag is bool, and no {job.model} fits that
    workers.toml:67: pipelines.notes.write.who: column who is uuid, and no {job.id} fits that
    workers.toml:68: pipelines.notes.write.list: column list is _text, and no {job.chunks} fits that
    workers.toml:63: pipelines.notes.target.columns.nth: column nth refuses the first chunk of every row, whose index is 0: constraint note_chunks_nth_check ((nth > 0))
    ");

    // What may fit is tried when it is there.
    let may = NOTES.to_owned()
        + "[pipelines.notes.write]\nmade = \"{body}\"\nflag = \"{job.chunks}\"\nday = \"{job.finished}\"\nlist = \"{body}\"\ncount = \"{job.ms}\"\n";
    assert_eq!(misfit(&more.replace(" check (nth > 0)", ""), &may).await, "");
}

#[tokio::test]
async fn a_target_whose_unique_keys_leave_room_for_one_chunk_is_refused() {
    let keyed = |key: &str| {
        NOTE_TABLES.replace("embedding vector(8) not null)", &format!("embedding vector(8) not null, {key})"))
    };
    let mut said =
        vec![misfit(&keyed("unique (nth)"), NOTES).await, misfit(&keyed("primary key (note_id)"), NOTES).await];
    let copied = NOTES.replace("nth =", "id = \"{id}\", nth =");
    said.push(misfit(&keyed("id bigint primary key"), &copied).await);
    assert_snapshot!(said.join("\n"), @"
    workers.toml:60: pipelines.notes.target: app.note_chunks refuses the chunks of a second row: it is unique by nth; add the column that names the row
    workers.toml:60: pipelines.notes.target: app.note_chunks refuses a second chunk of a row: it is unique by note_id; add the chunk's index, or give its own id a default
    workers.toml:60: pipelines.notes.target: app.note_chunks refuses a second chunk of a row: it is unique by id; add the chunk's index, or give its own id a default
    ");

    for key in ["unique (note_id, nth)", "unique (body)", "id uuid primary key default gen_random_uuid()"] {
        assert_eq!(misfit(&keyed(key), NOTES).await, "", "{key}");
    }
    let whole = NOTES.replace("tokens = 12\noverlap = 0", "whole = true");
    assert_eq!(misfit(&keyed("primary key (note_id)"), &whole).await, "");
}

#[tokio::test]
async fn pipelines_that_write_one_column_of_the_same_rows_are_named() {
    let first = note("when = \"title <> ''\"");
    let second = |when: &str| {
        note(when).replace("pipelines.notes", "pipelines.other").replace("emb = \"{chunk", "emb2 = \"{chunk")
    };
    let warned = async |second: &str| {
        let world = configured(World::new().await, &format!("{first}{second}"));
        world.sql(&format!("{NOTE}; alter table app.notes add emb2 vector(8)")).await;
        let world = reconnected(world).await;
        let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
        assert_eq!(format!("{:?}", resolved.refused), "[]");
        let both = resolved.warnings.iter().filter(|warning| warning.message.contains("both write"));
        both.map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_snapshot!(warned(&second("")).await, @"
    workers.toml:69: pipelines.other.write.words: pipelines notes and other both write column words of app.notes: whichever is done last is heard; give each a column of its own
    workers.toml:70: pipelines.other.status.columns.done: pipelines notes and other both write column done of app.notes: whichever is done last is heard; give each a column of its own
    workers.toml:70: pipelines.other.status: pipelines notes and other both write column state of app.notes: whichever is done last is heard; give each a column of its own
    ");
    assert_eq!(warned(&second("when = \"title = ''\"")).await, "");
}

#[tokio::test]
async fn the_column_that_a_value_does_not_fit_is_named() {
    let pipeline = NOTES.replace("embedding =", "owner = \"{owner}\", embedding =")
        + "[pipelines.notes.write]\nwords = \"{body}\"\n";
    let tables = "create schema app; create table app.notes (id int primary key, body text, owner text, words int); \
        create table app.note_chunks (note_id int, nth int, body text, owner varchar(3), embedding vector(8)); \
        insert into app.notes values (1, '12', 'me'), (2, 'The mill.', 'you'), (3, '12', 'nobody')";
    let world = configured(World::new().await, &pipeline);
    world.sql(tables).await;
    let world = reconnected(world).await;
    world.register().await;
    world.sql("update gristmill.embedding_jobs set state = 'pending', run_at = now()").await;
    world.work().await;
    let said = "select concat_ws(' ', source_key, state, reason) from gristmill.embedding_jobs order by source_key";
    assert_snapshot!(world.list(said).await.join("\n"), @r#"
    ["1"] completed
    ["2"] failed the database refused the write: a value does not fit its column (22P02): column words
    ["3"] failed the database refused the write: a value does not fit its column (22001): column owner
    "#);
}

#[tokio::test]
async fn an_extension_that_is_made_anew_under_a_worker_costs_no_job_anything() {
    let world = World::new().await;
    world.register().await;
    let worker = world.start().await;
    world.insert_sentences(20).await;
    worker.idle().await;
    assert_eq!(world.states().await, "20 completed");

    world
        .sql(
            "drop extension vector cascade; create extension vector; \
             alter table public.document_chunks add column embedding vector(384)",
        )
        .await;
    world.insert_sentences(20).await;
    world
        .sql("select gristmill.enqueue('documents', id) from public.documents where processing_status = 'pending'")
        .await;
    worker.idle().await;
    worker.stop().await;

    let failed = "select count(*) from gristmill.embedding_jobs where state = 'failed'";
    assert_eq!(world.value::<i64>(failed).await, 0);
    let done = "select count(*) from gristmill.embedding_jobs j join public.document_chunks c on c.document_id = (j.source_key ->> 0)::uuid \
                where j.state = 'completed' and c.embedding is not null";
    assert_eq!(world.value::<i64>(done).await, 20);
}

#[tokio::test]
async fn a_run_that_leaves_a_pipeline_out_names_it_and_has_failed() {
    let mut world = application(NOTE_TABLES, NOTES).await;
    world.toml.push_str(&NOTES.replace("pipelines.notes", "pipelines.others").replace("app.note", "app.other"));
    world.sql("insert into app.notes (body) values ('A note.')").await;

    let ran = gristmill(&world, &["run", "--once", "--json"]).await;

    let (said, why) = (ran.json(), "pipelines.others.source: there is no table app.others");
    assert_eq!((ran.code, &said["failed"], &said["left"]), (1, &0.into(), &serde_json::json!([])), "{said}");
    let idle = said["not_running"].as_array().expect("a list");
    assert!(idle.len() == 1 && idle[0]["pipeline"] == "others", "{said}");
    assert!(idle[0]["why"].as_str().is_some_and(|said| said.contains(why)), "{said}");
    assert_eq!(world.states().await, "1 completed");

    // What waits is no lesser failure.
    gristmill(&world, &["pause", "notes"]).await.ok();
    world.sql("insert into app.notes (body) values ('Another.')").await;
    let ran = gristmill(&world, &["run", "--once"]).await;
    assert_eq!(ran.code, 1);
    let paused = "notes: 1 job waits because it is paused";
    assert!(ran.err.contains("error: pipeline others does not run: ") && ran.err.contains(paused), "{}", ran.err);
}
