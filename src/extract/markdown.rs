use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::builder::Builder;
use super::wire::ReadError;
use crate::domain::Document;

/// Markdown as its reader sees it: headings marked, tables as rows, code and lists as they are, no markup.
pub(super) fn read(text: &str, links: Links, builder: Builder) -> Result<Document, ReadError> {
    let mut walk = Walk { builder, links, text: String::new(), lists: Vec::new(), link: None, cells: 0, front: None };
    for event in Parser::new_ext(text, options()) {
        walk.event(event)?;
    }
    walk.flush()?;
    Ok(walk.builder.finish())
}

/// What becomes of addresses that links point to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// Said in parentheses after the link's text.
    Say,
    Drop,
}

fn options() -> Options {
    Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_HEADING_ATTRIBUTES
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
}

struct Walk {
    builder: Builder,
    links: Links,
    /// The block being put together.
    text: String,
    /// The lists around it, with the number of their next item.
    lists: Vec<Option<u64>>,
    /// The address of the link around it, and where its text starts.
    link: Option<(String, usize)>,
    /// Cells so far in the table row around it.
    cells: usize,
    /// The front matter around it.
    front: Option<String>,
}

impl Walk {
    fn event(&mut self, event: Event) -> Result<(), ReadError> {
        match event {
            Event::Start(tag) => self.start(tag)?,
            Event::End(tag) => self.end(tag)?,
            Event::Text(text) if self.front.is_some() => self.front.get_or_insert_default().push_str(&text),
            Event::Text(text) | Event::Code(text) | Event::InlineMath(text) | Event::DisplayMath(text) => {
                self.text.push_str(&text);
            }
            Event::Html(html) => self.text.push_str(&without_tags(&html)),
            Event::InlineHtml(html) if html.starts_with("<br") => self.text.push('\n'),
            Event::InlineHtml(_) | Event::Rule => {}
            Event::FootnoteReference(label) => self.text.extend(["[", &label, "]"]),
            Event::SoftBreak => self.text.push(' '),
            Event::HardBreak => self.text.push('\n'),
            Event::TaskListMarker(done) => self.text.push_str(if done { "[x] " } else { "[ ] " }),
        }
        Ok(())
    }

    fn start(&mut self, tag: Tag) -> Result<(), ReadError> {
        match tag {
            Tag::Heading { .. } | Tag::CodeBlock(_) | Tag::Table(_) | Tag::HtmlBlock if self.lists.is_empty() => {
                self.flush()?;
            }
            Tag::List(first) => self.lists.push(first),
            Tag::Item => self.item(),
            Tag::TableCell => {
                if self.cells > 0 {
                    self.text.push_str(" | ");
                }
                self.cells += 1;
            }
            Tag::Link { dest_url, .. } => self.link = Some((dest_url.into_string(), self.text.len())),
            Tag::FootnoteDefinition(label) => self.text.extend(["[", &label, "] "]),
            Tag::MetadataBlock(_) => self.front = Some(String::new()),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, tag: TagEnd) -> Result<(), ReadError> {
        match tag {
            TagEnd::Heading(level) if self.lists.is_empty() => {
                let title = std::mem::take(&mut self.text);
                self.builder.heading(number(level), &title)?;
            }
            TagEnd::Paragraph
            | TagEnd::CodeBlock
            | TagEnd::HtmlBlock
            | TagEnd::Heading(_)
            | TagEnd::Table
            | TagEnd::FootnoteDefinition => self.end_of_block()?,
            TagEnd::Item => self.new_line(),
            TagEnd::List(_) => {
                self.lists.pop();
                self.end_of_block()?;
            }
            TagEnd::TableRow | TagEnd::TableHead => {
                self.cells = 0;
                self.new_line();
            }
            TagEnd::Link => self.end_of_link(),
            TagEnd::MetadataBlock(_) => self.end_of_front_matter(),
            _ => {}
        }
        Ok(())
    }

    /// A list is one block, however its items are built.
    fn end_of_block(&mut self) -> Result<(), ReadError> {
        if self.lists.is_empty() {
            return self.flush();
        }
        self.new_line();
        Ok(())
    }

    fn item(&mut self) {
        self.new_line();
        self.text.push_str(&"  ".repeat(self.lists.len().saturating_sub(1).min(8)));
        match self.lists.last_mut() {
            Some(Some(number)) => {
                self.text.extend([&number.to_string(), ". "]);
                *number += 1;
            }
            _ => self.text.push_str("- "),
        }
    }

    fn end_of_link(&mut self) {
        let Some((address, start)) = self.link.take() else { return };
        let said = self.text.get(start..).unwrap_or_default().trim();
        if self.links == Links::Say && is_worth_saying(&address, said) {
            self.text.extend([" (", &address, ")"]);
        }
    }

    fn end_of_front_matter(&mut self) {
        let front = self.front.take().unwrap_or_default();
        if let Some(title) = front.lines().find_map(|line| line.strip_prefix("title:")) {
            self.builder.title(title.trim().trim_matches(['"', '\'']));
        }
    }

    fn new_line(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
    }

    fn flush(&mut self) -> Result<(), ReadError> {
        let text = std::mem::take(&mut self.text);
        self.builder.block(&text).map(drop)
    }
}

/// Whether a link's address tells more than its text.
pub(super) fn is_worth_saying(address: &str, said: &str) -> bool {
    let bare = |text: &str| {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        text.trim_start_matches("mailto:").trim_end_matches('/').to_owned()
    };
    let known = ["http://", "https://", "mailto:"].iter().any(|scheme| address.starts_with(scheme));
    known && !said.is_empty() && bare(address) != bare(said)
}

fn number(level: HeadingLevel) -> u8 {
    match level {
        HeadingLevel::H1 => 1,
        HeadingLevel::H2 => 2,
        HeadingLevel::H3 => 3,
        HeadingLevel::H4 => 4,
        HeadingLevel::H5 => 5,
        HeadingLevel::H6 => 6,
    }
}

/// A piece of HTML without what stands in angle brackets.
fn without_tags(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        rest = match after.strip_prefix("!--") {
            Some(comment) => comment.split_once("-->").map_or("", |(_, after)| after),
            None => after.split_once('>').map_or("", |(_, after)| after),
        };
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::super::builder::check_offsets;
    use super::*;

    fn check(markdown: &str, text: &str) -> Document {
        let document = read(markdown, Links::Say, Builder::new("markdown", 10_000, 1)).unwrap();
        assert_eq!(document.text, text);
        check_offsets(&document);
        document
    }

    #[test]
    fn headings_are_marked_where_they_stand() {
        let document = check(
            "# Größe *und* Gewicht\n\nEin Satz\nüber zwei Zeilen.\n\nZwei\n----\n",
            "Größe und Gewicht\n\nEin Satz über zwei Zeilen.\n\nZwei",
        );
        let marks: Vec<_> = document.headings.iter().map(|h| (h.at, h.level, h.title.as_str())).collect();
        assert_eq!(marks, [(0, 1, "Größe und Gewicht"), (50, 2, "Zwei")]);
    }

    #[test]
    fn tables_code_and_lists_keep_their_text() {
        check("| a | b |\n|---|---|\n| 1 | `2` |\n", "a | b\n1 | 2");
        check("```rust\nfn main() {\n    x();\n}\n```\n\nEnd", "fn main() {\n    x();\n}\n\nEnd");
        check("3. three\n4. four\n   - [x] nested\n\nafter", "3. three\n4. four\n  - [x] nested\n\nafter");
        check("- loose\n\n- items\n", "- loose\n- items");
        check("> quoted[^1]\n\n[^1]: the note\n", "quoted[1]\n\n[1] the note");
    }

    #[test]
    fn links_say_where_they_lead_unless_their_text_does() {
        check(
            "[site](https://a.example/site) [here](#x) <https://b.example> [b.example](https://b.example/)",
            "site (https://a.example/site) here https://b.example b.example",
        );
    }

    #[test]
    fn front_matter_gives_the_title_only() {
        let document = check("---\ntitle: \"The name\"\ntags: [x]\n---\nBody", "Body");
        assert_eq!(document.title.as_deref(), Some("The name"));
    }

    #[test]
    fn html_leaves_its_text() {
        check("<div align=\"center\"><!-- a -->\nHello\n</div>\n\nline<br>break", "Hello\n\nline\nbreak");
    }
}
