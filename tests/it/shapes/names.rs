//! Names that nobody should give and Postgres takes, and how a person writes them in SQL and in `workers.toml`.

use proptest::prelude::*;

/// Pieces of names: what quotes, templates, maps, the environment, TOML, SQL, `format` and regular expressions read as marks.
const PIECES: &[&str] = &[
    "\"",
    "'",
    " ",
    ".",
    "{",
    "}",
    "{{",
    "|",
    "?",
    "$",
    "$1",
    "${X}",
    "$${",
    "\\",
    "\\n",
    "%",
    "%I",
    "$$",
    "$gristmill$",
    "\t",
    "\n",
    "(",
    ")",
    "[",
    "]",
    ",",
    "#",
    ";",
    ":",
    "::",
    "--",
    "/*",
    "*/",
    "-",
    "=",
    "é",
    "ß",
    "日本",
    "😀",
    "\u{200b}",
    "A",
    "b",
    "Name",
    "0",
    "9x",
    "_",
    "job.",
    "chunk.",
    "source.",
    "given.",
    "asked.",
    "value.",
    "gm_k1",
];

/// Words that mean something to Postgres, to PL/pgSQL or to our own statements.
const WORDS: &[&str] = &[
    "select",
    "user",
    "order",
    "table",
    "group",
    "from",
    "where",
    "null",
    "true",
    "default",
    "current_user",
    "tenant",
    "source",
    "value",
    "chunk",
    "asked",
    "given",
    "job",
    "queue",
    "seen",
    "slice",
    "vector",
    "nth",
    "place",
    "key",
    "row",
    "row_values",
    "old",
    "new",
    "old_row",
    "new_row",
    "found",
    "tg_op",
    "tg_name",
    "state",
    "id",
    "relation",
    "word",
    "c0",
    "p0",
    "oid",
    "text",
    "index",
    "fingerprint",
    "is_file",
    "in_set",
    "needs",
    "skip",
    "date",
    "Select",
    "ID",
    "__proto__",
    "else",
];

/// The longest that Postgres takes, in bytes.
const LONGEST: usize = 63;

/// One name.
pub fn name() -> impl Strategy<Value = String> {
    let pieces = |count| prop::collection::vec(prop::sample::select(PIECES), count);
    prop_oneof![
        3 => pieces(1..6).prop_map(|pieces| pieces.concat()),
        2 => prop::sample::select(WORDS).prop_map(str::to_owned),
        1 => pieces(30..40).prop_map(|pieces| pieces.concat()),
        1 => "[a-zA-Z][a-zA-Z0-9_]{0,9}",
    ]
    .prop_map(cut)
}

/// A name as Postgres would cut it, never within a letter.
pub fn cut(mut name: String) -> String {
    while name.len() > LONGEST {
        name.pop();
    }
    name
}

/// A name in SQL.
pub fn sql(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A literal in SQL.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name in `workers.toml`: as it is, where it may be.
pub fn written(name: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || " _-$%'\\()[],#=:/".contains(letter);
    if name.chars().all(plain) && name.trim() == name { name.to_owned() } else { sql(name) }
}

/// A name in the braces of a template.
pub fn braces(name: &str) -> String {
    if name == "tenant" { "{\"tenant\"}".to_owned() } else { format!("{{{}}}", written(name)) }
}

/// A string of TOML as a key: nothing is filled in there.
pub fn key(text: &str) -> String {
    // What JSON escapes, TOML reads alike.
    serde_json::Value::from(text).to_string()
}

/// A string of TOML as a value, in which `${` means the environment.
pub fn value(text: &str) -> String {
    key(&text.replace("${", "$${"))
}
