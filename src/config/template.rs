use std::collections::BTreeSet;
use std::fmt;

use super::identifier;

/// A text with names in braces: `"{title}: {chunk.text}"`. `{{` and `}}` are braces themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template(pub Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    Name(Name),
}

/// What may stand in braces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// A column of the source row, or one of its `values`.
    Row(String),
    Tenant,
    Job(JobFact),
    Chunk(ChunkFact),
}

macro_rules! facts {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($variant),* }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word after the dot.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// The fact of that word.
            pub fn of(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

facts! {
    /// `{job.x}`
    JobFact {
        Id = "id", Revision = "revision", Tokens = "tokens", TokensOfText = "tokens_of_text", Attempts = "attempts",
        Chunks = "chunks", Pages = "pages", Words = "words", Characters = "characters", Ms = "ms", Cost = "cost",
        Seconds = "seconds", Segments = "segments", LanguageProbability = "language_probability", Pipeline = "pipeline",
        Model = "model", Provider = "provider", Language = "language", Text = "text", Error = "error", State = "state", Cause = "cause",
        Started = "started", Finished = "finished", Now = "now", Key = "key",
    }
}

facts! {
    /// `{chunk.x}`
    ChunkFact {
        Index = "index", Tokens = "tokens", Page = "page", Level = "level", Start = "start", End = "end", Text = "text",
        Section = "section", Vector = "vector", Sparse = "sparse",
    }
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// What is wrong with the braces or a name, for a person, without the place.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let (brace, after) = rest[at..].split_at(1);
            if let Some(after) = after.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err("a single `}` closes nothing; write `}}` for a brace".to_owned());
            }
            let Some((name, after)) = Name::take(after)? else {
                return Err("`{` is never closed; write `{{` for a brace".to_owned());
            };
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Name(name));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The names it uses.
    pub fn names(&self) -> BTreeSet<&Name> {
        self.0.iter().filter_map(|piece| if let Piece::Name(name) = piece { Some(name) } else { None }).collect()
    }

    /// The name, where the template is nothing but one.
    pub fn single(&self) -> Option<&Name> {
        match self.0.as_slice() {
            [Piece::Name(name)] => Some(name),
            _ => None,
        }
    }

    /// Fills the names in. A line that holds names and whose values are all null is left out.
    ///
    /// # Panics
    /// Never: there is always a last line.
    pub fn render(&self, value: impl Fn(&Name) -> Option<String>) -> String {
        let mut lines = vec![Line::default()];
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => {
                    let mut parts = text.split('\n');
                    lines.last_mut().expect("starts with one").text.push_str(parts.next().unwrap_or_default());
                    lines.extend(parts.map(|part| Line { text: part.to_owned(), ..Line::default() }));
                }
                Piece::Name(name) => {
                    let line = lines.last_mut().expect("starts with one");
                    line.names += 1;
                    if let Some(value) = value(name) {
                        line.known += 1;
                        line.text.push_str(&value);
                    }
                }
            }
        }
        let kept: Vec<String> =
            lines.into_iter().filter(|line| line.names == 0 || line.known > 0).map(|line| line.text).collect();
        kept.join("\n")
    }
}

impl fmt::Display for Template {
    /// The template as it would be written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}")),
            Piece::Name(name) => name.fmt(f),
        })
    }
}

impl fmt::Display for Name {
    /// The name with its braces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(name) if name == TENANT => write!(f, "{{\"{name}\"}}"),
            Self::Row(name) => write!(f, "{{{}}}", identifier::written(name)),
            Self::Tenant => f.write_str("{tenant}"),
            Self::Job(fact) => write!(f, "{{job.{}}}", fact.word()),
            Self::Chunk(fact) => write!(f, "{{chunk.{}}}", fact.word()),
        }
    }
}

/// A line of a template while it is filled in.
#[derive(Default)]
struct Line {
    text: String,
    names: usize,
    known: usize,
}

/// The one plain name that is ours; the column of that name stands in double quotes.
const TENANT: &str = "tenant";

impl Name {
    /// Takes what stands behind an opening brace, and the brace that closes it; none where nothing does.
    pub(super) fn take(text: &str) -> Result<Option<(Self, &str)>, String> {
        if !text.starts_with('"') {
            return text.split_once('}').map(|(name, rest)| Ok((Self::parse(name)?, rest))).transpose();
        }
        let (name, rest) = identifier::take(text).map_err(|message| format!("`{{{text}` {message}"))?;
        match rest.strip_prefix('}') {
            Some(rest) => Ok(Some((Self::Row(name), rest))),
            None => Err(format!("`{{{text}` is not a name in braces: behind its quotes there must be a `}}`")),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let word = |ok: Option<Self>, all: Vec<&str>| {
            ok.ok_or_else(|| format!("`{{{text}}}` is not a name; known are {}", all.join(", ")))
        };
        if text == TENANT {
            return Ok(Self::Tenant);
        }
        if let Some(fact) = text.strip_prefix("job.") {
            return word(JobFact::of(fact).map(Self::Job), JobFact::ALL.iter().map(|fact| fact.word()).collect());
        }
        if let Some(fact) = text.strip_prefix("chunk.") {
            return word(ChunkFact::of(fact).map(Self::Chunk), ChunkFact::ALL.iter().map(|fact| fact.word()).collect());
        }
        identifier::whole(text).map(Self::Row).map_err(|message| {
            format!("`{{{text}}}` {message}; a column, a value, {{job.x}} or {{chunk.x}} may stand in braces")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, values: &[(&str, Option<&str>)]) -> String {
        Template::parse(template).unwrap().render(|name| {
            let Name::Row(name) = name else { return None };
            values.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.map(str::to_owned))
        })
    }

    #[test]
    fn a_line_whose_values_are_all_null_is_left_out() {
        let text = "{kind}: {label}\nDescription: {description}\nAlways";
        assert_eq!(render(text, &[("kind", Some("goal")), ("label", None)]), "goal: \nAlways");
    }

    #[test]
    fn a_value_with_line_breaks_stays_whole() {
        assert_eq!(render("{a}", &[("a", Some("one\ntwo"))]), "one\ntwo");
    }

    #[test]
    fn doubled_braces_are_braces() {
        assert_eq!(render("{{{a}}}", &[("a", Some("x"))]), "{x}");
    }

    #[test]
    fn a_template_is_shown_as_it_was_written() {
        let odd = r#"{"odd}.name"}{"6"" pipes"}{"tenant"}{"job.id"}"#;
        for text in ["{{{a}}}: {job.error}\n{chunk.text} {tenant}", odd, "", "plain"] {
            assert_eq!(Template::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_name_in_double_quotes_is_a_column_whatever_it_is_called() {
        let names: Vec<String> = Template::parse(r#"{"a}b"}: {"tenant"} {"job.id"}"#)
            .unwrap()
            .0
            .into_iter()
            .filter_map(|piece| if let Piece::Name(Name::Row(name)) = piece { Some(name) } else { None })
            .collect();
        assert_eq!(names, ["a}b", "tenant", "job.id"]);
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        for text in ["{", "}", "{}", "{chunk.nope}", "{a.b}", "{a;b}", "{\"a}", "{\"a\"", "{\"a\": 1}", "{\"\"}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
