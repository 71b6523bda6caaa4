//! Models made ready: their driver and their tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::chunk::Tokenizer;
use crate::config::{Model, Provider, ProviderKind, Secret, Speech, TokenizerKind};
use crate::embedded::{self, Artifact};
use crate::net::{self, Patience};
use crate::providers::{
    ElevenLabs, Embedder, Hash, Local, LocalModel, OpenAi, OpenAiEndpoint, OpenAiModel, OpenAiSpeech, Transcriber,
};

/// How long a request may take where the configuration does not say: one of texts, and one of a recording, which is heard.
const TEXTS: Duration = Duration::from_mins(1);
const SOUND: Duration = Duration::from_mins(10);

pub(super) async fn embedder(provider: &Provider, model: &Model) -> Result<(Arc<dyn Embedder>, Tokenizer), String> {
    match &provider.kind {
        ProviderKind::OpenAi { url, key } => {
            Ok((Arc::new(open_ai(provider, url, key.as_ref(), model)?), tokenizer(model, None)?))
        }
        ProviderKind::ElevenLabs { .. } => Err("its provider makes no vectors".to_owned()),
        ProviderKind::Hash => Ok((Arc::new(Hash::new(model.dimensions)), tokenizer(model, None)?)),
        ProviderKind::Local { folder, threads } => {
            let folder = model_folder(folder.clone()).await?;
            let settings = local(model);
            let (threads, path) = (*threads, folder.clone());
            let local = tokio::task::spawn_blocking(move || Local::load(&path, settings, threads))
                .await
                .map_err(|error| error.to_string())?
                .map_err(|error| with_causes(&error))?;
            Ok((Arc::new(local), tokenizer(model, Some(folder))?))
        }
    }
}

fn open_ai(provider: &Provider, url: &Url, key: Option<&Secret>, model: &Model) -> Result<OpenAi, String> {
    let timeout = provider.timeout.unwrap_or(TEXTS);
    let client = net::trusted(Patience::Whole(timeout)).map_err(|error| error.to_string())?;
    let endpoint = OpenAiEndpoint { url: url.clone(), key: key.cloned() };
    let settings = OpenAiModel {
        name: model.name.clone(),
        dimensions: model.dimensions,
        send_dimensions: model.send_dimensions,
        sparse: model.sparse,
    };
    Ok(OpenAi::new(client, endpoint, settings, timeout))
}

/// What a provider that was asked without paying said of one of its models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// It takes the credential and has the model.
    Listed,
    /// It takes the credential and does not name the model.
    NotListed,
    /// It takes the credential, and has no list of models of this kind.
    Taken,
    /// It is there, but has no page that would say more without being paid.
    Silent,
}

/// Asks the provider of a model whether it is there and takes the credential; none where it is no service over HTTP. Nothing is paid.
///
/// # Errors
/// What is wrong with the address, the credential or the service.
pub async fn ask(provider: &Provider, model: &Model) -> Result<Option<Asked>, String> {
    let (url, key) = match (&provider.kind, &model.speech) {
        (ProviderKind::OpenAi { url, key }, _) => (url, key),
        (ProviderKind::ElevenLabs { url, key }, Some(speech)) => {
            let asked = elevenlabs(provider, url, key, model, speech)?.ask().await;
            return asked.map(|()| Some(Asked::Taken)).map_err(|error| with_causes(&error));
        }
        (ProviderKind::ElevenLabs { .. } | ProviderKind::Local { .. } | ProviderKind::Hash, _) => return Ok(None),
    };
    let models = open_ai(provider, url, key.as_ref(), model)?.models().await.map_err(|error| with_causes(&error))?;
    // Some services list `name:tag` and take `name`.
    let is_it = |listed: &String| *listed == model.name || listed.split(':').next() == Some(&model.name);
    Ok(Some(match models {
        None => Asked::Silent,
        Some(models) if models.iter().any(is_it) => Asked::Listed,
        Some(_) => Asked::NotListed,
    }))
}

fn elevenlabs(
    provider: &Provider,
    url: &Url,
    key: &Secret,
    model: &Model,
    speech: &Speech,
) -> Result<ElevenLabs, String> {
    let timeout = provider.timeout.unwrap_or(SOUND);
    let client = net::trusted(Patience::Whole(timeout)).map_err(|error| error.to_string())?;
    Ok(ElevenLabs::new(client, url.clone(), key.clone(), model.name.clone(), speech.clone(), timeout))
}

pub(super) fn transcriber(provider: &Provider, model: &Model) -> Result<Arc<dyn Transcriber>, String> {
    let Some(speech) = model.speech.clone() else { return Err("it makes vectors".to_owned()) };
    match &provider.kind {
        ProviderKind::OpenAi { url, key } => {
            let timeout = provider.timeout.unwrap_or(SOUND);
            let client = net::trusted(Patience::Whole(timeout)).map_err(|error| error.to_string())?;
            let endpoint = OpenAiEndpoint { url: url.clone(), key: key.clone() };
            Ok(Arc::new(OpenAiSpeech::new(client, endpoint, model.name.clone(), speech, timeout)))
        }
        ProviderKind::ElevenLabs { url, key } => Ok(Arc::new(elevenlabs(provider, url, key, model, &speech)?)),
        ProviderKind::Local { .. } | ProviderKind::Hash => Err("its provider transcribes nothing".to_owned()),
    }
}

fn local(model: &Model) -> LocalModel {
    LocalModel { dimensions: model.dimensions, sparse: model.sparse, longest: model.longest }
}

/// Whether a local model could be loaded from a folder, as far as that can be told without reading its weights.
///
/// # Errors
/// The file and what is wrong with it.
pub fn check_folder(folder: &Path, model: &Model) -> Result<(), String> {
    Local::check(folder, local(model)).map_err(|error| with_causes(&error))
}

/// The configured folder, or MiniLM as `gristmill fetch` brings it.
async fn model_folder(folder: Option<PathBuf>) -> Result<PathBuf, String> {
    match folder {
        Some(folder) => Ok(folder),
        None => tokio::task::spawn_blocking(|| embedded::ensure(Artifact::MiniLm, &|_| {}))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| with_causes(&error)),
    }
}

pub(super) fn tokenizer(model: &Model, folder: Option<PathBuf>) -> Result<Tokenizer, String> {
    match (model.tokenizer, folder) {
        (TokenizerKind::Cl100k, _) => Ok(Tokenizer::cl100k()),
        (TokenizerKind::O200k, _) => Ok(Tokenizer::o200k()),
        (TokenizerKind::Model, Some(folder)) => {
            let path = folder.join("tokenizer.json");
            let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Tokenizer::from_json(&bytes)
        }
        (TokenizerKind::Model, None) => Err("tokenizer = \"model\" needs a provider of kind \"local\"".to_owned()),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
