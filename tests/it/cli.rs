//! The binary itself: what it prints, and with which code it ends.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use gristmill::db;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::fake_openai::{Answer, FakeOpenAi, Options};
use crate::outcomes::eventually;
use crate::postgres::{TestDatabase, fresh_database};
use crate::world::{DIMENSIONS, USER, World};

/// What a command left behind.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {:?} {:?}", self.out, self.err))
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{} {}", self.out, self.err);
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("no signal ended it"),
            out: String::from_utf8(output.stdout).expect("output is text"),
            err: String::from_utf8(output.stderr).expect("logs are text"),
        }
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gristmill"));
    command.args(arguments).current_dir(std::env::temp_dir());
    // What the developer has set must not matter.
    for name in ["DATABASE_URL", "GRISTMILL_CONFIG", "GRISTMILL_LOG", "GRISTMILL_LOG_FORMAT", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

pub async fn run(mut command: Command) -> Ran {
    let ran = tokio::task::spawn_blocking(move || command.output().expect("the binary runs"));
    ran.await.expect("the thread ends well").into()
}

/// The binary with a world's configuration.
pub async fn gristmill(world: &World, arguments: &[&str]) -> Ran {
    let mut command = command(arguments);
    command.arg("--config").arg(world.config_file());
    run(command).await
}

/// `gristmill check` of a file, where there is no database.
pub async fn offline(file: &str) -> Ran {
    run(command(&["check", "--offline", "--config", file])).await
}

/// A database without anything of ours, pgvector included.
async fn empty_database() -> TestDatabase {
    let database = fresh_database().await;
    let ours = "drop schema gristmill cascade; drop table public.document_chunks, public.documents; \
                drop function public.documents_touch(); drop extension vector";
    database.connect().await.execute(ours).await.expect("everything of ours can go");
    database
}

#[tokio::test]
async fn usage_and_configuration_mistakes_end_with_2() {
    for arguments in [&["nonsense"][..], &["jobs", "retry"], &["jobs", "list", "--kind", "sad"], &["wait", "documents"]]
    {
        let mut command = command(arguments);
        command.env("DATABASE_URL", "postgres://nobody@localhost:1/none");
        let ran = run(command).await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}: {}", ran.err);
    }

    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("broken.toml");
    std::fs::write(&file, "[database]\nurl = \"mysql://x\"\n[worker]\nslots = 0\nspeed = 9\n")
        .expect("it can be written");
    let file = file.display().to_string();
    let ran = run(command(&["check", "--config", &file])).await;
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{}", ran.err);
    for misfit in ["broken.toml:2: database.url: ", "broken.toml:4: worker.slots: ", "broken.toml:5: worker.speed: "] {
        assert!(ran.err.lines().any(|line| line.contains(misfit)), "{misfit} is not in {}", ran.err);
    }
    assert!(!ran.err.contains("mysql"), "an address may hold a password: {}", ran.err);
}

#[tokio::test]
async fn a_configuration_is_checked_without_secrets_or_a_database() {
    let ran = run(command(&["check", "--offline", "--json"])).await.ok();
    let said = ran.json()[0]["message"].as_str().expect("a sentence").to_owned();
    assert!(said.contains("1 pipeline (documents); the environment lacks DATABASE_URL"), "{said}");
    assert_eq!(run(command(&["check"])).await.code, 2, "without --offline a missing secret is a mistake");
}

#[tokio::test]
async fn migrations_are_checked_printed_and_applied() {
    let database = empty_database().await;
    let with = |arguments: &[&str]| {
        let mut command = command(arguments);
        command.env("DATABASE_URL", &database.url);
        run(command)
    };
    let sql = run(command(&["migrate", "--sql"])).await.ok().out;
    assert!(sql.contains("create table gristmill.embedding_jobs") && !sql.contains("public.documents"));
    assert_eq!(with(&["migrate", "--check"]).await.code, 1);
    assert_eq!(with(&["status"]).await.code, 1, "there is nothing to look at yet");

    let first = with(&["migrate", "--starter", "--json"]).await.ok().json();
    let newest = db::migrate::Set::Ours.newest();
    assert_eq!((&first[0]["from"], &first[0]["to"]), (&Value::Null, &Value::from(newest)));

    with(&["migrate", "--check", "--starter"]).await.ok();
    let again = with(&["migrate", "--starter", "--json"]).await.ok().json();
    assert_eq!((&again[0]["from"], &again[0]["to"]), (&first[0]["to"], &first[0]["to"]));
}

#[tokio::test]
async fn printed_migrations_record_what_they_apply() {
    let database = empty_database().await;
    let with = |arguments: &[&str]| {
        let mut command = command(arguments);
        command.env("DATABASE_URL", &database.url);
        run(command)
    };
    // Another's hands, and half of it applied before.
    let mut hands = database.connect().await;
    let ours = run(command(&["migrate", "--sql"])).await.ok().out;
    sqlx::raw_sql(AssertSqlSafe(ours)).execute(&mut hands).await.expect("it runs as one text");
    with(&["migrate", "--check"]).await.ok();
    assert_eq!(with(&["migrate", "--check", "--starter"]).await.code, 1);

    let both = run(command(&["migrate", "--sql", "--starter"])).await.ok().out;
    for _ in 0..2 {
        sqlx::raw_sql(AssertSqlSafe(both.clone())).execute(&mut hands).await.expect("it may run again");
    }

    with(&["migrate", "--check", "--starter"]).await.ok();
    let again = with(&["migrate", "--starter", "--json"]).await.ok().json();
    assert_eq!((&again[0]["from"], &again[1]["from"]), (&again[0]["to"], &again[1]["to"]), "nothing is left to do");
    with(&["run", "--once"]).await.ok();
    hands.execute("update gristmill._sqlx_migrations set checksum = 'x'").await.expect("it may");
    let refused = sqlx::raw_sql(AssertSqlSafe(both)).execute(&mut hands).await.expect_err("another binary's version");
    assert!(refused.to_string().contains("is not the one of this binary"), "{refused}");
    let (looked, tried) = (with(&["migrate", "--check"]).await, with(&["migrate"]).await);
    let why = tried.err.lines().last().unwrap_or_default().trim_start_matches("error: ");
    assert!(why.contains("was previously applied but has been modified"), "{why}");
    let says = format!(
        "schema gristmill: at version {}, which `gristmill migrate` refuses: {why}\n",
        db::migrate::Set::Ours.newest()
    );
    assert_eq!((looked.code, looked.out, tried.code), (1, says, 1));
}

#[tokio::test]
async fn check_names_what_does_not_fit_with_its_line() {
    let world = World::new().await;
    let well = gristmill(&world, &["check", "--json"]).await.ok().json();
    let levels: Vec<&str> = well.as_array().expect("findings").iter().filter_map(|one| one["level"].as_str()).collect();
    assert!(!levels.contains(&"error"), "{well}");

    let world = world.change("page_number = ", "no_such_column = ");
    let ran = gristmill(&world, &["check"]).await;
    assert_eq!(ran.code, 1);
    let line = world.toml.lines().position(|line| line.starts_with("no_such_column")).expect("it is there") + 1;
    let misfit = ran.out.lines().find(|line| line.starts_with("ERROR")).unwrap_or_default();
    assert!(misfit.contains(&format!("workers.toml:{line}: ")) && misfit.contains("no_such_column"), "{}", ran.out);

    // A name inside a template stands on a line of its own, too.
    let world =
        world.change("no_such_column = ", "page_number = ").change("type = \"{mime_type}\"", "type = \"{mimetype}\"");
    let ran = gristmill(&world, &["check"]).await;
    let line = world.toml.lines().position(|line| line.contains("{mimetype}")).expect("it is there") + 1;
    let named = format!("workers.toml:{line}: pipelines.documents.file.type: {{mimetype}} is neither");
    assert!(ran.code == 1 && ran.out.contains(&named), "{named} is not in {}", ran.out);

    // No SQL mends that, and what goes to psql is empty.
    let ran = gristmill(&world, &["check", "--fix-sql"]).await;
    let said = "error: 1 error found that no SQL mends; `gristmill check` says what it is\n";
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (1, "", said));
    let ran = gristmill(&world, &["check", "--fix-sql", "--json"]).await;
    assert_eq!((ran.code, ran.json()), (1, serde_json::json!([])));
    assert!(ran.err.contains(r#""message":"1 error found that no SQL mends""#), "{}", ran.err);
}

#[tokio::test]
async fn a_variable_that_sets_nothing_is_a_mistake() {
    let mut mistyped = command(&["check", "--offline"]);
    mistyped.env("GRISTMILL__WORKER__SLOT", "8");
    let ran = run(mistyped).await;
    assert!(ran.code == 2 && ran.err.contains("GRISTMILL__WORKER__SLOT sets nothing"), "{}", ran.err);
    let mut right = command(&["check", "--offline"]);
    right.env("GRISTMILL__WORKER__SLOTS", "8");
    run(right).await.ok();
}

#[tokio::test]
async fn a_folder_that_is_missing_is_named_with_the_way_out() {
    let world = World::new().await;
    let root = world.files.path().join("later");
    let world = world.change(
        &format!("root = \"{}\"", root.parent().expect("it has one").display()),
        &format!("root = \"{}\"", root.display()),
    );
    let ran = gristmill(&world, &["check"]).await;
    let said = format!("folder {} does not exist: create it, or correct the store's `root`", root.display());
    assert!(ran.code == 1 && ran.out.contains(&said), "{}", ran.out);

    std::fs::create_dir(&root).expect("it can be made");
    gristmill(&world, &["check"]).await.ok();
}

#[tokio::test]
async fn check_asks_the_provider_without_paying() {
    let vendor = |key: &str, model: &str| {
        FakeOpenAi::start(Options { key: Some(key.to_owned()), model: Some(model.to_owned()), ..Options::default() })
    };
    for (key, model, level, said) in [
        ("sk-canary-secret", "small", "ok", "takes the credential and lists the model"),
        ("sk-canary-secret", "large", "warning", "does not list this model"),
        ("sk-another", "small", "error", "refused the credential"),
    ] {
        let vendor = vendor(key, model);
        let world = World::with_vendor(&vendor).await;
        let ran = gristmill(&world, &["check", "--json"]).await;
        let findings = ran.json();
        let finding = findings.as_array().expect("findings").iter().find(|one| one["about"] == "model small");
        let finding = finding.unwrap_or_else(|| panic!("nothing is said of the model: {findings}"));
        assert_eq!(finding["level"], level, "{finding}");
        assert!(finding["message"].as_str().is_some_and(|message| message.contains(said)), "{finding}");
        assert_eq!((ran.code, vendor.requests()), (i32::from(level == "error"), 0), "nothing was embedded");
        assert!(!format!("{}{}", ran.out, ran.err).contains("canary"), "{} {}", ran.out, ran.err);
    }
    let ours_alone = vendor("sk-canary-secret", "small");
    let world = World::with_vendor(&ours_alone).await;
    let world =
        world.change("key = \"sk-canary-secret\"", "key = \"sk-canary-secret\"\nkeys = { acme = \"sk-acme-canary\" }");
    let ran = gristmill(&world, &["check"]).await;
    let said = "small: provider vendor, with the key of tenant acme: the provider refused the credential";
    assert!(ran.code == 1 && ran.out.contains(said) && !ran.out.contains("canary"), "{}", ran.out);

    let world = World::with_vendor(&ours_alone)
        .await
        .change("kind = \"openai\"", "kind = \"openai\"\ntokens_per_minute = 7999");
    let ran = gristmill(&world, &["check"]).await;
    let said = "tokens_per_minute of provider vendor is 7999, but one text may have 8000 tokens";
    assert!(ran.code == 0 && ran.out.contains(said), "{}", ran.out);

    let gone = vendor("sk-canary-secret", "small");
    let world = World::with_vendor(&gone).await;
    drop(gone);
    let ran = gristmill(&world, &["check"]).await;
    assert!(
        ran.code == 1 && ran.out.contains("provider vendor: the provider is not available: cannot connect"),
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn a_row_is_announced_worked_on_and_looked_at() {
    let world = World::new().await;
    world.register().await;
    let key = world.insert("note", "The mill grinds what the river brings.").await.to_string();

    gristmill(&world, &["enqueue", "documents", &key, "--priority", "5"]).await.ok();
    let late = gristmill(&world, &["wait", "documents", &key, "--timeout", "300ms"]).await;
    assert_eq!(late.code, 1, "nobody works yet: {}", late.err);
    let status = gristmill(&world, &["status", "--json"]).await.ok().json();
    assert_eq!(status["pipelines"][0]["jobs"]["pending"], 1);

    gristmill(&world, &["run", "--once"]).await.ok();

    gristmill(&world, &["wait", "documents", &key]).await.ok();
    let job = &gristmill(&world, &["jobs", "list", "--key", &key, "--json"]).await.ok().json()[0];
    assert_eq!((&job["state"], &job["priority"], &job["chunks"]), (&"completed".into(), &5.into(), &1.into()));
    let shown = gristmill(&world, &["jobs", "show", &job["id"].to_string()]).await.ok().out;
    assert!(shown.contains("completed") && shown.contains(&key), "{shown}");
    let story = gristmill(&world, &["jobs", "show", &job["id"].to_string(), "--json"]).await.ok().json();
    let attempts = story["attempts"].as_array().expect("a timeline");
    assert_eq!((attempts.len(), &attempts[0]["outcome"], &attempts[0]["attempt"]), (1, &"done".into(), &1.into()));
    assert!(attempts[0]["started_at"].is_string(), "{story}");
    let usage = gristmill(&world, &["usage", "--by", "pipeline", "--json"]).await.ok().json();
    let line = &usage["usage"][0];
    let tokens: f64 = line["quantity"].as_str().expect("exact").parse().expect("a number");
    let cost: f64 = line["usd"].as_str().expect("exact").parse().expect("a number");
    assert!(tokens > 5.0 && (cost - tokens * 0.000_000_02).abs() < 1e-12, "{usage}");
    let found = gristmill(&world, &["search", "what the river brings", "--json"]).await.ok().json();
    assert_eq!(found["hits"][0]["key"][0], key.as_str());
}

#[tokio::test]
async fn a_run_in_which_a_job_fails_ends_with_1() {
    let world = World::new().await;
    world.register().await;
    let key = world.insert_path("a11ce/away.txt", "away.txt").await.to_string();

    let ran = gristmill(&world, &["run", "--once"]).await;

    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("1 job failed"), "{}", ran.err);
    assert_eq!(gristmill(&world, &["wait", "documents", &key]).await.code, 1);
    // What failed before is not this run's failure.
    gristmill(&world, &["run", "--once"]).await.ok();
    let failed = gristmill(&world, &["jobs", "list", "--kind", "file", "--json"]).await.ok().json();
    assert_eq!(failed.as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_run_that_leaves_jobs_waiting_ends_with_3_and_says_why() {
    let vendor = FakeOpenAi::start(Options { dimensions: 384, ..Options::default() });
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert_sentences(2).await;
    vendor.always(Answer::status(429).with("retry-after", "600"));

    let ran = gristmill(&world, &["run", "--once", "--json"]).await;

    assert!(ran.code == 3 && ran.err.contains("documents: 2 jobs wait (rate_limited, until "), "{}", ran.err);
    let ended = ran.json();
    let left = &ended["left"][0];
    assert_eq!((&ended["failed"], &left["why"], &left["jobs"]), (&0.into(), &"rate_limited".into(), &2.into()));
    assert!(left["due"].is_string() && left["reason"].is_string(), "{ended}");
    let status = gristmill(&world, &["status"]).await.ok().out;
    assert!(status.contains("documents: 2 jobs wait (rate_limited, until "), "{status}");
    // Waiting is not being young: the backlog ages from the opening.
    world.sql("update gristmill.embedding_jobs set opened_at = opened_at - interval '1 hour'").await;
    let status = gristmill(&world, &["status", "--json"]).await.ok().json();
    assert!(status["pipelines"][0]["oldest_seconds"].as_f64() > Some(3_599.0), "{status}");
}

#[tokio::test]
async fn a_run_whose_sweep_fails_again_and_again_ends_with_its_error() {
    let world = World::new().await;
    world.sql("create function public.whether() returns bool language sql as 'select true'").await;
    let world = world.change("when = \"deleted_at is null\"", "when = \"public.whether()\"");
    world.register().await;
    world.insert("note", "Nobody gets to see it.").await;
    world
        .sql(
            "create or replace function public.whether() returns bool language plpgsql as \
             $$ begin raise exception 'out of beans' using errcode = '53000'; end $$",
        )
        .await;

    let ran = gristmill(&world, &["run", "--once"]).await;

    let said = "error: pipeline documents cannot be swept, so that nobody knows what is left: out of beans";
    assert!(ran.code == 1 && ran.err.contains(said), "{} {}", ran.code, ran.err);
}

#[tokio::test]
async fn a_retry_says_first_what_it_costs() {
    let world = World::new().await;
    world.register().await;
    for nth in 0..3 {
        world.insert(&format!("note {nth}"), "The same few words of a note.").await;
    }
    world.work().await;
    let all = ["jobs", "retry", "--pipeline", "documents", "--json"];

    let told = gristmill(&world, &[&all[..], &["--dry-run"]].concat()).await.ok().json();

    let share = &told["would_open"][0];
    assert_eq!((&share["jobs"], &share["jobs_of_unknown_tokens"], &told["opened"]), (&3.into(), &0.into(), &0.into()));
    assert!(share["tokens"].as_i64() > Some(0) && share["usd"].as_str().is_some_and(|usd| usd.starts_with("0.0000")));
    let none = gristmill(&world, &["jobs", "list", "--state", "pending", "--json"]).await.ok().json();
    assert_eq!(none, Value::Array(vec![]), "a dry run opens nothing");

    let opened = gristmill(&world, &all).await.ok().json();
    assert_eq!(opened["opened"], 3);
    let cancelled = gristmill(&world, &["jobs", "cancel", "--state", "pending", "--json"]).await.ok().json();
    assert_eq!(cancelled["cancelled"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn only_jobs_that_are_not_finished_are_cancelled() {
    let world = World::new().await;
    world.register().await;
    world.insert_path("a11ce/away.txt", "away.txt").await;
    world.work().await;
    let key = world.insert("open", "Not worked on.").await.to_string();
    gristmill(&world, &["enqueue", "documents", &key]).await.ok();
    let all = ["jobs", "cancel", "--pipeline", "documents", "--json"];

    let told = gristmill(&world, &[&all[..], &["--dry-run"]].concat()).await.ok().json();

    assert_eq!((&told["would_cancel"], &told["cancelled"]), (&serde_json::json!([2]), &serde_json::json!([])));
    assert_eq!(world.states().await, "1 failed file\n1 pending", "a dry run changes nothing");
    assert_eq!(gristmill(&world, &all).await.ok().json()["cancelled"], serde_json::json!([2]));
    assert_eq!(world.states().await, "1 cancelled person\n1 failed file", "a failed job keeps its reason");
    let finished = gristmill(&world, &["jobs", "cancel", "1"]).await;
    assert!(finished.code == 1 && finished.err.contains("nothing to cancel"), "{}", finished.err);
}

#[tokio::test]
async fn every_command_speaks_json() {
    let world = World::new().await;
    world.register().await;
    let tenant = USER.to_string();
    for arguments in [
        &["migrate", "--check"][..],
        &["migrate", "--sql"],
        &["migrate"],
        &["check"],
        &["check", "--fix-sql"],
        &["triggers", "install"],
        &["triggers", "sql"],
        &["views", "sql"],
        &["grants"],
        &["triggers", "remove"],
        &["accept", "documents", "--dry-run"],
        &["accept", "--database", "--yes"],
        &["accept", "documents", "--database", "--yes"],
        &["run", "--once"],
        &["status"],
        &["jobs", "list"],
        &["jobs", "retry", "--state", "failed"],
        &["jobs", "cancel", "--state", "pending"],
        &["verify"],
        &["usage"],
        &["usage", "reconcile"],
        &["pause", "documents"],
        &["resume", "documents"],
        &["forget", "--tenant", &tenant, "--dry-run"],
        &["search", "anything"],
    ] {
        gristmill(&world, &[arguments, &["--json"]].concat()).await.ok().json();
    }
    let mut init = command(&["init", "--out", "-", "--json"]);
    init.env("DATABASE_URL", &world.database.url);
    let proposed = run(init).await.ok().json();
    assert!(proposed["toml"].as_str().is_some_and(|toml| toml.contains("[pipelines.documents]")), "{proposed}");
}

#[tokio::test]
async fn failures_are_json_where_that_is_asked_for() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "Waits.").await;
    gristmill(&world, &["pause", "documents"]).await.ok();
    // Of another row, whose end `wait` tells.
    let key = world.insert("note", "Cancelled.").await.to_string();
    gristmill(&world, &["enqueue", "documents", &key]).await.ok();
    gristmill(&world, &["jobs", "cancel", "--key", &key]).await.ok();
    for (arguments, code, kind, message, hint) in [
        (&["nonsense"][..], 2, "usage", "unrecognized subcommand 'nonsense'", Some("Usage: gristmill")),
        (&["jobs", "retry"], 2, "usage", "this would mean every job", None),
        (&["jobs", "retry", "99999"], 1, "failed", "there is no job 99999", None),
        (&["run", "--once"], 3, "unfinished", "gristmill resume documents", None),
        (&["status", "--json=x"], 2, "usage", "unexpected value 'x'", Some("Usage: gristmill status")),
        (&["wait", "documents", &key], 1, "failed", "standard output says what was found", None),
    ] {
        let json = if arguments.iter().any(|argument| argument.starts_with("--json")) { &[][..] } else { &["--json"] };
        let ran = gristmill(&world, &[json, arguments].concat()).await;
        assert_eq!(ran.code, code, "{arguments:?}: {} {}", ran.out, ran.err);
        let said: Value = serde_json::from_str(ran.err.lines().last().unwrap_or_default())
            .unwrap_or_else(|error| panic!("{arguments:?}: {error} in {:?}", ran.err));
        let error = &said["error"];
        assert!(error["kind"] == kind && error["message"].as_str().unwrap_or_default().contains(message), "{said}");
        assert!(hint.is_none_or(|hint| error["hint"].as_str().is_some_and(|said| said.contains(hint))), "{said}");
    }
    let ended = run(command(&["--json", "jobs"])).await;
    let said: Value = serde_json::from_str(&ended.err).unwrap_or_else(|error| panic!("{error} in {:?}", ended.err));
    let usage = "Usage: gristmill jobs [OPTIONS] <COMMAND>";
    let expected = serde_json::json!({ "kind": "usage", "message": "the command line ends too early", "hint": usage });
    assert_eq!((ended.code, &said["error"]), (2, &expected));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let mut second = command(&["run", "--once", "--json", "--config"]);
    second
        .arg(world.config_file())
        .env("GRISTMILL__WORKER__LISTEN", taken.local_addr().expect("it is bound").to_string());
    let said = run(second).await.err;
    let said: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).expect("it is JSON");
    assert!(said["error"]["hint"].as_str().is_some_and(|hint| hint.contains("LISTEN=off")), "{said}");
}

#[tokio::test]
async fn what_nothing_has_is_named() {
    let world = World::new().await;
    world.register().await;
    for (arguments, said) in [
        (&["jobs", "retry", "99999"][..], "there is no job 99999"),
        (&["jobs", "cancel", "99999"], "there is no job 99999"),
        (&["enqueue", "documents", "1"], "\"1\" is not of the type of"),
        (&["enqueue", "documents", r#"["a", "b"]"#], "it has 2 values where the key of"),
        (&["wait", "documents", "1"], "\"1\" is not of the type of"),
    ] {
        let ran = gristmill(&world, arguments).await;
        assert_eq!((ran.code, ran.out.as_str(), ran.err.lines().count()), (1, "", 1), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(said), "{arguments:?}: {}", ran.err);
    }
    assert_eq!(world.states().await, "");
}

#[tokio::test]
async fn a_wait_that_takes_too_long_tells_programs_of_the_job() {
    let world = World::new().await;
    world.register().await;
    let key = world.insert("note", "Waits.").await.to_string();
    gristmill(&world, &["enqueue", "documents", &key]).await.ok();

    let ran = gristmill(&world, &["wait", "documents", &key, "--timeout", "1ms", "--json"]).await;

    let job = ran.json();
    assert_eq!((ran.code, &job["state"], &job["key"]), (1, &"pending".into(), &serde_json::json!([key])), "{job}");
    assert!(ran.err.contains(r#""message":"job 1 is still pending after 1ms""#), "{}", ran.err);
}

#[tokio::test]
async fn what_no_configuration_is_there_for_is_said_once() {
    let world = World::new().await;
    world.register().await;
    for arguments in [&["status"][..], &["search", "anything"]] {
        let mut command = command(arguments);
        command.current_dir(world.files.path()).env("DATABASE_URL", &world.database.url);
        let said = run(command).await.err;
        assert_eq!(said.matches("there is no workers.toml here").count(), 1, "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn verify_finds_lost_vectors_and_opens_their_jobs() {
    let world = World::new().await;
    world.register().await;
    world.insert("kept", "The wheel turns.").await;
    let lost = world.insert("lost", "The stone grinds.").await;
    world.work().await;
    gristmill(&world, &["verify"]).await.ok();
    world.sql(&format!("delete from public.document_chunks where document_id = '{lost}'")).await;

    let found = gristmill(&world, &["verify", "--json"]).await;

    assert_eq!(found.code, 1);
    let findings = &found.json()["findings"];
    assert_eq!((&findings[0]["kind"], &findings[0]["key"][0]), (&"missing".into(), &lost.to_string().into()));
    assert_eq!(findings.as_array().map(Vec::len), Some(1));
    gristmill(&world, &["verify", "--fix"]).await.ok();
    gristmill(&world, &["run", "--once"]).await.ok();
    gristmill(&world, &["verify"]).await.ok();
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 2);
}

#[tokio::test]
async fn people_see_the_first_findings_and_are_told_of_the_rest() {
    let world = World::new().await;
    world.register().await;
    world.insert_sentences(23).await;
    world.work().await;
    world.sql("delete from public.document_chunks").await;

    let few = gristmill(&world, &["verify"]).await;
    let all = gristmill(&world, &["verify", "--all"]).await;

    assert_eq!((few.out.matches("missing").count(), all.out.matches("missing").count()), (20, 23), "{}", few.out);
    assert!(few.out.contains("and 3 more") && !all.out.contains("more"), "{} {}", few.out, all.out);
    let json = gristmill(&world, &["verify", "--json"]).await.json();
    assert_eq!(json["findings"].as_array().map(Vec::len), Some(23));
}

#[tokio::test]
async fn what_would_be_paid_for_waits_for_a_word() {
    let world = World::new().await;
    world.insert("old", "This row was there before.").await;
    let ran = gristmill(&world, &["run", "--once"]).await;
    assert!(ran.code == 3 && ran.err.contains("1 job waits for a word: `gristmill accept documents`"), "{}", ran.err);
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 0);

    let bill = gristmill(&world, &["accept", "documents", "--dry-run", "--json"]).await.ok().json();
    assert_eq!((&bill["rows_held"], &bill["accepted"]), (&1.into(), &false.into()));
    assert!(bill["tokens_estimated"].as_i64() > Some(3) && bill["usd_estimated"].is_string(), "{bill}");
    assert_eq!(gristmill(&world, &["accept", "documents"]).await.code, 2, "nobody is there to ask");

    gristmill(&world, &["accept", "documents", "--yes"]).await.ok();
    gristmill(&world, &["run", "--once"]).await.ok();
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 1);

    // Other chunks are another generation: nothing runs until somebody has seen the bill.
    let world = world.change("tokens = 200", "tokens = 100");
    let refused = gristmill(&world, &["run", "--once"]).await;
    assert!(refused.code == 1 && refused.err.contains("gristmill accept documents"), "{}", refused.err);
    let status = gristmill(&world, &["status", "--json"]).await.ok().json();
    assert_eq!(status["pipelines"][0]["standing"], "new generation");
    let bill = gristmill(&world, &["accept", "documents", "--yes", "--json"]).await.ok().json();
    assert_eq!((&bill["rows_of_old_generation"], &bill["accepted"]), (&1.into(), &true.into()));
    gristmill(&world, &["run", "--once"]).await.ok();
    gristmill(&world, &["verify"]).await.ok();
}

#[tokio::test]
async fn a_copied_database_is_left_alone_until_somebody_confirms_it() {
    let world = World::new().await;
    world.register().await;
    assert!(db::pipelines::is_at_home(&world.pool).await.expect("the database is there"));
    world.sql("update gristmill.installation set identity = 'elsewhere'").await;

    let refused = gristmill(&world, &["run", "--once"]).await;
    assert!(refused.code == 1 && refused.err.contains("accept --database"), "{}", refused.err);
    assert_eq!(gristmill(&world, &["check"]).await.code, 1);
    // What would be paid for, now or once it is confirmed.
    gristmill(&world, &["pause", "documents"]).await.ok();
    let key = world.insert("note", "Grain in, flour out.").await.to_string();
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    gristmill(&world, &["jobs", "cancel", "--state", "pending"]).await.ok();
    for arguments in [
        &["search", "flour"][..],
        &["enqueue", "documents", &key],
        &["jobs", "retry", "--state", "cancelled"],
        &["resume", "documents"],
        &["accept", "documents", "--yes"],
        &["backfill", "documents", "--yes"],
        &["verify", "--fix"],
    ] {
        let refused = gristmill(&world, arguments).await;
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{arguments:?}: {}", refused.err);
        assert!(refused.err.contains("accept --database"), "{arguments:?}: {}", refused.err);
    }
    gristmill(&world, &["jobs", "retry", "--state", "cancelled", "--dry-run"]).await.ok();
    assert_eq!(world.value::<i64>("select count(*) from gristmill.provider_calls").await, 0);
    let still = "select concat_ws(' ', state, revision, (select paused_at is not null from gristmill.pipelines)) from gristmill.embedding_jobs";
    assert_eq!(world.list(still).await, ["cancelled 1 t"]);

    gristmill(&world, &["accept", "--database", "--yes"]).await.ok();
    gristmill(&world, &["resume", "documents"]).await.ok();
    gristmill(&world, &["jobs", "retry", "--state", "cancelled"]).await.ok();
    gristmill(&world, &["run", "--once"]).await.ok();
    assert_eq!(world.states().await, "1 completed");
    gristmill(&world, &["search", "flour"]).await.ok();
}

#[tokio::test]
async fn a_paused_pipeline_says_why_and_does_nothing() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "Waits.").await;
    gristmill(&world, &["pause", "documents", "--reason", "the store moves"]).await.ok();

    let ran = gristmill(&world, &["run", "--once"]).await;
    assert!(ran.code == 3 && ran.err.contains("gristmill resume documents"), "{}", ran.err);

    let status = gristmill(&world, &["status", "--json"]).await.ok().json();
    let pipeline = &status["pipelines"][0];
    assert_eq!((&pipeline["standing"], &pipeline["why"]), (&"paused".into(), &"the store moves".into()));
    assert_eq!(pipeline["jobs"]["pending"], 1);
    gristmill(&world, &["resume", "documents"]).await.ok();
    gristmill(&world, &["run", "--once"]).await.ok();
    assert_eq!(world.value::<i64>("select count(*) from public.document_chunks").await, 1);
    assert_eq!(gristmill(&world, &["pause", "nonsense"]).await.code, 2);
}

#[tokio::test]
async fn triggers_are_installed_printed_and_removed() {
    let world = World::new().await;
    world.register().await;
    let count = "select count(*) from pg_trigger where tgname like 'gristmill%'";
    gristmill(&world, &["triggers", "install"]).await.ok();
    assert_eq!(world.value::<i64>(count).await, 3);
    world.insert("note", "Announced at once.").await;
    assert_eq!(world.value::<i64>("select count(*) from gristmill.embedding_jobs").await, 1);

    let script = gristmill(&world, &["triggers", "sql", "--remove"]).await.ok().out;
    world.sql(&script).await;
    assert_eq!(world.value::<i64>(count).await, 0);
    gristmill(&world, &["triggers", "install", "documents"]).await.ok();
    gristmill(&world, &["triggers", "remove"]).await.ok();
    assert_eq!(world.value::<i64>(count).await, 0);
    assert_eq!(gristmill(&world, &["triggers", "install", "nonsense"]).await.code, 2);
}

#[tokio::test]
async fn a_tenant_is_forgotten_only_when_its_rows_are_gone() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "Mine.").await;
    world.work().await;
    let tenant = USER.to_string();
    let forget = ["forget", "--tenant", &tenant, "--yes"];
    let refused = gristmill(&world, &forget).await;
    assert!(refused.code == 1 && refused.err.contains("still in a set"), "{}", refused.err);
    let told = gristmill(&world, &["forget", "--tenant", &tenant, "--dry-run", "--json"]).await.ok().json();
    assert_eq!(told, serde_json::json!({ "jobs": 1, "jobs_in_a_set": 1, "usage_events": 1, "searches": 0 }));

    world.sql("delete from public.documents").await;
    world.work().await;
    gristmill(&world, &forget).await.ok();

    assert_eq!(world.value::<i64>("select count(*) from gristmill.embedding_jobs").await, 0);
    let tenants = world.list("select distinct tenant from gristmill.usage_events").await;
    assert!(tenants.len() == 1 && tenants[0].starts_with("forgotten-"), "{tenants:?}");
}

/// A free port of this machine.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").to_string()
}

/// Asks a page until it answers with this code.
async fn wait_for_health(world: &World, arguments: &[&str], code: i32) -> Ran {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let ran = gristmill(world, &[&["health"], arguments].concat()).await;
        if ran.code == code {
            return ran;
        }
        assert!(Instant::now() < deadline, "it is not so within 30 s: {} {}", ran.out, ran.err);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A worker of its own process that answers at this address.
pub fn serve(world: &World) -> tokio::process::Child {
    let mut worker = command(&["run"]);
    worker.arg("--config").arg(world.config_file());
    worker.stderr(std::process::Stdio::piped());
    tokio::process::Command::from(worker).kill_on_drop(true).spawn().expect("the binary runs")
}

pub async fn terminate(worker: tokio::process::Child) -> Ran {
    let pid = worker.id().expect("it still runs").to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    worker.wait_with_output().await.expect("it ends").into()
}

#[tokio::test]
async fn a_worker_whose_schema_was_made_anew_ends_and_says_why() {
    let address = free_address();
    let world = World::new().await.change("listen = \"off\"", &format!("listen = \"{address}\""));
    world.register().await;
    let worker = serve(&world);
    wait_for_health(&world, &["--ready"], 0).await;
    eventually(&world, "exists (select from gristmill.workers)").await;

    world.sql("drop schema gristmill cascade").await;
    gristmill(&world, &["migrate"]).await.ok();
    let ended: Ran = worker.wait_with_output().await.expect("it ends").into();
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("pipeline documents is not registered any more"), "{}", ended.err);
}

#[tokio::test]
async fn a_worker_that_stops_says_so_at_once() {
    let address = free_address();
    let vendor = FakeOpenAi::start(Options { dimensions: 384, ..Options::default() });
    let world = World::with_vendor(&vendor).await.change("listen = \"off\"", &format!("listen = \"{address}\""));
    world.register().await;
    let worker = serve(&world);
    wait_for_health(&world, &["--ready"], 0).await;
    let gate = vendor.hold();
    let key = world.insert("note", "In hand while it stops.").await.to_string();
    gristmill(&world, &["enqueue", "documents", &key]).await.ok();
    vendor.arrived(1).await;

    let ended = tokio::spawn(terminate(worker));
    let unready = wait_for_health(&world, &["--ready"], 1).await;
    assert!(unready.out.contains("is stopping"), "{} {}", unready.out, unready.err);
    gristmill(&world, &["health"]).await.ok();
    gate.open();
    assert_eq!(ended.await.expect("the thread ends well").code, 0);
}

#[tokio::test]
async fn a_database_that_is_away_is_said_and_numbers_are_not_passed_off_as_new() {
    let address = free_address();
    let world = World::new().await.change("listen = \"off\"", &format!("listen = \"{address}\""));
    world.register().await;
    let mut worker = command(&["run", "--config"]);
    worker.arg(world.config_file()).env("GRISTMILL_LOG", "debug,sqlx=error").stderr(std::process::Stdio::piped());
    let worker = tokio::process::Command::from(worker).kill_on_drop(true).spawn().expect("the binary runs");
    wait_for_health(&world, &["--ready"], 0).await;
    let elsewhere = fresh_database().await;
    let mut admin = elsewhere.connect().await;
    let name = &world.database.name;
    let close = format!(
        "alter database {name} allow_connections false; \
         select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
    );
    sqlx::raw_sql(AssertSqlSafe(close)).execute(&mut admin).await.expect("the database can be closed");

    let unready = wait_for_health(&world, &["--ready"], 1).await;
    assert!(unready.out.contains("\"database\""), "{} {}", unready.out, unready.err);
    let metrics = gristmill(&world, &["health", "--url", &format!("http://{address}/metrics")]).await.ok().out;
    assert!(metrics.lines().any(|line| line == "gristmill_database_up 0"), "{metrics}");
    let open = format!("alter database {name} allow_connections true");
    sqlx::raw_sql(AssertSqlSafe(open)).execute(&mut admin).await.expect("the database can be opened");
    wait_for_health(&world, &["--ready"], 0).await;

    let ran = terminate(worker).await;
    assert_eq!(ran.code, 0);
    // The outage is told once, by those who know when it ends.
    let lines: Vec<Value> = ran.err.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let said = |level: &str| -> Vec<&str> {
        let of_level = lines.iter().filter(|line| line["level"] == level);
        of_level.filter_map(|line| line["message"].as_str()).collect()
    };
    let mut warnings = said("WARN");
    warnings.sort_unstable();
    assert_eq!(
        warnings,
        ["announcements are not heard; polling goes on", "leases could not be renewed; trying until they are"]
    );
    assert!(said("DEBUG").contains(&"claiming failed"), "{}", ran.err);
}

#[tokio::test]
async fn a_running_worker_tells_how_it_is_and_ends_on_a_signal() {
    let address = free_address();
    let world = World::new().await.change("listen = \"off\"", &format!("listen = \"{address}\""));
    world.register().await;
    assert_eq!(gristmill(&world, &["health"]).await.code, 1, "nobody is there yet");
    let worker = serve(&world);

    wait_for_health(&world, &["--ready"], 0).await;
    let key = world.insert("note", "Grain in, flour out.").await.to_string();
    gristmill(&world, &["enqueue", "documents", &key]).await.ok();
    gristmill(&world, &["wait", "documents", &key]).await.ok();
    let metrics = gristmill(&world, &["health", "--url", &format!("http://{address}/metrics")]).await.ok().out;
    let sample = |line: &str| metrics.lines().any(|known| known.starts_with(line));
    assert!(sample("gristmill_attempts_total{pipeline=\"documents\",outcome=\"done\"} "), "{metrics}");
    assert!(sample("gristmill_jobs{pipeline=\"documents\",state=\"pending\"} 0"), "{metrics}");
    let age = metrics.lines().find_map(|line| line.strip_prefix("gristmill_backlog_age_seconds ")).expect("it is told");
    assert!(age.parse::<f64>().unwrap() < 5.0, "{age}");
    // Finished jobs are counted by nobody who looks every few seconds.
    assert!(!metrics.contains("state=\"completed\""), "{metrics}");
    assert!(sample("gristmill_database_up 1"), "{metrics}");
    assert!(sample("gristmill_lane_paused{provider=\"vendor\",model=\"small\",key=\"shared\"} 0"), "{metrics}");

    // A second process cannot listen there, and says so at once.
    let second = gristmill(&world, &["run"]).await;
    assert!(second.code == 1 && second.err.contains(&format!("worker.listen {address}: ")), "{}", second.err);
    assert!(second.err.contains("GRISTMILL__WORKER__LISTEN=off"), "{}", second.err);
    let mut deaf = command(&["run", "--once", "--config"]);
    deaf.arg(world.config_file()).env("GRISTMILL__WORKER__LISTEN", "off");
    run(deaf).await.ok();
    gristmill(&world, &["pause", "documents", "--reason", "flood"]).await.ok();
    let unready = wait_for_health(&world, &["--ready"], 1).await;
    assert!(unready.out.contains("paused: flood"), "{}", unready.out);
    gristmill(&world, &["health"]).await.ok();

    let ended = terminate(worker).await;
    assert_eq!(ended.code, 0, "{}", ended.err);
    let lines: Vec<Value> = ended.err.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    let done: Vec<_> = lines.iter().filter(|line| line["message"] == "done").collect();
    // The first sweep may have opened the row before it was enqueued: an attempt for each opening that was worked on.
    let revisions: std::collections::BTreeSet<String> =
        done.iter().map(|line| line["job.revision"].to_string()).collect();
    assert_eq!((done.len(), &done[0]["job.key"]), (revisions.len().max(1), &Value::from(key)), "one line per attempt");
}

#[tokio::test]
async fn a_tenant_s_dead_key_takes_no_worker_out() {
    let vendor = FakeOpenAi::start(Options {
        dimensions: DIMENSIONS,
        key: Some("sk-canary-secret".to_owned()),
        ..Options::default()
    });
    let address = free_address();
    let world = World::with_vendor(&vendor)
        .await
        .change(
            "key = \"sk-canary-secret\"",
            &format!("key = \"sk-canary-secret\"\nkeys = {{ \"{USER}\" = \"sk-dead\" }}"),
        )
        .change("listen = \"off\"", &format!("listen = \"{address}\""));
    world.register().await;
    let worker = serve(&world);
    wait_for_health(&world, &["--ready"], 0).await;
    world.insert("note", "Grain in, flour out.").await;
    world.sql("select gristmill.enqueue('documents', id) from public.documents").await;
    world.wait_for("select exists (select from gristmill.embedding_jobs where error_kind = 'credential')").await;

    // What was asked a moment ago is told again.
    let told = format!("vendor/small of {USER}");
    let mut said = String::new();
    for _ in 0..100 {
        said = gristmill(&world, &["health", "--ready"]).await.ok().out;
        if said.contains(&told) {
            break;
        }
    }
    assert!(said.contains(&told), "{said}");
    let metrics = gristmill(&world, &["health", "--url", &format!("http://{address}/metrics")]).await.ok().out;
    let lanes: Vec<_> = metrics.lines().filter(|line| line.starts_with("gristmill_lane_paused")).collect();
    let lane = |key: &str, paused: u8| {
        format!("gristmill_lane_paused{{provider=\"vendor\",model=\"small\",key=\"{key}\"}} {paused}")
    };
    assert!(
        lanes.len() == 2 && [lane("shared", 0), lane("own", 1)].iter().all(|one| lanes.contains(&&**one)),
        "{lanes:?}"
    );
    assert_eq!(terminate(worker).await.code, 0);
}
