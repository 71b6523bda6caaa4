//! `[database]`, `[worker]` and `[parser]`.

use std::path::PathBuf;
use std::time::Duration;

use super::raw::Section;
use super::values::{at_least, duration, list, listen, path, secret, size, some_time, whole, word};
use super::{Database, DocxReader, Parser, PdfReader, Secret, Worker};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const MIB: u64 = 1 << 20;

/// Past this, the jobs of a killed worker would not be claimable again within a minute: dead leases are looked for every fifth of
/// a lease.
const LONGEST_LEASE: Duration = Duration::from_secs(45);

pub(super) fn database(mut section: Section) -> Option<Database> {
    section.assume("url", "${DATABASE_URL}");
    let url = section.read("url", |item| {
        let url: Secret = secret(item)?;
        let known = ["postgres://", "postgresql://"].iter().any(|scheme| url.expose().starts_with(scheme));
        if known { Ok(url) } else { Err("is not an address like postgres://user@host:5432/name".to_owned()) }
    });
    let connections = section.or("connections", whole(2..=10_000), 16_u32);
    section.finish();
    Some(Database { url: url?, connections })
}

pub(super) fn worker(mut section: Section) -> Worker {
    let worker = Worker {
        slots: section.or("slots", whole(1..=100_000), 512_usize),
        lease: section.or("lease", some_time, 30 * SECOND),
        poll: section.or("poll", some_time, 2 * SECOND),
        sweep: section.or("sweep", some_time, 30 * SECOND),
        sweep_rows: section.or("sweep_rows", at_least(1), 2_000),
        grace: section.or("grace", duration, 20 * SECOND),
        deadline: section.or("deadline", some_time, 60 * MINUTE),
        retry_first: section.or("retry_first", some_time, 5 * SECOND),
        retry_longest: section.or("retry_longest", some_time, HOUR),
        snooze_total: section.or("snooze_total", some_time, 7 * DAY),
        linger: section.or("linger", duration, Duration::from_millis(10)),
        memory: section.or("memory", size, 512 * MIB),
        listen: section.or("listen", listen, Some(([127, 0, 0, 1], 9464).into())),
        keep_history: section.or("keep_history", duration, 30 * DAY),
        keep_cache: section.or("keep_cache", duration, 7 * DAY),
        largest_cache: section.or("largest_cache", size, 1_024 * MIB),
    };
    if worker.lease > LONGEST_LEASE {
        section.misfit_at("lease", "is longer than 45s; a killed worker's jobs would wait for more than a minute");
    }
    if worker.retry_first > worker.retry_longest {
        section.misfit_at("retry_first", "is longer than worker.retry_longest");
    }
    section.finish();
    worker
}

pub(super) fn parser(mut section: Section) -> Parser {
    let parser = Parser {
        processes: section.or("processes", whole(1..=1_000), 2_usize),
        memory: section.or("memory", size, 1_024 * MIB),
        cpu: section.or("cpu", some_time, MINUTE),
        time: section.or("time", some_time, 90 * SECOND),
        largest_text: section.or("largest_text", size, 64 * MIB),
        pages: section.or("pages", at_least(1), 5_000_u32),
        pdf: section.or("pdf", word(&PDF_READERS), PdfReader::Pdfium),
        docx: section.or("docx", word(&DOCX_READERS), DocxReader::OfficeOxide),
        pdfium: section.optional("pdfium", path),
        fonts: section.or("fonts", list(path), ["/usr/share/fonts", "/usr/local/share/fonts"].map(PathBuf::from)),
    };
    if parser.pdf == PdfReader::PdfExtract && !cfg!(feature = "pdf-extract") {
        section.misfit_at("pdf", "needs a gristmill built with the cargo feature `pdf-extract`");
    }
    if parser.docx == DocxReader::DocxRs && !cfg!(feature = "docx-rs") {
        section.misfit_at("docx", "needs a gristmill built with the cargo feature `docx-rs`");
    }
    section.finish();
    parser
}

const PDF_READERS: [(&str, PdfReader); 3] =
    [("pdfium", PdfReader::Pdfium), ("unpdf", PdfReader::Unpdf), ("pdf-extract", PdfReader::PdfExtract)];

const DOCX_READERS: [(&str, DocxReader); 2] =
    [("office-oxide", DocxReader::OfficeOxide), ("docx-rs", DocxReader::DocxRs)];
