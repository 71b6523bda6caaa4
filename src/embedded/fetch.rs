use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::pins::{Artifact, Pin};
use super::{index, system, wheel};

/// What [`super::ensure`] is busy with; its `Display` is a line for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Another process fetches the same.
    Waiting(Artifact),
    Downloading {
        artifact: Artifact,
        with: &'static str,
        size_bytes: u64,
    },
    Unpacking(Artifact),
    Ready(Artifact),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting(artifact) => write!(f, "waiting for another process that fetches {artifact}"),
            Self::Downloading { artifact, with, size_bytes } => {
                write!(f, "downloading {artifact} ({} MB) with {with}", size_bytes / 1_000_000)
            }
            Self::Unpacking(artifact) => write!(f, "checking and unpacking {artifact}"),
            Self::Ready(artifact) => write!(f, "{artifact} is ready"),
        }
    }
}

/// Why an artifact is not there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{artifact} is not published for {}; {}", system::platform(), artifact.way_out())]
    Platform { artifact: Artifact },
    #[error(
        "cannot fetch {artifact} ({package} {version}): {}; {}, or run `gristmill fetch` on a connected machine of the same \
         platform and copy its cache folder here (GRISTMILL_CACHE names it)",
        tried.join("; "),
        artifact.way_out()
    )]
    Unobtainable { artifact: Artifact, package: &'static str, version: &'static str, tried: Vec<String> },
    #[error("{artifact} is damaged: {file} has not the pinned sha256; {}", artifact.way_out())]
    Damaged { artifact: Artifact, file: String },
    #[error("cannot use the cache folder {}; set GRISTMILL_CACHE to one that can be written", folder.display())]
    Cache { folder: PathBuf, source: io::Error },
}

/// What a source of wheels delivered, checked against the pin's sha256.
pub(super) enum Obtained {
    Wheel(PathBuf),
    /// uv checks the wheel's sha256 itself and keeps no wheel file.
    Installed(PathBuf),
}

/// Tries the sources of wheels in turn, each in a folder of its own below `workshop`; or says what each answered.
pub(super) fn obtain(
    artifact: Artifact,
    pin: &Pin,
    workshop: &Path,
    progress: &dyn Fn(Progress),
) -> Result<Obtained, Vec<String>> {
    let announce = |with| progress(Progress::Downloading { artifact, with, size_bytes: pin.size_bytes });
    let pip = || with_pip(pin, workshop, &announce);
    let uv = || with_uv(pin, workshop, &announce);
    let https = || with_https(pin, workshop, &announce);
    let sources: [&dyn Fn() -> Result<Obtained, String>; 3] = [&pip, &uv, &https];
    let mut tried = Vec::new();
    for source in sources {
        match source() {
            Ok(obtained) => return Ok(obtained),
            Err(reason) => tried.push(reason),
        }
    }
    Err(tried)
}

/// The ways pip is called; the first that exists is asked.
const PIPS: [&[&str]; 4] = [&["python3", "-m", "pip"], &["pip3"], &["python", "-m", "pip"], &["pip"]];

fn with_pip(pin: &Pin, workshop: &Path, announce: &dyn Fn(&'static str)) -> Result<Obtained, String> {
    let runs = |pip: &&[&str]| run(command(pip).arg("--version")).is_ok();
    let pip = PIPS.into_iter().find(|pip| runs(pip)).ok_or("pip is not installed")?;
    announce("pip");

    let folder = workshop.join("pip");
    let requirements = requirements(pin, workshop).map_err(|error| error.to_string())?;
    let mut fetch = command(pip);
    fetch.args([
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--retries",
        "2",
        "--timeout",
        "15",
    ]);
    fetch.args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--python-version", "3.12"]);
    if let Some(tag) = pin.tag {
        fetch.args(["--platform", tag]);
    }
    fetch.arg("--dest").arg(&folder).arg("--requirement").arg(requirements);
    run(&mut fetch).map_err(|reason| format!("pip: {reason}"))?;
    let wheel = wheel_among(&folder, pin).ok_or("pip: delivered no wheel with the pinned sha256")?;
    Ok(Obtained::Wheel(wheel))
}

fn with_uv(pin: &Pin, workshop: &Path, announce: &dyn Fn(&'static str)) -> Result<Obtained, String> {
    if run(command(&["uv"]).arg("--version")).is_err() {
        return Err("uv is not installed".to_owned());
    }
    announce("uv");

    let folder = workshop.join("uv");
    let requirements = requirements(pin, workshop).map_err(|error| error.to_string())?;
    let mut fetch = command(&["uv"]);
    fetch.args(["pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]);
    // Its cache may be on another file system or be shared by links: a copy is ours alone.
    fetch.args(["--link-mode", "copy", "--python-version", "3.12"]);
    if let Some(platform) = pin.uv_platform {
        fetch.args(["--python-platform", platform]);
    }
    fetch.arg("--target").arg(&folder).arg("--requirement").arg(requirements);
    run(&mut fetch).map_err(|reason| format!("uv: {reason}"))?;
    Ok(Obtained::Installed(folder))
}

fn with_https(pin: &Pin, workshop: &Path, announce: &dyn Fn(&'static str)) -> Result<Obtained, String> {
    announce("HTTPS");
    let folder = workshop.join("https");
    index::download(pin, &folder)?;
    let wheel = wheel_among(&folder, pin).ok_or("the wheel that came has not the pinned sha256")?;
    Ok(Obtained::Wheel(wheel))
}

/// The wheel in `folder` that has the pinned sha256, whatever the rest of its name.
pub(super) fn wheel_among(folder: &Path, pin: &Pin) -> Option<PathBuf> {
    let is_pinned = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&stem(pin))
            && path.extension().is_some_and(|extension| extension == "whl")
            && fs::metadata(path).is_ok_and(|file| file.len() == pin.size_bytes)
            && wheel::sha256_of(path).is_ok_and(|sha256| sha256 == pin.wheel_sha256)
    };
    fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).find(is_pinned)
}

/// How the names of a package's wheel files start.
pub(super) fn stem(pin: &Pin) -> String {
    format!("{}-{}", pin.package.replace('-', "_"), pin.version)
}

/// A requirements file, the only way to tell pip and uv a checksum.
fn requirements(pin: &Pin, workshop: &Path) -> io::Result<PathBuf> {
    let file = workshop.join("requirements.txt");
    fs::write(&file, format!("{}=={} --hash=sha256:{}\n", pin.package, pin.version, pin.wheel_sha256))?;
    Ok(file)
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command
}

/// Runs a program to its end; where it fails, the reason is its first line that calls itself an error.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => "not installed".to_owned(),
        _ => error.to_string(),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let is_error = |line: &&str| line.to_ascii_lowercase().contains("error");
    let line = said.lines().find(is_error).or_else(|| said.lines().last()).unwrap_or_default();
    let line: String = line.trim().chars().take(300).collect();
    Err(format!("{line} ({})", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_fails_says_why() {
        let failing =
            run(command(&["sh", "-c", "echo WARNING >&2; echo 'ERROR: no index' >&2; echo more >&2; exit 3"]).arg("x"));
        assert_eq!(failing, Err("ERROR: no index (exit status: 3)".to_owned()));
        assert_eq!(run(&mut command(&["gristmill-has-no-such-tool"])), Err("not installed".to_owned()));
    }
}
