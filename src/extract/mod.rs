//! Floor 2: bytes to structured text. Every file is parsed in a child process of its own, the sandbox.
//!
//! [`Extractor`] is the parent's side: it starts this very program as `parser-child`, hands it settings and file over a pipe and
//! takes one answer back. [`child`] is the other side: it closes itself off (`sandbox`), tells the type (`kind`) and has one
//! reader make a document. What comes back is checked like any stranger's word.

mod audio;
mod builder;
#[expect(unsafe_code, reason = "limits, signals and probes of a process have no safe interface")]
pub mod child;
mod death;
mod docx;
#[cfg(feature = "docx-rs")]
mod docx_rs;
mod header;
mod html;
mod kind;
mod layout;
mod markdown;
mod outline;
mod pdf;
#[cfg(feature = "pdf-extract")]
mod pdf_extract;
#[expect(unsafe_code, reason = "limits, signals and probes of a process have no safe interface")]
mod probe;
mod process;
mod read;
mod recording;
#[expect(unsafe_code, reason = "limits, signals and probes of a process have no safe interface")]
mod sandbox;
mod sound;
mod text;
mod unpdf;
mod wave;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::{DocxReader, Parser, PdfReader};
use crate::domain::Document;
pub use probe::{Attempt, SandboxReport};
pub use recording::{Container, PartLimits, Recording, Span};
use wire::{Answer, ReadError, Request};

/// Reads files in child processes. How many at once, and whose, is the caller's business.
#[derive(Clone)]
pub struct Extractor {
    settings: Arc<Parser>,
    program: Arc<PathBuf>,
}

/// A file to read.
#[derive(Debug, Clone, Default)]
pub struct Input {
    pub bytes: Bytes,
    /// Hints of the type; the bytes decide, and these only where the bytes do not.
    pub media_type: Option<String>,
    pub name: Option<String>,
}

/// Why a file has no text.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// Opening it needs a password.
    #[error("the file is encrypted")]
    Encrypted,
    /// No reader for this type.
    #[error("files of type {0} are not supported")]
    Unsupported(String),
    /// Its own format says it is damaged.
    #[error("the file cannot be read as {format}: {detail}")]
    Broken { format: String, detail: String },
    /// A limit of the sandbox stopped the child: memory, CPU, time, size.
    #[error("the parser hit its limit of {0}")]
    Limit(String),
    /// The child died without an answer.
    #[error("the parser crashed: {0}")]
    Crashed(String),
    /// The child could not be started; nothing is known about the file.
    #[error("the parser process could not be started")]
    Start(#[source] io::Error),
}

impl Extractor {
    /// `settings.pdfium` must be resolved by the caller: a path that exists, or none for unpdf alone.
    pub fn new(settings: Parser) -> Self {
        Self::with_program(settings, process::this_program())
    }

    /// With another program as the parser child: tests run in a program that is none.
    pub fn with_program(settings: Parser, program: impl Into<PathBuf>) -> Self {
        Self { settings: Arc::new(settings), program: Arc::new(program.into()) }
    }

    /// Whether this build can do what the settings ask for.
    ///
    /// # Errors
    /// A sentence that names the setting and the way out.
    pub fn check(settings: &Parser) -> Result<(), String> {
        let missing = |setting: &str, feature: &str| {
            Err(format!("`{setting} = \"{feature}\"` needs a build with the cargo feature `{feature}`"))
        };
        if settings.pdf == PdfReader::PdfExtract && cfg!(not(feature = "pdf-extract")) {
            return missing("pdf", "pdf-extract");
        }
        if settings.docx == DocxReader::DocxRs && cfg!(not(feature = "docx-rs")) {
            return missing("docx", "docx-rs");
        }
        Ok(())
    }

    /// Reads one file in a child of its own.
    ///
    /// # Errors
    /// See [`ExtractError`]; an empty file is an empty document, not an error.
    pub async fn extract(&self, mut input: Input) -> Result<Document, ExtractError> {
        if input.bytes.is_empty() {
            return Ok(Document { reader: "empty".to_owned(), ..Document::default() });
        }
        let request = Request::new(&self.settings, &input, self.settings.pdf);
        if !self.has_second_reader(&input) {
            return self.read(&request, std::mem::take(&mut input.bytes)).await.map(Read::document);
        }
        match self.read(&request, input.bytes.clone()).await {
            Ok(Read::Well(document)) => Ok(document),
            Ok(Read::Poorly(document)) => match self.read_again(input).await {
                // pdfium's order of reading is better, so what unpdf adds must be worth it.
                Ok(other) if other.text_length() * 5 > document.text.len() * 6 => Ok(other.document()),
                _ => Ok(document),
            },
            Err(error @ (ExtractError::Crashed(_) | ExtractError::Broken { .. })) => {
                match self.read_again(input).await {
                    Ok(read) => Ok(read.document()),
                    Err(limit @ ExtractError::Limit(_)) => Err(limit),
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out, in a child, what the sandbox really stops here.
    ///
    /// # Errors
    /// As [`Extractor::extract`].
    pub async fn probe(&self) -> Result<SandboxReport, ExtractError> {
        let input = Input::default();
        let request = Request::new(&self.settings, &input, self.settings.pdf);
        match process::ask(&self.program, &self.settings, &request, Bytes::new(), true).await? {
            Answer::Report(report) => Ok(report),
            _ => Err(ExtractError::Crashed("it gave another answer than asked for".to_owned())),
        }
    }

    /// unpdf stands behind pdfium, in a child of its own: what one reader did to its process is no matter to the other.
    fn has_second_reader(&self, input: &Input) -> bool {
        self.settings.pdf == PdfReader::Pdfium && self.settings.pdfium.is_some() && kind::is_pdf(&input.bytes)
    }

    async fn read_again(&self, input: Input) -> Result<Read, ExtractError> {
        let request = Request::new(&self.settings, &input, PdfReader::Unpdf);
        self.read(&request, input.bytes).await
    }

    async fn read(&self, request: &Request, bytes: Bytes) -> Result<Read, ExtractError> {
        match process::ask(&self.program, &self.settings, request, bytes, false).await? {
            Answer::Document(document) => process::checked(document, request).map(Read::Well),
            Answer::Poor(document) => process::checked(document, request).map(Read::Poorly),
            Answer::Failed(error) => Err(error.into()),
            Answer::Panicked => Err(ExtractError::Crashed("its reader panicked".to_owned())),
            Answer::Report(_) | Answer::Recording(_) | Answer::Part(_) => {
                Err(ExtractError::Crashed("it gave another answer than asked for".to_owned()))
            }
        }
    }
}

/// A document, and whether its reader thinks that it saw what is there.
enum Read {
    Well(Document),
    Poorly(Document),
}

impl Read {
    fn document(self) -> Document {
        let (Self::Well(document) | Self::Poorly(document)) = self;
        document
    }

    fn text_length(&self) -> usize {
        let (Self::Well(document) | Self::Poorly(document)) = self;
        document.text.len()
    }
}

impl From<ReadError> for ExtractError {
    fn from(error: ReadError) -> Self {
        // A child that was taken over could say anything; its words end up in logs.
        let word = |text: String| text.chars().filter(|character| !character.is_control()).take(120).collect();
        match error {
            ReadError::Encrypted => Self::Encrypted,
            ReadError::Unsupported(name) => Self::Unsupported(word(name)),
            ReadError::Broken { format, detail } => Self::Broken { format: word(format), detail: word(detail) },
            ReadError::Limit(what) => Self::Limit(word(what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    pub(super) fn settings() -> Parser {
        Parser {
            processes: 2,
            memory: 1 << 30,
            cpu: Duration::from_secs(20),
            time: Duration::from_secs(30),
            largest_text: 1 << 20,
            pages: 100,
            pdf: PdfReader::Unpdf,
            docx: DocxReader::OfficeOxide,
            pdfium: None,
            fonts: Vec::new(),
        }
    }

    #[test]
    fn a_reader_that_is_not_built_in_is_named() {
        assert_eq!(Extractor::check(&settings()), Ok(()));
        let asked = Extractor::check(&Parser { docx: DocxReader::DocxRs, ..settings() });
        assert_eq!(asked.is_err(), cfg!(not(feature = "docx-rs")));
        let asked = Extractor::check(&Parser { pdf: PdfReader::PdfExtract, ..settings() });
        assert_eq!(asked.is_err(), cfg!(not(feature = "pdf-extract")));
    }
}
