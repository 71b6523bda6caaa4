use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::ExtractError;
use super::builder::clean;
use super::death::{self, STDERR_KEPT};
use super::wire::{Answer, CHILD, PROBE, Request};
use crate::config::Parser;
use crate::domain::Document;

/// JSON around a text and its headings.
const ANSWER_EXTRA: u64 = 8 << 20;

/// This program's file. On Linux by the name that follows the running file even when a newer one took its place.
pub(super) fn this_program() -> PathBuf {
    let running = Path::new("/proc/self/exe");
    if running.exists() { running.to_owned() } else { std::env::current_exe().unwrap_or_else(|_| "gristmill".into()) }
}

/// Starts a child, gives it a request and a file, and takes its answer. The file is let go of when the child has it.
pub(super) async fn ask(
    program: &Path,
    settings: &Parser,
    request: &Request,
    file: Bytes,
    probe: bool,
) -> Result<Answer, ExtractError> {
    let mut child = spawn(program, probe).map_err(ExtractError::Start)?;
    let most = request.longest_answer().saturating_add(ANSWER_EXTRA);
    let Ok(talk) = timeout(settings.time, converse(&mut child, request, file, most)).await else {
        drop(child.kill().await);
        return Err(ExtractError::Limit(format!("{} s", settings.time.as_secs())));
    };
    let heard = talk.map_err(ExtractError::Start)?;
    if heard.answer.len() as u64 > most {
        drop(child.kill().await);
        return Err(ExtractError::Limit("its answer's length".to_owned()));
    }
    let status = match timeout(settings.time, child.wait()).await {
        Ok(status) => status.map_err(ExtractError::Start)?,
        Err(_) => return Err(ExtractError::Limit(format!("{} s", settings.time.as_secs()))),
    };
    if !status.success() {
        return Err(death::cause(status, &heard.errors, request));
    }
    Answer::read(heard.answer).ok_or_else(|| ExtractError::Crashed("it gave no proper answer".to_owned()))
}

fn spawn(program: &Path, probe: bool) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.arg(CHILD).env_clear().current_dir("/").kill_on_drop(true);
    if probe {
        command.arg(PROBE);
    }
    // A group of its own: Ctrl-C at the terminal is for the parent, which lets files in hand finish.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

struct Talk {
    answer: Vec<u8>,
    errors: Vec<u8>,
}

/// Says everything, then listens. The child's input stays open to the end: its closing tells the child that nobody listens.
async fn converse(child: &mut Child, request: &Request, file: Bytes, most: u64) -> io::Result<Talk> {
    let pipe = || io::Error::other("a pipe is missing");
    let mut input = child.stdin.take().ok_or_else(pipe)?;
    let mut output = child.stdout.take().ok_or_else(pipe)?.take(most + 1);
    let mut errors = child.stderr.take().ok_or_else(pipe)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut talk = Talk { answer: Vec::new(), errors: Vec::new() };
    let say = async {
        // A child that died early does not listen; how it ended says why.
        drop(input.write_all(&line).await);
        drop(input.write_all(&file).await);
        drop(file);
    };
    let complain = async {
        (&mut errors).take(STDERR_KEPT).read_to_end(&mut talk.errors).await?;
        tokio::io::copy(&mut errors, &mut tokio::io::sink()).await
    };
    let ((), heard, complained) = tokio::join!(say, output.read_to_end(&mut talk.answer), complain);
    heard.and(complained)?;
    drop(input);
    Ok(talk)
}

/// Believes a child only what holds: a text within its limit, clean, and marks that lie on its characters.
pub(super) fn checked(mut document: Document, request: &Request) -> Result<Document, ExtractError> {
    let text = &document.text;
    let fine = |at: usize| text.is_char_boundary(at);
    let marks = document.pages.iter().all(|&at| fine(at))
        && document.pages.is_sorted()
        && document.headings.iter().all(|heading| fine(heading.at) && heading.level > 0)
        && document.headings.is_sorted_by_key(|heading| heading.at);
    let visible = !text.contains(|character: char| character.is_control() && character != '\n' && character != '\t');
    if text.len() > request.largest_text || document.pages.len() > request.pages || !marks || !visible {
        return Err(ExtractError::Crashed("its answer does not hold together".to_owned()));
    }
    document.title = document.title.map(|title| clean(&title));
    document.headings.iter_mut().for_each(|heading| heading.title = clean(&heading.title));
    document.reader = clean(&document.reader);
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::super::tests::settings;
    use super::*;
    use crate::config::PdfReader;
    use crate::domain::Heading;

    fn check(document: Document, believed: bool) {
        let request = Request::new(&settings(), &Input::default(), PdfReader::Unpdf);
        assert_eq!(checked(document, &request).is_ok(), believed);
    }

    #[test]
    fn a_child_is_believed_only_what_holds() {
        let heading = |at, level| Heading { at, level, title: "x".into() };
        let document = Document { text: "aé".into(), ..Document::default() };
        check(Document { pages: vec![0, 3], headings: vec![heading(1, 1)], ..document.clone() }, true);
        check(Document { pages: vec![2], ..document.clone() }, false);
        check(Document { pages: vec![3, 0], ..document.clone() }, false);
        check(Document { pages: vec![9], ..document.clone() }, false);
        check(Document { headings: vec![heading(2, 1)], ..document.clone() }, false);
        check(Document { headings: vec![heading(1, 1), heading(0, 1)], ..document.clone() }, false);
        check(Document { headings: vec![heading(0, 0)], ..document.clone() }, false);
        check(Document { text: "a\0".into(), ..document.clone() }, false);
        check(Document { text: "a".repeat(1 << 21), ..document }, false);
    }
}
