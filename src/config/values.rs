//! From one item of the file to one checked value. Each function's error completes a sentence that begins with the key.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use rust_decimal::Decimal;
use time::OffsetDateTime;
use toml::de::DeValue;
use url::Url;

use super::identifier;
use super::raw::{Given, Item};
use super::template::{ChunkFact, Name, Template};
use super::units::{self, suggestion};
use super::{ColumnChoice, Secret, Sql, TableName};

type Parsed<T> = Result<T, String>;

/// A string, empty or not.
pub(super) fn text_or_empty(item: &Item) -> Parsed<String> {
    item.text().map(|text| text.value)
}

/// A string that says something.
pub(super) fn text(item: &Item) -> Parsed<String> {
    let text = item.text()?;
    if text.value.trim().is_empty() { Err(format!("{} is empty", text.shown)) } else { Ok(text.value) }
}

/// A string that is never shown.
pub(super) fn secret(item: &Item) -> Parsed<Secret> {
    let text = item.text()?;
    if text.value.is_empty() { Err("is empty".to_owned()) } else { Ok(Secret::new(text.value)) }
}

pub(super) fn boolean(item: &Item) -> Parsed<bool> {
    match &item.given {
        Given::File(DeValue::Boolean(value)) => Ok(*value),
        _ => from_text(item, "true or false", |text| text.parse().map_err(|_| "is neither true nor false".to_owned())),
    }
}

/// A whole number within a range.
pub(super) fn whole<T: TryFrom<i64>>(range: RangeInclusive<i64>) -> impl Fn(&Item) -> Parsed<T> {
    move |item| {
        let number = match &item.given {
            Given::File(DeValue::Integer(value)) => i64::from_str_radix(value.as_str(), value.radix()).ok(),
            Given::File(DeValue::Float(value)) => return Err(format!("must be a whole number, not {value}")),
            _ => Some(from_text(item, "a whole number", |text| {
                text.replace('_', "").parse().map_err(|_| "is not a whole number".to_owned())
            })?),
        };
        let fitting = number.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        fitting.ok_or_else(|| match (*range.start(), *range.end()) {
            (least, i64::MAX) => format!("must be a whole number from {least} up"),
            (least, most) => format!("must be a whole number from {least} to {most}"),
        })
    }
}

/// A whole number from `least` up.
pub(super) fn at_least<T: TryFrom<i64>>(least: i64) -> impl Fn(&Item) -> Parsed<T> {
    whole(least..=i64::MAX)
}

pub(super) fn duration(item: &Item) -> Parsed<Duration> {
    unit_needed(item, "60s")?;
    from_text(item, "a duration like \"60s\"", units::duration)
}

/// A duration that is not nothing.
pub(super) fn some_time(item: &Item) -> Parsed<Duration> {
    let duration = duration(item)?;
    if duration.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(duration) }
}

pub(super) fn size(item: &Item) -> Parsed<u64> {
    unit_needed(item, "512 MiB")?;
    from_text(item, "a size like \"512 MiB\"", units::size)
}

fn unit_needed(item: &Item, example: &str) -> Parsed<()> {
    match &item.given {
        Given::File(DeValue::Integer(number)) => Err(format!("{number} has no unit; write for example \"{example}\"")),
        _ => Ok(()),
    }
}

pub(super) fn amount(item: &Item) -> Parsed<Decimal> {
    let shown = |number: &str| units::amount(number).map_err(|message| format!("{number} {message}"));
    match &item.given {
        Given::File(DeValue::Integer(number)) => shown(number.as_str()),
        Given::File(DeValue::Float(number)) => shown(number.as_str()),
        _ => from_text(item, "an amount", units::amount),
    }
}

pub(super) fn moment(item: &Item) -> Parsed<OffsetDateTime> {
    match &item.given {
        Given::File(DeValue::Datetime(value)) => {
            let written = value.to_string();
            units::moment(&written).map_err(|message| format!("{written} {message}"))
        }
        _ => from_text(item, "a date", units::moment),
    }
}

/// An address and a port; none where it is `off` or empty.
pub(super) fn listen(item: &Item) -> Parsed<Option<SocketAddr>> {
    from_text(item, "an address and a port", |text| match text {
        "" | "off" => Ok(None),
        address => address
            .parse()
            .map(Some)
            .map_err(|_| "is not an address and a port like \"127.0.0.1:9464\", nor \"off\"".to_owned()),
    })
}

pub(super) fn path(item: &Item) -> Parsed<PathBuf> {
    text(item).map(PathBuf::from)
}

/// An http or https address that paths are added to. It is never shown: people put credentials into addresses.
pub(super) fn url(item: &Item) -> Parsed<Url> {
    let url = address(item)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must end before `?` and `#`: paths are added to it".to_owned());
    }
    Ok(url)
}

/// An http or https address. It is never shown: people put credentials into addresses.
pub(super) fn address(item: &Item) -> Parsed<Url> {
    let url = Url::parse(&text_or_empty(item)?).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or("is not an address like https://example.org")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user name or a password; give credentials in their own keys".to_owned());
    }
    Ok(url)
}

/// The host names that a store of kind `url` may read from.
pub(super) fn host(item: &Item) -> Parsed<String> {
    from_text(item, "a host name", |text| {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        let fine = name.bytes().all(plain) && name.split('.').all(|part| !part.is_empty());
        if fine {
            Ok(text.to_owned())
        } else {
            Err("is not a host name like files.example.org or *.example.org".to_owned())
        }
    })
}

/// One of the words that a key knows.
pub(super) fn word<T: Copy>(words: &[(&str, T)]) -> impl Fn(&Item) -> Parsed<T> {
    |item| {
        let text = item.text()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
            return Ok(*value);
        }
        if let Some(message) = item.unsupported(&text.value) {
            return Err(message);
        }
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        Err(format!("{} is not a word that is known here; known are {}", text.shown, known.join(", ")))
    }
}

/// One of the names that the file gives to its stores, providers or models.
pub(super) fn one_of(names: &BTreeSet<String>, section: &str) -> impl Fn(&Item) -> Parsed<String> {
    move |item| {
        let text = item.text()?;
        if names.contains(&text.value) {
            return Ok(text.value);
        }
        if names.is_empty() {
            return Err(format!("{} is not there; add a section [{section}.…]", text.shown));
        }
        let hint = suggestion(&text.value, names.iter().map(String::as_str));
        Err(format!("{} is not there; {hint}; or add a section [{section}.…]", text.shown))
    }
}

/// Several values, or one; no value twice.
pub(super) fn list<T: PartialEq>(parse: impl Fn(&Item) -> Parsed<T>) -> impl Fn(&Item) -> Parsed<Vec<T>> {
    move |item| {
        let values = item.each(&parse)?;
        if values.is_empty() {
            return Err("is an empty list".to_owned());
        }
        let twice = values.iter().enumerate().any(|(at, value)| values[..at].contains(value));
        if twice { Err("names something twice".to_owned()) } else { Ok(values) }
    }
}

/// The name of a column or of one of the `values`.
pub(super) fn column(item: &Item) -> Parsed<String> {
    from_text(item, "a column name", |text| {
        let name = identifier::whole(text)?;
        item.uses(&name);
        Ok(name)
    })
}

/// A column that may have alternatives.
pub(super) fn column_choice(item: &Item) -> Parsed<ColumnChoice> {
    let text = item.text()?;
    ColumnChoice::parse(&text.value).map_err(|message| format!("{} {message}", text.shown))
}

/// `schema.table`, or `table` in schema public.
pub(super) fn table(item: &Item) -> Parsed<TableName> {
    from_text(item, "a table name", table_name)
}

pub(super) fn table_name(text: &str) -> Parsed<TableName> {
    let (first, rest) = identifier::take(text)?;
    match rest.strip_prefix('.') {
        Some(table) => Ok(TableName { schema: first, table: identifier::whole(table)? }),
        None => Ok(TableName { schema: "public".to_owned(), table: identifier::whole(text)? }),
    }
}

/// An SQL expression; whether the database takes it is found out at start.
pub(super) fn sql(item: &Item) -> Parsed<Sql> {
    Ok(Sql { text: text(item)?, place: item.place() })
}

/// Which names mean something where a template stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Only the source row is known.
    Row,
    /// What is embedded: the chunk is cut, but neither counted nor embedded.
    Embed,
    /// The job is done.
    Job,
    /// The job is done and one of its chunks is written.
    Chunk,
}

impl Scope {
    pub(super) fn check(self, name: &Name) -> Parsed<()> {
        let (fits, instead) = match (self, name) {
            (_, Name::Row(_) | Name::Tenant)
            | (Self::Job | Self::Chunk, Name::Job(_))
            | (Self::Chunk, Name::Chunk(_)) => (true, ""),
            (Self::Embed, Name::Chunk(fact)) => (
                !matches!(fact, ChunkFact::Vector | ChunkFact::Sparse | ChunkFact::Tokens),
                "it is not known before the text is embedded",
            ),
            (Self::Row, _) => (false, "only columns and values of the source row can be named"),
            (Self::Job, Name::Chunk(_)) => (false, "only the row and {job.…} can be named: a job has many chunks"),
            (Self::Embed, Name::Job(_)) => (false, "only the row and {chunk.…} can be named: the job is not done yet"),
        };
        if fits { Ok(()) } else { Err(format!("`{name}` means nothing here; {instead}")) }
    }
}

/// A template whose names mean something in its scope.
pub(super) fn template(scope: Scope) -> impl Fn(&Item) -> Parsed<Template> {
    move |item| {
        let text = item.text()?;
        let parsed = Template::parse(&text.value);
        let template = parsed.map_err(|message| if text.hidden { hidden(&text.shown) } else { message })?;
        let checked = template.names().into_iter().try_for_each(|name| scope.check(name));
        checked.map_err(|message| if text.hidden { hidden(&text.shown) } else { message })?;
        for name in template.names() {
            if let Name::Row(name) = name {
                item.uses(name);
            }
        }
        Ok(template)
    }
}

/// A template that depends on the row, as one that forgot its braces does not.
pub(super) fn template_of_row(item: &Item) -> Parsed<Template> {
    let template = template(Scope::Row)(item)?;
    if template.names().is_empty() {
        return Err("names no column, so it is the same for every row; write {column} in braces".to_owned());
    }
    Ok(template)
}

fn hidden(shown: &str) -> String {
    format!("{shown} is not a template that fits here once the environment is filled in")
}

/// Parses a string; the error of `parse` follows what the file says, or is preceded by `wanted` where it says no string.
fn from_text<T>(item: &Item, wanted: &str, parse: impl Fn(&str) -> Parsed<T>) -> Parsed<T> {
    if !item.is_text() {
        return Err(format!("must be {wanted}, not {}", item.kind()));
    }
    let text = item.text()?;
    parse(text.value.trim()).map_err(|message| format!("{} {message}", text.shown))
}
