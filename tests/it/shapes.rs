//! Any application's schema: shapes drawn at random, each configured and run from its tables to its vectors and back.
//!
//! Shape and rows come of one number, so a failure is run again by it: `GRISTMILL_SHAPES_FROM=17 GRISTMILL_SHAPES=1`. More shapes
//! than usual are `GRISTMILL_SHAPES=500`.

mod keys;
mod named;
mod names;
mod proposed;
mod rows;
mod shape;
mod tables;

use std::collections::BTreeMap;
use std::sync::Arc;

use gristmill::app;
use gristmill::db::app::{self as tables_of, Plan, TriggerSet};
use gristmill::providers::{Embedder as _, Hash};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Row as _};

use crate::applications::reconnected;
use crate::cli::gristmill;
use crate::world::World;

use names::{literal, sql};
use rows::{ROWS, Row};
use shape::{Noticed, Shape, Target, shape};
use tables::VERSION;

/// How many shapes share a database and a worker.
const TOGETHER: u64 = 10;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("it is a number"))
}

#[tokio::test]
async fn any_shape_of_tables_is_served() {
    let (first, count) = (number("GRISTMILL_SHAPES_FROM", 0), number("GRISTMILL_SHAPES", 40));
    let mut faults = Vec::new();
    let mut from = first;
    while from < first + count {
        // A shape finds the same surroundings wherever a run begins.
        let until = ((from / TOGETHER + 1) * TOGETHER).min(first + count);
        faults.extend(Crowd::new(from..until).await.run().await);
        from = until;
    }
    assert!(faults.is_empty(), "{} of {count} shapes\n\n{}", faults.len(), faults.join("\n\n"));
}

/// Several shapes in one database.
struct Crowd {
    world: World,
    pgvector: String,
    applications: Vec<Application>,
}

/// A shape at work.
struct Application {
    seed: u64,
    name: String,
    shape: Shape,
    rows: Vec<Row>,
    faults: Vec<String>,
    plan: Option<Arc<Plan>>,
}

const MODELS: &str = r#"
[models.d3]
provider = "vendor"
name = "three"
dimensions = 3
[models.d8]
provider = "vendor"
name = "eight"
dimensions = 8
[models.d64]
provider = "vendor"
name = "sixty-four"
dimensions = 64
"#;

impl Crowd {
    async fn new(seeds: std::ops::Range<u64>) -> Self {
        let pgvector = if (seeds.start / TOGETHER).is_multiple_of(2) { "public" } else { "Ext. {\"$1\"}" };
        let mut world = World::new().await;
        let ours = world.toml.find("[models.small]").expect("the models are there");
        world.toml.truncate(ours);
        world.toml.push_str(MODELS);
        world.sql("drop table public.document_chunks, public.documents cascade").await;
        if pgvector != "public" {
            world.sql(&format!("create schema {0}; alter extension vector set schema {0}", sql(pgvector))).await;
        }
        let mut applications = Vec::new();
        for seed in seeds {
            let shape = shape(seed);
            let rows = (0..ROWS).map(|tag| Row::new(&shape, tag)).collect();
            let name = format!("shape-{seed}");
            let mut one = Application { seed, name, shape, rows, faults: Vec::new(), plan: None };
            one.note(&world, &one.shape.tables(pgvector)).await;
            applications.push(one);
        }
        let pipelines: String = applications.iter().map(|one| one.shape.pipeline(&one.name)).collect();
        world.toml.push_str(&pipelines);
        Self { world: reconnected(world).await, pgvector: pgvector.to_owned(), applications }
    }

    /// Runs them all to the end; returns what was wrong with each.
    async fn run(mut self) -> Vec<String> {
        self.resolve().await;
        for one in &mut self.applications {
            for row in one.rows.clone() {
                one.note(&self.world, &row.insert(&one.shape)).await;
            }
            if one.shape.queue {
                let ask = one.rows[0].ask(&one.shape);
                one.note(&self.world, &ask).await;
            }
            one.announced(&self.world).await;
        }
        self.work("after the inserts").await;

        for one in &mut self.applications {
            one.change(&self.world).await;
        }
        self.work("after the changes").await;

        let paid = self.paid().await;
        self.world.work().await;
        if self.paid().await != paid {
            self.applications[0].faults.push("an idle run paid".to_owned());
        }
        for one in &mut self.applications {
            one.verified(&self.world).await;
            one.found(&self.world).await;
        }
        let checked = gristmill(&self.world, &["check"]).await;
        if checked.code != 0 {
            self.applications[0].faults.push(format!("check: {}\n{}", checked.out, checked.err));
        }
        self.adopt().await;
        self.applications.iter().filter_map(|one| one.report(&self.pgvector)).collect()
    }

    /// Rows that were there before, with their vectors, are done when the pipelines are registered anew.
    async fn adopt(&mut self) {
        self.world.sql("delete from gristmill.embedding_jobs; delete from gristmill.pipelines").await;
        for one in self.applications.iter_mut().filter(|one| one.plan.is_some()) {
            let plan = one.plan.clone().expect("there is one");
            app::register(&self.world.pool, &plan, 2, &|| false).await.expect("the pipeline registers");
            let query = format!(
                "select concat_ws(' ', count(*), state) from gristmill.embedding_jobs where pipeline = {} group by state order by 1 desc",
                literal(&one.name)
            );
            let found = one.lines(&self.world, &query).await;
            let with = one.rows.iter().filter(|row| !row.chunks(&one.shape).is_empty()).count();
            let without = (with < one.rows.len()).then(|| format!("{} waiting", one.rows.len() - with));
            let expected: Vec<String> = std::iter::once(format!("{with} completed")).chain(without).collect();
            one.expect("adopted", &found, &expected);
        }
    }

    async fn resolve(&mut self) {
        let resolved = app::resolve(&self.world.pool, &self.world.config()).await.expect("the database is there");
        for (name, misfits) in &resolved.refused {
            let one = self.applications.iter_mut().find(|one| one.name == *name).expect("it is ours");
            one.faults.extend(misfits.iter().map(|misfit| format!("refused: {misfit}")));
        }
        let mut connection = self.world.pool.acquire().await.expect("the database is there");
        for plan in &resolved.plans {
            let name = &plan.pipeline.name;
            let one = self.applications.iter_mut().find(|one| one.name == *name).expect("it is ours");
            let made = app::make_target(&self.world.pool, Arc::clone(plan)).await;
            let plan = &made.expect("the target can be made");
            app::register(&self.world.pool, plan, 2, &|| false).await.expect("the pipeline registers");
            if one.shape.noticed == Noticed::Triggers {
                let installed = tables_of::install(&mut connection, &TriggerSet::of(plan)).await;
                one.faults.extend(installed.err().map(|error| format!("triggers: {error}")));
                let events = tables_of::installed(&mut connection, plan).await.expect("the database is there");
                one.expect("triggers", &events.len(), &3);
            }
            one.plan = Some(Arc::clone(plan));
        }
    }

    async fn work(&mut self, stage: &str) {
        self.world.work().await;
        for one in self.applications.iter_mut().filter(|one| one.plan.is_some()) {
            one.jobs(&self.world, stage).await;
            one.vectors(&self.world, stage).await;
            one.said(&self.world, stage).await;
        }
    }

    async fn paid(&self) -> i64 {
        self.world.value("select count(*) from gristmill.provider_calls").await
    }
}

impl Application {
    fn report(&self, pgvector: &str) -> Option<String> {
        let (shape, faults) = (&self.shape, self.faults.join("\n"));
        let tables = shape.tables(pgvector);
        let text = || format!("shape {}:\n{faults}\n{tables}\n{}\n{shape:?}", self.seed, shape.pipeline(&self.name));
        (!self.faults.is_empty()).then(text)
    }

    fn expect<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, found: &T, expected: &T) {
        if found != expected {
            self.faults.push(format!("{what}:\n   found {found:?}\nexpected {expected:?}"));
        }
    }

    /// Runs a statement of the application.
    async fn note(&mut self, world: &World, statement: &str) {
        if let Err(error) = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&world.pool).await {
            self.faults.push(format!("{error}: {statement}"));
        }
    }

    async fn lines(&mut self, world: &World, query: &str) -> Vec<String> {
        match sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_all(&world.pool).await {
            Ok(lines) => lines,
            Err(error) => {
                self.faults.push(format!("{error}: {query}"));
                Vec::new()
            }
        }
    }

    /// What the application's statements have opened by themselves.
    async fn announced(&mut self, world: &World) {
        if self.plan.is_none() || self.shape.noticed != Noticed::Triggers {
            return;
        }
        let query = format!("select state from gristmill.embedding_jobs where pipeline = {}", literal(&self.name));
        let opened = self.lines(world, &query).await.len();
        let expected = self.rows.iter().filter(|row| row.in_set(&self.shape)).count();
        self.expect("opened by triggers", &opened, &expected);
    }

    /// Row 0 is written anew, 1 goes, 2 gets another key, 3 is emptied, 4 enters the set.
    async fn change(&mut self, world: &World) {
        let gone = self.rows.remove(1);
        let delete = format!("delete from {} where {} = {}", self.shape.source(), sql(&self.shape.names.tag), gone.tag);
        self.note(world, &delete).await;
        self.rows[0].say(3, 2);
        self.rows[0].worked += 1;
        let bound = matches!(&self.shape.target, Target::Chunks(chunks) if chunks.foreign_key)
            || matches!(self.shape.target, Target::Created { .. });
        if !bound {
            self.rows[1].key = rows::key(&self.shape, ROWS);
            self.rows[1].worked += 1;
        }
        self.rows[2].say(0, 0);
        if self.shape.head {
            self.rows[2].worked += 1;
        }
        self.rows[3].flag = true;
        for nth in 0..self.rows.len() {
            let update = self.rows[nth].update(&self.shape);
            self.note(world, &update).await;
        }
        if self.shape.noticed == Noticed::Asked {
            let ask = format!(
                "select gristmill.enqueue({}, {}) from {} where {} in (0, 3)",
                literal(&self.name),
                self.key_json(),
                self.shape.source(),
                sql(&self.shape.names.tag)
            );
            self.note(world, &ask).await;
        }
    }

    /// What a row's key is to us.
    fn key_json(&self) -> String {
        let keys: Vec<String> = self.shape.keys.iter().map(|(name, _)| format!("{}::text", sql(name))).collect();
        format!("jsonb_build_array({})", keys.join(", "))
    }

    /// Every row of the set has one job, in the right state, for the right tenant; no other job is open.
    async fn jobs(&mut self, world: &World, stage: &str) {
        let (source, tag) = (self.shape.source(), sql(&self.shape.names.tag));
        let query = format!(
            "select concat_ws(' ', source.{tag}, job.state, job.tenant, case when job.state not in ('completed', 'cancelled') then job.reason end) \
             from gristmill.embedding_jobs as job left join (select {tag}, {} as gm_key from {source}) as source on gm_key = job.source_key \
             where job.pipeline = {} and (source.{tag} is not null or job.state not in ('cancelled')) order by 1",
            self.key_json(),
            literal(&self.name),
        );
        let found = self.lines(world, &query).await;
        let rows = self.rows.iter().filter(|row| row.in_set(&self.shape));
        let expected: Vec<String> = rows
            .map(|row| {
                let (state, reason) = match row.chunks(&self.shape).len() {
                    0 => ("skipped", " there is no text"),
                    _ => ("completed", ""),
                };
                format!("{} {state} {}{reason}", row.tag, row.tenant(&self.shape))
            })
            .collect();
        self.expect(&format!("jobs {stage}"), &found, &expected);
    }

    /// Every row of the set has its chunks and no other, each with the vector of its text.
    async fn vectors(&mut self, world: &World, stage: &str) {
        let (shape, names) = (&self.shape, &self.shape.names);
        let (source, tag) = (shape.source(), sql(&names.tag));
        let query = match &shape.target {
            Target::Row => format!(
                "select source.{tag}::int, 0::bigint, null::text, source.{vector}::text from {source} as source where source.{vector} is not null order by 1",
                vector = sql(&names.vector)
            ),
            Target::Chunks(_) | Target::Created { .. } => {
                let (loose, version, text) = match &shape.target {
                    Target::Chunks(chunks) => (chunks.loose, chunks.version.is_some(), chunks.text.is_some()),
                    Target::Created { version } => (false, *version, true),
                    Target::Row => (false, false, false),
                };
                let cast = if loose { "::text" } else { "" };
                let pairs = names.parents.iter().zip(&shape.keys);
                let mut on: Vec<String> = pairs
                    .map(|(parent, (key, _))| format!("chunk.{} = source.{}{cast}", sql(parent), sql(key)))
                    .collect();
                if version {
                    on.push(format!("chunk.{}::text = {}", sql(&names.version), literal(VERSION)));
                }
                let text = if text { format!("chunk.{}::text", sql(&names.text)) } else { "null::text".to_owned() };
                format!(
                    "select source.{tag}::int, chunk.{index}::bigint, {text}, chunk.{vector}::text from {target} as chunk \
                     left join {source} as source on {on} order by 1, 2",
                    index = sql(&names.index),
                    vector = sql(&names.embedding),
                    target = shape.target(),
                    on = on.join(" and "),
                )
            }
        };
        let found = match sqlx::query(AssertSqlSafe(query.clone())).fetch_all(&world.pool).await {
            Ok(found) => found,
            Err(error) => return self.faults.push(format!("{error}: {query}")),
        };
        let mut chunks = Vec::new();
        for row in &found {
            let tag: Option<i32> = row.try_get(0).expect("a number");
            let (index, text): (i64, Option<String>) =
                (row.try_get(1).expect("a number"), row.try_get(2).expect("a text"));
            let vector: String = row.try_get(3).expect("a text");
            let vector: Vec<f32> =
                vector.trim_matches(['[', ']']).split(',').map(|value| value.parse().expect("a number")).collect();
            chunks.push((tag, index, text, vector));
        }
        let mut wanted = Vec::new();
        for row in self.rows.iter().filter(|row| row.in_set(&self.shape)) {
            for (index, text) in row.chunks(&self.shape).into_iter().enumerate() {
                wanted.push((i32::try_from(row.tag).ok(), i64::try_from(index).expect("few"), text));
            }
        }
        let found: Vec<_> = chunks.iter().map(|(tag, index, _, _)| (*tag, *index)).collect();
        let expected: Vec<_> = wanted.iter().map(|(tag, index, _)| (*tag, *index)).collect();
        self.expect(&format!("chunks {stage}"), &found, &expected);
        for ((tag, _, stored, vector), (_, _, text)) in chunks.iter().zip(&wanted) {
            if let Some(stored) = stored {
                self.expect(&format!("text of a chunk of {tag:?} {stage}"), stored, text);
            }
            let right = self.vector_of(text).await;
            let far =
                vector.len() != right.len() || vector.iter().zip(&right).any(|(one, other)| (one - other).abs() > 1e-3);
            if far {
                self.faults.push(format!("{stage}, a chunk of {tag:?} has not the vector of {text:?}: {vector:?}"));
            }
        }
    }

    async fn vector_of(&self, text: &str) -> Vec<f32> {
        let texts = [text.to_owned()];
        let embedded = Hash::new(self.shape.dimensions).embed(&texts).await.expect("it needs no network");
        let mut vectors = embedded.vectors;
        vectors.remove(0).expect("every text has a vector").vector
    }

    /// Status, counts, facts and the log say what became of each row.
    async fn said(&mut self, world: &World, stage: &str) {
        let (shape, names) = (&self.shape, &self.shape.names);
        let mut facts = vec![format!("{}::text", sql(&names.tag))];
        if let Some(status) = &shape.status {
            facts.push(format!("'status ' || {}::text", sql(&names.status)));
            if status.columns {
                let (error, finished) = (sql(&names.error), sql(&names.finished));
                facts.push(format!("'error ' || {error}"));
                facts.push(format!("case when {finished} is not null then 'ended' end"));
            }
        }
        if shape.count.is_some() {
            facts.push(format!("'count ' || {}::float8", sql(&names.count)));
        }
        facts.push(format!("'facts ' || {}::text", sql(&names.facts)));
        let query = format!("select concat_ws('; ', {}) from {} order by 1", facts.join(", "), shape.source());
        let found: Vec<_> = self.lines(world, &query).await.iter().map(|line| apart(line)).collect();
        let expected: Vec<_> = self.rows.iter().map(|row| row_says(&self.shape, row)).collect();
        self.expect(&format!("rows {stage}"), &found, &expected);

        if self.shape.queue {
            let (answered, attempts) = (sql(&self.shape.names.answered), sql(&self.shape.names.attempts));
            let query = format!("select concat_ws(' ', {answered}, {attempts}) from {}", self.shape.queue());
            let found = self.lines(world, &query).await;
            self.expect(&format!("answers {stage}"), &found, &vec!["it's done 1".to_owned()]);
        }
        if self.shape.effect {
            let query = format!("select tag::text from {}", self.shape.log());
            let mut log: BTreeMap<String, usize> = BTreeMap::new();
            for tag in self.lines(world, &query).await {
                *log.entry(tag).or_default() += 1;
            }
            let rows = self.rows.iter().filter(|row| row.in_set(&self.shape));
            let expected: Vec<_> = rows.map(|row| (row.tag.to_string(), row.worked + 1)).collect();
            let log: Vec<_> =
                log.into_iter().filter(|(tag, _)| expected.iter().any(|(known, _)| known == tag)).collect();
            self.expect(&format!("effects {stage}"), &log, &expected);
        }
    }

    /// Nothing is found wrong.
    async fn verified(&mut self, world: &World) {
        let Some(plan) = self.plan.clone() else { return };
        let mut connection = world.pool.acquire().await.expect("the database is there");
        match tables_of::verify(&mut connection, &plan, None, 1_000).await {
            Ok((findings, _)) => self.expect("verify", &format!("{findings:?}"), &"[]".to_owned()),
            Err(error) => self.faults.push(format!("verify: {error}")),
        }
        match tables_of::orphans(&mut connection, &plan, 1_000).await {
            Ok(findings) => self.expect("orphans", &format!("{findings:?}"), &"[]".to_owned()),
            Err(error) => self.faults.push(format!("orphans: {error}")),
        }
    }

    /// Each row is in the view of its job's state, and found by its own text.
    async fn found(&mut self, world: &World) {
        let Some(plan) = self.plan.clone() else { return };
        let mut connection = world.pool.acquire().await.expect("the database is there");
        let text = self.rows[0].chunks(&self.shape)[0].clone();
        let vector = self.vector_of(&text).await;
        match tables_of::view_set(&mut connection, &plan).await.expect("the database is there") {
            Err(refused) => {
                let settings = refused.contains("may depend on a session's");
                self.expect("the view is refused for the key's type", &settings, &true);
            }
            Ok(views) => {
                if let Err(error) = tables_of::run_views(&mut connection, &views.install).await {
                    self.faults.push(format!("view: {error}"));
                }
                let query = format!("select state from gristmill.{}", sql(&tables_of::view_name(&self.name)));
                let shown = self.lines(world, &query).await.len();
                let expected = self.rows.iter().filter(|row| row.in_set(&self.shape)).count();
                self.expect("rows of the view", &shown, &expected);
            }
        }
        if self.shape.noticed == Noticed::Triggers
            && let Err(error) = tables_of::remove(&mut connection, &TriggerSet::of(&plan)).await
        {
            self.faults.push(format!("triggers remove: {error}"));
        }
        match tables_of::search(&mut connection, &plan, &vector, 3).await {
            Ok(hits) if hits.first().is_some_and(|hit| hit.similarity > 0.99) => {}
            other => self.faults.push(format!("search: {other:?}")),
        }
    }
}

/// A row's line and its facts.
fn apart(line: &str) -> (String, Value) {
    let (line, facts) = line.split_once("; facts ").expect("every row has facts");
    (line.to_owned(), serde_json::from_str(facts).expect("they are JSON"))
}

/// What a row says of itself.
fn row_says(shape: &Shape, row: &Row) -> (String, Value) {
    let in_set = row.in_set(shape);
    let chunks = row.chunks(shape).len();
    let mut says = vec![row.tag.to_string()];
    if let Some(status) = &shape.status {
        let nth = match (in_set, chunks) {
            (false, _) => 0,
            (true, 0) => 4,
            (true, _) => 2,
        };
        says.push(format!("status {}", status.words[nth]));
        if status.columns && in_set {
            says.push("ended".to_owned());
        }
    }
    if shape.count.is_some() && in_set {
        says.push(format!("count {chunks}"));
    }
    let mut facts = serde_json::json!({ "kept": true });
    if shape.facts && in_set {
        facts[&shape.names.meta_key] = format!("row {}", row.tag).into();
        facts["chunks"] = chunks.into();
    }
    (says.join("; "), facts)
}
