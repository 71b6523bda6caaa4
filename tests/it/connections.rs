//! Connections to the database that go dead without a word, end while a worker starts, or go through a pooler.

use std::net::TcpListener;
use std::time::Duration;

use gristmill::db::listen::Announcements;
use gristmill::db::{self, ConnectError};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};

use crate::cli::{gristmill, serve, terminate};
use crate::fake_openai::{FakeOpenAi, Options};
use crate::outcomes::eventually;
use crate::pgbouncer::{MISSING, PgBouncer};
use crate::proxy::{Proxy, Server};
use crate::world::{DIMENSIONS, Worker, World};

/// A worker whose connections go through a wire, while the test's do not.
async fn wired(world: &mut World) -> (Worker, Proxy) {
    let proxy = Proxy::start(Server::of(&world.database.url));
    world.toml = world.toml.replace(&world.database.url, &proxy.url(&world.database.name));
    let wired = db::connect(&world.config().database).await.unwrap();
    let direct = std::mem::replace(&mut world.pool, wired);
    let worker = world.start().await;
    world.pool = direct;
    (worker, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_under_way_over_connections_that_went_dead_are_done_again_over_new_ones() {
    let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() });
    let mut world = World::with_vendor(&vendor).await.change("lease = \"10s\"", "lease = \"1s\"");
    world.register().await;
    let (worker, proxy) = wired(&mut world).await;
    worker.idle().await;
    let mut holder = world.database.connect().await;
    sqlx::Executor::execute(&mut holder, "begin; lock table public.document_chunks in share mode").await.unwrap();
    world.insert("note", "One.").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    // The commit waits in the middle of its transaction.
    eventually(&world, "(select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()))")
        .await;

    proxy.freeze();
    drop(holder);
    // As the server does by itself after a while.
    eventually(
        &world,
        "(select exists (select from (select pg_terminate_backend(pid) from pg_stat_activity \
          where datname = current_database() and state = 'idle in transaction') as ended))",
    )
    .await;

    eventually(&world, "(select bool_and(state = 'completed') from gristmill.embedding_jobs)").await;
    worker.stop().await;
    assert_eq!(world.state().await, "note completed | completed attempt=1 chunks=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_in_use_that_was_forgotten_while_the_others_are_whole_is_ended() {
    let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() });
    let mut world =
        World::with_vendor(&vendor).await.change("lease = \"10s\"", "lease = \"1s\"").change("slots = 16", "slots = 1");
    world.register().await;
    let (worker, proxy) = wired(&mut world).await;
    worker.idle().await;
    let mut holder = world.database.connect().await;
    sqlx::Executor::execute(&mut holder, "begin; lock table public.document_chunks in share mode").await.unwrap();
    world.insert("one", "One.").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    eventually(&world, "(select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()))")
        .await;

    // The server commits, its answer never arrives, and everything is acknowledged.
    proxy.freeze_commits(1);
    drop(holder);
    eventually(&world, "(select bool_and(state = 'completed') from gristmill.embedding_jobs)").await;
    world.insert("two", "Two.").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents where name = 'two'").await;

    // The one slot is free again, though announcements never cease.
    eventually(
        &world,
        "pg_notify('gristmill_jobs', '')::text is not null \
         and (select count(*) = 2 and bool_and(state = 'completed') from gristmill.embedding_jobs)",
    )
    .await;
    worker.stop().await;
    assert_eq!(
        world.state().await,
        "one completed | completed attempt=1 chunks=1\ntwo completed | completed attempt=1 chunks=1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_silent_rightly_while_its_statement_is_at_work_and_while_nobody_asks_it_to_speak() {
    const LONG: Duration = Duration::from_secs(1);
    let mut world = World::new().await;
    let proxy = Proxy::start(Server::of(&world.database.url));
    world.toml = world.toml.replace(&world.database.url, &proxy.url(&world.database.name));
    let pool = db::connect(&world.config().database).await.unwrap();
    let pools = [pool.clone()];
    let (mut works, mut used, idle) = tokio::join!(pool.acquire(), pool.acquire(), pool.acquire());
    drop(idle);
    let mut listener = Announcements::listen(&pool).await.unwrap();
    let mut holder = world.database.connect().await;
    sqlx::Executor::execute(&mut holder, "begin; select pg_advisory_xact_lock(1)").await.unwrap();
    let _works = tokio::spawn(async move {
        sqlx::Executor::execute(&mut **works.as_mut().unwrap(), "select pg_advisory_xact_lock(1)").await.unwrap();
    });

    let silent = |count: usize| {
        let pool = pool.clone();
        let all = async move {
            while db::forgotten::silent(&pool, LONG).len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all)
    };
    silent(4).await.unwrap();
    // By the server's account as well, which begins later.
    eventually(
        &world,
        "(select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database() \
          and state_change < clock_timestamp() - interval '1 second'))",
    )
    .await;
    // Who uses a connection, says nothing over it, and is waited for by no statement, has been forgotten.
    let speak = async |listener: &mut Announcements| {
        db::forgotten::speak(&pools).await;
        listener.speak().await.ok();
        db::forgotten::unexcused(&pool, LONG).await.unwrap()
    };
    assert_eq!(speak(&mut listener).await, 1);
    used.as_mut().unwrap().ping().await.unwrap();
    assert_eq!(db::forgotten::in_use(&pools), 3);
    assert_eq!(speak(&mut listener).await, 0);

    // The statement's answer gets lost.
    proxy.freeze();
    drop(holder);
    eventually(&world, "(select not exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()))")
        .await;
    silent(4).await.unwrap();
    assert_eq!(speak(&mut listener).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_server_that_is_only_slow_are_kept() {
    const LISTENER: &str =
        "select pid from pg_stat_activity where datname = current_database() and query like 'LISTEN%'";
    let mut world = World::new().await.change("lease = \"10s\"", "lease = \"1s\"");
    world.register().await;
    let (worker, _proxy) = wired(&mut world).await;
    eventually(&world, &format!("(select exists ({LISTENER}))")).await;
    let listener: i32 = world.value(LISTENER).await;

    // A heartbeat after the other waits for what somebody has locked, and the next one asks what became of it.
    let mut holder = world.database.connect().await;
    sqlx::Executor::execute(&mut holder, "begin; lock table gristmill.workers in share mode").await.unwrap();
    eventually(
        &world,
        "(select count(*) >= 4 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())",
    )
    .await;
    drop(holder);

    eventually(&world, "(select bool_and(seen_at > now() - interval '1 second') from gristmill.workers)").await;
    assert_eq!(world.value::<i32>(LISTENER).await, listener);
    worker.stop().await;
}

#[tokio::test]
async fn an_outage_is_said_once_and_so_is_its_end() {
    const LISTENER: &str =
        "select pid from pg_stat_activity where datname = current_database() and query like 'LISTEN%'";
    let world = World::new().await.change("lease = \"10s\"", "lease = \"1s\"");
    world.register().await;
    let worker = serve(&world);
    eventually(&world, &format!("(select exists ({LISTENER}))")).await;

    // One heartbeat after the other falls silent.
    let mut holder = world.database.connect().await;
    sqlx::Executor::execute(&mut holder, "begin; lock table gristmill.workers in share mode").await.unwrap();
    let waiting =
        "(select count(*) >= 4 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())";
    eventually(&world, waiting).await;
    drop(holder);
    eventually(&world, "(select bool_and(seen_at > now() - interval '1 second') from gristmill.workers)").await;
    let cut: i32 = world.value(LISTENER).await;
    world.sql(&format!("select pg_terminate_backend({cut})")).await;
    eventually(&world, &format!("(select exists ({LISTENER} and pid <> {cut}))")).await;
    // By then it has said so.
    world.insert("note", "One.").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    eventually(&world, "(select bool_and(state = 'completed') from gristmill.embedding_jobs)").await;

    let ended = terminate(worker).await;
    let said = |what: &str| ended.err.matches(what).count();
    let leases = (said("leases could not be renewed"), said("leases are renewed again, after"));
    let announcements = (said("announcements are not heard"), said("announcements are heard again"));
    assert_eq!((ended.code, leases, announcements), (0, (1, 1), (1, 1)), "{}", ended.err);
}

#[tokio::test]
async fn an_outage_is_counted_from_the_last_renewal_before_it() {
    // The worker signed in over another one.
    const BEATS: &str = "(select pid from pg_stat_activity where datname = current_database() and application_name like 'gristmill%' \
         and query like '%insert into gristmill.workers%' and pid <> pg_backend_pid() order by query_start desc limit 1)";
    let world = World::new().await.change("lease = \"10s\"", "lease = \"6s\"");
    world.register().await;
    let worker = serve(&world);
    eventually(&world, "(select count(*) = 1 and bool_and(seen_at > started_at) from gristmill.workers)").await;

    // It is found out with the next renewal, two seconds after the last, and over half a second later.
    let cut: String = world.value(&format!("select clock_timestamp()::text from pg_terminate_backend({BEATS})")).await;
    eventually(&world, &format!("(select bool_and(seen_at > '{cut}') from gristmill.workers)")).await;

    let ended = terminate(worker).await;
    let after = ended.err.split("leases are renewed again, after ").nth(1).and_then(|said| said.split(' ').next());
    let seconds: u64 = after.unwrap_or_else(|| panic!("{}", ended.err)).parse().unwrap();
    assert!(seconds >= 2, "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_server_is_not_there_yet_waits_for_it() {
    let mut world = World::new().await;
    world.register().await;
    world.insert("note", "One.").await;
    let starting = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = starting.local_addr().unwrap().port();
    world.toml = world.toml.replace(
        &world.database.url,
        &format!("postgres://postgres@127.0.0.1:{port}/{}?sslmode=disable", world.database.name),
    );

    let (ran, _proxy) = tokio::join!(gristmill(&world, &["run", "--once"]), async {
        // The first connection is ended, the next ones are refused, and then it is up.
        let starting = tokio::task::spawn_blocking(move || drop(starting.accept().unwrap()));
        starting.await.unwrap();
        Proxy::at(port, Server::of(&world.database.url))
    });

    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("the worker could not start; trying again"), "{}", ran.err);
    assert_eq!(world.state().await, "note completed | completed attempt=1 chunks=1");
}

#[tokio::test]
async fn a_worker_that_the_server_refuses_ends_at_once() {
    let mut world = World::new().await;
    world.toml = world.toml.replace(&world.database.name, "no_such_database");

    let ran = gristmill(&world, &["run", "--once"]).await;

    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("\"no_such_database\" does not exist") && !ran.err.contains("trying again"),
        "{}",
        ran.err
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_pooler_serves_a_worker_and_a_transaction_pooler_is_refused_by_name() {
    let mut world = World::new().await;
    world.register().await;
    let direct = world.database.url.clone();
    let Some(transactions) = PgBouncer::start(&direct, "transaction").await else {
        eprintln!("skipped: {MISSING}");
        return;
    };
    world.toml = world.toml.replace(&direct, &transactions.url(&world.database.name));
    // Another client has left what it prepared in the session that the next one gets.
    let options: PgConnectOptions = transactions.url(&world.database.name).parse().unwrap();
    let mut other = PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap();
    sqlx::query("select 1").execute(&mut other).await.unwrap();
    for _ in 0..5 {
        let refused = db::connect(&world.config().database).await;
        assert!(matches!(refused, Err(ConnectError::TransactionPooling)), "{refused:?}");
    }

    let sessions = PgBouncer::start(&direct, "session").await.expect("it was there a moment ago");
    world.toml = world.toml.replace(&transactions.url(&world.database.name), &sessions.url(&world.database.name));
    world.pool = db::connect(&world.config().database).await.unwrap();
    world.insert("note", "One.").await;
    world.work().await;
    assert_eq!(world.state().await, "note completed | completed attempt=1 chunks=1");
}
