//! The index that makes search fast and writes slow: what there is on a pipeline's vectors, what it costs a back-fill, and how it
//! is built without locking anybody out.

use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use super::plan::{Plan, TargetPlan};
use super::quote;
use super::vector::VectorKind;

/// What distances an index serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    Cosine,
    L2,
    InnerProduct,
}

impl Distance {
    /// As pgvector's operator classes are named.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::L2 => "l2",
            Self::InnerProduct => "ip",
        }
    }
}

/// A vector index, as the catalogue knows it.
#[derive(Debug, Clone, Serialize)]
pub struct VectorIndex {
    pub name: String,
    /// Its name without a schema, unquoted.
    #[serde(skip)]
    pub relation: String,
    /// `hnsw` or `ivfflat`.
    pub method: String,
    pub definition: String,
    /// A build that broke off leaves one that costs writes and serves nobody.
    pub valid: bool,
    pub bytes: i64,
}

impl VectorIndex {
    /// The statement that builds it anew beside readers and writers.
    pub fn rebuild(&self) -> String {
        format!("reindex index concurrently {}", self.name)
    }

    /// The statement that drops it.
    pub fn drop(&self) -> String {
        format!("drop index concurrently {}", self.name)
    }

    /// The statement that brings it back as it was.
    pub fn restore(&self) -> String {
        self.definition.replacen("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1)
    }

    /// Whether a rebuild made it, or put it aside, for as long as it ran.
    pub fn is_transient(&self) -> bool {
        rebuilt(&self.relation).is_some()
    }
}

/// The index whose rebuild names another so; Postgres cuts it where the whole is too long for a name.
fn rebuilt(relation: &str) -> Option<&str> {
    let (base, suffix) = relation.rsplit_once("_cc")?;
    let number = suffix.strip_prefix("new").or_else(|| suffix.strip_prefix("old"))?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(base)
}

/// A target and its vector indexes.
#[derive(Debug, Clone)]
pub struct Indexed {
    /// The table, quoted.
    pub table: String,
    /// Of the catalogue: exact after the last analyse only.
    pub rows: i64,
    pub partitioned: bool,
    pub indexes: Vec<VectorIndex>,
    /// `maintenance_work_mem` as it is set for this role, in bytes.
    pub memory: i64,
    /// Builds of its indexes that go on.
    pub building: Vec<Building>,
}

impl Indexed {
    /// What interrupted builds left: invalid, and ours by name or of the rebuild of an index that is here. None while a build goes
    /// on, whose index looks the same.
    pub fn leftovers(&self, plan: &Plan) -> Vec<&VectorIndex> {
        let stem = index_stem(plan);
        let of_a_rebuild = |left: &VectorIndex| {
            rebuilt(&left.relation).is_some_and(|base| {
                // A character that does not fit is cut whole.
                let cut = left.relation.len() + 4 > LONGEST_NAME;
                let mut others = self.indexes.iter().filter(|other| other.valid);
                others.any(|other| other.relation == base || cut && other.relation.starts_with(base))
            })
        };
        let left = self.indexes.iter().filter(|index| !index.valid && self.building.is_empty());
        left.filter(|index| index.relation.starts_with(&stem) || of_a_rebuild(index)).collect()
    }
}

/// Bytes of a name in Postgres.
const LONGEST_NAME: usize = 63;

/// How far a build of an index is.
#[derive(Debug, Clone, Serialize)]
pub struct Building {
    pub index: String,
    pub phase: String,
    /// Blocks or tuples of the phase, whichever it counts.
    pub done: i64,
    pub total: i64,
}

impl Building {
    /// The index as it is called when nobody builds it.
    pub fn of(&self) -> &str {
        rebuilt(&self.index).unwrap_or(&self.index)
    }
}

/// The table that holds a pipeline's vectors, quoted.
pub fn table_of(plan: &Plan) -> Option<&str> {
    match &plan.target {
        TargetPlan::Chunks { table, .. } => Some(table),
        TargetPlan::Row { .. } => Some(&plan.source),
        TargetPlan::None => None,
    }
}

/// The target as it is; none of a pipeline that makes no vectors.
pub async fn indexed(connection: &mut PgConnection, plan: &Plan) -> sqlx::Result<Option<Indexed>> {
    let (Some(table), Some(vector)) = (table_of(plan), plan.target.vector()) else { return Ok(None) };
    let seen = sqlx::query!(
        r#"select c.reltuples::float8 as "rows!", c.relkind = 'p' as "partitioned!",
                  pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem')) as "memory!"
           from pg_catalog.pg_class c where c.oid = $1::text::regclass"#,
        table,
    )
    .fetch_one(&mut *connection)
    .await?;
    // By what they depend on: an index on an expression over the column names no column.
    let indexes = sqlx::query_as!(
        VectorIndex,
        r#"select distinct pg_catalog.format('%I.%I', n.nspname, c.relname) as "name!", c.relname::text as "relation!", m.amname::text as "method!",
                  pg_catalog.pg_get_indexdef(c.oid) as "definition!", (i.indisvalid and i.indisready) as "valid!",
                  pg_catalog.pg_relation_size(c.oid) as "bytes!"
           from pg_catalog.pg_index i
           join pg_catalog.pg_class c on c.oid = i.indexrelid
           join pg_catalog.pg_namespace n on n.oid = c.relnamespace
           join pg_catalog.pg_am m on m.oid = c.relam
           join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attname = $2
           join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid
                and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = i.indrelid and d.refobjsubid = a.attnum
           where i.indrelid = $1::text::regclass and m.amname in ('hnsw', 'ivfflat') order by 1"#,
        table,
        vector.name,
    )
    .fetch_all(&mut *connection)
    .await?;
    #[expect(clippy::cast_possible_truncation, reason = "an estimate of rows")]
    let mut rows = seen.rows as i64;
    // Never analysed: nobody knows.
    if rows < 0 {
        let count = format!("select count(*) from {table}");
        rows = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut *connection).await?;
    }
    let building = building(connection, table).await?;
    let (table, partitioned, memory) = (table.to_owned(), seen.partitioned, seen.memory);
    Ok(Some(Indexed { table, rows, partitioned, indexes, memory, building }))
}

/// What index to build.
#[derive(Debug, Clone)]
pub struct IndexWanted {
    pub distance: Distance,
    /// Neighbours of a node, and how many are looked at when one is added; none: pgvector's own.
    pub m: Option<u32>,
    pub ef_construction: Option<u32>,
}

/// How the names of a pipeline's indexes of ours begin, unquoted.
pub fn index_stem(plan: &Plan) -> String {
    let stem: String = plan.pipeline.name.chars().take(LONGEST_NAME - "gristmill__hnsw_cosine".len()).collect();
    format!("gristmill_{stem}_hnsw_")
}

/// The name an index of ours has, unquoted: of a pipeline's vectors, for a distance.
fn index_name(plan: &Plan, wanted: &IndexWanted) -> String {
    format!("{}{}", index_stem(plan), wanted.distance.word())
}

/// The statement that builds it beside readers and writers.
///
/// # Errors
/// pgvector has no index for so many dimensions.
pub fn create(plan: &Plan, wanted: &IndexWanted) -> Result<String, String> {
    let (Some(table), Some(vector)) = (table_of(plan), plan.target.vector()) else {
        return Err("the pipeline makes no vectors".to_owned());
    };
    let dimensions = plan.model.dimensions;
    // pgvector's limits: https://github.com/pgvector/pgvector#hnsw
    let (stored, most) = match plan.vector.kind {
        VectorKind::Vector if dimensions <= 2_000 => ("vector", 2_000),
        VectorKind::Vector | VectorKind::HalfVector => ("halfvec", 4_000),
    };
    if dimensions > most {
        return Err(format!("{dimensions} dimensions are more than an hnsw index takes (halfvec: {most})"));
    }
    let schema = quote(&plan.vector.schema);
    let as_it_is = vector.type_name == stored && vector.modifier > 0;
    let indexed = if as_it_is { vector.sql() } else { format!("({}::{schema}.{stored}({dimensions}))", vector.sql()) };
    // Where the column holds vectors of any length, those of other models are not this index's.
    let only = if vector.modifier > 0 {
        String::new()
    } else {
        format!(" where {schema}.vector_dims({}) = {dimensions}", vector.sql())
    };
    let options: Vec<String> = [("m", wanted.m), ("ef_construction", wanted.ef_construction)]
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} = {}", value?)))
        .collect();
    let options = if options.is_empty() { String::new() } else { format!(" with ({})", options.join(", ")) };
    Ok(format!(
        "create index concurrently {} on {table} using hnsw ({indexed} {schema}.{stored}_{}_ops){options}{only}",
        quote(&index_name(plan, wanted)),
        wanted.distance.word(),
    ))
}

/// Memory for the graph in bytes, and helpers, for a session that builds an index.
#[derive(Debug, Clone, Copy)]
pub struct Means {
    pub memory: i64,
    pub workers: u32,
}

/// Runs statements one by one, each a transaction of its own.
///
/// # Errors
/// This role does not own the table; the database is away.
pub async fn run_each(connection: &mut PgConnection, means: Means, statements: &[String]) -> sqlx::Result<()> {
    let settings = [
        // A build of hours is no runaway statement.
        "set statement_timeout = 0".to_owned(),
        "set lock_timeout = 0".to_owned(),
        format!("set maintenance_work_mem = '{}kB'", means.memory / 1024),
        format!("set max_parallel_maintenance_workers = {}", means.workers),
    ];
    for statement in settings.iter().chain(statements) {
        sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *connection).await?;
    }
    Ok(())
}

/// The connection that builds and drops a table's indexes, alone among ours: its lock goes with it, however the command ends. Of the
/// table, not of one index: Postgres works on one of them at a time, and two that wait for each other deadlock.
#[derive(Debug)]
pub struct Builder {
    pub connection: PgConnection,
    /// The server's process, for [`cancel`].
    pub backend: i32,
    pub table: String,
}

impl Builder {
    /// None where another has the table.
    ///
    /// # Errors
    /// The database is away.
    pub async fn enter(mut connection: PgConnection, table: &str) -> sqlx::Result<Option<Self>> {
        let seen = sqlx::query!(
            r#"select pg_catalog.pg_backend_pid() as "backend!", pg_catalog.pg_try_advisory_lock(
                      pg_catalog.hashtextextended('gristmill index ' || $1::text::regclass::oid::text, 0)) as "alone!""#,
            table,
        )
        .fetch_one(&mut connection)
        .await?;
        Ok(seen.alone.then(|| Self { connection, backend: seen.backend, table: table.to_owned() }))
    }

    /// Lets the next one in at once: the server notices a closed connection a little later.
    pub async fn leave(mut self) {
        sqlx::query!("select pg_catalog.pg_advisory_unlock_all()").execute(&mut self.connection).await.ok();
        self.connection.close().await.ok();
    }
}

/// Ends the statement that a builder runs.
///
/// # Errors
/// The database is away.
pub async fn cancel(pool: &PgPool, backend: i32) -> sqlx::Result<()> {
    sqlx::query_scalar!("select pg_catalog.pg_cancel_backend($1)", backend).fetch_one(pool).await.map(|_| ())
}

/// Builds of indexes that go on in this database, on the pipeline's target.
pub async fn building(connection: &mut PgConnection, table: &str) -> sqlx::Result<Vec<Building>> {
    sqlx::query_as!(
        Building,
        r#"select coalesce(c.relname::text, 'a new index') as "index!", p.phase as "phase!",
                  case when p.tuples_total > 0 then p.tuples_done else p.blocks_done end as "done!",
                  case when p.tuples_total > 0 then p.tuples_total else p.blocks_total end as "total!"
           from pg_catalog.pg_stat_progress_create_index p
           left join pg_catalog.pg_class c on c.oid = p.index_relid
           where p.datname = pg_catalog.current_database() and p.relid = $1::text::regclass"#,
        table,
    )
    .fetch_all(connection)
    .await
}
