//! Floor 2: size-limited reads over object stores.
//!
//! [`Files`] knows the named stores of `workers.toml`. A path comes in as a checked [`StorePath`] (or [`StorePattern`], to be
//! found by listing), an address of a row as text for the guarded client; out come the bytes with their hash. A connection
//! that breaks is tried once more at once; every longer patience lives in the job's own retries.

mod addresses;
mod folder;
mod objects;
mod path;
mod supabase;
mod trouble;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::config::{Store, StoreKind};
use crate::net::{self, BadRule, Body, NetError, Patience};

use addresses::Addresses;
use folder::Folder;
use objects::Objects;
pub use path::{BadPath, StorePath, StorePattern};
use supabase::Supabase;
use trouble::Trouble;

/// A store that says nothing for this long is away.
const SILENCE: Duration = Duration::from_secs(30);
/// An address of a row is given up after this long, however slowly it trickles.
const WHOLE: Duration = Duration::from_mins(2);

/// The stores of the configuration, ready to be read.
pub struct Files {
    stores: BTreeMap<String, Opened>,
}

struct Opened {
    driver: Driver,
    largest: u64,
}

enum Driver {
    Folder(Folder),
    Objects(Objects),
    Supabase(Supabase),
    Addresses(Addresses),
}

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBytes {
    pub bytes: Bytes,
    /// SHA-256 of the bytes.
    pub hash: [u8; 32],
    /// What the store calls it; the bytes decide.
    pub media_type: Option<String>,
    pub size: u64,
}

/// Why a store of the configuration cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("store {store}: this build cannot read it; build with --features {feature}")]
    NotBuilt { store: String, feature: &'static str },
    #[error("store {store}: {what}")]
    Misconfigured { store: String, what: String },
    #[error("store {store}")]
    Rule { store: String, source: BadRule },
    #[error(transparent)]
    Net(#[from] NetError),
}

/// Why a file was not read. Names files by store and path, addresses by their host alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It may come later, if the upload comes after the row.
    #[error("{0} is not there")]
    Missing(Place),
    #[error("{place} may not be read: {why}")]
    Denied { place: Place, why: String },
    /// Nobody may give us the right: what stands there is no file of the store's.
    #[error("{place} may not be read: {why}")]
    Never { place: Place, why: String },
    #[error("{place} is larger than {limit} bytes, the store's `largest`")]
    TooLarge { place: Place, limit: u64 },
    /// The store is away or busy: not the file's fault.
    #[error("store {store} is not available: {why}")]
    Unavailable { store: String, why: String },
    /// A person has to change something: credential, bucket, folder.
    #[error("store {store} is misconfigured: {what}")]
    Misconfigured { store: String, what: String },
    /// The path or address is one that this row may not ask for.
    #[error(transparent)]
    BadPath(#[from] BadPath),
    #[error("the address is refused: {0}")]
    BadAddress(String),
}

/// A file in a store, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub store: String,
    /// A path or pattern; of an address its host.
    pub name: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in store {}", self.name, self.store)
    }
}

impl Files {
    /// Makes clients for the stores. Nothing is asked yet: a store that is away now may be back when it is needed.
    ///
    /// # Errors
    /// [`FilesError`], naming the store.
    pub fn open(stores: &BTreeMap<String, Store>) -> Result<Self, FilesError> {
        let open = |(name, store): (&String, &Store)| {
            let driver = driver(name, &store.kind)?;
            Ok((name.clone(), Opened { driver, largest: store.largest }))
        };
        stores.iter().map(open).collect::<Result<_, FilesError>>().map(|stores| Self { stores })
    }

    /// Reads a file of a store, up to the store's `largest`.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn read(&self, store: &str, path: &StorePath) -> Result<FileBytes, FileError> {
        let opened = self.opened(store)?;
        let limit = opened.largest;
        let read = match &opened.driver {
            Driver::Folder(folder) => folder.read(path, limit).await,
            Driver::Objects(objects) => objects.read(path, limit).await,
            Driver::Supabase(supabase) => supabase.read(path, limit).await,
            Driver::Addresses(_) => Err(Trouble::Misconfigured("it takes addresses, not paths".to_owned())),
        };
        read.map_err(|trouble| trouble.at(store, path, limit))
    }

    /// Reads what is at an address that a row gave, from a store of kind `url`. With `within`, the address must have the same
    /// origin and lie below its path.
    ///
    /// # Errors
    /// [`FileError`]; [`FileError::BadAddress`] where the guard refuses.
    pub async fn fetch(&self, store: &str, address: &str, within: Option<&str>) -> Result<FileBytes, FileError> {
        let opened = self.opened(store)?;
        let limit = opened.largest;
        let fetched = match &opened.driver {
            Driver::Addresses(addresses) => addresses.fetch(address, within, limit).await,
            _ => Err(Trouble::Misconfigured("it takes paths, not addresses; use a store of kind \"url\"".to_owned())),
        };
        fetched.map_err(|trouble| trouble.at(store, &addresses::host_of(address), limit))
    }

    /// The largest file a store reads, in bytes; 0 where there is no such store.
    pub fn largest(&self, store: &str) -> u64 {
        self.stores.get(store).map_or(0, |opened| opened.largest)
    }

    /// Whether rows give this store addresses ([`Files::fetch`]) rather than paths ([`Files::read`]).
    pub fn takes_addresses(&self, store: &str) -> bool {
        matches!(self.stores.get(store), Some(Opened { driver: Driver::Addresses(_), .. }))
    }

    /// Finds the file that a pattern names; of several the newest, and of equally old ones the first by name.
    ///
    /// # Errors
    /// [`FileError`]; [`FileError::Missing`] where none fits.
    pub async fn find(&self, store: &str, pattern: &StorePattern) -> Result<StorePath, FileError> {
        let opened = self.opened(store)?;
        let found = match &opened.driver {
            Driver::Folder(folder) => folder.list(pattern).await,
            Driver::Objects(objects) => objects.list(pattern).await,
            Driver::Supabase(supabase) => supabase.list(pattern).await,
            Driver::Addresses(_) => Err(Trouble::Misconfigured("addresses cannot be listed".to_owned())),
        };
        found.and_then(newest).map_err(|trouble| trouble.at(store, pattern, opened.largest))
    }

    /// Asks a store whether it is there and says which choice it made, for `check`.
    ///
    /// # Errors
    /// [`FileError`].
    pub async fn probe(&self, store: &str) -> Result<String, FileError> {
        let opened = self.opened(store)?;
        let probed = match &opened.driver {
            Driver::Folder(folder) => folder.probe().await,
            Driver::Objects(objects) => objects.probe().await,
            Driver::Supabase(supabase) => supabase.probe().await,
            Driver::Addresses(addresses) => Ok(addresses.probe()),
        };
        probed.map_err(|trouble| trouble.at(store, &"the probe", opened.largest))
    }

    fn opened(&self, store: &str) -> Result<&Opened, FileError> {
        let unknown =
            || FileError::Misconfigured { store: store.to_owned(), what: "there is no such store".to_owned() };
        self.stores.get(store).ok_or_else(unknown)
    }
}

fn driver(name: &str, kind: &StoreKind) -> Result<Driver, FilesError> {
    let misconfigured = |what: String| FilesError::Misconfigured { store: name.to_owned(), what };
    let trusted = || net::trusted(Patience::Silence(SILENCE));
    Ok(match kind {
        StoreKind::Local { root } => Driver::Folder(Folder::new(root.clone())),
        StoreKind::Supabase { url, key, buckets } => {
            Driver::Supabase(Supabase::new(trusted()?, url, key, buckets).map_err(misconfigured)?)
        }
        StoreKind::S3 { .. } => Driver::Objects(objects::s3(trusted()?, kind).map_err(misconfigured)?),
        StoreKind::Gcs { bucket, credentials } => {
            #[cfg(feature = "gcs")]
            {
                Driver::Objects(objects::gcs(trusted()?, bucket, credentials.as_ref()).map_err(misconfigured)?)
            }
            #[cfg(not(feature = "gcs"))]
            {
                let _ = (bucket, credentials);
                return Err(FilesError::NotBuilt { store: name.to_owned(), feature: "gcs" });
            }
        }
        StoreKind::Azure { account, container, key } => {
            #[cfg(feature = "azure")]
            {
                Driver::Objects(objects::azure(trusted()?, account, container, key.as_ref()).map_err(misconfigured)?)
            }
            #[cfg(not(feature = "azure"))]
            {
                let _ = (account, container, key);
                return Err(FilesError::NotBuilt { store: name.to_owned(), feature: "azure" });
            }
        }
        StoreKind::Url { hosts, private } => {
            let rule = |source| FilesError::Rule { store: name.to_owned(), source };
            let policy = net::GuardPolicy::new(hosts, *private).map_err(rule)?;
            Driver::Addresses(Addresses::new(net::GuardedClient::new(policy, WHOLE)?, hosts))
        }
    })
}

/// A file that a listing named.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    path: StorePath,
    /// Grows with time; the unit is the store's.
    modified: i128,
}

fn newest(found: Vec<Found>) -> Result<StorePath, Trouble> {
    let later = |a: &Found, b: &Found| a.modified.cmp(&b.modified).then_with(|| b.path.cmp(&a.path));
    found.into_iter().max_by(later).map(|found| found.path).ok_or(Trouble::Missing)
}

impl FileBytes {
    fn new(body: Body, media_type: Option<&str>) -> Self {
        // "application/octet-stream" is what stores say when they were told nothing.
        let media_type = media_type.filter(|name| !name.starts_with("application/octet-stream")).map(str::to_owned);
        Self { size: body.bytes.len() as u64, bytes: body.bytes, hash: body.sha256, media_type }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_the_newest_is_found() {
        let found = |path: &str, modified| Found { path: StorePath::checked(path, None).expect("plain"), modified };
        let check =
            |found: Vec<Found>| newest(found).map(|path| path.to_string()).map_err(|trouble| format!("{trouble:?}"));
        assert_eq!(check(vec![found("a", 1), found("b", 3), found("c", 2)]), Ok("b".to_owned()));
        assert_eq!(check(vec![found("b", 1), found("a", 1)]), Ok("a".to_owned()));
        assert_eq!(check(vec![]), Err("Missing".to_owned()));
    }
}
