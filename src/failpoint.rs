//! Floor 1: places where a worker can be made to die, for the matrix of faults in `tests/chaos`. Without the feature `chaos` there
//! is nothing here to reach.

/// A place in the path of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Jobs are claimed, nothing has begun.
    Claimed,
    /// A file is read, not parsed.
    Fetched,
    /// There is a text.
    Extracted,
    /// The provider has answered, and nobody has written it down.
    Answered,
    /// All is written, nothing committed.
    BeforeCommit,
    /// Committed, and nobody told.
    AfterCommit,
}

/// Nothing: the feature `chaos` is off.
#[cfg(not(feature = "chaos"))]
pub const fn reach(_point: Point) {}

/// Ends the process where it stands if `GRISTMILL_FAIL_AT` says so: `answered` at the first time, `answered:3` at the third.
/// Nothing is dropped, flushed or handed back, as with `kill -9`.
#[cfg(feature = "chaos")]
pub fn reach(point: Point) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static ARMED: LazyLock<Option<(Point, u32)>> =
        LazyLock::new(|| std::env::var("GRISTMILL_FAIL_AT").ok().map(|said| parse(&said)));
    static PASSED: AtomicU32 = AtomicU32::new(0);
    if let Some((armed, nth)) = *ARMED
        && armed == point
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == nth
    {
        std::process::abort();
    }
}

#[cfg(feature = "chaos")]
fn parse(said: &str) -> (Point, u32) {
    let (name, nth) = said.split_once(':').unwrap_or((said, "1"));
    let point = match name {
        "claimed" => Point::Claimed,
        "fetched" => Point::Fetched,
        "extracted" => Point::Extracted,
        "answered" => Point::Answered,
        "before_commit" => Point::BeforeCommit,
        "after_commit" => Point::AfterCommit,
        other => panic!("GRISTMILL_FAIL_AT names no place: {other}"),
    };
    (point, nth.parse().expect("GRISTMILL_FAIL_AT counts from 1"))
}
