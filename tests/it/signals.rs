//! Applications are told when jobs end: in the end's own transaction, and at least once, signed, whatever the receiver does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gristmill::app::{self, StartError};
use gristmill::db;
use hmac::{Hmac, KeyInit as _, Mac as _};
use insta::assert_snapshot;
use serde_json::Value;
use sha2::Sha256;
use sqlx::postgres::PgListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::applications::application;
use crate::cli::gristmill;
use crate::stores::serve;
use crate::world::World;

const SECRET: &str = "a secret of the mill";

/// A delivery as it came.
#[derive(Clone)]
struct Got {
    id: String,
    body: String,
    signature: String,
    timestamp: String,
}

/// An application's endpoint.
#[derive(Clone)]
struct Receiver {
    got: Arc<Mutex<Vec<Got>>>,
    /// Statuses to answer before all is well, last first.
    first: Arc<Mutex<Vec<u16>>>,
    /// Whether it answers at all, and how many calls it holds.
    open: watch::Sender<bool>,
    held: watch::Sender<usize>,
    url: String,
}

impl Receiver {
    async fn start() -> Self {
        let (open, held) = (watch::Sender::new(true), watch::Sender::new(0));
        let mut receiver = Self { got: Arc::default(), first: Arc::default(), open, held, url: String::new() };
        receiver.url = serve(Router::new().fallback(receive).with_state(receiver.clone())).await;
        receiver
    }

    /// Bodies of what it took, sorted.
    fn bodies(&self) -> Vec<String> {
        let mut bodies: Vec<String> = self.got.lock().unwrap().iter().map(|got| got.body.clone()).collect();
        bodies.sort();
        bodies
    }

    fn ids(&self) -> Vec<String> {
        self.got.lock().unwrap().iter().map(|got| got.id.clone()).collect()
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: String) -> Response {
    receiver.held.send_modify(|held| *held += 1);
    receiver.open.subscribe().wait_for(|open| *open).await.unwrap();
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    receiver.got.lock().unwrap().push(Got {
        id: header("webhook-id"),
        signature: header("webhook-signature"),
        timestamp: header("webhook-timestamp"),
        body,
    });
    match receiver.first.lock().unwrap().pop() {
        Some(status) => (StatusCode::from_u16(status).unwrap(), [("location", "/elsewhere")]).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

fn signalling(world: World, receiver: &Receiver) -> World {
    let signal = format!(
        "[pipelines.documents.signal]\nnotify = \"Documents ready\"\nwebhook = {{ url = \"{}/ready?to=app\", secret = \"{SECRET}\" }}\n\
         [pipelines.documents.source]",
        receiver.url,
    );
    world.change("[pipelines.documents.source]", &signal)
}

async fn world(receiver: &Receiver) -> World {
    let world = signalling(World::new().await, receiver);
    world.register().await;
    world
}

/// Has what waits for another try be due now.
async fn due(world: &World) {
    world.sql("update gristmill.outbox set due_at = now() where delivered_at is null").await;
}

const OUTBOX: &str = "select concat_ws(' ', payload->>'state', attempts, case when delivered_at is not null then 'delivered' \
    when failed_at is not null then 'failed' else 'waiting' end, error) from gristmill.outbox order by 1";

#[tokio::test]
async fn every_end_of_a_job_is_told_once_and_nothing_of_its_text() {
    let receiver = Receiver::start().await;
    let world = world(&receiver).await;
    let mut listener = PgListener::connect(&world.database.url).await.unwrap();
    listener.listen("Documents ready").await.unwrap();
    let well = world.insert("well", "The mill grinds.").await;
    world.insert("empty", "  ").await;
    world.insert_path("0/elsewhere.txt", "refused").await;
    let left = world.insert("left", "Gone soon.").await;
    world.work().await;
    world.sql(&format!("delete from public.documents where id = '{left}'")).await;
    world.work().await;
    world.sql(&format!("select gristmill.enqueue('documents', '{well}'::uuid)")).await;
    world.sql("select gristmill.cancel(id) from gristmill.embedding_jobs where state = 'pending'").await;
    world.work().await;

    let mut heard = Vec::new();
    for _ in 0..6 {
        heard.push(listener.recv().await.unwrap().payload().to_owned());
    }
    heard.sort();
    let names = "select concat_ws(' ', d.name, o.payload->>'state', o.payload->>'revision', o.attempts, o.delivered_at is not null) \
        from gristmill.outbox o join gristmill.embedding_jobs j on j.id = o.job_id \
        left join public.documents d on o.payload->'key' = jsonb_build_array(d.id::text) order by 1";
    assert_snapshot!(world.list(names).await.join("\n"), @"
    cancelled 2 1 t
    completed 1 1 t
    empty skipped 1 1 t
    refused failed 1 1 t
    well cancelled 2 1 t
    well completed 1 1 t
    ");
    assert_eq!(receiver.bodies(), heard);
    assert_eq!(
        world.list("select payload::text from gristmill.outbox order by payload::text collate \"C\"").await,
        heard
    );
    let keys: Vec<Vec<String>> = heard
        .iter()
        .map(|text| serde_json::from_str::<Value>(text).unwrap().as_object().unwrap().keys().cloned().collect())
        .collect();
    assert!(keys.iter().all(|keys| *keys == ["job", "key", "state", "pipeline", "revision"]), "{keys:?}");

    for got in receiver.got.lock().unwrap().iter() {
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(format!("{}.{}.{}", got.id, got.timestamp, got.body).as_bytes());
        let signed = STANDARD.decode(got.signature.strip_prefix("v1,").unwrap()).unwrap();
        mac.verify_slice(&signed).unwrap();
        let age = time::OffsetDateTime::now_utc().unix_timestamp() - got.timestamp.parse::<i64>().unwrap();
        assert!((0..300).contains(&age), "{age}");
    }
}

#[tokio::test]
async fn nobody_is_told_where_nothing_was_asked_and_rows_that_were_there_before_end_nothing() {
    let receiver = Receiver::start().await;
    let world = World::new().await;
    world.register().await;
    world.insert("quiet", "The mill grinds.").await;
    world.work().await;
    world.sql("delete from gristmill.pipelines; delete from gristmill.embedding_jobs").await;

    let world = signalling(world, &receiver).change("existing = \"backfill\"", "existing = \"adopt\"");
    world.work().await;
    assert_eq!(world.states().await, "1 completed");
    assert_eq!(world.value::<i64>("select count(*) from gristmill.outbox").await, 0);

    world.insert("loud", "The mill grinds on.").await;
    world.work().await;
    assert_eq!(receiver.got.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_receiver_that_fails_is_tried_again_under_the_same_id_and_given_up_after_a_day() {
    let receiver = Receiver::start().await;
    let world = world(&receiver).await;
    *receiver.first.lock().unwrap() = vec![500, 302, 503];
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    assert_eq!(world.states().await, "1 completed");
    assert_eq!(world.list(OUTBOX).await, ["completed 1 waiting the receiver answered 503"]);
    let pause = "select extract(epoch from due_at - clock_timestamp())::float8 from gristmill.outbox";
    let first = world.value::<f64>(pause).await;
    assert!((1.0..6.3).contains(&first), "{first}");

    // A worker that ends tries only what nobody has tried: this one has to run on.
    let worker = world.start().await;
    due(&world).await;
    all_are(&world, &["completed 2 waiting the receiver answered 302; redirects are not followed"]).await;
    due(&world).await;
    all_are(&world, &["completed 3 waiting the receiver answered 500"]).await;
    let later = world.value::<f64>(pause).await;
    assert!((13.0..25.1).contains(&later), "{later}");
    assert_eq!(receiver.ids().iter().collect::<BTreeSet<_>>().len(), 1);

    *receiver.first.lock().unwrap() = vec![500];
    world.sql("update gristmill.outbox set since = now() - interval '24 hours', due_at = now()").await;
    all_are(&world, &["completed 4 failed the receiver answered 500"]).await;
    let status = gristmill(&world, &["status", "--json"]).await.ok().json();
    let webhooks = &status["pipelines"][0]["webhooks"];
    assert_eq!((&webhooks["waiting"], &webhooks["failed"]), (&0.into(), &1.into()));
    let said = gristmill(&world, &["status"]).await.ok().out;
    assert!(said.contains("documents: 1 webhook given up; `select gristmill.redeliver('documents')` tries again; the receiver answered 500"), "{said}");

    let unknown = sqlx::query("select gristmill.redeliver('documnets')").execute(&world.pool).await.unwrap_err();
    assert!(unknown.to_string().contains("gristmill knows no pipeline \"documnets\""), "{unknown}");
    assert_eq!(world.value::<i64>("select gristmill.redeliver('documents')").await, 1);
    all_are(&world, &["completed 1 delivered"]).await;
    worker.stop().await;
    assert!(!gristmill(&world, &["status"]).await.ok().out.contains("webhook"));

    db::outbox::prune(&world.pool, Duration::from_hours(1), 10).await.unwrap();
    assert_eq!(world.value::<i64>("select count(*) from gristmill.outbox").await, 1);
    world.sql("update gristmill.outbox set delivered_at = now() - interval '2 hours'").await;
    db::outbox::prune(&world.pool, Duration::from_hours(1), 10).await.unwrap();
    assert_eq!(world.value::<i64>("select count(*) from gristmill.outbox").await, 0);
}

/// Waits until the outbox holds this.
async fn all_are(world: &World, expected: &[&str]) {
    for _ in 0..500 {
        if world.list(OUTBOX).await == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.list(OUTBOX).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_job_waits_for_a_receiver_and_each_is_delivered_by_one_worker() {
    let receiver = Receiver::start().await;
    let world = world(&receiver).await;
    receiver.open.send_replace(false);
    let workers = [world.start().await, world.start().await];
    world.insert_sentences(20).await;
    world.sweep(None).await;
    receiver.held.subscribe().wait_for(|held| *held > 0).await.unwrap();
    world.insert_sentences(100).await;
    world.sweep(None).await;
    workers[0].idle().await;
    assert_eq!((world.states().await.as_str(), receiver.bodies().len()), ("120 completed", 0));

    receiver.open.send_replace(true);
    all_are(&world, &vec!["completed 1 delivered"; 120]).await;
    for worker in workers {
        worker.stop().await;
    }
    let ids: BTreeSet<String> = receiver.ids().into_iter().collect();
    assert_eq!((ids.len(), receiver.got.lock().unwrap().len()), (120, 120));
}

#[tokio::test]
async fn what_a_killed_worker_had_taken_is_delivered_by_another() {
    let receiver = Receiver::start().await;
    let world = world(&receiver).await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    world.sql("update gristmill.outbox set delivered_at = null, due_at = now(), attempts = 0").await;
    let hold = Duration::from_mins(1);
    let killed = db::outbox::take(&world.pool, "documents", hold, 10, false).await.unwrap();
    let other = db::outbox::take(&world.pool, "documents", hold, 10, false).await.unwrap();
    assert_eq!((killed.len(), other.len()), (1, 0));

    due(&world).await;
    let worker = world.start().await;
    all_are(&world, &["completed 2 delivered"]).await;
    worker.stop().await;
    assert_eq!(receiver.ids(), [killed[0].id.to_string(), killed[0].id.to_string()]);
}

#[tokio::test]
async fn a_copy_of_a_database_sends_nothing_until_a_person_says_so() {
    let receiver = Receiver::start().await;
    let world = world(&receiver).await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    world.sql("update gristmill.outbox set delivered_at = null, due_at = now(), attempts = 0; update gristmill.installation set identity = 'elsewhere'").await;
    let started = app::start(&world.config(), &world.pool, CancellationToken::new()).await;
    assert!(matches!(started, Err(StartError::Copied)));
    assert_eq!(receiver.ids().len(), 1);

    db::pipelines::settle_here(&world.pool).await.unwrap();
    world.work().await;
    assert_eq!(receiver.ids().len(), 2);
}

#[tokio::test]
async fn a_key_too_long_for_a_notification_does_not_fail_its_job() {
    let receiver = Receiver::start().await;
    let pipeline = format!(
        r#"
[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "backfill"
source = {{ table = "app.notes", key = ["name"], text = "{{body}}" }}
chunks = {{ whole = true }}
target = {{ columns = {{ embedding = "{{chunk.vector}}" }} }}
signal = {{ notify = "ready", webhook = {{ url = "{}", secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" }} }}
"#,
        receiver.url
    );
    let tables = "create schema app; create table app.notes (name text primary key, body text, embedding vector(8))";
    let world = application(tables, &pipeline).await;
    let mut listener = PgListener::connect(&world.database.url).await.unwrap();
    listener.listen("ready").await.unwrap();
    world.sql("insert into app.notes values (repeat('n', 9000), 'Ground.')").await;
    world.work().await;

    let heard: Value = serde_json::from_str(listener.recv().await.unwrap().payload()).unwrap();
    assert_eq!((&heard["key"], &heard["state"]), (&Value::Null, &"completed".into()));
    assert_eq!(world.value::<i64>("select id from gristmill.embedding_jobs").await, heard["job"].as_i64().unwrap());
    assert!(receiver.bodies()[0].len() > 9000);
    // What is forgotten is not sent any more.
    world.sql("delete from app.notes; update gristmill.outbox set delivered_at = null").await;
    world.sql("update gristmill.embedding_jobs set tenant = 'a'").await;
    world.sql("update gristmill.embedding_jobs set state = 'cancelled', error_kind = 'left'; select gristmill.forget('a')").await;
    assert_eq!(world.value::<i64>("select count(*) from gristmill.outbox").await, 0);
}

#[tokio::test]
async fn a_run_that_ends_by_itself_tries_again_what_is_due() {
    let receiver = Receiver::start().await;
    let world = world(&receiver).await;
    *receiver.first.lock().unwrap() = vec![500];
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    assert_eq!(world.list(OUTBOX).await, ["completed 1 waiting the receiver answered 500"]);

    due(&world).await;
    receiver.open.send_replace(false);
    let held = *receiver.held.borrow();
    let answer = async {
        receiver.held.subscribe().wait_for(|now| *now > held).await.unwrap();
        receiver.open.send_replace(true);
    };
    // It ends no sooner than the receiver has answered.
    let both = async { tokio::join!(gristmill(&world, &["run", "--once"]), answer).0.ok() };
    tokio::time::timeout(Duration::from_mins(1), both).await.expect("the receiver is asked");
    assert_eq!(world.list(OUTBOX).await, ["completed 2 delivered"]);
}

#[tokio::test]
async fn a_run_that_ends_by_itself_waits_for_a_webhook_that_is_due_soon() {
    let receiver = Receiver::start().await;
    let world = world(&receiver).await;
    *receiver.first.lock().unwrap() = vec![500];
    world.insert("note", "The mill grinds.").await;

    let hurry = async {
        world.wait_for("select count(error) = 1 from gristmill.outbox").await;
        due(&world).await;
    };
    tokio::join!(gristmill(&world, &["run", "--once"]), hurry).0.ok();

    assert_eq!(world.list(OUTBOX).await, ["completed 2 delivered"]);
}

#[tokio::test]
async fn a_run_that_leaves_a_webhook_waiting_ends_with_3_and_says_why() {
    let receiver = Receiver::start().await;
    let world = world(&receiver).await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    let later = "update gristmill.outbox set delivered_at = null, due_at = now() + interval '1 hour', error = 'the receiver answered 503'";
    world.sql(later).await;

    let ran = gristmill(&world, &["run", "--once", "--json"]).await;

    let left = &ran.json()["left"];
    let waits = [&left[0]["pipeline"], &left[0]["why"], &left[0]["reason"]];
    assert_eq!(
        (ran.code, waits),
        (3, [&"documents".into(), &"webhook".into(), &"the receiver answered 503".into()]),
        "{left}"
    );
    assert!(left[0]["webhooks"] == 1 && left[0]["due"].is_string(), "{left}");
    assert!(ran.err.contains("documents: 1 webhook waits (until "), "{}", ran.err);

    // Nobody can have it delivered who does not know the receiver.
    let silent = world.toml.replace("webhook = {", "# webhook = {");
    let world = World { toml: silent, ..world };
    gristmill(&world, &["run", "--once"]).await.ok();
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_is_told_once() {
    let receiver = Receiver::start().await;
    let world = world(&receiver).await;
    *receiver.first.lock().unwrap() = vec![503, 500];
    let worker = crate::cli::serve(&world);
    for (nth, text) in [(1, "The mill grinds."), (2, "The mill stands.")] {
        world.insert("note", text).await;
        world
            .sql("select gristmill.enqueue('documents', id) from public.documents where processing_status = 'pending'")
            .await;
        world.wait_for(&format!("select count(error) = {nth} from gristmill.outbox")).await;
    }
    due(&world).await;
    world.wait_for("select bool_and(delivered_at is not null) from gristmill.outbox").await;

    let ran = crate::cli::terminate(worker).await;

    let lines: Vec<Value> = ran.err.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of_webhooks =
        lines.iter().filter(|line| line["message"].as_str().is_some_and(|said| said.contains("webhooks")));
    let said: Vec<String> = of_webhooks.map(|line| format!("{} {}", line["level"], line["message"])).collect();
    assert_eq!(said, [r#""WARN" "webhooks were not taken""#, r#""INFO" "webhooks are taken again""#]);
}
