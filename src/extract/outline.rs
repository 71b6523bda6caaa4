//! A PDF's own outline: titles and the pages they lead to. Where on its page a title stands has to be found.

use super::builder::Builder;

/// An entry of the outline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bookmark {
    pub title: String,
    pub level: u8,
    /// From 0.
    pub page: Option<usize>,
}

/// Marks each bookmark where its title stands on its page, else where the page starts. `starts` are the pages' offsets.
pub(super) fn mark(bookmarks: &[Bookmark], starts: &[usize], builder: &mut Builder) {
    let text = builder.text().to_owned();
    // Titles of one page stand in the outline's order, so each is looked for after the one before.
    let mut last: (usize, usize) = (usize::MAX, 0);
    for bookmark in bookmarks {
        let Some(page) = bookmark.page.filter(|&page| page < starts.len()) else { continue };
        let from = if last.0 == page { last.1 } else { starts[page] };
        let end = starts.get(page + 1).copied().unwrap_or(text.len());
        let found = find_line(&text, from, end, &bookmark.title);
        if let Some((_, after)) = found {
            last = (page, after);
        }
        builder.mark(found.map_or(starts[page], |(at, _)| at), bookmark.level, &bookmark.title);
    }
}

/// The line between two offsets that opens with the title, leaving out its number; where it starts, and a place behind it.
fn find_line(text: &str, from: usize, end: usize, title: &str) -> Option<(usize, usize)> {
    let wanted = folded(title);
    if wanted.is_empty() {
        return None;
    }
    let mut at = from;
    for line in text.get(from..end)?.split_inclusive('\n') {
        let said = folded(line);
        if said == wanted
            || said.starts_with(&wanted)
            || (said.len() > 5 && wanted.starts_with(&said) && said.len() * 2 > wanted.len())
        {
            return Some((at, text.floor_char_boundary(at + title.len().min(line.len()))));
        }
        at += line.len();
    }
    // A title that flowed into its paragraph.
    let at = from + text.get(from..end)?.find(title.trim()).filter(|_| title.trim().len() > 3)?;
    Some((at, at + title.trim().len()))
}

/// Letters and digits in lower case, without a leading number like `2.1`.
fn folded(text: &str) -> String {
    let text = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ')' || c.is_whitespace());
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The title a PDF states, without what word processors put there for want of one.
pub(super) fn honest_title(title: &str) -> &str {
    let title = title.trim();
    let title =
        title.strip_prefix("Microsoft Word - ").or(title.strip_prefix("Microsoft PowerPoint - ")).unwrap_or(title);
    let lower = title.to_ascii_lowercase();
    let is_file = [".doc", ".docx", ".dvi", ".tex", ".indd", ".ppt", ".pptx", ".xls", ".xlsx", ".pdf", ".qxd", ".fm"]
        .iter()
        .any(|extension| lower.ends_with(extension));
    if is_file || lower.starts_with("untitled") { "" } else { title }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_found_on_their_pages() {
        let mut builder = Builder::new("test", 1000, 9);
        let mut starts = Vec::new();
        for page in [["1 Introduction", "About introduction."], ["Methods and", "more methods"], ["nothing", "here"]] {
            starts.push(builder.page().unwrap());
            for block in page {
                builder.block(block).unwrap();
            }
        }
        let bookmark = |title: &str, level, page| Bookmark { title: title.to_owned(), level, page };
        let outline = [
            bookmark("Introduction", 1, Some(0)),
            bookmark("2 Methods", 1, Some(1)),
            bookmark("More Methods", 2, Some(1)),
            bookmark("Missing", 1, Some(2)),
            bookmark("Nowhere", 1, None),
            bookmark("Beyond", 1, Some(7)),
        ];
        mark(&outline, &starts, &mut builder);
        let document = builder.finish();
        let found: Vec<_> = document
            .headings
            .iter()
            .map(|h| (document.text[h.at..].split('\n').next().unwrap(), h.title.as_str(), h.level))
            .collect();
        assert_eq!(
            found,
            [
                ("1 Introduction", "Introduction", 1),
                ("Methods and", "2 Methods", 1),
                ("more methods", "More Methods", 2),
                ("nothing", "Missing", 1)
            ]
        );
    }

    #[test]
    fn file_names_are_no_titles() {
        assert_eq!(honest_title("Microsoft Word - Plan"), "Plan");
        for title in ["thesis.dvi", "Untitled-1", "Microsoft Word - a.docx"] {
            assert_eq!(honest_title(title), "", "{title}");
        }
    }
}
