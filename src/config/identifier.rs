//! Names of schemas, tables and columns as the file writes them: as they are, or in double quotes as in SQL where they hold a mark
//! of ours. Upper and lower case count either way.

/// In bytes: Postgres cuts what is longer.
const LONGEST: usize = 63;

/// What ends a name that is written without quotes.
const MARKS: [char; 9] = ['"', '.', '|', '?', '{', '}', ';', '\n', '\0'];

/// Takes one name from the front of a text; returns it and what follows.
///
/// # Errors
/// Why there is no name, and the way out, for a person: without the text itself, which the environment may have brought.
pub(super) fn take(text: &str) -> Result<(String, &str), String> {
    let (name, rest) = if let Some(inside) = text.strip_prefix('"') {
        unquote(inside).ok_or("has a `\"` that is never closed")?
    } else {
        let (name, rest) = text.split_at(text.find(MARKS).unwrap_or(text.len()));
        (name.to_owned(), rest)
    };
    match name.as_str() {
        "" => Err(NOT_A_NAME.to_owned()),
        name if name.contains('\0') => Err("holds a zero byte, which no name does".to_owned()),
        name if name.len() > LONGEST => Err(format!("is longer than {LONGEST} bytes, as no name is")),
        _ => Ok((name, rest)),
    }
}

/// The name that a text is.
///
/// # Errors
/// See [`take`].
pub(super) fn whole(text: &str) -> Result<String, String> {
    match take(text)? {
        (name, "") => Ok(name),
        _ => Err(NOT_A_NAME.to_owned()),
    }
}

/// What is said of a text that is more than a name, or less.
pub(super) const NOT_A_NAME: &str = "is not a name as it stands: one with any of . | ? { } ; \" in it is written in double quotes, as in SQL (\"odd.name\", \"6\"\" pipes\")";

/// What stands between a `"`, which is gone already, and the next that is not doubled; and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"')?;
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => return Some((name, after)),
        }
    }
}

/// A name as the file would write it.
pub fn written(name: &str) -> String {
    if name.is_empty() || name.contains(MARKS) || name.trim() != name {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_written_as_it_is_or_in_double_quotes() {
        for (text, name) in [
            ("user id", "user id"),
            ("Größe", "Größe"),
            ("\"odd.name\"", "odd.name"),
            ("\"6\"\" pipes\"", "6\" pipes"),
            ("\" \"", " "),
            ("\"\"\"\"", "\""),
        ] {
            assert_eq!(whole(text).as_deref(), Ok(name), "{text}");
        }
        assert_eq!(take("a.b"), Ok(("a".to_owned(), ".b")));
        assert_eq!(take("\"a.b\".c"), Ok(("a.b".to_owned(), ".c")));
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_way_out() {
        for text in ["", "a\"b", "a.b", "a|b", "a?", "a;b", "{a}", "\"\"", "\"a\"b", "\"a\" "] {
            let refused = whole(text).unwrap_err();
            assert!(refused.contains("in double quotes"), "{text}: {refused}");
        }
        for text in ["\"a", "\"a\"\"", "\"a\0\"", &"x".repeat(64)] {
            assert!(whole(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(name in "[\"a .|?{};\n\\\\$%ß]{1,20}") {
            prop_assert_eq!(whole(&written(&name)), Ok(name));
        }
    }
}
