//! `workers.toml` as it is shipped: the demo and the documentation.

use std::collections::BTreeSet;

use super::super::raw::Reader;
use super::*;

#[test]
fn the_shipped_file_holds_and_configures_the_demo() {
    let config = read(DEFAULT);
    let documents = config.pipeline("documents").unwrap();
    assert_eq!(documents.source.table.to_string(), "public.documents");
    assert_eq!(documents.source.tenant, Some(TenantRule::Name("user_id".to_owned())));
    assert_eq!(documents.chunks.size, ChunkSize::Tokens(200));
    assert_eq!(documents.target.columns.len(), 9);
    assert_eq!(documents.existing, Some(Existing::Backfill));
    assert_eq!(config.models["minilm"].tokenizer, TokenizerKind::Model);
    assert_eq!(config.prices[0].usd, Decimal::ZERO);
    assert!(matches!(&config.stores["samples"].kind, StoreKind::Local { root } if root.ends_with("files")));
}

/// The shipped file with every example in force.
fn every_key() -> String {
    let is_key = |line: &str| {
        let name = line.split_once(" = ").map_or("", |(name, _)| name);
        line.starts_with('[') || !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let line = |line: &'static str| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line);
    DEFAULT.lines().map(|text| line(text).to_owned() + "\n").collect()
}

#[test]
fn every_documented_key_is_known() {
    let mut misfits = misfits(&every_key());
    // Which of these hold depends on how this was built.
    misfits.retain(|misfit| !misfit.contains("cargo feature"));
    assert_eq!(misfits, Vec::<String>::new());
}

#[test]
fn every_known_key_is_documented() {
    let text = every_key();
    let reader = Reader::new("workers.toml", &text, &environment);
    check::sections("workers.toml", reader.parse(&text).unwrap());
    let mut documented = BTreeSet::new();
    shapes(&toml::from_str(&text).unwrap(), "", &mut documented);
    let missing: Vec<_> = reader.asked.borrow().difference(&documented).cloned().collect();
    assert_eq!(missing, Vec::<String>::new());
    assert!(documented.contains("pipelines.*.source.text_by"), "{documented:?}");
}

/// The keys of a table, dotted, with the names that people choose replaced by `*`.
fn shapes(table: &toml::Table, path: &str, into: &mut BTreeSet<String>) {
    for (key, value) in table {
        let named = ["stores.", "providers.", "models.", "limits.", "pipelines."].contains(&path);
        let shape = format!("{path}{}", if named { "*" } else { key });
        let tables = value.as_array().map_or_else(
            || value.as_table().into_iter().collect(),
            |values| values.iter().filter_map(toml::Value::as_table).collect::<Vec<_>>(),
        );
        for table in tables {
            shapes(table, &format!("{shape}."), into);
        }
        into.insert(shape);
    }
}

#[test]
fn every_documented_default_is_the_default() {
    let (shipped, empty) = (read(DEFAULT), read(""));
    assert_eq!(format!("{:?}", shipped.worker), format!("{:?}", empty.worker));
    assert_eq!(shipped.parser, empty.parser);
    assert_eq!(shipped.database.connections, empty.database.connections);
    assert_eq!(shipped.database.url, empty.database.url);
}

#[test]
fn a_stray_key_is_found_in_every_section() {
    let text = every_key();
    let maps = ["columns]", "values]", "write]", "source.text]"];
    let headers = text.match_indices("\n[").map(|(at, _)| at + 1 + text[at + 1..].find('\n').unwrap());
    for end in headers.filter(|&end| !maps.iter().any(|map| text[..end].ends_with(map))) {
        let stray = format!("{}\nstray_one = 1{}", &text[..end], &text[end..]);
        let found = misfits(&stray);
        let line = text[..end].matches('\n').count() + 2;
        assert!(
            found.iter().any(|one| one.starts_with(&format!("{line}: ")) && one.contains("stray_one: is not a key")),
            "{line} {found:?}"
        );
    }
}
