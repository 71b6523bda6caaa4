//! A PgBouncer of our own in front of a test's server, where one is installed.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use url::Url;

/// What a test says where there is none.
pub const MISSING: &str = "it needs pgbouncer";

pub struct PgBouncer {
    _folder: TempDir,
    port: u16,
    command: Command,
    child: Child,
}

impl PgBouncer {
    /// In front of the server that listens at this address; none where no PgBouncer is installed.
    pub async fn start(server: &str, pool_mode: &str) -> Option<Self> {
        let installed = Command::new("pgbouncer").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !installed.is_ok_and(|status| status.success()) {
            return None;
        }
        let url = Url::parse(server).unwrap();
        let query = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        let host = query("host").or_else(|| url.host_str().map(ToOwned::to_owned)).unwrap();
        let user = match (url.username(), query("user")) {
            ("", user) => user.unwrap_or_else(|| "postgres".to_owned()),
            (user, _) => user.to_owned(),
        };
        let password = url.password().map(|password| format!(" password={password}")).unwrap_or_default();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = TempDir::new().unwrap();
        // As a person would write it, without a word about what drivers need.
        let settings = format!(
            "[databases]\n* = host={host} port={} user={user}{password}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = {pool_mode}\ndefault_pool_size = 60\nmax_client_conn = 200\n",
            url.port().unwrap_or(5432)
        );
        std::fs::write(folder.path().join("pgbouncer.ini"), settings).unwrap();
        Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path()).status().unwrap();
        let mut command = Command::new("pgbouncer");
        if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            // It refuses root: whoever runs the server can reach its socket.
            let owner = std::fs::metadata(&host).map_or(65_534, |folder| folder.uid());
            command.uid(owner).gid(owner);
        }
        command.arg("-q").arg(folder.path().join("pgbouncer.ini"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let started = Self { _folder: folder, port, command, child };
        started.listens().await;
        Some(started)
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same again, at the same address.
    pub async fn again(&mut self) {
        self.child = self.command.spawn().unwrap();
        self.listens().await;
    }

    async fn listens(&self) {
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("pgbouncer does not listen");
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
