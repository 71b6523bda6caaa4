//! How a command ends when it does not end well.

use std::error::Error;
use std::process::ExitCode;

use crate::app::StartError;
use crate::config::ConfigError;
use crate::db;

/// Why a command failed, told apart by its exit code.
#[derive(Debug)]
pub(super) enum Failure {
    /// Exit code 2: the command line or the configuration is wrong.
    Usage(String),
    /// Exit code 1.
    Failed(String),
    /// Exit code 3: nothing went wrong, and not everything is done.
    Unfinished(String),
    /// Exit code 1; the output says everything.
    Said,
    /// Another, with a way out.
    Hinted { failure: Box<Self>, hint: String },
}

/// What a program is told of a failure that the output says everything about.
const SAID: &str = "standard output says what was found";

impl Failure {
    /// Says it once, on standard error, and gives its exit code. For programs it is one line of JSON, the last there.
    pub(super) fn report(self, json: bool) -> ExitCode {
        let (kind, code) = self.kind();
        if json {
            eprintln!("{}", self.json(kind));
        } else if let Some(text) = self.text() {
            eprintln!("{}: {text}", if code == 3 { kind } else { "error" });
        }
        ExitCode::from(code)
    }

    /// What programs call it, and its exit code.
    fn kind(&self) -> (&'static str, u8) {
        match self {
            Self::Usage(_) => ("usage", 2),
            Self::Failed(_) | Self::Said => ("failed", 1),
            Self::Unfinished(_) => ("unfinished", 3),
            Self::Hinted { failure, .. } => failure.kind(),
        }
    }

    /// All that is left to say.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Usage(message) | Self::Failed(message) | Self::Unfinished(message) => Some(message.clone()),
            Self::Said => None,
            Self::Hinted { failure, hint } => failure.text().map(|text| format!("{text}; {hint}")),
        }
    }

    fn json(&self, kind: &str) -> String {
        let (failure, hint) = match self {
            Self::Hinted { failure, hint } => (&**failure, Some(hint)),
            failure => (failure, None),
        };
        let mut error = serde_json::json!({ "kind": kind, "message": failure.text().as_deref().unwrap_or(SAID) });
        if let Some(hint) = hint {
            error["hint"] = hint.as_str().into();
        }
        serde_json::json!({ "error": error }).to_string()
    }

    /// What the command line's reader says: what is wrong, then what would be right.
    pub(super) fn of_command_line(error: &clap::Error) -> Self {
        let said = error.render().to_string();
        let said = said.trim().trim_start_matches("error: ");
        if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let usage = said.lines().find(|line| line.starts_with("Usage: ")).unwrap_or(said);
            return Self::Usage("the command line ends too early".to_owned()).and(usage);
        }
        match said.split_once("\n\n") {
            Some((message, hint)) => Self::Usage(message.to_owned()).and(hint.trim()),
            None => Self::Usage(said.to_owned()),
        }
    }

    /// Every misfit on a line of its own.
    pub(super) fn of_config(misfits: &[ConfigError]) -> Self {
        let lines: Vec<String> = misfits.iter().map(ToString::to_string).collect();
        let count = if lines.len() == 1 { "a mistake".to_owned() } else { format!("{} mistakes", lines.len()) };
        Self::Usage(format!("the configuration has {count}:\n{}", lines.join("\n")))
    }

    /// An error with its causes.
    pub(super) fn of(error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            // Said as it is, it ends in a line of Postgres's own source.
            let refusal = inner.downcast_ref().filter(|error| matches!(error, sqlx::Error::Database(_)));
            let more = refusal.map_or_else(|| inner.to_string(), db::describe);
            // Some errors repeat their cause.
            if !text.ends_with(&more) {
                text = format!("{text}: {more}");
            }
            cause = inner.source().filter(|_| refusal.is_none());
        }
        Self::Failed(text)
    }
}

impl Failure {
    /// The same, with a way out.
    pub(super) fn and(self, way_out: &str) -> Self {
        Self::Hinted { failure: Box::new(self), hint: way_out.to_owned() }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let failure = Self::Failed(db::describe(&error));
        match db::hint(&error) {
            Some(hint) => failure.and(hint),
            None if db::is_forbidden(&error) => failure.and("`gristmill grants` prints the rights that a role needs"),
            None => failure,
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Database(error) => error.into(),
            error => match error.way_out() {
                Some(way_out) => Self::of(&error).and(way_out),
                None => Self::of(&error),
            },
        }
    }
}

impl From<db::ConnectError> for Failure {
    fn from(error: db::ConnectError) -> Self {
        Self::of(&error)
    }
}

impl From<crate::embedded::FetchError> for Failure {
    fn from(error: crate::embedded::FetchError) -> Self {
        Self::of(&error)
    }
}

impl From<crate::embedded::StartError> for Failure {
    fn from(error: crate::embedded::StartError) -> Self {
        Self::of(&error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::of(&error)
    }
}
