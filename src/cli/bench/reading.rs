//! Texts into chunks, and files into texts.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};

use crate::app;
use crate::chunk::{self, Rules, Tokenizer};
use crate::config::{ChunkSize, Longer, Parser};
use crate::db::bench::Row;
use crate::domain::Document;
use crate::embedded::ShortLivedFolder;
use crate::extract::{Extractor, Input};

use super::super::failure::Failure;
use super::Bed;
use super::figure::{Figure, Target};
use super::provider::Knobs;
use super::rig::{Rig, real};
use super::texts;
use super::worker::Setup;

const MEGABYTE: usize = 1_000_000;

/// Cutting, beside the tokenizer alone on the same text.
pub(super) fn chunking(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let tokenizer = Tokenizer::cl100k();
    // Loads the tokenizer.
    tokenizer.count("once");
    let bytes = if bed.quick { MEGABYTE / 4 } else { 4 * MEGABYTE };
    let text: String = texts::texts(bytes.div_ceil(1_600), 1_600).concat();
    let megabytes = real(text.len()) / real(MEGABYTE);
    let letters = "a".repeat(bytes.min(MEGABYTE));
    let (mut rates, mut floors, mut whole, mut quarters) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bed.rounds.max(3) {
        floors.push(megabytes / took(|| drop(tokenizer.encode(&text))).as_secs_f64());
        rates.push(megabytes / cut(&text, &tokenizer)?.as_secs_f64());
        let quarter = cut(&letters[..letters.len() / 4], &tokenizer)?.as_secs_f64();
        quarters.push(4.0 * quarter * 1_000.0);
        whole.push(cut(&letters, &tokenizer)?.as_secs_f64() * 1_000.0);
    }
    Ok(vec![
        Figure::beside("chunking: prose", "MB/s", &rates, &floors).held_to(Target::RatioAtLeast(0.7)),
        Figure::of("chunking: prose, absolute", "MB/s", &rates).held_to(Target::AtLeast(30.0)),
        Figure::beside("chunking: one letter, beside four quarters", "ms", &whole, &quarters)
            .held_to(Target::RatioAtMost(1.3)),
    ])
}

fn cut(text: &str, tokenizer: &Tokenizer) -> Result<Duration, Failure> {
    let rules = Rules {
        size: ChunkSize::Tokens(400),
        overlap: 0,
        whole: false,
        whole_up_to: 0,
        longer: Longer::Fail,
        longest: 8_191,
    };
    let document = Document::plain(text.to_owned());
    let began = Instant::now();
    chunk::split(&document, &rules, tokenizer, None).map_err(|error| Failure::of(&error))?;
    Ok(began.elapsed())
}

fn took(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// Real files. Origin and licences: tests/fixtures/README.md.
const FILES: [(&str, &[u8]); 6] = [
    ("pdf", include_bytes!("../../../tests/fixtures/files/gentium-history.pdf")),
    ("docx", include_bytes!("../../../tests/fixtures/files/sqlite-testing.docx")),
    ("pdf", include_bytes!("../../../tests/fixtures/files/gentium-charset.pdf")),
    ("pdf", include_bytes!("../../../tests/fixtures/files/alkalami-sample.pdf")),
    ("docx", include_bytes!("../../../tests/fixtures/files/sqlite-datatype3.docx")),
    ("pdf", include_bytes!("../../../tests/fixtures/files/sqlite-copyright-release.pdf")),
];

/// Files from end to end, beside reading them alone on all cores.
pub(super) async fn documents(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let count = if bed.quick { 10 } else { 200 };
    let name = format!("gristmill-bench-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let folder = ShortLivedFolder::make(std::env::temp_dir().join(name))?;
    let setup = Setup { dimensions: 256, files: Some(folder.path().to_owned()), ..Setup::of(bed.slots) };
    let rows = files(folder.path(), count)?;
    let (mut rates, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..bed.rounds {
        let mut rig = Rig::build(bed, &setup, Knobs::default()).await?;
        let settings = app::parser_settings(&setup.config(&rig.field, &rig.provider)?);
        floors.push(real(count) / alone(settings, count).await?.as_secs_f64());
        rig.lay(&rows).await?;
        rates.push(real(count) / rig.go(count).await?);
        rig.leave().await?;
    }
    Ok(vec![Figure::beside("documents: PDF and DOCX", "files/s", &rates, &floors).held_to(Target::RatioAtLeast(0.85))])
}

fn files(folder: &Path, count: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (id, (kind, bytes)) in (1..).zip(FILES.iter().cycle()).take(count) {
        let path = format!("{id}.{kind}");
        std::fs::write(folder.join(&path), bytes)?;
        let tenant = format!("tenant {}", id % 10);
        rows.push(Row { id, tenant, content: String::new(), path: Some(path) });
    }
    Ok(rows)
}

async fn alone(settings: Parser, count: usize) -> Result<Duration, Failure> {
    let began = Instant::now();
    let at_once = settings.processes;
    let extractor = Extractor::new(settings);
    let inputs = FILES.iter().cycle().take(count).map(|(_, bytes)| Input {
        bytes: Bytes::from_static(bytes),
        media_type: None,
        name: None,
    });
    let mut reading = stream::iter(inputs).map(|input| extractor.extract(input)).buffer_unordered(at_once);
    while let Some(read) = reading.next().await {
        read.map_err(|error| Failure::of(&error))?;
    }
    Ok(began.elapsed())
}
