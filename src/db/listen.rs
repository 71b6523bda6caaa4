//! LISTEN on our one channel. Always paired with polling: a notification may be lost, and means no more than "look".

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;

/// How long it is listened in silence. Then the other end has to say that it is there.
const ASKED_AGAIN: Duration = Duration::from_mins(5);

/// A connection that hears announcements.
pub struct Announcements(PgListener);

impl Announcements {
    /// Opens a connection of its own.
    ///
    /// # Errors
    /// The database is away.
    pub async fn listen(pool: &PgPool) -> sqlx::Result<Self> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.ignore_pool_close_event(true);
        // Whoever listens again is told first that nothing was heard.
        listener.eager_reconnect(false);
        listener.listen("gristmill_jobs").await?;
        Ok(Self(listener))
    }

    /// Waits for the next announcement. Waiting may be broken off at any time.
    ///
    /// # Errors
    /// The connection broke; what was announced meanwhile is found by polling.
    pub async fn next(&mut self) -> sqlx::Result<()> {
        loop {
            match tokio::time::timeout(ASKED_AGAIN, self.0.try_recv()).await {
                Ok(heard) => return heard?.map(drop).ok_or(sqlx::Error::WorkerCrashed),
                Err(_) => self.speak().await?,
            }
        }
    }

    /// Has the other end say that it is there.
    ///
    /// # Errors
    /// It does not, or the connection broke.
    pub async fn speak(&mut self) -> sqlx::Result<()> {
        super::answered(sqlx::raw_sql("select").execute(&mut self.0)).await?;
        Ok(())
    }
}
