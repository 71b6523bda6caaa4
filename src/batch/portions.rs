//! What a request cost, split over its texts.

pub(super) fn widen(tokens: usize) -> u64 {
    u64::try_from(tokens).unwrap_or(u64::MAX)
}

/// The provider's count of tokens, or ours where it says none or one that the texts cannot have: tokenizers differ, but not by this much,
/// and what is booked stays.
pub(super) fn believed(said: Option<u64>, texts: &[u64]) -> u64 {
    let ours: u64 = texts.iter().sum();
    let most = ours.saturating_mul(8).saturating_add(64 * widen(texts.len()));
    match said {
        Some(said) if said <= most => said,
        Some(said) => {
            tracing::error!(said, ours, "the provider's count of tokens is not possible: ours is booked");
            ours
        }
        None => ours,
    }
}

/// Splits a whole into parts by weight, so that the parts sum to the whole: each gets the difference of two rounded prefixes.
pub(super) fn portions(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let mut before: u128 = 0;
    let mut given: u64 = 0;
    weights
        .iter()
        .enumerate()
        .map(|(nth, &weight)| {
            before += u128::from(weight);
            let last = nth + 1 == weights.len();
            let upto = match (u128::from(total) * before).checked_div(sum) {
                Some(upto) if !last => u64::try_from(upto).unwrap_or(total),
                _ if last => total,
                _ => given,
            };
            let part = upto.saturating_sub(given);
            given = upto;
            part
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_sum_to_the_whole() {
        assert_eq!(portions(10, &[1, 1, 1]), [3, 3, 4]);
        assert_eq!(portions(7, &[0, 0]), [0, 7]);
        assert_eq!(portions(100, &[99, 1]), [99, 1]);
        assert_eq!(portions(5, &[]), Vec::<u64>::new());
    }
}
