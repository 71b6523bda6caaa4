//! Floor 1: the HTTP clients, and connections that go dead. Endpoints that the operator configured are trusted exactly; addresses that come from rows go
//! through the guard. No other module builds a client.
//!
//! [`trusted`] follows no redirect at all: an endpoint that moved is named in `workers.toml`, not followed with a key in hand.
//! It goes through the proxies of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`), never for this
//! machine itself. [`GuardedClient`] uses no proxy, because the address it checks must be the one that is connected to.
//! Both trust the certificates of the operating system (or of `SSL_CERT_FILE` and `SSL_CERT_DIR`).

mod address;
mod connector;
mod exchange;
mod guard;
mod sockets;
mod webhook;

use std::error::Error;
use std::time::Duration;

pub use reqwest::Client;
use reqwest::{ClientBuilder, NoProxy, Proxy};

pub use address::{Reach, reach};
pub use connector::StoreConnector;
pub use exchange::{Answer, Body, ExchangeError, GatherError, exchange, gather};
pub use guard::{BadRule, GuardPolicy, GuardedClient, Refusal};
pub use sockets::{cut, cut_silent, keep_alive, silent};
pub use webhook::webhook;

const USER_AGENT: &str = concat!("gristmill/", env!("CARGO_PKG_VERSION"));
const CONNECT: Duration = Duration::from_secs(10);

/// Why a client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("this machine has no TLS root certificates: install ca-certificates, or set SSL_CERT_FILE")]
    NoRoots,
    #[error("the environment's {0} is not a proxy's address")]
    Proxy(&'static str),
    #[error("the HTTP client could not be built")]
    Client(#[source] reqwest::Error),
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// The whole exchange.
    Whole(Duration),
    /// The longest time without a byte; a large file may take as long as it flows.
    Silence(Duration),
}

/// Makes ring the process's TLS provider. Every client of this module does it first; calling it again is harmless.
pub fn init() {
    // An error says that a provider is there already: ours, or one that an embedding program has chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client for endpoints that the operator configured.
///
/// # Errors
/// [`NetError`], where the machine has no certificates or the environment names a proxy that is none.
pub fn trusted(patience: Patience) -> Result<Client, NetError> {
    let builder = match patience {
        Patience::Whole(time) => client().timeout(time),
        Patience::Silence(time) => client().read_timeout(time),
    };
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    build(proxies(&environment)?.into_iter().fold(builder.no_proxy(), ClientBuilder::proxy))
}

fn client() -> ClientBuilder {
    init();
    Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT)
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(30))
        .pool_idle_timeout(Duration::from_mins(1))
}

fn build(builder: ClientBuilder) -> Result<Client, NetError> {
    builder.build().map_err(|error| {
        if deepest(&error).contains("No CA certificates") { NetError::NoRoots } else { NetError::Client(error) }
    })
}

/// The environment's proxies. This machine and its metadata service are never asked through one.
fn proxies(environment: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Proxy>, NetError> {
    type Make = fn(String) -> reqwest::Result<Proxy>;
    const KINDS: [(&str, &str, Make); 3] = [
        ("HTTPS_PROXY", "https_proxy", Proxy::https),
        ("HTTP_PROXY", "http_proxy", Proxy::http),
        ("ALL_PROXY", "all_proxy", Proxy::all),
    ];
    let except = environment("NO_PROXY").or_else(|| environment("no_proxy")).unwrap_or_default();
    let except = NoProxy::from_string(&format!("{except},localhost,127.0.0.0/8,::1,169.254.0.0/16"));

    let mut proxies = Vec::new();
    for (name, lower, make) in KINDS {
        if let Some(address) = environment(name).or_else(|| environment(lower)) {
            let proxy = make(address).map_err(|_| NetError::Proxy(name))?;
            proxies.push(proxy.no_proxy(except.clone()));
        }
    }
    Ok(proxies)
}

/// What lies at the bottom of an error: "connection refused" rather than "error sending request". It never holds an address
/// with its query, as the upper layers do.
fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut bottom = error;
    while let Some(source) = bottom.source() {
        bottom = source;
    }
    bottom.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starting_twice_is_harmless() {
        init();
        init();
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }

    #[test]
    fn proxies_come_from_the_environment_in_either_case() {
        let environment = |name: &str| match name {
            "HTTPS_PROXY" | "http_proxy" => Some("http://proxy.example:3128".to_owned()),
            _ => None,
        };
        assert_eq!(proxies(&environment).expect("both are addresses").len(), 2);
        assert!(proxies(&|_| None).expect("nothing is set").is_empty());
    }

    #[test]
    fn a_proxy_that_is_none_is_named_without_its_value() {
        let environment = |name: &str| (name == "ALL_PROXY").then(|| "http://user:hunter2@[".to_owned());
        let error = proxies(&environment).expect_err("the address is broken").to_string();
        assert_eq!(error, "the environment's ALL_PROXY is not a proxy's address");
    }
}
