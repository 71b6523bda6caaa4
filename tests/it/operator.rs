//! What an operator reads: numbers that hold, reasons that are true, and nothing that is no fault.

use std::io::Write;
use std::sync::{Arc, Mutex};

use insta::assert_snapshot;
use sqlx::Executor as _;

use crate::cli::{command, gristmill, run};
use crate::extract::pdf;
use crate::fake_openai::{Answer, FakeOpenAi, Options};
use crate::world::{DIMENSIONS, USER, World};

fn vendor() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

#[tokio::test]
async fn a_ledger_of_any_size_adds_up() {
    let world = World::new().await;
    world
        .sql(
            "insert into gristmill.provider_calls (id, worker, provider, model, inputs, tokens_estimated, outcome, tokens, cost) \
             select gen_random_uuid(), gen_random_uuid(), 'vendor', 'small', 2147483647, 1, 'paid', 9223372036854775807, 1e18 \
             from generate_series(1, 3)",
        )
        .await;

    let calls = gristmill(&world, &["usage", "--json"]).await.ok().json()["calls"][0].clone();

    let numbers = ["inputs", "tokens", "cost"].map(|name| calls[name].as_str().unwrap_or_default().to_owned());
    assert_eq!(numbers, ["6442450941", "27670116110564327421", "3000000000000000000"]);
}

#[tokio::test]
async fn a_pipeline_that_does_not_fit_is_not_warned_of_what_nobody_knows() {
    let world = World::new().await.change("changed_at = \"updated_at\"\n", "");
    world.install_triggers().await;
    let world = world.change("content = \"{chunk.text}\"", "contents = \"{chunk.text}\"");

    let ran = gristmill(&world, &["check"]).await;

    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("has no column contents") && !ran.out.contains("triggers install"), "{}", ran.out);
}

/// What Postgres says to a client besides its answers.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Said {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panics")).into_owned()
    }
}
