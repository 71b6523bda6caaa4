//! Status 200: the body turned into vectors in the order of the texts.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use crate::domain::BadVector;
use crate::providers::ProviderError;
use crate::providers::http::not_an_answer;

#[derive(Deserialize)]
struct EmbedResponse {
    data: Vec<Item>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Item {
    index: usize,
    embedding: Embedding,
}

/// What the service counted. A count that cannot be read spoils no vector beside it.
#[derive(Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Usage(Value);

impl Usage {
    /// The tokens of the texts; none where it says none that can be.
    pub(super) fn tokens(&self) -> Option<u64> {
        let said = self.0.get("prompt_tokens").filter(|said| !said.is_null())?;
        let tokens = said.as_u64();
        if tokens.is_none() {
            // What is no number may be anything, a text of ours too.
            let said = said.as_number().map_or_else(|| "no number".to_owned(), ToString::to_string);
            tracing::warn!(said, "the provider's count of tokens is none: ours is booked");
        }
        tokens
    }
}

/// Base64 of little-endian `f32`s, or a list of numbers: compatible services do not all know `encoding_format`. Read straight
/// into numbers, without a copy of the text between.
struct Embedding(Vector);

type Vector = Result<Vec<f32>, BadVector>;

/// The vectors in the order of the texts, and the tokens the service counted.
pub(super) fn read(body: &[u8], texts: usize) -> Result<(Vec<Vector>, Option<u64>), ProviderError> {
    let response: EmbedResponse =
        serde_json::from_slice(body).map_err(|error| not_an_answer(body, &error, "list of embeddings"))?;
    let tokens = response.usage.tokens();
    let items = response.data.into_iter().map(|item| (item.index, item.embedding.0)).collect();
    Ok((in_order(items, texts)?, tokens))
}

/// The service numbers its vectors and may send them in any order.
pub(super) fn in_order<T>(items: Vec<(usize, T)>, texts: usize) -> Result<Vec<T>, ProviderError> {
    if items.len() != texts {
        return Err(garbled(format!("{} vectors for {texts} texts", items.len())));
    }
    let mut vectors: Vec<Option<T>> = (0..texts).map(|_| None).collect();
    for (index, vector) in items {
        let number = index + 1;
        let slot = vectors.get_mut(index).ok_or_else(|| garbled(format!("a vector for input {number} of {texts}")))?;
        if slot.replace(vector).is_some() {
            return Err(garbled(format!("two vectors for input {number} of {texts}")));
        }
    }
    // As many vectors as texts and none twice: none is missing.
    Ok(vectors.into_iter().flatten().collect())
}

fn garbled(why: String) -> ProviderError {
    ProviderError::Garbled(why)
}

impl<'de> Deserialize<'de> for Embedding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EmbeddingVisitor)
    }
}

struct EmbeddingVisitor;

impl<'de> Visitor<'de> for EmbeddingVisitor {
    type Value = Embedding;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("base64 or a list of numbers")
    }

    fn visit_str<E>(self, text: &str) -> Result<Embedding, E> {
        Ok(Embedding(decode(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Embedding, A::Error> {
        let mut vector = Vec::with_capacity(1536);
        while let Some(next) = numbers.next_element()? {
            vector.push(number(next));
        }
        Ok(Embedding(Ok(vector)))
    }
}

/// `null` is what some services make of a number that is not finite.
pub(super) fn number(number: Option<f32>) -> f32 {
    number.unwrap_or(f32::NAN)
}

fn decode(text: &str) -> Vector {
    let bytes = STANDARD.decode(text).map_err(|_| BadVector::Unreadable("is not base64"))?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(BadVector::Unreadable("ends in the middle of a number"));
    }
    Ok(numbers.iter().copied().map(f32::from_le_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_none(body: &str, why: &str) {
        assert_eq!(read(body.as_bytes(), 1), Err(ProviderError::NoAnswer(why.to_owned())));
    }

    #[track_caller]
    fn check(body: &str, texts: usize, want: Result<(Vec<Vec<f32>>, Option<u64>), &str>) {
        let want = want.map(|(vectors, tokens)| (vectors.into_iter().map(Ok).collect(), tokens));
        assert_eq!(read(body.as_bytes(), texts), want.map_err(|why| garbled(why.to_owned())));
    }

    #[test]
    fn both_encodings_are_read_and_put_in_order() {
        let body = r#"{"data": [{"index": 1, "embedding": [1, -0.5]}, {"index": 0, "embedding": "AACAPwAAAMA="}],
                      "usage": {"prompt_tokens": 7, "total_tokens": 7}}"#;
        check(body, 2, Ok((vec![vec![1.0, -2.0], vec![1.0, -0.5]], Some(7))));
    }

    #[test]
    fn usage_may_be_missing_and_slashes_escaped() {
        check(r#"{"data": [{"index": 0, "embedding": "\/\/9\/Pw=="}]}"#, 1, Ok((vec![vec![0.999_999_94]], None)));
    }

    #[test]
    fn a_count_that_cannot_be_spoils_no_vector() {
        for usage in [r#"{"prompt_tokens": -7}"#, r#"{"prompt_tokens": 1.5}"#, r#"{"prompt_tokens": "7"}"#, "null", "7"]
        {
            let body = format!(r#"{{"data": [{{"index": 0, "embedding": [1]}}], "usage": {usage}}}"#);
            check(&body, 1, Ok((vec![vec![1.0]], None)));
        }
    }

    #[test]
    fn each_text_has_one_vector() {
        let item = |index: usize| format!(r#"{{"index": {index}, "embedding": [1]}}"#);
        let body = |items: &[usize]| {
            format!(r#"{{"data": [{}]}}"#, items.iter().map(|&i| item(i)).collect::<Vec<_>>().join(","))
        };
        check(&body(&[0]), 2, Err("1 vectors for 2 texts"));
        check(&body(&[1, 1]), 2, Err("two vectors for input 2 of 2"));
        check(&body(&[0, 2]), 2, Err("a vector for input 3 of 2"));
    }

    #[test]
    fn broken_base64_spoils_its_own_vector_only() {
        for (text, why) in [("AAC", "is not base64"), ("AAAA", "ends in the middle of a number")] {
            let broken = format!(r#"{{"index": 0, "embedding": "{text}"}}, {{"index": 1, "embedding": "AACAPw=="}}"#);
            let (vectors, _) = read(format!(r#"{{"data": [{broken}]}}"#).as_bytes(), 2).unwrap();
            assert_eq!(vectors, [Err(BadVector::Unreadable(why)), Ok(vec![1.0])]);
        }
    }

    #[test]
    fn what_is_no_answer_is_described_without_quoting_it() {
        check_none("", "its body is empty");
        check_none("<!doctype html><p>Ada", "it sent a web page, not JSON; is the url right?");
        check_none(r#"{"data": [{"index": 0, "embe"#, "its JSON is cut off");
        check_none(r#"{"data": "Ada"}"#, "it sent no list of embeddings in JSON (line 1, column 14)");
    }

    #[test]
    fn a_null_among_numbers_is_a_number_that_is_not_finite() {
        let (vectors, _) = read(br#"{"data": [{"index": 0, "embedding": [null]}]}"#, 1).unwrap();
        assert!(vectors[0].as_ref().unwrap()[0].is_nan());
    }
}
