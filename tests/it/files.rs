//! Stores read over real sockets and folders: what is there, what is not, and what rows must not reach.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use gristmill::config::{Secret, Store as Configured, StoreKind};
use gristmill::files::{FileBytes, FileError, Files, StorePath, StorePattern};
use gristmill::net::{self, ExchangeError, GuardPolicy, GuardedClient, NetError, Patience, Refusal};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use sha2::{Digest, Sha256};

use crate::stores::{KEY, KEY_ID, SECRET, Store, serve, wire};

const LARGEST: u64 = 1000;

fn files(kind: StoreKind) -> Files {
    let stores = BTreeMap::from([("docs".to_owned(), Configured { kind, largest: LARGEST })]);
    Files::open(&stores).unwrap()
}

fn folder(root: &Path) -> Files {
    files(StoreKind::Local { root: root.to_owned() })
}

fn supabase(url: &str, key: &str, buckets: &[&str]) -> Files {
    let buckets = buckets.iter().map(|&name| name.to_owned()).collect();
    files(StoreKind::Supabase { url: url.parse().unwrap(), key: Secret::new(key), buckets })
}

fn s3(url: &str, bucket: &str, secret: &str) -> Files {
    files(StoreKind::S3 {
        bucket: bucket.to_owned(),
        region: "eu-central-1".to_owned(),
        endpoint: Some(url.parse().unwrap()),
        key_id: Some(Secret::new(KEY_ID)),
        secret: Some(Secret::new(secret)),
        path_style: true,
    })
}

fn addresses(host: &str) -> Files {
    files(StoreKind::Url { hosts: vec![host.to_owned()], private: true })
}

async fn read(files: &Files, path: &str) -> Result<FileBytes, FileError> {
    files.read("docs", &StorePath::checked(path, None).unwrap()).await
}

/// What a person sees of a read: the text, or why there is none.
async fn seen(files: &Files, path: &str) -> String {
    words(read(files, path).await)
}

fn words(read: Result<FileBytes, FileError>) -> String {
    match read {
        Ok(file) => String::from_utf8(file.bytes.to_vec()).unwrap(),
        Err(error) => {
            let shown = format!("{error} {error:?}");
            for secret in [KEY, KEY_ID, SECRET, "token"] {
                assert!(!shown.contains(secret), "{shown}");
            }
            error.to_string()
        }
    }
}

async fn found(files: &Files, pattern: &str) -> String {
    let pattern = StorePattern::checked(pattern, None).unwrap();
    files.find("docs", &pattern).await.map_or_else(|error| error.to_string(), |path| path.to_string())
}

#[tokio::test]
async fn a_file_comes_with_its_hash_size_and_type() {
    let store = Store::default();
    store.put("b", "u1/a.txt", "text/plain", b"One.");
    let over_supabase = read(&supabase(&store.supabase().await, KEY, &["b"]), "u1/a.txt").await.unwrap();
    let over_s3 = read(&s3(&store.s3().await, "b", SECRET), "u1/a.txt").await.unwrap();

    assert_eq!(over_s3.bytes, "One.");
    assert_eq!(over_s3.hash, <[u8; 32]>::from(Sha256::digest("One.")));
    assert_eq!((over_s3.size, over_s3.media_type.as_deref()), (4, Some("text/plain")));
    assert_eq!(over_s3, over_supabase);

    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a.txt"), "One.").unwrap();
    let from_folder = read(&folder(root.path()), "a.txt").await.unwrap();
    assert_eq!(from_folder, FileBytes { media_type: None, ..over_s3 });
}

#[tokio::test]
async fn names_are_taken_literally_by_every_store() {
    let store = Store::default();
    let root = tempfile::tempdir().unwrap();
    let over_supabase = supabase(&store.supabase().await, KEY, &["b"]);
    let over_s3 = s3(&store.s3().await, "b", SECRET);
    for name in
        ["a b+c.txt", "50%.txt", "a%20b", "%252e", "ü/日本.txt", "a?b#c", "a&b=c;d", "it's (1)!*~.txt", "x#1", "a:b@c"]
    {
        store.put("b", name, "text/plain", name.as_bytes());
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
        for files in [&over_supabase, &over_s3, &folder(root.path())] {
            assert_eq!(seen(files, name).await, name);
        }
    }
}

#[tokio::test]
async fn what_is_missing_refused_or_misconfigured_is_told_apart() {
    let store = Store::default();
    store.put("b", "a.txt", "text/plain", b"One.");
    let (url, s3_url) = (store.supabase().await, store.s3().await);
    for (files, expected) in [
        (supabase(&url, KEY, &["b"]), "none.txt in store docs is not there"),
        (supabase(&url, KEY, &["c"]), "store docs is misconfigured: its bucket is not there"),
        (supabase(&url, KEY, &["c", "d"]), "store docs is misconfigured: none of its buckets is there: c, d"),
        (supabase(&url, "token", &["b"]), "store docs is misconfigured: it refuses the key"),
        (supabase(&s3_url, KEY, &["b"]), "none.txt in store docs may not be read: the store answers 403"),
        (s3(&s3_url, "b", SECRET), "none.txt in store docs is not there"),
        (s3(&s3_url, "c", SECRET), "store docs is misconfigured: its bucket is not there"),
        (s3(&s3_url, "b", "token"), "store docs is misconfigured: it refuses the credential: SignatureDoesNotMatch"),
    ] {
        assert_eq!(seen(&files, "none.txt").await, expected);
        assert_eq!(
            files.probe("docs").await.is_ok(),
            expected.ends_with("is not there") && expected.starts_with("none")
        );
    }
    let unknown =
        files(StoreKind::Local { root: "/".into() }).read("other", &StorePath::checked("a", None).unwrap()).await;
    assert_eq!(words(unknown), "store other is misconfigured: there is no such store");
}

#[tokio::test]
async fn of_several_buckets_the_first_that_exists_is_taken_and_remembered() {
    let store = Store::default();
    store.put("new", "a.txt", "text/plain", b"New.");
    store.put("newer", "a.txt", "text/plain", b"Newer.");
    let files = supabase(&store.supabase().await, KEY, &["old", "new", "newer"]);
    assert_eq!(files.probe("docs").await.as_deref(), Ok("bucket new"));
    assert_eq!(seen(&files, "a.txt").await, "New.");
    assert_eq!(seen(&files, "a.txt").await, "New.");
    let asked = store.seen.lock().unwrap().iter().filter(|line| line.ends_with("/bucket/old")).count();
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn a_busy_store_is_not_available_and_s3_gets_one_more_try() {
    let store = Store::default();
    store.put("b", "a.txt", "text/plain", b"One.");
    let (over_supabase, over_s3) = (supabase(&store.supabase().await, KEY, &["b"]), s3(&store.s3().await, "b", SECRET));
    let plan = |statuses: &[u16]| *store.first.lock().unwrap() = statuses.to_vec();

    plan(&[429]);
    assert_eq!(seen(&over_supabase, "a.txt").await, "store docs is not available: it answers 429");
    plan(&[503]);
    assert_eq!(seen(&over_s3, "a.txt").await, "One.");
    plan(&[503, 503]);
    assert_eq!(seen(&over_s3, "a.txt").await, "store docs is not available: it answers 503");
}

#[tokio::test]
async fn patterns_find_the_newest_file_that_fits() {
    let store = Store::default();
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("u1/note.deep")).unwrap();
    // The fakes take a name's length for its age, so the folder's files are dated alike.
    for name in [
        "u1/note.mp3",
        "u1/note.webm",
        "u1/notes.longer",
        "u1/note.deep/of all.mp3",
        "u1/Note.longest",
        "u2/a.b",
        "u1/.hidden",
    ] {
        store.put("b", name, "audio/mpeg", b"~");
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(name.len() as u64);
        std::fs::File::create(path).unwrap().set_modified(time).unwrap();
    }
    let over_supabase = supabase(&store.supabase().await, KEY, &["b"]);
    let over_s3 = s3(&store.s3().await, "b", SECRET);
    for files in [&over_supabase, &over_s3, &folder(root.path())] {
        assert_eq!(found(files, "u1/note.*").await, "u1/note.webm");
        assert_eq!(found(files, "u1/note.m*3").await, "u1/note.mp3");
        assert_eq!(found(files, "u2/*").await, "u2/a.b");
        assert_eq!(found(files, "u1/.h*").await, "u1/.hidden");
        assert_eq!(found(files, "u1/none.*").await, "u1/none.* in store docs is not there");
        assert_eq!(found(files, "u3/note.*").await, "u3/note.* in store docs is not there");
    }
}

#[tokio::test]
async fn a_folder_of_many_names_is_listed_to_its_end_or_refused() {
    let store = Store::default();
    for index in 0..250 {
        store.put("b", &format!("u1/{index:04}"), "text/plain", b"");
    }
    store.put("b", "u1/0249-newest", "text/plain", b"");
    let over_supabase = supabase(&store.supabase().await, KEY, &["b"]);
    assert_eq!(found(&over_supabase, "u1/0*").await, "u1/0249-newest");

    for index in 0..1000 {
        store.put("b", &format!("u1/1{index:04}"), "text/plain", b"");
    }
    let over_s3 = s3(&store.s3().await, "b", SECRET);
    assert_eq!(found(&over_s3, "u1/0*").await, "u1/0249-newest");
    for files in [&over_supabase, &over_s3] {
        let refused = "store docs is misconfigured: more than 1000 names start like u1/*";
        assert_eq!(found(files, "u1/*").await, refused);
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_by_its_length_and_cut_off_without_one() {
    let head = "HTTP/1.1 200 OK\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n";
    // The announced bytes never come: waiting for them would end in another error.
    let announced = format!("{head}content-length: {}\r\n\r\n", LARGEST + 1).into_bytes();
    let endless =
        [format!("{head}transfer-encoding: chunked\r\n\r\n"), "64\r\n".to_owned() + &"x".repeat(100) + "\r\n"];
    let endless = endless[0].clone() + &endless[1].repeat(11);

    let expected = "a.txt in store docs is larger than 1000 bytes, the store's `largest`";
    for reply in [announced.clone(), endless.into_bytes()] {
        let (address, connections) = wire(vec![reply]).await;
        assert_eq!(seen(&supabase(&format!("http://{address}"), KEY, &["b"]), "a.txt").await, expected);
        assert_eq!(connections.load(Ordering::SeqCst), 1);
        let fetched = addresses(&format!("http://{address}")).fetch("docs", &format!("http://{address}/a"), None).await;
        assert!(matches!(fetched, Err(FileError::TooLarge { limit: LARGEST, .. })), "{fetched:?}");
    }
    let (address, _) = wire(vec![announced]).await;
    assert_eq!(seen(&s3(&format!("http://{address}"), "b", SECRET), "a.txt").await, expected);

    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a.txt"), vec![b'x'; 1001]).unwrap();
    std::fs::write(root.path().join("b.txt"), vec![b'x'; 1000]).unwrap();
    assert_eq!(seen(&folder(root.path()), "a.txt").await, expected);
    assert_eq!(read(&folder(root.path()), "b.txt").await.unwrap().size, 1000);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_tried_once_more() {
    let head = "HTTP/1.1 200 OK\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n";
    let short = format!("{head}etag: \"a\"\r\ncontent-length: 4\r\n\r\nOn").into_bytes();
    let whole = format!("{head}etag: \"a\"\r\ncontent-length: 4\r\n\r\nOne.").into_bytes();
    let rest =
        b"HTTP/1.1 206 Partial Content\r\netag: \"a\"\r\ncontent-range: bytes 2-3/4\r\ncontent-length: 2\r\n\r\ne.";

    for (replies, expected) in [
        (vec![short.clone(), whole.clone()], "One."),
        (vec![Vec::new(), whole.clone()], "One."),
        (vec![short.clone()], "store docs is not available: the connection failed: "),
        (vec![Vec::new()], "store docs is not available: the connection failed: "),
    ] {
        let (address, connections) = wire(replies).await;
        let seen = seen(&supabase(&format!("http://{address}"), KEY, &["b"]), "a.txt").await;
        assert!(seen.starts_with(expected), "{seen}");
        assert_eq!(connections.load(Ordering::SeqCst), 2);
    }
    for (replies, expected) in [
        (vec![short.clone(), rest.to_vec()], "One."),
        (vec![Vec::new(), whole], "One."),
        (vec![short], "store docs is not available: "),
        (vec![Vec::new()], "store docs is not available: the connection failed: "),
    ] {
        let (address, connections) = wire(replies).await;
        let seen = seen(&s3(&format!("http://{address}"), "b", SECRET), "a.txt").await;
        assert!(seen.starts_with(expected), "{seen}");
        assert_eq!(connections.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn a_store_that_moved_is_not_followed_with_the_key_in_hand() {
    let thief = Store::default();
    let elsewhere = thief.supabase().await;
    let moved = serve(Router::new().fallback(async move || Redirect::temporary(&elsewhere))).await;
    for files in [supabase(&moved, KEY, &["b"]), s3(&moved, "b", SECRET)] {
        let expected = "store docs is misconfigured: it answers with a redirect; name the address that it leads to";
        assert_eq!(seen(&files, "a.txt").await, expected);
    }
    assert!(thief.seen.lock().unwrap().is_empty());
}

#[cfg(unix)]
#[tokio::test]
async fn links_stay_inside_the_folder_and_pipes_are_not_waited_for() {
    use std::os::unix::fs::symlink;
    let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (at, beyond) = (|name: &str| root.path().join(name), outside.path().join("secret.txt"));
    std::fs::write(&beyond, "Secret.").unwrap();
    std::fs::write(at("a.txt"), "One.").unwrap();
    std::fs::create_dir(at("sub")).unwrap();
    symlink("../a.txt", at("sub/inside.txt")).unwrap();
    symlink(&beyond, at("out.txt")).unwrap();
    symlink(outside.path(), at("out")).unwrap();
    symlink("loop", at("loop")).unwrap();
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());

    let files = folder(root.path());
    let out = "may not be read: a link leads out of the store's folder";
    for (path, expected) in [
        ("sub/inside.txt", "sub/inside.txt in store docs may not be read: a link stands in its path".to_owned()),
        ("out.txt", format!("out.txt in store docs {out}")),
        ("out/secret.txt", format!("out/secret.txt in store docs {out}")),
        ("loop", "loop in store docs may not be read: its links lead nowhere".to_owned()),
        ("pipe", "pipe in store docs may not be read: it is not a file".to_owned()),
        ("sub", "sub in store docs is not there".to_owned()),
        ("a.txt/b", "a.txt/b in store docs is not there".to_owned()),
    ] {
        assert_eq!(seen(&files, path).await, expected);
    }
    assert_eq!(found(&files, "out/*").await, format!("out/* in store docs {out}"));
    assert_eq!(found(&files, "out.*").await, "out.txt");

    let gone = folder(&at("none"));
    let root = at("none").display().to_string();
    let expected =
        format!("store docs is not available: folder {root} does not exist: create it, or correct the store's `root`");
    assert_eq!(seen(&gone, "a.txt").await, expected);
    assert!(gone.probe("docs").await.is_err());
}

#[tokio::test]
async fn addresses_of_rows_are_read_from_listed_hosts() {
    let router = Router::new()
        .route("/u1/a", get(async || "One."))
        .route("/u1/moved", get(async || Redirect::permanent("a")))
        .route("/u1/denied", get(async || axum::http::StatusCode::UNAUTHORIZED))
        .route("/u1/loop", get(async || Redirect::temporary("/u1/loop")))
        .route("/u1/metadata", get(async || Redirect::temporary("http://169.254.169.254/latest/meta-data?token=1")))
        .route("/u1/itself", get(async || Redirect::temporary("http://127.1:1/")))
        .route("/u1/file", get(async || Redirect::temporary("file:///etc/passwd")));
    let host = serve(router).await;
    let files = addresses(&host);
    assert!(files.takes_addresses("docs"));

    let never = "leads to an address inside a network or machine that rows may not ask";
    for (path, expected) in [
        ("u1/a?token=1", "One.".to_owned()),
        ("u1/moved?token=1", "One.".to_owned()),
        ("u1/none?token=1", "127.0.0.1 in store docs is not there".to_owned()),
        ("u1/denied", "127.0.0.1 in store docs may not be read: it refuses the credential".to_owned()),
        ("u1/loop", "the address is refused: it is redirected more than 5 times".to_owned()),
        ("u1/metadata", format!("the address is refused: 169.254.169.254 {never}")),
        (
            "u1/itself",
            "the address is refused: 127.0.0.1 is not in the store's list of hosts, with this scheme and port"
                .to_owned(),
        ),
        ("u1/file", "the address is refused: it is not an http or https address".to_owned()),
    ] {
        let seen = words(files.fetch("docs", &format!("{host}/{path}"), None).await);
        assert_eq!(seen, expected, "{path}");
    }
    let within = |owner: &str| format!("{host}/{owner}/");
    assert!(files.fetch("docs", &format!("{host}/u1/a"), Some(&within("u1"))).await.is_ok());
    assert!(matches!(
        files.fetch("docs", &format!("{host}/u1/a"), Some(&within("u2"))).await,
        Err(FileError::BadAddress(_))
    ));
}

/// A resolver that answers every name with the same addresses.
struct Answers(Vec<SocketAddr>);

impl Resolve for Answers {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses = self.0.clone();
        Box::pin(async move { Ok(Box::new(addresses.into_iter()) as Addrs) })
    }
}

fn guarded(private: bool, port: u16, answers: &[&str]) -> GuardedClient {
    let policy = GuardPolicy::new(&[format!("http://*.test:{port}")], private).unwrap();
    let answers = answers.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect();
    GuardedClient::with_resolver(policy, Duration::from_secs(5), Arc::new(Answers(answers))).unwrap()
}

#[tokio::test]
async fn a_name_that_resolves_to_a_forbidden_address_is_never_connected_to() {
    let (address, connections) = wire(vec![b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nOne.".to_vec()]).await;
    let url = format!("http://files.test:{}/a?token=1", address.port());
    for answers in [
        &["127.0.0.1"][..],
        &["10.0.0.1", "127.0.0.1", "::1"],
        &["::ffff:127.0.0.1"],
        &["64:ff9b::127.0.0.1"],
        &["2002:7f00:1::"],
        &["169.254.169.254"],
        &[],
    ] {
        let refused = guarded(false, address.port(), answers).get(&url, LARGEST).await;
        let expected = Refusal::Address("files.test".to_owned());
        assert!(matches!(&refused, Err(ExchangeError::Refused(refusal)) if *refusal == expected), "{refused:?}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);

    // The forbidden one among the answers is left out, so the connection can only go to the other.
    let allowed = guarded(true, address.port(), &["169.254.169.254", "127.0.0.1"]).get(&url, LARGEST).await;
    assert_eq!(allowed.unwrap().body.bytes, "One.");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// A resolver that changes its mind with every question, and counts them.
struct Fickle(Mutex<VecDeque<&'static str>>, Arc<AtomicUsize>);

impl Resolve for Fickle {
    fn resolve(&self, _: Name) -> Resolving {
        self.1.fetch_add(1, Ordering::SeqCst);
        let next = self.0.lock().unwrap().pop_front().unwrap_or("169.254.169.254");
        Box::pin(async move { Ok(Box::new([SocketAddr::new(next.parse().unwrap(), 0)].into_iter()) as Addrs) })
    }
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_judged_by_the_answer_that_is_connected_to() {
    let answer =
        |head: &str| format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: 4\r\n\r\nOne.").into_bytes();
    let replies = vec![answer("302 Found\r\nlocation: /b"), answer("200 OK")];
    let (address, connections) = wire(replies).await;
    let policy = GuardPolicy::new(&[format!("http://*.test:{}", address.port())], true).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let fickle = |answers: &[&'static str]| {
        let resolver = Fickle(Mutex::new(answers.iter().copied().collect()), Arc::clone(&asked));
        GuardedClient::with_resolver(policy.clone(), Duration::from_secs(5), Arc::new(resolver)).unwrap()
    };
    let url = format!("http://files.test:{}/a", address.port());

    // Allowed for the first request, forbidden for the redirect to itself.
    let refused = fickle(&["127.0.0.1", "169.254.169.254"]).get(&url, LARGEST).await;
    assert!(
        matches!(&refused, Err(ExchangeError::Refused(Refusal::Address(name))) if name == "files.test"),
        "{refused:?}"
    );
    assert_eq!((connections.load(Ordering::SeqCst), asked.load(Ordering::SeqCst)), (1, 2));

    // Each connection asks once: there is no second answer between the check and the use.
    let seen = fickle(&["127.0.0.1", "169.254.169.254"]).get(&url, LARGEST).await;
    assert_eq!(seen.unwrap().body.bytes, "One.");
    assert_eq!((connections.load(Ordering::SeqCst), asked.load(Ordering::SeqCst)), (2, 3));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    for patience in [Patience::Silence, Patience::Whole] {
        let client = net::trusted(patience(Duration::from_millis(50))).unwrap();
        let silent = net::exchange(client.get(&url), LARGEST).await;
        assert!(matches!(silent, Err(ExchangeError::TimedOut)), "{silent:?}");
    }
}

#[test]
fn a_machine_without_certificates_says_so() {
    if std::env::var_os("GRISTMILL_TEST_WITHOUT_ROOTS").is_some() {
        let error = net::trusted(Patience::Whole(Duration::from_secs(1))).unwrap_err();
        assert!(matches!(error, NetError::NoRoots), "{error:?}");
        return;
    }
    net::trusted(Patience::Whole(Duration::from_secs(1))).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "files::a_machine_without_certificates_says_so"])
        .envs([("GRISTMILL_TEST_WITHOUT_ROOTS", "1"), ("SSL_CERT_FILE", "/none"), ("SSL_CERT_DIR", "/none")])
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}

#[test]
fn a_store_that_this_build_cannot_read_names_the_feature() {
    let kind = StoreKind::Gcs { bucket: "b".to_owned(), credentials: None };
    let stores = BTreeMap::from([("docs".to_owned(), Configured { kind, largest: LARGEST })]);
    let opened = Files::open(&stores).err().map(|error| error.to_string());
    let expected = "store docs: this build cannot read it; build with --features gcs";
    assert_eq!(opened.as_deref() == Some(expected), !cfg!(feature = "gcs"));
}
