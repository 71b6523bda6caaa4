//! What does not fit between configuration and database.

use std::fmt;

use crate::config::Place;

/// `gristmill migrate` makes it.
pub const NO_PGVECTOR: &str = "this database has no pgvector";

/// One misfit: where it stands in the configuration, what to change, and the SQL for it where there is some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    pub place: Place,
    pub message: String,
    /// SQL that would mend it.
    pub fix: Option<String>,
    /// Worth saying, not worth refusing the pipeline.
    pub warning: bool,
}

impl Misfit {
    pub fn new(place: &Place, message: impl Into<String>) -> Self {
        Self { place: place.clone(), message: message.into(), fix: None, warning: false }
    }

    pub fn warning(place: &Place, message: impl Into<String>) -> Self {
        Self { warning: true, ..Self::new(place, message) }
    }

    #[must_use]
    pub fn fix(mut self, sql: impl Into<String>) -> Self {
        self.fix = Some(sql.into());
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        if let Some(fix) = &self.fix {
            write!(f, "\n    to mend it: {fix}")?;
        }
        Ok(())
    }
}
