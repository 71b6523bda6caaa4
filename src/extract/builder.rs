use crate::domain::{Document, Heading};

use super::wire::{ReadError, bytes};

/// Longer titles are cut: a heading is a mark, not a place to hide a text in.
const LONGEST_TITLE: usize = 300;

/// Puts a [`Document`] together block by block, cleaning as it goes, and stops where the text grows too large.
pub(super) struct Builder {
    document: Document,
    largest: usize,
    most_pages: usize,
}

impl Builder {
    pub fn new(reader: &str, largest: usize, most_pages: usize) -> Self {
        let document = Document { reader: reader.to_owned(), ..Document::default() };
        Self { document, largest, most_pages }
    }

    /// Adds a block of text and returns where it starts; a block without text adds nothing.
    pub fn block(&mut self, text: &str) -> Result<usize, ReadError> {
        let mut cleaned = clean(text);
        let text = cleaned.trim_matches(['\n', ' ']);
        self.separate();
        let at = self.document.text.len();
        if at + text.len() > self.largest {
            return Err(ReadError::Limit(format!("{} of text", bytes(self.largest as u64))));
        }
        if at > 0 {
            self.document.text.push_str(text);
            return Ok(at);
        }
        // The first block is often all there is, and large: it is not copied.
        cleaned.truncate(cleaned.trim_end_matches(['\n', ' ']).len());
        cleaned.drain(..cleaned.len() - cleaned.trim_start_matches(['\n', ' ']).len());
        self.document.text = cleaned;
        Ok(at)
    }

    /// Adds a heading's own line and marks it.
    pub fn heading(&mut self, level: u8, title: &str) -> Result<(), ReadError> {
        let at = self.block(title)?;
        self.mark(at, level, title);
        Ok(())
    }

    /// Marks a heading at a place that is already written.
    pub fn mark(&mut self, at: usize, level: u8, title: &str) {
        let title = single_line(title);
        if !title.is_empty() {
            self.document.headings.push(Heading { at, level: level.max(1), title });
        }
    }

    /// Refuses what will not fit, before it is written.
    pub fn has_room_for(&self, length: usize) -> Result<(), ReadError> {
        if length > self.largest {
            return Err(ReadError::Limit(format!("{} of text", bytes(self.largest as u64))));
        }
        Ok(())
    }

    /// Starts a page and returns where.
    pub fn page(&mut self) -> Result<usize, ReadError> {
        if self.document.pages.len() >= self.most_pages {
            return Err(ReadError::Limit(format!("{} pages", self.most_pages)));
        }
        self.separate();
        self.document.pages.push(self.document.text.len());
        Ok(self.document.text.len())
    }

    pub fn title(&mut self, title: &str) {
        let title = single_line(title);
        self.document.title = (!title.is_empty()).then_some(title);
    }

    /// What was written so far.
    pub fn text(&self) -> &str {
        &self.document.text
    }

    pub fn finish(self) -> Document {
        let mut document = self.document;
        document.text.truncate(document.text.trim_end().len());
        let end = document.text.len();
        document.pages.iter_mut().for_each(|at| *at = end.min(*at));
        document.headings.iter_mut().for_each(|heading| heading.at = end.min(heading.at));
        document.headings.sort_by_key(|heading| heading.at);
        document
    }

    fn separate(&mut self) {
        let text = &mut self.document.text;
        if !text.is_empty() && !text.ends_with("\n\n") {
            text.push_str("\n\n");
        }
    }
}

/// One line of at most [`LONGEST_TITLE`] characters.
fn single_line(title: &str) -> String {
    let title = clean(title);
    let words = title.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(LONGEST_TITLE) {
        Some((at, _)) => words[..at].trim_end().to_owned(),
        None => words,
    }
}

/// Free of NUL and other control characters but `\n` and `\t`, of soft hyphens and of byte order marks; every kind of line end
/// is `\n`, no line ends in blanks, and no more than one line in a row is empty.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut breaks = 0;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let character = match character {
            '\r' if characters.peek() == Some(&'\n') => continue,
            '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => '\n',
            '\u{a0}' => ' ',
            '\n' | '\t' => character,
            '\u{ad}' | '\u{feff}' => continue,
            character if character.is_control() => continue,
            character => character,
        };
        if character != '\n' {
            breaks = 0;
            cleaned.push(character);
            continue;
        }
        cleaned.truncate(cleaned.trim_end_matches([' ', '\t']).len());
        breaks += 1;
        if breaks <= 2 {
            cleaned.push('\n');
        }
    }
    cleaned.truncate(cleaned.trim_end_matches([' ', '\t']).len());
    cleaned
}

/// Without the characters of private use, which mean something in one font only.
pub(super) fn without_private_use(text: &str) -> String {
    text.chars().filter(|&character| !is_private_use(character)).collect()
}

pub(super) fn is_private_use(character: char) -> bool {
    matches!(u32::from(character), 0xE000..=0xF8FF | 0xF_0000..=0xF_FFFD | 0x10_0000..=0x10_FFFD)
}

#[cfg(test)]
pub(super) fn check_offsets(document: &Document) {
    let fine = |at: usize| at <= document.text.len() && document.text.is_char_boundary(at);
    assert!(document.pages.iter().all(|&at| fine(at)), "pages {:?}", document.pages);
    assert!(document.pages.is_sorted(), "pages {:?}", document.pages);
    assert!(document.pages.first().is_none_or(|&at| at == 0));
    assert!(document.headings.iter().all(|heading| fine(heading.at)), "headings {:?}", document.headings);
    assert!(document.headings.is_sorted_by_key(|heading| heading.at));
    assert!(!document.text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn offsets_stay_on_characters_whatever_is_written(steps in prop::collection::vec((0..4u8, "\\PC{0,9}[\0\r\n \u{c}]{0,3}"), 0..30)) {
            let mut builder = Builder::new("test", 10_000, 100);
            builder.page().unwrap();
            for (kind, text) in &steps {
                match kind {
                    0 => drop(builder.page().unwrap()),
                    1 => builder.heading(2, text).unwrap(),
                    _ => drop(builder.block(text).unwrap()),
                }
            }
            let document = builder.finish();
            check_offsets(&document);
            prop_assert!(!document.text.contains("\n\n\n"));
            for heading in &document.headings {
                let line = document.text[heading.at..].split("\n\n").next().unwrap();
                prop_assert_eq!(line.split_whitespace().collect::<Vec<_>>().join(" "), heading.title.as_str());
            }
        }
    }

    #[test]
    fn what_postgres_refuses_and_people_cannot_see_goes() {
        assert_eq!(clean("a\0b\r\nc\rd\u{ad}e\u{1}  \n\n\n\nf\u{85}g\t"), "ab\nc\nde\n\nf\ng");
    }

    #[test]
    fn a_text_that_grows_too_large_is_a_limit() {
        let mut builder = Builder::new("test", 10, 1);
        builder.block("12345").unwrap();
        assert_eq!(builder.block("1234"), Err(ReadError::Limit("10 bytes of text".into())));
    }

    #[test]
    fn too_many_pages_are_a_limit() {
        let mut builder = Builder::new("test", 10, 1);
        builder.page().unwrap();
        assert_eq!(builder.page(), Err(ReadError::Limit("1 pages".into())));
    }
}
