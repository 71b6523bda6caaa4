//! A small world for a test: a database with our tables and the starter schema, a folder of files, a provider, a worker.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gristmill::app::{self, Running};
use gristmill::config::Config;
use gristmill::db;
use gristmill::db::app::grants::{self, By};
use gristmill::embedded::{self, Artifact};
use gristmill::extract::Extractor;
use sqlx::{AssertSqlSafe, PgPool};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::fake_openai::FakeOpenAi;
use crate::postgres::{TestDatabase, fresh_database};

/// The user whose rows a test inserts where it does not matter.
pub const USER: Uuid = Uuid::from_u128(0xa11ce);

/// Dimensions of the starter schema.
pub const DIMENSIONS: usize = 384;

pub struct World {
    pub database: TestDatabase,
    pub pool: PgPool,
    pub files: TempDir,
    pub toml: String,
}

const TOML: &str = r#"
[database]
url = "DATABASE"
connections = 24

[worker]
slots = 16
lease = "10s"
poll = "200ms"
sweep = "1h"
grace = "5s"
retry_first = "100ms"
retry_longest = "1s"
linger = "5ms"
listen = "off"

[stores.samples]
kind = "local"
root = "FILES"

[providers.vendor]
PROVIDER

[models.small]
provider = "vendor"
name = "small"
dimensions = 384
longest = 8000

[[prices]]
model = "small"
meter = "tokens"
usd = "0.00000002"
from = 2026-01-01

[pipelines.documents]
kind = "embed"
model = "small"
existing = "backfill"

[pipelines.documents.source]
table = "public.documents"
key = ["id"]
tenant = "user_id"
when = "deleted_at is null"
changed_at = "updated_at"
text = "{content}"

[pipelines.documents.file]
when = "storage_path is not null"
store = "samples"
path = "{storage_path}"
within = "{user_id}/"
type = "{mime_type}"
name = "{name}"

[pipelines.documents.chunks]
tokens = 200
overlap = 0

[pipelines.documents.target]
table = "public.document_chunks"
parent = { document_id = "{id}" }

[pipelines.documents.target.columns]
chunk_index = "{chunk.index}"
content = "{chunk.text}"
token_count = "{chunk.tokens}"
page_number = "{chunk.page}"
section_title = "{chunk.section}"
heading_level = "{chunk.level}"
embedding = "{chunk.vector}"
user_id = "{user_id}"
metadata = { name = "{name}", start = "{chunk.start}" }

[pipelines.documents.status]
column = "processing_status"
words = { skipped = "skipped" }
columns = { error_message = "{job.error}", processed_at = "{job.finished}" }

[pipelines.documents.write]
page_count = "{job.pages}"
chunk_count = "{job.chunks}"
token_count = "{job.tokens_of_text}"
"#;

impl World {
    /// A world whose vectors are hashed words, made in the worker itself.
    pub async fn new() -> Self {
        Self::with_provider("kind = \"hash\"").await
    }

    /// A world whose provider is a fake vendor over HTTP.
    pub async fn with_vendor(vendor: &FakeOpenAi) -> Self {
        Self::with_provider(&format!("kind = \"openai\"\nurl = \"{}\"\nkey = \"sk-canary-secret\"", vendor.url())).await
    }

    async fn with_provider(provider: &str) -> Self {
        let database = fresh_database().await;
        let files = TempDir::new().expect("a folder can be made");
        let toml = TOML
            .replace("DATABASE", &database.url)
            .replace("FILES", &files.path().display().to_string())
            .replace("PROVIDER", provider);
        let config = Self::parse(&toml);
        let pool = db::connect(&config.database).await.expect("the test's database is there");
        Self { database, pool, files, toml }
    }

    /// The same world with a piece of its configuration replaced; the piece must be there.
    pub fn change(mut self, from: &str, to: &str) -> Self {
        assert!(self.toml.contains(from), "the configuration has no {from:?}");
        self.toml = self.toml.replace(from, to);
        self
    }

    pub fn config(&self) -> Config {
        Self::parse(&self.toml)
    }

    pub fn parse(toml: &str) -> Config {
        Config::read("workers.toml", toml, &|_| None).unwrap_or_else(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            panic!("{}", lines.join("\n"))
        })
    }

    /// Writes the configuration to a file, for commands.
    pub fn config_file(&self) -> std::path::PathBuf {
        let path = self.files.path().join("workers.toml");
        // In one step: a worker that starts meanwhile must not read half of it.
        let half = self.files.path().join(format!("{}.toml", Uuid::new_v4()));
        std::fs::write(&half, &self.toml).expect("the file can be written");
        std::fs::rename(half, &path).expect("the file can be moved");
        path
    }

    /// Runs statements.
    pub async fn sql(&self, statements: &str) {
        sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&self.pool).await.expect("the statements hold");
    }

    /// One value of one row.
    pub async fn value<T>(&self, query: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(&self.pool).await.expect("the query holds")
    }

    /// The first column of every row.
    pub async fn list(&self, query: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_all(&self.pool).await.expect("the query holds")
    }

    /// Inserts a document whose content is a text.
    pub async fn insert(&self, name: &str, text: &str) -> Uuid {
        self.insert_for(USER, name, text).await
    }

    pub async fn insert_for(&self, user: Uuid, name: &str, text: &str) -> Uuid {
        sqlx::query_scalar("insert into public.documents (user_id, name, content) values ($1, $2, $3) returning id")
            .bind(user)
            .bind(name)
            .bind(text)
            .fetch_one(&self.pool)
            .await
            .expect("the row fits")
    }

    /// Inserts so many documents of one sentence each, in one statement: `row 001`, `row 002` and so on.
    pub async fn insert_sentences(&self, count: i64) {
        sqlx::query(
            "insert into public.documents (user_id, name, content) \
             select $1, format('row %s', lpad(nth::text, 3, '0')), format('Sentence %s of the mill.', nth) \
             from generate_series(1, $2) as nth",
        )
        .bind(USER)
        .bind(count)
        .execute(&self.pool)
        .await
        .expect("the rows fit");
    }

    /// How many jobs are in each state, with their kind of trouble.
    pub async fn states(&self) -> String {
        self.list(
            "select concat_ws(' ', count(*), state, error_kind) from gristmill.embedding_jobs group by state, error_kind order by 1",
        )
        .await
        .join("\n")
    }

    /// Uploads a file as a frontend would: below the user's folder, then its row.
    pub async fn upload(&self, name: &str, bytes: &[u8]) -> Uuid {
        let path = format!("{USER}/{name}");
        self.put(&path, bytes);
        self.insert_path(&path, name).await
    }

    pub fn put(&self, path: &str, bytes: &[u8]) {
        let place = self.files.path().join(path);
        std::fs::create_dir_all(place.parent().unwrap_or(Path::new("/"))).expect("the folder can be made");
        std::fs::write(place, bytes).expect("the file can be written");
    }

    pub async fn insert_path(&self, path: &str, name: &str) -> Uuid {
        sqlx::query_scalar(
            "insert into public.documents (user_id, name, storage_path) values ($1, $2, $3) returning id",
        )
        .bind(USER)
        .bind(name)
        .bind(path)
        .fetch_one(&self.pool)
        .await
        .expect("the row fits")
    }

    /// Registers the pipelines, so that rows inserted from here on are new.
    pub async fn register(&self) {
        let resolved = app::resolve(&self.pool, &self.config()).await.expect("the database is there");
        assert!(resolved.refused.is_empty(), "{:?}", resolved.refused);
        for plan in resolved.plans {
            app::register(&self.pool, &plan, 1000, &|| false).await.expect("the pipeline registers");
        }
    }

    /// The configuration for a role of the same server.
    pub fn toml_as(&self, role: &str) -> String {
        let mark = if self.database.url.contains('?') { '&' } else { '?' };
        let url = format!("{}{mark}options=-crole%3D{role}", self.database.url);
        self.toml.replace(&self.database.url, &url)
    }

    /// Gives a role what `gristmill grants` prints for a worker of this configuration; what it prints of roles is the server's business.
    pub async fn grant(&self, role: &str) {
        let resolved = app::resolve(&self.pool, &self.config()).await.expect("the database is there");
        // Pinned, as the plans expect.
        let mut connection = self.pool.acquire().await.expect("the database is there");
        let mut statements = grants::of_worker(role);
        for plan in &resolved.plans {
            let granted = grants::of_pipeline(&mut connection, plan, role).await.expect("the plan holds");
            statements.extend(granted.into_iter().filter(|one| one.by != By::Superuser).map(|one| one.sql));
        }
        drop(connection);
        self.sql(&statements.join(";\n")).await;
    }

    /// Parser children of the program under test: this program is its tests.
    /// Reads PDF with libpdfium, whichever test comes first on a machine that has not fetched it yet.
    pub fn extractor(&self) -> Extractor {
        embedded::ensure(Artifact::Pdfium, &|_| {}).expect("libpdfium can be had");
        Extractor::with_program(app::parser_settings(&self.config()), env!("CARGO_BIN_EXE_gristmill"))
    }

    /// Starts a worker.
    pub async fn start(&self) -> Worker {
        self.start_with(self.extractor()).await
    }

    /// Starts a worker whose files are read by this.
    pub async fn start_with(&self, extractor: Extractor) -> Worker {
        let (stop, pool) = (CancellationToken::new(), self.pool_of_workers().await);
        let running = app::start_with(&self.config(), &pool, stop.clone(), extractor).await.expect("the worker starts");
        let engine = Arc::clone(&running.engine);
        let task = tokio::spawn(async move { engine.run().await.expect("the engine runs") });
        Worker { running, stop, task, pool: self.pool.clone() }
    }

    /// With `GRISTMILL_TESTS_AS_WORKER` every worker works as a role that owns nothing and may do what `gristmill grants` prints.
    async fn pool_of_workers(&self) -> PgPool {
        const ROLE: &str = "gristmill_test_working";
        if std::env::var_os("GRISTMILL_TESTS_AS_WORKER").is_none() || self.toml.contains("options=-crole") {
            return self.pool.clone();
        }
        let made = "do $$ begin create role ROLE bypassrls; exception when duplicate_object or unique_violation then null; end $$";
        self.sql(&made.replace("ROLE", ROLE)).await;
        self.grant(ROLE).await;
        db::connect(&Self::parse(&self.toml_as(ROLE)).database).await.expect("the role may connect")
    }

    /// Waits until a query is true.
    pub async fn wait_for(&self, query: &str) {
        let waited = tokio::time::timeout(Duration::from_secs(30), async {
            while !self.value::<bool>(query).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.expect("it becomes true within half a minute");
    }

    /// Works until nothing is left to do now.
    pub async fn work(&self) {
        let worker = self.start().await;
        worker.idle().await;
        worker.stop().await;
    }

    /// Every document: name, status on its row, state of its job, chunks, kind of trouble.
    pub async fn state(&self) -> String {
        self.list(
            "select concat_ws(' ', d.name, d.processing_status, '|', j.state, 'attempt=' || j.attempt, \
                 'chunks=' || (select count(*) from public.document_chunks c where c.document_id = d.id), j.error_kind, j.reason) \
             from public.documents d left join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(d.id::text) order by d.name",
        )
        .await
        .join("\n")
    }
}

pub struct Worker {
    pub running: Running,
    pub stop: CancellationToken,
    task: JoinHandle<()>,
    pool: PgPool,
}

impl Worker {
    /// Waits until the sweep has been through and nothing is claimable, in hand or due soon.
    pub async fn idle(&self) {
        let names: Vec<String> =
            self.running.engine.pipelines.iter().map(|deps| deps.plan.pipeline.name.clone()).collect();
        let waited = tokio::time::timeout(Duration::from_mins(3), async {
            while self.running.engine.swept.passes() < names.len()
                || db::backlog::is_busy(&self.pool, &names, Duration::from_secs(3))
                    .await
                    .expect("the database is there")
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.expect("the work ends");
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the worker ends well");
    }
}
