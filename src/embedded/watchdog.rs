use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Outlives us and cleans up: it reads a pipe that only we hold, so however we end, it sees the end.
///
/// Every process that is to end with us joins its process group before it runs its program, so that none is missed however
/// early we die. Postgres itself, asked to QUIT, ends its children and removes its pid file.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
read -r word
[ "$word" = leave ] && exit 0
pid_file=$1/data/postmaster.pid
pid=$(head -n 1 "$pid_file" 2>/dev/null)
kill -s QUIT 0
tries=0
while [ -e "$pid_file" ] && [ $tries -lt 400 ]; do sleep 0.025; tries=$((tries + 1)); done
[ -e "$pid_file" ] && [ -n "$pid" ] && kill -s KILL "$pid" 2>/dev/null
tries=0
while [ -e "$1" ] && [ $tries -lt 400 ]; do
    rm -rf "$1" 2>/dev/null || sleep 0.025
    tries=$((tries + 1))
done
"#;

pub(super) struct Watchdog(Child);

/// A folder that is gone when this is dropped, or when this process ends in whatever way.
pub struct ShortLivedFolder {
    path: PathBuf,
    watchdog: Option<Watchdog>,
}

impl ShortLivedFolder {
    /// Makes a folder, which does not exist yet.
    ///
    /// # Errors
    /// It cannot be made, or there is no shell to watch over it.
    pub fn make(path: PathBuf) -> io::Result<Self> {
        let watchdog = Watchdog::over(&path)?;
        // From here on whatever was made goes again.
        let folder = Self { path, watchdog: Some(watchdog) };
        std::fs::create_dir(&folder.path)?;
        Ok(folder)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ShortLivedFolder {
    fn drop(&mut self) {
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.clean_up();
        }
    }
}

impl Watchdog {
    /// Watches over `folder`, which need not exist yet.
    pub(super) fn over(folder: &Path) -> io::Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT, "gristmill-watchdog"]).arg(folder).current_dir("/");
        // The standard library opens pipes close-on-exec: no other child of ours keeps this one open.
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own, which a Ctrl-C at the terminal does not reach.
        shell.process_group(0).spawn().map(Self)
    }

    /// The process group that is ended with us.
    pub(super) fn group(&self) -> i32 {
        self.0.id().try_into().expect("process ids are positive and small")
    }

    /// Ends what joined the group and removes the folder, as if we had ended.
    pub(super) fn clean_up(mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }

    /// Leaves everything as it is, for good.
    pub(super) fn leave(mut self) -> io::Result<()> {
        let mut pipe = self.0.stdin.take().expect("the pipe is taken only together with the watchdog");
        pipe.write_all(b"leave\n")?;
        drop(pipe);
        self.0.wait().map(drop)
    }
}
