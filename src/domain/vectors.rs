use std::collections::BTreeMap;

/// What a model makes of a text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Embedding {
    pub vector: Vec<f32>,
    /// The weights of its tokens, where the model gives them.
    pub sparse: Option<Sparse>,
}

impl From<Vec<f32>> for Embedding {
    fn from(vector: Vec<f32>) -> Self {
        Self { vector, sparse: None }
    }
}

/// Tokens of XLM-RoBERTa, whose weights BGE-M3 gives.
pub const VOCABULARY: usize = 250_002;

/// Weights by token, each finite and greater than zero; a text may have none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sparse(BTreeMap<u32, f32>);

impl Sparse {
    /// A token that comes more than once keeps its largest weight, and one of weight zero is left out.
    ///
    /// # Errors
    /// A weight is not finite, or negative.
    pub fn new(weights: impl IntoIterator<Item = (u32, f32)>) -> Result<Self, BadVector> {
        let mut largest = BTreeMap::new();
        for (token, weight) in weights {
            if !weight.is_finite() || weight < 0.0 {
                return Err(BadVector::Weight);
            }
            if weight > 0.0 {
                largest.entry(token).and_modify(|known: &mut f32| *known = known.max(weight)).or_insert(weight);
            }
        }
        Ok(Self(largest))
    }

    /// By ascending token.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> {
        self.0.iter().map(|(&token, &weight)| (token, weight))
    }

    /// Of a text in parts: the largest weight that a token has in any of them, as if they had been one text.
    pub fn merge(&mut self, other: &Self) {
        for (token, weight) in other.iter() {
            self.0.entry(token).and_modify(|known| *known = known.max(weight)).or_insert(weight);
        }
    }
}

/// Why a vector may not be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadVector {
    #[error("has {got} dimensions instead of {want}")]
    Length { got: usize, want: usize },
    #[error("has a value that is not finite")]
    NotFinite,
    #[error("is all zeros")]
    Zero,
    #[error("has a weight of a token that is not a positive number")]
    Weight,
    #[error("has a weight of a token that the model does not know")]
    Token,
    #[error("has no weights of tokens beside it")]
    NoWeights,
    /// The answer holds no numbers where the vector should be.
    #[error("{0}")]
    Unreadable(&'static str),
}

/// Promise 3 in small: the right length, finite, and not all zeros.
pub fn check_vector(vector: &[f32], dimensions: usize) -> Result<(), BadVector> {
    if vector.len() != dimensions {
        return Err(BadVector::Length { got: vector.len(), want: dimensions });
    }
    if !vector.iter().all(|value| value.is_finite()) {
        return Err(BadVector::NotFinite);
    }
    if vector.iter().all(|&value| value == 0.0) {
        return Err(BadVector::Zero);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_keeps_its_largest_weight_and_none_is_zero() {
        let sparse = Sparse::new([(7, 0.5), (3, 0.25), (7, 1.5), (4, 0.0), (3, 0.125)]).unwrap();
        assert_eq!(sparse.iter().collect::<Vec<_>>(), [(3, 0.25), (7, 1.5)]);
        for bad in [-0.1, f32::NAN, f32::INFINITY] {
            assert_eq!(Sparse::new([(1, 0.5), (2, bad)]), Err(BadVector::Weight), "{bad}");
        }
    }

    #[test]
    fn parts_merge_to_what_they_would_be_as_one_text() {
        let mut whole = Sparse::new([(1, 0.5), (2, 0.25)]).unwrap();
        whole.merge(&Sparse::new([(2, 0.75), (3, 1.0)]).unwrap());
        assert_eq!(whole, Sparse::new([(1, 0.5), (2, 0.75), (3, 1.0)]).unwrap());
    }
}
