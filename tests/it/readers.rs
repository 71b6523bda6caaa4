//! The readers that are built in only where somebody asks for them, over the files that every reader meets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gristmill::config::{DocxReader, Parser, PdfReader};
use gristmill::domain::Document;
use gristmill::extract::{ExtractError, Extractor, Input};

fn settings() -> Parser {
    Parser {
        processes: 2,
        memory: 1 << 30,
        cpu: Duration::from_secs(5),
        time: Duration::from_secs(20),
        largest_text: 4 << 20,
        pages: 1_000,
        pdf: PdfReader::PdfExtract,
        docx: DocxReader::DocxRs,
        pdfium: None,
        fonts: Vec::new(),
    }
}

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file)
}

async fn read(file: &str) -> Result<Document, ExtractError> {
    let bytes = std::fs::read(fixture(file)).unwrap();
    let input = Input { bytes: bytes.into(), media_type: None, name: Some(file.to_owned()) };
    Extractor::with_program(settings(), env!("CARGO_BIN_EXE_gristmill")).extract(input).await
}

/// What became of a file, in the words of `hostile/expect.toml`.
async fn end_of(file: &str) -> String {
    match read(file).await {
        Ok(document) if document.text.trim().is_empty() => "empty".to_owned(),
        Ok(document) => format!("text by {}", document.reader),
        Err(ExtractError::Encrypted) => "encrypted".to_owned(),
        Err(ExtractError::Broken { .. }) => "broken".to_owned(),
        Err(ExtractError::Limit(what)) => format!("limit of {what}"),
        Err(ExtractError::Crashed(how)) => format!("crashed: {how}"),
        Err(other) => format!("neither: {other}"),
    }
}

async fn ends_of(folder: &str, extension: &str) -> String {
    let mut files: Vec<String> = std::fs::read_dir(fixture(folder))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(extension))
        .collect();
    files.sort();
    let mut ends = Vec::new();
    for file in files {
        ends.push(format!("{file}: {}", end_of(&format!("{folder}/{file}")).await));
    }
    ends.join("\n")
}

fn folded(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(feature = "pdf-extract")]
mod pdf_extract {
    use super::*;

    #[tokio::test]
    async fn pages_and_text_of_real_files_are_read() {
        insta::assert_snapshot!(ends_of("files", ".pdf").await, @"
        alkalami-sample.pdf: text by pdf-extract
        bzip2-manual.pdf: text by pdf-extract
        gentium-charset.pdf: text by pdf-extract
        gentium-history.pdf: text by pdf-extract
        pxjodel.pdf: text by pdf-extract
        sqlite-copyright-release.pdf: text by pdf-extract
        ");
        for (file, pages, phrase) in [
            ("files/bzip2-manual.pdf", 38, "BZ2_bzDecompress to transfer data between them"),
            ("files/gentium-history.pdf", 6, "primarily focused on making the v6 fonts available on TypeTuner Web"),
        ] {
            let document = read(file).await.unwrap();
            assert_eq!((document.reader.as_str(), document.page_count()), ("pdf-extract", Some(pages)), "{file}");
            assert!(folded(&document.text).contains(phrase), "{file} lacks {phrase:?}");
        }
    }

    #[tokio::test]
    async fn hostile_files_end_with_a_reason() {
        insta::assert_snapshot!(ends_of("hostile", ".pdf").await, @"
        deflate-bomb.pdf: empty
        encrypted.pdf: encrypted
        nested-arrays.pdf: empty
        nested-page-tree.pdf: text by pdf-extract
        page-tree-loop.pdf: empty
        xref-loop.pdf: text by pdf-extract
        ");
    }
}

#[cfg(feature = "docx-rs")]
mod docx_rs {
    use super::*;

    #[tokio::test]
    async fn text_and_headings_of_real_files_are_read() {
        insta::assert_snapshot!(ends_of("files", ".docx").await, @"
        mammoth-footnotes.docx: text by docx-rs
        pydocx-tables-in-lists.docx: text by docx-rs
        sqlite-datatype3.docx: text by docx-rs
        sqlite-testing.docx: text by docx-rs
        ");
        for (file, phrase, heading) in [
            ("files/sqlite-datatype3.docx", "Rule Used To Determine Affinity", "Type Affinity"),
            ("files/sqlite-testing.docx", "OOM testing is accomplished by simulating OOM errors", "Anomaly Testing"),
        ] {
            let document = read(file).await.unwrap();
            assert_eq!(document.reader, "docx-rs");
            assert!(folded(&document.text).contains(phrase), "{file} lacks {phrase:?}");
            let headings: Vec<_> = document.headings.iter().map(|heading| heading.title.as_str()).collect();
            assert!(headings.iter().any(|title| title.contains(heading)), "{file}: {headings:?}");
        }
    }

    #[tokio::test]
    async fn hostile_files_end_with_a_reason() {
        insta::assert_snapshot!(ends_of("hostile", ".docx").await, @"
        encrypted.docx: encrypted
        nested.docx: broken
        truncated.docx: broken
        zip-bomb.docx: broken
        ");
    }
}
