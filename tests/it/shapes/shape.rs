//! What an application's tables may look like, as a strategy.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::keys::{KeyType, SWITCH, TYPES};
use super::names;

/// One application: a source, a target, and how they are configured.
#[derive(Debug, Clone)]
pub struct Shape {
    pub names: Names,
    pub keys: Vec<(String, &'static KeyType)>,
    /// Which of its type's values the first row has.
    pub first_value: usize,
    pub body: &'static str,
    pub head: bool,
    pub tenant: Tenant,
    pub when: When,
    pub noticed: Noticed,
    pub status: Option<Status>,
    /// The type of a column that counts chunks.
    pub count: Option<&'static str>,
    /// Whether facts of the job are folded into a jsonb column of the row.
    pub facts: bool,
    pub effect: bool,
    /// Whether the application has a job table of its own.
    pub queue: bool,
    pub partitioned: bool,
    pub target: Target,
    pub half: bool,
    pub dimensions: usize,
    pub declared: bool,
}

/// Names, no two the same in one table.
#[derive(Debug, Clone)]
pub struct Names {
    pub source_schema: String,
    pub target_schema: String,
    pub types_schema: String,
    pub source: String,
    pub target: String,
    pub log: String,
    pub people: String,
    pub queue: String,
    /// The job table's columns that name a row of the source.
    pub asked: Vec<String>,
    pub answered: String,
    pub attempts: String,
    pub tag: String,
    pub head: String,
    pub body: String,
    pub flag: String,
    pub owner: String,
    pub changed: String,
    pub status: String,
    pub error: String,
    pub finished: String,
    pub count: String,
    pub facts: String,
    pub generated: String,
    pub vector: String,
    pub parents: Vec<String>,
    pub index: String,
    pub text: String,
    pub tokens: String,
    pub version: String,
    pub meta: String,
    pub meta_key: String,
    pub id: String,
    pub embedding: String,
    pub derived: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenant {
    Nobody,
    Column(&'static str),
    Constant,
    /// By a value of the configuration, from another table.
    Joined,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    Bare,
    Qualified,
}

/// How a change of content becomes known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticed {
    Triggers,
    ChangedAt,
    Asked,
}

#[derive(Debug, Clone)]
pub struct Status {
    /// In SQL; `CHECKED` is a text with a constraint.
    pub sql: &'static str,
    /// Words for pending, processing, completed, failed and skipped.
    pub words: [&'static str; 5],
    pub columns: bool,
}

#[derive(Debug, Clone)]
pub enum Target {
    Chunks(Chunks),
    /// Made by us.
    Created {
        version: bool,
    },
    /// A column of the source.
    Row,
}

#[derive(Debug, Clone)]
pub struct Chunks {
    pub id: &'static str,
    pub unique: bool,
    pub version: Option<&'static str>,
    pub index: &'static str,
    pub text: Option<&'static str>,
    pub tokens: bool,
    pub meta: bool,
    /// The parent columns are texts, whatever the key is.
    pub loose: bool,
    pub foreign_key: bool,
    pub derived: bool,
    pub partitioned: bool,
}

/// The shape of a seed: the same for ever.
pub fn shape(seed: u64) -> Shape {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut shape = shapes().new_tree(&mut runner).expect("no shape is filtered out").current();
    // Several shapes share a database.
    let names = &mut shape.names;
    for schema in [&mut names.source_schema, &mut names.target_schema, &mut names.types_schema] {
        *schema = names::cut(format!("{seed}{schema}"));
    }
    shape
}

fn shapes() -> impl Strategy<Value = Shape> {
    let texts = prop::sample::select(vec!["text", "varchar(2000)", "TYPES.note", "TYPES.story", "char(300)"]);
    let tenant = prop_oneof![
        2 => Just(Tenant::Nobody),
        3 => prop::sample::select(vec!["uuid", "text", "int", "char(8)"]).prop_map(Tenant::Column),
        1 => Just(Tenant::Constant),
        1 => Just(Tenant::Joined),
    ];
    let when = prop::sample::select(vec![When::Always, When::Bare, When::Qualified]);
    let noticed = prop::sample::select(vec![Noticed::Triggers, Noticed::Triggers, Noticed::ChangedAt, Noticed::Asked]);
    let count = prop::option::of(prop::sample::select(vec!["int", "bigint", "smallint", "text", "numeric(8,2)"]));
    let rows = (texts, any::<bool>(), tenant, when, noticed, prop::option::of(status()));
    let more = (count, any::<bool>(), any::<bool>(), prop::bool::weighted(0.3), prop::bool::weighted(0.2));
    let vectors = (any::<bool>(), prop::sample::select(vec![3_usize, 8, 64]), any::<bool>());
    let spelled = (raw_names(), any::<bool>(), prop::bool::weighted(0.3));
    (spelled, keys(), 0..64_usize, rows, more, target(), vectors).prop_map(
        |(
            (raw, shared_schema, alike),
            keys,
            first_value,
            (body, head, tenant, when, noticed, status),
            (count, facts, effect, queue, partitioned),
            target,
            (half, dimensions, declared),
        )| {
            let (key_names, names) = spell(raw, shared_schema, alike, keys.len());
            Shape {
                names,
                keys: key_names.into_iter().zip(keys).collect(),
                first_value,
                body,
                head,
                tenant,
                when,
                noticed,
                status,
                count,
                facts,
                effect,
                queue,
                partitioned,
                target,
                half,
                dimensions,
                declared,
            }
        },
    )
}

/// One to three types; a switch is never alone.
fn keys() -> impl Strategy<Value = Vec<&'static KeyType>> {
    let one = || prop::sample::select((0..TYPES.len()).collect::<Vec<_>>()).prop_map(|nth| &TYPES[nth]);
    let more = prop_oneof![4 => one(), 1 => Just(&SWITCH)];
    (one(), prop::collection::vec(more, 0..3), prop::bool::weighted(0.5)).prop_map(|(first, more, alone)| {
        let more = if alone { Vec::new() } else { more };
        std::iter::once(first).chain(more).collect()
    })
}

fn status() -> impl Strategy<Value = Status> {
    let plain = ["pending", "processing", "completed", "failed", "skipped"];
    let upper = ["PENDING", "PROCESSING", "COMPLETED", "FAILED", "SKIPPED"];
    let odd = ["to do", "it's {being} done", "done: \"yes\"", "${no}", "\\skip"];
    let words = prop::sample::select(vec![plain, upper, odd]);
    let types = prop::sample::select(vec!["text", "varchar(20)", "char(20)", "CHECKED", "TYPES.state", "TYPES.word"]);
    (types, words, any::<bool>()).prop_map(|(sql, words, columns)| Status { sql, words, columns })
}

fn target() -> impl Strategy<Value = Target> {
    let ids = prop::sample::select(vec![
        "",
        "serial",
        "bigint generated always as identity",
        "int generated by default as identity",
        "uuid default pg_catalog.gen_random_uuid()",
    ]);
    let versions = prop::option::of(prop::sample::select(vec!["text", "varchar(30)", "char(12)", "TYPES.word"]));
    let indexes = prop::sample::select(vec!["int", "bigint", "smallint", "numeric"]);
    let texts = prop::option::weighted(0.8, prop::sample::select(vec!["text", "varchar(500)", "TYPES.note"]));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.25), any::<bool>(), any::<bool>());
    let chunks = (ids, versions, indexes, texts, flags, prop::bool::weighted(0.2)).prop_map(
        |(id, version, index, text, (unique, tokens, meta, loose, foreign_key, derived), partitioned)| {
            let foreign_key = foreign_key && !loose;
            let derived = derived && text.is_some();
            let chunks =
                Chunks { id, unique, version, index, text, tokens, meta, loose, foreign_key, derived, partitioned };
            Target::Chunks(chunks)
        },
    );
    prop_oneof![4 => chunks, 1 => any::<bool>().prop_map(|version| Target::Created { version }), 1 => Just(Target::Row)]
}

fn raw_names() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(names::name(), 48)
}

/// Columns that every table has.
const SYSTEM: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// Gives the names away; where the tables are alike, those of the target are the source's again.
fn spell(raw: Vec<String>, shared_schema: bool, alike: bool, keys: usize) -> (Vec<String>, Names) {
    let mut seen: BTreeSet<String> = SYSTEM.map(str::to_owned).into();
    let mut pool: Vec<String> = Vec::new();
    for (nth, name) in raw.into_iter().enumerate() {
        let name = if seen.contains(&name) { format!("plain{nth}") } else { name };
        seen.insert(name.clone());
        pool.push(name);
    }
    let mut next = pool.clone().into_iter();
    let mut name = || next.next().expect("there are enough names");
    let source_schema = format!("s{}", name());
    let target_schema = if shared_schema { source_schema.clone() } else { format!("t{}", name()) };
    let key_names: Vec<String> = (0..keys).map(|_| name()).collect();
    let names = Names {
        types_schema: format!("y{}", name()),
        source: name(),
        target: name(),
        log: name(),
        people: name(),
        queue: name(),
        asked: (0..keys).map(|_| name()).collect(),
        answered: name(),
        attempts: name(),
        tag: name(),
        head: name(),
        body: name(),
        flag: name(),
        owner: name(),
        changed: name(),
        status: name(),
        error: name(),
        finished: name(),
        count: name(),
        facts: name(),
        generated: name(),
        vector: name(),
        parents: Vec::new(),
        index: String::new(),
        text: String::new(),
        tokens: String::new(),
        version: String::new(),
        meta: String::new(),
        meta_key: name(),
        id: String::new(),
        embedding: String::new(),
        derived: String::new(),
        source_schema,
        target_schema,
    };
    // From here on the names are the other table's.
    if alike {
        next = pool.into_iter();
        (0..4).for_each(|_| drop(next.next()));
    }
    let mut name = || next.next().expect("there are enough names");
    let parents = (0..keys).map(|_| name()).collect();
    let names = Names {
        parents,
        index: name(),
        text: name(),
        tokens: name(),
        version: name(),
        meta: name(),
        id: name(),
        embedding: name(),
        derived: name(),
        ..names
    };
    (key_names, names)
}
