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
}

impl Failure {
    /// Says it once and gives its exit code.
    pub(super) fn report(self) -> ExitCode {
        let (message, code) = match self {
            Self::Usage(message) => (Some(message), 2),
            Self::Failed(message) => (Some(message), 1),
            Self::Unfinished(message) => (Some(message), 3),
            Self::Said => (None, 1),
        };
        if let Some(message) = message {
            eprintln!("{}: {message}", if code == 3 { "unfinished" } else { "error" });
        }
        ExitCode::from(code)
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
        match self {
            Self::Usage(text) => Self::Usage(format!("{text}; {way_out}")),
            Self::Failed(text) => Self::Failed(format!("{text}; {way_out}")),
            Self::Unfinished(text) => Self::Unfinished(format!("{text}; {way_out}")),
            Self::Said => Self::Said,
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let hint = db::hint(&error).map(|hint| format!("; {hint}")).unwrap_or_default();
        Self::Failed(format!("{}{hint}", db::describe(&error)))
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Database(error) => error.into(),
            error => Self::of(&error),
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
