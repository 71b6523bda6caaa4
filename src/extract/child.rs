//! The other side: this program as `parser-child`, with one file to read and nothing else to reach.

use std::io::{self, BufRead as _, Read as _};
use std::process::exit;
use std::thread;

use super::probe::probe;
use super::wire::{Answer, MISASKED, ORPHANED, PROBE, Request};
use super::{audio, kind, pdf, read, sandbox};
use crate::config::PdfReader;

/// Deep nesting is read on this stack; what nests deeper ends the child, and the parent calls it a limit.
const STACK: usize = 32 << 20;

/// The longest request; a file's bytes come after it.
const LONGEST_REQUEST: u64 = 64 << 10;

/// Runs the child. Call it first thing in `main`, before any thread exists: limits and sandbox hold for later threads only.
#[expect(clippy::disallowed_methods, reason = "the child's exit code is its answer where it can give no other")]
pub fn main() -> ! {
    sandbox::cut_off();
    // A panic's message may hold the file's text.
    std::panic::set_hook(Box::new(|_| {}));
    let Some(request) = request() else { exit(MISASKED) };
    sandbox::limit(&request);
    let Some(bytes) = file(&request) else { exit(ORPHANED) };

    let probing = std::env::args().nth(2).as_deref() == Some(PROBE);
    let library =
        request.pdfium.as_deref().filter(|_| probing || kind::is_pdf(&bytes) && request.pdf == PdfReader::Pdfium);
    let pdfium = library.map(|library| pdf::bind(library, &request.fonts));
    let closed = sandbox::close(&request.fonts);
    end_with_the_parent();
    let answer = if probing {
        Answer::Report(probe(&request, closed, pdfium.map(|bound| bound.is_some())))
    } else {
        on_a_deep_stack(|| match request.listen {
            Some(listen) => audio::listen(bytes, listen),
            None => read::read(&bytes, &request, pdfium.flatten().as_ref()),
        })
    };
    exit(answer.write(&mut io::stdout().lock()).map_or(ORPHANED, |()| 0))
}

fn request() -> Option<Request> {
    let mut line = Vec::new();
    io::stdin().lock().take(LONGEST_REQUEST).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

fn file(request: &Request) -> Option<Vec<u8>> {
    let size = usize::try_from(request.size).ok()?;
    let mut bytes = Vec::with_capacity(size);
    io::stdin().lock().take(request.size).read_to_end(&mut bytes).ok()?;
    (bytes.len() == size).then_some(bytes)
}

/// The parent holds the other end of our input for as long as it wants an answer, so its end is the parent's. (A death signal
/// would come with the end of the parent's *thread*, and runtimes end threads when they please.)
fn end_with_the_parent() {
    let watch = || {
        drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
        // SAFETY: ends the process without running what others registered for its end.
        unsafe { libc::_exit(ORPHANED) }
    };
    drop(thread::Builder::new().stack_size(64 << 10).spawn(watch));
}

fn on_a_deep_stack(read: impl FnOnce() -> Answer + Send) -> Answer {
    thread::scope(|scope| {
        let reader = thread::Builder::new().stack_size(STACK);
        let reading = reader.spawn_scoped(scope, read);
        reading.map_or(Answer::Panicked, |reading| reading.join().unwrap_or(Answer::Panicked))
    })
}
