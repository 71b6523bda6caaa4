//! `gristmill index`: built, rebuilt and dropped beside readers and writers.

use std::process::{Command, Stdio};
use std::time::Duration;

use insta::assert_snapshot;
use sqlx::{Executor as _, PgConnection};

use crate::applications::application;
use crate::cli::{Ran, command, gristmill};
use crate::schema::make_role;
use crate::world::World;

const DEFINITIONS: &str = "select coalesce(string_agg(pg_get_indexdef(i.indexrelid) || case when i.indisvalid then '' else ' invalid' end, e'\\n' \
    order by 1), 'none') from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam where m.amname = 'hnsw'";

async fn definitions(world: &World) -> String {
    world.value::<String>(DEFINITIONS).await
}

#[tokio::test]
async fn an_index_is_dropped_for_a_back_fill_and_built_after_it() {
    let world = World::new().await;
    world.register().await;
    for text in ["The mill grinds.", "Flour."] {
        world.insert("note", text).await;
    }
    world.work().await;
    world.sql("analyze public.document_chunks").await;
    let there = definitions(&world).await;
    assert!(there.contains("vector_cosine_ops"), "{there}");

    let again = gristmill(&world, &["index", "build", "documents"]).await.ok().out;
    assert_eq!(again.trim(), "public.document_chunks_embedding is there already; --rebuild builds it anew");
    let rebuilt = gristmill(&world, &["index", "build", "documents", "--rebuild", "--json"]).await.ok().json();
    assert_eq!(rebuilt["statements"][0], "reindex index concurrently public.document_chunks_embedding");
    assert_eq!(definitions(&world).await, there);

    let only_said = gristmill(&world, &["index", "drop", "documents", "--dry-run"]).await.ok().out;
    assert!(only_said.starts_with("drop index concurrently public.document_chunks_embedding;\n"), "{only_said}");
    assert_eq!(definitions(&world).await, there);
    let dropped = gristmill(&world, &["index", "drop", "documents", "--json"]).await.ok().json();
    assert_eq!(definitions(&world).await, "none");
    // What it says brings the index back does.
    world.sql(dropped["restore"][0].as_str().expect("a statement")).await;
    assert_eq!(definitions(&world).await, there);

    gristmill(&world, &["index", "drop", "documents"]).await.ok();
    let status = gristmill(&world, &["index", "status"]).await.ok().out;
    assert_eq!(status.trim(), "documents: 2 vectors in \"public\".\"document_chunks\"\n  no vector index");
    let options = ["index", "build", "documents", "--m", "8", "--ef-construction", "32", "--memory", "100 MB"];
    gristmill(&world, &options).await.ok();
    assert_snapshot!(definitions(&world).await, @"CREATE INDEX gristmill_documents_hnsw_cosine ON public.document_chunks USING hnsw (embedding vector_cosine_ops) WITH (m='8', ef_construction='32')");
}

#[tokio::test]
async fn a_plan_says_whether_it_is_worth_it() {
    let world = World::new().await;
    world.register().await;
    let advice = async || {
        let planned = gristmill(&world, &["index", "plan", "--json"]).await.ok().json();
        format!("{} to come, {}", planned[0]["to_come"], planned[0]["advice"].as_str().expect("a word"))
    };
    assert_eq!(advice().await, "0 to come, keep it");
    world.sql("select gristmill.enqueue('documents', gen_random_uuid()) from generate_series(1, 50)").await;
    assert_eq!(advice().await, "50 to come, drop it, build it anew when the back-fill is through");
    world.sql("drop index document_chunks_embedding").await;
    assert_eq!(advice().await, "50 to come, build it when the back-fill is through");
    let people = gristmill(&world, &["index", "plan", "documents"]).await.ok().out;
    assert!(people.contains("create index concurrently \"gristmill_documents_hnsw_cosine\""), "{people}");
}

const SCHEMA: &str = "drop index public.document_chunks_embedding; create schema app; create table app.notes (id bigint primary key, body text not null); \
    create table app.pieces (note bigint not null references app.notes on delete cascade, nth int, body text, v vector, primary key (note, nth));";

const NOTES: &str = r#"
[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "backfill"
[pipelines.notes.source]
table = "app.notes"
key = ["id"]
text = "{body}"
[pipelines.notes.target]
table = "app.pieces"
parent = { note = "{id}" }
columns = { nth = "{chunk.index}", body = "{chunk.text}", v = "{chunk.vector}" }
"#;

#[tokio::test]
async fn a_column_of_any_length_is_indexed_by_its_models_length() {
    let world = application(SCHEMA, NOTES).await;
    world.sql("insert into app.notes values (1, 'One word.')").await;
    world.work().await;
    // Another model's, in the same column.
    world.sql("insert into app.pieces values (1, 99, 'x', '[1,2,3]')").await;
    gristmill(&world, &["index", "build", "notes", "--distance", "ip"]).await.ok();
    assert_snapshot!(definitions(&world).await, @"CREATE INDEX gristmill_notes_hnsw_ip ON app.pieces USING hnsw (((v)::vector(8)) vector_ip_ops) WHERE (vector_dims(v) = 8)");
}

#[tokio::test]
async fn a_build_that_broke_off_is_replaced() {
    let world = application(SCHEMA, NOTES).await;
    let sql = gristmill(&world, &["index", "build", "notes", "--dry-run"]).await.ok().out;
    assert_eq!(definitions(&world).await, "none");
    world.sql(sql.trim()).await;
    let whole = definitions(&world).await;
    world
        .sql("update pg_index set indisvalid = false where indexrelid = 'app.gristmill_notes_hnsw_cosine'::regclass")
        .await;
    assert_eq!(definitions(&world).await, format!("{whole} invalid"));
    gristmill(&world, &["index", "build", "notes"]).await.ok();
    assert_eq!(definitions(&world).await, whole);
}

#[tokio::test]
async fn who_does_not_own_the_table_is_given_the_owners_statement() {
    let world = application(SCHEMA, NOTES).await;
    make_role(&world, "gristmill_test_builder").await;
    let rights = "grant usage on schema app, gristmill to gristmill_test_builder; \
        grant all on all tables in schema app, gristmill to gristmill_test_builder; \
        grant execute on all functions in schema gristmill to gristmill_test_builder";
    world.sql(rights).await;
    let url = world.database.url.clone();
    let mark = if url.contains('?') { '&' } else { '?' };
    let builder = world.change(&url, &format!("{url}{mark}options=-c%20role%3Dgristmill_test_builder"));
    let ran = gristmill(&builder, &["index", "build", "notes"]).await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("as its owner, run\ncreate index concurrently"), "{}", ran.err);

    let world = builder;
    world.sql("drop table app.pieces; create table app.pieces (note bigint, nth int, body text, v vector(8), primary key (note, nth)) partition by hash (note); \
        grant all on app.pieces to gristmill_test_builder").await;
    let ran = gristmill(&world, &["index", "build", "notes"]).await;
    assert!(ran.err.contains("\"app\".\"pieces\" is partitioned"), "{}", ran.err);
}

const BUILDS: &str = "select count(*) from pg_stat_progress_create_index where datname = current_database()";

/// A rebuild that waits for a writer, until that one is gone.
async fn rebuild_under_way(world: &World) -> (PgConnection, std::process::Child) {
    let mut writer = world.database.connect().await;
    writer
        .execute("begin; lock table public.document_chunks in row exclusive mode")
        .await
        .expect("nobody else is there");
    let mut rebuild = command(&["index", "build", "documents", "--rebuild", "--config"]);
    rebuild.arg(world.config_file()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let rebuild = rebuild.spawn().expect("the binary runs");
    world.wait_for(&format!("select ({BUILDS}) = 1")).await;
    (writer, rebuild)
}

async fn end_of(child: std::process::Child) -> Ran {
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().expect("it ends"));
    ended.await.expect("the thread ends well").into()
}

#[tokio::test]
async fn a_second_build_and_a_drop_are_refused_while_a_build_goes_on() {
    let world = World::new().await;
    let there = definitions(&world).await;
    let (mut writer, first) = rebuild_under_way(&world).await;
    for what in
        [&["build", "documents", "--rebuild"][..], &["build", "documents", "--distance", "l2"], &["drop", "documents"]]
    {
        let arguments = [&["index"], what].concat();
        let second = tokio::time::timeout(Duration::from_secs(20), gristmill(&world, &arguments));
        let second = second.await.expect("it does not wait for the first");
        let said = "a build of document_chunks_embedding is under way; `gristmill index status` shows it";
        assert!(second.code == 1 && second.err.contains(said), "{what:?}: {} {}", second.code, second.err);
    }
    let planned = gristmill(&world, &["index", "plan", "documents", "--json"]).await.ok().json();
    assert_eq!(planned[0]["leftovers"], serde_json::json!([]), "what is being built is none");
    writer.execute("rollback").await.expect("it is there");
    end_of(first).await.ok();
    assert_eq!(definitions(&world).await, there);
    gristmill(&world, &["index", "drop", "documents"]).await.ok();
}

#[tokio::test]
async fn what_an_interrupted_rebuild_left_is_named_and_removed() {
    let world = World::new().await;
    let there = definitions(&world).await;
    let leave = async |name: &str| {
        let sql = format!(
            "create index {name} on public.document_chunks using hnsw (embedding vector_l2_ops); \
             update pg_index set indisvalid = false where indexrelid = 'public.{name}'::regclass"
        );
        world.sql(&sql).await;
    };
    let removed = "removed public.document_chunks_embedding_ccnew1, which an interrupted build had left\n";
    leave("document_chunks_embedding_ccnew1").await;
    let plan = gristmill(&world, &["index", "plan", "documents"]).await.ok().out;
    let named = "public.document_chunks_embedding_ccnew1 is left of an interrupted build, and every write keeps it up; \
                 `gristmill index build documents` removes it";
    assert!(plan.contains(named), "{plan}");
    let built = gristmill(&world, &["index", "build", "documents"]).await.ok().out;
    assert_eq!(
        built.trim(),
        format!("{removed}public.document_chunks_embedding is there already; --rebuild builds it anew")
    );
    assert_eq!(definitions(&world).await, there);

    leave("document_chunks_embedding_ccold").await;
    let built = gristmill(&world, &["index", "build", "documents", "--rebuild"]).await.ok().out;
    assert!(built.starts_with("removed public.document_chunks_embedding_ccold, "), "{built}");
    assert_eq!(definitions(&world).await, there);

    // Somebody else's may not be what it looks like.
    leave("theirs_ccnew").await;
    gristmill(&world, &["index", "build", "documents", "--rebuild"]).await.ok();
    assert!(definitions(&world).await.contains("theirs_ccnew"));
    world.sql("drop index public.theirs_ccnew").await;

    leave("document_chunks_embedding_ccnew1").await;
    let dropped = gristmill(&world, &["index", "drop", "documents"]).await.ok().out;
    assert!(dropped.starts_with(removed), "{dropped}");
    let restored = dropped.split_once("brings them back:\n").expect("it says so").1;
    assert!(!restored.contains("_ccnew1"), "{dropped}");
    assert_eq!(definitions(&world).await, "none");
}

#[tokio::test]
async fn an_interrupted_build_ends_on_the_server_too() {
    let world = World::new().await;
    let there = definitions(&world).await;
    for how in ["INT", "TERM"] {
        let (mut writer, rebuild) = rebuild_under_way(&world).await;
        let signalled =
            Command::new("kill").args(["-s", how, &rebuild.id().to_string()]).status().expect("there is a kill");
        assert!(signalled.success());
        world.wait_for(&format!("select ({BUILDS}) = 0")).await;
        writer.execute("rollback").await.expect("it is there");
        let ended = end_of(rebuild).await;
        let want = (1, "error: interrupted; nothing is left of the build");
        assert_eq!((ended.code, ended.err.trim()), want, "{how}");
        assert_eq!(definitions(&world).await, there);
    }
}
