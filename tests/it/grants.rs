//! The worker's role owns nothing and may do nothing beyond what `gristmill grants` prints.

use gristmill::app;
use insta::assert_snapshot;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::applications::{as_role, configured, misfits, reconnected};
use crate::cli::gristmill;
use crate::schema::make_role;
use crate::world::World;

const NOTES: &str = r#"
[limits.plan]
over = "snooze"
sql = "select 1000000 as tokens from app.plans where team = {tenant}"

[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "backfill"
limit = "plan"
[pipelines.notes.source]
table = "app.notes"
key = ["id"]
tenant = "team"
when = "not exists (select from app.muted as muted where muted.note = source.id)"
text = "{body}"
values = { place = "(select name from app.folders as folder where folder.id = source.folder)" }
[pipelines.notes.queue]
table = "app.asks"
key = { note = "{id}" }
status = { column = "status", words = { skipped = "completed" } }
columns = { ended_at = "{job.finished}" }
[pipelines.notes.chunks]
tokens = 12
overlap = 0
[pipelines.notes.target]
table = "app.note_vectors"
create = true
parent = { note = "{id}" }
columns = { nth = "{chunk.index}", body = "{chunk.text}", place = "{place}", embedding = "{chunk.vector}" }
[pipelines.notes.status]
column = "status"
words = { skipped = "skipped" }
[[pipelines.notes.effects]]
name = "count"
sql = "update app.folders set words = words + {job.words} where id = {folder}"
shared = { table = "app.folders", key = { id = "{folder}" } }
[[pipelines.notes.effects]]
name = "log"
sql = "insert into app.log (note, cents) select {id}, gristmill.carry('cents', {tenant}, {job.cost} * 100) from app.plans where team = {team} on conflict (id) do update set cents = 0 -- never"
[[pipelines.notes.effects]]
name = "order"
sql = "select count(*) from app.turns"
shared = { table = "app.turns", key = { team = "{team}" } }
"#;

const TABLES: &str = "create schema app; \
    create table app.plans (team text primary key); \
    create table app.folders (id bigint primary key, name text, words int not null default 0); \
    create table app.notes (id bigint primary key, team text, folder bigint references app.folders, body text, secret text, status text not null default 'pending'); \
    create table app.muted (note bigint); \
    create table app.asks (id bigserial primary key, note bigint, status text not null default 'pending', ended_at timestamptz); \
    create table app.log (id bigserial primary key, note bigint, cents bigint); \
    create table app.turns (team text primary key, other text); insert into app.turns values ('a'); \
    insert into app.plans values ('a'), ('b'); insert into app.folders values (1, 'Mills', 0); ";

/// That application's world, for a role of the test's own: roles are the whole server's.
async fn prepared(role: &str, more: &str) -> World {
    let world = configured(World::new().await, NOTES);
    for role in [role, "anon", "authenticated"] {
        make_role(&world, role).await;
    }
    world.sql(&format!("{TABLES}{more}")).await;
    reconnected(world).await
}

/// What the owner runs: as one may who reads it.
async fn granted(world: &World, role: &str) -> Vec<String> {
    let out = gristmill(world, &["grants", "--role", role]).await.ok().out;
    let frame = |line: &&str| line.starts_with("-- ") || ["begin;\n", "commit;\n", "\n"].contains(line);
    let statements: String = out.split_inclusive('\n').filter(|line| !frame(line)).collect();
    statements.split_inclusive(";\n").map(str::to_owned).collect()
}

async fn run(world: &World, statements: &[String]) {
    for statement in statements {
        world
            .pool
            .execute(AssertSqlSafe(statement.clone()))
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[tokio::test]
async fn a_pipeline_with_everything_runs_as_a_role_that_owns_nothing() {
    let role = "gristmill_test_granted";
    let world = prepared(role, "").await;
    let statements = granted(&world, role).await;
    let of_the_application: Vec<&str> =
        statements.iter().map(|one| one.trim()).filter(|one| !one.contains(" gristmill")).collect();
    let superuser: String = world.value("select quote_ident(current_user)").await;
    let of_the_application = of_the_application
        .join("\n")
        .replace(&format!("owner to \"{}\"", superuser.trim_matches('"')), "owner to (this server's)");
    assert_snapshot!(of_the_application, @r#"
    create table "app"."note_vectors" (
        "note" "pg_catalog"."int8" not null,
        "nth" pg_catalog.int4 not null,
        "body" pg_catalog.text not null,
        "place" pg_catalog.text,
        "embedding" "public".vector(8) not null,
        primary key ("note", "nth")
    );
    alter table "app"."note_vectors" enable row level security;
    revoke all on "app"."note_vectors" from "anon", "authenticated";
    alter table "app"."note_vectors" add foreign key ("note") references "app"."notes" ("id") on delete cascade;
    alter table "app"."note_vectors" owner to (this server's);
    grant usage on schema "app" to "gristmill_test_granted";
    grant usage on schema "public" to "gristmill_test_granted";
    grant select, update ("ended_at", "status") on "app"."asks" to "gristmill_test_granted";
    grant select, update ("words") on "app"."folders" to "gristmill_test_granted";
    grant select, insert, update ("cents") on "app"."log" to "gristmill_test_granted";
    grant select on "app"."muted" to "gristmill_test_granted";
    grant select, insert, update, delete on "app"."note_vectors" to "gristmill_test_granted";
    grant select, update ("status") on "app"."notes" to "gristmill_test_granted";
    grant select on "app"."plans" to "gristmill_test_granted";
    grant select, update ("team") on "app"."turns" to "gristmill_test_granted";
    grant usage on sequence app.log_id_seq to "gristmill_test_granted";
    alter role "gristmill_test_granted" bypassrls /* row security is on for app.note_vectors */;
    "#);
    assert!(!statements.iter().any(|one| one.contains("forget") || one.contains("delete on gristmill.usage")));
    run(&world, &statements).await;
    let owner = world.pool.clone();
    let world = as_role(world, role).await;

    let checked = gristmill(&world, &["check"]).await;
    assert_eq!(checked.code, 0, "{}", checked.out);
    world.register().await;
    owner
        .execute(
            "insert into app.notes (id, team, folder, body) values (1, 'a', 1, 'The mill grinds.'), (2, 'b', 1, ''), (3, 'a', 1, 'Hush.'); \
             insert into app.muted values (3); insert into app.asks (note) values (1)",
        )
        .await
        .expect("the owner may");
    world.work().await;
    owner
        .execute(
            "update app.notes set body = 'The mill grinds again.' where id = 1; select gristmill.enqueue('notes', 1)",
        )
        .await
        .expect("the owner may");
    world.work().await;
    owner.execute("delete from app.notes where id = 1").await.expect("the owner may");
    world.work().await;

    let told: Vec<String> = sqlx::query_scalar(
        "select concat_ws(' ', 'job', source_key, state, reason) from gristmill.embedding_jobs \
         union all select concat_ws(' ', 'log', note, cents) from app.log \
         union all select concat_ws(' ', 'folder', words) from app.folders \
         union all select concat_ws(' ', 'asked', status, ended_at is not null) from app.asks \
         union all select concat_ws(' ', 'owns', relname) from pg_class where relowner = 'gristmill_test_granted'::regrole order by 1",
    )
    .fetch_all(&owner)
    .await
    .expect("the owner sees all");
    assert_snapshot!(told.join("\n"), @r#"
    asked completed t
    folder 7
    job ["1"] cancelled source row is gone
    job ["2"] skipped there is no text
    log 1 0
    log 1 0
    "#);
    // What it does not write, it may not.
    let refused = world.pool.execute("update app.notes set secret = 'known'").await.expect_err("it is the owner's");
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    let refused = world.pool.execute("update app.folders set name = 'mine'").await.expect_err("no effect names it");
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    let refused = world.pool.execute("select gristmill.forget('a')").await.expect_err("it is the owner's");
    assert!(refused.to_string().contains("permission denied"), "{refused}");
}

#[tokio::test]
async fn each_block_names_the_role_that_can_run_it() {
    let role = "gristmill_test_blocks";
    let world = prepared(role, "").await;
    for owner in ["gristmill_test_blocks_ours", "gristmill_test_blocks_tables"] {
        make_role(&world, owner).await;
    }
    world
        .sql(
            "do $$ declare one record; begin \
               for one in select oid::regclass as name, relnamespace::regnamespace::text as schema from pg_class \
                          where relnamespace in ('gristmill'::regnamespace, 'app'::regnamespace) and relkind in ('r', 'v') loop \
                 execute format('alter table %s owner to gristmill_test_blocks_%s', one.name, case one.schema when 'app' then 'tables' else 'ours' end); \
               end loop; \
               for one in select oid::regprocedure as name from pg_proc where pronamespace = 'gristmill'::regnamespace loop \
                 execute format('alter function %s owner to gristmill_test_blocks_ours', one.name); \
               end loop; \
             end $$; \
             alter schema app owner to gristmill_test_blocks_tables; alter schema gristmill owner to gristmill_test_blocks_ours",
        )
        .await;
    let out = gristmill(&world, &["grants", "--role", role]).await.ok().out;
    let superuser: String = world.value("select current_user::text").await;
    let mut givers = Vec::new();
    for block in out.split("-- To be run by ").skip(1) {
        let (who, statements) = block.split_once('\n').expect("it is a comment");
        let who = who.trim_end_matches(", or a superuser");
        assert!(statements.starts_with("begin;\n") && statements.trim_end().ends_with("\ncommit;"), "{statements}");
        let runs_as = if who == "a superuser" { &superuser } else { who };
        let mut connection = world.database.connect().await;
        let whole = format!("set role {runs_as}; {statements}");
        connection.execute(AssertSqlSafe(whole)).await.unwrap_or_else(|error| panic!("{who}: {error}"));
        givers.push(who.replace(&superuser, "(this server's)"));
    }
    assert_eq!(
        givers,
        ["gristmill_test_blocks_ours", "gristmill_test_blocks_tables", "(this server's)", "a superuser"]
    );
    let checked = gristmill(&as_role(world, role).await, &["check"]).await;
    assert_eq!(checked.code, 0, "{}", checked.out);
}

#[tokio::test]
async fn every_right_that_is_taken_away_is_named() {
    let role = "gristmill_test_stripped";
    let world = prepared(role, "").await;
    let statements = granted(&world, role).await;
    run(&world, &statements).await;
    let owner = world.pool.clone();
    let world = as_role(world, role).await;
    assert_eq!(misfits(&world).await, "");
    let mut unnamed = Vec::new();
    // Schema public is everybody's to use unless somebody has said otherwise.
    let taken_away = |one: &&String| one.starts_with("grant ") && !one.starts_with("grant usage on schema \"public\"");
    for statement in statements.iter().filter(taken_away) {
        // Rights of rows in our own schema, and those on sequences and functions, are one list.
        let taken = statement.replacen("grant ", "revoke ", 1).replace(" to \"", " from \"");
        owner.execute(AssertSqlSafe(taken)).await.expect("the owner may");
        let mut own = world.pool.acquire().await.expect("it is there");
        let ours = app::check_schema(&world.pool).await.is_err()
            || !gristmill::db::app::grants::lacking(&mut own).await.is_ok_and(|lacking| lacking.is_empty());
        if !ours && misfits(&world).await.is_empty() {
            unnamed.push(statement.clone());
        }
        owner.execute(AssertSqlSafe(statement.clone())).await.expect("the owner may");
    }
    assert_snapshot!(unnamed.concat(), @"");
}

#[tokio::test]
async fn row_security_is_told_by_name_and_lifted_for_the_worker_alone() {
    let role = "gristmill_test_secured";
    let policy = "create policy own on app.notes using (team = current_setting('test.team', true))";
    let world = prepared(role, &format!("alter table app.notes enable row level security; {policy}; ")).await;
    world.sql(&format!("alter role {role} nobypassrls")).await;
    let mut statements = granted(&world, role).await;
    let bypass = statements.iter().position(|one| one.starts_with("alter role")).expect("row security is seen");
    let bypass = statements.remove(bypass);
    run(&world, &statements).await;
    let owner = world.pool.clone();
    let world = as_role(world, role).await;
    assert_snapshot!(misfits(&world).await, @r#"
    workers.toml:58: pipelines.notes.source: row security of app.notes hides rows from this role
        to mend it: alter role "gristmill_test_secured" bypassrls;
    workers.toml:73: pipelines.notes.target: row security of app.note_vectors hides rows from this role
        to mend it: alter role "gristmill_test_secured" bypassrls;
    "#);

    owner.execute(AssertSqlSafe(bypass)).await.expect("the owner may");
    world.register().await;
    owner
        .execute("insert into app.notes (id, team, folder, body) values (1, 'a', 1, 'Grain.'), (2, 'b', 1, 'Flour.')")
        .await
        .expect("the owner may");
    world.work().await;
    owner.execute(AssertSqlSafe(format!("alter role {role} nobypassrls"))).await.expect("the owner may");
    let told: Vec<String> = sqlx::query_scalar("select concat_ws(' ', note, body) from app.note_vectors order by note")
        .fetch_all(&owner)
        .await
        .expect("the owner sees all");
    assert_eq!(told, ["1 Grain.", "2 Flour."]);
}

#[tokio::test]
async fn a_reader_looks_and_sees_no_text() {
    let world = World::new().await;
    make_role(&world, "gristmill_test_reader").await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    let absent = gristmill(&world, &["grants", "--for", "reader", "--role", "nobody"]).await.ok().out;
    assert!(absent.starts_with("-- role nobody does not exist yet\n\n-- To be run by "), "{absent}");
    let refused = gristmill(&world, &["grants", "--role", ""]).await;
    assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{}", refused.err);
    let out = gristmill(&world, &["grants", "--for", "reader", "--role", "gristmill_test_reader"]).await.ok().out;
    assert!(out.starts_with("-- To be run by "), "{out}");
    world.sql(&out).await;
    let world = as_role(world, "gristmill_test_reader").await;
    let status = gristmill(&world, &["status", "--json"]).await.ok().json();
    let (standing, notes) = (&status["pipelines"][0]["standing"], &status["notes"]);
    let note = "not held against the tables, which is for the worker's role to do: documents (this role may not select public.documents)";
    assert_eq!((standing, notes), (&"ready".into(), &serde_json::json!([note])));
    for command in [&["status"][..], &["jobs", "list"], &["jobs", "show", "1"], &["usage"], &["usage", "reconcile"]] {
        gristmill(&world, command).await.ok();
    }
    for secret in ["vector_cache", "transcript_parts", "embedding_jobs"] {
        let refused = world.pool.execute(AssertSqlSafe(format!("select * from gristmill.{secret}"))).await;
        assert!(refused.is_err(), "{secret}");
    }
    let refused = gristmill(&world, &["pause", "documents"]).await;
    assert_eq!(refused.code, 1);
}

#[tokio::test]
async fn the_owner_of_the_tables_installs_triggers_and_views_and_takes_them_away() {
    let world = World::new().await;
    for role in ["gristmill_test_owning", "authenticated"] {
        make_role(&world, role).await;
    }
    world.register().await;
    world.sql("alter table public.documents owner to gristmill_test_owning; alter table public.document_chunks owner to gristmill_test_owning").await;
    let out = gristmill(&world, &["grants", "--for", "owner", "--role", "gristmill_test_owning"]).await.ok().out;
    world.sql(&out).await;
    let pool = world.pool.clone();
    let world = as_role(world, "gristmill_test_owning").await;
    gristmill(&world, &["triggers", "install"]).await.ok();
    let said = gristmill(&world, &["views", "install"]).await.ok().err;
    assert!(!said.contains("privileges"), "{said}");
    let may: bool = sqlx::query_scalar(
        "select has_schema_privilege('authenticated', 'gristmill', 'usage') and has_table_privilege('authenticated', 'gristmill.status_documents', 'select')",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert!(may, "the application's users read the view");
    sqlx::raw_sql(
        "insert into public.documents (user_id, name, content) values (gen_random_uuid(), 'note', 'The mill grinds.')",
    )
    .execute(&pool)
    .await
    .expect("the statement holds");
    let seen: i64 =
        sqlx::query_scalar("select count(*) from gristmill.status_documents").fetch_one(&pool).await.unwrap();
    assert_eq!(seen, 1, "announced by a trigger, shown by a view");
    gristmill(&world, &["triggers", "remove"]).await.ok();
    gristmill(&world, &["views", "remove"]).await.ok();
}

#[tokio::test]
async fn a_target_that_a_superuser_makes_is_its_sources_owners_who_installs_without_a_right_to_its_rows() {
    let [role, owner] = ["gristmill_test_made_worker", "gristmill_test_made_owner"];
    let world = prepared(role, "").await;
    make_role(&world, owner).await;
    world
        .sql(&format!(
            "alter schema app owner to {owner}; alter table app.notes owner to {owner}; alter table app.folders owner to {owner}"
        ))
        .await;
    let out = gristmill(&world, &["grants", "--role", role]).await.ok().out;
    world.sql(&out).await;
    let of_target = "select pg_get_userbyid(relowner)::text from pg_class where oid = 'app.note_vectors'::regclass";
    assert_eq!(world.list(of_target).await, [owner]);

    // And where it is another's after all, whose rows are hidden.
    world.sql("alter table app.note_vectors owner to current_user; alter table app.note_vectors enable row level security").await;
    let out = gristmill(&world, &["grants", "--for", "owner", "--role", owner]).await.ok().out;
    // What another owns and a trigger reads is among it.
    let of_tables: Vec<&str> = out.lines().filter(|line| line.contains("app")).collect();
    assert_eq!(of_tables, [format!("grant select on \"app\".\"muted\" to \"{owner}\";")]);
    let superuser = world.pool.clone();
    let world = as_role(world, owner).await;
    superuser.execute(AssertSqlSafe(out.replace("grant select on \"app\"", "-- "))).await.expect("a superuser may");
    let refused = gristmill(&world, &["triggers", "install"]).await;
    let said = "error: notes: its triggers would read with this role's rights, which do not reach so far (permission denied for table muted); \
                `gristmill grants --for owner` prints what it lacks";
    assert_eq!(refused.err.trim(), said);
    superuser.execute(AssertSqlSafe(out)).await.expect("a superuser may");
    gristmill(&world, &["triggers", "install"]).await.ok();
    gristmill(&world, &["views", "install"]).await.ok();
    let refused = gristmill(&world, &["verify"]).await;
    assert!(refused.err.contains("app.note_vectors"), "{}", refused.err);
}

const EFFECTS: &str = r#"
[[pipelines.notes.effects]]
name = "gone"
sql = "delete from app.muted where note = {id} and exists (select 1 from app.loud as loud where loud.id = {id}) and exists (select from app.heard())"
[[pipelines.notes.effects]]
name = "named"
sql = "update app.titled set title = {body} where id = {id}"
[[pipelines.notes.effects]]
name = "own"
sql = "update app.asked set called = {body} where number = {id}"
[[pipelines.notes.effects]]
name = "both"
sql = "merge into app.sums as s using (select {id} as id) as given on given.id = s.id when matched then update set x = 1 when not matched then insert (id) values (given.id)"
[[pipelines.notes.effects]]
name = "numbered"
sql = "insert into app.lines (note) values ({id})"
[[pipelines.notes.effects]]
name = "held"
sql = "select from app.held where id = {id} for update"
"#;

const VIEWS: &str = "create table app.shouts (id bigint, words int); create view app.loud as select id from app.shouts; \
    create table app.ears (id bigint); create function app.heard() returns setof app.ears language sql stable as 'select * from app.ears'; \
    create table app.titles (id bigint primary key, title text, x int); create view app.titled as select id, title from app.titles; \
    create table app.names (name text, n bigint, x int); \
    create view app.asked with (security_invoker = true) as select n as number, name as called from app.names where exists (select from app.loud); \
    create table app.sums (id bigint primary key, x int) partition by range (id); \
    create table app.sums_low partition of app.sums default; \
    create table app.numbers (id bigserial primary key, note bigint); create view app.lines as select id, note from app.numbers; \
    create table app.held (id bigint, x int); ";

#[tokio::test]
async fn what_goes_through_a_view_is_asked_of_the_view() {
    let role = "gristmill_test_viewing";
    let mut world = configured(World::new().await, NOTES);
    world.toml.push_str(EFFECTS);
    for role in [role, "anon", "authenticated"] {
        make_role(&world, role).await;
    }
    world.sql(&format!("{TABLES}{VIEWS}")).await;
    let world = reconnected(world).await;
    let statements = granted(&world, role).await;
    let relations = ["ears", "loud", "shouts", "titl", "asked", "names", "muted", "sums", "lines", "numbers", "held"];
    let of_effects: Vec<&str> = statements
        .iter()
        .map(|one| one.trim())
        .filter(|one| {
            relations
                .iter()
                .any(|name| one.contains(&format!("app\".\"{name}")) || one.contains(&format!("app.{name}_id")))
        })
        .collect();
    assert_snapshot!(of_effects.join("\n"), @r#"
    grant select, update ("called") on "app"."asked" to "gristmill_test_viewing";
    grant select on "app"."ears" to "gristmill_test_viewing";
    grant select, update ("id") on "app"."held" to "gristmill_test_viewing";
    grant insert on "app"."lines" to "gristmill_test_viewing";
    grant select on "app"."loud" to "gristmill_test_viewing";
    grant select, delete on "app"."muted" to "gristmill_test_viewing";
    grant select, update ("name") on "app"."names" to "gristmill_test_viewing";
    grant select, insert, update ("x") on "app"."sums" to "gristmill_test_viewing";
    grant select, update ("title") on "app"."titled" to "gristmill_test_viewing";
    grant usage on sequence app.numbers_id_seq to "gristmill_test_viewing";
    "#);

    run(&world, &statements).await;
    let owner = world.pool.clone();
    let world = as_role(world, role).await;
    let checked = gristmill(&world, &["check"]).await;
    assert_eq!(checked.code, 0, "{}", checked.out);
    world.register().await;
    owner
        .execute(
            "insert into app.shouts values (1); insert into app.titles values (1); insert into app.names values ('', 1); \
             insert into app.notes (id, team, folder, body) values (1, 'a', 1, 'The mill grinds.')",
        )
        .await
        .expect("the owner may");
    world.work().await;
    let told: Vec<String> = sqlx::query_scalar(
        "select concat_ws(' ', state, reason) from gristmill.embedding_jobs union all select title from app.titles union all \
         select name from app.names union all select concat_ws(' ', 'sum', id) from app.sums union all \
         select concat_ws(' ', 'line', id, note) from app.numbers",
    )
    .fetch_all(&owner)
    .await
    .expect("the owner sees all");
    assert_eq!(told, ["completed", "The mill grinds.", "The mill grinds.", "sum 1", "line 1 1"]);
}
