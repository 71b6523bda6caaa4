//! What may happen.

use proptest::prelude::*;

/// One thing that happens. Rows and jobs are numbered as they came, beyond the last from the first again; what there is nobody for does
/// nothing, so that any step may be left out.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Insert {
        tenant: u8,
        text: Text,
    },
    Update {
        row: usize,
        text: Text,
        how: How,
    },
    UpdateAll {
        text: Text,
    },
    Delete {
        row: usize,
    },
    SoftDelete {
        row: usize,
    },
    Restore {
        row: usize,
    },
    Enqueue {
        row: usize,
        how: How,
    },
    Retry {
        row: usize,
        fresh: bool,
    },
    Cancel {
        row: usize,
    },
    Pause,
    Resume,
    /// The provider's next answer.
    Answer(Say),
    /// The provider takes its time, until `Release`.
    Hold,
    Release,
    Start {
        worker: usize,
    },
    Stop {
        worker: usize,
    },
    Kill {
        worker: usize,
    },
    /// Every connection of every worker is broken.
    Cut,
    /// Every lease is over, whoever holds it.
    Steal,
    /// What waits is due, and nothing is shut any more.
    Pass,
    /// A moment for the workers.
    Breathe {
        ms: u8,
    },
}

/// What a row holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Text {
    Blank,
    Short(u8),
    /// Of several chunks, the first of them every long text's of the row.
    Long(u8),
    /// The provider refuses it.
    Poison(u8),
}

/// Under which isolation something is announced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum How {
    Usual,
    Repeatable,
    /// Rolled back.
    Undone,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Say {
    RateLimited,
    RateLimitedForLong,
    Error,
    Html,
    Empty,
    CutOff,
    HangUp,
    WrongCount,
    WrongDimensions,
    NotFinite,
    Unauthorized,
}

impl Say {
    /// Whether it burns the attempts of those who asked.
    pub fn is_garbled(self) -> bool {
        matches!(self, Self::WrongCount | Self::WrongDimensions | Self::NotFinite | Self::CutOff)
    }
}

impl Text {
    /// No two rows hold the same.
    pub fn content(self, row: &str) -> String {
        match self {
            Self::Blank => "  ".to_owned(),
            Self::Short(nth) => format!("The mill of {row} grinds {nth}."),
            Self::Poison(nth) => format!("POISON {nth} of {row}."),
            Self::Long(nth) => {
                let sentences = |of: &str| -> String {
                    (0..22).map(|sentence| format!("Sentence {sentence} of {of} of {row}. ")).collect()
                };
                format!("{}\n\n{}", sentences("all"), sentences(&format!("text {nth}")))
            }
        }
    }
}

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![
        1 => Just(Text::Blank),
        6 => (0..4_u8).prop_map(Text::Short),
        3 => (0..3_u8).prop_map(Text::Long),
        1 => (0..2_u8).prop_map(Text::Poison),
    ]
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![5 => Just(How::Usual), 2 => Just(How::Repeatable), 1 => Just(How::Undone)]
}

fn say() -> impl Strategy<Value = Say> {
    prop::sample::select(vec![
        Say::RateLimited,
        Say::RateLimitedForLong,
        Say::Error,
        Say::Html,
        Say::Empty,
        Say::CutOff,
        Say::HangUp,
        Say::WrongCount,
        Say::WrongDimensions,
        Say::NotFinite,
        Say::Unauthorized,
    ])
}

pub fn step() -> impl Strategy<Value = Step> {
    let row = 0..6_usize;
    let worker = 0..2_usize;
    prop_oneof![
        8 => (0..3_u8, text()).prop_map(|(tenant, text)| Step::Insert { tenant, text }),
        6 => (row.clone(), text(), how()).prop_map(|(row, text, how)| Step::Update { row, text, how }),
        1 => text().prop_map(|text| Step::UpdateAll { text }),
        1 => row.clone().prop_map(|row| Step::Delete { row }),
        2 => row.clone().prop_map(|row| Step::SoftDelete { row }),
        2 => row.clone().prop_map(|row| Step::Restore { row }),
        3 => (row.clone(), how()).prop_map(|(row, how)| Step::Enqueue { row, how }),
        2 => (row.clone(), any::<bool>()).prop_map(|(row, fresh)| Step::Retry { row, fresh }),
        2 => row.prop_map(|row| Step::Cancel { row }),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        4 => say().prop_map(Step::Answer),
        2 => Just(Step::Hold),
        3 => Just(Step::Release),
        7 => worker.clone().prop_map(|worker| Step::Start { worker }),
        1 => worker.clone().prop_map(|worker| Step::Stop { worker }),
        2 => worker.prop_map(|worker| Step::Kill { worker }),
        1 => Just(Step::Cut),
        2 => Just(Step::Steal),
        3 => Just(Step::Pass),
        9 => (0..90_u8).prop_map(|ms| Step::Breathe { ms }),
    ]
}
