use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use super::ExtractError;
use super::wire::{MISASKED, ORPHANED, Request, bytes};

/// How much of a child's complaints is looked at. Nobody repeats them: they may hold the file's text.
pub(super) const STDERR_KEPT: u64 = 4096;

/// Why a child ended without an answer.
pub(super) fn cause(status: ExitStatus, errors: &[u8], request: &Request) -> ExtractError {
    let said = |words: &str| String::from_utf8_lossy(errors).contains(words);
    let memory = || ExtractError::Limit(format!("{} of memory", bytes(request.memory)));
    if said("has overflowed its stack") {
        return ExtractError::Limit("nesting".to_owned());
    }
    if said("memory allocation of") || said("std::bad_alloc") || said("Cannot allocate memory") {
        return memory();
    }
    match (status.signal(), status.code()) {
        (Some(libc::SIGXCPU), _) => ExtractError::Limit(format!("{} s of processor time", request.cpu_seconds)),
        (Some(libc::SIGKILL), _) => ExtractError::Limit("memory of this machine (the system killed it)".to_owned()),
        (Some(libc::SIGXFSZ), _) => ExtractError::Limit("no file at all".to_owned()),
        (Some(signal), _) => ExtractError::Crashed(format!("it ended by signal {signal} ({})", name(signal))),
        (None, Some(MISASKED)) => ExtractError::Crashed("it did not understand its request".to_owned()),
        (None, Some(ORPHANED)) => ExtractError::Crashed("it was cut off from its parent".to_owned()),
        (None, code) => ExtractError::Crashed(format!("it ended with code {} and no answer", code.unwrap_or(-1))),
    }
}

fn name(signal: i32) -> &'static str {
    match signal {
        libc::SIGABRT => "it gave up",
        libc::SIGSEGV | libc::SIGBUS => "it touched memory that is not its own",
        libc::SIGILL | libc::SIGTRAP => "it stopped itself",
        libc::SIGFPE => "it divided by zero",
        libc::SIGSYS => "it asked the system for what it may not",
        _ => "from outside",
    }
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::super::tests::settings;
    use super::*;
    use crate::config::PdfReader;

    fn check(raw: i32, errors: &str, words: &str) {
        let request = Request::new(&settings(), &Input::default(), PdfReader::Unpdf);
        assert_eq!(cause(ExitStatus::from_raw(raw), errors.as_bytes(), &request).to_string(), words);
    }

    #[test]
    fn each_death_has_its_words() {
        check(libc::SIGXCPU, "", "the parser hit its limit of 20 s of processor time");
        check(libc::SIGABRT, "memory allocation of 99 bytes failed", "the parser hit its limit of 1 GiB of memory");
        check(libc::SIGABRT, "thread 'x' has overflowed its stack", "the parser hit its limit of nesting");
        check(libc::SIGABRT, "secret", "the parser crashed: it ended by signal 6 (it gave up)");
        check(libc::SIGSEGV, "", "the parser crashed: it ended by signal 11 (it touched memory that is not its own)");
        check(libc::SIGKILL, "", "the parser hit its limit of memory of this machine (the system killed it)");
        check(1 << 8, "", "the parser crashed: it ended with code 1 and no answer");
    }
}
