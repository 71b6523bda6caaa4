use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::db::claims::{Claimed, Cursor};

/// Tenants of one claim.
const TENANTS: usize = 100;
/// How long cursors are trusted: a job that falls due behind one waits no longer than this.
const CURSOR_LIFE: Duration = Duration::from_secs(2);
/// How often tenants are looked for while others still have work: a new one waits no longer than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The tenants of one pipeline that have claimable jobs, taken in turn, and where each one's next claim starts.
#[derive(Debug)]
pub(super) struct Ring {
    tenants: VecDeque<String>,
    cursors: HashMap<String, Cursor>,
    since: Instant,
    looked_at: Option<Instant>,
    /// Where the next look for tenants starts.
    pub after: Option<String>,
}

impl Ring {
    pub fn new() -> Self {
        Self { tenants: VecDeque::new(), cursors: HashMap::new(), since: Instant::now(), looked_at: None, after: None }
    }

    /// Whether it is time to look for tenants: none is left, or new ones may have come.
    pub fn wants_look(&self) -> bool {
        self.tenants.is_empty() || self.looked_at.is_none_or(|at| at.elapsed() > LOOK_EVERY)
    }

    /// Takes in what a look for tenants found; a short answer means that the next one starts over.
    pub fn refill(&mut self, found: Vec<String>, asked: usize) {
        self.looked_at = Some(Instant::now());
        self.after = (found.len() >= asked).then(|| found.last().cloned()).flatten();
        let known: HashSet<String> = self.tenants.iter().cloned().collect();
        self.tenants.extend(found.into_iter().filter(|tenant| !known.contains(tenant)));
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

    /// Moves cursors behind what was claimed; tenants that may have more go to the end, those that a full claim did not reach stay
    /// in front.
    pub fn settle(&mut self, turn: &[(String, Cursor)], claimed: &[Claimed], each: usize, full: bool) {
        let mut got: HashMap<&str, usize> = HashMap::new();
        for one in claimed {
            *got.entry(&one.job.tenant).or_default() += 1;
            let cursor = self.cursors.entry(one.job.tenant.clone()).or_insert(one.cursor);
            let key = |cursor: &Cursor| (cursor.rank, cursor.run_at, cursor.id);
            if key(&one.cursor) > key(cursor) {
                *cursor = one.cursor;
            }
        }
        let got = |tenant: &String| got.get(tenant.as_str()).copied().unwrap_or_default();
        let reached = turn.iter().rposition(|(tenant, _)| got(tenant) > 0).map_or(0, |last| last + 1);
        let (reached, unreached) = turn.split_at(if full { reached } else { turn.len() });
        // Less than its part, where the claim came by, means that the tenant is through.
        self.tenants.extend(reached.iter().map(|(tenant, _)| tenant).filter(|tenant| got(tenant) >= each).cloned());
        for (tenant, _) in unreached.iter().rev() {
            self.tenants.push_front(tenant.clone());
        }
    }

    pub fn forget_cursors(&mut self) {
        self.cursors.clear();
        self.since = Instant::now();
    }
}
