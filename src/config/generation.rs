//! What shapes a pipeline's vectors, as one fingerprint.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::template::Name;
use super::{ChunkSize, Chunking, Longer, Model, Pipeline, Provider, ProviderKind, Template, TextRule, TokenizerKind};

/// Raised when the same description means other vectors, because we cut or count differently.
const VERSION: u32 = 1;

/// Everything that two vectors must have in common to be compared. Its JSON is hashed and stored by its hash alone, so fields
/// are neither renamed nor reordered.
#[derive(Serialize)]
struct Shape<'p> {
    version: u32,
    provider: &'static str,
    model: &'p str,
    dimensions: usize,
    prefix: &'p str,
    tokenizer: &'static str,
    chunks: Cut,
    embed: Option<String>,
    text_by: Option<&'p str>,
    /// Templates by the word that picks them: an empty one where there is but one, none for `else`.
    texts: Vec<(Option<&'p str>, String)>,
    /// The SQL behind the names that these templates use.
    values: BTreeMap<&'p str, &'p str>,
    /// Left out where it is not so, as it was before there was such a thing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    sparse: bool,
}

/// What two transcripts of one recording must have in common to be the same. How it is cut into parts is no part of it.
#[derive(Serialize)]
struct Heard<'p> {
    version: u32,
    provider: &'static str,
    model: &'p str,
    language: Option<&'p str>,
    options: &'p BTreeMap<String, Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Cut {
    /// The longest text matters only where a longer one does not fail.
    Whole {
        longer: Longer,
        longest: Option<usize>,
    },
    Tokens {
        most: usize,
        overlap: usize,
        whole_up_to: usize,
    },
    Characters {
        most: usize,
        overlap: usize,
        whole_up_to: usize,
    },
}

impl Pipeline {
    /// The fingerprint of what shapes this pipeline's vectors, in hex: model, cutting and templates, but neither prices nor
    /// words nor limits. `provider` is the model's.
    ///
    /// # Panics
    /// Never: what is described is always JSON.
    pub fn generation(&self, model: &Model, provider: &Provider) -> String {
        if let Some(speech) = &model.speech {
            return fingerprint(&Heard {
                version: VERSION,
                provider: provider_word(&provider.kind),
                model: &model.name,
                language: speech.language.as_deref(),
                options: &speech.options,
            });
        }
        let texts = self.source.text.as_ref().map(templates).unwrap_or_default();
        let used = texts.iter().map(|(_, template)| *template).chain(&self.chunks.embed).flat_map(Template::names);
        let by = match &self.source.text {
            Some(TextRule::By { column, .. }) => Some(column.as_str()),
            Some(TextRule::One(_)) | None => None,
        };
        let named = used.filter_map(|name| if let Name::Row(name) = name { Some(name.as_str()) } else { None });
        let value = |name: &'_ str| self.source.values.get_key_value(name);
        let values = named.chain(by).filter_map(value).map(|(name, sql)| (name.as_str(), sql.text.as_str()));
        let shape = Shape {
            version: VERSION,
            provider: provider_word(&provider.kind),
            model: &model.name,
            dimensions: model.dimensions,
            prefix: &model.prefix,
            tokenizer: tokenizer_word(model.tokenizer),
            chunks: cut(&self.chunks, model),
            embed: self.chunks.embed.as_ref().map(Template::to_string),
            text_by: by,
            values: values.collect(),
            texts: texts.iter().map(|(word, template)| (*word, template.to_string())).collect(),
            sparse: self.target.sparse().is_some(),
        };
        fingerprint(&shape)
    }
}

fn fingerprint(shape: &impl Serialize) -> String {
    let json = serde_json::to_vec(shape).expect("strings and numbers are always JSON");
    format!("{:x}", Bytes::copy_from_slice(&Sha256::digest(json)))
}

fn templates(rule: &TextRule) -> Vec<(Option<&str>, &Template)> {
    match rule {
        TextRule::One(template) => vec![(Some(""), template)],
        TextRule::By { variants, otherwise, .. } => {
            let variants = variants.iter().map(|(word, template)| (Some(word.as_str()), template));
            variants.chain(otherwise.iter().map(|template| (None, template))).collect()
        }
    }
}

fn cut(chunks: &Chunking, model: &Model) -> Cut {
    let Chunking { size, overlap, whole, whole_up_to, longer, embed: _ } = *chunks;
    match size {
        _ if whole => Cut::Whole { longer, longest: (longer != Longer::Fail).then_some(model.longest) },
        ChunkSize::Tokens(most) => Cut::Tokens { most, overlap, whole_up_to },
        ChunkSize::Characters(most) => Cut::Characters { most, overlap, whole_up_to },
    }
}

fn provider_word(kind: &ProviderKind) -> &'static str {
    match kind {
        ProviderKind::OpenAi { .. } => "openai",
        ProviderKind::ElevenLabs { .. } => "elevenlabs",
        ProviderKind::Local { .. } => "local",
        ProviderKind::Hash => "hash",
    }
}

fn tokenizer_word(tokenizer: TokenizerKind) -> &'static str {
    match tokenizer {
        TokenizerKind::Cl100k => "cl100k",
        TokenizerKind::O200k => "o200k",
        TokenizerKind::Model => "model",
    }
}
