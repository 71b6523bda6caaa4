//! vLLM's `/pooling` with its plugin for BGE-M3, `bge_m3_sparse_plugin`: vectors and weights of tokens in one pass. A server of
//! vLLM runs one task, so one that gives weights answers at `/embeddings` no more, and without the plugin it would say a list
//! of weights without their tokens.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::Answer;
use super::answer::{Usage, in_order, number};
use crate::domain::{BadVector, Embedding, Sparse, VOCABULARY};
use crate::providers::ProviderError;
use crate::providers::http::not_an_answer;

/// The most a weight takes in JSON: token, number, and what stands around them.
pub(super) const BYTES_PER_WEIGHT: usize = 128;
/// XLM-RoBERTa's `<s>`, `<pad>`, `</s>` and `<unk>`: no words, and the plugin leaves some of them in.
const SPECIAL: RangeInclusive<u32> = 0..=3;

#[derive(Serialize)]
pub(super) struct PoolingRequest<'a> {
    model: &'a str,
    task: &'a str,
    data: PoolingInput<'a>,
}

#[derive(Serialize)]
struct PoolingInput<'a> {
    input: &'a [String],
    embed_task: &'a str,
    return_tokens: bool,
}

impl<'a> PoolingRequest<'a> {
    pub(super) fn new(model: &'a str, texts: &'a [String]) -> Self {
        let data = PoolingInput { input: texts, embed_task: "dense&sparse", return_tokens: false };
        Self { model, task: "plugin", data }
    }
}

/// vLLM's envelope, and in it the plugin's answer.
#[derive(Deserialize)]
struct PoolingResponse {
    data: PluginResponse,
}

#[derive(Deserialize)]
struct PluginResponse {
    data: Vec<Item>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Item {
    index: usize,
    dense_embedding: Option<Vec<Option<f32>>>,
    sparse_embedding: Option<Vec<Weight>>,
}

#[derive(Deserialize)]
struct Weight {
    token_id: u32,
    weight: Option<f32>,
}

impl Item {
    fn embedding(self) -> Result<Embedding, BadVector> {
        let vector = self.dense_embedding.ok_or(BadVector::Unreadable("is missing"))?;
        let weights = self.sparse_embedding.ok_or(BadVector::NoWeights)?.into_iter();
        let weights: Vec<Weight> = weights.filter(|weight| !SPECIAL.contains(&weight.token_id)).collect();
        if weights.iter().any(|weight| usize::try_from(weight.token_id).is_ok_and(|token| token >= VOCABULARY)) {
            return Err(BadVector::Token);
        }
        let weights = weights.into_iter();
        let sparse = Sparse::new(weights.map(|weight| (weight.token_id, number(weight.weight))))?;
        Ok(Embedding { vector: vector.into_iter().map(number).collect(), sparse: Some(sparse) })
    }
}

/// The embeddings in the order of the texts, and the tokens the service counted.
pub(super) fn read(body: &[u8], texts: usize) -> Result<Answer, ProviderError> {
    let response: PoolingResponse =
        serde_json::from_slice(body).map_err(|error| not_an_answer(body, &error, "list of embeddings"))?;
    let PluginResponse { data, usage } = response.data;
    let items = data.into_iter().map(|item| (item.index, item.embedding())).collect();
    Ok((in_order(items, texts)?, usage.tokens()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(item: &str) -> Result<Embedding, BadVector> {
        let body = format!(r#"{{"request_id": "p", "created_at": 1, "data": {{"data": [{item}], "usage": null}}}}"#);
        read(body.as_bytes(), 1).unwrap().0.remove(0)
    }

    fn weight(token: u32, weight: &str) -> String {
        format!(
            r#"{{"index": 0, "object": "dense&sparse", "dense_embedding": [1, 0],
                "sparse_embedding": [{{"token_id": {token}, "weight": {weight}, "token": null}}]}}"#
        )
    }

    #[test]
    fn weights_that_are_no_weights_spoil_their_own_text_only() {
        assert_eq!(read_one(&weight(7, "-0.5")), Err(BadVector::Weight));
        assert_eq!(read_one(&weight(7, "null")), Err(BadVector::Weight));
        assert_eq!(read_one(&weight(250_002, "0.5")), Err(BadVector::Token));
        assert!(read_one(&weight(250_001, "0.5")).is_ok());
        assert_eq!(
            read_one(r#"{"index": 0, "dense_embedding": [1], "sparse_embedding": null}"#),
            Err(BadVector::NoWeights)
        );
        assert_eq!(
            read_one(r#"{"index": 0, "dense_embedding": null, "sparse_embedding": []}"#),
            Err(BadVector::Unreadable("is missing"))
        );
    }

    #[test]
    fn what_is_no_word_has_no_weight() {
        for token in SPECIAL {
            assert_eq!(read_one(&weight(token, "0.5")).unwrap().sparse, Some(Sparse::default()), "{token}");
        }
        assert_eq!(read_one(&weight(4, "0.5")).unwrap().sparse, Some(Sparse::new([(4, 0.5)]).unwrap()));
    }

    #[test]
    fn scores_without_their_tokens_are_no_answer() {
        // What the server says where it was asked without the plugin.
        let body = br#"{"id": "pool-1", "data": [{"index": 0, "object": "pooling", "data": [0.5, 0.25]}]}"#;
        assert!(matches!(read(body, 1), Err(ProviderError::NoAnswer(_))));
    }
}
