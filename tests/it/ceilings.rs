//! Ceilings of money: what is counted, who waits, and that nothing more is spent.

use gristmill::db::spending::{self, Difference};
use insta::assert_snapshot;
use rust_decimal::Decimal;
use uuid::Uuid;

use crate::fake_openai::{Answer, FakeOpenAi, Options, tokens_of};
use crate::world::{DIMENSIONS, World};

/// Each text is five tokens, 0.0000001 USD.
const TOKENS: usize = 5;

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

/// A world of that vendor with a ceiling, and so many texts in a request at most.
async fn world_of(vendor: &FakeOpenAi, ceiling: &str, inputs: usize) -> World {
    let world = World::with_vendor(vendor).await;
    let world = world.change("longest = 8000", &format!("longest = 8000\ninputs = {inputs}"));
    world.change(
        "[pipelines.documents.source]",
        &format!("[pipelines.documents.ceiling]\n{ceiling}\n[pipelines.documents.source]"),
    )
}

async fn grains(world: &World, user: u128, count: i64) {
    assert_eq!(tokens_of("Grain 11."), TOKENS);
    sqlx::query("insert into public.documents (user_id, name, content) select $1, 'grain', 'Grain ' || n || '.' from generate_series(11, 10 + $2) n")
        .bind(Uuid::from_u128(user))
        .bind(count)
        .execute(&world.pool)
        .await
        .unwrap();
}

/// What is counted under the ceiling, and what the calls did cost.
async fn money(world: &World) -> String {
    world
        .value::<String>(
            "select (select string_agg(concat_ws(' ', nullif(scope, ''), usd::float8), ', ' order by scope) from gristmill.spending) \
             || ' of calls ' || (select sum(cost)::float8 from gristmill.provider_calls)",
        )
        .await
}

#[tokio::test]
async fn a_pipeline_spends_no_more_than_its_ceiling_of_a_day_and_the_rest_waits_for_the_next() {
    let vendor = vendor();
    let world = world_of(&vendor, "usd_per_day = 0.000002", 8).await;
    world.register().await;
    grains(&world, 1, 50).await;
    // Two workers ask at the same time.
    let (one, other) = (world.start().await, world.start().await);
    one.idle().await;
    other.idle().await;
    one.stop().await;
    other.stop().await;

    // Twenty texts are its whole, of requests of eight.
    let paid = vendor.paid_texts().len();
    assert_eq!(paid, 20);
    assert_eq!(world.states().await, format!("{paid} completed\n{} waiting ceiling", 50 - paid));
    let usd = f64::from(u32::try_from(paid).unwrap()) / 1e7;
    let money = money(&world).await;
    assert!(money == format!("{usd:e} of calls {usd:e}").replace("e-6", "e-06").replace("e-7", "e-07"), "{money}");
    let due = "select bool_and(run_at >= midnight - interval '1 minute' and run_at < midnight + interval '1 hour') \
        from gristmill.embedding_jobs, (select (date_trunc('day', now() at time zone 'UTC') + interval '1 day') at time zone 'UTC') as next (midnight) \
        where state = 'waiting'";
    assert!(world.value::<bool>(due).await);

    // A new day.
    world.sql("update gristmill.spending set day = day - 1; update gristmill.embedding_jobs set run_at = now() where state = 'waiting'").await;
    world.work().await;
    assert_eq!(vendor.paid_texts().len(), 40);
}

#[tokio::test]
async fn what_was_spent_while_there_was_no_ceiling_counts() {
    let vendor = vendor();
    let mut world = world_of(&vendor, "usd_per_month = 1000", 8).await;
    world.register().await;
    let [before, after] = ["usd_per_month = 0.000002", "tenant_usd_per_month = 0.0000012"];
    let with = world.toml.clone();
    world.toml = with.replace("[pipelines.documents.ceiling]\nusd_per_month = 1000\n", "");
    grains(&world, 1, 10).await;
    grains(&world, 2, 5).await;
    world.work().await;
    assert_eq!(
        (vendor.paid_texts().len(), world.value::<i64>("select count(*) from gristmill.spending").await),
        (15, 0)
    );

    // Of twenty, five are left: for the pipeline, and then, where there is room again, two for the first tenant.
    world.toml = with.replace("usd_per_month = 1000", before);
    grains(&world, 1, 10).await;
    world.work().await;
    assert_eq!(vendor.paid_texts().len(), 20);
    world.toml = with.replace("usd_per_month = 1000", &format!("{after}\nusd_per_month = 1000"));
    world.sql("update gristmill.embedding_jobs set run_at = now() where state = 'waiting'").await;
    grains(&world, 2, 10).await;
    world.work().await;
    let told = "select string_agg(concat_ws(' ', right(scope, 1), round(usd * 10000000)), ', ' order by scope) from gristmill.spending";
    assert_eq!(world.value::<String>(told).await, " 27, 1 15, 2 12");

    // What is paid while there is none counts once there is one again; what is reserved just then, beside it.
    let none = with.replace("[pipelines.documents.ceiling]\nusd_per_month = 1000\n", "");
    world.toml = none;
    world.sql("update gristmill.embedding_jobs set run_at = now() where state = 'waiting'").await;
    world.work().await;
    assert_eq!(vendor.paid_texts().len(), 35);
    world.sql("update gristmill.spending set reserved = 0.0000001, reserved_at = now() where scope like '%2'").await;
    world.toml = with.replace("usd_per_month = 1000", &format!("{after}\nusd_per_month = 1000"));
    grains(&world, 2, 1).await;
    world.work().await;
    assert_eq!((vendor.paid_texts().len(), world.value::<String>(told).await), (35, " 35, 1 15, 2 16".to_owned()));
}

#[tokio::test]
async fn a_tenant_that_has_spent_its_part_waits_alone() {
    let vendor = vendor();
    let world = world_of(&vendor, "tenant_usd_per_month = 0.00000031", 8).await;
    world.register().await;
    grains(&world, 1, 5).await;
    grains(&world, 2, 2).await;
    world.work().await;

    let states = "select concat_ws(' ', right(tenant, 1), count(*), state, error_kind) from gristmill.embedding_jobs group by tenant, state, error_kind order by 1";
    assert_snapshot!(world.list(states).await.join("\n"), @r#"
    1 2 waiting ceiling
    1 3 completed
    2 2 completed
    "#);
    let reason = "select distinct reason from gristmill.embedding_jobs where state = 'waiting'";
    assert_snapshot!(world.value::<String>(reason).await, @"a ceiling is reached: tenant_usd_per_month of pipeline documents: 0.0000003 USD are spent, and 0.0000001 more would be too much");
    assert_eq!(vendor.paid_texts().len(), 5);
    assert_snapshot!(money(&world).await, @"5e-07, tenant 00000000-0000-0000-0000-000000000001 3e-07, tenant 00000000-0000-0000-0000-000000000002 2e-07 of calls 5e-07");
}

#[tokio::test]
async fn what_was_not_paid_is_given_back_and_what_may_have_been_is_not() {
    for (answer, counted) in [(Answer::status(503), "1e-07"), (Answer::hang_up(), "2e-07")] {
        let vendor = vendor();
        let world = world_of(&vendor, "usd_per_day = 1", 8).await;
        world.register().await;
        vendor.script([answer]);
        grains(&world, 1, 1).await;
        world.work().await;
        assert_eq!(world.states().await, "1 completed");
        assert_eq!(money(&world).await, format!("{counted} of calls 1e-07"));
    }
}

#[tokio::test]
async fn what_only_calls_under_way_leave_no_room_for_is_asked_again_soon() {
    let vendor = vendor();
    let world = world_of(&vendor, "usd_per_day = 0.0000001", 1).await;
    world.register().await;
    // The first is not paid, which nobody knows while the second is refused.
    vendor.script([Answer::status(400)]);
    let gate = vendor.hold();
    grains(&world, 1, 2).await;
    let worker = world.start().await;
    world.wait_for("select count(*) = 1 from gristmill.embedding_jobs where state = 'waiting'").await;
    let reason = "select concat_ws(' | ', reason, run_at < now() + interval '10 seconds') from gristmill.embedding_jobs where state = 'waiting'";
    assert_snapshot!(world.value::<String>(reason).await, @"a ceiling is reached: usd_per_day of pipeline documents: 0 USD are spent, 0.0000001 reserved for calls under way, and 0.0000001 more would be too much | t");
    gate.open();
    worker.idle().await;
    worker.stop().await;
    assert_eq!(world.states().await, "1 completed\n1 failed refused");
    assert_snapshot!(money(&world).await, @"1e-07 of calls 1e-07");
}

#[tokio::test]
async fn what_a_dead_worker_has_reserved_is_waited_for_a_while_and_then_counts_as_spent() {
    let world = world_of(&vendor(), "usd_per_day = 0.0000001", 1).await;
    let ask = "select concat_ws(' ', spent::float8, reserved::float8, case when abs(seconds - extract(epoch from \
        date_trunc('day', now() at time zone 'UTC') + interval '1 day' - now() at time zone 'UTC')) < 1 then 'the day' else trunc(seconds::numeric, -1)::text end) \
        from gristmill.spend('p', 't', 1, 2, null, null, null)";
    let after = async |minutes: &str| {
        world.sql(&format!("update gristmill.spending set reserved_at = now() - interval '{minutes}'")).await;
        world.value::<String>(ask).await
    };
    world.sql("select gristmill.spend('p', 't', 1.5, 2, null, null, null)").await;
    assert_eq!(after("0 minutes").await, "0 1.5 0");
    assert_eq!(after("30 seconds").await, "0 1.5 30");
    assert_eq!(after("14 minutes").await, "0 1.5 60");
    assert_eq!(after("16 minutes").await, "1.5 0 the day");
    // What is asked for now does not wake it.
    world.sql("select gristmill.spend('p', 't', 0.1, 2, null, null, null)").await;
    assert_eq!(world.value::<String>("select concat_ws(' ', usd, reserved) from gristmill.spending").await, "1.6 0.1");
}

#[tokio::test]
async fn what_a_text_costs_beyond_every_ceiling_waits_unpaid() {
    let vendor = vendor();
    let world = world_of(&vendor, "usd_per_month = 0.00000001", 8).await;
    world.register().await;
    grains(&world, 1, 1).await;
    world.work().await;
    assert_eq!(world.states().await, "1 waiting ceiling");
    assert_eq!(vendor.requests(), 0);
    // A month's ceiling is nobody's fault: it may be waited for longer than a provider.
    world.sql("update gristmill.embedding_jobs set snoozed_since = now() - interval '20 days', run_at = now()").await;
    world.work().await;
    assert_eq!(world.states().await, "1 waiting ceiling");
}

#[tokio::test]
async fn what_is_asked_to_tell_a_bad_text_from_a_bad_provider_counts_as_well() {
    let vendor = vendor();
    let world = world_of(&vendor, "usd_per_day = 1", 1).await;
    world.register().await;
    vendor.script([Answer::status(400)]);
    grains(&world, 1, 1).await;
    world.work().await;

    assert_eq!(world.states().await, "1 failed refused");
    assert_snapshot!(money(&world).await, @"2e-07 of calls 2e-07");
}

#[tokio::test]
async fn what_is_put_right_while_somebody_else_spends_is_put_right_for_the_tenant_as_well() {
    let world = world_of(&vendor(), "usd_per_day = 100", 1).await;
    let spend = |usd: u8| format!("select gristmill.spend('p', 't', {usd}, 100, null, 100, null)");
    world.sql(&spend(10)).await;
    let mut other = world.pool.begin().await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(spend(5))).execute(&mut *other).await.unwrap();
    let difference = Difference {
        pipeline: "p".to_owned(),
        tenant: "t".to_owned(),
        day: world.value("select max(day) from gristmill.spending").await,
        reserved: Decimal::ONE,
        usd: Decimal::NEGATIVE_ONE,
    };
    let pool = world.pool.clone();
    let correcting = tokio::spawn(async move { spending::correct(&pool, &[difference]).await });
    world.wait_for("select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())").await;
    other.commit().await.unwrap();
    correcting.await.unwrap().unwrap();
    let counted =
        world.list("select concat_ws(' ', scope, usd, reserved) from gristmill.spending order by scope").await;
    assert_eq!(counted, [" 14 14", "tenant t 14 14"]);
}
