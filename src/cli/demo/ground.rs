//! Where the demo's tables go: a private Postgres, or a database of its own on the server that `DATABASE_URL` names.

use std::path::Path;

use url::Url;

use crate::config::{Database, Secret};
use crate::db;
use crate::db::server::DemoDatabase;
use crate::embedded::{self, Kept, Options, PrivatePostgres};

use super::super::failure::Failure;
use super::super::fetch;
use super::progress::Steps;

/// A database for the demo.
pub(super) struct Ground {
    url: String,
    kind: Kind,
}

enum Kind {
    Private(PrivatePostgres),
    /// Made on a given server.
    Own(DemoDatabase),
    /// The given database itself, where no other may be made.
    Given,
}

impl Ground {
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A folder that goes when the database goes, even after kill -9; none on a server that is not ours.
    pub(super) fn folder(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Private(server) => Some(server.folder()),
            Kind::Own(_) | Kind::Given => None,
        }
    }

    /// Takes everything away again, or says how to reach and end what is left.
    pub(super) async fn leave(self, keep: bool) -> Result<Option<String>, Failure> {
        match self.kind {
            Kind::Private(server) if keep => {
                let Kept { url, stop, .. } = server.leave_running()?;
                Ok(Some(format!("the database stays up:\n  {url}\nto end it and remove its folder:\n  {stop}")))
            }
            Kind::Private(server) => {
                tokio::task::spawn_blocking(move || server.stop()).await.map_err(|error| Failure::of(&error))?;
                Ok(None)
            }
            Kind::Own(database) if keep => {
                let name = database.keep().await?;
                Ok(Some(format!(
                    "the database {name} stays on your server; to remove it: drop database {}",
                    db::app::quote(&name)
                )))
            }
            Kind::Own(database) => {
                database.drop().await?;
                Ok(None)
            }
            Kind::Given => Ok(Some(
                "schema gristmill, public.documents and public.document_chunks stay in your database, because this role may \
                 not create one for the demo alone"
                    .to_owned(),
            )),
        }
    }
}

pub(super) async fn obtain(steps: &Steps, keep: bool) -> Result<Ground, Failure> {
    match std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()) {
        Some(url) => on_given(steps, &url).await,
        None => on_private(steps, keep).await,
    }
}

async fn on_private(steps: &Steps, keep: bool) -> Result<Ground, Failure> {
    steps.say("starting a private Postgres");
    let found = tokio::task::spawn_blocking(|| embedded::installation(&fetch::say));
    let installation = found.await.map_err(|error| Failure::of(&error))??;
    let options = Options { durable: keep, keep, within: None };
    let started = tokio::task::spawn_blocking(move || PrivatePostgres::start(&installation, &options));
    let server = started
        .await
        .map_err(|error| Failure::of(&error))?
        .map_err(|error| Failure::of(&error).and("or set DATABASE_URL to a Postgres with pgvector"))?;
    Ok(Ground { url: server.url(), kind: Kind::Private(server) })
}

async fn on_given(steps: &Steps, url: &str) -> Result<Ground, Failure> {
    let mut admin = db::connect_once(url).await.map_err(|error| {
        let away = Failure::of(&error);
        away.and("DATABASE_URL names it: correct it, or unset it for a private Postgres")
    })?;
    if db::server::may_create_databases(&mut admin).await? {
        for dead in db::server::drop_dead_demos(&mut admin).await? {
            steps.say(&format!("dropped database {dead}, which a killed demo had left"));
        }
        let mut own = Url::parse(url).map_err(|_| db::ConnectError::Address)?;
        let database = DemoDatabase::create(admin).await?;
        own.set_path(&database.name);
        steps.say(&format!("created database {} on the server of DATABASE_URL", database.name));
        return Ok(Ground { url: own.into(), kind: Kind::Own(database) });
    }
    steps.say("using the database of DATABASE_URL itself: this role may not create another");
    let pool = db::connect(&Database { url: Secret::new(url), connections: 2 }).await?;
    let ground = db::demo::ground(&pool).await?;
    pool.close().await;
    match ground {
        db::demo::Ground::Free | db::demo::Ground::Starter => Ok(Ground { url: url.to_owned(), kind: Kind::Given }),
        db::demo::Ground::Taken => Err(Failure::Failed(
            "the database of DATABASE_URL has documents of its own, and this role may not create another database: the demo \
             will not touch them; unset DATABASE_URL for a private Postgres, or name an empty database"
                .to_owned(),
        )),
    }
}
