use std::collections::HashMap;

use crate::db::app::Existing;
use crate::domain::{Chunk, Digest};

/// Which existing chunk each new one may keep: the same embedded text by the job's digests, the same stored text, a valid vector.
/// Returns places in `existing`; each is used once, those that stay where they are first.
pub fn keep(chunks: &[Chunk], existing: &[&Existing], digests: &[Digest]) -> Vec<Option<usize>> {
    let mut free: HashMap<(Digest, Option<Digest>), Vec<usize>> = HashMap::new();
    for (place, chunk) in existing.iter().enumerate().rev() {
        let digest = usize::try_from(chunk.index).ok().and_then(|index| digests.get(index));
        if let (Some(&digest), true) = (digest, chunk.valid) {
            free.entry((digest, chunk.text)).or_default().push(place);
        }
    }
    let mut kept = vec![None; chunks.len()];
    // A chunk that did not move keeps its own row before one that moved may take it.
    for unmoved in [true, false] {
        for (chunk, kept) in chunks.iter().zip(&mut kept).filter(|(_, kept)| kept.is_none()) {
            let stored = Digest::of(&chunk.text);
            for key in [(chunk.digest(), Some(stored)), (chunk.digest(), None)] {
                let Some(places) = free.get_mut(&key) else { continue };
                let found = places
                    .iter()
                    .position(|&place| !unmoved || usize::try_from(existing[place].index) == Ok(chunk.index));
                // The list is in reverse: the last is the first in the document.
                let found = if unmoved { found } else { places.len().checked_sub(1) };
                if let Some(found) = found {
                    *kept = Some(places.remove(found));
                    break;
                }
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(index: usize, text: &str) -> Chunk {
        Chunk {
            index,
            text: text.to_owned(),
            embedded: None,
            tokens: 1,
            page: None,
            section: None,
            level: None,
            start: 0,
            end: 0,
        }
    }

    fn check(old: &[(&str, bool)], new: &[&str], want: &[Option<usize>]) {
        let existing: Vec<Existing> = old
            .iter()
            .enumerate()
            .map(|(index, (text, valid))| Existing {
                nth: 0,
                place: String::new(),
                index: i64::try_from(index).unwrap(),
                text: Some(Digest::of(text)),
                valid: *valid,
            })
            .collect();
        let digests: Vec<Digest> = old.iter().map(|(text, _)| Digest::of(text)).collect();
        let chunks: Vec<Chunk> = new.iter().enumerate().map(|(index, text)| chunk(index, text)).collect();
        assert_eq!(keep(&chunks, &existing.iter().collect::<Vec<_>>(), &digests), want);
    }

    #[test]
    fn what_did_not_change_is_kept_where_it_is_or_where_it_went() {
        check(&[("a", true), ("b", true)], &["a", "b"], &[Some(0), Some(1)]);
        check(&[("a", true), ("b", true)], &["new", "a", "b"], &[None, Some(0), Some(1)]);
        check(&[("a", true), ("b", true), ("c", true)], &["c", "x"], &[Some(2), None]);
    }

    #[test]
    fn one_row_is_kept_once() {
        check(&[("a", true)], &["a", "a"], &[Some(0), None]);
        check(&[("a", true), ("a", true)], &["a", "a", "a"], &[Some(0), Some(1), None]);
    }

    #[test]
    fn a_vector_that_is_not_valid_is_not_kept() {
        check(&[("a", false)], &["a"], &[None]);
    }
}
