//! Statements of the configuration inside the job's transaction: once, typed, counted exactly, and to blame by name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gristmill::app;
use gristmill::db;
use insta::assert_snapshot;
use sqlx::{Connection as _, Executor as _};

use crate::applications::{application, configured, reconnected};
use crate::cli::gristmill;
use crate::world::World;

const TABLES: &str = "create schema app; create type app.kind as enum ('hash', 'openai'); \
    create table app.folders (id int primary key, notes int not null default 0, chunks bigint not null default 0, words bigint not null default 0); \
    insert into app.folders select generate_series(1, 3); \
    create table app.notes (id bigint generated always as identity primary key, folder int references app.folders, owner uuid, body text, gone bool default false); \
    create table app.note_chunks (note_id bigint not null, nth int not null, body text not null, embedding vector(8) not null); \
    create table app.usage (note bigint, owner uuid, provider app.kind, tokens bigint, cents int, at timestamptz not null, detail jsonb);";

/// Notes in folders, with what `more` adds.
fn notes(more: &str) -> String {
    format!(
        r#"
[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "backfill"
[pipelines.notes.source]
table = "app.notes"
key = ["id"]
tenant = "owner"
when = "not gone"
text = "{{body}}"
values = {{ doubled = "folder * 2" }}
[pipelines.notes.chunks]
tokens = 12
overlap = 0
[pipelines.notes.target]
table = "app.note_chunks"
parent = {{ note_id = "{{id}}" }}
columns = {{ nth = "{{chunk.index}}", body = "{{chunk.text}}", embedding = "{{chunk.vector}}" }}
{more}"#
    )
}

/// Recounts a folder, and adds up what cannot be recounted.
const COUNTERS: &str = r#"
[[pipelines.notes.effects]]
name = "recount"
on = ["done", "skipped", "left"]
shared = { table = "app.folders", key = { id = "{folder}" } }
sql = """
update app.folders set
  notes = (select count(*) from app.notes n where n.folder = {folder} and not n.gone),
  chunks = (select count(*) from app.note_chunks c join app.notes n on n.id = c.note_id where n.folder = {folder})
where id = {folder}"""
[[pipelines.notes.effects]]
name = "sum"
shared = { table = "app.folders", key = { id = "{folder}" } }
sql = "update app.folders set words = words + {job.words} where id = {folder}"
"#;

const FOLDERS: &str = "select concat_ws(' ', id, notes, chunks, words) from app.folders order by id";

#[tokio::test]
async fn names_are_bound_with_their_types_and_the_statement_runs_once_per_revision() {
    let usage = r#"
[[pipelines.notes.effects]]
name = "usage"
sql = """
-- {not a name}
insert into app.usage (note, owner, provider, tokens, cents, at, detail)
values ({id}, {owner}, {job.provider}::app.kind, {job.tokens}, gristmill.carry('usage', {tenant}, {job.tokens} * 0.3), {job.finished},
        jsonb_build_object('doubled', {doubled}, 'brace', '{id}', 'revision', {job.revision}, 'page', {job.pages}, 'text', {job.text}))"""
"#;
    let usage = usage.replace("{job.provider}::app.kind", "'hash'");
    let world = application(TABLES, &notes(&usage)).await;
    world.install_triggers().await;
    world.sql("insert into app.notes (folder, owner, body) values (2, '0000000a-0000-0000-0000-000000000000', 'It''s ground.'), (null, null, 'Flour.')").await;
    world.work().await;
    world.work().await;
    world.sql("update app.notes set body = 'Bread.' where id = 1").await;
    world.work().await;

    let rows = "select concat_ws(' ', note, left(owner::text, 8), provider, tokens, cents, detail::text) from app.usage order by note, at";
    assert_snapshot!(world.list(rows).await.join("\n"), @r#"
    1 0000000a hash 4 1 {"page": null, "text": "It's ground.", "brace": "{id}", "doubled": 4, "revision": 1}
    1 0000000a hash 3 1 {"page": null, "text": "Bread.", "brace": "{id}", "doubled": 4, "revision": 2}
    2 hash 3 0 {"page": null, "text": "Flour.", "brace": "{id}", "doubled": null, "revision": 1}
    "#);
}

#[tokio::test]
async fn shared_rows_are_counted_exactly_while_everybody_writes() {
    let world = application(TABLES, &notes(COUNTERS)).await;
    let stop = Arc::new(AtomicBool::new(false));
    // The application locks two folders at a time, in any order, and counts its own failures.
    let mut clients = Vec::new();
    for client in 0..3_i32 {
        let (stop, mut connection) = (Arc::clone(&stop), world.database.connect().await);
        clients.push(tokio::spawn(async move {
            let mut done = 0;
            let mut turn = client;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                let mut transaction = connection.begin().await.unwrap();
                for folder in [1 + turn % 3, 1 + (turn + 1) % 3].iter().min().into_iter().chain(&[3]) {
                    sqlx::query("update app.folders set words = words where id = $1")
                        .bind(folder)
                        .execute(&mut *transaction)
                        .await
                        .unwrap();
                }
                transaction.commit().await.unwrap();
                done += 1;
            }
            done
        }));
    }
    world.sql("insert into app.notes (folder, owner, body) select 1 + n % 3, gen_random_uuid(), 'Grain number ' || n from generate_series(1, 600) n").await;
    let workers = [world.start().await, world.start().await];
    workers[0].idle().await;
    for worker in workers {
        worker.stop().await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }

    assert_eq!(world.list(FOLDERS).await, ["1 200 200 600", "2 200 200 600", "3 200 200 600"]);
    assert_eq!(world.states().await, "600 completed");
    assert_eq!(
        world.value::<i64>("select deadlocks from pg_stat_database where datname = current_database()").await,
        0
    );
}

#[tokio::test]
async fn a_row_that_left_is_counted_out_even_when_it_is_gone() {
    let world = application(TABLES, &notes(COUNTERS)).await;
    world.install_triggers().await;
    world.sql("insert into app.notes (folder, body) select 1 + n % 2, 'Grain.' from generate_series(1, 6) n").await;
    world.work().await;
    assert_eq!(world.list(FOLDERS).await, ["1 3 3 3", "2 3 3 3", "3 0 0 0"]);

    world.sql("delete from app.notes where id = 2; update app.notes set gone = true where id = 1; update app.notes set body = '' where id = 3").await;
    world.work().await;
    assert_eq!(world.list(FOLDERS).await, ["1 2 2 3", "2 2 1 3", "3 0 0 0"]);
}

#[tokio::test]
async fn an_effect_that_is_refused_fails_its_job_alone_and_is_named() {
    let once = r#"
[[pipelines.notes.effects]]
name = "ledger"
sql = "insert into app.ledger (note, share) values ({id}, 60 / ({id} - 7))"
"#;
    let world = application(
        &format!("{TABLES} create table app.ledger (note bigint unique deferrable initially deferred, share int); insert into app.ledger values (5)"),
        &notes(once),
    )
    .await;
    world.sql("insert into app.notes (body) select 'Grain ' || n from generate_series(1, 20) n").await;
    world.work().await;

    assert_eq!(world.states().await, "18 completed\n2 failed constraint");
    let failed =
        "select concat_ws(' ', source_key, reason) from gristmill.embedding_jobs where state = 'failed' order by id";
    assert_snapshot!(world.list(failed).await.join("\n"), @r#"
    ["5"] the database refused the write: constraint ledger_note_key of table ledger refused the row
    ["7"] the database refused the write: effect ledger: a division by zero (22012)
    "#);
    assert_eq!(world.value::<i64>("select count(*) from app.note_chunks where note_id in (5, 7)").await, 0);
    assert_eq!(world.value::<i64>("select count(*) from app.ledger").await, 19);
}

async fn said(schema: &str, pipelines: &str) -> String {
    let world = configured(World::new().await, pipelines);
    world.sql(schema).await;
    let world = reconnected(world).await;
    let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
    let first = world.toml.lines().position(|line| line.contains("[pipelines.notes]")).unwrap();
    let line = |misfit: &db::app::Misfit| format!("{}: {}", misfit.place.line - first, misfit.message);
    let errors = resolved.refused.iter().flat_map(|(_, misfits)| misfits).filter(|misfit| !misfit.warning);
    let refused = errors.map(line).collect::<Vec<_>>();
    let choices = resolved.plans.iter().flat_map(|plan| &plan.effects);
    let choices = choices.map(|effect| format!("{} {:?} {:?}", effect.name, effect.choice, effect.writes));
    let warnings: Vec<String> =
        resolved.warnings.iter().filter(|misfit| misfit.message.contains("effect")).map(line).collect();
    [refused, choices.collect(), warnings].concat().join("\n")
}

#[tokio::test]
async fn what_does_not_fit_is_named_with_its_line_and_the_first_alternative_that_fits_is_taken() {
    let effect = |sql: &str| notes(&format!("[[pipelines.notes.effects]]\nname = \"one\"\n{sql}\n"));
    assert_snapshot!(said(TABLES, &effect("sql = \"\"\"\ninsert into app.usage (note, at)\nvalues ({id},\n  {job.now}, {nope})\"\"\"")).await, @"22: {nope} is neither a column of the source nor one of source.values");
    assert_snapshot!(said(TABLES, &effect("sql = \"\"\"\ninsert into app.usage (note, at)\nselect {id},\n  {job.now} from app.nowhere\"\"\"")).await, @r#"
    24: Postgres says: relation "app.nowhere" does not exist
    "#);
    assert_snapshot!(said(TABLES, &effect("sql = \"\"\"\ninsert into app.usage (note, at)\nvalues ({owner},\n  {job.now})\"\"\"")).await, @r#"
    23: Postgres says: column "note" is of type bigint but expression is of type uuid
    "#);
    assert_snapshot!(said(TABLES, &effect("sql = [\"insert into app.invoices (note) values ({id})\", \"insert into app.usage (note, at) values ({id}, now())\"]")).await, @r#"
    one (2, 2) {"insert app.usage"}
    "#);
    assert_snapshot!(said(TABLES, &effect("optional = true\nsql = \"insert into app.invoices (note) values ({id})\"")).await, @r#"
    22: effect one is left out: Postgres says: relation "app.invoices" does not exist
    "#);
    assert_snapshot!(said(TABLES, &effect("sql = \"update app.folders set notes = 0 where id = {folder}\"")).await, @r#"
    one (1, 1) {"update app.folders"}
    19: effect one would update app.folders without `shared`: if many jobs write the same row, name it, so that commits do not wait for each other
    "#);
    assert_snapshot!(said(TABLES, &effect("sql = \"delete from gristmill.usage_events\"")).await, @"21: must not delete gristmill.usage_events, which is Gristmill's own");
    assert_snapshot!(said(TABLES, &effect("sql = \"update app.folders set notes = 0 where id = {folder}\"\nshared = { table = \"app.folders\", key = { nr = \"{folder}\" } }")).await, @"22: table app.folders has no column nr; it has id, notes, chunks, words");
}

#[tokio::test]
async fn carried_cents_add_up() {
    let world = World::new().await;
    let whole: Vec<i64> = sqlx::query_scalar("select gristmill.carry('cents', 'a', 0.3) from generate_series(1, 10)")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!((whole.iter().sum::<i64>(), whole.iter().max()), (3, Some(&1)));
    assert_eq!(world.value::<Option<i64>>("select gristmill.carry('cents', 'a', null)").await, None);
    assert_eq!(world.value::<i64>("select gristmill.carry('cents', 'a', -1.5)").await, -2);
    assert_eq!(world.value::<i64>("select gristmill.carry('cents', 'b', 2.75)").await, 2);
    world.sql("select gristmill.forget('b')").await;
    assert_eq!(world.list("select concat_ws(' ', tenant, total) from gristmill.carry").await, ["a 1.5"]);
}

/// Links each note to the words of a list that its text holds.
const LINKS: &str = r#"
[[pipelines.notes.effects]]
name = "links"
repeatable = true
on = ["done", "left"]
sql = """
with gone as (delete from app.links where note = {id} returning 1)
insert into app.links (note, word, detail)
select {id}, w.word, concat_ws(' ', {job.state}, {job.revision}, {job.chunks}, {job.attempts}, {job.finished} < {job.now}, {doubled})
from app.words w where strpos({body}, w.word) > 0 and 1 / (length({body}) - 5) >= 0"""
"#;

const LINK_TABLES: &str = "create table app.words (word text primary key); insert into app.words values ('mill'); \
    create table app.links (note bigint, word text, detail text);";

#[tokio::test]
async fn a_repeatable_effect_runs_again_for_done_rows_alone_and_unpaid() {
    let world = application(&format!("{TABLES}{LINK_TABLES}"), &notes(LINKS)).await;
    world
        .sql(
            "insert into app.notes (folder, body) select n, 'The mill grinds grain ' || n from generate_series(1, 3) n",
        )
        .await;
    world.sql("insert into app.notes (folder, body) select 1, 'A mill ' || n from generate_series(1, 150) n").await;
    world.sql("insert into app.notes (body) values (''), ('Later.')").await;
    world.work().await;
    world.sql("insert into app.words values ('grain'); update app.notes set gone = true where id = 2").await;
    world.sql("update gristmill.embedding_jobs set state = 'pending' where source_key = '[\"3\"]'").await;
    let paid = "select count(*) from gristmill.usage_events";
    let before = world.value::<i64>(paid).await;

    let dry = gristmill(&world, &["effects", "notes", "links", "--dry-run", "--json"]).await.ok().json();
    assert_eq!(
        (&dry["rows"], &dry["ran"], &dry["writes"]),
        (&153.into(), &0.into(), &serde_json::json!(["delete app.links", "insert app.links"]))
    );
    assert_eq!(world.value::<i64>("select count(*) from app.links").await, 153);

    let run = gristmill(&world, &["effects", "notes", "links", "--json"]).await.ok().json();
    assert_eq!((&run["ran"], &run["moved"]), (&152.into(), &1.into()));
    let links = "select concat_ws(' ', note, word, detail) from app.links where note < 4 order by note, word";
    assert_snapshot!(world.list(links).await.join("\n"), @"
    1 grain completed 1 1 1 t 2
    1 mill completed 1 1 1 t 2
    2 mill completed 1 1 1 f 4
    3 mill completed 1 1 1 f 6
    ");
    assert_eq!(world.value::<i64>("select count(*) from app.links").await, 154);
    assert_eq!(world.value::<i64>(paid).await, before);

    // For one row it is refused, for the others of its group it has run.
    world.sql("update app.notes set body = 'Grind' where id = 100").await;
    let run = gristmill(&world, &["effects", "notes", "links"]).await;
    assert_eq!(run.code, 1, "{}", run.err);
    assert_snapshot!(run.out.trim(), @"
    notes: effect links ran for 151 of 153 rows
    1 row changed meanwhile; their own jobs run it
    100: effect links: a division by zero (22012)
    ");
}

#[tokio::test]
async fn an_effect_that_runs_again_waits_for_rows_that_are_held_and_sums_like_a_commit() {
    let recount = COUNTERS.replace("name = \"recount\"", "name = \"recount\"\nrepeatable = true");
    let world = application(TABLES, &notes(&recount)).await;
    world.sql("insert into app.notes (folder, body) select 1 + n % 3, 'Grain.' from generate_series(1, 100) n").await;
    world.work().await;
    world.sql("update app.folders set notes = 0, chunks = 7").await;
    let mut holder = world.database.connect().await;
    let mut held = holder.begin().await.unwrap();
    held.execute("update app.folders set words = words where id = 1; select from app.notes where id = 2 for update")
        .await
        .unwrap();

    let released = async {
        // Folders 2 and 3 are counted meanwhile.
        let counted = "select min(notes) > 0 from app.folders where id > 1";
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while !world.value::<bool>(counted).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("what nobody holds is done");
        held.commit().await.unwrap();
    };
    let (run, ()) = tokio::join!(gristmill(&world, &["effects", "notes", "recount", "--json"]), released);
    let run = run.ok().json();
    assert_eq!((&run["ran"], &run["busy"]), (&100.into(), &serde_json::json!([])));
    assert_eq!(world.list(FOLDERS).await, ["1 33 33 33", "2 34 34 34", "3 33 33 33"]);
}

#[tokio::test]
async fn rows_that_are_held_all_the_time_are_named() {
    let recount = COUNTERS.replace("name = \"recount\"", "name = \"recount\"\nrepeatable = true");
    let world = application(TABLES, &notes(&recount)).await;
    world.sql("insert into app.notes (folder, body) select 1 + n % 3, 'Grain.' from generate_series(1, 6) n").await;
    world.work().await;
    let mut holder = world.database.connect().await;
    let mut held = holder.begin().await.unwrap();
    held.execute("update app.folders set notes = 9 where id = 1; select from app.notes where id = 1 for update")
        .await
        .unwrap();

    let run = gristmill(&world, &["effects", "notes", "recount", "--json"]).await;
    assert_eq!(
        (run.code, &run.json()["ran"], &run.json()["busy"]),
        (1, &3.into(), &serde_json::json!([["1"], ["3"], ["6"]]))
    );
}

#[tokio::test]
async fn what_a_repeated_effect_writes_into_its_own_row_is_no_change_of_it() {
    let own = "[[pipelines.notes.effects]]\nname = \"own\"\nrepeatable = true\nsql = \"update app.notes set body = trim(body) || '.' where id = {id}\"";
    let world = application(TABLES, &notes(own)).await;
    world.install_triggers().await;
    world.sql("insert into app.notes (body) values ('Grain'), ('Flour')").await;
    world.work().await;
    world.sql("update app.notes set body = body || ' and water' where id = 2; update gristmill.embedding_jobs set state = 'completed'").await;
    gristmill(&world, &["effects", "notes", "own"]).await.ok();
    assert_eq!(world.list("select body from app.notes order by id").await, ["Grain..", "Flour. and water."]);
    // Only the row that somebody else had changed is seen as changed.
    let verified = gristmill(&world, &["verify", "--json"]).await.json();
    let found: Vec<String> =
        verified["findings"].as_array().unwrap().iter().map(|one| format!("{} {}", one["key"], one["kind"])).collect();
    assert_eq!(found, [r#"["2"] "stale""#]);
}

#[tokio::test]
async fn what_may_not_run_again_is_refused() {
    let world = application(TABLES, &notes(COUNTERS)).await;
    let said = async |world: &World, arguments: &[&str]| {
        let ran = gristmill(world, arguments).await;
        format!("{} {}", ran.code, ran.err.trim().replace(&world.files.path().display().to_string(), ""))
    };
    assert_snapshot!(said(&world, &["effects", "notes", "recount"]).await, @"2 error: /workers.toml:68: pipelines.notes.effects[0]: effect recount may not be run again; set repeatable = true if doing it twice is harmless");
    assert_snapshot!(said(&world, &["effects", "notes", "nope"]).await, @"2 error: pipeline notes has no effect nope; it has recount, sum");
    let optional = "[[pipelines.notes.effects]]\nname = \"one\"\noptional = true\nrepeatable = true\nsql = \"delete from app.nowhere\"";
    let world = application(TABLES, &notes(optional)).await;
    assert_snapshot!(said(&world, &["effects", "notes", "one"]).await, @"1 error: effect one of pipeline notes is left out, since it does not fit this database: see `gristmill check`");
    let world = application(&format!("{TABLES}{LINK_TABLES}"), &notes(LINKS)).await;
    assert!(db::pipelines::is_at_home(&world.pool).await.unwrap());
    world.sql("update gristmill.installation set identity = 'elsewhere'").await;
    assert_snapshot!(said(&world, &["effects", "notes", "links"]).await, @"1 error: this database is a copy of the one gristmill was set up in; if it is meant to run here, say `gristmill accept --database`");
}
