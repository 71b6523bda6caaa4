use std::fmt::Display;

use reqwest::StatusCode;

use super::{FileError, Place};
use crate::net::ExchangeError;

/// What a driver says went wrong; [`Trouble::at`] adds where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    Missing,
    Denied(String),
    Never(String),
    TooLarge,
    Unavailable(String),
    Misconfigured(String),
    BadAddress(String),
}

impl Trouble {
    pub(super) fn at(self, store: &str, name: &dyn Display, limit: u64) -> FileError {
        let store = store.to_owned();
        let place = || Place { store: store.clone(), name: name.to_string() };
        match self {
            Self::Missing => FileError::Missing(place()),
            Self::Denied(why) => FileError::Denied { place: place(), why },
            Self::Never(why) => FileError::Never { place: place(), why },
            Self::TooLarge => FileError::TooLarge { place: place(), limit },
            Self::Unavailable(why) => FileError::Unavailable { store, why },
            Self::Misconfigured(what) => FileError::Misconfigured { store, what },
            Self::BadAddress(why) => FileError::BadAddress(why),
        }
    }

    /// What a status says where the body says no more.
    pub(super) fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            404 | 410 => Self::Missing,
            403 => Self::Denied("the store answers 403".to_owned()),
            401 => Self::Misconfigured("it refuses the credential".to_owned()),
            300..=399 => {
                Self::Misconfigured("it answers with a redirect; name the address that it leads to".to_owned())
            }
            408 | 425 | 429 | 500.. => Self::Unavailable(format!("it answers {}", status.as_u16())),
            other => Self::Misconfigured(format!("it answers {other}")),
        }
    }
}

impl From<ExchangeError> for Trouble {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::TooLarge { .. } => Self::TooLarge,
            ExchangeError::Dropped(_) | ExchangeError::TimedOut => Self::Unavailable(error.to_string()),
            ExchangeError::Refused(refusal) => Self::BadAddress(refusal.to_string()),
        }
    }
}
