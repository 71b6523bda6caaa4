use std::panic::{AssertUnwindSafe, catch_unwind};

use pdfium_render::prelude::Pdfium;

use super::builder::Builder;
use super::kind::{self, Kind};
use super::wire::{Answer, ReadError, Request};
use super::{docx, html, markdown, pdf, text, unpdf};
use crate::config::{DocxReader, PdfReader};

/// Reads a file with the reader for its type. Runs in the closed sandbox.
pub(super) fn read(bytes: &[u8], request: &Request, pdfium: Option<&Pdfium>) -> Answer {
    match catch_unwind(AssertUnwindSafe(|| try_read(bytes, request, pdfium))) {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer::Failed(error),
        Err(_) => Answer::Panicked,
    }
}

fn try_read(bytes: &[u8], request: &Request, pdfium: Option<&Pdfium>) -> Result<Answer, ReadError> {
    let builder = |reader: &str| Builder::new(reader, request.largest_text, request.pages);
    let document = match kind::detect(bytes, request)? {
        Kind::Pdf => return read_pdf(bytes, request, pdfium),
        Kind::Docx => match request.docx {
            DocxReader::OfficeOxide => docx::read(bytes, docx::Format::Docx, request.memory, builder("office_oxide"))?,
            #[cfg(feature = "docx-rs")]
            DocxReader::DocxRs => super::docx_rs::read(bytes, builder("docx-rs"))?,
            #[cfg(not(feature = "docx-rs"))]
            DocxReader::DocxRs => return Err(ReadError::Unsupported("DOCX: this build is without docx-rs".to_owned())),
        },
        Kind::Pptx => docx::read(bytes, docx::Format::Pptx, request.memory, builder("office_oxide"))?,
        Kind::Html => {
            let said = request.media_type.as_deref().and_then(html::charset);
            let declared = said.or_else(|| html::declared_encoding(bytes));
            html::read(&text::decode(bytes, declared.as_deref()), builder("html"))?
        }
        Kind::Markdown => {
            markdown::read(&text::decode(bytes, said(request)), markdown::Links::Say, builder("markdown"))?
        }
        Kind::Text => text::read(&text::decode(bytes, said(request)), builder("text"))?,
    };
    Ok(Answer::Document(document))
}

/// The encoding that a media type names.
fn said(request: &Request) -> Option<&str> {
    let (_, encoding) = request.media_type.as_deref()?.split_once("charset=")?;
    Some(encoding.trim().trim_matches('"'))
}

fn read_pdf(bytes: &[u8], request: &Request, pdfium: Option<&Pdfium>) -> Result<Answer, ReadError> {
    let builder = |reader: &str| Builder::new(reader, request.largest_text, request.pages);
    match (request.pdf, pdfium) {
        (PdfReader::Pdfium, Some(pdfium)) => pdf::read(pdfium, bytes, builder("pdfium"), request.pages),
        (PdfReader::Pdfium | PdfReader::Unpdf, _) => {
            unpdf::read(bytes, builder("unpdf"), request.pages).map(Answer::Document)
        }
        #[cfg(feature = "pdf-extract")]
        (PdfReader::PdfExtract, _) => super::pdf_extract::read(bytes, builder("pdf-extract")).map(Answer::Document),
        #[cfg(not(feature = "pdf-extract"))]
        (PdfReader::PdfExtract, _) => Err(ReadError::Unsupported("PDF: this build is without pdf-extract".to_owned())),
    }
}
