use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::sandbox::Closed;
use super::wire::Request;

/// What a parser child can still do, found by trying in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// Each thing that a parser must not do, in a fixed order.
    pub attempts: Vec<Attempt>,
    /// Whether the kernel took landlock's rules.
    pub landlock: bool,
    /// Whether the kernel took the list of refused calls.
    pub seccomp: bool,
    /// Whether libpdfium loads; none where no path is set.
    pub pdfium: Option<bool>,
    /// Folders of fonts that are there and can be read.
    pub fonts: usize,
}

/// One thing that a parser must not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// As in "a parser could …".
    pub what: String,
    /// Whether the child was kept from it.
    pub stopped: bool,
}

impl SandboxReport {
    /// Whether nothing that was tried went through.
    pub fn is_closed(&self) -> bool {
        self.attempts.iter().all(|attempt| attempt.stopped)
    }
}

/// Tries everything, inside the closed sandbox.
pub(super) fn probe(request: &Request, closed: Closed, pdfium: Option<bool>) -> SandboxReport {
    let attempt = |what: &str, went_through: bool| Attempt { what: what.to_owned(), stopped: !went_through };
    SandboxReport {
        attempts: vec![
            attempt("read a file", File::open("/etc/passwd").is_ok()),
            attempt("list a folder", Path::new("/").read_dir().is_ok()),
            attempt("write a file", writes_a_file()),
            attempt("open a TCP socket", TcpListener::bind("127.0.0.1:0").is_ok()),
            attempt("open a UDP socket", UdpSocket::bind("127.0.0.1:0").is_ok()),
            attempt("start a process", starts_a_process()),
            attempt("take more memory than its limit", takes_memory(request.memory)),
            attempt("raise its limits", raises_its_limits()),
        ],
        landlock: closed.landlock,
        seccomp: closed.seccomp,
        pdfium,
        fonts: request.fonts.iter().filter(|folder| folder.read_dir().is_ok()).count(),
    }
}

fn writes_a_file() -> bool {
    let path = std::env::temp_dir().join(format!("gristmill-probe-{}", std::process::id()));
    let written = std::fs::write(&path, "x").is_ok();
    // An empty file is left where it could be made but not written.
    let made = path.exists();
    drop(std::fs::remove_file(&path));
    written || made
}

fn starts_a_process() -> bool {
    // SAFETY: the copy ends at once and touches nothing.
    unsafe {
        let process = libc::fork();
        if process == 0 {
            libc::_exit(0);
        }
        if process > 0 {
            libc::waitpid(process, std::ptr::null_mut(), 0);
        }
        process >= 0
    }
}

fn takes_memory(limit: u64) -> bool {
    let much = usize::try_from(limit).unwrap_or(usize::MAX / 4);
    Vec::<u8>::new().try_reserve_exact(much).is_ok()
}

fn raises_its_limits() -> bool {
    let more = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: a valid structure.
    unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const more) == 0 }
}
