use std::fmt::Write as _;
use std::io::{Cursor, Write as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use docx_rs::{
    AbstractNumbering, Docx, Footnote, Hyperlink, HyperlinkType, IndentLevel, Level, LevelJc, LevelText, NumberFormat,
    Numbering, NumberingId, Paragraph, Run, Start, Style, StyleType, Table, TableCell, TableRow,
};
use gristmill::config::{DocxReader, Parser, PdfReader};
use gristmill::domain::Document;
use gristmill::extract::{ExtractError, Extractor, Input};

const PROGRAM: &str = env!("CARGO_BIN_EXE_gristmill");

fn settings() -> Parser {
    Parser {
        processes: 2,
        memory: 1 << 30,
        cpu: Duration::from_secs(20),
        time: Duration::from_secs(30),
        largest_text: 1 << 20,
        pages: 100,
        pdf: PdfReader::Pdfium,
        docx: DocxReader::OfficeOxide,
        pdfium: std::env::var_os("GRISTMILL_PDFIUM").map(PathBuf::from),
        fonts: vec!["/usr/share/fonts".into()],
    }
}

fn without_pdfium() -> Parser {
    Parser { pdfium: None, ..settings() }
}

fn input(name: &str, bytes: impl Into<Vec<u8>>) -> Input {
    Input { bytes: bytes.into().into(), media_type: None, name: Some(name.to_owned()) }
}

async fn try_read(settings: Parser, name: &str, bytes: impl Into<Vec<u8>>) -> Result<Document, ExtractError> {
    Extractor::with_program(settings, PROGRAM).extract(input(name, bytes)).await
}

async fn read(name: &str, bytes: impl Into<Vec<u8>>) -> Document {
    let document = try_read(settings(), name, bytes).await.unwrap();
    check_offsets(&document);
    document
}

/// The error's own words, as a person reads them.
async fn fails(settings: Parser, name: &str, bytes: impl Into<Vec<u8>>) -> String {
    try_read(settings, name, bytes).await.map(|document| document.text).unwrap_err().to_string()
}

fn check_offsets(document: &Document) {
    let fine = |at: usize| document.text.is_char_boundary(at);
    assert!(document.pages.iter().all(|&at| fine(at)) && document.pages.is_sorted());
    assert!(document.headings.iter().all(|heading| fine(heading.at)));
}

/// `level title` of each heading, with what stands at its place.
fn headings(document: &Document) -> Vec<String> {
    let line = |at: usize| document.text[at..].lines().next().unwrap_or_default();
    document
        .headings
        .iter()
        .map(|heading| format!("{} {} @ {}", heading.level, heading.title, line(heading.at)))
        .collect()
}

fn utf16(text: &str) -> Vec<u8> {
    std::iter::once(0xFEFF).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

/// A PDF put together by hand: objects, a table of where they are, a trailer.
struct Pdf {
    bytes: Vec<u8>,
    offsets: Vec<usize>,
    trailer: String,
}

impl Pdf {
    fn new() -> Self {
        Self { bytes: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n".to_vec(), offsets: Vec::new(), trailer: String::new() }
    }

    /// Adds an object; the first is number 1.
    fn object(&mut self, body: &str) -> &mut Self {
        self.offsets.push(self.bytes.len());
        let number = self.offsets.len();
        write!(self.bytes, "{number} 0 obj\n{body}\nendobj\n").unwrap();
        self
    }

    fn stream(&mut self, content: &str) -> &mut Self {
        self.object(&format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()))
    }

    fn finish(&mut self) -> Vec<u8> {
        let start = self.bytes.len();
        let count = self.offsets.len() + 1;
        write!(self.bytes, "xref\n0 {count}\n0000000000 65535 f \n").unwrap();
        for offset in &self.offsets {
            writeln!(self.bytes, "{offset:010} 00000 n ").unwrap();
        }
        let trailer = &self.trailer;
        write!(self.bytes, "trailer\n<< /Size {count} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n").unwrap();
        self.bytes.clone()
    }
}

/// Pages of lines, each line `size bold text`.
pub fn pdf(pages: &[&[(f32, bool, &str)]], outline: &[(&str, usize)], trailer: &str) -> Vec<u8> {
    let mut pdf = Pdf::new();
    let first_page = 5;
    let outlines = first_page + 2 * pages.len();
    let kids: Vec<String> = (0..pages.len()).map(|page| format!("{} 0 R", first_page + 2 * page)).collect();
    let reference = if outline.is_empty() { String::new() } else { format!("/Outlines {outlines} 0 R") };
    pdf.object(&format!("<< /Type /Catalog /Pages 2 0 R {reference} >>"));
    pdf.object(&format!("<< /Type /Pages /Kids [{}] /Count {} >>", kids.join(" "), pages.len()));
    for font in ["Helvetica", "Helvetica-Bold"] {
        pdf.object(&format!("<< /Type /Font /Subtype /Type1 /BaseFont /{font} /Encoding /WinAnsiEncoding >>"));
    }
    for (index, lines) in pages.iter().enumerate() {
        let content = first_page + 2 * index + 1;
        pdf.object(&format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {content} 0 R \
             /Resources << /Font << /F0 3 0 R /F1 4 0 R >> >> >>"
        ));
        let mut drawn = String::from("BT 1 0 0 1 72 740 Tm\n");
        for (size, bold, text) in *lines {
            let font = u8::from(*bold);
            writeln!(drawn, "/F{font} {size} Tf 0 -{} Td ({text}) Tj", size * 1.2).unwrap();
        }
        pdf.stream(&(drawn + "ET"));
    }
    if !outline.is_empty() {
        let last = outlines + outline.len();
        pdf.object(&format!(
            "<< /Type /Outlines /First {} 0 R /Last {last} 0 R /Count {} >>",
            outlines + 1,
            outline.len()
        ));
        for (index, (title, page)) in outline.iter().enumerate() {
            let number = outlines + 1 + index;
            let next = if number < last { format!("/Next {} 0 R", number + 1) } else { String::new() };
            let page = first_page + 2 * page;
            pdf.object(&format!("<< /Title ({title}) /Parent {outlines} 0 R {next} /Dest [{page} 0 R /Fit] >>"));
        }
    }
    trailer.clone_into(&mut pdf.trailer);
    pdf.finish()
}

const BODY: (f32, bool, &str) =
    (10.0, false, "The mill grinds what the farmers bring, and what they bring is grain and more of it.");

fn docx(docx: Docx) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    docx.build().pack(&mut bytes).unwrap();
    bytes.into_inner()
}

fn words(text: &str) -> Paragraph {
    Paragraph::new().add_run(Run::new().add_text(text))
}

fn heading_style(level: usize) -> Style {
    Style::new(format!("Heading{level}"), StyleType::Paragraph).name(format!("heading {level}"))
}

fn sample_docx() -> Vec<u8> {
    let list = |text| words(text).numbering(NumberingId::new(2), IndentLevel::new(0));
    let level = Level::new(0, Start::new(1), NumberFormat::new("decimal"), LevelText::new("%1."), LevelJc::new("left"));
    let link =
        Hyperlink::new("https://mill.example/flour", HyperlinkType::External).add_run(Run::new().add_text("flour"));
    let note = Footnote::new().add_content(words("Stone, not steel."));
    let cells =
        |texts: [&str; 2]| TableRow::new(texts.map(|text| TableCell::new().add_paragraph(words(text))).to_vec());
    docx(
        Docx::new()
            .add_style(heading_style(1))
            .add_style(heading_style(2))
            .add_abstract_numbering(AbstractNumbering::new(2).add_level(level))
            .add_numbering(Numbering::new(2, 2))
            .add_paragraph(words("Grüße aus der Mühle").style("Heading1"))
            .add_paragraph(
                Paragraph::new()
                    .add_run(Run::new().add_text("We sell "))
                    .add_hyperlink(link)
                    .add_run(Run::new().add_text(" here.")),
            )
            .add_paragraph(words("Tools").style("Heading2"))
            .add_paragraph(Paragraph::new().add_run(Run::new().add_text("A mill").add_footnote_reference(note)))
            .add_paragraph(list("grind"))
            .add_paragraph(list("sift"))
            .add_table(Table::new(vec![cells(["grain", "kg"]), cells(["rye", "12"])])),
    )
}

#[tokio::test]
async fn a_docx_keeps_headings_links_lists_notes_and_tables() {
    let document = read("a.docx", sample_docx()).await;

    assert_eq!(document.reader, "office_oxide");
    assert_eq!(headings(&document), ["1 Grüße aus der Mühle @ Grüße aus der Mühle", "2 Tools @ Tools"]);
    for part in [
        "We sell flour (https://mill.example/flour) here.",
        "1. grind\n2. sift",
        "grain | kg\nrye | 12",
        "Stone, not steel.",
    ] {
        assert!(document.text.contains(part), "{part} in {}", document.text);
    }
}

#[tokio::test]
async fn a_truncated_docx_is_broken_not_fatal() {
    let whole = sample_docx();

    for part in [whole.len() / 4, whole.len() / 2, whole.len() - 30] {
        let words = fails(settings(), "a.docx", &whole[..part]).await;
        assert!(words.starts_with("the file cannot be read as DOCX: "), "{part}: {words}");
    }
}

#[tokio::test]
async fn a_zip_bomb_meets_a_limit() {
    let bomb = |part: &str, name: &str| {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        let file = sample_docx();
        let mut old = zip::ZipArchive::new(Cursor::new(file)).unwrap();
        for index in 0..old.len() {
            let entry = old.by_index_raw(index).unwrap();
            if entry.name().unwrap() != name {
                zip.raw_copy_file(entry).unwrap();
            }
        }
        zip.start_file(name, options).unwrap();
        zip.write_all(b"<w:document xmlns:w=\"http://schemas.openxmlformats.org/wordprocessingml/2006/main\"><w:body>")
            .unwrap();
        let many = part.repeat((8 << 20) / part.len());
        (0..6).for_each(|_| zip.write_all(many.as_bytes()).unwrap());
        zip.write_all(b"</w:body></w:document>").unwrap();
        zip.finish().unwrap().into_inner()
    };
    let bytes = bomb("<w:p><w:r><w:t>bomb</w:t></w:r></w:p>", "word/document.xml");
    assert!(bytes.len() < 1 << 20, "{} bytes are no bomb", bytes.len());

    let words = fails(Parser { memory: 160 << 20, ..settings() }, "a.docx", bytes).await;

    assert!(words.starts_with("the parser hit its limit of "), "{words}");
}

#[tokio::test]
async fn a_pdf_is_read_page_by_page() {
    let first: &[(f32, bool, &str)] = &[(20.0, true, "The mill"), BODY, BODY, (10.0, false, "A short end.")];
    let second: &[(f32, bool, &str)] = &[BODY, BODY];
    for settings in [settings(), without_pdfium()] {
        let document = try_read(settings.clone(), "a.pdf", pdf(&[first, second], &[], "")).await.unwrap();

        check_offsets(&document);
        assert_eq!(document.reader, if settings.pdfium.is_some() { "pdfium" } else { "unpdf" });
        assert_eq!(document.page_count(), Some(2));
        assert_eq!(headings(&document), ["1 The mill @ The mill"]);
        assert!(document.text[document.pages[1]..].starts_with("The mill grinds"), "{}", document.text);
        assert!(document.text.contains("more of it. The mill grinds"), "lines of a paragraph flow: {}", document.text);
    }
}

#[tokio::test]
async fn a_word_hyphenated_over_lines_is_whole() {
    let page: &[(f32, bool, &str)] = &[
        (10.0, false, "A long sentence ends its line in the middle of an uncom-"),
        (10.0, false, "mon word and goes on."),
    ];
    let document = read("a.pdf", pdf(&[page], &[], "")).await;

    // unpdf keeps the hyphen.
    let whole = if document.reader == "pdfium" { "an uncommon word" } else { "an uncom- mon word" };
    assert!(document.text.contains(whole), "{}: {}", document.reader, document.text);
}

#[tokio::test]
async fn an_outline_names_the_headings() {
    let page: &[(f32, bool, &str)] = &[(10.0, false, "Chapter one"), BODY, (10.0, false, "1.1 Grain"), BODY];
    let outline = [("Chapter one", 0), ("Grain", 0), ("Elsewhere", 1)];
    for settings in [settings(), without_pdfium()] {
        let document = try_read(settings, "a.pdf", pdf(&[page, &[BODY]], &outline, "")).await.unwrap();

        let found = headings(&document);
        assert!(found[0].starts_with("1 Chapter one @ Chapter one"), "{found:?} in {}", document.text);
        // unpdf takes the lines for one paragraph; the place is right all the same.
        let place = found[1].split_once(" @ ").unwrap().1;
        assert!(place.trim_start_matches("1.1 ").starts_with("Grain"), "{found:?} in {}", document.text);
        assert_eq!(document.headings[2].at, document.pages[1]);
    }
}

#[tokio::test]
async fn an_encrypted_pdf_is_named() {
    let password = "0123456789abcdef".repeat(4);
    let encrypt =
        format!("/Encrypt << /Filter /Standard /V 1 /R 2 /O <{password}> /U <{password}> /P -44 >> /ID [<00> <00>]");
    for settings in [settings(), without_pdfium()] {
        assert_eq!(fails(settings, "a.pdf", pdf(&[&[BODY]], &[], &encrypt)).await, "the file is encrypted");
    }
}

#[tokio::test]
async fn a_deeply_nested_pdf_harms_nobody() {
    let mut nested = Pdf::new();
    nested.object("<< /Type /Catalog /Pages 2 0 R >>");
    nested.object("<< /Type /Pages /Kids [3 0 R] /Count 1 >>");
    nested.object("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R /Deep 4 0 R >>");
    nested.object(&format!("{}{}", "[".repeat(300_000), "]".repeat(300_000)));
    nested.stream(&format!("BT {}{} TJ ET", "[".repeat(300_000), "]".repeat(300_000)));
    let nested = nested.finish();

    for settings in [settings(), without_pdfium()] {
        match try_read(settings, "a.pdf", nested.clone()).await {
            Ok(document) => assert_eq!(document.text, ""),
            Err(error) => assert!(matches!(error, ExtractError::Limit(_) | ExtractError::Broken { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn deeply_nested_html_meets_a_limit_or_its_text() {
    let nested = format!("{}deep", "<div>".repeat(200_000));
    // Its markup is not taken for text where neither its name nor its beginning says that it is a page.
    for (name, html) in [("a.html", format!("<html><body>{nested}")), ("a", nested)] {
        match try_read(Parser { time: Duration::from_secs(5), ..settings() }, name, html).await {
            Ok(document) => assert_eq!(document.text, "deep"),
            Err(error) => assert!(matches!(error, ExtractError::Limit(_)), "{error}"),
        }
    }
}

#[tokio::test]
async fn utf_16_with_nuls_becomes_clean_text() {
    let document = read("a.txt", utf16("Grüße\0 aus\r\nder\0Mühle 水")).await;

    assert_eq!((document.text.as_str(), document.reader.as_str()), ("Grüße aus\nderMühle 水", "text"));
}

#[tokio::test]
async fn what_no_reader_reads_is_named() {
    assert!(fails(settings(), "a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec()).await.contains("image/png"));
    assert_eq!(fails(settings(), "a.pdf", vec![0; 99]).await, "files of type unknown are not supported");
}

#[tokio::test]
async fn an_empty_file_is_an_empty_document() {
    assert_eq!(read("a.pdf", Vec::new()).await.text, "");
    assert_eq!(read("a.txt", b" \n\t".to_vec()).await.text, "");
}

#[tokio::test]
async fn sizes_and_pages_have_limits() {
    let small = || Parser { largest_text: 100, pages: 1, ..settings() };
    assert_eq!(fails(small(), "a.txt", "x".repeat(101)).await, "the parser hit its limit of 100 bytes of text");
    for small in [small(), Parser { pdfium: None, ..small() }] {
        assert_eq!(fails(small, "a.pdf", pdf(&[&[], &[]], &[], "")).await, "the parser hit its limit of 1 pages");
    }
}

#[tokio::test]
async fn time_memory_and_processor_have_limits() {
    // Slow enough in any build to be stopped on its way.
    let long = "<p>word <b>bold</b></p>\n".repeat(400_000);
    let hurried = Parser { time: Duration::from_millis(50), ..settings() };
    assert_eq!(fails(hurried, "a.html", long.clone()).await, "the parser hit its limit of 0 s");
    let short = Parser { memory: 160 << 20, ..settings() };
    assert_eq!(fails(short, "a.html", long.clone()).await, "the parser hit its limit of 160 MiB of memory");
    let lazy = Parser { cpu: Duration::from_secs(1), memory: 8 << 30, largest_text: 1 << 30, ..settings() };
    assert_eq!(fails(lazy, "a.html", long.repeat(4)).await, "the parser hit its limit of 1 s of processor time");
}

#[tokio::test]
async fn the_sandbox_stops_whatever_a_parser_must_not_do() {
    let report = Extractor::with_program(settings(), PROGRAM).probe().await.unwrap();

    assert!(report.seccomp, "{report:?}");
    assert!(report.is_closed(), "{report:?}");
    let fonts = settings().fonts.iter().filter(|folder| folder.is_dir()).count();
    assert_eq!(report.fonts, if report.landlock { fonts } else { 0 }, "{report:?}");
    assert_eq!(report.pdfium, settings().pdfium.map(|_| true));
}

#[tokio::test]
async fn a_program_that_is_no_parser_is_not_the_files_fault() {
    let missing = Extractor::with_program(settings(), "/nonexistent").extract(input("a.txt", "x")).await;
    assert!(matches!(missing, Err(ExtractError::Start(_))), "{missing:?}");
    let other = Extractor::with_program(settings(), "/bin/false").extract(input("a.txt", "x")).await;
    assert!(matches!(other, Err(ExtractError::Crashed(_))), "{other:?}");
}

#[test]
fn a_child_whose_parent_goes_away_ends() {
    let file = "<p>word</p>\n".repeat(1_000_000);
    let request = serde_json::json!({
        "size": file.len(), "media_type": "text/html", "extension": null, "memory": 4_u64 << 30, "cpu_seconds": 60,
        "largest_text": 1 << 30, "pages": 1, "pdf": "unpdf", "docx": "office-oxide", "pdfium": null, "fonts": []
    });
    let mut child = std::process::Command::new(PROGRAM)
        .arg("parser-child")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();

    let mut pipe = child.stdin.take().unwrap();
    write!(pipe, "{request}\n{file}").unwrap();
    drop(pipe);

    assert_eq!(child.wait().unwrap().code(), Some(3), "it should have been cut off before it was done");
}

/// Not a test of behaviour: prints what a child costs. `cargo test --release -- --ignored --nocapture a_child_costs`.
#[tokio::test]
#[ignore = "a measurement"]
async fn a_child_costs() {
    let page: &[(f32, bool, &str)] = &[(20.0, true, "The mill"), BODY, BODY];
    let files = [("a.txt", b"One sentence.".to_vec()), ("a.docx", sample_docx()), ("a.pdf", pdf(&[page], &[], ""))];
    for (name, bytes) in files {
        let extractor = Extractor::with_program(settings(), PROGRAM);
        let started = Instant::now();
        for _ in 0..100 {
            extractor.extract(input(name, bytes.clone())).await.unwrap();
        }
        println!("{name}: {:.2} ms a file", started.elapsed().as_secs_f64() * 10.0);
    }
}

/// A PDF without a page was cut off or is broken; one whose page is empty is what it says.
#[tokio::test]
async fn a_pdf_without_a_page_is_damaged_and_one_with_an_empty_page_is_not() {
    let lost_pages = String::from_utf8_lossy(&pdf(&[&[BODY]], &[], "")).replace("/Kids [5 0 R]", "/Kids [9 0 R]");
    for settings in [settings(), without_pdfium()] {
        for bytes in [pdf(&[], &[], ""), lost_pages.clone().into_bytes()] {
            let said = fails(settings.clone(), "scan.pdf", bytes).await;
            assert!(said.starts_with("the file cannot be read as PDF: "), "{said}");
        }
        let empty = try_read(settings, "empty.pdf", pdf(&[&[]], &[], "")).await.expect("it has a page");
        assert_eq!((empty.text.trim(), empty.page_count()), ("", Some(1)));
    }
}
