use std::path::{Path, PathBuf};

use pdfium_render::prelude::*;

use super::builder::{Builder, without_private_use};
use super::layout::{self, Line, Paragraph};
use super::outline::{self, Bookmark};
use super::wire::{Answer, ReadError};

/// Deeper outlines and longer ones are cut.
const MOST_BOOKMARKS: usize = 5_000;
const DEEPEST_BOOKMARK: u8 = 6;

/// Binds libpdfium; has to happen before the sandbox closes. `None` where the library does not load.
pub(super) fn bind(library: &Path, fonts: &[PathBuf]) -> Option<Pdfium> {
    let bindings = Pdfium::bind_to_library(library).ok()?;
    let fonts: Vec<&str> = fonts.iter().filter_map(|folder| folder.to_str()).collect();
    let config = PdfiumLibraryConfig::new().set_user_font_paths(&fonts).ok()?;
    Some(Pdfium::new_with_config(bindings, config))
}

/// Page by page. An answer that is poor against what is drawn on the pages says so.
pub(super) fn read(
    pdfium: &Pdfium,
    bytes: &[u8],
    mut builder: Builder,
    most_pages: usize,
) -> Result<Answer, ReadError> {
    let document = pdfium.load_pdf_from_byte_slice(bytes, None).map_err(|error| load_error(&error))?;
    let count = usize::try_from(document.pages().len()).unwrap_or(0);
    if count > most_pages {
        return Err(ReadError::Limit(format!("{most_pages} pages")));
    }
    let mut pages = Vec::new();
    let mut sight = Sight::default();
    let mut length = 0;
    for index in 0..document.pages().len() {
        // A page that cannot be opened stays in the count, so that the others keep their numbers.
        let page = document.pages().get(index).ok();
        sight.closed_pages += usize::from(page.is_none());
        let lines = page.map(|page| lines(&page, &mut sight)).unwrap_or_default();
        length += lines.iter().map(|line| line.text.len()).sum::<usize>();
        builder.has_room_for(length)?;
        pages.push(layout::paragraphs(&lines));
    }
    // One without any tells of damage, not of an empty text.
    if sight.closed_pages == count {
        return Err(ReadError::broken("PDF", "it has no page that opens"));
    }
    if let Some(title) = document.metadata().get(PdfDocumentMetadataTagType::Title) {
        builder.title(outline::honest_title(title.value()));
    }
    write(&pages, &bookmarks(&document), &mut builder)?;
    let document = builder.finish();
    Ok(if sight.is_poor() { Answer::Poor(document) } else { Answer::Document(document) })
}

/// What was drawn against what could be read.
#[derive(Default)]
struct Sight {
    closed_pages: usize,
    objects: usize,
    readable: usize,
    unreadable: usize,
}

impl Sight {
    /// Every text object draws at least a character. Where fonts are missing, whole objects come without one.
    fn is_poor(&self) -> bool {
        self.closed_pages > 0 || self.readable < self.objects || self.unreadable > self.readable
    }
}

fn lines(page: &PdfPage, sight: &mut Sight) -> Vec<Line> {
    let Ok(text) = page.text() else { return Vec::new() };
    let characters = text.chars();
    let units: Vec<u32> = characters.iter().map(|character| character.unicode_value()).collect();
    sight.objects += page.objects().iter().filter(|object| object.as_text_object().is_some()).count();
    let mut lines = Vec::new();
    let mut start = 0;
    while start < units.len() {
        let end = units[start..].iter().position(|&unit| ends_line(unit)).map_or(units.len(), |length| start + length);
        let text = without_private_use(&decode(&units[start..end]));
        let text = text.trim();
        if text.is_empty() {
            sight.unreadable += units[start..end].iter().filter(|&&unit| !is_blank(unit)).count();
        } else {
            // Blanks count: some writers draw each as an object of its own.
            sight.readable += end - start;
            let glued = units.get(end) == Some(&HYPHEN);
            lines.push(Line { text: text.to_owned(), glued, ..measure(&characters, &units, start, end) });
        }
        start = end + 1;
    }
    lines
}

/// pdfium's mark for a hyphen that a line end made.
const HYPHEN: u32 = 2;

fn ends_line(unit: u32) -> bool {
    unit == HYPHEN || unit == u32::from(b'\r') || unit == u32::from(b'\n')
}

fn is_blank(unit: u32) -> bool {
    char::from_u32(unit).is_some_and(|character| character.is_whitespace() || character.is_control())
}

/// Units are UTF-16, one half of a pair each; some builds give whole characters.
fn decode(units: &[u32]) -> String {
    let mut utf16 = Vec::with_capacity(units.len());
    for &unit in units {
        match u16::try_from(unit) {
            Ok(unit) => utf16.push(unit),
            Err(_) => utf16.extend(char::from_u32(unit).into_iter().flat_map(|c| c.encode_utf16(&mut [0; 2]).to_vec())),
        }
    }
    String::from_utf16_lossy(&utf16)
}

/// Asks for the places of a line's ends and for the looks of three of its characters: each question costs a call.
fn measure(characters: &PdfPageTextChars, units: &[u32], start: usize, end: usize) -> Line {
    let visible = |index: &usize| !is_blank(units[*index]);
    let first = (start..end).find(visible).unwrap_or(start);
    let last = (start..end).rev().find(visible).unwrap_or(first);
    let middle = (first + (last - first) / 2..=last).find(visible).unwrap_or(first);
    let (from, to) = (get(characters, first), get(characters, last));
    let samples = [from.as_ref(), get(characters, middle).as_ref(), to.as_ref()].map(|sample| sample.map(looks));
    let from = from.and_then(|character| character.loose_bounds().ok());
    let to = to.and_then(|character| character.loose_bounds().ok());
    Line {
        left: from.map_or(0.0, |bounds| bounds.left().value),
        right: to.map_or(0.0, |bounds| bounds.right().value),
        bottom: from.map_or(0.0, |bounds| bounds.bottom().value),
        size: samples.iter().flatten().map(|&(size, _)| size).fold(0.0, f32::max),
        bold: samples.iter().flatten().all(|&(_, bold)| bold),
        ..Line::default()
    }
}

fn get<'a>(characters: &PdfPageTextChars<'a>, index: usize) -> Option<PdfPageTextChar<'a>> {
    characters.get(PdfPageTextCharIndex::try_from(index).ok()?).ok()
}

/// Size and weight; many fonts state their weight in their name only.
fn looks(character: &PdfPageTextChar) -> (f32, bool) {
    let heavy = match character.font_weight() {
        Some(
            PdfFontWeight::Weight600
            | PdfFontWeight::Weight700Bold
            | PdfFontWeight::Weight800
            | PdfFontWeight::Weight900,
        ) => true,
        Some(PdfFontWeight::Custom(weight)) => weight >= 600,
        _ => false,
    };
    let name = character.font_name();
    let named = ["Bold", "bold", "BOLD", "Black", "Heavy", "CMBX"].iter().any(|word| name.contains(word));
    (character.scaled_font_size().value, heavy || named)
}

/// The outline, depth first. Hostile ones have loops: both walks are bounded.
fn bookmarks(document: &PdfDocument) -> Vec<Bookmark> {
    let mut found = Vec::new();
    let mut stack: Vec<(PdfBookmark, u8)> = document.bookmarks().root().map(|root| (root, 1)).into_iter().collect();
    while let Some((bookmark, level)) = stack.pop() {
        if found.len() >= MOST_BOOKMARKS {
            break;
        }
        let destination = bookmark.destination().and_then(|destination| destination.page_index().ok());
        let page = destination.and_then(|page| usize::try_from(page).ok());
        found.push(Bookmark { title: bookmark.title().unwrap_or_default(), level, page });
        stack.extend(bookmark.next_sibling().map(|next| (next, level)));
        if level < DEEPEST_BOOKMARK {
            stack.extend(bookmark.first_child().map(|child| (child, level + 1)));
        }
    }
    found
}

/// Writes the pages and marks their headings: by the outline where there is one, else by how they look.
pub(super) fn write(pages: &[Vec<Paragraph>], bookmarks: &[Bookmark], builder: &mut Builder) -> Result<(), ReadError> {
    let guessed =
        if bookmarks.iter().any(|bookmark| bookmark.page.is_some()) { None } else { Some(layout::headings(pages)) };
    let mut starts = Vec::with_capacity(pages.len());
    for (number, page) in pages.iter().enumerate() {
        starts.push(builder.page()?);
        for (index, paragraph) in page.iter().enumerate() {
            match guessed.as_ref().and_then(|levels| levels[number][index]) {
                Some(level) => builder.heading(level, &paragraph.text)?,
                None => drop(builder.block(&paragraph.text)?),
            }
        }
    }
    if guessed.is_none() {
        outline::mark(bookmarks, &starts, builder);
    }
    Ok(())
}

fn load_error(error: &PdfiumError) -> ReadError {
    match error {
        PdfiumError::PdfiumLibraryInternalError(
            PdfiumInternalError::PasswordError | PdfiumInternalError::SecurityError,
        ) => ReadError::Encrypted,
        _ => ReadError::broken("PDF", "its structure is damaged"),
    }
}
