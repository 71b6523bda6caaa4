//! What is forgotten is nowhere: a canary is searched for in every column of every table of ours.

use std::time::Duration;

use gristmill::db::calls;
use insta::assert_snapshot;
use sqlx::AssertSqlSafe;

use crate::applications::{as_role, configured, reconnected};
use crate::cli::gristmill;
use crate::schema::make_role;
use crate::world::World;

const NOTES: &str = r#"
[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "backfill"
on_leave = "keep"
[pipelines.notes.source]
table = "app.notes"
key = ["id"]
tenant = "team"
text = "{body}"
[pipelines.notes.chunks]
tokens = 12
overlap = 0
[pipelines.notes.target]
table = "app.note_vectors"
create = true
parent = { note = "{id}" }
columns = { nth = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}" }
[pipelines.notes.signal]
notify = "ready"
webhook = { url = "http://127.0.0.1:1/", secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" }
[[pipelines.notes.effects]]
name = "left"
on = ["left"]
sql = "select gristmill.carry({body}, {tenant}, 0.5)"
"#;

/// The tables with a canary in any column, and in how many rows.
async fn canaries(world: &World) -> String {
    let tables = world
        .list(
            "select format('%I.%I', table_schema, table_name) from information_schema.tables \
             where table_type = 'BASE TABLE' and (table_schema = 'gristmill' or table_name = 'note_vectors') order by 1",
        )
        .await;
    assert!(tables.len() > 15, "{tables:?}");
    let mut found = Vec::new();
    for table in tables {
        // Bytes as text as well.
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
            "select count(*) from {table} as t where t::text ilike '%canary%' or t::text like '%' || encode('canary', 'hex') || '%'"
        )))
        .fetch_one(&world.pool)
        .await
        .unwrap();
        if rows > 0 {
            found.push(format!("{table} {rows}"));
        }
    }
    found.join("\n")
}

/// Two tenants, one of whom has a canary in everything that is known of it.
async fn world() -> World {
    world_of(configured(World::new().await, NOTES)).await
}

async fn world_of(world: World) -> World {
    world
        .sql("create schema app; create table app.notes (id text not null unique deferrable, team text, body text)")
        .await;
    let world = reconnected(world).await;
    world.work().await;
    world
        .sql(
            "insert into app.notes values ('canary 1', 'canary team', 'A canary sings.'), ('canary 2', 'canary team', 'Two canaries.'), \
             ('3', 'others', 'A finch of others.')",
        )
        .await;
    world.work().await;
    world
        .sql(
            "insert into gristmill.job_attempts (job_id, revision, attempt, outcome, reason) select id, 1, 1, 'retry', 'the canary was ill' from gristmill.embedding_jobs where tenant like 'canary%'; \
             insert into gristmill.transcript_parts (job_id, content, part, text, segments) select id, sha256('x'), 0, 'canary', '[]' from gristmill.embedding_jobs where tenant like 'canary%'; \
             insert into gristmill.vector_cache (tenant, model, digest, vector) select distinct tenant, 'm', sha256('x'), 'canary'::bytea from gristmill.embedding_jobs where tenant like 'canary%'; \
             insert into gristmill.reservations (job_id, lease_id, limit_name, tenant, tokens, usd) select id, gen_random_uuid(), 'canary', tenant, 1, 1 from gristmill.embedding_jobs where tenant like 'canary%'; \
             insert into gristmill.announcements (pipeline, source_key, tenant, priority, by_person) select pipeline, source_key, tenant, 0, false from gristmill.embedding_jobs; \
             insert into gristmill.spending (pipeline, scope, day, usd) values ('notes', 'tenant canary team', '2026-01-01', 1); \
             insert into gristmill.workers (id, name, version, slots, paused_lanes) values (gen_random_uuid(), 'dead', '0', 1, '[{\"tenants\": [\"canary team\"]}]'); \
             update gristmill.pipelines set census_after = '[\"canary 1\"]'; \
             update gristmill.embedding_jobs set traceparent = 'canary', mirror_error = 'canary', kept = '{\"body\": \"canary\"}' where tenant like 'canary%'",
        )
        .await;
    world
}

/// Its rows are gone, and a worker has seen it.
async fn without(world: &World, rows: &str) {
    world.sql(&format!("delete from app.notes where {rows}; delete from gristmill.announcements")).await;
    world.work().await;
    // What an application under stricter isolation announces once more, and no worker has seen.
    world
        .sql(
            "insert into gristmill.announcements (pipeline, source_key, tenant, priority, by_person) \
             select pipeline, source_key, tenant, 0, false from gristmill.embedding_jobs",
        )
        .await;
}

#[tokio::test]
async fn of_a_tenant_that_is_forgotten_nothing_is_left_but_sums() {
    let world = world().await;
    let refused = gristmill(&world, &["forget", "--tenant", "canary team", "--yes"]).await;
    assert!(refused.code == 1 && refused.err.contains("still in a set"), "{}", refused.err);
    without(&world, "team = 'canary team'").await;
    assert_snapshot!(canaries(&world).await, @r"
    app.note_vectors 2
    gristmill.announcements 2
    gristmill.carry 1
    gristmill.embedding_jobs 2
    gristmill.job_attempts 2
    gristmill.outbox 4
    gristmill.pipelines 1
    gristmill.provider_call_jobs 2
    gristmill.reservations 2
    gristmill.spending 1
    gristmill.transcript_parts 2
    gristmill.usage_events 2
    gristmill.vector_cache 1
    gristmill.workers 1
    ");
    let sums = "select concat_ws(' ', count(*), sum(quantity), sum(cost), count(distinct tenant)) from gristmill.usage_events \
                union all select concat_ws(' ', count(*), sum(tokens), sum(cost), count(distinct tenant)) from gristmill.provider_call_jobs";
    let before = world.list(sums).await;

    gristmill(&world, &["forget", "--tenant", "canary team", "--yes"]).await.ok();

    assert_snapshot!(canaries(&world).await, @"");
    world.sql("delete from app.notes").await;
    assert_eq!(world.list(sums).await, before);
    assert_eq!(gristmill(&world, &["usage", "reconcile"]).await.code, 0);
    let others = world.list("select concat_ws(' ', source_key, state) from gristmill.embedding_jobs").await;
    assert_eq!(others, ["[\"3\"] completed"]);
}

#[tokio::test]
async fn whoever_owns_our_schema_forgets_with_the_rights_that_are_printed() {
    let role = "gristmill_test_forgetting";
    let world = configured(World::new().await, NOTES);
    make_role(&world, role).await;
    world.sql(&format!("alter role {role} nobypassrls; drop schema gristmill cascade")).await;
    let grants = ["grants", "--for", "migrator", "--role", role];
    world.sql(&gristmill(&world, &grants).await.ok().out).await;
    let (owner, toml) = (world.pool.clone(), world.toml.clone());
    let world = as_role(world, role).await;
    gristmill(&world, &["migrate"]).await.ok();
    let world = world_of(World { pool: owner, toml, ..world }).await;
    world.sql("alter table app.note_vectors enable row level security").await;
    without(&world, "team = 'canary team'").await;
    let out = gristmill(&world, &grants).await.ok().out;
    let superuser: String = world.value("select current_user::text").await;
    let database: String = world.value("select current_database()::text").await;
    assert_snapshot!(out.replace(&superuser, "(this server's)").replace(&database, "(this)"), @r#"
    -- To be run by (this server's), or a superuser
    begin;
    grant create on database "(this)" to "gristmill_test_forgetting";
    grant usage on schema "app" to "gristmill_test_forgetting";
    grant select ("note"), update ("note"), delete on "app"."note_vectors" to "gristmill_test_forgetting";
    commit;

    -- To be run by a superuser
    begin;
    alter role "gristmill_test_forgetting" bypassrls /* row security is on for app.note_vectors */;
    commit;
    "#);
    let owner = world.pool.clone();
    let mut world = as_role(world, role).await;
    let forget = ["forget", "--tenant", "canary team", "--yes"];
    let refused = gristmill(&world, &forget).await;
    assert_snapshot!(refused.err, @"error: nothing was forgotten: this role may not remove chunks of pipeline notes (permission denied for schema app); `gristmill grants --for migrator` prints what it lacks");

    let (first, last) = out.split_once("-- To be run by a superuser").expect("row security is on");
    sqlx::raw_sql(AssertSqlSafe(first.to_owned())).execute(&owner).await.expect("the owner may");
    let refused = gristmill(&world, &forget).await;
    assert!(refused.err.contains("row-level security policy for table \"note_vectors\""), "{}", refused.err);
    sqlx::raw_sql(AssertSqlSafe(last.trim_start().to_owned())).execute(&owner).await.expect("the owner may");
    gristmill(&world, &forget).await.ok();
    let refused =
        sqlx::query("select body from app.note_vectors").execute(&world.pool).await.expect_err("it is not its to read");
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    sqlx::raw_sql(AssertSqlSafe(format!("alter role {role} nobypassrls")))
        .execute(&owner)
        .await
        .expect("the owner may");
    world.pool = owner;
    assert_eq!(canaries(&world).await, "");
}

#[tokio::test]
async fn of_a_row_that_is_forgotten_nothing_is_left_but_sums() {
    let world = world().await;
    let forget = ["forget", "notes", "canary 1", "--yes"];
    let refused = gristmill(&world, &forget).await;
    assert!(refused.code == 1 && refused.err.contains("still in a set"), "{}", refused.err);
    without(&world, "id = 'canary 1'").await;
    let told = gristmill(&world, &["forget", "notes", "canary 1", "--dry-run", "--json"]).await.ok().json();
    assert_eq!(told, serde_json::json!({ "jobs": 1, "jobs_in_a_set": 0, "usage_events": 1, "searches": 0 }));

    gristmill(&world, &forget).await.ok();

    let left = world
        .list(
            "select 'job' from gristmill.embedding_jobs where source_key ? 'canary 1' union all \
             select 'chunk' from app.note_vectors where note = 'canary 1' union all \
             select 'announced' from gristmill.announcements where source_key ? 'canary 1' union all \
             select 'webhook' from gristmill.outbox where payload::text like '%canary 1%' union all \
             select 'census' from gristmill.pipelines where census_after ? 'canary 1' union all \
             select 'vector' from gristmill.vector_cache where tenant = 'canary team' union all \
             select 'orphan' from gristmill.reservations r where not exists (select from gristmill.embedding_jobs j where j.id = r.job_id)",
        )
        .await;
    assert_eq!(left, Vec::<String>::new());
    let stays = world.list("select concat_ws(' ', source_key, state) from gristmill.embedding_jobs order by 1").await;
    assert_eq!(stays, ["[\"3\"] completed", "[\"canary 2\"] completed"]);
    assert_eq!(gristmill(&world, &["usage", "reconcile"]).await.code, 0);
    assert_eq!(gristmill(&world, &["forget", "notes"]).await.code, 2);
}

#[tokio::test]
async fn what_a_call_under_way_will_bring_is_waited_for() {
    let world = world().await;
    without(&world, "team = 'canary team'").await;
    world
        .sql(
            "insert into gristmill.workers (id, name, version, slots) values ('00000000-0000-0000-0000-000000000001', 'a', '1', 1); \
             insert into gristmill.provider_calls (id, worker, provider, model, inputs, tokens_estimated) \
                 values (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'vendor', 'tiny', 1, 1); \
             insert into gristmill.provider_call_jobs select c.id, j.id, 9, j.tenant, 1, 1 from gristmill.provider_calls c, gristmill.embedding_jobs j \
                 where c.outcome = 'intent' and j.tenant = 'canary team'",
        )
        .await;
    let forget = ["forget", "--tenant", "canary team", "--yes"];

    let refused = gristmill(&world, &forget).await;
    assert!(refused.code == 1 && refused.err.contains("a call for these jobs is under way"), "{}", refused.err);

    world.sql("update gristmill.provider_calls set outcome = 'failed' where outcome = 'intent'").await;
    gristmill(&world, &forget).await.ok();
}

#[tokio::test]
async fn a_search_under_way_is_waited_for_and_a_killed_one_until_a_worker_marks_it() {
    let world = world().await;
    without(&world, "team = 'canary team'").await;
    // As a search leaves it: no worker's, and no job's.
    world
        .sql(
            "insert into gristmill.provider_calls (id, worker, provider, model, inputs, tokens_estimated, purpose) \
                 values ('00000000-0000-0000-0000-000000000002', gen_random_uuid(), 'vendor', 'tiny', 1, 1, 'search'); \
             insert into gristmill.provider_call_jobs values ('00000000-0000-0000-0000-000000000002', 0, 0, 'canary team', 1, 1)",
        )
        .await;
    let forget = ["forget", "--tenant", "canary team", "--yes"];

    let refused = gristmill(&world, &forget).await;
    assert_eq!(refused.code, 1, "{}", refused.out);
    assert_snapshot!(refused.err, @"error: a search of this tenant is under way; try again when it has ended; of one that was killed, a running worker marks the call as unknown within a few minutes");

    world
        .sql("update gristmill.provider_calls set started_at = now() - interval '1 hour' where outcome = 'intent'")
        .await;
    calls::mark_unknown(&world.pool, Duration::from_mins(1)).await.unwrap();
    gristmill(&world, &forget).await.ok();
    assert_snapshot!(canaries(&world).await, @"");
}
