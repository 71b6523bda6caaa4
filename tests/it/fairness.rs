//! What a tenant has waiting does not stand before another's: who comes anew is in one of the next requests.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::poll;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use gristmill::app;
use gristmill::batch::{Batcher, Fit, Keyed, LaneSettings, Loader, Memory, OfJob, Text, Vital};
use gristmill::config::Allowance;
use gristmill::domain::{Embedding, JobId, OwnerId, Revision, SourceKey};
use gristmill::providers::{Embedded, Embedder, ProviderError};
use tokio::sync::{Semaphore, mpsc};

use crate::world::World;

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
struct Mill {
    world: World,
    batcher: Batcher,
    seen: mpsc::UnboundedReceiver<Vec<String>>,
    answers: Arc<Semaphore>,
}

impl Mill {
    async fn new(pack_across_tenants: bool) -> Self {
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
    async fn next(&mut self) -> Vec<String> {
        self.seen.recv().await.unwrap()
    }
}

/// Embeds a job's texts, each its tenant's name and a number.
async fn embed(batcher: &Batcher, id: i64, tenant: &str, texts: usize, tokens: usize) -> usize {
    let of = OfJob {
        id: JobId(id),
        revision: Revision(1),
        tenant: tenant.to_owned(),
        tried: false,
        parked_since: None,
        cached: false,
        ceiling: None,
    };
    let words: Vec<String> = (0..texts).map(|nth| format!("{tenant} {id} {nth}")).collect();
    let texts: Vec<Text<'_>> = words.iter().map(|text| Text { text, tokens }).collect();
    batcher.embed(&of, &texts, batcher.expect()).await.unwrap().vectors.len()
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
