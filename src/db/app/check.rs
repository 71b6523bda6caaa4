//! What does not fit between configuration and database.

use std::fmt;

use sqlx::error::DatabaseError;

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
    /// It is this role that lacks a right: under another the same pipeline may fit.
    pub of_role: bool,
}

/// What a pipeline is held against the database for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its rows are read and written: this role needs the rights for that.
    Work,
    /// Triggers and views: their statements are written, which asks for no right to any row.
    Announce,
}

impl Misfit {
    pub fn new(place: &Place, message: impl Into<String>) -> Self {
        Self { place: place.clone(), message: message.into(), fix: None, warning: false, of_role: false }
    }

    pub fn warning(place: &Place, message: impl Into<String>) -> Self {
        Self { warning: true, ..Self::new(place, message) }
    }

    /// What Postgres says of a statement of the configuration.
    pub(super) fn said(place: &Place, error: &dyn DatabaseError) -> Self {
        let of_role = error.code().as_deref() == Some("42501");
        Self { of_role, ..Self::new(place, format!("Postgres says: {}", error.message())) }
    }

    /// Of this role alone.
    pub(super) fn of_role(place: &Place, message: impl Into<String>) -> Self {
        Self { of_role: true, ..Self::new(place, message) }
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
