//! Which columns of a table are what, by their names and types.

use crate::db::app::{Column, Reference, Surveyed};

pub(super) const TEXTS: &[&str] = &[
    "content",
    "body",
    "text",
    "transcript",
    "conversation_transcript",
    "raw_transcript",
    "raw_text",
    "description",
    "note",
    "notes",
];
pub(super) const TITLES: &[&str] = &["title", "name", "label", "subject"];
pub(super) const PATHS: &[&str] = &["storage_path", "file_path", "object_path", "path"];
pub(super) const TENANTS: &[&str] =
    &["user_id", "owner_id", "tenant_id", "account_id", "organization_id", "org_id", "workspace_id"];
pub(super) const STATUSES: &[&str] = &["embedding_status", "processing_status"];
pub(super) const INDEXES: &[&str] =
    &["chunk_index", "index", "idx", "position", "chunk_number", "ordinal", "nth", "seq"];
/// How names end of columns that hold no prose, whatever their type.
const TERSE: &[&str] = &[
    "id", "uuid", "key", "slug", "sku", "type", "kind", "status", "state", "category", "role", "url", "uri", "link",
    "email", "phone", "hash", "checksum", "model", "version", "language", "lang", "locale", "format", "currency",
    "country", "username", "author", "source", "error", "by", "at", "path", "file",
];
pub(super) const CHUNKS: &[&str] = &["content", "chunk_text", "text", "chunk", "body", "passage"];
pub(super) const TOKENS: &[&str] = &["token_count", "tokens", "n_tokens"];
pub(super) const PAGES: &[&str] = &["page_number", "page"];
pub(super) const SECTIONS: &[&str] = &["section_title", "heading", "section"];
/// A column of fewer letters holds no prose.
const SHORTEST_PROSE: i32 = 100;

/// The file's path. What refers to another table is none, nor is what tells the rows of a table apart that has its text itself.
pub(super) fn path_of(table: &Surveyed) -> Option<&Column> {
    let is_key = |name: &String| {
        table.references.iter().any(|reference| reference.columns.contains(name))
            || table.key.contains(name) && !usual_texts(table).is_empty()
    };
    texts_of(table, PATHS).find(|column| !is_key(&column.name))
}

/// What numbers the chunks of a row that this table refers to: by its name, else the one integer that tells them apart.
pub(super) fn index_of<'t>(table: &'t Surveyed, reference: &Reference) -> Option<&'t Column> {
    let is_free = |name: &str| !reference.columns.iter().any(|column| column == name);
    let mut by_name = INDEXES.iter().filter_map(|name| table.table.column(name));
    let by_name = by_name.find(|column| !column.generated && is_free(&column.name));
    let numbers = |key: &Vec<String>| {
        let mut others = key.iter().filter(|name| is_free(name));
        let other = others.next().filter(|_| others.next().is_none() && key.len() > reference.columns.len())?;
        table.table.column(other).filter(|column| is_whole(column) && !column.generated)
    };
    let keys = std::iter::once(&table.key).chain(&table.unique);
    by_name.or_else(|| {
        let is_chunk = chunk_text(table).is_some();
        keys.filter(|_| is_chunk).find_map(numbers)
    })
}

/// What holds a chunk's text: by its name, else the one column that may.
pub(super) fn chunk_text(table: &Surveyed) -> Option<&Column> {
    let any = || {
        let texts = any_texts(table);
        if let [text] = texts.as_slice() { Some(*text) } else { None }
    };
    text_of(table, CHUNKS).or_else(any)
}

fn is_whole(column: &Column) -> bool {
    ["int2", "int4", "int8"].contains(&column.type_name.as_str())
}

pub(super) fn vectors(table: &Surveyed) -> impl Iterator<Item = &Column> {
    table.table.columns.iter().filter(|column| ["vector", "halfvec"].contains(&column.type_name.as_str()))
}

pub(super) fn vector(table: &Surveyed) -> Option<&Column> {
    vectors(table).next()
}

/// Its text by the usual names, else what is called like one (`email_body`, `The Text`).
pub(super) fn usual_texts(table: &Surveyed) -> Vec<&Column> {
    if let Some(text) = text_of(table, TEXTS) {
        return vec![text];
    }
    own_texts(table).filter(|column| TEXTS.iter().any(|word| column.name.to_lowercase().ends_with(word))).collect()
}

/// What may be its text whatever it is called: all columns that may hold prose, else all with letters in them.
pub(super) fn any_texts(table: &Surveyed) -> Vec<&Column> {
    let keys = table.unique.iter().chain(table.references.iter().map(|reference| &reference.columns));
    let names: Vec<&String> = keys.flatten().chain(&table.key).collect();
    let lists = [TITLES, PATHS, TENANTS, STATUSES].concat();
    let is_prose = |column: &&Column| {
        !names.contains(&&column.name)
            && !lists.contains(&column.name.as_str())
            && !TERSE.contains(&last_word(&column.name).as_str())
            // Four more than the letters it takes; less than none where it takes any number.
            && !(0..SHORTEST_PROSE + 4).contains(&column.modifier)
    };
    let prose: Vec<&Column> = own_texts(table).filter(is_prose).collect();
    if prose.is_empty() && text_of(table, TITLES).is_none() { own_texts(table).collect() } else { prose }
}

pub(super) fn own_texts(table: &Surveyed) -> impl Iterator<Item = &Column> {
    table.table.columns.iter().filter(|column| is_text(column) && !column.generated)
}

/// The first of these columns that the table has.
pub(super) fn one<'t>(table: &'t Surveyed, names: &[&str]) -> Option<&'t Column> {
    names.iter().find_map(|name| table.table.column(name)).filter(|column| !column.generated)
}

/// The first of these columns that the table has as a text.
pub(super) fn text_of<'t>(table: &'t Surveyed, names: &[&str]) -> Option<&'t Column> {
    texts_of(table, names).next()
}

fn texts_of<'t>(table: &'t Surveyed, names: &[&str]) -> impl Iterator<Item = &'t Column> {
    let found = names.iter().filter_map(|name| table.table.column(name));
    found.filter(|column| is_text(column) && !column.generated)
}

pub(super) fn is_text(column: &Column) -> bool {
    ["text", "varchar", "bpchar", "citext"].contains(&column.type_name.as_str())
}

/// `url` of `image_url` and of `imageUrl`.
fn last_word(name: &str) -> String {
    let word = name.rsplit(|letter: char| !letter.is_alphanumeric()).next().unwrap_or(name);
    let hump = word.rfind(char::is_uppercase).filter(|&at| word[..at].ends_with(char::is_lowercase));
    word[hump.unwrap_or_default()..].to_lowercase()
}

pub(super) fn dimensions(column: &Column) -> Option<usize> {
    usize::try_from(column.modifier).ok().filter(|dimensions| *dimensions > 0)
}
