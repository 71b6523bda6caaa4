//! Gristmill keeps vectors up to date beside the rows they come from, in any Postgres with pgvector.
//!
//! This page is the map. Modules stand on floors and import strictly downward; neighbours on a floor do not know each other;
//! `tests/it/architecture.rs` reads the imports and keeps it so.
//!
//! | floor | module | what lives there |
//! |---|---|---|
//! | 7 | `main`, [`cli`] | one file per command; the parser child branches off in `main` before any runtime or thread exists |
//! | 6 | [`app`] | the only place that wires things together, and the order of shutdown |
//! | 5 | [`worker`], [`console`] | worker: run loop, claim, attempt, heartbeat, rescue, sweep, listen; the only module that names apalis. console: health and metrics over HTTP |
//! | 4 | [`jobs`] | what an attempt does, step by step; `JobError` and the one `match` that turns it into an outcome |
//! | 3 | [`batch`] | loader, batcher, committer: the places where the work of many jobs meets |
//! | 2 | [`db`], [`extract`], [`chunk`], [`providers`], [`files`], [`embedded`] | db: all SQL. extract: bytes to text, in a sandboxed child. chunk: pure. providers: one file per vendor. files: size-limited reads over stores. embedded: pinned downloads and the private Postgres of demo and tests |
//! | 1 | [`config`], [`telemetry`], [`net`], [`failpoint`] | `workers.toml` checked; every metric and log field; the HTTP clients, and connections that go dead; where tests of faults let a worker die |
//! | 0 | [`domain`] | ids, states, outcomes, chunks; no input or output |
//!
//! # The path of one job
//! A row is inserted or changed; a trigger, the sweep or a direct `gristmill.enqueue` opens its job in
//! `gristmill.embedding_jobs`. [`worker`] claims it under a fresh lease and gives it to [`jobs`], which loads the row
//! ([`batch`]'s loader), fetches and parses its file ([`files`], [`extract`]), cuts the text ([`chunk`]), embeds what is new
//! ([`batch`]'s batcher over [`providers`]; of a recording a lane of speech makes a transcript instead) and hands everything to the committer, whose one transaction locks the source row,
//! asks lease, revision and fingerprint again, and writes chunks, status, usage and the job's end.

pub mod app;
pub mod batch;
pub mod chunk;
pub mod cli;
pub mod config;
pub mod console;
pub mod db;
pub mod domain;
pub mod embedded;
pub mod extract;
pub mod failpoint;
pub mod files;
pub mod jobs;
pub mod net;
pub mod providers;
pub mod telemetry;
pub mod worker;
