//! One row, one job: however its key was spelled by whoever announced it.

use insta::assert_snapshot;

use crate::applications::application;
use crate::cli::gristmill;
use crate::world::World;

/// One pipeline for each of several types of keys.
fn pipelines(types: &[(&str, &str)]) -> (String, String) {
    let mut tables = "create schema app; ".to_owned();
    let mut pipelines = String::new();
    for (name, kind) in types {
        tables.push_str(&format!(
            "create table app.{name} (id {kind} primary key, body text); \
             create table app.{name}_chunks (owner {kind} not null, nth int not null, embedding vector(8) not null); ",
        ));
        pipelines.push_str(&format!(
            r#"
[pipelines.{name}]
kind = "embed"
model = "tiny"
existing = "backfill"
[pipelines.{name}.source]
table = "app.{name}"
key = ["id"]
text = "{{body}}"
[pipelines.{name}.chunks]
tokens = 12
overlap = 0
[pipelines.{name}.target]
table = "app.{name}_chunks"
parent = {{ owner = "{{id}}" }}
columns = {{ nth = "{{chunk.index}}", embedding = "{{chunk.vector}}" }}
"#,
        ));
    }
    (tables, pipelines)
}

async fn jobs(world: &World) -> String {
    let query = "select concat_ws(' ', pipeline, source_key, state, error_kind, chunks) from gristmill.embedding_jobs order by 1";
    world.list(query).await.join("\n")
}

const PAID: &str = "select count(*) from gristmill.usage_events where meter = 'tokens'";

#[tokio::test]
async fn a_row_announced_under_another_spelling_of_its_key_has_one_job_and_is_paid_once() {
    let (tables, pipelines) = pipelines(&[
        ("days", "timestamptz"),
        ("letters", "char(5)"),
        ("numbers", "bigint"),
        ("sums", "numeric"),
        ("uuids", "uuid"),
    ]);
    let world = application(&tables, &pipelines).await;
    world
        .sql(
            r#"insert into app.days values ('2026-01-31 12:00+00', 'A day.');
               insert into app.letters values ('ab', 'A letter.');
               insert into app.numbers values (7, 'A number.');
               insert into app.sums values (1.00, 'A sum.');
               insert into app.uuids values ('00000000-0000-0000-0000-00000000000a', 'A uuid.');
               select gristmill.enqueue('days', '2026-01-31T14:00:00+02:00'), gristmill.enqueue('letters', 'ab   '),
                      gristmill.enqueue('numbers', '["007"]'::jsonb), gristmill.enqueue('numbers', 7), gristmill.enqueue('sums', '1.0'),
                      gristmill.enqueue('uuids', '00000000-0000-0000-0000-00000000000A', 5)"#,
        )
        .await;

    world.work().await;

    let said = jobs(&world).await;
    assert_snapshot!(said, @r#"
    days ["2026-01-31 12:00:00+00"] completed 1
    days ["2026-01-31T14:00:00+02:00"] cancelled left
    letters ["ab   "] cancelled left
    letters ["ab"] completed 1
    numbers ["007"] cancelled left
    numbers ["7"] completed 1
    sums ["1.0"] cancelled left
    sums ["1.00"] completed 1
    uuids ["00000000-0000-0000-0000-00000000000A"] cancelled left
    uuids ["00000000-0000-0000-0000-00000000000a"] completed 1
    "#);
    assert_eq!(world.value::<i64>(PAID).await, 5);
    assert_eq!(world.value::<i64>("select max(priority)::bigint from gristmill.embedding_jobs where pipeline = 'uuids' and state = 'completed'").await, 5);

    // Asked again the same way, nothing is paid and the row keeps its vectors.
    world.sql(r#"select gristmill.enqueue('numbers', '["007"]'::jsonb)"#).await;
    world.work().await;
    assert_eq!(jobs(&world).await, said);
    assert_eq!(world.value::<i64>(PAID).await, 5);
    assert_eq!(world.value::<i64>("select count(*) from app.numbers_chunks").await, 1);

    // A row that is gone is gone under every spelling.
    world.sql(r#"delete from app.numbers; select gristmill.enqueue('numbers', '["007"]'::jsonb)"#).await;
    world.work().await;
    assert_eq!(world.value::<i64>("select count(*) from app.numbers_chunks").await, 0);
}

#[tokio::test]
async fn a_person_may_spell_a_key_otherwise_than_its_job_and_what_can_be_none_is_refused() {
    let (tables, pipelines) = pipelines(&[("sums", "numeric"), ("uuids", "uuid")]);
    let world = application(&tables, &pipelines).await;
    let (lower, upper) = ("00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000A");
    world
        .sql(&format!(
            "insert into app.sums values (1.00, 'A sum.'); insert into app.uuids values ('{lower}', 'A uuid.')"
        ))
        .await;
    gristmill(&world, &["enqueue", "uuids", upper]).await.ok();
    gristmill(&world, &["enqueue", "sums", "1.0"]).await.ok();
    world.work().await;
    assert_snapshot!(jobs(&world).await, @r#"
    sums ["1.00"] completed 1
    uuids ["00000000-0000-0000-0000-00000000000a"] completed 1
    "#);

    gristmill(&world, &["wait", "sums", "1.0"]).await.ok();
    let waited = gristmill(&world, &["wait", "uuids", upper, "--json"]).await.ok().json();
    assert_eq!(waited["key"], serde_json::json!([lower]));
    for filter in [&["--key", upper][..], &["--key", upper, "--pipeline", "uuids"]] {
        let listed = gristmill(&world, &[&["jobs", "list", "--json"], filter].concat()).await.ok().json();
        assert_eq!((listed.as_array().map(Vec::len), &listed[0]["key"]), (Some(1), &serde_json::json!([lower])));
        let retried =
            gristmill(&world, &[&["jobs", "retry", "--dry-run", "--json"], filter].concat()).await.ok().json();
        assert_eq!(retried["would_open_jobs"], serde_json::json!([waited["id"]]));
    }

    let told = gristmill(&world, &["forget", "uuids", upper, "--dry-run"]).await.ok().out;
    assert_snapshot!(told.trim(), @"
    1 job would be forgotten, and 1 line of the ledger stays, with the job's number alone
    refused as long as rows of 1 job are in a set: delete the rows, and let a worker see that they are gone
    ");
    let mut said = Vec::new();
    for key in ["not-a-uuid", r#"["a", "b"]"#, "[]"] {
        let refused = gristmill(&world, &["forget", "uuids", key, "--yes"]).await;
        assert_eq!((refused.code, refused.out.as_str()), (1, ""));
        said.push(refused.err);
    }
    assert_snapshot!(said.concat(), @r#"
    error: not-a-uuid cannot be a key of uuids: "not-a-uuid" is not of the type of app.uuids.id; nothing was forgotten
    error: a,b cannot be a key of uuids: it has 2 values where the key of app.uuids is (id); nothing was forgotten
    error:  cannot be a key of uuids: it has 0 values where the key of app.uuids is (id); nothing was forgotten
    "#);
    let nobody = upper.replace('A', "B");
    let nothing = gristmill(&world, &["forget", "uuids", &nobody, "--yes"]).await.ok().out;
    assert_eq!(nothing.trim(), format!("nothing is known of {nobody}: no job has that key"));

    // An application may have announced another spelling: that job is forgotten with the row's own.
    world.sql(&format!("select gristmill.enqueue('uuids', '{upper}'); delete from app.uuids")).await;
    world.work().await;
    assert_snapshot!(jobs(&world).await, @r#"
    sums ["1.00"] completed 1
    uuids ["00000000-0000-0000-0000-00000000000A"] cancelled left 0
    uuids ["00000000-0000-0000-0000-00000000000a"] cancelled left 0
    "#);
    let forgotten = gristmill(&world, &["forget", "uuids", upper, &nobody, "--yes"]).await.ok().out;
    assert_eq!(forgotten.lines().last(), Some("2 jobs forgotten"), "{forgotten}");
    assert!(forgotten.contains(&format!("nothing is known of {nobody}")), "{forgotten}");
    assert_eq!(jobs(&world).await, "sums [\"1.00\"] completed 1");
}
