//! A model's folder, read and checked before the first text.

use std::io;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::{Tokenizer, TruncationParams};

use super::LocalModel;
use super::bert::{Bert, Pooling};

/// Why a local model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(
        "cannot read {path}: `folder` must hold config.json, tokenizer.json and model.safetensors; without `folder`, \
         `gristmill fetch` brings them"
    )]
    Missing { path: PathBuf, source: io::Error },
    /// Cut off, damaged, or of another shape than the files beside it.
    #[error("{path} is damaged or not for a BERT model: bring the folder again")]
    Broken { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    /// Another architecture, or a step that would silently be left out.
    #[error("{path} asks for {what}, which is not supported: choose a BERT model with mean or cls pooling")]
    Unsupported { path: PathBuf, what: String },
    #[error("{path} says {got} dimensions and the model in workers.toml says {want}: set `dimensions = {got}`")]
    Dimensions { path: PathBuf, got: usize, want: usize },
    #[error(
        "{path} takes texts of {MINIMUM} to {most} tokens and the model in workers.toml says {want}: set `longest`"
    )]
    Longest { path: PathBuf, most: usize, want: usize },
    #[error("cannot start the local model's threads")]
    Threads(#[source] io::Error),
}

/// A beginning, an end, and one token between them.
const MINIMUM: usize = 3;

/// `1_Pooling/config.json` of sentence-transformers, whose newer versions say it in one word.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PoolingFile {
    #[serde(rename = "pooling_mode")]
    mode: Option<String>,
    #[serde(rename = "pooling_mode_cls_token")]
    cls: bool,
    #[serde(rename = "pooling_mode_mean_tokens")]
    mean: bool,
    #[serde(rename = "pooling_mode_max_tokens")]
    max: bool,
    #[serde(rename = "pooling_mode_mean_sqrt_len_tokens")]
    mean_of_root: bool,
    #[serde(rename = "pooling_mode_weightedmean_tokens")]
    weighted_mean: bool,
    #[serde(rename = "pooling_mode_lasttoken")]
    last: bool,
}

/// One step of `modules.json`.
#[derive(Deserialize)]
struct Module {
    r#type: String,
}

/// Reads and checks the whole folder, the weights last.
pub(super) fn read(folder: &Path, model: LocalModel) -> Result<Bert, LocalError> {
    let path = folder.join("config.json");
    let config: Config = json(&path)?;
    check_config(&path, &config, model)?;
    check_modules(&folder.join("modules.json"))?;
    Ok(Bert {
        pooling: pooling(&folder.join("1_Pooling").join("config.json"))?,
        tokenizer: tokenizer(&folder.join("tokenizer.json"), model.longest)?,
        padding: u32::try_from(config.pad_token_id).map_err(|error| broken(&path, error))?,
        model: weights(&folder.join("model.safetensors"), &config)?,
    })
}

fn check_config(path: &Path, config: &Config, model: LocalModel) -> Result<(), LocalError> {
    let path = || path.to_owned();
    if let Some(kind) = config.model_type.as_ref().filter(|kind| *kind != "bert") {
        return Err(LocalError::Unsupported { path: path(), what: format!("a model of type {kind}") });
    }
    if config.hidden_size != model.dimensions {
        return Err(LocalError::Dimensions { path: path(), got: config.hidden_size, want: model.dimensions });
    }
    let most = config.max_position_embeddings;
    if !(MINIMUM..=most).contains(&model.longest) {
        return Err(LocalError::Longest { path: path(), most, want: model.longest });
    }
    Ok(())
}

/// Vectors are always normalised, whether the folder asks for it or not: their direction is what is compared.
fn check_modules(path: &Path) -> Result<(), LocalError> {
    let modules: Vec<Module> = optional_json(path)?.unwrap_or_default();
    let known =
        |module: &&Module| ["Transformer", "Pooling", "Normalize"].iter().any(|known| module.r#type.ends_with(known));
    match modules.iter().find(|module| !known(module)) {
        Some(module) => Err(LocalError::Unsupported { path: path.to_owned(), what: module.r#type.clone() }),
        None => Ok(()),
    }
}

/// Mean where nothing is said, as sentence-transformers has it.
fn pooling(path: &Path) -> Result<Pooling, LocalError> {
    let Some(file) = optional_json::<PoolingFile>(path)? else { return Ok(Pooling::Mean) };
    let others = file.max || file.mean_of_root || file.weighted_mean || file.last;
    match (file.mode.as_deref(), file.cls, file.mean) {
        (Some("mean"), ..) | (None, false, true) if !others => Ok(Pooling::Mean),
        (Some("cls"), ..) | (None, true, false) if !others => Ok(Pooling::Cls),
        _ => Err(LocalError::Unsupported { path: path.to_owned(), what: "another pooling".to_owned() }),
    }
}

/// What the file says of padding and cutting is for training and overridden: MiniLM's would pad to 128 and cut at 128.
fn tokenizer(path: &Path, longest: usize) -> Result<Tokenizer, LocalError> {
    let mut tokenizer = Tokenizer::from_bytes(bytes(path)?).map_err(|error| broken(path, error))?;
    tokenizer.with_padding(None);
    let truncation = TruncationParams { max_length: longest, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| broken(path, error))?;
    Ok(tokenizer)
}

fn weights(path: &Path, config: &Config) -> Result<BertModel, LocalError> {
    VarBuilder::from_buffered_safetensors(bytes(path)?, DType::F32, &Device::Cpu)
        .and_then(|weights| BertModel::load(weights, config))
        .map_err(|error| broken(path, error))
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, LocalError> {
    serde_json::from_slice(&bytes(path)?).map_err(|error| broken(path, error))
}

fn optional_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LocalError> {
    match json(path) {
        Ok(value) => Ok(Some(value)),
        Err(LocalError::Missing { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, LocalError> {
    std::fs::read(path).map_err(|source| LocalError::Missing { path: path.to_owned(), source })
}

fn broken(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LocalError {
    LocalError::Broken { path: path.to_owned(), source: source.into() }
}
