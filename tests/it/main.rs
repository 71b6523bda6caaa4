//! The integration tests: one binary, so that one private server serves them all.

#![expect(clippy::unwrap_used, reason = "a test may end at the first thing that does not hold")]

mod announcing;
mod applications;
mod apps;
mod architecture;
mod batching;
mod bench;
mod budgets;
mod ceilings;
mod cli;
mod commit;
mod create;
mod documents;
mod effects;
mod embedded;
mod engine;
mod existing;
mod extract;
mod fake_openai;
mod fake_speech;
mod files;
mod forget;
mod fuzz;
mod grants;
mod index;
mod keys;
mod ledger;
mod limits;
mod memory;
mod migrating;
mod misfits;
mod model;
mod operator;
mod outcomes;
mod parents;
mod postgres;
mod providers;
mod queue;
#[cfg(any(feature = "pdf-extract", feature = "docx-rs"))]
mod readers;
mod reconcile;
mod schema;
mod shapes;
mod signals;
mod sparse;
mod spine;
mod statuses;
mod steady;
mod stores;
mod transcripts;
mod triggers;
mod verify;
mod views;
mod world;
