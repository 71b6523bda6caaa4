//! `gristmill index`: built, rebuilt and dropped beside readers and writers.

use insta::assert_snapshot;

use crate::applications::application;
use crate::cli::gristmill;
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
