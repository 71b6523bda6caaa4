//! Does what a step says, and remembers what an application would know of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gristmill::app;
use gristmill::config::Config;
use gristmill::db;
use gristmill::extract::Extractor;
use gristmill::worker::{Engine, EngineError};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::log;
use super::step::{How, Say, Step, Text};
use crate::fake_openai::{Answer, FakeOpenAi, Gate, Options};
use crate::schema::make_role;
use crate::world::{DIMENSIONS, World};

/// The worker that sees to the rest has a role of its own.
const ROLES: [&str; 3] = ["gristmill_machine_0", "gristmill_machine_1", "gristmill_machine_2"];
const LAST: usize = 2;

/// Within this everything is at rest once nothing is in its way any more.
const PATIENCE: Duration = Duration::from_secs(40);

/// What a row is to be, as the application that wrote it knows.
#[derive(Debug)]
pub struct Row {
    pub id: Uuid,
    pub name: String,
    /// Everything that it ever held, last what it holds.
    pub texts: Vec<Text>,
    pub deleted: bool,
    pub soft_deleted: bool,
    /// A person has said no, and nobody yes since.
    pub cancelled: bool,
}

pub struct Machine {
    pub world: World,
    pub vendor: FakeOpenAi,
    pub rows: Vec<Row>,
    /// What the rows that are nobody's business looked like before.
    pub bystanders: String,
    /// Answers that burn attempts, and deaths of workers with jobs in hand, as far as there may have been any.
    pub garbled: usize,
    pub deaths: usize,
    gate: Option<Gate>,
    workers: [Option<Worker>; 3],
}

pub const BYSTANDERS: &str = "
    select md5(coalesce((select string_agg(d::text, ' ' order by id) from public.documents d where name = 'bystander'), '')
        || coalesce((select string_agg(c::text, ' ' order by c.id) from public.document_chunks c
                     join public.documents d on d.id = document_id where name = 'bystander'), ''))";

impl Machine {
    pub async fn new() -> Self {
        let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() });
        vendor.poison("POISON");
        let mut world = World::with_vendor(&vendor)
            .await
            .change("connections = 24", "connections = 10")
            .change("slots = 16", "slots = 4")
            .change("poll = \"200ms\"", "poll = \"20ms\"")
            .change("grace = \"5s\"", "grace = \"300ms\"")
            .change("tokens = 200", "tokens = 120");
        world
            .sql(
                "insert into public.documents (user_id, name, content, deleted_at) \
                 select gen_random_uuid(), 'bystander', 'out of the set', now() from generate_series(1, 3); \
                 insert into public.document_chunks (document_id, user_id, chunk_index, content, token_count, embedding) \
                 select id, user_id, 0, 'kept by hand', 1, (select array_agg(0.1) from generate_series(1, 384))::vector(384) \
                 from public.documents",
            )
            .await;
        world.register().await;
        world.install_triggers().await;
        give_roles(&world).await;
        log::install(&world).await;
        // Under another name, so that it can be told from the workers'.
        let options: PgConnectOptions = world.database.url.parse().unwrap();
        let options = options.application_name("machine");
        world.pool = PgPoolOptions::new().max_connections(3).connect_with(options).await.unwrap();
        let bystanders = world.value(BYSTANDERS).await;
        Self {
            world,
            vendor,
            rows: Vec::new(),
            bystanders,
            garbled: 0,
            deaths: 0,
            gate: None,
            workers: [None, None, None],
        }
    }

    pub async fn take(&mut self, step: &Step) {
        match *step {
            Step::Insert { tenant, text } => self.insert(tenant, text).await,
            Step::Update { row, text, how } => self.update(row, text, how).await,
            Step::UpdateAll { text } => {
                let statement = "update public.documents set content = replace($1, 'ROW', name) \
                                 where name like 'row %' and deleted_at is null";
                self.execute(sqlx::query(statement).bind(text.content("ROW"))).await;
                for row in self.rows.iter_mut().filter(|row| !row.deleted && !row.soft_deleted) {
                    row.texts.push(text);
                }
            }
            Step::Delete { row } => {
                self.of_row(row, "delete from public.documents where id = $1", |row| row.deleted = true).await;
            }
            Step::SoftDelete { row } => {
                let statement = "update public.documents set deleted_at = now() where id = $1 and deleted_at is null";
                self.of_row(row, statement, |row| row.soft_deleted = true).await;
            }
            Step::Restore { row } => {
                let statement = "update public.documents set deleted_at = null where id = $1";
                self.of_row(row, statement, |row| row.soft_deleted = false).await;
            }
            Step::Enqueue { row, how } => self.enqueue(row, how).await,
            Step::Retry { row, fresh } => {
                if self
                    .asked(
                        row,
                        &format!(
                            "select gristmill.retry(id, {fresh}) from gristmill.embedding_jobs where source_key = $1"
                        ),
                    )
                    .await
                {
                    self.row(row).unwrap().cancelled = false;
                }
            }
            Step::Cancel { row } => {
                if self
                    .asked(row, "select gristmill.cancel(id) from gristmill.embedding_jobs where source_key = $1")
                    .await
                {
                    self.row(row).unwrap().cancelled = true;
                }
            }
            Step::Pause => self.world.sql("select gristmill.pause('documents')").await,
            Step::Resume => self.world.sql("select gristmill.resume('documents')").await,
            Step::Answer(say) => self.script(say),
            Step::Hold => self.gate = self.gate.take().or_else(|| Some(self.vendor.hold())),
            Step::Release => self.gate = None,
            Step::Start { worker } => self.start(worker).await,
            Step::Stop { worker } => {
                if let Some(worker) = self.workers[worker].take() {
                    worker.stop().await;
                }
            }
            Step::Kill { worker } => {
                if let Some(worker) = self.workers[worker].take() {
                    self.deaths += 1;
                    worker.kill();
                }
            }
            Step::Cut => self.cut().await,
            Step::Steal => {
                self.deaths += 1;
                self.steal().await;
            }
            Step::Pass => self.pass().await,
            Step::Breathe { ms } => tokio::time::sleep(Duration::from_millis(u64::from(ms))).await,
        }
    }

    fn row(&mut self, nth: usize) -> Option<&mut Row> {
        let count = self.rows.len();
        if count == 0 { None } else { self.rows.get_mut(nth % count) }
    }

    async fn execute(&self, query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>) {
        query.execute(&self.world.pool).await.expect("the application's statement holds");
    }

    async fn insert(&mut self, tenant: u8, text: Text) {
        let tenant = Uuid::from_u128((u128::from(tenant) + 1) << 96);
        let name = format!("row {}", self.rows.len());
        let id = self.world.insert_for(tenant, &name, &text.content(&name)).await;
        self.rows.push(Row { id, name, texts: vec![text], deleted: false, soft_deleted: false, cancelled: false });
    }

    async fn of_row(&mut self, nth: usize, statement: &'static str, then: impl Fn(&mut Row)) {
        let Some(row) = self.row(nth).filter(|row| !row.deleted) else { return };
        then(row);
        let id = row.id;
        self.execute(sqlx::query(statement).bind(id)).await;
    }

    async fn update(&mut self, nth: usize, text: Text, how: How) {
        let Some(row) = self.row(nth).filter(|row| !row.deleted) else { return };
        if how != How::Undone {
            row.texts.push(text);
        }
        let (id, content) = (row.id, text.content(&row.name));
        let statement = "update public.documents set content = $2 where id = $1";
        self.within(how, statement, || sqlx::query(statement).bind(id).bind(content.clone())).await;
    }

    async fn enqueue(&mut self, nth: usize, how: How) {
        let Some(row) = self.row(nth) else { return };
        row.cancelled &= how == How::Undone;
        let id = row.id;
        let statement = "select gristmill.enqueue('documents', $1)";
        self.within(how, statement, || sqlx::query(statement).bind(id)).await;
    }

    /// In a transaction of that kind. One that reads one snapshot may lose against a worker that wrote first: then again, as
    /// applications do.
    async fn within<'q>(
        &self,
        how: How,
        what: &str,
        query: impl Fn() -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) {
        for _ in 0..20 {
            let mut transaction = self.world.pool.begin().await.unwrap();
            if how == How::Repeatable {
                transaction.execute("set transaction isolation level repeatable read").await.unwrap();
            }
            match query().execute(&mut *transaction).await {
                Ok(_) if how == How::Undone => return transaction.rollback().await.unwrap(),
                Ok(_) => return transaction.commit().await.unwrap(),
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("40001") => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
        panic!("{what}: never got through");
    }

    /// What a function of ours answers for a row's job.
    async fn asked(&mut self, nth: usize, query: &str) -> bool {
        let Some(id) = self.row(nth).map(|row| row.id) else { return false };
        sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
            .bind(serde_json::json!([id.to_string()]))
            .fetch_optional(&self.world.pool)
            .await
            .unwrap()
            .unwrap_or(false)
    }

    fn script(&mut self, say: Say) {
        self.garbled += usize::from(say.is_garbled());
        self.vendor.script([match say {
            Say::RateLimited => Answer::status(429).with("retry-after-ms", "20"),
            Say::RateLimitedForLong => Answer::status(429).with("retry-after", "600"),
            Say::Error => Answer::status(500),
            Say::Html => Answer::html(),
            Say::Empty => Answer::empty(),
            Say::CutOff => Answer::cut_off(),
            Say::HangUp => Answer::hang_up(),
            Say::WrongCount => Answer::wrong_count(),
            Say::WrongDimensions => Answer::wrong_dimensions(),
            Say::NotFinite => Answer::not_finite(),
            Say::Unauthorized => Answer::unauthorized("sk-canary-secret"),
        }]);
    }

    async fn start(&mut self, nth: usize) {
        if self.workers[nth].is_none() {
            let toml = self.world.toml_as(ROLES[nth]);
            self.workers[nth] = Some(Worker::start(World::parse(&toml), self.world.extractor()).await);
        }
    }

    async fn cut(&mut self) {
        self.world
            .sql(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() \
                 and application_name like 'gristmill%'",
            )
            .await;
    }

    async fn steal(&self) {
        self.world
            .sql("update gristmill.embedding_jobs set lease_until = clock_timestamp() - interval '1 second' where state = 'processing'")
            .await;
        db::jobs::rescue(&self.world.pool, Duration::ZERO, 500).await.unwrap();
    }

    async fn pass(&self) {
        self.world
            .sql(
                "update gristmill.embedding_jobs set run_at = clock_timestamp() where state = 'waiting' and run_at < 'infinity'; \
                 update gristmill.budgets set shut_until = '-infinity', requests_until = '-infinity', tokens_until = '-infinity'",
            )
            .await;
        db::jobs::promote(&self.world.pool, 500).await.unwrap();
    }

    /// Nothing is in the way any more; then time passes until nothing is left to do.
    pub async fn rest(&mut self) -> Result<(), String> {
        self.gate = None;
        self.vendor.unscript();
        for worker in &mut self.workers {
            if let Some(worker) = worker.take() {
                worker.stop().await;
            }
        }
        self.world.sql("select gristmill.resume('documents')").await;
        self.pass().await;
        // Of workers that are gone.
        self.steal().await;
        self.start(LAST).await;
        let since = Instant::now();
        while !self.workers[LAST].as_ref().is_some_and(Worker::has_swept) || !self.is_at_rest().await {
            if since.elapsed() > PATIENCE {
                return Err(format!("it does not come to rest:\n{}", self.story().await));
            }
            self.pass().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if let Some(worker) = self.workers[LAST].take() {
            worker.stop().await;
        }
        Ok(())
    }

    async fn is_at_rest(&self) -> bool {
        self.world
            .value(
                "select not exists (select from gristmill.embedding_jobs where state in ('waiting', 'pending', 'processing')) \
                 and not exists (select from gristmill.announcements)",
            )
            .await
    }

    /// Everything of every row, for who has to find out.
    pub async fn story(&self) -> String {
        let rows = self
            .world
            .list(
                "select concat_ws(' ', right(source_key->>0, 4), j.state, j.error_kind, 'r' || j.revision, 'attempt=' || j.attempt, \
                     'crashes=' || j.crashes, '|', d.processing_status, 'chunks=' || \
                     (select count(*) from public.document_chunks c where c.document_id = d.id), j.reason) \
                 from gristmill.embedding_jobs j left join public.documents d on j.source_key = jsonb_build_array(d.id::text) order by j.id",
            )
            .await
            .join("\n");
        format!("{rows}\n{:#?}", self.rows)
    }
}

/// Roles that own nothing, with what `gristmill grants` prints and nothing more; the log tells workers apart by them.
async fn give_roles(world: &World) {
    static MADE: OnceCell<()> = OnceCell::const_new();
    let make = async || {
        make_role(world, "gristmill_machine").await;
        for role in ROLES {
            // What a policy hides is not inherited.
            make_role(world, &format!("{role} bypassrls in role gristmill_machine")).await;
        }
    };
    MADE.get_or_init(make).await;
    world.grant("gristmill_machine").await;
}

/// A worker on a runtime of its own, which can be taken away from under it.
struct Worker {
    runtime: Option<Runtime>,
    stop: CancellationToken,
    engine: Arc<Engine>,
    ended: Option<JoinHandle<Result<(), EngineError>>>,
}

impl Worker {
    async fn start(config: Config, extractor: Extractor) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let (ready, started) = oneshot::channel();
        let token = stop.clone();
        let ended = runtime.spawn(async move {
            let pool = db::connect(&config.database).await.expect("the database is there");
            let running = app::start_with(&config, &pool, token, extractor).await.expect("the worker starts");
            let engine = Arc::clone(&running.engine);
            ready.send(Arc::clone(&engine)).ok();
            engine.run().await
        });
        let engine = started.await.expect("it says that it runs");
        Self { runtime: Some(runtime), stop, engine, ended: Some(ended) }
    }

    fn has_swept(&self) -> bool {
        self.engine.swept.passes() > 0
    }

    /// As by SIGTERM. One whose first words were cut off has ended before.
    async fn stop(mut self) {
        self.stop.cancel();
        if let Some(ended) = self.ended.take() {
            let ended = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it ends");
            let ended = ended.expect("no part of it panics");
            assert!(matches!(ended, Ok(()) | Err(EngineError::Database(_))), "{ended:?}");
        }
    }

    /// As by SIGKILL: nothing of it goes on, and its connections close.
    fn kill(self) {
        drop(self);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
