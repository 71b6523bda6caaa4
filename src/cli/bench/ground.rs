//! Where the benches' tables go: databases of their own, on a private durable Postgres or on the server of `DATABASE_URL`.

use std::sync::{Mutex, PoisonError};

use sqlx::PgPool;
use url::Url;

use crate::config::{Database, Secret};
use crate::db;
use crate::db::migrate::{self, Set};
use crate::db::server::DemoDatabase;
use crate::embedded::{self, Artifact, Options, PrivatePostgres};

use super::super::failure::Failure;
use super::super::{fetch, migrate as migration};

/// A server for benches.
pub(super) struct Ground {
    url: Url,
    private: Option<PrivatePostgres>,
    /// The databases made on a server that is not private.
    made: Mutex<Vec<String>>,
    pub version: String,
    pub durable: bool,
}

/// A database of one run.
pub(super) struct Field {
    pub url: String,
    pub pool: PgPool,
    database: DemoDatabase,
}

impl Ground {
    pub(super) async fn obtain() -> Result<Self, Failure> {
        let given = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
        let (url, private) = if let Some(url) = given {
            (url, None)
        } else {
            let server = private().await?;
            (server.url(), Some(server))
        };
        let mut admin = db::connect_once(&url).await?;
        if !db::server::may_create_databases(&mut admin).await? {
            return Err(Failure::Failed(
                "this role may not create databases, and a bench makes its own; unset DATABASE_URL for a private Postgres".to_owned(),
            ));
        }
        db::server::drop_dead_demos(&mut admin).await?;
        let version = db::server::version(&mut admin).await?;
        let durable = db::bench::is_durable(&mut admin).await?;
        Ok(Self {
            url: Url::parse(&url).map_err(|_| db::ConnectError::Address)?,
            private,
            made: Mutex::default(),
            version,
            durable,
        })
    }

    /// A fresh database with our schema and an application's tables.
    pub(super) async fn field(&self, dimensions: usize) -> Result<Field, Failure> {
        let database = DemoDatabase::create(db::connect_once(self.url.as_str()).await?).await?;
        if self.private.is_none() {
            self.made.lock().unwrap_or_else(PoisonError::into_inner).push(database.name.clone());
        }
        let mut url = self.url.clone();
        url.set_path(&database.name);
        let url = String::from(url);
        migration::make_vector(&url, true).await?;
        db::bench::prepare(&mut db::connect_once(&url).await?, dimensions).await?;
        let pool = db::connect(&Database { url: Secret::new(&url), connections: 4 }).await?;
        migrate::run(&pool, Set::Ours).await.map_err(|error| Failure::of(&error))?;
        Ok(Field { url, pool, database })
    }

    /// Takes everything away again, also what an interrupted run has not.
    pub(super) async fn leave(self) -> Result<(), Failure> {
        let Some(server) = self.private else {
            let mut admin = db::connect_once(self.url.as_str()).await?;
            for name in self.made.into_inner().unwrap_or_else(PoisonError::into_inner) {
                db::server::drop_demo(&mut admin, &name).await?;
            }
            return Ok(());
        };
        tokio::task::spawn_blocking(move || server.stop()).await.map_err(|error| Failure::of(&error))
    }
}

impl Field {
    pub(super) async fn leave(self) -> Result<(), Failure> {
        self.pool.close().await;
        Ok(self.database.drop().await?)
    }
}

/// One that writes through to the disk.
async fn private() -> Result<PrivatePostgres, Failure> {
    let found = tokio::task::spawn_blocking(|| embedded::installation(&fetch::say));
    let installation = if let Ok(installation) = found.await.map_err(|error| Failure::of(&error))? {
        installation
    } else {
        let programs = fetch::obtain(Artifact::Postgres).await?.join("bin");
        embedded::Installation { programs, version: 18, origin: embedded::Origin::Pinned }
    };
    let options = Options { durable: true, ..Options::default() };
    let started = tokio::task::spawn_blocking(move || PrivatePostgres::start(&installation, &options));
    Ok(started.await.map_err(|error| Failure::of(&error))??)
}
