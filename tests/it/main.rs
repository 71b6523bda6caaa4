//! The integration tests: one binary, so that one private server serves them all.

mod architecture;
mod embedded;
mod engine;
mod extract;
mod fake_openai;
mod files;
mod outcomes;
mod postgres;
mod providers;
mod spine;
mod stores;
mod world;
