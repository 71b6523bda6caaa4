//! A state machine: random things that an application, its users, an operator, a provider and the machines themselves do, one after the
//! other under real workers on a real Postgres. Then everything comes to rest, and what is there is held against what the test knows by
//! itself ([`oracle`]); every change of a job's row on the way is held against the model's steps ([`log`]).
//!
//! `MACHINE_CASES=500 cargo test --test it -- machine --nocapture` goes on for longer, from `MACHINE_SEED`. A case that fails is made
//! smaller and printed as a list of steps, which can be pasted into a test as it is.

mod driver;
mod log;
mod oracle;
mod step;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use proptest::collection::vec;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tokio::runtime::Runtime;

use driver::Machine;
use step::{Step, step};

/// Cases of a usual run: some twenty seconds.
const CASES: u64 = 32;
/// Cases at a time.
const SIDES: usize = 4;
/// Smaller ones that are tried when one has failed, and how often each: what depends on timing may fail now and then only.
const SMALLER: u32 = 400;
const TRIES: u32 = 3;
/// So long, in milliseconds.
const PATIENCE: u32 = 120_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Steps that jobs took, by the model's name for them.
type Seen = BTreeMap<&'static str, usize>;

/// One case; what is wrong, if anything is.
async fn run(steps: &[Step]) -> Result<Seen, String> {
    let mut machine = Machine::new().await;
    for step in steps {
        machine.take(step).await;
    }
    machine.rest().await?;
    oracle::check(&machine).await?;
    log::replay(&machine.world).await
}

/// One case from its seed, made smaller where it fails.
fn case(runtime: &Runtime, seed: u64) -> Result<Seen, String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: SMALLER,
        max_shrink_time: PATIENCE,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (seen, failed) = (Cell::new(Seen::new()), Cell::new(false));
    let tried = runner.run(&vec(step(), 8..48), |steps| {
        for _ in 0..if failed.get() { TRIES } else { 1 } {
            match runtime.block_on(run(&steps)) {
                Ok(now) => drop(seen.replace(now)),
                Err(wrong) => {
                    failed.set(true);
                    return Err(TestCaseError::fail(wrong));
                }
            }
        }
        Ok(())
    });
    tried.map(|()| seen.take()).map_err(|error| match error {
        TestError::Fail(wrong, steps) => format!("MACHINE_SEED={seed}: {wrong}\nafter {steps:#?}"),
        TestError::Abort(why) => format!("MACHINE_SEED={seed}: {why}"),
    })
}

#[test]
fn whatever_happens_rest_is_as_the_oracle_says_and_no_job_goes_another_way() {
    let (cases, seed) = (number("MACHINE_CASES").unwrap_or(CASES), number("MACHINE_SEED").unwrap_or_default());
    let next = AtomicU64::new(seed);
    // Most of a case is waiting.
    let side = || {
        let (runtime, mut all) = (runtime(), Seen::new());
        loop {
            let seed_of_case = next.fetch_add(1, Ordering::SeqCst);
            if seed_of_case >= seed + cases {
                return Ok(all);
            }
            let seen = case(&runtime, seed_of_case).inspect_err(|_| next.store(seed + cases, Ordering::SeqCst))?;
            for (step, count) in seen {
                *all.entry(step).or_default() += count;
            }
        }
    };
    let all: Vec<Result<Seen, String>> = thread::scope(|scope| {
        let sides: Vec<_> = (0..SIDES).map(|_| scope.spawn(side)).collect();
        sides.into_iter().map(|side| side.join().unwrap()).collect()
    });
    let mut seen = Seen::new();
    for side in all {
        let side = side.unwrap_or_else(|wrong| panic!("{wrong}"));
        for (step, count) in side {
            *seen.entry(step).or_default() += count;
        }
    }
    println!("{cases} cases, steps of jobs: {seen:?}");
    for step in ["claim", "complete", "fail", "put back", "rescue", "change", "cancel", "end"] {
        assert!(
            cases < CASES || seen.contains_key(step),
            "no job was seen to {step}: the cases show too little: {seen:?}"
        );
    }
}
