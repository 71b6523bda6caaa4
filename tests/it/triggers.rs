//! Triggers lose nothing: not under a strict isolation, not beside a row that cannot be read, not under odd settings.

use insta::assert_snapshot;
use sqlx::{Connection as _, Executor as _};

use crate::applications::application;
use crate::world::World;

const PIPELINE: &str = r#"
[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "backfill"
[pipelines.notes.source]
table = "app.notes"
key = ["id"]
text = "{body} {size}"
[pipelines.notes.source.values]
size = "10 / size"
[pipelines.notes.chunks]
tokens = 12
overlap = 0
[pipelines.notes.target]
table = "app.note_chunks"
parent = { note_id = "{id}" }
columns = { nth = "{chunk.index}", embedding = "{chunk.vector}" }
"#;

const TABLES: &str = "create schema app; create table app.notes (id int primary key, body text, size int not null default 1, gone int); \
    alter table app.notes drop gone; \
    create table app.note_chunks (note_id int not null, nth int not null, embedding vector(8) not null)";

async fn announcing() -> World {
    let world = application(TABLES, PIPELINE).await;
    world.install_triggers().await;
    world
}

async fn jobs(world: &World) -> String {
    let query = "select concat_ws(' ', source_key, state, 'r' || revision, error_kind) from gristmill.embedding_jobs order by source_key";
    world.list(query).await.join("\n")
}

#[tokio::test]
async fn nothing_is_lost_under_a_strict_isolation() {
    for isolation in ["repeatable read", "serializable"] {
        let world = announcing().await;
        world.sql("insert into app.notes values (1, 'One.'), (2, 'Two.')").await;
        let mut connection = world.database.connect().await;
        let mut user = connection.begin().await.expect("it begins");
        user.execute(sqlx::AssertSqlSafe(format!("set transaction isolation level {isolation}")))
            .await
            .expect("it is set");
        user.execute("select from app.notes").await.expect("the snapshot is taken");
        // The job of the row moves on, as it does with every claim.
        world.work().await;

        user.execute("update app.notes set body = 'Other.' where id = 1").await.expect("the statement holds");
        user.commit().await.expect("the application's transaction holds");
        world.work().await;

        assert_eq!(jobs(&world).await, "[\"1\"] completed r2\n[\"2\"] completed r1", "{isolation}");
        assert_eq!(world.value::<i64>("select count(*) from gristmill.announcements").await, 0);
    }
}

#[tokio::test]
async fn an_enqueue_under_a_strict_isolation_holds_as_well() {
    let world = announcing().await;
    world.sql("insert into app.notes values (1, 'One.')").await;
    let mut connection = world.database.connect().await;
    let mut user = connection.begin().await.expect("it begins");
    user.execute("set transaction isolation level repeatable read; select from app.notes").await.expect("it is set");
    world.work().await;

    user.execute("select gristmill.enqueue('notes', 1, 7)").await.expect("it is announced");
    user.commit().await.expect("it commits");
    world.work().await;

    assert_eq!(jobs(&world).await, r#"["1"] completed r2"#);
    assert_eq!(world.value::<i32>("select priority from gristmill.embedding_jobs").await, 7);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_does_not_silence_its_neighbours() {
    let world = announcing().await;
    world.sql("insert into app.notes values (1, 'One.', 1), (2, 'Two.', 0), (3, 'Three.', 1)").await;
    assert_snapshot!(jobs(&world).await, @r#"
    ["1"] pending r1
    ["2"] pending r1
    ["3"] pending r1
    "#);
    world.work().await;
    assert_snapshot!(jobs(&world).await, @r#"
    ["1"] completed r1
    ["2"] failed r1 constraint
    ["3"] completed r1
    "#);

    // Only what changed is announced, and the row that cannot be read.
    world.sql("update app.notes set body = case id when 3 then 'Other.' else body end").await;
    assert_snapshot!(jobs(&world).await, @r#"
    ["1"] completed r1
    ["2"] pending r2
    ["3"] pending r2
    "#);
    world.work().await;
    world.sql("update app.notes set id = id + 10 where id > 1").await;
    assert_snapshot!(jobs(&world).await, @r#"
    ["1"] completed r1
    ["12"] pending r1
    ["13"] pending r1
    ["2"] pending r3
    ["3"] pending r3
    "#);
    world.work().await;
    world.sql("delete from app.notes").await;
    world.work().await;
    assert_snapshot!(jobs(&world).await, @r#"
    ["1"] cancelled r2 left
    ["12"] cancelled r2 left
    ["13"] cancelled r2 left
    ["2"] cancelled r3 left
    ["3"] cancelled r3 left
    "#);
    assert_eq!(world.value::<i64>("select count(*) from app.note_chunks").await, 0);
}

#[tokio::test]
async fn columns_may_be_called_like_the_variables_of_a_trigger() {
    let condition =
        "text = \"{body}\"\nwhen = \"found and new is null and old is null and tg_op <> '' and sqlerrm is null\"";
    let pipeline =
        PIPELINE.replace("text = \"{body} {size}\"\n[pipelines.notes.source.values]\nsize = \"10 / size\"", condition);
    let columns = "size int, found boolean default true, new int, old int, tg_op text default 'x', sqlerrm text, ";
    let world = application(&TABLES.replace("size int not null default 1, ", columns), &pipeline).await;
    world.install_triggers().await;

    world.sql("insert into app.notes (id, body) values (1, 'One.'), (2, 'Two.')").await;
    assert_eq!(jobs(&world).await, "[\"1\"] pending r1\n[\"2\"] pending r1");
    world.work().await;
    world.sql("update app.notes set found = false where id = 1; delete from app.notes where id = 2").await;
    assert_eq!(jobs(&world).await, "[\"1\"] pending r2\n[\"2\"] pending r2");
}

#[tokio::test]
async fn keys_and_content_read_the_same_under_any_settings() {
    let values = "raw bytea, real float8, span interval, moment timestamptz, day date, price money, kind regclass";
    let pipeline = PIPELINE
        .replace("{body} {size}", "{raw} {real} {span} {moment} {day} {price} {kind}")
        .replace("[pipelines.notes.source.values]\nsize = \"10 / size\"\n", "")
        .replace("key = [\"id\"]", "key = [\"id\"]\nchanged_at = \"changed\"");
    let tables = format!(
        "create schema app; create table app.notes (id bytea primary key, changed timestamptz not null default now(), {values}); \
         create table app.note_chunks (note_id bytea not null, nth int not null, embedding vector(8) not null)"
    );
    let world = application(&tables, &pipeline).await;
    world.install_triggers().await;
    let row = r"'\x00ff', now(), '\xdead', 0.1::float8 + 0.2, '1 day 02:03', '2026-01-31 12:00+00', '2026-01-31', 7, 'pg_class'";
    let mut connection = world.database.connect().await;
    connection
        .execute(sqlx::AssertSqlSafe(format!(
            "set bytea_output = 'escape'; set extra_float_digits = 0; set intervalstyle = 'iso_8601'; set timezone = 'Asia/Tokyo'; \
             set datestyle = 'German'; set quote_all_identifiers = on; set search_path = app; insert into app.notes values ({row})"
        )))
        .await
        .expect("it is inserted");
    world.work().await;
    assert_eq!(jobs(&world).await, r#"["\\x00ff"] completed r1"#);

    connection
        .execute("update app.notes set changed = now(); select gristmill.enqueue('notes', '\\x00ff'::bytea)")
        .await
        .unwrap();
    world.work().await;

    assert_eq!(jobs(&world).await, r#"["\\x00ff"] completed r2"#);
    assert_eq!(world.sweep(None).await, 0);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.usage_events where meter = 'tokens'").await, 1);
}
