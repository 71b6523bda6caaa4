use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::db::claims::{Claimed, Cursor, Share};

/// Tenants of one claim.
const TENANTS: usize = 100;
/// How long cursors are trusted: a job that falls due behind one waits no longer than this.
const CURSOR_LIFE: Duration = Duration::from_secs(2);
/// How often tenants are looked for while others still have work: a new one waits no longer than this.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

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

    /// Whether it is time to look for so many tenants: new ones may have come, none is left, or the last look did not reach the end
    /// and there is room for more.
    pub fn wants_look(&self, asked: usize) -> bool {
        let goes_on = self.after.is_some() && self.tenants.len() < asked;
        goes_on || self.tenants.is_empty() || self.looked_at.is_none_or(|at| at.elapsed() > LOOK_EVERY)
    }

    /// Takes in what a look for tenants found; a short answer means that the next one starts over.
    pub fn refill(&mut self, found: Vec<String>, asked: usize) {
        self.looked_at = Some(Instant::now());
        self.after = (found.len() >= asked).then(|| found.last().cloned()).flatten();
        let known: HashSet<String> = self.tenants.iter().cloned().collect();
        self.tenants.extend(found.into_iter().filter(|tenant| !known.contains(tenant)));
    }

    /// Whether there is one of these.
    pub fn has(&self, is_one: impl Fn(&str) -> bool) -> bool {
        self.tenants.iter().any(|tenant| is_one(tenant))
    }

    /// The tenants of these whose turn it is, with their cursors and no share yet.
    pub fn turn(&mut self, is_one: impl Fn(&str) -> bool) -> Vec<Share> {
        if self.since.elapsed() > CURSOR_LIFE {
            self.forget_cursors();
        }
        let (mut tenants, mut others) = (Vec::new(), Vec::new());
        while tenants.len() < TENANTS
            && let Some(tenant) = self.tenants.pop_front()
        {
            if is_one(&tenant) { tenants.push(tenant) } else { others.push(tenant) }
        }
        others.into_iter().rev().for_each(|tenant| self.tenants.push_front(tenant));
        tenants
            .into_iter()
            .map(|tenant| {
                let cursor = self.cursors.get(&tenant).copied().unwrap_or(Cursor::START);
                Share { tenant, cursor, most: 0 }
            })
            .collect()
    }

    /// Moves cursors behind what was claimed; tenants that may have more go to the end, those that a full claim did not reach stay
    /// in front.
    pub fn settle(&mut self, turn: &[Share], claimed: &[Claimed], full: bool) {
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
        let reached = turn.iter().rposition(|share| got(&share.tenant) > 0).map_or(0, |last| last + 1);
        let (reached, unreached) = turn.split_at(if full { reached } else { turn.len() });
        // Less than its part, where the claim came by, means that the tenant is through; the last one of a full claim was cut short.
        let was_cut = |nth: usize| full && nth + 1 == reached.len();
        let has_more = |(nth, share): &(usize, &Share)| got(&share.tenant) >= share.most || was_cut(*nth);
        self.tenants.extend(reached.iter().enumerate().filter(has_more).map(|(_, share)| share.tenant.clone()));
        for share in unreached.iter().rev() {
            self.tenants.push_front(share.tenant.clone());
        }
    }

    pub fn forget_cursors(&mut self) {
        self.cursors.clear();
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::super::hands;
    use super::*;
    use crate::domain::ClaimedJob;

    fn names(turn: Vec<Share>) -> String {
        turn.into_iter().map(|share| share.tenant).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_look_that_did_not_reach_the_end_goes_on_at_once() {
        let mut ring = Ring::new();
        assert!(ring.wants_look(3));
        ring.refill(["a", "b", "c"].map(str::to_owned).to_vec(), 3);
        assert!(!ring.wants_look(3), "there is no room for more");
        let mut turn = ring.turn(|tenant| tenant == "b");
        turn[0].most = 1;
        assert!(ring.wants_look(3));
        assert_eq!(ring.after.take().as_deref(), Some("c"));
        ring.refill(vec!["d".to_owned()], 3);
        assert!(!ring.wants_look(3), "all have been seen");
        ring.settle(&turn, &[], false);
        assert_eq!(names(ring.turn(|_| true)), "a c d");
    }

    fn claimed(tenant: &str) -> Claimed {
        let job = ClaimedJob { tenant: tenant.to_owned(), ..hands::tests::claimed(1) };
        Claimed { job, cursor: Cursor::START }
    }

    #[test]
    fn whoever_a_full_claim_cut_short_keeps_its_place_and_whoever_is_through_loses_it() {
        let settled = |full: bool| {
            let mut ring = Ring::new();
            ring.refill(["through", "cut", "unreached"].map(str::to_owned).to_vec(), 9);
            let mut turn = ring.turn(|_| true);
            for share in &mut turn {
                share.most = 3;
            }
            ring.settle(&turn, &["through", "cut", "cut"].map(claimed), full);
            names(ring.turn(|_| true))
        };
        assert_eq!(settled(true), "unreached cut");
        assert_eq!(settled(false), "");
    }

    #[test]
    fn a_turn_of_newcomers_leaves_all_others_where_they_were() {
        let mut ring = Ring::new();
        ring.refill(["a", "new 1", "b", "new 2", "c"].map(str::to_owned).to_vec(), 10);
        let is_new = |tenant: &str| tenant.starts_with("new");
        assert!(ring.has(is_new));
        assert_eq!(names(ring.turn(is_new)), "new 1 new 2");
        assert!(!ring.has(is_new));
        assert_eq!(names(ring.turn(|_| true)), "a b c");
    }
}
