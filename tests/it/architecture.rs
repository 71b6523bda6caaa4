//! Reads every import of `src` and keeps the floors of the map in `lib.rs`: who may know whom, and what only one module does.

use std::fs;
use std::path::{Path, PathBuf};

use scan::{Token, Tree};

mod scan;

/// The floors, as in the map of `lib.rs`. A module imports from lower floors only.
const FLOORS: &[(&str, u8)] = &[
    ("main", 7),
    ("cli", 7),
    ("app", 6),
    ("worker", 5),
    ("console", 5),
    ("jobs", 4),
    ("batch", 3),
    ("db", 2),
    ("extract", 2),
    ("chunk", 2),
    ("providers", 2),
    ("files", 2),
    ("embedded", 2),
    ("config", 1),
    ("telemetry", 1),
    ("net", 1),
    ("failpoint", 1),
    ("domain", 0),
];

/// Neighbours that know each other all the same, with the reason.
const NEIGHBOURS: &[(&str, &str, &str)] = &[("main", "cli", "the binary is nothing but the call of the command line")];

/// Files that may exceed [`LONGEST`], with the reason.
const LONG: &[(&str, &str)] = &[];

/// Most lines of a source file.
const LONGEST: usize = 500;

/// What only one module may name.
struct Owned {
    module: &'static str,
    what: &'static str,
    names: fn(&[&str]) -> bool,
}

const OWNED: &[Owned] = &[
    Owned { module: "worker", what: "apalis", names: |path| path[0].starts_with("apalis") },
    Owned { module: "db", what: "queries of sqlx", names: names_a_query },
    // Leases, dates of rows, prices and webhooks go by the database's clock; a person's commands may mean this machine's.
    Owned { module: "cli", what: "this machine's clock", names: reads_the_clock },
    Owned { module: "net", what: "building an HTTP client", names: builds_a_client },
];

fn names_a_query(path: &[&str]) -> bool {
    path[0] == "sqlx"
        && path[1..]
            .iter()
            .any(|name| name.starts_with("query") || ["raw_sql", "AssertSqlSafe", "QueryBuilder"].contains(name))
}

fn reads_the_clock(path: &[&str]) -> bool {
    path.iter().any(|name| ["SystemTime", "now_utc", "now_local", "UtcDateTime"].contains(name))
}

fn builds_a_client(path: &[&str]) -> bool {
    // Whoever holds one was given it, by the name that `net` has for it.
    ["hyper", "hyper_util", "h2", "ureq", "curl", "isahc"].contains(&path[0])
        || path[0] == "reqwest"
            && path[1..].iter().any(|name| ["Client", "ClientBuilder", "blocking", "*"].contains(name))
        || path.contains(&"TcpStream")
        || path.contains(&"ClientBuilder")
        || path.windows(2).any(|pair| pair[0] == "Client" && ["new", "builder", "default"].contains(&pair[1]))
        || path == ["reqwest", "get"]
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// Everything that is wrong with one file, whose path is below `src`.
fn faults(file: &str, text: &str) -> Vec<String> {
    let place = scan::module_path(file);
    let module = place.first().map_or("lib", String::as_str);
    let tree = Tree::read(text);
    let mut faults = Vec::new();
    for path in &tree.paths {
        let names: Vec<&str> = path.names.iter().map(String::as_str).collect();
        if let Some(fault) = scan::top(&place, path).and_then(|top| import_fault(module, top)) {
            faults.push(format!("src/{file}:{}: {fault}", path.line));
        }
        for owned in OWNED.iter().filter(|owned| owned.module != module && (owned.names)(&names)) {
            faults.push(format!("src/{file}:{}: {} is the business of `{}`", path.line, owned.what, owned.module));
        }
    }
    let statements =
        tree.tokens.iter().filter(|token| module != "db" && matches!(token, Token::Text { text, .. } if is_sql(text)));
    faults.extend(statements.map(|token| format!("src/{file}:{}: SQL is the business of `db`", token.line())));
    faults.dedup();
    faults
}

/// What is wrong with `module` naming `top`, if anything is.
fn import_fault(module: &str, top: &str) -> Option<String> {
    if top == module || module == "lib" {
        return None;
    }
    let Some(own) = floor(module) else {
        return Some(format!("`{module}` stands on no floor"));
    };
    let Some(other) = floor(top) else {
        return Some(format!("`{module}` (floor {own}) names `{top}`, which stands on no floor"));
    };
    let allowed = other < own || NEIGHBOURS.iter().any(|(from, to, _)| (*from, *to) == (module, top));
    let way = if other == own { "sideways" } else { "upward" };
    (!allowed).then(|| format!("`{module}` (floor {own}) names `{top}` (floor {other}): {way}"))
}

/// Whether a text is a statement, not a sentence that happens to begin like one.
fn is_sql(text: &str) -> bool {
    let folded = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let starts = |words: &str| folded.starts_with(words);
    starts("insert into ")
        || starts("delete from ")
        || starts("select ") && folded.contains(" from ")
        || starts("select ") && folded.contains('(')
        || starts("update ") && folded.contains(" set ")
        || starts("with ") && folded.contains(" as (")
        || ["create ", "alter ", "drop "].iter().any(|verb| starts(verb))
            && ["table ", "schema ", "index ", "function ", "trigger ", "database ", "role ", "extension "]
                .iter()
                .any(|kind| folded.contains(kind))
}

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file: its path below `src`, with slashes, and its text.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("src can be read") {
            let path = entry.expect("src can be read").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let (root, mut found) = (source_folder(), Vec::new());
    walk(&root, &mut found);
    found.sort();
    let name = |path: &Path| {
        let below = path.strip_prefix(&root).expect("it was found below src");
        below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
    };
    found.iter().map(|path| (name(path), fs::read_to_string(path).expect("sources are UTF-8"))).collect()
}

#[test]
fn imports_go_downward_only() {
    let faults: Vec<String> = sources().iter().flat_map(|(file, text)| faults(file, text)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn every_module_is_on_the_map() {
    let map = fs::read_to_string(source_folder().join("lib.rs")).expect("lib.rs can be read");
    let declared: Vec<&str> =
        map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).chain(["main"]).collect();
    for name in &declared {
        let row = FLOORS.iter().find(|(module, _)| module == name);
        let (_, floor) = row.unwrap_or_else(|| panic!("`{name}` is in lib.rs, but has no floor here"));
        let line = map.lines().find(|line| line.starts_with(&format!("//! | {floor} |")));
        assert!(
            line.is_some_and(|line| line.contains(&format!("`{name}`"))),
            "the map of lib.rs lacks `{name}` on floor {floor}"
        );
    }
    for (name, _) in FLOORS {
        assert!(declared.contains(name), "`{name}` has a floor here, but is not in lib.rs");
    }
}

#[test]
fn long_files_have_a_reason() {
    for (file, text) in sources() {
        let lines = text.lines().count();
        match LONG.iter().find(|(name, _)| *name == file) {
            None => {
                assert!(lines <= LONGEST, "src/{file} has {lines} lines: split it, or list it in LONG with a reason");
            }
            Some(_) => assert!(lines > LONGEST, "src/{file} has {lines} lines: it needs no place in LONG any more"),
        }
    }
    for (name, _) in LONG {
        assert!(source_folder().join(name).is_file(), "{name} is listed in LONG and does not exist");
    }
}

/// Made-up sources, and what must be said of them.
#[test]
fn bad_sources_are_caught() {
    let upward = "`db` (floor 2) names `jobs` (floor 4): upward";
    let sideways = "`db` (floor 2) names `extract` (floor 2): sideways";
    let cases: &[(&str, &str, &[&str])] = &[
        ("db/jobs.rs", "use crate::jobs::run;", &[&format!("src/db/jobs.rs:1: {upward}")]),
        (
            "db/mod.rs",
            "\nuse crate::{config::{Config, Sql}, extract as x};",
            &[&format!("src/db/mod.rs:2: {sideways}")],
        ),
        (
            "db/mod.rs",
            "use crate::{\n    domain::JobId,\n    jobs::{run, JobError},\n};",
            &[&format!("src/db/mod.rs:3: {upward}")],
        ),
        (
            "db/mod.rs",
            "fn f() -> crate::jobs::X {\n    g::<crate::extract::Y>() }",
            &[&format!("src/db/mod.rs:1: {upward}"), &format!("src/db/mod.rs:2: {sideways}")],
        ),
        ("db/mod.rs", "use super::jobs;", &[&format!("src/db/mod.rs:1: {upward}")]),
        ("db/a/b.rs", "use super::super::super::jobs::run;", &[&format!("src/db/a/b.rs:1: {upward}")]),
        ("db/a.rs", "mod inner { use super::super::super::{jobs}; }", &[&format!("src/db/a.rs:1: {upward}")]),
        ("db/mod.rs", "use gristmill::jobs;", &[&format!("src/db/mod.rs:1: {upward}")]),
        ("db/mod.rs", "use crate::*;", &["src/db/mod.rs:1: `db` (floor 2) names `*`, which stands on no floor"]),
        ("new/mod.rs", "use crate::domain::JobId;", &["src/new/mod.rs:1: `new` stands on no floor"]),
        ("cli/mod.rs", "use apalis::prelude::*;", &["src/cli/mod.rs:1: apalis is the business of `worker`"]),
        ("jobs/a.rs", "fn f() { ::sqlx::query!(); }", &["src/jobs/a.rs:1: queries of sqlx is the business of `db`"]),
        ("jobs/a.rs", "use sqlx::{PgPool, query_as};", &["src/jobs/a.rs:1: queries of sqlx is the business of `db`"]),
        ("jobs/a.rs", "const Q: &str = r#\"select id\n from t\"#;", &["src/jobs/a.rs:1: SQL is the business of `db`"]),
        (
            "worker/a.rs",
            "fn f() { OffsetDateTime::now_utc() }",
            &["src/worker/a.rs:1: this machine's clock is the business of `cli`"],
        ),
        (
            "files/a.rs",
            "fn f() { reqwest::Client::builder() }",
            &["src/files/a.rs:1: building an HTTP client is the business of `net`"],
        ),
        (
            "files/a.rs",
            "use reqwest::{Client, StatusCode};",
            &["src/files/a.rs:1: building an HTTP client is the business of `net`"],
        ),
        (
            "files/a.rs",
            "use hyper_util::client::legacy;",
            &["src/files/a.rs:1: building an HTTP client is the business of `net`"],
        ),
        (
            "files/a.rs",
            "fn f() { tokio::net::TcpStream::connect(\"a:1\") }",
            &["src/files/a.rs:1: building an HTTP client is the business of `net`"],
        ),
        (
            "files/a.rs",
            "fn f() { Client::new() }",
            &["src/files/a.rs:1: building an HTTP client is the business of `net`"],
        ),
    ];
    for (file, text, expected) in cases {
        assert_eq!(faults(file, text), *expected, "{file}: {text}");
    }
}

/// Made-up sources that are right, and look wrong to a careless reader.
#[test]
fn good_sources_pass() {
    let cases = [
        ("db/mod.rs", "use crate::{config::Config, domain::*};"),
        ("db/mod.rs", "// use crate::jobs;\n/* crate::jobs /* crate::cli */ crate::app */ /// [`crate::app`]\n"),
        (
            "db/mod.rs",
            "const A: &str = \"crate::jobs \\\" crate::app\"; const B: char = '\"'; fn f<'a>(x: &'a str) {} // crate::jobs",
        ),
        ("db/mod.rs", "const A: &str = r##\"use \"# crate::jobs\"##; const B: &[u8] = b\"crate::app\";"),
        ("db/a/b.rs", "use super::super::jobs; use super::extract; pub(crate) fn f() {} pub(in crate::db) fn g() {}"),
        (
            "db/mod.rs",
            "#[cfg(test)]\nmod tests { use crate::jobs::run; fn f() { if true {} } }\n#[cfg(test)] use crate::app;",
        ),
        ("db/tests.rs", "use crate::jobs;"),
        ("worker/mod.rs", "use apalis::prelude::*; use crate::jobs;"),
        ("db/mod.rs", "fn f() { sqlx::query(\"select 1 from t\"); self.jobs::<u8>(); x.query(); }"),
        ("net.rs", "fn f() { reqwest::Client::builder() }"),
        ("main.rs", "fn main() { gristmill::cli::run(); gristmill::extract::child(); }"),
        ("cli/mod.rs", "const A: &str = \"select a pipeline, or update it\"; const B: &str = \"drop that\";"),
    ];
    for (file, text) in cases {
        assert_eq!(faults(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}
