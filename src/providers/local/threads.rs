//! Threads of our own for work that would block the runtime's.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rayon::ThreadPoolBuilder;
use tokio::sync::oneshot;

/// Threads that share a model and a queue of work for it. They end with the queue.
pub(super) struct Threads<M> {
    queue: Sender<Task<M>>,
}

type Task<M> = Box<dyn FnOnce(&M) + Send>;

/// The work panicked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Panicked;

impl<M: Send + Sync + 'static> Threads<M> {
    /// At least one thread.
    pub(super) fn start(model: M, threads: usize) -> io::Result<Self> {
        let model = Arc::new(model);
        let (queue, tasks) = channel::<Task<M>>();
        let tasks = Arc::new(Mutex::new(tasks));
        for number in 0..threads.max(1) {
            let (model, tasks) = (Arc::clone(&model), Arc::clone(&tasks));
            thread::Builder::new().name(format!("model-{number}")).spawn(move || work::<M>(&model, &tasks))?;
        }
        Ok(Self { queue })
    }

    /// Runs `work` on one of the threads. Dropped while it waits in the queue, the work is not begun.
    pub(super) async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&M) -> R + Send + 'static,
    ) -> Result<R, Panicked> {
        let (answer, answered) = oneshot::channel();
        let task = Box::new(move |model: &M| {
            if !answer.is_closed() {
                // Nobody may be waiting any more; then nobody minds.
                let _ = answer.send(work(model));
            }
        });
        // Threads end after the queue only, so this cannot fail while there is a queue; if it did, the answer would say so.
        let _ = self.queue.send(task);
        answered.await.map_err(|_| Panicked)
    }
}

fn work<M>(model: &M, tasks: &Mutex<Receiver<Task<M>>>) {
    // The arithmetic wants to spread over all cores from each of our threads; in a pool of one it stays where it is.
    let alone = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    if let Err(error) = alone {
        tracing::debug!(%error, "the local model's threads share one pool");
    }
    loop {
        // The lock is held while waiting, never while working.
        let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else { return };
        // Whoever waits for the answer hears of the panic by the answer's absence.
        let _ = catch_unwind(AssertUnwindSafe(|| task(model)));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_and_the_thread_lives_on() {
        let threads = Threads::start(7, 1).unwrap();
        assert_eq!(threads.run(|_| -> i32 { panic!("for the test") }).await, Err(Panicked));
        assert_eq!(threads.run(|&model| model + 1).await, Ok(8));
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_not_begun() {
        let threads = Threads::start(Mutex::new(Vec::new()), 1).unwrap();
        let (open, gate) = channel();
        let mut first = Box::pin(threads.run(move |log| {
            gate.recv().unwrap();
            log.lock().unwrap().push("first");
        }));
        let mut second = Box::pin(threads.run(|log| log.lock().unwrap().push("second")));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());

        drop(second);
        open.send(()).unwrap();

        first.await.unwrap();
        assert_eq!(threads.run(|log| log.lock().unwrap().clone()).await, Ok(vec!["first"]));
    }

    #[test]
    fn threads_end_with_their_owner() {
        let model = Arc::new(());
        let threads = Threads::start(Arc::clone(&model), 3).unwrap();
        drop(threads);
        while Arc::strong_count(&model) > 1 {
            thread::yield_now();
        }
    }
}
