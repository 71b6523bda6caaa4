//! Floor 1: places where a worker can be made to die or to panic, for the matrix of faults in `tests/chaos`. Without the feature
//! `chaos` there is nothing here to reach.

/// A place in the path of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Jobs are claimed, nothing has begun.
    Claimed,
    /// The row is read.
    Loaded,
    /// A file is read, not parsed.
    Fetched,
    /// There is a text.
    Extracted,
    /// The provider has answered, and nobody has written it down.
    Answered,
    /// In the transaction of the commit; the target is written, the rest is not.
    Writing,
    /// All is written, nothing committed.
    BeforeCommit,
    /// Committed, and nobody told.
    AfterCommit,
}

/// Nothing: the feature `chaos` is off.
#[cfg(not(feature = "chaos"))]
pub const fn reach(_point: Point) {}

/// What happens where `GRISTMILL_FAIL_AT` says so: `answered` ends the process where it stands at the first passage, `answered:3` at
/// the third; nothing is dropped, flushed or handed back, as with `kill -9`. `answered:3:a text` panics, quoting the text, at the
/// third passage, the sixth and the ninth.
#[cfg(feature = "chaos")]
pub fn reach(point: Point) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// So often, a worker that panics does it.
    const PANICS: u32 = 3;
    static ARMED: LazyLock<Option<Armed>> =
        LazyLock::new(|| std::env::var("GRISTMILL_FAIL_AT").ok().map(|said| parse(&said)));
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Some(armed) = ARMED.as_ref().filter(|armed| armed.point == point) else { return };
    let passed = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    match &armed.quoting {
        Some(text) if passed.is_multiple_of(armed.nth) && passed <= PANICS * armed.nth => {
            panic!("made to panic over {text:?}")
        }
        None if passed == armed.nth => std::process::abort(),
        _ => {}
    }
}

#[cfg(feature = "chaos")]
struct Armed {
    point: Point,
    nth: u32,
    /// What it panics over, where it does not die.
    quoting: Option<String>,
}

#[cfg(feature = "chaos")]
fn parse(said: &str) -> Armed {
    let mut words = said.split(':');
    let point = match words.next().unwrap_or_default() {
        "claimed" => Point::Claimed,
        "loaded" => Point::Loaded,
        "fetched" => Point::Fetched,
        "extracted" => Point::Extracted,
        "answered" => Point::Answered,
        "writing" => Point::Writing,
        "before_commit" => Point::BeforeCommit,
        "after_commit" => Point::AfterCommit,
        other => panic!("GRISTMILL_FAIL_AT names no place: {other}"),
    };
    let nth = words.next().map_or(1, |nth| nth.parse().expect("GRISTMILL_FAIL_AT counts from 1"));
    Armed { point, nth, quoting: words.next().map(str::to_owned) }
}
