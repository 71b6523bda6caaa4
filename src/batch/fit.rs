use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::{Mutex, watch};

use crate::config::Config;
use crate::db;
use crate::db::app::{Misfit, Plan, Purpose};

/// A pipeline's plan, which changes when the application's tables do. Cheap to clone.
#[derive(Clone)]
pub struct Fit(Arc<Inner>);

struct Inner {
    pool: PgPool,
    config: Arc<Config>,
    state: watch::Sender<State>,
    /// One look at a time: whoever comes meanwhile looks after it.
    looking: Mutex<()>,
}

#[derive(Clone)]
struct State {
    plan: Arc<Plan>,
    /// What does not fit, since the last look.
    misfit: Option<String>,
}

impl Fit {
    /// A pipeline that fits, as its plan says.
    pub fn new(pool: PgPool, config: Arc<Config>, plan: Arc<Plan>) -> Self {
        let (state, _) = watch::channel(State { plan, misfit: None });
        Self(Arc::new(Inner { pool, config, state, looking: Mutex::new(()) }))
    }

    /// The plan that fitted last. Its pipeline, model and generation never change.
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.0.state.borrow().plan)
    }

    /// What does not fit at the moment.
    pub fn misfit(&self) -> Option<String> {
        self.0.state.borrow().misfit.clone()
    }

    /// Waits until something does not fit.
    pub async fn broken(&self) {
        // The sender lives as long as this.
        self.0.state.subscribe().wait_for(|state| state.misfit.is_some()).await.ok();
    }

    /// Asks the catalogue again, and says what does not fit.
    ///
    /// # Errors
    /// The database is away.
    pub async fn look(&self) -> sqlx::Result<Option<String>> {
        let _one = self.0.looking.lock().await;
        let old = self.plan();
        let name = &old.pipeline.name;
        let mut connection = self.0.pool.acquire().await?;
        let found = match db::app::resolve(&mut connection, &self.0.config, &old.pipeline, Purpose::Work).await? {
            Ok((plan, _)) if plan.generation == old.generation => Ok(plan),
            // What it embeds with was chosen by the column's dimensions.
            Ok((plan, _)) => Err(format!(
                "the tables now fit model {} and no longer {}: restart the worker, and see `gristmill accept {name}`",
                plan.model.label, old.model.label
            )),
            Err(misfits) => Err(misfits
                .iter()
                .filter(|misfit| !misfit.warning)
                .map(Misfit::to_string)
                .collect::<Vec<_>>()
                .join("\n")),
        };
        drop(connection);
        match found {
            Ok(plan) => {
                if self.misfit().is_some() {
                    tracing::info!(job.pipeline = name, "the pipeline fits its tables again and goes on");
                }
                self.0.state.send_replace(State { plan: Arc::new(plan), misfit: None });
                Ok(None)
            }
            Err(why) => {
                if self.misfit().as_ref() != Some(&why) {
                    tracing::error!(
                        job.pipeline = name,
                        "the pipeline does not fit its tables any more and pauses: {why}"
                    );
                }
                self.0.state.send_replace(State { plan: old, misfit: Some(why.clone()) });
                Ok(Some(why))
            }
        }
    }
}
