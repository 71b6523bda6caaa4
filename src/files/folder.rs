use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::path::{StorePath, StorePattern};
use super::trouble::Trouble;
use super::{FileBytes, Found};
use crate::net::Body;

/// What is set aside for a file on its size alone.
const RESERVE: u64 = 64 * 1024 * 1024;

/// A folder on this machine. Read by hand, because `object_store`'s local store follows links out of its root, waits for ever
/// on a pipe and refuses names that end in `#1`.
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) async fn read(&self, path: &StorePath, limit: u64) -> Result<FileBytes, Trouble> {
        let (root, path) = (self.root.clone(), path.clone());
        let body = blocking(move || read(&inside(&root, path.as_str())?, limit)).await?;
        Ok(FileBytes::new(body, None))
    }

    pub(super) async fn list(&self, pattern: &StorePattern) -> Result<Vec<Found>, Trouble> {
        let (root, pattern) = (self.root.clone(), pattern.clone());
        blocking(move || list(&inside(&root, pattern.folder())?, &pattern)).await
    }

    pub(super) async fn probe(&self) -> Result<String, Trouble> {
        let root = self.root.clone();
        let root = blocking(move || real_root(&root)).await?;
        Ok(format!("folder {}", root.display()))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Trouble> + Send + 'static) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Trouble::Unavailable("the read was stopped".to_owned())),
    }
}

fn real_root(root: &Path) -> Result<PathBuf, Trouble> {
    let unusable = |why: &str| Trouble::Misconfigured(format!("folder {} {why}", root.display()));
    match root.canonicalize() {
        Ok(real) if real.is_dir() => Ok(real),
        Ok(_) => Err(unusable("is not a folder")),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(unusable("may not be read")),
        // It may be mounted in a moment.
        Err(_) => Err(Trouble::Unavailable(format!(
            "folder {} does not exist: create it, or correct the store's `root`",
            root.display()
        ))),
    }
}

/// Where a path really leads, if that is below the root. Whoever may write into the folder while it is read could still swap
/// a name after this check; rows cannot.
fn inside(root: &Path, path: &str) -> Result<PathBuf, Trouble> {
    let root = real_root(root)?;
    let named = root.join(path);
    let real = named.canonicalize().map_err(|error| of_io(&error))?;
    if !real.starts_with(&root) {
        return Err(Trouble::Never("a link leads out of the store's folder".to_owned()));
    }
    // Even inside, a link may lead to what belongs to somebody else.
    if real != named {
        return Err(Trouble::Never("a link stands in its path".to_owned()));
    }
    Ok(real)
}

fn read(path: &Path, limit: u64) -> Result<Body, Trouble> {
    let file = open(path).map_err(|error| of_io(&error))?;
    let about = file.metadata().map_err(|error| of_io(&error))?;
    if about.is_dir() {
        return Err(Trouble::Missing);
    }
    if !about.is_file() {
        return Err(Trouble::Never("it is not a file".to_owned()));
    }
    if about.len() > limit {
        return Err(Trouble::TooLarge);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len().min(RESERVE)).unwrap_or(0));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| of_io(&error))?;
    if bytes.len() as u64 > limit {
        return Err(Trouble::TooLarge);
    }
    if bytes.len() as u64 != about.len() {
        return Err(Trouble::Unavailable("the file changed while it was read".to_owned()));
    }
    Ok(Body { sha256: Sha256::digest(&bytes).into(), bytes: bytes.into() })
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // The path is resolved, so a link is one that came since; and a pipe must not hold the thread for ever.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    options.open(path)
}

fn list(folder: &Path, pattern: &StorePattern) -> Result<Vec<Found>, Trouble> {
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(|error| of_io(&error))? {
        let entry = entry.map_err(|error| of_io(&error))?;
        let Some(path) = entry.file_name().to_str().and_then(|name| pattern.path_of(name)) else { continue };
        let Ok(about) = entry.path().metadata() else { continue };
        if about.is_file() {
            let age = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let modified = age.and_then(|age| i128::try_from(age.as_nanos()).ok()).unwrap_or(0);
            found.push(Found { path, modified });
        }
    }
    Ok(found)
}

fn of_io(error: &std::io::Error) -> Trouble {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename => Trouble::Missing,
        ErrorKind::PermissionDenied => Trouble::Denied("the file system says so".to_owned()),
        _ if is_link(error) => Trouble::Never("its links lead nowhere".to_owned()),
        kind => Trouble::Unavailable(format!("reading failed: {kind}")),
    }
}

#[cfg(unix)]
fn is_link(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}

#[cfg(not(unix))]
fn is_link(_: &std::io::Error) -> bool {
    false
}
