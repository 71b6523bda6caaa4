//! The engine as a whole: several workers, fairness and order, generations and pauses, outages, stopping.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gristmill::app::{self, StartError};
use gristmill::db;
use insta::assert_snapshot;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::fake_openai::{Answer, FakeOpenAi};
use crate::outcomes::{enqueued, eventually, killed_in_hand, vendor};
use crate::world::{USER, World};

/// Inserts documents and announces them, as an application does in one transaction.
async fn backlog(world: &World, tenant: Uuid, documents: u32) {
    world
        .sql(&format!(
            "with rows as ( \
                 insert into public.documents (user_id, name, content) \
                 select '{tenant}', format('%s of %s', nth, '{tenant}'), format('Sentence %s of %s.', nth, '{tenant}') \
                 from generate_series(1, {documents}) as nth returning id \
             ) \
             select gristmill.enqueue('documents', id, 0, '{tenant}') from rows"
        ))
        .await;
}

fn tenant(nth: u32) -> Uuid {
    Uuid::from_u128(u128::from(nth) << 96 | 0xabc)
}

/// How many jobs stand how, with all that would betray a second run.
const SUMMARY: &str = "select concat_ws(' ', count(*), told) from ( \
         select concat_ws(' ', j.state, 'starts=' || j.starts, 'attempt=' || j.attempt, 'crashes=' || nullif(j.crashes, 0), \
             'chunks=' || (select count(*) from public.document_chunks c where j.source_key = jsonb_build_array(c.document_id::text)), \
             'usage=' || (select count(*) from gristmill.usage_events u where u.job_id = j.id), \
             (select string_agg(a.outcome, ',' order by a.id) from gristmill.job_attempts a where a.job_id = j.id)) as told \
         from gristmill.embedding_jobs j) as jobs group by told order by 1";

async fn summary(world: &World) -> String {
    world.list(SUMMARY).await.join("\n")
}

async fn all_are(world: &World, state: &str) {
    eventually(world, &format!("(select bool_and(state = '{state}') from gristmill.embedding_jobs)")).await;
}

fn assert_each_paid_once(vendor: &FakeOpenAi, texts: usize) {
    let mut paid = vendor.paid_texts();
    paid.sort();
    assert_eq!(paid.len(), texts);
    paid.dedup();
    assert_eq!(paid.len(), texts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_the_jobs_and_each_runs_once() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("slots = 16", "slots = 64");
    world.register().await;
    backlog(&world, USER, 2_000).await;
    let (one, two) = (world.start().await, world.start().await);

    all_are(&world, "completed").await;
    one.stop().await;
    two.stop().await;

    assert_snapshot!(summary(&world).await, @"2000 completed starts=1 attempt=1 chunks=1 usage=1");
    assert_each_paid_once(&vendor, 2_000);
    let workers: i64 = world.value("select count(distinct worker) from gristmill.provider_calls").await;
    assert_eq!(workers, 2);
}

#[tokio::test]
async fn a_paused_pipeline_and_one_of_another_generation_are_not_claimed() {
    let world = World::new().await.change("poll = \"200ms\"", "poll = \"50ms\"");
    world.register().await;
    let generation: String = world.value("select generation from gristmill.pipelines").await;
    let worker = world.start().await;
    worker.idle().await;
    for (keep_out, let_in) in [
        (
            "select gristmill.pause('documents', 'too dear')".to_owned(),
            "select gristmill.resume('documents')".to_owned(),
        ),
        (
            "update gristmill.pipelines set generation = 'another'".to_owned(),
            format!("update gristmill.pipelines set generation = '{generation}'"),
        ),
    ] {
        world.sql(&keep_out).await;
        enqueued(&world, "note", "One.").await;
        // Several polls long.
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(world.state().await, "note pending | pending attempt=0 chunks=0");

        world.sql(&let_in).await;
        all_are(&world, "completed").await;
        world.sql("delete from public.documents; delete from gristmill.embedding_jobs").await;
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_copy_of_a_database_is_left_alone_until_a_person_says_so() {
    let world = World::new().await;
    world.register().await;
    world.work().await;
    world.sql("update gristmill.installation set identity = '7312/original'").await;
    enqueued(&world, "note", "One.").await;

    let started = app::start(&world.config(), &world.pool, CancellationToken::new()).await;
    assert!(matches!(started, Err(StartError::Copied)));
    assert_eq!(world.state().await, "note pending | pending attempt=0 chunks=0");

    db::pipelines::settle_here(&world.pool).await.expect("the database is there");
    world.work().await;
    assert_eq!(world.state().await, "note completed | completed attempt=1 chunks=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_row_of_a_small_tenant_is_not_behind_a_large_one() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    backlog(&world, tenant(1), 3_000).await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    backlog(&world, tenant(2), 1).await;
    // The next look for tenants is due.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    gate.open();

    eventually(
        &world,
        &format!(
            "exists (select from gristmill.embedding_jobs where tenant = '{}' and state = 'completed')",
            tenant(2)
        ),
    )
    .await;
    worker.stop().await;

    let before: i64 = world
        .value(&format!(
            "select count(*) from gristmill.embedding_jobs where started_at < \
                 (select started_at from gristmill.embedding_jobs where tenant = '{}')",
            tenant(2)
        ))
        .await;
    // What was in hand when it came, and the two claims around the look.
    assert!(before <= 3 * 16, "{before} jobs went first");
}

/// Gives every tenant a backlog, works it off, and says how many jobs had started when the last tenant got its first.
async fn starts_until_everyone_had_one(tenants: u32, each: u32) -> i64 {
    let world = World::new().await;
    world.register().await;
    for nth in 1..=tenants {
        backlog(&world, tenant(nth), each).await;
    }
    world.work().await;
    world
        .value(
            "with starts as (select tenant, row_number() over (order by started_at, id) as nth from gristmill.embedding_jobs \
                 where state = 'completed') \
             select max(first) from (select min(nth) as first from starts group by tenant) as firsts",
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_tenants_than_slots_take_turns() {
    let last = starts_until_everyone_had_one(40, 20).await;
    assert!(last <= 40 + 16, "the last tenant waited for {last} jobs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_tenants_than_a_turn_holds_take_turns() {
    let last = starts_until_everyone_had_one(150, 6).await;
    assert!(last <= 150 + 16, "the last tenant waited for {last} jobs");
}

#[tokio::test]
async fn within_a_tenant_priority_goes_first_and_then_time() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("slots = 16", "slots = 1");
    world.register().await;
    for (text, priority) in [("a", 0), ("b", 0), ("urgent c", 5), ("d", 0), ("urgent e", 5), ("last f", -3), ("g", 0)] {
        world.insert(text, text).await;
        world
            .sql(&format!(
                "select gristmill.enqueue('documents', id, {priority}) from public.documents where name = '{text}'"
            ))
            .await;
    }

    world.work().await;

    assert_eq!(vendor.paid_texts(), ["urgent c", "urgent e", "a", "b", "d", "g", "last f"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_must_be_alone_finds_its_moment_in_a_busy_worker() {
    let world = World::new().await.change("lease = \"10s\"", "lease = \"1s\"").change("slots = 16", "slots = 4");
    world.register().await;
    enqueued(&world, "suspect", "One.").await;
    world.sql("update gristmill.embedding_jobs set crashes = 2").await;
    killed_in_hand(&world, "true").await;
    backlog(&world, tenant(1), 6_000).await;
    let worker = world.start().await;

    eventually(&world, "exists (select from gristmill.embedding_jobs where crashes = 3 and state = 'completed')").await;
    let left: i64 = world.value("select count(*) from gristmill.embedding_jobs where state = 'pending'").await;
    worker.stop().await;

    assert!(left > 0, "the others were through: this test shows nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connections_lose_no_job_and_no_bill() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    backlog(&world, USER, 300).await;
    let mut admin = world.database.connect().await;
    let worker = world.start().await;
    for nth in 1..=6 {
        vendor.arrived(nth).await;
        ask::<i64>(
            &mut admin,
            "select count(pg_terminate_backend(pid)) from pg_stat_activity \
             where datname = current_database() and pid <> pg_backend_pid()",
        )
        .await;
    }

    let patience = Instant::now();
    while !ask::<bool>(&mut admin, "select bool_and(state = 'completed') from gristmill.embedding_jobs").await {
        assert!(patience.elapsed() < Duration::from_secs(40), "jobs are left");
        // Nobody wants to wait for the seconds that a job is put off.
        ask::<i64>(
            &mut admin,
            "with due as (update gristmill.embedding_jobs set run_at = now() where state = 'waiting' returning 1) select count(*) from due",
        )
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    worker.stop().await;

    let told: Vec<String> = sqlx::query_scalar(
        "select concat_ws(' ', count(*), 'completed', sum(chunks), 'chunks', max(attempt), 'attempt', max(crashes), 'crashes') \
         from gristmill.embedding_jobs \
         union all select concat_ws(' ', count(*), 'chunks') from public.document_chunks \
         union all select concat_ws(' ', count(distinct job_id), 'billed', count(*), 'times') from gristmill.usage_events",
    )
    .fetch_all(&mut admin)
    .await
    .expect("the database is there");
    assert_eq!(told, ["300 completed 300 chunks 1 attempt 0 crashes", "300 chunks", "300 billed 300 times"]);
}

/// One value, over a connection that nobody ends.
async fn ask<T>(connection: &mut PgConnection, query: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(connection).await.expect("the query holds")
}

#[tokio::test]
async fn a_worker_with_nothing_in_hand_stops_at_once() {
    let world = World::new().await;
    world.register().await;
    for busy in [false, true, false, true] {
        let worker = world.start().await;
        if busy {
            world.insert("note", "One.").await;
            world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
            worker.idle().await;
        }
        let asked = Instant::now();
        worker.stop().await;
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn a_database_that_does_not_answer_does_not_keep_a_worker_from_stopping() {
    let world = World::new().await.change("grace = \"5s\"", "grace = \"100ms\"");
    world.register().await;
    let worker = world.start().await;
    worker.idle().await;
    let mut other = world.database.connect().await;
    sqlx::raw_sql("begin; lock table gristmill.embedding_jobs").execute(&mut other).await.expect("the table is free");
    // Until a claim waits for the lock.
    while !ask::<bool>(&mut other, "select exists (select from pg_locks where not granted)").await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let asked = Instant::now();
    worker.stop().await;

    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_part_that_panics_ends_the_worker_and_hands_its_jobs_back() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("grace = \"5s\"", "grace = \"1h\"");
    world.register().await;
    enqueued(&world, "note", "One.").await;
    let _gate = vendor.hold();
    let running = app::start(&world.config(), &world.pool, CancellationToken::new()).await.expect("the worker starts");
    let engine = running.engine.clone();
    let worker = tokio::spawn(async move { engine.run().await });
    vendor.arrived(1).await;

    running.engine.vital.spawn("sweeper", async { panic!("a stone in the grain") });

    let ended = worker.await.expect("the engine itself does not panic");
    assert_eq!(ended.expect_err("a part is missing").to_string(), "the sweeper panicked: a stone in the grain");
    assert_eq!(world.state().await, "note pending | pending attempt=0 chunks=0");
}

#[tokio::test]
async fn leases_are_kept_while_the_pool_is_drained() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("lease = \"10s\"", "lease = \"1500ms\"");
    world.register().await;
    enqueued(&world, "note", "One.").await;
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    let mut own = world.database.connect().await;
    let mut taken = Vec::new();
    // Whatever the worker lets go of is taken as well.
    while let Ok(Ok(connection)) = tokio::time::timeout(Duration::from_millis(300), world.pool.acquire()).await {
        taken.push(connection);
    }

    // Two whole leases.
    let until: f64 =
        ask(&mut own, "select extract(epoch from lease_until)::float8 from gristmill.embedding_jobs").await;
    let patience = Instant::now();
    let renewed = format!(
        "select extract(epoch from lease_until)::float8 > {until} + 3 and lease_until > clock_timestamp() from gristmill.embedding_jobs"
    );
    while !ask::<Option<bool>>(&mut own, &renewed).await.unwrap_or(false) {
        assert!(patience.elapsed() < Duration::from_secs(20), "the lease was lost");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(taken);
    gate.open();
    all_are(&world, "completed").await;
    worker.stop().await;

    assert_eq!(summary(&world).await, "1 completed starts=1 attempt=1 chunks=1 usage=1");
}

#[tokio::test]
async fn a_connection_that_breaks_in_a_statement_puts_no_job_off() {
    for (table, statement) in [("public.documents", "octet_length"), ("gristmill.provider_calls", "insert into")] {
        let world = World::new().await;
        world.register().await;
        let worker = world.start().await;
        worker.idle().await;
        world.insert("note", "One.").await;
        let mut admin = world.database.connect().await;
        sqlx::raw_sql(AssertSqlSafe(format!("begin; lock table {table}"))).execute(&mut admin).await.unwrap();
        let id: Uuid = ask(&mut admin, "select id from public.documents").await;
        let mut other = world.database.connect().await;
        ask::<i64>(&mut other, &format!("select gristmill.enqueue('documents', '{id}'::uuid)")).await;

        let ended = format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity \
             where datname = current_database() and wait_event_type = 'Lock' and query like '%{statement}%'"
        );
        while ask::<i64>(&mut other, &ended).await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sqlx::raw_sql("rollback").execute(&mut admin).await.unwrap();
        all_are(&world, "completed").await;
        worker.stop().await;

        assert_eq!(summary(&world).await, "1 completed starts=1 attempt=1 chunks=1 usage=1", "{table}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_no_paid_call_open() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    let worker = world.start().await;
    worker.idle().await;
    let gate = vendor.hold();
    enqueued(&world, "note", "One.").await;
    vendor.arrived(1).await;
    let (mut holder, mut admin) = (world.database.connect().await, world.database.connect().await);
    sqlx::raw_sql("begin; lock table gristmill.provider_calls").execute(&mut holder).await.unwrap();
    gate.open();
    let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                 where datname = current_database() and wait_event_type = 'Lock' and query like '%update gristmill.provider_calls%'";
    while ask::<i64>(&mut admin, ended).await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sqlx::raw_sql("rollback").execute(&mut holder).await.unwrap();
    all_are(&world, "completed").await;
    worker.stop().await;

    let calls = world.list("select concat_ws(' ', outcome, tokens) from gristmill.provider_calls").await;
    assert_eq!(calls, ["paid 2"]);
}

#[tokio::test]
async fn a_lease_that_seems_lost_during_the_commit_is_the_commit_s_to_judge() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    let worker = world.start().await;
    // Its first sweep must not announce the row a second time.
    worker.idle().await;
    let mut holder = world.database.connect().await;
    sqlx::raw_sql("begin; lock table gristmill.usage_events").execute(&mut holder).await.unwrap();
    enqueued(&world, "note", "One.").await;
    eventually(
        &world,
        "exists (select from pg_locks where not granted and relation = 'gristmill.usage_events'::regclass)",
    )
    .await;

    // What a heartbeat says that crosses the commit.
    let hands = &worker.running.engine.hands;
    hands.tell_lost(&hands.leases());
    sqlx::raw_sql("rollback").execute(&mut holder).await.unwrap();
    all_are(&world, "completed").await;
    worker.stop().await;

    assert_eq!(summary(&world).await, "1 completed starts=1 attempt=1 chunks=1 usage=1");
    let parked: i64 = world.value("select count(*) from gristmill.vector_cache").await;
    assert_eq!(parked, 0, "what is written needs no keeping");
}

#[tokio::test]
async fn a_database_without_a_free_connection_does_not_keep_an_idle_worker() {
    let world = World::new().await;
    world.register().await;
    let worker = world.start().await;
    worker.idle().await;
    // Whoever comes from here on waits behind these for a connection, as for a database that is away.
    let greedy: Vec<_> = (0..24)
        .map(|_| {
            let pool = world.pool.clone();
            tokio::spawn(async move {
                let _held = pool.acquire().await;
                std::future::pending::<()>().await;
            })
        })
        .collect();
    while world.pool.size() < 12 || world.pool.num_idle() > 0 {
        tokio::task::yield_now().await;
    }
    worker.running.engine.wake.notify_waiters();

    let asked = Instant::now();
    worker.stop().await;

    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    greedy.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A worker of its own process.
pub struct Process(Child);

impl Process {
    pub fn start(world: &World, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gristmill"));
        command.arg("--config").arg(world.config_file()).arg("run").args(arguments);
        Self(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts"))
    }

    /// `kill -9`: nothing is cleaned up.
    pub fn kill(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it is ours");
    }

    fn terminate(&mut self) {
        self.signal("TERM");
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status().expect("there is a kill");
        assert!(done.success());
    }

    /// Its exit code.
    async fn ended(&mut self) -> Option<i32> {
        for _ in 0..6_000 {
            if let Some(status) = self.0.try_wait().expect("it is ours") {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the process does not end");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn jobs_that_were_passed_over_because_somebody_held_them_do_not_wait_for_the_next_poll() {
    let world = World::new().await.change("poll = \"200ms\"", "poll = \"1h\"");
    world.register().await;
    backlog(&world, USER, 300).await;
    let mut other = world.database.connect().await;
    sqlx::raw_sql("begin; select from gristmill.embedding_jobs where id <= 200 for update")
        .execute(&mut other)
        .await
        .unwrap();
    let worker = world.start().await;
    eventually(&world, "(select count(*) = 100 from gristmill.embedding_jobs where state = 'completed')").await;

    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();

    all_are(&world, "completed").await;
    worker.stop().await;
}

#[tokio::test]
async fn two_processes_share_the_jobs_and_each_runs_once() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("slots = 16", "slots = 64");
    world.register().await;
    backlog(&world, USER, 2_000).await;
    let mut processes = [Process::start(&world, &["--once"]), Process::start(&world, &["--once"])];

    for process in &mut processes {
        assert_eq!(process.ended().await, Some(0));
    }

    assert_snapshot!(summary(&world).await, @"2000 completed starts=1 attempt=1 chunks=1 usage=1");
    assert_each_paid_once(&vendor, 2_000);
    let workers: i64 = world.value("select count(distinct worker) from gristmill.provider_calls").await;
    assert_eq!(workers, 2);
}

#[tokio::test]
async fn jobs_of_a_process_killed_between_reply_and_commit_are_done_by_another() {
    const JOBS: u32 = 240;
    let vendor = vendor();
    let world = World::with_vendor(&vendor)
        .await
        .change("slots = 16", "slots = 256")
        .change("lease = \"10s\"", "lease = \"4s\"");
    world.register().await;
    backlog(&world, USER, JOBS).await;
    // As long as somebody holds the rows, no commit gets through.
    let mut other = world.database.connect().await;
    sqlx::raw_sql("begin; select from public.documents for update")
        .execute(&mut other)
        .await
        .expect("the rows are free");
    let mut first = Process::start(&world, &[]);
    while vendor.paid_texts().len() < JOBS as usize {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let in_hand: i64 = world.value("select count(*) from gristmill.embedding_jobs where state = 'processing'").await;
    assert_eq!(in_hand, i64::from(JOBS));

    first.kill();
    let killed = Instant::now();
    sqlx::raw_sql("rollback").execute(&mut other).await.expect("the rows can be let go");
    let mut second = Process::start(&world, &[]);
    all_are(&world, "completed").await;

    assert!(killed.elapsed() < Duration::from_mins(1), "{:?}", killed.elapsed());
    assert_snapshot!(summary(&world).await, @"240 completed starts=2 attempt=1 crashes=1 chunks=1 usage=1 crash,done");
    second.terminate();
    assert_eq!(second.ended().await, Some(0));
}

#[tokio::test]
async fn a_process_that_was_only_stopped_is_no_crash_of_its_jobs() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("lease = \"10s\"", "lease = \"3s\"");
    world.register().await;
    enqueued(&world, "suspect", "One.").await;
    // Twice more, and it would be failed.
    world.sql("update gristmill.embedding_jobs set crashes = 3").await;
    let gate = vendor.hold();
    let first = Process::start(&world, &[]);
    vendor.arrived(1).await;
    let second = Process::start(&world, &[]);

    for (nth, stopped) in [(2, &first), (3, &second), (4, &first)] {
        stopped.signal("STOP");
        vendor.arrived(nth).await;
        let told = "select concat_ws(' ', state, crashes, crashes_alone) from gristmill.embedding_jobs";
        assert_eq!(world.value::<String>(told).await, "processing 4 1");
        stopped.signal("CONT");
        eventually(&world, "(select (crashes, crashes_alone) = (3, 0) from gristmill.embedding_jobs)").await;
    }
    gate.open();
    all_are(&world, "completed").await;

    assert_snapshot!(summary(&world).await, @"1 completed starts=4 attempt=1 crashes=3 chunks=1 usage=1 lost,lost,lost,done");
}

#[tokio::test]
async fn a_job_that_is_taken_while_it_is_given_back_is_no_crash_of_a_worker_that_lives() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "One.").await;
    vendor.script([Answer::status(429).with("retry-after", "30")]);
    let gate = vendor.hold();
    let worker = world.start().await;
    vendor.arrived(1).await;
    let mut holder = world.database.connect().await;
    sqlx::raw_sql("begin; select * from gristmill.embedding_jobs for update").execute(&mut holder).await.unwrap();
    gate.open();
    // The attempt is over, and cannot be written.
    let over = async {
        while worker.running.engine.hands.count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), over).await.unwrap();

    let late = "update gristmill.embedding_jobs set lease_until = now() - interval '1 second'";
    sqlx::raw_sql(late).execute(&mut holder).await.unwrap();
    assert_eq!(db::jobs::rescue(&mut holder, Duration::ZERO, 10).await.unwrap().len(), 1);
    sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();

    let is_lost = "exists (select from gristmill.job_attempts where outcome = 'lost')";
    eventually(&world, &format!("(select crashes = 0 and {is_lost} from gristmill.embedding_jobs)")).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_process_finishes_what_is_in_hand_or_is_told_again() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("grace = \"5s\"", "grace = \"1h\"");
    world.register().await;
    for told_again in [false, true] {
        world.sql("delete from public.documents; delete from gristmill.embedding_jobs").await;
        enqueued(&world, "note", "One.").await;
        let gate = vendor.hold();
        let arrived = vendor.requests();
        let mut process = Process::start(&world, &[]);
        vendor.arrived(arrived + 1).await;

        process.terminate();
        if told_again {
            // The first signal has been heard once the worker listens for the second.
            tokio::time::sleep(Duration::from_millis(200)).await;
            process.terminate();
        } else {
            gate.open();
        }
        assert_eq!(process.ended().await, Some(0));

        let want = if told_again {
            "note pending | pending attempt=0 chunks=0"
        } else {
            "note completed | completed attempt=1 chunks=1"
        };
        assert_eq!(world.state().await, want);
    }
}

#[tokio::test]
async fn a_run_that_is_to_end_by_itself_does_so_when_its_tables_no_longer_fit() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    enqueued(&world, "note", "One.").await;
    let gate = vendor.hold();
    let mut process = Process::start(&world, &["--once"]);
    vendor.arrived(1).await;
    world.sql("alter table public.document_chunks rename column embedding to vector").await;
    gate.open();

    assert_eq!(process.ended().await, Some(1));

    let job = "select concat_ws(' ', state, error_kind, 'attempt=' || attempt) from gristmill.embedding_jobs";
    assert_eq!(world.value::<String>(job).await, "waiting misfit attempt=0");
}
