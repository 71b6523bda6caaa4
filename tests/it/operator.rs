//! What an operator reads: numbers that hold, reasons that are true, and nothing that is no fault.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gristmill::db::{self, attempts};
use gristmill::domain::OwnerId;
use insta::assert_snapshot;
use serde_json::Value;
use sqlx::Executor as _;

use crate::cli::{command, gristmill, run};
use crate::extract::pdf;
use crate::fake_openai::{Answer, FakeOpenAi, Options};
use crate::schema::make_role;
use crate::world::{DIMENSIONS, USER, World};

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

#[tokio::test]
async fn a_ledger_of_any_size_adds_up() {
    let world = World::new().await;
    world
        .sql(
            "insert into gristmill.provider_calls (id, worker, provider, model, inputs, tokens_estimated, outcome, tokens, cost) \
             select gen_random_uuid(), gen_random_uuid(), 'vendor', 'small', 2147483647, 1, 'paid', 9223372036854775807, 1e18 \
             from generate_series(1, 3)",
        )
        .await;

    let calls = gristmill(&world, &["usage", "--json"]).await.ok().json()["calls"][0].clone();

    // Counts are numbers, and what has decimals is a string.
    assert_eq!((&calls["calls"], &calls["inputs"]), (&3.into(), &6_442_450_941_i64.into()));
    assert_eq!(calls["cost"], "3000000000000000000");
    let text = gristmill(&world, &["usage", "--json"]).await.ok().out;
    assert!(text.contains("\"tokens\": 27670116110564327421,"), "{text}");
}

#[tokio::test]
async fn a_crash_that_was_none_is_taken_back_of_a_job_that_another_worker_has_done() {
    let world = World::new().await;
    world.register().await;
    world.insert("note", "The mill grinds.").await;
    world.work().await;
    let owner = OwnerId::fresh();
    sqlx::query(
        "with job as (update gristmill.embedding_jobs set crashes = 5, crashes_alone = 2 returning id, revision) \
         insert into gristmill.job_attempts (job_id, revision, attempt, worker, outcome, error_kind) \
         select id, revision, 1, $1, 'crash', 'crashed' from job, generate_series(1, 3)",
    )
    .bind(owner.0)
    .execute(&world.pool)
    .await
    .unwrap();
    let shown = async || {
        let told = gristmill(&world, &["jobs", "show", "1", "--json"]).await.ok().json();
        format!("{} {} {}", told["state"], told["crashes"], told["attempts"][0]["outcome"]).replace('"', "")
    };
    assert_eq!(shown().await, "completed 5 crash");

    let acquitted = attempts::acquit(&world.pool, owner, Duration::from_mins(1)).await.unwrap();

    assert_eq!((acquitted.jobs, acquitted.is_some_left), (1, false));
    assert_eq!(shown().await, "completed 2 lost");
    let alone: i16 = world.value("select crashes_alone from gristmill.embedding_jobs").await;
    assert_eq!(alone, 0);
}

#[tokio::test]
async fn a_pipeline_that_does_not_fit_is_not_warned_of_what_nobody_knows() {
    let world = World::new().await.change("changed_at = \"updated_at\"\n", "");
    world.install_triggers().await;
    let world = world.change("content = \"{chunk.text}\"", "contents = \"{chunk.text}\"");

    let ran = gristmill(&world, &["check"]).await;

    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("has no column contents") && !ran.out.contains("triggers install"), "{}", ran.out);
}

/// What Postgres says to a client besides its answers.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Said {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panics")).into_owned()
    }
}

#[tokio::test]
async fn triggers_of_a_pipeline_that_has_not_started_are_quiet_and_its_rows_are_not_lost() {
    let world = World::new().await;
    world.install_triggers().await;
    let said = Said::default();
    let writer = said.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let listening = tracing::subscriber::set_default(log);
    let mut application = world.database.connect().await;
    let insert = "insert into public.documents (user_id, name, content) values (gen_random_uuid(), 'early', 'One.')";

    application.execute(insert).await.expect("it is inserted");
    application.execute("update public.documents set content = 'Two.'").await.expect("it is changed");
    assert_eq!(said.text(), "");
    // A real fault is told.
    application.execute("alter table gristmill.embedding_jobs rename to away").await.expect("it is renamed");
    world.sql("insert into gristmill.pipelines (name, generation, source_table) values ('documents', '', '')").await;
    application.execute("update public.documents set content = 'Three.'").await.expect("it is changed");
    assert!(said.text().contains("gristmill could not announce rows of public.documents"), "{}", said.text());
    drop(listening);
    application
        .execute("alter table gristmill.away rename to embedding_jobs; delete from gristmill.pipelines")
        .await
        .expect("it is as it was");

    world.register().await;
    assert_eq!(world.states().await, "1 waiting unaccepted");
}

#[tokio::test]
async fn a_new_generation_is_priced_with_the_rows_that_are_open_already() {
    let world = World::new().await;
    world.register().await;
    for nth in 0..3 {
        world.insert(&format!("note {nth}"), "The same few words of a note.").await;
    }
    world.work().await;
    let words = ["rows_of_old_generation", "rows_open", "tokens_estimated"];
    let bill = async |world: &World| {
        let bill = gristmill(world, &["accept", "documents", "--dry-run", "--json"]).await.ok().json();
        words.map(|word| bill[word].as_i64().unwrap_or(-1))
    };
    world.insert("later", "The same few words of a note.").await;
    world.sweep(None).await;
    assert_eq!(bill(&world).await, [0, 0, 0], "nothing waits for a word");

    let world = world.change("tokens = 200", "tokens = 100");
    let [old, open, tokens] = bill(&world).await;
    assert_eq!((old, open, tokens % 4), (3, 1, 0));
    world.sql("select gristmill.retry(id) from gristmill.embedding_jobs").await;
    assert_eq!(bill(&world).await, [0, 4, tokens]);
    let people = gristmill(&world, &["accept", "documents", "--yes"]).await.ok().out;
    assert!(people.contains("rows that are open already") && people.contains("accepted"), "{people}");
    world.work().await;
    assert_eq!(world.states().await, "4 completed");
}

#[tokio::test]
async fn a_retry_names_the_jobs_that_it_would_open() {
    let world = World::new().await;
    world.register().await;
    world.insert_sentences(23).await;
    world.work().await;
    let all = ["jobs", "retry", "--pipeline", "documents", "--dry-run"];

    let told = gristmill(&world, &[&all[..], &["--json"]].concat()).await.ok().json();
    let people = gristmill(&world, &all).await.ok().out;

    assert_eq!(told["would_open_jobs"], serde_json::json!((1..=23).collect::<Vec<_>>()));
    assert!(people.contains("jobs: 1, 2, 3,") && people.contains(", 20, …") && !people.contains("21"), "{people}");
}

#[tokio::test]
async fn a_retry_names_the_jobs_that_it_opened() {
    let world = World::new().await;
    world.register().await;
    world.insert_sentences(3).await;
    world.work().await;

    let told = gristmill(&world, &["jobs", "retry", "--pipeline", "documents", "--json"]).await.ok().json();

    assert_eq!((&told["opened"], &told["opened_jobs"]), (&3.into(), &serde_json::json!([1, 2, 3])));
}

#[tokio::test]
async fn a_pipeline_that_nobody_knows_is_a_mistake_of_the_command_line() {
    let world = World::new().await;
    world.register().await;
    for arguments in [
        &["pause", "nope"][..],
        &["resume", "nope"],
        &["wait", "nope", "1"],
        &["enqueue", "nope", "1"],
        &["jobs", "list", "--pipeline", "nope"],
        &["jobs", "cancel", "--pipeline", "nope"],
        &["jobs", "retry", "--pipeline", "nope"],
        &["forget", "nope", "1"],
        &["search", "text", "--pipeline", "nope"],
        &["verify", "nope"],
        &["accept", "nope"],
        &["backfill", "nope"],
        &["effects", "nope", "log"],
    ] {
        let ran = gristmill(&world, arguments).await;
        assert!(
            ran.code == 2 && ran.out.is_empty() && ran.err.contains("no pipeline nope"),
            "{arguments:?}: {} {}",
            ran.code,
            ran.err
        );
    }
}

#[tokio::test]
async fn advice_is_a_hint_of_its_own() {
    let role = "gristmill_test_stranger";
    let world = World::new().await;
    make_role(&world, role).await;
    let (ours, theirs) = (world.config_file(), world.files.path().join("stranger.toml"));
    std::fs::write(&theirs, world.toml_as(role)).expect("the file can be written");
    let refused = async |config: &Path, arguments: &[&str]| {
        let mut command = command(&[arguments, &["--json", "--config"]].concat());
        command.arg(config);
        let ran = run(command).await;
        let said: Value = serde_json::from_str(ran.err.lines().last().unwrap_or_default()).expect("it is JSON");
        let word = |key: &str| said["error"][key].as_str().unwrap_or_default().to_owned();
        format!("{}\n{}", word("message"), word("hint"))
    };
    assert_snapshot!(refused(&theirs, &["status"]).await, @"
    permission denied for schema gristmill
    `gristmill grants` prints the rights that a role needs
    ");

    world.sql("update gristmill._sqlx_migrations set version = version + 1 where version = (select max(version) from gristmill._sqlx_migrations)").await;
    let said = refused(&ours, &["status"]).await;
    assert!(said.ends_with("\nupdate the binary"), "{said}");
    world.sql("drop schema gristmill cascade").await;
    assert_snapshot!(refused(&ours, &["status"]).await, @"
    schema gristmill is not there
    run `gristmill migrate`
    ");
    let name = &world.database.name;
    let said = refused(&theirs, &["migrate"]).await.replace(name, "[name]");
    assert_snapshot!(said, @"
    permission denied for database [name]
    `gristmill grants --for migrator` prints the right that a role needs
    ");
    world.sql(&format!("grant create on database {name} to {role}")).await;
    assert_snapshot!(refused(&theirs, &["migrate", "--starter"]).await, @"
    permission denied for schema public
    the starter's tables go to schema public: let its owner run `grant create on schema public` to this role, or the statements that `gristmill migrate --starter --sql` prints
    ");
}

#[tokio::test]
async fn a_copy_that_nobody_confirmed_is_said_and_tells_what_it_would_cost() {
    let world = World::new().await;
    world.insert("note", "Grain in, flour out.").await;
    world.register().await;
    assert!(db::pipelines::is_at_home(&world.pool).await.expect("the database is there"));
    world.sql("update gristmill.installation set identity = 'elsewhere'").await;

    let told = gristmill(&world, &["status", "--json"]).await.ok().json();
    assert_eq!((&told["unconfirmed_copy"], &told["pipelines"][0]["standing"]), (&true.into(), &"copy".into()));
    let people = gristmill(&world, &["status"]).await.ok().out;
    assert!(people.contains("gristmill accept --database") && !people.contains("gristmill run"), "{people}");

    for command in ["accept", "backfill"] {
        let told = gristmill(&world, &[command, "documents", "--dry-run", "--json"]).await.ok().json();
        assert!(told["tokens_estimated"].as_i64() > Some(0), "{told}");
    }
    assert_eq!(world.states().await, "1 waiting unaccepted");
    assert_eq!(world.value::<String>("select identity from gristmill.installation").await, "elsewhere");

    gristmill(&world, &["accept", "--database", "--yes"]).await.ok();
    let told = gristmill(&world, &["status", "--json"]).await.ok().json();
    assert_eq!((&told["unconfirmed_copy"], &told["pipelines"][0]["standing"]), (&false.into(), &"ready".into()));
}

#[tokio::test]
async fn a_price_that_left_the_file_counts_as_long_as_the_table_has_it() {
    const PRICES: &str = "[[prices]]\nmodel = \"small\"\nmeter = \"tokens\"\nusd = \"0.00000002\"\nfrom = 2026-01-01\n";
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "Grain in, flour out.").await;
    world.work().await;
    let world = world.change(PRICES, "");
    let costs = async |world: &World| {
        let retried = gristmill(world, &["jobs", "retry", "1", "--dry-run", "--json"]).await.ok().json();
        let accepted = gristmill(world, &["accept", "documents", "--dry-run", "--json"]).await.ok().json();
        format!("{} {}", retried["would_open"][0]["usd"], accepted["usd_estimated"])
    };

    let checked = gristmill(&world, &["check"]).await.out;
    assert!(checked.contains("0.00000002 USD") && checked.contains("no longer in the file"), "{checked}");
    assert_eq!(costs(&world).await, r#""0.00000014" "0""#);

    // What was booked under a date's price stays its price, whatever the file says of that date now.
    let dearer = format!("{}\n[pipelines.documents]\n", PRICES.replace("0.00000002", "0.00000009"));
    let world = world.change("[pipelines.documents]\n", &dearer);
    assert_eq!(costs(&world).await, r#""0.00000014" "0""#);
    world.sql("insert into gristmill.prices (provider, model, meter, usd, valid_from) values ('vendor', 'small', 'tokens', 1, '2026-02-01+00')").await;
    assert_eq!(costs(&world).await, r#""7" "0""#);
    let world = world.change("from = 2026-01-01", "from = 2026-02-01");
    assert_eq!(costs(&world).await, r#""0.00000063" "0""#);
    assert_eq!(world.value::<i64>("select count(*) from gristmill.prices where usd = 0.00000009").await, 0);
}

#[tokio::test]
async fn a_database_that_refuses_is_said_in_its_own_words_and_no_more() {
    let world = World::new().await;
    let name: String = world.value("select current_database()::text").await;
    let nowhere = world.database.url.replace(&name, "nowhere");
    let mut status = command(&["status"]);
    status.env("DATABASE_URL", nowhere);

    let ran = run(status).await;

    assert_eq!(ran.code, 1);
    assert_snapshot!(ran.err.lines().last().unwrap_or_default(), @r#"error: the database does not answer: database "nowhere" does not exist"#);
}

#[tokio::test]
async fn a_lane_that_pauses_is_shown_by_status() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change("lease = \"10s\"", "lease = \"3s\"");
    world.register().await;
    world.insert("note", "Nobody embeds it.").await;
    vendor.always(Answer::unauthorized("sk-canary-secret"));
    let worker = world.start().await;
    world.wait_for("select coalesce(bool_or(paused_lanes <> '[]'), false) from gristmill.workers").await;

    let told = gristmill(&world, &["status", "--json"]).await.ok().json();
    let people = gristmill(&world, &["status"]).await.ok().out;
    worker.stop().await;

    let lane = &told["workers"][0]["paused_lanes"][0];
    assert_eq!((&lane["provider"], &lane["model"]), (&"vendor".into(), &"small".into()));
    assert!(lane["seconds"].as_u64().is_some_and(|seconds| seconds > 200 && seconds <= 300), "{told}");
    assert!(people.contains("lane vendor/small is paused: ") && !people.contains("canary"), "{people}");
}

#[tokio::test]
async fn a_worker_that_is_gone_counts_for_none() {
    let world = World::new().await;
    world.register().await;
    world
        .sql(
            "insert into gristmill.workers (id, name, version, slots, seen_at) values \
             (gen_random_uuid(), 'dead', '1', 8, now() - interval '40 seconds')",
        )
        .await;
    let people = gristmill(&world, &["status"]).await.ok().out;
    assert!(people.contains("gone, last seen 4") && people.contains("no worker is alive"), "{people}");

    let worker = world.start().await;
    world.wait_for("select count(*) = 2 from gristmill.workers").await;
    let told = gristmill(&world, &["status", "--json"]).await.ok().json();
    let people = gristmill(&world, &["status"]).await.ok().out;
    worker.stop().await;

    let gone = told["workers"].as_array().into_iter().flatten().map(|one| (one["name"] == "dead", &one["gone"]));
    let mut gone: Vec<String> = gone.map(|(dead, gone)| format!("dead={dead} gone={gone}")).collect();
    gone.sort();
    assert_eq!(gone, ["dead=false gone=false", "dead=true gone=true"]);
    assert!(people.contains("gone, last seen") && !people.contains("no worker is alive"), "{people}");
}

#[tokio::test]
async fn the_view_of_the_backlog_counts_what_is_left_and_since_when() {
    let world = World::new().await;
    world.register().await;
    world.insert_sentences(5).await;
    world.work().await;
    world
        .sql(
            "update gristmill.embedding_jobs set state = 'failed', reason = 'bad' where id = 1; \
             update gristmill.embedding_jobs set state = 'waiting', starts = 1, opened_at = now() - interval '1 hour', \
                 run_at = now() + interval '1 hour' where id = 2; \
             update gristmill.embedding_jobs set state = 'waiting', error_kind = 'unaccepted', run_at = 'infinity', starts = 0 where id = 3; \
             update gristmill.embedding_jobs set state = 'pending', starts = 0, run_at = now() - interval '2 hours' where id = 4",
        )
        .await;

    let left = world
        .list("select concat_ws(' ', state, jobs, round(extract(epoch from now() - oldest) / 3600)) from gristmill.backlog order by state")
        .await;

    assert_eq!(left, ["failed 1", "pending 1 2", "waiting 2 1"]);
}

#[tokio::test]
async fn a_file_that_is_damaged_fails_its_job_and_keeps_its_chunks() {
    let world = World::new().await;
    world.register().await;
    world.upload("report.pdf", &pdf(&[&[(10.0, false, "The mill grinds what the farmers bring.")]], &[], "")).await;
    world.work().await;
    for (bytes, name) in [(pdf(&[], &[], ""), "without pages"), (pdf(&[&[]], &[], ""), "an empty page")] {
        world.put(&format!("{USER}/report.pdf"), &bytes);
        world.sql(&format!("update public.documents set name = '{name}'; select gristmill.retry(1)")).await;
        world.work().await;
        if name == "without pages" {
            assert_snapshot!(world.state().await, @"without pages failed | failed attempt=1 chunks=1 unreadable the file cannot be read as PDF: it has no page that opens");
        }
    }
    assert_snapshot!(world.state().await, @"an empty page skipped | skipped attempt=0 chunks=0 skipped there is no text");
}
