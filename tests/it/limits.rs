//! What a tenant may still spend: asked before it is spent, exact while many jobs are in hand.

use gristmill::app;
use insta::assert_snapshot;

use crate::applications::{application, configured, reconnected};
use crate::engine::Process;
use crate::fake_openai::{FakeOpenAi, Options};
use crate::world::World;

const TABLES: &str = "create schema app; \
    create table app.owners (id uuid primary key, tokens_left bigint not null, usd_left numeric, resets timestamptz); \
    create table app.notes (id bigint generated always as identity primary key, owner uuid, body text); \
    create table app.note_chunks (note_id bigint not null, nth int not null, body text not null, embedding vector(8) not null); \
    insert into app.owners values ('0000000a-0000-0000-0000-000000000000', 40, null, now() + interval '2 hours'), \
                                  ('0000000b-0000-0000-0000-000000000000', 40, 0.0000001, null);";

fn notes(over: &str, sql: &str) -> String {
    format!(
        r#"
[limits.daily]
over = "{over}"
sql = """
{sql}"""
[pipelines.notes]
kind = "embed"
model = "tiny"
existing = "backfill"
limit = "daily"
[pipelines.notes.source]
table = "app.notes"
key = ["id"]
tenant = "owner"
text = "{{body}}"
[pipelines.notes.chunks]
whole = true
[pipelines.notes.target]
table = "app.note_chunks"
parent = {{ note_id = "{{id}}" }}
columns = {{ nth = "{{chunk.index}}", body = "{{chunk.text}}", embedding = "{{chunk.vector}}" }}
[[pipelines.notes.effects]]
name = "spend"
shared = {{ table = "app.owners", key = {{ id = "{{owner}}" }} }}
sql = "update app.owners set tokens_left = tokens_left - {{job.tokens}} where id = {{owner}}"
"#
    )
}

const ASK: &str = "select tokens_left as tokens, resets\nfrom app.owners where id = {tenant}";

/// How much is left depends on what the others have in hand.
const JOBS: &str = "select concat_ws(' ', count(*), left(tenant, 8), state, error_kind, regexp_replace(reason, '[0-9.]+ (tokens|usd) left', 'few \\1 left'), \
    round(extract(epoch from run_at - now()) / 3600) || ' h') from gristmill.embedding_jobs \
    group by tenant, state, error_kind, regexp_replace(reason, '[0-9.]+ (tokens|usd) left', 'few \\1 left'), round(extract(epoch from run_at - now()) / 3600) order by 1";

#[tokio::test]
async fn jobs_in_hand_together_spend_no_more_than_the_limit_and_the_rest_waits_for_its_reset() {
    let world = application(TABLES, &notes("snooze", ASK)).await;
    // Each is five tokens.
    world.sql("insert into app.notes (owner, body) select '0000000a-0000-0000-0000-000000000000', 'Grain ' || n || '.' from generate_series(11, 60) n").await;
    world.sql("insert into app.notes (owner, body) values (null, 'Nobody''s.'), ('0000000b-0000-0000-0000-000000000000', 'Other.')").await;
    world.work().await;

    let left = world.value::<i64>("select tokens_left from app.owners order by id limit 1").await;
    assert!((0..4).contains(&left), "{left}");
    assert_snapshot!(world.list(JOBS).await.join("\n"), @r#"
    1  waiting limit limit daily has no row for this tenant, so nothing may be spent 1 h
    1 0000000b completed 0 h
    42 0000000a waiting limit limit daily leaves too little: few tokens left, 5 needed 2 h
    8 0000000a completed 0 h
    "#);

    world.sql("update app.owners set tokens_left = 1000").await;
    world.sql("update gristmill.embedding_jobs set run_at = now() where error_kind = 'limit'").await;
    world.work().await;
    assert_eq!(world.states().await, "1 waiting limit\n51 completed");
    assert_eq!(world.value::<i64>("select count(*) from gristmill.reservations join gristmill.embedding_jobs j on j.id = job_id and j.lease_id = reservations.lease_id").await, 0);
    // What counts for nothing goes, and what is in hand stays.
    let kept = "insert into gristmill.reservations select id, gen_random_uuid(), 'daily', 'held', 1, 1 from gristmill.embedding_jobs \
                where error_kind = 'limit'; \
                update gristmill.embedding_jobs as j set state = 'processing', lease_id = r.lease_id, lease_until = now() + interval '1 day' \
                from gristmill.reservations as r where r.job_id = j.id and r.tenant = 'held'";
    world.sql(kept).await;
    let stale = world.value::<i64>("select count(*) from gristmill.reservations where tenant <> 'held'").await;
    assert!(stale > 0);
    let pruned = gristmill::db::app::prune_reservations(&world.pool, 1_000).await.expect("the database is there");
    assert_eq!(i64::try_from(pruned).ok(), Some(stale));
    assert_eq!(world.list("select tenant from gristmill.reservations").await, ["held"]);
}

#[tokio::test]
async fn over_the_limit_may_be_a_failure_and_money_is_counted_exactly() {
    let ask = "select usd_left as usd from app.owners where id = {tenant}";
    let world = application(TABLES, &notes("fail", ask)).await;
    world.sql("insert into app.notes (owner, body) values ('0000000b-0000-0000-0000-000000000000', 'Grain.'), ('0000000b-0000-0000-0000-000000000000', 'Grain is ground here, and more of it is.')").await;
    world.work().await;
    assert_snapshot!(world.list(JOBS).await.join("\n"), @r#"
    1 0000000b completed 0 h
    1 0000000b failed limit limit daily leaves too little: few usd left, 0.00000024 needed 0 h
    "#);
}

#[tokio::test]
async fn what_is_only_reserved_makes_a_job_wait_and_never_fails_it() {
    let vendor = FakeOpenAi::start(Options { dimensions: 8, ..Options::default() });
    let ask = "select usd_left as usd from app.owners where id = {tenant}";
    let world = configured(World::with_vendor(&vendor).await, &notes("fail", ask));
    world.sql(TABLES).await;
    let world = reconnected(world).await;
    world.register().await;
    // Room for one of them.
    world.sql("update app.owners set usd_left = 0.00000015").await;
    let insert = "insert into app.notes (owner, body) values ('0000000b-0000-0000-0000-000000000000', 'Grain";
    world.sql(&format!("{insert} 11.')")).await;
    let gate = vendor.hold();
    let mut killed = Process::start(&world, &[]);
    vendor.arrived(1).await;
    killed.kill();
    world.sql("delete from app.notes").await;
    world.sql(&format!("{insert} 12.')")).await;

    let worker = world.start().await;
    world.wait_for("select exists (select from gristmill.embedding_jobs where error_kind = 'limit')").await;
    let said = "select concat_ws(' ', state, reason, run_at < now() + interval '2 minutes') from gristmill.embedding_jobs where error_kind = 'limit'";
    assert_snapshot!(world.value::<String>(said).await, @"waiting limit daily leaves too little: 0.00000005 usd left, 0.0000001 reserved for jobs in hand, 0.0000001 needed t");

    // The dead worker's reservation ends with its lease.
    gate.open();
    world.sql("update gristmill.embedding_jobs set lease_until = now() where state = 'processing'").await;
    world.wait_for("select not exists (select from gristmill.embedding_jobs where state = 'processing')").await;
    world.sql("update gristmill.embedding_jobs set run_at = now() where error_kind = 'limit'").await;
    worker.idle().await;
    worker.stop().await;
    assert_eq!(world.states().await, "1 cancelled left\n1 completed");
}

#[tokio::test]
async fn a_limit_in_money_for_a_model_without_a_price_lets_nothing_through() {
    let ask = "select usd_left as usd from app.owners where id = {tenant}";
    let vendor = FakeOpenAi::start(Options { dimensions: 8, ..Options::default() });
    let unpriced = configured(World::with_vendor(&vendor).await, &notes("snooze", ask))
        .change("[[prices]]\nmodel = \"tiny\"\nmeter = \"tokens\"\nusd = \"0.00000002\"\nfrom = 2026-01-01", "");
    unpriced.sql(TABLES).await;
    let world = reconnected(unpriced).await;
    world.register().await;
    world.sql("insert into app.notes (owner, body) values ('0000000b-0000-0000-0000-000000000000', 'Grain.')").await;
    world.work().await;
    assert_snapshot!(world.list(JOBS).await.join("\n"), @"1 0000000b waiting limit limit daily is in usd, and the model has no price: add it under [[prices]] 1 h");
    assert_eq!(vendor.seen().len(), 0);
}

#[tokio::test]
async fn a_limit_that_asks_nothing_or_writes_is_named() {
    let said = async |sql: &str| {
        let world = configured(World::new().await, &notes("snooze", sql));
        world.sql(TABLES).await;
        let world = reconnected(world).await;
        let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
        let misfits = resolved.refused.iter().flat_map(|(_, misfits)| misfits).filter(|misfit| !misfit.warning);
        misfits.map(|misfit| misfit.message.clone()).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(said(ASK).await, "");
    assert_snapshot!(said("select tokens_left from app.owners where id = {tenant}").await, @"returns a column tokens_left; it may return tokens, usd and resets");
    assert_snapshot!(said("select resets from app.owners where id = {tenant}").await, @"returns neither tokens nor usd, so it limits nothing");
    assert_snapshot!(said("select tokens_left as tokens from app.owners where name = {tenant}").await, @r#"
    Postgres says: column "name" does not exist
    "#);
    assert_snapshot!(said("with gone as (delete from app.owners where id = {tenant} returning 1 as tokens) select tokens from gone").await, @"only asks, but this would delete app.owners");
}

#[tokio::test]
async fn a_reservation_goes_with_its_lease_even_where_its_tenant_never_asks_again() {
    let world = World::new().await;
    world.register().await;
    world.sql("insert into gristmill.reservations values (7, gen_random_uuid(), 'monthly', 'gone', 10, 0)").await;

    let worker = world.start().await;
    world.wait_for("select not exists (select from gristmill.reservations)").await;
    worker.stop().await;
}
