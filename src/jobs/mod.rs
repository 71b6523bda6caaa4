//! Floor 4: what an attempt does, step by step, and the one `match` that turns an error into an outcome.

mod content;
mod embed;
mod error;
mod limit;
mod start;
mod transcribe;

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;

use crate::batch::{Batcher, CeilingOf, Committer, FairSlots, Fit, Loader, Memory, SpeechLane};
use crate::chunk::{Rules, Tokenizer};
use crate::db::app::Plan;
use crate::extract::{Extractor, PartLimits};
use crate::files::Files;

pub use embed::tokens_of;
pub use error::{JobError, Standing};
pub use start::{InWork, run};

/// Everything an attempt of one pipeline works with. Cheap to clone.
#[derive(Clone)]
pub struct Deps {
    /// For what an attempt asks alone.
    pub pool: PgPool,
    /// As it was at the start: what it says of the configuration and the model holds for as long as the worker runs.
    pub plan: Arc<Plan>,
    /// The plan as the tables are now.
    pub fit: Fit,
    pub means: Means,
    pub loader: Loader,
    pub committer: Committer,
    pub files: Arc<Files>,
    pub extractor: Extractor,
    /// Parser children at once, of all pipelines together.
    pub parsers: FairSlots,
    /// Large texts that are cut at once, each on a thread of its own.
    pub cutters: FairSlots,
    /// Bytes in flight.
    pub memory: Memory,
    /// The most money that may be spent, where that is said.
    pub ceiling: Option<Arc<CeilingOf>>,
}

/// What a pipeline's kind of work is done with.
#[derive(Clone)]
pub enum Means {
    Vectors(Vectors),
    Speech(Speech),
}

/// How texts become vectors.
#[derive(Clone)]
pub struct Vectors {
    pub rules: Arc<Rules>,
    pub tokenizer: Tokenizer,
    pub batcher: Batcher,
}

/// How recordings become texts.
#[derive(Clone)]
pub struct Speech {
    pub lane: SpeechLane,
    pub limits: PartLimits,
    /// What sounds for longer is not paid for.
    pub longest_recording: Duration,
}

/// What an attempt keeps for its log line and the timeline.
#[derive(Debug, Default, Clone)]
pub struct Trace {
    stages: serde_json::Map<String, serde_json::Value>,
    since: Option<std::time::Instant>,
}

impl Trace {
    /// Ends the stage under way and notes its milliseconds.
    pub fn stage(&mut self, name: &str) {
        let now = std::time::Instant::now();
        if let Some(since) = self.since.replace(now) {
            let ms = u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX);
            self.stages.insert(name.to_owned(), ms.into());
        }
    }

    /// Starts the clock.
    pub fn start() -> Self {
        Self { since: Some(std::time::Instant::now()), ..Self::default() }
    }

    /// Milliseconds of all stages so far.
    pub fn total_ms(&self) -> u64 {
        self.stages.values().filter_map(serde_json::Value::as_u64).sum()
    }

    /// Milliseconds per stage.
    pub fn json(&self) -> serde_json::Value {
        serde_json::Value::Object(self.stages.clone())
    }
}
