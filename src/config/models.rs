//! `[providers.x]`, `[models.x]` and `[[prices]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;

use url::Url;

use super::raw::{Item, Section};
use super::values::{
    amount, at_least, boolean, moment, one_of, path, secret, some_time, text, text_or_empty, url, whole, word,
};
use super::{Allowance, Meter, Model, Price, Provider, ProviderKind, Secret, TokenizerKind, speech};

const OPENAI: &str = "https://api.openai.com/v1";
const ELEVENLABS: &str = "https://api.elevenlabs.io";

#[derive(Clone, Copy)]
enum Kind {
    OpenAi,
    ElevenLabs,
    Local,
    Hash,
}

pub(super) fn provider(name: String, mut section: Section) -> Option<Provider> {
    let concurrency = section.or("concurrency", whole(1..=10_000), 8_usize);
    let timeout = section.optional("timeout", some_time);
    let (mut allowance, mut keys, mut pack_across_tenants) = (Allowance::default(), BTreeMap::new(), true);
    let kinds =
        [("openai", Kind::OpenAi), ("elevenlabs", Kind::ElevenLabs), ("local", Kind::Local), ("hash", Kind::Hash)];
    // Without a kind nobody knows which keys belong here.
    let kind = match section.need("kind", word(&kinds), "\"openai\"")? {
        Kind::OpenAi => {
            allowance.tokens = section.read("tokens_per_minute", per_minute);
            open_ai(&mut section)
        }
        Kind::ElevenLabs => eleven_labs(&mut section),
        Kind::Local => {
            let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
            let folder = section.optional("folder", path);
            Some(ProviderKind::Local { folder, threads: section.or("threads", whole(1..=1_024), cores) })
        }
        Kind::Hash => Some(ProviderKind::Hash),
    };
    if kind.as_ref().is_some_and(|kind| !kind.runs_here()) {
        allowance.requests = section.read("requests_per_minute", per_minute);
        pack_across_tenants = section.or("pack_across_tenants", boolean, true);
        keys = section.entries("keys").into_iter().filter_map(key_of_tenant).collect();
    }
    section.finish();
    Some(Provider { name, kind: kind?, concurrency, timeout, allowance, keys, pack_across_tenants })
}

fn key_of_tenant((tenant, item): (String, Item)) -> Option<(String, Secret)> {
    if tenant.is_empty() {
        let none = |_: &Item| Err("is no tenant's: rows without a tenant are paid with `key`".to_owned());
        return item.read(none);
    }
    Some((tenant, item.read(secret)?))
}

fn per_minute(item: &Item) -> Result<u32, String> {
    whole(1..=i64::from(u32::MAX))(item)
}

fn open_ai(section: &mut Section) -> Option<ProviderKind> {
    let given = section.has("url");
    section.assume("url", OPENAI);
    let url = section.read("url", base_url);
    let key = section.optional("key", secret);
    if !given && !section.has("key") {
        section.misfit_at("key", "is missing; write for example key = \"${OPENAI_API_KEY}\"");
    }
    Some(ProviderKind::OpenAi { url: url?, key })
}

fn eleven_labs(section: &mut Section) -> Option<ProviderKind> {
    section.assume("url", ELEVENLABS);
    let url = section.read("url", base_url);
    let key = section.need("key", secret, "\"${ELEVENLABS_API_KEY}\"");
    Some(ProviderKind::ElevenLabs { url: url?, key: key? })
}

fn base_url(item: &Item) -> Result<Url, String> {
    let url = url(item)?;
    for added in ["/embeddings", "/audio/transcriptions", "/v1/speech-to-text"] {
        if url.path().trim_end_matches('/').ends_with(added) {
            return Err(format!("ends in {added}; leave that off, it is added"));
        }
    }
    Ok(url)
}

/// What a model may be where its file does not say.
struct Defaults {
    inputs: usize,
    tokens: usize,
    longest: usize,
    tokenizer: TokenizerKind,
}

impl Defaults {
    fn of(kind: &ProviderKind) -> Self {
        match kind {
            ProviderKind::OpenAi { .. } | ProviderKind::ElevenLabs { .. } | ProviderKind::Hash => {
                Self { inputs: 2_048, tokens: 300_000, longest: 8_191, tokenizer: TokenizerKind::Cl100k }
            }
            ProviderKind::Local { .. } => {
                Self { inputs: 64, tokens: 16_384, longest: 256, tokenizer: TokenizerKind::Model }
            }
        }
    }
}

/// Reads a model; `providers` holds none for a provider that did not hold itself.
pub(super) fn model(
    label: String,
    mut section: Section,
    providers: &BTreeMap<String, Option<Provider>>,
) -> Option<Model> {
    let names: BTreeSet<String> = providers.keys().cloned().collect();
    let provider = section.need("provider", one_of(&names, "providers"), "\"openai\"")?;
    let kind = &providers[&provider].as_ref()?.kind;
    if speech::is_speech(kind, &section) {
        return model_of_speech(label, provider, section, kind);
    }
    let defaults = Defaults::of(kind);

    let name = match kind {
        ProviderKind::Hash => Some(section.or("name", text, "hash")),
        ProviderKind::OpenAi { .. } | ProviderKind::ElevenLabs { .. } | ProviderKind::Local { .. } => {
            section.need("name", text, "\"text-embedding-3-small\"")
        }
    };
    // pgvector's largest vector.
    let dimensions = section.need("dimensions", whole(1..=16_000), "1536");
    let sparse = section.or("sparse", boolean, false);
    let longest = section.or("longest", at_least(1), defaults.longest);
    let inputs = section.or("inputs", at_least(1), defaults.inputs);
    let tokens = section.or("tokens", at_least(1), defaults.tokens);
    let prefix = section.or("prefix", text_or_empty, "");
    let shortens = name.as_ref().is_some_and(|name| name.starts_with("text-embedding-3"));
    let send_dimensions = section.or("send_dimensions", boolean, shortens);
    let tokenizer = section.or("tokenizer", word(&TOKENIZERS), defaults.tokenizer);

    if tokens < longest {
        section.misfit_at("tokens", format!("is {tokens}, but one text may have {longest}; raise it or lower longest"));
    }
    if sparse && matches!(kind, ProviderKind::Hash) {
        section.misfit_at("sparse", "is for BGE-M3, which providers of kind \"local\" and \"openai\" have");
    }
    if sparse && send_dimensions {
        section.misfit_at("send_dimensions", "must be false: a model with sparse = true has one size");
    }
    match (kind, tokenizer) {
        (ProviderKind::Local { .. }, TokenizerKind::Cl100k | TokenizerKind::O200k) => {
            section.misfit_at("tokenizer", "must be \"model\": a local model counts with its own tokenizer");
        }
        (ProviderKind::OpenAi { .. } | ProviderKind::ElevenLabs { .. } | ProviderKind::Hash, TokenizerKind::Model) => {
            section.misfit_at("tokenizer", "must be \"cl100k\" or \"o200k\": only a local model brings its own");
        }
        _ => {}
    }
    section.finish();
    Some(Model {
        label,
        provider,
        name: name?,
        speech: None,
        dimensions: dimensions?,
        sparse,
        longest,
        inputs,
        tokens,
        prefix,
        send_dimensions,
        tokenizer,
    })
}

fn model_of_speech(label: String, provider: String, mut section: Section, kind: &ProviderKind) -> Option<Model> {
    let name = section.need("name", text, "\"scribe_v1\"");
    let speech = speech::speech(&mut section, kind, name.as_deref().unwrap_or_default());
    section.finish();
    Some(Model {
        label,
        provider,
        name: name?,
        speech: Some(speech),
        dimensions: 0,
        sparse: false,
        longest: 0,
        inputs: 1,
        tokens: 0,
        prefix: String::new(),
        send_dimensions: false,
        tokenizer: TokenizerKind::Cl100k,
    })
}

const TOKENIZERS: [(&str, TokenizerKind); 3] =
    [("cl100k", TokenizerKind::Cl100k), ("o200k", TokenizerKind::O200k), ("model", TokenizerKind::Model)];

pub(super) fn prices(sections: Vec<Section>, models: &BTreeMap<String, Option<Model>>) -> Vec<Price> {
    let mut prices: Vec<Price> = Vec::new();
    for mut section in sections {
        let place = section.place();
        let Some(price) = price(&mut section, models) else {
            section.finish();
            continue;
        };
        let same = |known: &Price| (&known.model, known.meter, known.from) == (&price.model, price.meter, price.from);
        if prices.iter().any(same) {
            section.misfit(place, "prices the same model, meter and day again; remove one");
        }
        section.finish();
        prices.push(price);
    }
    prices
}

fn price(section: &mut Section, models: &BTreeMap<String, Option<Model>>) -> Option<Price> {
    let labels: BTreeSet<String> = models.keys().cloned().collect();
    // Vectors that are used again cost nothing.
    let meters = [Meter::Tokens, Meter::AudioMinutes].map(|meter| (meter.word(), meter));
    let model = section.need("model", one_of(&labels, "models"), "\"small\"");
    let speech = model.as_ref().and_then(|label| Some(models[label].as_ref()?.speech.is_some()));
    let meter =
        section.or("meter", word(&meters), if speech == Some(true) { Meter::AudioMinutes } else { Meter::Tokens });
    if speech.is_some_and(|speech| speech != (meter == Meter::AudioMinutes)) {
        let counts = if speech == Some(true) {
            "transcribes, which is counted in audio_minutes"
        } else {
            "makes vectors, which are not counted in audio_minutes"
        };
        section.misfit_at("meter", format!("is {}, but the model {counts}", meter.word()));
    }
    let usd = section.need("usd", amount, "\"0.00000002\"");
    let from = section.need("from", moment, "2026-01-01");
    Some(Price { model: model?, meter, usd: usd?, from: from? })
}
