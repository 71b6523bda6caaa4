//! SQL of the configuration with names in braces: `update t set n = {job.chunks} where id = {parent_id}`.

use std::collections::BTreeSet;

use super::Place;
use super::template::{Name, Piece};

/// A statement whose names are bound, never pasted. Literals, quoted identifiers, dollar quotes and comments are left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub pieces: Vec<Piece>,
    pub place: Place,
}

/// A statement with a numbered parameter for each of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    pub sql: String,
    /// What `$1`, `$2`, … stand for.
    pub names: Vec<Name>,
}

impl Statement {
    /// Parses a statement.
    ///
    /// # Errors
    /// What is wrong with its quotes, braces or names, for a person, without the place.
    pub fn parse(text: &str, place: Place) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text.trim_end().trim_end_matches(';');
        while let Some(first) = rest.chars().next() {
            let length = opaque(rest)?;
            if length > 0 {
                plain.push_str(&rest[..length]);
                rest = &rest[length..];
                continue;
            }
            rest = &rest[first.len_utf8()..];
            match first {
                '{' => {
                    let (name, after) = Name::take(rest)?.ok_or("`{` is never closed")?;
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    pieces.push(Piece::Name(name));
                    rest = after;
                }
                '}' => return Err("a single `}` closes nothing".to_owned()),
                '$' if rest.starts_with(|next: char| next.is_ascii_digit()) => {
                    return Err("holds a parameter like $1; name what is meant in braces".to_owned());
                }
                ';' => return Err("holds more than one statement; write an effect for each".to_owned()),
                other => plain.push(other),
            }
        }
        pieces.push(Piece::Text(plain));
        Ok(Self { pieces, place })
    }

    /// The names it uses.
    pub fn names(&self) -> BTreeSet<&Name> {
        self.pieces.iter().filter_map(|piece| if let Piece::Name(name) = piece { Some(name) } else { None }).collect()
    }

    /// The word it begins with, in lower case: `insert`, `with`, …
    pub fn verb(&self) -> String {
        let Some(Piece::Text(text)) = self.pieces.first() else { return String::new() };
        let mut rest = text.as_str();
        loop {
            rest = rest.trim_start_matches(|letter: char| letter.is_whitespace() || letter == '(');
            match comment(rest) {
                Ok(length) if length > 0 => rest = &rest[length..],
                _ => break,
            }
        }
        rest.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase()
    }

    /// Numbers the names, each bound as text and cast to the type that `cast` knows for it.
    ///
    /// # Errors
    /// The first name whose type is not known.
    pub fn number(&self, cast: impl Fn(&Name) -> Option<String>) -> Result<Numbered, Name> {
        let mut names: Vec<Name> = Vec::new();
        let mut sql = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => sql.push_str(text),
                Piece::Name(name) => {
                    let nth = names.iter().position(|known| known == name).unwrap_or_else(|| {
                        names.push(name.clone());
                        names.len() - 1
                    });
                    let type_sql = cast(name).ok_or_else(|| name.clone())?;
                    sql.push_str(&format!("(${}::pg_catalog.text)::{type_sql}", nth + 1));
                }
            }
        }
        Ok(Numbered { sql, names })
    }
}

/// The length of the literal, quoted identifier, dollar quote or comment at the start; 0 where there is none.
fn opaque(text: &str) -> Result<usize, String> {
    let comment = comment(text)?;
    if comment > 0 {
        return Ok(comment);
    }
    let mut letters = text.chars();
    match letters.next() {
        Some('\'') => quoted(text, '\'', false),
        Some('"') => quoted(text, '"', false),
        Some('e' | 'E') if letters.next() == Some('\'') => quoted(&text[1..], '\'', true).map(|length| length + 1),
        // A word is one piece: what stands inside it (`line'`, `a$b$`) opens nothing.
        Some(first) if first.is_alphabetic() || first == '_' => {
            let of_word = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '$';
            Ok(text.find(|letter: char| !of_word(letter)).unwrap_or(text.len()))
        }
        Some('$') => dollar_quoted(text),
        _ => Ok(0),
    }
}

fn comment(text: &str) -> Result<usize, String> {
    if text.starts_with("--") {
        return Ok(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return Ok(0);
    }
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Ok(at);
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    Err("a comment is never closed".to_owned())
}

/// The length of a quoted text with its quotes; a doubled quote stands for itself.
fn quoted(text: &str, quote: char, escapes: bool) -> Result<usize, String> {
    let mut letters = text.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        if escapes && letter == '\\' {
            letters.next();
        } else if letter == quote {
            if letters.peek().is_some_and(|(_, next)| *next == quote) {
                letters.next();
            } else {
                return Ok(at + quote.len_utf8());
            }
        }
    }
    Err(format!("a `{quote}` is never closed"))
}

fn dollar_quoted(text: &str) -> Result<usize, String> {
    let Some(end) = text[1..].find('$') else { return Ok(0) };
    let tag = &text[..end + 2];
    let inner = &tag[1..tag.len() - 1];
    let fits = inner.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
        && !inner.starts_with(|first: char| first.is_ascii_digit());
    if !fits {
        return Ok(0);
    }
    match text[tag.len()..].find(tag) {
        Some(closing) => Ok(tag.len() + closing + tag.len()),
        None => Err(format!("a `{tag}` is never closed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(text: &str) -> String {
        let statement = Statement::parse(text, Place::default()).unwrap();
        statement.number(|_| Some("t".to_owned())).unwrap().sql
    }

    #[test]
    fn names_are_numbered_once_each() {
        assert_eq!(numbered(r#"select {"a}b"} + {c}"#), "select ($1::pg_catalog.text)::t + ($2::pg_catalog.text)::t");
        assert_eq!(
            numbered("update t set n = {n}, m = {job.chunks} where n <> {n};"),
            "update t set n = ($1::pg_catalog.text)::t, m = ($2::pg_catalog.text)::t where n <> ($1::pg_catalog.text)::t"
        );
    }

    #[test]
    fn quotes_and_comments_are_left_alone() {
        for text in [
            "select '{a}', 'it''s {b}'",
            r"select e'\'{a}', E'\\'",
            "select \"{a}\"\"{b}\"",
            "select $${a}$$, $x$ $$ {b} $x$",
            "select 1 -- {a} it's\n, 2",
            "select /* {a} /* '{b} */ ' */ 1",
            "select a$b$c from t",
        ] {
            assert_eq!(numbered(text), text);
        }
    }

    #[test]
    fn what_cannot_be_one_statement_is_refused() {
        for text in [
            "select {a",
            "select a}",
            "select '{a}",
            "select $1",
            "select 1; drop table t",
            "/* a",
            "select $a$ b",
            "select {a.b}",
        ] {
            assert!(Statement::parse(text, Place::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_verb_is_the_first_word_that_is_no_comment() {
        let verb = |text: &str| Statement::parse(text, Place::default()).unwrap().verb();
        assert_eq!(verb("\n-- why\n/* how */ WITH a as (select 1) select 2"), "with");
        assert_eq!(verb("{a}"), "");
    }
}
