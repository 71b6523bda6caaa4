use url::Url;

use super::path::segment;
use super::trouble::Trouble;
use super::{BadPath, FileBytes};
use crate::net::GuardedClient;

/// Addresses that come from rows, through the guarded client.
pub(super) struct Addresses {
    client: GuardedClient,
    hosts: String,
}

impl Addresses {
    pub(super) fn new(client: GuardedClient, hosts: &[String]) -> Self {
        Self { client, hosts: hosts.join(", ") }
    }

    pub(super) async fn fetch(&self, address: &str, within: Option<&str>, limit: u64) -> Result<FileBytes, Trouble> {
        if let Some(within) = within {
            below(address, within).map_err(|bad| Trouble::BadAddress(bad.to_string()))?;
        }
        let answer = self.client.get(address, limit).await?;
        if answer.status.is_success() {
            let media_type = answer.header("content-type").map(str::to_owned);
            return Ok(FileBytes::new(answer.body, media_type.as_deref()));
        }
        Err(match Trouble::of_status(answer.status) {
            // Nobody configured this server: what it refuses, it refuses to this row.
            Trouble::Misconfigured(why) => Trouble::Denied(why),
            trouble => trouble,
        })
    }

    pub(super) fn probe(&self) -> String {
        format!("rows may ask {}", self.hosts)
    }
}

/// The host of an address, the only part of it that messages may show.
pub(super) fn host_of(address: &str) -> String {
    let url = Url::parse(address).ok();
    url.and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_else(|| "an address".to_owned())
}

/// Holds an address against what its row's owner may ask for, after both were brought into one form.
fn below(address: &str, within: &str) -> Result<(), BadPath> {
    let owner = Url::parse(within).map_err(|_| BadPath::NoOwner)?;
    // Judged as it was written: parsing would let a value of `..` climb to another owner's folder.
    let folder = within.strip_suffix('/').filter(|_| owner.path().ends_with('/')).ok_or(BadPath::NoOwner)?;
    let plain = owner.query().is_none() && owner.fragment().is_none();
    if !plain || folder.split('/').skip(3).any(|name| segment(name).is_err()) {
        return Err(BadPath::NoOwner);
    }
    let url = Url::parse(address).map_err(|_| BadPath::Outside)?;
    let path = url.path().to_ascii_lowercase();
    // Encoded slashes and backslashes are told apart from plain ones by some servers and not by others.
    let plain = !path.contains("%2f") && !path.contains("%5c") && !path.contains("//");
    if url.origin() == owner.origin() && plain && url.path().starts_with(owner.path()) {
        Ok(())
    } else {
        Err(BadPath::Outside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_must_lie_below_its_owner() {
        let check = |address: &str, within: &str| below(address, within);
        let owner = "https://files.example.org/u1/";
        assert_eq!(check("https://files.example.org/u1/a.pdf?token=1", owner), Ok(()));
        assert_eq!(check("https://files.example.org/u1/a.pdf", "https://files.example.org/"), Ok(()));
        assert_eq!(check("https://FILES.example.org:443/u1/a.pdf", owner), Ok(()));
        for address in [
            "https://files.example.org/u2/a.pdf",
            "https://files.example.org/u12/a.pdf",
            "https://files.example.org/u1/../u2/a.pdf",
            "https://files.example.org/u1/%2e%2e/u2/a.pdf",
            "https://files.example.org/u1/..%2fu2/a.pdf",
            "https://files.example.org/u1/..\\u2/a.pdf",
            "https://files.example.org/u1/..%5Cu2/a.pdf",
            "https://other.example.org/u1/a.pdf",
            "http://files.example.org/u1/a.pdf",
            "not an address",
        ] {
            assert_eq!(check(address, owner), Err(BadPath::Outside), "{address}");
        }
        let origin = "https://files.example.org";
        for within in ["//", "/u1", "/u1//", "/..//u1/", "/x/../", "/%2e%2e/", "/..\\/", "/u1/?b=c/", "/u1/#c/"] {
            let within = format!("{origin}{within}");
            assert_eq!(check("https://files.example.org/u1/a.pdf", &within), Err(BadPath::NoOwner), "{within}");
        }
    }

    #[test]
    fn only_the_host_is_shown() {
        assert_eq!(host_of("https://me:secret@a.example/u1?token=1"), "a.example");
        assert_eq!(host_of("nonsense"), "an address");
    }
}
