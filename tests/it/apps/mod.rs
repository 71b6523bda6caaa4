//! Five real applications on their own tables: each with a configuration that its owner could take, over Postgres, a file store
//! and a vendor over HTTP.
//!
//! `tests/apps/<app>` holds the configuration and a schema for each shape of the application's database, written after its
//! document and what its migrations make of it.

#![expect(clippy::too_many_lines, reason = "a picture of all that an application looks at has many lines")]

mod arami;
mod init;
mod lgtempo;
mod orionchat;
mod somni;
mod yarnnn;

use gristmill::db;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::cli::{gristmill, offline};
use crate::fake_openai::{FakeOpenAi, Options};
use crate::fake_speech::FakeSpeech;
use crate::postgres::fresh_database;
use crate::stores::{KEY, Store};
use crate::world::World;

/// An application: its database, its files, and its vendors.
struct App {
    world: World,
    vendor: FakeOpenAi,
    speech: FakeSpeech,
    store: Store,
}

/// For pictures: the end of an id, and a vector as its length, if it can be searched.
const PICTURES: &str = "create schema test; grant usage on schema test to public; \
    create function test.id(id uuid) returns text language sql as $$ select right(id::text, 2) $$; \
    create function test.vector(embedding anyelement) returns text language plpgsql as $$ \
    declare parts float8[] = translate(embedding::text, '[]', '{}'); \
    begin return case when parts is null then 'no vector' when (select sum(part * part) from unnest(parts) as part) not between 1e-6 and 1e6 \
        then 'bad vector' else 'v' || cardinality(parts) end; end $$;";

/// Quick enough for a test, and nothing else: what an owner would leave at its defaults.
const WORKER: &str = r#"
[worker]
slots = 16
lease = "10s"
poll = "200ms"
sweep = "1h"
grace = "5s"
retry_first = "100ms"
retry_longest = "1s"
linger = "5ms"
listen = "off"
"#;

impl App {
    async fn new(app: &str, shape: &str) -> Self {
        Self::changed(app, shape, "").await
    }

    /// With what this test has to change about the application's database.
    async fn changed(app: &str, shape: &str, change: &str) -> Self {
        let database = fresh_database().await;
        let vendor = FakeOpenAi::start(Options { dimensions: 1024, ..Options::default() });
        let speech = FakeSpeech::start();
        let store = Store::default();
        let read = |file: &str| {
            let path = format!("{}/tests/apps/{file}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let starter = "drop table public.document_chunks, public.documents; drop function public.documents_touch; drop extension vector";
        let mut owner = database.connect().await;
        for sql in [starter, &read("supabase.sql"), PICTURES, &read(&format!("{app}/{shape}.sql")), change] {
            owner.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_or_else(|error| panic!("{app}/{shape}: {error}"));
        }
        let at_vendor = format!("kind = \"openai\"\nurl = \"{}\"\nkey", vendor.url());
        let toml = read(&format!("{app}/workers.toml")).replace("kind = \"openai\"\nkey", &at_vendor);
        let at_speech = format!("kind = \"elevenlabs\"\nurl = \"{}\"\nkey", speech.url());
        let toml = toml.replace("kind = \"elevenlabs\"\nkey", &at_speech);
        // The local model has tests of its own.
        let mut toml = toml.replace("kind = \"local\"", "kind = \"hash\"");
        for (name, value) in [
            ("DATABASE_URL", database.url.as_str()),
            ("OPENAI_API_KEY", "sk-only-for-tests"),
            ("EMBEDDER_URL", vendor.url().as_str()),
            ("EMBEDDER_KEY", "sk-only-for-tests"),
            ("ELEVENLABS_API_KEY", "xi-only-for-tests"),
            ("SUPABASE_URL", &store.supabase().await),
            ("SUPABASE_SECRET_KEY", KEY),
        ] {
            toml = toml.replace(&format!("${{{name}}}"), value);
        }
        let files = TempDir::new().unwrap();
        toml.push_str(WORKER);
        let pool = db::connect(&World::parse(&toml).database).await.unwrap();
        Self { world: World { database, pool, files, toml }, vendor, speech, store }
    }

    /// What `gristmill check` says about pipelines and the configuration, which must fit.
    async fn check(&self) -> String {
        let findings = gristmill(&self.world, &["check", "--json"]).await.ok().json();
        let worth = |finding: &&Value| {
            let about = finding["about"].as_str().unwrap();
            about.starts_with("pipeline") || (about == "configuration" && finding["level"] != "ok")
        };
        let said = findings.as_array().unwrap().iter().filter(worth).map(|finding| {
            let message = finding["message"].as_str().unwrap();
            // From where in the file: every comment would move it.
            let message = message
                .split_once("workers.toml:")
                .map_or(message, |(_, place)| place.split_once(": ").map_or(place, |(_, message)| message));
            format!("{} {}: {message}", finding["level"].as_str().unwrap(), finding["about"].as_str().unwrap())
        });
        said.collect::<Vec<_>>().join("\n")
    }

    /// What `gristmill check` says where something does not fit.
    async fn unfit(&self) -> String {
        let ran = gristmill(&self.world, &["check"]).await;
        assert_eq!(ran.code, 1, "{}", ran.out);
        ran.out
    }

    /// A signed-in user of the application, whom row security knows.
    async fn user(&self, id: &str) -> PgConnection {
        let mut connection = self.world.database.connect().await;
        let sign_in = format!("set role authenticated; select set_config('request.jwt.claim.sub', '{id}', false)");
        connection.execute(AssertSqlSafe(sign_in)).await.unwrap();
        connection
    }

    /// `gristmill accept`: what it says a pipeline would cost, which is then paid.
    async fn accept(&self, pipeline: &str) -> String {
        let bill = gristmill(&self.world, &["accept", pipeline, "--yes", "--json"]).await.ok().json();
        format!(
            "{} rows, {} tokens, {} files, {} usd",
            bill["rows_held"], bill["tokens_estimated"], bill["files_of_unknown_tokens"], bill["usd_estimated"]
        )
    }

    /// Lines of several queries, each below its title.
    async fn picture(&self, queries: &[(&str, &str)]) -> String {
        let mut parts = Vec::new();
        for (title, query) in queries {
            let lines = self.world.list(query).await;
            parts.push(format!("# {title}\n{}", if lines.is_empty() { "–".to_owned() } else { lines.join("\n") }));
        }
        parts.join("\n")
    }
}

#[tokio::test]
async fn each_configuration_is_whole_as_it_stands() {
    for app in ["arami", "lgtempo", "orionchat", "somni", "yarnnn"] {
        let file = format!("{}/tests/apps/{app}/workers.toml", env!("CARGO_MANIFEST_DIR"));
        let said = offline(&file).await.ok();
        assert!(said.out.contains("the environment lacks DATABASE_URL"), "{}", said.out);
    }
}

/// Every job: whose, how it stands and why.
const JOBS: (&str, &str) = (
    "jobs",
    "select concat_ws(' ', pipeline, right(source_key->>0, 2), state, 'r' || revision, 'attempts=' || attempt, error_kind, reason) \
     from gristmill.embedding_jobs order by pipeline, source_key",
);

/// The same where a job table asks beside the rows themselves: together or one after the other, in one revision or two.
const STANDING: (&str, &str) = (
    "jobs",
    "select concat_ws(' ', pipeline, right(source_key->>0, 2), state, error_kind, reason) from gristmill.embedding_jobs \
     order by pipeline, source_key",
);

/// The ledger: who was billed what, in exact decimals.
const LEDGER: (&str, &str) = (
    "ledger",
    "select concat_ws(' ', u.pipeline, right(j.source_key->>0, 2), 'r' || u.revision, 'tenant=' || right(u.tenant, 2), u.quantity, u.unit || 's', '$' || u.cost) \
     from gristmill.usage_events u join gristmill.embedding_jobs j on j.id = u.job_id order by u.pipeline, j.source_key, u.revision, u.meter",
);

/// One of the files that the tests of the readers use.
fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}
