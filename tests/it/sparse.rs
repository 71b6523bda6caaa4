//! Weights of tokens beside vectors: from a service or the local model, through what is parked and kept, into `jsonb` or `sparsevec`.

use std::collections::BTreeMap;
use std::path::Path;

use gristmill::app;
use insta::assert_snapshot;
use serde::Deserialize;

use crate::applications::{configured, reconnected};
use crate::fake_openai::{Answer, FakeOpenAi, Options, Spoilt, vector_of, weights_of};
use crate::world::World;

const DIMENSIONS: usize = 8;

/// One vector and one object of weights on the row itself.
const THEMES: &str = r#"
[pipelines.themes]
kind = "embed"
model = "tiny"
existing = "adopt"
source = { table = "app.themes", key = ["code"], when = "hidden is null", text = "Dream symbol: {label}" }
chunks = { whole = true, longer = "mean" }
target = { columns = { embedding = "{chunk.vector}", "sparse_embedding?" = "{chunk.sparse}" } }
"#;
const THEME_TABLE: &str = "create schema app; create table app.themes \
    (code text primary key, label text, hidden bool, embedding vector(8), sparse_embedding jsonb)";

/// Chunks with a vector and a sparse vector each.
const DREAMS: &str = r#"
[pipelines.dreams]
kind = "embed"
model = "tiny"
existing = "backfill"
source = { table = "app.dreams", key = ["id"], text = "{body}" }
chunks = { tokens = 12, overlap = 0 }
target = { table = "app.dream_chunks", parent = { dream_id = "{id}" }, columns = { nth = "{chunk.index}", body = "{chunk.text}", embedding = "{chunk.vector}", weights = "{chunk.sparse}" } }
"#;
const DREAM_TABLES: &str = "create schema app; create table app.dreams (id int primary key, body text); \
    create table app.dream_chunks (id bigserial, dream_id int, nth int, body text, embedding vector(8), weights sparsevec(250002))";

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

/// A world whose model gives weights, not registered yet.
async fn prepared(vendor: &FakeOpenAi, schema: &str, pipelines: &str) -> World {
    let world = configured(World::with_vendor(vendor).await, pipelines);
    world.sql(schema).await;
    reconnected(world.change("name = \"tiny\"", "name = \"tiny\"\nsparse = true")).await
}

async fn application(vendor: &FakeOpenAi, schema: &str, pipelines: &str) -> World {
    let world = prepared(vendor, schema, pipelines).await;
    world.register().await;
    world.install_triggers().await;
    world
}

async fn states(world: &World) -> Vec<String> {
    world.list("select concat_ws(' ', source_key, state, error_kind) from gristmill.embedding_jobs order by 1").await
}

/// Reads an object, and pgvector's text, which counts from 1 and ends in the dimensions.
fn weights(text: &str) -> BTreeMap<u32, f32> {
    let Some(pairs) = text.strip_suffix("/250002") else { return serde_json::from_str(text).unwrap() };
    let pair = |pair: &str| {
        let (dimension, weight) = pair.split_once(':').unwrap();
        (dimension.parse::<u32>().unwrap() - 1, weight.parse().unwrap())
    };
    pairs.trim_matches(['{', '}']).split(',').map(pair).collect()
}

async fn theme(world: &World, code: &str) -> BTreeMap<u32, f32> {
    weights(
        &world.value::<String>(&format!("select sparse_embedding::text from app.themes where code = '{code}'")).await,
    )
}

/// The text of each chunk and its weights.
async fn dreams(world: &World) -> Vec<(String, BTreeMap<u32, f32>)> {
    let chunks = world.list("select body || '|' || weights from app.dream_chunks order by dream_id, nth").await;
    let chunk = |chunk: &String| {
        let (text, sparse) = chunk.rsplit_once('|').unwrap();
        (text.to_owned(), weights(sparse))
    };
    chunks.iter().map(chunk).collect()
}

fn paragraphs(words: &[&str]) -> String {
    words.iter().map(|word| format!("Of {word} she dreamt that whole night.")).collect::<Vec<_>>().join("\n\n")
}

#[tokio::test]
async fn weights_go_to_an_object_on_the_row_and_to_a_sparse_vector_of_the_chunk() {
    let vendor = vendor();
    let both = format!(
        "{THEME_TABLE}; {}",
        DREAM_TABLES.replace("create schema app;", "").replace(" sparsevec(250002)", " sparsevec")
    );
    let world = application(&vendor, &both, &format!("{THEMES}{DREAMS}")).await;
    let river = "Of rivers she dreamt.";
    world
        .sql(&format!(
            "insert into app.themes values ('water', 'water'), ('mill', 'mill'); insert into app.dreams values (1, '{river}')"
        ))
        .await;

    world.work().await;

    assert_eq!(theme(&world, "mill").await, weights_of("Dream symbol: mill"));
    assert_eq!(theme(&world, "water").await, weights_of("Dream symbol: water"));
    assert_eq!(dreams(&world).await, [(river.to_owned(), weights_of(river))]);
    let near = format!("select (embedding <-> '{:?}') < 0.001 from app.dream_chunks", vector_of(river, DIMENSIONS));
    assert!(world.value::<bool>(&near).await);
    assert_eq!(states(&world).await, ["[\"1\"] completed", "[\"mill\"] completed", "[\"water\"] completed"]);
    // One call for both, and one on the books.
    assert!(vendor.seen().iter().all(|seen| seen.path == "/pooling"));
    let calls = "select count(*) from gristmill.provider_calls where outcome = 'paid'";
    assert_eq!(world.value::<i64>(calls).await, i64::try_from(vendor.requests()).unwrap());
    let tokens = "select (select sum(tokens) from gristmill.provider_calls) = (select sum(quantity) from gristmill.usage_events)";
    assert!(world.value::<bool>(tokens).await);
}

#[tokio::test]
async fn pgvector_may_live_elsewhere() {
    let vendor = vendor();
    let elsewhere =
        "drop extension vector cascade; create schema extensions; create extension vector schema extensions; ";
    let tables =
        DREAM_TABLES.replace("vector(8)", "extensions.vector(8)").replace(" sparsevec", " extensions.sparsevec");
    let world = application(&vendor, &format!("{elsewhere}{tables}"), DREAMS).await;
    world.sql("insert into app.dreams values (1, 'One.')").await;
    world.work().await;
    assert_eq!(dreams(&world).await, [("One.".to_owned(), weights_of("One."))]);
}

#[tokio::test]
async fn chunks_that_stay_keep_their_weights_and_one_without_is_embedded_anew() {
    let vendor = vendor();
    let world = application(&vendor, DREAM_TABLES, DREAMS).await;
    let ids = "select id::text from app.dream_chunks order by nth";
    world.sql(&format!("insert into app.dreams values (1, '{}')", paragraphs(&["rye", "oats", "wheat"]))).await;
    world.work().await;
    let before = world.list(ids).await;

    let edited = paragraphs(&["barley", "rye", "oats", "wheat"]);
    world.sql(&format!("update app.dreams set body = '{edited}'")).await;
    world.work().await;

    assert_eq!(world.list(ids).await[1..], before);
    assert_eq!(vendor.paid_texts().len(), 4);
    let want: Vec<_> = edited.split("\n\n").map(|text| (text.to_owned(), weights_of(text))).collect();
    assert_eq!(dreams(&world).await, want);

    world.sql("update app.dream_chunks set weights = null where nth = 2; select gristmill.enqueue('dreams', 1)").await;
    world.work().await;
    assert_eq!((dreams(&world).await, vendor.paid_texts().len()), (want, 5));
}

#[tokio::test]
async fn weights_are_parked_with_their_vector_and_a_bad_one_hurts_its_own_text_only() {
    let vendor = vendor();
    let world = application(&vendor, DREAM_TABLES, DREAMS).await;
    let texts = paragraphs(&["rye", "oats", "wheat"]);
    vendor.script([Answer::vectors(Spoilt::OneWeight)]);
    world.sql(&format!("insert into app.dreams values (1, '{texts}')")).await;

    world.work().await;

    let texts: Vec<&str> = texts.split("\n\n").collect();
    let paid: Vec<usize> = texts.iter().map(|text| vendor.paid(text)).collect();
    assert_eq!(paid, [1, 1, 2]);
    let want: Vec<_> = texts.iter().map(|text| ((*text).to_owned(), weights_of(text))).collect();
    assert_eq!(dreams(&world).await, want);
    let kinds =
        "select string_agg(concat_ws(' ', outcome, error_kind), ', ' order by started_at) from gristmill.job_attempts";
    assert_snapshot!(world.value::<String>(kinds).await, @"retry garbled, done");
}

#[tokio::test]
async fn a_text_in_parts_has_the_largest_weight_of_each_token() {
    let vendor = vendor();
    let world = application(&vendor, THEME_TABLE, THEMES).await;
    let label = paragraphs(&["rye", "oats", "wheat", "barley"]);
    world.sql(&format!("insert into app.themes values ('grain', '{label}')")).await;

    world.work().await;

    assert!(vendor.paid_texts().len() > 1, "it was embedded in parts");
    let mut want = BTreeMap::new();
    for (token, weight) in vendor.paid_texts().iter().flat_map(|text| weights_of(text)) {
        want.entry(token).and_modify(|known: &mut f32| *known = known.max(weight)).or_insert(weight);
    }
    assert_eq!(theme(&world, "grain").await, want);
}

#[tokio::test]
async fn a_row_keeps_both_while_it_stays_and_loses_both_when_it_leaves() {
    let vendor = vendor();
    let table = format!("{THEME_TABLE}; alter table app.themes add hint text, add shown text");
    let pipeline = THEMES.replace("columns = { embedding", "columns = { shown = \"{hint}\", embedding");
    let world = application(&vendor, &table, &pipeline).await;
    world.sql("insert into app.themes values ('mill', 'mill')").await;
    world.work().await;
    let held = "select count(*) from app.themes where embedding is not null and sparse_embedding is not null";
    assert_eq!(world.value::<i64>(held).await, 1);
    // What else is written leaves them as they are, unpaid.
    world.sql("update app.themes set hint = 'stone'").await;
    world.work().await;
    assert_eq!(world.list("select shown from app.themes").await, ["stone"]);
    assert_eq!((world.value::<i64>(held).await, vendor.requests()), (1, 1));
    world.sql("update app.themes set hidden = true").await;
    world.work().await;
    let empty = "select count(*) from app.themes where embedding is null and sparse_embedding is null";
    assert_eq!(world.value::<i64>(empty).await, 1);
}

#[tokio::test]
async fn rows_that_were_there_are_adopted_with_both_and_wait_with_one() {
    let vendor = vendor();
    let world = prepared(&vendor, THEME_TABLE, THEMES).await;
    let vector = "'[1,2,3,4,5,6,7,8]'";
    world
        .sql(&format!(
            "insert into app.themes values ('both', 'a', null, {vector}, '{{\"7\": 0.5}}'), ('half', 'b', null, {vector}, null), \
             ('list', 'c', null, {vector}, '[0.5]')"
        ))
        .await;
    world.register().await;
    let states = states(&world).await;
    assert_eq!(states, ["[\"both\"] completed", "[\"half\"] waiting unaccepted", "[\"list\"] waiting unaccepted"]);
}

#[tokio::test]
async fn a_column_that_may_be_missing_is_not_missed() {
    let vendor = vendor();
    let world = application(&vendor, &THEME_TABLE.replace(", sparse_embedding jsonb", ""), THEMES).await;
    world.sql("insert into app.themes values ('mill', 'mill')").await;
    world.work().await;
    assert_eq!(states(&world).await, ["[\"mill\"] completed"]);
}

#[tokio::test]
async fn what_cannot_take_weights_is_named() {
    let mut said = Vec::new();
    let cases = [
        ("text", THEME_TABLE.replace("sparse_embedding jsonb", "sparse_embedding text")),
        ("json", THEME_TABLE.replace("sparse_embedding jsonb", "sparse_embedding json")),
        ("a dense vector", THEME_TABLE.replace("sparse_embedding jsonb", "sparse_embedding vector(8)")),
        ("too few dimensions", THEME_TABLE.replace("sparse_embedding jsonb", "sparse_embedding sparsevec(30522)")),
        ("more than enough", THEME_TABLE.replace("sparse_embedding jsonb", "sparse_embedding sparsevec(300000)")),
    ];
    for (case, schema) in cases {
        let world = prepared(&vendor(), &schema, THEMES).await;
        let resolved = app::resolve(&world.pool, &world.config()).await.unwrap();
        let misfits = resolved.refused.iter().flat_map(|(_, misfits)| misfits).filter(|misfit| !misfit.warning);
        said.push(format!("{case}: {}", misfits.map(ToString::to_string).collect::<Vec<_>>().join("\n")));
    }
    assert_snapshot!(said.join("\n"), @r#"
    text: workers.toml:58: pipelines.themes.target.columns."sparse_embedding?": column sparse_embedding of app.themes is text; weights of tokens go into sparsevec or jsonb
    json: workers.toml:58: pipelines.themes.target.columns."sparse_embedding?": column sparse_embedding of app.themes is json; weights of tokens go into sparsevec or jsonb
    a dense vector: workers.toml:58: pipelines.themes.target.columns."sparse_embedding?": column sparse_embedding of app.themes is vector; weights of tokens go into sparsevec or jsonb
    too few dimensions: workers.toml:58: pipelines.themes.target.columns."sparse_embedding?": column sparse_embedding of app.themes is sparsevec(30522), and the model has 250002 tokens: make it sparsevec(250002)
    more than enough: 
    "#);
}

#[tokio::test]
async fn a_target_of_ours_has_an_object_of_weights() {
    let vendor = vendor();
    let pipeline = DREAMS.replace("target = { table", "target = { create = true, table");
    let world =
        prepared(&vendor, "create schema app; create table app.dreams (id int primary key, body text)", &pipeline)
            .await;
    world.register().await;
    world.install_triggers().await;
    world.sql("insert into app.dreams values (1, 'One.')").await;
    world.work().await;
    assert_eq!(world.value::<String>("select pg_typeof(weights)::text from app.dream_chunks").await, "jsonb");
    assert_eq!(dreams(&world).await, [("One.".to_owned(), weights_of("One."))]);
}

/// What the reference says of one text.
#[derive(Deserialize)]
struct Expected {
    text: String,
    sparse: BTreeMap<u32, f32>,
}

#[tokio::test]
async fn bge_m3_runs_in_the_worker() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bge-m3-tiny");
    let expected: Vec<Expected> =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let schema = THEME_TABLE.replace("vector(8)", "vector(16)");
    let world = prepared(&vendor(), &schema, &THEMES.replace("Dream symbol: {label}", "{label}")).await;
    let provider = world.toml
        [world.toml.find("kind = \"openai\"").unwrap()..world.toml.find("[models.small]").unwrap()]
        .to_owned();
    let world = world
        .change(&provider, &format!("kind = \"local\"\nfolder = \"{}\"\nthreads = 1\n\n", folder.display()))
        .change("dimensions = 8\nlongest = 20", "dimensions = 16\nlongest = 40")
        .change("dimensions = 384\nlongest = 8000", "dimensions = 16\nlongest = 40");
    world.register().await;
    world.sql(&format!("insert into app.themes values ('rye', '{}')", expected[0].text)).await;

    world.work().await;

    let got = theme(&world, "rye").await;
    assert!(got.keys().eq(expected[0].sparse.keys()), "{got:?}");
    assert!(got.values().zip(expected[0].sparse.values()).all(|(got, want)| (got - want).abs() < 1e-5), "{got:?}");
}
