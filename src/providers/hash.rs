//! Lexical vectors: hashed words, no meaning, no network. For tests and applications' own CI.

use async_trait::async_trait;
use unicode_segmentation::UnicodeSegmentation as _;

use super::{Embedded, Embedder, ProviderError, checked};

/// How much a pair of neighbouring words counts beside a single word.
const PAIR: f32 = 0.5;

/// Feature hashing of lower-cased words and pairs of words into any number of dimensions, signed and normalised.
///
/// Two texts are near each other as far as they share words: `car` and `automobile` are strangers. The same text has the same
/// vector on every machine and in every version.
#[derive(Debug, Clone)]
pub struct Hash {
    dimensions: usize,
}

impl Hash {
    /// Vectors of so many dimensions.
    pub fn new(dimensions: usize) -> Self {
        Self { dimensions }
    }

    fn vector(&self, text: &str) -> Vec<f32> {
        let mut vector = vec![0.0; self.dimensions];
        let text_lower = text.to_lowercase();
        let mut previous = None;
        for word in text_lower.unicode_words() {
            let hash = hash(word.as_bytes());
            self.add(&mut vector, mix(hash), 1.0);
            if let Some(before) = previous.replace(hash) {
                self.add(&mut vector, mix(hash ^ mix(before)), PAIR);
            }
        }
        // A text without words, or one whose words cancel each other out, still has a vector.
        if vector.iter().all(|&value| value == 0.0) {
            self.add(&mut vector, mix(hash(text.as_bytes())), 1.0);
        }
        super::normalize(&mut vector);
        vector
    }

    /// The highest bits choose the dimension, the lowest the sign.
    fn add(&self, vector: &mut [f32], hash: u64, weight: f32) {
        let bucket = (u128::from(hash) * self.dimensions as u128) >> 64;
        let slot = usize::try_from(bucket).ok().and_then(|bucket| vector.get_mut(bucket));
        if let Some(slot) = slot {
            *slot += if hash & 1 == 0 { weight } else { -weight };
        }
    }
}

#[async_trait]
impl Embedder for Hash {
    async fn embed(&self, texts: &[String]) -> Result<Embedded, ProviderError> {
        let vectors = texts.iter().map(|text| checked(self.vector(text).into(), self.dimensions)).collect();
        Ok(Embedded { vectors, ..Embedded::default() })
    }
}

/// FNV-1a: spelt out because the standard library's hashers may change between versions.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finish of splitmix64: spreads every bit of the hash over all others.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::check_vector;

    fn likeness(left: &str, right: &str) -> f32 {
        let hash = Hash::new(512);
        hash.vector(left).iter().zip(hash.vector(right)).map(|(left, right)| left * right).sum()
    }

    #[test]
    fn shared_words_make_texts_alike() {
        let near = likeness("The invoice of March is overdue.", "invoice of march: OVERDUE!");
        let far = likeness("The invoice of March is overdue.", "A lighthouse keeps ships from rocks.");
        assert!(near > 0.6 && far.abs() < 0.2, "{near} {far}");
    }

    #[test]
    fn the_order_of_words_counts_a_little() {
        let turned = likeness("dog bites man", "man bites dog");
        assert!((0.5..0.99).contains(&turned), "{turned}");
    }

    #[test]
    fn words_of_chinese_text_are_found_without_spaces() {
        assert!(likeness("今天天气很好", "天气很好,我们走吧") > 0.3);
    }

    #[test]
    fn vectors_never_change_between_versions() {
        let vector = Hash::new(4).vector("Gristmill keeps vectors");
        insta::assert_snapshot!(format!("{vector:?}"), @"[-0.31622776, -0.6324555, 0.31622776, 0.6324555]");
    }

    proptest! {
        #[test]
        fn every_text_has_a_valid_vector_of_length_one(text in "\\PC{0,40}", dimensions in 1_usize..100) {
            let vector = Hash::new(dimensions).vector(&text);
            prop_assert_eq!(check_vector(&vector, dimensions), Ok(()));
            let length: f32 = vector.iter().map(|value| value * value).sum();
            prop_assert!((length - 1.0).abs() < 1e-3);
        }
    }
}
