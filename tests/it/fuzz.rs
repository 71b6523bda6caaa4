//! Files and configurations damaged in every way, over and over: for a moment in each run, for `FUZZ_SECONDS` where that is set. There is
//! a target for each reader (text and its encodings, Markdown, HTML, PDF twice, DOCX, PPTX, and the packages of both), for each container
//! of sound, and for the configuration.

use std::collections::BTreeSet;
use std::io::{Cursor, Read as _, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gristmill::config::{Config, DocxReader, Parser, PdfReader};
use gristmill::embedded::{self, Artifact};
use gristmill::extract::{ExtractError, Extractor, Input, PartLimits, Span};
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

use crate::transcripts::wav;

/// How long each of these tests goes on.
fn patience() -> Duration {
    let asked = std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(asked.unwrap_or(3))
}

/// Numbers that are the same for the same seed: a failure names its case, and that is enough to have it again.
struct Dice(u64);

impl Dice {
    fn of(case: u64) -> Self {
        Self(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % (limit.max(1) as u64)).unwrap_or(0)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What makes lengths and counts wrong.
const ODD: [&[u8]; 8] =
    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80", b"-1", b"99999999999999999999", b"<", b"\r\n\r\n"];

/// Bits flipped, a piece cut away, repeated, overwritten or taken from another file; one to four times.
fn damaged(dice: &mut Dice, file: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        let end = at + dice.below((bytes.len() - at).min(4_096));
        match dice.below(6) {
            0 => {
                for _ in 0..=dice.below(8) {
                    let at = dice.below(bytes.len());
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << dice.below(8);
                    }
                }
            }
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => {
                let odd = dice.pick(&ODD);
                let end = (at + odd.len()).min(bytes.len());
                bytes.splice(at..end, odd.iter().copied());
            }
            _ => {
                let from = dice.below(other.len());
                let to = from + dice.below((other.len() - from).min(4_096));
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

/// Whole as a package, with one of its parts damaged: what damages the package is mostly found by its checksums.
fn damaged_within(dice: &mut Dice, file: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    let mut parts = Vec::new();
    let mut archive = ZipArchive::new(Cursor::new(file)).ok()?;
    for nth in 0..archive.len() {
        let mut part = archive.by_index(nth).ok()?;
        let (mut bytes, name) = (Vec::new(), part.name().ok()?.into_owned());
        // A bomb need not be whole.
        part.by_ref().take(1 << 20).read_to_end(&mut bytes).ok()?;
        parts.push((name, bytes));
    }
    let mut written = ZipWriter::new(Cursor::new(Vec::new()));
    let guilty = dice.below(parts.len());
    for (nth, (name, bytes)) in parts.into_iter().enumerate() {
        written.start_file(name, SimpleFileOptions::default()).ok()?;
        let bytes = if nth == guilty { damaged(dice, &bytes, other) } else { bytes };
        written.write_all(&bytes).ok()?;
    }
    Some(written.finish().ok()?.into_inner())
}

fn fixtures(folders: &[&str]) -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let known = |path: &PathBuf| path.extension().is_some_and(|kind| kind != "py" && kind != "toml");
    files
        .into_iter()
        .filter(known)
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

fn extractor(pdf: PdfReader) -> Extractor {
    embedded::ensure(Artifact::Pdfium, &|_| {}).expect("libpdfium can be had");
    let settings = Parser {
        processes: 2,
        memory: 1 << 30,
        cpu: Duration::from_secs(2),
        time: Duration::from_secs(20),
        largest_text: 4 << 20,
        pages: 200,
        pdf,
        docx: DocxReader::OfficeOxide,
        pdfium: embedded::cached(Artifact::Pdfium),
        fonts: Vec::new(),
    };
    Extractor::with_program(settings, env!("CARGO_BIN_EXE_gristmill"))
}

/// A child may say that a file is damaged, hit a limit, or die in another's parser; it may neither fail to start nor answer what was not
/// asked. Readers of ours do not panic.
fn check(case: u64, name: &str, ours: bool, error: &ExtractError) {
    let said = error.to_string();
    let mischief = ["it gave", "does not hold together"].iter().any(|word| said.contains(word));
    let panicked = ours && said.contains("panicked");
    assert!(!matches!(error, ExtractError::Start(_)) && !mischief && !panicked, "case {case}, {name}: {said}");
}

async fn read_damaged(extractor: &Extractor, kinds: &[&str], ours: bool) {
    let files: Vec<_> = fixtures(&["files", "hostile"])
        .into_iter()
        .chain([("talk.pptx".to_owned(), pptx(&["The mill", "Grain"])), ("short.pptx".to_owned(), pptx(&["Flour"]))])
        // Of large texts there are too few tries.
        .filter(|(name, bytes)| {
            is_one_of(name, kinds)
                && !bytes.is_empty()
                && bytes.len() < if is_one_of(name, &TEXTS) { 1 << 15 } else { 1 << 20 }
        })
        .collect();
    for kind in kinds {
        let name = |name: &String| is_one_of(name, &[kind]);
        assert!(files.iter().filter(|(file, _)| name(file)).count() > 1, "too few files of {kind}");
    }
    let (started, mut case, mut read) = (Instant::now(), 0, 0);
    while started.elapsed() < patience() {
        let mut dice = Dice::of(case);
        let (name, bytes) = dice.pick(&files);
        let (_, other) = dice.pick(&files);
        let within = if dice.below(4) > 0 { damaged_within(&mut dice, bytes, other) } else { None };
        let bytes = within.unwrap_or_else(|| damaged(&mut dice, bytes, other)).into();
        match extractor.extract(Input { bytes, media_type: None, name: Some(name.clone()) }).await {
            Ok(_) => read += 1,
            Err(error) => check(case, name, ours, &error),
        }
        case += 1;
    }
    println!("{case} files, {read} of them read all the same");
    assert!(read > 0, "nothing of it was read: the damage is too much to find anything");
}

const TEXTS: [&str; 3] = ["txt", "md", "html"];

fn is_one_of(name: &str, kinds: &[&str]) -> bool {
    name.rsplit('.').next().is_some_and(|kind| kinds.contains(&kind))
}

#[tokio::test]
async fn damaged_texts_are_read_or_refused() {
    read_damaged(&extractor(PdfReader::Pdfium), &TEXTS, true).await;
}

#[tokio::test]
async fn damaged_pdfs_are_read_or_refused() {
    read_damaged(&extractor(PdfReader::Pdfium), &["pdf"], false).await;
}

#[tokio::test]
async fn damaged_pdfs_are_read_or_refused_by_the_second_reader() {
    read_damaged(&extractor(PdfReader::Unpdf), &["pdf"], false).await;
}

#[tokio::test]
async fn damaged_office_files_are_read_or_refused() {
    read_damaged(&extractor(PdfReader::Pdfium), &["docx"], false).await;
}

#[tokio::test]
async fn damaged_presentations_are_read_or_refused() {
    let extractor = extractor(PdfReader::Pdfium);
    let input = Input { bytes: pptx(&["The mill", "Grain"]).into(), media_type: None, name: None };
    let whole = extractor.extract(input).await.expect("it is a presentation");
    assert!(whole.text.contains("The mill") && whole.text.contains("Grain"), "{}", whole.text);
    read_damaged(&extractor, &["pptx"], false).await;
}

/// A presentation with a slide for each title.
fn pptx(titles: &[&str]) -> Vec<u8> {
    const OFFICE: &str = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
    const PACKAGE: &str = "http://schemas.openxmlformats.org/package/2006";
    const NAMES: &str = "xmlns:a=\"http://schemas.openxmlformats.org/drawingml/2006/main\" \
        xmlns:r=\"http://schemas.openxmlformats.org/officeDocument/2006/relationships\" \
        xmlns:p=\"http://schemas.openxmlformats.org/presentationml/2006/main\"";
    const TYPE: &str = "application/vnd.openxmlformats-officedocument.presentationml";
    let relation = |id: usize, kind: &str, target: &str| {
        format!("<Relationship Id=\"rId{id}\" Type=\"{OFFICE}/{kind}\" Target=\"{target}\"/>")
    };
    let relations = |inside: &str| format!("<Relationships xmlns=\"{PACKAGE}/relationships\">{inside}</Relationships>");
    let each = |write: &dyn Fn(usize) -> String| (1..=titles.len()).map(write).collect::<String>();
    let kinds =
        each(&|nth| format!("<Override PartName=\"/ppt/slides/slide{nth}.xml\" ContentType=\"{TYPE}.slide+xml\"/>"));
    let ids = each(&|nth| format!("<p:sldId id=\"{}\" r:id=\"rId{nth}\"/>", 255 + nth));
    let mut parts = vec![
        (
            "[Content_Types].xml".to_owned(),
            format!(
                "<Types xmlns=\"{PACKAGE}/content-types\"><Default Extension=\"rels\" \
                 ContentType=\"application/vnd.openxmlformats-package.relationships+xml\"/>\
                 <Override PartName=\"/ppt/presentation.xml\" ContentType=\"{TYPE}.presentation.main+xml\"/>{kinds}</Types>"
            ),
        ),
        ("_rels/.rels".to_owned(), relations(&relation(1, "officeDocument", "ppt/presentation.xml"))),
        (
            "ppt/presentation.xml".to_owned(),
            format!("<p:presentation {NAMES}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>"),
        ),
        (
            "ppt/_rels/presentation.xml.rels".to_owned(),
            relations(&each(&|nth| relation(nth, "slide", &format!("slides/slide{nth}.xml")))),
        ),
    ];
    for (nth, title) in titles.iter().enumerate() {
        let shape = format!(
            "<p:sp><p:nvSpPr><p:cNvPr id=\"2\" name=\"Title\"/><p:cNvSpPr/><p:nvPr><p:ph type=\"title\"/></p:nvPr></p:nvSpPr><p:spPr/>\
             <p:txBody><a:bodyPr/><a:p><a:r><a:t>{title}</a:t></a:r></a:p></p:txBody></p:sp>"
        );
        let slide = format!("<p:sld {NAMES}><p:cSld><p:spTree>{shape}</p:spTree></p:cSld></p:sld>");
        parts.push((format!("ppt/slides/slide{}.xml", nth + 1), slide));
    }
    let mut written = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in parts {
        written.start_file(name, SimpleFileOptions::default()).unwrap();
        written.write_all(b"<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>").unwrap();
        written.write_all(content.as_bytes()).unwrap();
    }
    written.finish().unwrap().into_inner()
}

#[tokio::test]
async fn damaged_recordings_are_measured_and_cut_or_refused() {
    let extractor = extractor(PdfReader::Pdfium);
    let mut files = fixtures(&["sound"]);
    files.push(("tone.wav".to_owned(), wav(&[(0.6, true), (0.2, false), (0.7, true)])));
    let limits = PartLimits { longest_ms: 500, largest: 1 << 20 };
    for (name, bytes) in &files {
        let whole = PartLimits { longest_ms: 10_000, ..limits };
        extractor.measure(&bytes.clone().into(), whole).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let (started, mut case) = (Instant::now(), 0);
    let mut heard = BTreeSet::new();
    while started.elapsed() < patience() {
        let mut dice = Dice::of(case);
        let (name, bytes) = dice.pick(&files);
        let (_, other) = dice.pick(&files);
        let bytes = bytes::Bytes::from(damaged(&mut dice, bytes, other));
        match extractor.measure(&bytes, limits).await {
            Ok(recording) => {
                heard.insert(name);
                let whole = Span { from_ms: 0, to_ms: recording.ms };
                for span in recording.parts.into_iter().take(3).chain([whole]) {
                    if let Err(error) = extractor.cut(&bytes, span, limits).await {
                        check(case, &format!("a cut of {name}"), false, &error);
                    }
                }
            }
            Err(error) => check(case, name, false, &error),
        }
        case += 1;
    }
    println!("{case} recordings; of these kinds some are heard all the same: {heard:?}");
    assert!(heard.len() > 1, "nothing of it was heard: the damage is too much to find anything");
}

/// Values that fit where nobody looks.
const VALUES: [&str; 12] = [
    "\"\"",
    "0",
    "-1",
    "9223372036854775807",
    "1e400",
    "[]",
    "{}",
    "\"{\"",
    "\"${\"",
    "\"{{}\"",
    "\"\\u0000\"",
    "1979-05-27",
];

/// A configuration with lines cut, moved, taken from another, given another value, or with damaged bytes.
fn damaged_toml(dice: &mut Dice, text: &str, other: &str) -> String {
    if dice.below(4) == 0 {
        return String::from_utf8_lossy(&damaged(dice, text.as_bytes(), other.as_bytes())).into_owned();
    }
    let (mut lines, others) = (text.lines().map(str::to_owned).collect::<Vec<_>>(), other.lines().collect::<Vec<_>>());
    for _ in 0..=dice.below(5) {
        let at = dice.below(lines.len());
        match dice.below(5) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, (*dice.pick(&others)).to_owned()),
            2 => {
                let line = lines.remove(at);
                lines.insert(dice.below(lines.len()), line);
            }
            3 => {
                if let Some((key, _)) = lines[at].split_once('=') {
                    lines[at] = format!("{key}= {}", dice.pick(&VALUES));
                }
            }
            _ => {
                let cut = dice.below(lines[at].chars().count() + 1);
                lines[at] = lines[at].chars().take(cut).collect();
            }
        }
        if lines.is_empty() {
            break;
        }
    }
    lines.join("\n")
}

#[test]
fn a_damaged_configuration_is_read_or_refused_with_file_and_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = vec![std::fs::read_to_string(root.join("workers.toml")).unwrap()];
    for app in ["arami", "lgtempo", "orionchat", "somni", "yarnnn"] {
        texts.push(std::fs::read_to_string(root.join("tests/apps").join(app).join("workers.toml")).unwrap());
    }
    // What is commented out are keys as well.
    let uncommented: String =
        texts[0].lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(line))).collect();
    texts.push(uncommented);
    let environment = |name: &str| match name {
        "DATABASE_URL" => Some("postgres://x/y".to_owned()),
        name if name.starts_with("GRISTMILL__") => None,
        _ => Some("https://x.example".to_owned()),
    };
    let (started, mut case, mut read) = (Instant::now(), 0, 0);
    while started.elapsed() < patience() {
        let mut dice = Dice::of(case);
        let (text, other) = (dice.pick(&texts), dice.pick(&texts));
        let text = damaged_toml(&mut dice, text, other);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| Config::read("workers.toml", &text, &environment)));
        let outcome = outcome.unwrap_or_else(|_| panic!("case {case} panics:\n{text}"));
        let lines = text.lines().count().max(1);
        match outcome {
            Ok(_) => read += 1,
            Err(errors) => {
                assert!(!errors.is_empty(), "case {case} is refused without a reason");
                for error in errors {
                    let place = &error.place;
                    let there = place.file == "workers.toml" && (1..=lines + 1).contains(&place.line);
                    assert!(there && error.to_string().starts_with("workers.toml:"), "case {case}: {error}\n{text}");
                }
            }
        }
        case += 1;
    }
    assert!(read > 0, "nothing was read");
}
