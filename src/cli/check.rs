//! `gristmill check`

use std::collections::BTreeSet;

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::app::{self, Asked, KnownPrices};
use crate::config::{Config, Model, Provider, ProviderKind};
use crate::db;
use crate::db::app::{Misfit, Plan, TargetPlan};
use crate::embedded::{self, Artifact};
use crate::extract::Extractor;
use crate::files::Files;

use super::failure::Failure;
use super::session::Session;
use super::show;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Providers are asked for their list of models, which is not paid for.\n\nExamples:\n  gristmill check --offline       in CI, without secrets or a database\n  \
                        gristmill check --fix-sql       only the SQL that would mend what does not fit"
)]
pub(super) struct Args {
    /// Only the configuration; what the environment lacks is stood in for
    #[arg(long)]
    offline: bool,
    /// Print only the SQL that would mend what does not fit
    #[arg(long, conflicts_with = "offline")]
    fix_sql: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warning,
    /// The pipeline or the whole worker does not run.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    about: String,
    message: String,
    /// SQL that would mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn new(level: Level, about: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level, about: about.into(), message: message.into(), fix: None }
    }

    fn of(about: &str, misfit: &Misfit, level: Level) -> Self {
        let message = format!("{}: {}", misfit.place, misfit.message);
        Self { level, about: about.to_owned(), message, fix: misfit.fix.clone() }
    }
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let (config, missing) =
        if args.offline { session.config_without_secrets()? } else { (session.config()?, BTreeSet::new()) };
    let mut findings = vec![of_config(&config, &missing)];
    if !args.offline {
        let connected = db::connect(&config.database).await;
        findings.extend(of_machine(&config, &prices(&config, connected.as_ref().ok()).await).await);
        match connected {
            Ok(pool) => findings.extend(of_database(&pool, &config).await?),
            Err(error) => findings.push(Finding::new(Level::Error, "database", said(&error))),
        }
    }
    if args.fix_sql {
        let fixes: BTreeSet<&str> = findings.iter().filter_map(|finding| finding.fix.as_deref()).collect();
        if session.json || !fixes.is_empty() {
            session.print(&fixes, |fixes| fixes.iter().copied().collect::<Vec<_>>().join("\n"))?;
        }
        let is_beyond_sql = |finding: &&Finding| finding.level == Level::Error && finding.fix.is_none();
        let beyond = findings.iter().filter(is_beyond_sql).count() as u64;
        if beyond > 0 {
            let errors = show::count(beyond, "error");
            return Err(
                Failure::Failed(format!("{errors} found that no SQL mends")).and("`gristmill check` says what it is")
            );
        }
    } else {
        session.print(&findings, |findings| findings.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    }
    let fits = findings.iter().all(|finding| finding.level != Level::Error);
    if fits { Ok(()) } else { Err(Failure::Said) }
}

fn line(finding: &Finding) -> String {
    let word = match finding.level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Error => "ERROR",
    };
    let fix = finding.fix.as_ref().map(|fix| format!("\n{:9}to mend it: {fix}", "")).unwrap_or_default();
    format!("{word:9}{}: {}{fix}", finding.about, finding.message)
}

fn said(error: &dyn std::error::Error) -> String {
    Failure::of(error).text().unwrap_or_default()
}

fn with_way_out(error: app::StartError) -> String {
    Failure::from(error).text().unwrap_or_default()
}

fn of_config(config: &Config, missing: &BTreeSet<String>) -> Finding {
    let names: Vec<&str> = config.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
    let counted = show::count(names.len() as u64, "pipeline");
    let mut message = format!("{}: {counted} ({})", config.file, names.join(", "));
    if !missing.is_empty() {
        let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
        message = format!("{message}; the environment lacks {}", missing.join(", "));
    }
    Finding::new(Level::Ok, "configuration", message)
}

/// Without the table, which is what is wrong then, those of the configuration.
async fn prices(config: &Config, pool: Option<&PgPool>) -> KnownPrices {
    let known = match pool {
        Some(pool) => KnownPrices::read(config, pool).await.ok(),
        None => None,
    };
    known.unwrap_or_else(|| KnownPrices::of_file(config))
}

async fn of_machine(config: &Config, prices: &KnownPrices) -> Vec<Finding> {
    let mut findings = of_parser(config).await;
    findings.extend(of_stores(config).await);
    for model in config.models.values() {
        findings.extend(of_price(config, model, prices));
        findings.extend(of_model(config, model));
        let Some(provider) = config.providers.get(&model.provider) else { continue };
        findings.extend(of_provider(provider, model).await);
        findings.extend(of_own_keys(provider, model).await);
        findings.extend(of_allowance(provider, model));
    }
    findings
}

async fn of_parser(config: &Config) -> Vec<Finding> {
    if let Err(message) = Extractor::check(&config.parser) {
        return vec![Finding::new(Level::Error, "parser", message)];
    }
    let settings = app::parser_settings(config);
    let library = settings.pdfium.clone();
    let report = match Extractor::new(settings).probe().await {
        Ok(report) => report,
        Err(error) => return vec![Finding::new(Level::Error, "parser", said(&error))],
    };
    let pdf = match (library, report.pdfium) {
        (Some(path), Some(true)) => Finding::new(Level::Ok, "parser", format!("libpdfium: {}", path.display())),
        (Some(path), _) => {
            let message = format!("libpdfium at {} does not load: PDF is read by unpdf", path.display());
            Finding::new(Level::Warning, "parser", message)
        }
        (None, _) => {
            let way = "no libpdfium: PDF is read by unpdf; run `gristmill fetch pdfium` or set parser.pdfium";
            Finding::new(Level::Warning, "parser", way)
        }
    };
    let layers = [("landlock", report.landlock), ("seccomp", report.seccomp)];
    let active: Vec<&str> = layers.iter().filter(|layer| layer.1).map(|layer| layer.0).collect();
    let active = if active.is_empty() { "limits only".to_owned() } else { format!("{} and limits", active.join(", ")) };
    let open: Vec<&str> =
        report.attempts.iter().filter(|attempt| !attempt.stopped).map(|attempt| attempt.what.as_str()).collect();
    let sandbox = if open.is_empty() {
        Finding::new(Level::Ok, "sandbox", format!("{active}; nothing that was tried went through"))
    } else {
        Finding::new(Level::Warning, "sandbox", format!("{active}; a parser could {}", open.join(", ")))
    };
    let fonts = if report.fonts == 0 {
        Finding::new(
            Level::Warning,
            "fonts",
            "none of parser.fonts is there: PDFs that do not embed their fonts lose text",
        )
    } else {
        Finding::new(Level::Ok, "fonts", format!("{} to read", show::count(report.fonts as u64, "folder")))
    };
    vec![pdf, sandbox, fonts]
}

/// Only stores that a pipeline reads must be there.
async fn of_stores(config: &Config) -> Vec<Finding> {
    let used: BTreeSet<&str> =
        config.pipelines.iter().filter_map(|pipeline| Some(pipeline.file.as_ref()?.store.as_str())).collect();
    let files = match Files::open(&config.stores) {
        Ok(files) => files,
        Err(error) => return vec![Finding::new(Level::Error, "stores", said(&error))],
    };
    let mut findings = Vec::new();
    for name in config.stores.keys() {
        let about = format!("store {name}");
        findings.push(match files.probe(name).await {
            Ok(found) => Finding::new(Level::Ok, about, found),
            Err(error) if used.contains(name.as_str()) => Finding::new(Level::Error, about, said(&error)),
            Err(error) => Finding::new(Level::Warning, about, format!("{} (no pipeline reads it)", said(&error))),
        });
    }
    findings
}

/// Only what somebody is paid for has to have a price.
fn of_price(config: &Config, model: &Model, prices: &KnownPrices) -> Option<Finding> {
    let runs_here = config.providers.get(&model.provider)?.kind.runs_here();
    let message = match prices.of(model, OffsetDateTime::now_utc()) {
        _ if runs_here => return None,
        Some(price) if price.is_configured => return None,
        Some(price) => format!(
            "its price of {} is from the table, no longer in the file, and goes on to count; say another under [[prices]], with the \
             date it holds from",
            show::usd(Some(price.usd))
        ),
        None => "no price is known: usage is booked without a cost; add it under [[prices]]".to_owned(),
    };
    Some(Finding::new(Level::Warning, format!("model {}", model.label), message))
}

fn of_model(config: &Config, model: &Model) -> Option<Finding> {
    let about = format!("model {}", model.label);
    let provider = config.providers.get(&model.provider)?;
    let finding = match &provider.kind {
        // What the provider says of it follows.
        ProviderKind::OpenAi { .. } | ProviderKind::ElevenLabs { .. } => return None,
        ProviderKind::Hash => Finding::new(Level::Ok, about, "lexical, for tests"),
        ProviderKind::Local { folder, .. } => {
            let place = folder.clone().or_else(|| embedded::cached(Artifact::MiniLm));
            match place {
                None => {
                    let message = "not fetched yet: the first run fetches it, or `gristmill fetch minilm`";
                    Finding::new(Level::Warning, about, message)
                }
                Some(place) => match app::check_folder(&place, model) {
                    Err(why) => Finding::new(Level::Error, about, why),
                    Ok(()) => Finding::new(Level::Ok, about, place.display().to_string()),
                },
            }
        }
    };
    Some(finding)
}

/// A text that takes up more than a minute's tokens is sent, and all others wait for it.
fn of_allowance(provider: &Provider, model: &Model) -> Option<Finding> {
    let tokens = provider
        .allowance
        .tokens
        .filter(|&tokens| usize::try_from(tokens).is_ok_and(|tokens| tokens < model.longest))?;
    let message = format!(
        "tokens_per_minute of provider {} is {tokens}, but one text may have {} tokens: all others would wait for minutes after such a \
         text; raise it, or lower the model's longest",
        provider.name, model.longest
    );
    Some(Finding::new(Level::Warning, format!("model {}", model.label), message))
}

/// Asks with the credentials that tenants have of their own; only what is wrong with one is worth a line.
async fn of_own_keys(provider: &Provider, model: &Model) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (tenant, key) in &provider.keys {
        if let Err(why) = app::ask(&provider.with_key(key), model).await {
            let message = format!("{}: provider {}, with the key of tenant {tenant}: {why}", model.name, provider.name);
            findings.push(Finding::new(Level::Error, format!("model {}", model.label), message));
        }
    }
    findings
}

/// Asks the model's provider what can be asked without paying.
async fn of_provider(provider: &Provider, model: &Model) -> Option<Finding> {
    let about = format!("model {}", model.label);
    let asked = app::ask(provider, model).await;
    let (name, provider) = (&model.name, &provider.name);
    let (level, message) = match asked {
        Ok(None) => return None,
        Ok(Some(Asked::Listed)) => {
            (Level::Ok, format!("{name}: provider {provider} takes the credential and lists the model (asked, unpaid)"))
        }
        Ok(Some(Asked::NotListed)) => (
            Level::Warning,
            format!("{name}: provider {provider} takes the credential, but does not list this model (asked, unpaid)"),
        ),
        Ok(Some(Asked::Taken)) => {
            (Level::Ok, format!("{name}: provider {provider} takes the credential (asked, unpaid)"))
        }
        Ok(Some(Asked::Silent)) => (
            Level::Ok,
            format!(
                "{name}: provider {provider} answers, but has no /models: the credential was not tried (nothing unpaid does)"
            ),
        ),
        Err(why) => (Level::Error, format!("{name}: provider {provider}: {why}")),
    };
    Some(Finding::new(level, about, message))
}

async fn of_database(pool: &PgPool, config: &Config) -> Result<Vec<Finding>, Failure> {
    let mut findings = vec![of_versions(pool).await?];
    let mut connection = pool.acquire().await?;
    findings.push(match db::app::vector_version(&mut connection).await? {
        None => {
            let mut finding = Finding::new(Level::Error, "pgvector", "is not in this database");
            finding.fix = Some(db::migrate::CREATE_VECTOR.to_owned());
            finding
        }
        Some(version) if is_older(&version, [0, 8, 7]) => {
            let message =
                format!("{version} has known faults in its HNSW and IVFFlat indexes: update to 0.8.7 or newer");
            Finding::new(Level::Warning, "pgvector", message)
        }
        Some(version) => Finding::new(Level::Ok, "pgvector", version),
    });
    drop(connection);
    let schema = app::check_schema(pool).await;
    let known = schema.is_ok();
    match schema {
        Ok(()) => {
            for (message, fix) in db::app::grants::lacking(&mut *pool.acquire().await?).await? {
                let mut finding = Finding::new(Level::Error, "schema", message);
                finding.fix = Some(fix);
                findings.push(finding);
            }
            findings.extend(of_migrations(pool).await?);
            if !db::pipelines::is_noted_here(pool).await? {
                findings.push(Finding::new(Level::Error, "database", with_way_out(app::StartError::Copied)));
            }
        }
        Err(app::StartError::Database(error)) => return Err(error.into()),
        Err(error) => findings.push(Finding::new(Level::Error, "schema", with_way_out(error))),
    }
    let resolved = app::resolve(pool, config).await?;
    for plan in &resolved.plans {
        if plan.create.is_some() {
            let message = "its target is not there yet: a worker makes it when it starts";
            findings.push(Finding::new(Level::Warning, about(&plan.pipeline.name), message));
        }
        findings.push(Finding::new(Level::Ok, about(&plan.pipeline.name), choices(plan)));
    }
    let late = if known { app::late_words(pool, &resolved.plans).await? } else { Vec::new() };
    if known {
        for plan in &resolved.plans {
            findings.extend(unaccepted(pool, plan).await?);
        }
    }
    let keyless = app::keyless_rows(pool, &resolved.plans).await?;
    let warnings = resolved.warnings.iter().chain(&late).chain(&keyless);
    findings.extend(warnings.map(|warning| Finding::of("configuration", warning, Level::Warning)));
    for (level, unfit) in [(Level::Error, &resolved.refused), (Level::Warning, &resolved.left_out)] {
        for (name, misfits) in unfit {
            findings.extend(misfits.iter().map(|misfit| Finding::of(&about(name), misfit, level)));
        }
    }
    Ok(findings)
}

fn about(pipeline: &str) -> String {
    format!("pipeline {pipeline}")
}

/// What a person has to say before this pipeline runs.
async fn unaccepted(pool: &PgPool, plan: &Plan) -> sqlx::Result<Option<Finding>> {
    let name = &plan.pipeline.name;
    let readiness = match db::pipelines::find(pool, name).await? {
        Some(registered) if registered.generation != plan.generation => {
            Some(app::Readiness::NewGeneration { rows: db::pipelines::embedded(pool, name).await? })
        }
        Some(_) => None,
        None if plan.pipeline.existing.is_none() && plan.create.is_none() && app::has_rows(pool, plan).await? => {
            Some(app::Readiness::SayExisting)
        }
        None => None,
    };
    let readiness = readiness.filter(|readiness| *readiness != app::Readiness::NewGeneration { rows: 0 });
    Ok(readiness.map(|readiness| Finding::new(Level::Error, about(name), app::say(name, &readiness))))
}

/// Nobody else looks at what was applied before the next migration, which would be refused.
async fn of_migrations(pool: &PgPool) -> sqlx::Result<Option<Finding>> {
    let altered: Vec<String> = db::migrate::altered(pool).await?.iter().map(ToString::to_string).collect();
    let which = match altered.as_slice() {
        [] => return Ok(None),
        [one] => format!("version {one} was"),
        [others @ .., last] => format!("versions {} and {last} were", others.join(", ")),
    };
    let message = format!(
        "{which} applied from another text than this binary's, or not to the end (gristmill._sqlx_migrations): the schema may be \
         another than it is taken for, and `gristmill migrate` will refuse; use the build that applied it, or restore what that table held"
    );
    Ok(Some(Finding::new(Level::Warning, "schema", message)))
}

async fn of_versions(pool: &PgPool) -> sqlx::Result<Finding> {
    Ok(Finding::new(Level::Ok, "database", format!("Postgres {}", db::server::version(pool).await?)))
}

/// Every choice that the database decided: a typo among several candidates must not go unseen.
fn choices(plan: &Plan) -> String {
    let names = |columns: &[db::app::ColumnWrite]| {
        columns.iter().map(|write| write.column.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (source, model) = (&plan.source, &plan.model.label);
    let into = |target: &str| {
        let columns = names(plan.target.columns());
        format!("{source} to {target} by model {model} ({} dimensions); columns {columns}", plan.model.dimensions)
    };
    let mut text = match &plan.target {
        TargetPlan::Chunks { table, .. } => into(table),
        TargetPlan::Row { .. } => into(&format!("{source} itself")),
        TargetPlan::None => format!("recordings of {source} transcribed by model {model}"),
    };
    if !plan.write.is_empty() {
        text = format!("{text}; on the row {}", names(&plan.write));
    }
    if let Some(column) = plan.status.as_ref().and_then(|status| status.column.as_ref()) {
        text = format!("{text}; status in {}", column.name);
    }
    if let Some(queue) = &plan.queue {
        text = format!("{text}; asked by {}", queue.table);
    }
    let taken = |choice| match choice {
        (_, 1) => String::new(),
        (nth, of) => format!(" ({nth} of {of} alternatives)"),
    };
    if let Some(limit) = &plan.limit {
        text = format!("{text}; limit {}{}", limit.name, taken(limit.choice));
    }
    for effect in &plan.effects {
        let writes: Vec<&str> = effect.writes.iter().map(String::as_str).collect();
        let writes = if writes.is_empty() { "nothing that the planner sees".to_owned() } else { writes.join(", ") };
        text = format!("{text}; effect {}{}: {writes}", effect.name, taken(effect.choice));
    }
    text
}

fn is_older(version: &str, than: [u32; 3]) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    let parsed: [u32; 3] = std::array::from_fn(|_| numbers.next().unwrap_or(0));
    parsed < than
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(is_older("0.8.5", [0, 8, 7]) && is_older("0.7", [0, 8, 7]));
        assert!(!is_older("0.8.7", [0, 8, 7]) && !is_older("0.10.0", [0, 8, 7]) && !is_older("1.0", [0, 8, 7]));
    }
}
