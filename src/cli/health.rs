//! `gristmill health`

use std::time::Duration;

use serde::Serialize;

use crate::net::{self, Patience};

use super::failure::Failure;
use super::session::Session;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: HEALTHCHECK CMD [\"gristmill\", \"health\"]\nWith --ready it fails, too, while a pipeline is refused or paused or a provider is away."
)]
pub(super) struct Args {
    /// The page to ask; default: /healthz where worker.listen says
    #[arg(long)]
    url: Option<String>,
    /// Ask /readyz
    #[arg(long, conflicts_with = "url")]
    ready: bool,
}

#[derive(Debug, Serialize)]
struct Told<'a> {
    url: &'a str,
    status: u16,
    /// JSON where the page is that, else its text.
    page: serde_json::Value,
}

const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_ANSWER: u64 = 1 << 20;

pub(super) async fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => own_url(session, args.ready)?,
    };
    let client = net::trusted(Patience::Whole(PATIENCE)).map_err(|error| Failure::of(&error))?;
    let answer = net::exchange(client.get(&url), LONGEST_ANSWER).await;
    let answer = answer.map_err(|error| Failure::Failed(format!("{url} does not answer: {error}")))?;
    let page = String::from_utf8_lossy(&answer.body.bytes);
    let told = Told {
        url: &url,
        status: answer.status.as_u16(),
        page: serde_json::from_slice(&answer.body.bytes).unwrap_or_else(|_| page.trim().into()),
    };
    session.print(&told, |_| page.to_string())?;
    if answer.status.is_success() { Ok(()) } else { Err(Failure::Failed(format!("{url} answers {}", answer.status))) }
}

/// The page of a worker on this machine. Neither secrets nor the database are needed to know where it is.
fn own_url(session: &Session, ready: bool) -> Result<String, Failure> {
    let (config, _) = session.config_without_secrets()?;
    let Some(mut address) = config.worker.listen else {
        return Err(Failure::Usage("worker.listen is \"off\": there is no page to ask".to_owned()));
    };
    // A worker that listens everywhere is reached here.
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    Ok(format!("http://{address}/{}", if ready { "readyz" } else { "healthz" }))
}
