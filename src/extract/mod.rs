//! Floor 2: bytes to structured text. Every file is parsed in a child process of its own, the sandbox.

use std::sync::Arc;

use bytes::Bytes;

use crate::config::Parser;
use crate::domain::Document;

/// Reads files in child processes.
#[derive(Clone)]
pub struct Extractor {
    _settings: Arc<Parser>,
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
    Start(#[source] std::io::Error),
}

impl Extractor {
    /// `settings.pdfium` must be resolved by the caller: a path that exists, or none for unpdf alone.
    pub fn new(settings: Parser) -> Self {
        Self { _settings: Arc::new(settings) }
    }

    /// Reads one file in a child of its own.
    ///
    /// # Errors
    /// See [`ExtractError`]; an empty file is an empty document, not an error.
    pub async fn extract(&self, _input: Input) -> Result<Document, ExtractError> {
        todo!()
    }
}
