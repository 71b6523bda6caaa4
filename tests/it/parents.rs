//! Rows that chunks refer to, beside their source row: a commit never waits for one while it holds another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gristmill::app;
use insta::assert_snapshot;
use sqlx::Connection as _;

use crate::applications::{WORKER, application, as_worker, configured};
use crate::world::World;

const TABLES: &str = "create schema app; create table app.users (id int primary key); insert into app.users select generate_series(1, 9); \
    create table app.notes (id bigint generated always as identity primary key, owner int references app.users on delete cascade, body text); \
    create table app.note_chunks (note_id bigint not null references app.notes on delete cascade, owner int references app.users on delete cascade, \
        nth int not null, body text not null, embedding vector(8) not null);";

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
table = "app.note_chunks"
parent = { note_id = "{id}" }
columns = { nth = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}", owner = "{owner}" }
"#;

async fn world() -> World {
    application(TABLES, NOTES).await
}

#[tokio::test]
async fn clients_that_hold_and_delete_rows_that_chunks_refer_to_never_meet_a_deadlock() {
    let world = world().await;
    world
        .sql(
            "insert into app.notes (owner, body) select 1 + n % 9, 'Grain number ' || n from generate_series(1, 900) n",
        )
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for client in 0..3_i32 {
        let (stop, mut connection) = (Arc::clone(&stop), world.database.connect().await);
        clients.push(tokio::spawn(async move {
            // Whoever looks first is the one that a deadlock costs.
            sqlx::raw_sql("set deadlock_timeout = '1ms'").execute(&mut connection).await.unwrap();
            let mut turn = client;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                let mut transaction = connection.begin().await.unwrap();
                // The clients agree on an order, and it is not that of the inserts.
                for user in [5 + turn % 4, 1 + turn % 4] {
                    sqlx::query("select from app.users where id = $1 for update")
                        .bind(user)
                        .execute(&mut *transaction)
                        .await
                        .unwrap();
                }
                if turn % 64 == 0 {
                    sqlx::query("delete from app.notes where id = (select max(id) from app.notes where owner = $1)")
                        .bind(1 + turn % 4)
                        .execute(&mut *transaction)
                        .await
                        .unwrap();
                }
                transaction.commit().await.unwrap();
            }
            turn - client
        }));
    }
    let workers = [world.start().await, world.start().await];
    // Takes the user first and its notes after it, against the order of a commit.
    let mut connection = world.database.connect().await;
    sqlx::raw_sql("set deadlock_timeout = '1ms'; delete from app.users where id = 9")
        .execute(&mut connection)
        .await
        .unwrap();
    workers[0].idle().await;
    for worker in workers {
        worker.stop().await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }

    let bare = "select count(*) from app.notes n where not exists (select from app.note_chunks c where c.note_id = n.id and c.owner = n.owner)";
    assert_eq!(world.value::<i64>(bare).await, 0);
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(world.value::<i64>(deadlocks).await, 0);
}

#[tokio::test]
async fn a_job_whose_parent_somebody_holds_waits_alone() {
    let world = world().await;
    world.sql("insert into app.notes (owner, body) select n, 'Grain.' from generate_series(1, 9) n; insert into app.notes (body) values ('Nobody''s.')").await;
    let mut holder = world.database.connect().await;
    sqlx::raw_sql("begin; select from app.users where id = 4 for update").execute(&mut holder).await.unwrap();
    let worker = world.start().await;

    world.wait_for("select count(*) = 9 from gristmill.embedding_jobs where state = 'completed'").await;
    assert_eq!(
        world.list("select source_key->>0 from gristmill.embedding_jobs where state <> 'completed'").await,
        ["4"]
    );
    assert_eq!(
        world.value::<i64>("select count(*) from gristmill.job_attempts").await,
        0,
        "jobs beside it were put off"
    );
    sqlx::raw_sql("rollback").execute(&mut holder).await.unwrap();
    world.wait_for("select bool_and(state = 'completed' and attempt = 1) from gristmill.embedding_jobs").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_role_that_may_not_lock_them_works_all_the_same_and_is_told() {
    let world = configured(World::new().await, NOTES);
    world
        .sql(&format!(
            "{WORKER}{TABLES} grant usage on schema gristmill, app to gristmill_test_worker; \
             grant select, insert, update, delete on all tables in schema gristmill to gristmill_test_worker; \
             grant execute on all functions in schema gristmill to gristmill_test_worker; \
             grant select, update on app.notes to gristmill_test_worker; \
             grant select, insert, update, delete on app.note_chunks to gristmill_test_worker; \
             insert into app.notes (owner, body) values (1, 'Grain.')"
        ))
        .await;
    let owner = world.pool.clone();
    let world = as_worker(world).await;
    let said = async || {
        let resolved = app::resolve(&world.pool, &world.config()).await.expect("the database is there");
        resolved
            .warnings
            .iter()
            .map(ToString::to_string)
            .filter(|said| said.contains("lock"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    world.register().await;
    assert_snapshot!(said().await, @r#"
    workers.toml:57: pipelines.notes.target: chunks refer to app.users, whose rows this role may not lock: a transaction that deletes them, or takes several of them `for update`, may meet a commit in a deadlock
        to mend it: grant select ("id"), update ("id") on "app"."users" to "gristmill_test_worker";
    "#);
    sqlx::raw_sql("insert into app.notes (owner, body) values (1, 'Flour.')").execute(&owner).await.unwrap();
    world.work().await;

    sqlx::raw_sql("grant select (id), update (id) on app.users to gristmill_test_worker")
        .execute(&owner)
        .await
        .unwrap();
    assert_eq!(said().await, "");
    sqlx::raw_sql("insert into app.notes (owner, body) values (1, 'Bread.')").execute(&owner).await.unwrap();
    world.work().await;
    assert_eq!(world.states().await, "1 waiting unaccepted\n2 completed");
}
