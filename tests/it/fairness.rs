//! What a tenant has waiting does not stand before another's: who comes anew is in one of the next requests.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::poll;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use gristmill::app;
use gristmill::batch::{
    Batcher, Fit, Keyed, Landing, LaneSettings, Loader, Memory, OfJob, Piece, SpeechLane, SpeechSettings, Text, Vital,
    minutes,
};
use gristmill::config::Allowance;
use gristmill::domain::{Embedding, JobId, OwnerId, Revision, SourceKey};
use gristmill::extract::Extractor;
use gristmill::providers::{Audio, Embedded, Embedder, ProviderError, Transcribed, Transcriber};
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::world::{USER, Worker, World};

/// Says what each request holds, and answers as many as it is told to.
struct Step {
    seen: mpsc::UnboundedSender<Vec<String>>,
    answers: Arc<Semaphore>,
}

#[async_trait]
impl Embedder for Step {
    async fn embed(&self, texts: &[String]) -> Result<Embedded, ProviderError> {
        self.seen.send(texts.to_vec()).unwrap();
        self.answers.acquire().await.unwrap().forget();
        let vectors = texts.iter().map(|_| Ok(Embedding::from(vec![1.0; 8]))).collect();
        Ok(Embedded { vectors, input_tokens: None, request_id: None, limits: None })
    }
}

/// A batcher at such a provider, one request after the other.
pub struct Mill {
    pub world: World,
    pub batcher: Batcher,
    seen: mpsc::UnboundedReceiver<Vec<String>>,
    pub answers: Arc<Semaphore>,
}

impl Mill {
    pub async fn new(pack_across_tenants: bool) -> Self {
        let world = World::new().await;
        let settings = LaneSettings {
            provider: "step".to_owned(),
            model: "step".to_owned(),
            dimensions: 8,
            sparse: false,
            inputs: 10,
            tokens: 100,
            concurrency: 1,
            allowance: Allowance::default(),
            pack_across_tenants,
            linger: Duration::ZERO,
            vectors_in_memory: u64::MAX,
            prices: Vec::new(),
        };
        let (sender, seen) = mpsc::unbounded_channel();
        let answers = Arc::new(Semaphore::new(0));
        let driver: Arc<dyn Embedder> = Arc::new(Step { seen: sender, answers: Arc::clone(&answers) });
        let keyed = Keyed { credential: String::new(), tenants: Vec::new(), driver };
        let (pool, owner) = (world.pool.clone(), OwnerId::fresh());
        let batcher = Batcher::start(pool, &world.pool, owner, settings, keyed, Vec::new(), &Vital::default());
        Self { world, batcher, seen, answers }
    }

    /// The texts of the next request.
    pub async fn next(&mut self) -> Vec<String> {
        self.seen.recv().await.unwrap()
    }
}

pub fn of_job(id: i64, tenant: &str) -> OfJob {
    OfJob {
        id: JobId(id),
        revision: Revision(1),
        tenant: tenant.to_owned(),
        tried: false,
        parked_since: None,
        cached: false,
        ceiling: None,
    }
}

/// Embeds a job's texts, each its tenant's name and a number.
async fn embed(batcher: &Batcher, id: i64, tenant: &str, texts: usize, tokens: usize) -> usize {
    let of = of_job(id, tenant);
    let words: Vec<String> = (0..texts).map(|nth| format!("{tenant} {id} {nth}")).collect();
    let texts: Vec<Text<'_>> = words.iter().map(|text| Text { text, tokens }).collect();
    batcher.embed(&of, &texts, batcher.expect(), &mut Landing::default()).await.unwrap().vectors.len()
}

fn of_tenant(request: &[String], tenant: &str) -> usize {
    request.iter().filter(|text| text.split(' ').next() == Some(tenant)).count()
}

#[tokio::test]
async fn a_new_tenant_s_text_is_in_the_next_request_whatever_another_has_in_hand() {
    let mut mill = Mill::new(true).await;
    let batcher = mill.batcher.clone();
    // Documents of more texts than a request holds, and rows of one text each.
    let mut many = pin!(join_all((0..5).map(|id| embed(&batcher, id, "many", 30, 1))));
    let mut more = pin!(join_all((10..60).map(|id| embed(&batcher, id, "more", 1, 1))));
    assert!(poll!(many.as_mut()).is_pending() && poll!(more.as_mut()).is_pending());
    assert_eq!(mill.next().await.len(), 10);
    let mut one = pin!(embed(&batcher, 100, "one", 1, 1));
    assert!(poll!(one.as_mut()).is_pending());

    mill.answers.add_permits(1);
    let second = mill.next().await;

    assert_eq!((second.len(), of_tenant(&second, "one")), (10, 1), "{second:?}");
    assert!(of_tenant(&second, "many") >= 4 && of_tenant(&second, "more") >= 4, "{second:?}");
    mill.answers.add_permits(100);
    assert_eq!(one.await, 1);
    let (many, more) = tokio::join!(many, more);
    assert_eq!((many, more), (vec![30; 5], vec![1; 50]));
}

#[tokio::test]
async fn a_tenant_of_large_texts_gets_its_part_and_not_every_request() {
    let mut mill = Mill::new(true).await;
    let batcher = mill.batcher.clone();
    let mut large = pin!(join_all((0..20).map(|id| embed(&batcher, id, "large", 1, 90))));
    let mut small = pin!(join_all((20..100).map(|id| embed(&batcher, id, "small", 1, 5))));
    assert!(poll!(large.as_mut()).is_pending() && poll!(small.as_mut()).is_pending());

    let mut requests = Vec::new();
    for _ in 0..10 {
        requests.push(mill.next().await);
        mill.answers.add_permits(1);
    }

    // Each is full, and of each a half is theirs: nine small ones for a large one.
    let all = |tenant: &str| requests.iter().map(|request| of_tenant(request, tenant)).sum::<usize>();
    assert!((4..=6).contains(&all("large")) && all("small") >= 40, "{requests:?}");
    assert!(requests.iter().all(|request| of_tenant(request, "large") == 1 || request.len() == 10), "{requests:?}");
    mill.answers.add_permits(1_000);
    let (large, small) = tokio::join!(large, small);
    assert_eq!((large.len(), small.len()), (20, 80));
}

#[tokio::test]
async fn tenants_that_are_kept_apart_get_a_request_each_in_turn() {
    let mut mill = Mill::new(false).await;
    let batcher = mill.batcher.clone();
    let mut many = pin!(join_all((0..40).map(|id| embed(&batcher, id, "many", 1, 1))));
    let mut more = pin!(join_all((40..80).map(|id| embed(&batcher, id, "more", 1, 1))));
    assert!(poll!(many.as_mut()).is_pending() && poll!(more.as_mut()).is_pending());
    let mut requests = vec![mill.next().await];
    let mut one = pin!(embed(&batcher, 100, "one", 1, 1));
    assert!(poll!(one.as_mut()).is_pending());
    for _ in 0..2 {
        mill.answers.add_permits(1);
        requests.push(mill.next().await);
    }

    let sizes = |tenant: &str| requests.iter().map(|request| of_tenant(request, tenant)).collect::<Vec<_>>();
    assert_eq!(sizes("one").iter().sum::<usize>(), 1, "{requests:?}");
    assert!(
        requests
            .iter()
            .all(|request| request.iter().all(|text| text.split(' ').next() == request[0].split(' ').next()))
    );
    assert_eq!((sizes("many"), sizes("more").iter().sum::<usize>()), (vec![10, 0, 0], 10), "{requests:?}");
    mill.answers.add_permits(1_000);
    assert_eq!(one.await, 1);
    tokio::join!(many, more);
}

#[tokio::test]
async fn texts_whose_jobs_gave_up_go_out_no_more_and_count_against_nobody() {
    let mut mill = Mill::new(true).await;
    let batcher = mill.batcher.clone();
    let mut rest = pin!(embed(&batcher, 2, "many", 15, 1));
    {
        let mut gone = pin!(embed(&batcher, 1, "many", 100, 1));
        assert_eq!((poll!(gone.as_mut()), poll!(rest.as_mut())), (Poll::Pending, Poll::Pending));
        assert_eq!(mill.next().await.len(), 10);
    }

    mill.answers.add_permits(1_000);

    assert_eq!(rest.await, 15);
    while let Ok(request) = mill.seen.try_recv() {
        assert_eq!(request.iter().filter(|text| text.starts_with("many 1 ")).count(), 0, "{request:?}");
    }
    assert_eq!(mill.world.value::<i64>("select count(*) from gristmill.provider_calls").await, 3);
}

#[tokio::test]
async fn a_row_does_not_wait_until_all_that_another_tenant_has_waiting_were_in_memory() {
    let world = World::new().await;
    world.register().await;
    let insert = "insert into public.documents (user_id, name, content) select gen_random_uuid()";
    world.sql(&format!("{insert}, 'many', repeat('mill ', 10000) from generate_series(1, 30)")).await;
    world.sql(&format!("{insert}, 'one', 'One.'")).await;
    let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
    let three = 3 * Memory::new(u64::MAX).weight_of_text(&resolved.plans[0], 51_000);
    let fit = Fit::new(world.pool.clone(), Arc::new(world.config()), Arc::clone(&resolved.plans[0]));
    let loader = Loader::start(world.pool.clone(), world.pool.clone(), fit, Memory::new(three), &Vital::default());
    let keys = async |name: &str| {
        let ids = world.list(&format!("select id::text from public.documents where name = '{name}'")).await;
        ids.into_iter().map(|id| SourceKey(vec![id])).collect::<Vec<_>>()
    };
    let (many, one) = (keys("many").await, keys("one").await);
    let mut loads: FuturesUnordered<_> = many.iter().map(|key| loader.load("many", key, false)).collect();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(loads.next().await.unwrap().unwrap());
    }
    let mut one = pin!(loader.load("one", &one[0], false));
    assert!(poll!(one.as_mut()).is_pending());

    let mut before = 0;
    loop {
        held.remove(0);
        tokio::select! {
            biased;
            loaded = &mut one => break assert!(loaded.unwrap().row.is_some()),
            loaded = loads.next() => held.push(loaded.unwrap().unwrap()),
        }
        before += 1;
    }

    // The one that was next when it came, and one beside it at the most.
    assert!(before <= 2, "{before} of them went first");
}

#[tokio::test]
async fn a_row_is_read_while_another_tenant_s_files_and_rows_wait_for_memory() {
    let world = World::new().await;
    world.register().await;
    let [many, one] = [world.insert("many", "A row.").await, world.insert("one", "Another.").await];
    let [many, one] = [many, one].map(|id| SourceKey(vec![id.to_string()]));
    let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
    let fit = Fit::new(world.pool.clone(), Arc::new(world.config()), Arc::clone(&resolved.plans[0]));
    let memory = Memory::new(100 << 20);
    let loader = Loader::start(world.pool.clone(), world.pool.clone(), fit, memory.clone(), &Vital::default());
    let file = memory.take("many", 80 << 20).await;
    let mut next_file = pin!(memory.take("many", 80 << 20));
    assert!(poll!(next_file.as_mut()).is_pending());
    let mut behind = pin!(loader.load("many", &many, false));
    assert!(poll!(behind.as_mut()).is_pending());

    assert!(loader.load("one", &one, false).await.unwrap().row.is_some());

    assert!(poll!(behind.as_mut()).is_pending());
    drop(file);
    drop(next_file.await);
    assert!(behind.await.unwrap().row.is_some());
}

#[tokio::test]
async fn a_loader_ends_in_peace_when_the_last_row_that_waited_for_memory_is_given_up() {
    let world = World::new().await;
    world.register().await;
    let key = SourceKey(vec![world.insert("one", "A row.").await.to_string()]);
    let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
    // Which of the two it hears of first is chance.
    for _ in 0..20 {
        let fit = Fit::new(world.pool.clone(), Arc::new(world.config()), Arc::clone(&resolved.plans[0]));
        let (memory, vital) = (Memory::new(1 << 20), Vital::default());
        let loader = Loader::start(world.pool.clone(), world.pool.clone(), fit, memory.clone(), &vital);
        let _held = memory.take("file", 1 << 20).await;
        let mut row = Box::pin(loader.load("one", &key, false));
        // Another row, behind it, that is gone: it is answered when the first one waits.
        let gone = SourceKey(vec![Uuid::nil().to_string()]);
        let gone = loader.load("other", &gone, false);
        assert!(poll!(row.as_mut()).is_pending());
        assert!(gone.await.unwrap().row.is_none());

        drop(row);
        drop(loader);
        let ended = async {
            while Arc::strong_count(&resolved.plans[0]) > 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
        tokio::task::yield_now().await;
        assert!(vital.broken().is_none());
    }
}

/// Says which recording each request holds, and answers as many as it is told to.
struct Listening {
    seen: mpsc::UnboundedSender<Bytes>,
    answers: Arc<Semaphore>,
}

#[async_trait]
impl Transcriber for Listening {
    async fn transcribe(&self, audio: &Audio) -> Result<Transcribed, ProviderError> {
        self.seen.send(audio.bytes.clone()).unwrap();
        self.answers.acquire().await.unwrap().forget();
        Ok(Transcribed::default())
    }
}

#[tokio::test]
async fn a_new_tenant_s_recording_is_the_next_however_many_parts_another_has() {
    let world = World::new().await;
    let settings = SpeechSettings {
        provider: "step".to_owned(),
        model: "step".to_owned(),
        concurrency: 1,
        allowance: Allowance::default(),
        prices: Vec::new(),
    };
    let (sender, mut seen) = mpsc::unbounded_channel();
    let answers = Arc::new(Semaphore::new(0));
    let driver: Arc<dyn Transcriber> = Arc::new(Listening { seen: sender, answers: Arc::clone(&answers) });
    let keyed = Keyed { credential: String::new(), tenants: Vec::new(), driver };
    let lane = SpeechLane::new(&world.pool, OwnerId::fresh(), &settings, keyed, Vec::new());
    let transcribe = async |id: i64, tenant: &'static str, ms: u64| {
        let audio = Audio { bytes: Bytes::from_static(tenant.as_bytes()), extension: "wav", media_type: "audio/wav" };
        let piece = Piece { content: [0; 32], part: 0, audio, ms, minutes: minutes(ms) };
        lane.transcribe(&of_job(id, tenant), piece).await.unwrap();
    };
    let mut many = pin!(join_all((0..5).map(|id| transcribe(id, "many", 600_000))));
    assert!(poll!(many.as_mut()).is_pending());
    let first = tokio::select! {
        _ = &mut many => unreachable!("nothing is answered yet"),
        first = seen.recv() => first.unwrap(),
    };
    let mut more = pin!(join_all([transcribe(10, "one", 2_000), transcribe(11, "two", 3_000)]));
    assert!(poll!(more.as_mut()).is_pending());

    answers.add_permits(6);
    tokio::join!(many, async {
        answers.add_permits(1);
        more.await;
    });

    let mut order = vec![first];
    order.extend(std::iter::from_fn(|| seen.try_recv().ok()));
    assert_eq!(order[..4], ["many", "one", "two", "many"], "{order:?}");
    assert_eq!(order.len(), 7);
}

/// A parser that says what each file begins with, and has no text of it.
const SAYS: &str = "read -r request\nread -r line\necho \"$line\" >> SEEN\nexit 1\n";
/// A parser that never ends.
const WAITS: &str = "exec /bin/sleep 1000\n";

impl World {
    /// An extractor whose children run a script.
    fn extractor_of(&self, script: &str) -> Extractor {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.files.path().join("parser.sh");
        let seen = self.files.path().join("seen");
        std::fs::write(&path, format!("#!/bin/sh\n{}", script.replace("SEEN", &seen.display().to_string()))).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Extractor::with_program(app::parser_settings(&self.config()), path)
    }

    /// Inserts so many files of a tenant, and announces them.
    async fn announce_files(&self, tenant: Uuid, name: &str, count: usize) {
        for nth in 0..count {
            let path = format!("{tenant}/{name} {nth}.txt");
            self.put(&path, format!("{name} {nth}\n").as_bytes());
            self.announce(tenant, "storage_path", &path).await;
        }
    }

    async fn announce(&self, tenant: Uuid, column: &str, value: &str) {
        self.sql(&format!(
            "with added as (insert into public.documents (user_id, name, {column}) values ('{tenant}', 'a.txt', '{value}') returning id) \
             select gristmill.enqueue('documents', id, 0, '{tenant}') from added"
        ))
        .await;
    }

    async fn in_hand(&self, tenant: Uuid) -> i64 {
        let count = "select count(*) from gristmill.embedding_jobs where state = 'processing' and tenant";
        self.value(&format!("{count} = '{tenant}'")).await
    }
}

const OTHER: Uuid = Uuid::from_u128(0xb0b);

/// Waits until all jobs that may be in hand are, since a few more wait.
async fn filled(world: &World, worker: &Worker, slots: usize) {
    world
        .wait_for(&format!("select count(*) = {slots} from gristmill.embedding_jobs where state = 'processing'"))
        .await;
    assert_eq!(worker.running.engine.hands.count(), slots);
}

#[tokio::test]
async fn a_newcomer_s_jobs_are_done_while_another_tenant_s_hold_all_slots_they_may() {
    let world = World::new().await.change("grace = \"5s\"", "grace = \"1ms\"");
    world.register().await;
    let worker = world.start_with(world.extractor_of(WAITS)).await;
    world.announce_files(USER, "many", 40).await;
    filled(&world, &worker, 15).await;

    for nth in 0..3 {
        world.announce(OTHER, "content", &format!("Sentence {nth} of the mill.")).await;
    }

    let done = "select count(*) = 3 from gristmill.embedding_jobs where state = 'completed'";
    world.wait_for(&format!("{done} and tenant = '{OTHER}'")).await;
    // What was kept is free again, and not for the one that has so many.
    assert_eq!((world.in_hand(USER).await, world.in_hand(OTHER).await), (15, 0));
    worker.stop().await;
    assert_eq!(world.states().await, "3 completed\n40 pending");
}

#[tokio::test]
async fn a_tenant_s_weight_is_how_many_of_its_jobs_are_claimed_for_one_of_another_s() {
    let weighted = format!("tenant = \"user_id\"\nweights = {{ \"{OTHER}\" = 3 }}\n");
    let world =
        World::new().await.change("grace = \"5s\"", "grace = \"1ms\"").change("tenant = \"user_id\"\n", &weighted);
    world.register().await;
    world.announce_files(USER, "many", 40).await;
    world.announce_files(OTHER, "other", 40).await;
    let worker = world.start_with(world.extractor_of(WAITS)).await;
    filled(&world, &worker, 15).await;
    let in_hand = (world.in_hand(USER).await, world.in_hand(OTHER).await);
    assert!([(3, 12), (4, 11)].contains(&in_hand), "{in_hand:?}");
    worker.stop().await;
}

#[tokio::test]
async fn where_nobody_new_can_come_no_slot_is_kept() {
    let world = World::new().await.change("grace = \"5s\"", "grace = \"1ms\"").change("tenant = \"user_id\"\n", "");
    world.register().await;
    let worker = world.start_with(world.extractor_of(WAITS)).await;
    world.announce_files(USER, "many", 20).await;
    filled(&world, &worker, 16).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_new_tenant_s_file_is_the_next_to_be_read() {
    let world = World::new().await.change("[stores.samples]", "[parser]\nprocesses = 1\n\n[stores.samples]");
    world.register().await;
    let worker = world.start_with(world.extractor_of(SAYS)).await;
    let parsers = worker.running.engine.pipelines[0].parsers.clone();
    let held = parsers.acquire("somebody", 1).await;
    let waiting = async |count: usize| {
        while parsers.waiting() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    for nth in 1..=4 {
        world.announce_files(USER, &format!("many {nth}"), 1).await;
        waiting(nth).await;
    }
    world.announce_files(OTHER, "other 1", 1).await;
    waiting(5).await;

    drop(held);

    let finished = "select count(*) = 5 from gristmill.embedding_jobs where state <> 'processing' and starts > 0";
    world.wait_for(finished).await;
    let seen = std::fs::read_to_string(world.files.path().join("seen")).unwrap();
    let order: Vec<&str> = seen.lines().take(3).collect();
    assert_eq!(order, ["many 1 0", "other 1 0", "many 2 0"], "{seen}");
    worker.stop().await;
}
