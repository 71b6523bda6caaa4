use pdf_extract::{Document as Pdf, PlainTextOutput, output_doc_page};

use super::builder::{Builder, without_private_use};
use super::wire::ReadError;
use crate::domain::Document;

/// Text by pages, nothing else; by choice only.
///
/// The crate's own reading by pages ends at the first page that it cannot read, and takes a file that it cannot decrypt for one
/// without pages: both would pass for the whole text.
pub(super) fn read(bytes: &[u8], mut builder: Builder) -> Result<Document, ReadError> {
    let damaged = || ReadError::broken("PDF", "its structure is damaged");
    let pdf = Pdf::load_mem(bytes).map_err(|error| match error.to_string().to_ascii_lowercase() {
        why if why.contains("crypt") => ReadError::Encrypted,
        _ => damaged(),
    })?;
    // Loading tries the empty password; where that opens the file, this entry is gone.
    if pdf.trailer.has(b"Encrypt") {
        return Err(ReadError::Encrypted);
    }
    let pages = pdf.get_pages();
    if pages.is_empty() {
        return Err(ReadError::broken("PDF", "it has no page that opens"));
    }
    for number in pages.into_keys() {
        builder.page()?;
        let mut text = String::new();
        output_doc_page(&pdf, &mut PlainTextOutput::new(&mut text), number).map_err(|_| damaged())?;
        builder.block(&without_private_use(&text))?;
    }
    Ok(builder.finish())
}
