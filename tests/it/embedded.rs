//! The private Postgres of demo and tests.

use std::error::Error;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gristmill::db;
use gristmill::db::server::DemoDatabase;
use gristmill::embedded::{self, Artifact, Options, PrivatePostgres, ShortLivedFolder};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::postgres::fresh_database;

type Outcome = Result<(), Box<dyn Error>>;

#[tokio::test]
async fn a_private_postgres_answers_and_has_pgvector() -> Outcome {
    let Some(server) = start(&Options::default())? else { return Ok(()) };
    let mut connection = PgConnection::connect(&server.url()).await?;

    sqlx::raw_sql("create extension vector").execute(&mut connection).await?;
    let distance = "select '[1,2]'::vector <-> '[4,6]'::vector, '[1,2]'::halfvec(2)::text";
    let answer: (f64, String) = sqlx::query_as(distance).fetch_one(&mut connection).await?;

    assert_eq!(answer, (5.0, "[1,2]".to_owned()));
    Ok(())
}

#[tokio::test]
async fn a_durable_one_writes_through() -> Outcome {
    let Some(server) = start(&Options { durable: true, ..Options::default() })? else { return Ok(()) };
    let mut connection = PgConnection::connect(&server.url()).await?;

    let settings =
        "select current_setting('fsync'), current_setting('synchronous_commit'), current_setting('listen_addresses')";
    let settings: (String, String, String) = sqlx::query_as(settings).fetch_one(&mut connection).await?;

    assert_eq!(settings, ("on".to_owned(), "on".to_owned(), String::new()));
    Ok(())
}

#[tokio::test]
async fn two_live_side_by_side_and_leave_nothing() -> Outcome {
    let Some(one) = start(&Options::default())? else { return Ok(()) };
    let Some(other) = start(&Options::default())? else { return Ok(()) };
    for server in [&one, &other] {
        PgConnection::connect(&server.url()).await?.ping().await?;
    }
    let folders = [one.folder().to_owned(), other.folder().to_owned()];

    one.stop();
    drop(other);

    for folder in folders {
        assert!(!folder.exists(), "{} is still there", folder.display());
        assert_eq!(processes_of(&folder), Vec::<String>::new());
    }
    Ok(())
}

#[tokio::test]
async fn each_test_has_a_database_of_its_own() -> Outcome {
    let (one, other) = (fresh_database().await, fresh_database().await);
    sqlx::raw_sql("create table mine (at vector(3))").execute(&mut one.connect().await).await?;

    let there = "select to_regclass('mine') is not null";
    let in_one: bool = sqlx::query_scalar(there).fetch_one(&mut one.connect().await).await?;
    let in_other: bool = sqlx::query_scalar(there).fetch_one(&mut other.connect().await).await?;

    assert_eq!((in_one, in_other), (true, false));
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_owner_leaves_nothing() -> Outcome {
    let Some(mut owner) = Owner::spawn("hold")? else { return Ok(()) };
    owner.says("ready")?;
    let running = processes_of(owner.within.path());
    assert!(running.len() >= 5, "a server and its own processes, not {running:?}");

    owner.process.kill()?;

    owner.nothing_is_left();
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn an_owner_killed_while_it_starts_leaves_nothing() -> Outcome {
    for moment in ["data", "data/PG_VERSION", "data/global/pg_control", "data/postmaster.pid"] {
        let Some(mut owner) = Owner::spawn("hold")? else { return Ok(()) };
        let folder = owner.folder();
        until(|| folder.join(moment).exists(), moment);

        owner.process.kill()?;

        owner.nothing_is_left();
    }
    Ok(())
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_kept_server_outlives_its_owner_until_it_is_stopped() -> Outcome {
    let Some(mut owner) = Owner::spawn("keep")? else { return Ok(()) };
    let url = owner.says("url ")?;
    let stop = owner.says("stop ")?;
    assert!(owner.process.wait()?.success());

    PgConnection::connect(&url).await?.ping().await?;
    let without_password = url.replacen(|letter: char| letter.is_ascii_hexdigit(), "x", 40);
    assert!(PgConnection::connect(&without_password).await.is_err(), "loopback asks for the password");

    Command::new("sh").args(["-c", &stop]).status()?;
    owner.nothing_is_left();
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_short_lived_folder_goes_with_its_owner() -> Outcome {
    let folder = ShortLivedFolder::make(std::env::temp_dir().join(format!("gristmill-test-{}", std::process::id())))?;
    let path = folder.path().to_owned();
    fs::write(path.join("a file"), "in it")?;
    drop(folder);
    assert!(!path.exists());

    let mut owner = Owner::of("folder")?;
    owner.says("ready")?;
    owner.process.kill()?;
    owner.nothing_is_left();
    Ok(())
}

#[tokio::test]
async fn what_a_killed_demo_left_is_dropped_and_nothing_else() -> Outcome {
    let database = fresh_database().await;
    let alive = DemoDatabase::create(database.connect().await).await?;
    let kept = DemoDatabase::create(database.connect().await).await?.keep().await?;
    let mut admin = database.connect().await;
    let killed = DemoDatabase::create(database.connect().await).await?;
    let name = killed.name.clone();
    let there = "select datname::text from pg_database where datname = any ($1) order by 1";
    let asked = [alive.name.clone(), kept.clone(), name.clone()];
    drop(killed);

    // The server may take a moment to see that a session's process is gone.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !db::server::drop_dead_demos(&mut admin).await?.contains(&name) {
        assert!(Instant::now() < deadline, "{name} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let left: Vec<String> = sqlx::query_scalar(there).bind(&asked[..]).fetch_all(&mut admin).await?;
    assert!(!left.contains(&name) && left.contains(&kept) && left.contains(&alive.name), "{left:?}");
    alive.drop().await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("drop database {kept}"))).execute(&mut admin).await?;
    Ok(())
}

#[test]
#[ignore = "downloads 110 MB"]
fn every_artifact_can_be_fetched() -> Outcome {
    let cache = tempfile::tempdir()?;
    for artifact in Artifact::ALL {
        let started = Instant::now();
        let path = embedded::ensure_in(cache.path(), artifact, &|progress| println!("{progress}"))?;
        println!("{artifact}: {:.1} s", started.elapsed().as_secs_f64());

        assert!(path.exists(), "{} is missing", path.display());
        let silent = |progress| panic!("it is in the cache, but: {progress}");
        assert_eq!(embedded::ensure_in(cache.path(), artifact, &silent)?, path);
    }
    Ok(())
}

/// Not a test: what [`Owner`] runs as a process of its own.
#[test]
#[ignore = "run by other tests"]
fn own_a_server() -> Outcome {
    let (what, within) = (std::env::var("GRISTMILL_TEST_OWNER")?, std::env::var("GRISTMILL_TEST_WITHIN")?);
    if what == "folder" {
        let folder = ShortLivedFolder::make(Path::new(&within).join("folder"))?;
        fs::write(folder.path().join("a file"), "in it")?;
        println!("\nready");
        std::io::stdin().read_line(&mut String::new())?;
        return Ok(());
    }
    let (keep, within) = (what == "keep", Some(PathBuf::from(within)));
    let installation = embedded::installation(&|_| ())?;
    let server = PrivatePostgres::start(&installation, &Options { keep, within, durable: false })?;
    if keep {
        let kept = server.leave_running()?;
        println!("\nurl {}\nstop {}", kept.url, kept.stop);
    } else {
        println!("\nready");
        std::io::stdin().read_line(&mut String::new())?;
    }
    Ok(())
}

/// Another process that owns a server in a folder known beforehand.
struct Owner {
    process: Child,
    within: TempDir,
    output: BufReader<std::process::ChildStdout>,
}

impl Owner {
    fn spawn(what: &str) -> Result<Option<Self>, Box<dyn Error>> {
        private_servers_are_wanted().then(|| Self::of(what)).transpose()
    }

    fn of(what: &str) -> Result<Self, Box<dyn Error>> {
        let within = tempfile::tempdir()?;
        fs::set_permissions(within.path(), Permissions::from_mode(0o755))?;
        let mut process = Command::new(std::env::current_exe()?)
            .args(["embedded::own_a_server", "--exact", "--ignored", "--nocapture"])
            .env("GRISTMILL_TEST_OWNER", what)
            .env("GRISTMILL_TEST_WITHIN", within.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(process.stdout.take().ok_or("its output is piped")?);
        Ok(Self { process, within, output })
    }

    /// Waits for a line that starts like this, and returns its rest.
    fn says(&mut self, start: &str) -> Result<String, Box<dyn Error>> {
        let mut line = String::new();
        while self.output.read_line(&mut line)? > 0 {
            if let Some(rest) = line.strip_prefix(start) {
                return Ok(rest.trim_end().to_owned());
            }
            line.clear();
        }
        Err(format!("the owner ended without saying {start:?}").into())
    }

    /// The server's folder, as soon as there is one.
    fn folder(&self) -> PathBuf {
        let first = || fs::read_dir(self.within.path()).ok()?.flatten().next();
        until(|| first().is_some(), "the server's folder");
        first().expect("it was there a moment ago").path()
    }

    fn nothing_is_left(mut self) {
        let _ = self.process.wait();
        let folder = self.within.path();
        let is_empty = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
        until(|| is_empty() && processes_of(folder).is_empty(), "the watchdog to clean up");
    }
}

/// A private server, unless the machine gave another to the tests: then it may have none.
fn start(options: &Options) -> Result<Option<PrivatePostgres>, Box<dyn Error>> {
    if !private_servers_are_wanted() {
        return Ok(None);
    }
    let installation = embedded::installation(&|progress| eprintln!("{progress}"))?;
    Ok(Some(PrivatePostgres::start(&installation, options)?))
}

fn private_servers_are_wanted() -> bool {
    std::env::var_os("DATABASE_URL").is_none_or(|url| url.is_empty())
}

/// Processes that live in `folder` or were told of it. Postgres's own all do: their folder is the data folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy();
    let is_of = |process: &PathBuf| {
        let lives_there =
            fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.to_string_lossy().starts_with(&*folder));
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        lives_there || String::from_utf8_lossy(&command).contains(&*folder)
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    processes.filter(is_of).map(|process| process.display().to_string()).collect()
}

#[expect(clippy::disallowed_methods, reason = "these tests have no runtime, and the process table gives no signal")]
fn until(condition: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited 30 s for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
