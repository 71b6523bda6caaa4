//! The local driver on a tiny BERT made here, and on MiniLM where `GRISTMILL_MINILM` names its folder.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use gristmill::domain::check_vector;
use gristmill::providers::{Embedder as _, Local, LocalError, LocalModel, ProviderError};
use serde_json::{Value, json};
use tempfile::TempDir;

const DIMENSIONS: usize = 16;
const TINY: LocalModel = LocalModel { dimensions: DIMENSIONS, sparse: false, longest: 12 };
const WORDS: [&str; 12] = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "cat", "sat", "on", "a", "mat", "and", "slept"];

/// A folder with a BERT of two layers whose weights mean nothing but never change.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(TempDir::new().unwrap());
        folder.write("config.json", &config());
        folder.write("tokenizer.json", &tokenizer());
        folder.save(&weights());
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, file: &str, content: &Value) {
        let path = self.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content.to_string()).unwrap();
    }

    fn save(&self, weights: &HashMap<String, Tensor>) {
        candle_core::safetensors::save(weights, self.path().join("model.safetensors")).unwrap();
    }

    fn load(&self) -> Local {
        Local::load(self.path(), TINY, 2).unwrap()
    }

    async fn vectors<const N: usize>(&self, texts: [&str; N]) -> Vec<Vec<f32>> {
        self.load().embed(&texts.map(str::to_owned)).await.unwrap().all().unwrap()
    }

    #[track_caller]
    fn check_error(&self, model: LocalModel, want: &str) {
        let error = Local::load(self.path(), model, 1).map(|_| ()).unwrap_err();
        let shown = error.to_string().replace(&self.path().display().to_string(), "FOLDER");
        assert_eq!(shown, want);
        // Looking without loading finds the same, but what only reading all the weights can tell.
        let looked = Local::check(self.path(), model).map_err(|error| error.to_string());
        let damaged = want.starts_with("FOLDER/model.safetensors is damaged");
        assert_eq!(looked.err(), (!damaged).then(|| error.to_string()));
    }
}

fn config() -> Value {
    json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": DIMENSIONS, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 32, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "max_position_embeddings": 20, "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    })
}

/// Pads and cuts at 5 tokens, as files left over from training do; the driver must not.
fn tokenizer() -> Value {
    let vocabulary: HashMap<_, _> = WORDS.into_iter().zip(0..).collect();
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [], "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    })
}

fn weights() -> HashMap<String, Tensor> {
    let mut weights = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let (seed, count) = (weights.len(), shape.iter().product::<usize>());
        let wave = |n: usize| (f32::from(u16::try_from(n).unwrap()) * 1.7).sin() * 0.4;
        let numbers: Vec<f32> = (seed..seed + count).map(wave).collect();
        weights.insert(name, Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap());
    };
    for (table, rows) in [("word", WORDS.len()), ("position", 20), ("token_type", 2)] {
        add(format!("embeddings.{table}_embeddings.weight"), &[rows, DIMENSIONS]);
    }
    let mut pair = |name: &str, shape: &[usize]| {
        add(format!("{name}.weight"), shape);
        add(format!("{name}.bias"), &shape[..1]);
    };
    pair("embeddings.LayerNorm", &[DIMENSIONS]);
    for layer in 0..2 {
        for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            pair(&format!("encoder.layer.{layer}.{part}"), &[DIMENSIONS, DIMENSIONS]);
        }
        pair(&format!("encoder.layer.{layer}.attention.output.LayerNorm"), &[DIMENSIONS]);
        pair(&format!("encoder.layer.{layer}.intermediate.dense"), &[32, DIMENSIONS]);
        pair(&format!("encoder.layer.{layer}.output.dense"), &[DIMENSIONS, 32]);
        pair(&format!("encoder.layer.{layer}.output.LayerNorm"), &[DIMENSIONS]);
    }
    weights
}

fn likeness(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

fn close(left: &[f32], right: &[f32]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| (left - right).abs() < 2e-6)
}

#[tokio::test]
async fn each_text_has_the_vector_it_has_alone() {
    let folder = Folder::new();
    let local = folder.load();
    // More than a batch, of all lengths, so that padding and sorting have something to spoil.
    let texts: Vec<String> =
        (0..30_usize).map(|n| [WORDS[4 + n % 8], "cat sat on a mat"][..=n % 2].join(" ").repeat(1 + n % 3)).collect();

    let together = local.embed(&texts).await.unwrap().all().unwrap();

    for (text, vector) in texts.iter().zip(&together) {
        let alone = local.embed(std::slice::from_ref(text)).await.unwrap().all().unwrap();
        assert!(close(vector, &alone[0]), "{text}");
        assert_eq!(check_vector(vector, DIMENSIONS), Ok(()));
        assert!((likeness(vector, vector) - 1.0).abs() < 1e-5);
    }
    assert_eq!(local.embed(&[]).await.unwrap().vectors, []);
}

#[tokio::test]
async fn texts_are_cut_at_the_longest_and_not_at_the_files_own_length() {
    let ten = "the cat sat on a mat and the cat slept";
    let nine = "the cat sat on a mat and the cat";
    let vectors = Folder::new().vectors([ten, &format!("{ten} on a mat"), nine]).await;
    assert!(close(&vectors[0], &vectors[1]));
    assert!(!close(&vectors[0], &vectors[2]));
}

#[tokio::test]
async fn tokens_are_counted_as_they_are_embedded() {
    let texts = ["the cat", "the dog sat", &"cat ".repeat(100)].map(str::to_owned);
    let embedded = Folder::new().load().embed(&texts).await.unwrap();
    assert_eq!(embedded.input_tokens, Some(4 + 5 + 12));
}

#[tokio::test]
async fn pooling_is_what_the_folder_says() {
    let folder = Folder::new();
    let mean = folder.vectors(["the cat sat"]).await;
    folder.write("1_Pooling/config.json", &json!({"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}));
    assert_eq!(folder.vectors(["the cat sat"]).await, mean);
    folder.write("1_Pooling/config.json", &json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}));
    let cls = folder.vectors(["the cat sat"]).await;
    assert!(!close(&cls[0], &mean[0]));
    folder.write("1_Pooling/config.json", &json!({"pooling_mode": "cls"}));
    assert_eq!(folder.vectors(["the cat sat"]).await, cls);
}

#[tokio::test]
async fn a_dropped_request_leaves_the_threads_free() {
    let local = Local::load(Folder::new().path(), TINY, 1).unwrap();
    let texts: Vec<String> = (0..200).map(|_| "the cat sat on a mat".to_owned()).collect();
    for _ in 0..20 {
        let mut request = Box::pin(local.embed(&texts));
        assert!(futures_util::poll!(&mut request).is_pending());
    }
    assert_eq!(local.embed(&texts[..1]).await.unwrap().vectors.len(), 1);
}

#[tokio::test]
async fn weights_that_are_not_numbers_are_found_out() {
    let folder = Folder::new();
    let mut broken = weights();
    let name = "encoder.layer.1.output.dense.bias".to_owned();
    broken.insert(name, Tensor::full(f32::NAN, DIMENSIONS, &Device::Cpu).unwrap());
    folder.save(&broken);
    let embedded = folder.load().embed(&["the".to_owned(), "cat".to_owned()]).await.unwrap();
    let error = embedded.all().unwrap_err();
    assert_eq!(error, ProviderError::Garbled("the vector of input 1 of 2 has a value that is not finite".to_owned()));
}

#[test]
fn a_missing_file_is_named() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = Folder::new();
        std::fs::remove_file(folder.path().join(file)).unwrap();
        folder.check_error(
            TINY,
            &format!(
                "cannot read FOLDER/{file}: `folder` must hold config.json, tokenizer.json and model.safetensors (or \
                 pytorch_model.bin); without `folder`, `gristmill fetch` brings MiniLM's"
            ),
        );
    }
}

#[test]
fn a_damaged_file_is_named() {
    for file in ["config.json", "tokenizer.json", "model.safetensors", "modules.json", "1_Pooling/config.json"] {
        let folder = Folder::new();
        folder.write("modules.json", &json!([{"type": "sentence_transformers.models.Transformer"}]));
        folder.write("1_Pooling/config.json", &json!({"pooling_mode": "mean"}));
        let path = folder.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        folder.check_error(
            TINY,
            &format!("FOLDER/{file} is damaged or not for a BERT or XLM-RoBERTa model: bring the folder again"),
        );
    }
}

#[test]
fn weights_of_another_shape_are_refused() {
    let folder = Folder::new();
    let mut other = weights();
    other.insert("embeddings.LayerNorm.bias".to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    folder.save(&other);
    let error = Local::load(folder.path(), TINY, 1).map(|_| ()).unwrap_err();
    assert!(matches!(error, LocalError::Broken { .. }), "{error}");
}

#[test]
fn what_workers_toml_says_of_the_model_is_compared() {
    let folder = Folder::new();
    folder.check_error(
        LocalModel { dimensions: 384, ..TINY },
        "FOLDER/config.json says 16 dimensions and the model in workers.toml says 384: set `dimensions = 16`",
    );
    for longest in [2, 21] {
        folder.check_error(
            LocalModel { longest, ..TINY },
            &format!(
                "FOLDER/config.json takes texts of 3 to 20 tokens and the model in workers.toml says {longest}: set `longest`"
            ),
        );
    }
}

#[test]
fn a_model_that_would_be_run_wrongly_is_refused() {
    let unsupported = |file, what| {
        format!(
            "FOLDER/{file} asks for {what}, which is not supported: choose a BERT or XLM-RoBERTa model with mean or cls pooling"
        )
    };
    let folder = Folder::new();
    folder.write("modules.json", &json!([{"type": "sentence_transformers.models.Dense"}]));
    folder.check_error(TINY, &unsupported("modules.json", "sentence_transformers.models.Dense"));
    folder.write("modules.json", &json!([]));
    folder.write("1_Pooling/config.json", &json!({"pooling_mode_max_tokens": true}));
    folder.check_error(TINY, &unsupported("1_Pooling/config.json", "another pooling"));
    let mut config = config();
    config["model_type"] = json!("mpnet");
    folder.write("config.json", &config);
    folder.check_error(TINY, &unsupported("config.json", "a model of type mpnet"));
    config["model_type"] = json!("bert");
    folder.write("config.json", &config);
    let sparse = LocalModel { sparse: true, ..TINY };
    folder.check_error(sparse, &unsupported("config.json", "a BERT model with `sparse = true`"));
}

/// The numbers are those of an independent implementation in double precision over the same files.
#[tokio::test]
async fn minilm_gives_the_reference_vectors() {
    let Some(folder) = std::env::var_os("GRISTMILL_MINILM") else {
        eprintln!("GRISTMILL_MINILM does not name MiniLM's folder: not tested");
        return;
    };
    let model = LocalModel { dimensions: 384, sparse: false, longest: 256 };
    let local = Local::load(Path::new(&folder), model, 2).unwrap();
    let long = "word ".repeat(1000);
    let texts =
        ["The cat sits on the mat.", "A feline rests upon a rug.", "Quarterly revenue grew by twelve percent.", &long];

    let embedded = local.embed(&texts.map(str::to_owned)).await.unwrap();

    let want = [
        [0.134_177, -0.032_9, -0.024_804, 0.041_439, -0.036_348, 0.041_814, 0.031_217, 0.037_202],
        [0.075_804, 0.024_783, 0.036_869, 0.115_968, -0.047_693, 0.065_733, 0.024_609, 0.004_398],
        [0.089_042, 0.002_117, -0.052_243, -0.066_734, -0.014_047, -0.014_082, -0.026_275, 0.009_938],
        [-0.008_124, -0.095_586, -0.038_673, 0.049_662, -0.043_794, 0.023_72, -0.018_142, -0.020_207],
    ];
    assert_eq!(embedded.input_tokens, Some(9 + 10 + 9 + 256));
    let vectors = embedded.all().unwrap();
    for (vector, want) in vectors.iter().zip(want) {
        assert!(close(&vector[..8], &want), "{:?} {want:?}", &vector[..8]);
    }
    let near = likeness(&vectors[0], &vectors[1]);
    let far = likeness(&vectors[0], &vectors[2]);
    assert!((near - 0.544_837).abs() < 1e-5 && (far + 0.016_183).abs() < 1e-5, "{near} {far}");
}
