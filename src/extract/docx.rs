use std::io::Cursor;

use office_oxide::core::Error as CoreError;
use office_oxide::docx::DocxError;
use office_oxide::format::DocumentFormat;
use office_oxide::ir::{DocumentIR, Element, InlineContent, List, Note, Table, TextSpan};
use office_oxide::options::ParseOptions;
use office_oxide::pptx::PptxError;
use office_oxide::{Document as Office, OfficeError};

use super::builder::{Builder, without_private_use};
use super::markdown::is_worth_saying;
use super::wire::{ReadError, bytes as size};
use crate::domain::Document;

/// Which of the Office formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Docx,
    /// A slide is a page.
    Pptx,
}

/// Headings, paragraphs, tables, lists, links and notes of the body; no headers, footers or comments.
pub(super) fn read(bytes: &[u8], format: Format, memory: u64, builder: Builder) -> Result<Document, ReadError> {
    let (kind, name) = match format {
        Format::Docx => (DocumentFormat::Docx, "DOCX"),
        Format::Pptx => (DocumentFormat::Pptx, "PPTX"),
    };
    let options = options(memory);
    let office = Office::from_reader_with(Cursor::new(bytes.to_vec()), kind, &options)
        .map_err(|error| read_error(&error, name, &options))?;
    let content = office.to_ir();
    let mut walk = Walk { builder, format };
    walk.document(&content)?;
    Ok(walk.builder.finish())
}

/// A part is held unpacked, as XML and as content: a quarter of the memory is what one may grow to.
fn options(memory: u64) -> ParseOptions {
    let mut options = ParseOptions::default();
    options.limits.part_bytes = memory / 4;
    options.limits.package_bytes = memory / 2;
    options.limits.embedded_depth = 1;
    options.limits.memory_bytes = memory / 4;
    options
}

struct Walk {
    builder: Builder,
    format: Format,
}

impl Walk {
    fn document(&mut self, content: &DocumentIR) -> Result<(), ReadError> {
        if let Some(title) = &content.metadata.title {
            self.builder.title(title);
        }
        for section in &content.sections {
            if self.format == Format::Pptx {
                self.builder.page()?;
            }
            self.elements(&section.elements)?;
            self.elements(section.speaker_notes.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }

    fn elements(&mut self, elements: &[Element]) -> Result<(), ReadError> {
        for element in elements {
            match element {
                Element::Heading(heading) => {
                    self.builder.heading(heading.clamped_level(), &inline(&heading.content))?;
                }
                Element::TextBox(inner) => self.elements(&inner.content)?,
                Element::Footnote(note) | Element::Endnote(note) => self.block(&footnote(note))?,
                other => self.block(&flat(std::slice::from_ref(other)))?,
            }
        }
        Ok(())
    }

    fn block(&mut self, text: &str) -> Result<(), ReadError> {
        self.builder.block(&without_private_use(text)).map(drop)
    }
}

/// Elements as lines of text.
fn flat(elements: &[Element]) -> String {
    let mut lines = Vec::new();
    for element in elements {
        match element {
            Element::Heading(heading) => lines.push(inline(&heading.content)),
            Element::Paragraph(paragraph) => lines.push(inline(&paragraph.content)),
            Element::Table(inner) => lines.push(table(inner)),
            Element::List(inner) => lines.push(list(inner, 0)),
            Element::TextBox(inner) => lines.push(flat(&inner.content)),
            Element::Footnote(note) | Element::Endnote(note) => lines.push(footnote(note)),
            Element::CodeBlock(code) => lines.push(code.content.clone()),
            _ => {}
        }
    }
    lines.retain(|line| !line.trim().is_empty());
    lines.join("\n")
}

fn table(table: &Table) -> String {
    let cell = |elements: &[Element]| flat(elements).split_whitespace().collect::<Vec<_>>().join(" ");
    let rows = table.rows.iter().map(|row| {
        let cells: Vec<String> = row.cells.iter().map(|inner| cell(&inner.content)).collect();
        if cells.iter().all(String::is_empty) { String::new() } else { cells.join(" | ") }
    });
    rows.filter(|row| !row.is_empty()).collect::<Vec<_>>().join("\n")
}

fn list(list: &List, depth: usize) -> String {
    let mut lines = Vec::new();
    let first = list.start_number.unwrap_or(1);
    for (number, item) in (first..).zip(&list.items) {
        let mark = if list.ordered { format!("{number}. ") } else { "- ".to_owned() };
        lines.push(format!("{}{mark}{}", "  ".repeat(depth.min(8)), flat(&item.content)));
        if let Some(nested) = &item.nested {
            lines.push(self::list(nested, depth + 1));
        }
    }
    lines.join("\n")
}

/// A note's text behind its mark. Reviewers' comments arrive as notes too, and are not the document's text.
fn footnote(note: &Note) -> String {
    if note.marker.as_deref().is_some_and(|marker| marker.starts_with("Comment")) {
        return String::new();
    }
    let text = flat(&note.content);
    if text.is_empty() { text } else { format!("[{}] {text}", mark(note.marker.as_deref(), note.id)) }
}

fn mark(marker: Option<&str>, id: u32) -> String {
    marker.map_or_else(|| id.to_string(), str::to_owned)
}

fn inline(content: &[InlineContent]) -> String {
    let mut text = String::new();
    let mut link = Link::default();
    for item in content {
        link.follow(if let InlineContent::Text(span) = item { Some(span) } else { None }, &mut text);
        match item {
            InlineContent::Text(span) => text.push_str(&span.text),
            InlineContent::LineBreak => text.push('\n'),
            InlineContent::FootnoteRef(note) | InlineContent::EndnoteRef(note) => {
                text.extend(["[", &mark(note.marker.as_deref(), note.note_id), "]"]);
            }
            _ => {}
        }
    }
    link.follow(None, &mut text);
    text
}

/// The link around the current spans: its address follows its last span.
#[derive(Default)]
struct Link {
    address: Option<String>,
    start: usize,
}

impl Link {
    fn follow(&mut self, span: Option<&TextSpan>, text: &mut String) {
        let next = span.and_then(|span| span.hyperlink.clone());
        if next == self.address {
            return;
        }
        if let Some(address) = self.address.take()
            && is_worth_saying(&address, text.get(self.start..).unwrap_or_default().trim())
        {
            text.extend([" (", &address, ")"]);
        }
        self.address = next;
        self.start = text.len();
    }
}

/// The reader's own words may quote the file, so only their kind is passed on.
fn read_error(error: &OfficeError, format: &str, options: &ParseOptions) -> ReadError {
    let core = match error {
        OfficeError::Core(core)
        | OfficeError::Docx(DocxError::Core(core))
        | OfficeError::Pptx(PptxError::Core(core)) => core,
        OfficeError::Panic(_) => return ReadError::broken(format, "the reader gave up on its content"),
        _ => return ReadError::broken(format, "it has no document inside"),
    };
    let limit = |what: u64| ReadError::Limit(format!("{} unpacked", size(what)));
    match core {
        CoreError::DecompressionLimit { .. } => limit(options.limits.part_bytes),
        CoreError::PackageLimit(_) => limit(options.limits.package_bytes),
        CoreError::Zip(_) | CoreError::Io(_) => ReadError::broken(format, "its archive is damaged or cut short"),
        CoreError::MissingPart(_) | CoreError::RelationshipNotFound(_) => {
            ReadError::broken(format, "a part of it is missing")
        }
        CoreError::TruncatedPart(_) => ReadError::broken(format, "a part of it is cut short"),
        _ => ReadError::broken(format, "its XML is not well-formed"),
    }
}
