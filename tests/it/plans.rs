//! Plans that sessions keep: made when a table was empty, they must serve when it is full.

use gristmill::app;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::ledger::paragraph;
use crate::world::World;

/// Whether rows are read, and written, by statements whose plans are kept.
async fn by_key(world: &World) -> (bool, bool) {
    let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
    let steady = resolved.plans[0].steady;
    (steady.read_by_key, steady.written_by_key)
}

#[tokio::test]
async fn plans_are_kept_only_where_keys_have_indexes_and_no_statement_of_others_runs_in_ours() {
    let world = World::new().await;
    assert_eq!(by_key(&world).await, (true, true));

    let when = "when = \"deleted_at is null\"";
    let asking = "when = \"deleted_at is null and user_id in (SELECT user_id from public.documents)\"";
    let world = world.change(when, asking);
    assert_eq!(by_key(&world).await, (false, false));
    let world = world.change(asking, when);
    assert_eq!(by_key(&world).await, (true, true));

    world.sql("create function public.none() returns trigger language plpgsql as $$ begin return null; end $$").await;
    world
        .sql("create trigger none after insert on public.document_chunks for each statement execute function public.none()")
        .await;
    assert_eq!(by_key(&world).await, (true, false));
    world.sql("drop trigger none on public.document_chunks").await;
    assert_eq!(by_key(&world).await, (true, true));

    world.sql("create index on public.document_chunks (document_id) where chunk_index > 0").await;
    world.sql("alter table public.document_chunks drop constraint document_chunks_document_id_chunk_index_key").await;
    assert_eq!(by_key(&world).await, (false, false));
    world.sql("create index on public.document_chunks (chunk_index, document_id)").await;
    assert_eq!(by_key(&world).await, (false, false));
    world.sql("create index on public.document_chunks (document_id, content)").await;
    assert_eq!(by_key(&world).await, (true, true));

    world.sql("alter table public.documents add unique (id, user_id)").await;
    assert_eq!(by_key(&world).await, (true, true));
    world
        .sql("alter table public.document_chunks add foreign key (document_id, user_id) references public.documents (id, user_id)")
        .await;
    assert_eq!(by_key(&world).await, (true, false));

    // Of an index over a part of the key nobody knows how many rows one entry has.
    let world = world.change(
        "parent = { document_id = \"{id}\" }",
        "parent = { document_id = \"{id}\" }\nversion = { model = \"one\" }",
    );
    world.sql("alter table public.document_chunks add model text not null default 'one'").await;
    assert_eq!(by_key(&world).await, (true, false));
    world.sql("create index on public.document_chunks (model)").await;
    assert_eq!(by_key(&world).await, (false, false));
}

/// Rows of documents, chunks and jobs that make every way but by key a slow one.
const FILL: &str = "
insert into public.documents (id, user_id, name, content)
select gen_random_uuid(), gen_random_uuid(), 'full ' || nth, 'full' from generate_series(1, 100000) as nth;
insert into gristmill.embedding_jobs (pipeline, source_key, state)
select 'documents', jsonb_build_array(id::text), 'completed' from public.documents where name like 'full%';
insert into public.document_chunks (document_id, user_id, chunk_index, content, token_count)
select id, user_id, 0, 'full', 1 from public.documents where name like 'full%'";

#[tokio::test]
async fn plans_made_for_empty_tables_go_by_indexes_and_do_so_still_when_they_are_full() {
    let world = World::new().await;
    world.register().await;
    // So that filling it is quick.
    world.sql("drop index public.document_chunks_embedding; alter table public.document_chunks alter embedding drop not null").await;
    // Of a table without a page, or with one, reading all of it is the cheapest plan that there can be.
    world.sql("vacuum analyze").await;
    let worker = world.start().await;
    let (kept, changed) = (paragraph("kept"), paragraph("changed"));
    world.insert("book", &[paragraph("old"), kept.clone()].join("\n\n")).await;
    world.insert("empty", "").await;
    worker.idle().await;
    let edit = "update public.documents set updated_at = now(), content = $1 where name = 'book'";
    sqlx::query(edit).bind([changed, paragraph("new"), kept].join("\n\n")).execute(&world.pool).await.unwrap();
    world.sql("select gristmill.retry(id) from gristmill.embedding_jobs").await;
    worker.idle().await;

    // A job whose worker died is claimed by a statement of its own.
    world.sql("update gristmill.embedding_jobs set state = 'pending', finished_at = null, crashes = 1").await;
    worker.idle().await;

    let (keyed, claims) = (&worker.running.keyed, &worker.running.engine.claims);
    let mut sessions = vec![claims.acquire().await.unwrap()];
    for _ in 0..keyed.size() {
        sessions.push(keyed.acquire().await.unwrap());
    }
    let mut seen = String::new();
    for full in [false, true] {
        if full {
            for statement in FILL.split(';') {
                world.sql(statement).await;
            }
        }
        for session in &mut sessions {
            seen.push_str(&go_by_indexes(session).await);
        }
    }
    let of_claims = ["with recursive ring", "as ring (tenant, rank", "order by crashes limit", "of job skip locked"];
    let by_key = ["source on", "of source skip locked", "of chunk skip locked", "delete from", "usage_events"];
    for part in of_claims.into_iter().chain(by_key) {
        assert!(seen.contains(part), "no kept plan of `{part}`:\n{seen}");
    }
    drop(sessions);
    worker.stop().await;
}

/// Looks at the kept plans of a session; returns their statements.
async fn go_by_indexes(session: &mut PgConnection) -> String {
    let known =
        "select name, statement, cardinality(parameter_types) as parameters, custom_plans from pg_prepared_statements";
    let mut statements = String::new();
    for row in sqlx::raw_sql(known).fetch_all(&mut *session).await.unwrap() {
        let (name, statement): (String, String) = (row.get("name"), row.get("statement"));
        let (parameters, anew): (i32, i64) = (row.get("parameters"), row.get("custom_plans"));
        assert_eq!(anew, 0, "{statement}");
        let values = vec!["null"; usize::try_from(parameters).unwrap()].join(", ");
        let values = if values.is_empty() { values } else { format!("({values})") };
        let explain = format!("explain (format json) execute {name}{values}");
        let plan = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *session).await.unwrap();
        let plan: Value = plan.get(0);
        let mut wide = Vec::new();
        find_wide(&plan, &mut wide);
        assert!(wide.is_empty(), "{wide:?} in the plan of\n{statement}\n{plan:#}");
        statements.push_str(&statement);
    }
    statements
}

/// Nodes that read all of a table, or all of an index.
fn find_wide(plan: &Value, found: &mut Vec<String>) {
    match plan {
        Value::Array(parts) => parts.iter().for_each(|part| find_wide(part, found)),
        Value::Object(node) => {
            let kind = node.get("Node Type").and_then(Value::as_str).unwrap_or_default();
            let unbounded = kind.starts_with("Index") && !node.contains_key("Index Cond");
            if unbounded || ["Seq Scan", "Hash Join", "Merge Join"].contains(&kind) {
                found.push(format!("{kind} {}", node.get("Relation Name").unwrap_or(&Value::Null)));
            }
            node.values().for_each(|part| find_wide(part, found));
        }
        _ => {}
    }
}
