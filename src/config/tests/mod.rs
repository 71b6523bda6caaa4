//! The file as a whole: what is read, and the exact words for what is not.

mod environment;
mod generation;
mod names;
mod pipelines;
mod settings;
mod shipped;
mod speech;
mod targets;

use super::identifier::NOT_A_NAME;
use super::*;

fn environment(name: &str) -> Option<String> {
    match name {
        "DATABASE_URL" => Some("postgres://user:hunter2@localhost/app".to_owned()),
        name if name.starts_with("GRISTMILL_") || name == "UNSET" => None,
        name if name.ends_with("_URL") => Some("https://example.org".to_owned()),
        "MANY" => Some("hunter2".to_owned()),
        "EIGHT" => Some("8".to_owned()),
        name => Some(format!("the {name}")),
    }
}

fn read(text: &str) -> Config {
    let config = Config::read("workers.toml", text, &environment);
    config.unwrap_or_else(|misfits| panic!("{text}\n{}", rendered(&misfits).join("\n")))
}

fn rendered(misfits: &[ConfigError]) -> Vec<String> {
    misfits.iter().map(ConfigError::to_string).collect()
}

/// What is wrong with a text, without the name of the file.
fn misfits(text: &str) -> Vec<String> {
    let misfits = Config::read("", text, &environment).err().unwrap_or_default();
    rendered(&misfits).iter().map(|misfit| misfit.trim_start_matches(':').to_owned()).collect()
}

fn check(text: &str, expected: &[&str]) {
    assert_eq!(misfits(text), expected, "\n{text}");
}

/// A file that holds, with one pipeline of each shape.
const GOOD: &str = r#"
stores.files = { kind = "local", root = "files" }
providers.openai = { kind = "openai", key = "sk-hunter2" }
models.small = { provider = "openai", name = "text-embedding-3-small", dimensions = 1536 }
[[prices]]
model = "small"
usd = 0.00000002
from = 2026-01-01
[pipelines.documents]
model = "small"
[pipelines.documents.source]
table = "public.documents"
key = ["id"]
text = "{content}"
[pipelines.documents.file]
store = "files"
path = "{path}"
within = "{owner}/"
[pipelines.documents.chunks]
embed = "{title}\n{chunk.text}"
[pipelines.documents.target]
table = "chunks"
parent = { document_id = "{id}" }
columns = { place = "{chunk.index}", embedding = "{chunk.vector}" }
[pipelines.documents.status]
column = "status"
words = { skipped = "" }
[pipelines.documents.write]
pages = "{job.pages}"
[pipelines.notes]
model = ["small"]
source = { table = "notes", key = ["id"], text = "{body}" }
chunks = { whole = true }
target = { columns = { embedding = "{chunk.vector}" } }
"#;

/// What is wrong with the good file after one change.
fn check_change(from: &str, to: &str, expected: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    check(&GOOD.replacen(from, to, 1), expected);
}
