//! What is happening, while it happens: one line that is rewritten on a terminal, plain lines elsewhere.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use uuid::Uuid;

use crate::app::Running;
use crate::db;
use crate::db::demo::Document;

use super::super::failure::Failure;
use super::super::show;

/// Lines about progress, on standard error.
pub(super) struct Steps {
    quiet: bool,
    terminal: bool,
    /// A line stands that the next one has to overwrite.
    open: AtomicBool,
}

const LOOK_EVERY: Duration = Duration::from_millis(150);
/// Longer than any machine needs for nine small documents.
const PATIENCE: Duration = Duration::from_mins(10);
const WIDTH: usize = 110;

impl Steps {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, terminal: io::stderr().is_terminal(), open: AtomicBool::new(false) }
    }

    /// A line that stays.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            self.end();
            eprintln!("{text}");
        }
    }

    /// A line that the next one overwrites; nothing where there is no terminal.
    fn rewrite(&self, text: &str) {
        if self.terminal && !self.quiet {
            eprint!("\r\x1b[2K{}", show::line(text, WIDTH));
            let _ = io::stderr().flush();
            self.open.store(true, Ordering::Relaxed);
        }
    }

    /// Clears the line that would be overwritten.
    pub(super) fn end(&self) {
        if self.open.swap(false, Ordering::Relaxed) {
            eprint!("\r\x1b[2K");
        }
    }
}

/// Waits until every document is through, telling how far they are.
pub(super) async fn watch(pool: &PgPool, running: &Running, steps: &Steps) -> Result<Vec<Document>, Failure> {
    let began = Instant::now();
    let mut told: BTreeSet<Uuid> = BTreeSet::new();
    loop {
        let documents = db::demo::documents(pool).await?;
        for document in documents.iter().filter(|document| document.finished) {
            if told.insert(document.id) && !steps.terminal {
                steps.say(&through(document, told.len(), documents.len()));
            }
        }
        if documents.iter().all(|document| document.finished) {
            return Ok(documents);
        }
        if began.elapsed() > PATIENCE {
            return Err(stuck(running, &documents));
        }
        let busy: Vec<&str> = documents
            .iter()
            .filter(|document| document.status == "processing")
            .map(|document| document.name.as_str())
            .collect();
        let now = format!(
            "{:.1} s: {} of {} documents through; in hand: {}",
            began.elapsed().as_secs_f64(),
            told.len(),
            documents.len(),
            busy.join(", ")
        );
        steps.rewrite(&now);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn through(document: &Document, nth: usize, of: usize) -> String {
    let chunks = document.chunks.map(|chunks| format!(", {}", show::count(chunks, "chunk"))).unwrap_or_default();
    let reason = document.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{nth} of {of}: {} {}{chunks}{reason}", document.name, document.status)
}

fn stuck(running: &Running, documents: &[Document]) -> Failure {
    let open = documents.iter().filter(|document| !document.finished);
    let open: Vec<&str> = open.map(|document| document.name.as_str()).collect();
    let lanes = running.lane_status().into_iter().filter_map(|lane| lane.paused.map(|(why, _)| why));
    let lanes: Vec<String> = lanes.collect();
    Failure::Failed(format!("these documents did not get through: {} {}", open.join(", "), lanes.join("; ")))
}
