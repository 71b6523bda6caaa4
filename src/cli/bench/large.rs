//! A file that is larger than anybody hopes for: what a worker and its parser child have in memory at the most.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use crate::db;
use crate::db::bench::Row;
use crate::embedded::ShortLivedFolder;

use super::super::failure::Failure;
use super::Bed;
use super::figure::{Figure, Target};
use super::provider::Knobs;
use super::rig::{Rig, float};
use super::texts;
use super::worker::{Limits, Setup, peak_memory};

const MEBIBYTE: f64 = 1_048_576.0;
const MEGABYTE: usize = 1_000_000;
/// A text of 500 MB, its chunks and their vectors, and nothing besides.
const OF_TEXT: Limits = Limits { worker: 2_048, parser: 1_536 };
/// The defaults.
const OF_PAGES: Limits = Limits { worker: 512, parser: 1_024 };

pub(super) async fn run(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let (megabytes, pages) = if bed.quick { (5, 100) } else { (500, 3_000) };
    let name = format!("gristmill-bench-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let folder = ShortLivedFolder::make(std::env::temp_dir().join(name))?;
    text(&folder.path().join("large.txt"), megabytes * MEGABYTE)?;
    pdf(&folder.path().join("large.pdf"), pages)?;
    let mut figures = Vec::new();
    for (file, what, limits) in [
        ("large.txt", format!("a text of {megabytes} MB"), OF_TEXT),
        ("large.pdf", format!("a PDF of {pages} pages"), OF_PAGES),
    ] {
        let setup = Setup {
            dimensions: 1_536,
            files: Some(folder.path().to_owned()),
            limits: Some(limits),
            ..Setup::of(bed.slots)
        };
        let peaks = one(bed, &setup, file, &what).await?;
        for (whose, bytes, limit) in [("worker", peaks.worker, limits.worker), ("parser", peaks.parser, limits.parser)]
        {
            let figure =
                Figure::of(&format!("large: {what}: {whose}'s peak memory"), "MiB", &[float(bytes) / MEBIBYTE]);
            figures.push(figure.held_to(Target::AtMost(f64::from(limit))));
        }
    }
    Ok(figures)
}

#[derive(Default)]
struct Peaks {
    worker: u64,
    parser: u64,
}

/// One row with a file, from the insert to the last chunk.
async fn one(bed: &Bed, setup: &Setup, file: &str, what: &str) -> Result<Peaks, Failure> {
    let mut rig = Rig::build(bed, setup, Knobs::default()).await?;
    let row = Row { id: 1, tenant: "tenant 1".to_owned(), content: String::new(), path: Some(file.to_owned()) };
    rig.lay(&[row]).await?;
    let worker = rig.workers[0].process();
    let mut parser = 0;
    let seconds = tokio::select! {
        seconds = rig.go(1) => seconds?,
        () = watch(worker, &mut parser) => 0.0,
    };
    let peaks = Peaks { worker: peak_memory(worker), parser };
    let written = db::bench::written(&rig.field.pool).await?;
    if written.completed != 1 || written.failed > 0 {
        return Err(rig.workers[0].failed(&format!("the work was not done: {written:?}")));
    }
    bed.say(&format!(
        "  {what}: {} chunks in {seconds:.0} s; worker {:.0} MiB, parser {:.0} MiB",
        written.chunks,
        float(peaks.worker) / MEBIBYTE,
        float(peaks.parser) / MEBIBYTE
    ));
    rig.leave().await?;
    Ok(peaks)
}

/// The most that any child of a process has in memory, for as long as this is asked.
async fn watch(parent: u32, most: &mut u64) {
    loop {
        let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let peaks = children.split_whitespace().filter_map(|child| child.parse().ok()).map(peak_memory);
            *most = peaks.max().unwrap_or_default().max(*most);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Prose, no two notes of it alike.
fn text(path: &Path, bytes: usize) -> Result<(), Failure> {
    let notes = texts::texts(1_000, 1_600);
    let mut file = BufWriter::new(File::create(path)?);
    let mut written = 0;
    for (nth, note) in notes.iter().cycle().enumerate() {
        if written >= bytes {
            break;
        }
        let note = format!("Volume {nth}. {note}\n\n");
        file.write_all(note.as_bytes())?;
        written += note.len();
    }
    Ok(file.flush()?)
}

const LINES: usize = 50;
const LETTERS: usize = 80;

/// Pages of prose in PDF's own font for it.
fn pdf(path: &Path, pages: usize) -> Result<(), Failure> {
    let prose: String = texts::prose().chars().filter(|letter| letter.is_ascii_graphic() || *letter == ' ').collect();
    let lines: Vec<&str> = (0..prose.len() / LETTERS).map(|nth| &prose[nth * LETTERS..][..LETTERS]).collect();
    let kids: Vec<String> = (0..pages).map(|page| format!("{} 0 R", 4 + 2 * page)).collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!("<< /Type /Pages /Kids [{}] /Count {pages} >>", kids.join(" ")),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
    ];
    for page in 0..pages {
        let mut content = format!("BT /F1 10 Tf 50 780 Td 14 TL (Page {page}.) Tj");
        for line in 0..LINES {
            let line = lines[(page * LINES + line) % lines.len()];
            let escaped = line.replace('\\', "\\\\").replace('(', "\\(").replace(')', "\\)");
            write!(content, " T* ({escaped}) Tj").map_err(|error| Failure::of(&error))?;
        }
        content += " ET";
        let stream = 5 + 2 * page;
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> /Contents {stream} 0 R >>"
        ));
        objects.push(format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()));
    }
    let mut bytes = b"%PDF-1.4\n".to_vec();
    let mut places = Vec::new();
    for (number, object) in (1..).zip(&objects) {
        places.push(bytes.len());
        let number: usize = number;
        bytes.extend(format!("{number} 0 obj\n{object}\nendobj\n").as_bytes());
    }
    let table = bytes.len();
    bytes.extend(format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).as_bytes());
    for place in places {
        bytes.extend(format!("{place:010} 00000 n \n").as_bytes());
    }
    let trailer = format!("trailer << /Size {} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n", objects.len() + 1);
    bytes.extend(trailer.as_bytes());
    Ok(fs::write(path, bytes)?)
}
