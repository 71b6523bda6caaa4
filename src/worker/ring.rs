use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::db::jobs::{Claimed, Cursor};

/// Tenants of one claim.
const TENANTS: usize = 100;
/// How long cursors are trusted: a job that falls due behind one waits no longer than this.
const CURSOR_LIFE: Duration = Duration::from_secs(2);

/// The tenants of one pipeline that have claimable jobs, taken in turn, and where each one's next claim starts.
#[derive(Debug)]
pub(super) struct Ring {
    tenants: VecDeque<String>,
    cursors: HashMap<String, Cursor>,
    since: Instant,
    /// Where the next look for tenants starts.
    pub after: Option<String>,
}

impl Ring {
    pub fn new() -> Self {
        Self { tenants: VecDeque::new(), cursors: HashMap::new(), since: Instant::now(), after: None }
    }

    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    /// Takes in what a look for tenants found; a short answer means that the next one starts over.
    pub fn refill(&mut self, tenants: Vec<String>, asked: usize) {
        self.after = (tenants.len() >= asked).then(|| tenants.last().cloned()).flatten();
        self.tenants.extend(tenants);
    }

    /// The tenants whose turn it is, with their cursors.
    pub fn turn(&mut self) -> Vec<(String, Cursor)> {
        if self.since.elapsed() > CURSOR_LIFE {
            self.forget_cursors();
        }
        let count = self.tenants.len().min(TENANTS);
        self.tenants
            .drain(..count)
            .map(|tenant| {
                let cursor = self.cursors.get(&tenant).copied().unwrap_or(Cursor::START);
                (tenant, cursor)
            })
            .collect()
    }

    /// Puts tenants that may have more at the end, and moves cursors behind what was claimed.
    pub fn settle(&mut self, turn: Vec<(String, Cursor)>, claimed: &[Claimed], each: usize, full: bool) {
        let mut got: HashMap<&str, usize> = HashMap::new();
        for one in claimed {
            *got.entry(&one.job.tenant).or_default() += 1;
            let cursor = self.cursors.entry(one.job.tenant.clone()).or_insert(one.cursor);
            let key = |cursor: &Cursor| (cursor.rank, cursor.run_at, cursor.id);
            if key(&one.cursor) > key(cursor) {
                *cursor = one.cursor;
            }
        }
        for (tenant, _) in turn {
            // Nothing, where the claim had room left, means that the tenant is through.
            let taken = got.get(tenant.as_str()).copied().unwrap_or_default();
            if taken >= each || (full && taken == 0) {
                self.tenants.push_back(tenant);
            }
        }
    }

    pub fn forget_cursors(&mut self) {
        self.cursors.clear();
        self.since = Instant::now();
    }
}
