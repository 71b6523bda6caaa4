use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Installation;
use super::launch::{Launch, Tcp, program};
use super::system::{self, User};
use super::watchdog::Watchdog;

/// How a private Postgres is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Data that matters: on disk, written through. Otherwise everything is traded for speed, in memory where there is room.
    pub durable: bool,
    /// Meant to be left running ([`PrivatePostgres::leave_running`]): listens on loopback too, behind a password, so that
    /// people's tools can connect.
    pub keep: bool,
    /// The folder to put the server's own folder into; none: chosen by `durable`.
    pub within: Option<PathBuf>,
}

/// Why there is no private Postgres.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("postgres refuses to run as root, and there is neither a user postgres nor a user nobody to run it as")]
    NoUser,
    #[error("user {user}, whom postgres runs as, cannot reach {}; set GRISTMILL_CACHE to a folder open to all", path.display())]
    OutOfReach { user: String, path: PathBuf },
    #[error("no folder for a private postgres: {} cannot be used", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error("cannot run {program}")]
    Program { program: String, source: io::Error },
    #[error("initdb failed: {said}")]
    Initialise { said: String },
    #[error("postgres ended while starting: {said}")]
    Ended { said: String },
    #[error("postgres was not ready within {} s: {said}", READY_WITHIN.as_secs())]
    Slow { said: String },
}

/// A Postgres of our own, reached over a socket in its own folder. Dropping it ends it and removes the folder; if this process
/// is killed, a watchdog does the same.
pub struct PrivatePostgres {
    folder: PathBuf,
    server: Child,
    watchdog: Option<Watchdog>,
    tcp: Option<Tcp>,
}

/// A private Postgres that was left running.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Over loopback, with its password.
    pub url: String,
    pub folder: PathBuf,
    /// A shell command that ends the server and removes its folder.
    pub stop: String,
}

/// Generous: the machine may be busy with everything at once.
pub(super) const READY_WITHIN: Duration = Duration::from_mins(1);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
/// Room that is worth calling room: a container's `/dev/shm` often has 64 MB.
const ROOM_BYTES: u64 = 2 << 30;
/// Postgres refuses longer socket paths: 104 bytes with the final NUL on the strictest system.
const SOCKET_PATH_BYTES: usize = 103;

impl PrivatePostgres {
    /// Makes a data folder, starts the server, and returns when it accepts connections.
    ///
    /// # Errors
    /// Where the machine lacks what Postgres needs; nothing is left behind.
    pub fn start(installation: &Installation, options: &Options) -> Result<Self, StartError> {
        let needed = || system::unprivileged_user().ok_or(StartError::NoUser);
        let user = system::is_root().then(needed).transpose()?;
        check_reach(user.as_ref(), &installation.programs)?;

        let folder = own_folder(options, user.as_ref())?;
        let watchdog = Watchdog::over(&folder).map_err(|source| program("sh", source))?;
        let launch = Launch { installation, options, folder: &folder, user: user.as_ref(), group: watchdog.group() };
        match launch.run() {
            Ok((server, tcp)) => Ok(Self { folder, server, watchdog: Some(watchdog), tcp }),
            Err(error) => {
                watchdog.clean_up();
                Err(error)
            }
        }
    }

    /// The address of the database `postgres`, for its superuser.
    pub fn url(&self) -> String {
        self.url_for("postgres")
    }

    /// The address of a database, for its superuser.
    pub fn url_for(&self, database: &str) -> String {
        let folder = percent_encoded(&self.folder.to_string_lossy());
        let port = self.tcp.as_ref().map_or(5432, |tcp| tcp.port);
        format!("postgres://postgres@localhost:{port}/{}?host={folder}", percent_encoded(database))
    }

    /// What the server lives in: its socket, its log and, below `data`, its data.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends the server in good order and removes its folder.
    #[expect(clippy::disallowed_methods, reason = "a start and a stop block their caller, by contract")]
    pub fn stop(mut self) {
        system::signal(self.server.id(), "INT");
        let deadline = Instant::now() + STOPPED_WITHIN;
        while matches!(self.server.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the server at once, as a crash would: nothing is written first. [`Self::recover`] starts it again.
    ///
    /// # Errors
    /// The server cannot be waited for.
    #[cfg(feature = "chaos")]
    pub fn crash(&mut self) -> io::Result<()> {
        system::signal(self.server.id(), "QUIT");
        self.server.wait().map(drop)
    }

    /// Starts a crashed server on the data it has, and returns when it accepts connections again.
    ///
    /// # Errors
    /// It does not come back.
    #[cfg(feature = "chaos")]
    pub fn recover(&mut self, installation: &Installation) -> Result<(), StartError> {
        let user = system::is_root().then(|| system::unprivileged_user().ok_or(StartError::NoUser)).transpose()?;
        let group = self.watchdog.as_ref().expect("it is taken only at the end").group();
        let options = Options { durable: true, ..Options::default() };
        let launch = Launch { installation, options: &options, folder: &self.folder, user: user.as_ref(), group };
        self.server = launch.serve()?;
        Ok(())
    }

    /// Lets the server outlive this process, and says how to reach and end it.
    ///
    /// # Errors
    /// Where the watchdog cannot be told.
    pub fn leave_running(mut self) -> io::Result<Kept> {
        let url = match &self.tcp {
            Some(Tcp { port, password }) => format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres"),
            None => self.url(),
        };
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.leave()?;
        }
        let folder = self.folder.clone();
        let (server, place) = (self.server.id(), folder.display());
        let stop = format!(
            "kill -INT {server}; while [ -e '{place}/data/postmaster.pid' ]; do sleep 0.1; done; rm -rf '{place}'"
        );
        Ok(Kept { url, folder, stop })
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.clean_up();
            let _ = self.server.wait();
        }
    }
}

/// A folder that does not exist yet, in the first place where a server can live.
fn own_folder(options: &Options, user: Option<&User>) -> Result<PathBuf, StartError> {
    let memory = PathBuf::from("/dev/shm");
    let mut places: Vec<PathBuf> = options.within.iter().cloned().collect();
    if places.is_empty() {
        if !options.durable && system::free_bytes(&memory).is_some_and(|free| free >= ROOM_BYTES) {
            places.push(memory);
        }
        places.extend([std::env::temp_dir(), PathBuf::from("/tmp")]);
    }

    let name = format!("gristmill-{}", &Uuid::new_v4().simple().to_string()[..12]);
    let is_fit = |place: &PathBuf| {
        let socket = place.join(&name).join(".s.PGSQL.65535");
        socket.as_os_str().len() <= SOCKET_PATH_BYTES && user.is_none_or(|user| system::reaches(user, place))
    };
    let place = places.iter().find(|place| is_fit(place)).ok_or_else(|| {
        let source = io::Error::other("its path is too long for a socket, or closed to the user postgres runs as");
        StartError::Folder { folder: places[0].clone(), source }
    })?;
    Ok(place.join(name))
}

fn check_reach(user: Option<&User>, programs: &Path) -> Result<(), StartError> {
    match user {
        Some(user) if !system::reaches(user, programs) => {
            Err(StartError::OutOfReach { user: user.name.clone(), path: programs.to_owned() })
        }
        _ => Ok(()),
    }
}

fn percent_encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let encode = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_fits_into_an_address() {
        assert_eq!(percent_encoded("/tmp/ä b"), "%2Ftmp%2F%C3%A4%20b");
    }

    #[test]
    fn a_place_too_deep_for_a_socket_is_refused() {
        let deep = PathBuf::from(format!("/tmp/{}", "x".repeat(90)));
        let options = Options { within: Some(deep), ..Options::default() };
        let refused = own_folder(&options, None).unwrap_err().to_string();
        assert!(refused.starts_with("no folder for a private postgres: /tmp/xxx"), "{refused}");
    }
}
