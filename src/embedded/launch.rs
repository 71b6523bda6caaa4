use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::server::{READY_WITHIN, StartError};
use super::system::User;
use super::{Installation, Options};

/// Everything that the steps of a start share.
pub(super) struct Launch<'a> {
    pub installation: &'a Installation,
    pub options: &'a Options,
    pub folder: &'a Path,
    pub user: Option<&'a User>,
    /// Whoever joins it is ended by the watchdog.
    pub group: i32,
}

/// How the server is reached besides its socket.
pub(super) struct Tcp {
    pub port: u16,
    pub password: String,
}

impl Launch<'_> {
    /// From an empty place to a server that accepts connections.
    pub(super) fn run(&self) -> Result<(Child, Option<Tcp>), StartError> {
        self.make_folders()?;
        let password = Uuid::new_v4().simple().to_string();
        self.initialise(&password)?;

        // Between finding a free port and using it another program may take it.
        let mut tries = if self.options.keep { 3 } else { 1 };
        loop {
            tries -= 1;
            let port = self.options.keep.then(free_port).transpose().map_err(|source| self.unusable(source))?;
            self.write_settings(port).map_err(|source| self.unusable(source))?;
            match self.serve() {
                Ok(server) => return Ok((server, port.map(|port| Tcp { port, password }))),
                Err(StartError::Ended { .. }) if tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Both folders are there before `initdb` runs: it then has no cause to make one after the watchdog has cleaned up.
    fn make_folders(&self) -> Result<(), StartError> {
        let make = |folder: &Path| {
            DirBuilder::new().mode(0o700).create(folder)?;
            self.user.map_or(Ok(()), |user| chown(folder, Some(user.uid), Some(user.gid)))
        };
        make(self.folder).and_then(|()| make(&self.data())).map_err(|source| self.unusable(source))
    }

    /// The socket trusts whoever gets into the folder, which is its owner alone; loopback asks for the password.
    fn initialise(&self, password: &str) -> Result<(), StartError> {
        let password_file = self.folder.join("password");
        fs::write(&password_file, password).map_err(|source| self.unusable(source))?;
        if let Some(user) = self.user {
            chown(&password_file, Some(user.uid), Some(user.gid)).map_err(|source| self.unusable(source))?;
        }

        let mut initdb = self.command("initdb");
        initdb.arg("--pgdata").arg(self.data()).arg("--pwfile").arg(&password_file);
        initdb.args(["--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8"]);
        if self.installation.version >= 17 {
            // Sorts and folds the same on every system.
            initdb.args(["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]);
        } else {
            initdb.arg("--locale=C.UTF-8");
        }
        if !self.options.durable {
            initdb.arg("--no-sync");
        }
        let output = initdb.arg("--no-instructions").output().map_err(|source| program("initdb", source))?;
        fs::remove_file(&password_file).map_err(|source| self.unusable(source))?;
        if output.status.success() {
            return Ok(());
        }
        Err(StartError::Initialise { said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
    }

    /// Later settings win, so each try may add its own.
    fn write_settings(&self, port: Option<u16>) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(self.data().join("postgresql.conf"))?;
        let folder = self.folder.to_string_lossy().replace('\'', "''");
        writeln!(file, "\nunix_socket_directories = '{folder}'")?;
        writeln!(file, "listen_addresses = '{}'", if port.is_some() { "127.0.0.1" } else { "" })?;
        writeln!(file, "port = {}", port.unwrap_or(5432))?;
        file.write_all(COMMON_SETTINGS.as_bytes())?;
        file.write_all(if self.options.durable { DURABLE_SETTINGS } else { FAST_SETTINGS }.as_bytes())
    }

    pub(super) fn serve(&self) -> Result<Child, StartError> {
        let log = File::create(self.log()).and_then(|log| Ok((log.try_clone()?, log)));
        let (output, errors) = log.map_err(|source| self.unusable(source))?;
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data()).stdout(output).stderr(errors);
        let mut server = postgres.spawn().map_err(|source| program("postgres", source))?;
        self.wait_until_ready(&mut server)?;
        Ok(server)
    }

    #[expect(clippy::disallowed_methods, reason = "a start and a stop block their caller, by contract")]
    fn wait_until_ready(&self, server: &mut Child) -> Result<(), StartError> {
        let deadline = Instant::now() + READY_WITHIN;
        while !self.is_ready() {
            if !matches!(server.try_wait(), Ok(None)) {
                return Err(StartError::Ended { said: self.last_words() });
            }
            if Instant::now() > deadline {
                return Err(StartError::Slow { said: self.last_words() });
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The server says so in the eighth line of its pid file.
    fn is_ready(&self) -> bool {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        file.lines().nth(7).is_some_and(|status| status.trim() == "ready")
    }

    /// The end of the server's log.
    fn last_words(&self) -> String {
        let read = || -> io::Result<String> {
            let mut log = File::open(self.log())?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(2_000)))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        read().unwrap_or_else(|error| format!("its log cannot be read: {error}"))
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.installation.programs.join(name));
        // The rest of our environment, with its secrets and PG… variables, is not the server's business.
        command.env_clear().envs([("PATH", "/usr/bin:/bin"), ("LC_ALL", "C"), ("TZ", "UTC")]).env("HOME", self.folder);
        command.current_dir(self.folder).stdin(Stdio::null()).process_group(self.group);
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    fn unusable(&self, source: io::Error) -> StartError {
        StartError::Folder { folder: self.folder.to_owned(), source }
    }
}

const COMMON_SETTINGS: &str = "max_connections = 200
shared_buffers = 128MB
timezone = 'UTC'
log_timezone = 'UTC'
";

/// The shared memory files lie in the data folder, so that the watchdog finds all there is to remove.
const FAST_SETTINGS: &str = "fsync = off
synchronous_commit = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
max_wal_size = 256MB
dynamic_shared_memory_type = mmap
log_checkpoints = off
";

const DURABLE_SETTINGS: &str = "max_wal_size = 2GB
wal_compression = on
";

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

pub(super) fn program(name: &str, source: io::Error) -> StartError {
    StartError::Program { program: name.to_owned(), source }
}
