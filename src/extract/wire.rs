use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::recording::{PartLimits, Recording, Span};
use super::{Input, SandboxReport};
use crate::config::{DocxReader, Parser, PdfReader};
use crate::domain::Document;

/// The first argument that makes the program a parser child.
pub(super) const CHILD: &str = "parser-child";

/// The argument after it that asks for a [`SandboxReport`] instead of a document.
pub(super) const PROBE: &str = "--probe";

/// Ends a child whose parent went away before it was done.
pub(super) const ORPHANED: i32 = 3;

/// Ends a child that was asked for nothing it understands.
pub(super) const MISASKED: i32 = 4;

/// The line of JSON before the file's bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Request {
    /// How many bytes of file follow.
    pub size: u64,
    pub media_type: Option<String>,
    pub extension: Option<String>,
    pub memory: u64,
    pub cpu_seconds: u64,
    pub largest_text: usize,
    pub pages: usize,
    pub pdf: PdfReader,
    pub docx: DocxReader,
    pub pdfium: Option<PathBuf>,
    pub fonts: Vec<PathBuf>,
    /// The file is a recording, and this is asked of it; none: it is to be read.
    pub listen: Option<Listen>,
}

/// What is asked of a recording.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Listen {
    /// How long it is, and into which parts it is to be cut.
    Measure(PartLimits),
    /// One of these parts.
    Cut { span: Span, limits: PartLimits },
}

impl Request {
    pub fn new(settings: &Parser, input: &Input, pdf: PdfReader) -> Self {
        Self {
            size: input.bytes.len() as u64,
            media_type: input.media_type.clone(),
            extension: input.name.as_deref().and_then(extension),
            memory: settings.memory,
            cpu_seconds: settings.cpu.as_secs().max(1),
            largest_text: usize::try_from(settings.largest_text).unwrap_or(usize::MAX),
            pages: usize::try_from(settings.pages).unwrap_or(usize::MAX),
            pdf,
            docx: settings.docx,
            pdfium: settings.pdfium.clone(),
            fonts: settings.fonts.clone(),
            listen: None,
        }
    }

    /// The longest honest answer, without the JSON around it.
    pub fn longest_answer(&self) -> u64 {
        match self.listen {
            // In base64.
            Some(Listen::Cut { limits, .. }) => limits.largest.saturating_mul(4) / 3,
            Some(Listen::Measure(_)) => 0,
            // Headings may be as long as the text.
            None => 2 * self.largest_text as u64,
        }
    }
}

/// A name's extension in lower case; the name itself is none of the child's business.
fn extension(name: &str) -> Option<String> {
    let (stem, extension) = name.rsplit_once('.')?;
    let fine = !stem.is_empty() && extension.len() <= 16 && extension.bytes().all(|byte| byte.is_ascii_alphanumeric());
    fine.then(|| extension.to_ascii_lowercase())
}

/// What a child says, once, on its standard output: a line of JSON, and after it the document's text as it is, so that a large one is
/// not in memory twice while it is told or heard.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Document(Document),
    /// Read, but so little of what is on the pages that another reader should have a try.
    Poor(Document),
    Recording(Recording),
    /// A part of a recording, in base64.
    Part(String),
    Failed(ReadError),
    /// The reader panicked; what it said may hold the file's text and is not repeated.
    Panicked,
    Report(SandboxReport),
}

impl Answer {
    pub fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        let text = self.text().map(std::mem::take);
        serde_json::to_writer(&mut *out, &self)?;
        out.write_all(b"\n")?;
        out.write_all(text.unwrap_or_default().as_bytes())?;
        out.flush()
    }

    /// None where it holds no answer.
    pub fn read(mut heard: Vec<u8>) -> Option<Self> {
        let line = heard.iter().position(|&byte| byte == b'\n')?;
        let mut answer: Self = serde_json::from_slice(&heard[..line]).ok()?;
        heard.drain(..=line);
        heard.shrink_to_fit();
        let rest = String::from_utf8(heard).ok()?;
        match answer.text() {
            Some(text) => *text = rest,
            None if !rest.is_empty() => return None,
            None => {}
        }
        Some(answer)
    }

    fn text(&mut self) -> Option<&mut String> {
        match self {
            Self::Document(document) | Self::Poor(document) => Some(&mut document.text),
            Self::Recording(_) | Self::Part(_) | Self::Failed(_) | Self::Panicked | Self::Report(_) => None,
        }
    }
}

/// Why a reader made no document, in words that hold nothing of the file's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReadError {
    Encrypted,
    Unsupported(String),
    Broken { format: String, detail: String },
    Limit(String),
}

impl ReadError {
    pub fn broken(format: &str, detail: &str) -> Self {
        Self::Broken { format: format.to_owned(), detail: detail.to_owned() }
    }
}

/// A size as people say it.
pub(super) fn bytes(size: u64) -> String {
    match size {
        size if size >= 1 << 30 && size.is_multiple_of(1 << 30) => format!("{} GiB", size >> 30),
        size if size >= 1 << 20 => format!("{} MiB", size >> 20),
        size if size >= 1 << 10 => format!("{} KiB", size >> 10),
        size => format!("{size} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_extension_leaves_the_parent() {
        assert_eq!(extension("Report.final.PDF").as_deref(), Some("pdf"));
        for name in ["", "pdf", ".profile", "a.b/c", "a.", "a.averyveryverylongword"] {
            assert_eq!(extension(name).filter(|extension| !extension.is_empty()), None, "{name}");
        }
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let heard = |answer: Answer| {
            let mut out = Vec::new();
            answer.write(&mut out).unwrap();
            out
        };
        let document = Document { text: "One.\n\nZwö.".to_owned(), pages: vec![0, 6], ..Document::default() };
        let read = Answer::read(heard(Answer::Poor(document.clone())));
        assert!(matches!(read, Some(Answer::Poor(read)) if read == document));
        assert!(matches!(Answer::read(heard(Answer::Panicked)), Some(Answer::Panicked)));
        for broken in [&b"\"panicked\"\nand more"[..], b"\"panicked\"", b"", b"{\"document\"\n"] {
            assert!(Answer::read(broken.to_vec()).is_none());
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!([bytes(12), bytes(4096), bytes(10 << 20), bytes(2 << 30)], ["12 bytes", "4 KiB", "10 MiB", "2 GiB"]);
    }
}
