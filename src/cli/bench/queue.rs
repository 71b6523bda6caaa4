//! The queue alone: jobs that do nothing, claims from a large backlog, and tenants beside each other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::config::{Database, Secret};
use crate::db;
use crate::db::bench::Row;
use crate::db::claims::{self, Claimer, Cursor, Share};
use crate::domain::OwnerId;

use super::super::failure::Failure;
use super::Bed;
use super::end_to_end::DIMENSIONS;
use super::figure::{Figure, Target, median};
use super::ground::Field;
use super::provider::Knobs;
use super::rig::{self, Rig, real};
use super::texts;
use super::worker::{PIPELINE, Setup};

/// Jobs of one claim by hand, as many as the floor is asked for.
const BATCH: i64 = 500;

/// Rows without a text: claimed, loaded, skipped, finished under their lease.
pub(super) async fn nothing_to_do(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let (mut rates, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..bed.rounds {
        let field = bed.ground.field(DIMENSIONS).await?;
        db::bench::register(&field.pool, PIPELINE).await?;
        rig::lay(&field, &rig::rows(vec![String::new(); bed.rows])).await?;
        let mut connection = field.pool.acquire().await?;
        db::bench::keep_plans(&mut connection).await?;
        let began = Instant::now();
        let mut claimed = db::bench::fused(&mut connection, PIPELINE, &[], BATCH).await?;
        while !claimed.is_empty() {
            claimed = db::bench::fused(&mut connection, PIPELINE, &claimed, BATCH).await?;
        }
        floors.push(real(bed.rows) / began.elapsed().as_secs_f64());
        drop(connection);
        field.leave().await?;

        let mut rig = Rig::build(bed, &Setup { status: false, ..Setup::of(bed.slots) }, Knobs::default()).await?;
        rig.lay(&rig::rows(vec![String::new(); bed.rows])).await?;
        rates.push(real(bed.rows) / rig.go(0).await?);
        rig.leave().await?;
    }
    let figure = Figure::beside("no-op: jobs without a text", "jobs/s", &rates, &floors);
    Ok(vec![figure.held_to(Target::RatioAtLeast(0.8))])
}

/// Claims of 500 jobs: from small backlogs, from a large one, and from it again while an old transaction is open, so that what the
/// claims before it left in the indexes has to be stepped over.
pub(super) async fn backlog(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let jobs = bed.backlog;
    let tenants = (jobs / 100).max(1);
    let mut few = Vec::new();
    for _ in 0..bed.rounds {
        few.extend(few_waiting(bed).await?);
    }
    let large = bed.ground.field(DIMENSIONS).await?;
    bed.say(&format!("  piling up {jobs} jobs of {tenants} tenants"));
    pile(&large.pool, jobs, tenants).await?;
    let claims = CLAIMS * bed.rounds;
    let many = claim_times(&large, claims).await?;
    let mut old = large.pool.acquire().await?;
    db::bench::hold_horizon(&mut old).await?;
    let held = claim_times(&large, claims).await?;
    // The transaction goes with its connection.
    old.close().await?;
    large.leave().await?;
    for _ in 0..bed.rounds {
        few.extend(few_waiting(bed).await?);
    }
    let figure = |name: &str, times: &[f64]| {
        Figure::beside(name, "ms", &[median(times)], &[median(&few)]).held_to(Target::RatioAtMost(1.5))
    };
    Ok(vec![
        figure(&format!("backlog: a claim with {jobs} jobs waiting"), &many),
        figure("backlog: and with an old transaction open", &held),
    ])
}

/// Claims from a small backlog, made for it.
async fn few_waiting(bed: &Bed) -> Result<Vec<f64>, Failure> {
    let small = bed.ground.field(DIMENSIONS).await?;
    pile(&small.pool, 10_000, 10).await?;
    let times = claim_times(&small, CLAIMS).await?;
    small.leave().await?;
    Ok(times)
}

async fn pile(pool: &PgPool, jobs: i64, tenants: i64) -> Result<(), Failure> {
    db::bench::register(pool, PIPELINE).await?;
    db::bench::pile(pool, PIPELINE, jobs, tenants).await?;
    Ok(db::bench::settle(pool).await?)
}

/// Claims from one small backlog: they leave half of it.
const CLAIMS: usize = 10;
const TENANTS: i64 = 100;

/// Milliseconds of each claim, its look for tenants included, as a worker makes them.
async fn claim_times(field: &Field, claims: usize) -> Result<Vec<f64>, Failure> {
    let settings = Database { url: Secret::new(&field.url), connections: 8 };
    let kept = db::connect_kept(&field.pool, &settings).await?;
    let pool = kept.as_ref().map_or(&field.pool, |kept| &kept.claims);
    let by =
        Claimer { pipeline: PIPELINE, generation: "by hand", owner: OwnerId::fresh(), lease: Duration::from_secs(30) };
    let mut cursors: HashMap<String, Cursor> = HashMap::new();
    let mut after: Option<String> = None;
    let mut times = Vec::new();
    for _ in 0..claims {
        let began = Instant::now();
        let mut tenants = claims::tenants(pool, PIPELINE, after.as_deref(), TENANTS).await?;
        if tenants.is_empty() {
            tenants = claims::tenants(pool, PIPELINE, None, TENANTS).await?;
        }
        after = tenants.last().cloned();
        let cursor = |tenant: &String| cursors.get(tenant).copied().unwrap_or(Cursor::START);
        let most = usize::try_from(BATCH).unwrap_or_default() / tenants.len().max(1);
        let share = |tenant: &String| Share { tenant: tenant.clone(), cursor: cursor(tenant), most };
        let ring: Vec<Share> = tenants.iter().map(share).collect();
        let claimed = claims::claim(pool, by, &ring, BATCH).await?;
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
        for one in claimed {
            cursors.insert(one.job.tenant.clone(), one.cursor);
        }
    }
    Ok(times)
}

/// Rows of the tenant that has many, and tenants that have one each, for every 1,000 rows of a run.
const MANY: usize = 10_000;
const OTHERS: usize = 50;

/// One tenant has a great many rows waiting; others insert one each.
pub(super) async fn fairness(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let thousands = bed.rows.div_ceil(1_000);
    let (many, others) = (thousands * MANY, thousands * OTHERS);
    let mut rig = Rig::build(bed, &Setup { dimensions: 64, ..Setup::of(bed.slots) }, Knobs::default()).await?;
    let first = beside(&rig, many, 100).await?;
    let one = until_done(&mut rig, first, 1).await?;
    let all = until_done(&mut rig, first + 1, others).await?;
    leave(bed, rig).await?;
    Ok(vec![
        Figure::of(&format!("fairness: one row beside {many} of another tenant"), "s", &[one])
            .held_to(Target::AtMost(2.0)),
        Figure::of(&format!("fairness: {others} tenants with one row each"), "s", &[all]).held_to(Target::AtMost(5.0)),
        provider_bound(bed).await?,
    ])
}

/// Documents of the tenant that has many, more than are in hand at once, and fewer in a small round.
const DOCUMENTS: usize = 600;
const FEW_DOCUMENTS: usize = 150;
const DOCUMENT_BYTES: usize = 60_000;

/// Where the provider is the limit, and not the worker: 512 texts a second, of which a document has some thirty.
async fn provider_bound(bed: &Bed) -> Result<Figure, Failure> {
    let documents = if bed.quick { FEW_DOCUMENTS } else { DOCUMENTS };
    let setup = Setup { dimensions: 64, concurrency: 4, inputs: 32, ..Setup::of(bed.slots) };
    let mut rig = Rig::build(bed, &setup, Knobs::slow(Duration::from_millis(250))).await?;
    let first = beside(&rig, documents, DOCUMENT_BYTES).await?;
    let one = until_done(&mut rig, first, 1).await?;
    leave(bed, rig).await?;
    let name = format!("fairness: one row beside {documents} documents, provider-bound");
    Ok(Figure::of(&name, "s", &[one]).held_to(Target::AtMost(2.0)))
}

/// Lays out the rows of the tenant that has many, and lets the worker begin; says what number the next row has.
async fn beside(rig: &Rig, many: usize, bytes: usize) -> Result<i64, Failure> {
    let of_one = |content: String| Row { id: 0, tenant: "many".to_owned(), content, path: None };
    let rows: Vec<Row> = (1..).zip(texts::texts(many, bytes)).map(|(id, text)| Row { id, ..of_one(text) }).collect();
    rig.lay(&rows).await?;
    db::pipelines::resume(&rig.field.pool, PIPELINE).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(i64::try_from(many).unwrap_or(i64::MAX) + 1)
}

async fn leave(bed: &Bed, rig: Rig) -> Result<(), Failure> {
    let left = db::bench::is_unfinished(&rig.field.pool).await?;
    rig.leave().await?;
    if !left {
        bed.say("  the tenant with many rows was through before the others: these figures say little");
    }
    Ok(())
}

/// Inserts rows of so many tenants; seconds until each has its vector.
async fn until_done(rig: &mut Rig, first: i64, tenants: usize) -> Result<f64, Failure> {
    let rows: Vec<Row> = (first..)
        .zip(texts::texts(tenants, 100))
        .map(|(id, content)| Row { id, tenant: format!("one {id}"), content, path: None })
        .collect();
    let began = Instant::now();
    db::bench::insert(&mut *rig.field.pool.acquire().await?, &rows).await?;
    db::bench::open_from(&rig.field.pool, PIPELINE, first).await?;
    while db::bench::vectors_from(&rig.field.pool, first).await? < i64::try_from(tenants).unwrap_or(i64::MAX) {
        rig.check(began)?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(began.elapsed().as_secs_f64())
}
