//! `gristmill index`

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;
use sqlx::PgPool;

use crate::config::size;
use crate::db::app::{
    Building, Distance, IndexBuilder as Builder, IndexMeans, IndexWanted, Indexed, Plan, VectorIndex, VectorKind,
};
use crate::db::{self, app, backlog};

use super::failure::Failure;
use super::interruptions::Interruptions;
use super::session::{Asks, Session};
use super::show;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A row written beside an hnsw index costs its server some 4 ms, a row indexed afterwards 2 to 3. So for a large\n\
                  back-fill: `index drop`, `accept`, wait until it is through, `index build`; `index plan` says whether it is worth it.\n\
                  Nobody is locked out: indexes are built, rebuilt and dropped concurrently."
)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// What a back-fill costs with its vector index and without, and the statement that would build one
    Plan(Pipelines),
    /// Build the vector index, or build it anew
    Build(Build),
    /// Drop the vector indexes; prints the statements that bring them back
    Drop(Drop),
    /// Vector indexes there are, their size, and builds under way
    Status(Pipelines),
}

#[derive(Debug, clap::Args)]
struct Pipelines {
    /// Names of pipelines; default: all
    #[arg(value_name = "PIPELINE")]
    names: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Drop {
    /// The pipeline
    pipeline: String,
    /// Only print the statements
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct Build {
    /// The pipeline
    pipeline: String,
    /// The distance that searches order by
    #[arg(long, value_enum, default_value = "cosine")]
    distance: By,
    /// Neighbours of a node; default: pgvector's (16)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100))]
    m: Option<u32>,
    /// Candidates looked at when a node is added; default: pgvector's (64)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=1000))]
    ef_construction: Option<u32>,
    /// Memory that the server may take for it, as "512 MB"; default: what the graph needs, 2.1 GB at most
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Helpers of the server
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=64))]
    workers: u32,
    /// Build an index that is there anew
    #[arg(long)]
    rebuild: bool,
    /// Only print the statements
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Cosine,
    L2,
    /// Inner product
    Ip,
}

impl From<By> for Distance {
    fn from(by: By) -> Self {
        match by {
            By::Cosine => Self::Cosine,
            By::L2 => Self::L2,
            By::Ip => Self::InnerProduct,
        }
    }
}

/// Measured at 1,536 dimensions on Postgres 18 with pgvector 0.8.5: milliseconds of the server for a row that is written with an
/// hnsw index there, without one, and for one of an index that is built afterwards.
const BESIDE_AN_INDEX: f64 = 4.3;
const WITHOUT: f64 = 0.05;
const AFTERWARDS: f64 = 2.7;
const AFTERWARDS_HALF: f64 = 1.9;
const MEASURED_AT: f64 = 1_536.0;
/// Most memory that a build asks for unless told otherwise, and what it always has.
const MOST_MEMORY: u64 = 2 << 30;
const LEAST_MEMORY: u64 = 64 << 20;

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    match &args.what {
        What::Plan(pipelines) => plan(session, pipelines).await,
        What::Build(build) => build_one(session, build).await,
        What::Drop(drop) => drop_all(session, drop).await,
        What::Status(pipelines) => status(session, pipelines).await,
    }
}

#[derive(Debug, Serialize)]
struct Planned {
    pipeline: String,
    table: String,
    /// Of the catalogue: exact after the last analyse only.
    rows: i64,
    indexes: Vec<VectorIndex>,
    /// Those of them that an interrupted build left.
    leftovers: Vec<String>,
    /// Chunks that open jobs, and those that wait for `accept`, are likely to write.
    to_come: i64,
    seconds_with_index: f64,
    seconds_without: f64,
    advice: &'static str,
    /// Builds the index; none where pgvector has none for so many dimensions, and then why.
    sql: Option<String>,
    why_not: Option<String>,
}

async fn plan(session: &Session, pipelines: &Pipelines) -> Result<(), Failure> {
    let (_, pool, plans) = session.plans(&pipelines.names, Asks::Both).await?;
    let mut planned = Vec::new();
    for plan in plans {
        let mut connection = pool.acquire().await?;
        let Some(indexed) = app::indexed(&mut connection, &plan).await? else { continue };
        planned.push(plan_one(&pool, &plan, indexed).await?);
    }
    session.print(&planned, |planned| {
        let row = |one: &Planned| {
            let names: Vec<String> = one.indexes.iter().map(named).collect();
            vec![
                one.pipeline.clone(),
                one.rows.to_string(),
                if names.is_empty() { "none".to_owned() } else { names.join(", ") },
                one.to_come.to_string(),
                show::seconds(one.seconds_with_index),
                show::seconds(one.seconds_without),
                one.advice.to_owned(),
            ]
        };
        let header = ["pipeline", "vectors", "index", "to come", "beside an index", "index afterwards", "advice"];
        let table = show::table(&header, &["vectors", "to come"], planned.iter().map(row).collect());
        let sql = planned.iter().filter_map(|one| one.sql.as_ref().or(one.why_not.as_ref()));
        let sql: Vec<String> = sql.map(|sql| format!("{sql};")).collect();
        let left = |one: &Planned| {
            let (names, pipeline) = (one.leftovers.join(", "), &one.pipeline);
            format!(
                "\n{names} is left of an interrupted build, and every write keeps it up; `gristmill index build {pipeline}` removes it"
            )
        };
        let left: String = planned.iter().filter(|one| !one.leftovers.is_empty()).map(left).collect();
        format!("{table}\nTimes are the server's, estimated.{left}\n\n{}", sql.join("\n"))
    })
}

async fn plan_one(pool: &PgPool, plan: &Plan, indexed: Indexed) -> Result<Planned, Failure> {
    let expected = backlog::expected(pool, &plan.pipeline.name).await?;
    let whole = matches!(plan.target, app::TargetPlan::Row { .. });
    let each = if whole { 1.0 } else { expected.chunks_each.unwrap_or(1.0) };
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "an estimate")]
    let (to_come, rows) = ((expected.jobs as f64 * each) as i64, indexed.rows as f64);
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let (new, scale) = (to_come as f64, plan.model.dimensions as f64 / MEASURED_AT / 1_000.0);
    let afterwards = match plan.vector.kind {
        VectorKind::Vector => AFTERWARDS,
        VectorKind::HalfVector => AFTERWARDS_HALF,
    };
    let seconds_with_index = new * BESIDE_AN_INDEX * scale;
    let seconds_without = (new * WITHOUT + (rows + new) * afterwards) * scale;
    let sql = app::create_index(plan, &IndexWanted { distance: Distance::Cosine, m: None, ef_construction: None });
    let serves = indexed.indexes.iter().any(|index| index.valid);
    let advice = match (!serves, seconds_without < seconds_with_index) {
        (true, true) => "build it when the back-fill is through",
        (true, false) => "build it",
        (false, true) => "drop it, build it anew when the back-fill is through",
        (false, false) => "keep it",
    };
    let (sql, why_not) = match sql {
        Ok(sql) => (Some(sql), None),
        Err(why) => (None, Some(why)),
    };
    Ok(Planned {
        pipeline: plan.pipeline.name.clone(),
        leftovers: names(&indexed.leftovers(plan)),
        table: indexed.table,
        rows: indexed.rows,
        indexes: indexed.indexes,
        to_come,
        seconds_with_index,
        seconds_without,
        advice: if sql.is_some() { advice } else { "none is possible" },
        sql,
        why_not,
    })
}

fn named(index: &VectorIndex) -> String {
    let invalid = if index.valid { "" } else { ", invalid" };
    format!("{} ({}, {} MB{invalid})", index.name, index.method, index.bytes / 1_000_000)
}

fn names(indexes: &[&VectorIndex]) -> Vec<String> {
    indexes.iter().map(|index| index.name.clone()).collect()
}

fn removed(leftovers: &[String]) -> String {
    leftovers.iter().map(|name| format!("removed {name}, which an interrupted build had left\n")).collect()
}

#[derive(Debug, Serialize)]
struct Built {
    pipeline: String,
    /// What was run, or would be; empty where the index is there.
    statements: Vec<String>,
    /// What interrupted builds had left; these statements come first.
    leftovers: Vec<String>,
    /// The index that was there.
    found: Option<String>,
    dry_run: bool,
    seconds: f64,
}

async fn build_one(session: &Session, build: &Build) -> Result<(), Failure> {
    // pgvector's own rule, which it tells only when the build has begun: https://github.com/pgvector/pgvector#index-options
    let (m, candidates) = (build.m.unwrap_or(16), build.ef_construction.unwrap_or(64));
    if candidates < 2 * m {
        let why = format!("--ef-construction is {candidates}, and pgvector asks for at least twice --m, which is {m}");
        return Err(Failure::Usage(why));
    }
    let (_, pool, plan) = session.plan(&build.pipeline, Asks::Both).await?;
    let (indexed, builder) = target_of(&pool, &plan, !build.dry_run).await?;
    let wanted = IndexWanted { distance: build.distance.into(), m: build.m, ef_construction: build.ef_construction };
    let (found, statements) = to_build(&plan, &indexed, &wanted, build.rebuild)?;
    let leftovers = names(&indexed.leftovers(&plan));
    let started = Instant::now();
    if let Some(mut builder) = builder {
        let memory = build.memory.unwrap_or_else(|| graph(&plan, &indexed)).max(LEAST_MEMORY);
        let memory = i64::try_from(memory).unwrap_or(i64::MAX).max(indexed.memory);
        let means = IndexMeans { memory, workers: build.workers };
        let watched = std::io::stderr().is_terminal() && !session.json;
        if run_watched(&pool, &plan, &mut builder, means, &statements, watched).await? == End::Interrupted {
            // A writer may hold it up, and who interrupts it again does not wait.
            let mut again = Interruptions::listen()?;
            tokio::select! {
                cleared = clear(&plan, &mut builder, means) => cleared?,
                () = again.next() => return Err(Failure::Failed(WHAT_IS_LEFT.to_owned())),
            }
            return Err(Failure::Failed("interrupted; nothing is left of the build".to_owned()));
        }
        builder.leave().await;
    }
    let seconds = started.elapsed().as_secs_f64();
    let pipeline = plan.pipeline.name.clone();
    let built = Built { pipeline, statements, leftovers, found, dry_run: build.dry_run, seconds };
    session.print(&built, |built| match &built.found {
        _ if built.dry_run && !built.statements.is_empty() => lines(&built.statements),
        Some(found) if built.statements.len() == built.leftovers.len() => {
            format!("{}{found} is there already; --rebuild builds it anew", removed(&built.leftovers))
        }
        _ => format!("{}built in {}", removed(&built.leftovers), show::seconds(built.seconds)),
    })
}

const WHAT_IS_LEFT: &str = "interrupted; `gristmill index status` shows what is left";

/// Drops what an interrupted build has left just now.
async fn clear(plan: &Plan, builder: &mut Builder, means: IndexMeans) -> Result<(), Failure> {
    let Some(indexed) = app::indexed(&mut builder.connection, plan).await? else { return Ok(()) };
    // Somebody else's, begun meanwhile: what is invalid may be theirs.
    if !indexed.building.is_empty() {
        return Err(Failure::Failed(WHAT_IS_LEFT.to_owned()));
    }
    let statements: Vec<String> = indexed.leftovers(plan).into_iter().map(VectorIndex::drop).collect();
    Ok(app::run_index(&mut builder.connection, means, &statements).await?)
}

fn lines(statements: &[String]) -> String {
    statements.iter().map(|sql| format!("{sql};")).collect::<Vec<_>>().join("\n")
}

/// The target, where an index can be built on it or dropped beside its readers and writers, and who may do so.
async fn target_of(pool: &PgPool, plan: &Plan, run: bool) -> Result<(Indexed, Option<Builder>), Failure> {
    let name = &plan.pipeline.name;
    // Locked before it is looked at: what a build makes looks like what one has left.
    let builder = match app::index_table(plan).filter(|_| run) {
        Some(table) => Builder::enter(db::connect_beside(pool).await?, table).await?,
        None => None,
    };
    let indexed = app::indexed(&mut *pool.acquire().await?, plan).await?;
    let indexed = indexed.ok_or_else(|| Failure::Failed(format!("pipeline {name} makes no vectors")))?;
    if indexed.partitioned {
        return Err(Failure::Failed(format!(
            "{} is partitioned, and Postgres builds no index on such a table concurrently: build one on each partition \
             (`gristmill index plan {name}` prints the statement), then one `on only` the table, and attach them",
            indexed.table
        )));
    }
    match indexed.building.first() {
        Some(building) if run => Err(Failure::Failed(format!(
            "a build of {} is under way; `gristmill index status` shows it",
            building.of()
        ))),
        None if run && builder.is_none() => Err(Failure::Failed(format!(
            "a build or drop of an index of {} is under way; `gristmill index status` shows it",
            indexed.table
        ))),
        _ => Ok((indexed, builder)),
    }
}

/// What is to be run, and the index that serves already.
fn to_build(
    plan: &Plan,
    indexed: &Indexed,
    wanted: &IndexWanted,
    rebuild: bool,
) -> Result<(Option<String>, Vec<String>), Failure> {
    let sql = app::create_index(plan, wanted).map_err(Failure::Failed)?;
    // `(embedding vector_cosine_ops)`, whoever made it.
    let serves = |index: &&VectorIndex| index.definition.contains(&format!("_{}_ops", wanted.distance.word()));
    let leftovers = indexed.leftovers(plan).into_iter().map(VectorIndex::drop);
    Ok(match indexed.indexes.iter().filter(|index| index.valid).find(serves) {
        Some(found) if rebuild => (Some(found.name.clone()), leftovers.chain([found.rebuild()]).collect()),
        Some(found) => (Some(found.name.clone()), leftovers.collect()),
        None => (None, leftovers.chain([sql]).collect()),
    })
}

/// What pgvector's graph needs while it is built: the vectors, and some 300 bytes of neighbours each.
fn graph(plan: &Plan, indexed: &Indexed) -> u64 {
    let width = match plan.vector.kind {
        VectorKind::Vector => 4,
        VectorKind::HalfVector => 2,
    };
    let each = u64::try_from(plan.model.dimensions * width).unwrap_or(u64::MAX).saturating_add(300);
    each.saturating_mul(u64::try_from(indexed.rows).unwrap_or(0)).saturating_mul(5).div_euclid(4).min(MOST_MEMORY)
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Done,
    Interrupted,
}

/// Runs them, and shows how far they are. The server would go on with them after an interrupted command: it is told not to.
async fn run_watched(
    pool: &PgPool,
    plan: &Plan,
    builder: &mut Builder,
    means: IndexMeans,
    statements: &[String],
    watched: bool,
) -> Result<End, Failure> {
    let mut interruptions = Interruptions::listen()?;
    let mut interrupted = false;
    let (backend, table) = (builder.backend, builder.table.clone());
    let mut work = std::pin::pin!(app::run_index(&mut builder.connection, means, statements));
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = interruptions.next() => {
                if interrupted {
                    return Err(Failure::Failed(WHAT_IS_LEFT.to_owned()));
                }
                interrupted = true;
                app::cancel_index(pool, backend).await?;
            }
            () = tokio::time::sleep(Duration::from_secs(1)), if interrupted || watched => {
                if interrupted {
                    // The first may have come between two statements.
                    app::cancel_index(pool, backend).await?;
                    continue;
                }
                // Where it cannot be seen, it is built all the same.
                let Ok(mut connection) = pool.acquire().await else { continue };
                let Ok(building) = app::building(&mut connection, &table).await else { continue };
                for one in building {
                    eprint!("\r\x1b[K{}", progress(&one));
                }
            }
        }
    };
    if watched {
        eprint!("\r\x1b[K");
    }
    match done {
        Err(_) if interrupted => Ok(End::Interrupted),
        Err(error) if db::is_forbidden(&error) => Err(Failure::Failed(format!(
            "pipeline {}: only the table's owner may do this ({}); as its owner, run\n{}",
            plan.pipeline.name,
            db::describe(&error),
            lines(statements)
        ))),
        done => Ok(done.map(|()| End::Done)?),
    }
}

fn progress(building: &Building) -> String {
    let Building { index, phase, done, total } = building;
    let percent = if *total > 0 { format!(", {} %", done * 100 / total) } else { String::new() };
    format!("{index}: {phase}{percent}")
}

#[derive(Debug, Serialize)]
struct Dropped {
    pipeline: String,
    /// What was run, or would be.
    statements: Vec<String>,
    /// What interrupted builds had left.
    leftovers: Vec<String>,
    /// What brings the indexes back.
    restore: Vec<String>,
    dry_run: bool,
}

async fn drop_all(session: &Session, drop: &Drop) -> Result<(), Failure> {
    let (_, pool, plan) = session.plan(&drop.pipeline, Asks::Both).await?;
    let (indexed, builder) = target_of(&pool, &plan, !drop.dry_run).await?;
    let statements: Vec<String> = indexed.indexes.iter().map(VectorIndex::drop).collect();
    let leftovers = names(&indexed.leftovers(&plan));
    let whole = indexed.indexes.iter().filter(|index| !index.is_transient());
    let restore: Vec<String> = whole.map(VectorIndex::restore).collect();
    if let Some(mut builder) = builder {
        let means = IndexMeans { memory: indexed.memory, workers: 0 };
        if run_watched(&pool, &plan, &mut builder, means, &statements, false).await? == End::Interrupted {
            return Err(Failure::Failed(WHAT_IS_LEFT.to_owned()));
        }
        builder.leave().await;
    }
    let pipeline = plan.pipeline.name.clone();
    let dropped = Dropped { pipeline, statements, leftovers, restore, dry_run: drop.dry_run };
    session.print(&dropped, |dropped| {
        if dropped.statements.is_empty() {
            return format!("{} has no vector index", dropped.pipeline);
        }
        let did = if dropped.dry_run {
            lines(&dropped.statements)
        } else {
            format!("{}dropped", removed(&dropped.leftovers))
        };
        format!("{did}\n-- what brings them back:\n{}", lines(&dropped.restore))
    })
}

#[derive(Debug, Serialize)]
struct Standing {
    pipeline: String,
    table: String,
    rows: i64,
    indexes: Vec<VectorIndex>,
    building: Vec<Building>,
}

async fn status(session: &Session, pipelines: &Pipelines) -> Result<(), Failure> {
    let (_, pool, plans) = session.plans(&pipelines.names, Asks::Both).await?;
    let mut standing = Vec::new();
    for plan in plans {
        let mut connection = pool.acquire().await?;
        let Some(indexed) = app::indexed(&mut connection, &plan).await? else { continue };
        let Indexed { table, rows, indexes, building, .. } = indexed;
        standing.push(Standing { pipeline: plan.pipeline.name.clone(), table, rows, indexes, building });
    }
    session.print(&standing, |standing| {
        let mut lines = Vec::new();
        for one in standing {
            lines.push(format!("{}: {} vectors in {}", one.pipeline, one.rows, one.table));
            lines.extend(one.indexes.iter().map(|index| format!("  {}", named(index))));
            lines.extend(one.building.iter().map(|building| format!("  building {}", progress(building))));
            if one.indexes.is_empty() && one.building.is_empty() {
                lines.push("  no vector index".to_owned());
            }
        }
        lines.join("\n")
    })
}
