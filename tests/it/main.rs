//! The integration tests: one binary, so that one private server serves them all.

#![expect(clippy::unwrap_used, reason = "a test may end at the first thing that does not hold")]

mod announcing;
mod applications;
mod architecture;
mod batching;
mod cli;
mod commit;
mod documents;
mod effects;
mod embedded;
mod engine;
mod existing;
mod extract;
mod fake_openai;
mod fake_speech;
mod files;
mod ledger;
mod outcomes;
mod postgres;
mod providers;
mod schema;
mod spine;
mod stores;
mod transcripts;
mod world;
