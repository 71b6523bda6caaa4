//! A job's row, and every step that it may take: what the model puts together in every order, and what the machine's log of a real
//! database is held against.

/// Numbers of the engine; the model's are smaller, to keep it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Attempts until a job is failed.
    pub attempts: u8,
    /// From so many crashes on a job runs alone.
    pub alone: u8,
    /// Crashes alone after which it is failed.
    pub crashes_alone: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Claimable, or waiting with a time.
    Pending,
    Processing,
    Completed,
    Failed,
    /// Skipped or cancelled: nothing is wanted of it.
    Ended,
}

/// A job's row, and its source row's content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Job {
    pub phase: Phase,
    pub content: u8,
    pub revision: u8,
    pub attempt: u8,
    /// Leases ever given: the newest is the row's, while it is processed.
    pub leases: u8,
    /// The lease's deadline lies ahead.
    pub is_good: bool,
    pub alone: bool,
    pub crashes: u8,
    pub crashes_alone: u8,
    /// The content whose vectors the target holds.
    pub stored: Option<u8>,
    /// Usage charged for each revision.
    pub charges: Vec<u8>,
}

impl Job {
    /// As an enqueue makes it.
    pub fn new() -> Self {
        Self {
            phase: Phase::Pending,
            content: 0,
            revision: 0,
            attempt: 0,
            leases: 0,
            is_good: false,
            alone: false,
            crashes: 0,
            crashes_alone: 0,
            stored: None,
            charges: Vec::new(),
        }
    }

    /// A fresh lease.
    pub fn claim(&mut self, limits: Limits) -> Option<()> {
        if self.phase != Phase::Pending {
            return None;
        }
        self.phase = Phase::Processing;
        self.leases += 1;
        self.is_good = true;
        self.alone = self.crashes >= limits.alone;
        Some(())
    }

    /// Its vectors are written and charged.
    pub fn complete(&mut self, revision: u8, content: u8) {
        self.end(Phase::Completed);
        self.attempt += 1;
        self.stored = Some(content);
        let nth = usize::from(revision);
        self.charges.resize(self.charges.len().max(nth + 1), 0);
        self.charges[nth] += 1;
    }

    /// For good: a person has to look.
    pub fn fail(&mut self) {
        self.end(Phase::Failed);
        self.attempt += 1;
    }

    /// Skipped, left, or cancelled by a person.
    pub fn end(&mut self, phase: Phase) {
        self.phase = phase;
        self.alone = false;
    }

    /// Given back, nothing burnt: the row moved, the provider is away, the worker stops.
    pub fn put_back(&mut self) {
        self.end(Phase::Pending);
    }

    /// Given back, an attempt burnt, where it was about what the row still is.
    pub fn burn(&mut self, revision: u8, limits: Limits) {
        if self.revision != revision {
            return self.put_back();
        }
        if self.attempt + 1 >= limits.attempts {
            return self.fail();
        }
        self.attempt += 1;
        self.put_back();
    }

    /// Taken from a worker whose lease is over.
    pub fn rescue(&mut self) -> Option<()> {
        if self.phase != Phase::Processing || self.is_good {
            return None;
        }
        self.phase = Phase::Pending;
        self.crashes += 1;
        self.crashes_alone += u8::from(self.alone);
        self.alone = false;
        Some(())
    }

    /// Its worker was stopped, and lives: that was no crash.
    pub fn acquit(&mut self, limits: Limits) -> Option<()> {
        if !matches!(self.phase, Phase::Pending | Phase::Processing | Phase::Completed) || self.crashes == 0 {
            return None;
        }
        self.crashes_alone = self.crashes_alone.saturating_sub(u8::from(self.crashes > limits.alone));
        self.crashes -= 1;
        Some(())
    }

    /// Opened again: the row changed, or somebody asked.
    pub fn change(&mut self) {
        self.content += 1;
        self.revision += 1;
        if self.phase != Phase::Processing {
            self.phase = Phase::Pending;
        }
        (self.attempt, self.crashes, self.crashes_alone) = (0, 0, 0);
    }

    /// A person's word.
    pub fn cancel(&mut self) -> Option<()> {
        if !matches!(self.phase, Phase::Pending | Phase::Processing) {
            return None;
        }
        self.phase = Phase::Ended;
        Some(())
    }

    /// Whether whoever claims it fails it.
    pub fn is_to_blame(&self, limits: Limits) -> bool {
        self.crashes_alone >= limits.crashes_alone
    }
}
