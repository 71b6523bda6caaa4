//! The view of job states for frontends: the source's row security decides who sees what, and no other way leads to a job.

use insta::assert_snapshot;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::applications::application;
use crate::cli::gristmill;
use crate::schema::make_role;
use crate::world::World;

const POLICIES: &str = "create schema if not exists auth; \
    create or replace function auth.uid() returns uuid language sql stable as $$ select nullif(current_setting('test.reader', true), '')::uuid $$; \
    grant usage on schema auth to public; alter table public.documents enable row level security; \
    drop policy if exists mine on public.documents; \
    create policy mine on public.documents for select using (auth.uid() = user_id); grant select on public.documents to authenticated, service_role;";

const STATES: &str = "select concat_ws(' ', d.name, s.state, s.error_kind, s.reason, s.chunks, s.tokens, s.revision, s.finished_at is not null) \
    from gristmill.status_documents s left join public.documents d using (id) order by 1";

async fn world() -> World {
    let world = World::new().await;
    for role in ["authenticated", "anon", "service_role bypassrls", "gristmill_test_owner"] {
        make_role(&world, role).await;
    }
    world.sql("drop policy if exists documents_owner on public.documents").await;
    world.sql(POLICIES).await;
    // As the migrations do where the role is there already.
    world.sql("grant usage on schema gristmill to service_role").await;
    world.register().await;
    for (user, name, text) in [(1, "one", "The mill grinds."), (1, "empty", " "), (2, "two", "Flour.")] {
        world.insert_for(uuid::Uuid::from_u128(user), name, text).await;
    }
    world.work().await;
    world
}

async fn reader(world: &World, role: &str, user: u128) -> PgConnection {
    let mut connection = world.database.connect().await;
    let user = uuid::Uuid::from_u128(user);
    connection.execute(AssertSqlSafe(format!("set role {role}; set test.reader = '{user}'"))).await.unwrap();
    connection
}

async fn list(connection: &mut PgConnection, query: &'static str) -> Vec<String> {
    sqlx::query_scalar(query).fetch_all(connection).await.unwrap()
}

async fn refusal(connection: &mut PgConnection, query: &'static str) -> String {
    connection.execute(query).await.unwrap_err().to_string()
}

#[tokio::test]
async fn each_user_sees_the_states_of_the_rows_he_may_see() {
    let world = world().await;
    gristmill(&world, &["views", "install"]).await.ok();
    // Twice is once.
    let said = gristmill(&world, &["views", "install", "documents"]).await.ok().out;
    assert_eq!(said.trim(), "documents: view gristmill.status_documents installed");

    let mut one = reader(&world, "authenticated", 1).await;
    assert_snapshot!(list(&mut one, STATES).await.join("\n"), @"
    empty skipped skipped there is no text 0 0 1 t
    one completed 1 5 1 t
    ");
    let mut two = reader(&world, "authenticated", 2).await;
    assert_eq!(list(&mut two, STATES).await, ["two completed 1 3 1 t"]);
    let mut nobody = reader(&world, "authenticated", 3).await;
    assert_eq!(list(&mut nobody, STATES).await, Vec::<String>::new());
    let mut server = reader(&world, "service_role", 3).await;
    assert_eq!(
        list(&mut server, "select state from gristmill.status_documents order by 1").await,
        ["completed", "completed", "skipped"]
    );

    // A user's own function in a condition is shown nothing more.
    two.execute(
        "create function pg_temp.tell(text) returns boolean language plpgsql cost 0.0000001 as $$ begin raise exception 'saw %', $1; end $$",
    )
    .await
    .unwrap();
    let sly = "select * from gristmill.status_documents where state <> 'completed' and pg_temp.tell(reason)";
    assert_eq!(
        list(&mut two, "select state from gristmill.status_documents where state <> 'completed'").await,
        Vec::<String>::new()
    );
    two.execute(sly).await.unwrap();
    for closed in [
        "select from gristmill.visible_documents",
        "select from gristmill.embedding_jobs",
        "select gristmill.retry(1)",
        "update gristmill.status_documents set state = 'completed'",
    ] {
        let said = refusal(&mut two, closed).await;
        assert!(said.contains("permission denied") || said.contains("cannot update view"), "{closed}: {said}");
    }
    let mut stranger = reader(&world, "anon", 1).await;
    assert!(refusal(&mut stranger, STATES).await.contains("permission denied"));
}

#[tokio::test]
async fn an_owner_whose_policy_hides_rows_sees_no_more_of_their_jobs() {
    let world = world().await;
    gristmill(&world, &["views", "install"]).await.ok();
    world.sql("grant usage, create on schema public to gristmill_test_owner; alter table public.documents owner to gristmill_test_owner; \
        alter table public.documents force row level security; grant usage on schema gristmill to gristmill_test_owner; \
        grant select on gristmill.status_documents to gristmill_test_owner").await;
    let mut owner = reader(&world, "gristmill_test_owner", 2).await;
    assert_eq!(list(&mut owner, "select state from gristmill.status_documents").await, ["completed"]);
    owner.execute("alter table public.documents no force row level security").await.unwrap();
    assert_eq!(list(&mut owner, "select state from gristmill.status_documents").await.len(), 3);
}

#[tokio::test]
async fn after_their_removal_nothing_is_left() {
    let world = world().await;
    let seen = "select c.relname || ' ' || coalesce(c.relacl::text, '') from pg_class c where c.relnamespace = 'gristmill'::regnamespace \
        union all select nspacl::text from pg_namespace where nspname = 'gristmill' order by 1";
    let before = world.list(seen).await;
    gristmill(&world, &["views", "install"]).await.ok();
    assert_ne!(world.list(seen).await, before);
    gristmill(&world, &["views", "remove"]).await.ok();
    assert_eq!(world.list(seen).await, before);
    gristmill(&world, &["views", "remove"]).await.ok();
}

#[tokio::test]
async fn a_view_is_asked_by_key_and_by_tenant_through_indexes() {
    let world = world().await;
    world
        .sql(
            "create index on public.documents (user_id); insert into public.documents (user_id, name, content) \
        select gen_random_uuid(), 'n' || n, 'x' from generate_series(1, 5000) n",
        )
        .await;
    world.sweep(None).await;
    world.sql("analyze public.documents; analyze gristmill.embedding_jobs").await;
    gristmill(&world, &["views", "install"]).await.ok();
    let mut one = reader(&world, "authenticated", 1).await;
    for query in [
        "explain select * from gristmill.status_documents",
        "explain select * from gristmill.status_documents where id = '00000000-0000-0000-0000-000000000001'",
    ] {
        let plan = list(&mut one, query).await.join("\n");
        assert!(!plan.contains("Seq Scan"), "{plan}");
    }
    one.close().await.unwrap();
}

#[tokio::test]
async fn statements_are_printed_for_whoever_may_run_them() {
    let world = world().await;
    let sql = gristmill(&world, &["views", "sql"]).await.ok().out;
    world.sql(&sql).await;
    let mut one = reader(&world, "authenticated", 1).await;
    assert_eq!(list(&mut one, STATES).await.len(), 2);
    world.sql(&gristmill(&world, &["views", "sql", "--remove"]).await.ok().out).await;
    assert!(refusal(&mut one, STATES).await.contains("permission denied for schema gristmill"));
}

#[tokio::test]
async fn a_key_may_be_called_as_our_columns_are_and_must_read_the_same_everywhere() {
    let pipeline = |key: &str, parent: &str| {
        format!(
            "[pipelines.notes]\nkind = \"embed\"\nmodel = \"tiny\"\nexisting = \"backfill\"\n\
             source = {{ table = \"app.notes\", key = [{key}], text = \"{{body}}\" }}\n\
             target = {{ table = \"app.chunks\", parent = {{ {parent} }}, columns = {{ nth = \"{{chunk.index}}\", embedding = \"{{chunk.vector}}\" }} }}\n\
             chunks = {{ tokens = 12, overlap = 0 }}\n"
        )
    };
    let tables = "create schema app; create table app.notes (state text, day date, body text, primary key (state, day), unique (state)); \
        create table app.chunks (state text, day date, nth int, embedding vector(8)); \
        insert into app.notes values ('it''s', '2026-01-31', 'Ground.')";
    let world = application(tables, &pipeline("\"state\"", "state = \"{state}\"")).await;
    gristmill(&world, &["accept", "notes", "--yes"]).await.ok();
    world.work().await;
    gristmill(&world, &["views", "install"]).await.ok();
    let row = "select concat_ws(' ', source_state, state, chunks) from gristmill.status_notes";
    assert_eq!(world.list(row).await, ["it's completed 1"]);

    let both = pipeline("\"state\", \"day\"", "state = \"{state}\", day = \"{day}\"");
    let world = application(tables, &both).await;
    let refused = gristmill(&world, &["views", "install", "notes"]).await;
    assert_eq!(refused.code, 1);
    assert_snapshot!(refused.err.trim(), @"error: notes: day is date, whose text may depend on a session's TimeZone, DateStyle and IntervalStyle: a view cannot find its jobs by it");
}

/// Two pipelines, one of whose keys is a time.
async fn timed() -> World {
    let pipeline = |name: &str| {
        format!(
            "[pipelines.{name}]\nkind = \"embed\"\nmodel = \"tiny\"\nexisting = \"backfill\"\nchunks = {{ whole = true }}\n\
             source = {{ table = \"app.{name}\", key = [\"gm_key\"], text = \"{{body}}\" }}\n\
             target = {{ columns = {{ embedding = \"{{chunk.vector}}\" }} }}\n"
        )
    };
    let tables = "create schema app; create domain app.name as uuid; create domain app.own as app.name; \
        create table app.days (gm_key timestamptz primary key, body text, embedding vector(8)); \
        create table app.notes (gm_key app.own primary key, body text, embedding vector(8)); \
        insert into app.notes values (gen_random_uuid(), 'Ground.')";
    let world = application(tables, &format!("{}{}", pipeline("days"), pipeline("notes"))).await;
    gristmill(&world, &["accept", "notes", "--yes"]).await.ok();
    world.work().await;
    world
}

#[tokio::test]
async fn a_pipeline_that_cannot_have_a_view_keeps_no_other_from_its_own() {
    let world = timed().await;
    let installed = gristmill(&world, &["views", "install"]).await;
    assert_eq!((installed.code, installed.out.trim()), (0, "notes: view gristmill.status_notes installed"));
    assert_snapshot!(installed.err.trim(), @"warning: left out: days: gm_key is timestamptz, whose text may depend on a session's TimeZone, DateStyle and IntervalStyle: a view cannot find its jobs by it");
    let row = "select concat_ws(' ', n.body, s.state) from gristmill.status_notes s join app.notes n using (gm_key)";
    assert_eq!(world.list(row).await, ["Ground. completed"]);

    let sql = gristmill(&world, &["views", "sql"]).await.ok();
    assert!(sql.out.contains("status_notes") && sql.err.contains("left out: days"), "{}", sql.err);
    for asked in [&["views", "install", "notes", "days"][..], &["views", "sql", "days"]] {
        let refused = gristmill(&world, asked).await;
        assert!(refused.code == 1 && refused.err.contains("error: days: gm_key is timestamptz"), "{}", refused.err);
    }
}

#[tokio::test]
async fn views_are_removed_whatever_became_of_their_pipelines() {
    let world = timed().await;
    gristmill(&world, &["views", "install", "notes"]).await.ok();
    world.sql("alter table app.notes add part int not null default 1").await;
    let world = world.change("[pipelines.notes]", "[pipelines.renamed]").change("\"{body}\"", "\"{title}\"");

    let unknown = gristmill(&world, &["views", "remove", "renamed"]).await;
    assert_eq!(unknown.code, 1);
    assert_snapshot!(unknown.err.trim(), @"error: pipeline renamed has no view; those that have: notes");
    let removed = gristmill(&world, &["views", "remove", "notes"]).await.ok().out;
    assert_eq!(removed.trim(), "notes: view gristmill.status_notes removed");
    gristmill(&world, &["views", "remove"]).await.ok();
    let left = "select count(*) from pg_views where schemaname = 'gristmill' and viewname ~ '^(status|visible)_'";
    assert_eq!(world.value::<i64>(left).await, 0);
}
