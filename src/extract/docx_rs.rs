use docx_rs::{
    DocumentChild, Paragraph, ParagraphChild, RunChild, Table, TableCell, TableCellContent, TableChild, TableRowChild,
    read_docx,
};

use super::builder::{Builder, without_private_use};
use super::wire::ReadError;
use crate::domain::Document;

/// Headings, paragraphs and tables; no notes. By choice only.
pub(super) fn read(bytes: &[u8], mut builder: Builder) -> Result<Document, ReadError> {
    let docx = read_docx(bytes).map_err(|_| ReadError::broken("DOCX", "its archive or its XML is damaged"))?;
    for child in &docx.document.children {
        match child {
            DocumentChild::Paragraph(inner) => match heading_level(inner) {
                Some(level) => builder.heading(level, &words(inner))?,
                None => drop(builder.block(&words(inner))?),
            },
            DocumentChild::Table(inner) => drop(builder.block(&table(inner))?),
            _ => {}
        }
    }
    Ok(builder.finish())
}

/// `Heading2` and `heading 2` are what most writers call it.
fn heading_level(paragraph: &Paragraph) -> Option<u8> {
    let style = paragraph.property.style.as_ref()?.val.to_ascii_lowercase();
    style.strip_prefix("heading")?.trim().parse().ok().filter(|level| (1..=9).contains(level))
}

fn words(paragraph: &Paragraph) -> String {
    let mut text = String::new();
    for child in &paragraph.children {
        match child {
            ParagraphChild::Run(run) => run_text(&run.children, &mut text),
            ParagraphChild::Insert(insert) => {
                for child in &insert.children {
                    if let docx_rs::InsertChild::Run(run) = child {
                        run_text(&run.children, &mut text);
                    }
                }
            }
            ParagraphChild::Hyperlink(link) => {
                for child in &link.children {
                    if let ParagraphChild::Run(run) = child {
                        run_text(&run.children, &mut text);
                    }
                }
            }
            _ => {}
        }
    }
    without_private_use(&text)
}

fn run_text(children: &[RunChild], text: &mut String) {
    for child in children {
        match child {
            RunChild::Text(inner) => text.push_str(&inner.text),
            RunChild::Tab(_) => text.push('\t'),
            RunChild::Break(_) => text.push('\n'),
            _ => {}
        }
    }
}

fn table(table: &Table) -> String {
    let mut rows = Vec::new();
    for TableChild::TableRow(row) in &table.rows {
        let cells: Vec<String> = row.cells.iter().map(|TableRowChild::TableCell(inner)| cell(inner)).collect();
        rows.push(cells.join(" | "));
    }
    rows.join("\n")
}

fn cell(cell: &TableCell) -> String {
    let texts = cell.children.iter().map(|content| match content {
        TableCellContent::Paragraph(inner) => words(inner),
        TableCellContent::Table(inner) => table(inner),
        _ => String::new(),
    });
    texts.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}
