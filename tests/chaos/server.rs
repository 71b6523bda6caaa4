//! A server of our own that may crash: what it has acknowledged is on disk.

use std::path::PathBuf;
use std::sync::Mutex;

use gristmill::embedded::{self, Installation, Options, PrivatePostgres};

/// It lives as long as the process; its watchdog sees the end.
static SERVER: Mutex<Option<(PrivatePostgres, Installation)>> = Mutex::new(None);

/// Starts it and makes it the one that test databases are made in.
#[expect(
    unsafe_code,
    clippy::disallowed_methods,
    reason = "no other thread exists yet, so nobody reads the environment"
)]
pub fn start() {
    let installation = embedded::installation(&|progress| eprintln!("{progress}")).unwrap();
    let server = PrivatePostgres::start(&installation, &Options { durable: true, ..Options::default() }).unwrap();
    // SAFETY: this is called first in main, before any thread.
    unsafe { std::env::set_var("DATABASE_URL", server.url()) };
    *SERVER.lock().unwrap() = Some((server, installation));
}

/// Stops it as a crash would.
pub fn crash() {
    SERVER.lock().unwrap().as_mut().unwrap().0.crash().unwrap();
}

/// Starts it again on what it has.
pub fn recover() {
    let mut server = SERVER.lock().unwrap();
    let (server, installation) = server.as_mut().unwrap();
    server.recover(installation).unwrap();
}

/// The folder of `pg_dump` and `psql`.
pub fn programs() -> PathBuf {
    SERVER.lock().unwrap().as_ref().unwrap().1.programs.clone()
}
