use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Artifact, FetchError, Progress, ensure};

/// Where Postgres's programs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The folder of `initdb` and `postgres`.
    pub programs: PathBuf,
    /// The major version.
    pub version: u32,
    pub origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Installed on this machine, with pgvector.
    System,
    /// From the cache.
    Pinned,
}

/// The oldest version a template database can be cloned by `STRATEGY FILE_COPY` with.
const OLDEST: u32 = 15;
/// The oldest pgvector that has `halfvec` and `sparsevec`.
const OLDEST_VECTOR: (u32, u32) = (0, 7);

/// A system Postgres with a fit pgvector, else the pinned one, fetched if need be.
///
/// # Errors
/// Where there is neither and nothing delivers it.
pub fn installation(progress: &dyn Fn(Progress)) -> Result<Installation, FetchError> {
    if let Some(system) = system_installation() {
        return Ok(system);
    }
    let folder = ensure(Artifact::Postgres, progress)?;
    Ok(Installation { programs: folder.join("bin"), version: 18, origin: Origin::Pinned })
}

fn system_installation() -> Option<Installation> {
    let versioned = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut asked: Vec<PathBuf> = versioned.map(|entry| entry.path().join("bin/pg_config")).collect();
    asked.push(PathBuf::from("pg_config"));
    asked.iter().filter_map(|pg_config| described_by(pg_config)).max_by_key(|installation| installation.version)
}

fn described_by(pg_config: &Path) -> Option<Installation> {
    let output = Command::new(pg_config).args(["--version", "--bindir", "--sharedir"]).output().ok()?;
    let output = String::from_utf8(output.stdout).ok()?;
    let mut lines = output.lines();
    let version = major_version(lines.next()?)?;
    let programs = PathBuf::from(lines.next()?);
    let control = fs::read_to_string(Path::new(lines.next()?).join("extension/vector.control")).ok()?;

    // Development packages bring pg_config without a server.
    let has_server = programs.join("initdb").exists() && programs.join("postgres").exists();
    let is_fit = has_server && version >= OLDEST && vector_version(&control)? >= OLDEST_VECTOR;
    is_fit.then_some(Installation { programs, version, origin: Origin::System })
}

/// `PostgreSQL 18.4 (Debian …)` → 18
fn major_version(line: &str) -> Option<u32> {
    line.split_whitespace().nth(1)?.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

fn vector_version(control: &str) -> Option<(u32, u32)> {
    let line = control.lines().find(|line| line.starts_with("default_version"))?;
    let version = line.split('\'').nth(1)?;
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_printed() {
        assert_eq!(major_version("PostgreSQL 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_version("PostgreSQL 19beta1"), Some(19));
        assert_eq!(vector_version("comment = 'x'\ndefault_version = '0.8.5'\n"), Some((0, 8)));
        assert_eq!(vector_version("comment = 'x'\n"), None);
        assert!((0, 10) > OLDEST_VECTOR && (0, 6) < OLDEST_VECTOR);
    }
}
