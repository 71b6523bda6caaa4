use unpdf::model::OutlineItem;
use unpdf::{Block, ErrorKind, Paragraph, ParseOptions, Table, parse_bytes_with_options};

use super::builder::{Builder, without_private_use};
use super::outline::{self, Bookmark};
use super::wire::ReadError;
use crate::domain::Document;

/// The pure reader: no library, no fonts. It sees tables and headings by itself.
pub(super) fn read(bytes: &[u8], mut builder: Builder, most_pages: usize) -> Result<Document, ReadError> {
    let options = ParseOptions::new().lenient().with_parallel(false).with_resources(false);
    let document = parse_bytes_with_options(bytes, options).map_err(|error| read_error(error.kind()))?;
    if document.pages.len() > most_pages {
        return Err(ReadError::Limit(format!("{most_pages} pages")));
    }
    if document.pages.is_empty() {
        return Err(ReadError::broken("PDF", "it has no page that opens"));
    }
    if let Some(title) = &document.metadata.title {
        builder.title(outline::honest_title(title));
    }
    let mut bookmarks = Vec::new();
    collect(document.outline.as_ref().map_or(&[], |outline| outline.items.as_slice()), 1, &mut bookmarks);
    let outlined = bookmarks.iter().any(|bookmark| bookmark.page.is_some());
    let mut starts = Vec::new();
    for page in &document.pages {
        starts.push(builder.page()?);
        for block in &page.elements {
            write(block, outlined, &mut builder)?;
        }
    }
    outline::mark(&bookmarks, &starts, &mut builder);
    Ok(builder.finish())
}

fn write(block: &Block, outlined: bool, builder: &mut Builder) -> Result<(), ReadError> {
    match block {
        Block::Paragraph(paragraph) => match paragraph.heading_level().filter(|_| !outlined) {
            Some(level) => builder.heading(level, &words(paragraph)),
            None => builder.block(&words(paragraph)).map(drop),
        },
        Block::Table(table) => builder.block(&rows(table)).map(drop),
        other => {
            let mut text = String::new();
            other.append_plain_text(&mut text);
            builder.block(&without_private_use(&text)).map(drop)
        }
    }
}

fn words(paragraph: &Paragraph) -> String {
    without_private_use(&paragraph.plain_text())
}

fn rows(table: &Table) -> String {
    let cell = |text: String| without_private_use(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    let row =
        |cells: &[unpdf::TableCell]| cells.iter().map(|inner| cell(inner.plain_text())).collect::<Vec<_>>().join(" | ");
    table.rows.iter().map(|inner| row(&inner.cells)).collect::<Vec<_>>().join("\n")
}

fn collect(items: &[OutlineItem], level: u8, bookmarks: &mut Vec<Bookmark>) {
    for item in items {
        let page = item.page.and_then(|page| usize::try_from(page).ok()?.checked_sub(1));
        bookmarks.push(Bookmark { title: item.title.clone(), level, page });
        collect(&item.children, level.saturating_add(1).min(6), bookmarks);
    }
}

fn read_error(kind: ErrorKind) -> ReadError {
    match kind {
        ErrorKind::Encrypted | ErrorKind::InvalidPassword => ReadError::Encrypted,
        _ => ReadError::broken("PDF", "its structure is damaged"),
    }
}
