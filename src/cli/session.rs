//! What every command starts from: the configuration, the database, and how results are printed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use serde::Serialize;
use sqlx::PgPool;

use crate::app;
use crate::config::{self, Config, ConfigError};
use crate::db;
use crate::db::app::{Plan, Purpose};

use super::failure::Failure;
use super::show;

/// The global options.
#[derive(Debug)]
pub(super) struct Session {
    pub config: Option<PathBuf>,
    pub json: bool,
}

/// What a command does with a pipeline's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// Reads or writes rows of both.
    Both,
    /// Asks the source alone: the target may not be there yet.
    Source,
    /// Writes statements about the source, and looks at no row.
    Statements,
}

/// How a target comes to be.
const MAKERS: &str = "start a worker, or run `gristmill triggers install`, which makes it";

type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

/// How variables begin that set a key of the configuration.
const SETTING: &str = "GRISTMILL__";

/// Marks a value that the environment did not bring.
const UNSET: &str = "unset.invalid";

/// What a missing variable may be for: a secret or an address, a number, a time, a size, an address to listen on.
const STAND_INS: [&str; 6] =
    ["https://unset.invalid", "postgres://unset@unset.invalid/unset", "1", "1s", "1 MiB", "127.0.0.1:1"];

impl Session {
    /// The configuration, with everything it asks of the environment.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let (file, text) = self.file()?;
        Config::read(&file, &text, &environment).map_err(|misfits| Failure::of_config(&misfits))
    }

    /// The configuration with stand-ins for what the environment lacks, and the names of the variables it lacks.
    pub(super) fn config_without_secrets(&self) -> Result<(Config, BTreeSet<String>), Failure> {
        let (file, text) = self.file()?;
        read_without_secrets(&file, &text, &environment).map_err(|misfits| Failure::of_config(&misfits))
    }

    /// The configuration for commands that only need the database: secrets of providers and stores may be missing.
    pub(super) fn config_for_database(&self) -> Result<Config, Failure> {
        match self.config() {
            Ok(config) => Ok(config),
            Err(strict) => match self.config_without_secrets() {
                Ok((config, _)) if !config.database.url.expose().contains(UNSET) => Ok(config),
                _ => Err(strict),
            },
        }
    }

    fn file(&self) -> Result<(String, String), Failure> {
        let found = match &self.config {
            Some(path) => Some(path.as_path()),
            None => Some(Path::new("workers.toml")).filter(|path| path.exists()),
        };
        let Some(path) = found else {
            // Some commands read it twice.
            static NOTED: Once = Once::new();
            NOTED.call_once(|| {
                eprintln!(
                    "note: there is no workers.toml here; the built-in one is used (--config FILE names another)"
                );
            });
            refuse_strangers("the built-in workers.toml", config::DEFAULT)?;
            return Ok(("the built-in workers.toml".to_owned(), config::DEFAULT.to_owned()));
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::Usage(format!("{}: {error}; --config names the configuration", path.display()))
        })?;
        let name = path.display().to_string();
        refuse_strangers(&name, &text)?;
        Ok((name, text))
    }

    /// The pool of a command that needs only the database.
    pub(super) async fn database(&self) -> Result<PgPool, Failure> {
        Ok(app::connect(&self.config_for_database()?).await?)
    }

    /// The whole configuration, the pool, and the plans that were asked for (all, where no name is given).
    pub(super) async fn plans(
        &self,
        names: &[String],
        asks: Asks,
    ) -> Result<(Config, PgPool, Vec<Arc<Plan>>), Failure> {
        let config = self.config()?;
        for name in names {
            known(&config, name)?;
        }
        let pool = app::connect(&config).await?;
        let purpose = if asks == Asks::Statements { Purpose::Announce } else { Purpose::Work };
        let resolved = app::resolve_for(&pool, &config, purpose).await?;
        let wanted = |name: &str| names.is_empty() || names.iter().any(|asked| asked == name);
        let mut unfit: Vec<String> = resolved
            .refused
            .iter()
            .chain(&resolved.left_out)
            .filter(|(name, _)| wanted(name))
            .flat_map(|(_, misfits)| misfits.iter().map(ToString::to_string))
            .collect();
        let (made, missing): (Vec<_>, Vec<_>) = resolved
            .plans
            .into_iter()
            .filter(|plan| wanted(&plan.pipeline.name))
            .partition(|plan| plan.create.is_none() || asks != Asks::Both);
        let not_there =
            |plan: &Arc<Plan>| format!("the target of pipeline {} is not there yet: {MAKERS}", plan.pipeline.name);
        if unfit.is_empty() && made.is_empty() && !missing.is_empty() {
            return Err(Failure::Failed(missing.iter().map(not_there).collect::<Vec<_>>().join("\n")));
        }
        unfit.extend(missing.iter().map(not_there));
        if !unfit.is_empty() && (made.is_empty() || !names.is_empty()) {
            return Err(Failure::Failed(format!(
                "the configuration does not fit this database:\n{}",
                unfit.join("\n")
            )));
        }
        for line in unfit {
            eprintln!("warning: left out: {line}");
        }
        Ok((config, pool, made))
    }

    /// The plan of one pipeline.
    pub(super) async fn plan(&self, name: &str, asks: Asks) -> Result<(Config, PgPool, Arc<Plan>), Failure> {
        let (config, pool, plans) = self.plans(&[name.to_owned()], asks).await?;
        let plan = plans.into_iter().next();
        let plan = plan.ok_or_else(|| Failure::Failed(format!("pipeline {name} does not fit this database")))?;
        Ok((config, pool, plan))
    }

    /// Prints a result: JSON where that was asked for, else what `people` makes of it.
    pub(super) fn print<T: Serialize + ?Sized>(
        &self,
        result: &T,
        people: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::to_string_pretty(result).map_err(|error| Failure::of(&error))?;
            show::out(&json)
        } else {
            show::out(&people(result))
        }
    }
}

/// Refuses what is paid for, now or later, in a copy of a database that nobody has confirmed.
pub(super) async fn refuse_copy(pool: &PgPool) -> Result<(), Failure> {
    if db::pipelines::is_noted_here(pool).await? { Ok(()) } else { Err(app::StartError::Copied.into()) }
}

/// As [`refuse_copy`], and notes which database this is where nobody has.
pub(super) async fn at_home(pool: &PgPool) -> Result<(), Failure> {
    if db::pipelines::is_at_home(pool).await? { Ok(()) } else { Err(app::StartError::Copied.into()) }
}

/// Refuses to open jobs of a pipeline whose new generation nobody has accepted: they would be paid for under it, and be on no bill.
pub(super) async fn accepted(pool: &PgPool, plans: &[Arc<Plan>]) -> Result<(), Failure> {
    for plan in plans {
        let name = &plan.pipeline.name;
        if let Some(rows) = app::new_generation(pool, plan).await? {
            return Err(Failure::Failed(format!(
                "pipeline {name}: {}",
                app::say(name, &app::Readiness::NewGeneration { rows })
            )));
        }
    }
    Ok(())
}

/// Refuses a pipeline that the configuration does not know.
pub(super) fn known(config: &Config, name: &str) -> Result<(), Failure> {
    if config.pipeline(name).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = config.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
    Err(Failure::Usage(format!("{} has no pipeline {name}; it has {}", config.file, names.join(", "))))
}

/// Refuses variables that look like settings and are none: a typo would leave the default in force, unseen.
fn refuse_strangers(file: &str, text: &str) -> Result<(), Failure> {
    let given = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let strangers = strangers(file, text, given);
    if strangers.is_empty() { Ok(()) } else { Err(Failure::Usage(strangers.join("\n"))) }
}

/// What to say of variables that begin like settings and that no setting asks for.
fn strangers(file: &str, text: &str, given: impl Iterator<Item = String>) -> Vec<String> {
    let asked = RefCell::new(BTreeSet::new());
    let noting = |name: &str| {
        if name.starts_with(SETTING) {
            asked.borrow_mut().insert(name.to_owned());
        }
        environment(name)
    };
    // What does not hold is said by whoever reads it for its own sake.
    let _ = Config::read(file, text, &noting);
    let asked = asked.into_inner();
    // A file that is no TOML is asked nothing.
    let unknown = given.filter(|name| name.to_uppercase().starts_with(SETTING) && !asked.contains(name));
    let say = |name: String| {
        let hint = config::suggestion(&name, asked.iter().map(String::as_str));
        format!("the environment variable {name} sets nothing that is known here; {hint}")
    };
    if asked.is_empty() { Vec::new() } else { unknown.map(say).collect() }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Fills each missing variable with the stand-in that leaves the fewest misfits.
pub(super) fn read_without_secrets(
    file: &str,
    text: &str,
    environment: Environment,
) -> Result<(Config, BTreeSet<String>), Vec<ConfigError>> {
    let missing = RefCell::new(BTreeSet::new());
    let noting = |name: &str| {
        let value = environment(name);
        // Settings of the form GRISTMILL__X are asked for whether anybody meant to set them or not.
        if value.is_none() && !name.starts_with(SETTING) && text.contains(&format!("${{{name}}}")) {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    };
    let first = Config::read(file, text, &noting);
    let missing = missing.into_inner();
    if missing.is_empty() {
        return first.map(|config| (config, missing));
    }
    let mut filled: BTreeMap<&str, &str> = missing.iter().map(|name| (name.as_str(), STAND_INS[0])).collect();
    let read = |filled: &BTreeMap<&str, &str>| {
        let with = |name: &str| environment(name).or_else(|| filled.get(name).map(|&value| value.to_owned()));
        Config::read(file, text, &with)
    };
    let misfits = |filled: &BTreeMap<&str, &str>| read(filled).err().map_or(0, |misfits| misfits.len());
    for name in &missing {
        let best = STAND_INS.into_iter().min_by_key(|stand_in| {
            let mut tried = filled.clone();
            tried.insert(name, stand_in);
            misfits(&tried)
        });
        filled.insert(name, best.unwrap_or(STAND_INS[0]));
    }
    read(&filled).map(|config| (config, missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = "[database]\nurl = \"${DATABASE_URL}\"\n[worker]\nslots = \"${SLOTS}\"\npoll = \"${POLL:-3s}\"\n\
                        sweep = \"${SWEEP}\"\n[stores.web]\nkind = \"supabase\"\nurl = \"${WEB}\"\nkey = \"${KEY}\"\nbucket = \"b\"\n";

    #[test]
    fn missing_variables_are_stood_in_for_whatever_they_are() {
        let (config, missing) = read_without_secrets("x.toml", TOML, &|_| None).expect("stand-ins hold");
        assert_eq!(missing.into_iter().collect::<Vec<_>>(), ["DATABASE_URL", "KEY", "SLOTS", "SWEEP", "WEB"]);
        assert!(config.database.url.expose().contains(UNSET));
        assert_eq!((config.worker.slots, config.worker.poll.as_secs()), (1, 3));
    }

    #[test]
    fn variables_that_set_nothing_are_named() {
        let given =
            ["GRISTMILL__WORKER__SLOT", "GRISTMILL__WORKER__SLOTS", "gristmill__worker__slots", "GRISTMILL_LOG"];
        let said = strangers("x.toml", TOML, given.into_iter().map(str::to_owned));
        assert_eq!(
            said,
            [
                "the environment variable GRISTMILL__WORKER__SLOT sets nothing that is known here; did you mean \
                 `GRISTMILL__WORKER__SLOTS`?",
                "the environment variable gristmill__worker__slots sets nothing that is known here; did you mean \
                 `GRISTMILL__WORKER__SLOTS`?",
            ]
        );
    }

    #[test]
    fn real_mistakes_stay_mistakes() {
        let text = TOML.replace("\"b\"", "7");
        let misfits = read_without_secrets("x.toml", &text, &|_| None).expect_err("7 is no name");
        let places: Vec<&str> = misfits.iter().map(|misfit| misfit.place.key.as_str()).collect();
        assert_eq!(places, ["stores.web.bucket"]);
    }
}
