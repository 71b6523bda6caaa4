//! What `[models.x]` says of a model that transcribes.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::de::DeValue;

use super::raw::{Given, Item, Section};
use super::values::{size, some_time, text};
use super::{ProviderKind, Speech};

/// Keys that only a model of vectors has.
pub(super) const OF_VECTORS: [&str; 7] =
    ["dimensions", "longest", "inputs", "tokens", "prefix", "send_dimensions", "tokenizer"];

/// Fields of a request that are ours to fill in, or that would have the provider answer to somebody else.
const OURS: [&str; 9] =
    ["model", "model_id", "file", "language", "language_code", "stream", "webhook", "source_url", "cloud_storage_url"];

/// Formats of an answer that a transcript is read from.
const FORMATS: [&str; 3] = ["json", "verbose_json", "diarized_json"];

/// OpenAI's limit of a body, without what stands around the recording in it.
const OPENAI_LARGEST: u64 = 25 * 1024 * 1024 - 64 * 1024;
/// The answers of OpenAI's own models end at about 2,000 tokens, silently; eight minutes of fast speech stay below.
const OPENAI_LONGEST: Duration = Duration::from_mins(8);
const ELEVENLABS_LARGEST: u64 = 2_000_000_000;
const ELEVENLABS_LONGEST: Duration = Duration::from_hours(9);
const DAY: Duration = Duration::from_hours(24);
/// A small file may sound for weeks, which would be paid for.
const LONGEST_RECORDING: Duration = Duration::from_hours(12);

/// Whether a section speaks of a model that transcribes: at a provider that can, and with nothing about vectors.
pub(super) fn is_speech(kind: &ProviderKind, section: &Section) -> bool {
    match kind {
        ProviderKind::ElevenLabs { .. } => true,
        ProviderKind::OpenAi { .. } => !OF_VECTORS.iter().any(|key| section.has(key)),
        ProviderKind::Local { .. } | ProviderKind::Hash => false,
    }
}

pub(super) fn speech(section: &mut Section, kind: &ProviderKind, name: &str) -> Speech {
    let (longest, largest) = match kind {
        ProviderKind::ElevenLabs { .. } => (ELEVENLABS_LONGEST, ELEVENLABS_LARGEST),
        _ if name.starts_with("gpt-") => (OPENAI_LONGEST, OPENAI_LARGEST),
        _ => (DAY, OPENAI_LARGEST),
    };
    let speech = Speech {
        language: section.optional("language", text),
        options: options(section),
        longest_recording: section.or("longest_recording", some_time, LONGEST_RECORDING),
        longest_part: section.or("longest_part", some_time, longest),
        largest_part: section.or("largest_part", size, largest),
    };
    if speech.longest_recording < Duration::from_secs(1) {
        section.misfit_at("longest_recording", "is shorter than a second");
    }
    if speech.longest_part < Duration::from_secs(1) {
        section.misfit_at("longest_part", "is shorter than a second");
    }
    if speech.largest_part < 256 * 1024 {
        section.misfit_at("largest_part", "is less than 256 KiB, in which nothing can be said");
    }
    speech
}

fn options(section: &mut Section) -> BTreeMap<String, Vec<String>> {
    let entries = section.entries("options").into_iter();
    let option = |(name, item): (String, Item)| {
        if OURS.contains(&name.as_str()) {
            item.misfit("is not an option: what it says is sent, or must not be");
            return None;
        }
        let values = item.read(|item| item.each(field))?;
        if name == "response_format" && !values.iter().all(|value| FORMATS.contains(&value.as_str())) {
            item.misfit("is a format that no transcript can be read from; write json, verbose_json or diarized_json, or leave it out");
        }
        if name == "use_multi_channel" && values.iter().any(|value| value == "true") {
            item.misfit("makes a transcript for each channel, of which none would be read; leave it out");
        }
        Some((name, values))
    };
    entries.filter_map(option).collect()
}

/// A value as a form writes it.
fn field(item: &Item) -> Result<String, String> {
    match &item.given {
        Given::File(DeValue::Boolean(value)) => Ok(value.to_string()),
        Given::File(DeValue::Integer(number)) if number.radix() == 10 => Ok(number.as_str().replace('_', "")),
        Given::File(DeValue::Float(number)) => Ok(number.as_str().replace('_', "")),
        _ => text(item),
    }
}
