//! Reads Rust well enough to know which paths a file names: comments, strings and test code do not count.

/// A word, a mark or a string.
#[derive(Debug, Clone)]
pub enum Token {
    Word { text: String, line: usize },
    Mark { text: &'static str, line: usize },
    Text { text: String, line: usize },
}

impl Token {
    pub fn line(&self) -> usize {
        let (Self::Word { line, .. } | Self::Mark { line, .. } | Self::Text { line, .. }) = self;
        *line
    }

    fn is(&self, expected: &str) -> bool {
        match self {
            Self::Word { text, .. } => text == expected,
            Self::Mark { text, .. } => *text == expected,
            Self::Text { .. } => false,
        }
    }
}

/// A path as it is written, groups spread out: `a::{b, c::d}` is `a::b` and `a::c::d`.
#[derive(Debug)]
pub struct Written {
    pub names: Vec<String>,
    pub line: usize,
    /// How many modules of this file stand around it.
    inside: usize,
}

/// One file without its tests.
pub struct Tree {
    pub tokens: Vec<Token>,
    pub paths: Vec<Written>,
}

impl Tree {
    pub fn read(text: &str) -> Self {
        let tokens = without_tests(&tokens(text));
        let paths = paths(&tokens);
        Self { tokens, paths }
    }
}

/// The module that a file below `src` is: `db/jobs.rs` and `db/jobs/mod.rs` are `db::jobs`, `lib.rs` is the root. Files that
/// are tests alone count as the root, which may name everything.
pub fn module_path(file: &str) -> Vec<String> {
    let parts: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    if parts == ["lib"] || parts.contains(&"tests") {
        return Vec::new();
    }
    parts.into_iter().filter(|part| *part != "mod").map(str::to_owned).collect()
}

/// The top module that a path names, if it is one of this crate's.
pub fn top<'a>(place: &[String], path: &'a Written) -> Option<&'a str> {
    let names = &path.names[usize::from(path.names[0] == "self")..];
    match names.first()?.as_str() {
        "crate" | "gristmill" => names.get(1).map(String::as_str),
        "super" => {
            let up = names.iter().take_while(|name| *name == "super").count();
            (up >= place.len() + path.inside).then(|| names.get(up).map(String::as_str)).flatten()
        }
        _ => None,
    }
}

fn paths(tokens: &[Token]) -> Vec<Written> {
    let (mut paths, mut depth, mut modules, mut at) = (Vec::new(), 0, Vec::new(), 0);
    while let Some(token) = tokens.get(at) {
        let before = |back: usize| at.checked_sub(back).and_then(|index| tokens.get(index));
        let continues = before(1).is_some_and(|token| token.is("."))
            || before(1).is_some_and(|token| token.is("::"))
                && before(2).is_some_and(|token| {
                    token.is(">") || matches!(token, Token::Word { text, .. } if !is_keyword(text))
                });
        match token {
            Token::Mark { text: "{", .. } => depth += 1,
            Token::Mark { text: "}", .. } => {
                modules.retain(|module| *module < depth);
                depth -= 1;
            }
            Token::Word { text, .. } if text == "mod" && tokens.get(at + 2).is_some_and(|token| token.is("{")) => {
                modules.push(depth + 1);
                at += 2;
                continue;
            }
            Token::Word { .. } if !continues => {
                at = spread(tokens, at, &[], modules.len(), &mut paths);
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    paths
}

/// Words after which `::` begins a path of its own.
fn is_keyword(word: &str) -> bool {
    ["use", "return", "in", "as", "dyn", "impl", "mut", "match", "if", "else", "break"].contains(&word)
}

/// Follows the path at `at` into its groups, and returns the place after it.
fn spread(tokens: &[Token], at: usize, before: &[String], inside: usize, paths: &mut Vec<Written>) -> usize {
    let Some(token) = tokens.get(at) else { return at };
    if token.is("{") {
        let mut next = at + 1;
        while tokens.get(next).is_some_and(|token| !token.is("}")) {
            let after = spread(tokens, next, before, inside, paths);
            next = after.max(next + 1);
        }
        return next + 1;
    }
    let name = match token {
        Token::Word { text, .. } => text.as_str(),
        Token::Mark { text: "*", .. } => "*",
        _ => return at,
    };
    let names: Vec<String> = before.iter().map(String::as_str).chain([name]).map(str::to_owned).collect();
    let goes_on = tokens.get(at + 1).is_some_and(|token| token.is("::"))
        && tokens
            .get(at + 2)
            .is_some_and(|token| matches!(token, Token::Word { .. }) || token.is("{") || token.is("*"));
    if goes_on {
        return spread(tokens, at + 2, &names, inside, paths);
    }
    paths.push(Written { names, line: token.line(), inside });
    // `a as b` in a group: `b` is a new name, not a path.
    if tokens.get(at + 1).is_some_and(|token| token.is("as")) && !before.is_empty() { at + 3 } else { at + 1 }
}

/// Leaves out every item that stands under `#[cfg(test)]`.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let opens = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut at) = (Vec::with_capacity(tokens.len()), 0);
    while at < tokens.len() {
        let here = &tokens[at..];
        if here.len() >= opens.len() && here.iter().zip(opens).all(|(token, open)| token.is(open)) {
            at += opens.len() + item_length(&here[opens.len()..]);
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// An item ends with the first `;` outside all brackets, or where its braces close.
fn item_length(tokens: &[Token]) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Mark { text: "{" | "(" | "[", .. } => depth += 1,
            Token::Mark { text: "}" | ")" | "]", .. } => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && (token.is("}") && !tokens.get(index + 1).is_some_and(|next| next.is(";")) || token.is(";")) {
            return index + 1;
        }
    }
    tokens.len()
}

const MARKS: &[&str] = &["::", "{", "}", "(", ")", "[", "]", "<", ">", "#", ";", ",", ".", "*"];

fn tokens(text: &str) -> Vec<Token> {
    let (mut tokens, mut rest, mut line) = (Vec::new(), text, 1);
    while let Some(first) = rest.chars().next() {
        let (token, length) = if rest.starts_with("//") {
            (None, rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            (None, comment_length(rest))
        } else if let Some((inner, length)) = string(rest) {
            (Some(Token::Text { text: inner.to_owned(), line }), length)
        } else if first == '\'' {
            (None, quote_length(rest))
        } else if first.is_alphanumeric() || first == '_' {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            (Some(Token::Word { text: rest[..length].to_owned(), line }), length)
        } else if let Some(mark) = MARKS.iter().find(|mark| rest.starts_with(**mark)) {
            (Some(Token::Mark { text: mark, line }), mark.len())
        } else {
            (None, first.len_utf8())
        };
        tokens.extend(token);
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// Block comments nest.
fn comment_length(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let here = &text[at..];
        at += if here.starts_with("/*") {
            depth += 1;
            2
        } else if here.starts_with("*/") {
            depth -= 1;
            2
        } else {
            here.chars().next().map_or(1, char::len_utf8)
        };
        if depth == 0 {
            break;
        }
    }
    at
}

/// A string of any kind at the start of a text: what is inside, and the length of the whole.
fn string(text: &str) -> Option<(&str, usize)> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|prefix| {
        text.strip_prefix(prefix).is_some_and(|rest| {
            rest.starts_with('"')
                || prefix.ends_with('r') && rest.trim_start_matches('#').starts_with('"') && rest.starts_with('#')
        })
    })?;
    let body = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        let start = prefix.len() + hashes + 1;
        let close = format!("\"{}", "#".repeat(hashes));
        let inner = &text[start..start + text[start..].find(&close)?];
        return Some((inner, start + inner.len() + close.len()));
    }
    let start = prefix.len() + 1;
    let mut escaped = false;
    for (index, c) in text[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some((&text[start..start + index], start + index + 1)),
            _ => {}
        }
    }
    None
}

/// A character, or the quote of a lifetime.
fn quote_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escaped, _))) => {
            text[escaped + 1..].find('\'').map_or(1, |close| escaped + 1 + close + 1)
        }
        (Some(_), Some((close, '\''))) => close + 1,
        _ => 1,
    }
}
