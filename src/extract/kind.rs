use file_format::{FileFormat, Kind as Family};

use super::html;
use super::text;
use super::wire::{ReadError, Request};

/// The types there is a reader for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Pdf,
    Docx,
    Pptx,
    Html,
    Markdown,
    Text,
}

/// Whether the bytes open like a PDF; asked before the sandbox closes, so it looks at the first kilobyte only.
pub(super) fn is_pdf(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(1024)];
    let Some(at) = find(head, b"%PDF-") else { return false };
    // Some writers put rubbish before the mark; a text that speaks of PDF is none.
    head[..at].iter().all(u8::is_ascii_whitespace)
        || head.starts_with(b"\xef\xbb\xbf%PDF-")
        || !text::looks_like_text(bytes)
}

/// Tells the type by the bytes; hints decide among kinds of text only.
pub(super) fn detect(bytes: &[u8], request: &Request) -> Result<Kind, ReadError> {
    if is_pdf(bytes) {
        return Ok(Kind::Pdf);
    }
    let format = FileFormat::from_bytes(bytes);
    match format {
        FileFormat::OfficeOpenXmlDocument => Ok(Kind::Docx),
        FileFormat::OfficeOpenXmlPresentation => Ok(Kind::Pptx),
        FileFormat::Zip | FileFormat::ArbitraryBinaryData if bytes.starts_with(b"PK\x03\x04") => in_a_zip(bytes),
        _ if is_compound_file(bytes) => compound_file(bytes, format),
        FileFormat::RichTextFormat | FileFormat::Postscript | FileFormat::EncapsulatedPostscript => {
            Err(unsupported(format))
        }
        _ if is_no_text(format) || !text::looks_like_text(bytes) => Err(unsupported(format)),
        _ => Ok(kind_of_text(bytes, request)),
    }
}

fn kind_of_text(bytes: &[u8], request: &Request) -> Kind {
    let media_type = request.media_type.as_deref().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let extension = request.extension.as_deref().unwrap_or_default();
    if html::looks_like_html(bytes) || media_type == "text/html" || ["html", "htm", "xhtml"].contains(&extension) {
        return Kind::Html;
    }
    if media_type == "text/markdown" || ["md", "markdown", "mdx"].contains(&extension) {
        return Kind::Markdown;
    }
    if html::looks_like_part_of_html(bytes) {
        return Kind::Html;
    }
    Kind::Text
}

/// A damaged DOCX or PPTX has lost its table of contents but not its parts' names.
fn in_a_zip(bytes: &[u8]) -> Result<Kind, ReadError> {
    if find(bytes, b"word/document.xml").is_some() {
        return Ok(Kind::Docx);
    }
    if find(bytes, b"ppt/presentation.xml").is_some() {
        return Ok(Kind::Pptx);
    }
    Err(unsupported(FileFormat::Zip))
}

fn is_compound_file(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
}

/// Office keeps what is encrypted in a compound file with this stream.
fn compound_file(bytes: &[u8], format: FileFormat) -> Result<Kind, ReadError> {
    let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
    Err(match format {
        _ if find(bytes, &name).is_some() => ReadError::Encrypted,
        FileFormat::ArbitraryBinaryData => unsupported(FileFormat::CompoundFileBinary),
        format => unsupported(format),
    })
}

/// SVG and the like are text by their bytes but nothing to read.
fn is_no_text(format: FileFormat) -> bool {
    matches!(
        format.kind(),
        Family::Archive
            | Family::Audio
            | Family::Compressed
            | Family::Font
            | Family::Image
            | Family::Model
            | Family::Video
    )
}

pub(super) fn unsupported(format: FileFormat) -> ReadError {
    match format {
        FileFormat::ArbitraryBinaryData => ReadError::Unsupported("unknown".to_owned()),
        _ => ReadError::Unsupported(format!("{} ({})", format.name(), format.media_type())),
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::super::tests::settings;
    use super::*;
    use crate::config::PdfReader;

    fn check(bytes: &[u8], media_type: &str, name: &str, expected: Result<Kind, &str>) {
        let input =
            Input { bytes: bytes.to_vec().into(), media_type: Some(media_type.into()), name: Some(name.into()) };
        let kind = detect(bytes, &Request::new(&settings(), &input, PdfReader::Unpdf));
        match (kind, expected) {
            (Ok(kind), Ok(expected)) => assert_eq!(kind, expected),
            (Err(ReadError::Unsupported(name)), Err(expected)) => assert!(name.contains(expected), "{name}"),
            (Err(ReadError::Encrypted), Err(expected)) => assert_eq!(expected, "encrypted"),
            (kind, expected) => panic!("{kind:?} is not {expected:?}"),
        }
    }

    #[test]
    fn the_bytes_decide() {
        check(b"%PDF-1.7\n", "text/plain", "a.txt", Ok(Kind::Pdf));
        check(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "application/pdf", "a.pdf", Err("image/png"));
        check(b"{\\rtf1 hello}", "text/plain", "a.txt", Err("Rich Text"));
        check(b"<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>", "", "a.svg", Err("svg"));
        check(b"<!doctype html><p>x", "text/plain", "a.txt", Ok(Kind::Html));
        check(b"<!-- x -->\n<div><div>x", "", "a.txt", Ok(Kind::Html));
        check(b"<divide> and <pray>", "", "a.txt", Ok(Kind::Text));
        check(b"PK\x03\x04\x14\0\0\0\0\0word/document.xml", "", "", Ok(Kind::Docx));
        check(b"PK\x03\x04\x14\0\0\0\0\0a.txt", "", "", Err("ZIP"));
    }

    #[test]
    fn hints_decide_among_texts() {
        check(b"# Title", "text/markdown; charset=utf-8", "", Ok(Kind::Markdown));
        check(b"# Title", "", "notes.MD", Ok(Kind::Markdown));
        check(b"# Title", "", "notes", Ok(Kind::Text));
        check(b"<p>x</p>", "text/html", "", Ok(Kind::Html));
        check(b"<div align='center'>\n\n# Title", "", "README.md", Ok(Kind::Markdown));
        check(b"The mark %PDF- opens a PDF.", "", "", Ok(Kind::Text));
    }

    #[test]
    fn encrypted_office_files_are_named() {
        let mut file = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".to_vec();
        file.resize(1024, 0);
        check(&file, "", "old.doc", Err("Compound"));
        file.extend("EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes));
        check(&file, "", "a.docx", Err("encrypted"));
    }
}
