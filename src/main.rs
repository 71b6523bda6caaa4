use std::process::ExitCode;

fn main() -> ExitCode {
    // A parser child closes itself off before any runtime or thread exists.
    if std::env::args().nth(1).as_deref() == Some("parser-child") {
        gristmill::extract::child::main();
    }
    calm_candle();
    be_frugal();
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

/// glibc gives each thread an arena of its own, and keeps what is freed in it for as long as anything above it is in use; and after the
/// first large buffer is freed it takes later ones from there too. With one arena, and large buffers always straight from the system,
/// a worker with 512 jobs in hand needs a sixth less memory, for up to a tenth more processor time. What the environment says
/// (`MALLOC_ARENA_MAX` and its like) holds.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "settings of the allocator have no safe interface")]
fn be_frugal() {
    const LARGE: libc::c_int = 128 << 10;
    for (name, setting, value) in [
        ("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, 1),
        ("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, LARGE),
        ("MALLOC_TRIM_THRESHOLD_", libc::M_TRIM_THRESHOLD, 2 * LARGE),
    ] {
        if std::env::var_os(name).is_none() {
            // SAFETY: plain settings, before any other thread exists.
            unsafe { libc::mallopt(setting, value) };
        }
    }
}

/// Other allocators have their own ways.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn be_frugal() {}
