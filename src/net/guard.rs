use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use reqwest::Client;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::address::{Reach, reach};
use super::exchange::{Answer, ExchangeError, exchange};
use super::{NetError, build, client};

const REDIRECTS: usize = 5;
const LONGEST: usize = 4096;

/// Which addresses of rows are asked.
#[derive(Debug, Clone)]
pub struct GuardPolicy {
    rules: Vec<Rule>,
    /// Whether addresses of this machine and its network are allowed.
    private: bool,
}

/// One host of the allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    host: Host,
    /// `*.host`: every name below, not the host itself.
    below: bool,
    scheme: &'static str,
    port: u16,
}

/// An entry of the allow-list that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host: write files.example.org, *.example.org, files.example.org:8443 or http://files.internal")]
pub struct BadRule(pub String);

/// Why an address from a row is not asked. Never holds its path or query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is not an http or https address")]
    Unreadable,
    #[error("it holds a user name or password")]
    Credentials,
    #[error("{0} is not in the store's list of hosts, with this scheme and port")]
    Host(String),
    #[error("{0} leads to an address inside a network or machine that rows may not ask")]
    Address(String),
    #[error("it is redirected more than {REDIRECTS} times")]
    Redirects,
}

impl Refusal {
    /// The refusal that a resolver gave, below what the client made of it.
    pub(super) fn within(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut error = Some(error);
        while let Some(layer) = error {
            if let Some(refusal) = layer.downcast_ref::<Self>() {
                return Some(refusal.clone());
            }
            error = layer.source();
        }
        None
    }
}

impl GuardPolicy {
    /// Reads an allow-list. An entry is a host name or `*.` and one, https on its usual port unless it says `http://` before
    /// or a port behind.
    ///
    /// # Errors
    /// [`BadRule`] with the first entry that is none of this.
    pub fn new(hosts: &[String], private: bool) -> Result<Self, BadRule> {
        let rules =
            hosts.iter().map(|host| rule(host).ok_or_else(|| BadRule(host.clone()))).collect::<Result<_, _>>()?;
        Ok(Self { rules, private })
    }

    /// Whether the address may be asked, as far as its text tells; names are judged again by what they resolve to.
    ///
    /// # Errors
    /// [`Refusal`], saying what is wrong with it.
    pub fn permit(&self, url: &Url) -> Result<(), Refusal> {
        let host = url.host().ok_or(Refusal::Unreadable)?.to_owned();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Credentials);
        }
        let address = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        if address.is_some_and(|address| !self.allows(address)) {
            return Err(Refusal::Address(host.to_string()));
        }
        if self.rules.iter().any(|rule| rule.covers(url, &host)) {
            Ok(())
        } else {
            Err(Refusal::Host(host.to_string()))
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        match reach(address) {
            Reach::Public => true,
            Reach::Private => self.private,
            Reach::Never => false,
        }
    }
}

fn rule(text: &str) -> Option<Rule> {
    let (scheme, rest) = match text.split_once("://") {
        Some(("http", rest)) => ("http", rest),
        Some(("https", rest)) => ("https", rest),
        Some(_) => return None,
        None => ("https", text),
    };
    let (below, name) = rest.strip_prefix("*.").map_or((false, rest), |name| (true, name));
    // Parsing brings names into the form in which addresses are compared: lower case, punycode, no dots and zeros of fancy.
    let url = Url::parse(&format!("{scheme}://{name}")).ok()?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    let host = plain(url.host()?.to_owned());
    if !bare || name.ends_with('/') || name.contains('*') || below && !matches!(host, Host::Domain(_)) {
        return None;
    }
    Some(Rule { host, below, scheme, port: url.port_or_known_default()? })
}

impl Rule {
    fn covers(&self, url: &Url, host: &Host) -> bool {
        let named = match (&self.host, plain(host.clone())) {
            (Host::Domain(base), Host::Domain(name)) if self.below => {
                name.strip_suffix(base.as_str()).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
            }
            (ours, theirs) => !self.below && *ours == theirs,
        };
        named && url.scheme() == self.scheme && url.port_or_known_default() == Some(self.port)
    }
}

/// A name without the dot of the root, which says the same.
fn plain(host: Host) -> Host {
    match host {
        Host::Domain(name) => Host::Domain(name.strip_suffix('.').map_or(name.clone(), str::to_owned)),
        address => address,
    }
}

/// A client for addresses that come from rows.
#[derive(Debug, Clone)]
pub struct GuardedClient {
    client: Client,
    policy: Arc<GuardPolicy>,
}

impl GuardedClient {
    /// A client that asks what the policy permits, by the system's resolver.
    ///
    /// # Errors
    /// [`NetError`], where the machine has no certificates.
    pub fn new(policy: GuardPolicy, patience: std::time::Duration) -> Result<Self, NetError> {
        Self::with_resolver(policy, patience, Arc::new(SystemResolver))
    }

    /// The same with another resolver, whose answers are judged all the same.
    ///
    /// # Errors
    /// [`NetError`], where the machine has no certificates.
    pub fn with_resolver(
        policy: GuardPolicy,
        patience: std::time::Duration,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, NetError> {
        let policy = Arc::new(policy);
        let resolver = GuardedResolver { resolver, policy: Arc::clone(&policy) };
        let client = build(client().no_proxy().timeout(patience).dns_resolver(resolver))?;
        Ok(Self { client, policy })
    }

    /// Gets what is at an address, following a few redirects, each judged like the first.
    ///
    /// # Errors
    /// [`ExchangeError`]; an answer of any status is not an error.
    pub async fn get(&self, address: &str, limit: u64) -> Result<Answer, ExchangeError> {
        let mut url = parse(address)?;
        for _ in 0..=REDIRECTS {
            self.policy.permit(&url)?;
            let answer = exchange(self.client.get(url.clone()), limit).await?;
            match answer.header("location") {
                Some(next) if answer.status.is_redirection() => {
                    url = parse(url.join(next).map_err(|_| Refusal::Unreadable)?.as_str())?;
                }
                _ => return Ok(answer),
            }
        }
        Err(Refusal::Redirects.into())
    }
}

fn parse(address: &str) -> Result<Url, Refusal> {
    match Url::parse(address) {
        Ok(url) if address.len() <= LONGEST && matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err(Refusal::Unreadable),
    }
}

/// Judges addresses where they are about to be connected to, so that a name cannot change its mind after the check. The
/// client asks it for names only; literal addresses are judged by [`GuardPolicy::permit`].
struct GuardedResolver {
    resolver: Arc<dyn Resolve>,
    policy: Arc<GuardPolicy>,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        let host = name.as_str().to_owned();
        let found = self.resolver.resolve(name);
        Box::pin(async move {
            let allowed: Vec<SocketAddr> = found.await?.filter(|address| policy.allows(address.ip())).collect();
            if allowed.is_empty() {
                return Err(Refusal::Address(host).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The port is the client's to set; 0 asks it to.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(private: bool) -> GuardPolicy {
        let hosts = [
            "files.example.org",
            "*.cdn.example.org",
            "http://old.example.org",
            "odd.example.org:8443",
            "http://127.0.0.1:8080",
            "10.0.0.1",
            "[::1]",
            "169.254.169.254",
            "[::ffff:10.0.0.1]",
            "93.184.216.34",
        ];
        GuardPolicy::new(&hosts.map(str::to_owned), private).expect("hosts")
    }

    fn check(private: bool, address: &str) -> &'static str {
        match parse(address).and_then(|url| policy(private).permit(&url)) {
            Ok(()) => "asked",
            Err(Refusal::Unreadable) => "unreadable",
            Err(Refusal::Credentials) => "credentials",
            Err(Refusal::Host(_)) => "host",
            Err(Refusal::Address(_)) => "address",
            Err(Refusal::Redirects) => "redirects",
        }
    }

    #[test]
    fn listed_hosts_are_asked_and_no_others() {
        for (expected, address) in [
            ("asked", "https://files.example.org/a?token=1"),
            ("asked", "https://FILES.example.org./a"),
            ("asked", "https://files.example.org:443/a"),
            ("asked", "https://eu.cdn.example.org/a"),
            ("asked", "https://a.b.cdn.example.org/a"),
            ("asked", "http://old.example.org/a"),
            ("asked", "https://odd.example.org:8443/a"),
            ("asked", "https://93.184.216.34/a"),
            ("host", "https://example.org/a"),
            ("host", "https://cdn.example.org/a"),
            ("host", "https://.cdn.example.org/a"),
            ("host", "https://evilcdn.example.org/a"),
            ("host", "https://files.example.org.evil.com/a"),
            ("host", "https://evil.com/files.example.org"),
            ("host", "https://evil.com#@files.example.org/"),
            ("host", "https://evil.com\\@files.example.org/"),
            ("host", "http://files.example.org/a"),
            ("host", "https://files.example.org:8443/a"),
            ("host", "https://old.example.org/a"),
            ("host", "https://odd.example.org/a"),
            ("host", "https://localhost/a"),
            ("host", "https://1.1.1.1/a"),
            ("credentials", "https://me@files.example.org/a"),
            ("credentials", "https://me:secret@files.example.org/a"),
            ("unreadable", "file:///etc/passwd"),
            ("unreadable", "ftp://files.example.org/a"),
            ("unreadable", "gopher://files.example.org/a"),
            ("unreadable", "files.example.org/a"),
            ("unreadable", "data:text/plain,hello"),
            ("unreadable", "https://"),
            ("unreadable", ""),
        ] {
            assert_eq!(check(false, address), expected, "{address}");
        }
        assert_eq!(check(false, &format!("https://files.example.org/{}", "a".repeat(LONGEST))), "unreadable");
    }

    #[test]
    fn literal_addresses_are_judged_in_every_disguise_even_if_listed() {
        for address in [
            "http://127.0.0.1:8080/",
            "http://127.1:8080/",
            "http://0x7f.1:8080/",
            "http://0x7f000001:8080/",
            "http://2130706433:8080/",
            "http://0177.0.0.1:8080/",
            "http://127.0.0.1.:8080/",
            "http://１２７.０.０.１:8080/",
            "http://127。0。0。1:8080/",
            "https://10.0.0.1/",
            "https://[::1]/",
            "https://[0:0:0:0:0:0:0:1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://[::ffff:a00:1]/",
            "https://[64:ff9b::10.0.0.1]/",
            "https://[2002:a00:1::]/",
            "https://[fd00::1]/",
            "https://[fe80::1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://2852039166/latest/meta-data",
            "https://[::ffff:169.254.169.254]/",
            "https://0.0.0.0/",
            "https://0/",
            "https://[::]/",
        ] {
            assert_eq!(check(false, address), "address", "{address}");
        }
    }

    #[test]
    fn private_addresses_are_asked_where_the_operator_says_so_but_metadata_never() {
        assert_eq!(check(true, "http://127.1:8080/"), "asked");
        assert_eq!(check(true, "https://[::ffff:a00:1]/"), "asked");
        assert_eq!(check(true, "https://10.0.0.2/"), "host");
        assert_eq!(check(true, "https://169.254.169.254/"), "address");
        assert_eq!(check(true, "https://[64:ff9b::a9fe:a9fe]/"), "address");
    }

    #[test]
    fn entries_that_are_no_hosts_are_named() {
        for text in ["", "*", "*.", "a/b", "ftp://a", "a b", "https://a/", "*.*.a", "a*b", "*.10.0.0.1", "me@a", "a?b"]
        {
            assert_eq!(GuardPolicy::new(&[text.to_owned()], false).err(), Some(BadRule(text.to_owned())), "{text}");
        }
    }
}
