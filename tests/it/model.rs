//! A model of claim, lease, heartbeat, rescue, commit and ledger, every interleaving of which is looked at, with workers that are
//! killed, paused beyond their lease and started again, rows that change in hand, and a job that kills whoever works on it.
//!
//! Each rule of the engine is a switch of the model. With all of them every property holds; each weakened variant is shown to break the
//! one it is there for, which is how we know that the properties see anything. What the steps stand for:
//!
//! | step | in the engine |
//! |---|---|
//! | `Claim` | `db::claims`: a fresh lease; a job that crashed three times alone in its worker |
//! | `Intend`, `Call` | `db::calls`: the intent before the call; `batch::lane` |
//! | `Commit`, `Burn`, `GiveUp` | `batch::transaction`, `db::jobs::lock`, `release`: fenced by lease and time, then revision and content |
//! | `PutBack` | `db::jobs::release` of a job that waits for its provider, or whose worker stops |
//! | `Beat`, `Expire`, `Rescue` | `db::jobs::heartbeat`, the database's clock, `db::jobs::rescue` |
//! | `Acquit` | `db::attempts::acquit`: a worker that was only stopped takes the crashes back |
//! | `Change` | the application's update, its trigger in the same transaction |
//! | `Cancel` | `gristmill.cancel`: a person's word |
//!
//! What a step does to the job's row is written once, in [`job`]: `machine` holds what a real database did against the same.

pub mod job;

use stateright::{Checker as _, Model, Property};

use job::{Job, Limits, Phase};

/// Which rules hold.
#[derive(Debug, Clone, Copy)]
struct Rules {
    fence: Fence,
    /// A commit compares the revision it was claimed for.
    revision: bool,
    /// A job that killed its worker twice with nothing else in hand is failed.
    gives_up: bool,
    /// Only crashes with nothing else in hand count against a job.
    blames_alone: bool,
    /// Whoever was only stopped counts as no crash, once it is back.
    acquits: bool,
    /// The intent is written before the call.
    intent_first: bool,
    /// Jobs whose workers died are made claimable.
    rescues: bool,
}

/// What a write about an attempt asks of the job's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    /// That its lease is the attempt's own, and good.
    Lease,
    /// That its lease is the attempt's own, whatever the time.
    LeaseAtAnyTime,
    /// That it is being processed at the attempt's own number.
    AttemptNumber,
    Nothing,
}

const ALL: Rules = Rules {
    fence: Fence::Lease,
    revision: true,
    gives_up: true,
    blames_alone: true,
    acquits: true,
    intent_first: true,
    rescues: true,
};

/// An attempt in a worker's hands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Hand {
    job: usize,
    lease: u8,
    attempt: u8,
    revision: u8,
    content: u8,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Loaded,
    Intended,
    Paid,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    jobs: Vec<Job>,
    /// None: the worker is dead.
    workers: Vec<Option<Vec<Hand>>>,
    /// Who claimed each job last, if it lives.
    holders: Vec<Option<usize>>,
    /// Living workers that were taken for dead, and their jobs.
    away: Vec<(usize, usize)>,
    /// Faults that are still to come.
    faults: Faults,
    /// Paid calls, and lines of them in the books.
    calls: u8,
    intents: u8,
    /// A write of an attempt whose lease was not the job's.
    trespassed: bool,
    /// Workers that a job has killed.
    deaths: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Faults {
    kills: u8,
    pauses: u8,
    changes: u8,
    failures: u8,
    /// Jobs given back, and jobs cancelled.
    words: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Claim {
        worker: usize,
        job: usize,
    },
    Intend {
        worker: usize,
        hand: usize,
    },
    Call {
        worker: usize,
        hand: usize,
    },
    Commit {
        worker: usize,
        hand: usize,
    },
    /// The attempt failed: one is burnt, the job is tried again, or failed at the limit.
    Burn {
        worker: usize,
        hand: usize,
    },
    /// Whoever has a job that killed its workers alone fails it.
    GiveUp {
        worker: usize,
        hand: usize,
    },
    PutBack {
        worker: usize,
        hand: usize,
    },
    Beat {
        worker: usize,
        hand: usize,
    },
    /// A lease's deadline passes: its worker is paused, or cut off.
    Expire {
        job: usize,
    },
    Rescue {
        job: usize,
    },
    Acquit {
        worker: usize,
        job: usize,
    },
    Kill {
        worker: usize,
    },
    Start {
        worker: usize,
    },
    Change {
        job: usize,
    },
    Cancel {
        job: usize,
    },
}

/// The engine's are 5, `db::claims::ALONE` and `jobs::start::CRASHES_ALONE`.
const LIMITS: Limits = Limits { attempts: 2, alone: 2, crashes_alone: 2 };
const SLOTS: usize = 2;

/// What is looked at.
#[derive(Debug, Clone)]
struct Scene {
    rules: Rules,
    jobs: usize,
    workers: usize,
    faults: Faults,
    /// The first job kills whoever calls for it.
    poison: bool,
}

impl Scene {
    fn hand(state: &State, worker: usize, hand: usize) -> Option<&Hand> {
        state.workers[worker].as_ref()?.get(hand)
    }

    /// Whether a write about this attempt passes the fence; where it passes without the lease being its own, that is noted.
    fn passes(&self, state: &mut State, hand: &Hand) -> bool {
        let job = &state.jobs[hand.job];
        let owns = job.phase == Phase::Processing && job.leases == hand.lease;
        let passes = match self.rules.fence {
            Fence::Lease => owns && job.is_good,
            Fence::LeaseAtAnyTime => owns,
            Fence::AttemptNumber => job.phase == Phase::Processing && job.attempt == hand.attempt,
            Fence::Nothing => true,
        };
        state.trespassed |= passes && !(owns && job.is_good);
        passes
    }

    fn claim(state: &mut State, worker: usize, nth: usize) -> Option<()> {
        let hands = state.workers[worker].as_mut()?;
        let beside_one_alone = hands.iter().any(|hand| state.jobs[hand.job].alone);
        let job = &mut state.jobs[nth];
        let alone = job.crashes >= LIMITS.alone;
        if hands.len() >= SLOTS || beside_one_alone || (alone && !hands.is_empty()) {
            return None;
        }
        job.claim(LIMITS)?;
        let Job { leases: lease, attempt, revision, content, .. } = *job;
        hands.push(Hand { job: nth, lease, attempt, revision, content, step: Step::Loaded });
        state.holders[nth] = Some(worker);
        Some(())
    }

    fn die(state: &mut State, worker: usize) -> Option<()> {
        state.holders.iter_mut().filter(|holder| **holder == Some(worker)).for_each(|holder| *holder = None);
        state.away.retain(|(away, _)| *away != worker);
        state.workers[worker].take().map(|_| ())
    }

    /// Whether the attempt fails its job before it does anything.
    fn gives_up(&self, job: &Job) -> bool {
        let blamed = self.rules.blames_alone && job.is_to_blame(LIMITS);
        self.rules.gives_up && (blamed || !self.rules.blames_alone && job.crashes >= LIMITS.crashes_alone)
    }

    /// Takes an attempt out of its worker's hands, and lets it write what it has to say.
    fn ends(&self, state: &mut State, worker: usize, nth: usize, write: impl Fn(&mut Job, &Hand)) -> Option<()> {
        let hand = Self::hand(state, worker, nth)?.clone();
        state.workers[worker].as_mut()?.remove(nth);
        if self.passes(state, &hand) {
            write(&mut state.jobs[hand.job], &hand);
        }
        Some(())
    }

    fn call(&self, state: &mut State, worker: usize, nth: usize) -> Option<()> {
        let hand = Self::hand(state, worker, nth)?.clone();
        let ready = if self.rules.intent_first { Step::Intended } else { Step::Loaded };
        if hand.step != ready || self.gives_up(&state.jobs[hand.job]) {
            return None;
        }
        if self.poison && hand.job == 0 {
            state.deaths += 1;
            return Self::die(state, worker);
        }
        state.calls += 1;
        let step = if self.rules.intent_first { Step::Paid } else { Step::Intended };
        state.workers[worker].as_mut()?[nth].step = step;
        Some(())
    }

    fn commit(&self, state: &mut State, worker: usize, nth: usize) -> Option<()> {
        Self::hand(state, worker, nth).filter(|hand| hand.step == Step::Paid)?;
        self.ends(state, worker, nth, |job, hand| {
            if self.rules.revision && (job.revision != hand.revision || job.content != hand.content) {
                job.put_back();
            } else {
                job.complete(hand.revision, hand.content);
            }
        })
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Claim { worker, job } => Self::claim(state, worker, job),
            Action::Intend { worker, hand } => {
                let (from, to) =
                    if self.rules.intent_first { (Step::Loaded, Step::Intended) } else { (Step::Intended, Step::Paid) };
                let hand = state.workers[worker].as_mut()?.get_mut(hand).filter(|hand| hand.step == from)?;
                hand.step = to;
                state.intents += 1;
                Some(())
            }
            Action::Call { worker, hand } => self.call(state, worker, hand),
            Action::Commit { worker, hand } => self.commit(state, worker, hand),
            Action::Burn { worker, hand } => {
                state.faults.failures = state.faults.failures.checked_sub(1)?;
                self.ends(state, worker, hand, |job, hand| job.burn(hand.revision, LIMITS))
            }
            Action::GiveUp { worker, hand } => {
                let job = Self::hand(state, worker, hand)?.job;
                self.gives_up(&state.jobs[job]).then_some(())?;
                self.ends(state, worker, hand, |job, _| job.fail())
            }
            Action::PutBack { worker, hand } => {
                state.faults.words = state.faults.words.checked_sub(1)?;
                self.ends(state, worker, hand, |job, _| job.put_back())
            }
            Action::Beat { worker, hand } => {
                let hand = Self::hand(state, worker, hand)?.clone();
                let job = &mut state.jobs[hand.job];
                let ours = job.phase == Phase::Processing && job.leases == hand.lease;
                job.is_good |= ours;
                Some(())
            }
            Action::Expire { job } => {
                let held = |hands: &Vec<Hand>| {
                    hands.iter().any(|hand| hand.job == job && hand.lease == state.jobs[job].leases)
                };
                // Of a dead worker's lease nobody can keep the deadline from passing; of a living one's it is a fault.
                if state.workers.iter().flatten().any(held) {
                    state.faults.pauses = state.faults.pauses.checked_sub(1)?;
                }
                // Between two pauses it has come back.
                if self.rules.acquits && state.away.iter().any(|(worker, _)| state.holders[job] == Some(*worker)) {
                    return None;
                }
                let job = &mut state.jobs[job];
                (job.phase == Phase::Processing).then(|| job.is_good = false)
            }
            Action::Rescue { job } => {
                self.rules.rescues.then_some(())?;
                state.away.extend(state.holders[job].take().map(|worker| (worker, job)));
                state.away.sort_unstable();
                state.away.dedup();
                state.jobs[job].rescue()
            }
            Action::Acquit { worker, job } => {
                self.rules.acquits.then_some(())?;
                let nth = state.away.iter().position(|away| *away == (worker, job))?;
                state.away.remove(nth);
                // A job that was opened again, or has failed, is not blamed any more.
                state.jobs[job].acquit(LIMITS);
                Some(())
            }
            Action::Kill { worker } => {
                state.faults.kills = state.faults.kills.checked_sub(1)?;
                Self::die(state, worker)
            }
            Action::Start { worker } => {
                let dead = state.workers[worker].is_none();
                dead.then(|| state.workers[worker] = Some(Vec::new()))
            }
            Action::Change { job } => {
                state.faults.changes = state.faults.changes.checked_sub(1)?;
                state.jobs[job].change();
                state.away.retain(|(_, away)| *away != job);
                Some(())
            }
            Action::Cancel { job } => {
                state.faults.words = state.faults.words.checked_sub(1)?;
                state.jobs[job].cancel()
            }
        }
    }
}

impl Model for Scene {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            jobs: vec![Job::new(); self.jobs],
            workers: vec![Some(Vec::new()); self.workers],
            holders: vec![None; self.jobs],
            away: Vec::new(),
            faults: self.faults,
            calls: 0,
            intents: 0,
            trespassed: false,
            deaths: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (worker, hands) in state.workers.iter().enumerate() {
            let Some(hands) = hands else {
                actions.push(Action::Start { worker });
                continue;
            };
            actions.push(Action::Kill { worker });
            actions.extend((0..self.jobs).map(|job| Action::Claim { worker, job }));
            actions.extend((0..self.jobs).map(|job| Action::Acquit { worker, job }));
            for hand in 0..hands.len() {
                actions.extend([
                    Action::Intend { worker, hand },
                    Action::Call { worker, hand },
                    Action::Commit { worker, hand },
                    Action::Burn { worker, hand },
                    Action::GiveUp { worker, hand },
                    Action::PutBack { worker, hand },
                    Action::Beat { worker, hand },
                ]);
            }
        }
        for job in 0..self.jobs {
            actions.extend([
                Action::Expire { job },
                Action::Rescue { job },
                Action::Change { job },
                Action::Cancel { job },
            ]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        self.step(&mut next, action)?;
        (next != *last).then_some(next)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.deaths <= LIMITS.alone + LIMITS.crashes_alone + 1
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("only who has the lease writes", |_: &Scene, state: &State| !state.trespassed),
            Property::always("a revision is charged once", |_: &Scene, state: &State| {
                state.jobs.iter().all(|job| job.charges.iter().all(|&charges| charges <= 1))
            }),
            Property::always("completed is true", |_: &Scene, state: &State| {
                state.jobs.iter().all(|job| job.phase != Phase::Completed || job.stored == Some(job.content))
            }),
            Property::always("every call is on the books", |_: &Scene, state: &State| state.calls <= state.intents),
            Property::always("no innocent job is failed", |scene: &Scene, state: &State| {
                let innocent = state.jobs.iter().skip(usize::from(scene.poison));
                scene.faults.failures > 0 || innocent.into_iter().all(|job| job.phase != Phase::Failed)
            }),
            Property::always("a job that kills its workers is set aside", |_: &Scene, state: &State| {
                state.deaths <= LIMITS.alone + LIMITS.crashes_alone
            }),
            // With no more faults to come, whatever comes last is an end.
            Property::eventually("every job is finished", |_: &Scene, state: &State| {
                state.jobs.iter().all(|job| !matches!(job.phase, Phase::Pending | Phase::Processing))
            }),
        ]
    }
}

fn faults(kills: u8, pauses: u8, changes: u8, failures: u8) -> Faults {
    Faults { kills, pauses, changes, failures, words: 0 }
}

/// Two workers, one row that changes.
fn race(rules: Rules) -> Scene {
    Scene { rules, jobs: 1, workers: 2, faults: faults(1, 1, 1, 1), poison: false }
}

/// A job that kills whoever works on it beside one that does not.
fn poison(rules: Rules) -> Scene {
    Scene { rules, jobs: 2, workers: 1, faults: faults(0, 0, 0, 0), poison: true }
}

/// A worker that is stopped again and again.
fn stops(rules: Rules) -> Scene {
    Scene { rules, jobs: 1, workers: 1, faults: faults(0, 4, 0, 0), poison: false }
}

/// The properties that do not hold, in the order in which they are written.
fn broken(scene: Scene) -> Vec<&'static str> {
    let order: Vec<&'static str> = scene.properties().iter().map(|property| property.name).collect();
    let checker = scene.checker().threads(2).spawn_bfs().join();
    assert!(checker.is_done() && checker.unique_state_count() > 50, "{} states", checker.unique_state_count());
    let found = checker.discoveries();
    order.into_iter().filter(|name| found.contains_key(name)).collect()
}

#[test]
fn with_every_rule_every_promise_holds() {
    assert_eq!(broken(race(ALL)), Vec::<&str>::new());
    assert_eq!(broken(poison(ALL)), Vec::<&str>::new());
    let spoken = Faults { words: 2, ..faults(1, 1, 1, 0) };
    assert_eq!(broken(Scene { faults: spoken, ..race(ALL) }), Vec::<&str>::new());
    assert_eq!(broken(stops(ALL)), Vec::<&str>::new());
    let two = Scene { jobs: 2, faults: faults(1, 1, 0, 0), ..race(ALL) };
    assert_eq!(broken(two), Vec::<&str>::new());
}

#[test]
#[ignore = "half a minute unoptimised: the same with more of everything"]
fn with_every_rule_every_promise_holds_in_a_larger_world() {
    let larger = Scene { workers: 3, faults: faults(2, 1, 1, 1), ..race(ALL) };
    assert_eq!(broken(larger), Vec::<&str>::new());
    assert_eq!(broken(Scene { workers: 2, ..poison(ALL) }), Vec::<&str>::new());
}

#[test]
fn each_rule_is_needed() {
    let race = |rules| broken(race(rules));
    let poison = |rules| broken(poison(rules));
    assert_eq!(
        race(Rules { fence: Fence::Nothing, ..ALL }),
        ["only who has the lease writes", "a revision is charged once"]
    );
    assert_eq!(race(Rules { fence: Fence::LeaseAtAnyTime, ..ALL }), ["only who has the lease writes"]);
    assert_eq!(race(Rules { fence: Fence::AttemptNumber, ..ALL }), ["only who has the lease writes"]);
    assert_eq!(race(Rules { revision: false, ..ALL }), ["completed is true"]);
    assert_eq!(race(Rules { intent_first: false, ..ALL }), ["every call is on the books"]);
    assert_eq!(race(Rules { rescues: false, ..ALL }), ["every job is finished"]);
    assert_eq!(
        poison(Rules { gives_up: false, ..ALL }),
        ["a job that kills its workers is set aside", "every job is finished"]
    );
    assert_eq!(broken(stops(Rules { acquits: false, ..ALL })), ["no innocent job is failed"]);
    assert_eq!(poison(Rules { blames_alone: false, ..ALL }), ["no innocent job is failed"]);
}
