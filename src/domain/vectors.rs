/// Why a vector may not be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadVector {
    #[error("has {got} dimensions instead of {want}")]
    Length { got: usize, want: usize },
    #[error("has a value that is not finite")]
    NotFinite,
    #[error("is all zeros")]
    Zero,
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
