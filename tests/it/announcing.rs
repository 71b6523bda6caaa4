//! What opens a job: triggers, SQL functions, and the sweep that finds what both missed.

use std::sync::Arc;
use std::time::Duration;

use gristmill::app;
use gristmill::db::announcements::fold;
use gristmill::db::app::{Plan, TriggerSet, install};
use gristmill::worker;
use insta::assert_snapshot;
use sqlx::types::time::OffsetDateTime;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::world::{USER, World};

impl World {
    /// The pipelines as the database resolves them.
    pub async fn plans(&self) -> Vec<Arc<Plan>> {
        let resolved = app::resolve(&self.pool, &self.config()).await.expect("the database is there");
        assert!(resolved.refused.is_empty(), "{:?}", resolved.refused);
        resolved.plans
    }

    /// `gristmill triggers install` for every pipeline.
    pub async fn install_triggers(&self) {
        let mut connection = self.database.connect().await;
        for plan in self.plans().await {
            install(&mut connection, &TriggerSet::of(&plan)).await.expect("the owner may create triggers");
        }
    }

    /// One pass of the sweep over every pipeline; returns how many jobs it opened.
    pub async fn sweep(&self, since: Option<OffsetDateTime>) -> i64 {
        let config = self.config();
        let mut opened = 0;
        for plan in self.plans().await {
            let pass = worker::pass(&self.pool, &plan, &config.worker, since, &|| false);
            opened += pass.await.expect("the sweep holds");
        }
        opened
    }

    /// Every job: the end of its key, its state, revision, tenant and kind of trouble.
    pub async fn jobs(&self) -> String {
        self.list(
            "select concat_ws(' ', (select string_agg(right(part, 4), ',' order by nth) \
                     from jsonb_array_elements_text(source_key) with ordinality as p (part, nth)), \
                 state, 'r' || revision, nullif(right(tenant, 4), ''), error_kind) \
             from gristmill.embedding_jobs order by pipeline, source_key",
        )
        .await
        .join("\n")
    }
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// Runs a statement as a user of the application: any role may write to the tables, and has no right of ours.
async fn as_a_user(world: &World) -> PgConnection {
    world
        .sql(
            "do $$ begin create role gristmill_test_user nologin; exception when duplicate_object or unique_violation then null; end $$; \
             grant select, insert, update, delete on public.documents, public.document_chunks to gristmill_test_user; \
             alter table public.documents disable row level security; alter table public.document_chunks disable row level security",
        )
        .await;
    let mut connection = world.database.connect().await;
    connection.execute("set role gristmill_test_user").await.expect("the role is there");
    let ours: bool = sqlx::query_scalar("select has_schema_privilege('gristmill', 'usage')")
        .fetch_one(&mut connection)
        .await
        .expect("it answers");
    assert!(!ours);
    connection
}

async fn announcing() -> World {
    let world = World::new().await;
    world.register().await;
    world.install_triggers().await;
    world
}

const TWO_ROWS: &str = "insert into public.documents (id, user_id, name, content) values \
    ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000a', 'one', 'First.'), \
    ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-00000000000b', 'two', 'Second.')";

#[tokio::test]
async fn any_user_of_the_application_announces_what_he_writes() {
    let world = announcing().await;
    let mut user = as_a_user(&world).await;

    user.execute(TWO_ROWS).await.expect("the insert holds");
    assert_snapshot!(world.jobs().await, @"
    0001 pending r1 000a
    0002 pending r1 000b
    ");

    user.execute("update public.documents set content = content || ' More.'").await.expect("the update holds");
    assert_snapshot!(world.jobs().await, @"
    0001 pending r2 000a
    0002 pending r2 000b
    ");

    user.execute("delete from public.documents where name = 'two'").await.expect("the delete holds");
    assert_snapshot!(world.jobs().await, @"
    0001 pending r2 000a
    0002 pending r3 000b
    ");
    world.work().await;
    assert_snapshot!(world.jobs().await, @"
    0001 completed r2 000a
    0002 cancelled r3 000b left
    ");
}

#[tokio::test]
async fn a_write_beside_the_content_opens_nothing() {
    let world = announcing().await;
    world.sql(TWO_ROWS).await;
    world.work().await;
    world.sql("update public.documents set page_count = 7, error_message = 'x', updated_at = now()").await;
    world.sql("update public.documents set content = content, name = name").await;
    world.sql("update public.documents set processing_status = 'failed' where name = 'one'").await;
    world.sql("update public.documents set content = 'nobody' where name = 'three'").await;

    assert_snapshot!(world.jobs().await, @"
    0001 completed r1 000a
    0002 completed r1 000b
    ");
}

#[tokio::test]
async fn entering_and_leaving_the_set_open_a_job() {
    let world = announcing().await;
    world.sql("insert into public.documents (id, user_id, name, content, deleted_at) values ('00000000-0000-0000-0000-000000000001', gen_random_uuid(), 'one', 'First.', now())").await;
    assert_eq!(world.jobs().await, "");

    world.sql("update public.documents set deleted_at = null, user_id = '00000000-0000-0000-0000-00000000000a'").await;
    assert_snapshot!(world.jobs().await, @"0001 pending r1 000a");
    world.work().await;
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 1);

    world.sql("update public.documents set deleted_at = now()").await;
    assert_snapshot!(world.jobs().await, @"0001 pending r2 000a");
    world.work().await;
    assert_snapshot!(world.jobs().await, @"0001 cancelled r2 000a left");
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 0);

    // Out of the set, its content concerns nobody; back in it, it does.
    world.sql("update public.documents set content = 'Other.'").await;
    assert_snapshot!(world.jobs().await, @"0001 cancelled r2 000a left");
    world.sql("update public.documents set deleted_at = null").await;
    world.work().await;
    assert_snapshot!(world.jobs().await, @"0001 completed r3 000a");
}

#[tokio::test]
async fn a_key_that_changes_announces_the_old_row_and_the_new() {
    let world = announcing().await;
    world.sql(TWO_ROWS).await;
    world.work().await;
    world.sql("alter table public.document_chunks drop constraint document_chunks_document_id_fkey").await;

    world.sql("update public.documents set id = '00000000-0000-0000-0000-000000000003' where name = 'one'").await;
    assert_snapshot!(world.jobs().await, @"
    0001 pending r2 000a
    0002 completed r1 000b
    0003 pending r1 000a
    ");

    world.work().await;
    assert_snapshot!(world.jobs().await, @"
    0001 cancelled r2 000a left
    0002 completed r1 000b
    0003 completed r1 000a
    ");
    let owners = world.list("select right(document_id::text, 4) from public.document_chunks order by 1").await;
    assert_eq!(owners, ["0002", "0003"]);
}

#[tokio::test]
async fn a_pipeline_is_deaf_to_itself_and_hears_others() {
    let world = announcing().await;
    world.sql(TWO_ROWS).await;
    world.work().await;
    let write = |writer: &str, text: &str| {
        format!(
            "begin; set local gristmill.writer = '{writer}'; update public.documents set content = '{text}'; commit"
        )
    };

    world.sql(&write("documents", "By itself.")).await;
    assert_snapshot!(world.jobs().await, @"
    0001 completed r1 000a
    0002 completed r1 000b
    ");
    world.sql(&write("transcripts", "By another.")).await;
    assert_snapshot!(world.jobs().await, @"
    0001 pending r2 000a
    0002 pending r2 000b
    ");
}

#[tokio::test]
async fn the_application_writes_on_when_we_are_gone_or_broken() {
    let world = announcing().await;
    world.sql("alter table gristmill.embedding_jobs rename to elsewhere").await;
    world.sql(TWO_ROWS).await;
    world.sql("alter table gristmill.elsewhere rename to embedding_jobs; delete from gristmill.pipelines").await;
    world.sql("update public.documents set content = 'Other.'").await;
    world.sql("delete from public.documents where name = 'two'").await;
    assert_eq!(world.jobs().await, "");

    // The sweep finds what the triggers could not say.
    world.register().await;
    world.sql("delete from gristmill.embedding_jobs").await;
    assert_eq!(world.sweep(None).await, 1);
    assert_snapshot!(world.jobs().await, @"0001 pending r1 000a");

    world.sql("drop schema gristmill cascade").await;
    world
        .sql("insert into public.documents (user_id, name, content) values (gen_random_uuid(), 'three', 'Third.')")
        .await;
    world.sql("update public.documents set content = 'Fourth.'; delete from public.documents where name = 'one'").await;
    assert_eq!(world.list("select name || content from public.documents").await, ["threeFourth."]);
}

#[tokio::test]
async fn a_cancelled_statement_stays_cancelled() {
    let world = announcing().await;
    world.sql(TWO_ROWS).await;
    let mut holder = world.database.connect().await;
    holder.execute("begin; select from gristmill.embedding_jobs for update").await.expect("it locks");

    let mut user = world.database.connect().await;
    user.execute("set statement_timeout = '200ms'").await.expect("it is set");
    let cut = user.execute("update public.documents set content = 'Other.'").await;

    let code = cut
        .expect_err("the statement was cut")
        .as_database_error()
        .and_then(|error| error.code().map(std::borrow::Cow::into_owned));
    assert_eq!(code.as_deref(), Some("57014"));
    assert_eq!(world.list("select content from public.documents order by name").await, ["First.", "Second."]);
}

/// Clients that update many rows each, in an order of their own, while a worker commits the same rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_write_while_the_worker_commits_see_no_deadlock() {
    const CLIENTS: u64 = 6;
    const ROWS: u64 = 48;
    let world = announcing().await;
    world
        .sql(&format!(
            "insert into public.documents (user_id, name, content) select '{USER}', n::text, 'Before.' from generate_series(0, {}) n",
            ROWS - 1
        ))
        .await;
    let worker = world.start().await;

    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let mut connection = world.database.connect().await;
        // Its own rows, so that two clients never wait for each other.
        let mine: Vec<u64> = (0..ROWS).filter(|row| row % CLIENTS == client).collect();
        clients.push(tokio::spawn(async move {
            let mut random = client + 1;
            let mut errors = Vec::new();
            for round in 0..150 {
                let mut rows = mine.clone();
                let mut transaction = connection.begin().await.expect("it begins");
                for _ in 0..3 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let at = usize::try_from((random >> 33) % u64::try_from(rows.len()).expect("few")).expect("few");
                    let row = rows.swap_remove(at);
                    let update = format!("update public.documents set content = 'Round {round}.' where name = '{row}'");
                    if let Err(error) = transaction.execute(AssertSqlSafe(update)).await {
                        errors.push(error.to_string());
                    }
                }
                transaction.commit().await.expect("it commits");
            }
            errors
        }));
    }
    for client in clients {
        assert_eq!(client.await.expect("no panic"), Vec::<String>::new());
    }
    worker.idle().await;
    worker.stop().await;

    // The trigger would have swallowed a deadlock: the server's own count tells.
    assert_eq!(
        world.value::<i64>("select deadlocks from pg_stat_database where datname = current_database()").await,
        0
    );
    let wrong = world
        .list(
            "select d.name from public.documents d left join public.document_chunks c on c.document_id = d.id and c.content = d.content \
             join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(d.id) \
             where c.id is null or j.state <> 'completed' or d.processing_status <> 'completed'",
        )
        .await;
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 48);
}

#[tokio::test]
async fn an_application_enqueues_whatever_type_its_keys_have() {
    let world = World::new().await;
    world.register().await;
    for key in [
        "'a text'",
        "'00000000-0000-0000-0000-000000000001'::uuid",
        "7",
        "8::bigint",
        "'varying'::varchar",
        r#"'["north", 5]'::jsonb"#,
        r#"'["south", "6"]'::json"#,
        r#"'"quoted"'::jsonb"#,
        "'9'::jsonb",
        "date '2026-01-31'",
        "null::uuid",
    ] {
        world
            .sql(&format!("set datestyle = 'SQL, DMY'; select gristmill.enqueue('documents', {key}); reset datestyle"))
            .await;
    }

    let keys = world.list("select source_key::text from gristmill.embedding_jobs order by id").await.join("\n");
    assert_snapshot!(keys, @r#"
    ["a text"]
    ["00000000-0000-0000-0000-000000000001"]
    ["7"]
    ["8"]
    ["varying"]
    ["north", "5"]
    ["south", "6"]
    ["quoted"]
    ["9"]
    ["2026-01-31"]
    "#);

    let unknown = world.pool.execute("select gristmill.enqueue('documants', 7)").await.expect_err("nobody knows it");
    let unknown = unknown.as_database_error().expect("the database said so");
    let hint = unknown.downcast_ref::<sqlx::postgres::PgDatabaseError>().hint().unwrap_or_default();
    assert_snapshot!(format!("{} ({hint})", unknown.message()), @r#"gristmill knows no pipeline "documants" (a pipeline is known once a worker has started with it)"#);
}

#[tokio::test]
async fn an_enqueued_row_is_worked_and_one_that_is_nowhere_is_said_to_be_gone() {
    let world = World::new().await.change("sweep = \"1h\"", "sweep = \"1h\"\nsweep_rows = 5");
    world.register().await;
    world.sql(TWO_ROWS).await;
    world
        .sql(&format!(
            "select gristmill.enqueue('documents', '{}'::uuid, 5), gristmill.enqueue('documents', '{}'), gristmill.enqueue('documents', 'no uuid')",
            id(1),
            id(9)
        ))
        .await;
    assert_snapshot!(world.list("select concat_ws(' ', right(source_key->>0, 4), priority, state) from gristmill.embedding_jobs order by id").await.join("\n"), @"
    0001 5 pending
    0009 0 pending
    uuid 0 pending
    ");

    world.work().await;
    assert_snapshot!(world.jobs().await, @"
    0001 completed r1 000a
    0002 completed r1 000b
    0009 cancelled r1 left
    uuid failed r1 constraint
    ");
}

#[tokio::test]
async fn what_a_person_said_before_cancelling_does_not_open_the_job_after() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.sweep(None).await;
    let enqueue = "begin isolation level repeatable read; select gristmill.enqueue('documents', id) from public.documents; commit";
    world.sql(enqueue).await;
    assert!(world.value::<bool>("select gristmill.cancel(id) from gristmill.embedding_jobs").await);
    assert_eq!(fold(&world.pool, 10).await.expect("the database is there"), 0);
    assert_eq!(world.states().await, "1 cancelled person");

    world.sql(enqueue).await;
    assert_eq!(fold(&world.pool, 10).await.expect("the database is there"), 1);
    assert_eq!(world.states().await, "1 pending");
}

#[tokio::test]
async fn only_a_person_reopens_what_a_person_cancelled() {
    let world = announcing().await;
    world.sql(TWO_ROWS).await;
    assert!(
        world
            .value::<bool>("select gristmill.cancel(id) from gristmill.embedding_jobs where source_key->>0 like '%1'")
            .await
    );
    world.work().await;
    world.sql("update public.documents set content = content || ' More.'").await;
    world.work().await;
    assert_eq!(world.sweep(None).await, 0);
    assert_snapshot!(world.jobs().await, @"
    0001 cancelled r1 000a person
    0002 completed r2 000b
    ");

    assert!(
        world
            .value::<bool>("select gristmill.retry(id) from gristmill.embedding_jobs where source_key->>0 like '%1'")
            .await
    );
    world.work().await;
    assert_snapshot!(world.jobs().await, @"
    0001 completed r2 000a
    0002 completed r2 000b
    ");
    // Nothing is to be cancelled any more.
    assert!(!world.value::<bool>("select bool_or(gristmill.cancel(id)) from gristmill.embedding_jobs").await);
}

#[tokio::test]
async fn a_cancelled_row_that_is_deleted_loses_its_vectors_all_the_same() {
    let world = World::new().await;
    world.sql("alter table public.document_chunks drop constraint document_chunks_document_id_fkey").await;
    world.register().await;
    world.sql(TWO_ROWS).await;
    world.work().await;
    world.sql("update public.documents set content = 'Other.'").await;
    world.sweep(None).await;
    world.sql("select gristmill.cancel(id) from gristmill.embedding_jobs").await;

    world.sql("delete from public.documents where name = 'one'").await;
    world.work().await;

    assert_snapshot!(world.jobs().await, @"
    0001 cancelled r3 000a left
    0002 cancelled r2 000b person
    ");
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 1);
}

#[tokio::test]
async fn a_retry_pays_for_what_changed_and_a_fresh_one_for_all() {
    let world = World::new().await;
    world.register().await;
    world.sql(TWO_ROWS).await;
    world.work().await;
    let inputs = "select coalesce(sum(inputs), 0)::bigint from gristmill.provider_calls where outcome = 'paid'";
    assert_eq!(world.value::<i64>(inputs).await, 2);

    assert_eq!(world.list("select gristmill.retry(id)::text from gristmill.embedding_jobs").await, ["true", "true"]);
    assert_eq!(world.list("select gristmill.retry(id)::text from gristmill.embedding_jobs").await, ["false", "false"]);
    world.work().await;
    assert_eq!(world.value::<i64>(inputs).await, 2);

    world
        .sql("select gristmill.retry(id, fresh => true) from gristmill.embedding_jobs where source_key->>0 like '%1'")
        .await;
    world.work().await;
    assert_eq!(world.value::<i64>(inputs).await, 3);
    assert!(!world.value::<bool>("select gristmill.retry(12345)").await);
}

#[tokio::test]
async fn a_paused_pipeline_claims_nothing_until_it_is_resumed() {
    let world = World::new().await;
    world.register().await;
    world.sql(TWO_ROWS).await;
    assert!(world.value::<bool>("select gristmill.pause('documents', 'the budget is spent')").await);
    let worker = world.start().await;
    worker.idle().await;
    assert_snapshot!(world.jobs().await, @"
    0001 pending r1 000a
    0002 pending r1 000b
    ");

    assert!(world.value::<bool>("select gristmill.resume('documents')").await);
    worker.idle().await;
    worker.stop().await;
    assert_snapshot!(world.jobs().await, @"
    0001 completed r1 000a
    0002 completed r1 000b
    ");
    assert!(!world.value::<bool>("select gristmill.pause('no such')").await);
    assert!(!world.value::<bool>("select gristmill.resume('no such')").await);
}

#[tokio::test]
async fn a_tenant_is_forgotten_once_its_rows_are_gone() {
    let world = announcing().await;
    world.sql(TWO_ROWS).await;
    let a = id(0xa);
    world.work().await;
    world.sql("update public.documents set content = 'Again.'").await;
    world.work().await;
    world.sql(&format!("insert into gristmill.vector_cache select '{a}', 'm', sha256('x'), ''")).await;
    let totals =
        "select sum(quantity) || ' ' || sum(cost) || ' ' || count(distinct tenant) from gristmill.usage_events";
    let before = world.list(totals).await;

    let refused = world.pool.execute(AssertSqlSafe(format!("select gristmill.forget('{a}')"))).await;
    let refused = refused.expect_err("its row is there");
    assert_snapshot!(refused.as_database_error().expect("the database said so").message(), @"rows of these jobs are still in a set");
    let refused =
        world.pool.execute(AssertSqlSafe(format!("select gristmill.forget('documents', '{}'::uuid)", id(1)))).await;
    assert!(refused.is_err());

    world.sql("delete from public.documents where name = 'one'").await;
    world.work().await;
    assert_eq!(world.value::<i64>(&format!("select gristmill.forget('{a}')")).await, 1);

    assert_snapshot!(world.jobs().await, @"0002 completed r2 000b");
    assert_eq!(world.list(totals).await, before);
    let known = format!(
        "select (select count(*) from gristmill.vector_cache) + (select count(*) from gristmill.provider_call_jobs where tenant = '{a}') \
             + (select count(*) from gristmill.usage_events where tenant = '{a}')"
    );
    assert_eq!(world.value::<i64>(&known).await, 0);
    assert!(world.value::<bool>("select bool_or(tenant like 'forgotten-%') from gristmill.usage_events").await);
    assert_eq!(world.sweep(None).await, 0);

    world.sql("delete from public.documents").await;
    world.work().await;
    assert_eq!(world.value::<i64>(&format!("select gristmill.forget('documents', '{}')", id(2))).await, 1);
    assert_eq!(world.value::<i64>(&format!("select gristmill.forget('documents', '{}'::uuid)", id(2))).await, 0);
}

#[tokio::test]
async fn the_sweep_finds_rows_that_nobody_announced_in_small_slices() {
    let world = World::new().await.change("sweep = \"1h\"", "sweep = \"1h\"\nsweep_rows = 3");
    world.register().await;
    for number in 1..=10 {
        world.insert(&format!("note {number:02}"), &format!("Text {number}.")).await;
    }

    assert_eq!(world.sweep(None).await, 10);
    assert_eq!(world.sweep(None).await, 0);
    world.work().await;
    assert_eq!(world.value::<i64>("select count(*) from gristmill.embedding_jobs where state = 'completed'").await, 10);

    // What changed is seen by its `changed_at`, and what only looks changed is not opened.
    world.sql("update public.documents set content = 'Other.' where name = 'note 07'").await;
    world.sql("update public.documents set updated_at = now() where name = 'note 03'").await;
    assert_eq!(world.sweep(Some(OffsetDateTime::now_utc() - Duration::from_hours(1))).await, 1);
    world.work().await;
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks where content = 'Other.'").await, 1);

    // Rows that left lose their vectors.
    world.sql("delete from public.documents where name in ('note 01', 'note 10')").await;
    world.sql("update public.documents set deleted_at = now() where name in ('note 04', 'note 05')").await;
    assert_eq!(world.sweep(None).await, 4);
    assert_eq!(world.sweep(None).await, 0);
    world.work().await;
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 6);
    assert_eq!(world.sweep(None).await, 0);

    // And rows that come back get them again.
    world.sql("update public.documents set deleted_at = null").await;
    assert_eq!(world.sweep(None).await, 2);
    world.work().await;
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 8);
}

#[tokio::test]
async fn vectors_of_rows_that_left_stay_where_the_pipeline_keeps_them_and_are_not_paid_again() {
    let world = World::new().await.change("existing = \"backfill\"", "existing = \"backfill\"\non_leave = \"keep\"");
    world.register().await;
    let note = world.insert("note", "The mill grinds.").await;
    world.work().await;
    let chunk = world.list("select id::text from public.document_chunks").await;

    world.sql("update public.documents set deleted_at = now()").await;
    world.work().await;
    assert_snapshot!(world.state().await, @"note completed | cancelled attempt=0 chunks=1 left source row is not in the set");
    world.sql("update public.documents set deleted_at = null").await;
    world.work().await;

    assert_snapshot!(world.state().await, @"note completed | completed attempt=1 chunks=1");
    assert_eq!(world.list("select id::text from public.document_chunks").await, chunk);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.provider_calls").await, 1);
    assert_eq!(world.value::<i64>(&format!("select count(*) from public.documents where id = '{note}'")).await, 1);
}

#[tokio::test]
async fn a_job_that_killed_its_workers_stays_failed() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.sweep(None).await;
    world
        .sql(
            "update gristmill.embedding_jobs set state = 'failed', error_kind = 'crashed', reason = 'its worker died', \
                 crashes = 4, crashes_alone = 2, started_at = clock_timestamp(), finished_at = clock_timestamp()",
        )
        .await;

    assert_eq!(world.sweep(None).await, 0);
    world.sql("update public.documents set content = 'Other.'").await;
    assert_eq!(world.sweep(None).await, 1);
}
