use htmd::HtmlToMarkdown;

use super::builder::Builder;
use super::markdown::{self, Links};
use super::text;
use super::wire::ReadError;
use crate::domain::Document;

/// A page by way of Markdown. Links lose their addresses: a page's navigation is full of them.
pub(super) fn read(html: &str, mut builder: Builder) -> Result<Document, ReadError> {
    let converter = HtmlToMarkdown::builder()
        .skip_tags(vec!["head", "script", "style", "noscript", "template", "svg", "iframe", "object"])
        .build();
    let convert =
        |html: &str| converter.convert(html).map_err(|_| ReadError::broken("HTML", "its markup could not be followed"));
    if let Some(title) = title(html) {
        let plain = markdown::read(&convert(title)?, Links::Drop, Builder::new("", title.len() * 4 + 64, 0))?;
        builder.title(&plain.text);
    }
    markdown::read(&convert(html)?, Links::Drop, builder)
}

/// The encoding that a page names in its first bytes.
pub(super) fn declared_encoding(bytes: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(2048)]).to_ascii_lowercase();
    charset(&head)
}

/// The word after `charset=`, in a page or a media type.
pub(super) fn charset(text: &str) -> Option<String> {
    let (_, after) = text.split_once("charset=")?;
    let word: String = after
        .trim_start_matches(['"', '\'', ' '])
        .chars()
        .take_while(|character| character.is_ascii_alphanumeric() || "-_:.".contains(*character))
        .collect();
    (!word.is_empty()).then_some(word)
}

/// What browsers take for the beginning of a page, besides [`PAGE`], where a blank or `>` follows. A Markdown text may begin so, too.
const ELEMENTS: [&str; 12] =
    ["<script", "<iframe", "<h1", "<div", "<font", "<table", "<a", "<style", "<title", "<b", "<br", "<p"];

const PAGE: [&str; 4] = ["<!doctype html", "<html", "<head", "<body"];

/// Whether the text opens like a page.
pub(super) fn looks_like_html(bytes: &[u8]) -> bool {
    PAGE.iter().any(|opening| start(bytes).starts_with(opening))
}

/// Whether the text opens like a part of a page.
pub(super) fn looks_like_part_of_html(bytes: &[u8]) -> bool {
    let start = start(bytes);
    let after = ELEMENTS.iter().filter_map(|opening| start.strip_prefix(opening));
    after.into_iter().any(|after| after.starts_with(|next: char| next == '>' || next.is_ascii_whitespace()))
}

/// The beginning in lower case, after comments and declarations.
fn start(bytes: &[u8]) -> String {
    let start = text::decode(&bytes[..bytes.len().min(1024)], None).to_ascii_lowercase();
    let mut rest = start.trim_start();
    loop {
        let after = if rest.starts_with("<!--") { rest.split_once("-->") } else { None }
            .or_else(|| if rest.starts_with("<?") { rest.split_once("?>") } else { None });
        match after {
            Some((_, after)) => rest = after.trim_start(),
            None => break,
        }
    }
    rest.to_owned()
}

fn title(html: &str) -> Option<&str> {
    // Only ASCII letters change, so offsets stay.
    let lower = html.to_ascii_lowercase();
    let open = lower.find("<title")?;
    let start = open + lower[open..].find('>')? + 1;
    let end = start + lower[start..].find("</title")?;
    html.get(start..end)
}

#[cfg(test)]
mod tests {
    use super::super::builder::check_offsets;
    use super::*;

    fn check(html: &str) -> Document {
        let document = read(html, Builder::new("html", 10_000, 1)).unwrap();
        check_offsets(&document);
        document
    }

    #[test]
    fn a_page_becomes_text_headings_and_a_title() {
        let document = check(
            "<!DOCTYPE html><html><head><title>Tea &amp; Caf\u{e9} *</title><style>b{}</style></head><body>\
             <h1>Tea</h1><p>Green <b>and</b> black.<script>alert(1)</script></p>\
             <table><tr><th>kind</th><th>time</th></tr><tr><td>green</td><td>2</td></tr></table>\
             <ul><li>one</li><li><a href='https://x.example/y'>two</a></li></ul></body></html>",
        );
        assert_eq!(document.title.as_deref(), Some("Tea & Caf\u{e9} *"));
        assert_eq!(document.text, "Tea\n\nGreen and black.\n\nkind | time\ngreen | 2\n\n- one\n- two");
        assert_eq!(document.headings[0].title, "Tea");
    }

    #[test]
    fn pages_are_known_by_their_opening() {
        for html in ["<!DOCTYPE HTML PUBLIC>", "  <?xml version='1.0'?>\n<!-- x --><html lang=de>"] {
            assert!(looks_like_html(html.as_bytes()), "{html}");
        }
        assert!(!looks_like_html(b"a <html> in a sentence"));
    }

    #[test]
    fn the_declared_encoding_is_read() {
        assert_eq!(declared_encoding(b"<meta charset='Shift_JIS'>").as_deref(), Some("shift_jis"));
        assert_eq!(charset("text/html; charset=utf-8").as_deref(), Some("utf-8"));
        assert_eq!(charset("text/html"), None);
    }
}
