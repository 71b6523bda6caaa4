use std::env::consts;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// The user Postgres runs as where we are root, whom it refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// Whether this process is root's.
pub(super) fn is_root() -> bool {
    // Where there is a /proc its entry tells the effective user without another program.
    let owner = fs::metadata("/proc/self").map(|entry| entry.uid()).ok();
    owner.or_else(effective_user) == Some(0)
}

fn effective_user() -> Option<u32> {
    let output = Command::new("id").arg("-u").output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The least privileged user that suits Postgres: its own, else nobody.
pub(super) fn unprivileged_user() -> Option<User> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    user(&users, "postgres").or_else(|| user(&users, "nobody"))
}

fn user(users: &str, name: &str) -> Option<User> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name: name.to_owned(), uid, gid })
    })
}

/// Whether `user` may enter every folder down to `path` and use it; `path` is absolute.
pub(super) fn reaches(user: &User, path: &Path) -> bool {
    path.ancestors().all(|step| {
        fs::metadata(step).is_ok_and(|entry| {
            let needed = if entry.uid() == user.uid {
                0o100
            } else if entry.gid() == user.gid {
                0o010
            } else {
                0o001
            };
            entry.mode() & needed != 0
        })
    })
}

/// Free room of the file system that holds `folder`; none where it cannot be told.
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).output().ok()?;
    free_of_df(&String::from_utf8(output.stdout).ok()?)
}

fn free_of_df(output: &str) -> Option<u64> {
    let kilobytes: u64 = output.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Asks a process to end the way `signal` (`INT`, `QUIT`, …) says.
pub(super) fn signal(process: u32, signal: &str) {
    // The shell has `kill` built in; the program is missing from small images. A process that is gone needs no signal.
    let _ = Command::new("sh")
        .args(["-c", "kill -s \"$1\" \"$2\" 2>/dev/null", "sh", signal, &process.to_string()])
        .status();
}

/// The name of this platform in messages.
pub(super) fn platform() -> String {
    format!("{} {}", consts::OS, consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_is_preferred_to_nobody() {
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533::/:/bin/false\n";
        let nobody = User { name: "nobody".into(), uid: 65534, gid: 65533 };
        assert_eq!(user(users, "nobody"), Some(nobody));
        assert_eq!(user(users, "postgres"), None);
    }

    #[test]
    fn free_room_is_the_fourth_column_of_df() {
        let output = "Filesystem 1024-blocks Used Available Capacity Mounted on\ntmpfs 65536 1 64512 1% /dev/shm\n";
        assert_eq!(free_of_df(output), Some(64512 * 1024));
        assert_eq!(free_of_df(""), None);
    }
}
