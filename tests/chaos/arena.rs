//! Where a fault happens: a database of its own, an application that knows what it asked for, workers that are real processes.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::fake_openai::{FakeOpenAi, Options};
use crate::faults::Injected;
use crate::pgbouncer::PgBouncer;
use crate::proxy::{Proxy, Server};
use crate::world::{DIMENSIONS, World};

/// Stands in every text: it must stay out of logs and of our tables.
pub const CANARY: &str = "zq7canaryzq7";
/// As in the configuration of [`World`].
pub const SECRET: &str = "sk-canary-secret";

/// Past this a fault counts as not recovered from.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct Arena {
    pub world: World,
    pub vendor: FakeOpenAi,
    pub proxy: Proxy,
    /// Where the fault is about one.
    pub pooler: Option<PgBouncer>,
    pub logs: TempDir,
    /// The texts of documents that are files.
    pub files: HashMap<Uuid, String>,
    /// Documents that cannot be served, and those of which nobody knows.
    pub hopeless: HashSet<Uuid>,
    pub doubtful: HashSet<Uuid>,
    /// What bystanders looked like before anything happened.
    pub bystanders: String,
    /// Requests from before the books that there are now.
    pub before_the_books: usize,
    workers: Vec<Child>,
    inserted: u32,
    /// When the last fault was over.
    healed: Instant,
}

/// The application counts what it is told, so that a second time would show; nothing in its tables forbids one.
pub const APPLICATION: &str = "
    alter table public.document_chunks drop constraint document_chunks_document_id_chunk_index_key;
    drop index public.document_chunks_embedding;
    create index on public.document_chunks (document_id);
    create table public.served (document_id uuid not null, revision bigint not null, tokens bigint not null);
    create table public.tallies (user_id uuid primary key, served bigint not null default 0);
    insert into public.documents (user_id, name, content, deleted_at)
    select gen_random_uuid(), 'bystander', 'out of the set', now() from generate_series(1, 5);
    insert into public.document_chunks (document_id, user_id, chunk_index, content, token_count, embedding)
    select id, user_id, 0, 'kept by hand', 1, (select array_agg(0.1) from generate_series(1, 384))::vector(384) from public.documents;
    insert into public.tallies (user_id) select ('0000000' || n || '-0000-0000-0000-000000000000')::uuid from generate_series(1, 3) n";

const EFFECTS: &str = r#"
[[pipelines.documents.effects]]
name = "served"
sql = "insert into public.served (document_id, revision, tokens) values ({id}, {job.revision}, {job.tokens})"
[[pipelines.documents.effects]]
name = "tally"
shared = { table = "public.tallies", key = { user_id = "{user_id}" } }
sql = "update public.tallies set served = served + {job.chunks} where user_id = {user_id}"
"#;

pub const BYSTANDERS: &str = "
    select md5(coalesce((select string_agg(d::text, ' ' order by id) from public.documents d where name = 'bystander'), '')
        || coalesce((select string_agg(c::text, ' ' order by c.id) from public.document_chunks c
                     join public.documents d on d.id = document_id where name = 'bystander'), ''))";

/// Nothing is left to do, and no row of the set is without its job.
const AT_REST: &str = "
    select not exists (select from public.documents d
            left join gristmill.embedding_jobs j on j.source_key = jsonb_build_array(d.id::text)
            where d.deleted_at is null and (j.id is null or j.state in ('waiting', 'pending', 'processing')))
        and not exists (select from gristmill.embedding_jobs where state in ('waiting', 'pending', 'processing'))
        and not exists (select from gristmill.announcements)";

impl Arena {
    pub async fn new() -> Self {
        let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() });
        let mut world = World::with_vendor(&vendor)
            .await
            .change("lease = \"10s\"", "lease = \"4s\"")
            .change("sweep = \"1h\"", "sweep = \"2s\"");
        world.toml.push_str(EFFECTS);
        world.sql(APPLICATION).await;
        world.register().await;
        // What is done to the worker's sessions must not meet the application's.
        let session: PgConnectOptions = world.database.url.parse().unwrap();
        let session = session.application_name("application");
        world.pool = PgPoolOptions::new().max_connections(4).connect_with(session).await.unwrap();
        let proxy = Proxy::start(Server::of(&world.database.url));
        let bystanders = world.value(BYSTANDERS).await;
        let arena = Self {
            world,
            vendor,
            proxy,
            pooler: None,
            logs: TempDir::new().unwrap(),
            files: HashMap::new(),
            hopeless: HashSet::new(),
            doubtful: HashSet::new(),
            bystanders,
            before_the_books: 0,
            workers: Vec::new(),
            inserted: 0,
            healed: Instant::now(),
        };
        arena.command(&["triggers", "install"]).await;
        arena
    }

    /// The text of a document: of one to four chunks, and no other's.
    pub fn text(name: &str, nth: u32) -> String {
        let mut text = format!("{CANARY} begins {name}.");
        for sentence in 0..=(nth % 4) * 25 {
            text.push_str(&format!(" Sentence {sentence} of {name} in the mill."));
        }
        text
    }

    /// So many documents of three tenants, every third of them a file.
    pub async fn insert(&mut self, count: u32) -> Vec<Uuid> {
        let mut ids = Vec::new();
        for _ in 0..count {
            self.inserted += 1;
            let nth = self.inserted;
            let name = format!("text-{nth:04}");
            let text = Self::text(&name, nth);
            let user = Uuid::from_u128((u128::from(nth % 3) + 1) << 96);
            ids.push(if nth.is_multiple_of(3) {
                self.file(user, &name, text).await
            } else {
                self.world.insert_for(user, &name, &text).await
            });
        }
        ids
    }

    pub async fn file(&mut self, user: Uuid, name: &str, text: String) -> Uuid {
        let path = format!("{user}/{name}.txt");
        self.world.put(&path, text.as_bytes());
        let id = self.row_of_file(user, name, &path).await;
        self.files.insert(id, text);
        id
    }

    pub async fn row_of_file(&self, user: Uuid, name: &str, path: &str) -> Uuid {
        sqlx::query_scalar(
            "insert into public.documents (user_id, name, storage_path) values ($1, $2, $3) returning id",
        )
        .bind(user)
        .bind(name)
        .bind(path)
        .fetch_one(&self.world.pool)
        .await
        .unwrap()
    }

    /// Starts a worker: its number.
    pub fn worker(&mut self) -> usize {
        self.worker_with(&[], &[])
    }

    /// Starts a worker that dies at the nth passage of a place.
    pub fn doomed(&mut self, place: &str, nth: u32) -> Result<usize, Injected> {
        self.failing(&format!("{place}:{nth}"))
    }

    /// Starts a worker that panics at each nth passage of a place, three times, in words that quote a text.
    pub fn panicking(&mut self, place: &str, nth: u32) -> Result<usize, Injected> {
        self.failing(&format!("{place}:{nth}:{CANARY} begins a text"))
    }

    fn failing(&mut self, at: &str) -> Result<usize, Injected> {
        if !cfg!(feature = "chaos") {
            return Err(Injected::Skipped("it needs the feature chaos".to_owned()));
        }
        Ok(self.worker_with(&[], &[("GRISTMILL_FAIL_AT", at)]))
    }

    /// Starts a worker below another program, with more in its environment.
    pub fn worker_with(&mut self, below: &[&str], environment: &[(&str, &str)]) -> usize {
        let mut command = self.program_below(below);
        command.arg("run").envs(environment.iter().copied()).env("GRISTMILL_LOG", "debug");
        let log = self.log();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.workers.push(command.spawn().unwrap());
        self.workers.len() - 1
    }

    fn program(&self) -> Command {
        self.program_below(&[])
    }

    fn program_below(&self, below: &[&str]) -> Command {
        let ours = env!("CARGO_BIN_EXE_gristmill");
        let mut words = below.iter().copied().chain([ours]);
        let mut command = Command::new(words.next().unwrap_or(ours));
        command.args(words).arg("--config").arg(self.world.config_file()).stdin(Stdio::null());
        for name in ["DATABASE_URL", "GRISTMILL_CONFIG", "GRISTMILL_LOG_FORMAT", "RUST_LOG", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        command
    }

    /// Replaces a piece of the workers' configuration; the piece must be there. Workers that run do not notice.
    pub fn change(&mut self, from: &str, to: &str) {
        assert!(self.world.toml.contains(from), "the configuration has no {from:?}");
        self.world.toml = self.world.toml.replace(from, to);
    }

    fn log(&self) -> File {
        OpenOptions::new().create(true).append(true).open(self.logs.path().join("workers.log")).unwrap()
    }

    /// A command of a person; its exit code.
    pub async fn command(&self, arguments: &[&str]) -> Option<i32> {
        let mut command = self.program();
        command.args(arguments);
        let log = self.log();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        tokio::task::spawn_blocking(move || command.status().unwrap().code()).await.unwrap()
    }

    /// What a command says to a program.
    pub async fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut command = self.program();
        command.args(arguments).arg("--json").stderr(self.log());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// How many lines of the logs have these words.
    pub fn said(&self, words: &str) -> usize {
        let log = std::fs::read_to_string(self.logs.path().join("workers.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(words)).count()
    }

    pub fn signal(&self, worker: usize, signal: &str) {
        let pid = self.workers[worker].id().to_string();
        Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid]).status().unwrap();
    }

    pub fn kill(&mut self, worker: usize) {
        self.workers[worker].kill().unwrap();
        self.workers[worker].wait().unwrap();
    }

    pub fn has_ended(&mut self, worker: usize) -> bool {
        self.workers[worker].try_wait().unwrap().is_some()
    }

    /// The most memory that a worker has ever had addresses for, in bytes.
    pub fn address_space(&self, worker: usize) -> Result<u64, Injected> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.workers[worker].id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB"));
        let peak = peak.and_then(|peak| peak.trim().parse::<u64>().ok());
        peak.map(|kb| kb * 1024)
            .ok_or_else(|| Injected::Skipped("this system does not tell a process's size".to_owned()))
    }

    pub async fn is_at_rest(&self) -> bool {
        self.ask(AT_REST).await.unwrap_or(false)
    }

    pub async fn ended(&mut self, worker: usize) -> Result<ExitStatus, String> {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(40) {
            if let Some(status) = self.workers[worker].try_wait().unwrap() {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err("a worker that should have ended has not".to_owned())
    }

    pub async fn stop(&mut self) -> Result<(), String> {
        for worker in 0..self.workers.len() {
            if self.workers[worker].try_wait().unwrap().is_none() {
                self.signal(worker, "CONT");
                self.signal(worker, "TERM");
                self.ended(worker).await?;
            }
        }
        Ok(())
    }

    /// The fault is over: from now on it should be well within a minute.
    pub fn healed(&mut self) {
        self.healed = Instant::now();
    }

    pub async fn sql(&self, statements: &str) -> sqlx::Result<()> {
        sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&self.world.pool).await.map(drop)
    }

    /// Transactions over what others work with: whoever is picked out of a deadlock tries again.
    pub async fn insist(&self, transaction: &str) -> sqlx::Result<()> {
        let mut person = PgConnection::connect(&self.world.database.url).await?;
        let mut tries = 0;
        while let Err(error) = sqlx::raw_sql(AssertSqlSafe(transaction.to_owned())).execute(&mut person).await {
            sqlx::raw_sql("rollback").execute(&mut person).await?;
            tries += 1;
            if tries == 20 {
                return Err(error);
            }
        }
        Ok(())
    }

    pub async fn ask<T>(&self, query: &str) -> sqlx::Result<T>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(&self.world.pool).await
    }

    /// Waits until a query is true, as long as it is worth it.
    pub async fn until(&self, query: &str) -> Result<(), String> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if self.ask::<bool>(query).await.unwrap_or(false) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("never true: {query}"))
    }

    pub async fn until_done(&self, count: usize) -> Result<(), String> {
        self.until(&format!("select count(*) >= {count} from public.served")).await
    }

    /// Waits for rest; how long it took since the fault was over.
    pub async fn rest(&mut self) -> Duration {
        self.until(AT_REST).await.ok();
        let took = self.healed.elapsed();
        // What nobody announced is found by a sweep, which is every two seconds.
        let quiet = Instant::now();
        while quiet.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if self.stale().await > 0 || !self.ask::<bool>(AT_REST).await.unwrap_or(false) {
                self.until(AT_REST).await.ok();
                if self.healed.elapsed() > PATIENCE {
                    break;
                }
                return self.healed.elapsed().max(took);
            }
        }
        took
    }

    /// Rows whose chunks are not of what they hold now.
    async fn stale(&self) -> i64 {
        let query = "select count(*) from public.documents d where deleted_at is null and content is not null \
            and processing_status = 'completed' and regexp_replace(content, '\\s', '', 'g') is distinct from \
            (select regexp_replace(string_agg(c.content, '' order by chunk_index), '\\s', '', 'g') \
             from public.document_chunks c where c.document_id = d.id)";
        self.ask(query).await.unwrap_or(1)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.kill().ok();
            worker.wait().ok();
        }
    }
}
