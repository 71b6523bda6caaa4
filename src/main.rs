use std::process::ExitCode;

fn main() -> ExitCode {
    // A parser child closes itself off before any runtime or thread exists.
    if std::env::args().nth(1).as_deref() == Some("parser-child") {
        gristmill::extract::child::main();
    }
    calm_candle();
    keep_memory_together();
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

/// Buffers of megabytes come and go with each request and commit, in every thread: in arenas of their own, and below what the allocator
/// learns to give back, they stayed (at the peak of a back-fill 94 megabytes, 74 without, together with vectors that are there once).
#[expect(unsafe_code, reason = "the allocator's settings are the C library's")]
fn keep_memory_together() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: plain settings of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}
