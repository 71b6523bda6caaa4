//! The local driver on a tiny BGE-M3, against what BGE-M3's own implementation says of the same files
//! (`tests/fixtures/bge-m3-tiny`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Tensor, pickle, safetensors};
use gristmill::domain::{Embedding, Sparse};
use gristmill::providers::{Embedder as _, Local, LocalModel};
use serde::Deserialize;
use tempfile::TempDir;

const TINY: LocalModel = LocalModel { dimensions: 16, sparse: true, longest: 40 };

/// What the reference says of one text.
#[derive(Deserialize)]
struct Expected {
    text: String,
    tokens: u64,
    dense: Vec<f32>,
    sparse: BTreeMap<u32, f32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bge-m3-tiny")
}

fn expected() -> Vec<Expected> {
    serde_json::from_slice(&std::fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

async fn embed(folder: &Path, model: LocalModel) -> Vec<Embedding> {
    let texts: Vec<String> = expected().into_iter().map(|expected| expected.text).collect();
    let embedded = Local::load(folder, model, 2).unwrap().embed(&texts).await.unwrap();
    embedded.vectors.into_iter().collect::<Result<_, _>>().unwrap()
}

#[track_caller]
fn check(got: &Embedding, want: &Expected) {
    let close = |got: f32, want: f32| (got - want).abs() <= 1e-5;
    assert!(got.vector.iter().zip(&want.dense).all(|(&got, &want)| close(got, want)), "{:?} {got:?}", want.text);
    let sparse: BTreeMap<u32, f32> = got.sparse.as_ref().unwrap().iter().collect();
    assert!(sparse.keys().eq(want.sparse.keys()), "{:?} {sparse:?} {:?}", want.text, want.sparse);
    assert!(sparse.values().zip(want.sparse.values()).all(|(&got, &want)| close(got, want)), "{:?}", want.text);
}

#[tokio::test]
async fn vectors_and_weights_are_the_reference_s() {
    let expected = expected();
    // A fixture without weights, or without texts that repeat a token, would prove little.
    assert!(expected.len() == 9 && expected.iter().map(|text| text.sparse.len()).sum::<usize>() > 50);
    for (got, want) in embed(&folder(), TINY).await.iter().zip(&expected) {
        assert_eq!(got.vector.len(), 16);
        check(got, want);
    }
    let texts: Vec<String> = expected.iter().map(|expected| expected.text.clone()).collect();
    let embedded = Local::load(&folder(), TINY, 1).unwrap().embed(&texts).await.unwrap();
    assert_eq!(embedded.input_tokens, Some(expected.iter().map(|text| text.tokens).sum()));
}

#[test]
fn looking_at_a_folder_asks_for_the_files_that_loading_does() {
    Local::check(&folder(), TINY).unwrap();
    let other = TempDir::new().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(folder().join(file), other.path().join(file)).unwrap();
    }
    std::fs::write(other.path().join("model.safetensors"), b"").unwrap();
    let check = |want: &str| {
        for said in [Local::check(other.path(), TINY).err(), Local::load(other.path(), TINY, 1).err()] {
            let said = said.expect("it is refused").to_string();
            assert!(said.contains(want), "{said}");
        }
    };
    check("needs BGE-M3's sparse_linear.pt");
    std::fs::copy(folder().join("sparse_linear.pt"), other.path().join("sparse_linear.pt")).unwrap();
    check("model.safetensors is damaged");
}

/// As the model's own files, converted.
struct Converted(TempDir);

impl Converted {
    fn new() -> Self {
        let converted = Self(TempDir::new().unwrap());
        for file in ["config.json", "tokenizer.json"] {
            std::fs::copy(folder().join(file), converted.0.path().join(file)).unwrap();
        }
        for (from, to) in
            [("pytorch_model.bin", "model.safetensors"), ("sparse_linear.pt", "sparse_linear.safetensors")]
        {
            let tensors: HashMap<String, Tensor> = pickle::read_all(folder().join(from)).unwrap().into_iter().collect();
            safetensors::save(&tensors, converted.0.path().join(to)).unwrap();
        }
        converted
    }

    fn error(&self, model: LocalModel) -> String {
        let error = Local::load(self.0.path(), model, 1).map(|_| ()).unwrap_err();
        error.to_string().replace(&self.0.path().display().to_string(), "FOLDER")
    }
}

#[tokio::test]
async fn files_of_safetensors_say_the_same() {
    let converted = Converted::new();
    for (got, want) in embed(converted.0.path(), TINY).await.iter().zip(&expected()) {
        check(got, want);
    }
}

#[tokio::test]
async fn without_sparse_it_is_an_xlm_roberta_like_any_other() {
    let converted = Converted::new();
    std::fs::remove_file(converted.0.path().join("sparse_linear.safetensors")).unwrap();
    std::fs::create_dir(converted.0.path().join("1_Pooling")).unwrap();
    std::fs::write(converted.0.path().join("1_Pooling/config.json"), r#"{"pooling_mode": "cls"}"#).unwrap();
    for (got, want) in embed(converted.0.path(), LocalModel { sparse: false, ..TINY }).await.iter().zip(&expected()) {
        assert_eq!(got.sparse, None);
        check(&Embedding { sparse: Some(Sparse::new(want.sparse.clone()).unwrap()), ..got.clone() }, want);
    }
}

#[test]
fn what_the_folder_lacks_is_named() {
    let converted = Converted::new();
    assert_eq!(
        converted.error(LocalModel { longest: 41, ..TINY }),
        "FOLDER/config.json takes texts of 3 to 40 tokens and the model in workers.toml says 41: set `longest`"
    );
    std::fs::remove_file(converted.0.path().join("sparse_linear.safetensors")).unwrap();
    assert_eq!(
        converted.error(TINY),
        "cannot read FOLDER/sparse_linear.pt: `sparse = true` needs BGE-M3's sparse_linear.pt (or sparse_linear.safetensors) \
         in `folder`"
    );
    std::fs::write(converted.0.path().join("sparse_linear.pt"), "half a file").unwrap();
    assert_eq!(
        converted.error(TINY),
        "FOLDER/sparse_linear.pt is damaged or not for a BERT or XLM-RoBERTa model: bring the folder again"
    );
}
