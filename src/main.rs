use std::process::ExitCode;

fn main() -> ExitCode {
    // A parser child closes itself off before any runtime or thread exists.
    if std::env::args().nth(1).as_deref() == Some("parser-child") {
        gristmill::extract::child::main();
    }
    calm_candle();
    gristmill::cli::main()
}

/// candle's own thread pool spins and takes a lock for every small operation, a third of the processor time of a small model
/// (9.8 CPU seconds against 6.4 for 288 texts). The local driver has threads of its own, and only the environment turns it off.
#[expect(
    unsafe_code,
    clippy::disallowed_methods,
    reason = "no other thread exists yet, so nobody reads the environment"
)]
fn calm_candle() {
    const NAME: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: the first thing a process with one thread does.
        unsafe { std::env::set_var(NAME, "1") };
    }
}
