//! The integration tests: one binary, so that one private server serves them all.

mod architecture;
mod batching;
mod commit;
mod documents;
mod embedded;
mod extract;
mod fake_openai;
mod files;
mod ledger;
mod postgres;
mod providers;
mod spine;
mod stores;
mod world;
