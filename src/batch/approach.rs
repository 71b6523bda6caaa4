//! Who may still bring texts: a request that is not full need not wait where nobody comes.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts attempts that have begun and have not asked for vectors. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Approach(Arc<watch::Sender<usize>>);

/// An attempt that may ask for vectors, until this is dropped.
#[derive(Debug)]
pub struct Approaching(Approach);

/// A lane's view of them.
pub(super) struct Approachers(watch::Receiver<usize>);

impl Approach {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    pub fn enter(&self) -> Approaching {
        self.0.send_if_modified(|count| {
            *count += 1;
            false
        });
        Approaching(self.clone())
    }

    pub fn watch(&self) -> Approachers {
        Approachers(self.0.subscribe())
    }
}

impl Drop for Approaching {
    fn drop(&mut self) {
        let Self(Approach(count)) = self;
        // Only the last one is news.
        count.send_if_modified(|count| {
            *count -= 1;
            *count == 0
        });
    }
}

impl Approachers {
    /// Waits until there is none. Who enters later is waited for by the next request.
    pub async fn gone(&mut self) {
        // The sender lives as long as the batcher; without it nobody comes either.
        self.0.wait_for(|count| *count == 0).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn they_are_gone_when_the_last_one_is() {
        let approach = Approach::new();
        let mut approachers = approach.watch();
        assert_eq!(approachers.gone().now_or_never(), Some(()));
        let (one, two) = (approach.enter(), approach.enter());
        drop(one);
        let mut gone = Box::pin(approachers.gone());
        assert_eq!(gone.as_mut().now_or_never(), None);
        drop(two);
        assert_eq!(gone.now_or_never(), Some(()));
    }
}
