//! Schema `gristmill`: who may do what in it, what it refuses, and that the queries compiled against it still fit.

use std::collections::BTreeMap;
use std::path::Path;

use gristmill::app;
use gristmill::db::migrate::{Migrated, Set, run};
use insta::assert_snapshot;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Column as _, Executor as _, PgPool, SqlSafeStr as _, TypeInfo as _};

use crate::cli::gristmill;
use crate::world::World;

/// A database that has pgvector and nothing of ours.
async fn bare(world: &World) {
    world.sql("drop schema gristmill cascade; drop table public.document_chunks, public.documents; drop function public.documents_touch").await;
}

/// Roles are shared by all databases of the server, and by tests that run beside this one: made once, never dropped.
pub async fn make_role(world: &World, role: &str) {
    world
        .sql(&format!(
            "do $$ begin create role {role}; exception when duplicate_object or unique_violation then null; end $$"
        ))
        .await;
}

#[tokio::test]
async fn migrating_twice_changes_nothing() {
    let world = World::new().await;
    bare(&world).await;

    let ours = run(&world.pool, Set::Ours).await.expect("the migrations hold");
    run(&world.pool, Set::Starter).await.expect("the starter schema fits");
    let shape = shape_of(&world).await;
    let again = run(&world.pool, Set::Ours).await.expect("nothing is left to do");
    run(&world.pool, Set::Starter).await.expect("nothing is left to do");

    assert_eq!(ours, Migrated { from: None, to: Set::Ours.newest() });
    assert_eq!(again, Migrated { from: Some(Set::Ours.newest()), to: Set::Ours.newest() });
    assert_eq!(shape_of(&world).await, shape);
}

async fn shape_of(world: &World) -> Vec<String> {
    world
        .list(
            "select c.oid::regclass || ' ' || c.oid || ' ' || coalesce((select string_agg(a.attname, ',' order by a.attnum) \
                 from pg_attribute a where a.attrelid = c.oid and a.attnum > 0), '') from pg_class c \
             where c.relnamespace in ('gristmill'::regnamespace, 'public'::regnamespace) order by c.oid",
        )
        .await
}

#[tokio::test]
async fn processes_that_migrate_at_once_wait_for_each_other() {
    let world = World::new().await;
    bare(&world).await;
    let mut processes = Vec::new();
    for _ in 0..4 {
        let pool = PgPoolOptions::new().max_connections(1).connect(&world.database.url).await.expect("it is there");
        processes.push(tokio::spawn(async move { run(&pool, Set::Ours).await.map(|migrated| migrated.to) }));
    }

    for process in processes {
        let to = process.await.expect("no panic").expect("every process finds the schema migrated");
        assert_eq!(to, Set::Ours.newest());
    }

    app::check_schema(&world.pool).await.expect("the schema is whole");
}

#[tokio::test]
async fn a_schema_of_another_version_is_refused_with_the_way_out() {
    let world = World::new().await;
    let said = async |world: &World| match app::check_schema(&world.pool).await {
        Ok(()) => "fine".to_owned(),
        Err(error) => {
            let way_out = error.way_out().unwrap_or_default();
            format!("{error}; {way_out}").replace(&format!(" {};", Set::Ours.newest()), " [newest];")
        }
    };
    assert_eq!(said(&world).await, "fine");

    world.sql("delete from gristmill._sqlx_migrations where version > 1").await;
    assert_snapshot!(said(&world).await, @"schema gristmill is at version 1, this binary needs [newest]; run `gristmill migrate`");

    world.sql("update gristmill._sqlx_migrations set version = 7000").await;
    assert_snapshot!(said(&world).await, @"schema gristmill is at version 7000, newer than this binary's [newest]; update the binary");

    world.sql("drop schema gristmill cascade").await;
    assert_snapshot!(said(&world).await, @"schema gristmill is not there; run `gristmill migrate`");
}

#[tokio::test]
async fn a_migration_that_was_applied_from_another_text_is_named() {
    let world = World::new().await;
    world.register().await;
    let said = async || {
        let findings = gristmill(&world, &["check", "--json"]).await.ok().json();
        let warnings = findings.as_array().unwrap().iter().filter(|one| one["about"] == "schema");
        warnings.map(|one| format!("{} {}", one["level"], one["message"])).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(said().await, "");

    world.sql("update gristmill._sqlx_migrations set checksum = 'x' where version in (2, 12)").await;

    assert_snapshot!(said().await, @r#""warning" "versions 2 and 12 were applied from another text than this binary's, or not to the end (gristmill._sqlx_migrations): the schema may be another than it is taken for, and `gristmill migrate` will refuse; use the build that applied it, or restore what that table held""#);
    assert_eq!(gristmill(&world, &["migrate"]).await.code, 1);
}

/// Everything in the schema that a role may use, as `object: rights`.
async fn rights_of(world: &World, role: &str) -> String {
    let query = format!(
        "with rights (object, right_name, held) as ( \
             select 'schema gristmill', r, has_schema_privilege('{role}', 'gristmill', r) from unnest(array['USAGE', 'CREATE']) r \
             union all \
             select c.relname, r, has_table_privilege('{role}', c.oid, r) \
             from pg_class c, unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) r \
             where c.relnamespace = 'gristmill'::regnamespace and c.relkind in ('r', 'v', 'm', 'p') \
             union all \
             select c.relname, r, has_sequence_privilege('{role}', c.oid, r) from pg_class c, unnest(array['USAGE', 'SELECT', 'UPDATE']) r \
             where c.relnamespace = 'gristmill'::regnamespace and c.relkind = 'S' \
             union all \
             select p.oid::regprocedure::text, 'EXECUTE', has_function_privilege('{role}', p.oid, 'EXECUTE') from pg_proc p \
             where p.pronamespace = 'gristmill'::regnamespace \
         ) select object || ': ' || string_agg(right_name, ', ' order by right_name) from rights where held group by object order by object",
    );
    world.list(&query).await.join("\n")
}

#[tokio::test]
async fn public_may_nothing_in_our_schema() {
    let world = World::new().await;
    world.register().await;
    install_triggers(&world).await;
    make_role(&world, "gristmill_test_nobody").await;

    assert_eq!(rights_of(&world, "gristmill_test_nobody").await, "");
}

async fn install_triggers(world: &World) {
    use gristmill::db::app::{TriggerSet, install};
    let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
    let mut connection = world.database.connect().await;
    for plan in &resolved.plans {
        install(&mut connection, &TriggerSet::of(plan)).await.expect("the owner may create triggers");
    }
}

#[tokio::test]
async fn supabase_s_server_role_may_look_and_ask_and_its_users_nothing() {
    let world = World::new().await;
    for role in ["service_role bypassrls", "authenticated", "anon"] {
        make_role(&world, role).await;
    }
    bare(&world).await;
    run(&world.pool, Set::Ours).await.expect("the migrations hold");
    run(&world.pool, Set::Starter).await.expect("the starter schema fits");

    assert_snapshot!(rights_of(&world, "service_role").await, @"
    backlog: SELECT
    embedding_jobs: SELECT
    gristmill.cancel(bigint): EXECUTE
    gristmill.carry(text,text,numeric): EXECUTE
    gristmill.enqueue(text,anyelement,integer,text): EXECUTE
    gristmill.enqueue(text,text,integer,text): EXECUTE
    gristmill.forget(text): EXECUTE
    gristmill.forget(text,anyelement): EXECUTE
    gristmill.forget(text,text): EXECUTE
    gristmill.pause(text,text): EXECUTE
    gristmill.redeliver(text): EXECUTE
    gristmill.resume(text): EXECUTE
    gristmill.retry(bigint,boolean): EXECUTE
    job_attempts: SELECT
    pipelines: SELECT
    schema gristmill: USAGE
    usage_by_day: SELECT
    usage_events: SELECT
    ");
    assert_eq!(rights_of(&world, "authenticated").await, "");
    assert_eq!(rights_of(&world, "anon").await, "");

    // What it may, it can.
    world.register().await;
    let mut connection = world.database.connect().await;
    let asked = "set role service_role; select gristmill.enqueue('documents', gen_random_uuid()); select gristmill.pause('documents'); \
                 select gristmill.resume('documents'); select gristmill.cancel(1); select gristmill.retry(1); \
                 select * from gristmill.backlog; select * from gristmill.usage_by_day; insert into public.documents (user_id, name, content) \
                 values (gen_random_uuid(), 'a', 'b')";
    connection.execute(sqlx::raw_sql(asked)).await.expect("the server role may ask");
    let refused = connection.execute("update gristmill.embedding_jobs set state = 'completed'").await;
    assert!(refused.is_err_and(|error| error.to_string().contains("permission denied")));
}

#[tokio::test]
async fn every_function_is_pinned_to_no_search_path() {
    let world = World::new().await;
    world.register().await;
    install_triggers(&world).await;

    let loose = world
        .list(
            "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'gristmill'::regnamespace \
             and not ('search_path=\"\"' = any (coalesce(p.proconfig, '{}'))) order by 1",
        )
        .await;

    assert_eq!(loose, Vec::<String>::new());
    assert!(
        world.value::<i64>("select count(*) from pg_proc where pronamespace = 'gristmill'::regnamespace").await > 10
    );
}

async fn refusal(pool: &PgPool, statement: &str) -> String {
    match pool.execute(AssertSqlSafe(statement.to_owned())).await {
        Ok(_) => "done".to_owned(),
        Err(sqlx::Error::Database(error)) => error.message().to_owned(),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn the_ledger_is_append_only() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    let ledger = "select concat_ws(' ', tenant, meter, quantity, cost) from gristmill.usage_events";
    let before = world.list(ledger).await;
    assert_eq!(before.len(), 1);

    assert_snapshot!(refusal(&world.pool, "update gristmill.usage_events set cost = 0").await, @"gristmill.usage_events is append-only");
    assert_snapshot!(refusal(&world.pool, "delete from gristmill.usage_events").await, @"gristmill.usage_events is append-only");
    assert_snapshot!(refusal(&world.pool, "truncate gristmill.usage_events").await, @"gristmill.usage_events is append-only");
    // Not even while a tenant is forgotten, but for the tenant's name.
    let sly = "do $$ begin perform set_config('gristmill.forgetting', 'on', true); update gristmill.usage_events set cost = 0; end $$";
    assert_snapshot!(refusal(&world.pool, sly).await, @"gristmill.usage_events is append-only");

    assert_eq!(world.list(ledger).await, before);
}

#[tokio::test]
async fn a_job_is_processing_exactly_while_it_has_a_lease() {
    let world = World::new().await;
    world.register().await;
    world.sql("select gristmill.enqueue('documents', gen_random_uuid())").await;
    let set = async |what: &str| {
        let said = refusal(&world.pool, &format!("update gristmill.embedding_jobs set {what}")).await;
        said.contains("violates check constraint")
    };

    assert!(set("state = 'processing'").await);
    assert!(set("lease_id = gen_random_uuid(), lease_until = now()").await);
    assert!(set("state = 'processing', lease_id = gen_random_uuid()").await);
    assert!(set("lease_until = now()").await);
    assert!(set("state = 'failed'").await, "a failure has a reason");
    assert!(!set("state = 'processing', lease_id = gen_random_uuid(), lease_until = now()").await);
    assert!(set("state = 'completed'").await);
}

/// Each query that was checked when it was compiled, held against the schema of today, and against the sources.
#[tokio::test]
async fn the_offline_data_of_our_queries_is_fresh() {
    let world = World::new().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = sources(&root.join("src"));
    let mut faults = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(root.join(".sqlx")).expect(".sqlx is there") {
        let path = entry.expect("the folder can be read").path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let data: Value = serde_json::from_slice(&std::fs::read(&path).expect("readable")).expect("JSON");
        let query = data["query"].as_str().expect("every file has its query");
        files += 1;
        if file != format!("query-{}.json", hex(&Sha256::digest(query.as_bytes()))) {
            faults.push(format!("{file}: its name is not its query's hash"));
        }
        if !sources.values().any(|source| source.contains(query)) {
            faults.push(format!("{file}: no source has this query any more"));
        }
        match described(&world.pool, query).await {
            Ok(now) => faults.extend(differences(&file, &data["describe"], &now)),
            Err(error) => faults.push(format!("{file}: {error}")),
        }
    }
    assert_eq!(faults, Vec::<String>::new());
    assert!(files > 40);
}

/// What a query takes and gives today, in the words of the offline data.
async fn described(pool: &PgPool, query: &str) -> sqlx::Result<Value> {
    let described = pool.describe(AssertSqlSafe(query.to_owned()).into_sql_str()).await?;
    let columns: Vec<Value> = described
        .columns
        .iter()
        .map(|column| serde_json::json!({ "name": column.name(), "type_info": column.type_info().name().to_lowercase() }))
        .collect();
    let parameters: Vec<String> = match &described.parameters {
        Some(sqlx::Either::Left(types)) => types.iter().map(|one| one.name().to_lowercase()).collect(),
        _ => Vec::new(),
    };
    Ok(serde_json::json!({ "columns": columns, "parameters": parameters, "nullable": described.nullable }))
}

fn differences(file: &str, stored: &Value, now: &Value) -> Vec<String> {
    let columns: Vec<Value> = stored["columns"]
        .as_array()
        .expect("columns")
        .iter()
        .map(|column| serde_json::json!({ "name": column["name"], "type_info": type_name(&column["type_info"]) }))
        .collect();
    let parameters: Vec<String> =
        stored["parameters"]["Left"].as_array().into_iter().flatten().map(type_name).collect();
    let stored = serde_json::json!({ "columns": columns, "parameters": parameters, "nullable": stored["nullable"] });
    ["columns", "parameters", "nullable"]
        .into_iter()
        .filter(|part| stored[part] != now[part])
        .map(|part| format!("{file}: {part} were {} and are {}", stored[part], now[part]))
        .collect()
}

/// `TextArray` as `text[]`.
fn type_name(stored: &Value) -> String {
    let name = stored.as_str().map_or_else(|| stored.to_string(), str::to_lowercase);
    name.strip_suffix("array").map_or_else(|| name.clone(), |element| format!("{element}[]"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

fn sources(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path.display().to_string(), std::fs::read_to_string(&path).expect("a source is text"));
        }
    }
    found
}
