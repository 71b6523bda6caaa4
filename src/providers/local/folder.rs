//! A model's folder, read and checked before the first text.

use std::io;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{self, BertModel};
use candle_transformers::models::xlm_roberta::{self, XLMRobertaModel};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::{Tokenizer, TruncationParams};

use super::LocalModel;
use super::encoder::{Encoder, Layers, Pooling, Weights};

/// Why a local model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(
        "cannot read {path}: `folder` must hold config.json, tokenizer.json and model.safetensors (or pytorch_model.bin); \
         without `folder`, `gristmill fetch` brings MiniLM's"
    )]
    Missing { path: PathBuf, source: io::Error },
    #[error(
        "cannot read {path}: `sparse = true` needs BGE-M3's sparse_linear.pt (or sparse_linear.safetensors) in `folder`"
    )]
    NoWeights { path: PathBuf, source: io::Error },
    /// Cut off, damaged, or of another shape than the files beside it.
    #[error("{path} is damaged or not for a BERT or XLM-RoBERTa model: bring the folder again")]
    Broken { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    /// Another architecture, or a step that would silently be left out.
    #[error(
        "{path} asks for {what}, which is not supported: choose a BERT or XLM-RoBERTa model with mean or cls pooling"
    )]
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

/// `config.json`, as far as it matters which architecture the rest of it is for.
#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
}

/// `config.json` of a known architecture.
enum Config {
    Bert(bert::Config),
    XlmRoberta(xlm_roberta::Config),
}

impl Config {
    fn read(path: &Path) -> Result<Self, LocalError> {
        match json::<Kind>(path)?.model_type.as_deref() {
            None | Some("bert") => Ok(Self::Bert(json(path)?)),
            Some("xlm-roberta") => Ok(Self::XlmRoberta(json(path)?)),
            Some(kind) => {
                Err(LocalError::Unsupported { path: path.to_owned(), what: format!("a model of type {kind}") })
            }
        }
    }

    fn check(&self, path: &Path, model: LocalModel) -> Result<(), LocalError> {
        let path = || path.to_owned();
        let (got, most) = match self {
            Self::Bert(config) => (config.hidden_size, config.max_position_embeddings),
            // Its positions begin after the padding's.
            Self::XlmRoberta(config) => {
                let taken = config.pad_token_id as usize + 1;
                (config.hidden_size, config.max_position_embeddings.saturating_sub(taken))
            }
        };
        if got != model.dimensions {
            return Err(LocalError::Dimensions { path: path(), got, want: model.dimensions });
        }
        if !(MINIMUM..=most).contains(&model.longest) {
            return Err(LocalError::Longest { path: path(), most, want: model.longest });
        }
        if model.sparse && !matches!(self, Self::XlmRoberta(_)) {
            return Err(LocalError::Unsupported { path: path(), what: "a BERT model with `sparse = true`".to_owned() });
        }
        Ok(())
    }

    fn padding(&self) -> usize {
        match self {
            Self::Bert(config) => config.pad_token_id,
            Self::XlmRoberta(config) => config.pad_token_id as usize,
        }
    }

    fn hidden(&self) -> usize {
        match self {
            Self::Bert(config) => config.hidden_size,
            Self::XlmRoberta(config) => config.hidden_size,
        }
    }
}

/// The files of weights, in the order in which they are looked for.
const LAYERS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
const HEAD: [&str; 2] = ["sparse_linear.safetensors", "sparse_linear.pt"];

/// All but the weights.
struct Description {
    config: Config,
    tokenizer: Tokenizer,
    pooling: Pooling,
}

impl Description {
    fn read(folder: &Path, model: LocalModel) -> Result<Self, LocalError> {
        let path = folder.join("config.json");
        let config = Config::read(&path)?;
        config.check(&path, model)?;
        check_modules(&folder.join("modules.json"))?;
        let tokenizer = tokenizer(&folder.join("tokenizer.json"), model.longest)?;
        // Where nothing is said: mean, as sentence-transformers has it, and the first token's for BGE-M3.
        let pooling = pooling(&folder.join("1_Pooling").join("config.json"))?;
        let pooling = pooling.unwrap_or(if model.sparse { Pooling::Cls } else { Pooling::Mean });
        Ok(Self { config, tokenizer, pooling })
    }
}

/// Checks the folder as [`read`] does, but only that there are weights.
pub(super) fn check(folder: &Path, model: LocalModel) -> Result<(), LocalError> {
    Description::read(folder, model)?;
    if model.sparse {
        is_filled(&one_of(folder, HEAD)).map_err(|error| no_weights(folder, error))?;
    }
    is_filled(&one_of(folder, LAYERS))
}

fn is_filled(path: &Path) -> Result<(), LocalError> {
    let missing = |source| LocalError::Missing { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(missing)?;
    match file.metadata().map_err(missing)?.len() {
        0 => Err(broken(path, "it is empty")),
        _ => Ok(()),
    }
}

/// Reads and checks the whole folder, the weights last.
pub(super) fn read(folder: &Path, model: LocalModel) -> Result<Encoder, LocalError> {
    let path = folder.join("config.json");
    let Description { config, tokenizer, pooling } = Description::read(folder, model)?;
    Ok(Encoder {
        pooling,
        padding: u32::try_from(config.padding()).map_err(|error| broken(&path, error))?,
        weights: model.sparse.then(|| weights(folder, config.hidden(), &tokenizer)).transpose()?,
        tokenizer,
        layers: layers(folder, &config)?,
    })
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

fn pooling(path: &Path) -> Result<Option<Pooling>, LocalError> {
    let Some(file) = optional_json::<PoolingFile>(path)? else { return Ok(None) };
    let others = file.max || file.mean_of_root || file.weighted_mean || file.last;
    match (file.mode.as_deref(), file.cls, file.mean) {
        (Some("mean"), ..) | (None, false, true) if !others => Ok(Some(Pooling::Mean)),
        (Some("cls"), ..) | (None, true, false) if !others => Ok(Some(Pooling::Cls)),
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

fn layers(folder: &Path, config: &Config) -> Result<Layers, LocalError> {
    let path = one_of(folder, LAYERS);
    let weights = tensors(&path)?;
    let layers = match config {
        Config::Bert(config) => BertModel::load(weights, config).map(Layers::Bert),
        Config::XlmRoberta(config) => XLMRobertaModel::new(config, weights).map(Layers::XlmRoberta),
    };
    layers.map_err(|error| broken(&path, error))
}

/// BGE-M3's second head, and the tokens that have no weight: cls, end, padding, unknown.
fn weights(folder: &Path, hidden: usize, tokenizer: &Tokenizer) -> Result<Weights, LocalError> {
    let path = one_of(folder, HEAD);
    let head = tensors(&path).map_err(|error| no_weights(folder, error))?;
    let linear = candle_nn::linear(hidden, 1, head).map_err(|error| broken(&path, error))?;
    let special = ["<s>", "</s>", "<pad>", "<unk>"].iter().filter_map(|token| tokenizer.token_to_id(token)).collect();
    Ok(Weights { linear, special })
}

fn no_weights(folder: &Path, error: LocalError) -> LocalError {
    match error {
        LocalError::Missing { source, .. } => LocalError::NoWeights { path: folder.join(HEAD[1]), source },
        error => error,
    }
}

/// The first of these files that is there; the first of all where none is.
fn one_of(folder: &Path, [safe, pickled]: [&str; 2]) -> PathBuf {
    let name = if !folder.join(safe).exists() && folder.join(pickled).exists() { pickled } else { safe };
    folder.join(name)
}

/// A file of safetensors, or a pickled one, of which tensors alone are read.
fn tensors<'a>(path: &Path) -> Result<VarBuilder<'a>, LocalError> {
    let weights = if path.extension().is_some_and(|extension| extension == "safetensors") {
        VarBuilder::from_buffered_safetensors(bytes(path)?, DType::F32, &Device::Cpu)
    } else {
        VarBuilder::from_pth(path, DType::F32, &Device::Cpu)
    };
    weights.map_err(|error| broken(path, error))
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
