use pdf_extract::{OutputError, extract_text_from_mem_by_pages};

use super::builder::{Builder, without_private_use};
use super::wire::ReadError;
use crate::domain::Document;

/// Text by pages, nothing else; by choice only.
pub(super) fn read(bytes: &[u8], mut builder: Builder) -> Result<Document, ReadError> {
    let pages = extract_text_from_mem_by_pages(bytes).map_err(|error| read_error(&error))?;
    for page in pages {
        builder.page()?;
        builder.block(&without_private_use(&page))?;
    }
    Ok(builder.finish())
}

fn read_error(error: &OutputError) -> ReadError {
    match error {
        OutputError::PdfError(inner) if inner.to_string().to_ascii_lowercase().contains("crypt") => {
            ReadError::Encrypted
        }
        _ => ReadError::broken("PDF", "its structure is damaged"),
    }
}
