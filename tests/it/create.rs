//! A target of ours, for an application that has none: typed like its source, closed to everybody who is not meant to read it.

use gristmill::app;
use gristmill::db;
use insta::assert_snapshot;
use sqlx::Executor as _;

use crate::applications::{WORKER, as_worker, configured, reconnected};
use crate::cli::{command, gristmill, run};
use crate::schema::make_role;
use crate::world::World;

const SESSIONS: &str = r#"
[pipelines.sessions]
kind = "embed"
model = "tiny"
existing = "backfill"
[pipelines.sessions.source]
table = "app.daily sessions"
key = ["id"]
tenant = "user_id"
when = "status = 'completed' and transcript is not null"
text = "{transcript}"
values = { minutes = "seconds / 60.0" }
[pipelines.sessions.chunks]
tokens = 12
overlap = 0
[pipelines.sessions.target]
table = "app.session_vectors"
create = true
parent = { session_id = "{id}" }
columns = { user_id = "{user_id}", nth = "{chunk.index}", content = "{chunk.text}", tokens = "{chunk.tokens}", page = "{chunk.page}", minutes = "{minutes}", label = "{status}: {chunk.index}", embedding = "{chunk.vector}", metadata = { status = "{status}" } }
policy = "auth.uid() = user_id"
"#;

const TABLES: &str = "create schema app; create schema auth; \
    create function auth.uid() returns uuid language sql stable as $$ select nullif(current_setting('test.reader', true), '')::uuid $$; \
    grant usage on schema app, auth to authenticated; \
    create table app.\"daily sessions\" (id uuid primary key default gen_random_uuid(), user_id uuid, status text, transcript varchar(500), seconds int);";

async fn world(pipelines: &str) -> World {
    let world = configured(World::new().await, pipelines);
    for role in ["authenticated", "anon"] {
        make_role(&world, role).await;
    }
    world.sql(TABLES).await;
    reconnected(world).await
}

#[tokio::test]
async fn a_target_that_is_missing_is_made_with_the_types_of_its_values_and_closed_to_strangers() {
    let world = world(SESSIONS).await;
    // Held against the database, nothing is made.
    let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
    assert!(resolved.refused.is_empty(), "{:?}", resolved.refused);
    assert!(world.value::<bool>("select to_regclass('app.session_vectors') is null").await);
    assert_snapshot!(resolved.plans[0].create.as_ref().unwrap().sql(), @r#"
    create table "app"."session_vectors" (
        "session_id" "pg_catalog"."uuid" not null,
        "user_id" "pg_catalog"."uuid",
        "nth" pg_catalog.int4 not null,
        "content" pg_catalog.text not null,
        "tokens" pg_catalog.int4,
        "page" pg_catalog.int4,
        "minutes" pg_catalog."numeric",
        "label" pg_catalog.text,
        "embedding" "public".vector(8) not null,
        "metadata" pg_catalog.jsonb,
        primary key ("session_id", "nth")
    );
    alter table "app"."session_vectors" enable row level security;
    revoke all on "app"."session_vectors" from "anon", "authenticated";
    create policy gristmill_read on "app"."session_vectors" for select to authenticated using (auth.uid() = user_id);
    grant select on "app"."session_vectors" to authenticated;
    alter table "app"."session_vectors" add foreign key ("session_id") references "app"."daily sessions" ("id") on delete cascade;
    "#);

    world.work().await;
    world.sql("insert into app.\"daily sessions\" (user_id, status, transcript, seconds) select ('0000000' || n || '-0000-0000-0000-000000000000')::uuid, 'completed', 'We talked about grain.', 90 from generate_series(1, 3) n").await;
    world.sql("insert into app.\"daily sessions\" (status, transcript) values ('open', 'Not yet.')").await;
    world.work().await;

    let rows = "select concat_ws(' ', left(user_id::text, 8), nth, content, tokens, round(minutes, 1), label, vector_dims(embedding), metadata) from app.session_vectors order by 1";
    assert_snapshot!(world.list(rows).await.join("\n"), @r#"
    00000001 0 We talked about grain. 5 1.5 completed: 0 8 {"status": "completed"}
    00000002 0 We talked about grain. 5 1.5 completed: 0 8 {"status": "completed"}
    00000003 0 We talked about grain. 5 1.5 completed: 0 8 {"status": "completed"}
    "#);

    let mut connection = world.database.connect().await;
    connection
        .execute("set role authenticated; set test.reader = '00000002-0000-0000-0000-000000000000'")
        .await
        .unwrap();
    let seen: i64 =
        sqlx::query_scalar("select count(*) from app.session_vectors").fetch_one(&mut connection).await.unwrap();
    assert_eq!(seen, 1);
    connection.execute("delete from app.session_vectors").await.unwrap_err();
    connection.execute("reset role; set role anon").await.unwrap();
    connection.execute("select from app.session_vectors").await.unwrap_err();

    world.sql("delete from app.\"daily sessions\" where user_id = '00000001-0000-0000-0000-000000000000'").await;
    assert_eq!(world.value::<i64>("select count(*) from app.session_vectors").await, 2);
}

#[tokio::test]
async fn triggers_and_views_make_the_target_and_what_asks_the_source_alone_does_without() {
    let world = world(&SESSIONS.replace("existing = \"backfill\"", "existing = \"adopt\"")).await;
    world
        .sql("insert into app.\"daily sessions\" (status, transcript) values ('completed', 'We talked about grain.')")
        .await;
    let is_there = "select to_regclass('app.session_vectors') is not null";
    let sql = gristmill(&world, &["triggers", "sql"]).await.ok().out;
    assert!(sql.contains("create trigger"), "{sql}");
    let accepted = gristmill(&world, &["accept", "sessions", "--dry-run", "--json"]).await.ok().json();
    assert_eq!(accepted["rows_held"], 1);
    let opened = gristmill(&world, &["backfill", "sessions", "--dry-run", "--json"]).await.ok().json();
    assert_eq!((&opened["rows"], &opened["rows_adopted"]), (&1.into(), &0.into()));
    for command in [&["verify"][..], &["index", "status"], &["index", "build", "sessions"], &["search", "grain"]] {
        let refused = gristmill(&world, command).await;
        let said = "error: the target of pipeline sessions is not there yet: start a worker, or run `gristmill triggers install`, which makes it";
        assert_eq!((refused.code, refused.err.trim()), (1, said));
    }
    assert!(!world.value::<bool>(is_there).await, "nothing of this makes it");

    assert_snapshot!(gristmill(&world, &["triggers", "install"]).await.ok().out, @r#"
    sessions: target app.session_vectors made
    sessions: triggers on "app"."daily sessions" installed
    "#);
    assert!(world.value::<bool>(is_there).await);
    let again = gristmill(&world, &["triggers", "install", "--json"]).await.ok().json();
    assert_eq!(again[0].get("target_made"), None);
    world.sql("drop table app.session_vectors").await;
    let made = gristmill(&world, &["views", "install", "--json"]).await.ok().json();
    assert_eq!((&made[0]["target_made"], &made[0]["now"]), (&"app.session_vectors".into(), &"installed".into()));
    gristmill(&world, &["verify"]).await.ok();
}

#[tokio::test]
async fn what_init_proposes_serves_in_the_order_of_the_readme() {
    let world = World::new().await;
    world.sql("drop table public.document_chunks, public.documents; create table public.articles (id bigint primary key, title text, body text)").await;
    let file = world.config_file();
    std::fs::remove_file(&file).expect("it is there");
    let arguments: [&[&str]; 4] = [
        &["init", "--out"],
        &["check", "--config"],
        &["triggers", "install", "--config"],
        &["views", "install", "--config"],
    ];
    for arguments in arguments {
        let mut one = command(arguments);
        one.arg(&file).env("DATABASE_URL", &world.database.url).env("OPENAI_API_KEY", "none");
        if arguments[0] == "check" {
            // Its provider is not asked.
            one.arg("--offline");
        }
        run(one).await.ok();
    }
    assert!(
        world
            .value::<bool>(
                "select count(*) = 3 from pg_trigger where tgrelid = 'public.articles'::regclass and not tgisinternal"
            )
            .await
    );
}

#[tokio::test]
async fn a_policy_that_does_not_hold_is_named_and_nothing_is_made() {
    let world = world(&SESSIONS.replace("auth.uid() = user_id", "auth.uid() = owner")).await;
    let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
    let said: Vec<&str> = resolved
        .refused
        .iter()
        .flat_map(|(_, misfits)| misfits)
        .map(|one: &db::app::Misfit| one.message.as_str())
        .collect();
    assert_snapshot!(said.join("\n"), @r#"
    the target cannot be created; Postgres says: column "owner" does not exist
    "#);
    assert!(world.value::<bool>("select to_regclass('app.session_vectors') is null").await);
}

#[tokio::test]
async fn whoever_may_make_the_target_is_told_to_let_the_worker_write_to_it() {
    let world = world(SESSIONS).await;
    world
        .sql(&format!(
            "{WORKER}grant usage on schema app, auth, gristmill to gristmill_test_worker; \
             grant select, update on app.\"daily sessions\" to gristmill_test_worker"
        ))
        .await;
    let owner = world.pool.clone();
    let said = |world: &World| {
        let (pool, config) = (world.pool.clone(), world.config());
        async move { app::resolve(&pool, &config).await.unwrap().refused }
    };
    let world = as_worker(world).await;
    let refused = said(&world).await;
    let fix = refused[0].1[0].fix.clone().unwrap();
    // Roles are every test's: this one stays as it is.
    let (fix, role) = fix.rsplit_once('\n').unwrap();
    assert_eq!(role, "alter role \"gristmill_test_worker\" bypassrls;");
    sqlx::raw_sql(sqlx::AssertSqlSafe(fix.to_owned())).execute(&owner).await.unwrap();
    let left: Vec<String> =
        said(&world).await.into_iter().flat_map(|(_, misfits)| misfits).map(|one| one.message).collect();
    assert_eq!(left, ["row security of app.session_vectors hides rows from this role"]);
}
