//! A wire between worker and Postgres that can be cut, slowed and frozen. It runs on a thread of its own.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use url::Url;

/// What the wire is like; changes hold for connections that are there.
struct State {
    /// So many commits more reach the server and are never acknowledged.
    commits_to_cut: AtomicUsize,
    cut: AtomicUsize,
    /// The connections of so many commits more freeze for good when these have reached the server.
    commits_to_freeze: AtomicUsize,
    /// The same before they reach it.
    commits_to_lose: AtomicUsize,
    delay_ms: AtomicUsize,
    /// Raised by one, it freezes every connection there is, for good: nothing arrives, nothing is closed.
    ice: watch::Sender<usize>,
}

/// Where the server listens.
#[derive(Clone)]
pub enum Server {
    Socket(PathBuf),
    Port(String, u16),
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Server {
    /// The server of a database's address: a private one listens at a socket alone.
    pub fn of(url: &str) -> Self {
        let url = Url::parse(url).unwrap();
        let folder = url.query_pairs().find(|(name, _)| name == "host").map(|(_, folder)| folder.into_owned());
        match folder {
            Some(folder) => Self::Socket(PathBuf::from(folder).join(".s.PGSQL.5432")),
            None => Self::Port(url.host_str().unwrap_or("localhost").to_owned(), url.port().unwrap_or(5432)),
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Wire>> {
        Ok(match self {
            Self::Socket(path) => Box::new(UnixStream::connect(path).await?),
            Self::Port(host, port) => Box::new(TcpStream::connect((host.as_str(), *port)).await?),
        })
    }
}

pub struct Proxy {
    state: Arc<State>,
    port: u16,
}

impl Proxy {
    /// Listens on loopback for whoever wants the server.
    pub fn start(server: Server) -> Self {
        Self::at(0, server)
    }

    /// The same at a port of the caller's.
    pub fn at(port: u16, server: Server) -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            commits_to_cut: AtomicUsize::new(0),
            cut: AtomicUsize::new(0),
            commits_to_freeze: AtomicUsize::new(0),
            commits_to_lose: AtomicUsize::new(0),
            delay_ms: AtomicUsize::new(0),
            ice: watch::Sender::new(0),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((client, _)) = listener.accept().await {
                    let (server, state) = (server.clone(), Arc::clone(&shared));
                    tokio::spawn(async move { carry(client, server, &state).await.ok() });
                }
            });
        });
        Self { state, port }
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    pub fn cut_commits(&self, count: usize) {
        self.state.commits_to_cut.store(count, Ordering::SeqCst);
    }

    /// How many acknowledgements were lost so far.
    pub fn cut(&self) -> usize {
        self.state.cut.load(Ordering::SeqCst)
    }

    pub fn freeze_commits(&self, count: usize) {
        self.state.commits_to_freeze.store(count, Ordering::SeqCst);
    }

    pub fn lose_commits(&self, count: usize) {
        self.state.commits_to_lose.store(count, Ordering::SeqCst);
    }

    /// How many of both did not come yet.
    pub fn commits_awaited(&self) -> usize {
        self.state.commits_to_freeze.load(Ordering::SeqCst) + self.state.commits_to_lose.load(Ordering::SeqCst)
    }

    pub fn delay(&self, each_way: Duration) {
        self.state.delay_ms.store(usize::try_from(each_way.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub fn freeze(&self) {
        self.state.ice.send_modify(|times| *times += 1);
    }
}

async fn carry(mut client: TcpStream, server: Server, state: &State) -> io::Result<()> {
    let mut server = server.connect().await?;
    let mut ice = state.ice.subscribe();
    let mut asked = vec![0; 64 * 1024];
    let mut said = vec![0; 64 * 1024];
    let mut cutting = false;
    loop {
        tokio::select! {
            // Whatever comes after the ice stays in it.
            biased;
            _ = ice.changed() => {
                // Whoever holds the other ends learns nothing.
                std::future::pending::<()>().await;
            }
            read = client.read(&mut asked) => {
                let count = read?;
                if count == 0 { return Ok(()); }
                pause(state).await;
                // sqlx commits with a simple query of its own.
                let commits = asked[..count].ends_with(b"COMMIT\0");
                cutting |= commits && take_one(&state.commits_to_cut);
                if commits && take_one(&state.commits_to_lose) {
                    std::future::pending::<()>().await;
                }
                server.write_all(&asked[..count]).await?;
                if commits && take_one(&state.commits_to_freeze) {
                    std::future::pending::<()>().await;
                }
            }
            read = server.read(&mut said) => {
                let count = read?;
                if count == 0 { return Ok(()); }
                if cutting {
                    // The server has committed, and nobody will hear of it.
                    state.cut.fetch_add(1, Ordering::SeqCst);
                    return Ok(());
                }
                pause(state).await;
                client.write_all(&said[..count]).await?;
            }
        }
    }
}

async fn pause(state: &State) {
    let delay = state.delay_ms.load(Ordering::SeqCst);
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay as u64)).await;
    }
}

fn take_one(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
}
