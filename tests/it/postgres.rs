//! One server for all tests of this binary, and a fresh database for each test.
//!
//! Migrations run once, in a template; a test's database is a copy of it. The server is private and ends with this process;
//! where `DATABASE_URL` is set it is that one, and what was created there is dropped at the end.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{LazyLock, Mutex};
use std::thread::{self, JoinHandle};

use gristmill::db::migrate::{Set, run};
use gristmill::embedded::{self, Options, PrivatePostgres};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::sync::OnceCell;
use url::Url;
use uuid::Uuid;

/// What every test's database starts with.
async fn prepare(template: &mut PgConnection) -> sqlx::Result<()> {
    template.execute("create extension vector").await?;
    Ok(())
}

/// Our own tables and the starter schema.
async fn migrate(url: &str) -> Result<(), Box<dyn std::error::Error>> {
    let pool = PgPoolOptions::new().max_connections(1).connect(url).await?;
    run(&pool, Set::Ours).await?;
    run(&pool, Set::Starter).await?;
    pool.close().await;
    Ok(())
}

/// A database of one test, dropped with it.
pub struct TestDatabase {
    pub url: String,
    pub name: String,
}

impl TestDatabase {
    /// A connection to it: each test has its own runtime, so there is no pool to share.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the test's database is there")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if let Some(janitor) = &*JANITOR.lock().expect("nothing panics under this lock") {
            let _ = janitor.done.send(self.name.clone());
        }
    }
}

/// A copy of the template.
pub async fn fresh_database() -> TestDatabase {
    TEMPLATE.get_or_try_init(make_template).await.expect("the template database can be made");
    let name = format!("test_{}", Uuid::new_v4().simple());
    let mut admin = SERVER.admin().await.expect("the server is up");
    let copy = format!(r#"create database "{name}" template "{}" strategy file_copy"#, SERVER.template);
    admin.execute(AssertSqlSafe(copy)).await.expect("the template can be copied");
    TestDatabase { url: SERVER.url_for(&name), name }
}

static SERVER: LazyLock<Server> = LazyLock::new(Server::find);
static TEMPLATE: OnceCell<()> = OnceCell::const_new();
static JANITOR: Mutex<Option<Janitor>> = Mutex::new(None);

struct Server {
    place: Place,
    admin_database: String,
    template: String,
}

enum Place {
    Private(PrivatePostgres),
    Given(Url),
}

impl Server {
    fn find() -> Self {
        let server = match std::env::var("DATABASE_URL") {
            Ok(url) if !url.is_empty() => {
                let url = Url::parse(&url).expect("DATABASE_URL is an address");
                let admin_database = url.path().trim_start_matches('/').to_owned();
                let template = format!("template_gristmill_{}", Uuid::new_v4().simple());
                Self { place: Place::Given(url), admin_database, template }
            }
            _ => {
                let private = start_private().unwrap_or_else(|error| panic!("no database for the tests: {error}"));
                let template = "template_gristmill".to_owned();
                Self { place: Place::Private(private), admin_database: "postgres".to_owned(), template }
            }
        };
        *JANITOR.lock().expect("nothing panics under this lock") = Some(Janitor::hire(&server));
        server
    }

    fn url_for(&self, database: &str) -> String {
        match &self.place {
            Place::Private(server) => server.url_for(database),
            Place::Given(url) => {
                let mut url = url.clone();
                url.set_path(database);
                url.into()
            }
        }
    }

    async fn admin(&self) -> sqlx::Result<PgConnection> {
        PgConnection::connect(&self.url_for(&self.admin_database)).await
    }
}

fn start_private() -> Result<PrivatePostgres, Box<dyn std::error::Error>> {
    let installation = embedded::installation(&|progress| eprintln!("{progress}"))?;
    Ok(PrivatePostgres::start(&installation, &Options::default())?)
}

async fn make_template() -> sqlx::Result<()> {
    let template = &SERVER.template;
    let mut admin = SERVER.admin().await?;
    // A test that failed while it made the template leaves half of one.
    admin.execute(AssertSqlSafe(format!(r#"drop database if exists "{template}""#))).await?;
    admin.execute(AssertSqlSafe(format!(r#"create database "{template}""#))).await?;

    let mut connection = PgConnection::connect(&SERVER.url_for(template)).await?;
    prepare(&mut connection).await?;
    connection.close().await?;
    migrate(&SERVER.url_for(template)).await.expect("the migrations run");

    let finished = format!(r#"alter database "{template}" is_template true allow_connections false"#);
    admin.execute(AssertSqlSafe(finished)).await?;
    Ok(())
}

/// Drops databases in the background, so that tests neither wait for it nor fill the disk.
struct Janitor {
    done: Sender<String>,
    thread: JoinHandle<()>,
}

impl Janitor {
    fn hire(server: &Server) -> Self {
        let (done, databases) = mpsc::channel();
        let admin = server.url_for(&server.admin_database);
        let is_given = matches!(server.place, Place::Given(_));
        let template = is_given.then(|| server.template.clone());
        if is_given {
            at_exit();
        }
        let thread = thread::spawn(move || sweep(&admin, databases, template));
        Self { done, thread }
    }
}

#[expect(unsafe_code, reason = "the test harness offers no other hook for the end of all tests")]
fn at_exit() {
    // SAFETY: the function takes nothing and does not unwind.
    unsafe { libc::atexit(dismiss_janitor) };
}

/// A given server outlives the tests: wait until nothing of theirs is left there.
extern "C" fn dismiss_janitor() {
    let janitor = JANITOR.lock().ok().and_then(|mut janitor| janitor.take());
    if let Some(Janitor { done, thread }) = janitor {
        drop(done);
        let _ = thread.join();
    }
}

fn sweep(admin: &str, databases: Receiver<String>, template: Option<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let run = |statement: String| {
        let result = runtime.block_on(async {
            let mut admin = PgConnection::connect(admin).await?;
            admin.execute(AssertSqlSafe(statement)).await?;
            admin.close().await
        });
        if let Err(error) = result {
            eprintln!("a test's database stays behind: {error}");
        }
    };
    for name in databases {
        run(format!(r#"drop database if exists "{name}" with (force)"#));
    }
    if let Some(template) = template {
        run(format!(r#"alter database "{template}" is_template false"#));
        run(format!(r#"drop database if exists "{template}" with (force)"#));
    }
}
