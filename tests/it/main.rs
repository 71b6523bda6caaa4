//! The integration tests: one binary, so that one private server serves them all. The short faults of `tests/chaos` are among them.

#![expect(clippy::unwrap_used, reason = "a test may end at the first thing that does not hold")]

mod announcing;
mod applications;
mod apps;
mod architecture;
#[path = "../chaos/arena.rs"]
mod arena;
mod batching;
mod bench;
mod budgets;
mod cache;
mod ceilings;
mod cli;
mod commit;
mod connections;
mod create;
mod documents;
mod effects;
mod embedded;
mod engine;
mod existing;
mod extract;
mod fairness;
mod fake_openai;
mod fake_speech;
#[path = "../chaos/faults/mod.rs"]
mod faults;
mod files;
mod forget;
mod fuzz;
mod grants;
mod handing_on;
mod index;
#[path = "../chaos/invariants.rs"]
mod invariants;
mod keys;
mod ledger;
mod limits;
mod machine;
mod memory;
mod migrating;
mod misfits;
mod model;
mod operator;
mod outcomes;
mod parents;
mod pgbouncer;
mod plans;
mod postgres;
mod providers;
#[path = "../chaos/proxy.rs"]
mod proxy;
mod queue;
#[cfg(any(feature = "pdf-extract", feature = "docx-rs"))]
mod readers;
mod reconcile;
#[path = "../chaos/run.rs"]
mod run;
mod schema;
mod search;
mod shapes;
mod signals;
mod sparse;
mod spine;
mod statuses;
mod steady;
#[path = "../chaos/storehouse.rs"]
mod storehouse;
mod stores;
mod survival;
mod transcripts;
mod triggers;
mod verify;
mod views;
#[path = "../chaos/wall.rs"]
mod wall;
mod world;

/// What the matrix of faults may do to its own server, and nobody to this one: all tests share it.
mod server {
    pub fn crash() {
        unreachable!("faults of the server are left out here");
    }

    pub fn recover() {
        crash();
    }

    pub fn programs() -> std::path::PathBuf {
        unreachable!("faults that want the server's own programs are left out here");
    }
}
