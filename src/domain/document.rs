use serde::{Deserialize, Serialize};

/// What a reader made of a file: one cleaned text, and marks into it. All offsets are bytes of `text`, on character boundaries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The whole text in reading order; blocks are separated by blank lines, table cells by ` | `. Free of NUL and other
    /// control characters but `\n` and `\t`.
    pub text: String,
    /// Where each page starts, the first at 0; empty where the format has no pages.
    pub pages: Vec<usize>,
    /// Headings in the order of their offsets. `at` is where the heading's own line starts, or where its section begins.
    pub headings: Vec<Heading>,
    /// The title the file states for itself, if any.
    pub title: Option<String>,
    /// Which reader produced it: `pdfium`, `unpdf`, `office_oxide`, `markdown`, `html`, `text`, …
    pub reader: String,
}

/// A heading of a [`Document`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heading {
    pub at: usize,
    /// 1 is the highest.
    pub level: u8,
    pub title: String,
}

impl Document {
    /// A text that came from a column: no pages, no headings.
    pub fn plain(text: String) -> Self {
        Self { text, reader: "column".to_owned(), ..Self::default() }
    }

    /// Number of pages, where the format has pages.
    pub fn page_count(&self) -> Option<usize> {
        (!self.pages.is_empty()).then_some(self.pages.len())
    }
}
