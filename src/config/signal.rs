//! `[pipelines.x.signal]`: who is told when a job has ended.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::raw::{Item, Section};
use super::values::{address, secret, text};
use super::{Secret, Signal, Webhook};

/// The channel that wakes our own workers.
const OURS: &str = "gristmill_jobs";
/// In bytes: a shorter secret could be guessed from one signature.
const SHORTEST_SECRET: usize = 16;

pub(super) fn signal(mut section: Section) -> Option<Signal> {
    let notify = section.optional("notify", channel);
    let has_webhook = section.has("webhook");
    let webhook = section.section("webhook").and_then(webhook);
    section.finish();
    // Given but not right: the misfit is recorded, and there is no signal.
    (webhook.is_some() || !has_webhook).then_some(Signal { notify, webhook })
}

fn channel(item: &Item) -> Result<String, String> {
    let name = text(item)?;
    if name == OURS {
        return Err("is the channel of Gristmill's own workers; take another".to_owned());
    }
    if name.len() <= 63 { Ok(name) } else { Err("is not a name for a channel (at most 63 bytes)".to_owned()) }
}

fn webhook(mut section: Section) -> Option<Webhook> {
    let url = section.need("url", address, "\"https://app.example/internal/ready\"");
    let key = section.need("secret", signing_key, "\"${WEBHOOK_SECRET}\"");
    section.finish();
    Some(Webhook { url: url?, key: key? })
}

/// The bytes to sign with: those behind `whsec_`, as Standard Webhooks writes them, or the secret's own.
fn signing_key(item: &Item) -> Result<Secret<Vec<u8>>, String> {
    let secret = secret(item)?;
    let key = match secret.expose().strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| "is not base64 after whsec_".to_owned())?,
        None => secret.expose().as_bytes().to_vec(),
    };
    if key.len() < SHORTEST_SECRET {
        return Err(format!("is shorter than {SHORTEST_SECRET} bytes; `openssl rand -base64 32` makes one"));
    }
    Ok(Secret::new(key))
}
