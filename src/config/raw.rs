//! TOML with places: sections and items that record what does not hold instead of stopping at it.
//!
//! A [`Section`] is asked for its keys one by one and complains in the end about those nobody asked for. An [`Item`] is one
//! value with its place; the functions of `values` turn it into what is wanted.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::units::suggestion;
use super::{ConfigError, Place, environment, unsupported};

pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The file being read, and every misfit found so far.
pub(super) struct Reader<'a> {
    file: &'a str,
    text: String,
    environment: Environment<'a>,
    line_ends: Vec<usize>,
    misfits: RefCell<Vec<ConfigError>>,
    /// Names of columns and values, each where it is used: whether they exist only a database can tell.
    used: RefCell<Vec<(String, Place)>>,
    /// Every key that was asked for, names replaced by `*`: `workers.toml` has to document each.
    #[cfg(test)]
    pub(super) asked: RefCell<BTreeSet<String>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a str, text: &str, environment: Environment<'a>) -> Self {
        let line_ends = text.match_indices('\n').map(|(at, _)| at).collect();
        Self {
            file,
            text: text.to_owned(),
            environment,
            line_ends,
            misfits: RefCell::default(),
            used: RefCell::default(),
            #[cfg(test)]
            asked: RefCell::default(),
        }
    }

    /// Parses the text; none if it is not TOML, which is recorded.
    pub(super) fn parse(&'a self, text: &'a str) -> Option<Section<'a>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            self.misfit(self.place(at, String::new()), error.message());
        }
        errors.is_empty().then(|| Section::new(self, String::new(), String::new(), 0, table.into_inner()))
    }

    pub(super) fn misfit(&self, place: Place, message: impl Into<String>) {
        self.misfits.borrow_mut().push(ConfigError { place, message: message.into() });
    }

    /// Everything that did not hold, in the order of the file.
    pub(super) fn into_misfits(self) -> Vec<ConfigError> {
        let mut misfits = self.misfits.into_inner();
        misfits.sort_by_key(|misfit| misfit.place.line);
        misfits
    }

    fn place(&self, at: usize, key: String) -> Place {
        Place { file: self.file.to_owned(), line: 1 + self.line_ends.partition_point(|&end| end < at), key }
    }
}

/// A table of the file.
pub(super) struct Section<'a> {
    reader: &'a Reader<'a>,
    key: String,
    /// The key with names replaced by `*`.
    shape: String,
    at: usize,
    table: DeTable<'a>,
    known: BTreeSet<&'static str>,
    /// Whether `GRISTMILL__SECTION__KEY` of the environment comes before the file.
    overridable: bool,
}

impl<'a> Section<'a> {
    fn new(reader: &'a Reader<'a>, key: String, shape: String, at: usize, table: DeTable<'a>) -> Self {
        Self { reader, key, shape, at, table, known: BTreeSet::new(), overridable: false }
    }

    /// Where the section begins.
    pub(super) fn place(&self) -> Place {
        self.reader.place(self.at, self.key.clone())
    }

    /// Where a key stands, or would.
    pub(super) fn place_of(&self, key: &str) -> Place {
        self.reader.place(self.start_of(key), join(&self.key, key))
    }

    fn start_of(&self, key: &str) -> usize {
        self.table.get_key_value(key).map_or(self.at, |(name, _)| name.span().start)
    }

    /// Records something that does not hold about a key.
    pub(super) fn misfit_at(&self, key: &str, message: impl Into<String>) {
        self.misfit(self.place_of(key), message);
    }

    /// Records something that does not hold, at a place that was kept.
    pub(super) fn misfit(&self, place: Place, message: impl Into<String>) {
        self.reader.misfit(place, message);
    }

    /// The names of columns and values that were read below this section, with the first place of each.
    pub(super) fn names_used(&self) -> BTreeMap<String, Place> {
        let below = format!("{}.", self.key);
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        for (name, place) in self.reader.used.borrow().iter().filter(|(_, place)| place.key.starts_with(&below)) {
            let first = places.entry(name.clone()).or_insert_with(|| place.clone());
            if place.line < first.line {
                first.clone_from(place);
            }
        }
        places
    }

    /// Lets the environment override this section's keys.
    pub(super) fn overridable(mut self) -> Self {
        self.overridable = true;
        self
    }

    /// Puts a value where the file has none.
    pub(super) fn assume(&mut self, key: &'static str, value: &'static str) {
        let spanned = |at: usize| at..at;
        if !self.table.contains_key(key) {
            let value = DeValue::String(value.into());
            self.table.insert(Spanned::new(spanned(self.at), key.into()), Spanned::new(spanned(self.at), value));
        }
    }

    /// Whether the key is given, here or in the environment.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key) || self.override_of(key).is_some()
    }

    /// The value of a key.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.known.insert(key);
        let given = match (self.override_of(key), self.table.get(key)) {
            (Some((name, value)), _) => Given::Variable { name, value },
            (None, Some(value)) => Given::File(value.get_ref().clone()),
            (None, None) => return None,
        };
        let (at, shape) = (self.start_of(key), join(&self.shape, key));
        Some(Item { reader: self.reader, key: join(&self.key, key), shape, at, given })
    }

    /// The value of a key, parsed; none where it is not given or does not hold, which is recorded.
    pub(super) fn read<T>(&mut self, key: &'static str, parse: impl Fn(&Item) -> Result<T, String>) -> Option<T> {
        self.take(key)?.read(parse)
    }

    /// Like [`Section::read`], for a key that may be left out: an empty string leaves it out as well.
    pub(super) fn optional<T>(&mut self, key: &'static str, parse: impl Fn(&Item) -> Result<T, String>) -> Option<T> {
        let item = self.take(key)?;
        if item.text().is_ok_and(|text| text.value.is_empty()) { None } else { item.read(parse) }
    }

    /// The value of a key, or what it is where nobody says.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Item) -> Result<T, String>,
        default: impl Into<T>,
    ) -> T {
        self.read(key, parse).unwrap_or_else(|| default.into())
    }

    /// The value of a key that has to be there; `example` is shown where it is not.
    pub(super) fn need<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Item) -> Result<T, String>,
        example: &str,
    ) -> Option<T> {
        if !self.has(key) {
            self.known.insert(key);
            self.misfit_at(key, format!("is missing; write for example {key} = {example}"));
            return None;
        }
        self.read(key, parse)
    }

    /// A table below this one, where there is one.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Self> {
        self.take(key)?.into_section()
    }

    /// A table below this one; an empty one where there is none.
    pub(super) fn section_or_empty(&mut self, key: &'static str) -> Self {
        self.section(key).unwrap_or_else(|| {
            let (name, shape) = (join(&self.key, key), join(&self.shape, key));
            Self::new(self.reader, name, shape, self.at, DeTable::new())
        })
    }

    /// The named tables below a key (`[stores.x]`), in the order of the file.
    pub(super) fn named_sections(&mut self, key: &'static str) -> Vec<(String, Self)> {
        let entries = self.entries(key).into_iter();
        entries.filter_map(|(name, item)| Some((name, item.into_section()?))).collect()
    }

    /// The tables of an array (`[[prices]]`).
    pub(super) fn repeated_sections(&mut self, key: &'static str) -> Vec<Self> {
        let Some(item) = self.take(key) else { return Vec::new() };
        let Given::File(DeValue::Array(values)) = item.given else {
            item.misfit(format!("must be a list of tables; write [[{key}]]"));
            return Vec::new();
        };
        let tables = values.into_iter().enumerate().filter_map(|(index, value)| {
            let (key, shape) = (format!("{}[{index}]", item.key), item.shape.clone());
            let at = value.span().start;
            Item { reader: item.reader, key, shape, at, given: Given::File(value.into_inner()) }.into_section()
        });
        tables.collect()
    }

    /// The entries of a map (`columns = { … }`), in the order of the file.
    pub(super) fn entries(&mut self, key: &'static str) -> Vec<(String, Item<'a>)> {
        self.take(key).and_then(Item::into_entries).unwrap_or_default()
    }

    /// Complains about every key that nobody asked for.
    pub(super) fn finish(self) {
        for name in self.table.keys().filter(|name| !self.known.contains(name.get_ref().as_ref())) {
            let hint = suggestion(name.get_ref(), self.known.iter().copied());
            self.misfit_at(name.get_ref(), format!("is not a key that is known here; {hint}"));
        }
        #[cfg(test)]
        self.reader.asked.borrow_mut().extend(self.known.iter().map(|key| join(&self.shape, key)));
    }

    fn override_of(&self, key: &str) -> Option<(String, String)> {
        let name = format!("GRISTMILL__{}__{}", self.key, key).to_uppercase();
        let value = self.overridable.then(|| (self.reader.environment)(&name)).flatten()?;
        Some((name, value))
    }
}

/// One value of the file, or of the environment in its stead.
pub(super) struct Item<'a> {
    reader: &'a Reader<'a>,
    key: String,
    shape: String,
    at: usize,
    pub(super) given: Given<'a>,
}

pub(super) enum Given<'a> {
    File(DeValue<'a>),
    Variable { name: String, value: String },
}

/// A string of the file with the environment filled in.
pub(super) struct Text {
    pub(super) value: String,
    /// What a message may show: the string before anything was filled in.
    pub(super) shown: String,
    /// Whether the environment had a part in it, so that it must not be shown.
    pub(super) hidden: bool,
}

impl<'a> Item<'a> {
    /// The value as a string; the error names what it is instead, or the variable that is not set.
    pub(super) fn text(&self) -> Result<Text, String> {
        match &self.given {
            Given::Variable { name, value } => {
                Ok(Text { value: value.clone(), shown: format!("the value of {name}"), hidden: true })
            }
            Given::File(DeValue::String(written)) => {
                let value = environment::fill(written, self.reader.environment)?;
                Ok(Text { hidden: value != *written, value, shown: format!("\"{written}\"") })
            }
            Given::File(_) => Err(format!("must be a string, not {}", self.kind())),
        }
    }

    /// The parsed value; what does not hold is recorded.
    pub(super) fn read<T>(&self, parse: impl Fn(&Self) -> Result<T, String>) -> Option<T> {
        parse(self).map_err(|message| self.misfit(message)).ok()
    }

    pub(super) fn misfit(&self, message: impl Into<String>) {
        self.reader.misfit(self.place(), message);
    }

    pub(super) fn place(&self) -> Place {
        self.reader.place(self.at, self.key.clone())
    }

    /// Where the lines of a string begin: below its key, where the quotes that open it end their line.
    pub(super) fn body_place(&self) -> Place {
        let mut place = self.place();
        let rest = &self.reader.text[self.at.min(self.reader.text.len())..];
        let opening = rest.find(['"', '\'']).map_or("", |at| &rest[at..]);
        let quotes = ["\"\"\"", "'''"].into_iter().find_map(|quotes| opening.strip_prefix(quotes));
        if quotes.is_some_and(|body| body.starts_with('\n') || body.starts_with("\r\n")) {
            place.line += 1;
        }
        place
    }

    /// Remembers that a column, or one of the `values`, is named here.
    pub(super) fn uses(&self, name: &str) {
        self.reader.used.borrow_mut().push((name.to_owned(), self.place()));
    }

    /// What the value is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match &self.given {
            Given::Variable { .. } | Given::File(DeValue::String(_)) => "a string",
            Given::File(DeValue::Integer(_) | DeValue::Float(_)) => "a number",
            Given::File(DeValue::Boolean(_)) => "true or false",
            Given::File(DeValue::Datetime(_)) => "a date",
            Given::File(DeValue::Array(_)) => "a list",
            Given::File(DeValue::Table(_)) => "a table",
        }
    }

    /// Why a word is refused although the language knows it.
    pub(super) fn unsupported(&self, word: &str) -> Option<String> {
        unsupported::is_word(&self.shape, word).then(|| unsupported::message(word))
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self.given, Given::Variable { .. } | Given::File(DeValue::String(_)))
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.given, Given::File(DeValue::Table(_)))
    }

    /// Each value of a list; a value that is none is a list of one.
    pub(super) fn each<T>(&self, parse: impl Fn(&Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let Given::File(DeValue::Array(values)) = &self.given else { return Ok(vec![parse(self)?]) };
        let item = |value: &Spanned<DeValue<'a>>| Item {
            reader: self.reader,
            key: self.key.clone(),
            shape: self.shape.clone(),
            at: value.span().start,
            given: Given::File(value.get_ref().clone()),
        };
        values.iter().map(|value| parse(&item(value))).collect()
    }

    /// The entries of a table, in the order of the file.
    pub(super) fn into_entries(self) -> Option<Vec<(String, Self)>> {
        let (reader, parent, shape) = (self.reader, self.key.clone(), join(&self.shape, "*"));
        let mut entries: Vec<_> = self.into_table()?.into_iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let item = |(name, value): (Spanned<DeString<'a>>, Spanned<DeValue<'a>>)| {
            let at = name.span().start;
            let name = name.into_inner().into_owned();
            let (key, shape, given) = (join(&parent, &name), shape.clone(), Given::File(value.into_inner()));
            (name, Item { reader, key, shape, at, given })
        };
        Some(entries.into_iter().map(item).collect())
    }

    fn into_table(self) -> Option<DeTable<'a>> {
        if !self.is_table() {
            self.misfit(format!("must be a table, not {}", self.kind()));
        }
        if let Given::File(DeValue::Table(table)) = self.given { Some(table) } else { None }
    }

    fn into_section(self) -> Option<Section<'a>> {
        let (reader, key, shape, at) = (self.reader, self.key.clone(), self.shape.clone(), self.at);
        Some(Section::new(reader, key, shape, at, self.into_table()?))
    }
}

/// A dotted key; a part that is not a bare key is quoted, as the file would.
fn join(path: &str, key: &str) -> String {
    let bare =
        key == "*" || !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
