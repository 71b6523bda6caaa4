//! From the tables of a database to pipelines that are worth a look.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::config::{Name, TableName, written};
use crate::db::app::{Column, Reference, Surveyed};

use super::columns::{
    PAGES, SECTIONS, STATUSES, TENANTS, TITLES, TOKENS, any_texts, chunk_text, dimensions, index_of, is_text, one,
    own_texts, path_of, text_of, usual_texts, vector, vectors,
};

/// A pipeline that is proposed.
#[derive(Debug, Clone)]
pub(super) struct Proposal {
    pub name: String,
    /// Dimensions of its vectors, where the database says.
    pub dimensions: Option<usize>,
    pub file: bool,
    /// Its sections, to be filled in with the model's label.
    pub toml: String,
    /// The section of its status, which a person may have to complete.
    pub status: Option<String>,
}

/// What is proposed, and what else there is.
#[derive(Debug)]
pub(super) struct Proposed {
    pub proposals: Vec<Proposal>,
    /// Every table that no proposal reads or writes, with why.
    pub passed_over: BTreeMap<String, &'static str>,
}

/// What stands for the model in a proposal's text: nothing that a name can hold.
pub(super) const MODEL: &str = "\0model\0";
/// And for the pipeline's name.
const NAME: &str = "\0name\0";
/// The longest name that Postgres takes, in bytes.
const LONGEST: usize = 63;

/// What the proposals need to know besides the tables.
pub(super) struct Surroundings {
    /// The word that a version column of a table mostly holds: table, column, word.
    pub versions: Vec<(String, String, String)>,
    /// `auth.uid()` is there.
    pub has_uid: bool,
}

/// Proposes a pipeline for each table that looks like a target, and, where there is none at all, a table of ours for each that looks
/// like a source.
pub(super) fn propose(tables: &[Surveyed], around: &Surroundings) -> Proposed {
    let mut proposals = Vec::new();
    let mut served: Vec<String> = Vec::new();
    for target in tables.iter().filter(|table| vector(table).is_some()) {
        let Some((source, reference)) = sources_of(target, tables).next() else { continue };
        proposals.push(chunks(source, target, reference, tables, around));
        served.push(source.table.sql());
        served.push(target.table.sql());
    }
    let is_served = |served: &[String], table: &Surveyed| served.contains(&table.table.sql());
    for table in tables.iter().filter(|table| vector(table).is_some()) {
        if let Some(proposal) = row(table).filter(|_| !is_served(&served, table)) {
            proposals.push(proposal);
            served.push(table.table.sql());
        }
    }
    if proposals.is_empty() {
        for (table, proposal) in tables.iter().filter_map(|table| Some((table, made(table, around)?))) {
            proposals.push(proposal);
            served.push(table.table.sql());
        }
    }
    let unserved = tables.iter().filter(|table| !is_served(&served, table));
    let passed_over = unserved.map(|table| (table.table.name.to_string(), why_not(table))).collect();
    let mut names: Vec<String> = Vec::new();
    for proposal in &mut proposals {
        let plain = proposal.name.clone();
        let mut nth = 2;
        while names.contains(&proposal.name) {
            proposal.name = format!("{plain}-{nth}");
            nth += 1;
        }
        names.push(proposal.name.clone());
        for text in std::iter::once(&mut proposal.toml).chain(&mut proposal.status) {
            *text = text.replace(NAME, &proposal.name);
        }
    }
    Proposed { proposals, passed_over }
}

/// What a table lacks that nobody proposed anything for.
fn why_not(table: &Surveyed) -> &'static str {
    match (own_texts(table).next().is_some(), table.key.is_empty()) {
        (false, _) => "it has no column of text",
        (true, true) => "it has no primary key",
        (true, false) if !usual_texts(table).is_empty() => {
            "it has a text and no place for vectors, which target.create = true would make"
        }
        (true, false) => "it has no column of type vector or halfvec, and none that is called like a text",
    }
}

/// The tables that a table of chunks may hang below, by a foreign key: those to a primary key first.
fn sources_of<'t>(target: &'t Surveyed, tables: &'t [Surveyed]) -> impl Iterator<Item = (&'t Surveyed, &'t Reference)> {
    let found = move |to_key: bool| {
        target.references.iter().filter_map(move |reference| {
            let source = tables.iter().find(|table| table.table.name == reference.table)?;
            let is_other = source.table.name != target.table.name && index_of(target, reference).is_some();
            let is_next = is_key(source, &reference.foreign) == to_key;
            (is_other && is_next && has_content(source)).then_some((source, reference))
        })
    };
    found(true).chain(found(false))
}

/// Whether these are the columns of its primary key, in whatever order.
fn is_key(table: &Surveyed, columns: &[String]) -> bool {
    table.key.len() == columns.len() && table.key.iter().all(|column| columns.contains(column))
}

fn has_content(table: &Surveyed) -> bool {
    !usual_texts(table).is_empty() || path_of(table).is_some()
}

fn name_of(table: &Surveyed) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || letter == '_' { letter } else { '-' };
    let name: String = table.table.name.table.chars().map(plain).take(36).collect();
    if name.is_empty() { "rows".to_owned() } else { name }
}

/// A string as a value, in which `${` would name the environment.
fn quoted(text: &str) -> String {
    string(&text.replace("${", "$${"))
}

fn string(text: &str) -> String {
    // What JSON escapes, TOML reads alike; it lets one character through that TOML does not take.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A column of the source row, for a template.
fn braces(column: &str) -> String {
    Name::Row(column.to_owned()).to_string()
}

/// A name with something before or behind it, cut in the middle where it would be too long.
fn longer(before: &str, name: &str, behind: &str) -> String {
    let room = LONGEST - before.len() - behind.len();
    let kept = name.char_indices().map(|(at, letter)| at + letter.len_utf8()).take_while(|end| *end <= room).last();
    format!("{before}{}{behind}", &name[..kept.unwrap_or_default()])
}

/// A text that stands behind `#`.
pub(super) fn comment(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// A key of a TOML table.
fn key(column: &str) -> String {
    let bare = column.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if bare { column.to_owned() } else { string(&written(column)) }
}

fn map(entries: &[(String, String)]) -> String {
    let entries: Vec<String> =
        entries.iter().map(|(column, value)| format!("{} = {}", key(column), quoted(value))).collect();
    format!("{{ {} }}", entries.join(", "))
}

/// `[pipelines.x]` and its source; says whether the content may be a file.
fn source(table: &Surveyed, why: &str, needs: Option<&str>, text: &mut String) -> bool {
    let keys: Vec<String> = table.key.iter().map(|column| quoted(&written(column))).collect();
    let _ = write!(
        text,
        "# {}\n[pipelines.{NAME}]\nkind = \"embed\"\nmodel = \"{MODEL}\"\n\
         existing = \"adopt\"                              # rows that are there: valid vectors are done, unpaid; or backfill, or ignore\n\
         [pipelines.{NAME}.source]\ntable = {}\nkey = [{}]\n",
        comment(why),
        quoted(&table.table.name.to_string()),
        keys.join(", "),
    );
    if let Some(tenant) = one(table, TENANTS) {
        let _ = writeln!(
            text,
            "tenant = {}                              # whose row it is, for fairness and for bills",
            quoted(&tenant.name)
        );
    }
    if table.table.column("deleted_at").is_some() {
        text.push_str("when = \"deleted_at is null\"\n");
    } else if table.table.column("is_active").is_some_and(|column| column.type_name == "bool") {
        text.push_str("when = \"is_active\"\n");
    }
    if let Some(needs) = needs {
        let _ = writeln!(text, "needs = {}", quoted(needs));
    }
    if let Some(changed) =
        one(table, &["updated_at", "modified_at"]).filter(|column| column.type_name.starts_with("timestamp"))
    {
        let _ = writeln!(
            text,
            "changed_at = {}                      # or `gristmill triggers install`",
            quoted(&changed.name)
        );
    } else {
        text.push_str("# changed_at = \"updated_at\"                     # without such a column, changes are seen by `gristmill triggers install` only\n");
    }
    let (title, path) = (text_of(table, TITLES), path_of(table));
    let mut texts = usual_texts(table);
    if texts.is_empty() && path.is_none() {
        texts = any_texts(table);
        if !texts.is_empty() {
            text.push_str(
                "# No column is called like a text: these are all that may be one. Leave out what is not meant.\n",
            );
        }
    }
    if path.is_none() {
        texts.splice(0..0, title);
    }
    if !texts.is_empty() {
        let lines: Vec<String> = texts.iter().map(|column| braces(&column.name)).collect();
        let _ = writeln!(text, "text = {}", quoted(&lines.join("\n")));
    }
    let Some(path) = path else { return false };
    let (owner, why) = match one(table, TENANTS) {
        Some(tenant) => {
            (format!("{{{}}}/", tenant.name), "what a path must lie below, so that a row cannot name another's file")
        }
        None => (String::new(), "nobody's folder: a row may name any file of the store; if that is not so, say whose"),
    };
    let _ = write!(
        text,
        "[pipelines.{NAME}.file]\nstore = \"files\"\npath = {}\nwithin = {}                          # {why}\n",
        quoted(&format!("{{{}}}", path.name)),
        quoted(&owner),
    );
    if !texts.is_empty() {
        let _ = writeln!(text, "when = {}", quoted(&format!("\"{}\" is not null", path.name.replace('"', "\"\""))));
    }
    if let Some(kind) = text_of(table, &["mime_type", "content_type", "file_type"]) {
        let _ = writeln!(text, "type = {}", quoted(&format!("{{{}}}", kind.name)));
    }
    true
}

fn status(table: &Surveyed) -> Option<String> {
    let status = one(table, STATUSES)?;
    let mut columns = Vec::new();
    for (names, value) in [
        (&["error_message", "embedding_error", "processing_error"][..], "{job.error}"),
        (&["processed_at", "embedding_processed_at", "embedding_generated_at"][..], "{job.finished}"),
    ] {
        columns.extend(one(table, names).map(|column| (column.name.clone(), value.to_owned())));
    }
    let mut text = format!(
        "[pipelines.{NAME}.status]\ncolumn = {}\nwords = {{ skipped = \"\" }}                       # the word for a row with nothing to embed; \"\": left as it is\n",
        quoted(&status.name)
    );
    if !columns.is_empty() {
        let _ = writeln!(text, "columns = {}", map(&columns));
    }
    Some(text)
}

/// What a row with a status says of its vectors besides.
fn counts(table: &Surveyed, text: &mut String) {
    let mut written = Vec::new();
    for (names, value) in [
        (&["chunk_count", "total_chunks"][..], "{job.chunks}"),
        (&["page_count"][..], "{job.pages}"),
        (&["word_count"][..], "{job.words}"),
    ] {
        written.extend(one(table, names).map(|column| (column.name.clone(), value.to_owned())));
    }
    if one(table, STATUSES).is_some() && !written.is_empty() {
        let _ = writeln!(text, "[pipelines.{NAME}.write]");
        for (column, value) in written {
            let _ = writeln!(text, "{} = {}", key(&column), quoted(&value));
        }
    }
}

/// `[pipelines.x.chunks]`, no longer than the usual model of so many dimensions takes.
fn cut(dimensions: Option<usize>, text: &mut String) {
    let tokens = if dimensions == Some(384) { 256 } else { 400 };
    let _ = write!(text, "[pipelines.{NAME}.chunks]\ntokens = {tokens}\noverlap = {}\n", tokens / 10);
}

/// Vectors of a table that a proposal leaves alone.
fn other_vectors(table: &Surveyed, text: &mut String) {
    for other in vectors(table).skip(1) {
        let other = comment(&format!("{} of {}", other.name, table.table.name));
        let _ = writeln!(text, "# There is a second vector, {other}: it takes a pipeline of its own.");
    }
}

/// A table of chunks below a source.
fn chunks(
    from: &Surveyed,
    target: &Surveyed,
    reference: &Reference,
    tables: &[Surveyed],
    around: &Surroundings,
) -> Proposal {
    let mut text = String::new();
    for (other, by) in sources_of(target, tables).filter(|(_, by)| *by != reference) {
        let by = comment(&format!("{} of {} refers to {}", by.columns.join(", "), target.table.name, other.table.name));
        let _ = writeln!(text, "# {by}, too: if chunks are of rows there as well, these take a pipeline of their own.");
    }
    other_vectors(target, &mut text);
    let why = format!("{}: its text is cut into chunks, which go to {}", from.table.name, target.table.name);
    let mut from = from.clone();
    if !is_key(&from, &reference.foreign) {
        // Chunks know their row by another key of it.
        from.key.clone_from(&reference.foreign);
    }
    let from = &from;
    let file = source(from, &why, None, &mut text);
    let parent: Vec<(String, String)> =
        reference.columns.iter().zip(&reference.foreign).map(|(column, of)| (column.clone(), braces(of))).collect();
    let dimensions = vector(target).and_then(dimensions);
    cut(dimensions, &mut text);
    let _ = write!(
        text,
        "[pipelines.{NAME}.target]\ntable = {}\nparent = {}\n",
        quoted(&target.table.name.to_string()),
        map(&parent),
    );
    let version = target.table.columns.iter().find(|column| column.name.ends_with("version") && is_text(column));
    let version =
        version.filter(|column| column.not_null || target.unique.iter().any(|key| key.contains(&column.name)));
    if let Some(version) = version {
        let known =
            around.versions.iter().find(|(table, column, _)| *table == target.table.sql() && *column == version.name);
        let word = known.map_or("v1", |(_, _, word)| word.as_str());
        let _ = writeln!(text, "version = {}", map(&[(version.name.clone(), word.to_owned())]));
    }
    let mut columns: Vec<(String, String)> = Vec::new();
    let is_parent = |name: &str| parent.iter().any(|(column, _)| column == name);
    let is_free = |column: &&Column| !is_parent(&column.name);
    for (column, value) in [(index_of(target, reference), "{chunk.index}"), (chunk_text(target), "{chunk.text}")] {
        columns.extend(column.filter(is_free).map(|column| (column.name.clone(), value.to_owned())));
    }
    for (names, value) in [(TOKENS, "{chunk.tokens}"), (PAGES, "{chunk.page}"), (SECTIONS, "{chunk.section}")] {
        let names: Vec<&str> = names.iter().copied().filter(|name| !is_parent(name)).collect();
        columns.extend(one(target, &names).map(|column| (column.name.clone(), value.to_owned())));
    }
    columns.extend(vector(target).map(|column| (column.name.clone(), "{chunk.vector}".to_owned())));
    // What must have a value, and is the source's as well; not what tells the chunks apart, which a default has to give.
    let tells_apart = |name: &String| target.unique.iter().any(|key| key.as_slice() == std::slice::from_ref(name));
    for column in
        target.table.columns.iter().filter(|column| column.not_null && !column.has_default && !column.generated)
    {
        let written = columns.iter().chain(&parent).any(|(name, _)| *name == column.name);
        if !written
            && !tells_apart(&column.name)
            && version.is_none_or(|version| version.name != column.name)
            && from.table.column(&column.name).is_some()
        {
            columns.push((column.name.clone(), braces(&column.name)));
        }
    }
    let _ = writeln!(text, "columns = {}", map(&columns));
    counts(from, &mut text);
    Proposal { name: name_of(from), dimensions, file, toml: text, status: status(from) }
}

/// A vector on the row itself.
fn row(table: &Surveyed) -> Option<Proposal> {
    let vector = vector(table)?;
    if table.key.is_empty() || (!has_content(table) && any_texts(table).is_empty() && text_of(table, TITLES).is_none())
    {
        return None;
    }
    let mut text = String::new();
    other_vectors(table, &mut text);
    let needs = format!("\"{}\" is null", vector.name.replace('"', "\"\""));
    let why = format!("{}: one vector on the row itself, for rows that have none", table.table.name);
    let file = source(table, &why, Some(&needs), &mut text);
    let _ = write!(
        text,
        "[pipelines.{NAME}.chunks]\nwhole = true\nlonger = \"mean\"                              # a text longer than the model takes: fail, cut or mean\n\
         [pipelines.{NAME}.target]\ncolumns = {}\n",
        map(&[(vector.name.clone(), "{chunk.vector}".to_owned())]),
    );
    counts(table, &mut text);
    Some(Proposal { name: name_of(table), dimensions: dimensions(vector), file, toml: text, status: status(table) })
}

/// A table of ours, for an application that has nowhere to write to.
fn made(table: &Surveyed, around: &Surroundings) -> Option<Proposal> {
    if table.key.is_empty() || usual_texts(table).is_empty() {
        return None;
    }
    let mut text = String::new();
    let why = format!("{}: vectors go to a table that is made for them", table.table.name);
    let file = source(table, &why, None, &mut text);
    let parent: Vec<(String, String)> =
        table.key.iter().map(|column| (longer("source_", column, ""), braces(column))).collect();
    let TableName { schema, table: name } = &table.table.name;
    let made = TableName { schema: schema.clone(), table: longer("", name, "_vectors") }.to_string();
    let owner = one(table, TENANTS).filter(|column| column.type_name == "uuid");
    let mut columns: Vec<(String, String)> =
        owner.iter().map(|column| (column.name.clone(), format!("{{{}}}", column.name))).collect();
    for (column, value) in [
        ("chunk_index", "{chunk.index}"),
        ("content", "{chunk.text}"),
        ("token_count", "{chunk.tokens}"),
        ("embedding", "{chunk.vector}"),
    ] {
        columns.push((column.to_owned(), value.to_owned()));
    }
    cut(None, &mut text);
    let _ = write!(
        text,
        "[pipelines.{NAME}.target]\ntable = {}\ncreate = true\nparent = {}\ncolumns = {}\n",
        quoted(&made),
        map(&parent),
        map(&columns),
    );
    if let Some(owner) = owner.filter(|_| around.has_uid) {
        let policy = format!("auth.uid() = \"{}\"", owner.name.replace('"', "\"\""));
        let _ = writeln!(text, "policy = {}                # who may read the rows", quoted(&policy));
    }
    Some(Proposal { name: name_of(table), dimensions: None, file, toml: text, status: None })
}
