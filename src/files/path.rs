use std::fmt;

/// In bytes; what S3 allows for a key, and file systems for little more.
const LONGEST: usize = 1024;

/// A path below a store's root that has been checked: relative, plain segments, below its owner. Taken literally; encoding it
/// is the store's business.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(String);

/// A [`StorePath`] with one `*` in its last segment, to be found by listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePattern {
    folder: String,
    before: String,
    after: String,
}

/// Why a path from a row is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    #[error("the path is empty")]
    Empty,
    #[error("the path is longer than {LONGEST} bytes")]
    TooLong,
    #[error("the path is absolute: it must start below the store's root, without a slash")]
    Absolute,
    #[error("the path has an empty segment")]
    EmptySegment,
    #[error("the path has a segment . or ..")]
    Dots,
    #[error("the path has a backslash")]
    Backslash,
    #[error("the path has a control character")]
    Control,
    #[error("the path does not lie below what `within` says")]
    Outside,
    #[error("`within` is not a folder with a name in every segment and a slash at its end: a value in it may be null")]
    NoOwner,
    #[error("the path must have one * in its last segment, and none elsewhere")]
    Star,
}

impl StorePath {
    /// Takes a path that a row gave, if it stays inside the store and below `within`.
    ///
    /// # Errors
    /// [`BadPath`], the first thing that does not hold.
    pub fn checked(path: &str, within: Option<&str>) -> Result<Self, BadPath> {
        segments(path)?;
        if let Some(within) = within {
            let owner = within.strip_suffix('/').ok_or(BadPath::NoOwner)?;
            segments(owner).map_err(|_| BadPath::NoOwner)?;
            // Segment by segment, because `within` ends with a slash and no segment is empty.
            if !path.starts_with(within) {
                return Err(BadPath::Outside);
            }
        }
        Ok(Self(path.to_owned()))
    }

    /// The path as the row gave it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names between the slashes.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StorePattern {
    /// Takes a pattern whose `*` the configuration wrote. A row's value that brings another is refused.
    ///
    /// # Errors
    /// [`BadPath`], as for a path, and where there is not exactly one `*`, in the last segment.
    pub fn checked(pattern: &str, within: Option<&str>) -> Result<Self, BadPath> {
        let path = StorePath::checked(pattern, within)?;
        let (folder, name) = path.0.rsplit_once('/').unwrap_or(("", &path.0));
        match name.split_once('*') {
            Some((before, after)) if !after.contains('*') && !folder.contains('*') => {
                Ok(Self { folder: folder.to_owned(), before: before.to_owned(), after: after.to_owned() })
            }
            _ => Err(BadPath::Star),
        }
    }

    /// The folder to list; empty for the root.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// What a name starts with.
    pub fn before(&self) -> &str {
        &self.before
    }

    /// The path of that name in the folder, if it fits: `*` stands for at least one character, never a slash.
    pub(super) fn path_of(&self, name: &str) -> Option<StorePath> {
        let star = name.strip_prefix(&self.before)?.strip_suffix(&self.after)?;
        if star.is_empty() {
            return None;
        }
        let path = if self.folder.is_empty() { name.to_owned() } else { format!("{}/{name}", self.folder) };
        // A store may list names that no row may ask for.
        let path = StorePath::checked(&path, None).ok()?;
        (!name.contains('/')).then_some(path)
    }
}

impl fmt::Display for StorePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.folder.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}*{}", self.folder, self.before, self.after)
    }
}

fn segments(path: &str) -> Result<(), BadPath> {
    if path.is_empty() {
        return Err(BadPath::Empty);
    }
    if path.len() > LONGEST {
        return Err(BadPath::TooLong);
    }
    if path.starts_with('/') {
        return Err(BadPath::Absolute);
    }
    path.split('/').try_for_each(segment)
}

pub(super) fn segment(name: &str) -> Result<(), BadPath> {
    if name.is_empty() {
        return Err(BadPath::EmptySegment);
    }
    // A server may decode once more than it should, so dots are refused in that spelling too.
    if matches!(name.replace("%2e", ".").replace("%2E", ".").as_str(), "." | "..") {
        return Err(BadPath::Dots);
    }
    if name.contains('\\') {
        return Err(BadPath::Backslash);
    }
    if name.contains(char::is_control) {
        return Err(BadPath::Control);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, within: Option<&str>, expected: Result<(), BadPath>) {
        assert_eq!(StorePath::checked(path, within).map(drop), expected, "{path:?} within {within:?}");
    }

    #[test]
    fn plain_paths_are_taken_literally() {
        for path in [
            "a",
            "a/b.pdf",
            "ü/日本 語.pdf",
            "a/..b/.c",
            "a/...",
            "a%20b",
            "50%/x",
            "a:b",
            "a?b#c&d=e",
            "~/x",
            "e\u{301}",
        ] {
            check(path, None, Ok(()));
            assert_eq!(StorePath::checked(path, None).expect("plain").as_str(), path);
        }
        check(&"a".repeat(LONGEST), None, Ok(()));
    }

    #[test]
    fn what_would_leave_the_store_is_refused() {
        for (path, expected) in [
            ("", BadPath::Empty),
            ("/", BadPath::Absolute),
            ("/etc/passwd", BadPath::Absolute),
            ("//host/share", BadPath::Absolute),
            ("a//b", BadPath::EmptySegment),
            ("a/", BadPath::EmptySegment),
            (".", BadPath::Dots),
            ("..", BadPath::Dots),
            ("a/../b", BadPath::Dots),
            ("a/./b", BadPath::Dots),
            ("a/..", BadPath::Dots),
            ("a/%2e%2E/b", BadPath::Dots),
            ("a/.%2e/b", BadPath::Dots),
            ("..\\b", BadPath::Backslash),
            ("a/b\\c", BadPath::Backslash),
            ("a\0b", BadPath::Control),
            ("a\nb", BadPath::Control),
            ("a\u{85}b", BadPath::Control),
            ("https://a/b", BadPath::EmptySegment),
        ] {
            check(path, None, Err(expected));
        }
        check(&"a".repeat(LONGEST + 1), None, Err(BadPath::TooLong));
    }

    #[test]
    fn a_path_must_lie_below_its_owner() {
        check("u1/a.pdf", Some("u1/"), Ok(()));
        check("k/u1/x/a.pdf", Some("k/u1/"), Ok(()));
        check("u12/a.pdf", Some("u1/"), Err(BadPath::Outside));
        check("u1", Some("u1/"), Err(BadPath::Outside));
        check("U1/a.pdf", Some("u1/"), Err(BadPath::Outside));
        check("u1/../u2/a.pdf", Some("u1/"), Err(BadPath::Dots));
        check("u2/u1/a.pdf", Some("u1/"), Err(BadPath::Outside));
    }

    #[test]
    fn an_owner_that_a_null_made_empty_owns_nothing() {
        for within in ["", "/", "//", "u1", "k//", "/u1/", "k//u1/", "../", "k/../", "u\\/", "./"] {
            check("u1/a.pdf", Some(within), Err(BadPath::NoOwner));
        }
    }

    #[test]
    fn a_pattern_has_one_star_in_its_last_segment() {
        let pattern = StorePattern::checked("u1/note.*", Some("u1/")).expect("one star");
        assert_eq!(pattern.to_string(), "u1/note.*");
        assert_eq!(pattern.path_of("note.mp3").map(|path| path.to_string()).as_deref(), Some("u1/note.mp3"));
        for name in ["note.", "note", "notes.mp3", "x/note.mp3", "note.a/b", "note.\0"] {
            assert_eq!(pattern.path_of(name), None, "{name:?}");
        }
        let narrow = StorePattern::checked("a*a", None).expect("one star");
        assert_eq!(narrow.path_of("aa"), None);
        assert!(narrow.path_of("aba").is_some());

        for text in ["a/b", "*/b", "a*/b*", "a/**", "a/*.*"] {
            assert_eq!(StorePattern::checked(text, None), Err(BadPath::Star), "{text}");
        }
        assert_eq!(StorePattern::checked("u2/*", Some("u1/")), Err(BadPath::Outside));
    }
}
