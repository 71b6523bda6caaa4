//! What a search pays for is on the books, under the ceilings, and nobody's job.

use std::time::Duration;

use gristmill::db::{budgets, calls};
use insta::assert_snapshot;
use serde_json::Value;

use crate::cli::gristmill;
use crate::fake_openai::{Answer, FakeOpenAi, Options, tokens_of};
use crate::reconcile::reconciled;
use crate::world::{DIMENSIONS, USER, World};

const QUESTION: &str = "What does the mill grind?";

const CALLS: &str =
    "select concat_ws(' ', purpose, outcome, tokens, cost::float8) from gristmill.provider_calls order by started_at";

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

/// A world with one row that has its vector.
async fn world_of(vendor: &FakeOpenAi) -> World {
    let world = World::with_vendor(vendor).await;
    world.register().await;
    world.insert("note", "The mill grinds grain.").await;
    world.work().await;
    world
}

async fn searches(world: &World, arguments: &[&str]) -> String {
    let told = gristmill(world, &[&["usage", "--json"], arguments].concat()).await.ok().json();
    let line = |call: &Value| {
        ["purpose", "outcome", "calls", "tokens", "cost"].map(|key| call[key].to_string().replace('"', "")).join(" ")
    };
    told["calls"].as_array().into_iter().flatten().map(line).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn what_a_search_pays_is_on_the_books() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    assert_eq!((tokens_of(QUESTION), vendor.requests()), (6, 1));

    gristmill(&world, &["search", QUESTION]).await.ok();
    gristmill(&world, &["search", QUESTION]).await.ok();
    let tenant = USER.to_string();
    gristmill(&world, &["search", QUESTION, "--tenant", &tenant]).await.ok();

    assert_eq!(vendor.paid(QUESTION), 3);
    assert_snapshot!(searches(&world, &[]).await, @"jobs paid 1 6 0.00000012, search paid 3 18 0.00000036");
    assert_snapshot!(searches(&world, &["--tenant", &tenant]).await, @"search paid 1 6 0.00000012");
    assert_eq!(searches(&world, &["--tenant", "another"]).await, "");
    let people = gristmill(&world, &["usage"]).await.ok().out;
    assert!(people.lines().any(|line| line.contains("search") && line.contains("0.00000036")), "{people}");
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    12 searches, which nobody is charged for []
    6 searches, which nobody is charged for []
    ");
    let told = gristmill(&world, &["usage", "reconcile", "--json"]).await.ok().json();
    assert_eq!((&told["differences"][0]["count"], &told["tenants"][0]["paid"]), (&2.into(), &"12".into()), "{told}");
    assert_eq!(world.states().await, "1 completed");
}

#[tokio::test]
async fn where_nothing_has_vectors_a_search_pays_nothing() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await;
    world.register().await;
    world.insert("note", "The mill grinds grain.").await;
    let none = gristmill(&world, &["search", QUESTION]).await.ok().out;
    assert_eq!((none.trim(), vendor.requests()), ("nothing has vectors yet", 0));
    world.work().await;
    gristmill(&world, &["search", QUESTION]).await.ok();
    assert_eq!(vendor.paid(QUESTION), 1);
}

#[tokio::test]
async fn forgetting_a_tenant_that_only_searched_says_what_it_renamed() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    gristmill(&world, &["search", QUESTION, "--tenant", "guest"]).await.ok();
    let forget = ["forget", "--tenant", "guest"];

    let asked = gristmill(&world, &[&forget[..], &["--dry-run"]].concat()).await.ok().out;
    let told = gristmill(&world, &[&forget[..], &["--yes"]].concat()).await.ok().out;

    assert_snapshot!(asked, @"0 jobs would be forgotten, and 0 lines of the ledger and 1 paid search call get a pseudonym");
    assert_snapshot!(told, @"0 jobs forgotten; 0 lines of the ledger and 1 paid search call have a pseudonym now");
    assert_eq!(searches(&world, &["--tenant", "guest"]).await, "");
}

#[tokio::test]
async fn nobody_is_forgotten_while_he_searches() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    let gate = vendor.hold();
    let (searched, ()) = tokio::join!(gristmill(&world, &["search", QUESTION, "--tenant", "acme"]), async {
        vendor.arrived(2).await;
        let refused = gristmill(&world, &["forget", "--tenant", "acme", "--yes"]).await;
        gate.open();
        assert!(refused.code == 1 && refused.err.contains("a search of this tenant is under way"), "{}", refused.err);
    });
    searched.ok();
    gristmill(&world, &["forget", "--tenant", "acme", "--yes"]).await.ok();
    let left = world.list("select tenant from gristmill.provider_call_jobs where tenant = 'acme'").await;
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn a_search_that_dies_leaves_an_unknown_call() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    let gate = vendor.hold();
    let mut search = crate::cli::command(&["search", QUESTION, "--config"]);
    let mut search = search.arg(world.config_file()).spawn().unwrap();
    vendor.arrived(2).await;
    assert_eq!(world.list(CALLS).await, ["jobs paid 6 1.2e-07", "search intent"]);

    search.kill().unwrap();
    search.wait().unwrap();
    gate.open();
    world
        .sql("update gristmill.provider_calls set started_at = now() - interval '1 hour' where outcome = 'intent'")
        .await;
    assert_eq!(calls::mark_unknown(&world.pool, Duration::from_secs(30)).await.unwrap(), 1);

    assert_snapshot!(searches(&world, &[]).await, @"jobs paid 1 6 0.00000012, search unknown 1 0 null");
    assert_snapshot!(reconciled(&world).await, @r"
    exit 0
    0 searches, which nobody is charged for []
    ");
}

#[tokio::test]
async fn a_search_that_is_refused_costs_nothing() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    vendor.always(Answer::unauthorized("sk-canary-secret"));

    let ran = gristmill(&world, &["search", QUESTION]).await;

    assert!(ran.code == 1 && ran.err.contains("the provider refuses the credential"), "{}", ran.err);
    assert_eq!(world.list(CALLS).await, ["jobs paid 6 1.2e-07", "search refused 0"]);
    assert_eq!(reconciled(&world).await, "exit 0");
}

#[tokio::test]
async fn a_search_counts_under_the_ceiling_and_is_refused_by_it() {
    let vendor = vendor();
    let world = World::with_vendor(&vendor).await.change(
        "[pipelines.documents.source]",
        "[pipelines.documents.ceiling]\nusd_per_day = 0.00000037\n[pipelines.documents.source]",
    );
    world.register().await;
    world.insert("note", "The mill grinds grain.").await;
    world.work().await;
    gristmill(&world, &["search", QUESTION]).await.ok();
    gristmill(&world, &["search", QUESTION]).await.ok();

    let ran = gristmill(&world, &["search", QUESTION]).await;

    assert_eq!((ran.code, vendor.requests()), (1, 3), "{}", ran.err);
    let why = "usd_per_day of pipeline documents: 0.00000036 USD are spent, and 0.00000012 more would be too much";
    assert!(ran.err.contains(why) && ran.err.contains("raise it in workers.toml"), "{}", ran.err);
    assert_eq!(
        world.list("select concat_ws(' ', usd::float8, reserved::float8) from gristmill.spending").await,
        ["3.6e-07 0"]
    );
    let [job, search] = ["jobs paid 6 1.2e-07", "search paid 6 1.2e-07"];
    assert_eq!(world.list(CALLS).await, [job, search, search]);
    // What a row would cost beside them waits.
    world.insert("note", "The mill grinds grain and more than that.").await;
    world.work().await;
    assert_eq!(world.states().await, "1 completed\n1 waiting ceiling");
}

#[tokio::test]
async fn a_search_that_the_budget_stops_says_when_to_come_again() {
    let vendor = vendor();
    let world = world_of(&vendor).await;
    let fingerprint = world.config().providers["vendor"].kind.key().expect("it has one").fingerprint();
    budgets::shut(&world.pool, "vendor", &fingerprint, Duration::from_mins(2)).await.expect("it may");
    let said = async |world: &World| {
        let ran = gristmill(world, &["search", QUESTION]).await;
        let seconds = ran.err.split("again in ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        format!("{} {}", ran.code, ran.err.trim().replace(&format!("again in {seconds} "), "again in [n] "))
    };

    assert_eq!(vendor.requests(), 1);
    assert_snapshot!(said(&world).await, @"1 error: the budget of provider vendor is used up; ask again in [n] min");
    world.sql("delete from gristmill.budgets").await;
    let world = world.change("kind = \"openai\"", "kind = \"openai\"\nrequests_per_minute = 1");
    assert_eq!(said(&world).await, "0 ");
    assert_snapshot!(said(&world).await, @"1 error: the budget of provider vendor is used up; ask again in [n] s");
    assert_eq!(vendor.requests(), 2);
}
