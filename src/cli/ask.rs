//! Which jobs: the filters that several commands share, and a person's yes.

use std::io::{self, IsTerminal as _, Write as _};

use clap::builder::PossibleValuesParser;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::config::{self, Config};
use crate::db;
use crate::db::operate::{self, Filter};
use crate::domain::{ErrorKind, JobState, SourceKey};

use super::failure::Failure;

/// Filters over jobs; each that is given must hold.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Which {
    /// Numbers of jobs
    pub ids: Vec<i64>,
    /// Of this pipeline
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
    /// Of this tenant
    #[arg(long)]
    pub tenant: Option<String>,
    /// In one of these states; may be given several times
    #[arg(long, value_parser = PossibleValuesParser::new(JobState::ALL.map(JobState::word)))]
    pub state: Vec<String>,
    /// With this kind of error
    #[arg(long, value_parser = PossibleValuesParser::new(ErrorKind::ALL.map(ErrorKind::word)))]
    pub kind: Option<String>,
    /// Of the row with this key; of several columns a JSON array of strings
    #[arg(long, value_parser = key)]
    pub key: Option<SourceKey>,
    /// Finished (or opened) since: a length of time like 2h or 30d, or a moment like 2026-01-01T12:00:00Z
    #[arg(long, value_parser = since, value_name = "WHEN")]
    pub since: Option<OffsetDateTime>,
}

impl Which {
    pub(super) fn filter(&self) -> Filter {
        Filter {
            ids: (!self.ids.is_empty()).then(|| self.ids.clone()),
            pipeline: self.pipeline.clone(),
            tenant: self.tenant.clone(),
            states: (!self.state.is_empty()).then(|| self.state.clone()),
            error_kind: self.kind.clone(),
            key: self.key.clone(),
            since: self.since,
        }
    }

    /// Spells the key as the job has it that is meant.
    pub(super) async fn spell(&mut self, config: &Config, pool: &PgPool) -> Result<(), Failure> {
        let Some(key) = &self.key else { return Ok(()) };
        let known = config.pipelines.iter().map(|pipeline| &pipeline.name);
        for pipeline in known.filter(|name| self.pipeline.as_ref().is_none_or(|asked| asked == *name)) {
            // One that cannot be a key of this pipeline may be one of the next.
            let Ok(written) = written(config, pool, pipeline, key).await else { continue };
            if has_job(pool, pipeline, &written).await? {
                self.key = Some(written);
                break;
            }
        }
        Ok(())
    }

    /// Refuses pipelines and numbers that nothing has: a typo must not look like an answer.
    pub(super) async fn exist(&self, pool: &PgPool) -> Result<(), Failure> {
        if let Some(pipeline) = &self.pipeline {
            registered(pool, pipeline).await?;
        }
        let unknown = operate::unknown(pool, &self.ids).await?;
        if unknown.is_empty() {
            return Ok(());
        }
        let unknown: Vec<String> = unknown.iter().map(ToString::to_string).collect();
        Err(Failure::Failed(format!("there is no job {}; nothing was changed", unknown.join(", "))))
    }

    /// Refuses to mean every job there is.
    pub(super) fn some(&self) -> Result<(), Failure> {
        let Self { ids, pipeline, tenant, state, kind, key, since } = self;
        let any = !ids.is_empty() || !state.is_empty() || since.is_some() || key.is_some();
        if any || pipeline.is_some() || tenant.is_some() || kind.is_some() {
            return Ok(());
        }
        let ways = "give numbers of jobs, or one of --pipeline, --tenant, --state, --kind, --key, --since";
        Err(Failure::Usage(format!("this would mean every job: {ways}")))
    }
}

/// Refuses a pipeline that this database does not know.
pub(super) async fn registered(pool: &PgPool, pipeline: &str) -> Result<(), Failure> {
    let known = db::pipelines::all(pool).await?;
    if known.iter().any(|registered| registered.name == pipeline) {
        return Ok(());
    }
    let names: Vec<String> = known.into_iter().map(|registered| registered.name).collect();
    let names = if names.is_empty() { "none yet".to_owned() } else { names.join(", ") };
    Err(Failure::Usage(format!(
        "no pipeline {pipeline} is registered in this database, which knows {names}; a worker registers the pipelines of its \
         configuration when it starts"
    )))
}

/// A key as its row's job is known by, however it was spelled; refused where no row of the pipeline can have it. Whether there is such a row
/// is for the worker to find out, and a pipeline of another configuration is not known here: its keys stay as they are.
pub(super) async fn written(
    config: &Config,
    pool: &PgPool,
    pipeline: &str,
    key: &SourceKey,
) -> Result<SourceKey, Failure> {
    let Some(pipeline) = config.pipeline(pipeline) else { return Ok(key.clone()) };
    let written = db::app::written_key(&mut *pool.acquire().await?, pipeline, key).await?;
    written.map_err(|why| Failure::Failed(format!("{key} cannot be a key of {}: {why}", pipeline.name)))
}

/// Whether a pipeline has a job of exactly that key.
pub(super) async fn has_job(pool: &PgPool, pipeline: &str, key: &SourceKey) -> sqlx::Result<bool> {
    Ok(operate::traces_of_keys(pool, pipeline, std::slice::from_ref(key)).await?.jobs > 0)
}

/// A row's key: the value of its one column, or a JSON array of several.
pub(super) fn key(text: &str) -> Result<SourceKey, String> {
    if !text.starts_with('[') {
        return Ok(SourceKey(vec![text.to_owned()]));
    }
    let parts: Vec<serde_json::Value> =
        serde_json::from_str(text).map_err(|error| format!("is not a JSON array of the key's columns: {error}"))?;
    let text = |part: serde_json::Value| match part {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(SourceKey(parts.into_iter().map(text).collect()))
}

/// `2h` ago, or a moment.
pub(super) fn since(text: &str) -> Result<OffsetDateTime, String> {
    match config::duration(text) {
        Ok(length) => {
            let length = time::Duration::try_from(length).map_err(|_| "is too long ago".to_owned())?;
            OffsetDateTime::now_utc().checked_sub(length).ok_or_else(|| "is too long ago".to_owned())
        }
        Err(_) => config::moment(text).map_err(|_| {
            "is neither a length of time like 2h or 30d nor a moment like 2026-01-01T12:00:00Z".to_owned()
        }),
    }
}

/// Asks a person at a terminal; a program has to say `--yes`.
pub(super) fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage("nobody is there to ask: say --yes (or --dry-run to look only)".to_owned()));
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::Failed("nothing was changed".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_one_value_or_an_array() {
        assert_eq!(key("a,b"), Ok(SourceKey(vec!["a,b".to_owned()])));
        assert_eq!(key(r#"["a", 7]"#), Ok(SourceKey(vec!["a".to_owned(), "7".to_owned()])));
        assert!(key("[1").is_err());
    }

    #[test]
    fn since_is_a_length_or_a_moment() {
        let hour = OffsetDateTime::now_utc() - since("1h").unwrap();
        assert!((3_599..3_602).contains(&hour.whole_seconds()), "{hour}");
        assert_eq!(since("2026-01-01").unwrap().unix_timestamp(), 1_767_225_600);
        assert!(since("yesterday").unwrap_err().contains("2h"));
    }

    #[test]
    fn a_filter_without_a_word_is_refused() {
        assert!(Which::default().some().is_err());
        assert!(Which { tenant: Some(String::new()), ..Which::default() }.some().is_ok());
    }
}
