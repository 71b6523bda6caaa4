//! `gristmill init`

mod columns;
mod propose;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sqlx::PgPool;

use crate::app;
use crate::config::{Database, Secret};
use crate::db;
use crate::db::app::{NO_PGVECTOR, Survey, Surveyed, buckets, commonest_word, has_function, survey};

use super::failure::Failure;
use super::session::{self, Session};

use propose::{MODEL, Proposal, Proposed, Surroundings, comment, propose};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gristmill init                     writes ./workers.toml\n  \
                        gristmill init --out - | less      only shows it\n\n\
                        The database is DATABASE_URL. Nothing in it is changed.")]
pub(super) struct Args {
    /// Where to write; - for standard output
    #[arg(long, value_name = "FILE", default_value = "workers.toml")]
    out: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Written {
    file: String,
    /// Pipelines that fit as they are.
    pipelines: Vec<String>,
    /// Those that do not, and are commented out, with why.
    left_out: BTreeMap<String, Vec<String>>,
    /// Those whose status is commented out, with why.
    without_status: BTreeMap<String, Vec<String>>,
    /// Tables that no pipeline is proposed for, with why.
    passed_over: BTreeMap<String, &'static str>,
    /// The folder that the file has for its rows' files, where it is not there: `check` asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    folder_to_make: Option<String>,
    /// Variables that the file names and the environment lacks.
    unset: BTreeSet<String>,
    /// What the file would hold, where it is only shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    toml: Option<String>,
}

/// What does not fit, of each proposal.
#[derive(Debug, Default)]
struct Unfit {
    whole: BTreeMap<String, Vec<String>>,
    /// Where all but the status fits.
    status: BTreeMap<String, Vec<String>>,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let shown = args.out.as_os_str() == "-";
    if !shown && !args.force && args.out.exists() {
        return Err(Failure::Usage(format!(
            "{} is there; --force replaces it, --out names another",
            args.out.display()
        )));
    }
    let url = std::env::var("DATABASE_URL")
        .map_err(|_| Failure::Usage("DATABASE_URL is not set: it names the database to look at".to_owned()))?;
    let pool = db::connect(&Database { url: Secret::new(url), connections: 2 }).await?;
    let mut connection = pool.acquire().await?;
    let Survey { tables, hidden } = survey(&mut connection).await?;
    let around = surroundings(&mut connection, &tables).await?;
    let buckets = buckets(&mut connection).await?;
    drop(connection);
    let Proposed { proposals, mut passed_over } = propose(&tables, &around);
    passed_over.extend(hidden.iter().map(|table| (table.to_string(), "this role may not read it")));
    if proposals.is_empty() {
        return Err(Failure::Failed(nothing(&passed_over)));
    }
    let unfit = unfit(&pool, &proposals).await?;
    let mut text = file(&proposals, &unfit, buckets.as_deref());
    if !passed_over.is_empty() {
        text.push_str("\n# Tables that are not proposed, and why:\n");
        for (table, why) in &passed_over {
            let _ = writeln!(text, "#   {}: {why}", comment(table));
        }
    }
    if !shown {
        std::fs::write(&args.out, &text)
            .map_err(|error| Failure::Failed(format!("{}: {error}", args.out.display())))?;
    }
    let written = Written {
        file: args.out.display().to_string(),
        pipelines: proposals
            .iter()
            .map(|one| one.name.clone())
            .filter(|name| !unfit.whole.contains_key(name))
            .collect(),
        left_out: unfit.whole,
        without_status: unfit.status,
        passed_over,
        folder_to_make: folder_to_make(&proposals, buckets.as_deref()),
        unset: unset(&text),
        toml: shown.then_some(text),
    };
    session.print(&written, |written| match &written.toml {
        Some(toml) => toml.trim_end().to_owned(),
        None => people(written, session.config.is_none()),
    })
}

/// Tables that are named where none of all is of use.
const NAMED: usize = 20;

fn nothing(passed_over: &BTreeMap<String, &'static str>) -> String {
    let counted = super::show::count(passed_over.len() as u64, "table");
    let mut text =
        format!("none of the {counted} looks like a source: a table with a primary key and a text or a file's path");
    for (table, why) in passed_over.iter().take(NAMED) {
        let _ = write!(text, "\n{table}: {why}");
    }
    if passed_over.len() > NAMED {
        let _ = write!(text, "\nand {} more", passed_over.len() - NAMED);
    }
    text
}

/// What has to be set before the file can be read.
fn unset(text: &str) -> BTreeSet<String> {
    let read = session::read_without_secrets("workers.toml", text, &|name| std::env::var(name).ok());
    read.map(|(_, missing)| missing).unwrap_or_default()
}

/// `usual`: nothing else says which file other commands read.
fn people(written: &Written, usual: bool) -> String {
    let mut text = format!("{}: {}", written.file, super::show::count(written.pipelines.len() as u64, "pipeline"));
    if !written.pipelines.is_empty() {
        let _ = write!(text, " ({})", written.pipelines.join(", "));
    }
    for (name, why) in &written.left_out {
        let _ = write!(text, "\ncommented out: {name}: {}", why.join("; "));
    }
    for (name, why) in &written.without_status {
        let _ = write!(text, "\ncommented out: the status of {name}: {}", why.join("; "));
    }
    if !written.passed_over.is_empty() {
        let tables = super::show::count(written.passed_over.len() as u64, "table");
        let _ = write!(text, "\nnot proposed: {tables}, with why in the file's last lines");
    }
    let unset: Vec<&str> = written.unset.iter().map(String::as_str).collect();
    let set = if unset.is_empty() { String::new() } else { format!(", set {}", unset.join(", ")) };
    let make = written.folder_to_make.as_ref();
    let make = make
        .map(|folder| format!(", make the folder {folder} (or set GRISTMILL_FILES to the one where the files are)"));
    let make = make.unwrap_or_default();
    let usual = usual && written.file == "workers.toml";
    let with = if usual { String::new() } else { format!(" --config {}", written.file) };
    let _ = write!(text, "\nread it{set}{make}, then: gristmill migrate{with} && gristmill check{with}");
    text
}

async fn surroundings(connection: &mut sqlx::PgConnection, tables: &[Surveyed]) -> Result<Surroundings, Failure> {
    let mut versions = Vec::new();
    for table in tables {
        for column in table.table.columns.iter().filter(|column| column.name.ends_with("version")) {
            if let Some(word) = commonest_word(connection, &table.table, &column.name).await? {
                versions.push((table.table.sql(), column.name.clone(), word));
            }
        }
    }
    Ok(Surroundings { versions, has_uid: has_function(connection, "auth.uid()").await? })
}

/// Holds each proposal against the language and the database; what does not fit is commented out, with why.
async fn unfit(pool: &PgPool, proposals: &[Proposal]) -> Result<Unfit, Failure> {
    let read = |proposals: &[Proposal]| {
        let text = file(proposals, &Unfit::default(), None);
        session::read_without_secrets("workers.toml", &text, &|_| None)
    };
    let mut unfit = Unfit::default();
    let mut sound = Vec::new();
    for proposal in proposals {
        sound.push(proposal.clone());
        if let Err(misfits) = read(&sound) {
            sound.pop();
            let why = misfits.into_iter().map(|misfit| misfit.message).collect();
            unfit.whole.insert(proposal.name.clone(), why);
        }
    }
    if sound.is_empty() {
        return Ok(unfit);
    }
    let (config, _) = read(&sound).map_err(|misfits| Failure::of_config(&misfits))?;
    for (name, misfits) in app::resolve(pool, &config).await?.refused {
        let of_status = format!("pipelines.{name}.status");
        // The next step makes pgvector.
        let (status, rest): (Vec<_>, Vec<_>) = misfits
            .into_iter()
            .filter(|misfit| misfit.message != NO_PGVECTOR)
            .partition(|misfit| misfit.place.key.starts_with(&of_status));
        let rest: Vec<String> = rest.into_iter().map(|misfit| misfit.message).collect();
        let status: Vec<String> = status.into_iter().map(|misfit| misfit.message).collect();
        match (rest.is_empty(), status.is_empty()) {
            (false, _) => drop(unfit.whole.insert(name, [rest, status].concat())),
            (true, false) => drop(unfit.status.insert(name, status)),
            (true, true) => {}
        }
    }
    Ok(unfit)
}

/// Where files are: Supabase's own storage where the database has it, else a folder, which asks for nothing that may not be set.
fn store(buckets: Option<&[String]>) -> String {
    let Some(buckets) = buckets else {
        return "# Where the files are that rows name: here a folder; or kind = \"s3\" or \"supabase\".\n\
                [stores.files]\nkind = \"local\"\nroot = \"${GRISTMILL_FILES:-./files}\"\n\n"
            .to_owned();
    };
    let named = buckets.iter().find(|bucket| *bucket == "documents").or(buckets.first());
    let bucket =
        named.map_or_else(|| "\"documents\"".to_owned(), |bucket| serde_json::Value::from(bucket.as_str()).to_string());
    let others: Vec<&str> = buckets.iter().filter(|bucket| Some(*bucket) != named).map(String::as_str).collect();
    let others =
        if others.is_empty() { String::new() } else { format!(" # there are also: {}", comment(&others.join(", "))) };
    format!(
        "# Where the files are that rows name: here Supabase Storage; or kind = \"s3\" or \"local\".\n\
         [stores.files]\nkind = \"supabase\"\nurl = \"${{SUPABASE_URL}}\"\nkey = \"${{SUPABASE_SECRET_KEY}}\"\nbucket = {bucket}{others}\n\n",
    )
}

/// The root of the store in a folder, where nothing is there.
fn folder_to_make(proposals: &[Proposal], buckets: Option<&[String]>) -> Option<String> {
    let is_used = buckets.is_none() && proposals.iter().any(|proposal| proposal.file);
    let root = std::env::var("GRISTMILL_FILES").unwrap_or_else(|_| "./files".to_owned());
    (is_used && !Path::new(&root).is_dir()).then_some(root)
}

/// The whole file.
fn file(proposals: &[Proposal], unfit: &Unfit, buckets: Option<&[String]>) -> String {
    let mut text =
        "# Proposed by `gristmill init` from the tables of the database: a beginning, to be read before it runs.\n\
                    # Every key is documented in the repository's workers.toml.\n\
                    [database]\nurl = \"${DATABASE_URL}\"\n\n"
            .to_owned();
    if proposals.iter().any(|proposal| proposal.file) {
        text.push_str(&store(buckets));
    }
    let mut models: Vec<Model> = Vec::new();
    for proposal in proposals {
        let model = model(proposal.dimensions);
        if !models.contains(&model) {
            models.push(model);
        }
    }
    for (provider, lines) in [
        ("openai", "[providers.openai]\nkind = \"openai\"\nkey = \"${OPENAI_API_KEY}\"\n"),
        (
            "embedder",
            "# Any server that speaks OpenAI's language.\n[providers.embedder]\nkind = \"openai\"\nurl = \"${EMBEDDER_URL}\"\nkey = \"${EMBEDDER_KEY}\"\n",
        ),
        (
            "inside",
            "[providers.inside]\nkind = \"local\"                                  # MiniLM, inside the worker\n",
        ),
    ] {
        if models.iter().any(|model| model.provider == provider) {
            text.push_str(lines);
        }
    }
    for model in &models {
        let _ = write!(
            text,
            "[models.{}]\nprovider = \"{}\"\nname = \"{}\"\ndimensions = {}\n",
            model.label, model.provider, model.name, model.dimensions
        );
        if let Some(usd) = model.usd {
            let _ = write!(
                text,
                "[[prices]]\nmodel = \"{}\"\nmeter = \"tokens\"\nusd = \"{usd}\"                         # for one token: see that it still holds\nfrom = 2024-01-01\n",
                model.label
            );
        }
    }
    for proposal in proposals {
        let sections = proposal.toml.replace(MODEL, &model(proposal.dimensions).label);
        let status = proposal.status.as_deref().unwrap_or_default();
        text.push('\n');
        match (unfit.whole.get(&proposal.name), unfit.status.get(&proposal.name)) {
            (Some(why), _) => commented_out(why, &format!("{sections}{status}"), &mut text),
            (None, Some(why)) => {
                text.push_str(&sections);
                commented_out(why, status, &mut text);
            }
            (None, None) => {
                text.push_str(&sections);
                text.push_str(status);
            }
        }
    }
    text
}

fn commented_out(why: &[String], sections: &str, text: &mut String) {
    for line in why {
        let _ = writeln!(text, "# Does not fit yet: {}", comment(line));
    }
    for line in sections.lines() {
        let _ = writeln!(text, "# {line}");
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Model {
    label: String,
    provider: &'static str,
    name: &'static str,
    dimensions: usize,
    /// The provider's list price of a token.
    usd: Option<&'static str>,
}

/// The usual model of so many dimensions.
fn model(dimensions: Option<usize>) -> Model {
    let small = Model {
        label: "small-3".to_owned(),
        provider: "openai",
        name: "text-embedding-3-small",
        dimensions: 1536,
        usd: Some("0.00000002"),
    };
    match dimensions {
        None | Some(1536) => small,
        Some(3072) => Model {
            label: "large-3".to_owned(),
            name: "text-embedding-3-large",
            dimensions: 3072,
            usd: Some("0.00000013"),
            ..small
        },
        Some(384) => Model {
            label: "minilm".to_owned(),
            provider: "inside",
            name: "sentence-transformers/all-MiniLM-L6-v2",
            dimensions: 384,
            usd: None,
        },
        Some(1024) => {
            Model { label: "bge-m3".to_owned(), provider: "embedder", name: "BAAI/bge-m3", dimensions: 1024, usd: None }
        }
        Some(dimensions) => Model {
            label: format!("custom-{dimensions}"),
            provider: "embedder",
            name: "your-model",
            dimensions,
            usd: None,
        },
    }
}
